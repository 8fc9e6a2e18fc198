//! Zeek's conn.log: state, history, packets and IP bytes by direction.
//!
//! The logs are baselines of Zeek's own tests. Some have all columns, some a few; the names of the
//! address columns vary. A row that names no addresses is compared with whatever flow fits best.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::Path;

use crate::capture;
use crate::known::Row;
use crate::sensor::{self, Flow};

/// Captures whose rows are the inside of a tunnel although no column says so: the tunnel itself
/// makes no connection in Zeek.
const INSIDE: [&str; 1] = ["tunnels__gre-sample.pcap"];

/// Seconds of silence after which Zeek ends a TCP connection.
const ZEEK_IDLE: &str = "300";

/// A row of a conn.log; what it has no column for is absent.
#[derive(Debug)]
struct Expected {
    protocol: Option<u8>,
    orig_h: Option<IpAddr>,
    orig_p: Option<u16>,
    resp_h: Option<IpAddr>,
    resp_p: Option<u16>,
    conn_state: Option<String>,
    history: Option<String>,
    orig_pkts: Option<u64>,
    resp_pkts: Option<u64>,
    orig_ip_bytes: Option<u64>,
    resp_ip_bytes: Option<u64>,
    inside: bool,
}

/// Each row of each log, and how we differ from it; then our flows between the same ends for which
/// there is no row.
pub(crate) fn rows(directory: &Path) -> Vec<Row> {
    let index = sensor::json(&directory.join("index.json"));
    let files: Vec<(String, String)> = index
        .as_array()
        .expect("a list of captures")
        .iter()
        .map(|entry| (crate::text(entry, "pcap").into(), crate::text(entry, "conn_log").into()))
        .collect();
    let rows = sensor::in_parallel(&files, |(pcap, log)| rows_of(directory, pcap, log));
    rows.into_iter().flatten().collect()
}

fn rows_of(directory: &Path, pcap: &str, log: &str) -> Vec<Row> {
    let capture = directory.join(pcap);
    let radio = capture::totals(&capture).links.into_iter().any(sensor::is_radio);
    let log = std::fs::read_to_string(directory.join(log)).expect("a readable log");
    let mut expected = parse(&log);
    let row = |key: String, plain: bool, difference: Option<String>| Row {
        file: pcap.to_owned(),
        key,
        plain: plain && !radio && !INSIDE.contains(&pcap),
        difference,
    };
    let run = match sensor::run_with(&capture, &["--idle-timeout", ZEEK_IDLE]) {
        Ok(run) => run,
        Err(error) => {
            let failed =
                |(e, name): (&Expected, String)| row(name, e.is_plain(), Some(error.clone()));
            return expected.iter().zip(names(&expected)).map(failed).collect();
        }
    };
    let flows = sensor::flows(&run.events);
    let in_log = expected.len();
    join_cut(&mut expected, &flows);
    if expected.len() < in_log {
        println!("# zeek: {pcap}: {in_log} rows, joined to {}", expected.len());
    }
    let names = names(&expected);
    let matches = match_rows(&expected, &flows);
    let mut rows = Vec::new();
    for ((row_expected, name), flow) in expected.iter().zip(names).zip(&matches) {
        let difference = match flow {
            None => Some(row_expected.absence(&expected, &flows).to_owned()),
            Some(index) => {
                let found = row_expected.differences(&flows[*index]);
                if found.is_empty() { None } else { Some(found.join("; ")) }
            }
        };
        rows.push(row(name, row_expected.is_plain(), difference));
    }
    for (index, flow) in flows.iter().enumerate() {
        let between_the_same = |e: &Expected| e.orig_h.is_some() && e.direction(flow).is_some();
        if !matches.contains(&Some(index)) && expected.iter().any(between_the_same) {
            let key = format!("{} {} {}", sensor::protocol_name(flow.proto), flow.src, flow.dst);
            let counts = format!(
                "a flow of ours without a row: {} {} packets {}/{}",
                flow.conn_state, flow.history, flow.orig.packets, flow.resp.packets
            );
            rows.push(row(key, sensor::is_common(flow.proto), Some(counts)));
        }
    }
    rows
}

/// Reads the rows by the names in their header, which is `#fields` or the first line.
fn parse(log: &str) -> Vec<Expected> {
    let mut header: Option<Vec<&str>> = None;
    let mut rows = Vec::new();
    for line in log.lines() {
        if let Some(names) = line.strip_prefix("#fields\t") {
            header = Some(names.split('\t').collect());
        } else if line.starts_with('#') || line.is_empty() {
            continue;
        } else if let Some(names) = &header {
            rows.push(Expected::new(&names.iter().copied().zip(line.split('\t')).collect()));
        } else {
            header = Some(line.split('\t').collect());
        }
    }
    rows
}

