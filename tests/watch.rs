//! The sensor's windows over the hosts of [detect.watch].

#![allow(clippy::unwrap_used, reason = "a test that cannot run fails")]

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use common::packets::{Capture, START, tcp};
use common::{Run, command};
use serde_json::{Value, json};

const TWO: &str = r#"
    [[detect.watch]]
    address = "10.0.0.5"
    sample_id = "bot"
    c2 = "203.0.113.50"
    window = 10
    [[detect.watch]]
    address = "2001:db8::5"
    window = 5
    destination_threshold = 1
    ignore_dst = ["2001:db8:ffff::/48"]
    show_idle = true
"#;

/// Two hosts that do different things, and others that are not watched.
fn capture(dir: &Path) -> std::path::PathBuf {
    let mut capture = Capture::default();
    let mut frames: Vec<(u64, Vec<u8>)> = Vec::new();
    for n in 0..600u64 {
        // A flood and a few connections, spread over two windows of ten seconds.
        frames.push((n * 30, tcp("10.0.0.5", 40_000, "192.0.2.1", 80, b"flood")));
        frames.push((n * 30, tcp("192.0.2.1", 80, "10.0.0.5", 40_000, b"")));
        frames.push((n * 30, tcp("10.0.0.6", 40_000, "192.0.2.1", 80, b"flood")));
        if n % 100 == 0 {
            frames.push((n * 30, tcp("10.0.0.5", 1, "203.0.113.50", 4444, b"")));
            frames
                .push((n * 30, tcp("10.0.0.5", 1, &format!("192.0.2.{}", n / 100 + 2), 443, b"")));
            frames.push((n * 30, tcp("2001:db8::5", 1, "2001:db8:ffff::1", 443, b"")));
        }
        if n < 200 {
            let dst = format!("2001:db8:1::{n:x}");
            frames.push((n * 20 + 7, tcp("2001:db8::5", 1, &dst, 23, b"")));
        }
    }
    frames.sort_by_key(|(ms, _)| *ms);
    for (ms, frame) in frames {
        capture.add(ms, &frame);
    }
    // Much later, and nothing in between.
    capture.tcp(3_600_000, 1, "192.0.2.9", 22);
    capture.write(dir, "watch.pcap")
}

fn watch(dir: &Path, config: &str, args: &[&str]) -> Run {
    fs::write(dir.join("c.toml"), config).unwrap();
    let capture = capture(dir);
    let all = ["--config", "c.toml", "--sensor", "attic", "--read", capture.to_str().unwrap()];
    Run::of(command().args(all).args(args).current_dir(dir).output().unwrap())
}

fn alerts(dir: &Path, args: &[&str]) -> Vec<Value> {
    let args = [&["--eve-log", "alerts.json"], args].concat();
    let _ = fs::remove_file(dir.join("alerts.json"));
    watch(dir, TWO, &args).ok();
    let text = fs::read_to_string(dir.join("alerts.json")).unwrap();
    let all = text.lines().map(|l| serde_json::from_str::<Value>(l).unwrap());
    all.filter(|e| e["event_type"] == "alert").collect()
}

#[test]
fn floods_and_scans_of_several_hosts_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let found = alerts(dir.path(), &[]);
    let mut by_kind: BTreeMap<(String, String), u64> = BTreeMap::new();
    for e in &found {
        let text = |v: &Value| v.as_str().unwrap().to_owned();
        *by_kind.entry((text(&e["src_ip"]), text(&e["alert"]["category"]))).or_default() += 1;
        assert_eq!(e["host"], "attic");
    }
    let kinds: Vec<(&str, &str, u64)> =
        by_kind.iter().map(|((h, c), n)| (h.as_str(), c.as_str(), *n)).collect();
    assert_eq!(
        kinds,
        [
            ("10.0.0.5", "attack", 2),
            // Six in the first two windows, one an hour later; the C2 is none.
            ("10.0.0.5", "connection", 7),
            ("2001:db8::5", "scan", 1),
        ]
    );
    let attack = found.iter().find(|e| e["alert"]["category"] == "attack").unwrap();
    // 30 ms apart: 334 packets in the ten seconds from a multiple of ten.
    assert_eq!(START % 10, 0);
    assert_eq!(attack["timestamp"], "2023-11-14T22:13:20.000000+0000");
    assert_eq!(attack["alert"]["context"]["packet_rate"], 33.4);
    assert_eq!(attack["alert"]["context"]["sample_id"], "bot");
    let scan = found.iter().find(|e| e["alert"]["category"] == "scan").unwrap();
    assert_eq!(scan["alert"]["context"]["destination_rate"], 40);
    assert_eq!(scan["alert"]["context"]["dst_ips"].as_array().unwrap().len(), 200);
    common::eve_is_valid(&dir.path().join("alerts.json"));
}

