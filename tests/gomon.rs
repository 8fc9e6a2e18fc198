//! gomon on capture files, as a user meets it: events, captures, summaries, errors.
//!
//! The cases of the Go program of that name live outside of this repository; where they are absent
//! the test says so and passes. Each difference from it is asserted as such.

#![allow(clippy::unwrap_used, reason = "a test that cannot run fails")]

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use common::Run;
use common::packets::{Capture, tcp};
use serde_json::{Value, json};

const C2: &str = "203.0.113.50";

/// Runs gomon in a folder.
fn gomon(dir: &Path, args: &[&str]) -> Run {
    Run::of(Command::new(common::GOMON).args(args).current_dir(dir).output().unwrap())
}

/// Events in the order in which they are compared, without what the original does not write.
fn comparable(text: &str) -> Vec<Value> {
    let mut events: Vec<Value> = lines(text);
    for event in &mut events {
        if let Some(gomon) = event.pointer_mut("/metadata/gomon").and_then(Value::as_object_mut) {
            gomon.remove("dst_ips");
            gomon.remove("sample_id");
        }
    }
    events.sort_by_key(|e| {
        let text = |v: &Value| v.as_str().unwrap_or_default().to_owned();
        let category = text(&e["alert"]["category"]);
        (text(&e["timestamp"]), category, text(&e["dest_ip"]), e["dest_port"].as_u64())
    });
    events
}

fn lines(text: &str) -> Vec<Value> {
    text.lines().map(|l| serde_json::from_str(l).unwrap_or_else(|e| panic!("{e}: {l}"))).collect()
}

/// The events of one category.
fn of<'a>(events: &'a [Value], category: &str) -> Vec<&'a Value> {
    events.iter().filter(|e| e["alert"]["category"] == category).collect()
}

/// Runs the capture and gives its events.
fn events(capture: &Capture, args: &[&str]) -> Vec<Value> {
    let dir = tempfile::tempdir().unwrap();
    capture.write(dir.path(), "input.pcap");
    let run = gomon(dir.path(), &[&["input.pcap", "10.0.0.5"], args].concat()).ok();
    lines(&run.stdout)
}

/// Time, length and bytes of each packet of a capture file.
fn packets_of(path: &Path) -> Vec<(u64, u32, Vec<u8>)> {
    let mut reader = malakocut::capture::CaptureReader::open(path, 1 << 16).unwrap();
    let mut out = Vec::new();
    while let Some(record) = reader.peek().unwrap() {
        out.push((record.timestamp_ns, record.wire_len, record.data.to_vec()));
        reader.consume();
    }
    out
}

/// Standard error without what differs from run to run and from program to program.
fn said(stderr: &str) -> Vec<String> {
    let words = |line: &str| {
        let keep = |w: &&str| !w.starts_with("time=") && !w.starts_with("version:");
        line.split(' ').filter(keep).collect::<Vec<_>>().join(" ")
    };
    stderr.lines().map(words).filter(|l| !l.trim_start().starts_with('v')).collect()
}

/// A command line of a case, split as a shell does.
fn shell_words(command: &str) -> Vec<String> {
    let mut words: Vec<String> = vec![String::new()];
    let mut quoted = false;
    for c in command.trim().chars() {
        match c {
            '\'' => quoted = !quoted,
            ' ' if !quoted => words.push(String::new()),
            c => words.last_mut().unwrap().push(c),
        }
    }
    words
}

/// Where ours differs, and how.
fn differs(case: &str, ours: &[Value], theirs: &[Value]) -> Option<&'static str> {
    let times = |events: &[Value]| -> Vec<String> {
        events.iter().map(|e| e["timestamp"].as_str().unwrap().to_owned()).collect()
    };
    let rates = |events: &[Value]| -> Vec<f64> {
        let stats = events.iter().filter(|e| e["event_type"] == "stats");
        stats.map(|e| e["stats"]["flow"]["packet_rate"].as_f64().unwrap()).collect()
    };
    match case {
        "10-idle-gaps" => {
            // The window of 95 s carries its own start, not that of the silent one before it.
            assert_eq!(times(ours)[..4], times(theirs)[..4]);
            assert!(times(theirs)[4..].iter().all(|t| t == "2023-11-14T22:14:20.000000Z"));
            assert!(times(ours)[4..].iter().all(|t| t == "2023-11-14T22:14:55.000000Z"));
            assert_eq!(rates(ours), rates(theirs));
            Some("a window without a counted packet leaves no start behind")
        }
        "15c-4096-boundary" => {
            assert_eq!((rates(theirs), rates(ours)), (vec![4097.0, 3.0], vec![4096.0, 4.0]));
            Some("the 4,097th packet is in the window of its own time")
        }
        "16-src-not-filtered" => {
            assert_eq!((ours.len(), theirs.len()), (0, 2));
            Some("no packet is of the watched host")
        }
        _ => None,
    }
}