/// What a row is called in the list: its ends, and its place among the file's rows of that name.
fn names(rows: &[Expected]) -> Vec<String> {
    let mut seen: BTreeMap<String, usize> = BTreeMap::new();
    let mut names = Vec::new();
    for row in rows {
        let name = row.name();
        let place = seen.entry(name.clone()).or_default();
        *place += 1;
        names.push(if *place == 1 { name } else { format!("{name} #{place}") });
    }
    names
}

/// Joins rows between the same ends that are one flow of ours.
///
/// Zeek's timers are shorter: it ends an unanswered attempt after 5 s and a DNS exchange after 10 s,
/// and what follows gets a row of its own. A row that begins with a SYN is a connection of its own
/// in any case.
fn join_cut(rows: &mut Vec<Expected>, flows: &[Flow]) {
    let mut whole: Vec<Expected> = Vec::new();
    for row in rows.drain(..) {
        let goes_on =
            row.orig_h.is_some() && !row.history.iter().any(|h| h.starts_with(['S', 'H']));
        let earlier = whole.iter_mut().find(|earlier| goes_on && earlier.name() == row.name());
        let ours = flows.iter().filter(|flow| row.direction(flow).is_some()).count();
        match earlier {
            Some(earlier) if ours == 1 => earlier.join(&row),
            _ => whole.push(row),
        }
    }
    *rows = whole;
}

/// The flow of each row: of all pairs of a row and a flow between its ends, the closest first.
///
/// The logs are sorted by text, not by time, so the order of rows says nothing.
fn match_rows(rows: &[Expected], flows: &[Flow]) -> Vec<Option<usize>> {
    let mut pairs = Vec::new();
    for (row, expected) in rows.iter().enumerate() {
        for (index, flow) in flows.iter().enumerate() {
            if expected.direction(flow).is_some() {
                pairs.push((expected.distance(flow), row, index));
            }
        }
    }
    pairs.sort();
    let mut matches = vec![None; rows.len()];
    let mut taken = vec![false; flows.len()];
    for (_, row, index) in pairs {
        if matches[row].is_none() && !taken[index] {
            matches[row] = Some(index);
            taken[index] = true;
        }
    }
    matches
}

/// How many letters to add, to leave out or to change to make one text of the other.
fn edits(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, letter) in a.bytes().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, other) in b.bytes().enumerate() {
            let changed = diagonal + usize::from(letter != other);
            diagonal = row[j + 1];
            row[j + 1] = changed.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

/// How a row and a flow lie to each other.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Direction {
    Same,
    Flipped,
}

impl Expected {
    fn new(columns: &BTreeMap<&str, &str>) -> Self {
        let column = |names: &[&str]| names.iter().find_map(|name| columns.get(name).copied());
        // "-" is Zeek's way to write nothing.
        let text = |name: &str| {
            columns.get(name).map(|&text| if text == "-" { String::new() } else { text.to_owned() })
        };
        let number = |names: &[&str]| column(names).map(|text| text.parse().expect("a number"));
        let address = |names: &[&str]| column(names).map(|text| text.parse().expect("an address"));
        let port = |names: &[&str]| number(names).map(|port| u16::try_from(port).expect("a port"));
        let resp_h = address(&["id.resp_h", "dst_ip", "dst"]);
        let protocol = match (column(&["ip_proto"]), column(&["proto"])) {
            (Some(number), _) => Some(number.parse().expect("a protocol number")),
            (None, Some("tcp")) => Some(6),
            (None, Some("udp")) => Some(17),
            (None, Some("icmp")) => {
                Some(if resp_h.is_some_and(|ip: IpAddr| ip.is_ipv6()) { 58 } else { 1 })
            }
            _ => None,
        };
        Self {
            protocol,
            orig_h: address(&["id.orig_h", "src_ip", "src"]),
            orig_p: port(&["id.orig_p", "src_port"]),
            resp_h,
            resp_p: port(&["id.resp_p", "dst_port"]),
            conn_state: text("conn_state"),
            // X says that Zeek stopped looking, which is no property of the traffic.
            history: text("history").map(|letters| letters.replace('X', "")),
            orig_pkts: number(&["orig_pkts"]),
            resp_pkts: number(&["resp_pkts"]),
            orig_ip_bytes: number(&["orig_ip_bytes"]),
            resp_ip_bytes: number(&["resp_ip_bytes"]),
            inside: column(&["tunnel_parents"]).is_some_and(|parents| parents != "-"),
        }
    }

    fn name(&self) -> String {
        let (Some(orig), Some(resp)) = (self.orig_h, self.resp_h) else {
            let conn_state = self.conn_state.as_deref().unwrap_or_default();
            let history = self.history.as_deref().unwrap_or_default();
            return format!("row {conn_state} {history}").replace("  ", " ");
        };
        let end = |ip, port: Option<u16>| sensor::End { ip, port: port.unwrap_or(0) };
        let protocol = self.protocol.map_or_else(|| "any".into(), sensor::protocol_name);
        format!("{protocol} {} {}", end(orig, self.orig_p), end(resp, self.resp_p))
    }

