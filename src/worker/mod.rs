//! The burst loop: receive, read, account, hand over.
//!
//! A [`Worker`] is a task of an lcore: it never blocks, and after its start it allocates nothing.
//! Where the source waits for us, packets and events wait in turn for room; live, the journal's
//! copy is dropped and counted when its ring is full, and flow events keep their flow in the table
//! until there is room.

mod lcore;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use dpdk::mbuf::free_burst;
use dpdk::{BURST, Mbuf};
use rtrb::{Consumer, Producer};

use crate::capture::{Batch, Complaint, Poll, Source, frame};
use crate::event::{EndReason, EventSink, FlowEvent};
use crate::flow::{Arrival, FlowTable, Hint};
use crate::packet;
use crate::status::{Counter, Counters, Turn};

pub use lcore::{LcoreReport, Shared, Task, run};

/// Where a worker's packets come from.
pub enum Input {
    /// It polls the source itself.
    Source(Source),
    /// Another lcore deals them; `clock` is the time up to which it has.
    Ring { ring: Consumer<Mbuf>, clock: Arc<AtomicU64>, waits: bool },
}

impl Input {
    /// Whether it waits for us, so that nothing needs to be dropped when we are slow.
    pub fn waits(&self) -> bool {
        match self {
            Self::Source(source) => source.waits(),
            Self::Ring { waits, .. } => *waits,
        }
    }
}

/// This machine's prefetch and large pages, for the flow table.
#[derive(Clone, Copy, Debug)]
pub struct Machine;

impl Hint for Machine {
    #[inline]
    fn soon<T>(self, what: &T) {
        dpdk::memory::prefetch(what);
    }

    fn large<T>(self, memory: &Vec<T>) {
        dpdk::memory::prefer_large_pages(memory);
    }
}

/// How long to wait for a full event ring; it takes longer than this to empty.
const FULL: Duration = Duration::from_micros(100);

/// Sends events to the control thread.
struct EventRing {
    ring: Producer<FlowEvent>,
    waits: bool,
    sent: u64,
}

impl EventSink for EventRing {
    #[inline]
    fn room(&self) -> usize {
        if self.waits { usize::MAX } else { self.ring.slots() }
    }

    fn push(&mut self, event: FlowEvent) {
        let mut event = event;
        self.sent += 1;
        // Only where the source waits for us can the ring be full: the control thread empties it.
        while let Err(rtrb::PushError::Full(back)) = self.ring.push(event) {
            event = back;
            std::thread::sleep(FULL);
        }
    }
}

/// One worker: its input, its flows and its ways out.
pub struct Worker {
    input: Input,
    table: FlowTable<Machine>,
    journal: Option<Producer<Mbuf>>,
    events: EventRing,
    batch: Batch,
    arrivals: Box<[Arrival; BURST]>,
    /// The input waits for us, so nothing is dropped.
    waits: bool,
    /// When the input ended; flows are being reported since.
    received_until: Option<Instant>,
    pub counters: Counters,
}

impl Worker {
    pub fn new(
        input: Input,
        table: FlowTable<Machine>,
        events: Producer<FlowEvent>,
        journal: Option<Producer<Mbuf>>,
    ) -> Self {
        let waits = input.waits();
        Self {
            input,
            table,
            journal,
            events: EventRing { ring: events, waits, sent: 0 },
            batch: Batch::default(),
            arrivals: Box::new([Arrival::default(); BURST]),
            waits,
            received_until: None,
            counters: Counters::default(),
        }
    }

    /// One burst, or one step of the end.
    pub fn turn(&mut self, stopping: bool) -> Turn {
        if self.received_until.is_none() {
            return if self.hand_to_journal() { self.receive() } else { Turn::Idle };
        }
        let reason = if stopping { EndReason::Shutdown } else { EndReason::Eof };
        let now = self.now();
        let drained = self.table.drain(now, reason, &mut self.events);
        self.count_table();
        if drained { Turn::End } else { Turn::Busy }
    }

    /// Takes nothing new from a source of its own.
    pub fn stop(&mut self) {
        if let Input::Source(source) = &mut self.input {
            source.stop();
        }
    }

    /// When its input ended.
    pub fn received_until(&self) -> Option<Instant> {
        self.received_until
    }

    pub fn complaints(&self) -> Vec<Complaint> {
        match &self.input {
            Input::Source(source) => source.complaints(),
            Input::Ring { .. } => Vec::new(),
        }
    }

