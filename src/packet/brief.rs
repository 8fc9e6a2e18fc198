//! The short way of reading the frame that most are.

use std::hint::select_unpredictable;

use super::decode::{Decoded, Frame, Tcp};
use super::key::{FlowKey, Tuple};
use super::link::Link;
use super::proto;

/// What a flow's account needs of a packet, in one cache line.
///
/// Of the common frame (untagged Ethernet, IPv4 without options or fragments, whole, TCP or UDP) it
/// is read straight from the bytes, the flow's key folded into two words, and holds all that a
/// [`Decoded`] would, at a third of the instructions; tests hold the two against each other.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C, align(64))]
pub struct Brief {
    /// The addresses of IPv4, the key's `a` in the high half.
    ends: u64,
    /// The key's last word.
    rest: u64,
    /// Means nothing but for TCP, the flags excepted, which are zero then.
    pub tcp: Tcp,
    /// Frame bytes on the wire.
    pub wire_len: u32,
    /// Bytes of the IP packet, its header included.
    pub ip_len: u32,
    /// Bytes behind the transport header.
    pub payload_len: u32,
    /// Destination and source.
    macs: [[u8; 6]; 2],
    /// All ones for TCP, else zero: told apart by arithmetic, since no branch could guess it.
    tcp_mask: u32,
    payload_at: u16,
    from_a: bool,
    is_folded: bool,
}

const _: () = assert!(size_of::<Brief>() == 64);

/// The Ethernet, IPv4 and TCP headers without options.
const HEADERS: usize = 54;
/// A bit for each.
const TCP_AND_UDP: u64 = 1 << proto::TCP | 1 << proto::UDP;

impl Brief {
    /// Reads a common frame; false for any other, of which it then says nothing.
    #[inline(always)]
    pub fn read(&mut self, frame: &Frame<'_>) -> bool {
        self.is_folded = false;
        let data = frame.data;
        let Some(h) = data.first_chunk::<HEADERS>() else { return false };
        let word = |at: usize| u16::from_be_bytes([h[at], h[at + 1]]);
        let long = |at: usize| u32::from_be_bytes([h[at], h[at + 1], h[at + 2], h[at + 3]]);
        let ip_len = u32::from(word(16));
        // Without a branch on TCP or UDP, which nothing predicts: a UDP packet's would-be TCP fields
        // are read too.
        let is_tcp = h[23] == proto::TCP;
        let least = select_unpredictable(is_tcp, 20, 8);
        let header = select_unpredictable(is_tcp, u32::from(h[46] >> 4) * 4, 8);
        // EtherType IPv4, version and length of its header; no fragment. Lengths that need thought
        // are the walk's.
        if long(12) & 0xffff_ff00 != 0x0800_4500
            || word(20) & 0x3fff != 0
            || h[23] > 63
            || TCP_AND_UDP >> h[23] & 1 == 0
            || header < least
            || 20 + header > ip_len
            || 14 + ip_len as usize > data.len()
            || frame.link != Link::Ethernet
        {
            return false;
        }
        let flags = select_unpredictable(is_tcp, h[47], 0);
        // Source and destination, and the other way around.
        let there = (u64::from(long(26)) << 32) | u64::from(long(30));
        let back = there.rotate_left(32);
        let (ports, ports_back) = (long(34), long(34).rotate_left(16));
        let from_a = (there < back) | ((there == back) & (ports <= ports_back));
        let ports = select_unpredictable(from_a, ports, ports_back);
        *self = Self {
            ends: there.min(back),
            rest: FlowKey::rest(ports, h[23]),
            tcp: Tcp { seq: long(38), ack: long(42), window: word(48), flags },
            wire_len: frame.wire_len,
            ip_len,
            payload_len: ip_len - 20 - header,
            macs: [[h[0], h[1], h[2], h[3], h[4], h[5]], [h[6], h[7], h[8], h[9], h[10], h[11]]],
            tcp_mask: u32::from(is_tcp).wrapping_neg(),
            payload_at: 34 + header as u16,
            from_a,
            is_folded: true,
        };
        true
    }

    /// Of a frame that was read the long way.
    pub fn of(d: &Decoded) -> Self {
        let Decoded { tcp, wire_len, ip_len, payload_len, .. } = *d;
        let tcp_mask = u32::from(d.tuple.proto == proto::TCP).wrapping_neg();
        Self { tcp, wire_len, ip_len, payload_len, tcp_mask, ..Self::default() }
    }

    /// All ones for TCP, else zero.
    #[inline]
    pub fn tcp_mask(&self) -> u32 {
        self.tcp_mask
    }

    /// Whether it was read from a common frame, and has the key.
    #[inline]
    pub fn is_folded(&self) -> bool {
        self.is_folded
    }

    /// The key of a common frame as two words: the addresses, the smaller end's first, and the last
    /// word of a [`FlowKey`].
    #[inline]
    pub fn folded_key(&self) -> (u64, u64) {
        (self.ends, self.rest)
    }

    /// Whether a common frame travels from the key's `a` to its `b`.
    #[inline]
    pub fn from_a(&self) -> bool {
        self.from_a
    }

    /// All that a common frame says.
    #[inline]
    pub fn unfold(&self) -> Decoded {
        let key = FlowKey::unfold(self.ends, self.rest);
        let ends = [(key.a, key.port_a()), (key.b, key.port_b())];
        let [src, dst] = if self.from_a { ends } else { [ends[1], ends[0]] };
        let is_tcp = key.proto() == proto::TCP;
        Decoded {
            tuple: Tuple {
                src: src.0,
                dst: dst.0,
                sport: src.1,
                dport: dst.1,
                proto: key.proto(),
                v6: false,
                one_way: false,
            },
            wire_len: self.wire_len,
            ip_len: self.ip_len,
            payload_len: self.payload_len,
            payload_at: u32::from(self.payload_at),
            tcp: if is_tcp { self.tcp } else { Tcp::default() },
            dst_mac: self.macs[0],
            src_mac: self.macs[1],
            has_mac: true,
            ..Decoded::default()
        }
    }
}
