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
use dpdk::{BURST, Bell, Mbuf};
use rtrb::{Consumer, Producer};

use crate::capture::{Batch, Complaint, Poll, Source, Stamp, frame};
use crate::control::live::Peek;
use crate::detect::watch::Watcher;
use crate::detect::{Sighting, sight};
use crate::doctor::{Look, Sample};
use crate::event::{EndReason, EventSink, FlowEvent, Mark, Note, NoteSink, Seen, Wants};
use crate::filter::Filters;
use crate::flow::{Arrival, FlowTable, Hint};
use crate::inspect::silence::{Heard, Silencer};
use crate::inspect::{Inspector, Lone};
use crate::journal::Giver;
use crate::packet::{self, Decoded, FlowKey, Reject};
use crate::status::{Counter, Counters, Turn};

pub use lcore::{LcoreReport, Rest, Shared, Task, back_off, run};

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
/// Events that one burst may make. Where the source waits for us, a burst is received when there is
/// room for as many: who stands still within a burst keeps the journal on its lcore from going on,
/// and events may be waiting for that.
const ROOM: usize = 1024;

/// An event on its way to the control thread.
#[derive(Clone, Copy, Debug)]
pub struct Report {
    pub event: FlowEvent,
    /// Packets that its worker had received: the journal gets them all, in order, loses them, or is told
    /// that they are not for it.
    pub received: u64,
}

/// Sends events to the control thread.
struct EventRing {
    ring: Producer<Report>,
    waits: bool,
    received: u64,
    sent: u64,
}

impl EventSink for EventRing {
    #[inline]
    fn room(&self) -> usize {
        if self.waits { usize::MAX } else { self.ring.slots() }
    }

    fn push(&mut self, event: FlowEvent) {
        let mut report = Report { event, received: self.received };
        self.sent += 1;
        // There was room; if that was not enough, the control thread empties it.
        while let Err(rtrb::PushError::Full(back)) = self.ring.push(report) {
            report = back;
            std::thread::sleep(FULL);
        }
    }
}

/// A worker's way to read payloads, and to say what it read.
pub struct Reading {
    pub inspector: Inspector,
    pub notes: Producer<Note>,
    /// The notes' fields, each note's behind those of the one before.
    pub fields: Producer<u8>,
    /// Everything up to this moment, on the source's clock, was read and noted.
    pub until: Arc<AtomicU64>,
}

/// Sends notes to the control thread.
struct NoteRing {
    notes: Producer<Note>,
    fields: Producer<u8>,
    waits: bool,
    sent: u64,
    dropped: u64,
}

impl NoteSink for NoteRing {
    fn push(&mut self, note: Note, fields: &[u8]) {
        while self.notes.is_full() || self.fields.slots() < fields.len() {
            // Names are worth less than packets, where packets do not wait.
            if !self.waits {
                self.dropped += 1;
                return;
            }
            std::thread::sleep(FULL);
        }
        // The fields first: who sees the note finds them there.
        if self.fields.push_entire_slice(fields).is_ok() && self.notes.push(note).is_ok() {
            self.sent += 1;
        }
    }
}

/// Places of the flow table that are copied out after a burst, and when there was none.
const PEEK_BUSY: usize = 32;
const PEEK_IDLE: usize = 256;

/// Bytes of a packet in several buffers that are read: any IP packet with its link's headers.
const CHAINED: usize = (1 << 16) + 256;

struct Reader {
    inspector: Inspector,
    silencer: Option<Silencer>,
    notes: NoteRing,
    /// A packet that lies in several buffers, put together.
    chained: Vec<u8>,
    until: Arc<AtomicU64>,
}

impl Drop for Reader {
    /// Whatever ended it, nobody has to wait for it.
    fn drop(&mut self) {
        self.until.store(u64::MAX, Ordering::Release);
    }
}

/// What the flow table is given: a way out for events, and a look at the burst's payloads.
struct Hooks<'a> {
    events: &'a mut EventRing,
    reader: Option<&'a mut Reader>,
    packets: &'a [Mbuf],
    silent: &'a mut Silent,
}

