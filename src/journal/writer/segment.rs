//! One segment on its way to disk.
//!
//! Positions are of two kinds: in the stream that the lcore fills, and in the file. They are the
//! same, unless a file was given up and the rest of the stream goes to another.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::time::Instant;

use diskio::{Filled, PAGE};

use super::{LAST_TRIES, Pace, Seal};
use crate::journal::block::{Block, Gap, Head, Ledger, Mark, Record};
use crate::journal::catalogue;
use crate::journal::disk::{Disk, DiskFile, Queue};
use crate::journal::index::{IndexBuilder, OpenIndex};
use crate::journal::live;
use crate::journal::pcap;

/// What the lcore said of it.
pub(super) struct Begun {
    pub(super) number: u64,
    pub(super) link: u16,
    pub(super) first_ns: u64,
    pub(super) index: Option<Arc<OpenIndex>>,
}

/// What has to be done next; positions are of the stream.
pub(super) enum Step {
    Wait,
    Create,
    Write { from: u64, to: u64 },
    WriteTail { from: u64, to: u64 },
    Sync,
    Abandon(io::Error),
    Seal,
    GiveUp,
}

struct Piece {
    start: u64,
    data: Filled,
}

struct Files<F> {
    pcap: F,
    blocks: F,
    /// Length of the block file.
    blocks_len: u64,
    /// File bytes reserved.
    reserved: u64,
}

struct Syncing {
    ids: [u64; 2],
    left: usize,
    mark: Mark,
}

pub(super) struct Segment<F> {
    /// What the lcore calls it.
    pub(super) stream: u64,
    /// The number of its file.
    pub(super) number: u64,
    pub(super) link: u16,
    /// How much of the file readers may look at.
    pub(super) mark: Arc<live::Mark>,
    /// Gaps that are not in the block file yet.
    pub(super) gaps: Vec<Gap>,
    first_ns: u64,
    index: Option<Arc<OpenIndex>>,
    pieces: VecDeque<Piece>,
    files: Option<Files<F>>,
    name: String,
    /// Where in the stream this file's packets begin; 0 with the file header in the stream.
    from: u64,
    /// What of the file is written.
    ledger: Ledger,
    full: Vec<Block>,
    /// Position in the stream up to which it is written.
    written: u64,
    writing: Option<(u64, u64)>,
    /// Position up to which it has to be written though the buffer is not full.
    want: u64,
    dirty_since: Option<Instant>,
    syncing: Option<Syncing>,
    safe: Mark,
    retry_at: Option<Instant>,
    tries: u32,
    failed: Option<io::Error>,
    ended: bool,
    builder: Option<Box<IndexBuilder>>,
}

fn floor(n: u64) -> u64 {
    n - n % PAGE as u64
}

impl<F: DiskFile + Clone> Segment<F> {
    pub(super) fn new(begun: Begun, block: u32, data: Filled) -> Self {
        Self {
            stream: begun.number,
            number: begun.number,
            link: begun.link,
            mark: Arc::default(),
            gaps: Vec::new(),
            first_ns: begun.first_ns,
            index: begun.index,
            pieces: VecDeque::from([Piece { start: 0, data }]),
            files: None,
            name: String::new(),
            from: 0,
            ledger: Ledger::new(block),
            full: Vec::new(),
            written: 0,
            writing: None,
            want: 0,
            dirty_since: None,
            syncing: None,
            safe: Mark::default(),
            retry_at: None,
            tries: 0,
            failed: None,
            ended: false,
            builder: None,
        }
    }

    pub(super) fn add(&mut self, data: Filled) {
        let start = self.pieces.back().map_or(0, |p| p.start + p.data.capacity() as u64);
        self.pieces.push_back(Piece { start, data });
    }

