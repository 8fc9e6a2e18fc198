//! Which client was given which address, by a listed name or by another, and until when.
//!
//! Moments are the packets' own, and a question is always about one: an answer that came later, or
//! has run out by then, does not count. A listed name's answer lives for its TTL, one second at
//! least, since an answer of zero is for the connection that follows. Another name's lives for five
//! minutes at least: programs go on using addresses, and it must not be silenced by mistake.
//!
//! Limits: [`Addresses::MOST`] pairs of client and address, in sets of four; in a full set the one
//! that ends first makes room, and is counted if it had not ended. An answer over the other family
//! (AAAA asked for over IPv4) is of a client that no flow will have, and is not kept.

use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;

use crate::packet::Addr;

const SECOND: u64 = 1_000_000_000;
const SHORTEST: u64 = SECOND;
const SHORTEST_OTHER: u64 = 300 * SECOND;
const SETS: usize = 1 << 13;
const WAYS: usize = 4;

/// That a client was given an address.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Answer {
    pub client: Addr,
    pub address: Addr,
    /// When, nanoseconds since 1970.
    pub at_ns: u64,
    /// Seconds.
    pub ttl: u32,
    /// By a listed name.
    pub listed: bool,
}

/// What a client knows an address by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Known {
    /// No listed name.
    Otherwise,
    /// Listed names only.
    Listed,
    /// Listed names and others.
    Shared,
}

/// From a moment until another; empty at first.
#[derive(Clone, Copy, Debug, Default)]
struct Span {
    from: u64,
    until: u64,
}

impl Span {
    fn has(self, at: u64) -> bool {
        self.until != 0 && self.from <= at && at <= self.until
    }

    /// Goes on with another; one that has ended by then begins anew.
    fn join(&mut self, other: Self) {
        let apart = self.until < other.from || other.until < self.from;
        if self.until == 0 || (apart && self.until < other.from) {
            *self = other;
        } else if !apart {
            self.from = self.from.min(other.from);
            self.until = self.until.max(other.until);
        }
    }
}

#[derive(Clone, Copy, Debug, Default)]
struct Entry {
    client: Addr,
    address: Addr,
    listed: Span,
    other: Span,
}

impl Entry {
    fn ends(&self) -> u64 {
        self.listed.until.max(self.other.until)
    }
}

/// The table.
#[derive(Debug)]
pub struct Addresses {
    sets: Box<[[Entry; WAYS]]>,
    hasher: RandomState,
    /// Pairs that made room for others before they ended.
    pub evicted: u64,
}

impl Default for Addresses {
    fn default() -> Self {
        let sets = vec![[Entry::default(); WAYS]; SETS].into();
        Self { sets, hasher: RandomState::new(), evicted: 0 }
    }
}

impl Addresses {
    /// Pairs that are kept.
    pub const MOST: usize = SETS * WAYS;

    fn set(&self, client: Addr, address: Addr) -> usize {
        self.hasher.hash_one((client, address)) as usize % SETS
    }

    /// Takes an answer in.
    pub fn learn(&mut self, a: &Answer) {
        let shortest = if a.listed { SHORTEST } else { SHORTEST_OTHER };
        let life = (u64::from(a.ttl) * SECOND).max(shortest);
        let span = Span { from: a.at_ns, until: a.at_ns.saturating_add(life) };
        let at = self.set(a.client, a.address);
        let Some(set) = self.sets.get_mut(at) else { return };
        let same = |e: &Entry| e.ends() != 0 && e.client == a.client && e.address == a.address;
        let known = set.iter().position(same);
        let oldest = || set.iter().enumerate().min_by_key(|(_, e)| e.ends()).map(|(way, _)| way);
        let Some(entry) = known.or_else(oldest).and_then(|way| set.get_mut(way)) else { return };
        if known.is_none() {
            self.evicted += u64::from(entry.ends() > a.at_ns);
            *entry = Entry { client: a.client, address: a.address, ..Entry::default() };
        }
        if a.listed { &mut entry.listed } else { &mut entry.other }.join(span);
    }

    /// What a client knows an address by at a moment.
    pub fn known(&self, client: Addr, address: Addr, at_ns: u64) -> Known {
        let set = self.sets.get(self.set(client, address));
        let same = |e: &&Entry| e.client == client && e.address == address && e.listed.has(at_ns);
        match set.and_then(|set| set.iter().find(same)) {
            None => Known::Otherwise,
            Some(e) if e.other.has(at_ns) => Known::Shared,
            Some(_) => Known::Listed,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(n: u32) -> Addr {
        Addr::v4(n.to_be_bytes())
    }

    fn answer(client: u32, address: u32, second: u64, ttl: u32, listed: bool) -> Answer {
        let (client, address) = (ip(client), ip(address));
        Answer { client, address, at_ns: second * SECOND, ttl, listed }
    }

    #[test]
    fn an_answer_counts_for_its_client_from_its_moment_until_its_end() {
        let mut t = Addresses::default();
        let known = |t: &Addresses, client, at: u64| t.known(ip(client), ip(9), at * SECOND);
        t.learn(&answer(1, 9, 100, 60, true));
        assert_eq!(known(&t, 1, 99), Known::Otherwise);
        assert_eq!(known(&t, 1, 100), Known::Listed);
        assert_eq!(known(&t, 1, 160), Known::Listed);
        assert_eq!(known(&t, 1, 161), Known::Otherwise);
        assert_eq!(known(&t, 2, 120), Known::Otherwise, "another client");
        // Asked again, before and after it ran out.
        t.learn(&answer(1, 9, 150, 60, true));
        assert_eq!([known(&t, 1, 100), known(&t, 1, 210)], [Known::Listed; 2]);
        t.learn(&answer(1, 9, 300, 0, true));
        assert_eq!((known(&t, 1, 301), known(&t, 1, 302)), (Known::Listed, Known::Otherwise));
        // The order in which workers tell does not matter.
        let mut late = Addresses::default();
        late.learn(&answer(1, 9, 150, 60, true));
        late.learn(&answer(1, 9, 100, 60, true));
        assert_eq!([known(&late, 1, 100), known(&late, 1, 210)], [Known::Listed; 2]);
    }

    #[test]
    fn an_address_with_another_name_is_shared_for_five_minutes_at_least() {
        let mut t = Addresses::default();
        let known = |t: &Addresses, at: u64| t.known(ip(1), ip(9), at * SECOND);
        t.learn(&answer(1, 9, 10, 60, false));
        assert_eq!(known(&t, 20), Known::Otherwise);
        t.learn(&answer(1, 9, 100, 3600, true));
        assert_eq!(
            (known(&t, 100), known(&t, 310), known(&t, 311)),
            (Known::Shared, Known::Shared, Known::Listed)
        );
        t.learn(&answer(1, 9, 400, 5, false));
        assert_eq!((known(&t, 399), known(&t, 400)), (Known::Listed, Known::Shared));
    }

    #[test]
    fn a_flood_of_answers_stays_within_its_bound_and_is_counted() {
        let mut t = Addresses::default();
        for n in 0..200_000 {
            t.learn(&answer(1, n, 100, 600, n % 2 == 0));
        }
        assert!(t.evicted >= 200_000 - Addresses::MOST as u64);
        let before = t.evicted;
        // What has ended makes room without being missed.
        for n in 0..1000 {
            t.learn(&answer(2, n, 10_000, 600, true));
        }
        assert_eq!(t.evicted, before);
        assert!((0..1000).all(|n| t.known(ip(2), ip(n), 10_100 * SECOND) == Known::Listed));
    }
}
