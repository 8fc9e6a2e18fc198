//! How a value looks in the store: framed and checked, so that it is known when it is damaged, and
//! found by its frame alone in the bytes of a store that does not open any more.
//!
//! `magic (4), length of the body (u32), CRC-32 of the body (u32), body`; numbers little-endian. The
//! body begins with its kind.

use std::ops::Range;

const MAGIC: [u8; 4] = *b"mKs\x01";
const HEADER: usize = 12;
/// No body is longer: an event's line is at most [`super::MAX_LINE`].
pub(super) const MAX_BODY: usize = super::MAX_LINE + 4096;

/// What a frame holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Event,
    Cursor,
    Dead,
    Meta,
}

impl Kind {
    const ALL: [Self; 4] = [Self::Event, Self::Cursor, Self::Dead, Self::Meta];

    fn of(byte: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|k| *k as u8 == byte)
    }
}

/// Frames what `fill` writes.
pub(super) fn frame(kind: Kind, fill: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut out = Vec::with_capacity(128);
    out.extend_from_slice(&MAGIC);
    out.extend_from_slice(&[0; HEADER - MAGIC.len()]);
    out.push(kind as u8);
    fill(&mut out);
    let body = out.get(HEADER..).unwrap_or_default();
    let (len, crc) = ((body.len() as u32).to_le_bytes(), crc32fast::hash(body).to_le_bytes());
    out.splice(4..HEADER, len.into_iter().chain(crc));
    out
}

/// The body of a whole frame, without its kind.
pub(super) fn open(bytes: &[u8], kind: Kind) -> Option<&[u8]> {
    let (found, range) = at(bytes)?;
    (found == kind && range.end == bytes.len()).then(|| bytes.get(range)).flatten()
}

/// The kind and the body (without its kind) of the frame that begins `bytes`.
fn at(bytes: &[u8]) -> Option<(Kind, Range<usize>)> {
    if bytes.get(..4)? != MAGIC {
        return None;
    }
    let number = |at: usize| Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?));
    let (len, crc) = (number(4)? as usize, number(8)?);
    if len == 0 || len > MAX_BODY {
        return None;
    }
    let body = bytes.get(HEADER..HEADER + len)?;
    let kind = Kind::of(*body.first()?)?;
    (crc32fast::hash(body) == crc).then_some((kind, HEADER + 1..HEADER + len))
}

/// Calls `found` with every whole frame in `bytes`, and returns how many bytes at the end could be
/// the beginning of one more.
pub(super) fn scan(bytes: &[u8], mut found: impl FnMut(Kind, &[u8])) -> usize {
    let mut from = 0;
    while let Some(next) = find(bytes.get(from..).unwrap_or_default()) {
        from += next;
        let rest = bytes.get(from..).unwrap_or_default();
        match at(rest) {
            Some((kind, range)) => {
                let end = range.end;
                if let Some(body) = rest.get(range) {
                    found(kind, body);
                }
                from += end;
            }
            None if rest.len() < HEADER + MAX_BODY => return rest.len(),
            None => from += 1,
        }
    }
    (bytes.len() - from).min(MAGIC.len() - 1)
}

fn find(bytes: &[u8]) -> Option<usize> {
    bytes.windows(MAGIC.len()).position(|w| w == MAGIC)
}

/// Reads numbers and bytes off the front of a body.
pub(super) struct Reader<'a>(pub(super) &'a [u8]);

impl<'a> Reader<'a> {
    pub(super) fn bytes(&mut self, n: usize) -> Option<&'a [u8]> {
        let (front, rest) = self.0.split_at_checked(n)?;
        self.0 = rest;
        Some(front)
    }

    pub(super) fn u64(&mut self) -> Option<u64> {
        Some(u64::from_le_bytes(self.bytes(8)?.try_into().ok()?))
    }

    pub(super) fn u32(&mut self) -> Option<u32> {
        Some(u32::from_le_bytes(self.bytes(4)?.try_into().ok()?))
    }

    pub(super) fn u8(&mut self) -> Option<u8> {
        Some(*self.bytes(1)?.first()?)
    }

    /// Bytes behind their length.
    pub(super) fn text(&mut self) -> Option<&'a [u8]> {
        let n = self.u32()? as usize;
        self.bytes(n)
    }
}

pub(super) fn put_text(out: &mut Vec<u8>, text: &[u8]) {
    out.extend_from_slice(&(text.len() as u32).to_le_bytes());
    out.extend_from_slice(text);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_found_between_anything_and_damage_is_seen() {
        let frames: Vec<Vec<u8>> =
            (0..50u8).map(|n| frame(Kind::Event, |o| o.extend(vec![n; usize::from(n)]))).collect();
        let mut bytes = b"mKs mKs\x01 not a frame".to_vec();
        for f in &frames {
            assert!(open(f, Kind::Event).is_some() && open(f, Kind::Dead).is_none());
            bytes.extend(f);
            bytes.extend(b"\0\0mK");
        }
        // What begins like a frame may be one that goes on behind the end.
        assert!(scan(&bytes, |_, _| panic!("too early")) > bytes.len() - 10);
        bytes.extend(vec![0; HEADER + MAX_BODY]);
        let mut seen = 0;
        scan(&bytes, |kind, body| {
            assert!(kind == Kind::Event && body.iter().all(|b| *b == seen));
            assert_eq!(body.len(), usize::from(seen));
            seen += 1;
        });
        assert_eq!(seen, 50);
        let mut bad = frames[9].clone();
        bad[15] ^= 1;
        assert!(open(&bad, Kind::Event).is_none());
        for cut in 0..frames[9].len() {
            assert!(open(&frames[9][..cut], Kind::Event).is_none());
        }
    }
}
