//! Secrets: from the environment, or a systemd credential. Never from a flag, never logged.

use std::env::{self, VarError};
use std::fs;
use std::path::{Path, PathBuf};

/// A secret by its variable, or else its credential.
///
/// # Errors
/// It is there and cannot be read.
pub fn read(variable: &str, credential: &str) -> Result<Option<String>, String> {
    match env::var(variable) {
        Ok(value) if !value.is_empty() => return Ok(Some(value)),
        Err(VarError::NotUnicode(_)) => return Err(format!("{variable} is not UTF-8")),
        _ => {}
    }
    let Some(path) = credential_path(credential) else { return Ok(None) };
    let text = fs::read_to_string(&path).map_err(|e| format!("{}: {e}", path.display()))?;
    Ok(Some(text.trim_end_matches(['\r', '\n']).to_owned()))
}

/// A systemd credential's file, if there is one.
pub fn credential_path(name: &str) -> Option<PathBuf> {
    let path = Path::new(&env::var_os("CREDENTIALS_DIRECTORY")?).join(name);
    path.exists().then_some(path)
}
