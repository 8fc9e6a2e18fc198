//! malakocut-cli as a user meets it: packets out of the journal, its files listed, checked, repaired.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot run fails")]

mod common;
#[path = "common/traffic.rs"]
mod traffic;

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use common::{Run, events, home_plain, malakocut, number};
use malakocut::event::parse_community_id;
use malakocut::journal::catalogue;
use malakocut::journal::query::{Identity, Journal, Query};
use serde_json::Value;
use traffic::{Packet, Traffic, read_pcap};

const CLI: &str = env!("CARGO_BIN_EXE_malakocut-cli");

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn cli_command(args: &[&str]) -> Command {
    let mut command = Command::new(CLI);
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("MALAKOCUT_") {
            command.env_remove(name);
        }
    }
    command.args(args);
    command
}

fn cli(args: &[&str]) -> Run {
    Run::of(cli_command(args).output().unwrap())
}

/// What `extract` writes to standard output.
fn extract(data: &Path, args: &[&str]) -> Vec<Packet> {
    let all = [&["extract", "--data-dir", text(data), "-w", "-"], args].concat();
    let out = cli_command(&all).output().unwrap();
    assert!(out.status.success(), "{args:?}: {}", String::from_utf8_lossy(&out.stderr));
    read_pcap(&out.stdout)
}

fn tcpdump(file: &Path, filter: &str) -> Vec<Packet> {
    let out = Command::new("tcpdump")
        .args(["-r", text(file), "-w", "-", "--time-stamp-precision=nano", filter])
        .output()
        .expect("tcpdump runs");
    assert!(out.status.success(), "{filter}: {}", String::from_utf8_lossy(&out.stderr));
    read_pcap(&out.stdout)
}

/// A pcap-filter expression that is looked at behind as many as two tags.
fn behind_tags(e: &str) -> String {
    let untagged = |at| format!("(ether[{at}:2] != 0x8100 and ether[{at}:2] != 0x88a8 and ({e}))");
    format!("{} or (vlan and ({} or (vlan and ({e}))))", untagged(12), untagged(16))
}

/// The packets of a capture in nanoseconds, whatever it was written in.
fn sorted(mut packets: Vec<Packet>) -> Vec<Packet> {
    packets.sort();
    packets
}

struct Journaled {
    dir: tempfile::TempDir,
    capture: PathBuf,
    data: PathBuf,
    summary: Value,
    events: Vec<Value>,
}

impl Journaled {
    /// A capture, journaled by the sensor.
    fn of(capture: impl FnOnce(&Path) -> PathBuf, more: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let capture = capture(dir.path());
        let (data, flows) = (dir.path().join("data"), dir.path().join("flows.json"));
        let args = [
            "--read",
            text(&capture),
            "--journal",
            "on",
            "--data-dir",
            text(&data),
            "--rotate-size",
            "2MB",
            "--flow-log",
            text(&flows),
            "--summary",
            "json",
        ];
        let summary = malakocut(&[&args[..], more].concat()).ok().summary();
        let events = events(&flows);
        Self { dir, capture, data, summary, events }
    }

    fn home() -> Self {
        Self::of(home_plain, &[])
    }

    fn segments(&self) -> Vec<catalogue::Entry> {
        catalogue::list(&self.data.join("pcap")).unwrap()
    }
}

