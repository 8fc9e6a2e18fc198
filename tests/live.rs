//! A real interface: a veth pair in a network namespace that the test makes itself, tcpreplay on
//! one end, the AF_PACKET driver on the other.

#![allow(clippy::unwrap_used, reason = "a test that cannot run fails")]

mod common;
mod pair;

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use common::{events, home_plain, home_truth, number, total};
use pair::{Pair, interrupt, run, wait_until_said};
use serde_json::Value;

/// One at a time: two senders on a small machine would measure each other.
static ONE: Mutex<()> = Mutex::new(());

/// Packets that never reached us, of those sent: `packets` and these are all of them. What is dropped
/// later, on the way to a worker or the journal, is among `packets`.
fn lost_before_us(summary: &Value) -> u64 {
    let before_us = ["kernel", "left_in_ring", "nic_missed", "nic_errors", "no_buffer"];
    before_us.iter().map(|k| number(&summary["drops"], k)).sum()
}

/// Packets that no flow has got.
fn lost_to_flows(summary: &Value) -> u64 {
    let after = ["worker_ring_full", "unplaced"];
    lost_before_us(summary) + after.iter().map(|k| number(&summary["drops"], k)).sum::<u64>()
}

#[test]
fn every_packet_is_accounted_for_and_whole() {
    let _one = ONE.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let Some(pair) = Pair::new() else { return };
    let truth = home_truth();
    for (lcores, loops) in [("0@0", 3), ("0@0,1@0", 3), ("0@0,1@0,2@0", 3)] {
        let dir = tempfile::tempdir().unwrap();
        let capture = home_plain(dir.path());
        let log = dir.path().join("flows");
        let args =
            ["--interface", "mirror", "--lcores", lcores, "--flow-log", log.to_str().unwrap()];
        let child = pair.start(dir.path(), &[&args[..], &["--pcap-filter", ""]].concat());
        let sent = pair.replay(&capture, loops);
        let summary = interrupt(child).summary();
        let drops = &summary["drops"];
        let lost = lost_before_us(&summary);
        assert_eq!(number(&summary, "packets") + lost, sent, "{lcores}: {summary}");
        println!("{lcores}: {sent} sent, {lost} lost before us, drops {drops}");
        let read =
            number(&summary, "decoded") + total(&summary["not_ip"]) + total(&summary["malformed"]);
        assert_eq!(number(&summary, "packets"), read + number(drops, "worker_ring_full"));
        let journaled = number(&summary["journal"], "packets");
        assert_eq!(
            read,
            journaled + number(drops, "journal_overload") + number(drops, "journal_no_space")
        );
        let in_flows: u64 = events(&log).iter().map(|e| number(e, "packets")).sum();
        assert_eq!(in_flows + number(drops, "unplaced"), number(&summary, "decoded"));
        if sent == u64::from(loops) * number(&truth, "packets") && lost_to_flows(&summary) == 0 {
            // Fragments and VLAN tags as they were on the wire, not merged, cut or stripped.
            assert_eq!(number(&summary, "bytes"), u64::from(loops) * number(&truth, "bytes"));
            assert_eq!(number(&summary, "truncated"), 0);
            assert!(events(&log).iter().any(|e| e["vlan"] == serde_json::json!([20])));
        }
    }
}

#[test]
fn several_queue_pairs_are_all_read_and_flows_stay_together() {
    let _one = ONE.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let Some(pair) = Pair::new() else { return };
    let dir = tempfile::tempdir().unwrap();
    let capture = home_plain(dir.path());
    let log = dir.path().join("flows");
    // Each ring takes all of it and a third more: from one that is nearly full the kernel's fanout
    // goes over to the other, and then order is lost, not packets.
    let device = "net_af_packet0,iface=mirror,qpairs=2,blocksz=1048576,framesz=2048,framecnt=20480";
    let args = ["--vdev", device, "--lcores", "0@0,1@0,2@0", "--flow-log", log.to_str().unwrap()];
    let child = pair.start(dir.path(), &args);
    let sent = pair.replay(&capture, 1);
    let summary = interrupt(child).summary();
    let (packets, lost) = (number(&summary, "packets"), lost_before_us(&summary));
    assert_eq!(packets + lost, sent, "{summary}");
    if sent == number(&home_truth(), "packets") && lost_to_flows(&summary) == 0 {
        // At top speed nothing idles out: the flows of the capture, no half of one.
        assert_eq!(number(&summary, "flows"), number(&home_truth(), "flows"), "{summary}");
    }
}

