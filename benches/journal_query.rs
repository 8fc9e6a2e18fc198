//! The journal's index and its answers: what an index costs to make and to keep, how soon packets
//! come out, beside tcpdump over the same files.
//!
//! usage: journal_query [--gb N] [--dir DIR] [--cli FILE]
//!
//! Three kinds of traffic for size and cost: `mix` (long flows, 1 KB a packet), `small` (short flows,
//! 300 B) and `flood` (a flow a packet, 80 B). Then N GB (10) of `mix` in segments of 500 MB, in
//! which a flow of 12 packets, one of 300 and one of 32,000 are asked for by malakocut-cli as a whole
//! process: hot, and cold after the files were dropped from the system's cache. Removed afterwards.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a benchmark that cannot run fails")]

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use malakocut::journal::catalogue::file_name;
use malakocut::journal::index::{IndexBuilder, IndexFile, IndexKey, Limits, rebuild};
use malakocut::packet::{Frame, Link};
use rustix::fs::{Advice, fadvise};

const SEGMENT: usize = 500_000_000;
const START_NS: u64 = 1_760_000_000_000_000_000;

struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 16
    }

    fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Mix,
    Small,
    Flood,
}

/// Records of a segment, as they are in the file.
struct Segment {
    bytes: Vec<u8>,
    /// Offset, length, time.
    records: Vec<(usize, usize, u64)>,
}

/// A flow that is asked for: its client port, and packets in all.
const ASKED: [(&str, u16, u64); 3] = [
    ("small, 12 packets", 1012, 12),
    ("medium, 300 packets", 1300, 300),
    ("elephant, 32,000 packets", 1320, 32_000),
];

struct Maker {
    random: Random,
    ns: u64,
    body: Vec<u8>,
    flows: Vec<(u32, u32, u16, u16)>,
}

impl Maker {
    fn new() -> Self {
        let mut random = Random(0x1234_5678_9abc_def1);
        let body = (0..2048).map(|_| random.next() as u8).collect();
        Self { random, ns: START_NS, body, flows: Vec::new() }
    }

    fn new_flow(&mut self) -> (u32, u32, u16, u16) {
        let r = &mut self.random;
        let client = 0x0a00_0000 + r.below(250) as u32;
        let server = 0x5000_0000 + r.below(60_000) as u32;
        (client, server, 2_000 + r.below(60_000) as u16, [443, 80, 53, 8080][r.below(4) as usize])
    }

    /// One segment; of the asked flows each has its share of packets in it.
    fn segment(&mut self, kind: Kind, size: usize, segments: u64, number: u64) -> Segment {
        let mut out = Segment { bytes: Vec::with_capacity(size + 4096), records: Vec::new() };
        let header = [0xa1b2_3c4du32, 0x0004_0002, 0, 0, 262_144, 1];
        out.bytes.extend(header.map(u32::to_le_bytes).concat());
        let (mean, live) = match kind {
            Kind::Mix => (1_000, 2_000),
            Kind::Small => (300, 3_000),
            Kind::Flood => (80, 1),
        };
        let expected = (size / (mean + 16)) as u64;
        let mut done = [0; ASKED.len()];
        while out.bytes.len() < size {
            self.ns += self.random.below(2 * 60_000_000_000 / expected.max(1));
            let n = out.records.len() as u64;
            // Spread evenly over the segments and over each.
            let asked = ASKED.iter().zip(&mut done).find(|((_, _, all), done)| {
                let here = all / segments + u64::from(number < all % segments);
                kind == Kind::Mix && **done < here && n >= **done * (expected * 9 / 10 / here)
            });
            let (flow, len) = match asked {
                Some(((_, port, _), done)) => {
                    *done += 1;
                    ((0x0a00_00fe, 0x5001_0000, *port, 443), 900)
                }
                None => {
                    while self.flows.len() < live {
                        let flow = self.new_flow();
                        self.flows.push(flow);
                    }
                    let at = (self.random.below(live as u64) * self.random.below(live as u64)
                        / live as u64) as usize;
                    // Flows end: the mix has about 35 packets a flow, small 8, a flood one.
                    let one_in = match kind {
                        Kind::Mix => 35,
                        Kind::Small => 8,
                        Kind::Flood => 1,
                    };
                    if self.random.below(one_in) == 0 {
                        self.flows[at] = self.new_flow();
                    }
                    (self.flows[at], self.random.below(2 * mean as u64 - 80) as usize + 60)
                }
            };
            self.packet(&mut out, flow, len.min(1514));
        }
        out
    }

