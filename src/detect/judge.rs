//! A window's counts against thresholds.
//!
//! Rates are counts divided by the window's length, also where the window was cut short; a
//! threshold is exceeded by more than its value. An endpoint that gets more than the packet
//! threshold is attacked, if a command-and-control address is known: without one a high rate may be
//! a download. More hosts than the destination threshold are a scan, whatever the packet rate. A
//! window that is a scan reports no ordinary connections. A window without a counted packet reports
//! nothing and is forgotten.

use std::collections::HashSet;
use std::net::IpAddr;

use super::tally::Endpoint;
use super::{Host, Protocol, Tally};

/// Which hosts make a scan.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ScanMode {
    /// All.
    HostRate,
    /// Those that the last active window did not have.
    NewHostRate,
    /// Those of which no endpoint is attacked.
    #[default]
    FilteredHostRate,
}

impl ScanMode {
    pub const ALL: [Self; 3] = [Self::HostRate, Self::NewHostRate, Self::FilteredHostRate];

    pub fn name(self) -> &'static str {
        match self {
            Self::HostRate => "host-rate",
            Self::NewHostRate => "new-host-rate",
            Self::FilteredHostRate => "filtered-host-rate",
        }
    }

    /// By its name in any case; nothing at all is the default.
    pub fn from_name(name: &str) -> Option<Self> {
        let name = name.trim().to_lowercase();
        if name.is_empty() {
            return Some(Self::default());
        }
        Self::ALL.into_iter().find(|mode| mode.name() == name)
    }
}

/// When a window is more than ordinary.
#[derive(Clone, Copy, Debug)]
pub struct Rules {
    pub window_s: u64,
    /// Packets a second to one endpoint.
    pub packet_threshold: f64,
    /// Hosts a second.
    pub destination_threshold: f64,
    /// Ports of one host a second; `None`: not looked at.
    pub port_threshold: Option<f64>,
    pub mode: ScanMode,
    /// A command-and-control address is known.
    pub c2_known: bool,
}

/// What was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// Many packets to one endpoint.
    Attack,
    /// Many hosts.
    Scan,
    /// Many ports of one host.
    PortScan,
    /// A window with traffic and without a scan.
    Idle,
    /// An endpoint that was talked to.
    Connection,
}

impl Class {
    /// Whether it is more than a record of what is ordinary.
    pub fn is_alarm(self) -> bool {
        matches!(self, Self::Attack | Self::Scan | Self::PortScan)
    }
}

/// Where it went to.
#[derive(Clone, Copy, Debug)]
pub struct Destination {
    pub host: Host,
    /// 0 where there is none.
    pub port: u16,
    pub protocol: Option<Protocol>,
}

/// One thing to report.
#[derive(Clone, Debug)]
pub struct Finding {
    pub class: Class,
    /// Of the whole window, or of the endpoint.
    pub packet_rate: f64,
    /// `None` of the whole window.
    pub destination: Option<Destination>,
    /// Ports a second of a port scan.
    pub port_rate: f64,
}

/// What a window was.
#[derive(Clone, Debug)]
pub struct Verdict {
    pub start_ns: u64,
    pub packets: u64,
    pub packet_rate: f64,
    pub endpoints: usize,
    /// Hosts a second that count towards a scan.
    pub destination_rate: f64,
    /// Those hosts, sorted as text.
    pub scan_hosts: Vec<IpAddr>,
    /// The endpoint with the most packets, the lowest of equals.
    pub top: Option<Endpoint>,
    /// Of the window first, then by address and port.
    pub findings: Vec<Finding>,
}

/// Judges the windows of one host, one after the other.
#[derive(Debug)]
pub struct Judge {
    rules: Rules,
    /// Hosts of the last active window.
    previous: HashSet<Host>,
}

impl Judge {
    pub fn new(rules: Rules) -> Self {
        Self { rules, previous: HashSet::default() }
    }

    pub fn rules(&self) -> &Rules {
        &self.rules
    }

