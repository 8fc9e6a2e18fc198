//! One layer of settings, all of them optional.

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, CommandFactory, FromArgMatches, Parser, ValueEnum};
use serde::Deserialize;

use super::api::{self, ApiLayer};
use super::detect::DetectLayer;
use super::networks::Networks;
use super::units;
use super::{ConfigError, SourceConfig};
use crate::export;

/// `on` or `off`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Switch {
    On,
    Off,
}

impl Switch {
    pub fn is_on(self) -> bool {
        self == Self::On
    }
}

/// How the summary is printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum SummaryFormat {
    /// Tables for a person.
    Text,
    /// One JSON object.
    Json,
}

/// What an lcore does when nothing arrives.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Idle {
    /// Sleeps until the device rings, where it can and the lcore has nothing else to watch; else as
    /// [`Idle::Sleep`].
    Interrupt,
    /// Polls less often the longer nothing came, once a millisecond at last.
    #[default]
    #[value(alias = "adaptive")]
    #[serde(alias = "adaptive")]
    Sleep,
    /// Polls on: the least delay, a whole core each.
    Busy,
}

/// The settings of one layer.
#[derive(Clone, Debug, Default, Args, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Layer {
    /// Lcores to run on, in DPDK's syntax: 1-3 | 0,2 | 0@0,1@0-1. The first journals, the others
    /// work; one alone does both [default: one on any CPU]
    #[arg(long, value_name = "LIST")]
    pub lcores: Option<String>,
    /// What an lcore does when nothing arrives: wait for the device's interrupt, sleep longer and
    /// longer, up to 1 ms, or poll on and use its whole core [default: sleep]
    #[arg(long, alias = "poll", value_name = "interrupt|sleep|busy", hide_possible_values = true)]
    #[serde(alias = "poll")]
    pub idle: Option<Idle>,
    /// Interface to take over: by its DPDK driver if the card is bound (malakocut-cli nic), else by
    /// the AF_PACKET driver [default: enp3s0]
    #[arg(long, value_name = "IFACE", group = "source")]
    pub interface: Option<String>,
    /// DPDK virtual device, repeatable: net_af_packet0,iface=enp3s0 | net_pcap0,rx_pcap=f.pcap
    #[arg(long, value_name = "DEVARGS", group = "source")]
    pub vdev: Vec<String>,
    /// Card already bound to vfio-pci or uio, repeatable
    #[arg(long, value_name = "ADDR", group = "source")]
    pub pci: Vec<String>,
    /// Capture file (pcap or pcapng, plain or gzip; - is standard input), repeatable: processed to
    /// the end, then summary and exit
    #[arg(long, value_name = "FILE", group = "source")]
    pub read: Vec<PathBuf>,
    /// Where the sensor keeps its data; the journal goes to its folder pcap/
    /// [default: /var/lib/malakocut]
    #[arg(long, value_name = "DIR")]
    pub data_dir: Option<PathBuf>,
    /// Where flow events go, repeatable: none, file (needs --flow-log), secops, nats, kafka (the
    /// last three are set up by [export] in the configuration file)
    #[arg(long, value_name = "NAME")]
    pub exporter: Vec<String>,
    /// File to which flow events are appended, one JSON object a line; - is standard output
    #[arg(long, value_name = "PATH")]
    pub flow_log: Option<PathBuf>,
    /// File to which Suricata's EVE lines are appended (flows, DNS, TLS, QUIC, HTTP, SSH, DHCP, ARP,
    /// anomalies, counters); - is standard output. SIGHUP opens logs anew
    #[arg(long, value_name = "PATH")]
    pub eve_log: Option<PathBuf>,
    /// Packets with a payload of each flow that are read for names and fingerprints, 0 to 100; 0
    /// reads none [default: 10]
    #[arg(long, value_name = "N", value_parser = units::packets)]
    #[serde(deserialize_with = "units::de_packets")]
    pub inspect_packets: Option<u8>,
    /// Flows kept at once; when full, the oldest without an answer are reported and ended
    /// [default: 1000000]
    #[arg(long, value_name = "N", value_parser = units::flows)]
    #[serde(deserialize_with = "units::de_flows")]
    pub max_flows: Option<usize>,
    /// Seconds without a packet after which a flow ends [default: 60]
    #[arg(long, value_name = "S", value_parser = units::some_seconds)]
    #[serde(deserialize_with = "units::de_some_seconds")]
    pub idle_timeout: Option<Duration>,
    /// Seconds after which a flow that goes on reports a delta; 0 turns deltas off [default: 300]
    #[arg(long, value_name = "S", value_parser = units::seconds)]
    #[serde(deserialize_with = "units::de_seconds")]
    pub active_timeout: Option<Duration>,
    /// Packets that are looked at, in the syntax of pcap-filter(7), or @FILE: for telemetry and
    /// journal. Beats --capture-filter [default: all]
    #[arg(long, value_name = "EXPR", allow_hyphen_values = true)]
    pub filter: Option<String>,
    /// The same from a file, such as configs/capture.bpf
    #[arg(long, value_name = "FILE")]
    pub capture_filter: Option<PathBuf>,
    /// Leave ports 80 and 443 out of telemetry and journal, whatever else the filter takes
    #[arg(long)]
    pub exclude_web: bool,
    /// File of domains, such as configs/blocklist.conf: flows to them and to their subdomains are
    /// counted, but stay out of telemetry and journal. SIGHUP reads it anew
    #[arg(long, value_name = "FILE")]
    pub blocklist: Option<PathBuf>,
    /// Keep packets in DATA/pcap [default: on, but off with --read]
    #[arg(long, value_name = "on|off", hide_possible_values = true)]
    pub journal: Option<Switch>,
    /// Size at which the journal begins a new file, such as 500MB [default: 500MB]
    #[arg(long, value_name = "BYTES", value_parser = units::bytes)]
    #[serde(deserialize_with = "units::de_bytes")]
    pub rotate_size: Option<u64>,
    /// How long packets are kept, such as 48h, 90m or 7d [default: 48h]
    #[arg(long, value_name = "DURATION", value_parser = units::duration)]
    #[serde(deserialize_with = "units::de_duration")]
    pub retention: Option<Duration>,
    /// Largest size of the journal, such as 500GB; the oldest files go first [default: none]
    #[arg(long, value_name = "BYTES", value_parser = units::bytes)]
    #[serde(deserialize_with = "units::de_bytes")]
    pub journal_quota: Option<u64>,
    /// Part of the journal's file system that is kept free by deleting the oldest files
    /// [default: 10]
    #[arg(long, value_name = "PERCENT", value_parser = units::percent)]
    #[serde(deserialize_with = "units::de_percent")]
    pub min_free: Option<u8>,
    /// Packets that the journal keeps, in the syntax of pcap-filter(7), or @FILE; "" keeps all
    /// [default: without web, games and mDNS, see configs/journal.bpf; all with --read]
    #[arg(long, value_name = "EXPR", allow_hyphen_values = true)]
    pub pcap_filter: Option<String>,
    /// Bytes of a flow after which the journal keeps headers only, such as 1MB; an alert about a host
    /// lifts that for ten minutes [default: none]
    #[arg(long, value_name = "BYTES", value_parser = units::bytes)]
    #[serde(deserialize_with = "units::de_bytes")]
    pub journal_cutoff: Option<u64>,
    /// Unix socket on which status, flows and alerts are asked for and lists are reloaded
    /// [default: /run/malakocut.sock; none with --read]
    #[arg(long, value_name = "PATH")]
    pub control_socket: Option<PathBuf>,
    /// Address of the forensic API, port 8080 unless it has one; the API is on where there is a token
    /// in MALAKO_API_TOKEN [default: 127.0.0.1; none with --read]
    #[arg(long, value_name = "ADDR", value_parser = api::listen)]
    #[serde(deserialize_with = "units::de_listen")]
    pub api_listen: Option<SocketAddr>,
    /// Print totals at the end, on standard output [default: text with --read]
    #[arg(long, value_name = "text|json", hide_possible_values = true)]
    pub summary: Option<SummaryFormat>,
    /// This sensor's name in each event [default: the host's name]
    #[arg(long, value_name = "NAME")]
    pub sensor: Option<String>,
    /// What is logged on standard error: error, warn, info, debug, or by room, such as
    /// info,malakocut::journal=debug [default: info]
    #[arg(long, value_name = "LEVEL")]
    pub log: Option<String>,
    /// Show each flow event on standard output, and write everything to malakocut_debug.log
    #[arg(long)]
    pub debug: bool,
    /// Where the filter stood, for the log.
    #[arg(skip)]
    #[serde(skip)]
    pub filter_from: &'static str,
    /// What exporters need to know; only in the configuration file.
    #[arg(skip)]
    pub export: Option<Box<export::Settings>>,
    /// Only in the configuration file.
    #[arg(skip)]
    pub detect: DetectLayer,
    /// What networks are called; only in the configuration file.
    #[arg(skip)]
    pub networks: Networks,
    /// The API's files and limits; only in the configuration file.
    #[arg(skip)]
    pub api: ApiLayer,
}

