//! The blocklist, from the binary's side: what is silenced, what is not, and who says so.

#![allow(clippy::unwrap_used, reason = "a test that cannot run fails")]

mod common;
mod pair;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use common::packets::Capture;
use common::{events, number, segments};
use etherparse::PacketBuilder;
use pair::{Pair, interrupt, run};
use serde_json::Value;

const CLIENT: &str = "10.0.0.5";
const RESOLVER: &str = "10.0.0.1";

fn ip(text: &str) -> [u8; 4] {
    text.parse::<Ipv4Addr>().unwrap().octets()
}

fn ethernet() -> etherparse::PacketBuilderStep<etherparse::Ethernet2Header> {
    PacketBuilder::ethernet2([2, 0, 0, 0, 0, 5], [2, 0, 0, 0, 0, 1])
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

/// A ClientHello with a server name.
fn hello(name: &str) -> Vec<u8> {
    let two = |n: usize| (n as u16).to_be_bytes();
    let entry = [&[0][..], &two(name.len()), name.as_bytes()].concat();
    let extension = [&[0, 0][..], &two(entry.len() + 2), &two(entry.len()), &entry].concat();
    let mut body = vec![3, 3];
    body.extend([7; 32]);
    body.extend([0, 0, 2, 0x13, 0x01, 1, 0]);
    body.extend(two(extension.len()));
    body.extend(extension);
    let message = [&[1, 0][..], &two(body.len()), &body].concat();
    [&[22, 3, 1][..], &two(message.len()), &message].concat()
}

/// A script of what clients do, as a capture.
#[derive(Default)]
struct Script {
    capture: Capture,
    /// Packets by the client's port.
    packets: BTreeMap<u16, u64>,
}

impl Script {
    fn udp(&mut self, ms: u64, from: (&str, u16), to: (&str, u16), payload: &[u8]) {
        let mut frame = Vec::new();
        let builder = ethernet().ipv4(ip(from.0), ip(to.0), 64).udp(from.1, to.1);
        builder.write(&mut frame, payload).unwrap();
        self.capture.add(ms, &frame);
        *self.packets.entry(if to.1 == 53 { from.1 } else { to.1 }).or_default() += 1;
    }

    /// A question and its answer.
    fn ask(&mut self, ms: u64, port: u16, name: &str, address: &str, ttl: u32) {
        let question = [dns_name(name), vec![0, 1, 0, 1]].concat();
        let query = [&[0, 7, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0][..], &question].concat();
        let mut answer = [&[0, 7, 0x81, 0x80, 0, 1, 0, 1, 0, 0, 0, 0][..], &question].concat();
        answer.extend([0xc0, 12, 0, 1, 0, 1]);
        answer.extend(ttl.to_be_bytes());
        answer.extend([0, 4]);
        answer.extend(ip(address));
        self.udp(ms, (CLIENT, port), (RESOLVER, 53), &query);
        self.udp(ms + 1, (RESOLVER, 53), (CLIENT, port), &answer);
    }

    /// A connection: a handshake, the client's first words, ten answers, of 14 packets.
    fn connect(&mut self, ms: u64, client: (&str, u16), server: (&str, u16), words: &[u8]) {
        let there = |seq| {
            ethernet().ipv4(ip(client.0), ip(server.0), 64).tcp(client.1, server.1, seq, 9000)
        };
        let back = |seq| {
            ethernet().ipv4(ip(server.0), ip(client.0), 64).tcp(server.1, client.1, seq, 9000)
        };
        let mut add =
            |ms, builder: etherparse::PacketBuilderStep<etherparse::TcpHeader>, data: &[u8]| {
                let mut frame = Vec::new();
                builder.write(&mut frame, data).unwrap();
                self.capture.add(ms, &frame);
            };
        add(ms, there(100).syn(), b"");
        add(ms + 1, back(500).syn().ack(101), b"");
        add(ms + 2, there(101).ack(501), b"");
        add(ms + 3, there(101).ack(501).psh(), words);
        let next = 101 + words.len() as u32;
        for n in 0..10 {
            add(ms + 4 + n, back(501 + 400 * n as u32).ack(next).psh(), &[0x99; 400]);
        }
        *self.packets.entry(client.1).or_default() += 14;
    }
}

const LIST: &str = "# streaming\nHULU.com\n0.0.0.0 video.example # hosts\n*.sub.example\n";

/// What is silenced by name, by address, and what is kept; by the client's port.
const SILENCED: [u16; 10] = [1001, 1002, 1031, 1033, 1041, 1042, 1051, 1061, 1071, 1081];

fn script() -> Script {
    let mut s = Script::default();
    // A name below a listed one: its question, and the flow that says no name.
    s.ask(0, 1001, "www.Hulu.com", "203.0.113.10", 60);
    s.connect(100, (CLIENT, 1002), ("203.0.113.10", 443), b"\x01\x02\x03\x04 no name");
    // Another client never asked.
    s.connect(200, ("10.0.0.6", 1003), ("203.0.113.10", 443), b"\x01\x02\x03\x04 no name");
    // Look-alikes.
    s.ask(300, 1021, "x.hulu.com.evil.example", "203.0.113.20", 60);
    s.connect(400, (CLIENT, 1022), ("203.0.113.20", 443), b"\x01\x02\x03\x04 no name");
    s.connect(500, (CLIENT, 1023), ("203.0.113.21", 443), &hello("nothulu.com"));
    // An address that another name shares: only what a flow says itself counts.
    s.ask(600, 1031, "cdn.video.example", "203.0.113.30", 600);
    s.ask(700, 1032, "news.example.org", "203.0.113.30", 60);
    s.connect(800, (CLIENT, 1033), ("203.0.113.30", 443), &hello("cdn.video.example"));
    s.connect(900, (CLIENT, 1034), ("203.0.113.30", 443), &hello("news.example.org"));
    s.connect(1000, (CLIENT, 1035), ("203.0.113.30", 443), b"\x01\x02\x03\x04 no name");
    // An answer that lives for five seconds.
    s.ask(2000, 1041, "ttl.hulu.com", "203.0.113.40", 5);
    s.connect(6000, (CLIENT, 1042), ("203.0.113.40", 443), b"\x01\x02\x03\x04 no name");
    s.connect(7002, (CLIENT, 1043), ("203.0.113.40", 443), b"\x01\x02\x03\x04 no name");
    // Names that nobody asked for: TLS, HTTP.
    s.connect(8000, (CLIENT, 1051), ("203.0.113.50", 443), &hello("a.b.Sub.example"));
    let get = b"GET /v HTTP/1.1\r\nHost: Video.Example:8080\r\nUser-Agent: t\r\n\r\n";
    s.connect(8100, (CLIENT, 1061), ("203.0.113.51", 8080), get);
    // A resolver's one flow with questions of both kinds.
    s.ask(8200, 1071, "only.hulu.com", "203.0.113.52", 60);
    s.ask(8300, 1081, "m.hulu.com", "203.0.113.60", 60);
    s.ask(8400, 1072, "a.hulu.com", "203.0.113.61", 60);
    s.ask(8500, 1072, "news.example.org", "203.0.113.62", 60);
    s.ask(8600, 1072, "b.hulu.com", "203.0.113.63", 60);
    // Silenced by its address until it says another name; from then on its address is shared.
    s.connect(8700, (CLIENT, 1082), ("203.0.113.52", 443), &hello("other.example"));
    s.connect(8800, (CLIENT, 1083), ("203.0.113.52", 443), b"\x01\x02\x03\x04 no name");
    s
}

fn ports(lines: &[Value]) -> BTreeSet<u16> {
    let port = |e: &Value, key: &str| e[key].as_u64().unwrap() as u16;
    lines.iter().map(|e| port(e, "src_port")).collect()
}

/// Packets that tcpdump finds in a journal.
fn journaled(data: &Path, filter: &str) -> u64 {
    let count = |file: &PathBuf| {
        let out = Command::new("tcpdump").args(["-nr"]).arg(file).arg(filter).output().unwrap();
        // The last packet of a file that is being written may be cut.
        let said = String::from_utf8_lossy(&out.stderr);
        assert!(out.status.success() || said.contains("truncated"), "{said}");
        String::from_utf8(out.stdout).unwrap().lines().count() as u64
    };
    segments(data).iter().map(count).sum()
}

#[test]
fn what_a_listed_name_silences_and_what_it_does_not() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let script = script();
    let capture = script.capture.write(dir.path(), "c.pcap");
    fs::write(path("list"), LIST).unwrap();
    let mut first = None;
    for lcores in ["0@0", "0@0,1@0", "0@0,1@0,2@0", "0@0,1@0,2@0,3@0"] {
        let (flows, eve, data) = (path("flows"), path("eve"), path(&format!("data-{lcores}")));
        let _ = (fs::remove_file(&flows), fs::remove_file(&eve));
        let args = ["--read", capture.to_str().unwrap(), "--journal", "on", "--data-dir", &data];
        let outputs = ["--flow-log", &flows, "--eve-log", &eve, "--summary", "json"];
        let list = path("list");
        let ours = ["--lcores", lcores, "--blocklist", &list];
        let run = common::malakocut(&[&args[..], &outputs, &ours].concat()).ok();
        let (summary, data) = (run.summary(), Path::new(&data));
        let (flows, eve) = (events(Path::new(&flows)), events(Path::new(&eve)));
        let all: BTreeSet<u16> = script.packets.keys().copied().collect();
        let kept: BTreeSet<u16> = all.iter().copied().filter(|p| !SILENCED.contains(p)).collect();
        assert_eq!(ports(&flows), kept, "{lcores}");
        let of_flows: Vec<Value> =
            eve.iter().filter(|e| e["event_type"] == "flow").cloned().collect();
        assert_eq!(ports(&of_flows), kept);
        for line in &eve {
            let text = line.to_string().to_lowercase().replace("x.hulu.com.evil", "");
            let name = |n: &&&str| text.contains(**n) && !text.contains("nothulu");
            // A kept resolver's flow shows what was first asked for in it.
            let shown = ["hulu.com", "video.example", "sub.example"].iter().find(name);
            assert_eq!(shown, None, "{line}");
        }
        // Everything is still counted.
        let total: u64 = script.packets.values().sum();
        assert_eq!((number(&summary, "packets"), number(&summary, "decoded")), (total, total));
        assert_eq!(number(&summary, "flows"), all.len() as u64);
        let counted = |key| number(&summary["blocklist"], key);
        // By name: seven questions, TLS twice, HTTP once; one of them is reopened.
        assert_eq!(counted("flows_by_name"), 9, "{summary}");
        assert_eq!((counted("flows_by_address"), counted("reopened")), (3, 2), "{summary}");
        assert_eq!((counted("shared"), counted("events")), (4, SILENCED.len() as u64));
        assert_eq!(counted("answers_lost"), 0);
        assert!(run.stderr.contains("203.0.113."), "{}", run.stderr);
        assert!(run.stderr.contains("share it") && run.stderr.contains("3 domains"));
        // The journal: whole flows by address and by question, the rest from the name on.
        let ports = |ports: &[u16]| {
            let of: Vec<String> = ports.iter().map(|p| format!("port {p}")).collect();
            journaled(data, &of.join(" or "))
        };
        assert_eq!(ports(&[1001, 1002, 1031, 1041, 1042, 1071, 1081]), 0);
        for by_name in [1033, 1051, 1061] {
            assert_eq!(ports(&[by_name]), 3, "the handshake of {by_name}");
        }
        assert_eq!(ports(&[1082]), 14 - 3, "from the other name on");
        assert_eq!(ports(&[1072]), 6 - 2, "from the other question on");
        for whole in kept.iter().filter(|p| ![1072, 1082].contains(*p)) {
            assert_eq!(ports(&[*whole]), script.packets[whole], "{whole}");
        }
        let silenced = number(&summary["journal"], "silenced");
        assert_eq!(silenced, counted("packets"));
        assert_eq!(journaled(data, ""), total - silenced);
        assert_eq!(number(&summary["journal"], "packets"), total - silenced);
        // Nothing depends on the number of workers.
        let mut lines: Vec<String> = flows.iter().map(Value::to_string).collect();
        lines.extend(eve.iter().filter(|e| e["event_type"] != "stats").map(Value::to_string));
        lines.sort();
        assert_eq!(&lines, first.get_or_insert_with(|| lines.clone()), "{lcores}");
    }
}

