//! The packet journal: plain pcap files of everything that was received, safe and indexed.
//!
//! Workers give their packets to the [`Scribe`] on the journal's lcore ([`handover`]), which merges
//! them by time into staging buffers ([`stage`]) and frees the packet buffers at once. An ordinary
//! thread writes what is staged to segment files ([`writer`]), another seals, repairs and deletes
//! segments ([`keeper`]). When the disk is slower than the wire, staging runs full and packets are
//! dropped and counted here; capture never waits.
//!
//! A segment is a nanosecond pcap file, `seg-<number>-<first timestamp>.pcap`, that any tool can
//! open at any moment; beside it are block records (`.blk`, [`block`]) and, once it is complete, its
//! index (`.idx`, [`index`]). Sealed is what has a valid index; nothing is renamed, and only
//! [`retention`] deletes packets. What is at or below the published watermark is on disk, proved by
//! checksums, and survives a kill and a power cut ([`recover`]).

pub mod admit;
pub mod block;
pub mod catalogue;
pub mod check;
pub mod disk;
pub mod extract;
mod handover;
pub mod index;
mod keeper;
pub mod live;
pub mod pcap;
pub mod places;
pub mod query;
pub mod recover;
pub mod retention;
mod scribe;
pub mod stage;
pub mod writer;

use std::fs::{self, File};
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{Builder, JoinHandle};
use std::time::Duration;

use crossbeam_channel::{bounded, unbounded};
use diskio::Filler;
use rustix::fs::{FlockOperation, flock};

pub use handover::{Giver, Taker, handover};
pub use keeper::Indexes;
pub use places::{Places, Progress};
pub use scribe::Scribe;

use crate::filter::FilterError;
use crate::status::{Counters, JournalBoard, JournalStatus, Published};
use admit::{Admission, Changer, Lifter, Rules};
use disk::RealDisk;
use index::{IndexBuilder, IndexError, IndexKey};
use keeper::Keeper;
use live::Live;
use stage::{Exchange, Rotation, Signals, Stage};
use writer::{Pace, Writer};

/// How the journal is kept.
#[derive(Clone, Debug)]
pub struct JournalConfig {
    /// Where the files go; made if it is not there.
    pub directory: PathBuf,
    /// A file is ended before it grows larger than this, bytes.
    pub rotate_size: u64,
    pub keep: retention::Limits,
    pub rules: Rules,
}

/// The journal cannot be kept.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    #[error("journal directory {}: {source}; choose another with --data-dir, or --journal off", path.display())]
    Directory { path: PathBuf, source: io::Error },
    #[error("journal directory {}: another malakocut writes to it; choose another with --data-dir, or --journal off", path.display())]
    InUse { path: PathBuf },
    #[error(transparent)]
    Index(#[from] IndexError),
    #[error("--pcap-filter: {0}")]
    Filter(#[from] FilterError),
    #[error("no memory for the journal's buffers: {0}")]
    Memory(io::Error),
    #[error("the journal's thread did not start: {0}")]
    Thread(io::Error),
}

/// Staging buffers, and bytes of each.
const BUFFERS: usize = 64;
const BUFFER: usize = 4 << 20;
/// As many have their memory at the start, so that the first burst does not wait for the system to
/// clear it; the others get theirs as they are filled.
const BUFFERS_READY: usize = 4;
/// A file is ended this long after its first packet.
const ROTATE_AGE: Duration = Duration::from_secs(600);
/// Flows of one segment: 64 bytes of memory each.
const FLOWS: usize = 512 << 10;
/// The least bytes of a record: with fewer the index is full before the file.
const RECORD_LEAST: u64 = 76;

const PACE: Pace = Pace {
    block: block::BLOCK,
    flush: Duration::from_millis(700),
    sync_bytes: 64 << 20,
    reserve: 64 << 20,
    largest: u64::MAX,
};

/// The right to write to a journal directory, held by one process at a time.
#[derive(Debug)]
pub struct Lock(#[allow(dead_code, reason = "held open")] File);

impl Lock {
    /// Takes it, or says why not.
    pub fn take(directory: &Path) -> Result<Self, JournalError> {
        let fail = |source| JournalError::Directory { path: directory.into(), source };
        let file = File::create(directory.join(".lock")).map_err(fail)?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Self(file)),
            Err(rustix::io::Errno::WOULDBLOCK) => {
                Err(JournalError::InUse { path: directory.into() })
            }
            Err(e) => Err(fail(e.into())),
        }
    }
}

/// The journal's threads; [`Handle::finish`] waits until everything handed over is on disk.
pub struct Handle {
    writer: JoinHandle<()>,
    keeper: JoinHandle<()>,
    monitor: Monitor,
    is_live: Arc<AtomicBool>,
    live: Arc<Live>,
    directory: PathBuf,
    _lock: Lock,
}

/// What can be known of a running journal, from any thread.
#[derive(Clone, Debug)]
pub struct Monitor {
    counters: Arc<Published>,
    board: Arc<JournalBoard>,
    signals: Arc<Signals>,
    lifter: Option<Lifter>,
    changer: Changer,
}

impl Monitor {
    pub fn counters(&self) -> Counters {
        self.counters.load()
    }