#[test]
fn every_case_of_the_original() {
    let Some(root) = common::oracles().map(|o| o.join("gomon")).filter(|p| p.is_dir()) else {
        println!("skipped: there are no oracles (MALAKOCUT_ORACLES names their folder)");
        return;
    };
    let mut cases: Vec<_> = fs::read_dir(root).unwrap().map(|e| e.unwrap().path()).collect();
    cases.sort();
    let (mut passed, mut different) = (0, 0);
    for case in cases.iter().filter(|c| c.join("cmd").exists()) {
        let name = case.file_name().unwrap().to_str().unwrap();
        let dir = tempfile::tempdir().unwrap();
        for input in ["input.pcap", "input.pcapng"] {
            let _ = fs::copy(case.join(input), dir.path().join(input));
        }
        let read = |folder: &Path, name: &str| fs::read_to_string(folder.join(name)).ok();
        let argv = shell_words(&read(case, "cmd").unwrap());
        let args: Vec<&str> = argv[1..].iter().map(String::as_str).collect();
        let run = gomon(dir.path(), &args);
        let code: i32 = read(case, "exit").unwrap().trim().parse().unwrap();
        assert_eq!(run.code, Some(code), "{name}: {}", run.stderr);
        if code != 0 {
            // One line instead of the message twice, the banner and the usage.
            assert_eq!(run.stderr.lines().count(), 1, "{name}: {}", run.stderr);
            let theirs = read(case, "stderr").unwrap();
            let said = run.stderr.trim();
            let same = theirs.lines().any(|l| l == said) || theirs.contains("missing.pcap");
            assert!(said.starts_with("Error: ") && same, "{name}: {said}");
            println!("{name}: refused, exit {code}");
            passed += 1;
            continue;
        }
        let ours = comparable(&read(dir.path(), "eve.json").unwrap());
        let theirs = comparable(&read(case, "eve.json").unwrap());
        match differs(name, &ours, &theirs) {
            Some(why) => {
                println!("{name}: differs as intended: {why}");
                different += 1;
                continue;
            }
            None => assert_eq!(ours, theirs, "{name}"),
        }
        assert_eq!(run.stdout, "");
        if name == "13c-cap-drops-attack" {
            // A window above the limit is said at its end too.
            assert!(run.stderr.contains("Not tracked: 576 packet(s)"), "{}", run.stderr);
        } else if !case.join("captures").exists() {
            assert_eq!(said(&run.stderr), said(&read(case, "stderr").unwrap()), "{name}");
        }
        let saved = captures_of(name, dir.path(), case);
        println!("{name}: {} events equal{saved}", ours.len());
        passed += 1;
    }
    println!("{passed} cases equal, {different} different as intended");
    assert!(passed + different >= 27 && different == 3);
}

/// Compares the saved captures; says how many there were.
fn captures_of(name: &str, ours: &Path, theirs: &Path) -> String {
    let names = |folder: &Path| -> BTreeSet<String> {
        let entries = fs::read_dir(folder.join("captures")).into_iter().flatten();
        entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect()
    };
    let (mine, expected) = (names(ours), names(theirs));
    for file in &expected {
        let path = |folder: &Path| folder.join("captures").join(file);
        assert_eq!(packets_of(&path(ours)), packets_of(&path(theirs)), "{name}: {file}");
    }
    let more: Vec<&String> = mine.difference(&expected).collect();
    if name == "11-save-packets" {
        // The second attacked port of a host has a file of its own, instead of overwriting.
        assert_eq!(more, ["attack_bad-name-_x_198.51.100.10_80_20231114T221320Z.pcap"]);
        let saved = packets_of(&ours.join("captures").join(more[0]));
        // TCP ports at 34 and 36.
        let ports = |d: &[u8]| [d[34..36].to_vec(), d[36..38].to_vec()];
        assert_eq!(saved.len(), 8);
        assert!(saved.iter().all(|(_, _, d)| ports(d).contains(&vec![0, 80])));
        assert!(saved.iter().any(|(_, _, d)| ports(d)[0] == [0, 80]), "both directions");
    } else {
        assert_eq!(more, Vec::<&String>::new(), "{name}");
    }
    if mine.is_empty() { String::new() } else { format!(", {} captures", mine.len()) }
}

