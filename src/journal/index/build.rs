//! The index of the segment being written, filled by the journal's lcore.
//!
//! All memory is set aside at the start; adding a packet allocates nothing, takes no lock and makes
//! no system call. What is there can be asked by other threads at any time: counts are published
//! with release order behind what they count.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use siphasher::sip::SipHasher13;

use super::key::{Key, Posting, read};
use super::{BLOCK_SHIFT, IndexKey, Limits};
use crate::flow::{flow_id, opening};
use crate::packet::tcp_flag::{ACK, SYN};
use crate::packet::{Brief, Frame, Link};

/// A pause after which a packet may have begun another flow of the same key.
const QUIET_NS: u64 = 10_000_000_000;
/// Postings and flows that one packet may need.
const MOST: usize = 3;
/// Offsets are of 32 bits; a segment ends before.
const LAST_OFFSET: u64 = u32::MAX as u64 - (1 << 20);
const VLAN_IDS: usize = 4096;
/// Bytes before each packet in a pcap file.
pub(super) const RECORD_HEADER: u64 = 16;

/// Words of a flow's row, a cache line: hash, key, time of the last packet.
const ROW: usize = 8;
const HASH: usize = 0;
const KEY: usize = 1;
const LAST: usize = 6;

/// What the packets of a block span.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Span {
    /// Where the first record that starts in the block is.
    pub(super) first: u32,
    pub(super) min_ns: u64,
    pub(super) max_ns: u64,
}

/// A segment's index while it is being built; any thread may read it.
pub struct OpenIndex {
    key: IndexKey,
    link: u16,
    /// Rows of eight words, a flow each, from where the first cache line starts.
    rows: Box<[AtomicU64]>,
    row_start: usize,
    /// Hash table: upper half of the hash, then the flow's number plus one.
    table: Box<[AtomicU64]>,
    /// Flow number, then the record's offset in the file.
    postings: Box<[AtomicU64]>,
    /// First packets of possible flows: flow number; flow id.
    birth_flows: Box<[AtomicU64]>,
    birth_ids: Box<[AtomicU64]>,
    /// VLAN id, then block.
    tags: Box<[AtomicU64]>,
    /// Three words a block: first record plus one, least and greatest time.
    blocks: Box<[AtomicU64]>,
    packets: AtomicU64,
    min_ns: AtomicU64,
    max_ns: AtomicU64,
    /// How much of each list is filled.
    flows: AtomicU32,
    posted: AtomicU32,
    births: AtomicU32,
    tagged: AtomicU32,
    block_count: AtomicU32,
}

/// Of each list as many words have their memory at once: the first burst must not wait for the system
/// to clear it.
const READY: usize = (2 << 20) / size_of::<AtomicU64>();

fn zeroed(n: usize) -> Box<[AtomicU64]> {
    // Pages that the system gives when they are touched.
    let list: Box<[AtomicU64]> = bytemuck::allocation::zeroed_slice_box(n);
    diskio::prefer_large_pages(&list);
    diskio::populate(list.get(..READY).unwrap_or(&list));
    list
}

/// The same for one that is read and written at random.
fn zeroed_at_random(n: usize) -> Box<[AtomicU64]> {
    let list = zeroed(n);
    diskio::populate(&list);
    list
}

fn get(list: &[AtomicU64], at: usize) -> u64 {
    list.get(at).map_or(0, |word| word.load(Ordering::Relaxed))
}

fn put(list: &[AtomicU64], at: usize, value: u64) {
    if let Some(word) = list.get(at) {
        word.store(value, Ordering::Relaxed);
    }
}

impl OpenIndex {
    fn new(key: &IndexKey, link: u16, limits: Limits) -> Self {
        let rows = zeroed((limits.flows + 1) * ROW);
        Self {
            key: key.clone(),
            link,
            row_start: rows.as_ptr().align_offset(64).min(ROW - 1),
            rows,
            table: zeroed_at_random((limits.flows * 2).next_power_of_two()),
            postings: zeroed(limits.packets),
            birth_flows: zeroed(limits.flows * 2),
            birth_ids: zeroed(limits.flows * 2),
            tags: zeroed(limits.packets / 8 + (1 << 16)),
            blocks: zeroed(3 << (32 - BLOCK_SHIFT)),
            packets: AtomicU64::new(0),
            min_ns: AtomicU64::new(u64::MAX),
            max_ns: AtomicU64::new(0),
            flows: AtomicU32::new(0),
            posted: AtomicU32::new(0),
            births: AtomicU32::new(0),
            tagged: AtomicU32::new(0),
            block_count: AtomicU32::new(0),
        }
    }