#[test]
fn a_conversation_comes_out_as_tcpdump_would_have_it() {
    let j = Journaled::home();
    assert!(j.segments().len() > 3);
    let flow =
        ["--src", "192.168.1.30", "--sport", "40837", "--dst", "192.0.2.140", "--dport", "443"];
    let want = tcpdump(&j.capture, "host 192.168.1.30 and host 192.0.2.140 and tcp port 40837");
    assert_eq!(want.len(), 8689);
    assert_eq!(extract(&j.data, &[&flow[..], &["--proto", "tcp"]].concat()), want);
    assert_eq!(extract(&j.data, &flow), want, "without the protocol");
    let swapped = ["--dst", "192.168.1.30", "--dport", "40837", "--src", "192.0.2.140"];
    assert_eq!(extract(&j.data, &swapped), want, "either way round");
    for (args, filter) in [
        (&["--ip", "192.168.1.41"][..], "host 192.168.1.41"),
        (
            &["--ip", "192.168.1.0/24", "--port", "53"],
            "net 192.168.1.0/24 and (port 53 or ip[6:2] & 0x1fff != 0)",
        ),
        (
            &["--port", "123", "--proto", "udp"],
            "udp port 123 or (icmp[0] = 3 and icmp[17] = 17 and (icmp[28:2] = 123 or icmp[30:2] = 123))",
        ),
        (&["--filter", "arp or icmp"], "arp or icmp"),
        (
            &["--filter", "tcp[tcpflags] == tcp-rst|tcp-ack", "--ip", "192.168.1.41"],
            "tcp[tcpflags] == tcp-rst|tcp-ack and host 192.168.1.41",
        ),
        (&[], ""),
    ] {
        // The capture's own order is that of time.
        let judge = if filter.is_empty() { String::new() } else { behind_tags(filter) };
        let want = sorted(tcpdump(&j.capture, &judge));
        assert_eq!(sorted(extract(&j.data, args)), want, "{args:?}");
    }
}

#[test]
fn what_is_written_opens_in_tcpdump_and_tshark() {
    let j = Journaled::home();
    let out = |name: &str| j.dir.path().join(name);
    let base = ["extract", "--data-dir", text(&j.data), "--ip", "192.168.1.41"];
    let n = cli(&[&base[..], &["--count"]].concat()).ok().stdout.trim().parse::<usize>().unwrap();
    assert!(n > 500);
    for (name, more) in [("a.pcap", vec![]), ("a.pcapng", vec!["--format", "pcapng"])] {
        let path = out(name);
        let run = cli(&[&base[..], &["-w", text(&path)], &more].concat()).ok();
        assert!(run.stderr.contains(&format!("{n} packets")), "{}", run.stderr);
        let read = Command::new("tshark")
            .args(["-r", text(&path), "-T", "fields", "-e", "frame.time_epoch"])
            .output();
        let Ok(read) = read else {
            println!("skipped: tshark is not installed");
            return;
        };
        assert!(read.status.success(), "{}", String::from_utf8_lossy(&read.stderr));
        let times = String::from_utf8(read.stdout).unwrap();
        assert_eq!(times.lines().count(), n, "{name}");
        let dump = Command::new("tcpdump").args(["--count", "-r", text(&path)]).output().unwrap();
        assert!(String::from_utf8_lossy(&dump.stdout).contains(&n.to_string()), "{name}");
    }
    let quiet = cli(&[&base[..], &["-w", text(&out("q.pcap")), "-q"]].concat()).ok();
    assert_eq!(quiet.stderr, "");
    // Nothing found is a capture file without packets.
    let none = cli_command(&["extract", "--data-dir", text(&j.data), "--ip", "203.0.113.250"]);
    let none = { none }.output().unwrap();
    assert!(none.status.success());
    assert_eq!((none.stdout.len(), read_pcap(&none.stdout).len()), (24, 0));
    let dry = cli(&[&base[..], &["--dry-run"]].concat()).ok();
    assert!(dry.stdout.contains("to read from"), "{}", dry.stdout);
    let flow =
        ["--src", "192.168.1.30", "--sport", "40837", "--dst", "192.0.2.140", "--dport", "443"];
    let dry =
        cli(&[&["extract", "--data-dir", text(&j.data), "--proto", "tcp", "--dry-run"], &flow[..]]
            .concat());
    assert!(dry.ok().stdout.contains("8689 packets posted"));
}

