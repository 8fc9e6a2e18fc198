//! What the sensor is to do: flags, environment, file and defaults, in this order of precedence.
//!
//! Each layer is the same [`Layer`] of optional values; a source given in one layer hides the
//! sources of the layers below it. [`Config`] is the checked result. Nothing here opens anything
//! but the configuration file.

mod api;
mod detect;
mod layer;
mod units;

use std::env;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Parser;

use crate::api::Settings as ApiSettings;
use crate::filter;
use crate::journal::admit::Rules;

pub use layer::{Layer, PollMode, SummaryFormat, Switch};

use crate::detect::watch::Watched;

use crate::export;

/// Where the configuration is looked for when no `--config` is given.
pub const DEFAULT_FILE: &str = "/etc/malakocut/malakocut.toml";
/// Where the sensor keeps its data when nobody says.
pub const DEFAULT_DATA_DIR: &str = "/var/lib/malakocut";
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

impl SourceConfig {
    /// The interface, where there is one.
    pub fn interface(&self) -> Option<String> {
        match self {
            Self::Interface(name) => Some(name.clone()),
            Self::Pci(cards) => cards.first().cloned(),
            Self::Vdevs(devices) => devices.first().map(|d| {
                d.split(',').find_map(|p| p.strip_prefix("iface=")).unwrap_or(d).to_owned()
            }),
            Self::Files(_) => None,
        }
    }
}

/// The checked configuration.
#[derive(Clone, Debug)]
pub struct Config {
    pub source: SourceConfig,
    /// `None`: one lcore on any CPU.
    pub lcores: Option<String>,
    pub poll: PollMode,
    pub data_dir: PathBuf,
    pub flow_log: Option<PathBuf>,
    pub eve_log: Option<PathBuf>,
    /// Packets with a payload that are read of each flow; 0 reads none.
    pub inspect_packets: u8,
    /// Hosts to watch; what they do is reported in the EVE log.
    pub watch: Vec<Watched>,
    pub max_flows: usize,
    pub idle_timeout: Duration,
    /// Zero: no deltas.
    pub active_timeout: Duration,
    pub journal: bool,
    pub rotate_size: u64,
    pub retention: Duration,
    pub journal_quota: Option<u64>,
    /// Percent.
    pub min_free: u8,
    /// What the journal leaves out.
    pub journal_rules: Rules,
    /// Nobody said what the journal is to keep.
    pub journal_filter_is_default: bool,
    /// `None`: no summary is wanted.
    pub summary: Option<SummaryFormat>,
    pub sensor: String,
    pub debug: bool,
    /// Exporters by name, `none` and `file` left out.
    pub exporters: Vec<String>,
    pub export: export::Settings,
    pub api: ApiSettings,
}

/// malakocut, a network detection and response sensor for a mirror port.
#[derive(Debug, Parser)]
#[command(
    name = "malakocut",
    version,
    about = "A network detection and response sensor for a mirror port",
    long_about = "Takes packets from a mirror port (or capture files) through DPDK, keeps bidirectional \
                  flows, says what they were about, writes them as JSON lines or sends them on, and \
                  keeps the packets as plain pcap.",
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
        let file = file_layer(args.config.as_deref())?;
        Self::of(args.layer.over(environment).over(file))
    }

    fn of(l: Layer) -> Result<Self, ConfigError> {
        let bad = |text: String| Err(ConfigError::Bad(text));
        let source =
            l.source()?.unwrap_or_else(|| SourceConfig::Interface(DEFAULT_INTERFACE.into()));
        let is_file = matches!(source, SourceConfig::Files(_));
        let api = api::settings(&l, is_file)?;
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
        let sensor = l.sensor.unwrap_or_else(hostname);
        let watch = l.detect.watched(&sensor)?;
        if !watch.is_empty() && l.eve_log.is_none() {
            return bad(
                "[detect.watch] needs a place for its alerts: --eve-log PATH (- is standard output)"
                    .into(),
            );
        }
        let is_stdout = |p: &Option<PathBuf>| p.as_ref().is_some_and(|p| p.as_os_str() == "-");
        if is_stdout(&flow_log) && is_stdout(&l.eve_log) {
            return bad("--flow-log - and --eve-log -: only one can be standard output".into());
        }
        let logs = [&flow_log, &l.eve_log];
        let on_stdout = logs.into_iter().any(is_stdout);
        let rotate_size = l.rotate_size.unwrap_or(500_000_000);
        if rotate_size < 65_536 {
            return bad(format!("--rotate-size {rotate_size}: at least 64 KiB"));
        }
        if let Some(quota) = l.journal_quota.filter(|&quota| quota < 2 * rotate_size) {
            return bad(format!(
                "--journal-quota {quota}: at least two files of --rotate-size {rotate_size}"
            ));
        }
        let filter = match &l.pcap_filter {
            Some(text) => filter_text(text)?,
            // A capture that somebody wants journaled is wanted whole.
            None if is_file => String::new(),
            None => filter::strip_comments(DEFAULT_FILTER),
        };
        if let Err(e) = filter::Filter::compile(&filter, 1) {
            return bad(format!("--pcap-filter: {e}"));
        }
        let idle_timeout = l.idle_timeout.unwrap_or(Duration::from_secs(60));
        // Beside the events only when asked for.
        let text = (is_file && !on_stdout).then_some(SummaryFormat::Text);
        Ok(Self {
            source,
            lcores: l.lcores,
            poll: l.poll.unwrap_or_default(),
            data_dir: l.data_dir.unwrap_or_else(|| DEFAULT_DATA_DIR.into()),
            flow_log,
            eve_log: l.eve_log,
            inspect_packets: l.inspect_packets.unwrap_or(10),
            watch,
            max_flows: l.max_flows.unwrap_or(1_000_000),
            idle_timeout,
            active_timeout: l.active_timeout.unwrap_or(Duration::from_secs(300)),
            // A capture file is already a file.
            journal: l.journal.map_or(!is_file, Switch::is_on),
            rotate_size,
            retention: l.retention.unwrap_or(Duration::from_secs(48 * 3600)),
            journal_quota: l.journal_quota,
            min_free: l.min_free.unwrap_or(10),
            journal_rules: Rules { filter, cutoff: l.journal_cutoff },
            journal_filter_is_default: l.pcap_filter.is_none(),
            summary: l.summary.or(text),
            sensor,
            debug: l.debug,
            exporters,
            export,
            api: ApiSettings { idle_timeout, ..api },
        })
    }
}

