//! A network namespace with a veth pair, and the sensor on one end of it.

#![allow(dead_code, unreachable_pub, reason = "each test binary uses its own part")]

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::common::{self, Run};

/// How long a sensor may take to start; a loaded machine takes long.
pub(crate) const START: Duration = Duration::from_secs(60);

/// A namespace with the pair `sender`-`mirror`, deleted when dropped.
pub(crate) struct Pair(String);

impl Pair {
    /// `None`, with a message, where namespaces cannot be made.
    pub(crate) fn new() -> Option<Self> {
        for tool in ["ip", "tcpreplay", "ethtool"] {
            if Command::new(tool)
                .arg("-V")
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .status()
                .is_err()
            {
                println!("skipped: {tool} is not installed");
                return None;
            }
        }
        let this = Self(format!("mk-test-{}", std::process::id()));
        // One that a killed test of the same process id left behind.
        run("ip", &["netns", "del", &this.0]);
        if !common::is_root() || !run("ip", &["netns", "add", &this.0]) {
            println!("skipped: a network namespace needs root");
            return None;
        }
        let inside = |args: &str| {
            let all = format!("netns exec {} {args}", this.0);
            assert!(run("ip", &all.split(' ').collect::<Vec<_>>()), "{args}");
        };
        // Router solicitations of the kernel's own would be packets nobody sent.
        inside("sysctl -qw net.ipv6.conf.all.disable_ipv6=1 net.ipv6.conf.default.disable_ipv6=1");
        inside("ip link add name sender type veth peer name mirror");
        inside("ip link set sender up");
        inside("ip link set mirror up");
        Some(this)
    }

    pub(crate) fn command(&self, program: &str) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.0, program]);
        command
    }

    pub(crate) fn output(&self, program: &str, args: &[&str]) -> String {
        let output = self.command(program).args(args).output().unwrap();
        assert!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    /// Starts the sensor on `mirror` and waits until it listens.
    pub(crate) fn start(&self, dir: &Path, args: &[&str]) -> Child {
        self.start_with(dir, dir, args)
    }

    /// The same with its data elsewhere.
    pub(crate) fn start_with(&self, dir: &Path, data: &Path, args: &[&str]) -> Child {
        self.start_in(dir, data, args, &[])
    }

    /// The same in an environment.
    pub(crate) fn start_in(
        &self,
        dir: &Path,
        data: &Path,
        args: &[&str],
        environment: &[(&str, &str)],
    ) -> Child {
        let mut child = self
            .command(common::BINARY)
            .args(["--summary", "json", "--data-dir", data.to_str().unwrap()])
            .args(args)
            .envs(environment.iter().copied())
            .stdout(Stdio::piped())
            .stderr(fs::File::create(dir.join("stderr")).unwrap())
            .spawn()
            .unwrap();
        let deadline = Instant::now() + START;
        while !fs::read_to_string(dir.join("stderr")).unwrap().contains("receive queue") {
            assert!(
                child.try_wait().unwrap().is_none(),
                "{}",
                fs::read_to_string(dir.join("stderr")).unwrap()
            );
            assert!(Instant::now() < deadline, "it does not start");
            std::thread::sleep(Duration::from_millis(20));
        }
        child
    }

    /// Sends a capture, waits until it has arrived, and says how many frames came out at the other
    /// end: the kernel of a loaded machine may lose some in between, where no receiver can see it.
    pub(crate) fn replay(&self, capture: &Path, loops: u32) -> u64 {
        let through = || -> u64 {
            let count = self.output("cat", &["/sys/class/net/sender/statistics/tx_packets"]);
            count.trim().parse().unwrap()
        };
        let before = through();
        let loops = loops.to_string();
        self.output(
            "tcpreplay",
            &["-q", "--topspeed", "-l", &loops, "-i", "sender", capture.to_str().unwrap()],
        );
        wait_until_delivered();
        through() - before
    }
}

impl Drop for Pair {
    fn drop(&mut self) {
        run("ip", &["netns", "del", &self.0]);
    }
}

pub(crate) fn run(program: &str, args: &[&str]) -> bool {
    Command::new(program).args(args).stderr(Stdio::null()).status().is_ok_and(|s| s.success())
}

/// Waits until no processor has frames that were sent and that no interface has got yet: the kernel
/// of a loaded machine hands them over later, by a thread of its own.
fn wait_until_delivered() {
    let waiting = || {
        let table = fs::read_to_string("/proc/net/softnet_stat").unwrap();
        // The twelfth column is the length of a processor's backlog; older kernels lack it.
        table.lines().filter_map(|line| line.split(' ').nth(11)).any(|n| n != "00000000")
    };
    let deadline = Instant::now() + START;
    while waiting() && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Waits until a program has said something in its file `stderr`.
pub(crate) fn wait_until_said(dir: &Path, what: &str) {
    let deadline = Instant::now() + START;
    loop {
        let said = fs::read_to_string(dir.join("stderr")).unwrap();
        if said.contains(what) {
            return;
        }
        assert!(Instant::now() < deadline, "it does not say {what}: {said}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

pub(crate) fn interrupt(child: Child) -> Run {
    assert!(run("kill", &["-INT", &child.id().to_string()]));
    Run::of(child.wait_with_output().unwrap()).ok()
}
