//! What flows are about, from the binary's side: names across workers, EVE, logs opened anew.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot run fails")]

mod common;

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use etherparse::PacketBuilder;
use serde_json::Value;

/// A capture in the making.
struct Capture(Vec<u8>);

impl Capture {
    fn new() -> Self {
        let mut bytes = 0xa1b2_c3d4u32.to_le_bytes().to_vec();
        bytes.extend([2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 4, 0, 1, 0, 0, 0]);
        Self(bytes)
    }

    fn add(&mut self, micros: u64, frame: &[u8]) {
        for word in [micros / 1_000_000, micros % 1_000_000, frame.len() as u64, frame.len() as u64]
        {
            self.0.extend((word as u32).to_le_bytes());
        }
        self.0.extend(frame);
    }

    fn udp(&mut self, micros: u64, from: ([u8; 4], u16), to: ([u8; 4], u16), payload: &[u8]) {
        let mut frame = Vec::new();
        PacketBuilder::ethernet2([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2])
            .ipv4(from.0, to.0, 64)
            .udp(from.1, to.1)
            .write(&mut frame, payload)
            .unwrap();
        self.add(micros, &frame);
    }

    fn tcp(
        &mut self,
        micros: u64,
        from: ([u8; 4], u16),
        to: ([u8; 4], u16),
        seq: u32,
        data: &[u8],
    ) {
        let mut frame = Vec::new();
        let builder = PacketBuilder::ethernet2([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2])
            .ipv4(from.0, to.0, 64)
            .tcp(from.1, to.1, seq, 1000);
        let builder = if data.is_empty() { builder.syn() } else { builder.ack(1) };
        builder.write(&mut frame, data).unwrap();
        self.add(micros, &frame);
    }

    fn save(self, path: &Path) {
        fs::write(path, self.0).unwrap();
    }
}

fn dns_name(name: &str) -> Vec<u8> {
    let mut out = Vec::new();
    for label in name.split('.') {
        out.push(label.len() as u8);
        out.extend(label.as_bytes());
    }
    out.push(0);
    out
}

/// An answer by an alias.
fn answer(name: &str, ip: [u8; 4], ttl: u32) -> Vec<u8> {
    let mut m = vec![0, 7, 0x81, 0x80, 0, 1, 0, 2, 0, 0, 0, 0];
    m.extend(dns_name(name));
    m.extend([0, 1, 0, 1]);
    m.extend([0xc0, 12, 0, 5, 0, 1, 0, 0, 0, 60]);
    let alias = dns_name("edge.cdn.example");
    m.extend((alias.len() as u16).to_be_bytes());
    m.extend(&alias);
    m.extend(&alias);
    m.extend([0, 1, 0, 1]);
    m.extend(ttl.to_be_bytes());
    m.extend([0, 4]);
    m.extend(ip);
    m
}

fn run(capture: &Path, dir: &Path, args: &[&str]) -> (Vec<Value>, Vec<Value>) {
    let (flows, eve) = (dir.join("flows.json"), dir.join("eve.json"));
    let _ = (fs::remove_file(&flows), fs::remove_file(&eve));
    let mut all = vec!["--read", capture.to_str().unwrap(), "--journal", "off", "--sensor", "s"];
    all.extend(["--flow-log", flows.to_str().unwrap(), "--eve-log", eve.to_str().unwrap()]);
    all.extend(args);
    common::malakocut(&all).ok();
    (common::events(&flows), common::events(&eve))
}

/// Lcores that float over the CPUs there are.
fn lcores(n: usize) -> String {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let cpus = status.lines().find_map(|l| l.strip_prefix("Cpus_allowed_list:")).unwrap().trim();
    let cpus = if cpus.contains(',') { format!("({cpus})") } else { cpus.to_owned() };
    (0..n).map(|n| format!("{n}@{cpus}")).collect::<Vec<_>>().join(",")
}

#[test]
fn answers_seen_by_one_worker_name_the_flows_of_others() {
    let dir = tempfile::tempdir().unwrap();
    let capture = dir.path().join("c.pcap");
    let mut c = Capture::new();
    let resolver = ([10, 9, 9, 9], 53);
    let mut expected = 0;
    for n in 0..400u32 {
        let [_, _, high, low] = n.to_be_bytes();
        let (client, server) = ([10, 1, high, low], [192, 0, 2 + high, low]);
        let at = u64::from(n) * 10_000;
        let name = format!("Host{n}.Example.com");
        // Half of the flows begin before their answer: those have no name.
        let (asked, begun) = if n % 2 == 0 { (at, at + 3) } else { (at + 3, at) };
        expected += usize::from(n % 2 == 0);
        c.udp(asked, resolver, (client, 5000), &answer(&name, server, 60));
        c.tcp(begun, (client, 6000), (server, 443), 1, b"");
    }
    // In the capture's order of time or not: what counts are the packets' times.
    c.save(&capture);
    let mut first: Option<Vec<String>> = None;
    for n in 1..=4 {
        let (flows, eve) = run(&capture, dir.path(), &["--lcores", &lcores(n)]);
        let named: Vec<&Value> = flows.iter().filter(|f| f["dst_name"].is_string()).collect();
        assert_eq!(named.len(), expected, "{n} lcores");
        for flow in named {
            let low: u32 =
                flow["src_ip"].as_str().unwrap().rsplit('.').next().unwrap().parse().unwrap();
            let name = flow["dst_name"].as_str().unwrap();
            let number: u32 =
                name.strip_prefix("host").unwrap().split('.').next().unwrap().parse().unwrap();
            assert_eq!((number & 0xff, name.ends_with(".example.com")), (low, true), "{flow}");
        }
        let mut lines: Vec<String> = flows
            .iter()
            .chain(eve.iter().filter(|line| line["event_type"] != "stats"))
            .map(Value::to_string)
            .collect();
        lines.sort();
        assert_eq!(&lines, first.get_or_insert_with(|| lines.clone()), "{n} lcores");
    }
}

