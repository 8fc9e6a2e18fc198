//! A sensor that has taken the shipped capture in by DPDK's pcap driver and goes on running.

#![allow(dead_code, unreachable_pub, reason = "each test binary uses its own part")]

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::common::{self, Run, home_plain, home_truth, number};

/// The client's binary.
pub(crate) const CLI: &str = env!("CARGO_BIN_EXE_malakocut-cli");

pub(crate) struct Sensor {
    child: Child,
    pub dir: TempDir,
    pub socket: PathBuf,
}

impl Sensor {
    /// Starts it with the shipped capture and waits until all of that is in.
    pub(crate) fn start(args: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let capture = home_plain(dir.path());
        let this = Self::on(&format!("net_pcap0,rx_pcap={}", capture.display()), args, dir);
        let packets = number(&home_truth(), "packets");
        wait("the capture is in", || {
            let run = this.cli(&["status", "--json"]);
            let status = serde_json::from_str::<serde_json::Value>(&run.stdout).ok();
            status.is_some_and(|s| s["packets"] == packets && s["active_flows"] != 0)
        });
        this
    }

    /// Starts it on a device and waits until it can be asked.
    pub(crate) fn on(device: &str, args: &[&str], dir: TempDir) -> Self {
        let socket = dir.path().join("socket");
        let said = File::create(dir.path().join("stderr")).unwrap();
        let mut command = common::command();
        command
            .args([
                "--vdev",
                device,
                "--journal",
                "off",
                "--idle-timeout",
                "3600",
                "--sensor",
                "attic",
            ])
            .args(["--data-dir", text(dir.path()), "--control-socket", text(&socket)])
            .args(args)
            .stdout(Stdio::null())
            .stderr(said);
        let mut this = Self { child: command.spawn().unwrap(), dir, socket };
        wait("it can be asked", || {
            let log = fs::read_to_string(this.dir.path().join("stderr")).unwrap();
            assert!(this.child.try_wait().unwrap().is_none(), "{log}");
            this.cli(&["status"]).code != Some(2)
        });
        this
    }

    pub(crate) fn id(&self) -> u32 {
        self.child.id()
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
}

impl Drop for Sensor {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
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
