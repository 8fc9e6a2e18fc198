//! The API as curl meets it: the real sensor, a live journal, real files, and clients that behave badly.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot run fails")]

mod common;
mod pair;
#[path = "common/traffic.rs"]
mod traffic;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use common::{home_plain, malakocut, number, total};
use pair::{Pair, interrupt, run};
use serde_json::{Value, json};
use traffic::{Packet, read_pcap};

const TOKEN: &str = "a token of some length";
/// All of the capture that has IPv4 addresses, 11 MB.
const EVERYTHING: &str = r#"{"ip":"0.0.0.0/0"}"#;

/// One at a time: senders and readers on a small machine would measure each other.
static ONE: Mutex<()> = Mutex::new(());

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Waits until something is so.
fn until<T>(what: &str, mut is: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        if let Some(found) = is() {
            return found;
        }
        assert!(Instant::now() < deadline, "never: {what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// A sensor that runs, on a port without packets unless other sources are given.
struct Sensor {
    child: Child,
    dir: PathBuf,
    /// `http://127.0.0.1:port`, where it listens.
    at: String,
}

impl Sensor {
    fn spawn(dir: &Path, args: &[&str], config: &str, token: Option<&str>) -> Child {
        let file = dir.join("malakocut.toml");
        fs::write(&file, config).unwrap();
        let mut command = common::command();
        command.env_remove("MALAKO_API_TOKEN");
        if let Some(token) = token {
            command.env("MALAKO_API_TOKEN", token);
        }
        if !args.contains(&"--read") {
            // The capture's packets are older than a journal usually keeps them.
            command.args([
                "--vdev",
                "net_null0,no-rx=1",
                "--retention",
                "36500d",
                "--min-free",
                "0",
            ]);
        }
        let socket = dir.join("s");
        for usual in [["--control-socket", text(&socket)], ["--api-listen", "127.0.0.1:0"]] {
            if !args.contains(&usual[0]) {
                command.args(usual);
            }
        }
        command
            .args(["--config", text(&file), "--data-dir", text(dir), "--summary", "json"])
            .args(args)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(fs::File::create(dir.join("stderr")).unwrap())
            .spawn()
            .unwrap()
    }

    fn start(dir: &Path, args: &[&str], config: &str) -> Self {
        let child = Self::spawn(dir, args, config, Some(TOKEN));
        let mut this = Self { child, dir: dir.into(), at: String::new() };
        this.at = until("it listens", || {
            let said = this.log();
            let at = said.split("the API is at ").nth(1)?.split('/').take(3).collect::<Vec<_>>();
            (at.len() == 3).then(|| at.join("/").trim_end().to_owned())
        });
        this
    }

    /// The same, when it is ready.
    fn ready(dir: &Path, args: &[&str], config: &str) -> Self {
        let this = Self::start(dir, args, config);
        until("it is ready", || (this.local(&["http://x/healthz"]).status == 200).then_some(()));
        this
    }

    fn log(&self) -> String {
        fs::read_to_string(self.dir.join("stderr")).unwrap()
    }

    /// curl by TCP; a path stands for its address.
    fn curl(&self, path: &str, args: &[&str]) -> Answer {
        curl(&[&[format!("{}{path}", self.at).as_str()], args].concat())
    }

    /// With the token.
    fn get(&self, path: &str) -> Answer {
        self.curl(path, &["-H", &bearer()])
    }

    fn extract(&self, body: &str, args: &[&str]) -> Answer {
        self.curl("/extract", &[&["-H", &bearer(), "-d", body], args].concat())
    }

    /// curl by the control socket.
    fn local(&self, args: &[&str]) -> Answer {
        local(&self.dir.join("s"), args)
    }

    fn threads_and_files(&self) -> (usize, usize) {
        let count =
            |what: &str| fs::read_dir(format!("/proc/{}/{what}", self.child.id())).unwrap().count();
        (count("task"), count("fd"))
    }

    fn resident_kb(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find(|l| l.starts_with("VmRSS")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    }

    /// Ends it, which takes no longer for open connections.
    fn end(mut self) -> String {
        assert!(run("kill", &["-INT", &self.child.id().to_string()]));
        let begun = Instant::now();
        let status = until("it ends", || self.child.try_wait().unwrap());
        println!("ended after {:?}", begun.elapsed());
        assert_eq!(status.code(), Some(0), "{}", self.log());
        assert!(!self.dir.join("s").exists());
        self.log()
    }
}

impl Drop for Sensor {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn bearer() -> String {
    format!("Authorization: Bearer {TOKEN}")
}

#[derive(Debug)]
struct Answer {
    /// curl's own exit status.
    exit: i32,
    status: u16,
    headers: BTreeMap<String, String>,
    body: Vec<u8>,
    seconds: f64,
}

impl Answer {
    fn json(&self) -> Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|e| panic!("{e}: {}", String::from_utf8_lossy(&self.body)))
    }

    fn packets(&self) -> Vec<Packet> {
        read_pcap(&self.body)
    }

    fn header(&self, name: &str) -> &str {
        self.headers.get(name).unwrap_or_else(|| panic!("no {name}: {self:?}"))
    }
}

fn curl(args: &[&str]) -> Answer {
    curl_by(&mut Command::new("curl"), args)
}

fn curl_by(command: &mut Command, args: &[&str]) -> Answer {
    let head = tempfile::NamedTempFile::new().unwrap();
    let body = tempfile::NamedTempFile::new().unwrap();
    let out = command
        .args(["-s", "-m", "60", "-w", "%{http_code} %{time_total}"])
        .args(["-D", text(head.path()), "-o", text(body.path())])
        .args(args)
        .output()
        .expect("curl runs");
    let said = String::from_utf8(out.stdout).unwrap();
    let mut said = said.split(' ');
    let head = fs::read_to_string(head.path()).unwrap();
    let headers = head.lines().filter_map(|l| l.split_once(": "));
    Answer {
        exit: out.status.code().unwrap_or(-1),
        status: said.next().unwrap().parse().unwrap(),
        seconds: said.next().unwrap().parse().unwrap(),
        headers: headers.map(|(n, v)| (n.to_lowercase(), v.trim().to_owned())).collect(),
        body: fs::read(body.path()).unwrap(),
    }
}

fn local(socket: &Path, args: &[&str]) -> Answer {
    curl(&[&["--unix-socket", text(socket)], args].concat())
}

/// Has the shipped capture journaled in files of 2 MB, and returns it.
fn journaled(dir: &Path) -> PathBuf {
    let capture = home_plain(dir);
    let args = [
        "--read",
        text(&capture),
        "--data-dir",
        text(dir),
        "--rotate-size",
        "2MB",
        "--min-free",
        "0",
    ];
    malakocut(&[&args[..], &["--journal", "on", "--summary", "json"]].concat()).ok();
    capture
}

fn tcpdump(file: &Path, filter: &str) -> Vec<Packet> {
    let out = Command::new("tcpdump")
        .args(["-r", text(file), "-w", "-", "--time-stamp-precision=nano", filter])
        .output()
        .expect("tcpdump runs");
    assert!(out.status.success(), "{filter}: {}", String::from_utf8_lossy(&out.stderr));
    read_pcap(&out.stdout)
}

/// Sixteen packets early in the capture.
const FLOW: &str = r#"{"src_ip":"192.168.1.42","src_port":44431,"dst_ip":"203.0.113.66",
    "dst_port":443,"protocol":"tcp"}"#;
const FLOW_FILTER: &str = "host 192.168.1.42 and host 203.0.113.66 and tcp port 44431";

/// What was answered, by method, path of the description, and status.
struct Seen<'a> {
    sensor: &'a Sensor,
    all: BTreeSet<(String, String, u16)>,
}

