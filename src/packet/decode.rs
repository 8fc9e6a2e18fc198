//! From a frame to addresses, ports and TCP fields in one walk.
//!
//! Link layers, tags and tunnels of the link (VLAN, QinQ, MPLS, PPPoE, VN-Tag, FabricPath) are
//! walked here; the fields of IP and TCP headers are etherparse's. Each length that a header
//! claims is held against the bytes that are there and the length on the wire.

use etherparse::{Ipv4HeaderSlice, Ipv6HeaderSlice, TcpHeaderSlice};

use super::brief::Brief;
use super::key::{Addr, Tuple, icmp_counterpart};
use super::link::Link;
use super::proto;

/// A captured frame.
#[derive(Clone, Copy, Debug)]
pub struct Frame<'a> {
    /// The bytes that were captured.
    pub data: &'a [u8],
    /// Length on the wire, bytes, without the Ethernet checksum.
    pub wire_len: u32,
    /// Whether `wire_len` is known, or only the captured length since the driver cuts silently.
    pub wire_len_known: bool,
    pub link: Link,
}

/// VLAN ids kept of a frame, QinQ's two; deeper tags are walked over.
const VLANS: usize = 2;
/// Tags, labels and shims walked over before the frame is called hostile.
const MAX_TAGS: usize = 16;
/// IPv6 extension headers walked over before the packet is called hostile.
const MAX_EXTENSIONS: usize = 16;

/// The VLAN ids of a frame, outermost first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Vlans([u16; VLANS]);

impl Vlans {
    /// Set on each id that is there, since 0 is one (a priority tag).
    const PRESENT: u16 = 0x8000;

    fn push(&mut self, id: u16) {
        if let Some(slot) = self.0.iter_mut().find(|slot| **slot == 0) {
            *slot = id | Self::PRESENT;
        }
    }

    pub fn ids(&self) -> impl Iterator<Item = u16> {
        self.0.into_iter().take_while(|&slot| slot != 0).map(|slot| slot & !Self::PRESENT)
    }
}

/// TCP header fields; all zero when the header was cut off by the capture.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tcp {
    pub seq: u32,
    pub ack: u32,
    pub window: u16,
    pub flags: u8,
}

/// A part of a larger IP packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fragment {
    pub id: u32,
    /// Bytes of the packet before this part.
    pub offset: u32,
    pub more: bool,
}

/// What a frame says.
#[derive(Clone, Copy, Debug, Default)]
pub struct Decoded {
    pub tuple: Tuple,
    /// Frame bytes on the wire.
    pub wire_len: u32,
    /// Bytes of the IP packet, its header included.
    pub ip_len: u32,
    /// Bytes behind the transport header, by the IP length; not necessarily captured.
    pub payload_len: u32,
    /// Where the payload starts in the captured bytes; of ARP, where it starts itself.
    pub payload_at: u32,
    pub tcp: Tcp,
    /// ICMP type and code as sent.
    pub icmp: (u8, u8),
    pub src_mac: [u8; 6],
    pub dst_mac: [u8; 6],
    pub has_mac: bool,
    pub vlans: Vlans,
    pub fragment: Option<Fragment>,
    /// Less was captured than was sent.
    pub truncated: bool,
    /// An IP length was larger than the frame; the frame's was used.
    pub length_lies: bool,
}

/// Why a frame makes no flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Reject {
    Arp,
    OtherEtherType,
    Llc,
    OtherLinkType,
    OtherMpls,
    OtherPpp,
    ShortLink,
    TooManyTags,
    Ipv4Header,
    Ipv6Header,
    Ipv6Extensions,
    TransportHeader,
    TransportCut,
}

impl Reject {
    /// Whether the frame is damaged, rather than of a kind that is not IP.
    pub fn is_malformed(self) -> bool {
        !matches!(
            self,
            Self::Arp
                | Self::OtherEtherType
                | Self::Llc
                | Self::OtherLinkType
                | Self::OtherMpls
                | Self::OtherPpp
        )
    }
}

const IPV4: u16 = 0x0800;
const IPV6: u16 = 0x86dd;

/// Where IP starts, and whether it is version 6.
#[derive(Clone, Copy)]
struct Network {
    at: usize,
    v6: bool,
}

