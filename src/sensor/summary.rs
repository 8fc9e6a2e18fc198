//! What is printed at the end: totals, drops by reason, and for a person the largest flows and the
//! busiest hosts.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, HashMap};
use std::fmt::Write as _;
use std::net::IpAddr;
use std::time::Duration;

use serde::Serialize;

use crate::doctor::Finding;
use crate::event::{
    ConnState, Content, Counts, EndReason, FlowEvent, Note, NoteKind, Tag, fields, mac,
    protocol_name,
};
use crate::packet::proto;
use crate::status::{Counter, Counters, ExportStatus, Group, JournalStatus};

/// Flows and hosts shown.
const SHOWN: usize = 10;
/// Hosts kept; more are not told apart.
const MAX_HOSTS: usize = 65_536;

/// Collects what the tables show from the events as they pass.
#[derive(Default)]
pub(super) struct Highlights {
    /// The largest ended flows, the smallest of them on top.
    largest: BinaryHeap<Reverse<Large>>,
    hosts: HashMap<IpAddr, Host>,
    span: Option<(u64, u64)>,
    /// Addresses of the own network, with the MAC that ARP or neighbour discovery last gave.
    neighbours: BTreeMap<IpAddr, [u8; 6]>,
    /// The name that a host gave itself by DHCP.
    hostnames: HashMap<[u8; 6], String>,
}

#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Large {
    bytes: u64,
    packets: u64,
    row: [String; 5],
}

#[derive(Clone, Copy, Default)]
struct Host {
    opened: u64,
    unanswered: u64,
    refused: u64,
    bytes: u64,
}

impl Highlights {
    /// Takes in whose address is whose, as ARP, neighbour discovery and DHCP say.
    pub(super) fn hear(&mut self, note: &Note, bytes: &[u8], content: Option<&Content>) {
        if let Some(dhcp) = content.and_then(|c| c.dhcp.as_ref())
            && let Some(name) = &dhcp.hostname
            && self.hostnames.len() < MAX_HOSTS
        {
            self.hostnames.insert(dhcp.mac, name.clone());
        }
        if !matches!(note.kind, NoteKind::Arp | NoteKind::Neighbour) {
            return;
        }
        let find = |wanted| fields(bytes).find(|(tag, _)| *tag == wanted).map(|(_, value)| value);
        let ip = find(Tag::Ip).and_then(|ip| {
            let v4 = <[u8; 4]>::try_from(ip).map(IpAddr::from);
            v4.or_else(|_| <[u8; 16]>::try_from(ip).map(IpAddr::from)).ok()
        });
        let (Some(ip), Some(Ok(mac))) = (ip, find(Tag::Mac).map(<[u8; 6]>::try_from)) else {
            return;
        };
        // Of a probe the sender has no address yet.
        if !ip.is_unspecified() && self.neighbours.len() < MAX_HOSTS {
            self.neighbours.insert(ip, mac);
        }
    }

    pub(super) fn add(&mut self, event: &FlowEvent) {
        let span = self.span.get_or_insert((event.start_ns, event.end_ns));
        *span = (span.0.min(event.start_ns), span.1.max(event.end_ns));
        if event.end.is_none() {
            return;
        }
        let bytes = event.total.iter().map(|c| c.bytes).sum();
        let packets = event.total.iter().map(|c| c.packets).sum();
        let smallest = self.largest.peek().map_or(0, |Reverse(l)| l.bytes);
        if self.largest.len() < SHOWN || bytes > smallest {
            self.largest.push(Reverse(Large { bytes, packets, row: describe(event) }));
            if self.largest.len() > SHOWN {
                self.largest.pop();
            }
        }
        let k = &event.key;
        let orig = if event.orig_is_a { k.a } else { k.b }.ip(k.is_v6());
        if self.hosts.len() < MAX_HOSTS || self.hosts.contains_key(&orig) {
            let host = self.hosts.entry(orig).or_default();
            host.opened += 1;
            host.bytes += bytes;
            let asked = matches!(k.proto(), proto::TCP | proto::UDP);
            host.unanswered += u64::from(asked && event.conn_state == ConnState::S0);
            host.refused += u64::from(event.conn_state == ConnState::Rej);
        }
    }
}

/// Protocol, originator, responder, state, duration.
fn describe(e: &FlowEvent) -> [String; 5] {
    let k = &e.key;
    let end = |addr: IpAddr, port: u16| match (k.proto(), addr) {
        (proto::TCP | proto::UDP | proto::SCTP, IpAddr::V6(a)) => format!("[{a}]:{port}"),
        (proto::TCP | proto::UDP | proto::SCTP, a) => format!("{a}:{port}"),
        (_, a) => a.to_string(),
    };
    let (a, b) = (end(k.a.ip(k.is_v6()), k.port_a()), end(k.b.ip(k.is_v6()), k.port_b()));
    let (orig, resp) = if e.orig_is_a { (a, b) } else { (b, a) };
    let took = Duration::from_nanos(e.end_ns.saturating_sub(e.start_ns));
    let state = format!("{} {}", e.conn_state.name(), e.history.as_str());
    let protocol = protocol_name(k.proto()).to_string();
    [protocol, orig, resp, state.trim().to_owned(), format!("{:.1} s", took.as_secs_f64())]
}

