//! Flow events and EVE as JSON lines in files or on standard output.

use std::io;
use std::path::{Path, PathBuf};

use super::buffered::Buffered;
use crate::eve::EveWriter;
use crate::event::{About, EventWriter, FlowEvent};

/// A log cannot be opened.
#[derive(Debug, thiserror::Error)]
#[error("{what} {}: {source}", path.display())]
pub struct OpenLogError {
    what: &'static str,
    path: PathBuf,
    source: io::Error,
}

fn open(what: &'static str, path: &Path) -> Result<Buffered, OpenLogError> {
    Buffered::open(path).map_err(|source| OpenLogError { what, path: path.into(), source })
}

/// Appends flow events to a file, one JSON object a line.
pub struct FlowLog {
    lines: Buffered,
    writer: EventWriter,
}

impl FlowLog {
    /// Opens the log, at its end if it is there already; `-` is standard output.
    pub fn open(path: &Path, writer: EventWriter) -> Result<Self, OpenLogError> {
        Ok(Self { lines: open("flow log", path)?, writer })
    }

    /// Adds one event.
    pub fn write(&mut self, event: &FlowEvent, about: &About<'_>) -> io::Result<()> {
        self.lines.add(|out| self.writer.write_about(event, about, out))
    }

    /// Writes what is buffered; on an error it stays buffered.
    pub fn flush(&mut self) -> io::Result<()> {
        self.lines.flush()
    }

    /// Goes on in a file of the same name.
    pub fn reopen(&mut self) -> io::Result<()> {
        self.lines.reopen()
    }
}

/// Appends EVE lines to a file.
pub struct EveLog {
    lines: Buffered,
    writer: EveWriter,
}

impl EveLog {
    /// Opens the log, at its end if it is there already; `-` is standard output.
    pub fn open(path: &Path, writer: EveWriter) -> Result<Self, OpenLogError> {
        Ok(Self { lines: open("EVE log", path)?, writer })
    }

    /// Adds what `write` makes of something.
    pub fn write(&mut self, write: impl FnOnce(&EveWriter, &mut Vec<u8>)) -> io::Result<()> {
        self.lines.add(|out| write(&self.writer, out))
    }

    /// Writes what is buffered; on an error it stays buffered.
    pub fn flush(&mut self) -> io::Result<()> {
        self.lines.flush()
    }

    /// Goes on in a file of the same name.
    pub fn reopen(&mut self) -> io::Result<()> {
        self.lines.reopen()
    }
}
