//! What the sensor is to do: flags, environment, file and defaults, in this order of precedence.
//!
//! Each layer is the same [`Layer`] of optional values; a source given in one layer hides the
//! sources of the layers below it. [`Config`] is the checked result. Nothing here opens anything
//! but the configuration file.

mod api;
mod capture;
mod detect;
mod layer;
mod networks;
mod units;

use std::env;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{CommandFactory, Parser};

use crate::api::Settings as ApiSettings;
use crate::filter;
use crate::journal::admit::Rules;
use crate::log;

pub use capture::CaptureRules;
pub use layer::{Idle, Layer, SummaryFormat, Switch};
pub use networks::Networks;

use crate::detect::watch::Watched;

use crate::export;

/// Where the configuration is looked for when no `--config` is given.
pub const DEFAULT_FILE: &str = "/etc/malakocut/malakocut.toml";
/// Where the sensor keeps its data when nobody says.
pub const DEFAULT_DATA_DIR: &str = "/var/lib/malakocut";
/// What is listened on when nobody says.
pub const DEFAULT_INTERFACE: &str = "enp3s0";

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
    /// An interface, by its DPDK driver or the AF_PACKET driver.
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
    pub idle: Idle,
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
    /// What is left out of telemetry and journal.
    pub capture: CaptureRules,
    pub blocklist: Option<PathBuf>,
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
    /// What is logged, as tracing's filters say it.
    pub log: String,
    pub debug: bool,
    /// Exporters by name, `none` and `file` left out.
    pub exporters: Vec<String>,
    pub export: export::Settings,
    pub api: ApiSettings,
    /// Nothing is to run.
    pub check_only: bool,
}

/// malakocut, a network detection and response sensor for a mirror port.
#[derive(Debug, Parser)]
#[command(
    name = "malakocut",
    version = crate::VERSION,
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
    /// Check the configuration, say what is wrong with it, and end
    #[arg(long)]
    check_config: bool,
    #[command(flatten)]
    layer: Layer,
}

impl Config {
    /// From the process's arguments and environment.
    pub fn from_process() -> Result<Self, ConfigError> {
        let args = Args::try_parse_from(original_spellings(env::args_os()))?;
        let environment = Layer::from_environment(|name| env::var_os(name))?;
        let file = file_layer(args.config.as_deref())?;
        let this = Self::of(args.layer.named("command line").over(environment).over(file))?;
        Ok(Self { check_only: args.check_config, ..this })
    }

    /// From a configuration file alone, the usual one if none is given.
    pub fn of_file(path: Option<&Path>) -> Result<Self, ConfigError> {
        Self::of(file_layer(path)?)
    }

    /// The keys in which another configuration says something else.
    pub fn differences(&self, other: &Self) -> Vec<&'static str> {
        let mut out = Vec::new();
        macro_rules! compare {
            ($($key:ident),*) => {
                // Every key must stand here.
                let Self { $($key: _),* } = self;
                $(if format!("{:?}", self.$key) != format!("{:?}", other.$key) {
                    out.push(stringify!($key));
                })*
            };
        }
        compare!(
            source,
            lcores,
            idle,
            data_dir,
            flow_log,
            eve_log,
            inspect_packets,
            watch,
            max_flows,
            idle_timeout,
            active_timeout,
            capture,
            blocklist,
            journal,
            rotate_size,
            retention,
            journal_quota,
            min_free,
            journal_rules,
            journal_filter_is_default,
            summary,
            sensor,
            log,
            debug,
            exporters,
            export,
            api,
            check_only
        );
        out
    }

    fn of(l: Layer) -> Result<Self, ConfigError> {
        let bad = |text: String| Err(ConfigError::Bad(text));
        let source =
            l.source()?.unwrap_or_else(|| SourceConfig::Interface(DEFAULT_INTERFACE.into()));
        let is_file = matches!(source, SourceConfig::Files(_));
        let capture = CaptureRules::of(&l)?;
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
            Some(text) => capture::expression("--pcap-filter", text)?,
            // A capture that somebody wants journaled is wanted whole.
            None if is_file => String::new(),
            None => filter::strip_comments(DEFAULT_FILTER),
        };
        if l.blocklist.is_some() && l.inspect_packets == Some(0) {
            return bad("--blocklist needs names to be read: --inspect-packets above 0".into());
        }
        let log = l.log.unwrap_or_else(|| log::ORDINARY.into());
        log::check(&log).map_err(|e| ConfigError::Bad(format!("--log {log}: {e}")))?;
        let idle_timeout = l.idle_timeout.unwrap_or(Duration::from_secs(60));
        // Beside the events only when asked for.
        let text = (is_file && !on_stdout).then_some(SummaryFormat::Text);
        Ok(Self {
            source,
            lcores: l.lcores,
            idle: l.idle.unwrap_or_default(),
            data_dir: l.data_dir.unwrap_or_else(|| DEFAULT_DATA_DIR.into()),
            flow_log,
            eve_log: l.eve_log,
            inspect_packets: l.inspect_packets.unwrap_or(10),
            watch,
            max_flows: l.max_flows.unwrap_or(1_000_000),
            idle_timeout,
            active_timeout: l.active_timeout.unwrap_or(Duration::from_secs(300)),
            capture,
            blocklist: l.blocklist,
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
            log,
            debug: l.debug,
            exporters,
            export,
            api: ApiSettings { idle_timeout, ..api },
            check_only: false,
        })
    }
}

/// The command line, for completions and the manual.
pub fn command() -> clap::Command {
    Args::command()
}