#[test]
fn the_shipped_captures_names() {
    let dir = tempfile::tempdir().unwrap();
    let (flows, eve) = run(&common::home(), dir.path(), &[]);
    let with = |field: &str| flows.iter().filter(|f| !f[field].is_null()).count();
    assert!(with("sni") >= 30 && with("ja4") == with("sni"), "{}", with("sni"));
    assert!(with("dns_query") >= 20 && with("dst_name") >= 30);
    let find = |field: &str| flows.iter().find(|f| !f[field].is_null()).unwrap();
    assert_eq!(find("http_host")["http_host"], "firmware.example.org");
    assert_eq!(find("http_host")["http_status"], 200);
    assert!(find("ssh_client")["hassh"].as_str().unwrap().len() == 32);
    assert_eq!(find("dhcp_hostname")["app_proto"], "dhcp");
    // One flow, one id, in both files.
    for line in eve.iter().filter(|l| l["event_type"] == "tls") {
        let flow = flows.iter().find(|f| f["community_id"] == line["community_id"]).unwrap();
        let id = u64::from_str_radix(flow["flow_id"].as_str().unwrap(), 16).unwrap();
        assert_eq!(line["flow_id"].as_u64().unwrap(), id & ((1 << 53) - 1));
        assert_eq!(line["tls"]["sni"], flow["sni"]);
        assert_eq!(line["tls"]["ja4"], flow["ja4"]);
    }
    let kinds = |kind: &str| eve.iter().filter(|l| l["event_type"] == kind).count();
    assert_eq!(kinds("flow"), flows.len());
    assert_eq!(kinds("arp"), 96);
    assert!(kinds("dns") > 40 && kinds("dhcp") == 4 && kinds("http") == 1 && kinds("stats") == 1);
    let sum = |side: &str| -> u64 {
        let flows = eve.iter().filter(|l| l["event_type"] == "flow");
        flows.map(|l| l["flow"][side].as_u64().unwrap()).sum()
    };
    let deltas = eve.iter().filter(|l| l["event_type"] == "netflow");
    let deltas: u64 = deltas.map(|l| l["netflow"]["pkts"].as_u64().unwrap()).sum();
    assert_eq!(deltas, sum("pkts_toserver") + sum("pkts_toclient"));
}

#[test]
fn turned_off_nothing_is_read() {
    let dir = tempfile::tempdir().unwrap();
    let (flows, eve) = run(&common::home(), dir.path(), &["--inspect-packets", "0"]);
    for field in ["sni", "dns_query", "dst_name", "http_host"] {
        assert!(flows.iter().all(|f| f[field].is_null()), "{field}");
    }
    assert!(
        eve.iter().all(|l| matches!(l["event_type"].as_str(), Some("flow" | "netflow" | "stats")))
    );
}

/// The oracles' directory, which holds Suricata's schema and a script that holds lines against it.
fn checker() -> Option<PathBuf> {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let named = std::env::var_os("MALAKOCUT_ORACLES").map(PathBuf::from);
    let places = ["../../shared/oracles", "../shared/oracles"].map(|r| here.join(r));
    let place = named.into_iter().chain(places).find(|p| p.join("eve_check.py").exists())?;
    let able = Command::new("python3").args(["-c", "import jsonschema"]).output().ok()?;
    able.status.success().then_some(place)
}

