//! The journal over a disk that loses power, kills, lies and fills up: the real staging, writer and
//! repair code, cut at random moments of random runs.
//!
//! A packet's bytes are a function of its number, so that one that was changed or made up shows.
//! `MALAKO_CUTS` sets how many cuts are made, `MALAKO_SEED` where they begin.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot run fails")]

mod power {
    pub(super) mod disk;
}

use std::collections::{HashMap, HashSet};
use std::fs;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, bounded, unbounded};
use diskio::Filler;
use malakocut::journal::block;
use malakocut::journal::catalogue;
use malakocut::journal::disk::replace;
use malakocut::journal::index::{self, IndexBuilder, IndexFile, IndexKey, Limits};
use malakocut::journal::live::Live;
use malakocut::journal::pcap::{self, RecordHeader};
use malakocut::journal::recover::{self, Indexer, Repaired};
use malakocut::journal::stage::{Exchange, Rotation, Signals, Stage};
use malakocut::journal::writer::{Links, Pace, Seal, Writer, companion};
use malakocut::status::{Counter, JournalBoard, Published};
use power::disk::{Cut, Faults, Image, PowerDisk, Replay, Rng};

const BOOT: u8 = 7;
const NEXT_BOOT: u8 = 8;

/// The packet of a number: UDP of a few hosts, the number, and bytes that depend on it.
fn packet(n: u64) -> Vec<u8> {
    let mut rng = Rng::new(n + 1);
    let most = if rng.chance(5) { 1400 } else { 200 };
    let payload = 8 + rng.below(most) as usize;
    let mut out = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 8, 0, 0x45, 0];
    out.extend(((28 + payload) as u16).to_be_bytes());
    let host = rng.below(40) as u8;
    out.extend([0, 1, 0, 0, 64, 17, 0, 0, 10, 0, 0, host, 10, 0, 1, 1, 0x20, host, 0, 53]);
    out.extend(((8 + payload) as u16).to_be_bytes());
    out.extend([0, 0]);
    out.extend(n.to_le_bytes());
    out.extend((8..payload).map(|_| rng.next() as u8));
    out
}

const PAYLOAD_AT: usize = 42;
const START_NS: u64 = 1_700_000_000_000_000_000;

fn time(n: u64) -> u64 {
    START_NS + n * 1_000_000
}

/// Numbers of the packets in a segment's first `limit` bytes, checked bit for bit; the rest of the
/// bytes must be none if `whole`.
fn packets(bytes: &[u8], whole: bool, what: &str) -> Vec<u64> {
    let mut out = Vec::new();
    let Some(link) = pcap::link_of(bytes) else {
        assert!(!whole, "{what}: not a pcap file");
        return out;
    };
    assert!(link == 1 || link == 101, "{what}");
    let mut at = pcap::FILE_HEADER;
    while let Some(header) = bytes.get(at..at + pcap::RECORD_HEADER) {
        let header = RecordHeader::decode(header.try_into().unwrap());
        let start = at + pcap::RECORD_HEADER;
        let Some(data) = bytes.get(start..start + header.captured as usize) else { break };
        let n = data.get(PAYLOAD_AT..PAYLOAD_AT + 8).expect(what);
        let n = u64::from_le_bytes(n.try_into().unwrap());
        assert_eq!(header.timestamp_ns(), time(n), "{what}: packet {n}");
        assert!(data == packet(n) && header.wire as usize == data.len(), "{what}: packet {n}");
        out.push(n);
        at = start + data.len();
    }
    assert!(!whole || at == bytes.len(), "{what}: ends within a record at {at}");
    out
}

/// Index files by way of real ones, in memory.
struct Indexes {
    directory: tempfile::TempDir,
    key: IndexKey,
}

impl Indexes {
    fn new() -> Self {
        let memory = PathBuf::from("/dev/shm");
        let directory = match memory.is_dir() {
            true => tempfile::tempdir_in(memory),
            false => tempfile::tempdir(),
        };
        Self { directory: directory.unwrap(), key: IndexKey::from_bytes([9; 16]) }
    }
}

impl Indexer<PowerDisk> for Indexes {
    fn is_valid(&self, disk: &PowerDisk, name: &str, len: u64) -> bool {
        let Some(bytes) = disk.content(&companion(name, "idx")) else { return false };
        let path = self.directory.path().join("idx");
        fs::write(&path, bytes).unwrap();
        IndexFile::open(&path, len).is_ok()
    }