/// Reads a frame into `out`, whatever that held before.
#[inline]
pub fn decode(frame: &Frame<'_>, out: &mut Decoded) -> Result<(), Reject> {
    let mut brief = Brief::default();
    if brief.read(frame) {
        *out = brief.unfold();
        return Ok(());
    }
    walk(frame, out)
}

/// Reads any frame; what [`Brief::read`] takes it reads the same.
pub fn walk(frame: &Frame<'_>, out: &mut Decoded) -> Result<(), Reject> {
    *out = Decoded { wire_len: frame.wire_len, ..Decoded::default() };
    let network = walk_link(frame, out)?;
    if network.v6 { ipv6(frame, network.at, out) } else { ipv4(frame, network.at, out) }
}

/// A number that is the same for all packets between two hosts, in both directions, fragments
/// included: software RSS. 0 for what is not IP.
#[inline]
pub fn steer(frame: &Frame<'_>) -> u32 {
    let mut scratch = Decoded::default();
    let Ok(network) = walk_link(frame, &mut scratch) else { return 0 };
    let (first, len) = if network.v6 { (8, 16) } else { (12, 4) };
    let at = network.at + first;
    let (Some(src), Some(dst)) =
        (frame.data.get(at..at + len), frame.data.get(at + len..at + 2 * len))
    else {
        return 0;
    };
    let fold = |bytes: &[u8]| {
        bytes.chunks_exact(4).fold(0u64, |h, word| {
            let word = u32::from_be_bytes([word[0], word[1], word[2], word[3]]);
            (h ^ u64::from(word)).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29)
        })
    };
    let mixed = fold(src).wrapping_add(fold(dst)).wrapping_mul(0xd6e8_feb8_6659_fd93);
    (mixed >> 32) as u32
}

#[inline]
fn be16(data: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(*data.get(at..)?.first_chunk()?))
}

fn walk_link(frame: &Frame<'_>, out: &mut Decoded) -> Result<Network, Reject> {
    let data = frame.data;
    match frame.link {
        Link::Ethernet => ethernet(data, 0, out),
        Link::Raw => by_version(data, 0).ok_or(Reject::ShortLink),
        Link::Loopback => by_version(data, 4).ok_or(Reject::OtherLinkType),
        Link::Ppp => {
            // Address and control (0xff 0x03) may be left out, RFC 1661.
            let at = if data.starts_with(&[0xff, 0x03]) { 2 } else { 0 };
            ppp(data, at)
        }
        Link::Cooked => tagged(data, 14, out),
        Link::Cooked2 => match be16(data, 0) {
            Some(kind) => ether_payload(kind, data, 20, out),
            None => Err(Reject::ShortLink),
        },
        Link::FrameRelay => frame_relay(data, out),
        Link::Nflog => nflog(data),
        Link::Other(_) => Err(Reject::OtherLinkType),
    }
}

fn by_version(data: &[u8], at: usize) -> Option<Network> {
    match data.get(at)? >> 4 {
        4 => Some(Network { at, v6: false }),
        6 => Some(Network { at, v6: true }),
        _ => None,
    }
}

#[inline]
fn ethernet(data: &[u8], at: usize, out: &mut Decoded) -> Result<Network, Reject> {
    let Some(header) = data.get(at..).and_then(|d| d.first_chunk::<14>()) else {
        return Err(Reject::ShortLink);
    };
    if !out.has_mac {
        out.dst_mac = [header[0], header[1], header[2], header[3], header[4], header[5]];
        out.src_mac = [header[6], header[7], header[8], header[9], header[10], header[11]];
        out.has_mac = true;
    }
    match u16::from_be_bytes([header[12], header[13]]) {
        IPV4 => Ok(Network { at: at + 14, v6: false }),
        IPV6 => Ok(Network { at: at + 14, v6: true }),
        _ => tagged(data, at + 12, out),
    }
}

/// What follows an EtherType that stands at `at`: tags, then IP or something else.
fn tagged(data: &[u8], mut at: usize, out: &mut Decoded) -> Result<Network, Reject> {
    for _ in 0..MAX_TAGS {
        let kind = be16(data, at).ok_or(Reject::ShortLink)?;
        match kind {
            // 802.1Q, 802.1ad and their older numbers.
            0x8100 | 0x88a8 | 0x9100 | 0x9200 => {
                let tag = be16(data, at + 2).ok_or(Reject::ShortLink)?;
                out.vlans.push(tag & 0x0fff);
                at += 4;
            }
            // VN-Tag: four bytes, then the next EtherType.
            0x8926 => at += 6,
            _ => return ether_payload(kind, data, at + 2, out),
        }
    }
    Err(Reject::TooManyTags)
}

