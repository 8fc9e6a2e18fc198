//! The journal at full speed, beside what the disk can do: the real lcore task, fed with packets of
//! 1 KB from memory, and the real writer, on a disk.
//!
//! usage: journal [--directory DIR] [--bytes N] [--rounds N]
//!
//! Each round writes the same number of bytes raw (O_DIRECT, 4 MiB at once, one after the other, a
//! sync each 64 MiB) and through the journal. Prints MB/s of both and their ratio, processor time
//! of the journal's lcore per packet once it is warm, of the other threads per packet, and how long
//! the last seal took.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a benchmark that cannot run fails")]

use std::fs::{self, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use diskio::Filler;
use dpdk::lcore::{self, Lcore};
use dpdk::{BURST, Burst, Eal, EalConfig, Mbuf, Memory, Mempool, Meta};
use malakocut::journal::{self, JournalConfig, admit, retention};
use malakocut::status::{Counter, Turn};
use rustix::fs::OFlags;
use rustix::time::{ClockId, clock_gettime};

const FRAME: usize = 1008;
const FLOWS: usize = 5_000;
const PIECE: usize = 4 << 20;
/// The first of so many parts of a run does not count for the lcore: it touches memory that was never
/// touched, which happens once in a sensor's life.
const WARM: u64 = 4;

fn cpu(clock: ClockId) -> Duration {
    let now = clock_gettime(clock);
    Duration::new(now.tv_sec as u64, now.tv_nsec as u32)
}

/// Writes `bytes` as directly as can be; returns MB/s.
fn raw(directory: &Path, bytes: u64) -> f64 {
    let path = directory.join("raw");
    let file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .custom_flags(OFlags::DIRECT.bits() as i32)
        .open(&path)
        .expect("a file system that takes O_DIRECT");
    let mut buffer = Filler::new(PIECE).unwrap();
    let noise: Vec<u8> = (0..PIECE).map(|n| ((n * 31) >> 3) as u8).collect();
    buffer.push(&noise);
    buffer.publish();
    let data = buffer.share();
    let begun = Instant::now();
    let mut at = 0;
    while at < bytes {
        file.write_all_at(data.bytes(), at).unwrap();
        at += PIECE as u64;
        if at.is_multiple_of(64 << 20) {
            file.sync_data().unwrap();
        }
    }
    file.sync_data().unwrap();
    let took = begun.elapsed();
    drop(file);
    fs::remove_file(path).unwrap();
    at as f64 / took.as_secs_f64() / 1e6
}

/// Frames of many flows, more than a cache holds.
fn frames() -> Vec<Vec<u8>> {
    (0..FLOWS)
        .map(|n| {
            let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 8, 0, 0x45, 0];
            frame.extend((FRAME as u16 - 14).to_be_bytes());
            frame.extend([0, 1, 0, 0, 64, 17, 0, 0, 10, 1, (n >> 8) as u8, n as u8, 10, 2, 0, 1]);
            frame.extend((1024 + n as u16).to_be_bytes());
            frame.extend([1, 187]);
            frame.extend((FRAME as u16 - 34).to_be_bytes());
            frame.resize(FRAME, n as u8);
            frame
        })
        .collect()
}

struct Result {
    mb_per_s: f64,
    lcore_ns: f64,
    others_ns: f64,
    seal_ms: f64,
    dropped: u64,
}

