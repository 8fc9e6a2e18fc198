//! The packet path allocates nothing once it runs: a worker over a capture of known flows.

#![allow(clippy::unwrap_used, reason = "a test that cannot run fails")]

mod common;

use std::fs;
use std::sync::Arc;

use dpdk::{Eal, EalConfig, Memory, Mempool};
use malakocut::capture::{FileSource, Source};
use malakocut::filter::Filters;
use malakocut::flow::{FlowTable, Timeouts};
use malakocut::inspect::silence::silencers;
use malakocut::inspect::{Inspector, Limits};
use malakocut::shunt::{Current, List};
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
    // Some of its names are listed, and some of its packets left out.
    let (list, _) = List::read(&b"example.net\nexample.org\n"[..], "test").unwrap();
    let list = Current::new(list);
    let (silencer, _reports) = silencers(&list, 1).pop().unwrap();
    worker.silence(silencer);
    let (_others, others_rx) = RingBuffer::new(1);
    worker.filter(Filters::new("test", &["not arp"]).unwrap(), others_rx);

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
    let counted = |counter| worker.counters.get(counter);
    assert!(counted(Counter::SilencedPackets) > 0 && counted(Counter::Filtered) > 0);
    assert!(list.get().hits().any(|(_, hits)| hits > 0));
}

#[test]
fn a_million_domains_take_less_than_100_mb() {
    use std::io::Write;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("list");
    let mut file = std::io::BufWriter::new(fs::File::create(&path).unwrap());
    // Of usual length, 20 bytes and a little.
    for n in 0..1_000_000u32 {
        writeln!(file, "0.0.0.0 ads{}.tracker{n}.example", n % 97).unwrap();
    }
    file.into_inner().unwrap();
    let mut list = None;
    let info = allocation_counter::measure(|| list = Some(List::open(&path).unwrap().0));
    let list = list.unwrap();
    let mb = |bytes: u64| bytes / 1_000_000;
    let kept = mb(info.bytes_current.unsigned_abs());
    println!("a million domains: {kept} MB, {} MB while they are read", mb(info.bytes_max));
    assert_eq!(list.len(), 1_000_000);
    assert!(info.bytes_max < 100_000_000);
    let begun = std::time::Instant::now();
    let found = (0..1_000_000u32).filter(|n| {
        list.find(format!("www.ads{}.tracker{n}.example", n % 97).as_bytes()).is_some()
    });
    assert_eq!(found.count(), 1_000_000);
    println!("{} ns a look-up, names made included", begun.elapsed().as_nanos() / 1_000_000);
}
