//! Staging: packet records into large buffers, on the journal's lcore.
//!
//! Each link type has a lane, which fills one segment at a time. The buffers of a segment, one after
//! the other, are the segment's bytes from the file header on, so that each begins where a direct
//! write may. The writing thread has a reader of every buffer from its beginning and writes what is
//! published when it wants to; the lcore never waits for it, and hands over no more than a note for
//! each buffer and segment. No allocation, lock or system call for a packet.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender};
use diskio::{Filled, Filler};
use rtrb::Producer;

use super::block::{Gap, GapReason};
use super::index::{Foreseen, IndexBuilder, OpenIndex};
use super::pcap::{self, RecordHeader};
use super::places::Birth;
use crate::event::Place;
use crate::packet::{Frame, Link};

/// Link types with an open segment at once; with more, the one that was quiet longest is ended.
const LANES: usize = 6;

/// What the lcore tells the writing thread.
pub enum Note {
    /// A segment begins with this buffer.
    Begin { number: u64, link: u16, first_ns: u64, index: Arc<OpenIndex>, data: Filled },
    /// A segment goes on in another buffer; the one before is full.
    Next { number: u64, data: Filled },
    /// Nothing comes after what was published; the index is complete.
    End { number: u64, index: Box<IndexBuilder> },
    /// Packets were dropped.
    Gap(Gap),
}

/// What both sides see.
#[derive(Debug)]
pub struct Signals {
    /// The number of the next segment.
    pub next_number: AtomicU64,
    /// Segments up to this one have to be ended: their file took no more.
    pub ended_up_to: AtomicU64,
    /// The disk refuses, so that waiting for it is no use.
    pub refused: AtomicBool,
    /// The time of the newest packet taken, nanoseconds since 1970.
    pub newest_ns: AtomicU64,
    /// The smallest number of a segment that is being written.
    pub oldest_open: AtomicU64,
}

impl Signals {
    /// Segments are numbered from `next_number` on.
    pub fn new(next_number: u64) -> Self {
        Self {
            next_number: AtomicU64::new(next_number),
            ended_up_to: AtomicU64::new(0),
            refused: AtomicBool::new(false),
            newest_ns: AtomicU64::new(0),
            oldest_open: AtomicU64::new(u64::MAX),
        }
    }
}

/// When a segment ends, apart from its index being full.
#[derive(Clone, Copy, Debug)]
pub struct Rotation {
    /// Largest length of a file, bytes.
    pub size: u64,
    /// Longest time from the first packet, by packet time and by the clock; `None` for none.
    pub age: Option<Duration>,
}

/// The ends of the channels that the lcore holds.
pub struct Exchange {
    pub notes: Sender<Note>,
    /// Empty buffers come back here.
    pub buffers: Receiver<Filler>,
    /// Empty builders for the next segments.
    pub builders: Receiver<Box<IndexBuilder>>,
    pub signals: Arc<Signals>,
}

/// The lcore's end.
pub struct Stage {
    exchange: Exchange,
    /// Empty buffers, the one used last on top, so that few are in use when few are needed.
    spare: Vec<Filler>,
    lanes: Vec<Lane>,
    rotation: Rotation,
    gaps: [Option<(Gap, Instant)>; 2],
    newest_ns: u64,
    births: Option<Producer<Birth>>,
}

struct Lane {
    number: u64,
    link: u16,
    read_as: Link,
    filler: Filler,
    /// Length of the segment so far.
    len: u64,
    first_ns: u64,
    begun: Instant,
    quiet: u64,
    index: Box<IndexBuilder>,
}

/// A gap is told this long after its first packet at the latest.
const GAP_SPAN: Duration = Duration::from_secs(1);

/// There is no room for a packet now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoRoom;

impl Stage {
    /// Buffers are taken from the exchange, which holds `buffers` of them at most.
    pub fn new(exchange: Exchange, rotation: Rotation, buffers: usize) -> Self {
        Self {
            exchange,
            spare: Vec::with_capacity(buffers),
            lanes: Vec::with_capacity(LANES),
            rotation,
            gaps: [None; 2],
            newest_ns: 0,
            births: None,
        }
    }

    /// Tells where flows begin, as long as there is room.
    pub fn tell_births(&mut self, births: Producer<Birth>) {
        self.births = Some(births);
    }

