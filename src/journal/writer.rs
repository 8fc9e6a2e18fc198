//! The writing thread: from staging buffers to segment files.
//!
//! A segment's bytes are written in order, one write at a time, so that its file is at every moment
//! the beginning of what it will be: no hole, nothing made up. Whole buffers go past the system's
//! cache as they fill. What is left of a buffer that does not fill goes out in time too, its last
//! part page through the cache to the exact byte; the direct write that comes later writes that
//! page again with the same bytes and more.
//!
//! A sync follows at the latest when something has waited for [`Pace::flush`]: the block records, the
//! data and the records synced, and only then the watermark. A buffer is given back when what it
//! holds is synced, not before: after a refused write or sync nothing that the disk said of that
//! file is believed any more. The file ends where it was last synced, and what came behind is
//! written again, to a new segment.

mod segment;

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, TryRecvError};
use diskio::{Filled, Filler};

use super::block::Gap;
use super::disk::{Disk, Queue};
use super::index::IndexBuilder;
use super::live::{Live, LiveSegment};
use super::stage::{Note, Signals};
use crate::status::{Counter, Counters, JournalBoard, Published};
pub use segment::companion;
use segment::{Begun, Segment, Step};

/// How the writer goes about it.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// Bytes of a checksummed block.
    pub block: u32,
    /// Nothing waits longer than this before it is written and synced.
    pub flush: Duration,
    /// A sync comes at the latest after so many bytes.
    pub sync_bytes: u64,
    /// Bytes reserved ahead of what is written.
    pub reserve: u64,
    /// The largest file, bytes.
    pub largest: u64,
}

/// How long the disk is left alone after it refused a new file.
const RETRY: Duration = Duration::from_secs(1);
/// How often a buffer that is being filled is looked at.
const LOOK: Duration = Duration::from_millis(100);
/// How long to wait for a completion before new notes are looked at.
const MEANWHILE: Duration = Duration::from_millis(2);
/// Files tried for what is left when the process ends.
const LAST_TRIES: u32 = 3;
/// Gaps kept for the next segment; more are merged into the last.
const GAPS: usize = 1024;

/// A segment that is complete and has to get its index.
pub struct Seal {
    pub number: u64,
    /// Its pcap file's name.
    pub name: String,
    /// Its length, bytes.
    pub len: u64,
    /// `None`: rebuilt from the file.
    pub index: Option<Box<IndexBuilder>>,
}

/// What the writing thread is connected to.
pub struct Links {
    pub notes: Receiver<Note>,
    pub buffers: Sender<Filler>,
    pub seals: Sender<Seal>,
    pub builders: Sender<Box<IndexBuilder>>,
    pub signals: Arc<Signals>,
    pub live: Arc<Live>,
    pub counters: Arc<Published>,
    pub board: Arc<JournalBoard>,
}

/// The writer over a disk.
pub struct Writer<D: Disk> {
    disk: D,
    queue: D::Queue,
    pace: Pace,
    links: Links,
    new_builder: Box<dyn Fn() -> Box<IndexBuilder> + Send>,
    segments: Vec<Segment<D::File>>,
    /// Buffers that somebody still has a handle on.
    limbo: Vec<Filled>,
    /// Gaps for the next segment.
    gaps: Vec<Gap>,
    counters: Counters,
    next_id: u64,
    /// Where a path is said.
    place: String,
    refusing: Option<Refusal>,
    no_more_notes: bool,
}

/// The disk refuses at the moment.
struct Refusal {
    since: Instant,
}

impl<D: Disk> Writer<D> {
    /// `place` names the directory in messages; `new_builder` makes empty index builders.
    pub fn new(
        disk: D,
        pace: Pace,
        links: Links,
        place: String,
        new_builder: Box<dyn Fn() -> Box<IndexBuilder> + Send>,
    ) -> Self {
        let queue = disk.queue();
        let _ = links.builders.try_send(new_builder());
        Self {
            disk,
            queue,
            pace,
            links,
            new_builder,
            segments: Vec::new(),
            limbo: Vec::new(),
            gaps: Vec::new(),
            counters: Counters::default(),
            next_id: 1,
            place,
            refusing: None,
            no_more_notes: false,
        }
    }

    /// Writes until the lcore is gone and everything is on disk, or given up.
    pub fn run(&mut self) {
        while self.step(Instant::now(), LOOK) {}
    }

