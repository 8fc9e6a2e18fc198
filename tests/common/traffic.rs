//! Makes captures with everything that an index has to cope with, and says what is in them.

#![allow(dead_code, unreachable_pub, reason = "each test binary uses its own part")]

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// A generator of numbers, the same in each run.
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 16
    }

    pub fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }

    pub fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }

    pub fn of<T: Copy>(&mut self, all: &[T]) -> T {
        all[self.below(all.len() as u64) as usize]
    }
}

/// A recorded packet.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Packet {
    pub ns: u64,
    pub wire_len: u32,
    pub data: Vec<u8>,
}

/// A datagram that was sent in fragments.
#[derive(Clone, Copy, Debug)]
pub struct Fragmented {
    pub src: IpAddr,
    pub dst: IpAddr,
    pub sport: u16,
    pub dport: u16,
    pub id: u32,
}

pub struct Traffic {
    pub packets: Vec<Packet>,
    pub fragmented: Vec<Fragmented>,
    /// Some packets are captured up to any byte, not only behind their headers.
    cut_anywhere: bool,
}

pub const START_NS: u64 = 1_760_000_000_000_000_000;
pub const V4: [[u8; 4]; 7] = [
    [10, 0, 0, 1],
    [10, 0, 0, 2],
    [10, 0, 0, 3],
    [10, 0, 1, 9],
    [192, 168, 7, 1],
    [192, 168, 7, 130],
    [198, 51, 100, 4],
];
pub const V6: [u16; 4] = [1, 2, 0x8001, 0xff];
pub const CLIENTS: [u16; 6] = [1024, 1025, 40000, 50000, 50001, 65535];
pub const SERVERS: [u16; 5] = [53, 80, 443, 123, 8080];
pub const VLANS: [u16; 3] = [5, 7, 100];

pub fn v6(last: u16) -> Ipv6Addr {
    Ipv6Addr::new(0x2001, 0xdb8, 0, last >> 8, 0, 0, 0, last)
}

fn ipv4(src: [u8; 4], dst: [u8; 4], proto: u8, id: u16, fragment: u16, body: &[u8]) -> Vec<u8> {
    let mut out = vec![0x45, 0];
    out.extend((20 + body.len() as u16).to_be_bytes());
    out.extend(id.to_be_bytes());
    out.extend(fragment.to_be_bytes());
    out.extend([64, proto, 0, 0]);
    out.extend(src);
    out.extend(dst);
    out.extend(body);
    out
}

fn ipv6(src: Ipv6Addr, dst: Ipv6Addr, next: u8, body: &[u8]) -> Vec<u8> {
    let mut out = vec![0x60, 0, 0, 0];
    out.extend((body.len() as u16).to_be_bytes());
    out.extend([next, 64]);
    out.extend(src.octets());
    out.extend(dst.octets());
    out.extend(body);
    out
}

fn ports(sport: u16, dport: u16, len: usize) -> Vec<u8> {
    let mut out = [sport.to_be_bytes(), dport.to_be_bytes()].concat();
    out.extend((8 + len as u16).to_be_bytes());
    out.extend([0, 0]);
    out.extend((0..len).map(|n| n as u8));
    out
}

fn tcp(sport: u16, dport: u16, seq: u32, flags: u8, len: usize) -> Vec<u8> {
    let mut out = [sport.to_be_bytes(), dport.to_be_bytes()].concat();
    out.extend(seq.to_be_bytes());
    out.extend([0, 0, 0, 1, 0x50, flags, 0, 9, 0, 0, 0, 0]);
    out.extend((0..len).map(|n| n as u8));
    out
}

impl Traffic {
    pub fn new(seed: u64, packets: usize, cut_anywhere: bool) -> Self {
        let mut out = Self { packets: Vec::new(), fragmented: Vec::new(), cut_anywhere };
        let mut r = Random::new(seed);
        let mut ns = START_NS;
        while out.packets.len() < packets {
            ns += r.of(&[0, 1, 1_000, 900_000, 30_000_000]) + r.below(500_000);
            let before = out.packets.len();
            out.burst(&mut r);
            for n in before..out.packets.len() {
                // Now and then a packet is recorded a little late.
                let late = if r.one_in(40) { r.below(20_000_000) } else { 0 };
                out.packets[n].ns = ns - late + (n - before) as u64 * 1_000;
            }
        }
        out.packets.truncate(packets);
        // Every packet has a time of its own, and so a name.
        let mut taken = std::collections::HashSet::new();
        for p in &mut out.packets {
            while !taken.insert(p.ns) {
                p.ns += 1;
            }
        }
        out
    }

