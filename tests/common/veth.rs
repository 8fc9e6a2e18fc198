//! A veth pair in a network namespace of the test's own.

use std::path::Path;
use std::process::{Command, Stdio};

/// A namespace with the pair `sender`-`mirror`, deleted when dropped.
pub struct Pair(String);

impl Pair {
    /// `None`, with a message, where namespaces cannot be made.
    pub fn new() -> Option<Self> {
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
        if !super::is_root() || !run("ip", &["netns", "add", &this.0]) {
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

    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.0, program]);
        command
    }

    pub fn output(&self, program: &str, args: &[&str]) -> String {
        let output = self.command(program).args(args).output().unwrap();
        assert!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    pub fn replay(&self, capture: &Path, loops: u32) {
        let loops = loops.to_string();
        self.output(
            "tcpreplay",
            &["-q", "--topspeed", "-l", &loops, "-i", "sender", capture.to_str().unwrap()],
        );
    }
}

impl Drop for Pair {
    fn drop(&mut self) {
        run("ip", &["netns", "del", &self.0]);
    }
}

/// Whether a program ended well.
pub fn run(program: &str, args: &[&str]) -> bool {
    Command::new(program).args(args).stderr(Stdio::null()).status().is_ok_and(|s| s.success())
}