#[test]
fn what_the_kernel_drops_is_counted_though_the_driver_never_says() {
    let _one = ONE.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let Some(pair) = Pair::new() else { return };
    let dir = tempfile::tempdir().unwrap();
    let capture = home_plain(dir.path());
    // A ring of 512 frames, and a sensor that stands still while 13,183 come.
    let device = "net_af_packet0,iface=mirror,blocksz=4096,framesz=2048,framecnt=512";
    let child = pair.start(dir.path(), &["--vdev", device, "--journal", "off"]);
    assert!(run("kill", &["-STOP", &child.id().to_string()]));
    let sent = pair.replay(&capture, 1);
    assert!(run("kill", &["-CONT", &child.id().to_string()]));
    wait_until_said(dir.path(), "kernel ");
    let summary = interrupt(child).summary();
    let dropped = number(&summary["drops"], "kernel");
    assert!(dropped > 10_000, "{summary}");
    assert_eq!(number(&summary, "packets") + dropped, sent);
    let log = fs::read_to_string(dir.path().join("stderr")).unwrap();
    assert!(log.contains(&format!("kernel {dropped}")), "said while it ran: {log}");
}

#[test]
fn a_frame_larger_than_the_ring_is_counted_as_truncated() {
    let _one = ONE.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let Some(pair) = Pair::new() else { return };
    let dir = tempfile::tempdir().unwrap();
    for end in ["sender", "mirror"] {
        pair.output("ip", &["link", "set", end, "mtu", "9000"]);
    }
    // UDP of 5,000 bytes payload, 10.0.0.1:7 to 10.0.0.2:7.
    let mut frame = [2u8, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 8, 0, 0x45, 0].to_vec();
    frame.extend(5028u16.to_be_bytes());
    frame.extend([0, 1, 0, 0, 64, 17, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2, 0, 7, 0, 7]);
    frame.extend(5008u16.to_be_bytes());
    frame.extend([0; 5002]);
    let word = |n: u32| n.to_le_bytes();
    let header = [0xa1b2_c3d4, 0x0004_0002, 0, 0, 65535, 1].map(word).concat();
    let len = frame.len() as u32;
    let capture = dir.path().join("jumbo.pcap");
    fs::write(&capture, [header, [1, 0, len, len].map(word).concat(), frame].concat()).unwrap();
    for (device, is_cut) in [
        ("net_af_packet0,iface=mirror", true),
        ("net_af_packet0,iface=mirror,blocksz=1048576,framesz=16384,framecnt=1024", false),
    ] {
        let child = pair.start(dir.path(), &["--vdev", device]);
        let sent = pair.replay(&capture, 10);
        let summary = interrupt(child).summary();
        let packets = number(&summary, "packets");
        assert!(packets > 0, "{device}: none of {sent}: {summary}");
        assert_eq!(packets + lost_before_us(&summary), sent, "{device}: {summary}");
        assert_eq!(number(&summary, "truncated"), if is_cut { packets } else { 0 }, "{summary}");
        // Its length is known all the same, from the IP header.
        assert_eq!(number(&summary, "bytes"), packets * u64::from(len), "{summary}");
    }
}

