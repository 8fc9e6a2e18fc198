//! gomon against the Go program of that name, on the cases that it was recorded with.
//!
//! They live outside of this repository (`MALAKOCUT_ORACLES` names the folder); where they are absent
//! the test says so and passes. Each difference from the original is asserted as such.

#![allow(clippy::unwrap_used, reason = "a test that cannot run fails")]

mod common;

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use common::{gomon, lines, packets_of};
use serde_json::Value;

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
