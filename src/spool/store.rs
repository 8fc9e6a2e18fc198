//! sled, made durable.

use std::fs::File;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use sled::{Db, IVec};

/// sled's page cache; what it takes beyond that is a small part of it again.
const CACHE: u64 = 24 << 20;

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
    Io(io::Error),
    /// sled could not make sense of its files, or panicked over them.
    Damaged(String),
}

impl OpenError {
    pub(super) fn is_full(&self) -> bool {
        matches!(self, Self::Io(e) if e.kind() == io::ErrorKind::StorageFull)
    }

    /// It is not the store's fault.
    pub(super) fn is_environment(&self) -> bool {
        use io::ErrorKind::{PermissionDenied, ReadOnlyFilesystem, WouldBlock};
        matches!(self, Self::Io(e)
            if matches!(e.kind(), PermissionDenied | ReadOnlyFilesystem | WouldBlock))
    }

    pub(super) fn into_io(self) -> io::Error {
        match self {
            Self::Io(e) => e,
            Self::Damaged(why) => io::Error::other(why),
        }
    }
}

impl std::fmt::Display for OpenError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Io(e) => e.fmt(f),
            Self::Damaged(why) => f.write_str(why),
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
        let config = sled::Config::new().path(path).cache_capacity(CACHE).flush_every_ms(None);
        // sled panics over some damage.
        let db = match catch_unwind(AssertUnwindSafe(|| config.open())) {
            Ok(Ok(db)) => db,
            Ok(Err(sled::Error::Io(e))) => return Err(OpenError::Io(e)),
            Ok(Err(e)) => return Err(OpenError::Damaged(e.to_string())),
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
        let file = synced().map_err(OpenError::Io)?;
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
