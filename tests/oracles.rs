//! The sensor against captures whose right answers others have published.
//!
//! The oracles are Arkime's sessions, Zeek's conn.log and the ids of the Community ID
//! specification. They live outside of this repository (`MALAKOCUT_ORACLES` names the directory);
//! where they are absent the tests say so and pass.
//!
//! Each difference stands in `oracles/known.txt` with its reason. One that is not listed fails, and
//! so does a listed one that is no longer there. To see the list as it would have to be:
//!
//! ```text
//! MALAKOCUT_BLESS=1 cargo test --test oracles -- --nocapture
//! ```

#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "oracles/arkime.rs"]
mod arkime;
#[path = "oracles/capture.rs"]
mod capture;
#[path = "oracles/known.rs"]
mod known;
#[path = "oracles/names.rs"]
mod names;
#[path = "oracles/sensor.rs"]
mod sensor;
#[path = "oracles/zeek.rs"]
mod zeek;

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use serde_json::Value;

/// The captures' directories, all of which hold whole captures.
const DIRECTORIES: [&str; 4] = ["arkime", "zeek", "community-id", "gomon"];

/// The oracles' directory, or a line that says why the test does not run.
fn oracles_or_skip(test: &str) -> Option<PathBuf> {
    let found = sensor::oracles();
    if found.is_none() {
        println!("skipped: {test}: no oracles (MALAKOCUT_ORACLES names their directory)");
    }
    found
}

#[test]
fn arkime() {
    let Some(root) = oracles_or_skip("arkime") else { return };
    known::judge("arkime", arkime::rows(&root.join("arkime")));
}

#[test]
fn names() {
    let Some(root) = oracles_or_skip("names") else { return };
    known::judge("names", names::rows(&root.join("arkime")));
}

#[test]
fn zeek() {
    let Some(root) = oracles_or_skip("zeek") else { return };
    known::judge("zeek", zeek::rows(&root.join("zeek")));
}

#[test]
fn community_id() {
    let Some(root) = oracles_or_skip("community_id") else { return };
    let directory = root.join("community-id");
    let mut ours = BTreeSet::new();
    for capture in sensor::captures(&directory) {
        for event in &sensor::run(&capture).expect("the sensor reads the capture").events {
            let mut ends = [address(event, "src_ip"), address(event, "dst_ip")];
            ends.sort();
            ours.insert((ends, text(event, "community_id").to_owned()));
        }
    }
    let baseline = sensor::json(&directory.join("baseline_deflt.json"));
    let baseline = baseline.as_array().expect("a list of ids");
    let missing: Vec<&Value> = baseline
        .iter()
        .filter(|entry| {
            let mut ends = [address(entry, "saddr"), address(entry, "daddr")];
            ends.sort();
            !ours.contains(&(ends, text(entry, "communityid").to_owned()))
        })
        .collect();
    println!("community_id: {} of {}", baseline.len() - missing.len(), baseline.len());
    assert!(missing.is_empty(), "no event has these: {missing:#?}");
}

fn text<'a>(object: &'a Value, field: &str) -> &'a str {
    object[field].as_str().unwrap_or_else(|| panic!("{field} in {object}"))
}

fn address(object: &Value, field: &str) -> IpAddr {
    text(object, field).parse().expect("an address")
}

#[test]
fn every_packet_is_accounted_for() {
    let Some(root) = oracles_or_skip("every_packet_is_accounted_for") else { return };
    let captures = all_captures(&root);
    let faults = sensor::in_parallel(&captures, |capture| match sensor::run(capture) {
        Ok(run) => accounting_faults(&capture::totals(capture), &run),
        Err(error) => vec![error],
    });
    report("every_packet_is_accounted_for", &root, &captures, faults);
}

fn all_captures(root: &Path) -> Vec<PathBuf> {
    DIRECTORIES.iter().flat_map(|name| sensor::captures(&root.join(name))).collect()
}

