//! The packet path in memory, stage by stage: no DPDK, no I/O, frames prepared.
//!
//! usage: packet_path FILE... [--stage NAME] [--rounds N]
//!
//! Each stage does what the one before does and one thing more, so that differences are the stages'
//! own. Without `--stage` every stage is timed, best and median of the rounds; with it the stage is
//! run for that many rounds and nothing is timed, for a tool that counts instructions.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a benchmark that cannot run fails")]

use std::hint::black_box;
use std::path::{Path, PathBuf};
use std::time::Instant;

use malakocut::capture::CaptureReader;
use malakocut::event::{EventSink, FlowEvent, Mark, Note, NoteSink, Seen, Wants};
use malakocut::filter::Filters;
use malakocut::flow::{Arrival, FlowTable, Timeouts};
use malakocut::inspect::silence::{Heard, Silencer, silencers};
use malakocut::inspect::{Inspector, Limits};
use malakocut::packet::{FlowKey, Frame, Link};
use malakocut::shunt::{Current, List};
use malakocut::worker::Machine;

const BURST: usize = 32;
const FLOWS: usize = 1_200_000;
const STAGES: [&str; 8] =
    ["iterate", "decode", "hash", "table", "state", "inspect", "blocklist", "filter"];
/// What is left out in the last two stages: 176 packets of the shipped capture, and 150.
const LISTED: &str = "media.example.org";
const FILTER: &str = "not (stp or ether proto 0x88cc)";

struct Packets {
    bytes: Vec<u8>,
    /// Start, captured length, wire length, timestamp.
    index: Vec<(usize, usize, u32, u64)>,
    link: Link,
}

impl Packets {
    fn read(path: &Path) -> Self {
        let mut reader = CaptureReader::open(path, 1 << 20).expect("a capture file");
        let mut this = Self { bytes: Vec::new(), index: Vec::new(), link: Link::Ethernet };
        while let Some(r) = reader.peek().expect("a whole capture") {
            this.index.push((this.bytes.len(), r.data.len(), r.wire_len, r.timestamp_ns));
            this.bytes.extend_from_slice(r.data);
            this.link = Link::from_number(r.link);
            reader.consume();
        }
        this
    }

    /// Time from the first packet to the last, and a little.
    fn span(&self) -> u64 {
        let times = || self.index.iter().map(|p| p.3);
        times().max().unwrap_or(0) - times().min().unwrap_or(0) + 1000
    }

    fn frame(&self, n: usize) -> Frame<'_> {
        let (start, len, wire_len, _) = self.index[n];
        Frame {
            data: &self.bytes[start..start + len],
            wire_len,
            wire_len_known: true,
            link: self.link,
        }
    }
}

/// Takes events and forgets them.
#[derive(Default)]
struct Nowhere(u64);

impl EventSink for Nowhere {
    fn room(&self) -> usize {
        usize::MAX
    }
    fn push(&mut self, event: FlowEvent) {
        self.0 += black_box(event).total[0].packets;
    }
}

impl NoteSink for Nowhere {
    fn push(&mut self, note: Note, fields: &[u8]) {
        self.0 += black_box(note).flow_id & fields.len() as u64;
    }
}

/// Reads payloads too.
struct Reading<'a> {
    nowhere: &'a mut Nowhere,
    inspector: &'a mut Inspector,
    silencer: Option<&'a mut Silencer>,
    packets: &'a Packets,
    /// The burst's first packet.
    first: usize,
}

impl EventSink for Reading<'_> {
    fn room(&self) -> usize {
        usize::MAX
    }
    fn push(&mut self, event: FlowEvent) {
        EventSink::push(self.nowhere, event);
    }
    fn wants(&self) -> Wants {
        self.inspector.wants()
    }
    fn begins(&mut self, key: &FlowKey, orig_is_a: bool, timestamp_ns: u64) -> Mark {
        match &mut self.silencer {
            Some(silencer) => silencer.begins(key, orig_is_a, timestamp_ns),
            None => Mark::Plain,
        }
    }
    fn inspect(&mut self, seen: &mut Seen<'_>) -> Wants {
        let mut silencer = self.silencer.as_deref_mut();
        if let Some(silencer) = &mut silencer {
            silencer.look_again(seen);
        }
        let frame = self.packets.frame(self.first + seen.frame as usize);
        let d = seen.decoded;
        let rest = frame.data.get(d.payload_at as usize..).unwrap_or_default();
        let payload = rest.get(..d.payload_len as usize).unwrap_or(rest);
        let mut heard = Heard { notes: &mut *self.nowhere, silencer, mark: seen.mark };
        let wants = self.inspector.inspect(seen, payload, &mut heard);
        seen.mark = heard.mark;
        wants
    }
    fn silenced(&mut self, frame: u32, _wire_len: u32) {
        self.nowhere.0 += u64::from(frame);
    }
    fn forget(&mut self, place: u32) {
        self.inspector.forget(place);
    }
}