    /// Puts an IP packet, or another EtherType's payload, into a frame.
    fn frame(&mut self, r: &mut Random, kind: u16, payload: &[u8]) {
        let mut data = vec![2, 0, 0, 0, 0, r.below(3) as u8, 2, 0, 0, 0, 1, r.below(3) as u8];
        match r.below(10) {
            0 | 1 => {
                data.extend([0x81, 0]);
                data.extend(r.of(&VLANS).to_be_bytes());
            }
            2 => {
                data.extend([0x88, 0xa8]);
                data.extend(r.of(&VLANS).to_be_bytes());
                data.extend([0x81, 0]);
                data.extend(r.of(&VLANS).to_be_bytes());
            }
            _ => {}
        }
        data.extend(kind.to_be_bytes());
        data.extend(payload);
        let wire_len = data.len() as u32;
        // Some are captured short.
        if self.cut_anywhere && r.one_in(25) {
            data.truncate(r.below(u64::from(wire_len)) as usize);
        } else if r.one_in(15) {
            data.truncate(96);
        }
        self.packets.push(Packet { ns: 0, wire_len, data });
    }

    fn burst(&mut self, r: &mut Random) {
        let (mut sport, mut dport) = (r.of(&CLIENTS), r.of(&SERVERS));
        if r.one_in(2) {
            (sport, dport) = (dport, sport);
        }
        let len = r.of(&[0, 1, 10, 100, 700]) as usize;
        let transport = |r: &mut Random| match r.below(7) {
            0..=2 => (6, tcp(sport, dport, r.next() as u32, r.of(&[2, 18, 16, 24, 17, 4]), len)),
            3..=5 => (17, ports(sport, dport, len)),
            _ => {
                let mut sctp = ports(sport, dport, len);
                sctp.extend([0; 8]);
                (132, sctp)
            }
        };
        let (a, b) = (r.of(&V4), r.of(&V4));
        let (a6, b6) = (v6(r.of(&V6)), v6(r.of(&V6)));
        match r.below(40) {
            0..=17 => {
                let (proto, body) = transport(r);
                let ip = ipv4(a, b, proto, r.next() as u16, 0, &body);
                self.frame(r, 0x0800, &ip);
            }
            18..=25 => {
                let (proto, body) = transport(r);
                self.frame(r, 0x86dd, &ipv6(a6, b6, proto, &body));
            }
            26 => {
                let echo = [&[r.of(&[8, 0]), 0, 0, 0, 0, 1, 0, 1][..], &[7; 20]].concat();
                let ip = ipv4(a, b, 1, 1, 0, &echo);
                self.frame(r, 0x0800, &ip);
            }
            27 => {
                let echo = [&[r.of(&[128, 129, 135]), 0, 0, 0, 0, 1, 0, 1][..], &[7; 20]].concat();
                self.frame(r, 0x86dd, &ipv6(a6, b6, 58, &echo));
            }
            28 => {
                let mut arp = vec![0, 1, 8, 0, 6, 4, 0, r.of(&[1, 2]), 2, 0, 0, 0, 0, 1];
                arp.extend(a);
                arp.extend([0; 6]);
                arp.extend(b);
                let kind = r_kind(r, 0x0806, 0x8035);
                self.frame(r, kind, &arp);
            }
            29 => self.frame(r, 0x88cc, &[2, 7, 4, 0, 1, 2, 3, 4, 5, 6]),
            30 => {
                // 802.2: spanning tree.
                let length = 38;
                self.frame(r, length, &[&[0x42, 0x42, 3][..], &[0; 35]].concat());
            }
            31 => {
                // Damaged: version, header length, or all of it.
                let mut ip = ipv4(a, b, 17, 1, 0, &ports(sport, dport, 4));
                match r.below(3) {
                    0 => ip[0] = 0x65,
                    1 => ip[0] = 0x43,
                    _ => ip[2..4].copy_from_slice(&21u16.to_be_bytes()),
                }
                self.frame(r, 0x0800, &ip);
            }
            32 => {
                let gre =
                    [&[0, 0, 8, 0][..], &ipv4(b, a, 17, 2, 0, &ports(sport, dport, 4))].concat();
                let ip = ipv4(a, b, 47, 1, 0, &gre);
                self.frame(r, 0x0800, &ip);
            }
            33 => {
                // A hop-by-hop header before UDP.
                let mut body = vec![17, 0, 1, 4, 0, 0, 0, 0];
                body.extend(ports(sport, dport, len));
                self.frame(r, 0x86dd, &ipv6(a6, b6, 0, &body));
            }
            34 | 35 => self.fragments_v4(r, a, b, sport, dport),
            36 => self.fragments_v6(r, a6, b6, sport, dport),
            37 | 38 => {
                // An ICMP error from a third host about a packet.
                let (proto, body) = transport(r);
                let about = ipv4(a, b, proto, 9, 0, &body);
                let quoted = &about[..about.len().min(r.of(&[28, 60, 200]) as usize)];
                let error = [&[r.of(&[3, 11]), 1, 0, 0, 0, 0, 0, 0][..], quoted].concat();
                let ip = ipv4([172, 16, 0, 1], a, 1, 1, 0, &error);
                self.error(r, 0x0800, &ip);
            }
            _ => {
                let (proto, body) = transport(r);
                let about = ipv6(a6, b6, proto, &body);
                let quoted = &about[..about.len().min(r.of(&[48, 80, 200]) as usize)];
                let error = [&[r.of(&[1, 2, 3]), 1, 0, 0, 0, 0, 0, 0][..], quoted].concat();
                self.error(r, 0x86dd, &ipv6(v6(0x77), a6, 58, &error));
            }
        }
    }

