//! The sensor as an appliance: what it says of its set-up, how it ends, what systemd is told, and
//! the package. Live tests run on a veth pair in a namespace of their own.

#![allow(clippy::unwrap_used, reason = "a test that cannot run fails")]

mod common;
mod pair;

use std::collections::BTreeSet;
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use common::packets::Capture;
use common::{Run, events, home_plain, number};
use etherparse::PacketBuilder;
use pair::{Pair, interrupt, run};
use serde_json::Value;

const CLI: &str = env!("CARGO_BIN_EXE_malakocut-cli");
static ONE: Mutex<()> = Mutex::new(());

fn alone() -> std::sync::MutexGuard<'static, ()> {
    ONE.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

fn project() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Waits for something that a loaded machine may take long to do.
fn until<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < deadline, "not within a minute: {what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

// ---- Traffic ----------------------------------------------------------------------------------

const CLIENT: [u8; 6] = [2, 0, 0, 0, 0, 5];
const SERVER: [u8; 6] = [2, 0, 0, 0, 0, 1];

/// One segment of connection `n`.
fn segment(n: u16, from_client: bool, seq: u32, flags: &str, payload: usize) -> Vec<u8> {
    let (client, server) = ([10, 0, 0, 5], [10, 0, 0, 1]);
    let (macs, ips, ports) = match from_client {
        true => ((CLIENT, SERVER), (client, server), (20_000 + n, 80)),
        false => ((SERVER, CLIENT), (server, client), (80, 20_000 + n)),
    };
    let mut tcp = PacketBuilder::ethernet2(macs.0, macs.1)
        .ipv4(ips.0, ips.1, 64)
        .tcp(ports.0, ports.1, seq, 8192);
    if flags.contains('S') {
        tcp = tcp.syn();
    }
    if flags.contains('F') {
        tcp = tcp.fin();
    }
    if flags.contains('A') {
        tcp = tcp.ack(1);
    }
    let mut out = Vec::new();
    tcp.write(&mut out, &vec![7; payload]).unwrap();
    out
}

/// Connections with both directions, each frame changed by `change` (which may drop it).
fn connections(
    dir: &Path,
    payload: usize,
    mut change: impl FnMut(bool, Vec<u8>) -> Vec<Vec<u8>>,
) -> PathBuf {
    let mut capture = Capture::default();
    for n in 0..40 {
        for (from_client, seq, flags, payload) in [
            (true, 0, "S", 0),
            (false, 0, "SA", 0),
            (true, 1, "A", payload),
            (false, 1, "A", payload),
            (true, 1 + payload as u32, "FA", 0),
            (false, 1 + payload as u32, "FA", 0),
        ] {
            for frame in change(from_client, segment(n, from_client, seq, flags, payload)) {
                capture.add(u64::from(n), &frame);
            }
        }
    }
    capture.write(dir, "sent.pcap")
}

fn tagged(frame: &[u8], vlan: u16) -> Vec<u8> {
    [&frame[..12], &[0x81, 0], &vlan.to_be_bytes(), &frame[12..]].concat()
}

/// Runs the sensor while the capture is sent; the names of what it found, and its summary.
fn found(pair: &Pair, dir: &Path, capture: &Path) -> (BTreeSet<String>, Value) {
    let child = pair.start(dir, &["--interface", "mirror", "--journal", "off"]);
    pair.replay(capture, 1);
    let summary = interrupt(child).summary();
    (names(&summary["findings"]), summary)
}

fn names(findings: &Value) -> BTreeSet<String> {
    findings.as_array().unwrap().iter().map(|f| f["name"].as_str().unwrap().to_owned()).collect()
}

// ---- What it finds ----------------------------------------------------------------------------