#[test]
fn the_shipped_captures_film_and_a_name_that_shares_its_address() {
    let dir = tempfile::tempdir().unwrap();
    let (flow_log, list) = (dir.path().join("flows"), dir.path().join("list"));
    // Of push.example.net the address is chat.example.net's too, for the same client.
    fs::write(&list, "film.example.com\nmedia.example.org\npush.example.net\n").unwrap();
    let read = |args: &[&str]| {
        let _ = fs::remove_file(&flow_log);
        let home = common::home();
        let ours = ["--read", home.to_str().unwrap(), "--summary", "json"];
        let log = ["--flow-log", flow_log.to_str().unwrap()];
        let summary = common::malakocut(&[&ours[..], &log, args].concat()).ok().summary();
        (summary, events(&flow_log))
    };
    let (_, all) = read(&[]);
    let (summary, kept) = read(&["--blocklist", list.to_str().unwrap()]);
    let id = |e: &Value| e["flow_id"].as_str().unwrap().to_owned();
    let kept: BTreeSet<String> = kept.iter().map(id).collect();
    let is = |e: &Value, key: &str, value: &str| e[key] == value;
    for e in &all {
        let by_name = ["film.example.com", "push.example.net"].iter().any(|n| is(e, "sni", n))
            || ["film.example.com", "media.example.org", "push.example.net"]
                .iter()
                .any(|n| is(e, "dns_query", n));
        // No name could be read of the QUIC flow.
        let by_address = is(e, "app_proto", "quic") && is(e, "dst_name", "media.example.org");
        assert_eq!(kept.contains(&id(e)), !by_name && !by_address, "{e}");
    }
    assert!(all.iter().any(|e| is(e, "sni", "chat.example.net")));
    let blocklist = &summary["blocklist"];
    assert!(number(blocklist, "packets") > 8689 + 176, "{blocklist}");
    assert!(number(blocklist, "shared") > 0 && number(blocklist, "flows_by_address") > 0);
    let events = number(&summary, "events");
    assert_eq!(kept.len() as u64 + number(blocklist, "events"), events);
}

