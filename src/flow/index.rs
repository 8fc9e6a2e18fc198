//! The hash index: from a flow's hash to its place in the slab.
//!
//! Buckets of one cache line hold eight 16-bit tags and eight places; a full bucket overflows into
//! the next and counts how many went past, so that a lookup stops at the first bucket nothing has
//! passed. The size is fixed at the start: no rehash, no allocation.

use super::Hint;

/// No place.
pub(super) const NONE: u32 = u32::MAX;

const LANES: usize = 8;

#[derive(Clone, Copy)]
#[repr(align(64))]
struct Bucket {
    places: [u32; LANES],
    /// 0 marks an empty lane.
    tags: [u16; LANES],
    /// Entries that belong here or before and live in a later bucket.
    passed: u32,
}

const EMPTY: Bucket = Bucket { places: [NONE; LANES], tags: [0; LANES], passed: 0 };

pub(super) struct Index {
    buckets: Box<[Bucket]>,
    mask: usize,
}

impl Bucket {
    /// One bit for each lane with this tag.
    #[inline]
    fn matching(&self, tag: u16) -> u8 {
        // Written so that it becomes one comparison of all lanes.
        let mut lanes = 0;
        for lane in 0..LANES {
            lanes |= u8::from(self.tags[lane] == tag) << lane;
        }
        lanes
    }
}

#[inline]
fn tag(hash: u64) -> u16 {
    // The bucket comes from the low bits, the tag from the high ones.
    ((hash >> 48) as u16).max(1)
}

impl Index {
    /// Room for `capacity` entries at no more than two thirds of the lanes.
    pub(super) fn new(capacity: usize, hint: impl Hint) -> Self {
        let lanes = capacity.max(LANES) + capacity / 2;
        let count = lanes.div_ceil(LANES).next_power_of_two();
        let mut buckets = Vec::with_capacity(count);
        // Before the memory is touched, which decides on its pages.
        hint.large(&buckets);
        buckets.resize(count, EMPTY);
        Self { buckets: buckets.into_boxed_slice(), mask: count - 1 }
    }

    /// The line that a lookup of this hash reads first.
    #[inline]
    pub(super) fn line(&self, hash: u64) -> Option<&impl Sized> {
        self.buckets.get(hash as usize & self.mask)
    }

    /// A place that the first line gives for this hash; likely the one, without a look at its key.
    #[inline]
    pub(super) fn guess(&self, hash: u64) -> Option<u32> {
        let bucket = self.buckets.get(hash as usize & self.mask)?;
        let lanes = bucket.matching(tag(hash));
        bucket.places.get(lanes.trailing_zeros() as usize).copied()
    }

    /// The place with this hash for which `is_it` holds.
    #[inline]
    pub(super) fn find(&self, hash: u64, mut is_it: impl FnMut(u32) -> bool) -> Option<u32> {
        let t = tag(hash);
        let mut at = hash as usize & self.mask;
        // One round at most, though a table that is never full ends far earlier.
        for _ in 0..=self.mask {
            let bucket = self.buckets.get(at)?;
            let mut lanes = bucket.matching(t);
            while let Some(&place) = bucket.places.get(lanes.trailing_zeros() as usize) {
                if is_it(place) {
                    return Some(place);
                }
                lanes &= lanes - 1;
            }
            if bucket.passed == 0 {
                return None;
            }
            at = (at + 1) & self.mask;
        }
        None
    }

    /// Adds an entry that is not there yet; the caller keeps the count below the capacity.
    pub(super) fn insert(&mut self, hash: u64, place: u32) {
        let mut at = hash as usize & self.mask;
        for _ in 0..=self.mask {
            let Some(bucket) = self.buckets.get_mut(at) else { return };
            if let Some(lane) = bucket.tags.iter().position(|&t| t == 0) {
                bucket.tags[lane] = tag(hash);
                bucket.places[lane] = place;
                return;
            }
            bucket.passed += 1;
            at = (at + 1) & self.mask;
        }
        debug_assert!(false, "the index is full");
    }

    /// Takes an entry out.
    pub(super) fn remove(&mut self, hash: u64, place: u32) {
        let start = hash as usize & self.mask;
        let mut at = start;
        for _ in 0..=self.mask {
            let Some(bucket) = self.buckets.get_mut(at) else { return };
            let lane = (0..LANES).find(|&l| bucket.tags[l] != 0 && bucket.places[l] == place);
            if let Some(lane) = lane {
                bucket.tags[lane] = 0;
                bucket.places[lane] = NONE;
                let mut before = start;
                while before != at {
                    if let Some(b) = self.buckets.get_mut(before) {
                        b.passed -= 1;
                    }
                    before = (before + 1) & self.mask;
                }
                return;
            }
            at = (at + 1) & self.mask;
        }
        debug_assert!(false, "removing what is not in the index");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flow::NoHint;
    use std::collections::HashMap;

    #[test]
    fn agrees_with_a_map_under_churn_in_crowded_buckets() {
        let mut index = Index::new(4096, NoHint);
        let mut model: HashMap<u32, u64> = HashMap::new();
        let mut state = 1u64;
        let mut random = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            state >> 16
        };
        for step in 0..200_000u32 {
            let place = (random() % 4000) as u32;
            match model.remove(&place) {
                Some(hash) => {
                    assert_eq!(index.find(hash, |p| p == place), Some(place), "step {step}");
                    index.remove(hash, place);
                    assert_eq!(index.find(hash, |p| p == place), None);
                }
                None => {
                    // Few distinct buckets, so that they overflow.
                    let hash = (random() << 48) | (random() % 64);
                    index.insert(hash, place);
                    model.insert(place, hash);
                }
            }
        }
        for (place, hash) in model.drain() {
            assert_eq!(index.find(hash, |p| p == place), Some(place));
            index.remove(hash, place);
        }
        assert!(index.buckets.iter().all(|b| b.passed == 0 && b.tags == [0; LANES]));
    }
}
