//! Findings as EVE JSON lines.
//!
//! Two styles. [`EveStyle::Gomon`] is what the Go program of that name writes, with `dst_ips`,
//! `sample_id` and port scans added in `metadata.gomon`. [`EveStyle::Suricata`] keeps to Suricata's
//! published schema: offset timestamps, upper-case protocols, flow ids that a double holds, the
//! severities that Suricata's readers expect (1 is worst), and what is the detector's own under
//! `alert.context`.

use std::io;

use jiff::Timestamp;
use serde::{Serialize, Serializer};

use super::{Class, Finding, Protocol, Rules, Verdict};
use crate::packet::proto;

/// How a line is laid out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum EveStyle {
    #[default]
    Gomon,
    Suricata,
}

/// What is the same in every line of a watched host. Texts are written as they were given.
#[derive(Clone, Debug, Default)]
pub struct Subject {
    pub src_ip: String,
    pub c2_ip: String,
    pub sample_id: String,
    /// The sensor's name; without one the sample's stands in its place.
    pub sensor: String,
}

/// Writes the findings of one watched host.
#[derive(Clone, Debug)]
pub struct Eve {
    pub style: EveStyle,
    pub subject: Subject,
    pub rules: Rules,
}

impl Class {
    /// Name in flow ids, signature number, signature and category.
    fn texts(self) -> (&'static str, u32, &'static str, &'static str) {
        match self {
            Self::Attack => {
                ("attack", 2_100_001, "gomon high packet-rate to single host", "attack")
            }
            Self::Scan => {
                ("scanning", 2_100_002, "gomon horizontal scan host-rate exceeded", "scan")
            }
            Self::Connection => (
                "outbound_connection",
                2_100_003,
                "gomon outbound connection observed",
                "connection",
            ),
            Self::PortScan => {
                ("port_scanning", 2_100_004, "gomon vertical scan port-rate exceeded", "scan")
            }
            Self::Idle => ("idle", 2_100_000, "gomon window without a scan", "idle"),
        }
    }

    /// The original counts up towards scans; Suricata's 1 is the worst.
    fn severity(self, style: EveStyle) -> u8 {
        match (style, self) {
            (EveStyle::Gomon, Self::Attack) | (EveStyle::Suricata, Self::Scan | Self::PortScan) => {
                2
            }
            (EveStyle::Gomon, Self::Scan | Self::PortScan) => 3,
            (EveStyle::Gomon, Self::Connection | Self::Idle) => 1,
            (EveStyle::Suricata, Self::Attack) => 1,
            (EveStyle::Suricata, Self::Connection | Self::Idle) => 3,
        }
    }
}

impl Protocol {
    /// `tcp`, `udp`, `sctp`, or the IP version of what has no port.
    pub fn gomon_name(self, v6: bool) -> &'static str {
        match (self.has_port, self.number) {
            (true, proto::TCP) => "tcp",
            (true, proto::UDP) => "udp",
            (true, proto::SCTP) => "sctp",
            _ if v6 => "ipv6",
            _ => "ipv4",
        }
    }

    /// As Suricata names it: from the protocol numbers' registry, else three digits.
    fn suricata_name(self) -> String {
        match self.number {
            proto::ICMP => "ICMP".into(),
            proto::TCP => "TCP".into(),
            proto::UDP => "UDP".into(),
            proto::ICMPV6 => "IPv6-ICMP".into(),
            proto::SCTP => "SCTP".into(),
            4 => "IPv4".into(),
            41 => "IPv6".into(),
            47 => "GRE".into(),
            50 => "ESP".into(),
            51 => "AH".into(),
            other => format!("{other:03}"),
        }
    }
}

/// A rate: whole numbers without a fraction.
#[derive(Clone, Copy, PartialEq)]
struct Number(f64);

impl Number {
    #[expect(clippy::trivially_copy_pass_by_ref, reason = "serde asks by reference")]
    fn is_zero(&self) -> bool {
        self.0 == 0.0
    }
}

