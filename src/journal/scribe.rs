//! The journal's lcore: packets from the workers' rings into chunks, in the order of their time.

use std::time::{Duration, Instant};

use arrayvec::ArrayVec;
use dpdk::Mbuf;
use rtrb::Consumer;

use super::segment::{Chunk, Exchange};
use crate::status::{Counter, Counters, Turn};

/// Bytes before each packet in a pcap file.
const RECORD_HEADER: usize = 16;
/// Packets taken from a ring at once.
const TAKE: usize = 64;
/// A chunk that is not full is handed over after this long.
const FLUSH: Duration = Duration::from_secs(1);

pub struct Scribe {
    rings: Vec<Ring>,
    exchange: Exchange,
    /// Open chunks, one for each link type seen.
    open: Vec<(Chunk, Instant)>,
    /// For packets of several segments.
    scratch: Vec<u8>,
    /// Wait for the disk instead of dropping.
    waits: bool,
    pub counters: Counters,
}

struct Ring {
    input: Consumer<Mbuf>,
    taken: ArrayVec<Mbuf, TAKE>,
    /// How many of `taken` were written.
    used: usize,
}

impl Scribe {
    pub(super) fn new(exchange: Exchange) -> Self {
        Self {
            rings: Vec::new(),
            exchange,
            open: Vec::new(),
            scratch: Vec::with_capacity(1 << 18),
            waits: false,
            counters: Counters::default(),
        }
    }

    /// Adds a worker's ring.
    pub fn attach(&mut self, input: Consumer<Mbuf>) {
        self.rings.push(Ring { input, taken: ArrayVec::new(), used: 0 });
    }

    /// Whether to wait for a slow disk, as when reading a file, or to drop and count.
    pub fn wait_for_disk(&mut self, waits: bool) {
        self.waits = waits;
    }

    /// Takes what the rings hold, merges it by time into chunks, hands full ones over.
    pub fn turn(&mut self) -> Turn {
        let mut taken = 0;
        let mut ended = true;
        for ring in &mut self.rings {
            if ring.used == ring.taken.len() {
                ring.taken.clear();
                ring.used = 0;
                // Before looking: what is pushed after this is no sign of the end.
                let abandoned = ring.input.is_abandoned();
                let n = ring.input.slots().min(TAKE);
                if let Ok(chunk) = ring.input.read_chunk(n) {
                    ring.taken.extend(chunk);
                }
                ended &= abandoned && ring.taken.is_empty();
            } else {
                ended = false;
            }
            taken += ring.taken.len() - ring.used;
        }
        while let Some(n) = self.oldest() {
            if !self.append(n) {
                return Turn::Idle;
            }
        }
        if ended {
            return if self.flush(true) { Turn::End } else { Turn::Idle };
        }
        if taken == 0 {
            self.flush(false);
            return Turn::Idle;
        }
        Turn::Busy
    }

    /// The ring whose next packet has the smallest time.
    fn oldest(&self) -> Option<usize> {
        self.rings
            .iter()
            .enumerate()
            .filter_map(|(n, r)| Some((r.taken.get(r.used)?.timestamp_ns(), n)))
            .min()
            .map(|(_, n)| n)
    }

    /// Writes that ring's next packet; false if it must wait for a chunk.
    fn append(&mut self, n: usize) -> bool {
        let Some(packet) = self.next_of(n) else { return true };
        let (link, size) = (packet.meta().link, RECORD_HEADER + packet.len() as usize);
        let Some(at) = self.chunk_for(link, size) else {
            if self.waits {
                return false;
            }
            self.counters.add(Counter::JournalOverload, 1);
            self.advance(n);
            return true;
        };
        let Self { rings, open, scratch, .. } = self;
        let (Some(ring), Some((chunk, _))) = (rings.get(n), open.get_mut(at)) else { return true };
        if let Some(packet) = ring.taken.get(ring.used) {
            write_record(packet, chunk, scratch);
        }
        self.advance(n);
        true
    }

    fn next_of(&self, n: usize) -> Option<&Mbuf> {
        self.rings.get(n).and_then(|r| r.taken.get(r.used))
    }

    fn advance(&mut self, n: usize) {
        if let Some(ring) = self.rings.get_mut(n) {
            ring.used += 1;
            if ring.used == ring.taken.len() {
                // The buffers go back to the pool now, not at the next turn.
                ring.taken.clear();
                ring.used = 0;
            }
        }
    }

    /// The open chunk of a link type with room for `size` bytes, or a new one if there is an empty
    /// one.
    fn chunk_for(&mut self, link: u16, size: usize) -> Option<usize> {
        if let Some(at) = self.open.iter().position(|(c, _)| c.link == link) {
            let full = self.open.get(at).is_some_and(|(c, _)| {
                c.packets > 0 && c.records.len() + size > self.exchange.limit
            });
            if !full {
                return Some(at);
            }
            self.hand_over(at);
        }
        let mut chunk = self.exchange.empty.try_recv().ok()?;
        chunk.link = link;
        self.open.push((chunk, Instant::now()));
        Some(self.open.len() - 1)
    }

    /// Hands over chunks that are old enough, or all; false if the writer cannot take one now.
    fn flush(&mut self, all: bool) -> bool {
        let mut at = 0;
        while let Some((_, since)) = self.open.get(at) {
            if all || since.elapsed() >= FLUSH {
                if !self.hand_over(at) {
                    return false;
                }
            } else {
                at += 1;
            }
        }
        true
    }

    /// There are no more chunks than the channel holds, so that it has room unless the writer is
    /// gone.
    fn hand_over(&mut self, at: usize) -> bool {
        let (chunk, since) = self.open.swap_remove(at);
        match self.exchange.full.try_send(chunk) {
            Ok(()) => true,
            Err(e) => {
                self.open.push((e.into_inner(), since));
                false
            }
        }
    }
}

fn write_record(packet: &Mbuf, chunk: &mut Chunk, scratch: &mut Vec<u8>) {
    let (ns, meta) = (packet.timestamp_ns(), packet.meta());
    let data = if packet.data().len() as u32 == packet.len() {
        packet.data()
    } else {
        scratch.clear();
        packet.segments().for_each(|s| scratch.extend_from_slice(s));
        scratch.as_slice()
    };
    if chunk.packets == 0 {
        chunk.first_ns = ns;
    }
    // The record header of draft-ietf-opsawg-pcap; pcap-file's own writer copies the data once more.
    let kept = data.len() as u32;
    let header =
        [(ns / 1_000_000_000) as u32, (ns % 1_000_000_000) as u32, kept, meta.wire_len.max(kept)];
    header.iter().for_each(|word| chunk.records.extend_from_slice(&word.to_le_bytes()));
    chunk.records.extend_from_slice(data);
    chunk.packets += 1;
}