    /// Makes it empty again; touches only what was used.
    fn clear(&mut self, link: u16) {
        let zero = |list: &mut [AtomicU64], n: usize| {
            list.iter_mut().take(n).for_each(|word| *word.get_mut() = 0);
        };
        let flows = *self.flows.get_mut() as usize;
        zero(&mut self.rows, self.row_start + flows * ROW);
        if flows > 0 {
            zero(&mut self.table, usize::MAX);
        }
        zero(&mut self.blocks, *self.block_count.get_mut() as usize * 3);
        self.link = link;
        for count in [&mut self.flows, &mut self.posted, &mut self.births] {
            *count.get_mut() = 0;
        }
        *self.tagged.get_mut() = 0;
        *self.block_count.get_mut() = 0;
        *self.packets.get_mut() = 0;
        *self.min_ns.get_mut() = u64::MAX;
        *self.max_ns.get_mut() = 0;
    }

    /// LINKTYPE_ number of the segment.
    pub fn link(&self) -> u16 {
        self.link
    }

    /// The key that flows are hashed with.
    pub(super) fn index_key(&self) -> &IndexKey {
        &self.key
    }

    /// Packets added.
    pub fn packets(&self) -> u64 {
        self.packets.load(Ordering::Acquire)
    }

    /// Least and greatest time of the packets added; `None` before the first.
    pub fn times(&self) -> Option<(u64, u64)> {
        let (min, max) = (self.min_ns.load(Ordering::Acquire), self.max_ns.load(Ordering::Acquire));
        (min <= max).then_some((min, max))
    }

    /// Flows added, each with its number.
    pub(crate) fn flows(&self) -> usize {
        self.flows.load(Ordering::Acquire) as usize
    }

    fn row(&self, flow: usize, word: usize) -> u64 {
        get(&self.rows, self.row_start + flow * ROW + word)
    }

    fn set_row(&self, flow: usize, word: usize, value: u64) {
        put(&self.rows, self.row_start + flow * ROW + word, value);
    }

    pub(super) fn hash_of(&self, flow: usize) -> u64 {
        self.row(flow, HASH)
    }

    /// What flow number `flow` is.
    pub(crate) fn key_of(&self, flow: usize) -> Key {
        Key(std::array::from_fn(|n| self.row(flow, KEY + n)))
    }

    /// The number of a flow.
    pub(crate) fn find(&self, key: &Key) -> Option<u32> {
        self.probe(key, self.key.hash(key)).ok()
    }

    /// The entry of the table where a search for this hash begins.
    #[inline]
    fn entry(&self, hash: u64) -> Option<&AtomicU64> {
        self.table.get(hash as usize & (self.table.len() - 1))
    }

    /// The flow's number, or the free place of the table where it belongs.
    #[inline]
    fn probe(&self, key: &Key, hash: u64) -> Result<u32, usize> {
        let mask = self.table.len() - 1;
        let mut at = hash as usize & mask;
        loop {
            let word = self.table.get(at).map_or(0, |w| w.load(Ordering::Acquire));
            if word == 0 {
                return Err(at);
            }
            let flow = (word as u32).wrapping_sub(1);
            if (word ^ hash) >> 32 == 0 && self.key_of(flow as usize) == *key {
                return Ok(flow);
            }
            at = (at + 1) & mask;
        }
    }

    /// Postings so far: flow number and offset of the record, in the order of the file.
    pub(crate) fn postings(&self) -> impl ExactSizeIterator<Item = (u32, u32)> {
        let n = self.posted.load(Ordering::Acquire) as usize;
        self.postings.get(..n).unwrap_or_default().iter().map(|word| {
            let word = word.load(Ordering::Relaxed);
            ((word >> 32) as u32, word as u32)
        })
    }

    /// Flow number and flow id of each packet that may have begun a flow.
    pub(crate) fn births(&self) -> impl Iterator<Item = (u32, u64)> {
        let n = self.births.load(Ordering::Acquire) as usize;
        (0..n).map(|at| (get(&self.birth_flows, at) as u32, get(&self.birth_ids, at)))
    }

