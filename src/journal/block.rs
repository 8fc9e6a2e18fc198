//! Block records: checksums of a segment, and the gaps in it, in a file of their own (`.blk`).
//!
//! The file is a sequence of 32-byte records, little-endian, only ever appended to. The last four
//! bytes of each are the CRC-32C of the 28 before and of the segment's number, so that a record is
//! believed by itself: one that is torn, lost or of another segment is passed over.
//!
//! | first word | record |
//! |---|---|
//! | 0x80000001 | [`Head`]: block size, the boot during which the segment was begun |
//! | 0x90000000 + reason | [`Gap`]: packets that were not journaled |
//! | 0xa0000000 | bytes from here on were kept without a checksum to prove them |
//! | less than 0x80000000 | [`Block`]: checksum and times of a block's first bytes |
//!
//! A block that was not full when the disk was synced has a later record that covers more of it.
//! A record is written before the data it covers is known to be on disk: it proves the data, the
//! watermark promises it.

use std::collections::BTreeMap;

use super::pcap;

/// Bytes of a record.
pub const RECORD: usize = 32;
/// Bytes of the segment that a block holds.
pub const BLOCK: u32 = 1 << 18;

const HEAD: u32 = 0x8000_0001;
const GAP: u32 = 0x9000_0000;
const UNVERIFIED: u32 = 0xa000_0000;
const KIND: u32 = 0xf000_0000;
const NO_FIRST: u32 = u32::MAX;

/// The boot of the machine, as the kernel names it: 16 bytes.
pub type Boot = [u8; 16];

/// What holds for the whole segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    /// Bytes of a block.
    pub block: u32,
    /// While this boot lasts, what was written cannot have been lost.
    pub boot: Boot,
}

/// A block's first `covered` bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Block {
    /// The block starts at this times the block size.
    pub number: u32,
    /// Bytes that the checksum covers.
    pub covered: u32,
    /// Where in the block the first packet record starts, if one does.
    pub first: Option<u32>,
    /// Times of the packet records whose header ends in the block, nanoseconds since 1970; the
    /// later is rounded up to a microsecond, and is `u64::MAX` where the two are over an hour apart.
    pub times: Option<(u64, u64)>,
    /// CRC-32C of the covered bytes.
    pub crc: u32,
}

/// Why packets are missing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum GapReason {
    /// The disk, or the journal's lcore, was slower than the wire.
    Overload = 1,
    /// The disk refused.
    NoSpace = 2,
}

impl GapReason {
    pub fn name(self) -> &'static str {
        match self {
            Self::Overload => "overload",
            Self::NoSpace => "no_space",
        }
    }
}

/// Packets that were received between two times, both included, and are not in the journal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gap {
    pub reason: GapReason,
    pub packets: u32,
    pub from_ns: u64,
    pub to_ns: u64,
}

/// One record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Record {
    Head(Head),
    Block(Block),
    Gap(Gap),
    Unverified { from: u64 },
}

impl Record {
    /// The record's bytes in the file of segment `segment`.
    pub fn encode(&self, segment: u64) -> [u8; RECORD] {
        let mut out = Writer { bytes: [0; RECORD], at: 0 };
        match self {
            Self::Head(h) => out.u32(HEAD).u32(h.block).put(&h.boot),
            Self::Gap(g) => {
                out.u32(GAP + g.reason as u32).u32(g.packets).u64(g.from_ns).u64(g.to_ns)
            }
            Self::Unverified { from } => out.u32(UNVERIFIED).u64(*from),
            Self::Block(b) => {
                let (min, max) = b.times.unwrap_or((u64::MAX, u64::MAX));
                let span = u32::try_from((max - min).div_ceil(1000)).unwrap_or(u32::MAX);
                let first = b.first.unwrap_or(NO_FIRST);
                out.u32(b.number).u32(b.covered).u32(first).u64(min).u32(span).u32(b.crc)
            }
        };
        out.at = RECORD - 4;
        let own = checksum(&out.bytes, segment);
        out.u32(own);
        out.bytes
    }

