//! The spool when the power goes: ext4 on a loop device, a process that pushes and acknowledges, and
//! copies of the device as it is at random moments. Whatever was acknowledged is in every copy.

#![allow(clippy::unwrap_used, reason = "a test that cannot run fails")]

use std::collections::VecDeque;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use malakocut::spool::{Cursor, Limits, Spool};

const LIMITS: Limits = Limits { max_bytes: 1 << 30, reserve: 0 };
/// Where the writing process finds its disk.
const DISK: &str = "MALAKO_POWER_DISK";

fn line(seq: u64) -> Vec<u8> {
    format!("{{\"n\":{seq},\"x\":\"{}\"}}", "x".repeat(400)).into_bytes()
}

/// Not a test: the process that is cut off, started by the one below. Says what is safe.
#[test]
#[ignore = "started by another test"]
fn writer() {
    let Some(disk) = std::env::var_os(DISK) else { return };
    let spool = Spool::open(&PathBuf::from(disk).join("buffer"), LIMITS).unwrap().0;
    let mut cursor = spool.cursor("a").unwrap();
    let mut out = std::io::stdout();
    loop {
        let next = spool.end();
        let lines: Vec<Vec<u8>> = (next..next + 50).map(line).collect();
        spool.push(lines.iter().map(|l| (1, &l[..]))).unwrap();
        writeln!(out, "safe {} {}", cursor.next, spool.end()).unwrap();
        if spool.end() - cursor.next > 2000 {
            // What is acknowledged from here on may or may not be gone already.
            let to = cursor.next + 1000;
            writeln!(out, "safe {to} {}", spool.end()).unwrap();
            cursor = Cursor { next: to, parts: VecDeque::new() };
            spool.keep("a", &cursor, &[], &[]).unwrap();
        }
    }
}

fn run(program: &str, args: &[&str]) -> Option<String> {
    let output = Command::new(program).args(args).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// A file system in a file.
struct Disk {
    device: String,
    at: tempfile::TempDir,
}

impl Disk {
    fn mount(image: &Path) -> Option<Self> {
        let device = run("losetup", &["--find", "--show", image.to_str().unwrap()])?;
        let this = Self { device, at: tempfile::tempdir().unwrap() };
        run("mount", &[&this.device, this.at.path().to_str().unwrap()])?;
        Some(this)
    }

    /// What was written to the device so far, and what is under way.
    fn activity(&self) -> (String, String) {
        let read = |name: &str| {
            let name = format!("/sys/block/{}/{name}", self.device.trim_start_matches("/dev/"));
            fs::read_to_string(name).unwrap()
        };
        (read("stat"), read("inflight"))
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        run("umount", &[self.at.path().to_str().unwrap()]);
        run("losetup", &["--detach", &self.device]);
    }
}

/// The process that writes; dropped, it is gone, and the disk can be taken away.
struct Writer(Child);

impl Writer {
    fn signal(&self, name: &str) {
        assert!(run("kill", &[name, &self.0.id().to_string()]).is_some());
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Copies the device's file as it is at one moment: again, if something was written meanwhile.
fn cut(disk: &Disk, image: &Path, copy: &Path) {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        let before = disk.activity();
        fs::copy(image, copy).unwrap();
        let idle = before.1.split_whitespace().all(|n| n == "0");
        if idle && before == disk.activity() {
            return;
        }
        assert!(Instant::now() < deadline, "the disk is never quiet: {before:?}");
    }
}

#[test]
fn a_power_cut_at_any_moment_loses_nothing_that_was_acknowledged() {
    let dir = tempfile::tempdir().unwrap();
    let image = dir.path().join("disk");
    fs::File::create(&image).unwrap().set_len(96 << 20).unwrap();
    let made = run("mkfs.ext4", &["-q", "-F", image.to_str().unwrap()]);
    let Some(disk) = made.and_then(|_| Disk::mount(&image)) else {
        println!("skipped: no file system can be made and mounted on a loop device");
        return;
    };
    let cuts: u64 = std::env::var("MALAKO_CUTS").ok().and_then(|n| n.parse().ok()).unwrap_or(8);
    let (acked, safe) = (Arc::new(AtomicU64::new(1)), Arc::new(AtomicU64::new(1)));
    let child = Command::new(std::env::current_exe().unwrap())
        .args(["writer", "--exact", "--ignored", "--nocapture"])
        .env(DISK, disk.at.path())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut writer = Writer(child);
    let said = BufReader::new(writer.0.stdout.take().unwrap());
    let heard = (Arc::clone(&acked), Arc::clone(&safe));
    let listener = std::thread::spawn(move || {
        for line in said.lines().map_while(Result::ok) {
            let mut words = line.split(' ');
            if words.next() == Some("safe") {
                let mut number = || words.next().unwrap().parse::<u64>().unwrap();
                heard.0.store(number(), Ordering::SeqCst);
                heard.1.store(number(), Ordering::SeqCst);
            }
        }
    });
    let (mut events, mut least) = (0, 1);
    for round in 0..cuts {
        // At another moment of its work each time, and after some of it.
        let deadline = Instant::now() + Duration::from_secs(120);
        while safe.load(Ordering::SeqCst) < least {
            let writes = Instant::now() < deadline && writer.0.try_wait().unwrap().is_none();
            assert!(writes, "it does not write any more");
            std::thread::sleep(Duration::from_millis(1));
        }
        std::thread::sleep(Duration::from_micros(round * 7919 % 13_000));
        let end = safe.load(Ordering::SeqCst);
        writer.signal("-STOP");
        let copy = dir.path().join("copy");
        cut(&disk, &image, &copy);
        // Whatever it has said until now, it may have acknowledged.
        std::thread::sleep(Duration::from_millis(50));
        let from = acked.load(Ordering::SeqCst);
        least = safe.load(Ordering::SeqCst) + 300;
        writer.signal("-CONT");
        let after = Disk::mount(&copy).unwrap();
        let buffer = after.at.path().join("buffer");
        let (spool, opened) = Spool::open(&buffer, LIMITS).unwrap();
        let found = spool.peek(from, end - 1, usize::MAX).unwrap();
        let numbers: Vec<u64> = found.iter().map(|e| e.id.seq).collect();
        assert_eq!(numbers, (from..end).collect::<Vec<_>>(), "round {round}: {opened:?}");
        assert!(found.iter().all(|e| e.line == line(e.id.seq)), "round {round}");
        events += numbers.len();
        // It goes on, under numbers that were not used.
        assert!(spool.push([(1, &b"{}"[..])].into_iter()).unwrap() >= end);
        drop(spool);
    }
    drop(writer);
    listener.join().unwrap();
    println!("{cuts} cuts: {events} acknowledged events looked for, all found");
    assert!(events > 0);
}
