//! The command line: what it takes, what it prints before a run.

use std::ffi::OsString;
use std::fmt::Write;
use std::path::{Component, Path, PathBuf};

use clap::builder::ArgAction;
use clap::error::ErrorKind;
use clap::{CommandFactory, FromArgMatches, Parser};

use super::GomonError;
use super::log::Level;
use crate::detect::{DEFAULT_LIMIT, EveStyle, Host, Prefix, Rules, ScanMode, Scope};

/// The command line, for completions and the manual.
pub fn command() -> clap::Command {
    Args::command()
}

const VERSION: &str = concat!("v", env!("CARGO_PKG_VERSION"));
const CAPTURE_DIR: &str = "captures";
/// The most endpoints that may be tracked; they take about 1 GB.
const MAX_DESTINATIONS: usize = 1 << 22;
/// 31 years.
const MAX_WINDOW_S: u64 = 1_000_000_000;
const DEPRECATED: &str = "--destination-rate-mode";

const BANNER: &str = r"
     _______    ______   ___ __ __   ______   ___   __
    /______/\  /_____/\ /__//_//_/\ /_____/\ /__/\ /__/\
    \::::__\/__\:::_ \ \\::\| \| \ \\:::_ \ \\::\_\\  \ \
     \:\ /____/\\:\ \ \ \\:.      \ \\:\ \ \ \\:.  -\  \ \
      \:\\_  _\/ \:\ \ \ \\:.\-/\  \ \\:\ \ \ \\:. _    \ \
       \:\_\ \ \  \:\_\ \ \\. \  \  \ \\:\_\ \ \\. \ -\  \ \
        \_____\/   \_____\/ \__\/ \__\/ \_____\/ \__\/ \__\/
";

