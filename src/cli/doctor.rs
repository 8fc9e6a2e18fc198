//! `malakocut-cli doctor`: what is wrong with the set-up, each with what mends it.
//!
//! The machine is looked at here. What the traffic shows is taken from the running sensor's report;
//! where none runs, the sensor itself is run for a while without journal and logs, and asked what it
//! saw.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use clap::Args;
use dpdk::lcore;
use serde::Deserialize;

use super::text::Paint;
use super::{Outcome, Refused};
use crate::config::{self, Config, SourceConfig};
use crate::doctor::{Finding, Report, Severity, host};
use crate::nic::{Link, Machine};

/// After the end was asked for.
const PATIENCE: Duration = Duration::from_secs(20);

#[derive(Debug, Args)]
pub(super) struct Doctor {
    /// Interface to look at [default: the configuration's]
    #[arg(long, value_name = "IFACE")]
    interface: Option<String>,
    /// The sensor's data directory [default: the configuration's]
    #[arg(long, value_name = "DIR", env = "MALAKOCUT_DATA_DIR")]
    data_dir: Option<PathBuf>,
    /// Configuration file
    #[arg(long, value_name = "FILE", env = "MALAKOCUT_CONFIG")]
    config: Option<PathBuf>,
    /// Seconds to look at the traffic where no sensor runs; 0: not at all
    #[arg(long, value_name = "S", default_value_t = 10)]
    seconds: u64,
    /// One JSON object a line
    #[arg(long)]
    json: bool,
}

/// What a short run tells at its end.
#[derive(Deserialize)]
struct Seen {
    packets: u64,
    findings: Vec<Finding>,
}

impl Doctor {
    pub(super) fn run(self) -> Result<Outcome, Refused> {
        let machine = Machine::default();
        let (config, mut findings) = self.configuration();
        let source = match &self.interface {
            Some(name) => SourceConfig::Interface(name.clone()),
            None => config.as_ref().map_or_else(
                || SourceConfig::Interface(config::DEFAULT_INTERFACE.into()),
                |c| c.source.clone(),
            ),
        };
        let configured = config.as_ref().map(|c| c.data_dir.clone());
        let data = self.data_dir.clone().or(configured);
        let data = data.unwrap_or_else(|| config::DEFAULT_DATA_DIR.into());
        let min_free = config.as_ref().map_or(10, |c| c.min_free);
        let running = Report::read(&data).unwrap_or_default();
        // What the running sensor reads may come from its command line.
        let theirs = running.as_ref().map(|r| r.interface.clone());
        let interface = self.interface.clone().or(theirs).or_else(|| source.interface());

        findings.extend(host::memory(&machine));
        let mut speed = None;
        if let Some(name) = &interface {
            findings.extend(host::interface(&machine, name));
            if let Link::Up(mbit) = machine.interface(name).link {
                speed = mbit;
            }
        }
        if let Some(list) = config.as_ref().and_then(|c| c.lcores.as_ref()) {
            let allowed = lcore::affinity().unwrap_or_default();
            match lcore::parse(list, &allowed) {
                Ok(lcores) => {
                    let own = running.as_ref().map(|r| r.pid);
                    findings.extend(host::lcores(&machine, &lcores, own));
                }
                Err(e) => findings.push(Finding::problem(
                    "lcores",
                    e.to_string(),
                    "edit lcores in /etc/malakocut/malakocut.toml",
                )),
            }
        }
        findings.extend(host::clock());
        findings.extend(host::disk(&data, min_free, speed));
        let seen = match running {
            Some(report) => {
                findings.extend(report.findings);
                format!("{} packets seen by the running sensor", report.packets)
            }
            None if self.seconds == 0 => "the traffic was not looked at".into(),
            None => match self.look(&source) {
                Ok(seen) => {
                    findings.extend(seen.findings);
                    if seen.packets == 0 {
                        findings.push(Finding::problem(
                            "no_packets",
                            format!("no packet came in {} s", self.seconds),
                            "check cable and mirror port; --seconds 60 looks longer",
                        ));
                    }
                    format!("{} packets seen in {} s", seen.packets, self.seconds)
                }
                Err(why) => {
                    findings.push(Finding::problem(
                        "no_look",
                        format!("the traffic cannot be looked at: {why}"),
                        "sudo malakocut-cli doctor",
                    ));
                    "the traffic was not looked at".into()
                }
            },
        };
        // Host and traffic may both have found the same.
        let mut names = std::collections::BTreeSet::new();
        findings.retain(|f| names.insert(f.name.clone()));
        findings.sort_by_key(|f| std::cmp::Reverse(f.severity));
        self.show(&findings, interface.as_deref(), &seen)?;
        let is_bad = findings.iter().any(|f| f.severity == Severity::Problem);
        Ok(if is_bad { Outcome::Incomplete } else { Outcome::Done })
    }

