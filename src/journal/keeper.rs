//! The thread beside the writer: seals complete segments, repairs what an earlier process left
//! behind, deletes what is due.

use std::collections::VecDeque;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender};

use super::catalogue::{self, Entry};
use super::disk::{Disk, RealDisk, replace};
use super::index::{self, IndexBuilder, IndexFile, IndexKey};
use super::live::Live;
use super::recover::{self, Indexer, Repaired};
use super::retention::{Limits, Retention};
use super::stage::Signals;
use super::writer::{Seal, companion};
use crate::status::JournalBoard;

/// How often retention looks.
const LOOK: Duration = Duration::from_secs(1);
/// How long a segment that could not be sealed or repaired is left alone.
const RETRY: Duration = Duration::from_secs(10);
/// What is left to repair when the process ends has so long; the next start does the rest.
const LAST_REPAIRS: Duration = Duration::from_secs(5);

/// Real index files in a directory.
#[derive(Clone, Debug)]
pub struct Indexes {
    pub directory: PathBuf,
    pub key: IndexKey,
}

impl<D: Disk> Indexer<D> for Indexes {
    fn is_valid(&self, _disk: &D, name: &str, len: u64) -> bool {
        IndexFile::open(&self.directory.join(companion(name, "idx")), len).is_ok()
    }

    fn rebuild(&self, _disk: &D, name: &str) -> io::Result<Vec<u8>> {
        index::rebuild(&self.directory.join(name), &self.key).map_err(io::Error::other)
    }
}

/// What the thread is connected to.
pub(super) struct Links {
    pub(super) seals: Receiver<Seal>,
    pub(super) builders: Sender<Box<IndexBuilder>>,
    pub(super) signals: Arc<Signals>,
    pub(super) live: Arc<Live>,
    pub(super) board: Arc<JournalBoard>,
    /// Whether packets come at the pace of the clock.
    pub(super) is_live: Arc<AtomicBool>,
}

pub(super) struct Keeper {
    disk: RealDisk,
    indexes: Indexes,
    links: Links,
    retention: Option<Retention>,
    limits: Limits,
    /// Names of segments to repair, and when to try.
    repairs: VecDeque<(String, Instant)>,
    /// Segments of this number and above are of this process.
    first_own: u64,
}

impl Keeper {
    pub(super) fn new(indexes: Indexes, links: Links, limits: Limits) -> Self {
        let first_own = links.signals.next_number.load(Ordering::Relaxed);
        Self {
            disk: RealDisk::new(&indexes.directory),
            indexes,
            links,
            retention: None,
            limits,
            repairs: VecDeque::new(),
            first_own,
        }
    }

    /// Works until the writer is gone and every segment is sealed.
    pub(super) fn run(&mut self) {
        self.look_around();
        let mut looked = None::<Instant>;
        loop {
            let now = Instant::now();
            if looked.is_none_or(|at| now.duration_since(at) >= LOOK) {
                looked = Some(now);
                self.retire();
            }
            let due = self.repairs.front().is_some_and(|(_, when)| *when <= now);
            match self.links.seals.recv_timeout(if due { Duration::ZERO } else { LOOK / 2 }) {
                Ok(seal) => self.seal(seal),
                Err(RecvTimeoutError::Timeout) => self.repair_next(now),
                Err(RecvTimeoutError::Disconnected) => break,
            }
        }
        let until = Instant::now() + LAST_REPAIRS;
        let mut left = self.repairs.len();
        while left > 0 && Instant::now() < until {
            self.repair_next(until);
            left -= 1;
        }
        self.retire();
    }

    /// What is there at the start.
    fn look_around(&mut self) {
        let found =
            recover::tidy(&self.disk, self.first_own).and_then(|()| recover::segments(&self.disk));
        let found = found.unwrap_or_else(|e| {
            tracing::warn!("journal {}: {e}", self.indexes.directory.display());
            Vec::new()
        });
        let now = Instant::now();
        for (_, name) in found.into_iter().filter(|(number, _)| *number < self.first_own) {
            let len = fs::metadata(self.indexes.directory.join(&name)).map_or(0, |m| m.len());
            if !Indexer::<RealDisk>::is_valid(&self.indexes, &self.disk, &name, len) {
                self.repairs.push_back((name, now));
            }
        }
        self.count_repairs(0);
        match Retention::new(self.indexes.directory.clone(), self.limits, self.first_own) {
            Ok(retention) => self.retention = Some(retention),
            Err(e) => tracing::error!(
                "journal {}: {e}; nothing is deleted",
                self.indexes.directory.display()
            ),
        }
    }

