//! The key that both directions of a flow share.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::proto;

/// An IPv4 or IPv6 address as two words; IPv4 sits in the high half of the first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Addr(pub u64, pub u64);

impl Addr {
    /// From the four bytes of an IPv4 header.
    #[inline]
    pub fn v4(bytes: [u8; 4]) -> Self {
        Self(u64::from(u32::from_be_bytes(bytes)) << 32, 0)
    }

    /// From the sixteen bytes of an IPv6 header.
    #[inline]
    pub fn v6(bytes: [u8; 16]) -> Self {
        let wide = u128::from_be_bytes(bytes);
        Self((wide >> 64) as u64, wide as u64)
    }

    #[inline]
    fn wide(self) -> u128 {
        (u128::from(self.0) << 64) | u128::from(self.1)
    }

    /// The sixteen bytes of an IPv6 address.
    pub fn bytes(self) -> [u8; 16] {
        self.wide().to_be_bytes()
    }

    /// Whether this is a multicast or the broadcast address of its family.
    pub fn is_group(self, v6: bool) -> bool {
        if v6 { self.0 >> 56 == 0xff } else { self.0 >> 60 == 0xe || self.0 >> 32 == 0xffff_ffff }
    }

    /// The address, given which family it is of.
    pub fn ip(self, v6: bool) -> IpAddr {
        if v6 {
            IpAddr::V6(Ipv6Addr::from((u128::from(self.0) << 64) | u128::from(self.1)))
        } else {
            IpAddr::V4(Ipv4Addr::from((self.0 >> 32) as u32))
        }
    }
}

/// One packet's addresses and ports, in its own direction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tuple {
    pub src: Addr,
    pub dst: Addr,
    /// Port, or ICMP type; 0 where the protocol has none.
    pub sport: u16,
    /// Port, or ICMP code, or the type that answers `sport`; 0 where the protocol has none.
    pub dport: u16,
    pub proto: u8,
    pub v6: bool,
    /// An ICMP message that has no answer: its direction is part of its identity.
    pub one_way: bool,
}

/// The same for both directions of a flow: the smaller end first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct FlowKey {
    pub a: Addr,
    pub b: Addr,
    /// Ports of a and b, protocol and flags packed into one word.
    rest: u64,
}

const V6: u64 = 1;
const ONE_WAY: u64 = 2;

impl FlowKey {
    /// The key of a packet, and whether the packet travels from `a` to `b`.
    #[inline]
    pub fn of(t: &Tuple) -> (Self, bool) {
        // Without branches: which end is smaller is a coin's toss. Only the family is one, which
        // spares IPv4 the second words.
        let from_a = if t.v6 {
            let (src, dst) = (t.src.wide(), t.dst.wide());
            t.one_way | (src < dst) | ((src == dst) & (t.sport <= t.dport))
        } else {
            let (src, dst) = (t.src.0, t.dst.0);
            t.one_way | (src < dst) | ((src == dst) & (t.sport <= t.dport))
        };
        let pick = |from_src: u64, from_dst: u64| {
            let mask = u64::from(from_a).wrapping_neg();
            (from_src & mask) | (from_dst & !mask)
        };
        let (mut a, mut b) = (Addr(pick(t.src.0, t.dst.0), 0), Addr(pick(t.dst.0, t.src.0), 0));
        if t.v6 {
            (a.1, b.1) = (pick(t.src.1, t.dst.1), pick(t.dst.1, t.src.1));
        }
        let (sport, dport) = (u64::from(t.sport), u64::from(t.dport));
        let (pa, pb) = (pick(sport, dport), pick(dport, sport));
        let flags = if t.v6 { V6 } else { 0 } | if t.one_way { ONE_WAY } else { 0 };
        let rest = (pa << 48) | (pb << 32) | (u64::from(t.proto) << 8) | flags;
        (Self { a, b, rest }, from_a)
    }