#[test]
fn the_number_of_workers_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let sorted = |lcores: &str| {
        let mut lines: Vec<String> =
            alerts(dir.path(), &["--lcores", lcores]).iter().map(Value::to_string).collect();
        lines.sort();
        lines
    };
    let one = sorted("0@0");
    assert!(one.len() > 5);
    for lcores in ["0@0,1@0", "0@0,1@0,2@0", "0@0,1@0,2@0,3@0"] {
        assert_eq!(one, sorted(lcores), "{lcores}");
    }
}

#[test]
fn the_same_windows_as_gomons() {
    let dir = tempfile::tempdir().unwrap();
    let alerts = alerts(dir.path(), &[]);
    // The capture begins at a multiple of the window, so that gomon's first window is the sensor's.
    let run = Run::of(
        std::process::Command::new(common::GOMON)
            .args(["watch.pcap", "10.0.0.5", "--c2-ip", "203.0.113.50", "--sample-id", "bot"])
            .args(["--window", "10", "--eve-style", "suricata"])
            .current_dir(dir.path())
            .output()
            .unwrap(),
    )
    .ok();
    let mut theirs: Vec<Value> =
        run.stdout.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    theirs.iter_mut().for_each(|e| e["host"] = json!("attic"));
    let first = |events: Vec<Value>| -> Vec<Value> {
        let is_first = |e: &Value| e["timestamp"] == "2023-11-14T22:13:20.000000+0000";
        events.into_iter().filter(|e| e["src_ip"] == "10.0.0.5" && is_first(e)).collect()
    };
    let theirs = first(theirs);
    assert!(theirs.len() == 5 && first(alerts) == theirs);
}

#[test]
fn one_table_is_enough_and_standard_output_a_place() {
    let dir = tempfile::tempdir().unwrap();
    let one = "eve_log = \"-\"\n[detect.watch]\naddress = \"10.0.0.5\"\nc2 = \"203.0.113.50\"\n";
    let run = watch(dir.path(), one, &[]).ok();
    assert!(run.stdout.lines().all(|l| l.starts_with("{\"timestamp\"")), "no tables among them");
    assert!(run.stdout.contains("\"category\":\"attack\""));
}

