//! Flow events and EVE as JSON lines in files or on standard output.

use std::io;
use std::path::{Path, PathBuf};

use super::View;
use super::buffered::{Buffered, Rotation};
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
    view: Option<View>,
}

impl FlowLog {
    /// Opens the log, at its end if it is there already; `-` is standard output.
    pub fn open(path: &Path, writer: EventWriter) -> Result<Self, OpenLogError> {
        Ok(Self { lines: open("flow log", path)?, writer, view: None })
    }

    /// With a rotation, and a view that chooses events and fields.
    pub fn with(mut self, rotation: Rotation, view: Option<View>) -> Self {
        self.lines.rotate(rotation);
        self.view = view;
        self
    }

    /// Adds one event.
    pub fn write(&mut self, event: &FlowEvent, about: &About<'_>) -> io::Result<()> {
        let (writer, view) = (&mut self.writer, &self.view);
        self.lines.add(|out| {
            let start = out.len();
            writer.write_about(event, about, out);
            if let Some(view) = view {
                let line = out.split_off(start);
                if let Some(seen) = view.line(line.trim_ascii_end()) {
                    out.extend_from_slice(&seen);
                    out.push(b'\n');
                }
            }
        })
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
