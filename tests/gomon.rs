//! gomon on capture files, as a user meets it: events, captures, summaries, errors.

#![allow(clippy::unwrap_used, reason = "a test that cannot run fails")]

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::process::{Command, Stdio};

use common::packets::{Capture, tcp};
use common::{Run, gomon, lines, packets_of};
use serde_json::{Value, json};

const C2: &str = "203.0.113.50";

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
