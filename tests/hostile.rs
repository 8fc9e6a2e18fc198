//! Hostile input: bytes changed, cut and doubled at random, but the same in every run.
//!
//! What the fuzz targets do with coverage's guidance (`make fuzz`), here without it and briefly.

#![allow(clippy::unwrap_used, reason = "a test that cannot run fails")]

#[path = "../fuzz/targets.rs"]
#[allow(dead_code, unreachable_pub, reason = "the fuzzer names them one by one")]
mod targets;

mod common;

use std::time::{Duration, Instant};

use malakocut::capture::CaptureReader;
use malakocut::packet::{Decoded, Frame, Link, decode};

/// Rounds for each target, and time after which no more are begun.
const ROUNDS: u64 = 1_000_000;
const TIME: Duration = Duration::from_secs(4);

/// xorshift64*: the same numbers in every run.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, n: usize) -> usize {
        (self.next() % n.max(1) as u64) as usize
    }
}

/// Payloads of the shipped capture, and a few more shapes.
fn seeds() -> Vec<Vec<u8>> {
    let mut seeds = vec![Vec::new(), vec![0; 64], vec![0xff; 300]];
    let mut reader = CaptureReader::open(&common::home(), 1 << 20).unwrap();
    while let Some(r) = reader.peek().unwrap() {
        let frame = Frame {
            data: r.data,
            wire_len: r.wire_len,
            wire_len_known: true,
            link: Link::from_number(r.link),
        };
        let mut d = Decoded::default();
        let readable = decode(&frame, &mut d).is_ok();
        let payload = r.data.get(d.payload_at as usize..).unwrap_or_default();
        // Full segments in the middle of a download are all alike.
        if readable && !payload.is_empty() && (payload.len() < 1300 || seeds.len() < 400) {
            seeds.push(payload.to_vec());
        }
        reader.consume();
    }
    assert!(seeds.len() > 100, "{}", seeds.len());
    seeds
}

fn mutate(random: &mut Random, seeds: &[Vec<u8>], out: &mut Vec<u8>) {
    out.clear();
    out.extend(&seeds[random.below(seeds.len())]);
    for _ in 0..random.below(8) {
        let (len, at) = (out.len(), random.below(out.len()));
        match random.below(7) {
            0 if len > 0 => out[at] ^= 1 << random.below(8),
            1 if len > 0 => out[at] = [0, 1, 0x3f, 0x7f, 0x80, 0xc0, 0xff][random.below(7)],
            2 => out.truncate(at),
            3 => out.insert(at, random.next() as u8),
            4 => {
                let part = out[at..(at + random.below(64)).min(len)].to_vec();
                out.splice(at..at, part);
            }
            5 => {
                let other = &seeds[random.below(seeds.len())];
                out.extend(&other[random.below(other.len())..]);
            }
            _ if len > 1 => {
                let number = (random.next() as u16 >> random.below(16)).to_be_bytes();
                let at = random.below(len - 1);
                out[at..at + 2].copy_from_slice(&number);
            }
            _ => {}
        }
    }
    out.truncate(4096);
}

#[test]
fn mutated_input_panics_nowhere() {
    let seeds = seeds();
    for (name, target) in targets::ALL {
        let (mut random, mut input) = (Random(0x9e37_79b9_7f4a_7c15), Vec::new());
        let begun = Instant::now();
        let mut rounds = 0;
        while rounds < ROUNDS && begun.elapsed() < TIME {
            if name == "inspector" {
                rows_of_packets(&mut random, &seeds, &mut input);
            } else {
                mutate(&mut random, &seeds, &mut input);
            }
            target(&input);
            rounds += 1;
        }
        println!("{name}: {rounds} inputs in {:.1} s", begun.elapsed().as_secs_f64());
        assert!(rounds > 100, "{name} is too slow: {rounds}");
    }
}

/// Several mutated payloads, each behind its flow, offset and length.
fn rows_of_packets(random: &mut Random, seeds: &[Vec<u8>], out: &mut Vec<u8>) {
    let mut payload = Vec::new();
    let mut all = Vec::new();
    for _ in 0..random.below(12) {
        mutate(random, seeds, &mut payload);
        let flow = random.next() as u8;
        let at = if random.below(2) == 0 { 0 } else { random.next() as u16 >> random.below(16) };
        let len = (payload.len() / 4).min(255) as u8;
        all.push(flow);
        all.extend(at.to_be_bytes());
        all.push(len);
        all.extend(&payload[..usize::from(len) * 4]);
    }
    std::mem::swap(out, &mut all);
}
