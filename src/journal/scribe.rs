//! The journal's lcore: packets from the workers' rings into staging buffers, in the order of their
//! time.

use std::time::Instant;

use dpdk::mbuf::free_burst;
use dpdk::memory::prefetch;
use dpdk::{Burst, Mbuf};

use super::admit::{Admission, Admit};
use super::block::GapReason;
use super::handover::Taker;
use super::places::{Places, places};
use super::stage::Stage;
use crate::status::{Counter, Counters, Turn};

/// Packets whose bytes are fetched ahead.
const AHEAD: usize = 4;

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
        self.rings.push(Ring { input, taken: Burst::new(), used: 0 });
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
        let mut written = true;
        taken.iter().skip(used).take(AHEAD).for_each(|p| prefetch(p.data()));
        while let Some(packet) = taken.get(used).filter(|p| p.timestamp_ns() <= until) {
            if let Some(later) = taken.get(used + AHEAD) {
                prefetch(later.data());
            }
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

    /// Writes one packet, or drops and counts it; false if it must wait for room.
    #[inline]
    fn write(&mut self, packet: &Mbuf) -> bool {
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
        if self.stage.append(meta.link, ns, wire_len, data).is_ok() {
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
        self.stage.dropped(reason, 1, ns, ns);
        true
    }
}
