//! Flow events as JSON lines in a file or on standard output.
//!
//! Written at once, without the spool. When the file begins anew (its size, or SIGHUP after another
//! program has moved it), no line is cut. While it cannot be written, events are kept in memory up to
//! a bound and then dropped and counted.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use crate::event::{EventWriter, FlowEvent};

use super::View;

/// Written at once.
const BUFFER: usize = 1 << 18;
/// Kept while the file cannot be written.
const KEPT: usize = 64 << 20;

/// The log cannot be opened.
#[derive(Debug, thiserror::Error)]
#[error("flow log {}: {source}", path.display())]
pub struct OpenLogError {
    path: PathBuf,
    source: io::Error,
}

/// When a log begins anew.
#[derive(Clone, Copy, Debug, Default)]
pub struct Rotation {
    /// Bytes; 0: never.
    pub size: u64,
    /// Old logs kept, as `<path>.1` (the newest) and so on.
    pub keep: u32,
}

enum Sink {
    File { file: File, size: u64 },
    Stdout(io::Stdout),
}

/// Appends flow events to a file, one JSON object a line.
pub struct FlowLog {
    path: PathBuf,
    sink: Sink,
    writer: EventWriter,
    view: Option<View>,
    rotation: Rotation,
    buffer: Vec<u8>,
    lost: u64,
}

impl FlowLog {
    /// Opens the log, at its end if it is there already; `-` is standard output.
    pub fn open(path: &Path, writer: EventWriter) -> Result<Self, OpenLogError> {
        let sink = if path.as_os_str() == "-" {
            Sink::Stdout(io::stdout())
        } else {
            append_to(path).map_err(|source| OpenLogError { path: path.into(), source })?
        };
        Ok(Self {
            path: path.into(),
            sink,
            writer,
            view: None,
            rotation: Rotation::default(),
            buffer: Vec::with_capacity(BUFFER + 4096),
            lost: 0,
        })
    }

    /// With a rotation, and a view that chooses events and fields.
    pub fn with(mut self, rotation: Rotation, view: Option<View>) -> Self {
        (self.rotation, self.view) = (rotation, view);
        self
    }

    /// Adds one event.
    pub fn write(&mut self, event: &FlowEvent) -> io::Result<()> {
        if self.buffer.len() >= KEPT {
            self.lost += 1;
            return Ok(());
        }
        let start = self.buffer.len();
        self.writer.write(event, &mut self.buffer);
        if let Some(view) = &self.view {
            let line = self.buffer.split_off(start);
            if let Some(seen) = view.line(line.trim_ascii_end()) {
                self.buffer.extend_from_slice(&seen);
                self.buffer.push(b'\n');
            }
        }
        // After an error it is tried again with the next flush.
        if start < BUFFER && self.buffer.len() >= BUFFER { self.flush() } else { Ok(()) }
    }

    /// Writes what is buffered; on an error what was not written stays buffered.
    pub fn flush(&mut self) -> io::Result<()> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        match &mut self.sink {
            Sink::File { file, size } => {
                let (written, result) = write_some(file, &self.buffer);
                *size += written as u64;
                self.buffer.drain(..written);
                result?;
            }
            Sink::Stdout(out) => {
                let mut out = out.lock();
                out.write_all(&self.buffer)?;
                out.flush()?;
                self.buffer.clear();
            }
        }
        if self.lost > 0 {
            tracing::error!(
                "{} events were lost while the flow log could not be written",
                self.lost
            );
            self.lost = 0;
        }
        self.rotate_if_large()
    }

    /// Opens the log anew under its name.
    pub fn reopen(&mut self) -> io::Result<()> {
        self.flush()?;
        if let Sink::File { .. } = self.sink {
            self.sink = append_to(&self.path)?;
        }
        Ok(())
    }

    fn rotate_if_large(&mut self) -> io::Result<()> {
        let Sink::File { size, .. } = &self.sink else { return Ok(()) };
        if self.rotation.size == 0 || *size < self.rotation.size {
            return Ok(());
        }
        let old = |n: u32| {
            let mut name = self.path.clone().into_os_string();
            name.push(format!(".{n}"));
            PathBuf::from(name)
        };
        if self.rotation.keep == 0 {
            fs::remove_file(&self.path)?;
        } else {
            for n in (1..self.rotation.keep).rev() {
                if old(n).exists() {
                    fs::rename(old(n), old(n + 1))?;
                }
            }
            fs::rename(&self.path, old(1))?;
        }
        self.sink = append_to(&self.path)?;
        Ok(())
    }
}

fn append_to(path: &Path) -> io::Result<Sink> {
    let file = OpenOptions::new().create(true).append(true).open(path)?;
    let size = file.metadata()?.len();
    Ok(Sink::File { file, size })
}

/// As `write_all`, but says how much was written.
fn write_some(file: &mut File, bytes: &[u8]) -> (usize, io::Result<()>) {
    let mut written = 0;
    while let Some(rest) = bytes.get(written..).filter(|r| !r.is_empty()) {
        match file.write(rest) {
            Ok(0) => return (written, Err(io::ErrorKind::WriteZero.into())),
            Ok(n) => written += n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return (written, Err(e)),
        }
    }
    (written, Ok(()))
}