    /// The service's configuration, or what is wrong with it.
    fn configuration(&self) -> (Option<Config>, Vec<Finding>) {
        match Config::of_file(self.config.as_deref()) {
            Ok(config) => (Some(config), Vec::new()),
            Err(e) => {
                let mend = "malakocut --check-config; edit the file";
                (None, vec![Finding::problem("configuration", e.to_string(), mend)])
            }
        }
    }

    /// Runs the sensor on the source for a while.
    fn look(&self, source: &SourceConfig) -> Result<Seen, String> {
        let fail = |what: &str, e: &dyn std::fmt::Display| format!("{what}: {e}");
        let own = std::env::current_exe().map_err(|e| fail("malakocut-cli", &e))?;
        let program = own.with_file_name("malakocut");
        let empty = std::env::temp_dir().join(format!("malakocut-doctor-{}", std::process::id()));
        std::fs::create_dir(&empty).map_err(|e| fail(&empty.display().to_string(), &e))?;
        let seen = self.run_sensor(&program, &empty, source);
        let _ = std::fs::remove_dir_all(&empty);
        seen
    }

    fn run_sensor(
        &self,
        program: &Path,
        empty: &Path,
        source: &SourceConfig,
    ) -> Result<Seen, String> {
        // Nothing but what is said here: no file, no journal, no exporter.
        let settings = empty.join("malakocut.toml");
        std::fs::write(&settings, "").map_err(|e| format!("{}: {e}", settings.display()))?;
        let mut command = Command::new(program);
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("MALAKOCUT_") {
                command.env_remove(name);
            }
        }
        command.arg("--config").arg(&settings).arg("--data-dir").arg(empty);
        command.args(["--journal", "off", "--exporter", "none", "--summary", "json"]);
        let given: Vec<(&str, &String)> = match source {
            SourceConfig::Interface(name) => vec![("--interface", name)],
            SourceConfig::Vdevs(all) => all.iter().map(|d| ("--vdev", d)).collect(),
            SourceConfig::Pci(all) => all.iter().map(|a| ("--pci", a)).collect(),
            SourceConfig::Files(_) => return Err("the configured source is files".into()),
        };
        for (flag, value) in given {
            command.args([flag, value]);
        }
        let mut child = command
            .env("MALAKOCUT_LOG", "warn")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|e| format!("{}: {e}", program.display()))?;
        let until = Instant::now() + Duration::from_secs(self.seconds);
        while Instant::now() < until && child.try_wait().is_ok_and(|ended| ended.is_none()) {
            std::thread::sleep(Duration::from_millis(50));
        }
        let pid = i32::try_from(child.id()).ok().and_then(rustix::process::Pid::from_raw);
        if let Some(pid) = pid {
            // It may have ended by itself.
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        }
        let until = Instant::now() + PATIENCE;
        while Instant::now() < until && child.try_wait().is_ok_and(|ended| ended.is_none()) {
            std::thread::sleep(Duration::from_millis(20));
        }
        let _ = child.kill();
        let output = child.wait_with_output().map_err(|e| e.to_string())?;
        let text = String::from_utf8_lossy(&output.stdout);
        let last = text.lines().last().unwrap_or_default();
        serde_json::from_str(last).map_err(|_| {
            let errors = String::from_utf8_lossy(&output.stderr);
            let last = errors.trim().lines().last().unwrap_or("it said nothing");
            last.trim_start_matches("malakocut: ").to_owned()
        })
    }

    fn show(
        &self,
        findings: &[Finding],
        interface: Option<&str>,
        seen: &str,
    ) -> Result<(), Refused> {
        let mut out = String::new();
        if self.json {
            for finding in findings {
                out += &serde_json::to_string(finding).map_err(Refused::because)?;
                out.push('\n');
            }
        } else {
            let paint = Paint::for_stdout();
            for finding in findings {
                let mark = match finding.severity {
                    Severity::Problem => paint.bad("problem"),
                    Severity::Notice => paint.notable("notice"),
                };
                out += &format!(
                    "{mark} {}: {}\n    mend: {}\n",
                    finding.name, finding.text, finding.mend
                );
            }
            let place = interface.unwrap_or("capture files");
            out += &match findings.len() {
                0 => format!("{}: {place}, {seen}\n", paint.good("nothing is wrong")),
                n => format!("{}: {place}, {seen}\n", super::text::count(n as u64, "finding")),
            };
        }
        io::stdout().write_all(out.as_bytes()).map_err(Refused::because)
    }
}
