//! What a flow was about, as far as it could be read, and its part of the event's line.
//!
//! Only the control thread has these. Every text came from the network; JSON's rules make it safe.

use std::collections::VecDeque;
use std::sync::Arc;

use super::{App, FlowEvent};
use crate::packet::proto;

/// Everything read of one flow. The first of each kind stands: one DNS question, one request.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Content {
    pub app: Option<App>,
    pub dns: Option<Box<Dns>>,
    pub tls: Option<Box<Tls>>,
    pub http: Option<Box<Http>>,
    pub ssh: Option<Box<Ssh>>,
    pub dhcp: Option<Box<Dhcp>>,
    /// HTTP requests without a response so far.
    pub requests: VecDeque<Http>,
    /// All that is to be read of the TLS handshake, or of the SSH one, was read.
    pub tls_whole: bool,
    pub ssh_whole: bool,
}

/// A DNS question and what was answered to it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Dns {
    pub query: String,
    pub kind: u16,
    pub rcode: Option<u8>,
    pub answers: Vec<String>,
}

/// A TLS, DTLS or QUIC handshake.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tls {
    pub sni: Option<String>,
    /// What the client offered.
    pub alpns: Vec<String>,
    /// What the server chose, where it is in clear.
    pub alpn: Option<String>,
    /// The version the server chose, or the highest that the client offered.
    pub version: Option<&'static str>,
    /// Whether it was the server who said so.
    pub answered: bool,
    pub ja3: Option<[u8; 16]>,
    pub ja3s: Option<[u8; 16]>,
    pub ja4: Option<String>,
    pub certificate: Option<Certificate>,
    pub quic_version: Option<String>,
}

/// A server's certificate.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Certificate {
    pub subject: String,
    pub issuer: String,
    /// Seconds since 1970.
    pub not_before: i64,
    pub not_after: i64,
    pub names: Vec<String>,
    /// Hex with colons.
    pub serial: String,
    /// SHA-1 of the whole, hex with colons.
    pub fingerprint: String,
}

/// A request and its response.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Http {
    pub method: Option<String>,
    pub uri: Option<String>,
    pub host: Option<String>,
    pub user_agent: Option<String>,
    pub referer: Option<String>,
    pub minor_version: u8,
    pub status: Option<u16>,
    pub content_type: Option<String>,
    pub length: Option<u64>,
    pub location: Option<String>,
}

/// Banners and fingerprints, of the client and of the server.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ssh {
    pub banners: [Option<String>; 2],
    pub hassh: [Option<[u8; 16]>; 2],
}

/// What a DHCP client said of itself and was given.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Dhcp {
    pub mac: [u8; 6],
    pub hostname: Option<String>,
    pub vendor_class: Option<String>,
    pub requested: Option<[u8; 4]>,
    pub assigned: Option<[u8; 4]>,
}

/// Where a packet is in the journal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// The number in the name of its file.
    pub segment: u64,
    /// Of its record, bytes from the start of the file.
    pub offset: u64,
}

/// What an event says beyond its flow's record.
#[derive(Clone, Debug, Default)]
pub struct About<'a> {
    pub content: Option<&'a Content>,
    /// By passive DNS, as of the flow's start.
    pub src_name: Option<Arc<str>>,
    pub dst_name: Option<Arc<str>>,
    /// Of the flow's first packet.
    pub journal: Option<Place>,
}

impl About<'_> {
    /// The application protocol: by content, or by port if something was said there.
    pub fn app(&self, e: &FlowEvent) -> Option<App> {
        if let Some(app) = self.content.and_then(|c| c.app) {
            return Some(app);
        }
        let port = if e.orig_is_a { e.key.port_b() } else { e.key.port_a() };
        let history = e.history.as_str();
        match e.key.proto() {
            proto::UDP => App::by_port(true, port),
            proto::TCP if history.contains(['D', 'd']) => App::by_port(false, port),
            _ => None,
        }
    }

    /// Appends the fields that there are, each after a comma.
    pub fn write(&self, e: &FlowEvent, out: &mut Vec<u8>) {
        if let Some(app) = self.app(e) {
            text(out, "app_proto", app.name());
        }
        some(out, "src_name", self.src_name.as_deref());
        some(out, "dst_name", self.dst_name.as_deref());
        if let Some(content) = self.content {
            content.write(out);
        }
        if let Some(Place { segment, offset }) = self.journal {
            name(out, "journal");
            out.extend_from_slice(
                format!("{{\"segment\":{segment},\"offset\":{offset}}}").as_bytes(),
            );
        }
    }
}

impl Content {
    fn write(&self, out: &mut Vec<u8>) {
        if let Some(dns) = &self.dns {
            text(out, "dns_query", &dns.query);
            text(out, "dns_type", &type_name(dns.kind));
            some(out, "dns_rcode", dns.rcode.map(rcode_name).as_deref());
            list(out, "dns_answers", &dns.answers);
        }
        if let Some(tls) = &self.tls {
            tls.write(out);
        }
        if let Some(http) = &self.http {
            some(out, "http_method", http.method.as_deref());
            some(out, "http_host", http.host.as_deref());
            some(out, "http_uri", http.uri.as_deref());
            some(out, "http_user_agent", http.user_agent.as_deref());
            if let Some(status) = http.status {
                name(out, "http_status");
                out.extend_from_slice(status.to_string().as_bytes());
            }
        }
        if let Some(ssh) = &self.ssh {
            some(out, "ssh_client", ssh.banners[0].as_deref());
            some(out, "ssh_server", ssh.banners[1].as_deref());
            some(out, "hassh", ssh.hassh[0].map(hex).as_deref());
            some(out, "hassh_server", ssh.hassh[1].map(hex).as_deref());
        }
        if let Some(dhcp) = &self.dhcp {
            text(out, "dhcp_mac", &mac(dhcp.mac));
            some(out, "dhcp_hostname", dhcp.hostname.as_deref());
            some(out, "dhcp_vendor_class", dhcp.vendor_class.as_deref());
            let ip = |ip: [u8; 4]| std::net::Ipv4Addr::from(ip).to_string();
            some(out, "dhcp_requested_ip", dhcp.requested.map(ip).as_deref());
            some(out, "dhcp_assigned_ip", dhcp.assigned.map(ip).as_deref());
        }
    }
}