/// An event in one line, for `--debug`.
pub(super) fn one_line(e: &FlowEvent) -> String {
    let [protocol, orig, resp, state, took] = describe(e);
    let sum = |of: fn(&Counts) -> u64| e.delta.iter().map(of).sum::<u64>();
    let (packets, bytes) = (sum(|c| c.packets), human(sum(|c| c.bytes)));
    let what = e.end.map_or("goes on", EndReason::name);
    let silenced = if e.silenced { "  silenced" } else { "" };
    format!(
        "{protocol} {orig} -> {resp}  {packets} packets  {bytes}  {took}  {state}  ({what}){silenced}"
    )
}

/// The end of a run.
pub(super) struct Summary<'a> {
    pub(super) counters: Counters,
    /// From the start until the last input ended; reporting the flows that were open is not in it.
    pub(super) elapsed: Duration,
    /// How the journal ended, if there was one.
    pub(super) journal: Option<JournalStatus>,
    pub(super) export: Option<ExportStatus>,
    pub(super) workers: usize,
    pub(super) findings: &'a [Finding],
    pub(super) incomplete: &'a [String],
}

#[derive(Serialize)]
struct Json<'a> {
    packets: u64,
    bytes: u64,
    decoded: u64,
    not_ip: BTreeMap<&'static str, u64>,
    malformed: BTreeMap<&'static str, u64>,
    filtered: u64,
    truncated: u64,
    length_lies: u64,
    flows: u64,
    events: u64,
    evicted: u64,
    drops: BTreeMap<&'static str, u64>,
    journal: Journal<'a>,
    inspect: BTreeMap<&'static str, u64>,
    blocklist: BTreeMap<&'static str, u64>,
    look: BTreeMap<&'static str, u64>,
    findings: &'a [Finding],
    incomplete_inputs: &'a [String],
    workers: usize,
    seconds: f64,
    packets_per_second: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    export: Option<&'a ExportStatus>,
}

#[derive(Serialize)]
struct Journal<'a> {
    #[serde(flatten)]
    written: BTreeMap<&'static str, u64>,
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    status: Option<&'a JournalStatus>,
}