/// What the original's own tests assert.
#[test]
fn what_the_originals_own_tests_assert() {
    let with = |packets: u64, hosts: u64, c2: bool| -> Vec<String> {
        let mut args: Vec<String> =
            ["--window", "1", "--sample-id", "sample-1"].map(Into::into).into();
        args.extend(["--packet-threshold".into(), packets.to_string()]);
        args.extend(["--destination-threshold".into(), hosts.to_string()]);
        if c2 {
            args.extend(["--c2-ip".into(), C2.into()]);
        }
        args
    };
    let run = |capture: &Capture, args: Vec<String>| {
        events(capture, &args.iter().map(String::as_str).collect::<Vec<_>>())
    };
    let host = |n: u32| format!("198.51.100.{n}");
    let each = |ports: &[(u32, u16)]| {
        let mut c = Capture::default();
        for (n, (h, port)) in ports.iter().enumerate() {
            c.tcp(n as u64, 1, &host(*h), *port);
        }
        c
    };
    // EveAttackFormatting
    let found = run(Capture::default().tcp(0, 3, &host(10), 8080), with(1, 10, true));
    let attack = &of(&found, "attack")[0];
    assert_eq!(
        (&attack["dest_ip"], &attack["dest_port"], &attack["proto"], &attack["host"]),
        (&json!("198.51.100.10"), &json!(8080), &json!("tcp"), &json!("sample-1"))
    );
    assert_eq!(attack["metadata"]["gomon"]["c2_ip"], C2);
    assert_eq!(attack["metadata"]["gomon"]["packet_threshold"], 1);
    assert_eq!(attack["metadata"]["gomon"]["sample_id"], "sample-1");
    // EveScanFormatting
    let found = run(&each(&[(1, 23), (2, 2323), (3, 22), (4, 80)]), with(1, 3, true));
    let scan = &of(&found, "scan")[0];
    assert_eq!(scan["dest_ip"], "0.0.0.0");
    assert!(!scan["alert"]["signature"].as_str().unwrap().is_empty());
    assert_eq!(scan["metadata"]["gomon"]["c2_ip"], C2);
    assert_eq!(scan["metadata"]["gomon"]["destination_rate"], 4);
    let hosts: Vec<String> = (1..5).map(host).collect();
    assert_eq!(scan["metadata"]["gomon"]["dst_ips"], json!(hosts));
    // OutboundSuppressedDuringScan, ScanEmittedWhenDestinationRateExceedsWithoutPacketRate,
    // ScanEmittedWithoutC2
    let three = each(&[(1, 23), (2, 23), (3, 23)]);
    for args in [with(1, 2, true), with(100, 2, true), with(1, 2, false)] {
        let found = run(&three, args);
        assert_eq!((of(&found, "scan").len(), found.len()), (1, 1));
    }
    // OutboundResumesAfterScanWindow
    let mut two = each(&[(1, 23), (2, 23), (3, 23)]);
    let found = run(two.tcp(1000, 1, &host(40), 22), with(100, 2, true));
    assert_eq!((of(&found, "scan").len(), of(&found, "connection").len()), (1, 1));
    // NewHostRateOnlyCountsNewAcrossWindows
    let mut twice = each(&[(1, 23), (2, 23), (3, 23)]);
    for h in 1..4 {
        twice.tcp(1000 + u64::from(h), 1, &host(h), 23);
    }
    let mut args = with(100, 2, false);
    args.extend(["--scan-detection-mode".into(), "new-host-rate".into()]);
    assert_eq!(of(&run(&twice, args), "scan").len(), 1);
    // AttackDestinationNotLoggedAsOutbound
    let mut mixed = Capture::default();
    mixed.tcp(0, 3, &host(20), 9001).tcp(5, 1, &host(30), 443);
    let found = run(&mixed, with(1, 10, true));
    assert_eq!(of(&found, "attack").len(), 1);
    assert_eq!(of(&found, "connection")[0]["dest_ip"], "198.51.100.30");
    assert_eq!(of(&found, "connection").len(), 1);
    // SingleDestinationBurstDoesNotTriggerScan
    let found = run(Capture::default().tcp(0, 4, &host(10), 22), with(1, 3, true));
    assert_eq!((of(&found, "attack").len(), of(&found, "scan").len()), (1, 0));
    // ScanIgnoresAttackDestinations
    let mut mixed = Capture::default();
    mixed.tcp(0, 1, &host(10), 22).tcp(5, 3, &host(20), 23).tcp(10, 3, &host(30), 80);
    let found = run(&mixed, with(1, 2, true));
    assert_eq!((of(&found, "attack").len(), of(&found, "scan").len()), (2, 0));
    // MultiPortSingleHostDoesNotTriggerScan
    let found = run(&each(&[(200, 22), (200, 23), (200, 24)]), with(1, 2, false));
    assert_eq!((of(&found, "connection").len(), found.len()), (3, 3));
}

