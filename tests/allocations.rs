//! The packet path allocates nothing once it runs: a worker over a capture of known flows.

#![allow(clippy::unwrap_used, reason = "a test that cannot run fails")]

mod common;

use std::fs;
use std::sync::Arc;

use dpdk::{Eal, EalConfig, Memory, Mempool};
use malakocut::capture::{FileSource, Source};
use malakocut::flow::{FlowTable, Timeouts};
use malakocut::inspect::{Inspector, Limits};
use malakocut::status::{Counter, Turn};
use malakocut::worker::{Input, Machine, Reading, Worker};
use rtrb::RingBuffer;

#[test]
fn no_allocation_per_packet_in_steady_state() {
    let dir = tempfile::tempdir().unwrap();
    let plain = common::home_plain(dir.path());
    // The same five minutes over and over: flows end and begin again all the time.
    let bytes = fs::read(&plain).unwrap();
    let many = dir.path().join("many.pcap");
    let span_s = 400u32;
    let mut all = bytes[..24].to_vec();
    for round in 0..20u32 {
        let mut at = 24;
        while at < bytes.len() {
            let len = u32::from_le_bytes(bytes[at + 8..at + 12].try_into().unwrap()) as usize;
            let seconds = u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
            all.extend((seconds + round * span_s).to_le_bytes());
            all.extend(&bytes[at + 4..at + 16 + len]);
            at += 16 + len;
        }
    }
    fs::write(&many, all).unwrap();

    let memory = Memory::Ordinary { mib: 64 };
    let eal = Eal::init(&EalConfig { memory, pci: Vec::new() }).unwrap();
    let pool = Mempool::new(&eal, "packets", 8191, 2048).unwrap();
    let source = FileSource::new(FileSource::open(&[many]).unwrap(), pool);
    let second = 1_000_000_000;
    let timeouts = Timeouts { idle_ns: 60 * second, active_ns: 30 * second };
    let (events_tx, mut events) = RingBuffer::new(1 << 14);
    let (journal_tx, mut journal) = malakocut::journal::handover(4096);
    let input = Input::Source(Source::File(source));
    let mut worker = Worker::new(
        input,
        FlowTable::new(100_000, timeouts, 1, Machine),
        events_tx,
        Some(journal_tx),
    );

    let (notes, mut notes_rx) = RingBuffer::new(8192);
    let (fields, mut fields_rx) = RingBuffer::new(1 << 20);
    let inspector = Inspector::new(Limits::default(), 100_000);
    worker.read_payloads(Reading { inspector, notes, fields, until: Arc::default() });

    let mut notes_seen = 0;
    let mut turns = |worker: &mut Worker, until: u64| {
        let mut seen = 0;
        while worker.counters.get(Counter::Packets) < until {
            assert_ne!(worker.turn(false), Turn::End);
            while journal.waiting() > 0 {
                let mut burst = dpdk::Burst::new();
                journal.take(&mut burst);
            }
            let n = events.slots();
            seen += n;
            events.read_chunk(n).unwrap().commit_all();
            let n = notes_rx.slots();
            notes_seen += n;
            notes_rx.read_chunk(n).unwrap().commit_all();
            let n = fields_rx.slots();
            fields_rx.read_chunk(n).unwrap().commit_all();
        }
        seen
    };
    let packets = common::number(&common::home_truth(), "packets");
    turns(&mut worker, 2 * packets);
    let mut ended = 0;
    let info = allocation_counter::measure(|| ended = turns(&mut worker, 18 * packets));
    assert!(ended > 16 * 200, "flows ended and began meanwhile: {ended}");
    println!("{} allocations in {} packets", info.count_total, 16 * packets);
    assert!(notes_seen > 18 * 200, "names were read meanwhile: {notes_seen}");
    assert_eq!(info.count_total, 0);
}