#[test]
fn a_list_that_cannot_be_used_is_refused_before_anything_starts() {
    let dir = tempfile::tempdir().unwrap();
    let capture = script().capture.write(dir.path(), "c.pcap");
    let page = dir.path().join("page");
    fs::write(&page, "<!DOCTYPE html>\n<html><p>404</p></html>\n").unwrap();
    for (list, says) in [("/no/such/list", "/no/such/list"), (page.to_str().unwrap(), "line 1")] {
        let run = common::malakocut(&["--read", capture.to_str().unwrap(), "--blocklist", list]);
        assert_eq!(run.code, Some(2));
        assert!(run.stderr.contains(says), "{}", run.stderr);
    }
}

#[test]
fn a_capture_of_which_nothing_is_journaled_is_read_to_its_end() {
    // Events wait until the journal is past the packets before them; it never gets these.
    let dir = tempfile::tempdir().unwrap();
    let (log, list) = (dir.path().join("flows"), dir.path().join("list"));
    let mut s = Script::default();
    let flows = 20_000u64;
    s.ask(0, 999, "www.example.org", "203.0.113.1", 60);
    for n in 1..flows {
        s.ask(10 * n, 1000 + n as u16, "www.hulu.com", "203.0.113.2", 60);
    }
    let capture = s.capture.write(dir.path(), "c.pcap");
    fs::write(&list, "hulu.com\n").unwrap();
    let args = ["--read", capture.to_str().unwrap(), "--journal", "on", "--summary", "json"];
    let places = ["--data-dir", dir.path().to_str().unwrap(), "--flow-log", log.to_str().unwrap()];
    for lcores in ["0@0", "0@0,1@0"] {
        let ours = ["--blocklist", list.to_str().unwrap(), "--lcores", lcores];
        let mut child = common::command().args(args).args(places).args(ours).spawn().unwrap();
        let deadline = Instant::now() + Duration::from_secs(120);
        let status = loop {
            if let Some(status) = child.try_wait().unwrap() {
                break status;
            }
            if Instant::now() > deadline {
                child.kill().unwrap();
                panic!("it stands still");
            }
            std::thread::sleep(Duration::from_millis(20));
        };
        assert!(status.success());
    }
    assert_eq!(ports(&events(&log)), BTreeSet::from([999]));
    assert_eq!(journaled(dir.path(), ""), 2 * 2);
}

