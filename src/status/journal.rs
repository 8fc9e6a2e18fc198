//! How the journal is doing, for whoever reports it.

use std::sync::{Mutex, PoisonError};

use serde::{Deserialize, Serialize};

/// Up to here everything is on disk and survives a crash or a power cut. Each link type has its own
/// segments; those of a smaller number than this one are safe as a whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Watermark {
    /// LINKTYPE_ number of the segment's packets.
    pub link: u16,
    pub segment: u64,
    /// Bytes from the start of the segment's pcap file.
    pub offset: u64,
    /// The latest time of a packet up to there, nanoseconds since 1970.
    pub time_ns: u64,
}

/// What retention has left.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Kept {
    pub segments: u64,
    /// All files of the journal together.
    pub bytes: u64,
    /// From the oldest segment's first packet to the newest packet, hours of packet time.
    pub hours: f64,
    /// Segments deleted by this process.
    pub deleted: u64,
}

/// Everything about the journal that is not a counter.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct JournalStatus {
    pub watermarks: Vec<Watermark>,
    /// Time between the newest packet taken and the newest one that is safe, milliseconds of packet
    /// time.
    pub lag_ms: u64,
    pub kept: Kept,
    /// Segments repaired at start, and those that still wait for it.
    pub repaired: u64,
    pub unrepaired: u64,
}

/// Written by the journal's threads, read by any.
#[derive(Debug, Default)]
pub struct JournalBoard(Mutex<JournalStatus>);

impl JournalBoard {
    /// The status now, but for the lag, which needs to know the newest packet.
    pub fn load(&self, newest_ns: u64) -> JournalStatus {
        let mut out = self.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let safe_ns = out.watermarks.iter().map(|w| w.time_ns).max().unwrap_or(newest_ns);
        out.lag_ms = newest_ns.saturating_sub(safe_ns) / 1_000_000;
        out
    }

    /// Moves a link type's watermark on; false if it is there already.
    pub fn watermark(&self, link: u16, segment: u64, offset: u64, time_ns: u64) -> bool {
        let new = Watermark { link, segment, offset, time_ns };
        let mut status = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match status.watermarks.iter_mut().find(|w| w.link == link) {
            Some(old) if (old.segment, old.offset) < (segment, offset) => *old = new,
            Some(_) => return false,
            None => status.watermarks.push(new),
        }
        true
    }

    pub fn update(&self, change: impl FnOnce(&mut JournalStatus)) {
        change(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner));
    }
}
