//! What the sensor is to do: flags, environment, file and defaults, in this order of precedence.
//!
//! Each layer is the same [`Layer`] of optional values; a source given in one layer hides the
//! sources of the layers below it. [`Config`] is the checked result. Nothing here opens anything
//! but the configuration file.

mod layer;
mod units;

use std::env;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Parser;

pub use layer::{Layer, SummaryFormat, Switch};

use crate::export;

/// Where the configuration is looked for when no `--config` is given.
pub const DEFAULT_FILE: &str = "/etc/malakocut/malakocut.toml";
const DEFAULT_INTERFACE: &str = "enp3s0";

/// Bad usage; the message names the option or key and what to do.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// clap's own message, help and version included.
    #[error("{0}")]
    Usage(#[from] clap::Error),
    #[error("{0}")]
    Bad(String),
}

/// Where packets come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SourceConfig {
    /// A kernel interface by the AF_PACKET driver.
    Interface(String),
    /// DPDK virtual devices, each as `name,key=value,...`.
    Vdevs(Vec<String>),
    /// Cards already bound to vfio-pci or uio.
    Pci(Vec<String>),
    /// Capture files.
    Files(Vec<PathBuf>),
}

/// The checked configuration.
#[derive(Clone, Debug)]
pub struct Config {
    pub source: SourceConfig,
    /// `None`: one lcore on any CPU.
    pub lcores: Option<String>,
    pub data_dir: PathBuf,
    pub flow_log: Option<PathBuf>,
    pub max_flows: usize,
    pub idle_timeout: Duration,
    /// Zero: no deltas.
    pub active_timeout: Duration,
    pub journal: bool,
    pub rotate_size: u64,
    /// `None`: no summary is wanted.
    pub summary: Option<SummaryFormat>,
    pub sensor: String,
    pub debug: bool,
    /// Exporters by name, `none` and `file` left out.
    pub exporters: Vec<String>,
    pub export: export::Settings,
}

/// malakocut, a network detection and response sensor for a mirror port.
#[derive(Debug, Parser)]
#[command(
    name = "malakocut",
    version,
    about = "A network detection and response sensor for a mirror port",
    long_about = "Takes packets from a mirror port (or capture files) through DPDK, keeps bidirectional \
                  flows, writes them as JSON lines, and journals every packet as plain pcap.",
    after_help = "Examples:\n  \
        malakocut --read capture.pcap                       what is in a capture, as a table\n  \
        malakocut --read capture.pcap --flow-log -          its flows as JSON lines\n  \
        malakocut --lcores 1-3                              the sensor on enp3s0, journal on lcore 1\n  \
        malakocut --vdev net_af_packet0,iface=enp3s0        the same by naming DPDK's device\n\n\
        Every option is also a key of the configuration file (with _ for -) and an environment \
        variable (MALAKOCUT_LCORES, ...). A flag beats the environment, that beats the file."
)]
struct Args {
    /// Configuration file
    #[arg(long, value_name = "FILE", env = "MALAKOCUT_CONFIG")]
    config: Option<PathBuf>,
    #[command(flatten)]
    layer: Layer,
}

impl Config {
    /// From the process's arguments and environment.
    pub fn from_process() -> Result<Self, ConfigError> {
        let args = Args::try_parse_from(original_spellings(env::args_os()))?;
        let environment = Layer::from_environment(|name| env::var_os(name))?;
        let file = match &args.config {
            Some(path) => from_file(path)?,
            None if Path::new(DEFAULT_FILE).exists() => from_file(Path::new(DEFAULT_FILE))?,
            None => Layer::default(),
        };
        Self::of(args.layer.over(environment).over(file))
    }

    fn of(l: Layer) -> Result<Self, ConfigError> {
        let bad = |text: String| Err(ConfigError::Bad(text));
        let source =
            l.source()?.unwrap_or_else(|| SourceConfig::Interface(DEFAULT_INTERFACE.into()));
        let is_file = matches!(source, SourceConfig::Files(_));
        let wants_log = l.exporter.iter().any(|e| e == "file");
        if let Some(unknown) = l.exporter.iter().find(|e| !export::NAMES.contains(&e.as_str())) {
            let names = export::NAMES.join(", ");
            return bad(format!("--exporter {unknown}: no such exporter; there are: {names}"));
        }
        let lookup = |name: &str| env::var(name).ok();
        let export = l.export.map(|e| *e).unwrap_or_default().with_environment(lookup);
        export.check().map_err(ConfigError::Bad)?;
        let mut exporters = l.exporter.clone();
        exporters.retain(|e| !matches!(e.as_str(), "file" | "none"));
        exporters.sort();
        exporters.dedup();
        if wants_log && l.flow_log.is_none() {
            return bad("--exporter file needs --flow-log PATH (or - for standard output)".into());
        }
        let silenced = l.exporter.iter().any(|e| e == "none");
        let flow_log = l.flow_log.filter(|_| wants_log || !silenced);
        let on_stdout = flow_log.as_ref().is_some_and(|p| p.as_os_str() == "-");
        let rotate_size = l.rotate_size.unwrap_or(500_000_000);
        if rotate_size < 65_536 {
            return bad(format!("--rotate-size {rotate_size}: at least 64 KiB"));
        }
        // Beside the events only when asked for.
        let text = (is_file && !on_stdout).then_some(SummaryFormat::Text);
        Ok(Self {
            source,
            lcores: l.lcores,
            data_dir: l.data_dir.unwrap_or_else(|| "/var/lib/malakocut".into()),
            flow_log,
            max_flows: l.max_flows.unwrap_or(1_000_000),
            idle_timeout: l.idle_timeout.unwrap_or(Duration::from_secs(60)),
            active_timeout: l.active_timeout.unwrap_or(Duration::from_secs(300)),
            // A capture file is already a file.
            journal: l.journal.map_or(!is_file, Switch::is_on),
            rotate_size,
            summary: l.summary.or(text),
            sensor: l.sensor.unwrap_or_else(hostname),
            debug: l.debug,
            exporters,
            export,
        })
    }
}

