//! The JSON line of a flow event; its field names are the contract with users' parsers.
//!
//! Written field by field into the line's buffer: an event is written for every flow, and through
//! serde it took three times as long (docs/decisions/0009). Every text here is ASCII without
//! anything to escape, but for the sensor's name, which is escaped once.

use std::fmt;
use std::io::Write as _;
use std::net::IpAddr;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use sha1::{Digest, Sha1};

use super::{About, Counts, FlowEvent};
use crate::packet::{Addr, FlowKey, Vlans, proto, tcp_flag};

/// Writes events as JSON lines, stamped with the sensor's name.
#[derive(Clone, Debug)]
pub struct EventWriter {
    /// The end of every line: the sensor's field, if it has a name, and the brace.
    tail: Vec<u8>,
    seconds: Box<[Second; SECONDS]>,
}

/// Seconds whose text is kept: the times of one event, and of those around it, are few.
const SECONDS: usize = 64;
/// Length of a typical line and half of that again.
const LINE: usize = 1_536;

/// The text of a second, as in `2023-11-14T22:13:20`; a year of four digits.
#[derive(Clone, Copy, Debug)]
struct Second {
    number: u64,
    text: [u8; 19],
}

/// Puts `,"name":` and what follows it into the line.
macro_rules! field {
    ($out:expr, $name:literal, $value:expr) => {{
        $out.extend_from_slice(concat!(",\"", $name, "\":").as_bytes());
        $value.put($out);
    }};
}

impl EventWriter {
    pub fn new(sensor: impl Into<String>) -> Self {
        let sensor = sensor.into();
        let mut tail = Vec::new();
        if !sensor.is_empty() {
            tail.extend_from_slice(b",\"sensor\":");
            tail.extend_from_slice(serde_json::Value::from(sensor).to_string().as_bytes());
        }
        tail.extend_from_slice(b"}\n");
        let seconds = Box::new([Second::new(0); SECONDS]);
        Self { tail, seconds }
    }

    /// Appends one line, its newline included.
    pub fn write(&mut self, e: &FlowEvent, out: &mut Vec<u8>) {
        self.write_about(e, &About::default(), out);
    }

    /// Appends one line with what is known beyond the flow's record.
    pub fn write_about(&mut self, e: &FlowEvent, about: &About<'_>, out: &mut Vec<u8>) {
        out.reserve(LINE);
        out.extend_from_slice(b"{\"timestamp\":");
        self.time(e.timestamp_ns, out);
        field!(out, "flow_id", Hex(e.flow_id));
        field!(out, "shred_index", u64::from(e.shred));
        ends(e, out);
        field!(out, "protocol", Text(Protocol(e.key.proto())));
        if e.key.proto() == proto::TCP {
            field!(out, "tcp_flags", Flags(e.tcp_flags));
        }
        counts(e, out);
        out.extend_from_slice(b",\"start\":");
        self.time(e.start_ns, out);
        out.extend_from_slice(b",\"end\":");
        self.time(e.end_ns, out);
        field!(out, "duration_sec", Decimal::<9>(e.end_ns.saturating_sub(e.start_ns)));
        field!(out, "idle_sec", Decimal::<9>(e.idle_ns));
        field!(out, "final", e.end.is_some());
        if let Some(reason) = e.end {
            field!(out, "end_reason", reason.name());
        }
        field!(out, "conn_state", e.conn_state.name());
        if !e.history.as_str().is_empty() {
            field!(out, "history", e.history.as_str());
        }
        out.extend_from_slice(b",\"community_id\":\"");
        out.extend_from_slice(&community_id_text(&e.key, 0));
        out.push(b'"');
        details(e, out);
        about.write(e, out);
        out.extend_from_slice(&self.tail);
    }

    /// Nanoseconds since 1970 as RFC 3339, UTC, nine decimals.
    fn time(&mut self, ns: u64, out: &mut Vec<u8>) {
        let number = ns / 1_000_000_000;
        let slot = &mut self.seconds[number as usize % SECONDS];
        if slot.number != number {
            *slot = Second::new(number);
        }
        out.push(b'"');
        out.extend_from_slice(&slot.text);
        out.push(b'.');
        digits::<9>(ns % 1_000_000_000, out);
        out.extend_from_slice(b"Z\"");
    }
}

impl Second {
    fn new(number: u64) -> Self {
        let mut text = *b"1970-01-01T00:00:00";
        // A u64 of nanoseconds ends in the year 2554.
        if let Ok(time) = jiff::Timestamp::from_second(number.cast_signed()) {
            let _ = write!(&mut text[..], "{time:.0}");
        }
        Self { number, text }
    }
}

