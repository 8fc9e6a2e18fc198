//! A running sensor with flows that stay: the shipped capture without the ends of its connections,
//! replayed to one end of a veth pair.

#![allow(dead_code, unreachable_pub, reason = "each test binary uses its own part")]

use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

use crate::common::{Run, home_plain, packets_of};
use crate::pair::{Pair, run};

/// The client's binary.
pub(crate) const CLI: &str = env!("CARGO_BIN_EXE_malakocut-cli");

/// A configuration by which the capture's scanner attacks its cloud: an alert.
pub(crate) const WATCH: &str = "
    [[detect.watch]]
    address = \"192.168.1.41\"
    c2 = \"203.0.113.4\"
    window = 1
    destination_threshold = 1000
";

/// One at a time: the namespace is the process's.
static ONE: Mutex<()> = Mutex::new(());

pub(crate) struct Sensor {
    child: Child,
    pub pair: Pair,
    pub dir: TempDir,
    pub socket: PathBuf,
    /// What was sent to it.
    pub packets: u64,
    _one: MutexGuard<'static, ()>,
}

impl Sensor {
    /// Starts it and sends the capture; `None`, with a message, where that cannot be done.
    pub(crate) fn with_flows(args: &[&str]) -> Option<Self> {
        let mut this = Self::start(args)?;
        let whole = home_plain(this.dir.path());
        let open = this.dir.path().join("open.pcap");
        let ends = "not (tcp and tcp[tcpflags] & (tcp-fin|tcp-rst) != 0)";
        assert!(run("tcpdump", &["-r", text(&whole), "-w", text(&open), ends]));
        this.send(&open, 4_000);
        Some(this)
    }

    /// Starts it and waits until it can be asked.
    pub(crate) fn start(args: &[&str]) -> Option<Self> {
        let one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
        let pair = Pair::new()?;
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("socket");
        let fixed = [
            "--interface",
            "mirror",
            "--journal",
            "off",
            "--idle-timeout",
            "3600",
            "--sensor",
            "attic",
            "--control-socket",
            text(&socket),
        ];
        let child = pair.start(dir.path(), &[&fixed, args].concat());
        let this = Self { child, pair, dir, socket, packets: 0, _one: one };
        wait("it can be asked", || this.cli(&["status"]).code != Some(2));
        Some(this)
    }

    /// Sends a capture, so many packets a second, and waits until all that is in.
    pub(crate) fn send(&mut self, capture: &Path, rate: u32) {
        self.packets += packets_of(capture).len() as u64;
        let rate = rate.to_string();
        self.pair.output("tcpreplay", &["-q", "--pps", &rate, "-i", "sender", text(capture)]);
        wait("everything sent is in", || self.status()["packets"] == self.packets);
        // A few connections of IPv6 and within VLANs had their ends all the same.
        let ended = "history contains \"F\" or history contains \"f\" or history contains \"R\" or \
                     history contains \"r\"";
        wait("what has ended is reported", || {
            self.cli(&["flows", ended, "--json"]).ok().stdout.is_empty()
        });
    }

    pub(crate) fn status(&self) -> Value {
        let said = self.cli(&["status", "--json"]).stdout;
        serde_json::from_str(&said).unwrap_or_else(|e| panic!("{e}: {said}"))
    }

    /// Runs the client to its end.
    pub(crate) fn cli(&self, args: &[&str]) -> Run {
        Run::of(self.command(args).output().unwrap())
    }

    pub(crate) fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(CLI);
        command.args(args).env("MALAKOCUT_CONTROL_SOCKET", &self.socket).env_remove("NO_COLOR");
        command
    }

    /// Starts another one in its place.
    pub(crate) fn restart(&mut self) {
        self.stop();
        let fixed = [
            "--interface",
            "mirror",
            "--journal",
            "off",
            "--sensor",
            "attic",
            "--control-socket",
            text(&self.socket),
        ];
        self.child = self.pair.start(self.dir.path(), &fixed);
    }

    pub(crate) fn stop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Sensor {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Waits for a condition, as long as a crowded machine may need.
pub(crate) fn wait(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !is_so() {
        assert!(Instant::now() < deadline, "not within a minute: {what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

pub(crate) fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}