impl Tls {
    /// The protocol chosen, or else those offered.
    fn alpn(&self) -> Option<String> {
        let offered = || (!self.alpns.is_empty()).then(|| self.alpns.join(","));
        self.alpn.clone().or_else(offered)
    }

    fn write(&self, out: &mut Vec<u8>) {
        some(out, "sni", self.sni.as_deref());
        some(out, "tls_version", self.version);
        some(out, "alpn", self.alpn().as_deref());
        some(out, "ja3", self.ja3.map(hex).as_deref());
        some(out, "ja3s", self.ja3s.map(hex).as_deref());
        some(out, "ja4", self.ja4.as_deref());
        some(out, "quic_version", self.quic_version.as_deref());
        if let Some(certificate) = &self.certificate {
            text(out, "tls_subject", &certificate.subject);
            text(out, "tls_issuer", &certificate.issuer);
            some(out, "tls_not_before", date(certificate.not_before).as_deref());
            some(out, "tls_not_after", date(certificate.not_after).as_deref());
            list(out, "tls_san", &certificate.names);
        }
    }
}

/// `2024-05-01T00:00:00Z`; `None` for a year that has not four digits.
fn date(seconds: i64) -> Option<String> {
    let time = jiff::Timestamp::from_second(seconds).ok()?;
    Some(time.to_string()).filter(|t| t.len() == 20)
}

/// Hex digits.
pub fn hex(bytes: [u8; 16]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// As in `00:11:22:33:44:55`.
pub fn mac(bytes: [u8; 6]) -> String {
    let mut out = String::with_capacity(17);
    for (n, byte) in bytes.into_iter().enumerate() {
        if n > 0 {
            out.push(':');
        }
        for digit in [byte >> 4, byte & 15] {
            out.extend(char::from_digit(u32::from(digit), 16));
        }
    }
    out
}

fn name(out: &mut Vec<u8>, name: &str) {
    out.extend_from_slice(b",\"");
    out.extend_from_slice(name.as_bytes());
    out.extend_from_slice(b"\":");
}

/// Writing to memory cannot fail, nor can a string that is one.
fn json(out: &mut Vec<u8>, value: &(impl serde::Serialize + ?Sized)) {
    let _ = serde_json::to_writer(out, value);
}

fn text(out: &mut Vec<u8>, field: &str, value: &str) {
    name(out, field);
    json(out, value);
}

fn some(out: &mut Vec<u8>, field: &str, value: Option<&str>) {
    if let Some(value) = value {
        text(out, field, value);
    }
}

fn list(out: &mut Vec<u8>, field: &str, values: &[String]) {
    if !values.is_empty() {
        name(out, field);
        json(out, values);
    }
}

/// A DNS type by its name in the registry of IANA, or `TYPE65280` (RFC 3597).
pub fn type_name(kind: u16) -> String {
    let known = match kind {
        1 => "A",
        2 => "NS",
        5 => "CNAME",
        6 => "SOA",
        10 => "NULL",
        12 => "PTR",
        13 => "HINFO",
        15 => "MX",
        16 => "TXT",
        24 => "SIG",
        25 => "KEY",
        28 => "AAAA",
        29 => "LOC",
        32 => "NB",
        33 => "SRV",
        35 => "NAPTR",
        39 => "DNAME",
        41 => "OPT",
        43 => "DS",
        44 => "SSHFP",
        46 => "RRSIG",
        47 => "NSEC",
        48 => "DNSKEY",
        50 => "NSEC3",
        51 => "NSEC3PARAM",
        52 => "TLSA",
        59 => "CDS",
        60 => "CDNSKEY",
        64 => "SVCB",
        65 => "HTTPS",
        99 => "SPF",
        250 => "TSIG",
        251 => "IXFR",
        252 => "AXFR",
        255 => "ANY",
        257 => "CAA",
        _ => return format!("TYPE{kind}"),
    };
    known.into()
}

/// A DNS response code by its name in the registry of IANA, or `RCODE11`.
pub fn rcode_name(rcode: u8) -> String {
    let known = match rcode {
        0 => "NOERROR",
        1 => "FORMERR",
        2 => "SERVFAIL",
        3 => "NXDOMAIN",
        4 => "NOTIMP",
        5 => "REFUSED",
        6 => "YXDOMAIN",
        7 => "YXRRSET",
        8 => "NXRRSET",
        9 => "NOTAUTH",
        10 => "NOTZONE",
        _ => return format!("RCODE{rcode}"),
    };
    known.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hostile_texts_are_valid_json() {
        let content = Content {
            http: Some(Box::new(Http {
                host: Some("a\"b\\c\n\u{7f}\u{e0001}\u{fffd}".into()),
                status: Some(200),
                ..Http::default()
            })),
            ..Content::default()
        };
        let mut out = b"{\"x\":1".to_vec();
        content.write(&mut out);
        out.push(b'}');
        let value: serde_json::Value = serde_json::from_slice(&out).unwrap();
        assert_eq!(value["http_host"], "a\"b\\c\n\u{7f}\u{e0001}\u{fffd}");
        assert_eq!(value["http_status"], 200);
    }
}
