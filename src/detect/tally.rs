//! Counts of one host's window: endpoints it sends to, and the hosts they are on.
//!
//! An endpoint is an address and a port, whatever the protocol; the first packet's protocol is kept.
//! Above the limit nothing new is kept: known endpoints and hosts go on counting, packets to others
//! are counted together. A packet costs one lookup, a new endpoint two more. Up to
//! [`RESERVED`] entries the memory is taken at the start; a larger limit grows on the way.

use hashbrown::HashTable;

use super::{Host, Protocol, Scope, Sighting};

/// Endpoints that have their memory from the start.
pub(super) const RESERVED: usize = 1 << 16;

/// What was sent to one address and port.
#[derive(Clone, Copy, Debug)]
pub struct Endpoint {
    pub host: Host,
    /// The host's place in [`Tally::hosts`]; `None` if there was no room for the host.
    pub host_at: Option<u32>,
    pub port: u16,
    pub protocol: Protocol,
    pub packets: u64,
}

/// A host that was sent to.
#[derive(Clone, Copy, Debug)]
pub struct Contact {
    pub host: Host,
    /// Endpoints with a port that are kept of it.
    pub ports: u32,
}

/// What became of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    Counted,
    /// Counted in the totals alone: the endpoint is new and the tally full.
    Untracked,
    /// The destination is left out.
    LeftOut,
}

/// One window's counts.
#[derive(Debug)]
pub struct Tally {
    endpoints: Vec<Endpoint>,
    by_endpoint: HashTable<u32>,
    hosts: Vec<Contact>,
    by_host: HashTable<u32>,
    packets: u64,
    untracked: u64,
    limit: usize,
    mix: Mix,
}

/// Hashes an address and a port; from secrets, so that nobody can choose addresses that collide.
#[derive(Clone, Copy, Debug)]
struct Mix([u64; 4]);

impl Mix {
    fn new(seed: u64) -> Self {
        Self([1, 2, 3, 4].map(|n: u64| {
            fold(seed ^ 0x9e37_79b9_7f4a_7c15, n.wrapping_mul(0xd6e8_feb8_6659_fd93)) | 1
        }))
    }

    #[inline]
    fn hash(self, host: Host, port: u16) -> u64 {
        let Self([s0, s1, s2, s3]) = self;
        let address = fold(host.addr.0 ^ s0, host.addr.1 ^ s1);
        fold(address ^ s2, s3 ^ (u64::from(port) << 1 | u64::from(host.v6)))
    }
}

impl Tally {
    /// Keeps up to `limit` endpoints and as many hosts. `seed` keeps others from choosing addresses
    /// that collide.
    pub fn new(limit: usize, seed: u64) -> Self {
        Self::with_room(limit, limit.min(RESERVED), seed)
    }

    /// The same, but takes its memory as it needs it.
    pub(super) fn growing(limit: usize, seed: u64) -> Self {
        Self::with_room(limit, 0, seed)
    }

    fn with_room(limit: usize, reserved: usize, seed: u64) -> Self {
        Self {
            endpoints: Vec::with_capacity(reserved),
            by_endpoint: HashTable::with_capacity(reserved),
            hosts: Vec::with_capacity(reserved),
            by_host: HashTable::with_capacity(reserved),
            packets: 0,
            untracked: 0,
            limit: limit.min(u32::MAX as usize),
            mix: Mix::new(seed),
        }
    }

    /// Endpoints, and hosts, that are kept at most.
    pub fn limit(&self) -> usize {
        self.limit
    }

    /// Packets that counted, those to endpoints that are not kept included.
    pub fn packets(&self) -> u64 {
        self.packets
    }

    /// Packets to endpoints that are not kept.
    pub fn untracked(&self) -> u64 {
        self.untracked
    }

    /// In the order of their first packets.
    pub fn endpoints(&self) -> &[Endpoint] {
        &self.endpoints
    }

    /// In the order of their first packets.
    pub fn hosts(&self) -> &[Contact] {
        &self.hosts
    }

    /// Forgets everything, but keeps the memory.
    pub fn clear(&mut self) {
        self.endpoints.clear();
        self.by_endpoint.clear();
        self.hosts.clear();
        self.by_host.clear();
        (self.packets, self.untracked) = (0, 0);
    }

    /// Counts a packet of the scope's host.
    #[inline]
    pub fn count(&mut self, s: &Sighting, scope: &Scope) -> Place {
        let hash = self.mix.hash(s.dst, s.dst_port);
        if let Some(at) = self.find(hash, s.dst, s.dst_port)
            && let Some(endpoint) = self.endpoints.get_mut(at)
        {
            endpoint.packets += 1;
            self.packets += 1;
            return Place::Counted;
        }
        // What is kept was asked for when it was new.
        if !scope.counts(s.dst) {
            return Place::LeftOut;
        }
        self.add(hash, s.dst, s.dst_port, s.protocol, 1)
    }

    /// Adds another tally's counts.
    pub fn absorb(&mut self, other: &Self) {
        for e in &other.endpoints {
            let hash = self.mix.hash(e.host, e.port);
            match self.find(hash, e.host, e.port).and_then(|at| self.endpoints.get_mut(at)) {
                Some(mine) => {
                    mine.packets += e.packets;
                    self.packets += e.packets;
                }
                None => {
                    self.add(hash, e.host, e.port, e.protocol, e.packets);
                }
            }
        }
        for contact in &other.hosts {
            self.host_at(contact.host);
        }
        self.packets += other.untracked;
        self.untracked += other.untracked;
    }