fn ether_payload(kind: u16, data: &[u8], at: usize, out: &mut Decoded) -> Result<Network, Reject> {
    match kind {
        IPV4 => Ok(Network { at, v6: false }),
        IPV6 => Ok(Network { at, v6: true }),
        0x0806 => {
            out.payload_at = at as u32;
            Err(Reject::Arp)
        }
        0x8847 | 0x8848 => mpls(data, at),
        // PPPoE session, RFC 2516: six bytes, then PPP.
        0x8864 => ppp(data, at + 6),
        // FabricPath: the tag's second half, then a whole Ethernet frame.
        0x8903 if data.len() > at + 16 => ethernet(data, at + 2, out),
        length if length <= 1500 => llc(data, at, out),
        _ => Err(Reject::OtherEtherType),
    }
}

/// 802.2 LLC; only SNAP with an EtherType leads on (RFC 1042).
fn llc(data: &[u8], at: usize, out: &mut Decoded) -> Result<Network, Reject> {
    match data.get(at..).and_then(|d| d.first_chunk::<8>()) {
        Some([0xaa, 0xaa, 0x03, 0, 0, 0, _, _]) => match be16(data, at + 6) {
            Some(kind) if kind > 1500 => tagged(data, at + 6, out),
            _ => Err(Reject::Llc),
        },
        _ => Err(Reject::Llc),
    }
}

/// MPLS labels (RFC 3032); what follows the last says its version itself.
fn mpls(data: &[u8], mut at: usize) -> Result<Network, Reject> {
    for _ in 0..MAX_TAGS {
        let bottom = data.get(at + 2).ok_or(Reject::ShortLink)? & 1 != 0;
        at += 4;
        if bottom {
            return by_version(data, at).ok_or(Reject::OtherMpls);
        }
    }
    Err(Reject::TooManyTags)
}

/// A PPP protocol number (one byte when compressed), then its payload.
fn ppp(data: &[u8], at: usize) -> Result<Network, Reject> {
    match data.get(at).ok_or(Reject::ShortLink)? {
        0x21 => Ok(Network { at: at + 1, v6: false }),
        0x57 => Ok(Network { at: at + 1, v6: true }),
        _ => match be16(data, at).ok_or(Reject::ShortLink)? {
            0x0021 => Ok(Network { at: at + 2, v6: false }),
            0x0057 => Ok(Network { at: at + 2, v6: true }),
            _ => Err(Reject::OtherPpp),
        },
    }
}

/// RFC 2427: two address bytes, control, then an NLPID; or Cisco's form with an EtherType.
fn frame_relay(data: &[u8], out: &mut Decoded) -> Result<Network, Reject> {
    match data.get(2..).and_then(|d| d.first_chunk::<2>()) {
        None => Err(Reject::ShortLink),
        Some([0x03, 0xcc]) => Ok(Network { at: 4, v6: false }),
        Some([0x03, 0x8e]) => Ok(Network { at: 4, v6: true }),
        Some([0x03, _]) => Err(Reject::OtherLinkType),
        Some(_) => tagged(data, 2, out),
    }
}

/// Netfilter log: a four-byte header, then type-length-value records of host byte order; type 9 is
/// the packet.
fn nflog(data: &[u8]) -> Result<Network, Reject> {
    let mut at = 4;
    for _ in 0..64 {
        let Some([l0, l1, t0, t1]) = data.get(at..).and_then(|d| d.first_chunk::<4>()) else {
            return Err(Reject::ShortLink);
        };
        let (len, kind) =
            (usize::from(u16::from_le_bytes([*l0, *l1])), u16::from_le_bytes([*t0, *t1]));
        if kind & 0x7fff == 9 {
            return by_version(data, at + 4).ok_or(Reject::OtherLinkType);
        }
        if len < 4 {
            return Err(Reject::ShortLink);
        }
        at += len.next_multiple_of(4);
    }
    Err(Reject::OtherLinkType)
}