/// What went to silenced flows in a burst.
#[derive(Debug, Default)]
struct Silent {
    /// A bit a packet, by its number in the burst.
    frames: u32,
    packets: u64,
    bytes: u64,
}

const _: () = assert!(BURST <= u32::BITS as usize);

impl EventSink for Hooks<'_> {
    #[inline]
    fn room(&self) -> usize {
        self.events.room()
    }

    fn push(&mut self, event: FlowEvent) {
        self.events.push(event);
    }

    fn wants(&self) -> Wants {
        self.reader.as_ref().map_or_else(Wants::default, |r| r.inspector.wants())
    }

    fn begins(&mut self, key: &FlowKey, orig_is_a: bool, timestamp_ns: u64) -> Mark {
        match self.reader.as_mut().and_then(|r| r.silencer.as_mut()) {
            Some(silencer) => silencer.begins(key, orig_is_a, timestamp_ns),
            None => Mark::Plain,
        }
    }

    fn inspect(&mut self, seen: &mut Seen<'_>) -> Wants {
        let Some(reader) = &mut self.reader else { return Wants::default() };
        let d = seen.decoded;
        let Some(packet) = self.packets.get(seen.frame as usize) else { return Wants::default() };
        let Reader { inspector, silencer, notes, chained, .. } = &mut **reader;
        let mut silencer = silencer.as_mut();
        if let Some(silencer) = &mut silencer {
            silencer.look_again(seen);
        }
        let captured = if packet.len() as usize > packet.data().len() {
            gather(packet, chained);
            chained.as_slice()
        } else {
            packet.data()
        };
        let rest = captured.get(d.payload_at as usize..).unwrap_or_default();
        let payload = rest.get(..d.payload_len as usize).unwrap_or(rest);
        let mut heard = Heard { notes, silencer, mark: seen.mark };
        let wants = inspector.inspect(seen, payload, &mut heard);
        seen.mark = heard.mark;
        wants
    }

    fn silenced(&mut self, frame: u32, wire_len: u32) {
        self.silent.frames |= 1u32.checked_shl(frame).unwrap_or(0);
        self.silent.packets += 1;
        self.silent.bytes += u64::from(wire_len);
    }

    fn forget(&mut self, place: u32) {
        if let Some(reader) = &mut self.reader {
            reader.inspector.forget(place);
        }
    }
}