/// Watches what one host does on the network: floods, scans, connections.
#[derive(Debug, Parser)]
#[command(
    name = "gomon",
    version = concat!("version v", env!("CARGO_PKG_VERSION")),
    disable_version_flag = true,
    disable_help_subcommand = true,
    args_override_self = true,
    about = "Watches what one host, such as a sandboxed sample, does on the network.\n\n\
        Counts the packets that one host sends, in windows of time, and writes EVE JSON events: \
        an attack (many packets a second to one address and port; needs --c2-ip), a scan (many \
        hosts a second), and every ordinary connection. Events go to standard output or \
        --eve-log-path, everything else to standard error. Ctrl-C ends it in order.",
    override_usage = "gomon <input> <src_ip> [flags]",
    after_help = "Examples:\n  \
        gomon sample.pcap 10.0.0.5                          what 10.0.0.5 does in a capture\n  \
        gomon sample.pcap 10.0.0.5 --calibrate              thresholds that its traffic would need\n  \
        sudo gomon eth1 10.0.0.5 --c2-ip 203.0.113.4 --save-packets 100 --eve-log-path eve.json\n\n\
        Rates are counts divided by the window's length; a threshold is exceeded by more than its \
        value. Exit status: 0 done, 1 an error (one line on standard error)."
)]
struct Args {
    /// A capture file (pcap, pcapng, also gzip), or the name of a network interface (needs root)
    #[arg(value_name = "input")]
    input: String,
    /// IP address of the host to watch; only what it sends counts
    #[arg(value_name = "src_ip")]
    src_ip: String,
    /// Length of a window, seconds
    #[arg(long, value_name = "int", default_value = "30", allow_hyphen_values = true)]
    window: String,
    /// Packets a second to one address and port above which it is attacked
    #[arg(long, value_name = "float", default_value = "5", allow_hyphen_values = true)]
    packet_threshold: String,
    /// Destination hosts a second above which a window is a horizontal scan
    #[arg(long, value_name = "float", default_value = "10", allow_hyphen_values = true)]
    destination_threshold: String,
    /// Ports a second of one host above which it is scanned vertically [default: not looked at]
    #[arg(long, value_name = "float", allow_hyphen_values = true)]
    port_threshold: Option<String>,
    /// Hosts that make a scan: host-rate (all), new-host-rate (not in the last active window),
    /// filtered-host-rate (not attacked)
    #[arg(
        long,
        value_name = "string",
        default_value = "filtered-host-rate",
        alias = "destination-rate-mode"
    )]
    scan_detection_mode: String,
    /// Command-and-control address of the sample; its traffic is not reported
    #[arg(long, value_name = "string", default_value = "", hide_default_value = true)]
    c2_ip: String,
    /// Name of the sample, for the events and the capture files
    #[arg(long, value_name = "string", default_value = "", hide_default_value = true)]
    sample_id: String,
    /// Destinations to leave out, addresses or networks (192.0.2.0/24); repeatable, or a comma list
    #[arg(long, value_name = "strings", value_delimiter = ',', action = ArgAction::Append)]
    ignore_dst: Vec<String>,
    /// Append the events to this file instead of writing them to standard output
    #[arg(long, value_name = "string", default_value = "", hide_default_value = true)]
    eve_log_path: String,
    /// Layout of the events: gomon (as the original), or suricata (valid by Suricata's schema)
    #[arg(long, value_name = "string", default_value = "gomon")]
    eve_style: String,
    /// Also report windows with traffic but without a scan
    #[arg(long, num_args = 0..=1, require_equals = true, default_value = "false",
          default_missing_value = "true", value_parser = boolean, hide_default_value = true,
          value_name = "bool", action = ArgAction::Set)]
    show_idle: bool,
    /// Save the last so many packets of an attacked host, both directions, to a capture file
    #[arg(long, value_name = "int", default_value = "0", allow_hyphen_values = true)]
    save_packets: String,
    /// Folder of those files [default: ./captures]
    #[arg(long, value_name = "string", default_value = "", hide_default_value = true)]
    capture_dir: String,
    /// Write no events; log each window's rates, and at the end the thresholds they would need
    #[arg(long, num_args = 0..=1, require_equals = true, default_value = "false",
          default_missing_value = "true", value_parser = boolean, hide_default_value = true,
          value_name = "bool", action = ArgAction::Set)]
    calibrate: bool,
    /// Addresses with port, and hosts, that a window tracks; packets to more are only counted
    #[arg(long, value_name = "int", default_value = "1024", allow_hyphen_values = true)]
    max_destinations: String,
    /// Log level: debug, info, warn, error
    #[arg(long, value_name = "string", default_value = "info")]
    log_level: String,
    /// Print the version
    #[arg(long, action = ArgAction::Version)]
    version: Option<bool>,
}

/// The checked command line.
#[derive(Clone, Debug)]
pub struct Options {
    pub input: String,
    /// As it was given.
    pub src_ip: String,
    /// As it was given; empty without one.
    pub c2_ip: String,
    pub sample_id: String,
    pub scope: Scope,
    pub rules: Rules,
    pub max_destinations: usize,
    pub show_idle: bool,
    pub calibrate: bool,
    pub style: EveStyle,
    /// `None`: standard output.
    pub eve_log: Option<PathBuf>,
    pub save_packets: usize,
    pub capture_dir: PathBuf,
    pub log_level: Level,
    /// As they were given, for the configuration block.
    mode_text: String,
    level_text: String,
    ignored: Vec<String>,
}

impl Options {
    /// Where the events go.
    pub(super) fn log_name(&self) -> String {
        self.eve_log.as_ref().map_or_else(|| "stdout".to_owned(), |p| p.display().to_string())
    }
}

/// What the command line asks for.
pub(super) enum Asked {
    Run(Box<Options>),
    /// To be printed: help or version.
    Text(String),
}