/// Settles how long the IP packet at `at` is, given what its header claims (0: nothing).
#[inline]
fn settle_length(frame: &Frame<'_>, at: usize, claimed: u32, out: &mut Decoded) {
    let on_wire = frame.wire_len.saturating_sub(at as u32);
    out.ip_len = claimed;
    if claimed == 0 {
        // Segmentation offload and jumbograms: the frame says how long it is.
        out.ip_len = on_wire;
    } else if claimed > on_wire {
        if frame.wire_len_known {
            out.length_lies = true;
            out.ip_len = on_wire;
        } else {
            out.wire_len = at as u32 + claimed;
        }
    }
    out.truncated = at as u64 + u64::from(out.ip_len) > frame.data.len() as u64;
}

#[inline]
fn ipv4(frame: &Frame<'_>, at: usize, out: &mut Decoded) -> Result<(), Reject> {
    let bytes = frame.data.get(at..).unwrap_or_default();
    let header = Ipv4HeaderSlice::from_slice(bytes).map_err(|_| Reject::Ipv4Header)?;
    let header_len = header.slice().len();
    let claimed = header.total_len();
    if claimed != 0 && usize::from(claimed) < header_len {
        return Err(Reject::Ipv4Header);
    }
    settle_length(frame, at, u32::from(claimed), out);
    out.tuple.src = Addr::v4(header.source());
    out.tuple.dst = Addr::v4(header.destination());
    out.tuple.proto = header.protocol().0;
    // More-fragments and offset in one look; etherparse gives them one by one.
    let word = be16(header.slice(), 6).unwrap_or(0);
    if word & 0x3fff != 0 {
        out.fragment = Some(Fragment {
            id: u32::from(header.identification()),
            offset: u32::from(word & 0x1fff) * 8,
            more: word & 0x2000 != 0,
        });
    }
    transport(frame, at, header_len, out)
}

#[inline]
fn ipv6(frame: &Frame<'_>, at: usize, out: &mut Decoded) -> Result<(), Reject> {
    let bytes = frame.data.get(at..).unwrap_or_default();
    let header = Ipv6HeaderSlice::from_slice(bytes).map_err(|_| Reject::Ipv6Header)?;
    let claimed = match header.payload_length() {
        // A jumbogram says its length in a hop-by-hop option (RFC 2675); else nothing follows, and
        // what is there is padding.
        0 if header.next_header().0 == 0 || frame.wire_len > 65_535 => 0,
        payload => u32::from(payload) + 40,
    };
    settle_length(frame, at, claimed, out);
    out.tuple.v6 = true;
    out.tuple.src = Addr::v6(header.source());
    out.tuple.dst = Addr::v6(header.destination());
    let (mut next, mut len) = (header.next_header().0, 40usize);
    for _ in 0..MAX_EXTENSIONS {
        let extension = bytes.get(len..).unwrap_or_default();
        let step = match next {
            // Hop-by-hop, routing, destination options, mobility, HIP, shim6: units of 8 bytes.
            0 | 43 | 60 | 135 | 139 | 140 => match extension.first_chunk::<2>() {
                Some(&[following, units]) => (following, (usize::from(units) + 1) * 8),
                None => return Err(Reject::Ipv6Extensions),
            },
            // Authentication header: units of 4 bytes, less two.
            51 => match extension.first_chunk::<2>() {
                Some(&[following, units]) => (following, (usize::from(units) + 2) * 4),
                None => return Err(Reject::Ipv6Extensions),
            },
            proto::IPV6_FRAGMENT => match extension.first_chunk::<8>() {
                Some(&[following, _, o0, o1, i0, i1, i2, i3]) => {
                    let word = u16::from_be_bytes([o0, o1]);
                    let (offset, more) = (u32::from(word & !7), word & 1 != 0);
                    // An atomic fragment (RFC 6946) is a whole packet.
                    if more || offset != 0 {
                        let id = u32::from_be_bytes([i0, i1, i2, i3]);
                        out.fragment = Some(Fragment { id, offset, more });
                    }
                    (following, 8)
                }
                None => return Err(Reject::Ipv6Extensions),
            },
            _ => {
                out.tuple.proto = next;
                return transport(frame, at, len, out);
            }
        };
        len += step.1;
        next = step.0;
        if out.fragment.is_some_and(|f| f.offset != 0) {
            // What follows is the middle of a packet, not a header.
            out.tuple.proto = next;
            return transport(frame, at, len, out);
        }
    }
    Err(Reject::Ipv6Extensions)
}

