//! Joins IP fragments to the flow of their first part, which alone carries ports.
//!
//! A small set-associative cache by (addresses, protocol, id). Parts that come before the first
//! are counted here and added when it comes; when it never does, they become a flow without ports.

use super::Arrival;
use crate::event::Counts;
use crate::packet::{Addr, Decoded, Fragment};

const SETS: usize = 256;
const WAYS: usize = 4;
/// Reassembly gives up after this long (RFC 8200 says 60 s, most systems 30).
const LIFE_NS: u64 = 30_000_000_000;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Key {
    src: Addr,
    dst: Addr,
    id: u32,
    proto: u8,
    v6: bool,
}

/// Fragments that wait for the first part of their packet.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pending {
    pub(super) counts: Counts,
    /// The one that came first, and when, by its own time and by the clock.
    pub(super) first: Decoded,
    pub(super) first_ns: u64,
    pub(super) first_clock: u64,
    pub(super) last_ns: u64,
    pub(super) last_clock: u64,
}

#[derive(Clone, Copy, Debug, Default)]
enum Entry {
    #[default]
    Free,
    /// The first part was seen; later ones have these ports.
    Known {
        key: Key,
        ports: (u16, u16),
        clock: u64,
    },
    Waiting {
        key: Key,
        pending: Pending,
    },
}

impl Entry {
    fn key(&self) -> Option<&Key> {
        match self {
            Self::Free => None,
            Self::Known { key, .. } | Self::Waiting { key, .. } => Some(key),
        }
    }

    fn clock(&self) -> u64 {
        match self {
            Self::Free => 0,
            Self::Known { clock, .. } => *clock,
            Self::Waiting { pending, .. } => pending.last_clock,
        }
    }
}

pub(super) struct Fragments {
    entries: Box<[[Entry; WAYS]]>,
    /// Set that the next sweep looks at.
    hand: usize,
    waiting: usize,
}

/// What to do with a fragment.
#[derive(Debug)]
pub(super) enum Join {
    /// It has its ports now; earlier parts to add to its flow, and parts of another packet that
    /// were pushed out.
    Flow { earlier: Option<Pending>, pushed_out: Option<Pending> },
    /// It is counted here until the first part comes.
    Waits { pushed_out: Option<Pending> },
}

impl Fragments {
    pub(super) fn new() -> Self {
        Self { entries: vec![[Entry::Free; WAYS]; SETS].into(), hand: 0, waiting: 0 }
    }

    /// Takes a fragment; gives it its ports where they are known.
    pub(super) fn join(&mut self, arrival: &mut Arrival, fragment: Fragment) -> Join {
        let d = &arrival.decoded;
        let t = &d.tuple;
        let key = Key { src: t.src, dst: t.dst, id: fragment.id, proto: t.proto, v6: t.v6 };
        let clock = arrival.clock_ns;
        let set = set_of(&key);
        let Some(ways) = self.entries.get_mut(set) else {
            return Join::Waits { pushed_out: None };
        };
        let found = ways
            .iter()
            .position(|e| e.key() == Some(&key) && clock.saturating_sub(e.clock()) <= LIFE_NS);
        let way = found.unwrap_or_else(|| oldest(ways));
        let Some(entry) = ways.get_mut(way) else { return Join::Waits { pushed_out: None } };
        let before = std::mem::take(entry);
        let was_waiting = matches!(before, Entry::Waiting { .. });
        let (pushed_out, before) = match (found, before) {
            (None, Entry::Waiting { pending, .. }) => (Some(pending), Entry::Free),
            (None, _) => (None, Entry::Free),
            (Some(_), before) => (None, before),
        };
        let join = if fragment.offset == 0 {
            let earlier = match before {
                Entry::Waiting { pending, .. } => Some(pending),
                _ => None,
            };
            *entry = Entry::Known { key, ports: (t.sport, t.dport), clock };
            Join::Flow { earlier, pushed_out }
        } else if let Entry::Known { ports, .. } = before {
            *entry = Entry::Known { key, ports, clock };
            (arrival.decoded.tuple.sport, arrival.decoded.tuple.dport) = ports;
            Join::Flow { earlier: None, pushed_out }
        } else {
            let mut pending = match before {
                Entry::Waiting { pending, .. } => pending,
                _ => Pending {
                    counts: Counts::default(),
                    first: arrival.decoded,
                    first_ns: arrival.timestamp_ns,
                    first_clock: clock,
                    last_ns: arrival.timestamp_ns,
                    last_clock: clock,
                },
            };
            pending.counts.add(count(d));
            pending.last_ns = pending.last_ns.max(arrival.timestamp_ns);
            pending.last_clock = clock;
            *entry = Entry::Waiting { key, pending };
            Join::Waits { pushed_out }
        };
        let is_waiting = matches!(entry, Entry::Waiting { .. });
        self.waiting = self.waiting + usize::from(is_waiting) - usize::from(was_waiting);
        join
    }

    /// Parts whose first never came, one set a call; `all` takes whatever waits, for the end.
    pub(super) fn give_up(&mut self, clock: u64, all: bool) -> Option<Pending> {
        if self.waiting == 0 {
            return None;
        }
        let sets = if all { SETS } else { 1 };
        for _ in 0..sets {
            if let Some(ways) = self.entries.get_mut(self.hand) {
                for entry in ways {
                    if let Entry::Waiting { pending, .. } = entry
                        && (all || clock.saturating_sub(pending.last_clock) > LIFE_NS)
                    {
                        let pending = *pending;
                        *entry = Entry::Free;
                        self.waiting -= 1;
                        return Some(pending);
                    }
                }
            }
            self.hand = (self.hand + 1) % SETS;
        }
        None
    }
}

fn count(d: &Decoded) -> Counts {
    Counts { packets: 1, bytes: u64::from(d.wire_len), ip_bytes: u64::from(d.ip_len) }
}

fn oldest(ways: &[Entry; WAYS]) -> usize {
    (0..WAYS).min_by_key(|&w| ways[w].clock()).unwrap_or(0)
}

fn set_of(key: &Key) -> usize {
    let mut h = u64::from(key.id) ^ (u64::from(key.proto) << 32);
    for word in [key.src.0, key.src.1, key.dst.0, key.dst.1] {
        h = (h ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(27);
    }
    (h >> 40) as usize % SETS
}
