//! Which blocks of a segment can hold what is asked.
//!
//! An [`Expr`] is an upper bound: a packet that is wanted is never outside of it. That of a
//! pcap-filter text understands the common words and takes everything else for "any packet"; what
//! it leaves in is decided by libpcap on the packet itself.

use std::net::IpAddr;

use super::terms::{Net, Terms};
use crate::filter::text::{Word, words};
use crate::journal::index::{Attribute, Damage, IndexFile, Key, Kind};
use crate::packet::proto;

/// A bound on packets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Expr {
    Any,
    And(Vec<Self>),
    Or(Vec<Self>),
    Net(Net),
    Ports(u16, u16),
    Protocol(u8),
    Vlan(u16),
    EtherType(u16),
    Fragments,
    /// Frames that could not be read, about which an index knows nothing.
    Unread,
}

impl Expr {
    /// The bound of terms.
    pub(super) fn of_terms(terms: &Terms) -> Self {
        let mut all: Vec<Self> = terms.nets().map(Self::Net).collect();
        all.extend(terms.protocol.map(Self::Protocol));
        all.extend(terms.vlan.map(Self::Vlan));
        if terms.ask_ports() {
            let ports = terms.all_ports().map(|p| Self::Ports(p, p)).collect();
            all.push(Self::Or(vec![Self::And(ports), Self::Fragments]));
        }
        Self::And(all)
    }

    /// The bound of terms on fragments alone.
    pub(super) fn of_fragments(terms: &Terms) -> Self {
        let mut all: Vec<Self> = terms.nets().map(Self::Net).collect();
        all.extend(terms.protocol.map(Self::Protocol));
        all.push(Self::Fragments);
        Self::And(all)
    }

    /// The bound of a filter expression that libpcap takes, on Ethernet.
    pub(super) fn of_filter(text: &str) -> Self {
        let words = words(text);
        let vlans = words.iter().filter(|w| w.text == "vlan").count();
        // The index knows two tags of a frame.
        let mut parser = Parser { words: &words, at: 0, vlans: vlans <= 2, depth: 0 };
        let expr = parser.expression();
        let bound = if parser.at == words.len() { expr } else { Self::Any };
        Self::Or(vec![bound, Self::Unread])
    }

    /// Whether it bounds nothing.
    pub(super) fn is_any(&self) -> bool {
        match self {
            Self::Any => true,
            Self::And(all) => all.iter().all(Self::is_any),
            Self::Or(some) => some.iter().any(Self::is_any),
            _ => false,
        }
    }

    /// Whether a packet posted under a key can be in it.
    pub(super) fn may_have(&self, key: &Key) -> bool {
        match self {
            // What an open index does not keep by flow.
            Self::Any | Self::Vlan(_) => true,
            Self::And(all) => all.iter().all(|e| e.may_have(key)),
            Self::Or(some) => some.iter().any(|e| e.may_have(key)),
            Self::Net(net) => {
                key.addresses().is_some_and(|a| a.iter().any(|a| net.contains(*a, key.is_v6())))
            }
            Self::Ports(low, high) => {
                key.ports().is_some_and(|p| p.iter().any(|p| (low..=high).contains(&p)))
            }
            Self::Protocol(n) => key.protocol() == Some(*n),
            Self::EtherType(n) => key.ether_type() == Some(*n),
            Self::Fragments => key.kind() == Kind::Fragments,
            Self::Unread => key.kind() == Kind::Other,
        }
    }

    /// The blocks of a segment that can hold packets in it.
    pub(super) fn blocks(&self, index: &IndexFile, count: usize) -> Result<Blocks, Damage> {
        let mut out = Blocks::none(count);
        match self {
            Self::Any => return Ok(Blocks::all(count)),
            Self::And(all) => {
                out = Blocks::all(count);
                for e in all {
                    out.and(&e.blocks(index, count)?);
                    if out.is_empty() {
                        break;
                    }
                }
            }
            Self::Or(some) => {
                for e in some {
                    out.or(&e.blocks(index, count)?);
                }
            }
            Self::Net(net) => {
                let wide = |a: crate::packet::Addr| (u128::from(a.0) << 64) | u128::from(a.1);
                if net.v6 {
                    index.v6(wide(net.low), wide(net.high), &mut |b| out.add(b))?;
                } else {
                    let narrow = |a: crate::packet::Addr| (a.0 >> 32) as u32;
                    index.v4(narrow(net.low), narrow(net.high), &mut |b| out.add(b))?;
                }
            }
            Self::Ports(low, high) => index.ports(*low, *high, &mut |b| out.add(b))?,
            Self::Protocol(n) => out.add(&index.attribute(Attribute::Protocol(*n))?),
            Self::Vlan(n) => out.add(&index.attribute(Attribute::Vlan(*n))?),
            Self::EtherType(n) => out.add(&index.attribute(Attribute::EtherType(*n))?),
            Self::Fragments => out.add(&index.attribute(Attribute::Fragments)?),
            Self::Unread => out.add(&index.attribute(Attribute::Other)?),
        }
        Ok(out)
    }
}