/// Reads the transport header `header_len` bytes into the IP packet at `at`.
#[inline]
fn transport(
    frame: &Frame<'_>,
    at: usize,
    header_len: usize,
    out: &mut Decoded,
) -> Result<(), Reject> {
    let sent = (out.ip_len as usize).saturating_sub(header_len);
    let start = at + header_len;
    let end = (start + sent).min(frame.data.len());
    let bytes = frame.data.get(start..end).unwrap_or_default();
    out.payload_at = start as u32;
    out.payload_len = sent as u32;
    if out.fragment.is_some_and(|f| f.offset != 0) {
        return Ok(());
    }
    let need = match out.tuple.proto {
        proto::TCP => 20,
        proto::UDP | proto::ICMP => 8,
        proto::SCTP => 12,
        proto::ICMPV6 => 4,
        _ => return Ok(()),
    };
    // A fragment may be smaller than the header, and cuts it like a capture does.
    if sent < need && out.fragment.is_none() {
        return Err(Reject::TransportHeader);
    }
    let Some(&[p0, p1, p2, p3]) = bytes.first_chunk::<4>() else {
        return Err(Reject::TransportCut);
    };
    let skip = match out.tuple.proto {
        proto::ICMP | proto::ICMPV6 => {
            icmp(p0, p1, out);
            need
        }
        proto::TCP => {
            (out.tuple.sport, out.tuple.dport) =
                (u16::from_be_bytes([p0, p1]), u16::from_be_bytes([p2, p3]));
            tcp(bytes, sent, out)?
        }
        _ => {
            (out.tuple.sport, out.tuple.dport) =
                (u16::from_be_bytes([p0, p1]), u16::from_be_bytes([p2, p3]));
            need
        }
    };
    out.payload_at = (start + skip) as u32;
    out.payload_len = sent.saturating_sub(skip) as u32;
    Ok(())
}

fn icmp(kind: u8, code: u8, out: &mut Decoded) {
    out.icmp = (kind, code);
    out.tuple.sport = u16::from(kind);
    match icmp_counterpart(out.tuple.proto, kind) {
        Some(answer) => out.tuple.dport = u16::from(answer),
        None => {
            out.tuple.dport = u16::from(code);
            out.tuple.one_way = true;
        }
    }
}

