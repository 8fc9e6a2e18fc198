//! The journal's lcore: packets from the workers' rings into chunks, in the order of their time.

use std::time::{Duration, Instant};

use dpdk::mbuf::free_burst;
use dpdk::{BURST, Burst, Mbuf, Meta};
use rtrb::Consumer;

use super::segment::{Chunk, Exchange};
use crate::status::{Counter, Counters, Turn};

/// Bytes before each packet in a pcap file.
const RECORD_HEADER: usize = 16;
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
    taken: Burst,
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
        self.rings.push(Ring { input, taken: Burst::new(), used: 0 });
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
                // Before looking: what is pushed after this is no sign of the end.
                let abandoned = ring.input.is_abandoned();
                let n = ring.input.slots().min(BURST);
                if let Ok(chunk) = ring.input.read_chunk(n) {
                    ring.taken.extend(chunk);
                }
                ended &= abandoned && ring.taken.is_empty();
            } else {
                ended = false;
            }
            taken += ring.taken.len() - ring.used;
        }
        while let Some((n, until)) = self.oldest() {
            if !self.append(n, until) {
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

    /// The ring whose next packet has the smallest time, and the next time of the others, up to
    /// which it may go on.
    fn oldest(&self) -> Option<(usize, u64)> {
        let mut heads = self
            .rings
            .iter()
            .enumerate()
            .filter_map(|(n, r)| Some((r.taken.get(r.used)?.timestamp_ns(), n)));
        let (mut first, mut until) = (heads.next()?, u64::MAX);
        for head in heads {
            let later = first.max(head);
            first = first.min(head);
            until = until.min(later.0);
        }
        Some((first.1, until))
    }

    /// Writes that ring's packets up to a time; false if one must wait for a chunk.
    fn append(&mut self, n: usize, until: u64) -> bool {
        let Some(ring) = self.rings.get_mut(n) else { return true };
        let (mut taken, mut used) = (std::mem::take(&mut ring.taken), ring.used);
        let mut written = true;
        while let Some(packet) = taken.get(used).filter(|p| p.timestamp_ns() <= until) {
            written = self.write(packet);
            if !written {
                break;
            }
            used += 1;
        }
        if used == taken.len() {
            // The buffers go back to the pool now, not at the next turn.
            free_burst(&mut taken);
            used = 0;
        }
        if let Some(ring) = self.rings.get_mut(n) {
            (ring.taken, ring.used) = (taken, used);
        }
        written
    }

    /// Writes one packet, or drops and counts it; false if it must wait for a chunk.
    fn write(&mut self, packet: &Mbuf) -> bool {
        let meta = packet.meta();
        let size = RECORD_HEADER + packet.len() as usize;
        match self.chunk_for(meta.link, size) {
            Some(at) => {
                if let Some((chunk, _)) = self.open.get_mut(at) {
                    write_record(packet, meta, chunk, &mut self.scratch);
                }
                true
            }
            None if self.waits => false,
            None => {
                self.counters.add(Counter::JournalOverload, 1);
                true
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

fn write_record(packet: &Mbuf, meta: Meta, chunk: &mut Chunk, scratch: &mut Vec<u8>) {
    let ns = packet.timestamp_ns();
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
    let words =
        [(ns / 1_000_000_000) as u32, (ns % 1_000_000_000) as u32, kept, meta.wire_len.max(kept)];
    let mut header = [0; RECORD_HEADER];
    for (to, word) in header.as_chunks_mut::<4>().0.iter_mut().zip(words) {
        *to = word.to_le_bytes();
    }
    chunk.records.extend_from_slice(&header);
    chunk.records.extend_from_slice(data);
    chunk.packets += 1;
}
