//! Receive queues of DPDK ports as a source.
//!
//! Time: `net_pcap` stamps microseconds; for the others the clock is read once a burst. The end of
//! a capture file behind `net_pcap` is not announced: three polls in a row that give nothing while
//! no packet was lost for want of a buffer are taken for it.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use dpdk::{Bell, Meta, RxQueue};

use super::{Batch, Poll, Stamp};
use crate::packet::Link;

/// Polls without a packet that mean the end of a file.
const EMPTY_POLLS: u32 = 3;
/// How long a live source is read out after the stop, at most.
const READ_OUT: Duration = Duration::from_millis(500);
const ETHERNET: u16 = 1;

/// How a port tells the time and its end.
#[derive(Clone, Copy, Debug, Default)]
pub struct PortKind {
    /// The driver stamps each packet with microseconds since 1970.
    pub stamps_microseconds: bool,
    /// The port reads a file, which has an end.
    pub is_file: bool,
    /// The driver cuts long frames without saying so.
    pub cuts_silently: bool,
    /// What rings when the queue gets a packet.
    pub bell: Option<Bell>,
}

impl PortKind {
    /// By the driver's name and the arguments of its device.
    pub fn of(driver: &str, args: &str) -> Self {
        let pcap = driver == "net_pcap";
        let infinite = args.contains("infinite_rx=1");
        Self {
            stamps_microseconds: pcap && !infinite,
            is_file: pcap && args.contains("rx_pcap=") && !infinite,
            cuts_silently: pcap || driver == "net_af_packet",
            bell: None,
        }
    }
}

pub struct PortSource {
    queues: Vec<Queue>,
    next: usize,
    clock: u64,
    live: LiveClock,
    stopping: Option<Instant>,
}

struct Queue {
    rx: RxQueue,
    kind: PortKind,
    empty_polls: u32,
    no_buffer: u64,
    ended: bool,
}

/// Wall time that never runs backwards and costs one clock read.
///
/// It runs on the monotonic clock; each second it is set to the wall clock where that is ahead.
struct LiveClock {
    /// Wall time, nanoseconds, at `since`.
    wall_ns: u64,
    since: Instant,
}

const SET_EVERY: u64 = 1_000_000_000;

impl LiveClock {
    fn new() -> Self {
        Self { wall_ns: wall_ns(), since: Instant::now() }
    }

    #[inline]
    fn now_ns(&mut self) -> u64 {
        let passed = self.since.elapsed().as_nanos() as u64;
        if passed >= SET_EVERY {
            let even = self.wall_ns + passed;
            *self = Self { wall_ns: even.max(wall_ns()), since: Instant::now() };
            return self.wall_ns;
        }
        self.wall_ns + passed
    }
}

fn wall_ns() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos() as u64
}

impl PortSource {
    pub fn new(queues: impl IntoIterator<Item = (RxQueue, PortKind)>) -> Self {
        let queues = queues
            .into_iter()
            .map(|(rx, kind)| Queue { rx, kind, empty_polls: 0, no_buffer: 0, ended: false })
            .collect();
        Self { queues, next: 0, clock: 0, live: LiveClock::new(), stopping: None }
    }

    pub(super) fn is_file(&self) -> bool {
        self.queues.iter().all(|q| q.kind.is_file)
    }

    /// Polls each queue in turn until one has something.
    pub(super) fn poll(&mut self, batch: &mut Batch) -> Poll {
        if self.stopping.is_some_and(|since| since.elapsed() > READ_OUT) {
            return Poll::End;
        }
        for _ in 0..self.queues.len() {
            let at = self.next;
            self.next = if at + 1 < self.queues.len() { at + 1 } else { 0 };
            let Some(queue) = self.queues.get_mut(at) else { break };
            if queue.ended {
                continue;
            }
            let got = queue.rx.rx(&mut batch.packets);
            if got == 0 {
                queue.count_empty();
                continue;
            }
            queue.empty_polls = 0;
            let kind = queue.kind;
            self.stamp(batch, kind);
            return Poll::Packets(got);
        }
        if self.is_over() { Poll::End } else { Poll::Empty }
    }

    fn stamp(&mut self, batch: &mut Batch, kind: PortKind) {
        let flags = if kind.cuts_silently { Meta::LENGTH_UNKNOWN } else { 0 };
        // One read a burst; a file's packets carry their own.
        let now = if kind.is_file { 0 } else { self.live.now_ns() };
        self.clock = self.clock.max(now);
        for (packet, stamp) in batch.packets.iter().zip(&mut batch.stamps) {
            let mut timestamp_ns = now;
            if kind.stamps_microseconds {
                timestamp_ns = packet.driver_timestamp().map_or(now, |us| us * 1000);
                self.clock = self.clock.max(timestamp_ns);
            }
            let meta = Meta { clock_ns: self.clock, wire_len: packet.len(), link: ETHERNET, flags };
            *stamp = Stamp { timestamp_ns, meta, link: Link::Ethernet };
        }
    }

    pub(super) fn clock_ns(&mut self) -> u64 {
        if !self.is_file() {
            self.clock = self.clock.max(self.live.now_ns());
        }
        self.clock
    }

    pub(super) fn stop(&mut self) {
        self.stopping.get_or_insert_with(Instant::now);
        for queue in &mut self.queues {
            queue.empty_polls = 0;
            queue.ended |= queue.kind.is_file;
        }
    }

    pub(super) fn bells(&self) -> Option<Vec<Bell>> {
        self.queues.iter().map(|q| q.kind.bell).collect()
    }

    fn is_over(&self) -> bool {
        match self.stopping {
            None => self.queues.iter().all(|q| q.ended),
            Some(_) => self.queues.iter().all(|q| q.ended || q.empty_polls >= EMPTY_POLLS),
        }
    }
}

impl Queue {
    fn count_empty(&mut self) {
        self.empty_polls = self.empty_polls.saturating_add(1);
        if self.kind.is_file && self.empty_polls >= EMPTY_POLLS {
            let no_buffer = self.rx.port_stats().no_buffer;
            if no_buffer == self.no_buffer {
                self.ended = true;
            } else {
                self.no_buffer = no_buffer;
                self.empty_polls = 0;
            }
        }
    }
}
