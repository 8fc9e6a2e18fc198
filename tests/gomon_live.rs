//! gomon, and the sensor's watched hosts, on an interface: a veth pair in a namespace of the test's
//! own.

#![allow(clippy::unwrap_used, reason = "a test that cannot run fails")]

mod common;
mod pair;

use std::fs;
use std::path::Path;
use std::process::{Child, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use common::packets::Capture;
use pair::{Pair, run};
use serde_json::Value;

/// One at a time: two senders on a small machine would measure each other.
static ONE: Mutex<()> = Mutex::new(());

fn alone() -> MutexGuard<'static, ()> {
    ONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Starts gomon on `mirror` and waits until it listens; events go to `eve.json`.
fn start(pair: &Pair, dir: &Path, args: &[&str]) -> Child {
    let first = ["mirror", "10.0.0.5", "--eve-log-path", "eve.json"];
    start_program(pair, dir, common::GOMON, &[&first, args].concat())
}

/// Starts a program and waits until it listens; what it says goes to `stderr`.
fn start_program(pair: &Pair, dir: &Path, program: &str, args: &[&str]) -> Child {
    let mut child = pair
        .command(program)
        .args(args)
        .current_dir(dir)
        .stdout(Stdio::null())
        .stderr(fs::File::create(dir.join("stderr")).unwrap())
        .spawn()
        .unwrap();
    let deadline = Instant::now() + Duration::from_secs(60);
    while !said(dir).contains("receive queue") {
        assert!(child.try_wait().unwrap().is_none(), "{}", said(dir));
        assert!(Instant::now() < deadline, "it does not start");
        std::thread::sleep(Duration::from_millis(20));
    }
    child
}

fn said(dir: &Path) -> String {
    fs::read_to_string(dir.join("stderr")).unwrap()
}

fn events(dir: &Path) -> Vec<Value> {
    let text = fs::read_to_string(dir.join("eve.json")).unwrap();
    let all = text.lines().map(|l| serde_json::from_str::<Value>(l).unwrap());
    // The sensor writes of more than alerts.
    all.filter(|e| e["event_type"] == "alert" || e["metadata"]["gomon"].is_object()).collect()
}

fn signal(child: &Child, name: &str) {
    assert!(run("kill", &[name, &child.id().to_string()]));
}

/// Ends it and says how long that took.
fn end(mut child: Child, name: &str) -> Duration {
    let begun = Instant::now();
    signal(&child, name);
    let deadline = begun + Duration::from_secs(30);
    let status = loop {
        match child.try_wait().unwrap() {
            Some(status) => break status,
            None if Instant::now() > deadline => {
                child.kill().unwrap();
                child.wait().unwrap();
                panic!("{name} did not end it");
            }
            None => std::thread::sleep(Duration::from_millis(5)),
        }
    };
    assert!(status.success(), "{name}: {status}");
    begun.elapsed()
}

#[test]
fn windows_close_on_a_quiet_link_and_are_seen_at_once() {
    let _one = alone();
    let Some(pair) = Pair::new() else { return };
    let dir = tempfile::tempdir().unwrap();
    let capture = Capture::default().tcp(0, 50, "192.0.2.1", 80).write(dir.path(), "c.pcap");
    let child = start(&pair, dir.path(), &["--window", "1", "--c2-ip", "203.0.113.50"]);
    let mut lateness = Vec::new();
    for round in 1..4 {
        pair.replay(&capture, 1);
        let (event, late) = wait_for(dir.path(), 50.0 * f64::from(round));
        assert_eq!(event["alert"]["category"], "attack");
        println!("the event of a window came {late:.3} s after its end");
        lateness.push(late);
    }
    assert_prompt(lateness);
    end(child, "-INT");
}

/// Within a second of its end, but for when the machine was busy with something else.
fn assert_prompt(mut lateness: Vec<f64>) {
    lateness.sort_by(f64::total_cmp);
    assert!(lateness[0] < 1.0 && lateness[lateness.len() - 1] < 10.0, "{lateness:?}");
}

/// Packets that the windows of these events counted; each lasts a second.
fn counted(events: &[Value]) -> f64 {
    let rate = |e: &Value| {
        let about = [&e["metadata"]["gomon"], &e["alert"]["context"]];
        about.iter().find_map(|a| a["packet_rate"].as_f64()).unwrap()
    };
    events.iter().map(rate).sum()
}

/// Waits for the events of so many packets, in however many windows they are; the last one, and how
/// many seconds after the end of its window it came.
fn wait_for(dir: &Path, packets: f64) -> (Value, f64) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while counted(&events(dir)) < packets {
        assert!(Instant::now() < deadline, "the window does not close: {}", said(dir));
        std::thread::sleep(Duration::from_millis(10));
    }
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    let event = events(dir).pop().unwrap();
    let began = event["timestamp"].as_str().unwrap().replace("+0000", "Z");
    let began: jiff::Timestamp = began.parse().unwrap();
    (event, now.as_secs_f64() - began.as_microsecond() as f64 / 1e6 - 1.0)
}