/// Waits until the sensor's log has said something so many times.
fn wait_for(log: &Path, text: &str, times: usize) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while fs::read_to_string(log).unwrap().matches(text).count() < times {
        assert!(Instant::now() < deadline, "{text}: {}", fs::read_to_string(log).unwrap());
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn a_hang_up_reads_the_list_anew_while_packets_flow() {
    let Some(pair) = Pair::new() else { return };
    let dir = tempfile::tempdir().unwrap();
    let (list, log) = (dir.path().join("list"), dir.path().join("flows"));
    fs::write(&list, "hulu.com\n").unwrap();
    // The same three times, each on its own ports.
    let captures: Vec<PathBuf> = (0..3u16)
        .map(|n| {
            let mut s = Script::default();
            let at = 2000 + 10 * n;
            s.ask(0, at, "www.hulu.com", "203.0.113.10", 1);
            s.connect(100, (CLIENT, at + 1), ("203.0.113.11", 443), &hello("v.hulu.com"));
            s.connect(200, (CLIENT, at + 2), ("203.0.113.12", 443), &hello("www.example.org"));
            s.capture.write(dir.path(), &format!("{n}.pcap"))
        })
        .collect();
    let args = ["--interface", "mirror", "--lcores", "0@0,1@0,2@0", "--pcap-filter", ""];
    let ours = ["--blocklist", list.to_str().unwrap(), "--flow-log", log.to_str().unwrap()];
    let child = pair.start(dir.path(), &[&args[..], &ours].concat());
    let said = dir.path().join("stderr");
    let hang_up = || assert!(run("kill", &["-HUP", &child.id().to_string()]));
    wait_for(&said, "1 domains", 1);
    pair.replay(&captures[0], 1);
    // What was sent is read when the journal has it.
    let seen = |n: usize| {
        let deadline = Instant::now() + Duration::from_secs(30);
        let find = format!("{} and tcp", 2002 + 10 * (n - 1));
        while journaled(dir.path(), &format!("port {find}")) < 14 {
            assert!(Instant::now() < deadline, "packets of replay {n} are not journaled");
            std::thread::sleep(Duration::from_millis(100));
        }
    };
    seen(1);
    // A list that is gone: the old one stays.
    fs::rename(&list, dir.path().join("gone")).unwrap();
    hang_up();
    wait_for(&said, "stays as it was", 1);
    pair.replay(&captures[1], 1);
    seen(2);
    fs::write(&list, "example.org\nexample.net\n").unwrap();
    hang_up();
    wait_for(&said, "2 domains", 1);
    pair.replay(&captures[2], 1);
    // Of the third the other flow is journaled.
    let deadline = Instant::now() + Duration::from_secs(30);
    while journaled(dir.path(), "port 2021") < 14 || journaled(dir.path(), "port 2020") < 2 {
        assert!(Instant::now() < deadline);
        std::thread::sleep(Duration::from_millis(100));
    }
    let summary = interrupt(child).summary();
    let kept = ports(&events(&log));
    assert_eq!(kept, BTreeSet::from([2002, 2012, 2020, 2021]), "{summary}");
    let silenced = number(&summary["journal"], "silenced");
    assert_eq!(silenced, 2 * (2 + 11) + 11, "{summary}");
    assert_eq!(journaled(dir.path(), ""), 3 * 30 - silenced);
}