    /// One round: takes notes and completions, starts what can be started. Waits no longer than
    /// `patience`. False when everything is done.
    pub fn step(&mut self, now: Instant, patience: Duration) -> bool {
        self.take_notes();
        if self.no_more_notes {
            self.segments.iter_mut().for_each(Segment::end_anyway);
        }
        for at in (0..self.segments.len()).rev() {
            self.tend(at, now);
        }
        self.give_back();
        let open = self.segments.iter().map(|s| s.number).min().unwrap_or(u64::MAX);
        self.links.signals.oldest_open.store(open, Ordering::SeqCst);
        self.links.counters.store(&self.counters);
        if self.no_more_notes && self.segments.is_empty() {
            return false;
        }
        if self.queue.in_flight() > 0 {
            let mut patience = patience.min(MEANWHILE);
            while let Some((id, result)) = self.queue.next(patience) {
                self.completed(id, result);
                patience = Duration::ZERO;
            }
        } else if self.no_more_notes {
            if self.refusing.is_some() {
                std::thread::sleep(patience.min(MEANWHILE));
            }
        } else if !patience.is_zero() {
            match self.links.notes.recv_timeout(patience) {
                Ok(note) => self.note(note),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => self.no_more_notes = true,
            }
        }
        true
    }

    fn take_notes(&mut self) {
        loop {
            match self.links.notes.try_recv() {
                Ok(note) => self.note(note),
                Err(TryRecvError::Empty) => return,
                Err(TryRecvError::Disconnected) => {
                    self.no_more_notes = true;
                    return;
                }
            }
        }
    }

    fn note(&mut self, note: Note) {
        match note {
            Note::Begin { number, link, first_ns, index, data } => {
                let begun = Begun { number, link, first_ns, index: Some(index) };
                let mut segment = Segment::new(begun, self.pace.block, data);
                segment.gaps.append(&mut self.gaps);
                self.segments.push(segment);
                if self.links.builders.is_empty() {
                    let _ = self.links.builders.try_send((self.new_builder)());
                }
            }
            Note::Next { number, data } => {
                if let Some(segment) = self.of(number) {
                    segment.add(data);
                }
            }
            Note::End { number, index } => {
                if let Some(segment) = self.of(number) {
                    segment.end(index);
                }
            }
            Note::Gap(gap) => self.gap(gap),
        }
    }

    fn of(&mut self, number: u64) -> Option<&mut Segment<D::File>> {
        self.segments.iter_mut().find(|s| s.stream == number)
    }

    fn gap(&mut self, gap: Gap) {
        if let Some(segment) = self.segments.last_mut() {
            segment.gaps.push(gap);
            return;
        }
        if self.gaps.len() < GAPS {
            self.gaps.push(gap);
        } else if let Some(last) = self.gaps.iter_mut().rfind(|last| last.reason == gap.reason) {
            last.packets = last.packets.saturating_add(gap.packets);
            last.from_ns = last.from_ns.min(gap.from_ns);
            last.to_ns = last.to_ns.max(gap.to_ns);
        }
    }

    /// Does what a segment needs now.
    fn tend(&mut self, at: usize, now: Instant) {
        loop {
            let Some(segment) = self.segments.get_mut(at) else { return };
            let again = match segment.next_step(&self.pace, now, self.no_more_notes) {
                Step::Wait => return,
                Step::Create => self.create(at, now),
                Step::Write { from, to } => self.write(at, from, to),
                Step::WriteTail { from, to } => self.write_tail(at, from, to),
                Step::Sync => self.sync(at),
                Step::Abandon(why) => self.abandon(at, &why, now),
                Step::Seal => {
                    self.seal(at);
                    return;
                }
                Step::GiveUp => {
                    self.give_up(at);
                    return;
                }
            };
            if !again {
                return;
            }
        }
    }