/// A set of blocks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Blocks {
    words: Vec<u64>,
    count: usize,
}

impl Blocks {
    pub(super) fn none(count: usize) -> Self {
        Self { words: vec![0; count.div_ceil(64)], count }
    }

    pub(super) fn all(count: usize) -> Self {
        let mut out = Self { words: vec![u64::MAX; count.div_ceil(64)], count };
        if let Some(last) = out.words.last_mut()
            && !count.is_multiple_of(64)
        {
            *last = (1 << (count % 64)) - 1;
        }
        out
    }

    pub(super) fn add(&mut self, blocks: &[u32]) {
        for &block in blocks {
            if (block as usize) < self.count
                && let Some(word) = self.words.get_mut(block as usize / 64)
            {
                *word |= 1 << (block % 64);
            }
        }
    }

    pub(super) fn remove(&mut self, block: usize) {
        if let Some(word) = self.words.get_mut(block / 64) {
            *word &= !(1 << (block % 64));
        }
    }

    fn and(&mut self, other: &Self) {
        self.words.iter_mut().zip(&other.words).for_each(|(a, b)| *a &= b);
    }

    fn or(&mut self, other: &Self) {
        self.words.iter_mut().zip(&other.words).for_each(|(a, b)| *a |= b);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.words.iter().all(|w| *w == 0)
    }

    pub(super) fn contains(&self, block: usize) -> bool {
        self.words.get(block / 64).is_some_and(|w| w & (1 << (block % 64)) != 0)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = usize> {
        (0..self.count).filter(|b| self.contains(*b))
    }
}

/// Reads pcap-filter's grammar as far as a bound needs it (pcap-filter(7)).
struct Parser<'a> {
    words: &'a [Word<'a>],
    at: usize,
    /// Whether `vlan` may be bounded.
    vlans: bool,
    depth: usize,
}

impl<'a> Parser<'a> {
    fn peek(&self) -> Option<&'a str> {
        self.words.get(self.at).map(|w| w.text)
    }

    fn next(&mut self) -> Option<&'a str> {
        let word = self.peek();
        self.at += usize::from(word.is_some());
        word
    }

    /// `and` and `or` bind alike, from the left.
    fn expression(&mut self) -> Expr {
        let mut left = self.term();
        loop {
            match self.peek() {
                Some("and" | "&&") => {
                    self.at += 1;
                    left = Expr::And(vec![left, self.term()]);
                }
                Some("or" | "||") => {
                    self.at += 1;
                    left = Expr::Or(vec![left, self.term()]);
                }
                _ => return left,
            }
        }
    }

    fn term(&mut self) -> Expr {
        match self.peek() {
            Some("not" | "!") => {
                self.at += 1;
                self.term();
                Expr::Any
            }
            Some("(") if self.depth < 64 => {
                self.at += 1;
                self.depth += 1;
                let inner = self.expression();
                self.depth -= 1;
                if self.next() != Some(")") {
                    self.at = usize::MAX;
                    return Expr::Any;
                }
                // Parentheses of arithmetic.
                if self.at_end_of_term() { inner } else { self.rest_of_term() }
            }
            _ => {
                let start = self.at;
                match self.primitive() {
                    Some(expr) if self.at_end_of_term() => expr,
                    _ => {
                        self.at = start;
                        self.rest_of_term()
                    }
                }
            }
        }
    }

    fn at_end_of_term(&self) -> bool {
        matches!(self.peek(), None | Some("and" | "&&" | "or" | "||" | ")"))
    }

    /// Walks over a primitive that is not understood.
    fn rest_of_term(&mut self) -> Expr {
        let mut depth = 0usize;
        while let Some(word) = self.peek() {
            if depth == 0 && self.at_end_of_term() {
                break;
            }
            match word {
                "(" | "[" => depth += 1,
                ")" | "]" => depth = depth.saturating_sub(1),
                _ => {}
            }
            self.at += 1;
        }
        Expr::Any
    }

    /// A primitive of the common kinds; `None` for any other.
    fn primitive(&mut self) -> Option<Expr> {
        let mut bounds = Vec::new();
        match self.peek()? {
            "ip" => bounds.push(Expr::EtherType(0x0800)),
            "ip6" => bounds.push(Expr::EtherType(0x86dd)),
            "arp" => bounds.push(Expr::EtherType(0x0806)),
            "rarp" => bounds.push(Expr::EtherType(0x8035)),
            "tcp" => bounds.push(Expr::Protocol(proto::TCP)),
            "udp" => bounds.push(Expr::Protocol(proto::UDP)),
            "sctp" => bounds.push(Expr::Protocol(proto::SCTP)),
            "icmp" => bounds.push(Expr::Protocol(proto::ICMP)),
            "icmp6" => bounds.push(Expr::Protocol(proto::ICMPV6)),
            "vlan" => {
                self.at += 1;
                let id = self.peek().and_then(|w| w.parse::<u16>().ok());
                self.at += usize::from(id.is_some());
                return Some(id.filter(|_| self.vlans).map_or(Expr::Any, Expr::Vlan));
            }
            _ => {}
        }
        self.at += bounds.len();
        if !bounds.is_empty() && self.at_end_of_term() {
            return Some(Expr::And(bounds));
        }
        let directed = matches!(self.peek()?, "src" | "dst");
        self.at += usize::from(directed);
        match self.next()? {
            "host" => bounds.push(address(self.next()?)?),
            "net" => bounds.push(network(self.next()?)?),
            "port" => {
                let port = self.next()?.parse().ok()?;
                bounds.push(Expr::Ports(port, port));
            }
            "portrange" => {
                let (low, high) = self.next()?.split_once('-')?;
                let (low, high) = (low.parse::<u16>().ok()?, high.parse::<u16>().ok()?);
                bounds.push(Expr::Ports(low.min(high), low.max(high)));
            }
            word if directed => bounds.push(address(word)?),
            _ => return None,
        }
        Some(Expr::And(bounds))
    }
}