    /// VLAN id and block, each pair once.
    pub(super) fn tags(&self) -> impl Iterator<Item = (u32, u32)> {
        let n = self.tagged.load(Ordering::Acquire) as usize;
        self.tags.iter().take(n).map(|word| {
            let word = word.load(Ordering::Relaxed);
            ((word >> 32) as u32, word as u32)
        })
    }

    /// The blocks' spans; `None` for a block in which no record starts.
    pub(super) fn spans(&self) -> impl Iterator<Item = Option<Span>> {
        let n = self.block_count.load(Ordering::Acquire) as usize;
        (0..n).map(|block| {
            let first = get(&self.blocks, block * 3).checked_sub(1)? as u32;
            let (min_ns, max_ns) =
                (get(&self.blocks, block * 3 + 1), get(&self.blocks, block * 3 + 2));
            Some(Span { first, min_ns, max_ns })
        })
    }
}

/// A packet's flow, found out before the packet's turn, so that what it needs can be fetched.
#[derive(Clone, Copy, Debug)]
pub struct Foreseen {
    key: Key,
    hash: u64,
}

/// Fills an index, packet by packet; belongs to one thread.
pub struct IndexBuilder {
    shared: Arc<OpenIndex>,
    limits: Limits,
    hasher: SipHasher13,
    /// The flow of the packet before.
    last: (Key, u32),
    scratch: Option<Box<Posting>>,
    /// Last block, plus one, in which a VLAN id was seen.
    vlan_blocks: Box<[u32; VLAN_IDS]>,
    packets: u64,
    times: (u64, u64),
    flows: usize,
    posted: usize,
    births: usize,
    tagged: usize,
    /// The current block and what it spans.
    block: Option<(usize, Span)>,
    full: bool,
    incomplete: bool,
}

impl IndexBuilder {
    /// An index for a segment of a link type; its room is allocated here.
    pub fn new(key: &IndexKey, link: u16, limits: Limits) -> Self {
        let limits =
            Limits { packets: limits.packets.max(MOST * 2), flows: limits.flows.max(MOST * 2) };
        Self {
            shared: Arc::new(OpenIndex::new(key, link, limits)),
            limits,
            hasher: key.hasher(),
            last: (Key::default(), u32::MAX),
            scratch: Some(Box::default()),
            vlan_blocks: Box::new([0; VLAN_IDS]),
            packets: 0,
            times: (u64::MAX, 0),
            flows: 0,
            posted: 0,
            births: 0,
            tagged: 0,
            block: None,
            full: false,
            incomplete: false,
        }
    }

    /// Makes it ready for the next segment, on an ordinary thread. Memory is used again unless
    /// somebody still reads the old index.
    pub fn reset(&mut self, link: u16) {
        match Arc::get_mut(&mut self.shared) {
            Some(shared) => shared.clear(link),
            None => {
                let key = self.shared.key.clone();
                self.shared = Arc::new(OpenIndex::new(&key, link, self.limits));
            }
        }
        self.last = (Key::default(), u32::MAX);
        *self.vlan_blocks = [0; VLAN_IDS];
        (self.packets, self.times) = (0, (u64::MAX, 0));
        (self.flows, self.posted, self.births, self.tagged) = (0, 0, 0, 0);
        (self.block, self.full, self.incomplete) = (None, false, false);
    }

    /// Whether the segment must be sealed before the next packet.
    #[inline]
    pub fn is_full(&self) -> bool {
        self.full
    }

    /// Packets added.
    pub fn packets(&self) -> u64 {
        self.packets
    }

    /// The index as it grows, for other threads.
    pub fn shared(&self) -> Arc<OpenIndex> {
        Arc::clone(&self.shared)
    }

    /// Whether packets were added after it was full, which leaves it without them.
    pub(super) fn is_incomplete(&self) -> bool {
        self.incomplete
    }

    /// The flow of a common frame.
    #[inline]
    pub fn foresee(&self, frame: &Frame<'_>) -> Option<Foreseen> {
        let mut brief = Brief::default();
        if !brief.read(frame) {
            return None;
        }
        let key = Key::common(&brief);
        Some(Foreseen { key, hash: hash(&self.hasher, &key) })
    }

