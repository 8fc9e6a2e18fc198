//! The journal's lcore: packets from the workers' rings into staging buffers, in the order of their
//! time.

use std::time::Instant;

use dpdk::mbuf::free_burst;
use dpdk::memory::prefetch;
use dpdk::{BURST, Burst, Mbuf};

use super::admit::{Admission, Admit};
use super::block::GapReason;
use super::handover::Taker;
use super::index::Foreseen;
use super::places::{Places, places};
use super::stage::Stage;
use crate::packet::Frame;
use crate::status::{Counter, Counters, Turn};

/// So many packets before a packet's turn its bytes are fetched, then the index's entry of its flow,
/// then what that leads to: each takes as long as the copying of a few packets.
const BYTES_AHEAD: usize = 9;
const ENTRY_AHEAD: usize = 6;
const ROW_AHEAD: usize = 3;

pub struct Scribe {
    rings: Vec<Ring>,
    stage: Stage,
    admission: Admission,
    /// For packets of several segments.
    scratch: Vec<u8>,
    /// Wait for the disk instead of dropping.
    waits: bool,
    pub counters: Counters,
}

struct Ring {
    input: Taker,
    taken: Burst,
    /// How many of `taken` were written.
    used: usize,
    ahead: Ahead,
}

/// What is known of a burst's packets whose turn has not come.
#[derive(Default)]
struct Ahead {
    flows: Vec<Option<Foreseen>>,
    /// Packets whose bytes were fetched, and packets whose row was.
    bytes: usize,
    rows: usize,
}

impl Ahead {
    /// Fetches what the packets from this one on will need.
    #[inline]
    fn look(&mut self, taken: &Burst, used: usize, stage: &Stage) {
        while let Some(packet) = taken.get(self.bytes).filter(|_| self.bytes <= used + BYTES_AHEAD)
        {
            prefetch(packet.data());
            self.bytes += 1;
        }
        while let Some(packet) =
            taken.get(self.flows.len()).filter(|_| self.flows.len() <= used + ENTRY_AHEAD)
        {
            self.flows.push(foresee(packet, stage));
        }
        while let Some(packet) = taken.get(self.rows).filter(|_| self.rows <= used + ROW_AHEAD) {
            let flow = self.flows.get(self.rows).and_then(Option::as_ref);
            let index = flow.zip(stage.index(packet.meta().link));
            if let Some(row) = index.and_then(|(flow, (index, _))| index.row(flow)) {
                prefetch(row);
            }
            self.rows += 1;
        }
    }

    fn clear(&mut self) {
        self.flows.clear();
        (self.bytes, self.rows) = (0, 0);
    }
}

/// Finds out a packet's flow and fetches the index's entry of it.
#[inline]
fn foresee(packet: &Mbuf, stage: &Stage) -> Option<Foreseen> {
    let (data, meta) = (packet.data(), packet.meta());
    let (index, link) = stage.index(meta.link)?;
    let frame = Frame { data, wire_len: meta.wire_len, wire_len_known: true, link };
    let flow = index.foresee(&frame)?;
    prefetch(index.entry(&flow)?);
    Some(flow)
}

impl Scribe {
    pub(super) fn new(stage: Stage, admission: Admission) -> Self {
        Self {
            rings: Vec::new(),
            stage,
            admission,
            scratch: Vec::with_capacity(1 << 18),
            waits: false,
            counters: Counters::default(),
        }
    }

    /// Adds a worker's ring.
    pub fn attach(&mut self, input: Taker) {
        let ahead = Ahead { flows: Vec::with_capacity(BURST), ..Ahead::default() };
        self.rings.push(Ring { input, taken: Burst::new(), used: 0, ahead });
    }

    /// Tells where flows begin from now on.
    pub fn tell_places(&mut self) -> Places {
        let (births, places) = places();
        self.stage.tell_births(births);
        places
    }

    /// For a source that waits for us: wait for a slow disk instead of dropping and counting, and
    /// do not end files by age, since time passes as fast as the source can be read.
    pub fn wait_for_disk(&mut self, waits: bool) {
        self.waits = waits;
        if waits {
            self.stage.set_age_limit(None);
        }
    }