    /// The record in these bytes, if it is a whole one of this segment.
    pub fn decode(bytes: &[u8; RECORD], segment: u64) -> Option<Self> {
        let word = |at: usize| -> u32 {
            bytes.get(at..at + 4).and_then(|b| b.try_into().ok()).map_or(0, u32::from_le_bytes)
        };
        let long = |at: usize| u64::from(word(at)) | u64::from(word(at + 4)) << 32;
        if word(RECORD - 4) != checksum(bytes, segment) {
            return None;
        }
        match word(0) {
            HEAD => {
                let boot = bytes.get(8..24)?.try_into().ok()?;
                Some(Self::Head(Head { block: word(4), boot }))
            }
            UNVERIFIED => Some(Self::Unverified { from: long(4) }),
            kind if kind & KIND == GAP => {
                let reason = match kind - GAP {
                    1 => GapReason::Overload,
                    2 => GapReason::NoSpace,
                    _ => return None,
                };
                let (from_ns, to_ns) = (long(8), long(16));
                Some(Self::Gap(Gap { reason, packets: word(4), from_ns, to_ns }))
            }
            number if number & 0x8000_0000 == 0 => {
                let (min, span) = (long(12), word(20));
                let max = match span {
                    u32::MAX => u64::MAX,
                    us => min.saturating_add(u64::from(us) * 1000),
                };
                Some(Self::Block(Block {
                    number,
                    covered: word(4),
                    first: Some(word(8)).filter(|&at| at != NO_FIRST),
                    times: (min != u64::MAX).then_some((min, max)),
                    crc: word(24),
                }))
            }
            _ => None,
        }
    }
}

fn checksum(record: &[u8; RECORD], segment: u64) -> u32 {
    let body = record.split_last_chunk::<4>().map_or(&[][..], |(body, _)| body);
    crc32c::crc32c_append(crc32c::crc32c(&segment.to_le_bytes()), body)
}

struct Writer {
    bytes: [u8; RECORD],
    at: usize,
}

impl Writer {
    fn put(&mut self, bytes: &[u8]) -> &mut Self {
        if let Some(to) = self.bytes.get_mut(self.at..self.at + bytes.len()) {
            to.copy_from_slice(bytes);
        }
        self.at += bytes.len();
        self
    }

    fn u32(&mut self, n: u32) -> &mut Self {
        self.put(&n.to_le_bytes())
    }

    fn u64(&mut self, n: u64) -> &mut Self {
        self.put(&n.to_le_bytes())
    }
}

/// A `.blk` file as read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Blocks {
    pub head: Option<Head>,
    /// Every record of each block, in the order written.
    pub blocks: BTreeMap<u32, Vec<Block>>,
    pub gaps: Vec<Gap>,
    /// Where the bytes begin that no checksum proved when the segment was repaired.
    pub unverified_from: Option<u64>,
}

/// Reads the records of segment `segment`; what is damaged is passed over.
pub fn read(bytes: &[u8], segment: u64) -> Blocks {
    let mut out = Blocks::default();
    for record in bytes.as_chunks::<RECORD>().0 {
        match Record::decode(record, segment) {
            Some(Record::Head(head)) => out.head = Some(head),
            Some(Record::Block(b)) => out.blocks.entry(b.number).or_default().push(b),
            Some(Record::Gap(gap)) => out.gaps.push(gap),
            Some(Record::Unverified { from }) => out.unverified_from = Some(from),
            None => {}
        }
    }
    out
}

impl Blocks {
    /// Bytes of a block.
    pub fn size(&self) -> u32 {
        self.head.map_or(BLOCK, |h| h.block).max(1)
    }

    /// The earliest and latest time of a packet, as far as the records know.
    pub fn times(&self) -> Option<(u64, u64)> {
        let times = self.blocks.values().flatten().filter_map(|b| b.times);
        times.reduce(|a, b| (a.0.min(b.0), a.1.max(b.1)))
    }
}

/// The end of the last whole packet record so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Mark {
    /// Its position in the segment.
    pub end: u64,
    /// Packets up to there.
    pub packets: u64,
    /// The latest time of a packet up to there, nanoseconds since 1970.
    pub latest_ns: u64,
}