pub(super) fn parse(argv: impl IntoIterator<Item = OsString>) -> Result<Asked, GomonError> {
    let argv: Vec<OsString> = argv.into_iter().collect();
    let matched =
        Args::command().try_get_matches_from(&argv).and_then(|m| Args::from_arg_matches(&m));
    let args = match matched {
        Ok(args) => args,
        Err(e) if matches!(e.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion) => {
            return Ok(Asked::Text(e.to_string()));
        }
        Err(e) => return Err(GomonError::Usage(in_one_line(&e))),
    };
    let is_old =
        |arg: &&OsString| arg.to_str().is_some_and(|a| a.split('=').next() == Some(DEPRECATED));
    if argv.iter().find(is_old).is_some() {
        eprintln!("Flag {DEPRECATED} has been deprecated, use --scan-detection-mode");
    }
    args.check().map(|options| Asked::Run(Box::new(options)))
}

/// clap's first paragraph; what follows is advice and usage.
fn in_one_line(e: &clap::Error) -> String {
    if e.kind() == ErrorKind::MissingRequiredArgument {
        return "expected two arguments: gomon <input> <src_ip> [flags] (gomon --help lists them)"
            .into();
    }
    let text = e.to_string();
    let first = text.split("\n\n").next().unwrap_or_default();
    first.trim_start_matches("error: ").split_whitespace().collect::<Vec<_>>().join(" ")
}

fn boolean(text: &str) -> Result<bool, String> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(false),
        _ => Err("true or false".into()),
    }
}

impl Args {
    fn check(self) -> Result<Options, GomonError> {
        let bad = GomonError::Usage;
        let packet_threshold = number("packet-threshold", &self.packet_threshold)?;
        if packet_threshold <= 0.0 {
            return Err(bad(format!(
                "packet-threshold must be greater than 0, received {}",
                self.packet_threshold
            )));
        }
        let destination_threshold =
            not_negative("destination-threshold", &self.destination_threshold)?;
        let port_threshold = match &self.port_threshold {
            Some(text) => Some(not_negative("port-threshold", text)?),
            None => None,
        };
        let window_s = whole("window", &self.window, 1..=MAX_WINDOW_S)?;
        let max_destinations =
            whole("max-destinations", &self.max_destinations, 1..=MAX_DESTINATIONS as u64)?;
        let save_packets = whole("save-packets", &self.save_packets, 0..=u64::from(u32::MAX))?;
        let level = Level::from_name(&self.log_level).ok_or_else(|| {
            bad(format!(
                "unsupported log-level {:?} (expected debug, info, warn, error)",
                self.log_level
            ))
        })?;
        let mode = ScanMode::from_name(&self.scan_detection_mode).ok_or_else(|| {
            bad(format!(
                "unsupported scan-detection-mode {:?} (expected \"host-rate\", \"new-host-rate\", \
                 or \"filtered-host-rate\")",
                self.scan_detection_mode
            ))
        })?;
        let style = match self.eve_style.as_str() {
            "gomon" => EveStyle::Gomon,
            "suricata" => EveStyle::Suricata,
            other => {
                return Err(bad(format!(
                    "unsupported eve-style {other:?} (expected gomon, suricata)"
                )));
            }
        };
        let (scope, ignored) = self.scope()?;
        let rules = Rules {
            window_s,
            packet_threshold,
            destination_threshold,
            port_threshold,
            mode,
            c2_known: !self.c2_ip.is_empty(),
        };
        let capture_dir = if self.capture_dir.is_empty() { CAPTURE_DIR } else { &self.capture_dir };
        Ok(Options {
            input: self.input,
            src_ip: self.src_ip,
            c2_ip: self.c2_ip,
            sample_id: self.sample_id,
            scope,
            rules,
            max_destinations: max_destinations as usize,
            show_idle: self.show_idle,
            calibrate: self.calibrate,
            style,
            eve_log: (!self.eve_log_path.is_empty()).then(|| clean(&self.eve_log_path)),
            save_packets: save_packets as usize,
            capture_dir: clean(capture_dir),
            log_level: level,
            mode_text: self.scan_detection_mode,
            level_text: self.log_level,
            ignored,
        })
    }

