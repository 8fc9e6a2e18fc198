//! What it costs a worker to give its packets to the journal: copied in place, handed over in their
//! buffers by a ring, or by a ring whose entries carry the stamps.
//!
//! usage: hand_over [--rounds N]
//!
//! Each way is timed as CPU of the worker's thread per packet, less what making and freeing the
//! buffers takes alone; the other lcore copies and frees, as the journal does. Needs two CPUs.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a benchmark that cannot run fails")]

use std::hint::black_box;
use std::time::Instant;

use dpdk::mbuf::free_burst;
use dpdk::{BURST, Burst, Eal, EalConfig, Mbuf, Memory, Mempool, Meta, lcore};
use rtrb::{Consumer, Producer, RingBuffer};

const RING: usize = 4096;
const BUFFERS: u32 = 8192;
const BURSTS: usize = 40_000;
const CHUNK: usize = 1 << 18;
const RECORD_HEADER: usize = 16;

/// A packet whose stamps need no look at its buffer.
struct Stamped {
    packet: Mbuf,
    timestamp_ns: u64,
    meta: Meta,
}

/// A place to copy records to, as large as the journal's.
struct Chunk(Vec<u8>);

impl Chunk {
    fn new() -> Self {
        Self(Vec::with_capacity(CHUNK))
    }

    #[inline]
    fn record(&mut self, timestamp_ns: u64, wire_len: u32, data: &[u8]) {
        if self.0.len() + RECORD_HEADER + data.len() > CHUNK {
            black_box(&self.0);
            self.0.clear();
        }
        let mut header = [0; RECORD_HEADER];
        header[..8].copy_from_slice(&timestamp_ns.to_le_bytes());
        header[8..12].copy_from_slice(&wire_len.to_le_bytes());
        self.0.extend_from_slice(&header);
        self.0.extend_from_slice(data);
    }
}

/// How the worker gives a burst away; false when it was dropped for want of room.
enum Way {
    Nothing,
    InPlace(Chunk),
    Ring(Producer<Mbuf>),
    StampedRing(Producer<Stamped>),
}

impl Way {
    #[inline]
    fn give(&mut self, burst: &mut Burst, at: u64) -> bool {
        let meta = Meta { clock_ns: at, wire_len: 64, link: 1, flags: 0 };
        match self {
            Self::Nothing => free_burst(burst),
            Self::InPlace(chunk) => {
                burst.iter().for_each(|p| chunk.record(at, meta.wire_len, p.data()));
                free_burst(burst);
            }
            Self::Ring(ring) => {
                let Ok(room) = ring.write_chunk_uninit(burst.len()) else {
                    free_burst(burst);
                    return false;
                };
                burst.iter_mut().for_each(|p| p.stamp(at, meta));
                room.fill_from_iter(burst.drain(..));
            }
            Self::StampedRing(ring) => {
                let Ok(room) = ring.write_chunk_uninit(burst.len()) else {
                    free_burst(burst);
                    return false;
                };
                room.fill_from_iter(burst.drain(..).map(|packet| Stamped {
                    packet,
                    timestamp_ns: at,
                    meta,
                }));
            }
        }
        true
    }
}

/// Makes bursts of packets and gives them away; nanoseconds per packet, and the share dropped.
fn work(pool: Mempool, frame: Vec<u8>, mut way: Way) -> (f64, f64) {
    let (mut stock, mut burst) = (Burst::new(), Burst::new());
    let mut dropped = 0;
    let begun = Instant::now();
    for n in 0..BURSTS {
        while burst.len() < BURST {
            let Some(packet) = pool.copy_in(&frame, &mut stock) else { continue };
            burst.push(packet);
        }
        dropped += u64::from(!way.give(&mut burst, n as u64));
    }
    let took = begun.elapsed().as_nanos() as f64;
    (took / (BURSTS * BURST) as f64, dropped as f64 / BURSTS as f64)
}

/// The journal's side of a ring.
fn empty<T>(mut ring: Consumer<T>, copy: impl Fn(T, &mut Chunk) -> Mbuf) {
    let (mut chunk, mut done) = (Chunk::new(), Burst::new());
    loop {
        let over = ring.is_abandoned();
        let n = ring.slots().min(BURST);
        if let Ok(items) = ring.read_chunk(n) {
            items.into_iter().for_each(|item| done.push(copy(item, &mut chunk)));
        }
        free_burst(&mut done);
        if n == 0 && over {
            return;
        }
    }
}

fn main() {
    let mut args = std::env::args().skip(1).filter(|a| a != "--bench");
    let rounds: usize = match (args.next().as_deref(), args.next()) {
        (Some("--rounds"), Some(n)) => n.parse().expect("a number of rounds"),
        _ => 7,
    };
    let cpus = lcore::affinity().expect("the CPU affinity");
    let [first, second, ..] = cpus[..] else {
        println!("hand_over: skipped, it needs two CPUs");
        return;
    };
    let eal = Eal::init(&EalConfig { memory: Memory::Ordinary { mib: 128 }, pci: Vec::new() })
        .expect("DPDK");
    let pool = Mempool::new(&eal, "packets", BUFFERS, 2048).expect("a pool");
    let lcores = lcore::parse(&format!("0@{first},1@{second}"), &cpus).expect("two lcores");
    println!(
        "giving packets to the journal: ns/packet of the worker beyond making and freeing them"
    );
    for size in [64, 333, 1024] {
        let frame = vec![0x5a; size];
        let mut results: [Vec<(f64, f64)>; 4] = Default::default();
        for _ in 0..rounds {
            for (which, results) in results.iter_mut().enumerate() {
                let (way, other): (Way, Option<Box<dyn FnOnce() + Send>>) = match which {
                    0 => (Way::Nothing, None),
                    1 => (Way::InPlace(Chunk::new()), None),
                    2 => {
                        let (tx, rx) = RingBuffer::new(RING);
                        let copy = |p: Mbuf, chunk: &mut Chunk| {
                            chunk.record(p.timestamp_ns(), p.meta().wire_len, p.data());
                            p
                        };
                        (Way::Ring(tx), Some(Box::new(move || empty(rx, copy))))
                    }
                    _ => {
                        let (tx, rx) = RingBuffer::new(RING);
                        let copy = |s: Stamped, chunk: &mut Chunk| {
                            chunk.record(s.timestamp_ns, s.meta.wire_len, s.packet.data());
                            s.packet
                        };
                        (Way::StampedRing(tx), Some(Box::new(move || empty(rx, copy))))
                    }
                };
                let other = other
                    .map(|other| lcore::spawn(&eal, &lcores[0], other).expect("an lcore to start"));
                let frame = frame.clone();
                let worker = lcore::spawn(&eal, &lcores[1], move || work(pool, frame, way));
                results.push(worker.expect("an lcore to start").join().expect("the worker"));
                if let Some(other) = other {
                    other.join().expect("the journal's lcore");
                }
            }
        }
        let median = |which: usize| {
            let mut all: Vec<f64> = results[which].iter().map(|r| r.0).collect();
            all.sort_by(f64::total_cmp);
            all[all.len() / 2]
        };
        let base = median(0);
        for (which, name) in ["", "in place", "ring", "ring with stamps"].iter().enumerate().skip(1)
        {
            let lost: f64 = results[which].iter().map(|r| r.1).sum::<f64>() / rounds as f64;
            println!(
                "{size:5} B  {name:17} {:7.1} ns   (making and freeing {base:5.1}; {:.1} % found no room)",
                median(which) - base,
                lost * 100.0
            );
        }
    }
}