fn through_the_journal(
    eal: &Eal,
    directory: &Path,
    pool: Mempool,
    frames: &Arc<Vec<Vec<u8>>>,
    bytes: u64,
) -> Result {
    let directory = directory.join("pcap");
    let (mut scribe, handle) = journal::start(configuration(&directory)).unwrap();
    let (mut giver, taker) = journal::handover(4096);
    scribe.attach(taker);
    scribe.wait_for_disk(true);
    let packets = bytes / (FRAME as u64 + 16);
    let affinity = lcore::affinity().unwrap();
    let warm = Arc::new(AtomicBool::new(false));
    let feeder = {
        let (frames, warm) = (Arc::clone(frames), Arc::clone(&warm));
        let run = move || {
            let (mut sent, mut burst, mut stock) = (0, Burst::new(), Burst::new());
            while sent < packets {
                warm.store(sent >= packets / WARM, Ordering::Relaxed);
                sent += fill(&mut burst, &mut stock, pool, &frames, sent, packets);
                let before = burst.len();
                giver.give(&mut burst);
                if burst.len() == before {
                    std::thread::sleep(Duration::from_micros(20));
                }
            }
            while !burst.is_empty() {
                giver.give(&mut burst);
                std::thread::yield_now();
            }
            cpu(ClockId::ThreadCPUTime)
        };
        lcore::spawn(eal, &Lcore { id: 1, cpus: affinity.clone() }, run).unwrap()
    };
    let (begun, all) = (Instant::now(), cpu(ClockId::ProcessCPUTime));
    let run = move || {
        let mut since = None;
        loop {
            match scribe.turn() {
                Turn::End => break,
                Turn::Busy if since.is_none() && warm.load(Ordering::Relaxed) => {
                    since = Some(cpu(ClockId::ThreadCPUTime));
                }
                Turn::Busy => {}
                // As an lcore that has nothing to do; full turns cost less than many small ones.
                Turn::Idle => std::thread::sleep(Duration::from_micros(50)),
            }
        }
        let own = cpu(ClockId::ThreadCPUTime);
        (own, own - since.unwrap_or(own), scribe.counters.get(Counter::JournalOverload))
    };
    let scribe = lcore::spawn(eal, &Lcore { id: 0, cpus: affinity }, run).unwrap();
    let (own, warm, dropped) = scribe.join().unwrap();
    let written = Instant::now();
    let (counters, _) = handle.finish();
    let (took, seal) = (begun.elapsed(), written.elapsed());
    let fed = feeder.join().unwrap();
    let others = cpu(ClockId::ProcessCPUTime) - all - own - fed;
    assert_eq!(counters.get(Counter::JournalPackets) + dropped, packets);
    fs::remove_dir_all(&directory).unwrap();
    let each = |time: Duration| time.as_nanos() as f64 / packets as f64;
    Result {
        mb_per_s: counters.get(Counter::JournalBytes) as f64 / took.as_secs_f64() / 1e6,
        lcore_ns: each(warm) * WARM as f64 / (WARM - 1) as f64,
        others_ns: each(others),
        seal_ms: seal.as_secs_f64() * 1e3,
        dropped,
    }
}

/// The lcore's own time for a packet where one lcore does everything, so that packets come from its
/// own cache: what its turns took, nanoseconds.
fn from_the_same_core(
    eal: &Eal,
    directory: &Path,
    pool: Mempool,
    frames: &Arc<Vec<Vec<u8>>>,
    bytes: u64,
) -> f64 {
    let (directory, frames) = (directory.join("pcap"), Arc::clone(frames));
    let (mut scribe, handle) = journal::start(configuration(&directory)).unwrap();
    let (mut giver, taker) = journal::handover(4096);
    scribe.attach(taker);
    scribe.wait_for_disk(true);
    let packets = bytes / (FRAME as u64 + 16);
    let run = move || {
        let (mut sent, mut burst, mut stock) = (0, Burst::new(), Burst::new());
        let mut own = Duration::ZERO;
        let first = packets / WARM;
        while sent < packets {
            sent += fill(&mut burst, &mut stock, pool, &frames, sent, packets);
            giver.give(&mut burst);
            let before = cpu(ClockId::ThreadCPUTime);
            let turn = scribe.turn();
            if sent > first {
                own += cpu(ClockId::ThreadCPUTime) - before;
            }
            if turn == Turn::Idle {
                std::thread::sleep(Duration::from_micros(50));
            }
        }
        drop(giver);
        while scribe.turn() != Turn::End {}
        own
    };
    let lcore = Lcore { id: 0, cpus: lcore::affinity().unwrap() };
    let own = lcore::spawn(eal, &lcore, run).unwrap().join().unwrap();
    handle.finish();
    fs::remove_dir_all(&directory).unwrap();
    own.as_nanos() as f64 / (packets - packets / WARM) as f64
}

fn configuration(directory: &Path) -> JournalConfig {
    let keep = retention::Limits { age: Duration::from_secs(3600), quota: None, min_free: 0 };
    let rules = admit::Rules::default();
    JournalConfig { directory: directory.into(), rotate_size: 500_000_000, keep, rules }
}