    /// What [`IndexBuilder::add`] reads first of all for this flow.
    #[inline]
    pub fn entry(&self, flow: &Foreseen) -> Option<&AtomicU64> {
        self.shared.entry(flow.hash)
    }

    /// What it reads then, as far as the first says it.
    #[inline]
    pub fn row(&self, flow: &Foreseen) -> Option<&AtomicU64> {
        let word = self.shared.entry(flow.hash)?.load(Ordering::Relaxed);
        let number = (word as u32).checked_sub(1)? as usize;
        self.shared.rows.get(self.shared.row_start + number * ROW)
    }

    /// Takes a record: where its header starts in the file, the bytes that are recorded, its time.
    ///
    /// `frame` has to be what the file says: the recorded bytes and the recorded length on the
    /// wire. Records come in the order of the file. `foreseen` spares work if it is the packet's.
    ///
    /// Returns the flow id that the packet gave a flow, if it may have begun one.
    #[inline]
    pub fn add(
        &mut self,
        at: u64,
        frame: &Frame<'_>,
        timestamp_ns: u64,
        foreseen: Option<&Foreseen>,
    ) -> Option<u64> {
        if self.full {
            self.incomplete = true;
            return None;
        }
        // As the file can say it.
        let seconds = timestamp_ns / 1_000_000_000 % (1 << 32);
        let timestamp_ns = seconds * 1_000_000_000 + timestamp_ns % 1_000_000_000;
        let link = Link::from_number(self.shared.link);
        let mut posting = self.scratch.take()?;
        let mut begins = None;
        read(&Frame { link, ..*frame }, &mut posting);
        let offset = at as u32;
        for (n, key) in posting.keys.iter().take(posting.count).enumerate() {
            let flow = self.flow(key, foreseen);
            if n == 0 {
                begins = self.note_birth(flow, key, &posting, timestamp_ns);
            }
            put(&self.shared.postings, self.posted, (u64::from(flow) << 32) | u64::from(offset));
            self.posted += 1;
        }
        self.note_place(at, &posting, timestamp_ns);
        self.scratch = Some(posting);
        self.packets += 1;
        self.publish();
        self.full = self.posted + MOST > self.shared.postings.len()
            || self.flows + MOST > self.limits.flows
            || self.births + MOST > self.shared.birth_ids.len()
            || self.tagged + MOST > self.shared.tags.len()
            || at > LAST_OFFSET;
        begins
    }

    fn publish(&self) {
        let s = &self.shared;
        s.packets.store(self.packets, Ordering::Relaxed);
        s.flows.store(self.flows as u32, Ordering::Release);
        s.posted.store(self.posted as u32, Ordering::Release);
    }

    /// The number of a flow, a new one if it was not seen in this segment.
    #[inline]
    fn flow(&mut self, key: &Key, foreseen: Option<&Foreseen>) -> u32 {
        if self.last.0 == *key && self.last.1 != u32::MAX {
            return self.last.1;
        }
        let hash = match foreseen {
            Some(foreseen) if foreseen.key == *key => foreseen.hash,
            _ => hash(&self.hasher, key),
        };
        let flow = match self.shared.probe(key, hash) {
            Ok(flow) => flow,
            Err(place) => self.create(key, hash, place),
        };
        self.last = (*key, flow);
        flow
    }

    fn create(&mut self, key: &Key, hash: u64, place: usize) -> u32 {
        let flow = self.flows;
        self.shared.set_row(flow, HASH, hash);
        for (n, word) in key.0.iter().enumerate() {
            self.shared.set_row(flow, KEY + n, *word);
        }
        if let Some(slot) = self.shared.table.get(place) {
            let word = (hash & !0xffff_ffff) | (flow as u64 + 1);
            slot.store(word, Ordering::Release);
        }
        self.flows += 1;
        flow as u32
    }

    /// Keeps the flow id that this packet would have given a flow, if it may have begun one.
    #[inline]
    fn note_birth(
        &mut self,
        flow: u32,
        key: &Key,
        posting: &Posting,
        timestamp_ns: u64,
    ) -> Option<u64> {
        let last = self.shared.row(flow as usize, LAST);
        self.shared.set_row(flow as usize, LAST, timestamp_ns.max(1));
        let tcp = posting.decoded.tcp;
        let syn = tcp.flags & (SYN | ACK) == SYN;
        if !(syn || last == 0 || timestamp_ns.saturating_sub(last) >= QUIET_NS)
            || key.kind() != super::key::Kind::Flow
        {
            return None;
        }
        let id = flow_id(&key.0, timestamp_ns, opening(tcp.flags, tcp.seq));
        put(&self.shared.birth_flows, self.births, u64::from(flow));
        put(&self.shared.birth_ids, self.births, id);
        self.births += 1;
        self.shared.births.store(self.births as u32, Ordering::Release);
        Some(id)
    }