impl Seen<'_> {
    fn of(&mut self, template: &str, path: &str, args: &[&str], status: u16) -> Answer {
        let post = template == "/extract" || template == "/reload";
        let method = if post { "post" } else { "get" };
        let more: &[&str] = if post { &["-X", "POST"] } else { &[] };
        let answer = self.sensor.curl(path, &[more, args].concat());
        assert_eq!(answer.status, status, "{path} {args:?}: {answer:?}");
        if status >= 400 {
            assert!(answer.json()["error"].is_string());
        }
        assert_eq!(answer.header("x-request-id").len(), 16);
        self.all.insert((method.into(), template.into(), status));
        answer
    }
}

#[test]
fn every_answer_that_is_described_and_no_other() {
    let _one = ONE.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let dir = tempfile::tempdir().unwrap();
    journaled(dir.path());
    let config = "[api]\nmax_open = 2\nmax_bytes = 9000000\n";
    let sensor = Sensor::ready(dir.path(), &[], config);
    let auth = bearer();
    let with = ["-H", auth.as_str()];
    let mut seen = Seen { sensor: &sensor, all: BTreeSet::new() };
    let described: Value = seen.of("/openapi.json", "/openapi.json", &[], 200).json();
    let example = |template: &str| {
        template
            .replace("{flow_id}", "0123456789abcdef")
            .replace("{request_id}", "0123456789abcdef")
    };
    let paths: Vec<String> = described["paths"].as_object().unwrap().keys().cloned().collect();
    let is_open =
        |t: &str| matches!(t, "/" | "/app.js" | "/style.css" | "/openapi.json" | "/healthz");
    for t in &paths {
        if is_open(t) {
            let page = seen.of(t, t, &[], 200);
            assert!(page.header("content-security-policy").contains("default-src 'none'"));
            continue;
        }
        seen.of(t, &example(t), &[], 401);
        let answer = sensor.curl(&example(t), &["-X", "DELETE", "-H", &auth]);
        assert_eq!((answer.status, answer.header("allow").len() > 2), (405, true));
    }
    for t in ["/status", "/metrics", "/alerts", "/flows", "/journal", "/reload"] {
        seen.of(t, t, &with, 200);
    }
    assert_eq!(sensor.get("/nothing").status, 404);
    for (t, path, field) in [
        ("/alerts", "/alerts?since=1", "since"),
        ("/alerts", "/alerts?after=x", "after"),
        ("/flows", "/flows?limit=0", "limit"),
        ("/flows", "/flows?offset=99999999", "offset"),
        ("/flows", "/flows?sort=size", "sort"),
        ("/flows", "/flows?order=up", "order"),
        ("/flows", "/flows?after=xyz", "after"),
        ("/flows", "/flows?filter=bites%3E1", "filter"),
        ("/flows", "/flows?filter=bytes%3E", "filter"),
        ("/flows", "/flows?page=1", "page"),
        ("/flows/{flow_id}", "/flows/12", "flow_id"),
        ("/flows/{flow_id}/pcap", "/flows/12/pcap", "flow_id"),
    ] {
        assert_eq!(seen.of(t, path, &with, 400).json()["field"], field, "{path}");
    }
    seen.of("/flows/{flow_id}", "/flows/0123456789abcdef", &with, 404);
    seen.of("/extract/{request_id}", "/extract/0123456789abcdef", &with, 404);
    let x = "/extract";
    let data = |body| [with[0], with[1], "-d", body];
    for (body, field) in [
        (r#"{"src_ip":"10.0.0.1","sourceport":1}"#, json!("sourceport")),
        (r#"{"src_ip":"10.0.0.1","filter":"tcp prot 80"}"#, json!("filter")),
        (r#"{"protocol":"tcp"}"#, json!("src_ip")),
        ("{", Value::Null),
    ] {
        assert_eq!(seen.of(x, x, &data(body), 400).json()["field"], field, "{body}");
    }
    let of_flow = "/flows/{flow_id}/pcap";
    let empty = seen.of(of_flow, "/flows/0123456789abcdef/pcap", &with, 200);
    assert_eq!((empty.body.len(), empty.header("malakocut-packets")), (24, "0"));
    let html = [with[0], with[1], "-H", "Accept: text/html"];
    seen.of(of_flow, "/flows/0123456789abcdef/pcap", &html, 406);
    seen.of(x, x, &[&data(FLOW)[..], &["-H", "Accept: text/html"]].concat(), 406);
    let found = seen.of(x, x, &data(FLOW), 200);
    let facts = format!("/extract/{}", found.header("x-request-id"));
    assert_eq!(found.header("malakocut-facts"), facts);
    let facts = seen.of("/extract/{request_id}", &facts, &with, 200).json();
    assert_eq!(facts["state"], "done");
    assert_eq!(facts["packets"].to_string(), found.header("malakocut-packets"));
    let long = format!(r#"{{"src_ip":"{}"}}"#, "1".repeat(70_000));
    seen.of(x, x, &data(&long), 413);
    // A body that never comes, on a connection of its own.
    let mut slow = TcpStream::connect(sensor.at.trim_start_matches("http://")).unwrap();
    write!(slow, "POST /extract HTTP/1.1\r\nHost: x\r\n{auth}\r\nContent-Length: 9\r\n\r\n{{")
        .unwrap();
    let mut said = [0; 12];
    slow.read_exact(&mut said).unwrap();
    assert_eq!(&said, b"HTTP/1.1 408");
    seen.all.insert(("post".into(), x.into(), 408));
    // Two that take nothing keep others out.
    let stuck: Vec<_> = (0..2).map(|_| never_reads(&sensor)).collect();
    until("both are open", || {
        let text = String::from_utf8(sensor.get("/metrics").body).unwrap();
        text.contains("malakocut_extractions_open 2").then_some(())
    });
    assert_eq!(seen.of(x, x, &data(FLOW), 503).header("retry-after"), "2");
    seen.of(of_flow, "/flows/0123456789abcdef/pcap", &with, 503);
    drop(stuck);
    until("they are left", || (sensor.extract(FLOW, &[]).status == 200).then_some(()));
    // From other addresses of this machine: this one is to be listened to.
    for (n, t) in paths.iter().filter(|t| !is_open(t)).enumerate() {
        let from = format!("127.0.9.{}", n + 1);
        let wrong = ["--interface", from.as_str(), "-H", "Authorization: Bearer guess"];
        for _ in 0..10 {
            seen.of(t, &example(t), &wrong, 401);
        }
        let right = ["--interface", from.as_str(), "-H", auth.as_str()];
        let answer = seen.of(t, &example(t), &right, 429);
        assert!(answer.header("retry-after").parse::<u64>().unwrap() <= 60);
    }
    let mut all = seen.all;
    let log = sensor.end();
    assert!(!log.contains(TOKEN) && !log.contains("guess"), "{log}");
    assert!(log.contains("a wrong token from 127.0.9.1"));
    assert!(log.contains("audit: extraction") && log.contains("203.0.113.66"), "{log}");
    for (post, t) in troubles() {
        all.insert((post.into(), t.into(), 503));
    }
    for t in without_a_journal() {
        all.insert((if t == x { "post" } else { "get" }.into(), t.into(), 404));
    }
    // 413 of an answer, since a question by GET has no body.
    let flow = large_flow();
    all.insert(("get".into(), of_flow.into(), flow));
    let mut want = BTreeSet::new();
    for (path, methods) in described["paths"].as_object().unwrap() {
        for (method, operation) in methods.as_object().unwrap() {
            for status in operation["responses"].as_object().unwrap().keys() {
                want.insert((method.clone(), path.clone(), status.parse::<u16>().unwrap()));
            }
        }
    }
    // No live flow here; the live test has one.
    want.remove(&("get".into(), "/flows/{flow_id}".into(), 200));
    assert_eq!(all, want);
}

/// Asks for everything, and takes nothing of it.
fn never_reads(sensor: &Sensor) -> TcpStream {
    let mut stream = TcpStream::connect(sensor.at.trim_start_matches("http://")).unwrap();
    // Below what is to be given, so that the answer does not hide in buffers.
    let length = EVERYTHING.len();
    let auth = bearer();
    write!(
        stream,
        "POST /extract HTTP/1.1\r\nHost: x\r\n{auth}\r\nContent-Length: {length}\r\n\r\n{EVERYTHING}"
    )
    .unwrap();
    stream
}

/// A sensor whose log nobody drains stands still: its servers say so.
fn troubles() -> Vec<(&'static str, &'static str)> {
    let dir = tempfile::tempdir().unwrap();
    let capture = home_plain(dir.path());
    let log = dir.path().join("log");
    assert!(run("mkfifo", &[text(&log)]));
    // Both ends, so that nobody waits for the other.
    let _held = fs::OpenOptions::new().read(true).write(true).open(&log).unwrap();
    let args = ["--read", text(&capture), "--flow-log", text(&log)];
    let sensor = Sensor::start(dir.path(), &args, "");
    let why = until("it is in trouble", || {
        let answer = sensor.curl("/healthz", &[]);
        let why = answer.json()["error"].as_str().unwrap_or_default().to_owned();
        (answer.status == 503 && why.contains("no report")).then_some(why)
    });
    println!("{why}");
    let auth = bearer();
    let threads: Vec<_> =
        [("get", "/flows"), ("get", "/flows/0123456789abcdef"), ("post", "/reload")]
            .map(|(method, path)| {
                let (at, auth) = (format!("{}{path}", sensor.at), auth.clone());
                std::thread::spawn(move || curl(&[&at, "-H", &auth, "-X", &method.to_uppercase()]))
            })
            .into_iter()
            .collect();
    for thread in threads {
        let answer = thread.join().unwrap();
        assert_eq!((answer.status, answer.header("retry-after")), (503, "5"));
    }
    vec![("get", "/healthz"), ("get", "/flows"), ("get", "/flows/{flow_id}"), ("post", "/reload")]
}

fn without_a_journal() -> Vec<&'static str> {
    let dir = tempfile::tempdir().unwrap();
    let sensor = Sensor::ready(dir.path(), &["--journal", "off"], "");
    assert_eq!(sensor.get("/journal").status, 404);
    assert_eq!(sensor.extract(FLOW, &[]).status, 404);
    assert_eq!(sensor.get("/flows/0123456789abcdef/pcap").status, 404);
    vec!["/journal", "/extract", "/flows/{flow_id}/pcap"]
}

/// The status of a flow's packets where these are more than one answer may have.
fn large_flow() -> u16 {
    let dir = tempfile::tempdir().unwrap();
    let flows = dir.path().join("flows");
    let capture = home_plain(dir.path());
    let args = [
        "--read",
        text(&capture),
        "--data-dir",
        text(dir.path()),
        "--journal",
        "on",
        "--min-free",
        "0",
    ];
    malakocut(&[&args[..], &["--flow-log", text(&flows), "--summary", "json"]].concat()).ok();
    let events = common::events(&flows);
    let large = events.iter().max_by_key(|e| number(e, "total_bytes")).unwrap();
    let sensor = Sensor::ready(dir.path(), &[], "[api]\nmax_bytes = 1000\n");
    let path = format!("/flows/{}/pcap", large["flow_id"].as_str().unwrap());
    sensor.get(&path).status
}

#[test]
fn an_answer_is_what_tcpdump_finds_as_pcap_and_pcapng() {
    let _one = ONE.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let dir = tempfile::tempdir().unwrap();
    let capture = journaled(dir.path());
    let sensor = Sensor::ready(dir.path(), &[], "");
    let want = tcpdump(&capture, FLOW_FILTER);
    assert_eq!(want.len(), 16);
    let answer = sensor.extract(FLOW, &[]);
    assert_eq!(answer.packets(), want);
    assert_eq!(answer.header("content-type"), "application/vnd.tcpdump.pcap");
    assert_eq!(answer.header("malakocut-packets"), want.len().to_string());
    assert_eq!(
        (answer.header("malakocut-complete"), answer.header("malakocut-lost")),
        ("true", "0")
    );
    // The same by the control socket, without a token.
    assert_eq!(sensor.local(&["-d", FLOW, "http://x/extract"]).packets(), want);
    // Larger than a chunk: the header goes out before the end is known.
    let all = sensor.extract(EVERYTHING, &[]);
    assert_eq!((all.exit, all.headers.contains_key("malakocut-packets")), (0, false));
    let facts = sensor.get(all.header("malakocut-facts")).json();
    assert_eq!((facts["state"].clone(), facts["complete"].clone()), (json!("done"), json!(true)));
    let found = all.packets();
    assert_eq!(found.len() as u64, number(&facts, "packets"));
    assert!(found.windows(2).all(|w| w[0].ns <= w[1].ns));
    for accept in ["application/x-pcapng", "application/vnd.tcpdump.pcap"] {
        let answer = sensor.extract(FLOW, &["-H", &format!("Accept: {accept}")]);
        let file = dir.path().join("answer");
        fs::write(&file, &answer.body).unwrap();
        let out = Command::new("tshark")
            .args(["-r", text(&file), "-T", "fields", "-e", "frame.number"])
            .output()
            .expect("tshark runs");
        let said = String::from_utf8_lossy(&out.stderr).into_owned();
        assert!(out.status.success(), "{accept}: {said}");
        assert_eq!(String::from_utf8_lossy(&out.stdout).lines().count(), want.len(), "{accept}");
        if accept.ends_with("ng") {
            let remark = format!("packets {}, bytes", want.len());
            assert!(String::from_utf8_lossy(&answer.body).contains(&remark));
        }
    }
    let estimate = sensor.extract(&FLOW.replace('{', r#"{"dry_run":true,"#), &[]).json();
    assert_eq!(number(&estimate, "packets"), want.len() as u64);
    sensor.end();
}

#[test]
fn a_live_journal_under_load_gives_what_its_files_have() {
    let _one = ONE.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let Some(pair) = Pair::new() else { return };
    let dir = tempfile::tempdir().unwrap();
    let capture = home_plain(dir.path());
    let socket = dir.path().join("s");
    let ring = "net_af_packet0,iface=mirror,blocksz=1048576,framesz=2048,framecnt=65536";
    let args = ["--vdev", ring, "--pcap-filter", "", "--rotate-size", "4MB", "--min-free", "0"];
    let child = pair.start(dir.path(), &[&args[..], &["--control-socket", text(&socket)]].concat());
    let mut load = pair
        .command("tcpreplay")
        .args(["-q", "--pps", "4000", "-l", "40", "-i", "sender", text(&capture)])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let ask = |body: &str| local(&socket, &["-d", body, "http://x/extract"]);
    // Asked while packets come; what lies below its watermark is final.
    let early = until("some of it is safe", || {
        let answer = ask(FLOW);
        let some = answer.headers.contains_key("malakocut-watermark") && answer.body.len() > 2000;
        some.then_some(answer)
    });
    let watermark = early.header("malakocut-watermark").to_owned();
    let bounded = FLOW.replace('{', &format!(r#"{{"end":"{watermark}","#));
    let first = ask(&bounded);
    let facts = local(&socket, &[&format!("http://x{}", first.header("malakocut-facts"))]).json();
    assert_eq!((facts["complete"].clone(), facts["lost"].clone()), (json!(true), json!(0)));
    // A flow that is live now, by its id.
    let flows = local(&socket, &["http://x/flows?sort=end&limit=5"]).json();
    let row = &flows["rows"][0];
    let id = row["flow_id"].as_str().unwrap();
    let one = local(&socket, &[&format!("http://x/flows/{id}")]);
    assert_eq!((one.status, &one.json()["src_ip"]), (200, &row["src_ip"]));
    println!("{} live flows copied out in {} ms", flows["flows"], flows["took_ms"]);
    // A hundred at once.
    let begun = Instant::now();
    let asking: Vec<_> = (0..100)
        .map(|n| {
            let socket = socket.clone();
            let body = if n % 10 == 0 { EVERYTHING } else { FLOW };
            std::thread::spawn(move || local(&socket, &["-d", body, "http://x/extract"]))
        })
        .collect();
    let answers: Vec<Answer> = asking.into_iter().map(|t| t.join().unwrap()).collect();
    let mut slowest: Vec<f64> = answers.iter().map(|a| a.seconds).collect();
    slowest.sort_by(f64::total_cmp);
    println!(
        "100 at once in {:?}; median {:.3} s, last {:.3} s",
        begun.elapsed(),
        slowest[50],
        slowest[99]
    );
    assert!(answers.iter().all(|a| a.exit == 0 && a.status == 200));
    assert!(load.try_wait().unwrap().is_none(), "the load was over before the questions were");
    load.kill().unwrap();
    load.wait().unwrap();
    let again = ask(&bounded);
    let summary = interrupt(child).summary();
    println!("{} packets, drops {}", summary["packets"], summary["drops"]);
    assert_eq!(total(&summary["drops"]), 0, "{summary}");
    let mut want = Vec::new();
    for file in common::segments(dir.path()) {
        want.extend(tcpdump(&file, FLOW_FILTER));
    }
    let last: jiff::Timestamp = watermark.parse().unwrap();
    want.retain(|p| i128::from(p.ns) <= last.as_nanosecond());
    assert!(!want.is_empty());
    let packets = first.packets();
    assert_eq!(packets, again.packets());
    assert_eq!(packets, want);
}

#[test]
fn clients_that_stop_reading_or_go_leave_nothing_behind() {
    let _one = ONE.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let dir = tempfile::tempdir().unwrap();
    journaled(dir.path());
    let sensor = Sensor::ready(dir.path(), &[], "[api]\npatience = 3\n");
    assert_eq!(sensor.extract(FLOW, &[]).status, 200);
    let settled = || {
        let now = sensor.threads_and_files();
        std::thread::sleep(Duration::from_millis(300));
        (sensor.threads_and_files() == now).then_some(now)
    };
    let before = until("it is still", settled);
    let resident = sensor.resident_kb();
    let open = || {
        let text = String::from_utf8(sensor.get("/metrics").body).unwrap();
        let line = text.lines().find(|l| l.starts_with("malakocut_extractions_open")).unwrap();
        line.split(' ').nth(1).unwrap().parse::<u32>().unwrap()
    };
    // Two that go in the middle.
    let gone: Vec<_> = (0..2).map(|_| never_reads(&sensor)).collect();
    until("two are open", || (open() == 2).then_some(()));
    drop(gone);
    until("they are left", || (open() == 0).then_some(()));
    // By TCP and by the control socket: neither takes anything.
    let stuck: Vec<_> = (0..8).map(|_| never_reads(&sensor)).collect();
    let mut local = UnixStream::connect(sensor.dir.join("s")).unwrap();
    let length = EVERYTHING.len();
    write!(
        local,
        "POST /extract HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n\r\n{EVERYTHING}"
    )
    .unwrap();
    until("nine are open", || (open() == 9).then_some(()));
    println!("9 that take nothing: {} kB more", sensor.resident_kb().saturating_sub(resident));
    // One that takes little is served on.
    let slow = sensor
        .curl("/extract", &["-H", &bearer(), "-d", EVERYTHING, "--limit-rate", "1K", "-m", "8"]);
    assert_eq!(slow.exit, 28, "curl's own time was over");
    until("they are left", || (open() == 0).then_some(()));
    drop((stuck, local));
    until("threads and files are as before", || {
        (sensor.threads_and_files() == before).then_some(())
    });
    let log = sensor.end();
    assert!(log.contains("took nothing for 3 s"), "{log}");
    assert_eq!(log.matches("-> Abandoned").count(), 12, "{log}");
}

#[test]
fn a_failure_in_the_middle_breaks_the_transfer() {
    let _one = ONE.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    for delete in [false, true] {
        let dir = tempfile::tempdir().unwrap();
        journaled(dir.path());
        let sensor = Sensor::ready(dir.path(), &[], "");
        let mut stream = never_reads(&sensor);
        let mut head = [0; 4096];
        let n = stream.read(&mut head).unwrap();
        let head = String::from_utf8_lossy(&head[..n]).to_lowercase();
        let id = head.split("x-request-id: ").nth(1).unwrap()[..16].to_owned();
        assert!(head.contains("transfer-encoding: chunked"), "{head}");
        // The last files are not read yet: buffers are smaller.
        let files = common::segments(dir.path());
        let file = &files[files.len() - 2];
        if delete {
            fs::remove_file(file).unwrap();
        } else {
            fs::OpenOptions::new().write(true).open(file).unwrap().set_len(100_000).unwrap();
        }
        let mut rest = Vec::new();
        stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        // Whether it ends with a reset or without: there is no last chunk.
        let _ = stream.read_to_end(&mut rest);
        assert!(rest.len() > 1 << 20 && !rest.ends_with(b"0\r\n\r\n"));
        let facts = sensor.get(&format!("/extract/{id}")).json();
        assert_eq!(
            (facts["state"].clone(), facts["complete"].clone()),
            (json!("failed"), json!(false))
        );
        let name = file.file_name().unwrap().to_str().unwrap();
        assert!(facts["gaps"][0].as_str().unwrap().contains(name), "{facts}");
        // A file that is gone is no part of the journal any more; a damaged one breaks it again.
        let again = sensor.extract(EVERYTHING, &[]);
        let exit = if delete { 0 } else { 18 };
        assert_eq!((again.status, again.exit), (200, exit), "18: transfer closed");
        sensor.end();
    }
}

#[test]
fn a_certificate_is_replaced_while_it_runs() {
    let _one = ONE.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let dir = tempfile::tempdir().unwrap();
    journaled(dir.path());
    let make = |name: &str| {
        let (cert, key) =
            (dir.path().join(format!("{name}.pem")), dir.path().join(format!("{name}.key")));
        let out = Command::new("openssl")
            .args([
                "req",
                "-x509",
                "-newkey",
                "ec",
                "-pkeyopt",
                "ec_paramgen_curve:prime256v1",
                "-nodes",
            ])
            .args([
                "-days",
                "2",
                "-subj",
                &format!("/CN={name}"),
                "-addext",
                "subjectAltName=IP:127.0.0.1",
            ])
            .args(["-out", text(&cert), "-keyout", text(&key)])
            .output()
            .expect("openssl runs");
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        (cert, key)
    };
    let (first, second) = (make("first"), make("second"));
    let (cert, key) = (dir.path().join("cert.pem"), dir.path().join("key.pem"));
    fs::copy(&first.0, &cert).unwrap();
    fs::copy(&first.1, &key).unwrap();
    let config = format!("[api]\ntls_cert = {cert:?}\ntls_key = {key:?}\n");
    let sensor = Sensor::ready(dir.path(), &[], &config);
    assert!(sensor.at.starts_with("https://"));
    let trust =
        |cert: &Path, http: &str| sensor.extract(EVERYTHING, &[http, "--cacert", text(cert)]);
    let want = trust(&first.0, "--http1.1").packets();
    assert!(want.len() > 10_000);
    assert!(trust(&first.0, "--http2").packets() == want, "over HTTP/2 it is the same");
    assert_eq!(trust(&second.0, "--http1.1").exit, 60, "curl does not trust another");
    // A damaged one changes nothing.
    fs::write(&cert, "nothing").unwrap();
    until("it says so", || sensor.log().contains("the certificate stays as it was").then_some(()));
    assert_eq!(trust(&first.0, "--http1.1").status, 200);
    fs::copy(&second.0, &cert).unwrap();
    fs::copy(&second.1, &key).unwrap();
    until("the new one is shown", || (trust(&second.0, "--http1.1").status == 200).then_some(()));
    sensor.end();
}

#[test]
fn what_cannot_be_had_is_refused_at_the_start() {
    let _one = ONE.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let dir = tempfile::tempdir().unwrap();
    let refused = |args: &[&str], config: &str, token: Option<&str>| {
        let dir = tempfile::tempdir().unwrap();
        let mut child =
            Sensor::spawn(dir.path(), &[args, &["--journal", "off"]].concat(), config, token);
        let status = until("it is refused", || child.try_wait().unwrap());
        let said = fs::read_to_string(dir.path().join("stderr")).unwrap();
        assert_eq!(status.code(), Some(2), "{args:?}: {said}");
        said
    };
    let said = refused(&[], "", Some("0123456789abcde"));
    assert!(said.contains("at least 16") && !said.contains("0123456789abcde"), "{said}");
    assert!(refused(&["--api-listen", "attic"], "", None).contains("--api-listen"));
    assert!(refused(&["--api-listen", "192.0.2.99"], "", Some(TOKEN)).contains("192.0.2.99:8080"));
    assert!(refused(&[], "[api]\ntls_cert = \"/no\"\n", Some(TOKEN)).contains("tls_key"));
    let tls = "[api]\ntls_cert = \"/no/such\"\ntls_key = \"/no/such\"\n";
    assert!(refused(&[], tls, Some(TOKEN)).contains("/no/such"));
    assert!(refused(&[], "[api]\nmax_open = 0\n", None).contains("max_open"));
    assert!(refused(&[], "[api]\nlisten = 1\n", None).contains("listen"));
    let socket = dir.path().join("no/s");
    let args = ["--control-socket", text(&socket)];
    assert!(refused(&args, "", None).contains("no/s"));
    // Another sensor's socket is left alone; without a token there is no TCP.
    let child = Sensor::spawn(dir.path(), &["--journal", "off"], "", None);
    let first = Sensor { child, dir: dir.path().into(), at: String::new() };
    until("it is ready", || (first.local(&["http://x/healthz"]).status == 200).then_some(()));
    let socket = dir.path().join("s");
    assert!(refused(&["--control-socket", text(&socket)], "", None).contains("another malakocut"));
    assert_eq!(first.local(&["http://x/status"]).status, 200);
    let log = first.end();
    assert!(log.contains("no API at 127.0.0.1:0") && !log.contains("the API is at"), "{log}");
}

#[test]
fn a_file_that_is_read_can_be_asked_about_meanwhile() {
    let _one = ONE.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let dir = tempfile::tempdir().unwrap();
    let capture = home_plain(dir.path());
    let pipe = dir.path().join("pipe");
    assert!(run("mkfifo", &[text(&pipe)]));
    let bytes = fs::read(&capture).unwrap();
    let (go, wait) = std::sync::mpsc::channel::<()>();
    let to = pipe.clone();
    let writer = std::thread::spawn(move || {
        let mut pipe = fs::OpenOptions::new().write(true).open(to).unwrap();
        pipe.write_all(&bytes).unwrap();
        let _ = wait.recv();
    });
    let mut sensor = Sensor::start(
        dir.path(),
        &["--read", text(&pipe), "--journal", "on", "--min-free", "0"],
        "",
    );
    let want = tcpdump(&capture, FLOW_FILTER);
    until("all of it is there", || (sensor.extract(FLOW, &[]).packets() == want).then_some(()));
    go.send(()).unwrap();
    writer.join().unwrap();
    let status = until("it ends", || sensor.child.try_wait().unwrap());
    assert_eq!(status.code(), Some(0), "{}", sensor.log());
}