    fn packet(&mut self, out: &mut Segment, flow: (u32, u32, u16, u16), len: usize) {
        let (mut src, mut dst, mut sport, mut dport) = flow;
        if self.random.below(2) == 0 {
            (src, dst, sport, dport) = (dst, src, dport, sport);
        }
        let (at, ns) = (out.bytes.len(), self.ns);
        let words =
            [(ns / 1_000_000_000) as u32, (ns % 1_000_000_000) as u32, len as u32, len as u32];
        out.bytes.extend(words.map(u32::to_le_bytes).concat());
        out.bytes.extend([2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 8, 0, 0x45, 0]);
        out.bytes.extend((len as u16 - 14).to_be_bytes());
        out.bytes.extend([0, 1, 0x40, 0, 64, 6, 0, 0]);
        out.bytes.extend(src.to_be_bytes());
        out.bytes.extend(dst.to_be_bytes());
        out.bytes.extend(sport.to_be_bytes());
        out.bytes.extend(dport.to_be_bytes());
        out.bytes.extend([0, 0, 0, 1, 0, 0, 0, 1, 0x50, 0x10, 0, 9, 0, 0, 0, 0]);
        let rest = len + 16 - (out.bytes.len() - at);
        out.bytes.extend_from_slice(&self.body[..rest]);
        out.records.push((at, len, ns));
    }
}

/// Builds the index of a segment: nanoseconds a packet, and the file.
fn index(builder: &mut IndexBuilder, segment: &Segment) -> (f64, Duration, Vec<u8>) {
    builder.reset(1);
    let begun = Instant::now();
    for (n, &(at, len, ns)) in segment.records.iter().enumerate() {
        // The lcore has just copied a packet when it adds it: its headers are in the cache.
        if let Some((later, ..)) = segment.records.get(n + 16) {
            malakocut::flow::Hint::soon(malakocut::worker::Machine, &segment.bytes[later + 16]);
            malakocut::flow::Hint::soon(malakocut::worker::Machine, &segment.bytes[later + 64]);
        }
        let data = &segment.bytes[at + 16..at + 16 + len];
        let frame =
            Frame { data, wire_len: len as u32, wire_len_known: true, link: Link::Ethernet };
        builder.add(at as u64, &frame, ns, None);
    }
    let add = begun.elapsed().as_nanos() as f64 / segment.records.len() as f64;
    assert!(!builder.is_full());
    let begun = Instant::now();
    let encoded = builder.encode(segment.bytes.len() as u64);
    (add, begun.elapsed(), encoded)
}

/// Reads the records' headers only: what touching each packet costs without an index.
fn touch(segment: &Segment) -> f64 {
    let begun = Instant::now();
    let mut sum = 0u64;
    for &(at, _, _) in &segment.records {
        sum += u64::from(segment.bytes[at + 16 + 26]) + u64::from(segment.bytes[at + 16 + 50]);
    }
    std::hint::black_box(sum);
    begun.elapsed().as_nanos() as f64 / segment.records.len() as f64
}

fn costs(dir: &Path, key: &IndexKey, builder: &mut IndexBuilder) {
    println!(
        "index      size % of data  exact   flows   add ns/packet (touch)  encode ms  rebuild ms"
    );
    for (name, kind, size) in [
        ("mix", Kind::Mix, SEGMENT),
        ("small", Kind::Small, SEGMENT),
        ("flood", Kind::Flood, 40_000_000),
    ] {
        let segment = Maker::new().segment(kind, size, 1, 0);
        let mut adds = Vec::new();
        let (mut encode, mut encoded) = (Duration::ZERO, Vec::new());
        for _ in 0..3 {
            let (add, took, bytes) = index(builder, &segment);
            adds.push(add);
            (encode, encoded) = (took, bytes);
        }
        adds.sort_by(f64::total_cmp);
        let path = dir.join(file_name(1, 1));
        fs::write(&path, &segment.bytes).unwrap();
        fs::write(path.with_extension("idx"), &encoded).unwrap();
        let begun = Instant::now();
        assert!(rebuild(&path, key).unwrap() == encoded, "equal byte for byte");
        let rebuilt = begun.elapsed();
        let file =
            IndexFile::open(&path.with_extension("idx"), segment.bytes.len() as u64).unwrap();
        let percent = |n: u64| n as f64 * 100.0 / segment.bytes.len() as f64;
        println!(
            "{name:<9} {:>14.2}%  {:<5} {:>8} {:>14.0} ({:.0}) {:>15.0} {:>11.0}",
            percent(encoded.len() as u64),
            file.is_exact(),
            file.flows(),
            adds[1],
            touch(&segment),
            encode.as_secs_f64() * 1e3,
            rebuilt.as_secs_f64() * 1e3,
        );
        let parts: Vec<String> =
            file.sizes().iter().map(|(n, b)| format!("{n} {:.3}", percent(*b))).collect();
        println!("          of these %: {}", parts.join(", "));
        fs::remove_file(&path).unwrap();
        fs::remove_file(path.with_extension("idx")).unwrap();
    }
}

fn files(dir: &Path) -> Vec<PathBuf> {
    let mut all: Vec<PathBuf> = fs::read_dir(dir).unwrap().map(|e| e.unwrap().path()).collect();
    all.sort();
    all
}

