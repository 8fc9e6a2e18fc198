//! What a frame says to a detector.
//!
//! The addresses are those of the outermost IP header. The port is the destination port of the first
//! TCP, UDP or SCTP header, looked for also inside IP-in-IP (RFC 2003, 2473, 4213) and GRE (RFC
//! 2784, 2890); everything else, fragments included, has none.

use super::Host;
use crate::packet::{self, Decoded, Frame, Link, Reject, proto};

/// Tunnels walked into before the packet is called one without a port.
const DEPTH: usize = 4;
const IPV4_IN_IP: u8 = 4;
const IPV6_IN_IP: u8 = 41;
const GRE: u8 = 47;

/// What is sent to an endpoint.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Protocol {
    /// IP protocol number: of the transport where there is a port, else of the outermost header.
    pub number: u8,
    pub has_port: bool,
}

/// One packet: from whom, to which endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sighting {
    pub src: Host,
    pub dst: Host,
    /// 0 where there is none.
    pub src_port: u16,
    pub dst_port: u16,
    pub protocol: Protocol,
}

/// Reads a frame; `None` for what is not IP or has no readable IP header.
#[inline]
pub fn sight(frame: &Frame<'_>, scratch: &mut Decoded) -> Option<Sighting> {
    let read = packet::decode(frame, scratch);
    Sighting::of(frame, scratch, read)
}

impl Sighting {
    /// From a frame that was decoded with this result.
    #[inline]
    pub fn of(frame: &Frame<'_>, decoded: &Decoded, read: Result<(), Reject>) -> Option<Self> {
        let t = &decoded.tuple;
        let mut this = Self {
            src: Host { v6: t.v6, addr: t.src },
            dst: Host { v6: t.v6, addr: t.dst },
            src_port: 0,
            dst_port: 0,
            protocol: Protocol { number: t.proto, has_port: false },
        };
        match read {
            Ok(()) if decoded.fragment.is_some() => {}
            Ok(()) => match t.proto {
                proto::TCP | proto::UDP | proto::SCTP => this.set_ports(decoded),
                IPV4_IN_IP | IPV6_IN_IP | GRE => this.look_inside(frame, decoded),
                _ => {}
            },
            // The addresses were read; there is no port to be had.
            Err(Reject::TransportHeader | Reject::TransportCut | Reject::Ipv6Extensions) => {}
            Err(_) => return None,
        }
        Some(this)
    }

    #[inline]
    fn set_ports(&mut self, decoded: &Decoded) {
        self.src_port = decoded.tuple.sport;
        self.dst_port = decoded.tuple.dport;
        self.protocol = Protocol { number: decoded.tuple.proto, has_port: true };
    }

    #[cold]
    fn look_inside(&mut self, frame: &Frame<'_>, decoded: &Decoded) {
        let mut outer = *decoded;
        let mut data = frame.data;
        for _ in 0..DEPTH {
            let (start, len) = (outer.payload_at as usize, outer.payload_len as usize);
            let payload = data.get(start..).unwrap_or_default();
            let payload = payload.get(..len).unwrap_or(payload);
            let (inner, link) = match outer.tuple.proto {
                IPV4_IN_IP | IPV6_IN_IP => (payload, Link::Raw),
                GRE => match behind_gre(payload) {
                    Some(behind) => behind,
                    None => return,
                },
                proto::TCP | proto::UDP | proto::SCTP => return self.set_ports(&outer),
                _ => return,
            };
            let frame =
                Frame { data: inner, wire_len: inner.len() as u32, wire_len_known: false, link };
            if packet::decode(&frame, &mut outer).is_err() || outer.fragment.is_some() {
                return;
            }
            data = inner;
        }
    }
}

/// The payload of a GRE packet and how it begins.
fn behind_gre(data: &[u8]) -> Option<(&[u8], Link)> {
    let &[f0, f1, p0, p1] = data.first_chunk::<4>()?;
    // Version 0 only; routing has not been sent by anybody since RFC 2784.
    if f1 & 7 != 0 || f0 & 0x40 != 0 {
        return None;
    }
    // Checksum, key and sequence number, four bytes each.
    let options = (f0 & 0xb0).count_ones() as usize;
    let payload = data.get(4 + 4 * options..)?;
    match u16::from_be_bytes([p0, p1]) {
        0x0800 | 0x86dd => Some((payload, Link::Raw)),
        0x6558 => Some((payload, Link::Ethernet)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ipv4(protocol: u8, payload: &[u8]) -> Vec<u8> {
        let mut out =
            vec![0x45, 0, 0, 0, 0, 1, 0, 0, 64, protocol, 0, 0, 10, 0, 0, 5, 192, 0, 2, 9];
        out.extend(payload);
        let len = out.len() as u16;
        out[2..4].copy_from_slice(&len.to_be_bytes());
        out
    }

    fn seen(ip: &[u8]) -> Option<Sighting> {
        let frame =
            Frame { data: ip, wire_len: ip.len() as u32, wire_len_known: true, link: Link::Raw };
        sight(&frame, &mut Decoded::default())
    }

    #[test]
    fn the_port_is_found_inside_tunnels_and_the_address_outside() {
        let udp = [0, 7, 0, 53, 0, 12, 0, 0, 1, 2, 3, 4];
        let inner = ipv4(proto::UDP, &udp);
        let ether = [&[2u8; 12][..], &[8, 0], &inner].concat();
        let gre = |flags: u8, kind: [u8; 2], options: usize, payload: &[u8]| {
            [&[flags, 0, kind[0], kind[1]][..], &vec![0; options], payload].concat()
        };
        let port = Protocol { number: proto::UDP, has_port: true };
        for (protocol, payload, expected) in [
            (proto::UDP, udp.to_vec(), (53, port)),
            (IPV4_IN_IP, inner.clone(), (53, port)),
            (IPV4_IN_IP, ipv4(IPV4_IN_IP, &inner), (53, port)),
            (GRE, gre(0, [8, 0], 0, &inner), (53, port)),
            (GRE, gre(0xb0, [8, 0], 12, &inner), (53, port)),
            (GRE, gre(0, [0x65, 0x58], 0, &ether), (53, port)),
            (GRE, gre(0, [0x88, 0x0b], 0, &inner), (0, Protocol { number: GRE, has_port: false })),
            (GRE, vec![0], (0, Protocol { number: GRE, has_port: false })),
            (proto::UDP, vec![0, 7], (0, Protocol { number: proto::UDP, has_port: false })),
        ] {
            let s = seen(&ipv4(protocol, &payload)).unwrap();
            assert_eq!((s.dst_port, s.protocol), expected);
            assert_eq!(s.dst.to_string(), "192.0.2.9");
        }
        // Endless tunnels end.
        let deep = (0..40).fold(inner, |ip, _| ipv4(IPV4_IN_IP, &ip));
        assert_eq!(seen(&deep).unwrap().dst_port, 0);
    }

    #[test]
    fn fragments_have_no_port_and_no_prefix_panics() {
        let mut first = ipv4(proto::UDP, &[0, 7, 0, 53, 0, 12, 0, 0, 1, 2, 3, 4]);
        first[6] = 0x20;
        let s = seen(&first).unwrap();
        assert_eq!((s.dst_port, s.protocol.has_port), (0, false));
        let whole = ipv4(GRE, &[&[0xb0, 0, 8, 0][..], &[0; 12], &ipv4(17, &[0; 12])].concat());
        for n in 0..whole.len() {
            let _ = seen(&whole[..n]);
        }
        assert_eq!(seen(&[]), None);
    }
}