    #[inline]
    fn find(&self, hash: u64, host: Host, port: u16) -> Option<usize> {
        let is_it = |&at: &u32| {
            self.endpoints.get(at as usize).is_some_and(|e| e.host == host && e.port == port)
        };
        self.by_endpoint.find(hash, is_it).map(|&at| at as usize)
    }

    fn add(&mut self, hash: u64, host: Host, port: u16, protocol: Protocol, packets: u64) -> Place {
        self.packets += packets;
        let host_at = self.host_at(host);
        if self.endpoints.len() >= self.limit {
            self.untracked += packets;
            return Place::Untracked;
        }
        if let Some(contact) = host_at.and_then(|at| self.hosts.get_mut(at as usize)) {
            contact.ports += u32::from(protocol.has_port);
        }
        let at = self.endpoints.len() as u32;
        self.endpoints.push(Endpoint { host, host_at, port, protocol, packets });
        let (mix, endpoints) = (self.mix, &self.endpoints);
        self.by_endpoint.insert_unique(hash, at, |&at| {
            endpoints.get(at as usize).map_or(0, |e| mix.hash(e.host, e.port))
        });
        Place::Counted
    }

    /// The host's place, a new one if there is room.
    fn host_at(&mut self, host: Host) -> Option<u32> {
        let hash = self.mix.hash(host, 0);
        let hosts = &self.hosts;
        let is_it = |&at: &u32| hosts.get(at as usize).is_some_and(|c| c.host == host);
        if let Some(&at) = self.by_host.find(hash, is_it) {
            return Some(at);
        }
        if hosts.len() >= self.limit {
            return None;
        }
        let at = hosts.len() as u32;
        self.hosts.push(Contact { host, ports: 0 });
        let (mix, hosts) = (self.mix, &self.hosts);
        self.by_host.insert_unique(hash, at, |&at| {
            hosts.get(at as usize).map_or(0, |c| mix.hash(c.host, 0))
        });
        Some(at)
    }
}

/// The halves of a product, folded: the mixing step of wyhash and its kin.
#[inline(always)]
fn fold(a: u64, b: u64) -> u64 {
    let product = u128::from(a) * u128::from(b);
    product as u64 ^ (product >> 64) as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packet::Addr;

    fn sighting(host: u32, port: u16) -> Sighting {
        let addr = |n: u32| Host { v6: false, addr: Addr::v4(n.to_be_bytes()) };
        Sighting {
            src: addr(5),
            dst: addr(host),
            src_port: 1,
            dst_port: port,
            protocol: Protocol { number: 6, has_port: true },
        }
    }

    fn scope() -> Scope {
        let five = sighting(0, 0).src;
        Scope::new(five, ["0.0.1.0/24".parse().unwrap()])
    }

    #[test]
    fn above_the_limit_what_is_known_goes_on_counting() {
        let (scope, mut tally) = (scope(), Tally::new(10, 7));
        for round in 0..3 {
            for host in 1000..1020 {
                let place = tally.count(&sighting(host, 80), &scope);
                assert_eq!(place == Place::Counted, host < 1010, "round {round}");
            }
        }
        assert_eq!((tally.packets(), tally.untracked()), (60, 30));
        assert!(tally.endpoints().iter().all(|e| e.packets == 3));
        assert_eq!((tally.endpoints().len(), tally.hosts().len()), (10, 10));
        tally.clear();
        assert_eq!(tally.count(&sighting(1019, 80), &scope), Place::Counted);
        assert_eq!((tally.packets(), tally.untracked()), (1, 0));
    }

    #[test]
    fn many_ports_of_one_host_do_not_hide_other_hosts() {
        let (scope, mut tally) = (scope(), Tally::new(100, 7));
        for port in 0..200 {
            tally.count(&sighting(1000, port), &scope);
        }
        for host in 2000..2050 {
            tally.count(&sighting(host, 23), &scope);
        }
        assert_eq!((tally.endpoints().len(), tally.hosts().len()), (100, 51));
        assert_eq!((tally.packets(), tally.untracked()), (250, 150));
        assert_eq!(tally.hosts()[0].ports, 100);
    }

    #[test]
    fn what_is_left_out_is_in_no_count() {
        let (scope, mut tally) = (scope(), Tally::new(10, 7));
        assert_eq!(tally.count(&sighting(5, 80), &scope), Place::LeftOut);
        assert_eq!(tally.count(&sighting(256, 80), &scope), Place::LeftOut);
        assert_eq!((tally.packets(), tally.hosts().len()), (0, 0));
    }

    #[test]
    fn parts_add_up_to_the_whole() {
        let scope = scope();
        let (mut whole, mut sum) = (Tally::new(RESERVED * 2, 1), Tally::new(RESERVED * 2, 2));
        let mut parts = [Tally::new(RESERVED * 2, 3), Tally::new(RESERVED * 2, 4)];
        for n in 0..300_000u32 {
            let s = sighting(10_000 + n % 100_000, (n % 3) as u16);
            whole.count(&s, &scope);
            parts[(n % 2) as usize].count(&s, &scope);
        }
        parts.iter().for_each(|p| sum.absorb(p));
        assert_eq!(sum.packets(), whole.packets());
        assert_eq!(sum.untracked(), whole.untracked());
        assert_eq!(sum.hosts().len(), whole.hosts().len());
        assert!(sum.endpoints().len() == whole.endpoints().len());
    }
}