/// What the journal keeps of live sources unless somebody says otherwise.
const DEFAULT_FILTER: &str = include_str!("../../configs/journal.bpf");

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
    let layer: Result<Layer, _> = toml::from_str(&text);
    layer.map(|l| l.named("configuration file")).map_err(|e| {
        let line =
            e.span().map_or(0, |s| 1 + text.get(..s.start).unwrap_or("").matches('\n').count());
        ConfigError::Bad(format!("configuration {}, line {line}: {}", path.display(), e.message()))
    })
}

/// The Go original wrote its options with one dash.
fn original_spellings(args: impl IntoIterator<Item = OsString>) -> Vec<OsString> {
    const ORIGINAL: [&str; 9] = [
        "interface",
        "debug",
        "max-flows",
        "exporter",
        "pcap-filter",
        "filter",
        "capture-filter",
        "exclude-web",
        "blocklist",
    ];
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
        let file = file.named("configuration file");
        Config::of(flags.layer.named("command line").over(environment).over(file))
            .map_err(|e| e.to_string())
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

    /// The keys that a table may have, as the parser itself lists them.
    fn keys(table: &str) -> Vec<String> {
        let text = if table.is_empty() { "zzz = 1".into() } else { format!("[{table}]\nzzz = 1") };
        let error = toml::from_str::<Layer>(&text).unwrap_err().message().to_owned();
        assert!(error.contains("unknown field `zzz`"), "{error}");
        error.split('`').skip(3).step_by(2).map(str::to_owned).collect()
    }

    #[test]
    fn every_key_stands_in_the_shipped_configuration() {
        let shipped = include_str!("../../configs/malakocut.toml");
        let mut table = String::new();
        let mut found = std::collections::BTreeSet::new();
        for line in shipped.lines() {
            // Commented out or not.
            let line = line.trim_start_matches(['#', ' ']);
            if line.starts_with('[') && line.ends_with(']') {
                table = line.trim_matches(['[', ']']).to_owned();
            } else if let Some((key, _)) = line.split_once(" = ") {
                found.insert(format!("{table}.{}", key.trim()));
            }
        }
        let mut missing = Vec::new();
        let exporters = ["secops", "nats", "kafka"];
        let mut tables: Vec<String> =
            vec![String::new(), "export.spool".into(), "export.file".into()];
        tables.extend(exporters.map(|e| format!("export.{e}")));
        tables.extend(["export.secops.delivery".into(), "export.secops.fields".into()]);
        for table in tables {
            for key in keys(&table) {
                // Tables of their own.
                let nested = ["export", "detect", "delivery", "fields", "networks", "api"];
                let nested = nested.contains(&key.as_str());
                // --read is for the command line, and poll another name of idle.
                if nested || key == "read" || key == "poll" {
                    continue;
                }
                let name = format!("{table}.{key}");
                if !found.contains(&name) {
                    missing.push(name);
                }
            }
        }
        assert_eq!(missing, [""; 0]);
        assert!(found.contains("detect.watch.address"));
    }

    #[test]
    fn what_a_reload_finds_changed_is_named() {
        let (a, b) = (parse(&[], &[], "").unwrap(), parse(&[], &[], "").unwrap());
        assert_eq!(a.differences(&b), [""; 0]);
        let c = parse(&["--max-flows", "5"], &[], "retention = \"1h\"").unwrap();
        assert_eq!(a.differences(&c), ["max_flows", "retention"]);
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
            (&["--filter", "tcp prot 80"], "--filter: syntax error at \"prot\" (character 5)"),
            (&["--capture-filter", "/no/such/file"], "--capture-filter /no/such/file"),
            (&["--blocklist", "x", "--inspect-packets", "0"], "--inspect-packets"),
            (&["--journal-cutoff", "some"], "--journal-cutoff"),
            (&["--idle", "sometimes"], "--idle"),
            (&["--log", "x=loud"], "--log"),
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
    fn the_highest_layer_with_a_filter_holds_and_in_one_layer_the_expression() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("c.bpf");
        fs::write(&path, "# names\nport 53 # DNS\nor arp\n").unwrap();
        let path = path.to_str().unwrap();
        let rules = |args: &[&str], env: &[(&str, &str)], file: &str| {
            let c = parse(args, env, file).unwrap().capture;
            (c.expression.clone(), c.given.clone(), c.unused.clone(), c.expressions().len())
        };
        let none = || (String::new(), String::new(), None, 1);
        assert_eq!(rules(&[], &[], ""), none());
        let env = [("MALAKOCUT_FILTER", "tcp")];
        let file = format!("capture_filter = {path:?}\nexclude_web = true");
        let from = |expression: &str, given: &str| (expression.into(), given.into(), None, 2);
        assert_eq!(rules(&["-filter", "udp"], &env, &file), from("udp", "--filter (command line)"));
        assert_eq!(rules(&[], &env, &file), from("tcp", "--filter (environment)"));
        let given = format!("--capture-filter {path} (configuration file)");
        assert_eq!(rules(&[], &[], &file), from("port 53 or arp", &given));
        let given = format!("--capture-filter {path} (command line)");
        let args = ["-capture-filter", path, "-exclude-web"];
        assert_eq!(rules(&args, &env, ""), from("port 53 or arp", &given));
        let (expression, given, unused, _) =
            rules(&["--filter", "", "--capture-filter", path], &env, "");
        assert_eq!((expression.as_str(), given.as_str()), ("", "--filter (command line)"));
        assert_eq!(unused, Some(format!("--capture-filter {path}")));
        fs::write(path, "port 53\n  or prot 5\n").unwrap();
        let error = parse(&["--capture-filter", path], &[], "").unwrap_err();
        assert!(error.contains("\"prot\" (line 2, character 6)"), "{error}");
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