#[test]
fn only_what_the_watched_host_sends_counts() {
    let mut capture = Capture::default();
    capture.tcp(0, 1, "198.51.100.1", 80);
    for n in 0..50u64 {
        capture.add(1 + n, &tcp("198.51.100.1", 80, "10.0.0.5", 40_000, b""));
        capture.add(1 + n, &tcp("10.0.0.6", 1, "198.51.100.2", 80, b""));
    }
    let found = events(&capture, &["--window", "1", "--c2-ip", C2, "--show-idle"]);
    assert_eq!(found.len(), 2);
    assert_eq!(found[0]["stats"]["flow"]["packet_rate"], 1);
    assert_eq!(found[1]["dest_ip"], "198.51.100.1");
}

#[test]
fn destinations_are_left_out_by_address_and_network_in_any_spelling() {
    let mut capture = Capture::default();
    for (n, dst) in ["198.51.100.7", "198.51.100.8", "192.0.2.1", "8.8.8.8"].iter().enumerate() {
        capture.tcp(n as u64, 1, dst, 80);
    }
    let args = ["--ignore-dst", "198.51.100.0/24,192.0.2.1", "--ignore-dst", "9.9.9.9"];
    let found = events(&capture, &args);
    assert_eq!((found.len(), &found[0]["dest_ip"]), (1, &json!("8.8.8.8")));

    let dir = tempfile::tempdir().unwrap();
    let mut v6 = Capture::default();
    for dst in ["2001:db8::10", "2001:db8:1::1", "2001:db8:2::1"] {
        v6.add(0, &tcp("2001:db8::5", 1, dst, 80, b""));
    }
    v6.write(dir.path(), "v6.pcap");
    let args =
        ["v6.pcap", "2001:DB8:0:0::5", "--ignore-dst", "2001:0db8:0:0:0:0:0:10,2001:db8:1::/48"];
    let found = lines(&gomon(dir.path(), &args).ok().stdout);
    assert_eq!((found.len(), &found[0]["dest_ip"]), (1, &json!("2001:db8:2::1")));
    // As it was given.
    assert_eq!(found[0]["src_ip"], "2001:DB8:0:0::5");
}

#[test]
fn above_the_limit_what_is_known_goes_on_counting() {
    let mut capture = Capture::default();
    capture.tcp(0, 10, "192.0.2.1", 80);
    for n in 0..3000u32 {
        let dst = format!("198.18.{}.{}", n / 250, n % 250);
        capture.add(u64::from(n) / 10, &tcp("10.0.0.5", 40_000, &dst, 23, b""));
    }
    capture.tcp(500, 90, "192.0.2.1", 80);
    let dir = tempfile::tempdir().unwrap();
    capture.write(dir.path(), "input.pcap");
    let run = |more: &[&str]| {
        let args = ["input.pcap", "10.0.0.5", "--window", "1", "--c2-ip", C2];
        let run = gomon(dir.path(), &[&args, more].concat()).ok();
        (lines(&run.stdout), run.stderr)
    };
    let (found, said) = run(&[]);
    let (scan, attack) = (of(&found, "scan")[0], of(&found, "attack")[0]);
    assert_eq!(scan["metadata"]["gomon"]["packet_rate"], 3100, "exact");
    assert_eq!(scan["metadata"]["gomon"]["destination_rate"], 1023, "all but the attacked one");
    assert_eq!(attack["metadata"]["gomon"]["packet_rate"], 100);
    assert_eq!(said.matches("Maximum number of destinations reached").count(), 1, "{said}");
    assert!(said.contains("Not tracked: 1977 packet(s)"), "{said}");
    let (found, said) = run(&["--max-destinations", "5000"]);
    assert_eq!(of(&found, "scan")[0]["metadata"]["gomon"]["destination_rate"], 3000);
    assert!(!said.contains("Not tracked") && !said.contains("Maximum"), "{said}");
}