    fn rebuild(&self, disk: &PowerDisk, name: &str) -> io::Result<Vec<u8>> {
        let path = self.directory.path().join("pcap");
        fs::write(&path, disk.content(name).unwrap()).unwrap();
        index::rebuild(&path, &self.key).map_err(io::Error::other)
    }
}

/// A run of the journal over a disk.
struct Run {
    disk: PowerDisk,
    indexes: Indexes,
    stage: Option<Stage>,
    writer: Writer<PowerDisk>,
    seals: Receiver<Seal>,
    signals: Arc<Signals>,
    board: Arc<JournalBoard>,
    counters: Arc<Published>,
    now: Instant,
    sent: u64,
    refused: u64,
    promised: Vec<u64>,
    /// How far each file was read for `promised`.
    read: HashMap<String, usize>,
}

impl Run {
    fn new(rng: &mut Rng, first_number: u64) -> Self {
        let disk = PowerDisk::new(rng.clone(), rng.chance(70), BOOT);
        let indexes = Indexes::new();
        let buffers_count = 6;
        let (notes_tx, notes) = bounded(64);
        let (buffers, buffers_rx) = bounded(buffers_count);
        let size = 4096 * (1 + rng.below(4) as usize);
        for _ in 0..buffers_count {
            buffers.send(Filler::new(size).unwrap()).unwrap();
        }
        let (builders, builders_rx) = bounded(2);
        let (seals_tx, seals) = unbounded();
        let signals = Arc::new(Signals::new(first_number));
        let (board, counters) = (Arc::new(JournalBoard::default()), Arc::new(Published::default()));
        let links = Links {
            notes,
            buffers,
            seals: seals_tx,
            builders,
            signals: Arc::clone(&signals),
            live: Arc::new(Live::default()),
            counters: Arc::clone(&counters),
            board: Arc::clone(&board),
        };
        let pace = Pace {
            block: rng.pick(&[512, 1000, 4096, 16_384]),
            flush: Duration::from_millis(5),
            sync_bytes: rng.pick(&[3_000, 20_000, 1 << 30]),
            reserve: 1 << 16,
            largest: 1 << 20,
        };
        let key = indexes.key.clone();
        let limits = Limits { packets: 4096, flows: 1024 };
        let new_builder = Box::new(move || Box::new(IndexBuilder::new(&key, 0, limits)));
        let writer = Writer::new(disk.clone(), pace, links, "sim".into(), new_builder);
        let exchange = Exchange {
            notes: notes_tx,
            buffers: buffers_rx,
            builders: builders_rx,
            signals: Arc::clone(&signals),
        };
        let rotation = Rotation { size: rng.pick(&[6_000, 30_000, 90_000]), age: None };
        Self {
            disk,
            indexes,
            stage: Some(Stage::new(exchange, rotation, buffers_count)),
            writer,
            seals,
            signals,
            board,
            counters,
            now: Instant::now(),
            sent: 0,
            refused: 0,
            promised: Vec::new(),
            read: HashMap::new(),
        }
    }

    /// Sends some packets and lets the writer work.
    fn go(&mut self, rng: &mut Rng, rounds: u32, links: u64) {
        for _ in 0..rounds {
            if rng.chance(60) {
                for _ in 0..rng.below(30) {
                    self.send(rng, links);
                }
            }
            if let Some(stage) = &mut self.stage {
                stage.tend(self.now);
            }
            for _ in 0..=rng.below(4) {
                self.step(rng);
            }
            self.now += Duration::from_millis(rng.below(4));
        }
    }

    fn send(&mut self, rng: &mut Rng, links: u64) {
        let Some(stage) = &mut self.stage else { return };
        let data = packet(self.sent);
        let link = if rng.below(links) == 0 { 1 } else { 101 };
        match stage.append(link, time(self.sent), data.len() as u32, &data, None) {
            Ok(()) => self.sent += 1,
            Err(_) => self.refused += 1,
        }
    }

    fn step(&mut self, rng: &mut Rng) -> bool {
        let goes_on = self.writer.step(self.now, Duration::ZERO);
        self.note_promises();
        if rng.chance(50)
            && let Ok(seal) = self.seals.try_recv()
        {
            self.seal(seal);
        }
        goes_on
    }