    /// There is no room to tell where the next flow begins.
    #[inline]
    pub fn is_telling_too_much(&self) -> bool {
        self.births.as_ref().is_some_and(|b| b.is_full() && !b.is_abandoned())
    }

    /// Ends segments by packet time and by the clock, or not.
    pub fn set_age_limit(&mut self, age: Option<Duration>) {
        self.rotation.age = age;
    }

    /// The index that a packet of this link type likely goes to.
    #[inline]
    pub fn index(&self, link: u16) -> Option<(&IndexBuilder, Link)> {
        self.lanes.iter().find(|lane| lane.link == link).map(|lane| (&*lane.index, lane.read_as))
    }

    /// Appends a packet of this time and link type, which [`Stage::tend`] publishes; `data` is what was captured of `wire_len` bytes.
    #[inline]
    pub fn append(
        &mut self,
        link: u16,
        timestamp_ns: u64,
        wire_len: u32,
        data: &[u8],
        foreseen: Option<&Foreseen>,
    ) -> Result<(), NoRoom> {
        // Longer than any link's frame: cut, which the record says.
        let data = data.get(..pcap::SNAPLEN as usize).unwrap_or(data);
        let size = pcap::RECORD_HEADER + data.len();
        let at = self.lane_for(link, timestamp_ns, size)?;
        let Some(lane) = self.lanes.get_mut(at) else { return Err(NoRoom) };
        let header = RecordHeader::new(timestamp_ns, data.len() as u32, wire_len);
        if size <= lane.filler.room() {
            lane.filler.push(&header.encode());
            lane.filler.push(data);
        } else {
            let more = (size - lane.filler.room()).div_ceil(lane.filler.capacity());
            refill(&mut self.spare, &self.exchange.buffers, more)?;
            for part in [&header.encode()[..], data] {
                push_on(lane, part, &mut self.spare, &self.exchange.notes);
            }
        }
        // The index before the bytes are published: who sees them can find them.
        let frame = Frame { data, wire_len: header.wire, wire_len_known: true, link: lane.read_as };
        let begins = lane.index.add(lane.len, &frame, timestamp_ns, foreseen);
        if let (Some(flow_id), Some(births)) = (begins, &mut self.births) {
            let place = Place { segment: lane.number, offset: lane.len };
            let _ = births.push(Birth { flow_id, place });
        }
        lane.len += size as u64;
        lane.quiet = 0;
        self.newest_ns = self.newest_ns.max(timestamp_ns);
        Ok(())
    }

    /// The lane of a link type, in a segment that has room for `size` bytes more.
    #[inline]
    fn lane_for(&mut self, link: u16, ns: u64, size: usize) -> Result<usize, NoRoom> {
        if let Some(at) = self.lanes.iter().position(|lane| lane.link == link) {
            let ends = self.lanes.get(at).is_some_and(|lane| {
                lane.len + size as u64 > self.rotation.size
                    || lane.index.is_full()
                    || self.rotation.age.is_some_and(|age| {
                        // A clock that was set moves on to a segment of its own.
                        ns.abs_diff(lane.first_ns) > age.as_nanos() as u64
                    })
            });
            if !ends {
                return Ok(at);
            }
            self.end(at);
        }
        self.begin(link, ns)
    }

    #[cold]
    fn begin(&mut self, link: u16, first_ns: u64) -> Result<usize, NoRoom> {
        if self.lanes.len() == LANES {
            let quietest = self.lanes.iter().enumerate().max_by_key(|(_, lane)| lane.quiet);
            if let Some((at, _)) = quietest {
                self.end(at);
            }
        }
        refill(&mut self.spare, &self.exchange.buffers, 1)?;
        let Ok(mut index) = self.exchange.builders.try_recv() else { return Err(NoRoom) };
        let Some(mut filler) = self.spare.pop() else { return Err(NoRoom) };
        // An empty one: it only notes the link type.
        index.reset(link);
        filler.push(&pcap::file_header(link));
        filler.publish();
        let number = self.exchange.signals.next_number.fetch_add(1, Ordering::Relaxed);
        let data = filler.share();
        tell(
            &self.exchange.notes,
            Note::Begin { number, link, first_ns, index: index.shared(), data },
        );
        self.lanes.push(Lane {
            number,
            link,
            read_as: Link::from_number(link),
            filler,
            len: pcap::FILE_HEADER as u64,
            first_ns,
            begun: Instant::now(),
            quiet: 0,
            index,
        });
        Ok(self.lanes.len() - 1)
    }