/// Addresses, ports, MACs and VLANs.
fn ends(e: &FlowEvent, out: &mut Vec<u8>) {
    let k = &e.key;
    let ((src, sport), (dst, dport)) = by_originator(e);
    let ported = k.has_ports();
    field!(out, "src_ip", src.ip(k.is_v6()));
    if ported {
        field!(out, "src_port", u64::from(sport));
    }
    field!(out, "dst_ip", dst.ip(k.is_v6()));
    if ported {
        field!(out, "dst_port", u64::from(dport));
    }
    if let Some(mac) = e.macs[0] {
        field!(out, "src_mac", Mac(mac));
    }
    if let Some(mac) = e.macs[1] {
        field!(out, "dst_mac", Mac(mac));
    }
    if e.vlans[0] != Vlans::default() {
        field!(out, "vlan", e.vlans[0]);
    }
    // Only where it differs from the originator's.
    if e.vlans[1] != e.vlans[0] && e.vlans[1] != Vlans::default() {
        field!(out, "resp_vlan", e.vlans[1]);
    }
}

fn counts(e: &FlowEvent, out: &mut Vec<u8>) {
    let sum = |c: &[Counts; 2], of: fn(&Counts) -> u64| c.iter().map(of).sum::<u64>();
    let [orig, resp] = &e.delta;
    field!(out, "bytes", sum(&e.delta, |c| c.bytes));
    field!(out, "packets", sum(&e.delta, |c| c.packets));
    field!(out, "orig_bytes", orig.bytes);
    field!(out, "orig_packets", orig.packets);
    field!(out, "orig_ip_bytes", orig.ip_bytes);
    field!(out, "resp_bytes", resp.bytes);
    field!(out, "resp_packets", resp.packets);
    field!(out, "resp_ip_bytes", resp.ip_bytes);
    field!(out, "total_bytes", sum(&e.total, |c| c.bytes));
    field!(out, "total_packets", sum(&e.total, |c| c.packets));
}

/// What only some protocols have.
fn details(e: &FlowEvent, out: &mut Vec<u8>) {
    let protocol = e.key.proto();
    if matches!(protocol, proto::ICMP | proto::ICMPV6) {
        let ((_, kind), (_, code)) = by_originator(e);
        field!(out, "icmp_type", u64::from(kind & 0xff));
        // What the originator sent; of a pair of types the code is always 0.
        let code = if e.key.is_one_way() { code & 0xff } else { 0 };
        field!(out, "icmp_code", u64::from(code));
    }
    if let Some(ns) = e.rtt_ns {
        field!(out, "tcp_rtt_ms", Decimal::<6>(ns));
    }
    if protocol == proto::TCP {
        field!(out, "retransmits", u64::from(e.retransmits));
    }
}

/// Address and port of the originator, then of the responder.
pub(super) fn by_originator(e: &FlowEvent) -> ((Addr, u16), (Addr, u16)) {
    let k = &e.key;
    let (a, b) = ((k.a, k.port_a()), (k.b, k.port_b()));
    if e.orig_is_a { (a, b) } else { (b, a) }
}

/// Community ID version 1 (corelight/community-id-spec) of a flow.
pub fn community_id(key: &FlowKey, seed: u16) -> String {
    community_id_text(key, seed).into_iter().map(char::from).collect()
}

/// The digest in a community id that is written out.
pub fn parse_community_id(text: &str) -> Option<[u8; 20]> {
    STANDARD.decode(text.strip_prefix("1:")?).ok()?.try_into().ok()
}