#[test]
fn a_sweep_of_one_hosts_ports_does_not_hide_a_scan() {
    let mut capture = Capture::default();
    for port in 1..1101 {
        capture.add(0, &tcp("10.0.0.5", 40_000, "192.0.2.1", port, b""));
    }
    for n in 1..201 {
        capture.tcp(10, 1, &format!("198.51.100.{n}"), 23);
    }
    let found = events(&capture, &["--window", "1"]);
    assert_eq!(of(&found, "scan")[0]["metadata"]["gomon"]["destination_rate"], 201);
    // Asked for, the sweep is one too.
    let found = events(&capture, &["--window", "1", "--port-threshold", "100"]);
    let scans = of(&found, "scan");
    assert_eq!((scans.len(), found.len()), (2, 2));
    assert_eq!(
        (&scans[1]["dest_ip"], &scans[1]["alert"]["signature_id"]),
        (&json!("192.0.2.1"), &json!(2_100_004))
    );
    assert_eq!(scans[1]["metadata"]["gomon"]["port_rate"], 1024);
    assert_eq!(scans[1]["metadata"]["gomon"]["port_rate_threshold"], 100);
}

#[test]
fn a_hundred_and_fifty_thousand_hosts_in_one_window() {
    let hosts = 150_000u32;
    let mut capture = Capture::default();
    let mut frame = tcp("10.0.0.5", 40_000, "198.18.0.0", 23, b"");
    for n in 0..2 * hosts {
        frame[30..34].copy_from_slice(&(0xc612_0000 + n % hosts).to_be_bytes());
        capture.add(u64::from(n) / 100, &frame);
    }
    let found = events(&capture, &["--window", "10", "--max-destinations", "200000"]);
    assert_eq!(found.len(), 1);
    let gomon = &found[0]["metadata"]["gomon"];
    assert_eq!(gomon["destination_rate"], 15_000);
    assert_eq!(gomon["packet_rate"], 30_000);
    let hosts_named: Vec<&str> =
        gomon["dst_ips"].as_array().unwrap().iter().map(|v| v.as_str().unwrap()).collect();
    assert!(hosts_named.len() == hosts as usize && hosts_named.is_sorted());
}

#[test]
fn windows_begin_with_a_packet_and_end_exactly() {
    let mut capture = Capture::default();
    // 8,192 packets in a second, then one exactly at its end, and after a gap another.
    for n in 0..8192u64 {
        capture.add(250 + n / 9, &tcp("10.0.0.5", 40_000, "192.0.2.1", 80, b""));
    }
    capture.tcp(1250, 1, "192.0.2.2", 80).tcp(7900, 1, "192.0.2.3", 80);
    // Older than the window: it counts in it.
    capture.tcp(100, 1, "192.0.2.4", 80);
    let found = events(&capture, &["--window", "1", "--show-idle"]);
    let windows: Vec<(&str, f64)> = found
        .iter()
        .filter(|e| e["event_type"] == "stats")
        .map(|e| {
            (e["timestamp"].as_str().unwrap(), e["stats"]["flow"]["packet_rate"].as_f64().unwrap())
        })
        .collect();
    assert_eq!(
        windows,
        [
            ("2023-11-14T22:13:20.250000Z", 8192.0),
            ("2023-11-14T22:13:21.250000Z", 1.0),
            ("2023-11-14T22:13:27.900000Z", 2.0)
        ]
    );
}

#[test]
fn events_come_by_time_then_window_before_endpoints_then_destination() {
    let mut capture = Capture::default();
    for dst in ["192.0.2.20", "192.0.2.3", "192.0.2.100"] {
        for port in [443, 80] {
            capture.tcp(0, 1, dst, port);
        }
    }
    let expected: Vec<(String, Option<u64>)> = [("192.0.2.3"), ("192.0.2.20"), ("192.0.2.100")]
        .iter()
        .flat_map(|d| [80, 443].map(|p| ((*d).to_owned(), Some(p))))
        .collect();
    for _ in 0..3 {
        let found = events(&capture, &["--show-idle"]);
        assert_eq!(found[0]["event_type"], "stats");
        let order: Vec<(String, Option<u64>)> = found[1..]
            .iter()
            .map(|e| (e["dest_ip"].as_str().unwrap().to_owned(), e["dest_port"].as_u64()))
            .collect();
        assert_eq!(order, expected);
    }
}

