//! A sample of the packets themselves: the first [`EACH_SECOND`] of every second are looked at.
//!
//! What is counted: group and own addresses, frames beyond the usual size, checksums that do not
//! hold, and duplicates (the same IP packet again within [`AGAIN`], whatever its hop count, addresses
//! of the link and tags). Bounded work a second, so nothing on the path of the other packets.

use std::hash::{DefaultHasher, Hasher};

use crate::status::{Counter, Counters};

/// Packets looked at in a second, at most.
const EACH_SECOND: u32 = 512;
const SECOND: u64 = 1_000_000_000;
/// A copy by the switch comes within this; what comes later was sent again.
const AGAIN: u64 = 10_000_000;
/// Packets remembered, a power of two.
const REMEMBERED: usize = 1024;
/// The most that an Ethernet frame usually carries.
const USUAL: usize = 1500;
/// Bytes of the transport header and what follows that tell packets apart.
const TELLING: usize = 40;

pub struct Look {
    /// Our own addresses on the ports.
    own: Vec<[u8; 6]>,
    left: u32,
    until_ns: u64,
    /// What a packet was, and when.
    seen: Box<[(u64, u64); REMEMBERED]>,
}

/// One packet.
pub struct Sample<'a> {
    pub data: &'a [u8],
    pub wire_len: u32,
    pub clock_ns: u64,
}

impl Look {
    pub fn new(own: Vec<[u8; 6]>) -> Self {
        Self { own, left: 0, until_ns: 0, seen: Box::new([(0, 0); REMEMBERED]) }
    }

    /// How many packets of a burst at this moment are to be looked at.
    #[inline]
    pub fn wants(&mut self, clock_ns: u64) -> usize {
        if clock_ns >= self.until_ns {
            self.until_ns = clock_ns + SECOND;
            self.left = EACH_SECOND;
        }
        self.left as usize
    }

    /// Looks at an Ethernet frame.
    pub fn at(&mut self, packet: &Sample<'_>, counters: &mut Counters) {
        self.left = self.left.saturating_sub(1);
        let data = packet.data;
        let (Some(dst), Some(src)) = (data.get(..6), data.get(6..12)) else { return };
        counters.add(Counter::Looked, 1);
        let is_group = dst.first().is_some_and(|b| b & 1 != 0);
        if is_group {
            counters.add(Counter::ToGroups, 1);
        } else if self.own.iter().any(|mac| mac == dst || mac == src) {
            counters.add(Counter::OwnTraffic, 1);
        }
        let Some((ip, at)) = network(data) else { return };
        counters.add(Counter::Oversize, u64::from(packet.wire_len as usize > at + USUAL));
        if !is_group && self.is_again(ip, packet.clock_ns) {
            counters.add(Counter::Duplicates, 1);
        }
        match Sum::of(ip) {
            Sum::Right | Sum::Unknown => {}
            Sum::Wrong => counters.add(Counter::BadChecksums, 1),
            Sum::Unfinished => counters.add(Counter::UnfinishedChecksums, 1),
        }
    }

    fn is_again(&mut self, ip: &[u8], now: u64) -> bool {
        let Some(what) = identity(ip) else { return false };
        let Some(slot) = self.seen.get_mut(what as usize % REMEMBERED) else { return false };
        let (before, when) = *slot;
        *slot = (what, now);
        before == what && now.saturating_sub(when) <= AGAIN
    }
}

/// The IP packet of a frame, and where it starts.
fn network(frame: &[u8]) -> Option<(&[u8], usize)> {
    let mut at = 12;
    for _ in 0..4 {
        let ethertype = u16::from_be_bytes([*frame.get(at)?, *frame.get(at + 1)?]);
        match ethertype {
            0x8100 | 0x88a8 | 0x9100 => at += 4,
            0x0800 | 0x86dd => return Some((frame.get(at + 2..)?, at + 2)),
            _ => return None,
        }
    }
    None
}

/// What stays the same when a packet is mirrored before and behind a router.
fn identity(ip: &[u8]) -> Option<u64> {
    let mut hash = DefaultHasher::new();
    let behind = match ip.first()? >> 4 {
        4 => {
            // Length, identification and fragment; protocol; addresses.
            hash.write(ip.get(2..8)?);
            hash.write(ip.get(9..10)?);
            hash.write(ip.get(12..20)?);
            usize::from(ip.first()? & 0xf) * 4
        }
        6 => {
            hash.write(ip.get(4..7)?);
            hash.write(ip.get(8..40)?);
            40
        }
        _ => return None,
    };
    let rest = ip.get(behind..)?;
    hash.write(rest.get(..TELLING).unwrap_or(rest));
    Some(hash.finish())
}

/// What a packet's checksums are worth.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sum {
    Right,
    Wrong,
    /// Left to a card that never saw the packet: a mirror inside a host.
    Unfinished,
    /// It has none, or not all of it is here.
    Unknown,
}

impl Sum {
    fn of(ip: &[u8]) -> Self {
        Self::looked_up(ip).unwrap_or(Self::Unknown)
    }