/// A layer on its own, so that environment variables are read by the flags' own rules.
#[derive(Parser)]
#[command(name = "environment")]
struct Alone {
    #[command(flatten)]
    layer: Layer,
}

impl Layer {
    /// Reads `MALAKOCUT_<OPTION>` for every option; empty ones count as not set.
    pub fn from_environment(
        lookup: impl Fn(&str) -> Option<OsString>,
    ) -> Result<Self, ConfigError> {
        let command = Alone::command();
        let mut args = vec![OsString::from("environment")];
        let mut names = Vec::new();
        for arg in command.get_arguments() {
            let Some(long) = arg.get_long() else { continue };
            let name = format!("MALAKOCUT_{}", long.to_uppercase().replace('-', "_"));
            let Some(value) = lookup(&name).filter(|v| !v.is_empty()) else { continue };
            if arg.get_action().takes_values() {
                let mut flag = OsString::from(format!("--{long}="));
                flag.push(value);
                args.push(flag);
            } else if value != "0" && value != "false" {
                args.push(format!("--{long}").into());
            }
            names.push((format!("--{long}"), name));
        }
        let parsed = command
            .try_get_matches_from(args)
            .and_then(|m| Alone::from_arg_matches(&m))
            .map_err(|e| {
            let mut text = e.to_string();
            for (flag, name) in names {
                text = text.replace(&flag, &name);
            }
            let first = text.lines().next().unwrap_or_default();
            ConfigError::Bad(first.trim_start_matches("error: ").to_owned())
        })?;
        Ok(parsed.layer.named("environment"))
    }