impl Summary<'_> {
    fn rate(&self) -> f64 {
        self.counters.get(Counter::Packets) as f64 / self.elapsed.as_secs_f64().max(1e-9)
    }

    /// One JSON object.
    pub(super) fn json(&self) -> String {
        let c = &self.counters;
        let out = Json {
            packets: c.get(Counter::Packets),
            bytes: c.get(Counter::Bytes),
            decoded: c.get(Counter::Decoded),
            not_ip: c.group(Group::NotIp).collect(),
            malformed: c.group(Group::Malformed).collect(),
            filtered: c.get(Counter::Filtered),
            truncated: c.get(Counter::Truncated),
            length_lies: c.get(Counter::LengthLies),
            flows: c.get(Counter::Flows),
            events: c.get(Counter::Events),
            evicted: c.get(Counter::Evicted),
            drops: c.group(Group::Drop).collect(),
            journal: Journal {
                written: c.group(Group::Journal).collect(),
                status: self.journal.as_ref(),
            },
            inspect: c.group(Group::Inspect).collect(),
            blocklist: c.group(Group::Blocklist).collect(),
            look: c.group(Group::Look).collect(),
            findings: self.findings,
            incomplete_inputs: self.incomplete,
            workers: self.workers,
            seconds: self.elapsed.as_secs_f64(),
            packets_per_second: self.rate(),
            export: self.export.as_ref(),
        };
        serde_json::to_string(&out).unwrap_or_default()
    }

    /// Tables for a person.
    pub(super) fn text(&self, highlights: &Highlights) -> String {
        let c = &self.counters;
        let mut out = String::new();
        let packets = c.get(Counter::Packets);
        let _ = writeln!(
            out,
            "{packets} packets, {} in {} flows{}; read in {:.2} s ({} packets/s)",
            human(c.get(Counter::Bytes)),
            c.get(Counter::Flows),
            highlights.span.map_or(String::new(), |(a, b)| {
                format!(" over {:.1} s", Duration::from_nanos(b.saturating_sub(a)).as_secs_f64())
            }),
            self.elapsed.as_secs_f64(),
            self.rate() as u64,
        );
        let _ = writeln!(
            out,
            "  in flows {}   not IP {}   malformed {}   lost {}",
            c.get(Counter::Decoded),
            reasons(c, Group::NotIp),
            reasons(c, Group::Malformed),
            reasons(c, Group::Drop),
        );
        if c.get(Counter::Filtered) > 0 {
            let _ = writeln!(out, "  left out by the filter {}", c.get(Counter::Filtered));
        }
        if c.get(Counter::SilencedPackets) > 0 {
            let _ = writeln!(
                out,
                "  silenced by the blocklist {} packets, {} in {} flows, which are not shown below",
                c.get(Counter::SilencedPackets),
                human(c.get(Counter::SilencedBytes)),
                c.get(Counter::SilencedByName) + c.get(Counter::SilencedByAddress),
            );
        }
        for e in self.export.iter().flat_map(|e| &e.exporters) {
            let _ = writeln!(
                out,
                "  {}: {} events delivered, {} waiting, {} dead letters",
                e.name, e.delivered, e.waiting, e.dead
            );
        }
        if let Some(journal) = &self.journal {
            let _ = writeln!(
                out,
                "  journal {} packets, {} in {} files; {} kept over {:.1} hours{}",
                c.get(Counter::JournalPackets),
                human(c.get(Counter::JournalBytes)),
                c.get(Counter::JournalSegments),
                human(journal.kept.bytes),
                journal.kept.hours,
                match journal.unrepaired {
                    0 => String::new(),
                    n => format!("; {n} files wait for repair"),
                },
            );
        }
        let mut largest: Vec<&Large> = highlights.largest.iter().map(|Reverse(l)| l).collect();
        largest.sort_by(|a, b| b.cmp(a));
        let rows = largest.iter().map(|l| {
            let [protocol, orig, resp, state, took] = l.row.clone();
            vec![protocol, orig, resp, l.packets.to_string(), human(l.bytes), took, state]
        });
        let header =
            ["proto", "originator", "responder", "packets", "bytes", "duration", "state, history"];
        table(&mut out, "Largest flows", &header, &[3, 4, 5], rows);
        let mut hosts: Vec<(&IpAddr, &Host)> = highlights.hosts.iter().collect();
        hosts.sort_by_key(|(ip, h)| (Reverse(h.opened), **ip));
        let rows = hosts.into_iter().take(SHOWN).map(|(ip, h)| {
            let n = |n: u64| n.to_string();
            vec![ip.to_string(), n(h.opened), n(h.unanswered), n(h.refused), human(h.bytes)]
        });
        let header = ["host", "flows opened", "unanswered", "refused", "bytes"];
        table(&mut out, "Busiest hosts", &header, &[1, 2, 3, 4], rows);
        let rows = highlights.neighbours.iter().take(SHOWN).map(|(ip, bytes)| {
            let name = highlights.hostnames.get(bytes).map_or("", String::as_str);
            // It comes from the network, and goes to a terminal.
            let name = name.chars().filter(|c| !c.is_control()).collect();
            vec![ip.to_string(), mac(*bytes), name]
        });
        table(&mut out, "Neighbours", &["address", "MAC", "name by DHCP"], &[], rows);
        for line in self.incomplete {
            let _ = writeln!(out, "\nwarning: {line}");
        }
        out
    }
}

/// `0`, or `3 (arp 2, llc 1)`.
fn reasons(c: &Counters, group: Group) -> String {
    match c.sum(group) {
        0 => "0".into(),
        sum => format!("{sum} ({})", c.reasons(group)),
    }
}

/// Bytes in the unit that suits.
fn human(bytes: u64) -> String {
    let units = ["kB", "MB", "GB", "TB"];
    let mut value = bytes as f64;
    let mut unit = "B";
    for next in units {
        if value < 1000.0 {
            break;
        }
        value /= 1000.0;
        unit = next;
    }
    if unit == "B" { format!("{bytes} B") } else { format!("{value:.1} {unit}") }
}

fn table(
    out: &mut String,
    title: &str,
    header: &[&str],
    right: &[usize],
    rows: impl Iterator<Item = Vec<String>>,
) {
    let mut all: Vec<Vec<String>> = vec![header.iter().map(|&h| h.to_owned()).collect()];
    all.extend(rows);
    if all.len() == 1 {
        return;
    }
    let width = |column: usize| {
        all.iter().filter_map(|r| r.get(column)).map(|c| c.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..header.len()).map(width).collect();
    let _ = writeln!(out, "\n{title}");
    for row in &all {
        let mut line = String::from(" ");
        for (column, (cell, width)) in row.iter().zip(&widths).enumerate() {
            let _ = if right.contains(&column) {
                write!(line, " {cell:>width$} ")
            } else {
                write!(line, " {cell:<width$} ")
            };
        }
        let _ = writeln!(out, "{}", line.trim_end());
    }
}
