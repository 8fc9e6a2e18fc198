//! What is asked of a packet, and whether one has it.

use std::collections::HashMap;
use std::net::IpAddr;

use crate::event::community_digest;
use crate::journal::index::{Key, Kind, Posting};
use crate::packet::{Addr, FlowKey, Tuple, proto};

/// A network, or with its whole length one address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Net {
    pub v6: bool,
    /// First and last address.
    pub low: Addr,
    pub high: Addr,
}

/// Text that is no address or network.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}: not an address or a network such as 192.0.2.1, 192.0.2.0/24 or 2001:db8::/32")]
pub struct BadNet(String);

impl Net {
    pub fn of(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(ip) => Self::wide(false, u128::from(u32::from(ip)) << 96, 32),
            IpAddr::V6(ip) => Self::wide(true, u128::from(ip), 128),
        }
    }

    fn wide(v6: bool, bits: u128, length: u32) -> Self {
        let host = u128::MAX.checked_shr(length).unwrap_or(0);
        let (low, high) = (bits & !host, bits | host);
        let addr = |n: u128| Addr((n >> 64) as u64, n as u64);
        // An IPv4 address is the upper 32 bits; what is below stays 0.
        let mask = if v6 { u128::MAX } else { !(u128::MAX >> 32) };
        Self { v6, low: addr(low), high: addr(high & mask) }
    }

    pub fn contains(&self, address: Addr, v6: bool) -> bool {
        v6 == self.v6 && self.low <= address && address <= self.high
    }

    /// The address, where it is a single one.
    pub fn single(&self) -> Option<Addr> {
        (self.low == self.high).then_some(self.low)
    }
}

impl std::str::FromStr for Net {
    type Err = BadNet;

    fn from_str(text: &str) -> Result<Self, BadNet> {
        let bad = || BadNet(text.to_owned());
        let (address, length) = match text.split_once('/') {
            None => (text, None),
            Some((address, length)) => (address, Some(length.parse::<u32>().map_err(|_| bad())?)),
        };
        let address: IpAddr = address.parse().map_err(|_| bad())?;
        let most = if address.is_ipv6() { 128 } else { 32 };
        let length = length.unwrap_or(most);
        if length > most {
            return Err(bad());
        }
        Ok(match address {
            IpAddr::V4(ip) => Self::wide(false, u128::from(u32::from(ip)) << 96, length),
            IpAddr::V6(ip) => Self::wide(true, u128::from(ip), length),
        })
    }
}

/// One end of a conversation, as far as it is given.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct End {
    pub net: Option<Net>,
    pub port: Option<u16>,
}

impl End {
    fn is(&self, address: Addr, v6: bool, port: Option<u16>) -> bool {
        self.net.is_none_or(|net| net.contains(address, v6))
            && self.port.is_none_or(|wanted| port == Some(wanted))
    }

    fn is_given(&self) -> bool {
        self.net.is_some() || self.port.is_some()
    }
}

/// A flow by a name of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Identity {
    /// The SHA-1 of a Community ID, version 1, seed 0.
    Community([u8; 20]),
    /// `flow_id` of a flow event.
    FlowId(u64),
}

/// What a tuple has to have; all that is given must hold.
///
/// A packet has it if its own addresses, ports and protocol do, or if it is an ICMP error about a
/// packet that does. A fragment has the ports of its packet's first fragment. ARP has the two
/// addresses it speaks of, and no protocol.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Terms {
    /// The two ends, either way round.
    pub ends: [End; 2],
    /// Each is one of the two addresses.
    pub hosts: Vec<Net>,
    /// Each is one of the two ports.
    pub ports: Vec<u16>,
    pub protocol: Option<u8>,
    /// A VLAN id among the frame's two outermost.
    pub vlan: Option<u16>,
}

/// Whether a protocol has ports.
pub(super) fn is_ported(protocol: u8) -> bool {
    matches!(protocol, proto::TCP | proto::UDP | proto::SCTP)
}

impl Terms {
    /// Whether anything of addresses, ports and protocol is asked.
    pub(super) fn ask_tuple(&self) -> bool {
        self.ask_ports()
            || self.protocol.is_some()
            || !self.hosts.is_empty()
            || self.ends.iter().any(End::is_given)
    }

    pub(super) fn ask_ports(&self) -> bool {
        !self.ports.is_empty() || self.ends.iter().any(|e| e.port.is_some())
    }