fn from_file(path: &Path) -> Result<Layer, ConfigError> {
    let text = fs::read_to_string(path)
        .map_err(|e| ConfigError::Bad(format!("configuration {}: {e}", path.display())))?;
    toml::from_str(&text).map_err(|e| {
        let line =
            e.span().map_or(0, |s| 1 + text.get(..s.start).unwrap_or("").matches('\n').count());
        ConfigError::Bad(format!("configuration {}, line {line}: {}", path.display(), e.message()))
    })
}

/// The Go original wrote its options with one dash.
fn original_spellings(args: impl IntoIterator<Item = OsString>) -> Vec<OsString> {
    const ORIGINAL: [&str; 4] = ["interface", "debug", "max-flows", "exporter"];
    args.into_iter()
        .map(|arg| match arg.to_str().and_then(|a| a.strip_prefix('-')) {
            Some(name) if ORIGINAL.contains(&name.split('=').next().unwrap_or(name)) => {
                format!("--{name}").into()
            }
            _ => arg,
        })
        .collect()
}

fn hostname() -> String {
    fs::read_to_string("/proc/sys/kernel/hostname").map(|h| h.trim().to_owned()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(args: &[&str], env: &[(&str, &str)], file: &str) -> Result<Config, String> {
        let args = ["malakocut"].iter().chain(args).map(OsString::from);
        let flags = Args::try_parse_from(original_spellings(args)).map_err(|e| e.to_string())?;
        let lookup = |name: &str| env.iter().find(|(n, _)| *n == name).map(|(_, v)| v.into());
        let environment = Layer::from_environment(lookup).map_err(|e| e.to_string())?;
        let file: Layer = toml::from_str(file).map_err(|e| e.to_string())?;
        Config::of(flags.layer.over(environment).over(file)).map_err(|e| e.to_string())
    }

    #[test]
    fn a_flag_beats_the_environment_beats_the_file_beats_the_default() {
        let file = "max_flows = 1\nidle_timeout = 10\nactive_timeout = 20\n";
        let env = [("MALAKOCUT_MAX_FLOWS", "2"), ("MALAKOCUT_IDLE_TIMEOUT", "30")];
        let c = parse(&["--max-flows", "3"], &env, file).unwrap();
        assert_eq!(
            (c.max_flows, c.idle_timeout.as_secs(), c.active_timeout.as_secs()),
            (3, 30, 20)
        );
        let c = parse(&[], &[("MALAKOCUT_MAX_FLOWS", "")], "").unwrap();
        assert_eq!((c.max_flows, c.idle_timeout.as_secs()), (1_000_000, 60));
        assert_eq!(c.source, SourceConfig::Interface("enp3s0".into()));
        assert!(c.journal && c.summary.is_none());
    }

    #[test]
    fn a_source_hides_the_sources_of_lower_layers() {
        let env = [("MALAKOCUT_INTERFACE", "eth7")];
        let c = parse(&["--read", "a,b=c.pcap", "--read", "d"], &env, "pci = [\"0000:01:00.0\"]")
            .unwrap();
        assert_eq!(c.source, SourceConfig::Files(vec!["a,b=c.pcap".into(), "d".into()]));
        assert!(!c.journal && c.summary == Some(SummaryFormat::Text));
        let c = parse(&[], &env, "pci = [\"0000:01:00.0\"]").unwrap();
        assert_eq!(c.source, SourceConfig::Interface("eth7".into()));
    }

    #[test]
    fn bad_values_are_named() {
        for (args, needle) in [
            (&["--read", "a", "--interface", "b"][..], "--interface"),
            (&["--exporter", "sekops"], "sekops"),
            (&["--exporter", "file"], "--flow-log"),
            (&["--max-flows", "0"], "--max-flows"),
            (&["--idle-timeout", "0"], "--idle-timeout"),
            (&["--idle-timeout", "1e30"], "--idle-timeout"),
            (&["--rotate-size", "1 furlong"], "--rotate-size"),
            (&["--rotate-size", "5"], "64 KiB"),
            (&["--journal", "perhaps"], "--journal"),
            (&["--frobnicate"], "--frobnicate"),
            (&["stray"], "stray"),
        ] {
            let error = parse(args, &[], "").unwrap_err();
            assert!(error.contains(needle), "{args:?}: {error}");
        }
        let error = parse(&[], &[("MALAKOCUT_MAX_FLOWS", "many")], "").unwrap_err();
        assert!(error.contains("MALAKOCUT_MAX_FLOWS"), "{error}");
        assert!(parse(&[], &[], "max_flow = 1").unwrap_err().contains("max_flow"));
        assert!(parse(&[], &[], "max_flows = -1").is_err());
    }

    #[test]
    fn the_originals_spellings_and_sizes_with_units() {
        let c =
            parse(&["-interface", "eth1", "-debug", "-max-flows=7", "-exporter", "none"], &[], "")
                .unwrap();
        assert_eq!(c.source, SourceConfig::Interface("eth1".into()));
        assert!(c.debug && c.max_flows == 7);
        let c = parse(&["--rotate-size", "2GiB", "--journal", "off"], &[], "").unwrap();
        assert_eq!((c.rotate_size, c.journal), (2 << 30, false));
        let c = parse(&[], &[], "rotate_size = \"10 MB\"").unwrap();
        assert_eq!(c.rotate_size, 10_000_000);
    }
}