#[test]
fn a_window_of_time_is_exact_at_both_ends() {
    let j = Journaled::home();
    let all = extract(&j.data, &[]);
    let (from, to) = (all[4_000].ns, all[4_500].ns);
    let seconds = |ns: u64| format!("{}.{:09}", ns / 1_000_000_000, ns % 1_000_000_000);
    let got = extract(&j.data, &["--start", &seconds(from), "--end", &seconds(to)]);
    let want: Vec<Packet> = all.iter().filter(|p| (from..=to).contains(&p.ns)).cloned().collect();
    assert_eq!(got, want);
    assert_eq!(extract(&j.data, &["--end", &seconds(all[0].ns - 1)]), []);
    let rfc = extract(&j.data, &["--start", "2025-11-15T18:30:00Z", "--end", "2025-11-15 18:31"]);
    assert!(!rfc.is_empty() && rfc.len() < all.len());
}

/// Counts what a name gives: packets and their bytes on the wire.
fn named(journal: &Journal, identity: Identity, filter: &str) -> (u64, u64) {
    let query = Query { identity: Some(identity), filter: Some(filter.into()), ..Query::default() };
    let mut answer = journal.query(&query).unwrap();
    let (mut packets, mut bytes) = (0, 0);
    for p in answer.by_ref() {
        packets += 1;
        bytes += u64::from(p.wire_len);
    }
    assert!(answer.report().is_complete());
    (packets, bytes)
}

/// What flow and community ids of events give is what the events counted.
fn ids_give_their_flows(j: &Journaled, journal: &Journal) {
    let finals: Vec<&Value> = j.events.iter().filter(|e| e["final"] == true).collect();
    let mut checked = 0;
    for event in &finals {
        let icmp = event["protocol"].as_str().unwrap().starts_with("ICMP");
        // Errors about it belong to the answer, not to the flow.
        let filter = if icmp { "" } else { "not icmp and not icmp6" };
        let id = u64::from_str_radix(event["flow_id"].as_str().unwrap(), 16).unwrap();
        let of = |key: &str| number(event, key);
        let got = named(journal, Identity::FlowId(id), filter);
        assert_eq!(got, (of("total_packets"), of("total_bytes")), "{event}");
        let community = event["community_id"].as_str().unwrap();
        let digest = parse_community_id(community).unwrap();
        let same = finals.iter().filter(|e| e["community_id"] == *community);
        let want = same.fold((0, 0), |sum, e| {
            (sum.0 + number(e, "total_packets"), sum.1 + number(e, "total_bytes"))
        });
        assert_eq!(named(journal, Identity::Community(digest), filter), want, "{event}");
        checked += 1;
    }
    println!("{checked} flow ids and community ids gave the packets and bytes of their events");
    assert!(checked > 100);
}

#[test]
fn flow_and_community_ids_give_the_packets_that_their_events_counted() {
    let j = Journaled::home();
    ids_give_their_flows(&j, &Journal::open(&j.data.join("pcap")).unwrap());
    let community = "1:0obY5qdXvEqAjcWj+38nMbjXg2c=";
    let event = j.events.iter().find(|e| e["community_id"] == community).unwrap();
    let got = extract(&j.data, &["--community-id", community]);
    assert_eq!(got.len() as u64, number(event, "total_packets"));
    let got = extract(&j.data, &["--flow-id", event["flow_id"].as_str().unwrap()]);
    assert_eq!(got.len() as u64, number(event, "total_packets"));
    assert_eq!(extract(&j.data, &["--flow-id", "0123456789abcdef"]), []);
}