#[test]
fn each_fault_of_a_mirror_is_found_and_a_good_one_has_none() {
    let _one = alone();
    let Some(pair) = Pair::new() else { return };
    for end in ["sender", "mirror"] {
        pair.output("ip", &["link", "set", end, "mtu", "9000"]);
    }
    let own = pair.output("cat", &["/sys/class/net/mirror/address"]);
    let own: Vec<u8> = own.trim().split(':').map(|b| u8::from_str_radix(b, 16).unwrap()).collect();
    type Change<'a> = Box<dyn FnMut(bool, Vec<u8>) -> Vec<Vec<u8>> + 'a>;
    let broadcast = |mut f: Vec<u8>| {
        f[..6].fill(0xff);
        f
    };
    let flip = |mut f: Vec<u8>, at: usize| {
        f[at] ^= 0x55;
        f
    };
    let to = |mut f: Vec<u8>, mac: &[u8]| {
        f[..6].copy_from_slice(mac);
        f
    };
    let cases: Vec<(&[&str], usize, Change<'_>)> = vec![
        (&[], 100, Box::new(|_, f| vec![f])),
        (&["one_direction"], 100, Box::new(|client, f| if client { vec![f] } else { vec![] })),
        (&["duplicates"], 100, Box::new(|_, f| vec![f.clone(), f])),
        (
            &["vlan_per_direction"],
            100,
            Box::new(|client, f| vec![tagged(&f, if client { 10 } else { 20 })]),
        ),
        (&["no_foreign_unicast"], 100, Box::new(|_, f| vec![broadcast(f)])),
        (&["own_traffic"], 100, Box::new(|client, f| vec![if client { to(f, &own) } else { f }])),
        (&["bad_checksums"], 100, Box::new(|_, f| vec![flip(f, 50)])),
        (&["oversize", "truncated"], 4000, Box::new(|_, f| vec![f])),
    ];
    for (wanted, payload, change) in cases {
        let dir = tempfile::tempdir().unwrap();
        let capture = connections(dir.path(), payload, change);
        let (names, summary) = found(&pair, dir.path(), &capture);
        let wanted: BTreeSet<String> = wanted.iter().map(|n| (*n).to_owned()).collect();
        assert_eq!(names, wanted, "{summary}");
        for finding in summary["findings"].as_array().unwrap() {
            assert!(!finding["mend"].as_str().unwrap().is_empty());
            println!("{}: {} ({})", finding["name"], finding["text"], finding["mend"]);
        }
    }
    // A card that was to finish them never saw these.
    let dir = tempfile::tempdir().unwrap();
    let capture = connections(dir.path(), 0, |_, mut f| {
        let sum: u32 = f[26..34].chunks(2).map(|w| u32::from(w[0]) << 8 | u32::from(w[1])).sum();
        let mut sum = sum + 6 + (f.len() as u32 - 34);
        while sum > 0xffff {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        f[50..52].copy_from_slice(&(sum as u16).to_be_bytes());
        vec![f]
    });
    let (names, summary) = found(&pair, dir.path(), &capture);
    assert!(names.contains("unfinished_checksums"), "{summary}");
}

#[test]
fn packets_that_are_lost_are_a_finding_while_it_runs() {
    let _one = alone();
    let Some(pair) = Pair::new() else { return };
    let dir = tempfile::tempdir().unwrap();
    let capture = home_plain(dir.path());
    let device = "net_af_packet0,iface=mirror,blocksz=4096,framesz=2048,framecnt=512";
    let child = pair.start(dir.path(), &["--vdev", device, "--journal", "off"]);
    signal(&child, "STOP");
    pair.replay(&capture, 1);
    signal(&child, "CONT");
    until("the finding in the report", || {
        let report: Value =
            serde_json::from_slice(&fs::read(dir.path().join("health.json")).ok()?).ok()?;
        names(&report["findings"]).contains("drops").then_some(())
    });
    assert!(names(&interrupt(child).summary()["findings"]).contains("drops"));
    assert!(!dir.path().join("health.json").exists(), "the report goes with the sensor");
}

#[test]
fn a_full_disk_is_a_finding_and_capture_goes_on() {
    let _one = alone();
    let Some(pair) = Pair::new() else { return };
    let dir = tempfile::tempdir().unwrap();
    let capture = home_plain(dir.path());
    let data = dir.path().join("data");
    fs::create_dir(&data).unwrap();
    assert!(run("mount", &["-t", "tmpfs", "-o", "size=16m", "none", data.to_str().unwrap()]));
    let args = ["--interface", "mirror", "--pcap-filter", "", "--min-free", "0"];
    let mut child = pair.start_with(dir.path(), &data, &args);
    let mut refused = false;
    for _ in 0..60 {
        pair.replay(&capture, 1);
        let log = fs::read_to_string(dir.path().join("stderr")).unwrap();
        if log.contains("disk_refuses") {
            refused = true;
            break;
        }
    }
    assert!(child.try_wait().unwrap().is_none(), "it does not end");
    let summary = interrupt_whatever(child);
    run("umount", &[data.to_str().unwrap()]);
    assert!(refused, "{}", fs::read_to_string(dir.path().join("stderr")).unwrap());
    assert!(number(&summary.summary()["drops"], "journal_no_space") > 0);
}

// ---- How it behaves ---------------------------------------------------------------------------

fn signal(child: &Child, name: &str) {
    assert!(run("kill", &[&format!("-{name}"), &child.id().to_string()]));
}

/// Ends it in order, however it takes its losses.
fn interrupt_whatever(child: Child) -> Run {
    signal(&child, "INT");
    Run::of(child.wait_with_output().unwrap())
}

/// Its end, when it ends by itself.
fn ended(mut child: Child) -> Run {
    until("its end", || child.try_wait().unwrap());
    Run::of(child.wait_with_output().unwrap())
}

#[test]
fn a_lost_link_is_said_and_survived() {
    let _one = alone();
    let Some(pair) = Pair::new() else { return };
    let dir = tempfile::tempdir().unwrap();
    let capture = connections(dir.path(), 100, |_, f| vec![f]);
    let child = pair.start(dir.path(), &["--interface", "mirror", "--journal", "off"]);
    let log = || fs::read_to_string(dir.path().join("stderr")).unwrap();
    for link in ["sender", "mirror"] {
        let before = log().matches("the link is down").count();
        pair.output("ip", &["link", "set", link, "down"]);
        until("the loss is said", || {
            (log().matches("the link is down").count() > before).then_some(())
        });
        let report: Value = until("the finding", || {
            let report = fs::read(dir.path().join("health.json")).ok()?;
            let report: Value = serde_json::from_slice(&report).ok()?;
            names(&report["findings"]).contains("link_down").then_some(report)
        });
        assert_eq!(report["interface"], "mirror");
        let before = log().matches("the link is up").count();
        pair.output("ip", &["link", "set", link, "up"]);
        until("its return is said", || {
            (log().matches("the link is up").count() > before).then_some(())
        });
        pair.replay(&capture, 1);
    }
    let summary = interrupt(child).summary();
    assert_eq!(number(&summary, "packets"), 2 * 240, "{summary}");
}

#[test]
fn a_vanished_interface_ends_it_as_a_failure_with_everything_reported() {
    let _one = alone();
    let Some(pair) = Pair::new() else { return };
    let dir = tempfile::tempdir().unwrap();
    let capture = connections(dir.path(), 100, |_, f| vec![f]);
    let log = dir.path().join("flows");
    let args = ["--interface", "mirror", "--journal", "on", "--flow-log", log.to_str().unwrap()];
    let child = pair.start(dir.path(), &args);
    pair.replay(&capture, 1);
    pair.output("ip", &["link", "del", "sender"]);
    let run = ended(child);
    assert_eq!(run.code, Some(1), "{}", run.stderr);
    let said = fs::read_to_string(dir.path().join("stderr")).unwrap();
    assert!(said.contains("interface mirror is gone"), "{said}");
    assert_eq!(events(&log).iter().map(|e| number(e, "packets")).sum::<u64>(), 240);
}

#[test]
fn sigterm_reports_every_flow_within_five_seconds() {
    let _one = alone();
    let Some(pair) = Pair::new() else { return };
    let dir = tempfile::tempdir().unwrap();
    let capture = home_plain(dir.path());
    let log = dir.path().join("flows");
    let args = ["--interface", "mirror", "--lcores", "0@0,1@0", "--pcap-filter", "", "--flow-log"];
    let child = pair.start(dir.path(), &[&args[..], &[log.to_str().unwrap()]].concat());
    pair.replay(&capture, 2);
    let begun = Instant::now();
    signal(&child, "TERM");
    let run = Run::of(child.wait_with_output().unwrap()).ok();
    let took = begun.elapsed();
    println!("ended {took:?} after SIGTERM");
    assert!(took < Duration::from_secs(5), "{took:?}");
    let summary = run.summary();
    let flows: u64 = events(&log).iter().map(|e| number(e, "packets")).sum();
    assert_eq!(flows, number(&summary, "decoded"));
    let checked =
        Command::new(CLI).args(["journal", "verify", "--data-dir"]).arg(dir.path()).output();
    assert!(checked.unwrap().status.success());
}

/// What systemd would hear.
struct Systemd(UnixDatagram, PathBuf);

impl Systemd {
    fn new(dir: &Path) -> Self {
        let path = dir.join("notify");
        let socket = UnixDatagram::bind(&path).unwrap();
        socket.set_nonblocking(true).unwrap();
        Self(socket, path)
    }

    fn heard(&self) -> Vec<String> {
        let mut buffer = [0; 4096];
        let mut out = Vec::new();
        while let Ok(n) = self.0.recv(&mut buffer) {
            out.extend(String::from_utf8_lossy(&buffer[..n]).lines().map(str::to_owned));
        }
        out
    }

    fn wait_for(&self, word: &str) {
        until(word, || self.heard().iter().any(|l| l == word).then_some(()));
    }
}

#[test]
fn systemd_hears_of_start_reload_and_end_and_a_stuck_lcore_starves_the_watchdog() {
    let _one = alone();
    let Some(pair) = Pair::new() else { return };
    let dir = tempfile::tempdir().unwrap();
    let capture = connections(dir.path(), 100, |_, f| vec![f]);
    let systemd = Systemd::new(dir.path());
    let log = dir.path().join("flows");
    let config = dir.path().join("malakocut.toml");
    fs::write(&config, "max_flows = 1000\n").unwrap();
    let args = [
        "--config",
        config.to_str().unwrap(),
        "--interface",
        "mirror",
        "--lcores",
        "0@0-1,1@0-1",
        "--flow-log",
        log.to_str().unwrap(),
    ];
    let environment =
        [("NOTIFY_SOCKET", systemd.1.to_str().unwrap()), ("WATCHDOG_USEC", "10000000")];
    let child = pair.start_in(dir.path(), dir.path(), &args, &environment);
    systemd.wait_for("READY=1");
    systemd.wait_for("WATCHDOG=1");
    let said = || fs::read_to_string(dir.path().join("stderr")).unwrap();
    for (text, answer) in [
        ("max_flows = 1000\n", "reloaded: logs\n"),
        ("max_flows = 2000\nidle_timeout = 5\n", "a restart is needed for max_flows, idle_timeout"),
        ("max_flow = 1\n", "the configuration stays as it was"),
    ] {
        fs::write(&config, text).unwrap();
        signal(&child, "HUP");
        systemd.wait_for("RELOADING=1");
        until(answer, || said().contains(answer).then_some(()));
    }
    pair.replay(&capture, 1);
    until("the packets", || {
        let report: Value =
            serde_json::from_slice(&fs::read(dir.path().join("health.json")).ok()?).ok()?;
        (number(&report, "packets") == 240).then_some(())
    });
    // PTRACE_SEIZE and PTRACE_INTERRUPT: one thread stops, as one that loops for ever would, and the
    // others go on. Its end is waited for (__WALL), or the process could not be reaped.
    let tasks =
        fs::read_dir(format!("/proc/{}/task", child.id())).unwrap().map(|t| t.unwrap().path());
    let mut named =
        tasks.filter(|t| fs::read_to_string(t.join("comm")).unwrap().trim() == "lcore-1");
    let thread = named.next().unwrap().file_name().unwrap().to_string_lossy().into_owned();
    let stop = "my $t = $ARGV[0] + 0; syscall(101, 0x4206, $t, 0, 0) == 0 or die; \
                syscall(101, 0x4207, $t, 0, 0) == 0 or die; 1 while waitpid(-1, 0x40000000) > 0";
    let mut tracer = Command::new("perl").args(["-e", stop, &thread]).spawn().unwrap();
    until("it is said", || said().contains("lcore 1 has made no progress").then_some(()));
    systemd.heard();
    let fed = |seconds| {
        std::thread::sleep(Duration::from_secs(seconds));
        systemd.heard().iter().any(|l| l == "WATCHDOG=1")
    };
    assert!(!fed(3), "the watchdog was fed though lcore 1 stands still");
    // Where no watchdog is there to do it, it ends by itself.
    let run = ended(child);
    tracer.kill().unwrap();
    tracer.wait().unwrap();
    assert_eq!(run.code, Some(1), "{}", said());
}

#[test]
fn an_idle_sensor_that_waits_for_the_interrupt_hears_every_packet() {
    let _one = alone();
    let Some(pair) = Pair::new() else { return };
    let dir = tempfile::tempdir().unwrap();
    let capture = connections(dir.path(), 100, |_, f| vec![f]);
    let args = ["--interface", "mirror", "--journal", "off", "--idle", "interrupt"];
    let child = pair.start(dir.path(), &args);
    for _ in 0..5 {
        std::thread::sleep(Duration::from_millis(200));
        pair.replay(&capture, 1);
    }
    let summary = interrupt(child).summary();
    assert_eq!(number(&summary, "packets"), 5 * 240, "{summary}");
}

// ---- The command line -------------------------------------------------------------------------

fn output(command: &mut Command) -> Output {
    command.stdin(Stdio::null()).output().unwrap()
}

#[test]
fn the_doctor_looks_by_itself_and_asks_a_running_sensor() {
    let _one = alone();
    let Some(pair) = Pair::new() else { return };
    let dir = tempfile::tempdir().unwrap();
    let config = dir.path().join("malakocut.toml");
    fs::write(&config, format!("data_dir = {:?}\n", dir.path())).unwrap();
    let capture = connections(dir.path(), 10, |_, mut f| {
        f[..6].fill(0xff);
        vec![f]
    });
    let doctor = |seconds: &str| {
        let mut command = pair.command(CLI);
        command.args([
            "doctor",
            "--interface",
            "mirror",
            "--json",
            "--seconds",
            seconds,
            "--config",
        ]);
        command.arg(&config);
        command
    };
    let listed = |output: &Output| -> BTreeSet<String> {
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        common::lines(&text).iter().map(|f| f["name"].as_str().unwrap().to_owned()).collect()
    };
    // Nobody sends.
    let quiet = output(&mut doctor("1"));
    assert_eq!(quiet.status.code(), Some(1));
    assert!(listed(&quiet).contains("no_packets"), "{quiet:?}");
    // Only broadcasts come while it looks.
    let looking = doctor("8").stdout(Stdio::piped()).spawn().unwrap();
    until("it listens", || {
        let link = pair.output("ip", &["-d", "-o", "link", "show", "mirror"]);
        (!link.contains("promiscuity 0")).then_some(())
    });
    std::thread::sleep(Duration::from_secs(1));
    pair.replay(&capture, 1);
    let looked = looking.wait_with_output().unwrap();
    assert!(listed(&looked).contains("no_foreign_unicast"), "{looked:?}");
    // A running sensor has seen the same.
    let child = pair.start(dir.path(), &["--interface", "mirror", "--journal", "off"]);
    pair.replay(&capture, 1);
    let asked = until("its report", || {
        let asked = output(&mut doctor("0"));
        listed(&asked).contains("no_foreign_unicast").then_some(asked)
    });
    assert_eq!(asked.status.code(), Some(1));
    interrupt(child);
    let gone = output(doctor("0").args(["--interface", "nothere"]));
    assert_ne!(gone.status.code(), Some(0));
}

#[test]
fn cards_are_listed_and_what_is_none_is_not_bound() {
    let listed = output(Command::new(CLI).args(["nic", "list", "--json"]));
    assert!(listed.status.success());
    let cards = common::lines(&String::from_utf8_lossy(&listed.stdout));
    println!(
        "{}",
        String::from_utf8_lossy(&output(Command::new(CLI).args(["nic", "list"])).stdout)
    );
    assert!(cards.iter().all(|c| c["card"].is_string() || c["interface"].is_string()));
    for what in ["nothere", "0000:ff:1f.7", "../../etc"] {
        let refused = output(Command::new(CLI).args(["nic", "bind", what]));
        let said = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert!(refused.status.code() == Some(2) && said.contains(what), "{said}");
    }
    let _one = alone();
    let Some(pair) = Pair::new() else { return };
    let refused = output(pair.command(CLI).args(["nic", "bind", "mirror"]));
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(refused.status.code() == Some(2) && said.contains("no PCI card"), "{said}");
}

#[test]
fn the_configuration_is_checked_without_a_run() {
    let dir = tempfile::tempdir().unwrap();
    let config = dir.path().join("c.toml");
    let check = |text: &str, more: &[&str]| {
        fs::write(&config, text).unwrap();
        let args = ["--check-config", "--config", config.to_str().unwrap()];
        common::malakocut(&[&args[..], more].concat())
    };
    let shipped = fs::read_to_string(project().join("configs/malakocut.toml")).unwrap();
    assert_eq!(check(&shipped, &[]).ok().stdout.trim(), "the configuration is good");
    for (text, more, needle) in [
        ("max_flow = 1", &[][..], "max_flow"),
        ("", &["--lcores", "4000"], "4000"),
        ("pcap_filter = \"tcp prot 80\"", &[], "prot"),
    ] {
        let run = check(text, more);
        assert!(run.code == Some(2) && run.stderr.contains(needle), "{}", run.stderr);
    }
}

// ---- The package ------------------------------------------------------------------------------

fn tool(name: &str) -> bool {
    let found = Command::new("which").arg(name).output().is_ok_and(|o| o.status.success());
    if !found {
        println!("skipped: {name} is not installed");
    }
    found
}

#[test]
fn the_units_are_verified_and_hardened() {
    if !tool("systemd-analyze") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    for unit in ["malakocut.service", "malakocut-setup.service"] {
        let text = fs::read_to_string(project().join("configs").join(unit)).unwrap();
        // What they start is not installed here.
        let text = text
            .replace("/usr/bin/malakocut-cli", CLI)
            .replace("/usr/bin/malakocut ", &format!("{} ", common::BINARY))
            .replace("/usr/lib/malakocut", project().join("scripts").to_str().unwrap());
        fs::write(dir.path().join(unit), text).unwrap();
    }
    let analyze = |args: &[&str]| {
        let done = output(Command::new("systemd-analyze").args(args).current_dir(dir.path()));
        let text = String::from_utf8_lossy(&done.stdout).into_owned();
        assert!(done.status.success(), "{text}{}", String::from_utf8_lossy(&done.stderr));
        (text, String::from_utf8_lossy(&done.stderr).into_owned())
    };
    let verify = ["verify", "--man=no", "./malakocut.service", "./malakocut-setup.service"];
    assert_eq!(analyze(&verify), (String::new(), String::new()));
    // Fails above this many tenths.
    let security =
        ["security", "--offline=true", "--no-pager", "--threshold=25", "./malakocut.service"];
    println!("{}", analyze(&security).0.lines().last().unwrap());
}

#[test]
fn the_package_holds_everything_and_depends_on_the_drivers() {
    if !tool("dpkg-deb") || !tool("dpkg-shlibdeps") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let built = output(
        Command::new(project().join("scripts/package-deb.sh"))
            .arg(Path::new(common::BINARY).parent().unwrap())
            .args([dir.path().to_str().unwrap(), "none"]),
    );
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
    let package = String::from_utf8(built.stdout).unwrap().trim().to_owned();
    let ask = |args: &[&str]| {
        let done = output(Command::new("dpkg-deb").args(args));
        assert!(done.status.success());
        String::from_utf8(done.stdout).unwrap()
    };
    let listed = ask(&["--contents", &package]);
    println!("{listed}");
    for file in [
        "usr/bin/malakocut",
        "usr/bin/malakocut-cli",
        "usr/bin/gomon",
        "usr/lib/malakocut/setup-hugepages.sh",
        "usr/lib/systemd/system/malakocut.service",
        "usr/lib/systemd/system/malakocut-setup.service",
        "usr/lib/sysusers.d/malakocut.conf",
        "usr/lib/tmpfiles.d/malakocut.conf",
        "etc/default/malakocut",
        "etc/malakocut/malakocut.toml",
        "usr/share/malakocut/journal.bpf",
        "usr/share/malakocut/secops/malakocut.conf",
        "usr/share/man/man1/malakocut.1.gz",
        "usr/share/man/man1/malakocut-cli-nic-bind.1.gz",
        "usr/share/man/man1/gomon.1.gz",
        "usr/share/bash-completion/completions/malakocut-cli",
        "usr/share/zsh/vendor-completions/_malakocut",
        "usr/share/fish/vendor_completions.d/gomon.fish",
    ] {
        let line = listed.lines().find(|l| l.ends_with(&format!(" ./{file}")));
        assert!(line.is_some_and(|l| l.contains("root/root")), "{file}");
    }
    let depends = ask(&["-f", &package, "Depends"]);
    for wanted in [
        "libc6 (>=",
        "librte-eal23 (>=",
        "librte-mempool-ring23",
        "librte-net-af-packet23",
        "librte-net-e1000-23",
    ] {
        assert!(depends.contains(wanted), "{wanted}: {depends}");
    }
    let conffiles = ask(&["-I", &package, "conffiles"]);
    assert_eq!(conffiles, "/etc/default/malakocut\n/etc/malakocut/malakocut.toml\n");
    let version = ask(&["-f", &package, "Version"]);
    assert_eq!(version.trim(), env!("CARGO_PKG_VERSION"));
}

#[test]
fn installing_leaves_the_modes_of_directories_and_edited_files_alone() {
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o7777;
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("root");
    let shared = root.join("usr/share");
    let edited = root.join("etc/malakocut/malakocut.toml");
    for path in [&shared, edited.parent().unwrap()] {
        fs::create_dir_all(path).unwrap();
    }
    fs::write(&edited, "# my own\n").unwrap();
    fs::set_permissions(&root, Permissions::from_mode(0o751)).unwrap();
    fs::set_permissions(&shared, Permissions::from_mode(0o711)).unwrap();
    for _ in 0..2 {
        // Who installs may have a umask that hides everything.
        let script = project().join("scripts/install.sh");
        let programs = Path::new(common::BINARY).parent().unwrap();
        let done = output(
            Command::new("sh")
                .args(["-c", "umask 077; exec \"$0\" \"$1\""])
                .args([&script, programs])
                .env("DESTDIR", &root),
        );
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
        assert_eq!((mode(&root), mode(&shared)), (0o751, 0o711));
        assert_eq!(fs::read_to_string(&edited).unwrap(), "# my own\n");
        assert!(edited.with_extension("toml.new").exists());
    }
    let listed = fs::read_to_string(root.join("usr/share/malakocut/installed")).unwrap();
    assert!(listed.lines().any(|l| l == "/usr/bin/malakocut"));
    for file in listed.lines() {
        let path = root.join(file.trim_start_matches('/'));
        assert_eq!(mode(&path) & 0o444, 0o444, "{file}");
        assert_eq!(mode(path.parent().unwrap()) & 0o111, 0o111, "{file}");
    }
}
