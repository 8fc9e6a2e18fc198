//! sled, made durable.

use std::fs::{File, TryLockError};
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use sled::{Db, IVec};

/// sled's page cache; what it takes beyond that is a small part of it again.
const CACHE: u64 = 24 << 20;

/// How long the store before may take to end its last write.
const PATIENCE: Duration = Duration::from_secs(30);

/// Changes that are made together.
#[derive(Default)]
pub(super) struct Batch(sled::Batch);

impl Batch {
    pub(super) fn insert(&mut self, key: &[u8], value: Vec<u8>) {
        self.0.insert(key, value);
    }

    pub(super) fn remove(&mut self, key: &[u8]) {
        self.0.remove(key);
    }
}

/// The store did not open.
#[derive(Debug)]
pub(super) enum OpenError {
    /// It is not the store's fault.
    Io(io::Error),
    /// sled could not make sense of its files, or panicked over them.
    Damaged(String),
}

impl From<sled::Error> for OpenError {
    fn from(e: sled::Error) -> Self {
        match e {
            sled::Error::Io(e) => Self::from(e),
            e => Self::Damaged(e.to_string()),
        }
    }
}

impl From<io::Error> for OpenError {
    fn from(e: io::Error) -> Self {
        use io::ErrorKind::{PermissionDenied, ReadOnlyFilesystem, StorageFull, WouldBlock};
        match e.kind() {
            PermissionDenied | ReadOnlyFilesystem | StorageFull | WouldBlock => Self::Io(e),
            _ => Self::Damaged(e.to_string()),
        }
    }
}

impl OpenError {
    pub(super) fn is_full(&self) -> bool {
        matches!(self, Self::Io(e) if e.kind() == io::ErrorKind::StorageFull)
    }

    pub(super) fn into_io(self) -> io::Error {
        match self {
            Self::Io(e) => e,
            Self::Damaged(why) => io::Error::other(why),
        }
    }
}

/// An open store.
pub(super) struct Store {
    db: Db,
    file: File,
    /// Commits asked for, and those that have reached the disk.
    asked: AtomicU64,
    reached: Mutex<u64>,
    failed: AtomicBool,
}

impl Store {
    pub(super) fn open(path: &Path) -> Result<Self, OpenError> {
        wait_for_file(&path.join("db"))?;
        let config = sled::Config::new().path(path).cache_capacity(CACHE).flush_every_ms(None);
        // sled panics over some damage.
        let db = match catch_unwind(AssertUnwindSafe(|| config.open())) {
            Ok(opened) => opened?,
            Err(_) => return Err(OpenError::Damaged("sled panicked".into())),
        };
        let synced = || -> io::Result<File> {
            for name in ["conf", "db"] {
                File::open(path.join(name))?.sync_all()?;
            }
            File::open(path)?.sync_all()?;
            if let Some(parent) = path.parent() {
                File::open(parent)?.sync_all()?;
            }
            File::open(path.join("db"))
        };
        let file = synced()?;
        let (asked, reached, failed) = (AtomicU64::new(0), Mutex::new(0), AtomicBool::new(false));
        Ok(Self { db, file, asked, reached, failed })
    }

    pub(super) fn apply(&self, batch: Batch) -> Result<(), sled::Error> {
        self.db.apply_batch(batch.0)
    }

    /// Returns when everything applied before the call is on the disk. Calls that come together
    /// share one flush.
    pub(super) fn commit(&self) -> Result<(), sled::Error> {
        let mine = self.asked.fetch_add(1, Ordering::SeqCst) + 1;
        let mut reached = self.reached.lock().unwrap_or_else(PoisonError::into_inner);
        if *reached >= mine {
            return Ok(());
        }
        let upto = self.asked.load(Ordering::SeqCst);
        self.db.flush()?;
        // sled's own flush only hands the bytes to the kernel.
        self.file.sync_data().map_err(sled::Error::Io)?;
        *reached = upto;
        Ok(())
    }

    pub(super) fn get(&self, key: &[u8]) -> Result<Option<IVec>, sled::Error> {
        self.db.get(key)
    }

    pub(super) fn contains(&self, key: &[u8]) -> Result<bool, sled::Error> {
        self.db.contains_key(key)
    }

    /// From `from` until before `to`.
    pub(super) fn range(&self, from: &[u8], to: &[u8]) -> sled::Iter {
        self.db.range(from..to)
    }

    /// After an error sled does nothing more until it is opened again.
    pub(super) fn fail(&self) {
        self.failed.store(true, Ordering::Relaxed);
    }

    pub(super) fn has_failed(&self) -> bool {
        self.failed.load(Ordering::Relaxed)
    }
}

/// Waits until a store that was dropped has given its file back: sled's threads hold it, and its
/// lock, until their last write has ended. sled would take the lock for damage.
fn wait_for_file(path: &Path) -> io::Result<()> {
    let file = match File::open(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        file => file?,
    };
    lock_in_time(&file, PATIENCE).map_err(io::Error::from)
}

/// Locks a file that another process or thread is about to let go.
pub(super) fn lock_in_time(file: &File, patience: Duration) -> Result<(), TryLockError> {
    let until = Instant::now() + patience;
    loop {
        match file.try_lock() {
            Err(TryLockError::WouldBlock) if Instant::now() < until => {
                std::thread::sleep(Duration::from_millis(2));
            }
            result => return result,
        }
    }
}
