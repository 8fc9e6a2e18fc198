//! A file, or standard output, that lines are appended to.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// Written at once.
const BUFFER: usize = 1 << 18;

enum Sink {
    File(PathBuf, File),
    Stdout(io::Stdout),
}

/// Lines on their way out.
pub(super) struct Lines {
    sink: Sink,
    buffer: Vec<u8>,
}

impl Lines {
    /// Opens a file, at its end if it is there already; `-` is standard output.
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        let sink = if path.as_os_str() == "-" {
            Sink::Stdout(io::stdout())
        } else {
            Sink::File(path.into(), append_to(path)?)
        };
        Ok(Self { sink, buffer: Vec::with_capacity(BUFFER + 4096) })
    }

    /// Adds lines, written into the buffer by `write`.
    pub(super) fn add(&mut self, write: impl FnOnce(&mut Vec<u8>)) -> io::Result<()> {
        write(&mut self.buffer);
        if self.buffer.len() >= BUFFER { self.flush() } else { Ok(()) }
    }

    /// Writes what is buffered; on an error it stays buffered.
    pub(super) fn flush(&mut self) -> io::Result<()> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        match &mut self.sink {
            Sink::File(_, file) => file.write_all(&self.buffer)?,
            Sink::Stdout(out) => {
                let mut out = out.lock();
                out.write_all(&self.buffer)?;
                out.flush()?;
            }
        }
        self.buffer.clear();
        Ok(())
    }

    /// Goes on in a file of the same name, which another program may have moved away. The old one
    /// stays open if the new one cannot be opened.
    pub(super) fn reopen(&mut self) -> io::Result<()> {
        self.flush()?;
        if let Sink::File(path, file) = &mut self.sink {
            *file = append_to(path)?;
        }
        Ok(())
    }
}

fn append_to(path: &Path) -> io::Result<File> {
    OpenOptions::new().create(true).append(true).open(path)
}