impl Serialize for Number {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        // Exactly representable, so the cast loses nothing.
        if self.0.fract() == 0.0 && (0.0..9e15).contains(&self.0) {
            s.serialize_u64(self.0 as u64)
        } else {
            s.serialize_f64(self.0)
        }
    }
}

fn is_empty(text: &&str) -> bool {
    text.is_empty()
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde asks by reference")]
fn is_no_port(port: &u16) -> bool {
    *port == 0
}

#[derive(Serialize)]
struct Record<'a> {
    timestamp: String,
    event_type: &'a str,
    #[serde(skip_serializing_if = "is_empty")]
    host: &'a str,
    src_ip: &'a str,
    dest_ip: String,
    #[serde(skip_serializing_if = "is_no_port")]
    dest_port: u16,
    #[serde(skip_serializing_if = "str::is_empty")]
    proto: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    ip_v: Option<u8>,
    flow_id: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    alert: Option<Alert<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    stats: Option<Stats>,
    #[serde(skip_serializing_if = "Option::is_none")]
    metadata: Option<Metadata<'a>>,
}

#[derive(Serialize)]
struct Alert<'a> {
    action: &'a str,
    gid: u32,
    signature_id: u32,
    rev: u32,
    signature: &'a str,
    category: &'a str,
    severity: u8,
    #[serde(skip_serializing_if = "Option::is_none")]
    context: Option<Details<'a>>,
}

#[derive(Serialize)]
struct Stats {
    flow: Rates,
}

#[derive(Serialize)]
struct Rates {
    #[serde(skip_serializing_if = "Number::is_zero")]
    packet_rate: Number,
    #[serde(skip_serializing_if = "Number::is_zero")]
    packet_threshold: Number,
    #[serde(skip_serializing_if = "Number::is_zero")]
    destination_rate: Number,
    #[serde(skip_serializing_if = "Number::is_zero")]
    destination_rate_threshold: Number,
}

#[derive(Serialize)]
struct Metadata<'a> {
    gomon: Details<'a>,
}

#[derive(Serialize)]
struct Details<'a> {
    scope: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    window_s: Option<u64>,
    #[serde(skip_serializing_if = "is_empty")]
    c2_ip: &'a str,
    #[serde(flatten)]
    rates: Rates,
    #[serde(skip_serializing_if = "Number::is_zero")]
    port_rate: Number,
    #[serde(skip_serializing_if = "Number::is_zero")]
    port_rate_threshold: Number,
    #[serde(skip_serializing_if = "is_no_port")]
    dest_port: u16,
    #[serde(skip_serializing_if = "str::is_empty")]
    proto: &'a str,
    #[serde(skip_serializing_if = "<[String]>::is_empty")]
    dst_ips: &'a [String],
    #[serde(skip_serializing_if = "is_empty")]
    sample_id: &'a str,
}

