//! Flow events as JSON lines in a file or on standard output.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use crate::event::{EventWriter, FlowEvent};

/// Written at once.
const BUFFER: usize = 1 << 18;

/// The log cannot be opened.
#[derive(Debug, thiserror::Error)]
#[error("flow log {}: {source}", path.display())]
pub struct OpenLogError {
    path: PathBuf,
    source: io::Error,
}

enum Sink {
    File(File),
    Stdout(io::Stdout),
}

/// Appends flow events to a file, one JSON object a line.
pub struct FlowLog {
    sink: Sink,
    writer: EventWriter,
    buffer: Vec<u8>,
}

impl FlowLog {
    /// Opens the log, at its end if it is there already; `-` is standard output.
    pub fn open(path: &Path, writer: EventWriter) -> Result<Self, OpenLogError> {
        let sink = if path.as_os_str() == "-" {
            Sink::Stdout(io::stdout())
        } else {
            let open = OpenOptions::new().create(true).append(true).open(path);
            Sink::File(open.map_err(|source| OpenLogError { path: path.into(), source })?)
        };
        Ok(Self { sink, writer, buffer: Vec::with_capacity(BUFFER + 4096) })
    }

    /// Adds one event.
    pub fn write(&mut self, event: &FlowEvent) -> io::Result<()> {
        self.writer.write(event, &mut self.buffer);
        if self.buffer.len() >= BUFFER { self.flush() } else { Ok(()) }
    }

    /// Writes what is buffered; on an error it stays buffered.
    pub fn flush(&mut self) -> io::Result<()> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        match &mut self.sink {
            Sink::File(file) => file.write_all(&self.buffer)?,
            Sink::Stdout(out) => {
                let mut out = out.lock();
                out.write_all(&self.buffer)?;
                out.flush()?;
            }
        }
        self.buffer.clear();
        Ok(())
    }
}
