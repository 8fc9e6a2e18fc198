//! The way of packets from a worker to the journal's lcore.
//!
//! The buffers themselves move through a ring. What finds no room there is dropped by the worker,
//! which notes how many and until when, so that the journal can say where something is missing. What is
//! not for the journal is told by its number only, so that both count the same packets.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use dpdk::mbuf::free_burst;
use dpdk::{BURST, Burst, Mbuf};
use rtrb::{Consumer, Producer, RingBuffer};

use super::places::Progress;

/// A way for as many packets as its ring holds.
pub fn handover(packets: usize) -> (Giver, Taker) {
    let (ring, input) = RingBuffer::new(packets);
    let (skips, skips_rx) = RingBuffer::new(packets);
    let lost = Arc::new(Lost::default());
    let taker = Taker {
        input,
        lost: Arc::clone(&lost),
        seen: 0,
        taken: 0,
        taken_ns: 0,
        checked_ns: 0,
        skips: skips_rx,
        skipped: 0,
        progress: Progress::default(),
    };
    (Giver { ring, lost, skips, given: 0, untold: 0 }, taker)
}

/// Written by the worker alone.
#[derive(Debug, Default)]
struct Lost {
    packets: AtomicU64,
    last_ns: AtomicU64,
}

/// The worker's end.
pub struct Giver {
    ring: Producer<Mbuf>,
    lost: Arc<Lost>,
    skips: Producer<Skip>,
    /// Packets that were given, or lost.
    given: u64,
    /// Packets that were skipped and not yet told of.
    untold: u64,
}

/// So many packets behind the first `after` are not for the journal.
#[derive(Clone, Copy, Debug)]
struct Skip {
    after: u64,
    packets: u64,
}

impl Giver {
    /// Moves as many packets as there is room for, from the front.
    #[inline]
    pub fn give(&mut self, packets: &mut Burst) {
        let room = self.ring.slots().min(packets.len());
        if let Ok(chunk) = self.ring.write_chunk_uninit(room) {
            chunk.fill_from_iter(packets.drain(..room));
            self.given += room as u64;
        }
    }

    /// Tells that so many packets are not for the journal, of a burst of which `left` are; with 0 what
    /// found no room before.
    pub fn skip(&mut self, packets: u64, left: usize) {
        self.untold += packets;
        let skip = Skip { after: self.given + left as u64, packets: self.untold };
        if self.untold > 0 && self.skips.push(skip).is_ok() {
            self.untold = 0;
        }
    }

    /// Whether nobody will ever take anything.
    pub fn is_abandoned(&self) -> bool {
        self.ring.is_abandoned()
    }

    /// Drops packets that could not be given.
    #[cold]
    pub fn lose(&mut self, packets: &mut Burst) {
        if let Some(last) = packets.last() {
            self.lost.last_ns.store(last.timestamp_ns(), Ordering::Relaxed);
        }
        let n = self.lost.packets.load(Ordering::Relaxed) + packets.len() as u64;
        self.lost.packets.store(n, Ordering::Release);
        self.given += packets.len() as u64;
        free_burst(packets);
    }
}

/// The end at the journal's lcore.
pub struct Taker {
    input: Consumer<Mbuf>,
    lost: Arc<Lost>,
    seen: u64,
    taken: u64,
    taken_ns: u64,
    checked_ns: u64,
    skips: Consumer<Skip>,
    skipped: u64,
    progress: Progress,
}

/// Packets that a worker dropped, and between which times.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Loss {
    pub packets: u64,
    pub from_ns: u64,
    pub to_ns: u64,
}

impl Taker {
    /// Takes a burst; returns whether nothing can come any more.
    #[inline]
    pub fn take(&mut self, packets: &mut Burst) -> bool {
        // Before looking: what is pushed after this is no sign of the end.
        let abandoned = self.input.is_abandoned();
        let n = self.input.slots().min(BURST - packets.len());
        if let Ok(chunk) = self.input.read_chunk(n) {
            packets.extend(chunk);
            self.taken += n as u64;
        }
        // Another core wrote them.
        packets.iter().for_each(Mbuf::prefetch);
        if let Some(last) = packets.last() {
            self.taken_ns = last.timestamp_ns();
        }
        abandoned && n == 0
    }

    /// What was lost since the last look; to be asked before each [`Taker::take`].
    #[inline]
    pub fn losses(&mut self) -> Option<Loss> {
        let packets = self.lost.packets.load(Ordering::Acquire);
        // At the look before this one nothing behind what was taken by then was lost yet.
        let from_ns = std::mem::replace(&mut self.checked_ns, self.taken_ns);
        let new = packets - std::mem::replace(&mut self.seen, packets);
        let to_ns = self.lost.last_ns.load(Ordering::Relaxed);
        (new > 0).then(|| Loss { packets: new, from_ns: from_ns.min(to_ns), to_ns })
    }

    /// Says that all is done but for so many of the packets that were taken.
    #[inline]
    pub(super) fn done_but(&mut self, waiting: usize) {
        let done = self.taken + self.seen - waiting as u64;
        while let Ok(Skip { after, packets }) = self.skips.peek().copied()
            && after <= done
        {
            self.skipped += packets;
            let _ = self.skips.pop();
        }
        self.progress.set(done + self.skipped);
    }

    /// How far the journal is with this worker's packets.
    pub fn progress(&self) -> Progress {
        self.progress.clone()
    }

    /// Packets in the ring.
    pub fn waiting(&self) -> usize {
        self.input.slots()
    }
}

impl Drop for Taker {
    /// Whatever ended the journal, nobody has to wait for it.
    fn drop(&mut self) {
        self.progress.set(u64::MAX);
    }
}
