//! Lines in large writes, to a log that can be opened anew.

use std::fs::OpenOptions;
use std::io;
use std::path::{Path, PathBuf};

use super::LineLog;

/// Written at once.
const BUFFER: usize = 1 << 18;

/// Lines on their way out.
pub(super) struct Buffered {
    path: PathBuf,
    log: LineLog,
    buffer: Vec<u8>,
}

impl Buffered {
    /// Opens a file at its end, and makes it if it is not there, but not its folder; `-` is standard
    /// output.
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        let buffer = Vec::with_capacity(BUFFER + 4096);
        Ok(Self { path: path.into(), log: open(path)?, buffer })
    }

    /// Adds lines, written into the buffer by `write`.
    pub(super) fn add(&mut self, write: impl FnOnce(&mut Vec<u8>)) -> io::Result<()> {
        write(&mut self.buffer);
        if self.buffer.len() >= BUFFER { self.flush() } else { Ok(()) }
    }

    /// Writes what is buffered; on an error it stays buffered.
    pub(super) fn flush(&mut self) -> io::Result<()> {
        if !self.buffer.is_empty() {
            self.log.write(&self.buffer)?;
            self.buffer.clear();
        }
        Ok(())
    }

    /// Goes on in a log of the same name, which another program may have moved away. The old one
    /// stays open if the new one cannot be opened.
    pub(super) fn reopen(&mut self) -> io::Result<()> {
        self.flush()?;
        self.log = open(&self.path)?;
        Ok(())
    }
}

fn open(path: &Path) -> io::Result<LineLog> {
    if path.as_os_str() == "-" {
        return LineLog::open(path);
    }
    OpenOptions::new().create(true).append(true).open(path).map(LineLog::File)
}
