//! Lines in large writes, to a log that can be opened anew.
//!
//! While the log cannot be written, lines are kept in memory up to a bound, and then dropped and
//! counted.

use std::fs::{self, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};

use super::LineLog;

/// Written at once.
const BUFFER: usize = 1 << 18;
/// Kept while the log cannot be written.
const KEPT: usize = 64 << 20;

/// When a log begins anew.
#[derive(Clone, Copy, Debug, Default)]
pub struct Rotation {
    /// Bytes; 0: never.
    pub size: u64,
    /// Old logs kept, as `<path>.1` (the newest) and so on.
    pub keep: u32,
}

/// Lines on their way out.
pub(super) struct Buffered {
    path: PathBuf,
    log: LineLog,
    buffer: Vec<u8>,
    rotation: Rotation,
    size: u64,
    lost: u64,
}

impl Buffered {
    /// Opens a file at its end, and makes it if it is not there, but not its folder; `-` is standard
    /// output.
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        let buffer = Vec::with_capacity(BUFFER + 4096);
        let log = open(path)?;
        let size = size_of(path);
        let rotation = Rotation::default();
        Ok(Self { path: path.into(), log, buffer, rotation, size, lost: 0 })
    }

    /// Standard output never begins anew.
    pub(super) fn rotate(&mut self, rotation: Rotation) {
        let is_file = self.path.as_os_str() != "-";
        self.rotation = if is_file { rotation } else { Rotation::default() };
    }

    /// Adds lines, written into the buffer by `write`.
    pub(super) fn add(&mut self, write: impl FnOnce(&mut Vec<u8>)) -> io::Result<()> {
        let before = self.buffer.len();
        if before >= KEPT {
            self.lost += 1;
            return Ok(());
        }
        write(&mut self.buffer);
        // After an error it is tried again with the next flush, not with every line.
        if before < BUFFER && self.buffer.len() >= BUFFER { self.flush() } else { Ok(()) }
    }

    /// Writes what is buffered; on an error it stays buffered.
    pub(super) fn flush(&mut self) -> io::Result<()> {
        if !self.buffer.is_empty() {
            self.log.write(&self.buffer)?;
            self.size += self.buffer.len() as u64;
            self.buffer.clear();
            if self.lost > 0 {
                let path = self.path.display();
                tracing::error!(
                    "{path}: {} lines were lost while it could not be written",
                    self.lost
                );
                self.lost = 0;
            }
            if self.rotation.size > 0 && self.size >= self.rotation.size {
                self.begin_anew()?;
            }
        }
        Ok(())
    }

    /// Moves the log to `<path>.1`, older ones up by one, and begins a new one.
    fn begin_anew(&mut self) -> io::Result<()> {
        let old = |n: u32| {
            let mut name = self.path.clone().into_os_string();
            name.push(format!(".{n}"));
            PathBuf::from(name)
        };
        if self.rotation.keep == 0 {
            fs::remove_file(&self.path)?;
        } else {
            for n in (1..self.rotation.keep).rev().filter(|n| old(*n).exists()) {
                fs::rename(old(n), old(n + 1))?;
            }
            fs::rename(&self.path, old(1))?;
        }
        self.log = LineLog::open(&self.path)?;
        self.size = 0;
        Ok(())
    }

    /// Goes on in a log of the same name, which another program may have moved away. The old one
    /// stays open if the new one cannot be opened.
    pub(super) fn reopen(&mut self) -> io::Result<()> {
        self.flush()?;
        self.log = open(&self.path)?;
        self.size = size_of(&self.path);
        Ok(())
    }
}

fn open(path: &Path) -> io::Result<LineLog> {
    if path.as_os_str() == "-" {
        return LineLog::open(path);
    }
    OpenOptions::new().create(true).append(true).open(path).map(LineLog::File)
}

fn size_of(path: &Path) -> u64 {
    fs::metadata(path).map_or(0, |m| m.len())
}