#[test]
fn the_sensors_windows_close_on_a_quiet_link_too() {
    let _one = alone();
    let Some(pair) = Pair::new() else { return };
    let dir = tempfile::tempdir().unwrap();
    let capture = Capture::default().tcp(0, 50, "192.0.2.1", 80).write(dir.path(), "c.pcap");
    let config = "[detect.watch]\naddress = \"10.0.0.5\"\nwindow = 1\npacket_threshold = 1000\n";
    fs::write(dir.path().join("c.toml"), config).unwrap();
    let mut lateness = Vec::new();
    for lcores in ["0@0", "0@0,1@0", "0@0"] {
        let _ = fs::remove_file(dir.path().join("eve.json"));
        let args = ["--config", "c.toml", "--interface", "mirror", "--eve-log", "eve.json"];
        let more = ["--journal", "off", "--lcores", lcores];
        let child = start_program(&pair, dir.path(), common::BINARY, &[&args[..], &more].concat());
        pair.replay(&capture, 1);
        let (_, late) = wait_for(dir.path(), 50.0);
        println!("{lcores}: the alert of a window came {late:.3} s after its end");
        lateness.push(late);
        end(child, "-INT");
        assert_eq!(counted(&events(dir.path())), 50.0);
    }
    assert_prompt(lateness);
}

#[test]
fn a_signal_ends_it_at_once_with_the_open_window_and_the_summary() {
    let _one = alone();
    let Some(pair) = Pair::new() else { return };
    for name in ["-INT", "-TERM"] {
        let dir = tempfile::tempdir().unwrap();
        let capture = Capture::default().tcp(0, 360, "192.0.2.1", 80).write(dir.path(), "c.pcap");
        let args = ["--window", "36", "--c2-ip", "203.0.113.50", "--save-packets", "100"];
        let child = start(&pair, dir.path(), &args);
        pair.replay(&capture, 1);
        std::thread::sleep(Duration::from_millis(200));
        assert!(events(dir.path()).is_empty());
        let took = end(child, name);
        println!("{name}: ended in {:.3} s", took.as_secs_f64());
        // It does not wait for a packet, nor for its window of 36 s.
        assert!(took < Duration::from_secs(5), "{took:?}");
        let found = events(dir.path());
        assert_eq!(found.len(), 1);
        assert_eq!(found[0]["metadata"]["gomon"]["packet_rate"], 10);
        let text = said(dir.path());
        let last = text.lines().last().unwrap();
        assert_eq!(
            last,
            "Summary: 1 attack alert(s), 0 scan alert(s), 0 idle window(s), 1 capture(s) saved"
        );
        let saved = fs::read_dir(dir.path().join("captures")).unwrap().next().unwrap().unwrap();
        // A file header, and 100 records with a header each.
        assert_eq!(saved.metadata().unwrap().len(), 24 + 100 * (16 + 58));
    }
}

#[test]
fn every_packet_counts_or_is_said_to_be_lost() {
    let _one = alone();
    let Some(pair) = Pair::new() else { return };
    let dir = tempfile::tempdir().unwrap();
    let mut capture = Capture::default();
    for n in 0..2000 {
        capture.tcp(n, 1, &format!("192.0.2.{}", n % 100), 80);
    }
    let path = capture.write(dir.path(), "c.pcap");
    for stand_still in [false, true] {
        let _ = fs::remove_file(dir.path().join("eve.json"));
        let child = start(&pair, dir.path(), &["--window", "1000", "--show-idle"]);
        if stand_still {
            signal(&child, "-STOP");
        }
        pair.replay(&path, 20);
        if stand_still {
            signal(&child, "-CONT");
            std::thread::sleep(Duration::from_millis(1500));
        }
        end(child, "-INT");
        let text = said(dir.path());
        let lost: u64 = text
            .lines()
            .find_map(|l| l.strip_prefix("Lost: "))
            .map_or(0, |l| l.split(' ').next().unwrap().parse().unwrap());
        let rate = events(dir.path())[0]["stats"]["flow"]["packet_rate"].as_f64().unwrap();
        let counted = (rate * 1000.0).round() as u64;
        println!("{} sent, {counted} counted, {lost} lost", capture.packets * 20);
        assert_eq!(counted + lost, capture.packets * 20, "{text}");
        if stand_still {
            assert!(lost > 10_000 && text.contains("level=WARN msg=\"Packets lost"), "{text}");
        }
    }
}

#[test]
fn an_interface_is_put_back_as_it_was() {
    let _one = alone();
    let Some(pair) = Pair::new() else { return };
    let dir = tempfile::tempdir().unwrap();
    pair.output("ip", &["link", "set", "mirror", "down"]);
    let state = || pair.output("ip", &["-d", "-o", "link", "show", "mirror"]);
    let before = state();
    let child = start(&pair, dir.path(), &[]);
    assert!(state().contains("promiscuity 1") && state().contains(",UP"));
    end(child, "-INT");
    assert_eq!(before, state());
}