/// One worker: its input, its flows and its ways out.
pub struct Worker {
    input: Input,
    table: FlowTable<Machine>,
    journal: Option<Giver>,
    watcher: Option<Box<Watcher>>,
    peek: Option<Box<Peek>>,
    look: Option<Box<Look>>,
    events: EventRing,
    reader: Option<Box<Reader>>,
    batch: Batch,
    filter: Option<Box<Filters>>,
    filters: Option<Consumer<Option<Filters>>>,
    silent: Silent,
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
        events: Producer<Report>,
        journal: Option<Giver>,
    ) -> Self {
        let waits = input.waits();
        Self {
            input,
            table,
            journal,
            watcher: None,
            peek: None,
            look: None,
            events: EventRing { ring: events, waits, received: 0, sent: 0 },
            reader: None,
            batch: Batch::default(),
            filter: None,
            filters: None,
            silent: Silent::default(),
            arrivals: Box::new([Arrival::default(); BURST]),
            waits,
            received_until: None,
            counters: Counters::default(),
        }
    }

    /// Has payloads read.
    pub fn read_payloads(&mut self, reading: Reading) {
        let Reading { inspector, notes, fields, until } = reading;
        let notes = NoteRing { notes, fields, waits: self.waits, sent: 0, dropped: 0 };
        let chained = Vec::with_capacity(CHAINED);
        self.reader = Some(Box::new(Reader { inspector, silencer: None, notes, chained, until }));
    }

    /// Leaves flows out of telemetry and journal; payloads must be read.
    pub fn silence(&mut self, silencer: Silencer) {
        if let Some(reader) = &mut self.reader {
            reader.silencer = Some(silencer);
        }
    }

    /// Looks only at packets that a filter takes; others may follow it through the ring.
    pub fn filter(&mut self, filter: Option<Filters>, others: Consumer<Option<Filters>>) {
        self.filter = filter.map(Box::new);
        self.filters = Some(others);
    }

    /// Also counts what single hosts do.
    pub fn watch(&mut self, watcher: Watcher) {
        self.watcher = Some(Box::new(watcher));
    }

    /// Lets others look at its flows.
    pub fn show_flows(&mut self, peek: Peek) {
        self.peek = Some(Box::new(peek));
    }

    /// Also looks at a sample of the packets, for the doctor.
    pub fn look(&mut self, look: Look) {
        self.look = Some(Box::new(look));
    }

    /// One burst, or one step of the end.
    pub fn turn(&mut self, stopping: bool) -> Turn {
        if self.received_until.is_none() {
            let ready = self.hand_to_journal() && (!self.waits || self.events.ring.slots() >= ROOM);
            let turn = if ready { self.receive() } else { Turn::Idle };
            if self.peek.as_ref().is_some_and(|p| p.is_wanted()) {
                return self.copy_flows(turn);
            }
            return turn;
        }
        // Flows wait in the table for room, as they do live.
        self.events.waits = false;
        if self.watcher.as_mut().is_some_and(|w| !w.finish()) {
            return Turn::Idle;
        }
        let reason = if stopping { EndReason::Shutdown } else { EndReason::Eof };
        let now = self.now();
        let Self { events, reader, silent, .. } = self;
        let reader = reader.as_deref_mut();
        let mut hooks = Hooks { events, reader, packets: &[], silent };
        let drained = self.table.drain(now, reason, &mut hooks);
        self.count_table();
        if drained { Turn::End } else { Turn::Busy }
    }

    /// Takes nothing new from a source of its own.
    pub fn stop(&mut self) {
        if let Input::Source(source) = &mut self.input {
            source.stop();
        }
    }

    /// What rings when it has something to do.
    pub fn bells(&self) -> Option<Vec<Bell>> {
        match &self.input {
            Input::Source(source) => source.bells(),
            Input::Ring { .. } => None,
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
                poll
            }
            Input::Ring { ring, .. } => from_ring(ring, &mut self.batch),
        };
        let mut clock = 0;
        if let Some(filter) = self.filters.as_mut().and_then(|f| f.pop().ok()) {
            self.filter = filter.map(Box::new);
        }
        if let Some(filter) = &mut self.filter {
            clock = leave_out(filter, &mut self.batch, &mut self.counters);
        }
        if self.journal.is_some() && matches!(self.input, Input::Source(_)) {
            self.batch.stamp_buffers();
        }
        match poll {
            Poll::Packets(_) if self.batch.packets.is_empty() => {
                self.has_come_to(clock);
                Turn::Busy
            }
            Poll::Packets(_) => {
                self.events.received += self.batch.packets.len() as u64;
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
                self.has_read_until(u64::MAX);
                Turn::Busy
            }
        }
    }

    #[inline]
    fn account(&mut self) {
        if let Some(silencer) = self.reader.as_mut().and_then(|r| r.silencer.as_mut()) {
            silencer.refresh();
        }
        for packet in &self.batch.packets {
            dpdk::memory::prefetch(packet.data());
        }
        let counters = &mut self.counters;
        let (mut bytes, mut readable, mut truncated, mut lies) = (0, 0, 0, 0);
        let mut clock = 0;
        for (number, (packet, stamp)) in self.batch.iter().enumerate() {
            clock = stamp.meta.clock_ns;
            let frame = frame(packet, stamp);
            let Some(arrival) = self.arrivals.get_mut(readable) else { break };
            match arrival.read(&frame) {
                Ok(()) => {
                    let mut wire_len = frame.wire_len;
                    if let Some(d) = arrival.uncommon() {
                        // Of a frame that was cut silently only the IP header tells the length.
                        wire_len = d.wire_len;
                        truncated += u64::from(d.truncated);
                        lies += u64::from(d.length_lies);
                    }
                    bytes += u64::from(wire_len);
                    arrival.timestamp_ns = stamp.timestamp_ns;
                    arrival.clock_ns = stamp.meta.clock_ns;
                    arrival.frame = number as u32;
                    readable += 1;
                }
                Err(reason) => {
                    bytes += u64::from(frame.wire_len);
                    counters.reject(reason);
                    if reason == Reject::Arp || reason.is_malformed() {
                        lone(&mut self.reader, reason, arrival.unfold(), frame.data, stamp);
                    }
                }
            }
        }
        counters.add(Counter::Bytes, bytes);
        counters.add(Counter::Truncated, truncated);
        counters.add(Counter::LengthLies, lies);
        counters.add(Counter::Decoded, readable as u64);
        if self.watcher.is_some() {
            self.watch_burst(readable);
        }
        if let Some(look) = &mut self.look
            && let wanted @ 1.. = look.wants(clock)
        {
            look_at(look, &self.batch, wanted, &mut self.counters);
        }
        if let Some(arrivals) = self.arrivals.get_mut(..readable) {
            let packets = &self.batch.packets;
            let reader = self.reader.as_deref_mut();
            let silent = &mut self.silent;
            let mut hooks = Hooks { events: &mut self.events, reader, packets, silent };
            self.table.burst(arrivals, &mut hooks);
        }
        if self.silent.packets != 0 {
            self.keep_silent();
        }
        self.has_read_until(clock);
        self.count_table();
    }

    /// Shows the burst, of which so many packets were readable, to the watcher.
    #[inline(never)]
    fn watch_burst(&mut self, readable: usize) {
        let Some(watcher) = &mut self.watcher else { return };
        // The arrivals are the packets, unless some made none; those may still name a destination.
        let all = readable == self.batch.packets.len();
        let mut scratch = Decoded::default();
        let mut clock = 0;
        for (n, (packet, stamp)) in self.batch.iter().enumerate() {
            let frame = frame(packet, stamp);
            let sighting = match self.arrivals.get_mut(n) {
                Some(arrival) if all => Sighting::of(&frame, arrival.unfold(), Ok(())),
                _ => sight(&frame, &mut scratch),
            };
            clock = stamp.meta.clock_ns;
            if let Some(sighting) = sighting {
                watcher.packet(clock, &sighting);
            }
        }
        watcher.let_time_pass(clock);
    }

    /// A slice of the flows for whoever asks; more of them when there are no packets.
    #[cold]
    fn copy_flows(&mut self, turn: Turn) -> Turn {
        let now = self.now();
        let most = if turn == Turn::Busy { PEEK_BUSY } else { PEEK_IDLE };
        let Some(peek) = &mut self.peek else { return turn };
        if peek.copy(&self.table, most, now) { Turn::Busy } else { turn }
    }

    /// Takes the packets of silenced flows out of the burst, and counts them.
    #[cold]
    fn keep_silent(&mut self) {
        let Silent { frames, packets, bytes } = std::mem::take(&mut self.silent);
        self.counters.add(Counter::SilencedPackets, packets);
        self.counters.add(Counter::SilencedBytes, bytes);
        if let Some(journal) = &mut self.journal {
            self.batch.retain(|n, _, _| frames >> n & 1 == 0);
            let silenced = u64::from(frames.count_ones());
            self.counters.add(Counter::JournalSilenced, silenced);
            journal.skip(silenced, self.batch.packets.len());
        }
    }

    fn count_table(&mut self) {
        let stats = self.table.stats();
        self.counters.set(Counter::ActiveFlows, self.table.len() as u64);
        self.counters.set(Counter::Flows, stats.created);
        self.counters.set(Counter::Evicted, stats.evicted);
        self.counters.set(Counter::Unplaced, stats.unplaced);
        self.counters.set(Counter::Events, self.events.sent);
        if let Some(reader) = &self.reader {
            let stats = reader.inspector.stats();
            self.counters.set(Counter::Inspected, stats.packets);
            self.counters.set(Counter::Notes, reader.notes.sent);
            self.counters.set(Counter::NotesDropped, reader.notes.dropped);
            self.counters.set(Counter::StatesEvicted, stats.states_evicted);
            self.counters.set(Counter::BuffersFull, stats.buffers_full);
            if let Some(silencer) = &reader.silencer {
                let stats = silencer.stats();
                self.counters.set(Counter::SilencedByName, stats.by_name);
                self.counters.set(Counter::SilencedByAddress, stats.by_address);
                self.counters.set(Counter::SharedAddress, stats.shared);
                self.counters.set(Counter::Reopened, stats.reopened);
                self.counters.set(Counter::AnswersLost, stats.lost);
            }
        }
    }

    /// Says up to when everything was read.
    #[inline]
    fn has_read_until(&self, clock_ns: u64) {
        if let Some(reader) = &self.reader {
            reader.until.fetch_max(clock_ns, Ordering::Release);
        }
    }

    /// Gives the burst to the journal, or back to the pool; false while some of it must wait.
    #[inline]
    fn hand_to_journal(&mut self) -> bool {
        let Some(journal) = &mut self.journal else {
            free_burst(&mut self.batch.packets);
            return true;
        };
        journal.skip(0, self.batch.packets.len());
        if self.batch.packets.is_empty() {
            return true;
        }
        journal.give(&mut self.batch.packets);
        if self.batch.packets.is_empty() {
            return true;
        }
        if self.waits && !journal.is_abandoned() {
            return false;
        }
        self.counters.add(Counter::JournalOverload, self.batch.packets.len() as u64);
        journal.lose(&mut self.batch.packets);
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
        self.has_come_to(now);
    }

    /// All packets up to this moment were seen, and none is left.
    fn has_come_to(&mut self, now: u64) {
        if let Some(watcher) = &mut self.watcher {
            watcher.let_time_pass(now);
        }
        let Self { events, reader, silent, .. } = self;
        let reader = reader.as_deref_mut();
        let mut hooks = Hooks { events, reader, packets: &[], silent };
        self.table.advance(now, BURST, &mut hooks);
        self.has_read_until(now);
        self.count_table();
    }
}

