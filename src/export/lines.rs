//! A log of lines, in a file or on standard output.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::Path;

/// Where lines go, whole ones at a time; nothing is buffered beyond a call.
#[derive(Debug)]
pub enum LineLog {
    File(File),
    Stdout(io::Stdout),
}

impl LineLog {
    /// Opens a file at its end, and makes it and its folder if they are not there; `-` is standard
    /// output.
    pub fn open(path: &Path) -> io::Result<Self> {
        if path.as_os_str() == "-" {
            return Ok(Self::Stdout(io::stdout()));
        }
        if let Some(folder) = path.parent().filter(|f| !f.as_os_str().is_empty()) {
            fs::create_dir_all(folder)?;
        }
        OpenOptions::new().create(true).append(true).open(path).map(Self::File)
    }

    /// Writes whole lines so that a reader sees them at once.
    pub fn write(&mut self, lines: &[u8]) -> io::Result<()> {
        match self {
            Self::File(file) => file.write_all(lines),
            Self::Stdout(out) => {
                let mut out = out.lock();
                out.write_all(lines)?;
                out.flush()
            }
        }
    }
}