#[test]
fn captures_keep_link_type_and_length_and_count_what_they_lack() {
    let dir = tempfile::tempdir().unwrap();
    // Raw IP: the frames without their Ethernet header, the first one the shortest.
    let mut capture = Capture::of_link(101);
    for n in 0..40u64 {
        let frame = tcp("10.0.0.5", 40_000, "192.0.2.1", 80, &vec![7; n as usize * 30]);
        capture.add(n, &frame[14..]);
    }
    capture.write(dir.path(), "raw.pcap");
    let args = ["raw.pcap", "10.0.0.5", "--window", "1", "--c2-ip", C2, "--save-packets", "10"];
    let run = gomon(dir.path(), &[&args[..], &["--capture-dir", "a/b"]].concat()).ok();
    assert!(run.stderr.contains("1 capture(s) saved"), "{}", run.stderr);
    let saved = dir.path().join("a/b/attack_192.0.2.1_20231114T221320Z.pcap");
    let (all, kept) = (packets_of(&dir.path().join("raw.pcap")), packets_of(&saved));
    assert_eq!(all[30..], kept);
    let header = fs::read(&saved).unwrap();
    assert_eq!(header[16..24], [0, 0, 4, 0, 101, 0, 0, 0], "snap length 262,144, raw IP");
    // tcpdump reads it whole.
    if let Ok(out) = Command::new("tcpdump").args(["-nnr", saved.to_str().unwrap()]).output() {
        let text = String::from_utf8_lossy(&out.stdout).into_owned();
        assert!(text.contains("length 1170") && !text.contains("[|"), "{text}");
    }
    // More asked for than there is.
    let args = [&args[..7], &["1000000"]].concat();
    gomon(dir.path(), &args).ok();
    let saved = dir.path().join("captures/attack_192.0.2.1_20231114T221320Z.pcap");
    assert_eq!(packets_of(&saved), all);
}

#[test]
fn a_folder_for_captures_that_cannot_be_is_known_before_the_run() {
    let dir = tempfile::tempdir().unwrap();
    Capture::default().tcp(0, 1, "192.0.2.1", 80).write(dir.path(), "input.pcap");
    let args = ["input.pcap", "10.0.0.5", "--save-packets", "1", "--capture-dir", "input.pcap/x"];
    let run = gomon(dir.path(), &args);
    assert_eq!((run.code, run.stderr.lines().count()), (Some(1), 1), "{}", run.stderr);
    assert!(run.stderr.contains("capture-dir"), "{}", run.stderr);
}

#[test]
fn suricatas_schema_holds_for_every_kind_of_event() {
    let dir = tempfile::tempdir().unwrap();
    let mut capture = Capture::default();
    capture.tcp(0, 60, "192.0.2.1", 80).tcp(100, 1, "192.0.2.2", 0);
    for n in 0..30 {
        capture.tcp(2000, 1, &format!("198.51.100.{n}"), 23);
        capture.tcp(4000, 1, "192.0.2.9", 1000 + n);
    }
    // ICMP, SCTP and a protocol without a name.
    let mut other = tcp("10.0.0.5", 1, "192.0.2.3", 2, b"");
    for protocol in [1u8, 132, 89, 250] {
        other[23] = protocol;
        other[33] = protocol;
        capture.add(6000, &other);
    }
    capture.write(dir.path(), "input.pcap");
    let log = dir.path().join("eve.json");
    let args = [
        "input.pcap",
        "10.0.0.5",
        "--window",
        "1",
        "--c2-ip",
        C2,
        "--sample-id",
        "s",
        "--show-idle",
    ];
    let more = ["--port-threshold", "20", "--eve-style", "suricata", "--eve-log-path", "eve.json"];
    gomon(dir.path(), &[&args[..], &more].concat()).ok();
    let found = lines(&fs::read_to_string(&log).unwrap());
    let categories: BTreeSet<&str> =
        found.iter().map(|e| e["alert"]["category"].as_str().unwrap()).collect();
    assert_eq!(categories, ["attack", "connection", "idle", "scan"].into());
    for event in &found {
        assert!(event["flow_id"].as_u64().unwrap() < 1 << 53);
        assert!(event["timestamp"].as_str().unwrap().ends_with("+0000"));
        assert_eq!(event["alert"]["context"]["window_s"], 1);
        assert_eq!(event["alert"]["context"]["sample_id"], "s");
        assert!(event.get("metadata").is_none() && event.get("stats").is_none());
    }
    let protocols: BTreeSet<&str> = found.iter().filter_map(|e| e["proto"].as_str()).collect();
    assert_eq!(protocols, ["TCP", "ICMP", "SCTP", "089", "250"].into());
    // The same findings in both styles.
    let original = lines(&gomon(dir.path(), &[&args[..], &more[..2]].concat()).ok().stdout);
    assert_eq!(original.len(), found.len());
    common::eve_is_valid(&log);
}

