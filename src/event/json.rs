//! The JSON line of a flow event; its field names are the contract with users' parsers.

use std::fmt;
use std::net::IpAddr;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Serialize, Serializer};
use sha1::{Digest, Sha1};

use super::{Counts, FlowEvent};
use crate::packet::{FlowKey, proto, tcp_flag};

/// Writes events as JSON lines, stamped with the sensor's name.
#[derive(Clone, Debug)]
pub struct EventWriter {
    sensor: String,
}

impl EventWriter {
    pub fn new(sensor: impl Into<String>) -> Self {
        Self { sensor: sensor.into() }
    }

    /// Appends one line, its newline included.
    pub fn write(&self, event: &FlowEvent, out: &mut Vec<u8>) {
        let start = out.len();
        // Writing to memory fails only if a value cannot be JSON, and ours all can.
        if serde_json::to_writer(&mut *out, &Line::of(event, &self.sensor)).is_err() {
            out.truncate(start);
        } else {
            out.push(b'\n');
        }
    }
}

#[derive(Serialize)]
struct Line<'a> {
    timestamp: Time,
    flow_id: Hex,
    shred_index: u32,
    src_ip: IpAddr,
    #[serde(skip_serializing_if = "Option::is_none")]
    src_port: Option<u16>,
    dst_ip: IpAddr,
    #[serde(skip_serializing_if = "Option::is_none")]
    dst_port: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    src_mac: Option<Mac>,
    #[serde(skip_serializing_if = "Option::is_none")]
    dst_mac: Option<Mac>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    vlan: Vec<u16>,
    /// Only where it differs from the originator's.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    resp_vlan: Vec<u16>,
    protocol: Protocol,
    #[serde(skip_serializing_if = "Option::is_none")]
    tcp_flags: Option<Flags>,
    bytes: u64,
    packets: u64,
    orig_bytes: u64,
    orig_packets: u64,
    orig_ip_bytes: u64,
    resp_bytes: u64,
    resp_packets: u64,
    resp_ip_bytes: u64,
    total_bytes: u64,
    total_packets: u64,
    start: Time,
    end: Time,
    duration_sec: f64,
    idle_sec: f64,
    #[serde(rename = "final")]
    last: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    end_reason: Option<&'static str>,
    conn_state: &'static str,
    #[serde(skip_serializing_if = "str::is_empty")]
    history: &'a str,
    community_id: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    icmp_type: Option<u8>,
    #[serde(skip_serializing_if = "Option::is_none")]
    icmp_code: Option<u8>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tcp_rtt_ms: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    retransmits: Option<u32>,
    #[serde(skip_serializing_if = "str::is_empty")]
    sensor: &'a str,
}

impl<'a> Line<'a> {
    fn of(e: &'a FlowEvent, sensor: &'a str) -> Self {
        let k = &e.key;
        let (v6, protocol) = (k.is_v6(), k.proto());
        let ((src, sport), (dst, dport)) = if e.orig_is_a {
            ((k.a, k.port_a()), (k.b, k.port_b()))
        } else {
            ((k.b, k.port_b()), (k.a, k.port_a()))
        };
        let ported = matches!(protocol, proto::TCP | proto::UDP | proto::SCTP);
        let ports = ported.then_some((sport, dport));
        // What the originator sent; of a pair of types the code is always 0.
        let code = if k.is_one_way() { dport as u8 } else { 0 };
        let icmp = matches!(protocol, proto::ICMP | proto::ICMPV6).then_some((sport as u8, code));
        let tcp = protocol == proto::TCP;
        let sum = |c: &[Counts; 2], of: fn(&Counts) -> u64| c.iter().map(of).sum::<u64>();
        let [orig, resp] = &e.delta;
        Self {
            timestamp: Time(e.timestamp_ns),
            flow_id: Hex(e.flow_id),
            shred_index: e.shred,
            src_ip: src.ip(v6),
            src_port: ports.map(|p| p.0),
            dst_ip: dst.ip(v6),
            dst_port: ports.map(|p| p.1),
            src_mac: e.macs[0].map(Mac),
            dst_mac: e.macs[1].map(Mac),
            vlan: e.vlans[0].ids().collect(),
            resp_vlan: if e.vlans[1] == e.vlans[0] {
                Vec::new()
            } else {
                e.vlans[1].ids().collect()
            },
            protocol: Protocol(protocol),
            tcp_flags: tcp.then_some(Flags(e.tcp_flags)),
            bytes: sum(&e.delta, |c| c.bytes),
            packets: sum(&e.delta, |c| c.packets),
            orig_bytes: orig.bytes,
            orig_packets: orig.packets,
            orig_ip_bytes: orig.ip_bytes,
            resp_bytes: resp.bytes,
            resp_packets: resp.packets,
            resp_ip_bytes: resp.ip_bytes,
            total_bytes: sum(&e.total, |c| c.bytes),
            total_packets: sum(&e.total, |c| c.packets),
            start: Time(e.start_ns),
            end: Time(e.end_ns),
            duration_sec: seconds(e.end_ns.saturating_sub(e.start_ns)),
            idle_sec: seconds(e.idle_ns),
            last: e.end.is_some(),
            end_reason: e.end.map(super::EndReason::name),
            conn_state: e.conn_state.name(),
            history: e.history.as_str(),
            community_id: community_id(k, 0),
            icmp_type: icmp.map(|i| i.0),
            icmp_code: icmp.map(|i| i.1),
            tcp_rtt_ms: e.rtt_ns.map(|ns| seconds(ns) * 1e3),
            retransmits: tcp.then_some(e.retransmits),
            sensor,
        }
    }
}