    fn end(&mut self, at: usize) {
        let mut lane = self.lanes.swap_remove(at);
        lane.filler.publish();
        // Before the note: the writer may then take the buffer back.
        drop(lane.filler);
        tell(&self.exchange.notes, Note::End { number: lane.number, index: lane.index });
    }

    /// Ends every segment.
    pub fn end_all(&mut self) {
        while !self.lanes.is_empty() {
            self.end(self.lanes.len() - 1);
        }
        self.tell_gaps(None);
        self.exchange.signals.newest_ns.store(self.newest_ns, Ordering::Relaxed);
    }

    /// What is done after each burst: publishes it, ends segments that are old or whose file takes no
    /// more, and tells of gaps.
    pub fn tend(&mut self, now: Instant) {
        self.lanes.iter_mut().for_each(|lane| lane.filler.publish());
        let ended = self.exchange.signals.ended_up_to.load(Ordering::Relaxed);
        let age = self.rotation.age;
        let is_over = |lane: &Lane| {
            lane.number <= ended || age.is_some_and(|age| now.duration_since(lane.begun) > age)
        };
        while let Some(at) = self.lanes.iter().position(is_over) {
            self.end(at);
        }
        self.lanes.iter_mut().for_each(|lane| lane.quiet += 1);
        self.tell_gaps(Some(now));
        self.exchange.signals.newest_ns.store(self.newest_ns, Ordering::Relaxed);
    }

    /// Whether the disk refuses, so that waiting is no use.
    pub fn is_refused(&self) -> bool {
        self.exchange.signals.refused.load(Ordering::Relaxed)
    }

    /// Notes that packets between two times were dropped.
    pub fn dropped(&mut self, reason: GapReason, packets: u64, from_ns: u64, to_ns: u64) {
        let packets = u32::try_from(packets).unwrap_or(u32::MAX);
        let Some(slot) = self.gaps.get_mut(reason as usize - 1) else { return };
        match slot {
            Some((gap, _)) => {
                gap.packets = gap.packets.saturating_add(packets);
                gap.from_ns = gap.from_ns.min(from_ns);
                gap.to_ns = gap.to_ns.max(to_ns);
            }
            None => *slot = Some((Gap { reason, packets, from_ns, to_ns }, Instant::now())),
        }
    }

    fn tell_gaps(&mut self, now: Option<Instant>) {
        for slot in &mut self.gaps {
            let Some((gap, since)) = slot else { continue };
            // Notes of segments come first: they have to fit.
            let notes = &self.exchange.notes;
            let crowded = notes.capacity().is_some_and(|most| notes.len() > most / 4);
            if crowded || now.is_some_and(|now| now.duration_since(*since) < GAP_SPAN) {
                continue;
            }
            // With no room for it the gap goes on and is told later.
            if notes.try_send(Note::Gap(*gap)).is_ok() {
                *slot = None;
            }
        }
    }
}

/// Makes sure of `n` empty buffers.
#[inline]
fn refill(spare: &mut Vec<Filler>, back: &Receiver<Filler>, n: usize) -> Result<(), NoRoom> {
    // All that came back: the newest are still in a cache.
    while spare.len() < spare.capacity()
        && let Ok(filler) = back.try_recv()
    {
        spare.push(filler);
    }
    if spare.len() < n { Err(NoRoom) } else { Ok(()) }
}

/// Appends to a lane whose buffer may end on the way; there are spare ones enough.
#[cold]
fn push_on(lane: &mut Lane, mut part: &[u8], spare: &mut Vec<Filler>, notes: &Sender<Note>) {
    loop {
        part = lane.filler.push(part);
        if lane.filler.room() == 0
            && let Some(next) = spare.pop()
        {
            let mut full = std::mem::replace(&mut lane.filler, next);
            full.publish();
            drop(full);
            tell(notes, Note::Next { number: lane.number, data: lane.filler.share() });
        }
        if part.is_empty() || lane.filler.room() == 0 {
            return;
        }
    }
}

/// The channel holds more notes than there can be buffers and segments, so that this fails only when
/// the writing thread is gone, and everything with it.
fn tell(notes: &Sender<Note>, note: Note) {
    let _ = notes.try_send(note);
}