    fn fragments_v4(&mut self, r: &mut Random, a: [u8; 4], b: [u8; 4], sport: u16, dport: u16) {
        let id = 20_000 + self.fragmented.len() as u16;
        let whole = ports(sport, dport, 64);
        let mut parts: Vec<_> = whole.chunks(24).enumerate().collect();
        if r.one_in(2) {
            parts.reverse();
        }
        for (n, part) in parts {
            let more = if (n + 1) * 24 < whole.len() { 0x2000 } else { 0 };
            let ip = ipv4(a, b, 17, id, more | (n as u16 * 3), part);
            self.whole_frame(r, 0x0800, &ip);
        }
        let (src, dst) = (IpAddr::V4(Ipv4Addr::from(a)), IpAddr::V4(Ipv4Addr::from(b)));
        self.fragmented.push(Fragmented { src, dst, sport, dport, id: u32::from(id) });
    }

    fn fragments_v6(&mut self, r: &mut Random, a: Ipv6Addr, b: Ipv6Addr, sport: u16, dport: u16) {
        let id = 1_000_000 + self.fragmented.len() as u32;
        let whole = ports(sport, dport, 64);
        for (n, part) in whole.chunks(24).enumerate() {
            let more = u16::from((n + 1) * 24 < whole.len());
            let mut body = vec![17, 0];
            body.extend((n as u16 * 24 | more).to_be_bytes());
            body.extend(id.to_be_bytes());
            body.extend(part);
            self.whole_frame(r, 0x86dd, &ipv6(a, b, 44, &body));
        }
        self.fragmented.push(Fragmented { src: a.into(), dst: b.into(), sport, dport, id });
    }

    /// A frame of which the quoted headers are captured.
    fn error(&mut self, r: &mut Random, kind: u16, payload: &[u8]) {
        if self.cut_anywhere {
            self.frame(r, kind, payload);
        } else {
            self.whole_frame(r, kind, payload);
        }
    }

    /// A frame that is captured whole.
    fn whole_frame(&mut self, r: &mut Random, kind: u16, payload: &[u8]) {
        loop {
            self.frame(r, kind, payload);
            let last = self.packets.last().unwrap();
            if last.data.len() as u32 == last.wire_len {
                return;
            }
            self.packets.pop();
        }
    }

    /// As a nanosecond pcap file.
    pub fn pcap(&self) -> Vec<u8> {
        pcap(&self.packets)
    }
}

fn r_kind(r: &mut Random, often: u16, seldom: u16) -> u16 {
    if r.one_in(5) { seldom } else { often }
}

/// A packet without its VLAN tags, its length on the wire as it was; and the tags' ids.
pub fn without_tags(p: &Packet) -> (Packet, Vec<u16>) {
    let (mut data, mut ids) = (p.data.clone(), Vec::new());
    while data.len() >= 14 && matches!(data[12..14], [0x81, 0] | [0x88, 0xa8]) {
        if let [high, low] = data[14..data.len().min(16)] {
            ids.push(u16::from_be_bytes([high, low]) & 0xfff);
        }
        data.drain(12..data.len().min(16));
    }
    (Packet { data, ..p.clone() }, ids)
}

/// A nanosecond pcap file of Ethernet frames.
pub fn pcap(packets: &[Packet]) -> Vec<u8> {
    let mut out = [0xa1b2_3c4du32, 0x0004_0002, 0, 0, 262_144, 1].map(u32::to_le_bytes).concat();
    for p in packets {
        let words = [
            (p.ns / 1_000_000_000) as u32,
            (p.ns % 1_000_000_000) as u32,
            p.data.len() as u32,
            p.wire_len,
        ];
        out.extend(words.map(u32::to_le_bytes).concat());
        out.extend(&p.data);
    }
    out
}

/// The packets of a little-endian nanosecond pcap file.
pub fn read_pcap(bytes: &[u8]) -> Vec<Packet> {
    if bytes.is_empty() {
        return Vec::new();
    }
    let word = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
    assert_eq!(word(0), 0xa1b2_3c4d, "a nanosecond pcap file");
    let (mut at, mut out) = (24, Vec::new());
    while at < bytes.len() {
        let kept = word(at + 8) as usize;
        out.push(Packet {
            ns: u64::from(word(at)) * 1_000_000_000 + u64::from(word(at + 4)),
            wire_len: word(at + 12),
            data: bytes[at + 16..at + 16 + kept].to_vec(),
        });
        at += 16 + kept;
    }
    out
}
