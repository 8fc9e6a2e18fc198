//! The segments that are not sealed yet, for readers in the same process.
//!
//! The writer adds a segment when its file has a header, raises its mark as records reach the file,
//! and takes it away when the index file is in place (or the segment was given up). Taking a list
//! locks for a moment; nothing here is called for each packet.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::index::OpenIndex;

/// How much of a file is written, bytes: only whole records, and none that may still change.
#[derive(Debug, Default)]
pub struct Mark(AtomicU64);

impl Mark {
    /// Raises it; what is below must be in the file.
    pub fn raise(&self, bytes: u64) {
        self.0.fetch_max(bytes, Ordering::Release);
    }

    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Acquire)
    }
}

/// A segment without an index file.
#[derive(Clone)]
pub struct LiveSegment {
    pub number: u64,
    pub path: PathBuf,
    pub index: Arc<OpenIndex>,
    pub written: Arc<Mark>,
}

/// The unsealed segments.
#[derive(Default)]
pub struct Live(Mutex<Vec<LiveSegment>>);

impl Live {
    fn lock(&self) -> MutexGuard<'_, Vec<LiveSegment>> {
        // A list of finished entries is whole whoever panicked.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a segment, or replaces the one of its number.
    pub fn begin(&self, segment: LiveSegment) {
        let mut list = self.lock();
        list.retain(|s| s.number != segment.number);
        list.push(segment);
    }

    /// Takes a segment away.
    pub fn end(&self, number: u64) {
        self.lock().retain(|s| s.number != number);
    }

    /// The segments there are.
    pub fn list(&self) -> Vec<LiveSegment> {
        self.lock().clone()
    }
}