    /// Networks that must be among the addresses.
    pub(super) fn nets(&self) -> impl Iterator<Item = Net> {
        self.hosts.iter().copied().chain(self.ends.iter().filter_map(|e| e.net))
    }

    pub(super) fn all_ports(&self) -> impl Iterator<Item = u16> {
        self.ports.iter().copied().chain(self.ends.iter().filter_map(|e| e.port))
    }

    /// Whether a tuple has it; `ports` says whether the tuple's ports are known.
    fn hold(&self, t: &Tuple, ports: bool) -> bool {
        let has = ports && is_ported(t.proto);
        let (sport, dport) = (has.then_some(t.sport), has.then_some(t.dport));
        let [a, b] = &self.ends;
        let there = a.is(t.src, t.v6, sport) && b.is(t.dst, t.v6, dport);
        let back = b.is(t.src, t.v6, sport) && a.is(t.dst, t.v6, dport);
        (there || back)
            && self.protocol.is_none_or(|p| p == t.proto)
            && self.hosts.iter().all(|n| n.contains(t.src, t.v6) || n.contains(t.dst, t.v6))
            && self.ports.iter().all(|p| [sport, dport].contains(&Some(*p)))
    }

    /// Whether a tuple without its ports may have it.
    fn hold_without_ports(&self, t: &Tuple) -> bool {
        let bare = |end: &End| End { port: None, ..*end };
        let ends = [bare(&self.ends[0]), bare(&self.ends[1])];
        Self { ends, ports: Vec::new(), ..self.clone() }.hold(t, false)
    }
}

/// A flow that an identity was found to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Found {
    pub(super) key: Key,
    /// First and last moment of the flow, inclusive.
    pub(super) from_ns: u64,
    pub(super) to_ns: u64,
}

/// An error may come so long after the flow's last packet.
const ERROR_LATE_NS: u64 = 10_000_000_000;

/// The question as it is put to each packet.
#[derive(Clone, Debug, Default)]
pub(super) struct Wanted {
    pub(super) terms: Terms,
    pub(super) flow: Option<Found>,
}

/// What a packet is to a question.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Yes,
    No,
    /// A fragment without ports, for which its packet's first fragment decides.
    AsFirst,
}

impl Wanted {
    /// Whether fragments need to be joined.
    pub(super) fn joins(&self) -> bool {
        self.terms.ask_ports() || self.flow.is_some()
    }

    pub(super) fn verdict(&self, posting: &Posting, timestamp_ns: u64) -> Verdict {
        let of = |yes: bool| if yes { Verdict::Yes } else { Verdict::No };
        if self.terms.vlan.is_some_and(|id| !posting.decoded.vlans.ids().any(|v| v == id)) {
            return Verdict::No;
        }
        if self.flow.is_none() && !self.terms.ask_tuple() {
            return Verdict::Yes;
        }
        let Some(own) = posting.keys.first() else { return Verdict::No };
        match own.kind() {
            Kind::Other | Kind::Layer2 => Verdict::No,
            Kind::Arp => {
                let plain = self.flow.is_none() && !self.joins() && self.terms.protocol.is_none();
                of(plain
                    && own.addresses().is_some_and(|[src, dst]| {
                        self.terms.hold(&Tuple { src, dst, ..Tuple::default() }, false)
                    }))
            }
            Kind::Fragments => {
                let t = &posting.decoded.tuple;
                if !self.joins() {
                    of(self.terms.hold(t, false))
                } else if self.terms.hold_without_ports(t)
                    && self.flow.is_none_or(|f| Key::fragments(t) == fragments_of(&f.key))
                {
                    Verdict::AsFirst
                } else {
                    Verdict::No
                }
            }
            Kind::Flow => of(self.has(&posting.decoded.tuple, true, timestamp_ns, 0)
                || posting.about.as_ref().is_some_and(|inner| {
                    let ports = !posting.about_fragment;
                    (ports || !self.joins()) && self.has(inner, ports, timestamp_ns, ERROR_LATE_NS)
                })),
        }
    }

    fn has(&self, tuple: &Tuple, ports: bool, timestamp_ns: u64, late_ns: u64) -> bool {
        self.flow.is_none_or(|f| {
            (f.from_ns..=f.to_ns.saturating_add(late_ns)).contains(&timestamp_ns)
                && Key::flow(tuple) == f.key
        }) && self.terms.hold(tuple, ports)
    }