/// What the journal keeps of live sources unless somebody says otherwise.
const DEFAULT_FILTER: &str = include_str!("../../configs/journal.bpf");

/// A filter as it was given: the expression itself, or with an @ in front the file it is in.
fn filter_text(given: &str) -> Result<String, ConfigError> {
    match given.strip_prefix('@') {
        None => Ok(given.trim().to_owned()),
        Some(path) => fs::read_to_string(path)
            .map(|text| filter::strip_comments(&text))
            .map_err(|e| ConfigError::Bad(format!("--pcap-filter {given}: {e}"))),
    }
}

/// The settings of the configuration file, of `path` or the usual place; none where there is none.
pub fn file_layer(path: Option<&Path>) -> Result<Layer, ConfigError> {
    match path {
        Some(path) => from_file(path),
        None if Path::new(DEFAULT_FILE).exists() => from_file(Path::new(DEFAULT_FILE)),
        None => Ok(Layer::default()),
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
    const ORIGINAL: [&str; 5] = ["interface", "debug", "max-flows", "exporter", "pcap-filter"];
    args.into_iter()
        .map(|arg| match arg.to_str().and_then(|a| a.strip_prefix('-')) {
            Some(name) if ORIGINAL.contains(&name.split('=').next().unwrap_or(name)) => {
                format!("--{name}").into()
            }
            _ => arg,
        })
        .collect()
}

/// The host's name.
pub fn hostname() -> String {
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
            (&["--retention", "48"], "--retention"),
            (&["--retention", "0h"], "--retention"),
            (&["--journal-quota", "600MB"], "--rotate-size"),
            (&["--min-free", "100"], "--min-free"),
            (&["--pcap-filter", "tcp prot 80"], "--pcap-filter: syntax error at \"prot\""),
            (&["--pcap-filter", "@/no/such/file"], "/no/such/file"),
            (&["--journal-cutoff", "some"], "--journal-cutoff"),
            (&["--poll", "sometimes"], "--poll"),
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
    fn the_journals_filter_has_a_default_for_live_sources_and_can_be_switched_off() {
        let filter = |args: &[&str], env: &[(&str, &str)], file: &str| {
            let c = parse(args, env, file).unwrap();
            (c.journal_rules.filter, c.journal_filter_is_default)
        };
        let (text, is_default) = filter(&[], &[], "");
        assert!(is_default && text.contains("port 443") && !text.contains('#'), "{text}");
        assert_eq!(filter(&["--read", "a"], &[], ""), (String::new(), true));
        assert_eq!(
            filter(&["-pcap-filter", ""], &[], "pcap_filter = \"udp\""),
            (String::new(), false)
        );
        assert_eq!(
            filter(&[], &[("MALAKOCUT_PCAP_FILTER", "tcp")], "pcap_filter = \"udp\"").0,
            "tcp"
        );
        assert_eq!(filter(&["--read", "a"], &[], "pcap_filter = \"udp\"").0, "udp");
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f.bpf");
        fs::write(&path, "# keep\nport 53 # DNS\nor arp\n").unwrap();
        let at = format!("@{}", path.display());
        assert_eq!(filter(&["--pcap-filter", &at], &[], "").0, "port 53 or arp");
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
        let c =
            parse(&["--retention", "36h"], &[], "min_free = 5\njournal_quota = \"2TB\"").unwrap();
        assert_eq!((c.retention.as_secs(), c.min_free), (36 * 3600, 5));
        assert_eq!(c.journal_quota, Some(2_000_000_000_000));
        let c = parse(&[], &[], "rotate_size = \"10 MB\"").unwrap();
        assert_eq!(c.rotate_size, 10_000_000);
    }
}
