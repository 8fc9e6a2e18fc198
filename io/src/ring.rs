//! Writes and syncs through io_uring.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::time::Duration;

use io_uring::types::{Fd, FsyncFlags, SubmitArgs, Timespec};
use io_uring::{IoUring, opcode, squeue};

use crate::Filled;

/// What an operation in flight needs to stay alive.
struct Flight {
    _file: Arc<File>,
    _data: Option<Filled>,
}

/// A queue of writes and syncs. Operations start in the order given and complete in any.
pub struct Ring {
    ring: IoUring,
    flights: HashMap<u64, Flight>,
}

impl Ring {
    /// A queue for up to `entries` operations at once; an error where the kernel or its policy has
    /// no io_uring, or one too old to wait with a time limit (before 5.11).
    pub fn new(entries: u32) -> io::Result<Self> {
        let ring = IoUring::new(entries)?;
        if !ring.params().is_feature_ext_arg() {
            return Err(io::ErrorKind::Unsupported.into());
        }
        Ok(Self { ring, flights: HashMap::new() })
    }

    /// Operations not yet reported by [`Ring::next`].
    pub fn in_flight(&self) -> usize {
        self.flights.len()
    }

    /// Starts writing `range` of the published bytes to the file at `at`. The `id` must not be in
    /// flight.
    pub fn write(
        &mut self,
        id: u64,
        file: &Arc<File>,
        at: u64,
        data: Filled,
        range: Range<usize>,
    ) -> io::Result<()> {
        let bytes = data.bytes().get(range).ok_or(io::ErrorKind::InvalidInput)?;
        let len = u32::try_from(bytes.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
        let entry =
            opcode::Write::new(Fd(file.as_raw_fd()), bytes.as_ptr(), len).offset(at).build();
        self.start(id, entry, Flight { _file: Arc::clone(file), _data: Some(data) })
    }

    /// Starts an `fdatasync` of what was written to the file and has completed.
    pub fn sync(&mut self, id: u64, file: &Arc<File>) -> io::Result<()> {
        let entry = opcode::Fsync::new(Fd(file.as_raw_fd())).flags(FsyncFlags::DATASYNC).build();
        self.start(id, entry, Flight { _file: Arc::clone(file), _data: None })
    }

    fn start(&mut self, id: u64, entry: squeue::Entry, flight: Flight) -> io::Result<()> {
        if self.flights.contains_key(&id) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        // SAFETY: the entry's file and bytes are kept in `flights` until its completion was seen,
        // and the bytes are published ones, which do not change while a handle on them exists.
        let pushed = unsafe { self.ring.submission().push(&entry.user_data(id)) };
        if pushed.is_err() {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        self.flights.insert(id, flight);
        // What cannot be submitted now stays in the queue and goes with the next wait.
        let _ = self.ring.submit();
        Ok(())
    }

    /// The next completion: the operation's id and its bytes written, or its error. `None` if there
    /// is none within `patience`.
    pub fn next(&mut self, patience: Duration) -> Option<(u64, io::Result<usize>)> {
        if let Some(done) = self.take() {
            return Some(done);
        }
        if self.flights.is_empty() {
            return None;
        }
        let limit = Timespec::new().sec(patience.as_secs()).nsec(patience.subsec_nanos());
        // Its error is that nothing came in time, or a signal; both show in the queue.
        let _ = self.ring.submitter().submit_with_args(1, &SubmitArgs::new().timespec(&limit));
        self.take()
    }

    fn take(&mut self) -> Option<(u64, io::Result<usize>)> {
        let done = self.ring.completion().next()?;
        self.flights.remove(&done.user_data());
        let result = match done.result() {
            n if n < 0 => Err(io::Error::from_raw_os_error(-n)),
            n => Ok(n as usize),
        };
        Some((done.user_data(), result))
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        // The kernel may still read from the buffers.
        while !self.flights.is_empty() {
            let _ = self.next(Duration::from_secs(1));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Filler;

    #[test]
    fn what_was_written_is_in_the_file() {
        let path = std::env::temp_dir().join(format!("diskio-{}", std::process::id()));
        let file = Arc::new(File::create(&path).unwrap());
        let Ok(mut ring) = Ring::new(8) else {
            println!("skipped: no io_uring here");
            return;
        };
        let mut filler = Filler::new(8192).unwrap();
        filler.push(&[b'x'; 6000]);
        filler.publish();
        assert!(ring.write(9, &file, 0, filler.share(), 0..6001).is_err(), "not published");
        ring.write(1, &file, 100, filler.share(), 0..6000).unwrap();
        assert!(ring.sync(1, &file).is_err(), "in flight");
        let (id, n) = ring.next(Duration::from_secs(5)).unwrap();
        assert_eq!((id, n.unwrap()), (1, 6000));
        ring.sync(2, &file).unwrap();
        assert_eq!(ring.next(Duration::from_secs(5)).unwrap().0, 2);
        assert!(ring.next(Duration::from_millis(1)).is_none());
        let read = std::fs::read(&path).unwrap();
        assert!(read.len() == 6100 && read[100..].iter().all(|&b| b == b'x'));
        let read_only = Arc::new(File::open(&path).unwrap());
        ring.write(3, &read_only, 0, filler.share(), 0..10).unwrap();
        assert!(ring.next(Duration::from_secs(5)).unwrap().1.is_err());
        std::fs::remove_file(path).unwrap();
    }
}
