//! The hash index: from a flow's hash to its place in the slab.
//!
//! Buckets of one cache line hold eight places and a byte of the hash, the tag, of each; a full
//! bucket overflows into the next and counts how many went past, so that a lookup stops at the first
//! bucket nothing has passed. The eight tags are one word, so that all are compared at once. The size is fixed at the start: no rehash, no allocation.

use super::Hint;

/// No place.
pub(super) const NONE: u32 = u32::MAX;

const LANES: usize = 8;

/// The tags of a bucket, lane n in byte n; 0 marks an empty lane.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Tags(u64);

impl Tags {
    const LOWEST: u64 = u64::from_le_bytes([1; LANES]);

    /// A mask with the highest bit of the byte of each lane that has this tag, and possibly of some
    /// lanes above the first of them: the borrow of the subtraction runs upwards.
    #[inline]
    fn matching(self, tag: u8) -> u64 {
        let differ = self.0 ^ (u64::from(tag) * Self::LOWEST);
        differ.wrapping_sub(Self::LOWEST) & !differ & (Self::LOWEST << 7)
    }

    fn set(&mut self, lane: usize, tag: u8) {
        let shift = 8 * (lane % LANES);
        self.0 = (self.0 & !(0xff << shift)) | (u64::from(tag) << shift);
    }
}

/// The first lane of a mask; beyond the last if it is empty.
#[inline]
fn first(lanes: u64) -> usize {
    (lanes.trailing_zeros() / 8) as usize
}

#[derive(Clone, Copy)]
#[repr(align(64))]
struct Bucket {
    places: [u32; LANES],
    tags: Tags,
    /// Entries that belong here or before and live in a later bucket.
    passed: u32,
}

const EMPTY: Bucket = Bucket { places: [NONE; LANES], tags: Tags(0), passed: 0 };

pub(super) struct Index {
    buckets: Box<[Bucket]>,
}

#[inline]
fn tag(hash: u64) -> u8 {
    // The bucket comes from the low bits, the tag from the high ones.
    ((hash >> 56) as u8).max(1)
}

impl Index {
    /// Room for `capacity` entries at no more than two thirds of the lanes.
    pub(super) fn new(capacity: usize, hint: impl Hint) -> Self {
        let lanes = capacity.max(LANES) + capacity / 2;
        let count = lanes.div_ceil(LANES);
        let mut buckets = Vec::with_capacity(count);
        // Before the memory is touched, which decides on its pages.
        hint.large(&buckets);
        buckets.resize(count, EMPTY);
        Self { buckets: buckets.into_boxed_slice() }
    }

    /// The bucket where a hash belongs: its low half, scaled to the number of buckets.
    #[inline]
    fn home(&self, hash: u64) -> usize {
        ((u64::from(hash as u32) * self.buckets.len() as u64) >> 32) as usize
    }

    /// The bucket after this one, around.
    #[inline]
    fn next(&self, at: usize) -> usize {
        if at + 1 < self.buckets.len() { at + 1 } else { 0 }
    }

    /// The line that a lookup of this hash reads first.
    #[inline]
    pub(super) fn line(&self, hash: u64) -> Option<&impl Sized> {
        self.buckets.get(self.home(hash))
    }

    /// A place that the first line gives for this hash; likely the one, without a look at its key.
    #[inline]
    pub(super) fn guess(&self, hash: u64) -> Option<u32> {
        let bucket = self.buckets.get(self.home(hash))?;
        bucket.places.get(first(bucket.tags.matching(tag(hash)))).copied()
    }

    /// The place with this hash for which `is_it` holds; it is also asked of other places, of
    /// [`NONE`] too.
    #[inline]
    pub(super) fn find(&self, hash: u64, mut is_it: impl FnMut(u32) -> bool) -> Option<u32> {
        let t = tag(hash);
        let mut at = self.home(hash);
        // One round at most, though a table that is never full ends far earlier.
        for _ in 0..self.buckets.len() {
            let bucket = self.buckets.get(at)?;
            let mut lanes = bucket.tags.matching(t);
            while let Some(&place) = bucket.places.get(first(lanes)) {
                if is_it(place) {
                    return Some(place);
                }
                lanes &= lanes - 1;
            }
            if bucket.passed == 0 {
                return None;
            }
            at = self.next(at);
        }
        None
    }

    /// Adds an entry that is not there yet; the caller keeps the count below the capacity.
    pub(super) fn insert(&mut self, hash: u64, place: u32) {
        let mut at = self.home(hash);
        for _ in 0..self.buckets.len() {
            let Some(bucket) = self.buckets.get_mut(at) else { return };
            let lane = first(bucket.tags.matching(0));
            if let Some(empty) = bucket.places.get_mut(lane) {
                *empty = place;
                bucket.tags.set(lane, tag(hash));
                return;
            }
            bucket.passed += 1;
            at = self.next(at);
        }
        debug_assert!(false, "the index is full");
    }

    /// Takes an entry out.
    pub(super) fn remove(&mut self, hash: u64, place: u32) {
        let start = self.home(hash);
        let mut at = start;
        for _ in 0..self.buckets.len() {
            let Some(bucket) = self.buckets.get_mut(at) else { return };
            if let Some(lane) = bucket.places.iter().position(|&p| p == place) {
                bucket.tags.set(lane, 0);
                bucket.places[lane] = NONE;
                let mut before = start;
                while before != at {
                    if let Some(b) = self.buckets.get_mut(before) {
                        b.passed -= 1;
                    }
                    before = self.next(before);
                }
                return;
            }
            at = self.next(at);
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
                    let hash = (random() << 48) | ((random() % 64) << 26);
                    index.insert(hash, place);
                    model.insert(place, hash);
                }
            }
        }
        for (place, hash) in model.drain() {
            assert_eq!(index.find(hash, |p| p == place), Some(place));
            index.remove(hash, place);
        }
        assert!(index.buckets.iter().all(|b| b.passed == 0 && b.tags == Tags(0)));
    }
}