/// Reads a segment's bytes as they are written, from the first on, and makes the block records.
///
/// It also walks from one packet record to the next and stops at the first header that cannot be
/// one ([`pcap::RecordHeader::is_plausible`]).
#[derive(Clone, Debug)]
pub struct Ledger {
    size: u32,
    /// Bytes taken.
    at: u64,
    /// Where the next packet record starts.
    next: u64,
    /// The record header that is being collected.
    header: [u8; pcap::RECORD_HEADER],
    mark: Mark,
    /// Packets and latest time of the records begun, the last one perhaps not whole.
    begun: (u64, u64),
    broken: bool,
    open: Block,
    /// The open block, or the one before, as it was at the mark.
    marked: Block,
}

impl Ledger {
    /// For blocks of `size` bytes.
    pub fn new(size: u32) -> Self {
        Self {
            size: size.max(1),
            at: 0,
            next: pcap::FILE_HEADER as u64,
            header: [0; pcap::RECORD_HEADER],
            mark: Mark::default(),
            begun: (0, 0),
            broken: false,
            open: empty(0),
            marked: empty(0),
        }
    }

    /// Bytes of a block.
    pub fn block_size(&self) -> u32 {
        self.size
    }

    /// Bytes taken so far.
    pub fn at(&self) -> u64 {
        self.at
    }

    /// The end of the last whole packet record.
    pub fn mark(&self) -> Mark {
        self.mark
    }

    /// Whether there was a header that cannot be one; the mark stays before it.
    pub fn is_broken(&self) -> bool {
        self.broken
    }

    /// The record of the block in which the last whole packet record ends, up to there; `None` if
    /// that is the end of the block, whose record is among the full ones.
    pub fn marked(&self) -> Option<Block> {
        (self.marked.covered > 0 && self.marked.covered < self.size).then_some(self.marked)
    }

    /// Takes the next bytes; full blocks go to `full`.
    pub fn take(&mut self, mut bytes: &[u8], full: &mut impl FnMut(Block)) {
        while !bytes.is_empty() {
            let room = (self.size - self.open.covered) as usize;
            let (part, rest) = bytes.split_at(room.min(bytes.len()));
            let at = self.at;
            self.walk(part);
            let whole = self.mark.end.saturating_sub(at) as usize;
            let (to_mark, behind) = part.split_at_checked(whole).unwrap_or((part, &[]));
            self.add(to_mark);
            if !to_mark.is_empty() && whole <= part.len() {
                self.marked = self.open;
            }
            self.add(behind);
            if self.open.covered == self.size {
                full(self.open);
                self.open = empty(self.open.number + 1);
            }
            bytes = rest;
        }
    }

    fn add(&mut self, bytes: &[u8]) {
        self.open.crc = crc32c::crc32c_append(self.open.crc, bytes);
        self.open.covered += bytes.len() as u32;
        self.at += bytes.len() as u64;
    }

    /// Walks the packet records that start or end in this part of the open block.
    fn walk(&mut self, part: &[u8]) {
        let end = self.at + part.len() as u64;
        while !self.broken {
            if self.next <= end {
                self.mark = Mark { end: self.next, packets: self.begun.0, latest_ns: self.begun.1 };
            }
            // The header may lie in this part, before it in part, or behind it in part.
            let from = self.next.max(self.at);
            let header_end = self.next + pcap::RECORD_HEADER as u64;
            if from >= end {
                break;
            }
            if self.next >= self.at && self.open.first.is_none() {
                let block_start = u64::from(self.open.number) * u64::from(self.size);
                self.open.first = Some((self.next - block_start) as u32);
            }
            let to = header_end.min(end);
            let there = part.get((from - self.at) as usize..(to - self.at) as usize);
            let here = self.header.get_mut((from - self.next) as usize..(to - self.next) as usize);
            if let (Some(here), Some(there)) = (here, there) {
                here.copy_from_slice(there);
            }
            if to < header_end {
                break;
            }
            let header = pcap::RecordHeader::decode(&self.header);
            if !header.is_plausible() {
                self.broken = true;
                break;
            }
            self.next = header_end + u64::from(header.captured);
            let ns = header.timestamp_ns();
            self.begun = (self.begun.0 + 1, self.begun.1.max(ns));
            let (min, max) = self.open.times.unwrap_or((ns, ns));
            self.open.times = Some((min.min(ns), max.max(ns)));
        }
    }
}

