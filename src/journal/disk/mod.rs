//! The journal's directory as the writer and the repair see it.
//!
//! Small traits, so that the same code runs over real files and over a disk that loses power.

mod queue;
mod real;

use std::io;
use std::ops::Range;
use std::time::Duration;

use diskio::Filled;

pub use queue::RealQueue;
pub use real::{RealDisk, RealFile};

/// An open file.
#[allow(clippy::len_without_is_empty, reason = "a length of a file, asked of the disk")]
pub trait DiskFile {
    /// Reads what is there at `at`, as much as fits; 0 at the end.
    fn read_at(&self, to: &mut [u8], at: u64) -> io::Result<usize>;
    /// Writes all of `bytes` at `at`, into the system's cache.
    fn write_at(&self, bytes: &[u8], at: u64) -> io::Result<()>;
    /// Cuts the file, or gives back what was reserved behind its end.
    fn set_len(&self, len: u64) -> io::Result<()>;
    fn len(&self) -> io::Result<u64>;
    /// Returns when everything written is on disk.
    fn sync(&self) -> io::Result<()>;
    /// Reserves room behind the end without changing the length; where that cannot be done nothing
    /// happens.
    fn reserve(&self, from: u64, bytes: u64);
    /// Whether page-aligned writes go past the system's cache.
    fn is_direct(&self) -> bool;
}

/// A directory of files.
pub trait Disk {
    type File: DiskFile + Clone;
    type Queue: Queue<Self::File>;

    /// A new file; it is an error if there is one of that name.
    fn create(&self, name: &str) -> io::Result<Self::File>;
    /// An existing file, to read and write.
    fn open(&self, name: &str) -> io::Result<Self::File>;
    /// Names and lengths of the files.
    fn list(&self) -> io::Result<Vec<(String, u64)>>;
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;
    fn remove(&self, name: &str) -> io::Result<()>;
    /// Returns when the names of all files are on disk.
    fn sync_names(&self) -> io::Result<()>;
    /// A queue of writes.
    fn queue(&self) -> Self::Queue;
    /// The boot of the machine; while it lasts, nothing written can have been lost.
    fn boot(&self) -> super::block::Boot;
}

/// Writes and syncs that take their time.
pub trait Queue<F> {
    /// Starts writing a range of the published bytes at `at`. Page-aligned ones may go past the
    /// cache. The `id` must be new.
    fn write(&mut self, id: u64, file: &F, at: u64, data: Filled, range: Range<usize>);
    /// Starts a sync of what was written to the file and has completed.
    fn sync(&mut self, id: u64, file: &F);
    /// The next completion, or `None` if there is none within `patience`. A write is complete when
    /// all of it is written.
    fn next(&mut self, patience: Duration) -> Option<(u64, io::Result<()>)>;
    fn in_flight(&self) -> usize;
}

/// Reads a whole file.
pub fn read_all<F: DiskFile>(file: &F) -> io::Result<Vec<u8>> {
    let mut out = vec![0; usize::try_from(file.len()?).unwrap_or(usize::MAX)];
    let mut at = 0;
    while let Some(to) = out.get_mut(at..).filter(|to| !to.is_empty()) {
        match file.read_at(to, at as u64)? {
            0 => break,
            n => at += n,
        }
    }
    out.truncate(at);
    Ok(out)
}

/// Puts a file in place whole or not at all: written beside it, synced, renamed, names synced.
pub fn replace<D: Disk>(disk: &D, name: &str, bytes: &[u8]) -> io::Result<()> {
    let beside = format!("{name}.tmp");
    match disk.remove(&beside) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    let put = || -> io::Result<()> {
        let file = disk.create(&beside)?;
        file.write_at(bytes, 0)?;
        file.sync()?;
        disk.rename(&beside, name)?;
        disk.sync_names()
    };
    put().inspect_err(|_| {
        let _ = disk.remove(&beside);
    })
}