impl Eve {
    /// Appends the line of one finding of a verdict.
    pub fn write(&self, verdict: &Verdict, finding: &Finding, out: &mut Vec<u8>) -> io::Result<()> {
        let suricata = self.style == EveStyle::Suricata;
        let (_, signature_id, signature, category) = finding.class.texts();
        let of_window = finding.destination.is_none();
        let hosts: Vec<String> = match of_window {
            true => verdict.scan_hosts.iter().map(ToString::to_string).collect(),
            false => Vec::new(),
        };
        let proto = match finding.destination.and_then(|d| Some((d.protocol?, d.host.v6))) {
            Some((protocol, _)) if suricata => protocol.suricata_name(),
            Some((protocol, v6)) => protocol.gomon_name(v6).to_owned(),
            None => String::new(),
        };
        let idle = finding.class == Class::Idle;
        let details = Details {
            scope: if of_window { "global" } else { "local" },
            window_s: suricata.then_some(self.rules.window_s),
            c2_ip: &self.subject.c2_ip,
            rates: self.rates(verdict, finding),
            port_rate: Number(finding.port_rate),
            port_rate_threshold: Number(match finding.class {
                Class::PortScan => self.rules.port_threshold.unwrap_or_default(),
                _ => 0.0,
            }),
            dest_port: finding.destination.map_or(0, |d| d.port),
            proto: &proto,
            dst_ips: if idle { &[] } else { &hosts },
            sample_id: &self.subject.sample_id,
        };
        let rates = (idle && !suricata).then(|| self.rates(verdict, finding));
        let (context, metadata) = match suricata {
            true => (Some(details), None),
            false => (None, Some(Metadata { gomon: details })),
        };
        let alert = Alert {
            action: "allowed",
            gid: 5,
            signature_id,
            rev: 1,
            signature,
            category,
            severity: finding.class.severity(self.style),
            context,
        };
        let record = Record {
            timestamp: timestamp(verdict.start_ns, self.style),
            event_type: if rates.is_some() { "stats" } else { "alert" },
            host: match self.subject.sensor.as_str() {
                "" => &self.subject.sample_id,
                sensor => sensor,
            },
            src_ip: &self.subject.src_ip,
            dest_ip: dest_ip(finding, &hosts),
            dest_port: finding.destination.map_or(0, |d| d.port),
            proto: &proto,
            ip_v: finding.destination.filter(|_| suricata).map(|d| if d.host.v6 { 6 } else { 4 }),
            flow_id: self.flow_id(verdict, finding, &hosts),
            alert: rates.is_none().then_some(alert),
            stats: rates.map(|flow| Stats { flow }),
            metadata,
        };
        serde_json::to_writer(&mut *out, &record)?;
        out.push(b'\n');
        Ok(())
    }

    fn rates(&self, verdict: &Verdict, finding: &Finding) -> Rates {
        let of_window = finding.destination.is_none();
        let port_scan = finding.class == Class::PortScan;
        let global = |n: f64| Number(if of_window { n } else { 0.0 });
        Rates {
            packet_rate: Number(finding.packet_rate),
            packet_threshold: Number(if port_scan { 0.0 } else { self.rules.packet_threshold }),
            destination_rate: global(verdict.destination_rate),
            destination_rate_threshold: global(self.rules.destination_threshold),
        }
    }

    /// The same for the same finding in every run: FNV-1a of what tells findings apart, as the
    /// original hashes it.
    fn flow_id(&self, verdict: &Verdict, finding: &Finding, hosts: &[String]) -> u64 {
        let mut hash = Fnv::default();
        hash.add(finding.class.texts().0);
        hash.add(if finding.destination.is_some() { "local" } else { "global" });
        hash.add(&self.subject.src_ip);
        if let Some(d) = finding.destination {
            hash.add(&d.host.to_string());
            if let Some(protocol) = d.protocol {
                if protocol.has_port {
                    hash.add(&d.port.to_string());
                }
                hash.add(protocol.gomon_name(d.host.v6));
            }
        }
        hosts.iter().for_each(|h| hash.add(h));
        hash.add(&time(verdict.start_ns).to_string());
        match self.style {
            EveStyle::Gomon => hash.0,
            // What a double holds exactly.
            EveStyle::Suricata => hash.0 >> 11,
        }
    }
}

fn dest_ip(finding: &Finding, hosts: &[String]) -> String {
    match (finding.destination, hosts) {
        (Some(d), _) => d.host.to_string(),
        (None, [one]) => one.clone(),
        (None, _) => "0.0.0.0".into(),
    }
}

fn time(ns: u64) -> Timestamp {
    Timestamp::from_nanosecond(ns.into()).unwrap_or_default()
}

fn timestamp(ns: u64, style: EveStyle) -> String {
    let text = format!("{:.6}", time(ns));
    match style {
        EveStyle::Gomon => text,
        EveStyle::Suricata => text.trim_end_matches('Z').to_owned() + "+0000",
    }
}

/// FNV-1a, 64 bits (draft-eastlake-fnv).
struct Fnv(u64);

impl Default for Fnv {
    fn default() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }
}

impl Fnv {
    fn add(&mut self, text: &str) {
        for byte in text.bytes() {
            self.0 = (self.0 ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }
}