    pub fn status(&self) -> JournalStatus {
        self.board.load(self.signals.newest_ns.load(Ordering::Relaxed))
    }

    /// What the journal keeps from now on, in the syntax of pcap-filter.
    ///
    /// # Errors
    /// It does not compile, or the change before is not in place yet.
    pub fn filter(&self, expression: &str) -> Result<(), String> {
        self.changer.change(expression)
    }

    /// There is an alert about a host: what it sends and gets is kept whole for a while, cutoff or
    /// not.
    pub fn alerted(&self, host: IpAddr) {
        if let Some(lifter) = &self.lifter {
            lifter.lift(host);
        }
    }
}

impl Handle {
    /// Whether packets come at the pace of the clock, as they do from a wire.
    pub fn set_live(&self, is_live: bool) {
        self.is_live.store(is_live, Ordering::Relaxed);
    }

    /// Waits for the end, which comes when the scribe is gone, and returns what was written.
    pub fn finish(self) -> (Counters, JournalStatus) {
        for (thread, name) in [(self.writer, "writer"), (self.keeper, "keeper")] {
            if thread.join().is_err() {
                tracing::error!("the journal's {name} panicked");
            }
        }
        (self.monitor.counters(), self.monitor.status())
    }

    /// Where counters and status can be read meanwhile.
    pub fn monitor(&self) -> Monitor {
        self.monitor.clone()
    }

    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// The segments that are not sealed yet.
    pub fn live(&self) -> Arc<Live> {
        Arc::clone(&self.live)
    }
}

/// Starts the journal's threads; the scribe goes to the journal's lcore.
pub fn start(config: JournalConfig) -> Result<(Scribe, Handle), JournalError> {
    let mut admission = Admission::new(&config.rules)?;
    let directory = config.directory.clone();
    let fail = |source| JournalError::Directory { path: directory.clone(), source };
    fs::create_dir_all(&directory).map_err(fail)?;
    let lock = Lock::take(&directory)?;
    // Fails now, not at the first packet, where we may not write.
    let probe = directory.join(".write-test");
    File::create(&probe).and_then(|_| fs::remove_file(&probe)).map_err(fail)?;
    let key = IndexKey::load_or_create(&directory)?;
    let signals = Arc::new(Signals::new(catalogue::next_number(&directory).map_err(fail)?));

    // Beside a note for each buffer there are the ends of segments and gaps.
    let (notes_tx, notes) = bounded(4 * BUFFERS);
    let (buffers, buffers_rx) = bounded(BUFFERS);
    for number in 0..BUFFERS {
        let buffer = Filler::new(BUFFER).map_err(JournalError::Memory)?;
        if number < BUFFERS_READY {
            buffer.populate();
        }
        let _ = buffers.send(buffer);
    }
    let (builders, builders_rx) = bounded::<Box<IndexBuilder>>(2);
    let (seals, seals_rx) = unbounded();
    let (live, board) = (Arc::new(Live::default()), Arc::new(JournalBoard::default()));
    let (counters, is_live) = (Arc::new(Published::default()), Arc::new(AtomicBool::new(false)));

    let limits = index::Limits {
        packets: (config.rotate_size / RECORD_LEAST) as usize + 1024,
        flows: FLOWS.min((config.rotate_size / RECORD_LEAST) as usize + 1024),
    };
    let builder_key = key.clone();
    let new_builder = move || Box::new(IndexBuilder::new(&builder_key, 0, limits));
    let links = writer::Links {
        notes,
        buffers,
        seals,
        builders: builders.clone(),
        signals: Arc::clone(&signals),
        live: Arc::clone(&live),
        counters: Arc::clone(&counters),
        board: Arc::clone(&board),
    };
    let pace = Pace { largest: config.rotate_size, ..PACE };
    let place = directory.display().to_string();
    let disk = RealDisk::new(&directory);
    let mut writer = Writer::new(disk, pace, links, place, Box::new(new_builder));
    let links = keeper::Links {
        seals: seals_rx,
        builders,
        signals: Arc::clone(&signals),
        live: Arc::clone(&live),
        board: Arc::clone(&board),
        is_live: Arc::clone(&is_live),
    };
    let indexes = Indexes { directory: directory.clone(), key };
    let mut keeper = Keeper::new(indexes, links, config.keep);

    let thread = |name: &str, run: Box<dyn FnOnce() + Send>| {
        Builder::new().name(name.into()).spawn(run).map_err(JournalError::Thread)
    };
    let writer = thread("journal-writer", Box::new(move || writer.run()))?;
    let keeper = thread("journal-keeper", Box::new(move || keeper.run()))?;
    let exchange = Exchange {
        notes: notes_tx,
        buffers: buffers_rx,
        builders: builders_rx,
        signals: Arc::clone(&signals),
    };
    let (lifter, changer) = (admission.lifter(), admission.changer());
    let rotation = Rotation { size: config.rotate_size, age: Some(ROTATE_AGE) };
    let scribe = Scribe::new(Stage::new(exchange, rotation, BUFFERS), admission);
    let monitor = Monitor { counters, board, signals, lifter, changer };
    Ok((scribe, Handle { writer, keeper, monitor, is_live, live, directory, _lock: lock }))
}