/// One pass over all packets; the `round` moves their times on, as though the capture went on.
#[inline(never)]
fn pass(
    stage: &str,
    round: u64,
    packets: &Packets,
    State { table, inspector, silencer, filter }: &mut State,
    sink: &mut Nowhere,
) -> u64 {
    let later = round * packets.span();
    let depth = STAGES.iter().position(|&s| s == stage).expect("a stage");
    let mut arrivals = [Arrival::default(); BURST];
    let mut sum = 0u64;
    let mut first = 0;
    while first < packets.index.len() {
        let n = BURST.min(packets.index.len() - first);
        let mut readable = 0;
        for at in first..first + n {
            let frame = packets.frame(at);
            if depth == 7 && !filter.take(1, frame.wire_len, frame.data) {
                continue;
            }
            if depth == 0 {
                sum += u64::from(frame.data[0]);
                continue;
            }
            let arrival = &mut arrivals[readable];
            if arrival.read(&frame).is_ok() {
                arrival.timestamp_ns = packets.index[at].3 + later;
                arrival.clock_ns = arrival.timestamp_ns;
                arrival.frame = (at - first) as u32;
                readable += 1;
            }
        }
        match depth {
            1 => sum += black_box(&arrivals[..readable]).len() as u64,
            2 => table.hash_all(black_box(&arrivals[..readable])),
            // The first pass makes the flows that are then looked up.
            3 if round > 0 => {
                table.hash_all(black_box(&arrivals[..readable]));
                table.guess_all(&arrivals[..readable]);
            }
            3 | 4 => table.burst(&mut arrivals[..readable], sink),
            5.. => {
                let mut silencer = (depth > 5).then_some(&mut *silencer);
                if let Some(silencer) = &mut silencer {
                    silencer.refresh();
                }
                let mut sink = Reading { nowhere: sink, inspector, silencer, packets, first };
                table.burst(&mut arrivals[..readable], &mut sink);
            }
            _ => {}
        }
        first += n;
    }
    sum
}

struct State {
    table: FlowTable<Machine>,
    inspector: Inspector,
    silencer: Silencer,
    filter: Filters,
}

fn state() -> State {
    let second = 1_000_000_000;
    let timeouts = Timeouts { idle_ns: 60 * second, active_ns: 300 * second };
    let inspector = Inspector::new(Limits::default(), FLOWS);
    let list = List::read(LISTED.as_bytes(), "bench").expect("a list").0;
    let (silencer, _) = silencers(&Current::new(list), 1).pop().expect("one");
    let filter = Filters::new("bench", &[FILTER]).expect("a filter").expect("not all");
    let table = FlowTable::new(FLOWS, timeouts, 1, Machine);
    State { table, inspector, silencer, filter }
}

fn main() {
    let mut files: Vec<PathBuf> = Vec::new();
    let (mut stage, mut rounds) = (None, 7);
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        match arg.as_str() {
            "--stage" => stage = args.next(),
            "--rounds" => {
                rounds = args.next().and_then(|n| n.parse().ok()).expect("a number of rounds");
            }
            "--bench" => {}
            _ => files.push(arg.into()),
        }
    }
    for file in &files {
        let packets = Packets::read(file);
        let mut sink = Nowhere::default();
        if let Some(stage) = &stage {
            let mut state = state();
            for round in 0..rounds {
                black_box(pass(stage, round as u64, &packets, &mut state, &mut sink));
            }
            continue;
        }
        let name = file.file_stem().unwrap_or_default().to_string_lossy();
        for stage in STAGES {
            let mut state = state();
            // The first pass makes the flows.
            black_box(pass(stage, 0, &packets, &mut state, &mut sink));
            let mut times: Vec<f64> = (0..rounds)
                .map(|round| {
                    let begun = Instant::now();
                    black_box(pass(stage, round as u64 + 1, &packets, &mut state, &mut sink));
                    begun.elapsed().as_nanos() as f64 / packets.index.len() as f64
                })
                .collect();
            times.sort_by(f64::total_cmp);
            println!(
                "{name:8} {stage:8} {:7.1} ns/packet best {:7.1} median",
                times[0],
                times[rounds / 2]
            );
        }
    }
}