    /// What the keeper's thread does.
    fn seal(&mut self, seal: Seal) {
        let done = match seal.index {
            Some(builder) => {
                let bytes = builder.encode(seal.len);
                replace(&self.disk, &companion(&seal.name, "idx"), &bytes)
            }
            None => recover::repair(&self.disk, &seal.name, &self.indexes).map(drop),
        };
        // A disk that refuses: left for the repair at the next start.
        let _ = done;
    }

    /// Reads from the files what the watermark covers.
    fn note_promises(&mut self) {
        let watermarks = self.board.load(0).watermarks;
        let before = self.promised.len();
        for w in watermarks {
            for (name, bytes) in self.disk.image() {
                let Some((number, _)) = catalogue::parse_name(&name) else { continue };
                if !name.ends_with(".pcap") || number > w.segment {
                    continue;
                }
                if pcap::link_of(&bytes) != Some(w.link) {
                    continue;
                }
                let limit = if number == w.segment { w.offset as usize } else { bytes.len() };
                let from = self.read.get(&name).copied().unwrap_or(pcap::FILE_HEADER);
                if limit <= from {
                    continue;
                }
                let mut part = bytes[..pcap::FILE_HEADER].to_vec();
                part.extend(&bytes[from..limit]);
                self.promised.extend(packets(&part, true, &name));
                self.read.insert(name, limit);
            }
        }
        if self.promised.len() > before {
            self.disk.acknowledge(self.promised.len());
        }
    }

    /// Ends in order; everything sent is then on disk, or counted.
    fn finish(&mut self, rng: &mut Rng) {
        let mut stage = self.stage.take().unwrap();
        stage.end_all();
        drop(stage);
        for _ in 0..100_000 {
            self.now += Duration::from_millis(400);
            if !self.step(rng) {
                while let Ok(seal) = self.seals.try_recv() {
                    self.seal(seal);
                }
                return;
            }
        }
        panic!("the writer does not end");
    }
}

/// Repairs everything, as at a start.
fn repair_all(disk: &PowerDisk, indexes: &Indexes) -> Vec<Repaired> {
    recover::tidy(disk, u64::MAX).unwrap();
    let all = recover::segments(disk).unwrap();
    all.iter().map(|(_, name)| recover::repair(disk, name, indexes).unwrap()).collect()
}

/// Every packet of every segment, all files whole and sealed.
fn check(disk: &PowerDisk, indexes: &Indexes, what: &str, twice: bool) -> HashSet<u64> {
    let mut seen = HashSet::new();
    for (name, bytes) in disk.image() {
        if !name.ends_with(".pcap") {
            assert!(!name.ends_with(".tmp"), "{what}: {name}");
            continue;
        }
        let what = format!("{what}: {name}");
        for n in packets(&bytes, true, &what) {
            assert!(seen.insert(n) || twice, "{what}: packet {n} twice");
        }
        let index = disk.content(&companion(&name, "idx")).expect(&what);
        assert!(index == indexes.rebuild(disk, &name).unwrap(), "{what}: another index");
        let number = catalogue::parse_name(&name).unwrap().0;
        let blocks = block::read(&disk.content(&companion(&name, "blk")).expect(&what), number);
        assert!(blocks.head.is_some(), "{what}: no head");
    }
    seen
}

#[derive(Default)]
struct Cuts {
    made: u64,
    repaired: u64,
    packets_promised: u64,
    torn: u64,
}

impl Cuts {
    fn plus(self, other: Self) -> Self {
        Self {
            made: self.made + other.made,
            repaired: self.repaired + other.repaired,
            packets_promised: self.packets_promised + other.packets_promised,
            torn: self.torn + other.torn,
        }
    }
}