#[test]
fn every_eve_line_is_valid_by_suricatas_schema() {
    let Some(oracles) = checker() else {
        println!("skipped: no eve_check.py, or no python3 with jsonschema");
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let mut lines = 0;
    // What no shipped capture has: a header that contradicts itself, and no DNS on its port.
    let odd = dir.path().join("odd.pcap");
    let mut c = Capture::new();
    c.udp(1, ([10, 0, 0, 1], 5000), ([10, 0, 0, 2], 53), b"not DNS");
    let mut bad = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 8, 0, 0x41];
    bad.resize(60, 0);
    c.add(2, &bad);
    c.save(&odd);
    let mut files = vec![common::home(), odd];
    let arkime = fs::read_dir(oracles.join("arkime")).unwrap().map(|e| e.unwrap().path());
    files.extend(arkime.filter(|p| p.extension().is_some_and(|e| e == "pcap")));
    // A host of the shipped capture that is judged, for alerts.
    let watch = dir.path().join("watch.toml");
    let host = "[[detect.watch]]\naddress = \"192.168.1.41\"\nwindow = 1\n";
    fs::write(&watch, format!("{host}destination_threshold = 1000\n")).unwrap();
    let all = dir.path().join("all.json");
    let mut out = fs::File::create(&all).unwrap();
    let mut kinds = std::collections::BTreeSet::new();
    for file in &files {
        let args = ["--active-timeout", "1", "--config", watch.to_str().unwrap()];
        for line in run(file, dir.path(), &args).1 {
            kinds.insert(line["event_type"].as_str().unwrap().to_owned());
            writeln!(out, "{line}").unwrap();
            lines += 1;
        }
    }
    let expected = [
        "alert", "anomaly", "arp", "dhcp", "dns", "flow", "http", "netflow", "quic", "ssh",
        "stats", "tls",
    ];
    assert_eq!(kinds.iter().map(String::as_str).collect::<Vec<_>>(), expected);
    let check =
        Command::new("python3").arg(oracles.join("eve_check.py")).arg(&all).output().unwrap();
    let said = String::from_utf8_lossy(&check.stdout);
    assert!(check.status.success(), "{}", &said[..said.len().min(3000)]);
    println!("{lines} lines of {} captures: {}", files.len(), said.trim());
}

#[test]
fn a_hang_up_opens_the_logs_anew() {
    let dir = tempfile::tempdir().unwrap();
    let plain = fs::read(common::home_plain(dir.path())).unwrap();
    let path = |name: &str| dir.path().join(name);
    let mut child = common::command()
        .args(["--read", "-", "--journal", "off", "--idle-timeout", "1", "--summary", "json"])
        .arg("--eve-log")
        .arg(path("eve.json"))
        .arg("--flow-log")
        .arg(path("flows.json"))
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let half = plain.len() / 2;
    stdin.write_all(&plain[..half]).unwrap();
    stdin.flush().unwrap();
    let until = |what: &dyn Fn() -> bool| {
        let begun = Instant::now();
        while !what() {
            assert!(begun.elapsed() < Duration::from_secs(60), "it does not happen");
            std::thread::sleep(Duration::from_millis(20));
        }
    };
    let size = |name: &str| fs::metadata(path(name)).map_or(0, |m| m.len());
    until(&|| size("eve.json") > 0 && size("flows.json") > 0);
    for name in ["eve.json", "flows.json"] {
        fs::rename(path(name), path(&format!("{name}.1"))).unwrap();
    }
    let hang_up = Command::new("kill").args(["-HUP", &child.id().to_string()]).status().unwrap();
    assert!(hang_up.success());
    until(&|| path("eve.json").exists() && path("flows.json").exists());
    stdin.write_all(&plain[half..]).unwrap();
    drop(stdin);
    assert!(child.wait().unwrap().success());
    let both = |name: &str| {
        [common::events(&path(&format!("{name}.1"))), common::events(&path(name))].concat()
    };
    let flows = both("flows.json");
    let packets: u64 = flows.iter().map(|f| common::number(f, "packets")).sum();
    assert_eq!(packets, common::number(&common::home_truth(), "packets") - 256, "none is lost");
    let eve = both("eve.json");
    let ends = flows.iter().filter(|f| f["final"] == true).count();
    assert_eq!(eve.iter().filter(|l| l["event_type"] == "flow").count(), ends);
    assert!(size("eve.json") > 0 && size("eve.json.1") > 0);
}

#[test]
fn a_million_names_in_bounded_memory() {
    let peak = |answers: u32| {
        let mut c = Capture::new();
        for n in 0..answers {
            let name = format!("n{n}.example.com");
            let ip = (0x0b00_0000 + n / 2).to_be_bytes();
            c.udp(
                u64::from(n),
                ([10, 9, 9, 9], 53),
                ([10, 0, 0, 1], 5000),
                &answer(&name, ip, 3600),
            );
        }
        let mut child = common::command()
            .args(["--read", "-", "--journal", "off", "--summary", "json", "--max-flows", "1000"])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        // When the last bytes found room in the pipe all but a few were read.
        let mut input = child.stdin.take().unwrap();
        input.write_all(&c.0).unwrap();
        let status = fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap();
        let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:")).unwrap();
        drop(input);
        assert!(child.wait().unwrap().success());
        line.trim().trim_end_matches(" kB").parse::<u64>().unwrap()
    };
    let (few, many) = (peak(150_000), peak(1_000_000));
    println!("peak memory: {few} KiB with 150,000 names, {many} KiB with 1,000,000");
    assert!(few > 0 && many < few + 16 * 1024, "{few} KiB, then {many} KiB");
}
