//! The journal of the real binary: killed, starved of space, on a bad disk, on an idle link.
//!
//! `MALAKO_KILLS` sets how often it is killed at full rate.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot run fails")]

mod common;
mod pair;

use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use common::packets::{Capture, tcp};
use common::{Run, command, home, home_plain, home_truth, malakocut, number, segments};
use malakocut::journal::block::{self, GapReason};
use malakocut::journal::pcap::{self, RecordHeader};
use pair::{Pair, run};
use serde_json::Value;

/// One at a time: they want the disk and the processor.
static ONE: Mutex<()> = Mutex::new(());

fn alone() -> std::sync::MutexGuard<'static, ()> {
    ONE.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// The packets of a segment, without headers; what follows the last whole one is left out.
fn packets(bytes: &[u8]) -> Vec<&[u8]> {
    let mut out = Vec::new();
    let mut at = pcap::FILE_HEADER;
    while let Some(header) = bytes.get(at..at + pcap::RECORD_HEADER) {
        let header = RecordHeader::decode(header.try_into().unwrap());
        assert!(header.is_plausible(), "at byte {at}");
        let start = at + pcap::RECORD_HEADER;
        let Some(data) = bytes.get(start..start + header.captured as usize) else { break };
        out.push(data);
        at = start + data.len();
    }
    out
}

/// How many packets tcpdump reads, and whether it was content with the file.
fn tcpdump(path: &Path) -> (u64, bool) {
    let out = Command::new("tcpdump").args(["--count", "-r", text(path)]).output().unwrap();
    let count = String::from_utf8_lossy(&out.stdout);
    (count.split(' ').next().unwrap().parse().unwrap_or(0), out.status.success())
}

/// The same of tshark.
fn tshark(path: &Path) -> (u64, bool) {
    let out =
        Command::new("tshark").args(["-r", text(path), "-T", "fields", "-e", "frame.len"]).output();
    let out = out.unwrap();
    (String::from_utf8_lossy(&out.stdout).lines().count() as u64, out.status.success())
}

/// Whether both tools are content with every file, and agree with us on the number of packets.
fn opens_everywhere(files: &[PathBuf]) -> u64 {
    let mut all = 0;
    for file in files {
        let ours = packets(&fs::read(file).unwrap()).len() as u64;
        assert_eq!(tcpdump(file), (ours, true), "tcpdump {}", file.display());
        assert_eq!(tshark(file), (ours, true), "tshark {}", file.display());
        all += ours;
    }
    all
}

/// Segment and offset of the last watermark in a log.
fn watermark(log: &str) -> Option<(u64, u64)> {
    let line = log.lines().rfind(|l| l.contains("journal watermark: segment "))?;
    let mut words = line.split("journal watermark: segment ").nth(1)?.split(' ');
    let segment = words.next()?.parse().ok()?;
    Some((segment, words.nth(1)?.parse().ok()?))
}

fn segment_of(data: &Path, wanted: u64) -> Option<PathBuf> {
    let prefix = format!("seg-{wanted:08}-");
    segments(data)
        .into_iter()
        .find(|p| p.file_name().unwrap().to_str().unwrap().starts_with(&prefix))
}

/// The sensor on a capture that repeats for ever, as fast as it can be read.
struct Endless {
    child: Child,
    log: PathBuf,
}

impl Endless {
    fn start(dir: &Path, data: &Path, args: &[&str], environment: &[(&str, &str)]) -> Self {
        let device = format!("net_pcap0,rx_pcap={},infinite_rx=1", text(&dir.join("home.pcap")));
        let log = dir.join("stderr");
        let child = command()
            .args(["--vdev", &device, "--data-dir", text(data), "--summary", "json"])
            .args(args)
            .env("MALAKOCUT_LOG", "info,malakocut::journal=debug")
            .envs(environment.iter().copied())
            .stdout(Stdio::piped())
            .stderr(fs::File::create(&log).unwrap())
            .spawn()
            .unwrap();
        Self { child, log }
    }

    fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap()
    }

    fn wait_for(&mut self, what: &str, seconds: u64) {
        let deadline = Instant::now() + Duration::from_secs(seconds);
        while !self.log().contains(what) {
            assert!(self.child.try_wait().unwrap().is_none(), "it ended: {}", self.log());
            assert!(Instant::now() < deadline, "no {what:?} in: {}", self.log());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn kill(mut self) -> String {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        self.log()
    }

    fn finish(self) -> (Value, String) {
        assert!(run("kill", &["-INT", &self.child.id().to_string()]));
        let log = self.log;
        let summary = Run::of(self.child.wait_with_output().unwrap()).ok().summary();
        (summary, fs::read_to_string(log).unwrap())
    }
}

/// Nothing of what was received is unaccounted for.
fn assert_accounted(summary: &Value) {
    let drops = &summary["drops"];
    let journal = &summary["journal"];
    let left = ["journal_overload", "journal_no_space"].map(|k| number(drops, k));
    let kept = number(journal, "packets");
    assert_eq!(number(summary, "packets"), kept + left.iter().sum::<u64>(), "{summary}");
}

/// Repairs what an earlier run left, by a short one that keeps every packet of the home capture.
fn repair(data: &Path) {
    let home = home();
    let args = ["--read", text(&home), "--journal", "on", "--pcap-filter", "", "--min-free", "0"];
    malakocut(&[&args[..], &["--data-dir", text(data)]].concat()).ok();
}

#[test]
fn a_kill_at_full_rate_loses_nothing_below_the_watermark() {
    let _one = alone();
    let kills = std::env::var("MALAKO_KILLS").ok().and_then(|v| v.parse().ok()).unwrap_or(14u64);
    let dir = tempfile::tempdir().unwrap();
    let plain = fs::read(home_plain(dir.path())).unwrap();
    let known: HashSet<&[u8]> = packets(&plain).into_iter().collect();
    let (mut promised, mut torn, mut opened) = (0, 0, 0);
    for round in 0..kills {
        let data = dir.path().join(format!("data{}", round / 4));
        let _ = fs::remove_dir_all(dir.path().join(format!("data{}", (round / 4).wrapping_sub(1))));
        let args = ["--rotate-size", "6MB", "--pcap-filter", ""];
        let mut sensor = Endless::start(dir.path(), &data, &args, &[]);
        sensor.wait_for("journal watermark", 60);
        std::thread::sleep(Duration::from_millis(37 * (round % 9)));
        let log = sensor.kill();
        let (segment, offset) = watermark(&log).unwrap();
        let file = segment_of(&data, segment).expect("the promised file");
        let before = fs::read(&file).unwrap();
        assert!(before.len() as u64 >= offset, "{} bytes of {offset}", before.len());
        // Any tool reads it as it is, all but a last packet that may be cut.
        let whole = packets(&before).len() as u64;
        assert_eq!(tcpdump(&file).0, whole);
        if round % 4 == 0 {
            assert_eq!(tshark(&file).0, whole);
        }
        repair(&data);
        let after = fs::read(&file).unwrap();
        assert!(after.len() as u64 >= offset && before.starts_with(&after), "{}", file.display());
        assert!(file.with_extension("idx").exists());
        assert!(packets(&after).iter().all(|p| known.contains(p)), "a packet nobody sent");
        promised += offset;
        for file in segments(&data) {
            torn += u64::from(file.with_extension("torn").exists());
        }
        opened += match round % 4 {
            0 => opens_everywhere(&[file]),
            _ => tcpdump(&file).0,
        };
    }
    println!(
        "{kills} kills at full rate: {promised} bytes promised and there, {opened} packets opened by \
         tcpdump and tshark, {torn} tails put aside"
    );
}

#[test]
fn an_idle_link_shows_its_last_packet_within_a_second_and_survives_a_kill() {
    let _one = alone();
    let Some(pair) = Pair::new() else { return };
    let dir = tempfile::tempdir().unwrap();
    let capture = home_plain(dir.path());
    let sent = number(&home_truth(), "packets");
    let mut took = Vec::new();
    let rounds = 6;
    for round in 0..rounds {
        let data = dir.path().join(format!("data{round}"));
        fs::create_dir(&data).unwrap();
        let device = "net_af_packet0,iface=mirror,blocksz=1048576,framesz=2048,framecnt=16384";
        let mut child = pair.start(&data, &["--vdev", device, "--pcap-filter", ""]);
        pair.replay(&capture, 1);
        let begun = Instant::now();
        // Of one that is idle for good, and of one that has just become so.
        let mut seen = 0;
        while seen < sent && begun.elapsed() < Duration::from_secs(60) {
            std::thread::sleep(Duration::from_millis(20));
            let files = segments(&data);
            seen = files.iter().map(|f| packets(&fs::read(f).unwrap()).len() as u64).sum();
        }
        took.push(begun.elapsed());
        let files = segments(&data);
        assert_eq!(tcpdump(&files[0]), (sent, true), "while it runs");
        if round % 2 == 1 {
            std::thread::sleep(Duration::from_millis(300));
        }
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(opens_everywhere(&files), sent, "after the kill");
        repair(&data);
        assert_eq!(tcpdump(&files[0]), (sent, true), "after the repair");
        assert!(!files[0].with_extension("torn").exists());
    }
    took.sort_unstable();
    println!("{rounds} kills of an idle sensor; the last packet showed after {took:.2?}");
    // The machine may be busy with something else now and then.
    assert!(took[0] < Duration::from_secs(1) && took[rounds / 2] < Duration::from_millis(2500));
}

/// A small file system of its own, unmounted when dropped.
struct Mount(PathBuf);

impl Mount {
    fn new(dir: &Path, megabytes: u64) -> Option<Self> {
        let (at, image) = (dir.join("mount"), dir.join("image"));
        fs::create_dir_all(&at).unwrap();
        if !common::is_root() {
            println!("skipped: a file system of its own needs root");
            return None;
        }
        fs::File::create(&image).unwrap().set_len(megabytes << 20).unwrap();
        let quiet = |program: &str, args: &[&str]| {
            let mut command = Command::new(program);
            command.args(args).stdout(Stdio::null()).stderr(Stdio::null());
            command.env("PATH", "/usr/sbin:/sbin:/usr/bin:/bin").status().is_ok_and(|s| s.success())
        };
        let size = format!("size={megabytes}m");
        if quiet("mkfs.ext4", &["-q", "-F", "-m", "0", text(&image)])
            && quiet("mount", &["-o", "loop", text(&image), text(&at)])
        {
            println!("on ext4 of {megabytes} MiB");
        } else if quiet("mount", &["-t", "tmpfs", "-o", &size, "tmpfs", text(&at)]) {
            println!("on tmpfs of {megabytes} MiB: no loop device here");
        } else {
            println!("skipped: nothing can be mounted here");
            return None;
        }
        Some(Self(at))
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        assert!(run("umount", &["-l", text(&self.0)]));
    }
}

#[test]
fn a_full_disk_is_said_counted_and_left_as_soon_as_there_is_space() {
    let _one = alone();
    let dir = tempfile::tempdir().unwrap();
    home_plain(dir.path());
    let Some(mount) = Mount::new(dir.path(), 96) else { return };
    let ballast = mount.0.join("ballast");
    fs::write(&ballast, vec![1; 40 << 20]).unwrap();
    let args = ["--rotate-size", "8MB", "--min-free", "0", "--pcap-filter", ""];
    let data = mount.0.join("data");
    let mut sensor = Endless::start(dir.path(), &data, &args, &[]);
    sensor.wait_for("what is staged is kept", 60);
    // Not before the staging buffers are full too.
    sensor.wait_for("journal_no_space", 60);
    fs::remove_file(&ballast).unwrap();
    sensor.wait_for("it writes again", 60);
    let (summary, log) = sensor.finish();
    assert_accounted(&summary);
    assert!(number(&summary["drops"], "journal_no_space") > 0, "{summary}");
    let said = log.matches("what is staged is kept").count();
    assert!(said <= 4, "said {said} times: {log}");
    let kept = number(&summary["journal"], "packets");
    // The disk is full again; what it holds is whole.
    repair(&data);
    let ours: u64 = segments(&data).iter().map(|f| tcpdump(f).0).sum();
    println!(
        "{kept} packets kept, {} refused, said {said} times",
        summary["drops"]["journal_no_space"]
    );
    assert!(ours >= kept, "{ours} of {kept}");
}

#[test]
fn retention_keeps_a_small_disk_from_filling_at_full_rate() {
    let _one = alone();
    let dir = tempfile::tempdir().unwrap();
    home_plain(dir.path());
    let Some(mount) = Mount::new(dir.path(), 400) else { return };
    let data = mount.0.join("data");
    let args = ["--rotate-size", "8MB", "--min-free", "40", "--pcap-filter", ""];
    let mut sensor = Endless::start(dir.path(), &data, &args, &[]);
    sensor.wait_for("is deleted: less than --min-free is free", 120);
    std::thread::sleep(Duration::from_secs(1));
    let (summary, log) = sensor.finish();
    assert_accounted(&summary);
    let kept = &summary["journal"]["kept"];
    let written = number(&summary["journal"], "bytes");
    println!("{} MB written to 400 MiB, kept {kept}", written / 1_000_000);
    assert!(number(kept, "deleted") > 0 && number(kept, "bytes") > 0, "{summary}\n{log}");
    let mut oldest = segments(&data);
    oldest.truncate(2);
    opens_everywhere(&oldest);
}

/// The library that spoils what the disk is asked for; `None` where there is no C compiler.
fn shim(dir: &Path) -> Option<String> {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/shim/faults.c");
    let library = dir.join("faults.so");
    if !run("cc", &["-shared", "-fPIC", "-O1", "-o", text(&library), text(&source), "-ldl"]) {
        println!("skipped: no C compiler");
        return None;
    }
    Some(text(&library).to_owned())
}

#[test]
fn a_disk_that_refuses_writes_syncs_or_new_files_is_left_and_taken_up_again() {
    let _one = alone();
    let dir = tempfile::tempdir().unwrap();
    home_plain(dir.path());
    let Some(library) = shim(dir.path()) else { return };
    let faults = dir.path().join("faults");
    for fault in ["eio", "sync", "rofs"] {
        fs::write(&faults, "fine").unwrap();
        let data = dir.path().join(fault);
        let environment = [("LD_PRELOAD", library.as_str()), ("TEST_FAULTS", text(&faults))];
        let args = ["--rotate-size", "32MB", "--pcap-filter", ""];
        let mut sensor = Endless::start(dir.path(), &data, &args, &environment);
        sensor.wait_for("journal watermark", 60);
        fs::write(&faults, fault).unwrap();
        sensor.wait_for("what is staged is kept", 60);
        std::thread::sleep(Duration::from_millis(700));
        fs::write(&faults, "fine").unwrap();
        sensor.wait_for("it writes again", 60);
        std::thread::sleep(Duration::from_millis(300));
        let (summary, log) = sensor.finish();
        assert_accounted(&summary);
        assert!(log.contains("the journal writes by threads"), "{log}");
        let kept = number(&summary["journal"], "packets");
        repair(&data);
        let found: u64 = segments(&data).iter().map(|f| tcpdump(f).0).sum();
        // Beside what was kept there is the capture of the repairing run.
        let expected = kept + number(&home_truth(), "packets");
        println!("{fault}: {kept} packets kept, {} not", number(&summary, "packets") - kept);
        assert_eq!(found, expected, "{fault}: {summary}");
    }
}

#[test]
fn a_slow_disk_costs_the_journal_packets_and_capture_none() {
    let _one = alone();
    let dir = tempfile::tempdir().unwrap();
    home_plain(dir.path());
    let Some(library) = shim(dir.path()) else { return };
    let (faults, data) = (dir.path().join("faults"), dir.path().join("data"));
    fs::write(&faults, "slow").unwrap();
    let environment = [("LD_PRELOAD", library.as_str()), ("TEST_FAULTS", text(&faults))];
    let mut sensor = Endless::start(dir.path(), &data, &["--pcap-filter", ""], &environment);
    sensor.wait_for("disk_slow", 60);
    std::thread::sleep(Duration::from_millis(500));
    let (summary, _) = sensor.finish();
    assert_accounted(&summary);
    let drops = &summary["drops"];
    let lost = number(drops, "journal_overload");
    let behind = number(&summary["journal"], "disk_behind");
    assert!(0 < behind && behind <= lost, "{summary}");
    for reason in ["nic_missed", "no_buffer", "unplaced", "worker_ring_full"] {
        assert_eq!(number(drops, reason), 0, "{summary}");
    }
    // The gaps say as many.
    let mut told = 0;
    for file in segments(&data) {
        let name = file.file_name().unwrap().to_str().unwrap();
        let (number, _) = malakocut::journal::catalogue::parse_name(name).unwrap();
        let blocks = block::read(&fs::read(file.with_extension("blk")).unwrap(), number);
        for gap in blocks.gaps {
            assert!(gap.reason == GapReason::Overload && gap.from_ns <= gap.to_ns);
            told += u64::from(gap.packets);
        }
    }
    println!("{lost} packets not journaled, {told} of them in gaps");
    assert_eq!(told, lost);
}

#[test]
fn events_wait_for_a_slow_disk_to_say_where_their_flows_begin() {
    let _one = alone();
    let dir = tempfile::tempdir().unwrap();
    let Some(library) = shim(dir.path()) else { return };
    let (faults, data) = (dir.path().join("faults"), dir.path().join("data"));
    fs::write(&faults, "slow").unwrap();
    // Many more flows than the ring of events holds, and one lcore for everything.
    let flows = 30_000u32;
    let mut capture = Capture::default();
    let mut frame = tcp("10.0.0.5", 40_000, "198.18.0.0", 23, b"");
    for n in 0..flows {
        frame[30..34].copy_from_slice(&(0xc612_0000 + n).to_be_bytes());
        capture.add(u64::from(n) / 100, &frame);
    }
    let capture = capture.write(dir.path(), "flows.pcap");
    let log = dir.path().join("flows.json");
    let out = command()
        .args(["--read", text(&capture), "--journal", "on", "--data-dir", text(&data)])
        .args(["--rotate-size", "600kB", "--flow-log", text(&log), "--summary", "json"])
        .env("LD_PRELOAD", library)
        .env("TEST_FAULTS", &faults)
        .output();
    Run::of(out.unwrap()).ok();
    let events = common::events(&log);
    assert_eq!(events.len(), flows as usize);
    assert_eq!(common::places_are_right(&data, &events), flows as usize);
}

#[test]
fn two_processes_do_not_write_to_one_journal() {
    let _one = alone();
    let dir = tempfile::tempdir().unwrap();
    home_plain(dir.path());
    let data = dir.path().join("data");
    let mut first = Endless::start(dir.path(), &data, &["--rotate-size", "8MB"], &[]);
    first.wait_for("receive queue", 60);
    let second =
        malakocut(&["--read", text(&home()), "--journal", "on", "--data-dir", text(&data)]);
    assert_eq!(second.code, Some(2), "{}", second.stderr);
    assert!(second.stderr.contains("another malakocut writes to it"), "{}", second.stderr);
    first.finish();
}