/// One run, cut at many places.
fn cut_a_run(seed: u64, cuts: u64, lies: Faults, total: &mut Cuts) {
    let mut rng = Rng::new(seed);
    let mut run = Run::new(&mut rng, 1);
    let links = if rng.chance(20) { 2 } else { 1 };
    let faulty = rng.chance(25);
    *run.disk.faults.lock().unwrap() = lies;
    run.go(&mut rng, 40, links);
    if faulty {
        *run.disk.faults.lock().unwrap() =
            Faults { write: rng.pick(&[0, 5, 20]), sync: rng.pick(&[0, 10, 40]), ..lies };
        run.go(&mut rng, 30, links);
        *run.disk.faults.lock().unwrap() = lies;
    }
    run.go(&mut rng, 40, links);
    if rng.chance(50) {
        run.finish(&mut rng);
    }
    let mut replay = Replay::new(&run.disk, &Image::new());
    let mut places: Vec<usize> =
        (0..cuts).map(|_| rng.below(replay.len() as u64 + 1) as usize).collect();
    places.sort_unstable();
    for place in places {
        replay.to(place, &mut rng);
        let cut = Cut {
            sector: rng.pick(&[512, 4096]),
            keep: rng.pick(&[0, 20, 50, 90, 100]),
            stale: rng.chance(30),
        };
        let killed = rng.chance(25);
        let (image, boot) = match killed {
            true => (replay.kill(&mut rng), BOOT),
            false => (replay.power_cut(cut, &mut rng), NEXT_BOOT),
        };
        let what = format!("seed {seed}, cut {place}, {cut:?}, killed {killed}");
        let mut disk = PowerDisk::with(&image, boot);
        if rng.chance(25) {
            // The power goes once more, during the repair.
            repair_all(&disk, &run.indexes);
            let mut again = Replay::new(&disk, &image);
            let place = rng.below(again.len() as u64 + 1) as usize;
            again.to(place, &mut rng);
            let image = match rng.chance(50) {
                true => again.kill(&mut rng),
                false => again.power_cut(cut, &mut rng),
            };
            disk = PowerDisk::with(&image, NEXT_BOOT + 1);
        }
        let done = repair_all(&disk, &run.indexes);
        let seen = check(&disk, &run.indexes, &what, faulty);
        for n in run.promised.iter().take(replay.acknowledged) {
            assert!(seen.contains(n), "{what}: packet {n} was promised and is lost");
        }
        let once = disk.image();
        let disk = PowerDisk::with(&once, boot + 3);
        let again = repair_all(&disk, &run.indexes);
        assert!(again.iter().all(|r| *r == Repaired::Sealed), "{what}: {again:?}");
        assert!(disk.image() == once, "{what}: the second repair changed something");
        total.made += 1;
        total.repaired += done.iter().filter(|r| **r != Repaired::Sealed).count() as u64;
        total.packets_promised += replay.acknowledged as u64;
        total.torn += once.keys().filter(|name| name.ends_with(".torn")).count() as u64;
    }
}

fn number_from(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|v| v.parse().ok()).unwrap_or(default)
}

#[test]
fn no_promised_packet_is_lost_and_none_is_made_up_whenever_the_power_goes() {
    let (cuts, first) = (number_from("MALAKO_CUTS", 10_000), number_from("MALAKO_SEED", 1));
    let a_run = 40;
    let begun = Instant::now();
    let next = AtomicU64::new(first);
    let work = || {
        let mut total = Cuts::default();
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= first + cuts.div_ceil(a_run) {
                return total;
            }
            cut_a_run(seed, a_run, Faults::default(), &mut total);
        }
    };
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(8);
    let total = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        let of_thread = |t: std::thread::ScopedJoinHandle<'_, Cuts>| {
            t.join().unwrap_or_else(|why| std::panic::resume_unwind(why))
        };
        threads.into_iter().map(of_thread).fold(Cuts::default(), Cuts::plus)
    });
    println!(
        "{} cuts: {} segments repaired, {} packets promised and found, {} tails put aside, {:.1} s",
        total.made,
        total.repaired,
        total.packets_promised,
        total.torn,
        begun.elapsed().as_secs_f64()
    );
    assert!(total.repaired > total.made / 2 && total.torn > 0);
}

