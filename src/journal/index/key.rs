//! What a packet is posted under: its flow, and whatever else it can be asked by.

use crate::packet::{Addr, Brief, Decoded, FlowKey, Frame, Link, Reject, Tuple, decode, proto};

/// Five words that name a flow, or a kind of packet that is no flow.
///
/// For a flow these are [`FlowKey::words`]; other kinds set one of the bits below in the last word,
/// which a flow leaves clear.
#[derive(Clone, Copy, Debug, Default)]
pub struct Key(pub [u64; 5]);

impl PartialEq for Key {
    /// Word by word: what is derived calls a function for it.
    #[inline]
    fn eq(&self, other: &Self) -> bool {
        self.0.iter().zip(other.0).fold(0, |differ, (a, b)| differ | (a ^ b)) == 0
    }
}

impl Eq for Key {}

const V6: u64 = 1;
/// Two MAC addresses and an EtherType.
const LAYER2: u64 = 1 << 2;
/// The IPv4 addresses of an ARP or RARP packet.
const ARP: u64 = 1 << 3;
/// A pair of hosts and a protocol: all their fragments, and packets whose ports were not captured.
const FRAGMENTS: u64 = 1 << 4;
/// Frames that cannot be read, all of them.
const OTHER: u64 = 1 << 5;

/// What kind of packets a key stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Flow,
    Layer2,
    Arp,
    Fragments,
    Other,
}

impl Key {
    const UNREADABLE: Self = Self([0, 0, 0, 0, OTHER]);

    /// Of a common frame.
    #[inline]
    pub fn common(brief: &Brief) -> Self {
        let (ends, rest) = brief.folded_key();
        Self(FlowKey::unfold(ends, rest).words())
    }

    pub fn flow(tuple: &Tuple) -> Self {
        Self(FlowKey::of(tuple).0.words())
    }

    /// All fragments between the hosts of a tuple, whatever the ports, and what has none.
    pub fn fragments(tuple: &Tuple) -> Self {
        let bare = Tuple { sport: 0, dport: 0, one_way: false, ..*tuple };
        let mut words = FlowKey::of(&bare).0.words();
        words[4] |= FRAGMENTS;
        Self(words)
    }

    fn pair(a: Addr, b: Addr, rest: u64) -> Self {
        let (a, b) = if a <= b { (a, b) } else { (b, a) };
        Self([a.0, a.1, b.0, b.1, rest])
    }

    pub fn kind(&self) -> Kind {
        match self.0[4] & (LAYER2 | ARP | FRAGMENTS | OTHER) {
            LAYER2 => Kind::Layer2,
            ARP => Kind::Arp,
            FRAGMENTS => Kind::Fragments,
            OTHER => Kind::Other,
            _ => Kind::Flow,
        }
    }

    pub fn is_v6(&self) -> bool {
        self.0[4] & V6 != 0
    }

    /// The two addresses of what has IP addresses.
    pub fn addresses(&self) -> Option<[Addr; 2]> {
        let [a0, a1, b0, b1, _] = self.0;
        matches!(self.kind(), Kind::Flow | Kind::Fragments | Kind::Arp)
            .then_some([Addr(a0, a1), Addr(b0, b1)])
    }

    pub fn protocol(&self) -> Option<u8> {
        matches!(self.kind(), Kind::Flow | Kind::Fragments).then_some((self.0[4] >> 8) as u8)
    }

    /// The two ports of a flow that has some.
    pub fn ports(&self) -> Option<[u16; 2]> {
        let has = self.kind() == Kind::Flow
            && matches!(self.protocol(), Some(proto::TCP | proto::UDP | proto::SCTP));
        has.then_some([(self.0[4] >> 48) as u16, (self.0[4] >> 32) as u16])
    }

    /// The EtherType; 0 for LLC, `None` where there is none or it could not be read.
    pub fn ether_type(&self) -> Option<u16> {
        match self.kind() {
            Kind::Flow | Kind::Fragments => Some(if self.is_v6() { 0x86dd } else { 0x0800 }),
            Kind::Arp | Kind::Layer2 => Some((self.0[4] >> 16) as u16),
            Kind::Other => None,
        }
    }
}

/// What one packet is posted under, and what is known of it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Posting {
    /// Its own key, and for some others: the fragments of its hosts, the flow that an ICMP
    /// error is about.
    pub keys: [Key; 3],
    pub count: usize,
    pub decoded: Decoded,
    /// The tuple in an ICMP error, as that packet was sent; without ports where it was a fragment
    /// other than the first.
    pub about: Option<Tuple>,
    /// Whether the packet inside was a fragment other than the first.
    pub about_fragment: bool,
}