#[test]
fn the_interface_is_put_back_as_it_was() {
    let _one = ONE.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let Some(pair) = Pair::new() else { return };
    let dir = tempfile::tempdir().unwrap();
    pair.output("ip", &["link", "set", "mirror", "down"]);
    pair.output("ethtool", &["-K", "mirror", "gro", "on"]);
    let state = || {
        let link = pair.output("ip", &["-d", "-o", "link", "show", "mirror"]);
        let flags = link.split(['<', '>']).nth(1).unwrap().replace(",LOWER_UP", "");
        let promiscuity = link.split("promiscuity ").nth(1).unwrap().chars().next().unwrap();
        (flags.contains(",UP"), promiscuity, pair.output("ethtool", &["-k", "mirror"]))
    };
    let before = state();
    let child = pair.start(dir.path(), &["--interface", "mirror", "--journal", "off"]);
    let during = state();
    assert!(
        during.0 && during.1 != '0' && during.2.contains("generic-receive-offload: off"),
        "{during:?}"
    );
    interrupt(child);
    assert_eq!(before, state());
    // Even a killed sensor does not leave the interface promiscuous.
    let mut child = pair.start(dir.path(), &["--interface", "mirror", "--journal", "off"]);
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(state().1, '0');
}

#[test]
fn without_a_source_it_is_enp3s0() {
    let _one = ONE.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let Some(pair) = Pair::new() else { return };
    let dir = tempfile::tempdir().unwrap();
    let capture = home_plain(dir.path());
    pair.output("ip", &["link", "set", "mirror", "down"]);
    pair.output("ip", &["link", "set", "mirror", "name", "enp3s0"]);
    let child = pair.start(dir.path(), &["--lcores", "0@0,1@0"]);
    let sent = pair.replay(&capture, 1);
    let summary = interrupt(child).summary();
    assert_eq!(number(&summary, "packets") + lost_before_us(&summary), sent, "{summary}");
}

/// What an idle sensor with these options uses of a CPU, and what its busiest thread would use if
/// nothing else ran, in per cent over two seconds.
fn idle_percent(pair: &Pair, options: &[&str]) -> (f64, f64) {
    let dir = tempfile::tempdir().unwrap();
    let args = [&["--interface", "mirror", "--journal", "off"], options].concat();
    let child = pair.start(dir.path(), &args);
    // Nanoseconds on a CPU, and in wait for one, by thread.
    let times = || -> BTreeMap<PathBuf, (u64, u64)> {
        let threads = fs::read_dir(format!("/proc/{}/task", child.id())).unwrap();
        let read = |thread: PathBuf| {
            let text = fs::read_to_string(thread.join("schedstat")).ok()?;
            let mut fields = text.split(' ').map(|f| f.parse::<u64>().unwrap());
            Some((thread, (fields.next()?, fields.next()?)))
        };
        threads.filter_map(|t| read(t.unwrap().path())).collect()
    };
    std::thread::sleep(Duration::from_secs(1));
    let (begun, before) = (Instant::now(), times());
    std::thread::sleep(Duration::from_secs(2));
    let (after, passed) = (times(), begun.elapsed().as_nanos() as f64 / 100.0);
    interrupt(child);
    let (mut used, mut wanted) = (0, 0);
    for (thread, (on, waited)) in after {
        let (on_before, waited_before) = before.get(&thread).copied().unwrap_or_default();
        used += on - on_before;
        wanted = wanted.max(on - on_before + waited - waited_before);
    }
    let (used, wanted) = (used as f64 / passed, wanted as f64 / passed);
    println!("idle {options:?}: {used:.1} % of a CPU, would take {wanted:.1} %");
    (used, wanted)
}

#[test]
fn an_idle_sensor_leaves_the_cpu_alone_unless_it_is_to_poll_on() {
    let _one = ONE.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let Some(pair) = Pair::new() else { return };
    // The figures themselves are a benchmark's.
    let (adaptive, _) = idle_percent(&pair, &[]);
    let (_, busy) = idle_percent(&pair, &["--idle", "busy"]);
    assert!(adaptive < 25.0 && busy > 75.0, "{adaptive} {busy}");
}