#[test]
fn what_cannot_be_watched_is_one_line_and_exit_2() {
    let dir = tempfile::tempdir().unwrap();
    let log = ["--eve-log", "alerts.json"];
    for (config, args, needle) in [
        ("[detect.watch]\naddress = \"10.0.0.5\"\n", &[][..], "--eve-log"),
        ("[detect.watch]\naddress = \"10.0.0\"\n", &log, "\"10.0.0\" is not an IP address"),
        ("[detect.watch]\nwindow = 3\n", &log, "address"),
        ("[detect.watch]\naddress = \"::1\"\nwindows = 3\n", &log, "windows"),
        ("[detect.watch]\naddress = \"::1\"\nwindow = 0\n", &log, "window = 0"),
        ("[detect.watch]\naddress = \"::1\"\nc2 = \"here\"\n", &log, "c2: \"here\""),
        ("[detect.watch]\naddress = \"::1\"\nignore_dst = [\"1/2\"]\n", &log, "ignore_dst"),
        ("[detect.watch]\naddress = \"::1\"\npacket_threshold = 0\n", &log, "packet_threshold"),
        ("[detect.watch]\naddress = \"::1\"\nscan_detection_mode = \"x\"\n", &log, "new-host-rate"),
        ("[detect.watch]\naddress = \"::1\"\nmax_destinations = 70000\n", &log, "65536"),
        (
            "[[detect.watch]]\naddress = \"::1\"\n[[detect.watch]]\naddress = \"0::1\"\n",
            &log,
            "listed twice",
        ),
        ("[detect]\nwatch = 3\n", &log, "[detect.watch]"),
        ("[detect]\nlisten = 3\n", &log, "listen"),
    ] {
        let run = watch(dir.path(), config, args);
        assert_eq!(run.code, Some(2), "{config}: {}", run.stderr);
        assert_eq!(run.stderr.lines().count(), 1, "{config}: {}", run.stderr);
        assert!(run.stderr.contains(needle), "{config}: {}", run.stderr);
    }
    let run = watch(dir.path(), TWO, &["--eve-log", "c.toml/alerts"]);
    assert_eq!(run.code, Some(2));
    assert!(run.stderr.contains("EVE log c.toml/alerts"), "{}", run.stderr);
}

#[test]
fn an_alert_lifts_the_journals_cutoff_of_its_host() {
    let dir = tempfile::tempdir().unwrap();
    let config = "eve_log = \"eve.json\"\n[detect.watch]\naddress = \"10.0.0.5\"\nwindow = 1\n\
                  c2 = \"203.0.113.50\"\n";
    fs::write(dir.path().join("c.toml"), config).unwrap();
    let hosts = ["10.0.0.5", "10.0.0.6"];
    let data = |host| {
        let mut frame = tcp(host, 40_000, "192.0.2.1", 80, &[7; 500]);
        // An ACK: a SYN would begin another flow.
        frame[47] = 0x10;
        frame
    };
    let write = |from: u64, name: &str| {
        let mut capture = Capture::default();
        for n in 0..100 {
            hosts.iter().for_each(|host| _ = capture.add(from + n * 9, &data(host)));
        }
        // The window is over, and a burst does not wait for more.
        capture.tcp(from + 2000, 99, "203.0.113.9", 1);
        fs::read(capture.write(dir.path(), name)).unwrap()
    };
    let (before, after) = (write(0, "a.pcap"), write(2100, "b.pcap"));
    let mut child = command()
        .args(["--config", "c.toml", "--read", "-", "--journal", "on", "--data-dir", "data"])
        .args(["--journal-cutoff", "2kB", "--summary", "json"])
        .current_dir(dir.path())
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let mut input = child.stdin.take().unwrap();
    input.write_all(&before).unwrap();
    let begun = Instant::now();
    let log = dir.path().join("eve.json");
    while !fs::read_to_string(&log).is_ok_and(|t| t.contains("\"category\":\"attack\"")) {
        assert!(begun.elapsed() < Duration::from_secs(60), "no alert");
        std::thread::sleep(Duration::from_millis(10));
    }
    // Without its file header.
    input.write_all(&after[24..]).unwrap();
    drop(input);
    assert!(child.wait().unwrap().success());
    let files = common::segments(&dir.path().join("data"));
    let packets: Vec<_> = files.iter().flat_map(|f| common::packets_of(f)).collect();
    assert_eq!(packets.len(), 2 * (200 + 99));
    let whole = |host: u8, late: bool| {
        let is_late = |ns: u64| ns >= (START * 1000 + 2100) * 1_000_000;
        let of = packets
            .iter()
            .filter(|(ns, wire, data)| *wire > 500 && data[29] == host && is_late(*ns) == late);
        of.filter(|(_, wire, data)| data.len() == *wire as usize).count()
    };
    assert_eq!([whole(5, false), whole(6, false)], [4, 4], "up to the cutoff");
    assert_eq!([whole(5, true), whole(6, true)], [100, 0], "one is alerted about");
}