    /// Takes what the rings hold and merges it by time into the staging buffers.
    pub fn turn(&mut self) -> Turn {
        self.admission.tend();
        let mut taken = 0;
        let mut ended = true;
        for ring in &mut self.rings {
            if let Some(loss) = ring.input.losses() {
                // The worker counted them.
                self.stage.dropped(GapReason::Overload, loss.packets, loss.from_ns, loss.to_ns);
            }
            if ring.used == ring.taken.len() {
                ended &= ring.input.take(&mut ring.taken);
            } else {
                ended = false;
            }
            taken += ring.taken.len() - ring.used;
        }
        let mut must_wait = false;
        while !must_wait && let Some((n, until)) = self.oldest() {
            must_wait = !self.append(n, until);
        }
        self.rings.iter_mut().for_each(|r| r.input.done_but(r.taken.len() - r.used));
        if must_wait {
            self.stage.tend(Instant::now());
            return Turn::Idle;
        }
        if ended {
            self.stage.end_all();
            return Turn::End;
        }
        self.stage.tend(Instant::now());
        if taken == 0 { Turn::Idle } else { Turn::Busy }
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

    /// Writes that ring's packets up to a time; false if one must wait for room.
    fn append(&mut self, n: usize, until: u64) -> bool {
        let Some(ring) = self.rings.get_mut(n) else { return true };
        let (mut taken, mut used) = (std::mem::take(&mut ring.taken), ring.used);
        let mut ahead = std::mem::take(&mut ring.ahead);
        let mut written = true;
        while let Some(packet) = taken.get(used).filter(|p| p.timestamp_ns() <= until) {
            ahead.look(&taken, used, &self.stage);
            written = self.write(packet, ahead.flows.get(used).and_then(Option::as_ref));
            if !written {
                break;
            }
            used += 1;
        }
        if used == taken.len() {
            // The buffers go back to the pool now, not at the next turn.
            free_burst(&mut taken);
            ahead.clear();
            used = 0;
        }
        if let Some(ring) = self.rings.get_mut(n) {
            (ring.taken, ring.used, ring.ahead) = (taken, used, ahead);
        }
        written
    }

    /// Writes one packet, or drops and counts it; false if it must wait for room.
    #[inline]
    fn write(&mut self, packet: &Mbuf, foreseen: Option<&Foreseen>) -> bool {
        let (meta, ns) = (packet.meta(), packet.timestamp_ns());
        let data = if packet.data().len() as u32 == packet.len() {
            packet.data()
        } else {
            self.scratch.clear();
            packet.segments().for_each(|s| self.scratch.extend_from_slice(s));
            self.scratch.as_slice()
        };
        let data = match self.admission.admit(meta.link, ns, meta.wire_len, data) {
            Admit::Keep(n) => data.get(..n).unwrap_or(data),
            Admit::Filtered => {
                self.counters.add(Counter::JournalFiltered, 1);
                return true;
            }
        };
        if self.waits && self.stage.is_telling_too_much() {
            return false;
        }
        // A driver may know less of the length on the wire than came.
        let wire_len = meta.wire_len.max(packet.len());
        if self.stage.append(meta.link, ns, wire_len, data, foreseen).is_ok() {
            self.admission.kept();
            let cut = packet.len() - data.len() as u32;
            self.counters.add(Counter::JournalCut, u64::from(cut > 0));
            self.counters.add(Counter::JournalCutBytes, u64::from(cut));
            return true;
        }
        let refused = self.stage.is_refused();
        if self.waits && !refused {
            return false;
        }
        let (reason, counter) = match refused {
            true => (GapReason::NoSpace, Counter::JournalNoSpace),
            false => (GapReason::Overload, Counter::JournalOverload),
        };
        self.counters.add(counter, 1);
        self.counters.add(Counter::JournalDiskBehind, u64::from(!refused));
        self.stage.dropped(reason, 1, ns, ns);
        true
    }
}
