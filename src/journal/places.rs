//! Where flows begin in the journal, for who reports them.
//!
//! The journal's lcore tells of each packet that may have begun a flow, by the id that it gave it; the
//! index computes that id anyway. Whoever reports flows looks theirs up. Ids of packets that began
//! no flow are never asked for and are forgotten with time, as is what was not asked for while as
//! many flows again began: memory is bounded. A live lcore never waits; what finds no room here has
//! no place.
//!
//! Limits: a flow whose first packet was filtered out or dropped has no place. Where the disk refused,
//! the packets of a segment from its last sync on are in a later one: a place may then lie behind
//! its file's end, and the flow id finds the packets.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use rtrb::{Consumer, Producer, RingBuffer};

use crate::event::Place;

/// Births between the lcore and who asks: what begins in 50 ms of a flood.
const RING: usize = 1 << 15;
/// Flows known at once, twice that at most.
const FLOWS: usize = 1 << 19;

/// A packet that may have begun a flow.
#[derive(Clone, Copy, Debug)]
pub struct Birth {
    pub flow_id: u64,
    pub place: Place,
}

/// A way from the journal's lcore.
pub fn places() -> (Producer<Birth>, Places) {
    let (births, told) = RingBuffer::new(RING);
    (births, Places { told, recent: HashMap::new(), older: HashMap::new(), most: FLOWS })
}

/// The places of flows by their id.
pub struct Places {
    told: Consumer<Birth>,
    recent: HashMap<u64, Place>,
    older: HashMap<u64, Place>,
    most: usize,
}

impl Places {
    /// Takes in what was told; how much that was.
    pub fn learn(&mut self) -> usize {
        let n = self.told.slots();
        for _ in 0..n {
            let Ok(Birth { flow_id, place }) = self.told.pop() else { break };
            self.keep(flow_id, place);
        }
        n
    }

    fn keep(&mut self, flow_id: u64, place: Place) {
        if self.recent.len() >= self.most {
            self.older = std::mem::take(&mut self.recent);
        }
        self.recent.entry(flow_id).or_insert(place);
    }

    /// The place of a flow's first packet; forgotten afterwards if the flow ends.
    pub fn of(&mut self, flow_id: u64, ends: bool) -> Option<Place> {
        if !ends && let Some(place) = self.recent.get(&flow_id) {
            return Some(*place);
        }
        let place = self.recent.remove(&flow_id).or_else(|| self.older.remove(&flow_id))?;
        if !ends {
            self.keep(flow_id, place);
        }
        Some(place)
    }
}

/// How many of a worker's packets the journal is done with: written, left out, or lost.
#[derive(Clone, Debug, Default)]
pub struct Progress(Arc<AtomicU64>);

impl Progress {
    /// Everything that was told of these packets can be learned when this is read.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Acquire)
    }

    /// Called by the journal's lcore alone.
    #[inline]
    pub(super) fn set(&self, packets: u64) {
        self.0.store(packets, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_flow_keeps_its_place_and_what_is_not_asked_for_is_forgotten() {
        let (mut births, mut places) = places();
        places.most = 10;
        let place = |n| Place { segment: n, offset: n };
        let mut tell = |places: &mut Places, n| {
            births.push(Birth { flow_id: n, place: place(n) }).unwrap();
            assert_eq!(places.learn(), 1);
        };
        tell(&mut places, 1);
        for n in 2..100 {
            tell(&mut places, n);
            assert_eq!(places.of(1, false), Some(place(1)), "{n}");
            assert!(places.recent.len() + places.older.len() <= 20);
        }
        assert_eq!(places.of(2, false), None);
        assert_eq!(places.of(99, true), Some(place(99)));
        assert_eq!(places.of(99, true), None, "it ended");
        assert_eq!((places.of(1, true), places.of(1, true)), (Some(place(1)), None));
    }
}