#[test]
fn the_log_is_appended_to_and_made_with_its_folder() {
    let dir = tempfile::tempdir().unwrap();
    Capture::default().tcp(0, 3, "192.0.2.1", 80).write(dir.path(), "input.pcap");
    let args = ["input.pcap", "10.0.0.5", "--eve-log-path", "./logs//today/eve.json"];
    for round in 1..3 {
        let run = gomon(dir.path(), &args).ok();
        let text = fs::read_to_string(dir.path().join("logs/today/eve.json")).unwrap();
        assert_eq!(text.lines().count(), round);
        assert!(run.stdout.is_empty());
        assert!(run.stderr.contains("Analysis complete. Eve log: logs/today/eve.json\n"));
    }
    // A calibration writes no event, but makes the file.
    let args = ["input.pcap", "10.0.0.5", "--calibrate", "--eve-log-path", "new.json"];
    gomon(dir.path(), &args).ok();
    assert_eq!(fs::read_to_string(dir.path().join("new.json")).unwrap(), "");
    // And what it recommends keeps the window quiet.
    let run = gomon(dir.path(), &["input.pcap", "10.0.0.5", "--window", "1", "--calibrate"]).ok();
    assert!(run.stderr.contains("packet-threshold >= 3.0000, destination-threshold >= 1.0000"));
}

#[test]
fn flags_are_read_as_the_originals_are() {
    let dir = tempfile::tempdir().unwrap();
    Capture::default().tcp(0, 3, "192.0.2.1", 80).write(dir.path(), "input.pcap");
    let block = |args: &[&str]| -> BTreeMap<String, String> {
        let run = gomon(dir.path(), args).ok();
        let block = run.stderr.split("Configuration:\n").nth(1).unwrap().to_owned();
        let pairs = block.lines().take_while(|l| l.starts_with("  "));
        pairs
            .map(|l| l.trim().split_once(": ").unwrap())
            .map(|(k, v)| (k.into(), v.into()))
            .collect()
    };
    let default = block(&["input.pcap", "10.0.0.5"]);
    for (key, value) in [
        ("input", "input.pcap"),
        ("source-ip", "10.0.0.5"),
        ("window", "30s"),
        ("packet-threshold", "5.00"),
        ("destination-threshold", "10.00"),
        ("scan-detection-mode", "filtered-host-rate"),
        ("log-level", "info"),
        ("show-idle", "false"),
        ("calibrate", "false"),
        ("c2-ip", "<none>"),
        ("sample-id", "<none>"),
        ("ignore-dst", "<none>"),
        ("save-packets", "0"),
        ("capture-dir", "captures"),
        ("eve-log-path", "stdout"),
    ] {
        assert_eq!(default[key], value, "{key}");
    }
    assert_eq!(default.len(), 16, "and the version");
    let given = block(&[
        "--window=3661",
        "--show-idle=true",
        "--window",
        "90",
        "input.pcap",
        "--packet-threshold=2.5",
        "10.0.0.5",
        "--ignore-dst",
        "192.0.2.8,192.0.2.9",
        "--ignore-dst=192.0.2.10",
        "--calibrate=false",
        "--scan-detection-mode",
        "HOST-rate",
        "--log-level",
        "WARNING",
        "--destination-threshold",
        "0",
    ]);
    assert_eq!(
        (&given["window"][..], &given["show-idle"][..]),
        ("1m30s", "true"),
        "the last one wins"
    );
    assert_eq!(given["ignore-dst"], "192.0.2.8, 192.0.2.9, 192.0.2.10");
    assert_eq!(given["scan-detection-mode"], "HOST-rate");

    let old =
        gomon(dir.path(), &["input.pcap", "10.0.0.5", "--destination-rate-mode", "host-rate"]).ok();
    assert!(
        old.stderr
            .contains("--destination-rate-mode has been deprecated, use --scan-detection-mode")
    );
    assert!(old.stderr.contains("scan-detection-mode: host-rate"));

    let version = gomon(dir.path(), &["--version"]).ok();
    assert_eq!(version.stdout, concat!("gomon version v", env!("CARGO_PKG_VERSION"), "\n"));
    let help = gomon(dir.path(), &["--help"]).ok().stdout;
    for flag in default.keys().filter(|k| !matches!(&k[..], "input" | "source-ip")) {
        assert!(help.contains(&format!("--{flag}")), "{flag}");
    }
}