/// Fills a burst with the packets that come next; returns how many.
fn fill(
    burst: &mut Burst,
    stock: &mut Burst,
    pool: Mempool,
    frames: &[Vec<u8>],
    sent: u64,
    packets: u64,
) -> u64 {
    let mut n = 0;
    while burst.len() < BURST && sent + n < packets {
        let frame = &frames[(sent + n) as usize * 7 % FLOWS];
        let Some(mut packet) = pool.copy_in(frame, stock) else { break };
        let ns = 1_700_000_000_000_000_000 + (sent + n) * 700;
        let meta = Meta { clock_ns: ns, wire_len: FRAME as u32, link: 1, flags: 0 };
        Mbuf::stamp(&mut packet, ns, meta);
        burst.push(packet);
        n += 1;
    }
    n
}

/// Large pages, as a sensor has them, where some are free.
fn memory() -> Memory {
    let path = "/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages";
    let free = fs::read_to_string(path).ok().and_then(|t| t.trim().parse::<u32>().ok());
    match free {
        Some(64..) => Memory::Huge,
        _ => Memory::Ordinary { mib: 96 },
    }
}

fn median(values: impl IntoIterator<Item = f64>) -> f64 {
    let mut all: Vec<f64> = values.into_iter().collect();
    all.sort_by(f64::total_cmp);
    all[all.len() / 2]
}

fn main() {
    let (mut directory, mut bytes, mut rounds) = (PathBuf::from("/var/tmp"), 2_000_000_000, 5);
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        let mut value = || args.next().expect("a value");
        match arg.as_str() {
            "--directory" => directory = value().into(),
            "--bytes" => bytes = value().parse().expect("a number of bytes"),
            "--rounds" => rounds = value().parse().expect("a number of rounds"),
            _ => {}
        }
    }
    let scratch = tempfile::tempdir_in(directory).unwrap();
    let eal = Eal::init(&EalConfig { memory: memory(), pci: Vec::new() }).unwrap();
    let pool = Mempool::new(&eal, "packets", 6_143, 2048).unwrap();
    let frames = Arc::new(frames());
    let mut results = Vec::new();
    for round in 0..rounds {
        // In turn first, so that neither has the warmer disk.
        let (limit, ours) = if round % 2 == 0 {
            (
                raw(scratch.path(), bytes),
                through_the_journal(&eal, scratch.path(), pool, &frames, bytes),
            )
        } else {
            let ours = through_the_journal(&eal, scratch.path(), pool, &frames, bytes);
            (raw(scratch.path(), bytes), ours)
        };
        println!(
            "round {}: raw {limit:.0} MB/s, journal {:.0} MB/s, lcore {:.0} ns, others {:.0} ns a packet, \
             last sync and seal {:.0} ms, {} dropped",
            round + 1,
            ours.mb_per_s,
            ours.lcore_ns,
            ours.others_ns,
            ours.seal_ms,
            ours.dropped
        );
        results.push((limit, ours));
    }
    println!(
        "median of {rounds} rounds of {:.1} GB, packets of {FRAME} bytes in {FLOWS} flows",
        bytes as f64 / 1e9
    );
    println!("  journal      {:8.0} MB/s", median(results.iter().map(|r| r.1.mb_per_s)));
    println!("  raw O_DIRECT {:8.0} MB/s", median(results.iter().map(|r| r.0)));
    println!("  ratio        {:8.2}", median(results.iter().map(|r| r.1.mb_per_s / r.0)));
    println!(
        "  journal lcore {:7.0} ns of processor a packet",
        median(results.iter().map(|r| r.1.lcore_ns))
    );
    let same = median(
        (0..rounds).map(|_| from_the_same_core(&eal, scratch.path(), pool, &frames, bytes / 2)),
    );
    println!("  the same, packets in its own cache {same:5.0} ns");
    println!("  writer, seal  {:7.0} ns", median(results.iter().map(|r| r.1.others_ns)));
    println!("  last seal     {:7.0} ms", median(results.iter().map(|r| r.1.seal_ms)));
}