    #[inline]
    fn receive(&mut self) -> Turn {
        let poll = match &mut self.input {
            Input::Source(source) => {
                let poll = source.poll(&mut self.batch);
                self.counters.add(Counter::Packets, self.batch.packets.len() as u64);
                if self.journal.is_some() {
                    self.batch.stamp_buffers();
                }
                poll
            }
            Input::Ring { ring, .. } => from_ring(ring, &mut self.batch),
        };
        match poll {
            Poll::Packets(_) => {
                self.account();
                self.hand_to_journal();
                Turn::Busy
            }
            Poll::Empty => {
                self.let_time_pass();
                Turn::Idle
            }
            Poll::End => {
                self.received_until = Some(Instant::now());
                Turn::Busy
            }
        }
    }

    #[inline]
    fn account(&mut self) {
        for packet in &self.batch.packets {
            dpdk::memory::prefetch(packet.data());
        }
        let counters = &mut self.counters;
        let (mut bytes, mut readable, mut truncated, mut lies) = (0, 0, 0, 0);
        for (packet, stamp) in self.batch.iter() {
            let frame = frame(packet, stamp);
            let Some(arrival) = self.arrivals.get_mut(readable) else { break };
            match packet::decode(&frame, &mut arrival.decoded) {
                Ok(()) => {
                    let d = &arrival.decoded;
                    bytes += u64::from(d.wire_len);
                    truncated += u64::from(d.truncated);
                    lies += u64::from(d.length_lies);
                    arrival.timestamp_ns = stamp.timestamp_ns;
                    arrival.clock_ns = stamp.meta.clock_ns;
                    readable += 1;
                }
                Err(reason) => {
                    bytes += u64::from(frame.wire_len);
                    counters.reject(reason);
                }
            }
        }
        counters.add(Counter::Bytes, bytes);
        counters.add(Counter::Truncated, truncated);
        counters.add(Counter::LengthLies, lies);
        counters.add(Counter::Decoded, readable as u64);
        if let Some(arrivals) = self.arrivals.get_mut(..readable) {
            self.table.burst(arrivals, &mut self.events);
        }
        self.count_table();
    }

    fn count_table(&mut self) {
        let stats = self.table.stats();
        self.counters.set(Counter::Flows, stats.created);
        self.counters.set(Counter::Evicted, stats.evicted);
        self.counters.set(Counter::Unplaced, stats.unplaced);
        self.counters.set(Counter::Events, self.events.sent);
    }

    /// Gives the burst to the journal, or back to the pool; false while some of it must wait.
    #[inline]
    fn hand_to_journal(&mut self) -> bool {
        let Some(ring) = &mut self.journal else {
            free_burst(&mut self.batch.packets);
            return true;
        };
        if self.batch.packets.is_empty() {
            return true;
        }
        let room = ring.slots().min(self.batch.packets.len());
        if let Ok(chunk) = ring.write_chunk_uninit(room) {
            chunk.fill_from_iter(self.batch.packets.drain(..room));
        }
        if self.batch.packets.is_empty() {
            return true;
        }
        if self.waits {
            return false;
        }
        self.counters.add(Counter::JournalOverload, self.batch.packets.len() as u64);
        free_burst(&mut self.batch.packets);
        true
    }

    fn now(&mut self) -> u64 {
        match &mut self.input {
            Input::Source(source) => source.clock_ns(),
            Input::Ring { clock, .. } => clock.load(Ordering::Acquire),
        }
    }

    /// Timers go on though nothing arrives.
    fn let_time_pass(&mut self) {
        let now = self.now();
        // The dealer writes the clock after the packets: only an empty ring proves that all packets
        // up to that time were seen.
        if let Input::Ring { ring, .. } = &self.input
            && !ring.is_empty()
        {
            return;
        }
        self.table.advance(now, BURST, &mut self.events);
        self.count_table();
    }
}

fn from_ring(ring: &mut Consumer<Mbuf>, batch: &mut Batch) -> Poll {
    // Asked first: what is pushed afterwards is no sign of the end.
    let abandoned = ring.is_abandoned();
    let n = ring.slots().min(batch.packets.remaining_capacity());
    if n == 0 {
        return if abandoned { Poll::End } else { Poll::Empty };
    }
    if let Ok(chunk) = ring.read_chunk(n) {
        batch.take_stamped(chunk.into_iter());
    }
    Poll::Packets(n)
}