/// What does not add up: file against summary, summary in itself, events against summary, each
/// event in itself.
fn accounting_faults(file: &capture::Totals, run: &sensor::Run) -> Vec<String> {
    let mut faults = Vec::new();
    let mut equal = |what: &str, left: u64, right: u64| {
        if left != right {
            faults.push(format!("{what}: {left} != {right}"));
        }
    };
    let count = |field: &str| sensor::number(&run.summary, field);
    equal("packets, file and summary", file.packets, count("packets"));
    equal("bytes, file and summary", file.bytes, count("bytes"));
    let placed = count("decoded") + sum(&run.summary["not_ip"]) + sum(&run.summary["malformed"]);
    equal("packets and decoded + not_ip + malformed", count("packets"), placed);
    let of_events: u64 = run.events.iter().map(|e| sensor::number(e, "packets")).sum();
    equal("decoded and packets of all events", count("decoded"), of_events);
    for event in &run.events {
        let id = text(event, "flow_id");
        for unit in ["packets", "bytes"] {
            let field = |prefix: &str| sensor::number(event, &format!("{prefix}{unit}"));
            equal(&format!("{id} {unit} by direction"), field(""), field("orig_") + field("resp_"));
        }
    }
    for flow in sensor::flows(&run.events) {
        equal(
            &format!("{} packets, last total and deltas", flow.id),
            flow.total.packets,
            flow.orig.packets + flow.resp.packets,
        );
        equal(
            &format!("{} bytes, last total and deltas", flow.id),
            flow.total.bytes,
            flow.orig.bytes + flow.resp.bytes,
        );
    }
    faults
}

/// The sum of an object's numbers.
fn sum(object: &Value) -> u64 {
    object.as_object().expect("an object").values().map(|v| v.as_u64().expect("a count")).sum()
}

#[test]
fn same_with_one_two_and_three_workers() {
    let Some(root) = oracles_or_skip("same_with_one_two_and_three_workers") else { return };
    let captures = all_captures(&root);
    let faults = sensor::in_parallel(&captures, |capture| {
        let mut faults = Vec::new();
        let mut first: Option<Vec<String>> = None;
        let mut most = 0;
        // The lcore that deals packets to many workers is none itself, so four make three.
        for lcores in 1..=4 {
            match sensor::run_with(capture, &["--lcores", &lcore_list(lcores)]) {
                Ok(run) => {
                    most = most.max(sensor::number(&run.summary, "workers"));
                    let lines = sorted_lines(&run.events);
                    let expected = first.get_or_insert_with(|| lines.clone());
                    if let Some(fault) = first_difference(expected, &lines) {
                        faults.push(format!("{lcores} lcores: {fault}"));
                    }
                }
                Err(error) => faults.push(format!("{lcores} lcores: {error}")),
            }
        }
        if most < 3 {
            faults.push(format!("never more than {most} workers"));
        }
        faults
    });
    report("same_with_one_two_and_three_workers", &root, &captures, faults);
}

/// As many lcores, each free to run on any CPU this process may use: the machine may have fewer.
fn lcore_list(lcores: usize) -> String {
    let status = std::fs::read_to_string("/proc/self/status").expect("the process's status");
    let cpus = status
        .lines()
        .find_map(|line| line.strip_prefix("Cpus_allowed_list:"))
        .expect("the CPUs of this process")
        .trim();
    let cpus = if cpus.contains(',') { format!("({cpus})") } else { cpus.to_owned() };
    (0..lcores).map(|lcore| format!("{lcore}@{cpus}")).collect::<Vec<_>>().join(",")
}

/// The events in an order that does not depend on when each was written.
fn sorted_lines(events: &[Value]) -> Vec<String> {
    let mut lines: Vec<String> = events.iter().map(Value::to_string).collect();
    lines.sort();
    lines
}

fn first_difference(expected: &[String], got: &[String]) -> Option<String> {
    if expected == got {
        return None;
    }
    let place = expected.iter().zip(got).position(|(e, g)| e != g);
    let place = place.unwrap_or_else(|| expected.len().min(got.len()));
    let line = |lines: &[String]| lines.get(place).map_or("nothing", String::as_str).to_owned();
    Some(format!(
        "{} events and {}; first difference\n  {}\n  {}",
        expected.len(),
        got.len(),
        line(expected),
        line(got)
    ))
}

/// Prints how many captures are right, fails with what is wrong in the others.
fn report(test: &str, root: &Path, captures: &[PathBuf], faults: Vec<Vec<String>>) {
    let wrong: Vec<String> = captures
        .iter()
        .zip(faults)
        .filter(|(_, faults)| !faults.is_empty())
        .map(|(capture, faults)| {
            let name = capture.strip_prefix(root).unwrap_or(capture).display();
            format!("{name}: {}", faults.join("; "))
        })
        .collect();
    println!("{test}: {} of {} captures", captures.len() - wrong.len(), captures.len());
    assert!(!captures.is_empty(), "no captures in {}", root.display());
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