#[test]
fn ids_are_found_without_indexes_too() {
    let j = Journaled::home();
    for entry in j.segments().iter().step_by(2) {
        fs::remove_file(entry.companion("idx")).unwrap();
    }
    let journal = Journal::open(&j.data.join("pcap")).unwrap();
    let some: Vec<Value> = j.events.iter().step_by(4).cloned().collect();
    let few =
        Journaled { events: some.iter().filter(|e| e["final"] == true).cloned().collect(), ..j };
    let mut checked = 0;
    for event in few.events.iter().take(30) {
        let id = u64::from_str_radix(event["flow_id"].as_str().unwrap(), 16).unwrap();
        let icmp = event["protocol"].as_str().unwrap().starts_with("ICMP");
        let filter = if icmp { "" } else { "not icmp and not icmp6" };
        let want = (number(event, "total_packets"), number(event, "total_bytes"));
        assert_eq!(named(&journal, Identity::FlowId(id), filter), want, "{event}");
        checked += 1;
    }
    assert!(checked >= 20, "{checked}");
}

#[test]
fn bad_usage_is_one_clear_line_and_exit_2() {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("pcap")).unwrap();
    let data = text(dir.path());
    for (args, needle) in [
        (
            &["extract", "--data-dir", data, "--filter", "tcp prot 80"][..],
            "at \"prot\" (character 5)",
        ),
        (&["extract", "--data-dir", data, "--ip", "1.2.3.256"], "--ip"),
        (&["extract", "--data-dir", data, "--start", "tomorrow"], "--start"),
        (&["extract", "--data-dir", data, "--community-id", "1:abc"], "--community-id"),
        (&["extract", "--data-dir", data, "--flow-id", "xyz"], "--flow-id"),
        (&["extract", "--data-dir", data, "--proto", "300"], "--proto"),
        (
            &["extract", "--data-dir", data, "--start", "2026-01-02", "--end", "2026-01-01"],
            "after the end",
        ),
        (&["extract", "--data-dir", "/no/such/place"], "/no/such/place/pcap: No such file"),
        (&["extract", "--data-dir", data, "-w", "/no/such/place/f.pcap"], "/no/such/place/f.pcap"),
        (&["extract", "--config", "/no/such/file"], "/no/such/file"),
        (&["journal", "ls", "--data-dir", "/no/such/place"], "/no/such/place"),
        (&["journal", "verify", "7", "--data-dir", data], "no segment 7"),
        (&["journal"], "Usage"),
        (&["frobnicate"], "frobnicate"),
    ] {
        let run = cli(args);
        assert_eq!(run.code, Some(2), "{args:?}: {}", run.stderr);
        assert!(run.stderr.contains(needle), "{args:?}: {}", run.stderr);
        assert!(!run.stderr.contains("panicked"), "{}", run.stderr);
    }
    // A file of the journal is not written over.
    let j = Journaled::home();
    let segment = j.segments().remove(0).path;
    let before = fs::read(&segment).unwrap();
    let run = cli(&["extract", "--data-dir", text(&j.data), "-w", text(&segment)]);
    assert_eq!(run.code, Some(2));
    assert!(run.stderr.contains("a file of the journal itself"), "{}", run.stderr);
    assert_eq!(fs::read(&segment).unwrap(), before);
}