fn community_id_text(key: &FlowKey, seed: u16) -> [u8; 30] {
    let mut id = *b"1:                            ";
    // Twenty bytes are twenty-eight characters.
    let _ = STANDARD.encode_slice(community_digest(key, seed), &mut id[2..]);
    id
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

/// A value as JSON.
trait Put {
    fn put(&self, out: &mut Vec<u8>);
}

impl Put for u64 {
    fn put(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(itoa::Buffer::new().format(*self).as_bytes());
    }
}

impl Put for bool {
    fn put(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(if *self { b"true" } else { b"false" });
    }
}

/// Text that needs no escape.
impl Put for &str {
    fn put(&self, out: &mut Vec<u8>) {
        out.push(b'"');
        out.extend_from_slice(self.as_bytes());
        out.push(b'"');
    }
}

impl Put for IpAddr {
    fn put(&self, out: &mut Vec<u8>) {
        out.push(b'"');
        match self {
            Self::V4(ip) => {
                for (n, byte) in ip.octets().into_iter().enumerate() {
                    if n > 0 {
                        out.push(b'.');
                    }
                    out.extend_from_slice(itoa::Buffer::new().format(byte).as_bytes());
                }
            }
            // Writing to memory cannot fail.
            Self::V6(ip) => _ = write!(out, "{ip}"),
        }
        out.push(b'"');
    }
}

impl Put for Vlans {
    fn put(&self, out: &mut Vec<u8>) {
        out.push(b'[');
        for (n, id) in self.ids().enumerate() {
            if n > 0 {
                out.push(b',');
            }
            u64::from(id).put(out);
        }
        out.push(b']');
    }
}

/// A count of units of 10^-PLACES, as a decimal number without superfluous zeros.
struct Decimal<const PLACES: usize>(u64);

impl<const PLACES: usize> Put for Decimal<PLACES> {
    fn put(&self, out: &mut Vec<u8>) {
        let unit = 10u64.pow(PLACES as u32);
        (self.0 / unit).put(out);
        out.push(b'.');
        let first = out.len() + 1;
        digits::<PLACES>(self.0 % unit, out);
        while out.len() > first && out.last() == Some(&b'0') {
            out.pop();
        }
    }
}

/// The last PLACES decimal digits of a number.
fn digits<const PLACES: usize>(mut number: u64, out: &mut Vec<u8>) {
    let mut text = [b'0'; PLACES];
    for digit in text.iter_mut().rev() {
        *digit = b'0' + (number % 10) as u8;
        number /= 10;
    }
    out.extend_from_slice(&text);
}

fn hex(byte: u8) -> [u8; 2] {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    [DIGITS[usize::from(byte >> 4)], DIGITS[usize::from(byte & 15)]]
}

struct Hex(u64);

impl Put for Hex {
    fn put(&self, out: &mut Vec<u8>) {
        out.push(b'"');
        self.0.to_be_bytes().into_iter().for_each(|byte| out.extend_from_slice(&hex(byte)));
        out.push(b'"');
    }
}

struct Mac([u8; 6]);

impl Put for Mac {
    fn put(&self, out: &mut Vec<u8>) {
        let mut text = *b"\"00:00:00:00:00:00\"";
        for (place, byte) in text[1..].chunks_mut(3).zip(self.0) {
            place[..2].copy_from_slice(&hex(byte));
        }
        out.extend_from_slice(&text);
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

/// What is displayed, in quotes; it needs no escape.
struct Text<T>(T);

impl<T: fmt::Display> Put for Text<T> {
    fn put(&self, out: &mut Vec<u8>) {
        // Writing to memory cannot fail.
        let _ = write!(out, "\"{}\"", self.0);
    }
}

struct Flags(u8);

impl Put for Flags {
    fn put(&self, out: &mut Vec<u8>) {
        let names: [(u8, &[u8]); 8] = [
            (tcp_flag::SYN, b"SYN"),
            (tcp_flag::ACK, b"ACK"),
            (tcp_flag::PSH, b"PSH"),
            (tcp_flag::FIN, b"FIN"),
            (tcp_flag::RST, b"RST"),
            (tcp_flag::URG, b"URG"),
            (tcp_flag::ECE, b"ECE"),
            (tcp_flag::CWR, b"CWR"),
        ];
        out.push(b'"');
        let first = out.len();
        for (_, name) in names.iter().filter(|(bit, _)| self.0 & bit != 0) {
            if out.len() > first {
                out.push(b'|');
            }
            out.extend_from_slice(name);
        }
        out.push(b'"');
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packet::Tuple;

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
        let mut writer = EventWriter::new("");
        for (ns, text) in [
            (1_700_000_000_000_000_001, "\"2023-11-14T22:13:20.000000001Z\""),
            (0, "\"1970-01-01T00:00:00.000000000Z\""),
            (u64::MAX, "\"2554-07-21T23:34:33.709551615Z\""),
            (64_000_000_000, "\"1970-01-01T00:01:04.000000000Z\""),
        ] {
            let mut out = Vec::new();
            writer.time(ns, &mut out);
            assert_eq!(String::from_utf8(out).unwrap(), text);
        }
    }

    #[test]
    fn decimals_end_with_a_digit_that_says_something() {
        for (ns, text) in
            [(0, "0.0"), (1, "0.000000001"), (1_500_000_000, "1.5"), (120_000_000_000, "120.0")]
        {
            let mut out = Vec::new();
            Decimal::<9>(ns).put(&mut out);
            assert_eq!(String::from_utf8(out).unwrap(), text);
        }
    }
}