fn address(word: &str) -> Option<Expr> {
    Some(Expr::Net(Net::of(word.parse::<IpAddr>().ok()?)))
}

fn network(word: &str) -> Option<Expr> {
    word.contains('/').then(|| word.parse().ok().map(Expr::Net))?
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bound(text: &str) -> Expr {
        match Expr::of_filter(text) {
            Expr::Or(mut two) => two.swap_remove(0),
            other => other,
        }
    }

    #[test]
    fn common_filters_are_bounded_and_others_are_not() {
        let host = |a| Expr::And(vec![Expr::Net(Net::of(IpAddr::from(a)))]);
        let port = |p| Expr::And(vec![Expr::Ports(p, p)]);
        assert_eq!(bound("host 10.0.0.1"), host([10, 0, 0, 1]));
        assert_eq!(bound("src 10.0.0.1"), host([10, 0, 0, 1]));
        assert_eq!(
            bound("port 80 or port 81 and host 10.0.0.1"),
            Expr::And(vec![Expr::Or(vec![port(80), port(81)]), host([10, 0, 0, 1])]),
            "and and or bind alike"
        );
        assert_eq!(bound("tcp port 80"), Expr::And(vec![Expr::Protocol(6), Expr::Ports(80, 80)]));
        assert_eq!(
            bound("tcp[13] & (2|16) != 0 and host 10.0.0.1"),
            Expr::And(vec![Expr::Any, host([10, 0, 0, 1])])
        );
        for any in [
            "",
            "not host 10.0.0.1",
            "! port 80",
            "port 80 or 443",
            "src or dst port 80",
            "host example.org",
            "(tcp[12] & 0xf0) >> 2 > 20",
            "len > 100",
            "ether host 02:00:00:00:00:01",
            "vlan 1 and vlan 2 and vlan 3",
            "mpls 5 or host 1.2.3.4",
            "net 10",
            "port http",
        ] {
            assert!(bound(any).is_any(), "{any}: {:?}", bound(any));
        }
        assert!(!bound("vlan 5 and host 10.0.0.1").is_any());
        assert!(!bound("host 10.0.0.1 and (port 80 or (tcp[12] & 0xf0) >> 2 > 20)").is_any());
    }

    #[test]
    fn block_sets() {
        let mut set = Blocks::none(70);
        set.add(&[3, 69, 70, 4_000_000]);
        assert_eq!(set.iter().collect::<Vec<_>>(), [3, 69]);
        set.and(&Blocks::all(70));
        set.remove(3);
        assert!(set.contains(69) && !set.contains(3) && !set.is_empty());
        assert_eq!(Blocks::all(70).iter().count(), 70);
        assert_eq!(Blocks::all(64).iter().count(), 64);
    }
}