/// Gives back and counts what a filter does not take; returns the time of the last packet.
#[inline(never)]
fn leave_out(filter: &mut Filters, batch: &mut Batch, counters: &mut Counters) -> u64 {
    batch.packets.iter().for_each(|packet| dpdk::memory::prefetch(packet.data()));
    let (mut packets, mut bytes, mut clock) = (0, 0, 0);
    batch.retain(|_, packet, Stamp { meta, .. }| {
        let taken = filter.take(meta.link, meta.wire_len, packet.data());
        packets += u64::from(!taken);
        bytes += u64::from(if taken { 0 } else { meta.wire_len });
        clock = meta.clock_ns;
        taken
    });
    counters.add(Counter::Filtered, packets);
    counters.add(Counter::Bytes, bytes);
    clock
}

/// Shows so many packets of a burst to the doctor.
#[cold]
fn look_at(look: &mut Look, batch: &Batch, wanted: usize, counters: &mut Counters) {
    for (packet, stamp) in batch.iter().take(wanted) {
        let frame = frame(packet, stamp);
        if frame.link == packet::Link::Ethernet {
            let clock_ns = stamp.meta.clock_ns;
            look.at(&Sample { data: frame.data, wire_len: frame.wire_len, clock_ns }, counters);
        }
    }
}

/// Copies a packet's segments one behind the other, as far as there is room.
#[cold]
fn gather(packet: &Mbuf, out: &mut Vec<u8>) {
    out.clear();
    for segment in packet.segments() {
        let room = out.capacity() - out.len();
        out.extend_from_slice(segment.get(..room).unwrap_or(segment));
    }
}

/// Has a frame read that is in no flow.
#[cold]
fn lone(reader: &mut Option<Box<Reader>>, why: Reject, d: &Decoded, data: &[u8], stamp: &Stamp) {
    let Some(reader) = reader else { return };
    let Reader { inspector, notes, .. } = &mut **reader;
    let macs = d.has_mac.then_some([d.src_mac, d.dst_mac]);
    let lone = Lone { timestamp_ns: stamp.timestamp_ns, macs, vlans: d.vlans };
    match why {
        Reject::Arp => {
            inspector.arp(data.get(d.payload_at as usize..).unwrap_or_default(), &lone, notes);
        }
        _ => inspector.malformed(why, &lone, notes),
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