#[test]
fn damage_is_found_by_verify_and_mended_by_repair() {
    let j = Journaled::home();
    let journal = |what: &str| cli(&["journal", what, "--data-dir", text(&j.data)]);
    let segments = j.segments();
    let run = journal("verify").ok();
    assert!(
        run.stdout.contains(&format!("{} good, 0 not sealed yet, 0 with problems", segments.len())),
        "{}",
        run.stdout
    );
    assert!(!run.stdout.contains('\x1b'), "no colours but on a terminal");
    let ls = journal("ls").ok().stdout;
    assert_eq!(ls.lines().count(), segments.len() + 2, "{ls}");
    let lines = cli(&["journal", "ls", "--json", "--data-dir", text(&j.data)]).ok().stdout;
    let packets: u64 =
        lines.lines().map(|l| number(&serde_json::from_str(l).unwrap(), "packets")).sum();
    assert_eq!(packets, number(&j.summary, "packets"));
    let all = sorted(extract(&j.data, &[]));

    // An index gone, one damaged, one of other packets, and a tail cut off.
    fs::remove_file(segments[0].companion("idx")).unwrap();
    let idx = segments[1].companion("idx");
    let mut bytes = fs::read(&idx).unwrap();
    let middle = bytes.len() - 2_000;
    bytes[middle] ^= 1;
    fs::write(&idx, &bytes).unwrap();
    let last = segments.last().unwrap();
    fs::remove_file(last.companion("idx")).unwrap();
    let mut torn = fs::OpenOptions::new().append(true).open(&last.path).unwrap();
    torn.write_all(&[0xff; 100]).unwrap();
    drop(torn);
    let run = journal("verify");
    assert_eq!(run.code, Some(1), "{}", run.stdout);
    for problem in ["index: a checksum does not match", "no packet record at byte"] {
        assert!(run.stdout.contains(problem), "{problem}: {}", run.stdout);
    }
    let damaged =
        cli(&["extract", "--data-dir", text(&j.data), "--ip", "192.168.1.0/24", "--count"]);
    assert!(damaged.stderr.contains("checksum"), "{}", damaged.stderr);

    let run = journal("repair").ok();
    assert!(run.stdout.contains("3 repaired, 0 could not be"), "{}", run.stdout);
    let run = journal("verify").ok();
    assert!(run.stdout.contains(", 0 with problems"), "{}", run.stdout);
    assert_eq!(sorted(extract(&j.data, &[])), all);
    assert_eq!(fs::read(last.companion("torn")).unwrap().len(), 100, "what was cut off is kept");
    let run = journal("repair").ok();
    assert!(run.stdout.contains("0 repaired"), "repaired is repaired: {}", run.stdout);
}

#[test]
fn a_segment_that_cannot_be_read_shows_in_the_answer() {
    let j = Journaled::home();
    let segments = j.segments();
    // The middle of a sealed segment, where its index points.
    let mut bytes = fs::read(&segments[1].path).unwrap();
    let len = bytes.len();
    bytes[len / 2..len / 2 + 70_000].fill(0xff);
    fs::write(&segments[1].path, &bytes).unwrap();
    let run = cli(&["extract", "--data-dir", text(&j.data), "--count"]);
    assert_eq!(run.code, Some(1), "{}", run.stderr);
    assert!(
        run.stderr.contains("missing:") && run.stderr.contains("damaged at byte"),
        "{}",
        run.stderr
    );
    assert!(run.stderr.contains("INCOMPLETE"), "{}", run.stderr);
    let found: u64 = run.stdout.trim().parse().unwrap();
    let all = number(&j.summary, "packets");
    assert!(found > all * 9 / 10 && found < all, "{found} of {all}");
}