    /// The keys of all flows that can have it, where these are few.
    pub(super) fn keys(&self) -> Option<Vec<Key>> {
        if let Some(found) = self.flow {
            return Some(vec![found.key]);
        }
        let protocol = self.terms.protocol?;
        if matches!(protocol, proto::ICMP | proto::ICMPV6) {
            // Types and codes are part of the key.
            return None;
        }
        let ports_needed = is_ported(protocol);
        let mut keys = Vec::new();
        for (src, dst) in self.pairs()? {
            let tuple = |sport, dport| Tuple {
                src: src.low,
                dst: dst.low,
                sport,
                dport,
                proto: protocol,
                v6: src.v6,
                one_way: false,
            };
            if ports_needed {
                let [a, b] = &self.terms.ends;
                match (a.port, b.port, self.terms.ports.as_slice()) {
                    (Some(p), Some(q), []) if a.net.is_some() && b.net.is_some() => {
                        keys.push(Key::flow(&tuple(p, q)));
                    }
                    (None, None, &[p, q]) if p != q => {
                        keys.push(Key::flow(&tuple(p, q)));
                        keys.push(Key::flow(&tuple(q, p)));
                    }
                    _ => return None,
                }
            } else {
                keys.push(Key::flow(&tuple(0, 0)));
            }
        }
        Some(keys)
    }

    /// The two addresses, where both are single ones.
    fn pairs(&self) -> Option<Vec<(Net, Net)>> {
        let [a, b] = &self.terms.ends;
        let pair = match (a.net, b.net, self.terms.hosts.as_slice()) {
            (Some(a), Some(b), []) => (a, b),
            // The same host twice says nothing of the other.
            (None, None, &[a, b]) if a != b => (a, b),
            (Some(a), None, &[b]) | (None, Some(a), &[b])
                if a != b && self.terms.ends.iter().all(|e| e.port.is_none()) =>
            {
                (a, b)
            }
            _ => return None,
        };
        let single = pair.0.single().is_some() && pair.1.single().is_some();
        (single && pair.0.v6 == pair.1.v6).then(|| vec![pair])
    }
}

/// The fragments' key of a flow's hosts and protocol.
pub(super) fn fragments_of(flow: &Key) -> Key {
    let [src, dst] = flow.addresses().unwrap_or_default();
    let proto = flow.protocol().unwrap_or(0);
    Key::fragments(&Tuple { src, dst, proto, v6: flow.is_v6(), ..Tuple::default() })
}

/// Remembers which flows have a community id.
#[derive(Default)]
pub(super) struct Communities(HashMap<[u64; 5], bool>);

impl Communities {
    /// Flows remembered; beyond it, everything is forgotten and asked again.
    const MOST: usize = 1 << 20;

    pub(super) fn is(&mut self, key: &Key, digest: &[u8; 20]) -> bool {
        if key.kind() != Kind::Flow {
            return false;
        }
        if self.0.len() >= Self::MOST {
            self.0.clear();
        }
        *self
            .0
            .entry(key.0)
            .or_insert_with(|| community_digest(&FlowKey::from_words(key.0), 0) == *digest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks_from_text() {
        let net = |text: &str| text.parse::<Net>();
        let v4 = |a: [u8; 4]| Addr::v4(a);
        let n = net("192.0.2.77/24").unwrap();
        assert_eq!((n.low, n.high), (v4([192, 0, 2, 0]), v4([192, 0, 2, 255])));
        assert!(n.contains(v4([192, 0, 2, 9]), false) && !n.contains(v4([192, 0, 3, 0]), false));
        assert!(!n.contains(v4([192, 0, 2, 9]), true));
        assert_eq!(net("10.1.2.3").unwrap().single(), Some(v4([10, 1, 2, 3])));
        let all = net("0.0.0.0/0").unwrap();
        assert!(all.contains(v4([255; 4]), false) && all.single().is_none());
        let v6 = net("2001:db8::/33").unwrap();
        assert_eq!(v6.high.0, 0x2001_0db8_7fff_ffff);
        assert!(net("::/0").unwrap().contains(Addr(u64::MAX, u64::MAX), true));
        for bad in ["", "host", "1.2.3.4/33", "::/129", "1.2.3.4/x", "1.2.3", "1.2.3.4/"] {
            assert!(net(bad).is_err(), "{bad}");
        }
    }
}