fn seconds(ns: u64) -> f64 {
    ns as f64 / 1e9
}

/// Community ID version 1 (corelight/community-id-spec) of a flow.
pub fn community_id(key: &FlowKey, seed: u16) -> String {
    let mut id = String::with_capacity(30);
    id.push_str("1:");
    STANDARD.encode_string(community_digest(key, seed), &mut id);
    id
}

/// The digest in a community id that is written out.
pub fn parse_community_id(text: &str) -> Option<[u8; 20]> {
    STANDARD.decode(text.strip_prefix("1:")?).ok()?.try_into().ok()
}

/// The SHA-1 that a flow's Community ID stands for.
pub fn community_digest(key: &FlowKey, seed: u16) -> [u8; 20] {
    let mut hash = Sha1::new();
    hash.update(seed.to_be_bytes());
    // The key's order is the specification's: by address, then by port, one-way ICMP as sent.
    for end in [key.a, key.b] {
        match end.ip(key.is_v6()) {
            IpAddr::V4(ip) => hash.update(ip.octets()),
            IpAddr::V6(ip) => hash.update(ip.octets()),
        }
    }
    hash.update([key.proto(), 0]);
    if matches!(key.proto(), proto::TCP | proto::UDP | proto::SCTP | proto::ICMP | proto::ICMPV6) {
        hash.update(key.port_a().to_be_bytes());
        hash.update(key.port_b().to_be_bytes());
    }
    hash.finalize().into()
}

/// The name of an IP protocol as events carry it.
pub fn protocol_name(number: u8) -> impl fmt::Display {
    Protocol(number)
}

/// Nanoseconds since 1970 as RFC 3339, UTC, nine decimals.
struct Time(u64);

impl fmt::Display for Time {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match jiff::Timestamp::from_nanosecond(i128::from(self.0)) {
            Ok(t) => write!(f, "{t:.9}"),
            Err(_) => f.write_str("9999-12-31T23:59:59.999999999Z"),
        }
    }
}

struct Hex(u64);

impl fmt::Display for Hex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

struct Mac([u8; 6]);

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

struct Protocol(u8);

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.0 {
            proto::ICMP => "ICMP",
            2 => "IGMP",
            4 => "IPIP",
            proto::TCP => "TCP",
            proto::UDP => "UDP",
            41 => "IPv6",
            46 => "RSVP",
            47 => "GRE",
            50 => "ESP",
            51 => "AH",
            proto::ICMPV6 => "ICMPv6",
            89 => "OSPF",
            103 => "PIM",
            112 => "VRRP",
            115 => "L2TP",
            proto::SCTP => "SCTP",
            other => return write!(f, "IP-{other}"),
        })
    }
}

struct Flags(u8);

impl fmt::Display for Flags {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = [
            (tcp_flag::SYN, "SYN"),
            (tcp_flag::ACK, "ACK"),
            (tcp_flag::PSH, "PSH"),
            (tcp_flag::FIN, "FIN"),
            (tcp_flag::RST, "RST"),
            (tcp_flag::URG, "URG"),
            (tcp_flag::ECE, "ECE"),
            (tcp_flag::CWR, "CWR"),
        ];
        let mut bar = "";
        for (_, name) in names.iter().filter(|(bit, _)| self.0 & bit != 0) {
            write!(f, "{bar}{name}")?;
            bar = "|";
        }
        Ok(())
    }
}

macro_rules! serialize_as_text {
    ($($kind:ty),*) => {$(
        impl Serialize for $kind {
            fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
                s.collect_str(self)
            }
        }
    )*};
}
serialize_as_text!(Time, Hex, Mac, Protocol, Flags);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packet::{Addr, Tuple};

    #[test]
    fn community_ids_of_the_specification() {
        let id = |src, dst, sport, dport, proto, one_way| {
            let t = Tuple {
                src: Addr::v4(src),
                dst: Addr::v4(dst),
                sport,
                dport,
                proto,
                v6: false,
                one_way,
            };
            community_id(&FlowKey::of(&t).0, 0)
        };
        assert_eq!(
            id([128, 232, 110, 120], [66, 35, 250, 204], 34855, 80, 6, false),
            "1:LQU9qZlK+B5F3KDmev6m5PMibrg="
        );
        assert_eq!(
            id([192, 168, 0, 1], [192, 168, 0, 89], 0, 8, 1, false),
            "1:X0snYXpgwiv9TZtqg64sgzUn6Dk="
        );
        assert_eq!(
            id([10, 0, 0, 1], [10, 0, 0, 2], 11, 0, 1, true),
            "1:YHxtAirCG//0OzkcVAukqKQN9xM="
        );
        assert_eq!(
            id([10, 1, 12, 1], [10, 1, 12, 2], 0, 0, 46, false),
            "1:KHlLkgoJW7ifUTyTSgyVfkFHzKw="
        );
    }

    #[test]
    fn times_have_nine_decimals() {
        assert_eq!(Time(1_700_000_000_000_000_001).to_string(), "2023-11-14T22:13:20.000000001Z");
        assert_eq!(Time(0).to_string(), "1970-01-01T00:00:00.000000000Z");
        assert_eq!(Time(u64::MAX).to_string(), "2554-07-21T23:34:33.709551615Z");
    }
}