    fn id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id
    }

    /// Makes the files of a segment; false if the disk refuses.
    fn create(&mut self, at: usize, now: Instant) -> bool {
        let Some(segment) = self.segments.get_mut(at) else { return false };
        // Before the file is there: retention leaves it alone.
        self.links.signals.oldest_open.fetch_min(segment.number, Ordering::SeqCst);
        match segment.create(&self.disk, self.pace.reserve.min(self.pace.largest)) {
            Ok(()) => {
                if let Some(index) = segment.index() {
                    let path = Path::new(&self.place).join(segment.name());
                    let written = Arc::clone(&segment.mark);
                    let number = segment.number;
                    self.links.live.begin(LiveSegment { number, path, index, written });
                }
                self.counters.add(Counter::JournalSegments, 1);
                true
            }
            Err(e) => {
                if e.kind() == io::ErrorKind::AlreadyExists {
                    segment.number = self.links.signals.next_number.fetch_add(1, Ordering::Relaxed);
                }
                segment.retry_at(now + RETRY);
                self.refuse(&e, now);
                self.links.signals.refused.store(true, Ordering::Relaxed);
                false
            }
        }
    }

    fn write(&mut self, at: usize, from: u64, to: u64) -> bool {
        let id = self.id();
        if let Some(segment) = self.segments.get_mut(at) {
            segment.start_write(id, from, to, &mut self.queue);
        }
        false
    }

    fn write_tail(&mut self, at: usize, from: u64, to: u64) -> bool {
        if let Some(segment) = self.segments.get_mut(at) {
            segment.write_tail(from, to, &self.pace);
        }
        true
    }

    fn sync(&mut self, at: usize) -> bool {
        let ids = [self.id(), self.id()];
        if let Some(segment) = self.segments.get_mut(at) {
            segment.start_sync(ids, &mut self.queue);
        }
        true
    }

    fn completed(&mut self, id: u64, result: io::Result<()>) {
        let Some(segment) = self.segments.iter_mut().find(|s| s.awaits(id)) else { return };
        let before = segment.safe();
        let synced = segment.completed(id, result, &self.pace);
        if !synced {
            return;
        }
        let mark = segment.safe();
        self.counters.add(Counter::JournalPackets, mark.packets - before.packets);
        self.counters.add(Counter::JournalBytes, mark.end - before.end);
        self.limbo.extend(segment.release());
        let link = segment.link;
        self.publish(link);
        if let Some(refusal) = self.refusing.take() {
            self.links.signals.refused.store(false, Ordering::Relaxed);
            tracing::info!(
                "journal {}: it writes again, after {:.1} s",
                self.place,
                refusal.since.elapsed().as_secs_f64()
            );
        }
    }

    /// Publishes how far the oldest unfinished file of a link type is safe: all before it are, as a
    /// whole.
    fn publish(&self, link: u16) {
        let open = self.segments.iter().filter(|s| s.link == link);
        let Some(oldest) = open.min_by_key(|s| s.number) else { return };
        let mark = oldest.safe();
        if mark.packets == 0 {
            return;
        }
        if self.links.board.watermark(link, oldest.number, mark.end, mark.latest_ns) {
            tracing::debug!(
                "journal watermark: segment {} offset {} time {}",
                oldest.number,
                mark.end,
                mark.latest_ns
            );
        }
    }

    /// Ends a file that the disk refused something for: cut to what is safe, and the rest goes to a
    /// new one. False if that has to wait.
    fn abandon(&mut self, at: usize, why: &io::Error, now: Instant) -> bool {
        let Some(segment) = self.segments.get_mut(at) else { return false };
        let (stream, number) = (segment.stream, segment.number);
        let new = self.links.signals.next_number.fetch_add(1, Ordering::Relaxed);
        let old = segment.abandon(&self.disk, new);
        let progress = old.is_some();
        if !progress {
            segment.retry_at(now + RETRY);
        }
        self.links.signals.ended_up_to.fetch_max(stream, Ordering::Relaxed);
        self.links.live.end(number);
        if let Some((name, len)) = old {
            let _ = self.links.seals.send(Seal { number, name, len, index: None });
        }
        self.refuse(why, now);
        // With progress it was a file; without, it is the disk.
        self.links.signals.refused.fetch_or(!progress, Ordering::Relaxed);
        progress
    }

    /// Says once that the disk refuses, until it does not.
    fn refuse(&mut self, why: &io::Error, now: Instant) {
        if self.refusing.is_none() {
            tracing::error!(
                "journal {}: {why}; what is staged is kept and tried again, what comes beyond that is \
                 dropped and counted",
                self.place
            );
            self.refusing = Some(Refusal { since: now });
        }
    }

    fn seal(&mut self, at: usize) {
        let mut segment = self.segments.remove(at);
        self.limbo.extend(segment.release_all());
        self.gaps.append(&mut segment.gaps);
        match segment.finish(&self.disk) {
            Some(seal) => {
                let _ = self.links.seals.send(seal);
            }
            None => self.links.live.end(segment.number),
        }
        self.publish(segment.link);
    }

    /// The process ends and the disk takes nothing: what is left is lost, and counted.
    fn give_up(&mut self, at: usize) {
        let mut segment = self.segments.remove(at);
        let lost = segment.packets_left();
        self.counters.add(Counter::JournalNoSpace, lost);
        if lost > 0 {
            tracing::error!("journal {}: {lost} packets could not be written", self.place);
        }
        self.limbo.extend(segment.release_all());
    }

    fn give_back(&mut self) {
        for data in std::mem::take(&mut self.limbo) {
            match data.reclaim() {
                Ok(filler) => {
                    let _ = self.links.buffers.try_send(filler);
                }
                Err(shared) => self.limbo.push(shared),
            }
        }
    }

    pub fn counters(&self) -> &Counters {
        &self.counters
    }
}