fn empty(number: u32) -> Block {
    Block { number, covered: 0, first: None, times: None, crc: 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_read_back_and_a_damaged_or_foreign_one_is_not() {
        let block = Block {
            number: 1234,
            covered: 262_144,
            first: Some(17),
            times: Some((1_700_000_000_000_000_123, 1_700_000_000_000_001_123)),
            crc: 0xdead_beef,
        };
        let gap = Gap { reason: GapReason::NoSpace, packets: 9, from_ns: 5, to_ns: 6 };
        for record in [
            Record::Head(Head { block: BLOCK, boot: *b"0123456789abcdef" }),
            Record::Block(block),
            Record::Block(Block { first: None, times: None, ..block }),
            Record::Gap(gap),
            Record::Unverified { from: 1 << 33 },
        ] {
            let bytes = record.encode(42);
            assert_eq!(Record::decode(&bytes, 42), Some(record));
            assert_eq!(Record::decode(&bytes, 43), None);
            for bit in 0..RECORD * 8 {
                let mut damaged = bytes;
                damaged[bit / 8] ^= 1 << (bit % 8);
                assert_eq!(Record::decode(&damaged, 42), None, "bit {bit}");
            }
        }
    }

    #[test]
    fn the_ledger_finds_the_same_however_the_bytes_come() {
        let mut stream = pcap::file_header(1).to_vec();
        let mut ends = vec![stream.len() as u64];
        for n in 0..200u32 {
            let data = vec![n as u8; (n * 7 % 90) as usize];
            let header = pcap::RecordHeader::new(u64::from(n) * 1000, data.len() as u32, 100);
            stream.extend(header.encode());
            stream.extend(data);
            ends.push(stream.len() as u64);
        }
        for size in [16, 100, 1024, 1 << 20] {
            let mut whole = (Ledger::new(size), Vec::new());
            whole.0.take(&stream, &mut |b| whole.1.push(b));
            for step in [1, 3, 16, 1000] {
                let mut parts = (Ledger::new(size), Vec::new());
                for (n, part) in stream.chunks(step).enumerate() {
                    parts.0.take(part, &mut |b| parts.1.push(b));
                    let at = (n * step + part.len()) as u64;
                    let mark = parts.0.mark();
                    let expected = ends.iter().rfind(|&&end| end <= at).copied().unwrap_or(0);
                    assert_eq!((mark.end, parts.0.at()), (expected, at));
                    if let Some(b) = parts.0.marked() {
                        let start = u64::from(b.number) * u64::from(size);
                        let bytes = &stream[start as usize..][..b.covered as usize];
                        assert_eq!(
                            (crc32c::crc32c(bytes), start + u64::from(b.covered)),
                            (b.crc, expected)
                        );
                    }
                }
                assert_eq!(parts.1, whole.1, "blocks of {size}, {step} bytes at once");
                assert_eq!(parts.0.mark(), whole.0.mark());
            }
            assert_eq!(whole.0.mark().packets, 200);
        }
    }

    #[test]
    fn a_header_that_cannot_be_one_ends_the_walk() {
        let mut stream = pcap::file_header(1).to_vec();
        stream.extend(pcap::RecordHeader::new(5, 2, 2).encode());
        stream.extend([1, 2]);
        let good = stream.len() as u64;
        stream.extend([0; 64]);
        let mut ledger = Ledger::new(BLOCK);
        ledger.take(&stream, &mut |_| {});
        assert!(ledger.is_broken());
        assert_eq!(ledger.mark(), Mark { end: good, packets: 1, latest_ns: 5 });
    }
}