/// Reads a recorded packet: a function of the bytes, length and link type in the file alone.
#[inline]
pub fn read(frame: &Frame<'_>, out: &mut Posting) {
    // What the driver knew and the file does not say must not matter.
    let frame = Frame {
        wire_len: frame.wire_len.max(frame.data.len() as u32),
        wire_len_known: true,
        ..*frame
    };
    out.about = None;
    out.about_fragment = false;
    out.count = 1;
    match decode(&frame, &mut out.decoded) {
        Ok(()) => {
            let d = &out.decoded;
            match d.fragment {
                None => out.keys[0] = Key::flow(&d.tuple),
                Some(part) if part.offset == 0 => {
                    out.keys[..2].copy_from_slice(&[Key::flow(&d.tuple), Key::fragments(&d.tuple)]);
                    out.count = 2;
                }
                Some(_) => out.keys[0] = Key::fragments(&d.tuple),
            }
            if matches!(d.tuple.proto, proto::ICMP | proto::ICMPV6) && is_error(d) {
                embedded(&frame, out);
            }
        }
        // The IP header is good: found by its hosts, and by its ports where these are there. What
        // a filter makes of the rest is for the filter to say.
        Err(Reject::TransportHeader | Reject::TransportCut | Reject::Ipv6Extensions) => {
            let t = &out.decoded.tuple;
            let key = if t.sport | t.dport != 0 { Key::flow(t) } else { Key::fragments(t) };
            out.keys[..2].copy_from_slice(&[key, Key::UNREADABLE]);
            out.count = 2;
        }
        Err(reason) => out.keys[0] = unrouted(&frame, reason, &out.decoded),
    }
}

/// An ICMP message that carries the packet it complains of (RFC 792, RFC 4443).
fn is_error(d: &Decoded) -> bool {
    let whole = d.fragment.is_none_or(|f| f.offset == 0);
    whole
        && match d.tuple.proto {
            proto::ICMP => matches!(d.icmp.0, 3 | 4 | 5 | 11 | 12),
            _ => matches!(d.icmp.0, 1..=4),
        }
}

/// Adds the flow that an ICMP error is about.
#[cold]
fn embedded(frame: &Frame<'_>, out: &mut Posting) {
    // ICMPv6 has four bytes between its header of four and the packet, ICMP's header is of eight.
    let skip = if out.decoded.tuple.proto == proto::ICMPV6 { 4 } else { 0 };
    let at = out.decoded.payload_at as usize + skip;
    let Some(data) = frame.data.get(at..).filter(|d| !d.is_empty()) else { return };
    // Errors quote only the beginning: the lengths are those of the packet as it was.
    let quoted =
        Frame { data, wire_len: data.len() as u32, wire_len_known: false, link: Link::Raw };
    let mut inner = Decoded::default();
    match decode(&quoted, &mut inner) {
        Ok(()) => {}
        // The ports are there, the rest of the header is not.
        Err(Reject::TransportCut) if inner.tuple.sport | inner.tuple.dport != 0 => {}
        Err(_) => return,
    }
    out.about_fragment = inner.fragment.is_some_and(|f| f.offset != 0);
    let key =
        if out.about_fragment { Key::fragments(&inner.tuple) } else { Key::flow(&inner.tuple) };
    out.about = Some(inner.tuple);
    if let Some(slot) = out.keys.get_mut(out.count) {
        *slot = key;
        out.count += 1;
    }
}

/// The key of a frame that has no flow.
#[cold]
fn unrouted(frame: &Frame<'_>, reason: Reject, d: &Decoded) -> Key {
    if reason.is_malformed() || !d.has_mac {
        return Key::UNREADABLE;
    }
    let (kind, payload) = ether_type(frame.data);
    let rest = u64::from(kind) << 16;
    if matches!(kind, 0x0806 | 0x8035) {
        // Where Ethernet and IPv4 have their protocol addresses (RFC 826).
        let address =
            |at: usize| frame.data.get(payload + at..).and_then(|d| d.first_chunk::<4>()).copied();
        return match (address(14), address(24)) {
            (Some(sender), Some(target)) => {
                Key::pair(Addr::v4(sender), Addr::v4(target), rest | ARP)
            }
            _ => Key::UNREADABLE,
        };
    }
    let mac = |m: [u8; 6]| Addr(u64::from_be_bytes([0, 0, m[0], m[1], m[2], m[3], m[4], m[5]]), 0);
    Key::pair(mac(d.src_mac), mac(d.dst_mac), rest | LAYER2)
}

/// The EtherType behind an Ethernet frame's tags, 0 for a length; and where its payload starts.
fn ether_type(data: &[u8]) -> (u16, usize) {
    let mut at = 12;
    loop {
        let Some(&[high, low]) = data.get(at..).and_then(|d| d.first_chunk::<2>()) else {
            return (0, at);
        };
        match u16::from_be_bytes([high, low]) {
            0x8100 | 0x88a8 | 0x9100 | 0x9200 => at += 4,
            0..=1500 => return (0, at + 2),
            kind => return (kind, at + 2),
        }
    }
}