    /// What counts, and the list of what does not, as it was given.
    fn scope(&self) -> Result<(Scope, Vec<String>), GomonError> {
        let bad = |what: &str, e| GomonError::Usage(format!("{what}: {e}"));
        let host: Host = self.src_ip.parse().map_err(|e| bad("src_ip", e))?;
        let ignored: Vec<String> =
            self.ignore_dst.iter().filter(|d| !d.trim().is_empty()).cloned().collect();
        let mut left_out = Vec::new();
        for text in &ignored {
            left_out.push(text.parse::<Prefix>().map_err(|e| bad("ignore-dst", e))?);
        }
        if !self.c2_ip.is_empty() {
            let c2: Host = self.c2_ip.parse().map_err(|e| bad("c2-ip", e))?;
            left_out.push(c2.into());
        }
        Ok((Scope::new(host, left_out), ignored))
    }
}

fn number(name: &str, text: &str) -> Result<f64, GomonError> {
    match text.trim().parse::<f64>() {
        Ok(n) if n.is_finite() => Ok(n),
        _ => Err(GomonError::Usage(format!("{name} must be a number, received {text:?}"))),
    }
}

fn not_negative(name: &str, text: &str) -> Result<f64, GomonError> {
    match number(name, text)? {
        n if n < 0.0 => {
            Err(GomonError::Usage(format!("{name} must be non-negative, received {text}")))
        }
        n => Ok(n),
    }
}

fn whole(name: &str, text: &str, range: std::ops::RangeInclusive<u64>) -> Result<u64, GomonError> {
    match text.trim().parse::<u64>() {
        Ok(n) if range.contains(&n) => Ok(n),
        _ => Err(GomonError::Usage(format!(
            "{name} must be a whole number from {} to {}, received {text:?}",
            range.start(),
            range.end()
        ))),
    }
}

/// Without `./` and doubled slashes.
fn clean(path: &str) -> PathBuf {
    let cleaned: PathBuf =
        Path::new(path).components().filter(|c| !matches!(c, Component::CurDir)).collect();
    if cleaned.as_os_str().is_empty() { ".".into() } else { cleaned }
}

/// `90` as `1m30s`.
fn duration(seconds: u64) -> String {
    let (h, m, s) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    match (h, m) {
        (0, 0) => format!("{s}s"),
        (0, _) => format!("{m}m{s}s"),
        _ => format!("{h}h{m}m{s}s"),
    }
}

/// What is printed before a run: who we are and what we were told.
pub(super) fn banner(o: &Options) -> String {
    let or_none = |text: &str| if text.is_empty() { "<none>".to_owned() } else { text.to_owned() };
    let mut lines = vec![
        ("version", VERSION.to_owned()),
        ("input", o.input.clone()),
        ("source-ip", o.src_ip.clone()),
        ("window", duration(o.rules.window_s)),
        ("packet-threshold", format!("{:.2}", o.rules.packet_threshold)),
        ("destination-threshold", format!("{:.2}", o.rules.destination_threshold)),
        ("scan-detection-mode", o.mode_text.clone()),
        ("log-level", o.level_text.clone()),
        ("show-idle", o.show_idle.to_string()),
        ("calibrate", o.calibrate.to_string()),
        ("c2-ip", or_none(&o.c2_ip)),
        ("sample-id", or_none(&o.sample_id)),
        ("ignore-dst", or_none(&o.ignored.join(", "))),
        ("save-packets", o.save_packets.to_string()),
        ("capture-dir", o.capture_dir.display().to_string()),
        ("eve-log-path", o.log_name()),
    ];
    // Only what differs from what the original could do.
    if let Some(threshold) = o.rules.port_threshold {
        lines.push(("port-threshold", format!("{threshold:.2}")));
    }
    if o.max_destinations != DEFAULT_LIMIT {
        lines.push(("max-destinations", o.max_destinations.to_string()));
    }
    if o.style == EveStyle::Suricata {
        lines.push(("eve-style", "suricata".into()));
    }
    let mut out = format!("{BANNER}\nConfiguration:\n");
    for (name, value) in lines {
        let _ = writeln!(out, "  {name}: {value}");
    }
    out
}