#[test]
fn the_journal_is_asked_while_the_sensor_writes() {
    let dir = tempfile::tempdir().unwrap();
    let capture = fs::read(home_plain(dir.path())).unwrap();
    let data = dir.path().join("data");
    let mut sensor = common::command()
        .args(["--read", "-", "--journal", "on", "--data-dir", text(&data), "--rotate-size", "1MB"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut input = sensor.stdin.take().unwrap();
    let (first, rest) = capture.split_at(capture.len() / 2);
    input.write_all(first).unwrap();
    input.flush().unwrap();
    let count = || -> u64 {
        let run = cli(&["extract", "--data-dir", text(&data), "--ip", "192.168.1.30", "--count"]);
        if run.code == Some(0) { run.stdout.trim().parse().unwrap() } else { 0 }
    };
    let (begun, mut seen) = (Instant::now(), 0);
    while seen < 500 && begun.elapsed() < Duration::from_secs(60) {
        seen = count();
        std::thread::sleep(Duration::from_millis(50));
    }
    assert!(seen >= 500, "{seen}");
    assert!(cli(&["journal", "repair", "--data-dir", text(&data)]).code == Some(2), "it is in use");
    let verify = cli(&["journal", "verify", "--data-dir", text(&data)]);
    assert_eq!(verify.code, Some(0), "{}{}", verify.stdout, verify.stderr);
    input.write_all(rest).unwrap();
    drop(input);
    assert!(sensor.wait().unwrap().success());
    let whole = tcpdump(&dir.path().join("home.pcap"), "host 192.168.1.30").len() as u64;
    assert!(seen < whole);
    assert_eq!(count(), whole);
}

#[test]
fn what_the_filter_leaves_out_is_counted_and_nothing_else_is_missing() {
    let made = |dir: &Path| {
        let path = dir.join("made.pcap");
        fs::write(&path, Traffic::new(77, 5_000, false).pcap()).unwrap();
        path
    };
    let default =
        fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/configs/journal.bpf")).unwrap();
    let default = malakocut::filter::strip_comments(&default);
    for filter in ["not (tcp port 80 or udp port 53)", "vlan 5 and udp", &default] {
        let j = Journaled::of(made, &["--pcap-filter", filter]);
        let judge = if filter.contains("vlan") { filter.to_owned() } else { behind_tags(filter) };
        let want = tcpdump(&j.capture, &judge);
        assert_eq!(sorted(extract(&j.data, &[])), sorted(want), "{filter}");
        let journal = &j.summary["journal"];
        let (kept, filtered) = (number(journal, "packets"), number(journal, "filtered"));
        assert!(filtered > 0 && kept > 0);
        assert_eq!(kept + filtered, number(&j.summary, "packets"), "{filter}");
    }
}

#[test]
fn behind_the_cutoff_only_headers_are_kept() {
    let j = Journaled::of(home_plain, &["--journal-cutoff", "50kB"]);
    let journal = &j.summary["journal"];
    assert_eq!(number(journal, "packets"), number(&j.summary, "packets"));
    assert!(number(journal, "cut") > 5_000, "{journal}");
    let whole = tcpdump(&j.capture, "");
    let got = extract(&j.data, &[]);
    assert_eq!(got.len(), whole.len());
    let lost: u64 = whole.iter().zip(&got).map(|(w, g)| (w.data.len() - g.data.len()) as u64).sum();
    assert_eq!(lost, number(journal, "cut_bytes"));
    for (whole, kept) in whole.iter().zip(&got) {
        assert_eq!((whole.ns, whole.wire_len), (kept.ns, kept.wire_len));
        assert!(whole.data.starts_with(&kept.data));
        assert!(kept.data.len() >= whole.data.len().min(42), "headers stay");
    }
    let big = extract(&j.data, &["--src", "192.168.1.30", "--sport", "40837"]);
    let whole_ones: usize = big
        .iter()
        .filter(|p| p.data.len() as u32 == p.wire_len && p.wire_len > 200)
        .map(|p| p.data.len())
        .sum();
    assert!((40_000..51_600).contains(&whole_ones), "{whole_ones}");
    assert!(cli(&["journal", "verify", "--data-dir", text(&j.data)]).code == Some(0));
}

#[test]
fn an_event_says_where_its_flows_first_packet_is() {
    let cpus = "0@0,1@0,2@0";
    // Each flow's first packet, its deltas' too; fragments, VLANs and IPv6 are among them.
    for more in [&["--active-timeout", "1"][..], &["--active-timeout", "1", "--lcores", cpus]] {
        let j = Journaled::of(home_plain, more);
        let named = common::places_are_right(&j.data, &j.events);
        println!("{named} events of {} say where their flow begins", j.events.len());
        assert_eq!(named, j.events.len());
        assert!(named > 250);
    }
    let j = Journaled::of(home_plain, &["--pcap-filter", "not tcp"]);
    let named = common::places_are_right(&j.data, &j.events);
    assert_eq!(named, j.events.iter().filter(|e| e["protocol"] != "TCP").count());
}