/// Drops the directory's files from the system's cache.
fn drop_cache(dir: &Path) {
    for path in files(dir) {
        let file = File::open(path).unwrap();
        fadvise(&file, 0, None, Advice::DontNeed).unwrap();
    }
}

fn warm_cache(dir: &Path) {
    let mut sink = std::io::sink();
    for path in files(dir) {
        std::io::copy(&mut File::open(path).unwrap(), &mut sink).unwrap();
    }
}

/// A timed run of the command line; the packets that it counted.
fn extract(cli: &Path, data: &Path, port: u16) -> (f64, u64) {
    let port = port.to_string();
    let begun = Instant::now();
    let out = Command::new(cli)
        .args(["extract", "--data-dir"])
        .arg(data)
        .args(["--src", "10.0.0.254", "--sport", &port, "--dst", "80.1.0.0", "--dport", "443"])
        .args(["--proto", "tcp", "-q", "-w", "-"])
        .output()
        .unwrap();
    let took = begun.elapsed().as_secs_f64();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    let mut packets = 0;
    let mut at = 24;
    while let Some(len) = out.stdout.get(at + 8..at + 12) {
        at += 16 + u32::from_le_bytes(len.try_into().unwrap()) as usize;
        packets += 1;
    }
    (took, packets)
}

fn tcpdump(journal: &Path, port: u16) -> f64 {
    let begun = Instant::now();
    for path in files(journal).iter().filter(|p| p.extension().is_some_and(|e| e == "pcap")) {
        let done = Command::new("tcpdump")
            .args(["-r", path.to_str().unwrap(), "-w", "/dev/null"])
            .arg(format!("host 10.0.0.254 and host 80.1.0.0 and tcp port {port} and port 443"))
            .stderr(Stdio::null())
            .status();
        if !done.is_ok_and(|s| s.success()) {
            return f64::NAN;
        }
    }
    begun.elapsed().as_secs_f64()
}

fn median(mut all: Vec<f64>) -> f64 {
    all.sort_by(f64::total_cmp);
    all[all.len() / 2]
}

fn latencies(dir: &Path, builder: &mut IndexBuilder, cli: &Path, gb: u64) {
    let journal = dir.join("pcap");
    let segments = (gb * 1_000_000_000 / SEGMENT as u64).max(1);
    let mut maker = Maker::new();
    let begun = Instant::now();
    for number in 0..segments {
        let from = maker.ns;
        let segment = maker.segment(Kind::Mix, SEGMENT, segments, number);
        let (_, _, encoded) = index(builder, &segment);
        let path = journal.join(file_name(number + 1, from));
        for (path, bytes) in [(path.with_extension("idx"), &encoded), (path, &segment.bytes)] {
            let mut file = File::create(path).unwrap();
            file.write_all(bytes).unwrap();
            file.sync_all().unwrap();
        }
    }
    println!("\n{segments} segments of 500 MB made in {:.0} s", begun.elapsed().as_secs_f64());
    warm_cache(&journal);
    let scans = median((0..3).map(|_| tcpdump(&journal, ASKED[1].1)).collect());
    println!("tcpdump -r over all of them, hot: {scans:.2} s");
    println!("extract                      hot ms   cold ms   times tcpdump's hot scan");
    for (name, port, packets) in ASKED {
        let run = || {
            let (took, found) = extract(cli, dir, port);
            assert_eq!(found, packets, "{name}");
            took
        };
        run();
        let hot = median((0..7).map(|_| run()).collect());
        let cold = median(
            (0..5)
                .map(|_| {
                    drop_cache(&journal);
                    run()
                })
                .collect(),
        );
        println!("{name:<26} {:>8.1} {:>9.1} {:>10.0}", hot * 1e3, cold * 1e3, scans / hot);
        warm_cache(&journal);
    }
    drop_cache(&journal);
    println!("tcpdump -r over all of them, cold: {:.2} s", tcpdump(&journal, ASKED[1].1));
}

fn main() {
    let args: Vec<String> = std::env::args().skip(1).filter(|a| a != "--bench").collect();
    let value =
        |name: &str| args.iter().position(|a| a == name).and_then(|n| args.get(n + 1)).cloned();
    let gb = value("--gb").map_or(10, |n| n.parse().expect("--gb takes a number"));
    let parent = value("--dir").map_or_else(std::env::temp_dir, PathBuf::from);
    let cli = value("--cli")
        .map_or_else(|| PathBuf::from(env!("CARGO_BIN_EXE_malakocut-cli")), PathBuf::from);
    let dir = tempfile::tempdir_in(parent).expect("a directory for the segments");
    fs::create_dir(dir.path().join("pcap")).unwrap();
    let key = IndexKey::load_or_create(&dir.path().join("pcap")).unwrap();
    let limits = Limits { packets: SEGMENT / 76, flows: 512 << 10 };
    let mut builder = IndexBuilder::new(&key, 1, limits);
    costs(dir.path(), &key, &mut builder);
    latencies(dir.path(), &mut builder, &cli, gb);
}
