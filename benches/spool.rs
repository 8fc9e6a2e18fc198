//! The spool with a million events in it: how fast it takes and gives them durably, and what memory
//! and disk that costs.
//!
//! usage: spool [EVENTS]; the directory is made in $TMPDIR (or /tmp), which should be a disk.

#![allow(clippy::unwrap_used, reason = "a benchmark that cannot run fails")]

use std::collections::VecDeque;
use std::path::Path;
use std::process::Command;
use std::time::Instant;

use malakocut::spool::{Cursor, Limits, Spool};

/// Bytes of a line, about those of a flow event.
const LINE: usize = 900;
const BATCH: u64 = 100;
const DRAIN: &str = "--drain";

fn memory_mb(what: &str) -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|l| l.starts_with(what)).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() / 1024
}

fn open(directory: &Path) -> Spool {
    Spool::open(directory, Limits { max_bytes: 1 << 40, reserve: 0 }).unwrap().0
}

fn rate(n: u64, since: Instant) -> f64 {
    n as f64 / since.elapsed().as_secs_f64()
}

/// A sensor that starts with a backlog, and delivers it.
fn drain(directory: &Path) {
    let begun = Instant::now();
    let spool = open(directory);
    println!("open: {:.2} s, then {} MB", begun.elapsed().as_secs_f64(), memory_mb("VmRSS"));
    let events = spool.held().events;
    let (begun, mut next) = (Instant::now(), spool.cursor("bench").unwrap().next);
    while next < spool.end() {
        let found = spool.peek(next, u64::MAX - 1, BATCH as usize).unwrap();
        next += found.len() as u64;
        spool.keep("bench", &Cursor { next, parts: VecDeque::new() }, &[], &[]).unwrap();
    }
    println!("drain, {BATCH} a commit: {:.0} events/s", rate(events, begun));
    println!("most memory from open to drained: {} MB", memory_mb("VmHWM"));
    assert_eq!(spool.held().events, 0);
}

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    if let [flag, directory, ..] = &*args
        && flag == DRAIN
    {
        return drain(Path::new(directory));
    }
    let events = args.iter().find_map(|a| a.parse().ok()).unwrap_or(1_000_000_u64);
    let dir = tempfile::tempdir().unwrap();
    let spool = open(dir.path());
    spool.cursor("bench").unwrap();
    let line = vec![b'x'; LINE];
    let begun = Instant::now();
    for _ in 0..events / 512 {
        spool.push((0..512).map(|_| (0, &line[..]))).unwrap();
    }
    let held = spool.held();
    println!("push, 512 a commit: {:.0} events/s", rate(held.events, begun));
    println!("memory with {} events: {} MB", held.events, memory_mb("VmRSS"));
    drop(spool);
    let disk: u64 = std::fs::read_dir(dir.path().join("store"))
        .unwrap()
        .map(|e| e.unwrap().metadata().unwrap().len())
        .sum();
    println!("disk: {} MB for {} MB of lines", disk >> 20, (held.events * LINE as u64) >> 20);
    // In a process of its own, as after a restart.
    let own = std::env::current_exe().unwrap();
    let status = Command::new(own).arg(DRAIN).arg(dir.path()).status().unwrap();
    assert!(status.success());
}