    /// The last word of an IPv4 key: the ports of `a` and `b`, and the protocol.
    #[inline]
    pub fn rest(ports: u32, proto: u8) -> u64 {
        (u64::from(ports) << 32) | (u64::from(proto) << 8)
    }

    /// The key of these addresses of IPv4, `a`'s in the high half, and this last word.
    #[inline]
    pub fn unfold(ends: u64, rest: u64) -> Self {
        Self { a: Addr(ends & !0xffff_ffff, 0), b: Addr(ends << 32, 0), rest }
    }

    /// The addresses of IPv4 in one word; of IPv6 something else.
    #[inline]
    pub fn ends(&self) -> u64 {
        self.a.0 | (self.b.0 >> 32)
    }

    /// Whether it is the one that [`FlowKey::unfold`] makes of these.
    #[inline]
    pub fn is(&self, ends: u64, rest: u64) -> bool {
        // The last word says IPv4, whose other words are zero.
        (self.ends() == ends) & (self.rest == rest)
    }

    pub fn port_a(&self) -> u16 {
        (self.rest >> 48) as u16
    }

    pub fn port_b(&self) -> u16 {
        (self.rest >> 32) as u16
    }

    pub fn proto(&self) -> u8 {
        (self.rest >> 8) as u8
    }

    /// Whether the protocol has ports.
    pub fn has_ports(&self) -> bool {
        matches!(self.proto(), proto::TCP | proto::UDP | proto::SCTP)
    }

    pub fn is_v6(&self) -> bool {
        self.rest & V6 != 0
    }

    /// Whether this is an ICMP message without an answer.
    pub fn is_one_way(&self) -> bool {
        self.rest & ONE_WAY != 0
    }

    /// The key that has these words.
    pub fn from_words([a0, a1, b0, b1, rest]: [u64; 5]) -> Self {
        Self { a: Addr(a0, a1), b: Addr(b0, b1), rest }
    }

    /// The key's words, for hashing.
    #[inline]
    pub fn words(&self) -> [u64; 5] {
        [self.a.0, self.a.1, self.b.0, self.b.1, self.rest]
    }
}

/// The ICMP type that answers this one, for the types that come in pairs.
///
/// Community ID v1 names the pairs; ICMPv6 from RFC 4443, 4861, 2710 and 4620.
pub fn icmp_counterpart(protocol: u8, kind: u8) -> Option<u8> {
    let pairs: &[(u8, u8)] = match protocol {
        proto::ICMP => &[(8, 0), (13, 14), (15, 16), (17, 18), (10, 9)],
        proto::ICMPV6 => &[(128, 129), (133, 134), (135, 136), (130, 131), (144, 145), (139, 140)],
        _ => &[],
    };
    pairs.iter().find_map(|&(ask, answer)| match kind {
        k if k == ask => Some(answer),
        k if k == answer => Some(ask),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_directions_share_a_key() {
        let there = Tuple {
            src: Addr::v4([10, 0, 0, 9]),
            dst: Addr::v4([10, 0, 0, 2]),
            sport: 1000,
            dport: 53,
            proto: proto::UDP,
            ..Default::default()
        };
        let back = Tuple {
            src: there.dst,
            dst: there.src,
            sport: there.dport,
            dport: there.sport,
            ..there
        };
        let ((k1, d1), (k2, d2)) = (FlowKey::of(&there), FlowKey::of(&back));
        assert_eq!(k1, k2);
        assert_ne!(d1, d2);
        assert_eq!((k1.port_a(), k1.port_b(), k1.proto(), k1.is_v6()), (53, 1000, 17, false));
    }

    #[test]
    fn addresses_survive_the_packing() {
        let v6 = [0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x42];
        assert_eq!(Addr::v6(v6).ip(true).to_string(), "2001:db8::42");
        assert_eq!(Addr::v4([192, 0, 2, 7]).ip(false).to_string(), "192.0.2.7");
    }
}
