//! A timer wheel of one level, linked through the flows' own records.
//!
//! A slot is 2^28 ns (268 ms) wide and the wheel 1,024 slots (275 s) round; a later deadline waits
//! in the last slot and is put in again when that comes up. Setting a later deadline costs nothing:
//! the flow is moved only when its slot comes up too early.

use super::index::NONE;

const SLOT_BITS: u32 = 28;
const SLOTS: u64 = 1024;
const NO_SLOT: u16 = u16::MAX;

/// The links of one entry.
#[derive(Clone, Copy, Debug)]
pub(super) struct Link {
    next: u32,
    prev: u32,
    slot: u16,
}

impl Link {
    pub(super) const UNLINKED: Self = Self { next: NONE, prev: NONE, slot: NO_SLOT };
}

/// Gives access to the entries' links.
pub(super) trait Links {
    fn link(&mut self, place: u32) -> &mut Link;
}

pub(super) struct Wheel {
    heads: Box<[u32]>,
    /// The first slot, counted from time zero, that was not worked off yet.
    cursor: u64,
    started: bool,
}

impl Wheel {
    pub(super) fn new() -> Self {
        Self { heads: vec![NONE; SLOTS as usize].into(), cursor: 0, started: false }
    }

    /// Puts an entry in by its deadline, nanoseconds.
    pub(super) fn insert(&mut self, links: &mut impl Links, place: u32, deadline: u64) {
        let absolute =
            (deadline >> SLOT_BITS).clamp(self.cursor, self.cursor.saturating_add(SLOTS - 1));
        let slot = (absolute % SLOTS) as u16;
        let Some(head) = self.heads.get_mut(usize::from(slot)) else { return };
        let next = *head;
        *head = place;
        *links.link(place) = Link { next, prev: NONE, slot };
        if next != NONE {
            links.link(next).prev = place;
        }
    }

    /// Takes an entry out.
    pub(super) fn remove(&mut self, links: &mut impl Links, place: u32) {
        let Link { next, prev, slot } = *links.link(place);
        if slot == NO_SLOT {
            return;
        }
        if prev == NONE {
            if let Some(head) = self.heads.get_mut(usize::from(slot)) {
                *head = next;
            }
        } else {
            links.link(prev).next = next;
        }
        if next != NONE {
            links.link(next).prev = prev;
        }
        *links.link(place) = Link::UNLINKED;
    }

    /// Starts the wheel at the first packet's time.
    pub(super) fn start(&mut self, now: u64) {
        if !self.started {
            self.started = true;
            self.cursor = now >> SLOT_BITS;
        }
    }

    /// Whether a slot before `now` waits to be worked off.
    #[inline]
    pub(super) fn is_behind(&self, now: u64) -> bool {
        self.cursor < now >> SLOT_BITS
    }

    /// The next entry of the slots that are wholly before `now`, taken out; `None` when all are
    /// worked off.
    pub(super) fn pop(&mut self, links: &mut impl Links, now: u64) -> Option<u32> {
        let target = now >> SLOT_BITS;
        // After a jump of more than a round each slot needs one visit only.
        self.cursor = self.cursor.max(target.saturating_sub(SLOTS));
        while self.cursor < target {
            let slot = (self.cursor % SLOTS) as usize;
            match self.heads.get(slot).copied() {
                Some(place) if place != NONE => {
                    self.remove(links, place);
                    return Some(place);
                }
                _ => self.cursor += 1,
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Slab(Vec<Link>);
    impl Links for Slab {
        fn link(&mut self, place: u32) -> &mut Link {
            &mut self.0[place as usize]
        }
    }

    #[test]
    fn every_entry_comes_up_once_never_early_and_never_a_slot_late() {
        let second = 1_000_000_000u64;
        let start = 1_700_000_000 * second;
        let mut slab = Slab(vec![Link::UNLINKED; 1000]);
        let mut wheel = Wheel::new();
        wheel.start(start);
        let deadline = |p: u32| start + u64::from(p) * second; // up to 1000 s: beyond the wheel
        for p in 0..1000 {
            wheel.insert(&mut slab, p, deadline(p));
        }
        wheel.remove(&mut slab, 500);
        let mut fired = vec![0; 1000];
        for step in 0..11_000u64 {
            let now = start + step * second / 10;
            while let Some(p) = wheel.pop(&mut slab, now) {
                if deadline(p) <= now {
                    assert!(now - deadline(p) < second, "{p} came late");
                    fired[p as usize] += 1;
                } else {
                    wheel.insert(&mut slab, p, deadline(p));
                }
            }
        }
        assert!(fired.iter().enumerate().all(|(p, &n)| n == i32::from(p != 500)));
    }

    #[test]
    fn a_jump_of_years_visits_each_slot_once() {
        let mut slab = Slab(vec![Link::UNLINKED; 3]);
        let mut wheel = Wheel::new();
        wheel.start(0);
        for p in 0..3 {
            wheel.insert(&mut slab, p, u64::from(p) * 100_000_000_000);
        }
        let mut popped: Vec<u32> = std::iter::from_fn(|| wheel.pop(&mut slab, u64::MAX)).collect();
        popped.sort_unstable();
        assert_eq!(popped, [0, 1, 2]);
        assert!(!wheel.is_behind(u64::MAX));
    }
}