    fn is_plain(&self) -> bool {
        self.protocol.is_none_or(sensor::is_common) && !self.inside
    }

    /// Whether the flow is between the row's ends, as far as the row names them.
    ///
    /// Ports are compared where Zeek and we mean the same by them: its ICMP "ports" are types, and
    /// it reads none of SCTP.
    fn direction(&self, flow: &Flow) -> Option<Direction> {
        if self.protocol.is_some_and(|protocol| protocol != flow.proto) {
            return None;
        }
        let ports = matches!(flow.proto, 6 | 17);
        let is = |end: sensor::End, ip: Option<IpAddr>, port: Option<u16>| {
            ip.is_none_or(|ip| ip == end.ip) && (!ports || port.is_none_or(|port| port == end.port))
        };
        if is(flow.src, self.orig_h, self.orig_p) && is(flow.dst, self.resp_h, self.resp_p) {
            Some(Direction::Same)
        } else if is(flow.dst, self.orig_h, self.orig_p) && is(flow.src, self.resp_h, self.resp_p) {
            Some(Direction::Flipped)
        } else {
            None
        }
    }

    /// Adds a later part of the same connection.
    fn join(&mut self, later: &Self) {
        let add = |count: &mut Option<u64>, more: Option<u64>| {
            *count = count.zip(more).map(|(a, b)| a + b);
        };
        add(&mut self.orig_pkts, later.orig_pkts);
        add(&mut self.resp_pkts, later.resp_pkts);
        add(&mut self.orig_ip_bytes, later.orig_ip_bytes);
        add(&mut self.resp_ip_bytes, later.resp_ip_bytes);
        self.conn_state.clone_from(&later.conn_state);
        if let (Some(history), Some(more)) = (&mut self.history, &later.history) {
            // What a row begins with again was said by the one before.
            let new: Vec<char> = more.chars().filter(|&letter| !history.contains(letter)).collect();
            history.extend(new);
        }
    }

    /// How far the flow is from the row: fields that differ, then letters of the history.
    fn distance(&self, flow: &Flow) -> (usize, usize) {
        let letters = self.history.as_ref().map_or(0, |history| edits(history, &flow.history));
        (self.differences(flow).len(), letters)
    }

    /// Why no flow is left for this row: we have none between its ends, or we cut the packets
    /// between them into fewer flows.
    fn absence(&self, rows: &[Self], flows: &[Flow]) -> &'static str {
        let between = |flow: &&Flow| self.direction(flow).is_some();
        let example = flows.iter().find(between).filter(|_| self.orig_h.is_some());
        let Some(example) = example else { return "no such flow" };
        let of_rows: u64 = rows
            .iter()
            .filter(|row| row.direction(example).is_some())
            .map(|row| row.orig_pkts.unwrap_or(0) + row.resp_pkts.unwrap_or(0))
            .sum();
        let of_flows: u64 =
            flows.iter().filter(between).map(|flow| flow.orig.packets + flow.resp.packets).sum();
        if of_rows == of_flows {
            "part of another row's flow, the same packets in all"
        } else {
            "part of another row's flow, but other packets in all"
        }
    }

    /// The fields in which the flow differs.
    fn differences(&self, flow: &Flow) -> Vec<String> {
        let mut found = Vec::new();
        let flipped = self.direction(flow) == Some(Direction::Flipped);
        if flipped {
            found.push("originator".to_owned());
        }
        let (orig, resp) = if flipped { (flow.resp, flow.orig) } else { (flow.orig, flow.resp) };
        for (field, want, ours) in [
            ("conn_state", &self.conn_state, &flow.conn_state),
            ("history", &self.history, &flow.history),
        ] {
            if want.as_ref().is_some_and(|want| want != ours) {
                found.push(format!(
                    "{field} {}, ours {}",
                    or_none(want.as_deref()),
                    or_none(Some(ours))
                ));
            }
        }
        for (field, want, ours) in [
            ("orig_pkts", self.orig_pkts, orig.packets),
            ("resp_pkts", self.resp_pkts, resp.packets),
            ("orig_ip_bytes", self.orig_ip_bytes, orig.ip_bytes),
            ("resp_ip_bytes", self.resp_ip_bytes, resp.ip_bytes),
        ] {
            if let Some(want) = want.filter(|&want| want != ours) {
                found.push(format!("{field} {want}, ours {ours}"));
            }
        }
        if matches!(flow.proto, 1 | 58) && !flipped {
            let ours = flow.icmp_type.unwrap_or_default();
            if let Some(want) = self.orig_p.filter(|&want| u64::from(want) != ours) {
                found.push(format!("icmp_type {want}, ours {ours}"));
            }
        }
        found
    }
}

fn or_none(text: Option<&str>) -> &str {
    text.filter(|text| !text.is_empty()).unwrap_or("none")
}