    /// The verdict on the window that began at `start_ns`; `None` if nothing counted.
    pub fn judge(&mut self, start_ns: u64, tally: &Tally) -> Option<Verdict> {
        if tally.packets() == 0 {
            return None;
        }
        let rules = self.rules;
        let rate = |count: u64| count as f64 / rules.window_s as f64;
        let is_attack = |e: &Endpoint| rules.c2_known && rate(e.packets) > rules.packet_threshold;
        let is_port_scan =
            |ports: u32| rules.port_threshold.is_some_and(|t| rate(u64::from(ports)) > t);
        let mut attacked = vec![false; tally.hosts().len()];
        for e in tally.endpoints().iter().filter(|e| is_attack(e)) {
            if let Some(flag) = e.host_at.and_then(|at| attacked.get_mut(at as usize)) {
                *flag = true;
            }
        }
        let scan_hosts = self.scan_hosts(tally, &attacked);
        let destination_rate = rate(scan_hosts.len() as u64);
        let is_scan = destination_rate > rules.destination_threshold;
        let packet_rate = rate(tally.packets());
        let of_window = |class| Finding { class, packet_rate, destination: None, port_rate: 0.0 };
        let mut findings = vec![of_window(if is_scan { Class::Scan } else { Class::Idle })];
        for contact in tally.hosts().iter().filter(|c| is_port_scan(c.ports)) {
            findings.push(Finding {
                class: Class::PortScan,
                packet_rate: 0.0,
                destination: Some(Destination { host: contact.host, port: 0, protocol: None }),
                port_rate: rate(u64::from(contact.ports)),
            });
        }
        for e in tally.endpoints() {
            let ports =
                e.host_at.and_then(|at| tally.hosts().get(at as usize)).map_or(0, |c| c.ports);
            let class = match is_attack(e) {
                true => Class::Attack,
                // Part of the scan, or not to be told from it.
                false if is_scan || is_port_scan(ports) => continue,
                false => Class::Connection,
            };
            findings.push(Finding {
                class,
                packet_rate: rate(e.packets),
                destination: Some(Destination {
                    host: e.host,
                    port: e.port,
                    protocol: Some(e.protocol),
                }),
                port_rate: 0.0,
            });
        }
        // Stable: a port scan stays before the endpoints of its host.
        findings.sort_by_key(|f| f.destination.map(|d| (d.host, d.port)));
        Some(Verdict {
            start_ns,
            packets: tally.packets(),
            packet_rate,
            endpoints: tally.endpoints().len(),
            destination_rate,
            scan_hosts: sorted_as_text(scan_hosts),
            top: top(tally.endpoints()),
            findings,
        })
    }

    /// The hosts that count towards a scan; remembers those of this window.
    fn scan_hosts(&mut self, tally: &Tally, attacked: &[bool]) -> Vec<Host> {
        let hosts = tally.hosts().iter().map(|c| c.host);
        match self.rules.mode {
            ScanMode::HostRate => hosts.collect(),
            ScanMode::FilteredHostRate => {
                hosts.zip(attacked).filter(|(_, attacked)| !**attacked).map(|(h, _)| h).collect()
            }
            ScanMode::NewHostRate => {
                let new = hosts.clone().filter(|h| !self.previous.contains(h)).collect();
                self.previous.clear();
                self.previous.extend(hosts);
                new
            }
        }
    }
}

fn sorted_as_text(hosts: Vec<Host>) -> Vec<IpAddr> {
    let mut hosts: Vec<(String, IpAddr)> =
        hosts.into_iter().map(|h| (h.ip().to_string(), h.ip())).collect();
    hosts.sort_unstable();
    hosts.into_iter().map(|(_, ip)| ip).collect()
}

fn top(endpoints: &[Endpoint]) -> Option<Endpoint> {
    let rank = |e: &&Endpoint| (e.packets, std::cmp::Reverse((e.host, e.port)));
    endpoints.iter().max_by_key(rank).copied()
}