#[test]
fn what_the_disk_refuses_is_written_elsewhere_and_nothing_is_lost_that_was_taken() {
    let (mut files, mut faulty_runs) = (0, 0);
    let honest = Faults::default();
    for seed in 0..150 {
        let mut rng = Rng::new(1_000_000 + seed);
        let mut run = Run::new(&mut rng, 1);
        for _ in 0..4 {
            run.go(&mut rng, 15, 1);
            *run.disk.faults.lock().unwrap() =
                Faults { write: rng.pick(&[0, 10, 50]), sync: rng.pick(&[0, 20, 60]), ..honest };
            run.go(&mut rng, 15, 1);
            *run.disk.faults.lock().unwrap() = Faults::default();
        }
        run.finish(&mut rng);
        repair_all(&run.disk, &run.indexes);
        let seen = check(&run.disk, &run.indexes, &format!("seed {seed}"), false);
        let journaled = run.counters.load().get(Counter::JournalPackets);
        assert_eq!((seen.len() as u64, journaled), (run.sent, run.sent), "seed {seed}");
        files += run.signals.next_number.load(Ordering::Relaxed);
        faulty_runs += 1;
    }
    println!("{faulty_runs} runs with failing writes and syncs, {files} files begun");
}

#[test]
fn a_full_disk_is_waited_for_and_what_finds_no_room_is_counted() {
    for seed in 0..40 {
        let mut rng = Rng::new(2_000_000 + seed);
        let mut run = Run::new(&mut rng, 1);
        run.go(&mut rng, 20, 1);
        let used: u64 = run.disk.image().values().map(|v| v.len() as u64).sum();
        run.disk.faults.lock().unwrap().room = Some(used + rng.below(6000));
        for _ in 0..200 {
            run.send(&mut rng, 1);
        }
        run.go(&mut rng, 60, 1);
        run.now += Duration::from_secs(2);
        run.go(&mut rng, 60, 1);
        assert!(run.refused > 0 && run.signals.refused.load(Ordering::Relaxed), "seed {seed}");
        let ends_full = rng.chance(30);
        if !ends_full {
            run.disk.faults.lock().unwrap().room = None;
            run.now += Duration::from_secs(2);
            run.go(&mut rng, 200, 1);
            assert!(!run.signals.refused.load(Ordering::Relaxed), "seed {seed}: it goes on");
        }
        run.finish(&mut rng);
        run.disk.faults.lock().unwrap().room = None;
        repair_all(&run.disk, &run.indexes);
        let seen = check(&run.disk, &run.indexes, &format!("seed {seed}"), false);
        let counters = run.counters.load();
        let (kept, lost) =
            (counters.get(Counter::JournalPackets), counters.get(Counter::JournalNoSpace));
        assert_eq!((seen.len() as u64, kept + lost), (kept, run.sent), "seed {seed}");
        assert!(ends_full || lost == 0, "seed {seed}: {lost}");
    }
}

/// The controls: what must not pass the check above does not.
#[test]
fn a_changed_byte_and_a_lost_packet_are_noticed() {
    let mut rng = Rng::new(5);
    let mut run = Run::new(&mut rng, 1);
    run.go(&mut rng, 40, 1);
    run.finish(&mut rng);
    let image = run.disk.image();
    let (name, bytes) = image.iter().find(|(name, _)| name.ends_with(".pcap")).unwrap();
    let whole = packets(bytes, true, name).len();
    let mut changed = bytes.clone();
    changed[pcap::FILE_HEADER + pcap::RECORD_HEADER + PAYLOAD_AT] ^= 1;
    assert!(std::panic::catch_unwind(|| packets(&changed, true, "changed")).is_err());
    assert!(packets(&bytes[..bytes.len() - 1], false, "cut").len() < whole);
    // Damage under a valid index is `verify`'s; without one it is cut off.
    let mut image = image.clone();
    image.insert(name.clone(), changed);
    image.remove(&companion(name, "idx"));
    let disk = PowerDisk::with(&image, NEXT_BOOT);
    repair_all(&disk, &run.indexes);
    assert!(disk.content(name).is_none_or(|left| left.len() < bytes.len()));
    assert!(disk.content(&companion(name, "torn")).is_some());
}

/// And a disk that confirms syncs it did not do is caught within a few cuts.
#[test]
fn a_disk_that_lies_about_syncs_loses_promised_packets() {
    let lies = Faults { lies: true, ..Faults::default() };
    let caught = std::panic::catch_unwind(|| {
        let mut total = Cuts::default();
        (1..5).for_each(|seed| cut_a_run(seed, 40, lies, &mut total));
    });
    let why = caught.expect_err("nobody noticed");
    let why = why.downcast_ref::<String>().expect("a message");
    assert!(why.contains("was promised and is lost"), "{why}");
}