    pub(super) fn end(&mut self, builder: Box<IndexBuilder>) {
        self.ended = true;
        // It knows the positions of the stream.
        self.builder = (self.from == 0).then_some(builder);
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    pub(super) fn index(&self) -> Option<Arc<OpenIndex>> {
        self.index.clone()
    }

    pub(super) fn safe(&self) -> Mark {
        self.safe
    }

    pub(super) fn retry_at(&mut self, when: Instant) {
        self.retry_at = Some(when);
    }

    /// Whether this operation is its own.
    pub(super) fn awaits(&self, id: u64) -> bool {
        self.writing.is_some_and(|(own, _)| own == id)
            || self.syncing.as_ref().is_some_and(|s| s.ids.contains(&id))
    }

    /// What of the stream is there.
    fn available(&self) -> u64 {
        self.pieces.back().map_or(self.written, |p| p.start + p.data.bytes().len() as u64)
    }

    /// How far stream positions are ahead of file positions.
    fn shift(&self) -> u64 {
        self.from.saturating_sub(pcap::FILE_HEADER as u64)
    }

    /// Position in the stream up to which it is safe.
    fn safe_stream(&self) -> u64 {
        if self.safe.packets == 0 { self.from } else { self.safe.end + self.shift() }
    }

    pub(super) fn next_step(&mut self, pace: &Pace, now: Instant, last: bool) -> Step {
        if self.writing.is_some() {
            return Step::Wait;
        }
        if self.failed.is_some() {
            if self.syncing.is_some() {
                return Step::Wait;
            }
            return self.failed.take().map_or(Step::Wait, Step::Abandon);
        }
        // Asked before what is available: nothing comes behind the end.
        let ended = self.ended;
        let available = self.available();
        let complete = ended && self.written == available;
        if self.files.is_none() {
            if available <= self.from.max(pcap::FILE_HEADER as u64) {
                return if ended { Step::Seal } else { Step::Wait };
            }
            if last && self.tries >= LAST_TRIES {
                return Step::GiveUp;
            }
            if self.retry_at.is_some_and(|at| now < at) && !last {
                return Step::Wait;
            }
            self.tries += u32::from(last);
            return Step::Create;
        }
        if available > self.safe_stream() || !self.gaps.is_empty() {
            let since = *self.dirty_since.get_or_insert(now);
            if now.duration_since(since) >= pace.flush {
                self.want = available;
            }
        } else {
            (self.dirty_since, self.want) = (None, 0);
        }
        if self.syncing.is_none() && self.sync_is_due(pace, complete) {
            return Step::Sync;
        }
        let write = self.next_write(ended);
        if matches!(write, Step::Wait)
            && complete
            && self.syncing.is_none()
            && self.safe.end == self.ledger.at()
            && self.gaps.is_empty()
        {
            return Step::Seal;
        }
        write
    }

    fn sync_is_due(&self, pace: &Pace, complete: bool) -> bool {
        let unsafe_bytes = self.ledger.mark().end.saturating_sub(self.safe.end);
        let waited = self.want > 0 && self.written >= self.want;
        if unsafe_bytes == 0 {
            return !self.gaps.is_empty() && (waited || complete);
        }
        waited || complete || unsafe_bytes >= pace.sync_bytes
    }

    fn next_write(&self, ended: bool) -> Step {
        let Some((start, data)) = self.piece_at(self.written) else { return Step::Wait };
        let available = start + data.bytes().len() as u64;
        let due = data.is_full() || ended || self.want > self.written;
        if available <= self.written || !due {
            return Step::Wait;
        }
        let direct = self.files.as_ref().is_some_and(|f| f.pcap.is_direct()) && self.from == 0;
        if !direct {
            return Step::Write { from: self.written, to: available };
        }
        let (from, to) = (floor(self.written).max(start), floor(available));
        if to > from {
            return Step::Write { from, to };
        }
        Step::WriteTail { from: self.written, to: available }
    }

    /// The buffer that holds a position, or the next byte after it.
    fn piece_at(&self, at: u64) -> Option<(u64, &Filled)> {
        let piece = self.pieces.iter().find(|p| at < p.start + p.data.capacity() as u64)?;
        Some((piece.start, &piece.data))
    }

    /// Makes the block file and the pcap file and puts their names on disk.
    pub(super) fn create<D: Disk<File = F>>(&mut self, disk: &D, reserve: u64) -> io::Result<()> {
        let first_ns = if self.from == 0 { self.first_ns } else { self.time_at(self.from) };
        self.name = catalogue::file_name(self.number, first_ns);
        let blocks_name = companion(&self.name, "blk");
        let make = || -> io::Result<Files<F>> {
            // First, and synced: while it is there, what it does not prove was not promised.
            let blocks = disk.create(&blocks_name)?;
            let head = Head { block: self.ledger.block_size(), boot: disk.boot() };
            let head = Record::Head(head).encode(self.number);
            blocks.write_at(&head, 0)?;
            blocks.sync()?;
            let pcap = disk.create(&self.name)?;
            disk.sync_names()?;
            if self.from > 0 {
                pcap.write_at(&pcap::file_header(self.link), 0)?;
            }
            pcap.reserve(0, reserve);
            Ok(Files { pcap, blocks, blocks_len: head.len() as u64, reserved: reserve })
        };
        match make() {
            Ok(files) => {
                self.files = Some(files);
                if self.from > 0 {
                    self.ledger.take(&pcap::file_header(self.link), &mut |_| {});
                }
                self.written = self.from;
                Ok(())
            }
            Err(e) => {
                // Not what somebody else has made.
                if e.kind() != io::ErrorKind::AlreadyExists {
                    let _ = disk.remove(&self.name);
                    let _ = disk.remove(&blocks_name);
                }
                Err(e)
            }
        }
    }

    /// The time of the packet record at a position of the stream.
    fn time_at(&self, at: u64) -> u64 {
        let mut header = [0; pcap::RECORD_HEADER];
        for (n, to) in header.iter_mut().enumerate() {
            let at = at + n as u64;
            if let Some((start, data)) = self.piece_at(at) {
                *to = data.bytes().get((at - start) as usize).copied().unwrap_or(0);
            }
        }
        pcap::RecordHeader::decode(&header).timestamp_ns()
    }

    pub(super) fn start_write(&mut self, id: u64, from: u64, to: u64, queue: &mut impl Queue<F>) {
        let Some((start, data)) = self.piece_at(self.written) else { return };
        let (range, data) = ((from - start) as usize..(to - start) as usize, data.clone());
        let Some(files) = &self.files else { return };
        queue.write(id, &files.pcap, from - self.shift(), data, range);
        self.writing = Some((id, to));
        // The checksums while the disk is at work.
        self.account(to);
    }

    pub(super) fn write_tail(&mut self, from: u64, to: u64, pace: &Pace) {
        let Some((start, data)) = self.piece_at(from) else { return };
        let Some(files) = &self.files else { return };
        let range = (from - start) as usize..(to - start) as usize;
        let bytes = data.bytes().get(range).unwrap_or_default();
        match files.pcap.write_at(bytes, from - self.shift()) {
            Ok(()) => {
                self.account(to);
                self.has_written(to, pace);
            }
            Err(e) => self.failed = Some(e),
        }
    }

    /// Takes the stream up to a position into the ledger.
    fn account(&mut self, to: u64) {
        let shift = self.shift();
        loop {
            let at = self.ledger.at() + shift;
            if at >= to {
                return;
            }
            let piece = self.pieces.iter().find(|p| at < p.start + p.data.capacity() as u64);
            let Some(piece) = piece else { return };
            let range = (at - piece.start) as usize..;
            let bytes = piece.data.bytes().get(range).unwrap_or_default();
            let bytes = bytes.get(..(to - at) as usize).unwrap_or(bytes);
            if bytes.is_empty() {
                return;
            }
            let full = &mut self.full;
            self.ledger.take(bytes, &mut |block| full.push(block));
        }
    }

    fn has_written(&mut self, to: u64, pace: &Pace) {
        self.written = self.written.max(to);
        let at = self.ledger.at();
        self.mark.raise(self.ledger.mark().end);
        if let Some(files) = &mut self.files
            && at + pace.reserve / 2 > files.reserved
            && files.reserved < pace.largest
        {
            files.pcap.reserve(files.reserved, pace.reserve.min(pace.largest - files.reserved));
            files.reserved += pace.reserve;
        }
    }

    /// Appends the block records and starts both syncs. The last record covers just what the mark
    /// promises, so that it proves that also when the file is cut there.
    pub(super) fn start_sync(&mut self, ids: [u64; 2], queue: &mut impl Queue<F>) {
        let Some(files) = &mut self.files else { return };
        let blocks = self.full.drain(..).chain(self.ledger.marked()).map(Record::Block);
        let records = self.gaps.iter().map(|gap| Record::Gap(*gap)).chain(blocks);
        let bytes: Vec<u8> = records.flat_map(|r| r.encode(self.number)).collect();
        self.want = 0;
        self.dirty_since = None;
        if let Err(e) = files.blocks.write_at(&bytes, files.blocks_len) {
            self.failed = Some(e);
            return;
        }
        files.blocks_len += bytes.len() as u64;
        self.gaps.clear();
        queue.sync(ids[0], &files.pcap);
        queue.sync(ids[1], &files.blocks);
        self.syncing = Some(Syncing { ids, left: 2, mark: self.ledger.mark() });
    }

    /// Takes a completion; true if the watermark moved.
    pub(super) fn completed(&mut self, id: u64, result: io::Result<()>, pace: &Pace) -> bool {
        let good = result.is_ok();
        if let Err(e) = result {
            self.failed.get_or_insert(e);
        }
        if let Some((_, to)) = self.writing.filter(|(own, _)| *own == id) {
            self.writing = None;
            if good {
                self.has_written(to, pace);
            }
            return false;
        }
        let Some(syncing) = &mut self.syncing else { return false };
        syncing.left -= 1;
        if syncing.left > 0 {
            return false;
        }
        let mark = syncing.mark;
        self.syncing = None;
        // Where one of the two failed, or a write meanwhile, nothing is promised.
        if self.failed.is_some() {
            return false;
        }
        self.safe = mark;
        self.tries = 0;
        true
    }

    /// Gives the file up after the disk refused something: it is cut to what is safe, or removed if
    /// that is nothing, and what follows goes to a file with number `new`. Returns name and length
    /// of what was left.
    pub(super) fn abandon<D: Disk<File = F>>(
        &mut self,
        disk: &D,
        new: u64,
    ) -> Option<(String, u64)> {
        let safe = self.safe;
        let mut left = None;
        if let Some(files) = self.files.take() {
            if safe.packets > 0 {
                if let Err(e) = files.pcap.set_len(safe.end) {
                    tracing::warn!("{}: {e}; its end is in the next file again", self.name);
                }
                left = Some((self.name.clone(), safe.end));
            } else {
                let _ = disk.remove(&self.name);
                let _ = disk.remove(&companion(&self.name, "blk"));
            }
        }
        self.from = self.safe_stream();
        if self.from > 0 {
            (self.index, self.builder) = (None, None);
        }
        self.number = new;
        self.ledger = Ledger::new(self.ledger.block_size());
        self.full.clear();
        self.written = self.from;
        (self.want, self.dirty_since) = (0, None);
        self.safe = Mark::default();
        self.mark = Arc::default();
        left
    }

    /// Gives back what was reserved. `None` if there is no packet and so no file.
    pub(super) fn finish<D: Disk<File = F>>(&mut self, disk: &D) -> Option<Seal> {
        let files = self.files.take()?;
        if self.safe.packets == 0 {
            let _ = disk.remove(&self.name);
            let _ = disk.remove(&companion(&self.name, "blk"));
            return None;
        }
        if let Err(e) = files.pcap.set_len(self.safe.end) {
            tracing::warn!("{}: {e}; what was reserved for it is not given back", self.name);
        }
        let name = std::mem::take(&mut self.name);
        let index = self.builder.take();
        Some(Seal { number: self.number, name, len: self.safe.end, index })
    }

    /// Nothing more comes, and the lcore did not say so.
    pub(super) fn end_anyway(&mut self) {
        self.ended = true;
    }

    /// Packets that are in no file; for a segment without one.
    pub(super) fn packets_left(&mut self) -> u64 {
        self.ledger = Ledger::new(self.ledger.block_size());
        if self.from > 0 {
            self.ledger.take(&pcap::file_header(self.link), &mut |_| {});
        }
        self.account(self.available());
        self.ledger.mark().packets
    }

    /// The buffers that hold nothing but what is safe.
    pub(super) fn release(&mut self) -> Vec<Filled> {
        let safe = self.safe_stream();
        let mut out = Vec::new();
        while let Some(piece) = self.pieces.front()
            && piece.start + piece.data.capacity() as u64 <= safe
            && self.pieces.len() > 1
        {
            out.extend(self.pieces.pop_front().map(|p| p.data));
        }
        out
    }

    pub(super) fn release_all(&mut self) -> Vec<Filled> {
        self.pieces.drain(..).map(|p| p.data).collect()
    }
}

/// A companion's name.
pub fn companion(name: &str, extension: &str) -> String {
    format!("{}.{extension}", name.strip_suffix(".pcap").unwrap_or(name))
}