    /// Times and tags by block.
    #[inline]
    fn note_place(&mut self, at: u64, posting: &Posting, timestamp_ns: u64) {
        let number = (at >> BLOCK_SHIFT) as usize;
        let s = &self.shared;
        if timestamp_ns < self.times.0 {
            self.times.0 = timestamp_ns;
            s.min_ns.store(timestamp_ns, Ordering::Relaxed);
        }
        if timestamp_ns > self.times.1 {
            self.times.1 = timestamp_ns;
            s.max_ns.store(timestamp_ns, Ordering::Release);
        }
        let span = match &mut self.block {
            Some((current, span)) if *current == number => {
                span.min_ns = span.min_ns.min(timestamp_ns);
                span.max_ns = span.max_ns.max(timestamp_ns);
                *span
            }
            _ => {
                let first = (at & ((1 << BLOCK_SHIFT) - 1)) as u32;
                let span = Span { first, min_ns: timestamp_ns, max_ns: timestamp_ns };
                self.block = Some((number, span));
                put(&s.blocks, number * 3, u64::from(first) + 1);
                span
            }
        };
        put(&s.blocks, number * 3 + 1, span.min_ns);
        put(&s.blocks, number * 3 + 2, span.max_ns);
        s.block_count.store(number as u32 + 1, Ordering::Release);
        for id in posting.decoded.vlans.ids() {
            let block = number as u32 + 1;
            let Some(last) = self.vlan_blocks.get_mut(usize::from(id)) else { continue };
            if std::mem::replace(last, block) != block {
                put(&s.tags, self.tagged, (u64::from(id) << 32) | u64::from(block - 1));
                self.tagged += 1;
                s.tagged.store(self.tagged as u32, Ordering::Release);
            }
        }
    }

    /// Doubles the room, for a segment whose size nobody chose.
    pub(super) fn grow(&mut self) {
        let limits = Limits { packets: self.limits.packets * 2, flows: self.limits.flows * 2 };
        let old = Arc::clone(&self.shared);
        let new = OpenIndex::new(&old.key, old.link, limits);
        let copy = |from: &[AtomicU64], to: &[AtomicU64], n: usize| {
            for (from, to) in from.iter().take(n).zip(to) {
                to.store(from.load(Ordering::Relaxed), Ordering::Relaxed);
            }
        };
        copy(&old.postings, &new.postings, self.posted);
        copy(&old.birth_flows, &new.birth_flows, self.births);
        copy(&old.birth_ids, &new.birth_ids, self.births);
        copy(&old.tags, &new.tags, self.tagged);
        copy(&old.blocks, &new.blocks, old.blocks.len());
        for flow in 0..self.flows {
            (0..ROW).for_each(|word| new.set_row(flow, word, old.row(flow, word)));
            let hash = old.hash_of(flow);
            if let Err(place) = new.probe(&old.key_of(flow), hash) {
                put(&new.table, place, (hash & !0xffff_ffff) | (flow as u64 + 1));
            }
        }
        new.min_ns.store(self.times.0, Ordering::Relaxed);
        new.max_ns.store(self.times.1, Ordering::Relaxed);
        new.births.store(self.births as u32, Ordering::Relaxed);
        new.tagged.store(self.tagged as u32, Ordering::Relaxed);
        let blocks = old.block_count.load(Ordering::Relaxed);
        new.block_count.store(blocks, Ordering::Relaxed);
        self.limits = limits;
        self.shared = Arc::new(new);
        self.publish();
        self.full = false;
    }
}

/// SipHash-1-3 of a key's words.
#[inline]
pub(in crate::journal) fn hash(hasher: &SipHasher13, key: &Key) -> u64 {
    let mut bytes = [0; 40];
    for (to, word) in bytes.as_chunks_mut::<8>().0.iter_mut().zip(key.0) {
        *to = word.to_le_bytes();
    }
    hasher.hash(&bytes)
}