/// Fills the TCP fields and returns the header's length.
#[inline]
fn tcp(bytes: &[u8], sent: usize, out: &mut Decoded) -> Result<usize, Reject> {
    match TcpHeaderSlice::from_slice(bytes) {
        Ok(header) => {
            out.tcp = Tcp {
                seq: header.sequence_number(),
                ack: header.acknowledgment_number(),
                window: header.window_size(),
                flags: header.slice().get(13).copied().unwrap_or(0),
            };
            Ok(header.slice().len())
        }
        Err(_) => match bytes.first_chunk::<20>() {
            // Options cut off by the capture: the fixed part is all there.
            Some(h) if (h[12] >> 4) >= 5 && usize::from(h[12] >> 4) * 4 <= sent => {
                out.tcp = Tcp {
                    seq: u32::from_be_bytes([h[4], h[5], h[6], h[7]]),
                    ack: u32::from_be_bytes([h[8], h[9], h[10], h[11]]),
                    window: u16::from_be_bytes([h[14], h[15]]),
                    flags: h[13],
                };
                Ok(usize::from(h[12] >> 4) * 4)
            }
            // A header that claims less than its minimum, or more than was sent.
            Some(_) => Err(Reject::TransportHeader),
            None => Ok(20),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packet::{FlowKey, tcp_flag};

    fn ether(kind: u16, rest: &[u8]) -> Vec<u8> {
        let mut f = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2];
        f.extend(kind.to_be_bytes());
        f.extend(rest);
        f
    }

    fn udp4(sport: u16, dport: u16, payload: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        etherparse::PacketBuilder::ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64)
            .udp(sport, dport)
            .write(&mut out, payload)
            .unwrap();
        out
    }

    fn decoded(frame: &Frame<'_>) -> Result<Decoded, Reject> {
        let mut out = Decoded::default();
        decode(frame, &mut out).map(|()| out)
    }

    fn read(data: &[u8]) -> Result<Decoded, Reject> {
        decoded(&Frame {
            data,
            wire_len: data.len() as u32,
            wire_len_known: true,
            link: Link::Ethernet,
        })
    }

    fn cut_by_driver(data: &[u8], link: Link) -> Frame<'_> {
        Frame { data, wire_len: data.len() as u32, wire_len_known: false, link }
    }

    #[test]
    fn tags_labels_and_sessions_lead_to_the_same_packet() {
        let ip = udp4(5000, 53, b"hello");
        let label = |bottom: u8| [0, 1, 0x20 | bottom, 64];
        let mut pppoe = vec![0x11, 0, 0, 1, 0, 0, 0x00, 0x21];
        pppoe.extend(&ip);
        let mut two_labels = [label(0), label(1)].concat();
        two_labels.extend(&ip);
        let mut snap = vec![0xaa, 0xaa, 3, 0, 0, 0, 8, 0];
        snap.extend(&ip);
        let mut qinq = vec![0, 30, 0x81, 0, 0x60, 40, 8, 0];
        qinq.extend(&ip);
        for (frame, vlans) in [
            (ether(IPV4, &ip), vec![]),
            (ether(0x8864, &pppoe), vec![]),
            (ether(0x8847, &two_labels), vec![]),
            (ether(snap.len() as u16, &snap), vec![]),
            (ether(0x88a8, &qinq), vec![30, 40]),
        ] {
            let d = read(&frame).unwrap();
            assert_eq!((d.tuple.sport, d.tuple.dport, d.tuple.proto), (5000, 53, proto::UDP));
            assert_eq!((d.ip_len, d.payload_len), (33, 5));
            assert_eq!(&frame[d.payload_at as usize..][..5], b"hello");
            assert_eq!(d.vlans.ids().collect::<Vec<_>>(), vlans);
            assert!(!d.truncated && !d.length_lies);
        }
    }

    #[test]
    fn padding_is_not_payload_and_a_lying_length_is_not_believed() {
        let mut padded = ether(IPV4, &udp4(1, 2, b""));
        padded.resize(60, 0);
        let d = read(&padded).unwrap();
        assert_eq!((d.wire_len, d.ip_len, d.payload_len), (60, 28, 0));

        let mut lying = ether(IPV4, &udp4(1, 2, b"abcd"));
        lying[16..18].copy_from_slice(&9000u16.to_be_bytes());
        let d = read(&lying).unwrap();
        assert!(d.length_lies);
        assert_eq!(d.ip_len, 32);
        // A driver that cuts frames silently leaves the header as the only witness.
        let d = decoded(&cut_by_driver(&lying, Link::Ethernet)).unwrap();
        assert!(d.truncated && !d.length_lies);
        assert_eq!((d.ip_len, d.wire_len), (9000, 9014));
    }

    #[test]
    fn a_cut_tcp_header_still_gives_its_ports() {
        let mut ip = Vec::new();
        etherparse::PacketBuilder::ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64)
            .tcp(4000, 443, 7, 1000)
            .syn()
            .write(&mut ip, &[])
            .unwrap();
        let whole = ether(IPV4, &ip);
        for keep in (14 + 20 + 4)..=whole.len() {
            let d = decoded(&Frame {
                data: &whole[..keep],
                wire_len: whole.len() as u32,
                wire_len_known: true,
                link: Link::Ethernet,
            })
            .unwrap();
            assert_eq!((d.tuple.sport, d.tuple.dport), (4000, 443));
            assert_eq!(d.truncated, keep < whole.len());
            assert_eq!(d.tcp.flags, if keep == whole.len() { tcp_flag::SYN } else { 0 });
        }
    }

    #[test]
    fn ipv6_extension_headers_and_fragments() {
        let mut ip = vec![0x60, 0, 0, 0, 0, 24, 0, 64];
        ip.extend([0xfe; 32]);
        // Hop-by-hop of 8 bytes, then a fragment header, then the middle of a UDP packet.
        ip.extend([44, 0, 1, 4, 0, 0, 0, 0]);
        ip.extend([17, 0, 0x05, 0xa9, 0, 0, 0, 9]);
        ip.extend([1, 2, 3, 4, 5, 6, 7, 8]);
        let d = read(&ether(IPV6, &ip)).unwrap();
        assert_eq!(d.fragment, Some(Fragment { id: 9, offset: 1448, more: true }));
        assert_eq!((d.tuple.proto, d.tuple.sport, d.tuple.dport), (17, 0, 0));
        // A chain that never ends is refused.
        let mut endless = vec![0x60, 0, 0, 0, 1, 0, 0, 64];
        endless.extend([0xfe; 32]);
        for _ in 0..32 {
            endless.extend([0, 0, 1, 4, 0, 0, 0, 0]);
        }
        assert_eq!(read(&ether(IPV6, &endless)).unwrap_err(), Reject::Ipv6Extensions);
    }

    #[test]
    fn what_is_not_ip_says_what_it_is() {
        assert_eq!(read(&ether(0x0806, &[0; 28])).unwrap_err(), Reject::Arp);
        assert_eq!(read(&ether(0x88cc, &[0; 28])).unwrap_err(), Reject::OtherEtherType);
        assert_eq!(read(&ether(0x0026, &[0x42; 38])).unwrap_err(), Reject::Llc);
        assert_eq!(read(&[1, 2, 3]).unwrap_err(), Reject::ShortLink);
        assert_eq!(read(&ether(IPV4, &[0x45; 8])).unwrap_err(), Reject::Ipv4Header);
        let tags: Vec<u8> = [0, 1, 0x81, 0].repeat(20);
        assert_eq!(read(&ether(0x8100, &tags)).unwrap_err(), Reject::TooManyTags);
    }

    #[test]
    fn no_prefix_and_no_flipped_byte_of_a_frame_panics() {
        let whole = ether(0x8100, &[&[0, 5, 8, 0][..], &udp4(1, 2, b"xyz")].concat());
        for link in [0, 1, 9, 101, 107, 113, 239, 276, 105].map(Link::from_number) {
            for n in 0..=whole.len() {
                let _ = decoded(&cut_by_driver(&whole[..n], link));
                let _ = steer(&cut_by_driver(&whole[..n], link));
                let mut flipped = whole.clone();
                for bit in 0..8 {
                    if let Some(b) = flipped.get_mut(n) {
                        *b ^= 1 << bit;
                    }
                    let _ = decoded(&cut_by_driver(&flipped, link));
                }
            }
        }
    }

    #[test]
    fn the_short_way_reads_what_the_walk_reads() {
        let mut tcp = Vec::new();
        etherparse::PacketBuilder::ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64)
            .tcp(4000, 443, 7, 1000)
            .ack(99)
            .write(&mut tcp, b"payload")
            .unwrap();
        let mut taken = 0;
        for whole in [ether(IPV4, &tcp), ether(IPV4, &udp4(1, 2, b"payload and more"))] {
            for len in 0..=whole.len() {
                for (at, bit) in (0..len).flat_map(|at| (0..8).map(move |bit| (at, bit))) {
                    let mut data = whole[..len].to_vec();
                    data[at] ^= 1 << bit;
                    for known in [true, false] {
                        let frame = Frame {
                            data: &data,
                            wire_len: whole.len() as u32,
                            wire_len_known: known,
                            link: Link::Ethernet,
                        };
                        let (mut short, mut long) = (Brief::default(), Decoded::default());
                        if short.read(&frame) {
                            taken += 1;
                            assert_eq!(walk(&frame, &mut long), Ok(()));
                            assert_eq!(format!("{:?}", short.unfold()), format!("{long:?}"));
                            let (ends, rest) = short.folded_key();
                            let key = (FlowKey::unfold(ends, rest), short.from_a());
                            assert_eq!(key, FlowKey::of(&long.tuple));
                        }
                    }
                }
            }
        }
        assert!(taken > 1000, "{taken}");
    }

    #[test]
    fn both_directions_and_fragments_are_steered_alike() {
        let there = ether(IPV4, &udp4(1000, 2000, b""));
        let mut back = there.clone();
        back[26..30].copy_from_slice(&there[30..34]);
        back[30..34].copy_from_slice(&there[26..30]);
        back[20] = 0x01; // a later fragment
        let s = |data: &[u8]| {
            steer(&Frame { data, wire_len: 60, wire_len_known: true, link: Link::Ethernet })
        };
        assert_eq!(s(&there), s(&back));
        assert_ne!(s(&there), 0);
    }
}
