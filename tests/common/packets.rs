//! Captures made for a test, packet by packet.

use std::net::IpAddr;
use std::path::{Path, PathBuf};

use etherparse::PacketBuilder;

/// When the captures begin, seconds since 1970: 2023-11-14T22:13:20Z.
pub const START: u64 = 1_700_000_000;

/// A capture file being made; microseconds, Ethernet unless told otherwise.
pub struct Capture {
    bytes: Vec<u8>,
    pub packets: u64,
}

impl Default for Capture {
    fn default() -> Self {
        Self::of_link(1)
    }
}

impl Capture {
    pub fn of_link(link: u32) -> Self {
        let header = [0xa1b2_c3d4, 0x0004_0002, 0, 0, 262_144, link];
        Self { bytes: header.map(u32::to_le_bytes).concat(), packets: 0 }
    }

    /// Adds a frame at `ms` after the start.
    pub fn add(&mut self, ms: u64, frame: &[u8]) -> &mut Self {
        let len = frame.len() as u32;
        let seconds = (START + ms / 1000) as u32;
        for word in [seconds, (ms % 1000 * 1000) as u32, len, len] {
            self.bytes.extend(word.to_le_bytes());
        }
        self.bytes.extend(frame);
        self.packets += 1;
        self
    }

    /// Adds `count` TCP packets from 10.0.0.5, one a millisecond.
    pub fn tcp(&mut self, ms: u64, count: u64, dst: &str, port: u16) -> &mut Self {
        for n in 0..count {
            self.add(ms + n, &tcp("10.0.0.5", 40_000, dst, port, b"data"));
        }
        self
    }

    pub fn write(&self, dir: &Path, name: &str) -> PathBuf {
        let path = dir.join(name);
        std::fs::write(&path, &self.bytes).unwrap();
        path
    }
}

/// An Ethernet frame with a TCP SYN.
pub fn tcp(src: &str, sport: u16, dst: &str, dport: u16, payload: &[u8]) -> Vec<u8> {
    let ether = PacketBuilder::ethernet2([2, 0, 0, 0, 0, 5], [2, 0, 0, 0, 0, 1]);
    let tcp = match (src.parse().unwrap(), dst.parse().unwrap()) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => ether.ipv4(src.octets(), dst.octets(), 64),
        (IpAddr::V6(src), IpAddr::V6(dst)) => ether.ipv6(src.octets(), dst.octets(), 64),
        _ => panic!("two families"),
    }
    .tcp(sport, dport, 1, 8192)
    .syn();
    let mut out = Vec::new();
    tcp.write(&mut out, payload).unwrap();
    out
}
