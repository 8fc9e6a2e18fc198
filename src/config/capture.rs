//! Which packets are looked at: `filter`, `capture_filter` and `exclude_web`.

use std::fs;
use std::path::Path;

use super::{ConfigError, Layer};
use crate::filter::{self, Filter};

/// What `--exclude-web` takes: HTTP, HTTPS and QUIC stay out.
const NO_WEB: &str = "not (port 80 or port 443)";

/// What telemetry and journal see.
///
/// The expression of the highest layer that has one holds (flag, environment, file); in one layer
/// `filter` beats `capture_filter`. `exclude_web` of any layer holds besides.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CaptureRules {
    /// pcap-filter's; the empty one takes every packet.
    pub expression: String,
    /// The option and the layer it stood in.
    pub given: String,
    /// What stood beside it and does not count.
    pub unused: Option<String>,
    pub exclude_web: bool,
}

impl CaptureRules {
    pub(super) fn of(l: &Layer) -> Result<Self, ConfigError> {
        let mut this = Self { exclude_web: l.exclude_web, ..Self::default() };
        let given = |what: String| format!("{what} ({})", l.filter_from);
        match (&l.filter, &l.capture_filter) {
            (None, None) => {}
            (None, Some(path)) => {
                let option = format!("--capture-filter {}", path.display());
                this.expression = from_file(&option, path)?;
                this.given = given(option);
            }
            (Some(text), file) => {
                this.expression = expression("--filter", text)?;
                this.given = given("--filter".into());
                this.unused = file.as_ref().map(|f| format!("--capture-filter {}", f.display()));
            }
        }
        Ok(this)
    }

    /// All that must hold.
    pub fn expressions(&self) -> Vec<&str> {
        let web = self.exclude_web.then_some(NO_WEB);
        [Some(self.expression.as_str()), web].into_iter().flatten().collect()
    }
}

/// A filter as an option gives it: the expression itself, or with an @ in front the file it is in.
pub(super) fn expression(option: &str, given: &str) -> Result<String, ConfigError> {
    if let Some(path) = given.strip_prefix('@') {
        return from_file(&format!("{option} {given}"), Path::new(path));
    }
    let text = given.trim().to_owned();
    match Filter::compile(&text, 1) {
        Ok(_) => Ok(text),
        Err(e) => Err(ConfigError::Bad(format!("{option}: {e}"))),
    }
}

fn from_file(option: &str, path: &Path) -> Result<String, ConfigError> {
    let bad = |why: &dyn std::fmt::Display| ConfigError::Bad(format!("{option}: {why}"));
    let text = fs::read_to_string(path).map_err(|e| bad(&e))?;
    let stripped = filter::strip_comments(&text);
    match Filter::compile(&stripped, 1) {
        Ok(_) => Ok(stripped),
        Err(e) => Err(bad(&filter::in_file(&text, e))),
    }
}