    fn looked_up(ip: &[u8]) -> Option<Self> {
        let word = |at: usize| Some(u16::from_be_bytes([*ip.get(at)?, *ip.get(at + 1)?]));
        let (transport, protocol, addresses) = match ip.first()? >> 4 {
            4 => {
                let header = usize::from(ip.first()? & 0xf) * 4;
                if fold(add(0, ip.get(..header)?)) != 0xffff {
                    return Some(Self::Wrong);
                }
                // More fragments, or not the first.
                if word(6)? & 0x3fff != 0 {
                    return Some(Self::Unknown);
                }
                (ip.get(header..usize::from(word(2)?))?, *ip.get(9)?, ip.get(12..20)?)
            }
            6 => {
                let end = 40 + usize::from(word(4)?);
                (ip.get(40..end)?, *ip.get(6)?, ip.get(8..40)?)
            }
            _ => return None,
        };
        let at = match protocol {
            6 => 16,
            17 => 6,
            _ => return None,
        };
        let stored = u16::from_be_bytes([*transport.get(at)?, *transport.get(at + 1)?]);
        if protocol == 17 && stored == 0 {
            return Some(Self::Unknown);
        }
        let pseudo = add(0, addresses) + u32::from(protocol) + transport.len() as u32;
        Some(match fold(add(pseudo, transport)) {
            0xffff => Self::Right,
            _ if stored == fold(pseudo) => Self::Unfinished,
            _ => Self::Wrong,
        })
    }
}

/// The sum of 16-bit words, as RFC 1071 has it.
fn add(sum: u32, bytes: &[u8]) -> u32 {
    let word = |pair: &[u8]| match *pair {
        [a, b] => u32::from(u16::from_be_bytes([a, b])),
        [a] => u32::from(a) << 8,
        _ => 0,
    };
    // 64 KiB of words stay below 32 bits.
    bytes.chunks(2).map(word).fold(sum, u32::wrapping_add)
}

fn fold(mut sum: u32) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

#[cfg(test)]
mod tests {
    use etherparse::PacketBuilder;

    use super::*;

    fn frame(src: u8, seq: u32, payload: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        PacketBuilder::ethernet2([2, 0, 0, 0, 0, src], [2, 0, 0, 0, 0, 1])
            .ipv4([10, 0, 0, src], [10, 0, 0, 1], 64)
            .tcp(1000, 80, seq, 8192)
            .write(&mut out, payload)
            .unwrap();
        out
    }

    fn counted(frames: &[(u64, Vec<u8>)], own: Vec<[u8; 6]>) -> Counters {
        let (mut look, mut counters) = (Look::new(own), Counters::default());
        for (at, data) in frames {
            if look.wants(*at) > 0 {
                let packet = Sample { data, wire_len: data.len() as u32, clock_ns: *at };
                look.at(&packet, &mut counters);
            }
        }
        counters
    }

    #[test]
    fn only_so_many_of_each_second_are_looked_at() {
        let frames: Vec<_> = (0..2000).map(|n| (n * 1_000_000, frame(9, n as u32, b""))).collect();
        assert_eq!(counted(&frames, Vec::new()).get(Counter::Looked), 1024);
    }

    #[test]
    fn the_same_packet_again_at_once_is_a_duplicate_also_behind_a_router() {
        let first = frame(9, 7, b"abc");
        let mut routed = first.clone();
        routed[..12].fill(4);
        // One hop further, with its checksum.
        routed[14 + 8] -= 1;
        routed[14 + 10] += 1;
        let tagged = [&first[..12], &[0x81, 0, 0, 20], &first[12..]].concat();
        let again = [(0, first.clone()), (1000, routed), (2000, tagged), (900_000_000, first)];
        let c = counted(&again, Vec::new());
        assert_eq!((c.get(Counter::Duplicates), c.get(Counter::BadChecksums)), (2, 0));
    }

    #[test]
    fn checksums_are_right_wrong_or_unfinished() {
        let good = frame(9, 7, b"odd");
        let mut wrong = good.clone();
        *wrong.last_mut().unwrap() ^= 1;
        let mut header = good.clone();
        header[14 + 8] -= 1;
        let mut unfinished = good.clone();
        let pseudo = fold(add(0, &good[26..34]) + 6 + (good.len() as u32 - 34));
        unfinished[50..52].copy_from_slice(&pseudo.to_be_bytes());
        let c = counted(&[(0, good), (1, wrong), (2, header), (3, unfinished)], Vec::new());
        assert_eq!((c.get(Counter::BadChecksums), c.get(Counter::UnfinishedChecksums)), (2, 1));
    }

    #[test]
    fn groups_and_our_own_are_told_from_the_others() {
        let mut group = frame(9, 1, b"");
        group[..6].fill(0xff);
        let own = vec![[2, 0, 0, 0, 0, 5]];
        let c = counted(&[(0, group), (1, frame(5, 2, b"")), (2, frame(9, 3, &[0; 3000]))], own);
        let of = |c: &Counters, all: [Counter; 4]| all.map(|k| c.get(k));
        let kinds = [Counter::Looked, Counter::ToGroups, Counter::OwnTraffic, Counter::Oversize];
        assert_eq!(of(&c, kinds), [3, 1, 1, 1]);
    }
}
