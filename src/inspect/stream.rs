//! The beginning of a byte stream, put together from parts in any order.

use arrayvec::ArrayVec;

/// Bytes of a stream's beginning that are kept: a ClientHello, a chain of certificates.
pub(super) const CAPACITY: usize = 16 * 1024;
/// Parts with gaps between them that are kept.
const PARTS: usize = 16;

/// A window of [`CAPACITY`] bytes; what was received of it, in order and apart.
#[derive(Debug)]
pub(super) struct Assembly {
    data: Box<[u8]>,
    /// Start and end of what is there, sorted, none touching the next.
    parts: ArrayVec<(usize, usize), PARTS>,
}

impl Assembly {
    fn new() -> Self {
        // Zeroed memory of this size is untouched until it is written to.
        Self { data: vec![0; CAPACITY].into(), parts: ArrayVec::new() }
    }

    /// Puts bytes at an offset; what lies outside of the window, or would be one part too many, is
    /// left out.
    pub(super) fn insert(&mut self, at: usize, bytes: &[u8]) {
        let end = at.saturating_add(bytes.len()).min(CAPACITY);
        let Some(len) = end.checked_sub(at).filter(|&n| n > 0) else { return };
        let (Some(to), Some(from)) = (self.data.get_mut(at..end), bytes.get(..len)) else { return };
        // The parts that the new one touches become one with it.
        let first = self.parts.iter().take_while(|p| p.1 < at).count();
        let touched = self.parts.iter().skip(first).take_while(|p| p.0 <= end).count();
        if touched == 0 && self.parts.is_full() {
            return;
        }
        to.copy_from_slice(from);
        let mut joined = (at, end);
        for part in self.parts.drain(first..first + touched) {
            joined = (joined.0.min(part.0), joined.1.max(part.1));
        }
        // There is room: either parts were taken out, or it was not full.
        let _ = self.parts.try_insert(first, joined);
    }

    /// What is there without a gap, from the start.
    pub(super) fn prefix(&self) -> &[u8] {
        match self.parts.first() {
            Some(&(0, end)) => self.data.get(..end).unwrap_or_default(),
            _ => &[],
        }
    }

    /// Moves the window on by `n` bytes.
    pub(super) fn consume(&mut self, n: usize) {
        let n = n.min(CAPACITY);
        let last = self.parts.last().map_or(0, |p| p.1);
        self.data.copy_within(n..last.max(n), 0);
        self.parts.retain(|p| {
            *p = (p.0.saturating_sub(n), p.1.saturating_sub(n));
            p.1 > 0
        });
    }

    pub(super) fn is_empty(&self) -> bool {
        self.parts.is_empty()
    }

    fn clear(&mut self) {
        self.parts.clear();
    }
}

/// A fixed number of assemblies.
#[derive(Debug)]
pub(super) struct Pool {
    all: Vec<Assembly>,
    free: Vec<u32>,
}

/// No assembly.
pub(super) const NONE: u32 = u32::MAX;

impl Pool {
    pub(super) fn new(size: usize) -> Self {
        Self {
            all: (0..size).map(|_| Assembly::new()).collect(),
            free: (0..size as u32).rev().collect(),
        }
    }

    /// A cleared one; `None` if all are in use.
    pub(super) fn take(&mut self) -> Option<u32> {
        let at = self.free.pop()?;
        self.get(at)?.clear();
        Some(at)
    }

    pub(super) fn get(&mut self, at: u32) -> Option<&mut Assembly> {
        self.all.get_mut(at as usize)
    }

    /// Takes an assembly out of its place until [`Self::put`].
    pub(super) fn lift(&mut self, at: u32) -> Option<Assembly> {
        let empty = Assembly { data: Box::default(), parts: ArrayVec::new() };
        self.get(at).map(|place| std::mem::replace(place, empty))
    }

    pub(super) fn put(&mut self, at: u32, assembly: Assembly) {
        if let Some(place) = self.get(at) {
            *place = assembly;
        }
    }

    /// Gives one back, and leaves [`NONE`] in its place.
    pub(super) fn give_back(&mut self, at: &mut u32) {
        let at = std::mem::replace(at, NONE);
        if at != NONE {
            self.free.push(at);
        }
    }

    #[cfg(test)]
    pub(super) fn in_use(&self) -> usize {
        self.all.len() - self.free.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_in_any_order_make_the_whole() {
        let whole: Vec<u8> = (0..=255).cycle().take(600).collect();
        // Every order of four overlapping parts.
        let parts = [(0, 200), (150, 300), (300, 450), (449, 600)];
        for code in 0..256usize {
            let order = [code & 3, code >> 2 & 3, code >> 4 & 3, code >> 6 & 3];
            let mut a = Assembly::new();
            let mut here = [false; 600];
            for &n in &order {
                let (from, to) = parts[n];
                a.insert(from, &whole[from..to]);
                here[from..to].fill(true);
                let expect = here.iter().position(|h| !h).unwrap_or(600);
                assert_eq!(a.prefix(), &whole[..expect], "{order:?}");
            }
        }
    }

    #[test]
    fn outside_of_the_window_and_too_many_parts() {
        let mut a = Assembly::new();
        a.insert(usize::MAX, b"x");
        a.insert(CAPACITY, b"x");
        a.insert(CAPACITY - 1, b"xyz");
        for n in 0..100 {
            a.insert(2 + 2 * n, b"y");
        }
        assert_eq!((a.prefix(), a.parts.len()), (&b""[..], PARTS));
        a.insert(0, &[7; CAPACITY + 5]);
        assert_eq!((a.prefix().len(), a.parts.len()), (CAPACITY, 1));
    }

    #[test]
    fn consuming_moves_the_window() {
        let mut a = Assembly::new();
        a.insert(0, b"abcdef");
        a.insert(10, b"klm");
        a.consume(4);
        assert_eq!(a.prefix(), b"ef");
        a.insert(2, b"ghij");
        assert_eq!(a.prefix(), b"efghijklm");
        a.consume(100);
        assert_eq!(a.prefix(), b"");
        let mut pool = Pool::new(2);
        let (mut one, _two) = (pool.take().unwrap(), pool.take().unwrap());
        assert_eq!((pool.take(), pool.in_use()), (None, 2));
        pool.give_back(&mut one);
        assert_eq!((one, pool.in_use()), (NONE, 1));
        pool.give_back(&mut one);
        assert_eq!(pool.in_use(), 1);
    }
}