    fn count_repairs(&self, done: u64) {
        self.links.board.update(|s| {
            s.repaired += done;
            s.unrepaired = self.repairs.len() as u64;
        });
    }

    fn seal(&mut self, seal: Seal) {
        let Some(mut builder) = seal.index else {
            // What the disk refused something for is looked at as after a crash.
            self.repairs.push_front((seal.name, Instant::now()));
            self.repair_next(Instant::now());
            return;
        };
        let bytes = builder.encode(seal.len);
        let done = match bytes.is_empty() {
            true => Indexer::<RealDisk>::rebuild(&self.indexes, &self.disk, &seal.name),
            false => Ok(bytes),
        };
        let name = companion(&seal.name, "idx");
        match done.and_then(|bytes| replace(&self.disk, &name, &bytes)) {
            Ok(()) => self.track(&seal.name),
            Err(e) => {
                tracing::warn!("journal: {name} could not be written: {e}; it is tried again");
                self.repairs.push_back((seal.name, Instant::now() + RETRY));
            }
        }
        self.links.live.end(seal.number);
        // When nobody reads it any more; if there are enough it is let go.
        builder.reset(0);
        let _ = self.links.builders.try_send(builder);
    }

    fn repair_next(&mut self, now: Instant) {
        let Some((name, _)) = self.repairs.pop_front_if(|(_, when)| *when <= now) else { return };
        match recover::repair(&self.disk, &name, &self.indexes) {
            Ok(done) => {
                match done {
                    Repaired::Sealed => {}
                    Repaired::Done { packets, cut } => tracing::info!(
                        "journal: {name} was not complete and is: {packets} packets, {cut} bytes put aside"
                    ),
                    Repaired::Empty => tracing::info!("journal: {name} held no packet"),
                    Repaired::Unreadable => {
                        tracing::warn!("journal: {name} is no segment and was put aside as .torn");
                    }
                }
                self.count_repairs(1);
                self.track(&name);
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => {
                tracing::warn!("journal: {name} cannot be repaired: {e}; it is tried again");
                self.repairs.push_back((name, Instant::now() + RETRY));
            }
        }
        self.count_repairs(0);
    }

    /// Gives a complete segment to retention.
    fn track(&mut self, name: &str) {
        let path = self.indexes.directory.join(name);
        if let (Some(retention), Some(entry)) = (&mut self.retention, entry(&path)) {
            retention.add(&entry);
        }
    }

    fn retire(&mut self) {
        let Some(retention) = &mut self.retention else { return };
        let newest_ns = self.links.signals.newest_ns.load(Ordering::Relaxed);
        let oldest_open = self.links.signals.oldest_open.load(Ordering::SeqCst);
        retention.set_live(self.links.is_live.load(Ordering::Relaxed));
        let on_disk = |path: &Path| fs::metadata(path).map_or(0, |m| m.blocks() * 512);
        let open_bytes = self.links.live.list().iter().map(|s| on_disk(&s.path)).sum();
        let kept = retention.enforce(newest_ns, oldest_open, open_bytes);
        self.links.board.update(|s| s.kept = kept);
    }
}

fn entry(path: &Path) -> Option<Entry> {
    let (number, first_ns) = catalogue::parse_name(path.file_name()?.to_str()?)?;
    let len = fs::metadata(path).ok()?.len();
    let companion = |extension| fs::metadata(path.with_extension(extension)).ok();
    Some(Entry {
        number,
        first_ns,
        path: path.into(),
        len,
        index_len: companion("idx").map(|m| m.len()),
        has_blocks: companion("blk").is_some(),
        has_torn: companion("torn").is_some(),
    })
}