    /// Says where this layer is from.
    pub(super) fn named(mut self, layer: &'static str) -> Self {
        self.filter_from = layer;
        self
    }

    fn has_filter(&self) -> bool {
        self.filter.is_some() || self.capture_filter.is_some()
    }

    /// This layer's values, and `lower`'s where this one has none.
    pub(super) fn over(self, lower: Self) -> Self {
        let (sourced, filtered) = (self.has_source(), self.has_filter());
        let list = |mine: Vec<String>, theirs| if mine.is_empty() { theirs } else { mine };
        Self {
            lcores: self.lcores.or(lower.lcores),
            idle: self.idle.or(lower.idle),
            interface: if sourced { self.interface } else { lower.interface },
            vdev: if sourced { self.vdev } else { lower.vdev },
            pci: if sourced { self.pci } else { lower.pci },
            read: if sourced { self.read } else { lower.read },
            data_dir: self.data_dir.or(lower.data_dir),
            exporter: list(self.exporter, lower.exporter),
            flow_log: self.flow_log.or(lower.flow_log),
            eve_log: self.eve_log.or(lower.eve_log),
            inspect_packets: self.inspect_packets.or(lower.inspect_packets),
            max_flows: self.max_flows.or(lower.max_flows),
            idle_timeout: self.idle_timeout.or(lower.idle_timeout),
            active_timeout: self.active_timeout.or(lower.active_timeout),
            filter: if filtered { self.filter } else { lower.filter },
            capture_filter: if filtered { self.capture_filter } else { lower.capture_filter },
            filter_from: if filtered { self.filter_from } else { lower.filter_from },
            exclude_web: self.exclude_web || lower.exclude_web,
            blocklist: self.blocklist.or(lower.blocklist),
            journal: self.journal.or(lower.journal),
            rotate_size: self.rotate_size.or(lower.rotate_size),
            retention: self.retention.or(lower.retention),
            journal_quota: self.journal_quota.or(lower.journal_quota),
            min_free: self.min_free.or(lower.min_free),
            pcap_filter: self.pcap_filter.or(lower.pcap_filter),
            journal_cutoff: self.journal_cutoff.or(lower.journal_cutoff),
            control_socket: self.control_socket.or(lower.control_socket),
            api_listen: self.api_listen.or(lower.api_listen),
            summary: self.summary.or(lower.summary),
            sensor: self.sensor.or(lower.sensor),
            log: self.log.or(lower.log),
            debug: self.debug || lower.debug,
            export: self.export.or(lower.export),
            // Of the file, the lowest layer.
            api: lower.api,
            detect: if self.detect.watch.is_empty() { lower.detect } else { self.detect },
            networks: if self.networks.is_empty() { lower.networks } else { self.networks },
        }
    }

    fn has_source(&self) -> bool {
        self.interface.is_some()
            || !self.vdev.is_empty()
            || !self.pci.is_empty()
            || !self.read.is_empty()
    }

    /// The one kind of source that is given.
    pub(super) fn source(&self) -> Result<Option<SourceConfig>, ConfigError> {
        let given: Vec<SourceConfig> = [
            self.interface.clone().map(SourceConfig::Interface),
            (!self.vdev.is_empty()).then(|| SourceConfig::Vdevs(self.vdev.clone())),
            (!self.pci.is_empty()).then(|| SourceConfig::Pci(self.pci.clone())),
            (!self.read.is_empty()).then(|| SourceConfig::Files(self.read.clone())),
        ]
        .into_iter()
        .flatten()
        .collect();
        match <[SourceConfig; 1]>::try_from(given) {
            Ok([source]) => Ok(Some(source)),
            Err(none) if none.is_empty() => Ok(None),
            Err(_) => Err(ConfigError::Bad(
                "give one of --interface, --vdev, --pci and --read (the last three may repeat)"
                    .into(),
            )),
        }
    }
}