#[test]
fn what_cannot_be_used_is_one_line_and_exit_1() {
    let dir = tempfile::tempdir().unwrap();
    Capture::default().tcp(0, 3, "192.0.2.1", 80).write(dir.path(), "input.pcap");
    fs::write(dir.path().join("junk"), "not a capture, whatever its name may say").unwrap();
    fs::write(dir.path().join("none.pcap"), "").unwrap();
    let good = ["input.pcap", "10.0.0.5"];
    let with = |more: &[&'static str]| [&good[..], more].concat();
    for (args, needle) in [
        (vec![], "gomon <input> <src_ip>"),
        (vec!["input.pcap"], "gomon <input> <src_ip>"),
        (with(&["stray"]), "stray"),
        (with(&["--frobnicate"]), "--frobnicate"),
        (with(&["--window"]), "--window"),
        (vec!["input.pcap", "host"], "src_ip"),
        (vec!["input.pcap", "10.0.0.0/8"], "src_ip"),
        (vec!["missing.pcap", "10.0.0.5"], "missing.pcap: No such file"),
        (vec!["nosuchif0", "10.0.0.5"], "nosuchif0"),
        (vec![".", "10.0.0.5"], "directory"),
        (vec!["junk", "10.0.0.5"], "not a capture file"),
        (vec!["none.pcap", "10.0.0.5"], "it is empty"),
        (with(&["--window", "0"]), "window"),
        (with(&["--window", "-3"]), "window"),
        (with(&["--window", "1.5"]), "window"),
        (with(&["--window", "99999999999999999999"]), "window"),
        (with(&["--packet-threshold", "0"]), "packet-threshold must be greater than 0"),
        (with(&["--packet-threshold", "nan"]), "packet-threshold"),
        (with(&["--packet-threshold", "many"]), "packet-threshold"),
        (with(&["--destination-threshold", "-1"]), "destination-threshold must be non-negative"),
        (with(&["--destination-threshold", "inf"]), "destination-threshold"),
        (with(&["--port-threshold", "-1"]), "port-threshold"),
        (with(&["--scan-detection-mode", "bogus"]), "unsupported scan-detection-mode \"bogus\""),
        (with(&["--log-level", "loud"]), "unsupported log-level \"loud\""),
        (with(&["--eve-style", "zeek"]), "eve-style"),
        (with(&["--c2-ip", "c2.example"]), "c2-ip"),
        (with(&["--ignore-dst", "192.0.2.0/33"]), "ignore-dst"),
        (with(&["--ignore-dst", "192.0.2.1,oops"]), "\"oops\""),
        (with(&["--save-packets", "-1"]), "save-packets"),
        (with(&["--max-destinations", "0"]), "max-destinations"),
        (with(&["--show-idle=maybe"]), "show-idle"),
        (with(&["--eve-log-path", "junk/eve.json"]), "eve-log-path junk/eve.json"),
        (with(&["--eve-log-path", "."]), "eve-log-path"),
    ] {
        let run = gomon(dir.path(), &args);
        assert_eq!(run.code, Some(1), "{args:?}: {}", run.stderr);
        assert_eq!(run.stderr.lines().count(), 1, "{args:?}: {}", run.stderr);
        assert!(
            run.stderr.starts_with("Error: ") && run.stderr.contains(needle),
            "{args:?}: {}",
            run.stderr
        );
        assert!(run.stdout.is_empty());
    }
}

#[test]
fn damage_is_said_and_what_came_before_it_counts() {
    let dir = tempfile::tempdir().unwrap();
    let path = Capture::default().tcp(0, 9, "192.0.2.1", 80).write(dir.path(), "input.pcap");
    let mut bytes = fs::read(&path).unwrap();
    // The length of the sixth record.
    let at = 24 + 5 * (16 + 58) + 8;
    bytes[at..at + 4].copy_from_slice(&u32::MAX.to_le_bytes());
    fs::write(&path, bytes).unwrap();
    let run = gomon(dir.path(), &["input.pcap", "10.0.0.5", "--window", "1"]);
    assert_eq!(run.code, Some(1));
    assert!(
        run.stderr.contains("level=ERROR") && run.stderr.contains("damaged at byte"),
        "{}",
        run.stderr
    );
    assert_eq!(lines(&run.stdout)[0]["metadata"]["gomon"]["packet_rate"], 5);
}

#[test]
fn a_reader_that_goes_away_is_one_line_and_exit_1() {
    let dir = tempfile::tempdir().unwrap();
    let mut capture = Capture::default();
    for n in 0..5000u64 {
        capture.tcp(n * 1000, 1, "192.0.2.1", 80);
    }
    capture.write(dir.path(), "input.pcap");
    let mut child = Command::new(common::GOMON)
        .args(["input.pcap", "10.0.0.5", "--window", "1"])
        .current_dir(dir.path())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let run = Run::of(child.wait_with_output().unwrap());
    let last = run.stderr.lines().last().unwrap();
    assert_eq!(run.code, Some(1));
    assert!(last.starts_with("Error: ") && last.contains("stdout: Broken pipe"), "{}", run.stderr);
}
