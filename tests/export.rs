//! The export of the real binary: to a strict receiver with every fault, over kills, and to a real
//! NATS server and a Kafka cluster.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    unreachable_pub,
    reason = "a test that cannot run fails"
)]

mod common;
mod receiver;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use common::{Run, command, number};
use malakocut::spool::{Limits, Spool};
use receiver::{POISON, Receiver};

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// A capture of `flows` UDP packets, each a flow of its own; one of them from port [`POISON`].
fn capture(dir: &Path, flows: u32) -> PathBuf {
    let mut out = Vec::new();
    out.extend(0xa1b2_c3d4_u32.to_le_bytes());
    out.extend([2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    out.extend(65_535_u32.to_le_bytes());
    out.extend(1_u32.to_le_bytes());
    for n in 0..flows {
        let source = [10, 0, (n >> 8) as u8, n as u8];
        let port = if n == flows / 2 { POISON as u16 } else { 7000 };
        let builder = etherparse::PacketBuilder::ethernet2([2; 6], [4; 6])
            .ipv4(source, [192, 0, 2, 1], 64)
            .udp(port, 9);
        let mut frame = Vec::new();
        builder.write(&mut frame, b"x").unwrap();
        out.extend((1_700_000_000 + n / 1000).to_le_bytes());
        out.extend((n % 1000 * 1000).to_le_bytes());
        out.extend((frame.len() as u32).to_le_bytes());
        out.extend((frame.len() as u32).to_le_bytes());
        out.extend(frame);
    }
    let path = dir.join(format!("{flows}.pcap"));
    fs::write(&path, out).unwrap();
    path
}

const DELIVERY: &str = "timeout = 0.6\nretry_first = 0.002\nretry_longest = 0.02\nhold = 0.02\n\
                        linger = 0.05\n";

fn secops(dir: &Path, port: u16, api: &str, in_flight: usize) -> PathBuf {
    let path = match api {
        "chronicle" => "v1/projects/p/locations/us/instances/c-1/logTypes/LT/logs:import",
        "udm" => "v1/projects/p/locations/us/instances/c-1/events:import",
        _ => "v2/unstructuredlogentries:batchCreate",
    };
    let file = dir.join(format!("{api}{in_flight}.toml"));
    let toml = format!(
        "exporter = [\"secops\"]\n[export.secops]\napi = \"{api}\"\ncustomer_id = \"c-1\"\n\
         log_type = \"LT\"\nurl = \"http://127.0.0.1:{port}/{path}\"\n\
         [export.secops.delivery]\nin_flight = {in_flight}\n{DELIVERY}"
    );
    fs::write(&file, toml).unwrap();
    file
}

fn start(config: &Path, capture: &Path, data: &Path, key: Option<&Path>) -> Child {
    let mut command = command();
    for name in ["HTTPS_PROXY", "https_proxy", "CHRONICLE_INGESTION_URL"] {
        command.env_remove(name);
    }
    if let Some(key) = key {
        command.env("GOOGLE_APPLICATION_CREDENTIALS", key);
    }
    command
        .args(["--config", text(config), "--read", text(capture), "--data-dir", text(data)])
        .args(["--summary", "json"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

fn finish(child: Child) -> Run {
    Run::of(child.wait_with_output().unwrap())
}

fn spool(data: &Path) -> Spool {
    Spool::open(&data.join("buffer"), Limits { max_bytes: 1 << 40, reserve: 0 }).unwrap().0
}

/// Fills the spool with a capture's events while nobody takes them, and ends the sensor by a signal.
fn fill(config: &Path, capture: &Path, data: &Path, key: Option<&Path>, events: u64) {
    let child = start(config, capture, data, key);
    let deadline = Instant::now() + Duration::from_secs(180);
    let status = || {
        malakocut::export::ask(&data.join("buffer"), &malakocut::export::Request::Status)
            .ok()
            .and_then(|v| v["spool"]["events"].as_u64())
    };
    while status() != Some(events) {
        assert!(Instant::now() < deadline, "{:?}", status());
        std::thread::sleep(Duration::from_millis(20));
    }
    signal(&child, "-TERM");
    let run = finish(child);
    assert!(run.stderr.contains("events wait in the spool"), "{}", run.stderr);
}

fn signal(child: &Child, signal: &str) {
    let pid = child.id().to_string();
    assert!(std::process::Command::new("kill").args([signal, &pid]).status().unwrap().success());
}

#[test]
fn ten_thousand_events_through_storms_and_kills() {
    let dir = tempfile::tempdir().unwrap();
    let receiver = Receiver::start(dir.path());
    let data = dir.path().join("data");
    let all = capture(dir.path(), 10_000);
    let nothing = capture(dir.path(), 0);
    let key = Some(receiver.key_file.as_path());
    // Nobody listens on port 1.
    fill(&secops(dir.path(), 1, "chronicle", 1), &all, &data, key, 10_000);
    *receiver.storm.lock().unwrap() = true;
    let config = secops(dir.path(), receiver.port, "chronicle", 1);
    let mut kills = 0;
    let begun = Instant::now();
    let last = loop {
        let mut child = start(&config, &nothing, &data, key);
        let until = Instant::now() + Duration::from_millis(300 + 137 * (kills % 9));
        let ended = loop {
            match child.try_wait().unwrap() {
                Some(_) => break true,
                None if Instant::now() > until && kills < 20 => break false,
                None => std::thread::sleep(Duration::from_millis(5)),
            }
            if begun.elapsed() > Duration::from_secs(45) {
                *receiver.storm.lock().unwrap() = false;
            }
        };
        if ended {
            break finish(child);
        }
        child.kill().unwrap();
        child.wait().unwrap();
        kills += 1;
    };
    let status = &last.summary()["export"]["exporters"][0];
    let seen = receiver.seen.lock().unwrap();
    println!(
        "{kills} kills, {} repeats, faults {:?}, {:.1} s",
        seen.repeats,
        seen.faults,
        begun.elapsed().as_secs_f64()
    );
    assert!(seen.wrong.is_empty(), "{:?}", &seen.wrong[..1]);
    assert_eq!(seen.events.len(), 9_999);
    let number_of = |id: &String| id.split('-').nth(1).unwrap().parse::<u64>().unwrap();
    assert!(seen.order.iter().map(number_of).is_sorted(), "order");
    let sources: std::collections::BTreeSet<String> =
        seen.events.values().map(|e| e["src_ip"].to_string()).collect();
    assert_eq!(sources.len(), 9_999);
    assert!(seen.repeats > 0 && kills > 3);
    assert_eq!((number(status, "waiting"), number(status, "dead")), (0, 1));
    drop(seen);
    let dead = spool(&data).dead("secops", 9).unwrap();
    assert!(dead.len() == 1 && dead[0].reason.contains("invalid entry"));
    assert!(String::from_utf8_lossy(&dead[0].entry.line).contains("\"src_port\":6666"));
}

#[test]
fn each_of_the_interfaces_is_spoken_and_the_run_ends_when_all_is_delivered() {
    let dir = tempfile::tempdir().unwrap();
    let all = capture(dir.path(), 1000);
    for api in ["chronicle", "legacy", "udm"] {
        let here = dir.path().join(api);
        fs::create_dir(&here).unwrap();
        let receiver = Receiver::start(&here);
        *receiver.storm.lock().unwrap() = true;
        let config = secops(dir.path(), receiver.port, api, 4);
        let run = finish(start(&config, &all, &here.join("data"), Some(&receiver.key_file))).ok();
        let status = &run.summary()["export"]["exporters"][0];
        assert_eq!((number(status, "delivered"), number(status, "dead")), (999, 1), "{api}");
        let seen = receiver.seen.lock().unwrap();
        assert!(seen.wrong.is_empty(), "{api}: {:?}", &seen.wrong[..1]);
        assert_eq!(seen.events.len(), 999, "{api}");
        assert!(!run.stderr.contains("PRIVATE") && !run.stderr.contains("token-0"));
    }
}

#[test]
fn many_events_end_to_end() {
    let dir = tempfile::tempdir().unwrap();
    let receiver = Receiver::start(dir.path());
    receiver.cured.store(true, std::sync::atomic::Ordering::Relaxed);
    let all = capture(dir.path(), 30_000);
    let config = secops(dir.path(), receiver.port, "chronicle", 4);
    let begun = Instant::now();
    let key = Some(receiver.key_file.as_path());
    let run = finish(start(&config, &all, &dir.path().join("data"), key)).ok();
    let seconds = begun.elapsed().as_secs_f64();
    let status = &run.summary()["export"]["exporters"][0];
    println!("30,000 events through spool and HTTP: {:.0} events/s", 30_000.0 / seconds);
    assert_eq!((number(status, "delivered"), number(status, "waiting")), (30_000, 0));
    assert_eq!(receiver.seen.lock().unwrap().events.len(), 30_000);
}

/// A sensor that goes on until its input, which is empty, is closed.
fn run_on(config: &Path, data: &Path, key: Option<&Path>, env: &[(&str, &str)]) -> Child {
    let mut command = command();
    command.env_remove("HTTPS_PROXY").env_remove("https_proxy").envs(env.iter().copied());
    if let Some(key) = key {
        command.env("GOOGLE_APPLICATION_CREDENTIALS", key);
    }
    let mut child = command
        .args(["--config", text(config), "--read", "-", "--data-dir", text(data)])
        .args(["--summary", "json", "--journal", "off"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let header = fs::read(capture(data.parent().unwrap(), 0)).unwrap();
    std::io::Write::write_all(child.stdin.as_mut().unwrap(), &header).unwrap();
    child
}

/// Waits until a sensor's first exporter is as it should be.
fn wait_for(data: &Path, what: &str, is: impl Fn(&serde_json::Value) -> bool) {
    let deadline = Instant::now() + Duration::from_secs(120);
    loop {
        let status =
            malakocut::export::ask(&data.join("buffer"), &malakocut::export::Request::Status);
        let status = status.map_or_else(|e| e.to_string().into(), |v| v["exporters"][0].clone());
        if is(&status) {
            return;
        }
        assert!(Instant::now() < deadline, "{what}: {status}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn cli(args: &[&str], key: Option<&Path>) -> Run {
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_malakocut-cli"));
    command.env_remove("HTTPS_PROXY").env_remove("https_proxy");
    if let Some(key) = key {
        command.env("GOOGLE_APPLICATION_CREDENTIALS", key);
    }
    Run::of(command.arg("export").args(args).output().unwrap())
}

#[test]
fn the_command_line_shows_tries_and_sends_dead_letters_again() {
    let dir = tempfile::tempdir().unwrap();
    let receiver = Receiver::start(dir.path());
    let data = dir.path().join("data");
    let key = Some(receiver.key_file.as_path());
    let config = secops(dir.path(), receiver.port, "chronicle", 4);
    let all = capture(dir.path(), 1000);
    fill(&secops(dir.path(), 1, "legacy", 4), &all, &data, key, 1000);
    let place = ["--data-dir", text(&data)];
    let asleep = cli(&[&["status"], &place[..]].concat(), None).ok();
    assert!(asleep.stdout.contains("spool: 1000 events") && asleep.stdout.contains("no sensor"));
    assert_eq!(cli(&[&["retry-dead"], &place[..]].concat(), None).code, Some(2));

    let mut sensor = run_on(&config, &data, key, &[]);
    wait_for(&data, "delivers", |e| e["delivered"] == 999 && e["dead"] == 1 && e["waiting"] == 0);
    let shown = cli(&[&["status"], &place[..]].concat(), None).ok();
    let line = "secops: idle; 999 delivered, 0 waiting, 1 dead letters";
    assert!(shown.stdout.contains(line), "{}", shown.stdout);
    let json = cli(&[&["status", "--json"], &place[..]].concat(), None).ok();
    assert_eq!(
        json.summary()["exporters"][0]["attempts"]["invalid"].as_u64().map(|n| n > 5),
        Some(true)
    );
    let dead = cli(&[&["dead", "secops"], &place[..]].concat(), None).ok().summary();
    assert_eq!((&dead["event"]["src_port"], &dead["exporter"]), (&6666.into(), &"secops".into()));
    assert!(dead["reason"].as_str().unwrap().contains("invalid entry"), "{dead}");
    // It is refused again, and taken when the receiver has changed its mind.
    cli(&[&["retry-dead", "secops"], &place[..]].concat(), None).ok();
    wait_for(&data, "is refused again", |e| {
        e["problem"].as_str().is_some_and(|p| p.contains("refused again")) && e["dead"] == 1
    });
    receiver.cured.store(true, std::sync::atomic::Ordering::Relaxed);
    cli(&[&["retry-dead"], &place[..]].concat(), None).ok();
    wait_for(&data, "is taken", |e| e["dead"] == 0 && e["delivered"] == 1000);
    assert_eq!(cli(&[&["dead"], &place[..]].concat(), None).ok().stdout, "");
    assert_eq!(cli(&[&["retry-dead", "nats"], &place[..]].concat(), None).code, Some(2));
    drop(sensor.stdin.take());
    finish(sensor).ok();

    let test =
        |config: &Path, key: Option<&Path>| cli(&["test", "secops", "--config", text(config)], key);
    let good = test(&config, key).ok();
    assert!(good.stdout.contains("the log type is there"), "{}", good.stdout);
    let nobody = test(&secops(dir.path(), 1, "chronicle", 3), key);
    assert!(nobody.code == Some(1) && nobody.stderr.contains("127.0.0.1:1"), "{}", nobody.stderr);
    let text = fs::read_to_string(&config).unwrap().replace("/logTypes/LT/", "/logTypes/XX/");
    fs::write(&config, text).unwrap();
    let absent = test(&config, key);
    assert!(absent.code == Some(1) && absent.stderr.contains("log type has to be created"));
    assert_eq!(test(&config, None).code, Some(1));
    let seen = receiver.seen.lock().unwrap();
    assert!(seen.wrong.is_empty() && seen.events.len() == 1000, "{:?}", seen.wrong);
}

/// Adds settings to `[export.secops]`.
fn with(config: &Path, more: &str) -> PathBuf {
    let text = fs::read_to_string(config).unwrap();
    let path = config.with_extension("more.toml");
    fs::write(&path, text.replace("[export.secops]\n", &format!("[export.secops]\n{more}\n")))
        .unwrap();
    path
}

#[test]
fn tokens_and_batches_leave_by_the_named_interface_or_not_at_all() {
    let dir = tempfile::tempdir().unwrap();
    let receiver = Receiver::start(dir.path());
    let key = Some(receiver.key_file.as_path());
    let config = secops(dir.path(), receiver.port, "chronicle", 4);
    let data = dir.path().join("data");
    let all = capture(dir.path(), 100);
    fill(&secops(dir.path(), 1, "legacy", 4), &all, &data, key, 100);
    let before = receiver.seen.lock().unwrap().requests;
    let mut sensor = run_on(&with(&config, "interface = 'mk-none0'"), &data, key, &[]);
    wait_for(&data, "says so", |e| {
        e["problem"]
            .as_str()
            .is_some_and(|p| p.contains("mk-none0") && p.contains("No such device"))
    });
    drop(sensor.stdin.take());
    signal(&sensor, "-TERM");
    finish(sensor);
    let after = receiver.seen.lock().unwrap().requests;
    assert_eq!(before, after, "nothing went another way");
    let mut sensor = run_on(&with(&config, "interface = 'lo'"), &data, key, &[]);
    wait_for(&data, "delivers", |e| e["delivered"] == 99);
    drop(sensor.stdin.take());
    finish(sensor).ok();
}

/// An HTTP proxy that wants the login `u:pw`; the first lines of the requests that it let pass.
fn proxy() -> (u16, std::sync::Arc<std::sync::Mutex<Vec<String>>>) {
    use std::io::{Read, Write};
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let passed = std::sync::Arc::new(std::sync::Mutex::new(Vec::new()));
    let log = std::sync::Arc::clone(&passed);
    let serve = move |mut client: std::net::TcpStream| -> std::io::Result<()> {
        let (mut head, mut byte) = (Vec::new(), [0]);
        while !head.ends_with(b"\r\n\r\n") {
            client.read_exact(&mut byte)?;
            head.push(byte[0]);
        }
        let text = String::from_utf8_lossy(&head).into_owned();
        // Base64 of u:pw.
        if !text.to_ascii_lowercase().contains("proxy-authorization: basic dtpwdw==") {
            return client.write_all(b"HTTP/1.1 407 X\r\nContent-Length: 0\r\n\r\n");
        }
        let line = text.lines().next().unwrap_or_default().to_owned();
        let target = line.split(' ').nth(1).unwrap_or_default().trim_start_matches("http://");
        let mut server =
            std::net::TcpStream::connect(target.split('/').next().unwrap_or_default())?;
        if line.starts_with("CONNECT ") {
            client.write_all(b"HTTP/1.1 200 X\r\n\r\n")?;
        } else {
            server.write_all(&head)?;
        }
        log.lock().unwrap().push(line);
        let (mut from, mut to) = (server.try_clone()?, client.try_clone()?);
        std::thread::spawn(move || std::io::copy(&mut from, &mut to));
        std::io::copy(&mut client, &mut server).map(drop)
    };
    std::thread::spawn(move || {
        for client in listener.incoming().flatten() {
            let serve = serve.clone();
            std::thread::spawn(move || drop(serve(client)));
        }
    });
    (port, passed)
}

#[test]
fn tokens_and_batches_go_through_the_proxy() {
    let dir = tempfile::tempdir().unwrap();
    let receiver = Receiver::start(dir.path());
    let key = Some(receiver.key_file.as_path());
    let config = secops(dir.path(), receiver.port, "chronicle", 4);
    let data = dir.path().join("data");
    let all = capture(dir.path(), 100);
    fill(&secops(dir.path(), 1, "legacy", 4), &all, &data, key, 100);
    let (port, passed) = proxy();
    let before = receiver.seen.lock().unwrap().requests;
    // By the environment, with a wrong login: it says so, and nothing goes round the proxy.
    let wrong = format!("http://u:wrong@127.0.0.1:{port}");
    let mut sensor = run_on(&config, &data, key, &[("HTTPS_PROXY", &wrong)]);
    wait_for(&data, "says so", |e| e["problem"].as_str().is_some_and(|p| p.contains("proxy")));
    drop(sensor.stdin.take());
    signal(&sensor, "-TERM");
    let run = finish(sensor);
    assert!(!run.stderr.contains("wrong@"), "{}", run.stderr);
    let after = receiver.seen.lock().unwrap().requests;
    assert_eq!((after - before, passed.lock().unwrap().len()), (0, 0), "nothing went round it");
    let right = format!("proxy = 'http://u:pw@127.0.0.1:{port}'");
    let mut sensor = run_on(&with(&config, &right), &data, key, &[("HTTPS_PROXY", &wrong)]);
    wait_for(&data, "delivers", |e| e["delivered"] == 99);
    drop(sensor.stdin.take());
    finish(sensor).ok();
    let passed = passed.lock().unwrap();
    let any = |what: &str| passed.iter().any(|line| line.starts_with(what));
    assert!(any("CONNECT 127.0.0.1:") && any("POST http://127.0.0.1:"), "{passed:?}");
}

#[test]
fn the_flow_log_begins_anew_at_its_size_and_keeps_so_many() {
    let dir = tempfile::tempdir().unwrap();
    let all = capture(dir.path(), 10_000);
    let log = dir.path().join("flows.json");
    let run = |keep: u32| {
        let config = dir.path().join("c.toml");
        fs::write(&config, format!("[export.file]\nrotate_size = 1000000\nkeep = {keep}\n"))
            .unwrap();
        let args = ["--config", text(&config), "--read", text(&all), "--flow-log", text(&log)];
        common::malakocut(&[&args[..], &["--summary", "json", "--journal", "off"]].concat()).ok();
    };
    run(100);
    let old = |n: u32| dir.path().join(format!("flows.json.{n}"));
    let kept = (1..).take_while(|n| old(*n).exists()).count() as u32;
    assert!(kept > 2, "{kept}");
    let mut events: Vec<serde_json::Value> = Vec::new();
    for path in (1..=kept).rev().map(old).chain([log.clone()]) {
        let size = fs::metadata(&path).unwrap().len();
        assert!(size < 1_400_000 && (path == log || size >= 1_000_000), "{size}");
        events.extend(common::events(&path));
    }
    let flows: std::collections::BTreeSet<&str> =
        events.iter().map(|e| e["flow_id"].as_str().unwrap()).collect();
    assert_eq!((events.len(), flows.len()), (10_000, 10_000));
    (1..=kept).for_each(|n| fs::remove_file(old(n)).unwrap());
    run(2);
    assert!(old(1).exists() && old(2).exists() && !old(3).exists());
}

#[test]
fn incomplete_settings_are_one_line_and_exit_2() {
    let dir = tempfile::tempdir().unwrap();
    let empty = capture(dir.path(), 0);
    let file = |name: &str, content: &str| {
        let path = dir.path().join(name);
        fs::write(&path, content).unwrap();
        path
    };
    let account = file("account.json", "{\"private_key\": \"s3cret\"}");
    for (toml, key, needle) in [
        ("exporter = ['secops']", None, "GOOGLE_APPLICATION_CREDENTIALS"),
        ("exporter = ['secops']", Some(Path::new("/nonexistent")), "/nonexistent"),
        ("exporter = ['secops']", Some(account.as_path()), "not a key file"),
        ("exporter = ['nats']", None, "servers"),
        ("exporter = ['kafka']", None, "brokers"),
        ("exporter = ['secops']\n[export.secops]\nregoin = 'eu'", None, "regoin"),
        ("[export.secops.fields]\nfilter = 'bytes >'", None, "expected a number"),
        ("[export.nats.delivery]\nevents = 0", None, "delivery.events"),
        (
            "exporter = ['nats']\n[export.nats]\nservers = ['nats://127.0.0.1:1']\n\
          [export.nats.fields]\nhash = ['src_ip']",
            None,
            "MALAKOCUT_HASH_KEY",
        ),
    ] {
        let config = file("c.toml", toml);
        let run = finish(start(&config, &empty, &dir.path().join("data"), key));
        assert_eq!(run.code, Some(2), "{toml}: {}", run.stderr);
        let lines: Vec<&str> =
            run.stderr.lines().filter(|l| l.starts_with("malakocut: ")).collect();
        assert!(lines.len() == 1 && lines[0].contains(needle), "{toml}: {}", run.stderr);
        assert!(!run.stderr.contains("s3cret"));
    }
}

/// A NATS server of our own, with JetStream.
struct NatsServer {
    child: Option<Child>,
    port: u16,
    store: PathBuf,
}

impl NatsServer {
    fn start(dir: &Path) -> Option<Self> {
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let mut this = Self { child: None, port, store: dir.join("nats") };
        this.run().then_some(this)
    }

    fn run(&mut self) -> bool {
        let port = self.port.to_string();
        let args = ["-a", "127.0.0.1", "-p", &port, "-js", "-sd", text(&self.store)];
        let quiet = || Stdio::null();
        let started = std::process::Command::new("nats-server")
            .args(args)
            .stdout(quiet())
            .stderr(quiet())
            .spawn();
        self.child = started.ok();
        let deadline = Instant::now() + Duration::from_secs(20);
        while self.child.is_some()
            && std::net::TcpStream::connect(("127.0.0.1", self.port)).is_err()
        {
            assert!(Instant::now() < deadline, "nats-server does not listen");
            std::thread::sleep(Duration::from_millis(20));
        }
        self.child.is_some()
    }

    fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

impl Drop for NatsServer {
    fn drop(&mut self) {
        self.kill();
    }
}

#[test]
fn nats_killed_and_restarted_midway_has_each_event_once() {
    let dir = tempfile::tempdir().unwrap();
    let Some(mut server) = NatsServer::start(dir.path()) else {
        println!("skipped: nats-server is not installed");
        return;
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let url = format!("nats://127.0.0.1:{}", server.port);
    let context = || async {
        let client = async_nats::connect(&url).await.unwrap();
        async_nats::jetstream::new(client)
    };
    runtime.block_on(async {
        let stream = async_nats::jetstream::stream::Config {
            name: "FLOWS".into(),
            subjects: vec!["ndr.flow.*".into()],
            duplicate_window: Duration::from_secs(3600),
            ..Default::default()
        };
        context().await.create_stream(stream).await.unwrap();
    });
    let config = dir.path().join("nats.toml");
    let toml = format!(
        "exporter = ['nats']\n[export.nats]\nservers = ['{url}']\n[export.nats.delivery]\n\
         {DELIVERY}events = 20\n"
    );
    fs::write(&config, toml).unwrap();
    let data = dir.path().join("data");
    let all = capture(dir.path(), 5000);
    let nothing = capture(dir.path(), 0);
    // Kills of the sensor and of the server, in turn, while events are under way.
    let mut child = start(&config, &all, &data, None);
    let in_spool = |events: u64| {
        malakocut::export::ask(&data.join("buffer"), &malakocut::export::Request::Status)
            .is_ok_and(|v| v["exporters"][0]["delivered"].as_u64() > Some(events))
    };
    let deadline = Instant::now() + Duration::from_secs(120);
    while !in_spool(500) && child.try_wait().unwrap().is_none() {
        assert!(Instant::now() < deadline);
        std::thread::sleep(Duration::from_millis(2));
    }
    server.kill();
    std::thread::sleep(Duration::from_millis(300));
    server.run();
    std::thread::sleep(Duration::from_millis(100));
    child.kill().unwrap();
    child.wait().unwrap();
    let run = finish(start(&config, &nothing, &data, None)).ok();
    assert_eq!(number(&run.summary()["export"]["exporters"][0], "waiting"), 0);
    let (messages, ids) = runtime.block_on(async {
        let context = context().await;
        let mut stream = context.get_stream("FLOWS").await.unwrap();
        let count = stream.info().await.unwrap().state.messages;
        let mut ids = Vec::new();
        for n in 1..=count {
            let message = stream.get_raw_message(n).await.unwrap();
            for line in message.payload.split(|b| *b == b'\n').filter(|l| !l.is_empty()) {
                let event: serde_json::Value = serde_json::from_slice(line).unwrap();
                ids.push(event["src_ip"].to_string());
            }
        }
        (count, ids)
    });
    let distinct: std::collections::BTreeSet<&String> = ids.iter().collect();
    println!("{messages} messages, {} events, {} distinct", ids.len(), distinct.len());
    assert_eq!((ids.len(), distinct.len()), (5000, 5000));
}

#[test]
fn each_exporter_goes_at_its_own_pace_and_events_stay_until_the_slowest_has_them() {
    let dir = tempfile::tempdir().unwrap();
    let Some(server) = NatsServer::start(dir.path()) else {
        println!("skipped: nats-server is not installed");
        return;
    };
    let receiver = Receiver::start(dir.path());
    let key = Some(receiver.key_file.as_path());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let url = format!("nats://127.0.0.1:{}", server.port);
    let mut stream = runtime.block_on(async {
        let client = async_nats::connect(&url).await.unwrap();
        let stream = async_nats::jetstream::stream::Config {
            name: "FLOWS".into(),
            subjects: vec!["ndr.flow.*".into()],
            ..Default::default()
        };
        async_nats::jetstream::new(client).create_stream(stream).await.unwrap()
    });
    let mut messages = || runtime.block_on(async { stream.info().await.unwrap().state.messages });
    let both = |port: u16| {
        let config = secops(dir.path(), port, "chronicle", 4);
        let text = fs::read_to_string(&config).unwrap();
        let text = text.replace("[\"secops\"]", "[\"nats\", \"secops\"]");
        let nats = "[export.nats.fields]\nleave_out = ['src_mac', 'dst_mac']\n";
        fs::write(&config, format!("{text}[export.nats]\nservers = ['{url}']\n{nats}")).unwrap();
        config
    };
    let data = dir.path().join("data");
    let child = start(&both(1), &capture(dir.path(), 1000), &data, key);
    wait_for(&data, "NATS has all", |e| e["name"] == "nats" && e["delivered"] == 1000);
    signal(&child, "-TERM");
    finish(child);
    assert_eq!(spool(&data).held().events, 1000);
    let sent = messages();
    let nothing = capture(dir.path(), 0);
    let run = finish(start(&both(receiver.port), &nothing, &data, key)).ok();
    let status = run.summary()["export"].clone();
    assert_eq!((&status["exporters"][0]["delivered"], messages()), (&0.into(), sent));
    assert_eq!(number(&status["exporters"][1], "delivered"), 999);
    assert_eq!(status["spool"]["events"], 0);
    let seen = receiver.seen.lock().unwrap();
    assert!(seen.events.values().all(|e| e["src_mac"].is_string()), "its own view");
}

#[cfg(feature = "kafka")]
#[test]
fn kafka_brokers_going_down_and_a_killed_sensor_lose_nothing() {
    use rdkafka::consumer::{BaseConsumer, Consumer};
    use rdkafka::message::{Headers, Message};
    let dir = tempfile::tempdir().unwrap();
    let cluster = rdkafka::mocking::MockCluster::new(3).unwrap();
    cluster.create_topic("malakocut-flows", 3, 3).unwrap();
    let config = dir.path().join("kafka.toml");
    let brokers = cluster.bootstrap_servers();
    let toml = format!(
        "exporter = ['kafka']\n[export.kafka]\nbrokers = ['{brokers}']\n\
         properties = {{ 'reconnect.backoff.max.ms' = '200' }}\n[export.kafka.delivery]\n\
         timeout = 5\nretry_first = 0.01\nretry_longest = 0.1\nlinger = 0.05\nevents = 20\n"
    );
    fs::write(&config, toml).unwrap();
    let data = dir.path().join("data");
    let all = capture(dir.path(), 5000);
    let nothing = capture(dir.path(), 0);
    let mut child = start(&config, &all, &data, None);
    let delivered = |events: u64| {
        malakocut::export::ask(&data.join("buffer"), &malakocut::export::Request::Status)
            .is_ok_and(|v| v["exporters"][0]["delivered"].as_u64() > Some(events))
    };
    let deadline = Instant::now() + Duration::from_secs(120);
    while !delivered(200) && child.try_wait().unwrap().is_none() {
        assert!(Instant::now() < deadline);
        std::thread::sleep(Duration::from_millis(2));
    }
    for broker in 1..=3 {
        cluster.broker_down(broker).unwrap();
    }
    std::thread::sleep(Duration::from_millis(300));
    for broker in 1..=3 {
        cluster.broker_up(broker).unwrap();
    }
    std::thread::sleep(Duration::from_millis(200));
    child.kill().unwrap();
    child.wait().unwrap();
    let run = finish(start(&config, &nothing, &data, None)).ok();
    assert_eq!(number(&run.summary()["export"]["exporters"][0], "waiting"), 0);

    let consumer: BaseConsumer = rdkafka::ClientConfig::new()
        .set("bootstrap.servers", &brokers)
        .set("group.id", "test")
        .set("auto.offset.reset", "earliest")
        .create()
        .unwrap();
    let mut partitions = rdkafka::TopicPartitionList::new();
    for n in 0..3 {
        partitions.add_partition_offset("malakocut-flows", n, rdkafka::Offset::Beginning).unwrap();
    }
    consumer.assign(&partitions).unwrap();
    let (mut got, mut ids) = (0, std::collections::BTreeMap::new());
    let mut last = Instant::now();
    while last.elapsed() < Duration::from_secs(30) && (ids.len() < 5000 || got < 5000) {
        let Some(Ok(message)) = consumer.poll(Duration::from_millis(200)) else { continue };
        last = Instant::now();
        got += 1;
        let id = message.headers().unwrap().iter().find(|h| h.key == "event_id").unwrap();
        let id = String::from_utf8(id.value.unwrap().to_vec()).unwrap();
        let line = message.payload().unwrap().to_vec();
        // A repeat is the same event under the same id.
        assert_eq!(*ids.entry(id).or_insert_with(|| line.clone()), line);
    }
    println!("{got} messages, {} distinct events", ids.len());
    assert_eq!(ids.len(), 5000);
}
