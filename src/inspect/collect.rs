//! Puts together, on the control thread, what the workers noted: each flow's content, and the names
//! of addresses.
//!
//! Limits: the content of [`FLOWS`] flows and [`NAMES`] answers; the earliest go first.

use std::collections::{HashMap, VecDeque};
use std::net::IpAddr;
use std::sync::Arc;

use sha1::{Digest, Sha1};
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

use super::answers::Answered;
use super::passive::Names;
use super::tls;
use crate::event::{
    About, Answer, App, Certificate, Content, Dhcp, Dns, FlowEvent, Http, Note, NoteKind, Ssh, Tag,
    Tls, fields, number,
};

/// Flows whose content is kept; a flow with names takes about 1 KB.
const FLOWS: usize = 131_072;
/// Answers of passive DNS.
const NAMES: usize = 65_536;
/// Answers kept of a flow.
const ANSWERS: usize = 32;
/// Requests of a flow that wait for their response.
const REQUESTS: usize = 8;

/// What a note made known.
#[derive(Debug, Default)]
pub struct Heard<'a> {
    /// Its flow's content.
    pub content: Option<&'a Content>,
    /// A request and its response.
    pub http: Option<Http>,
    /// The note ended what can be read of the flow's TLS or SSH handshake.
    pub whole: bool,
}

/// What is known of the flows that go on.
#[derive(Debug)]
pub struct Collector {
    flows: HashMap<u64, Content>,
    /// Flows in the order in which they were first noted, ended ones too.
    order: VecDeque<u64>,
    names: Names,
    /// The flow that ended with the last event, kept until the next.
    ended: Option<Content>,
    most: usize,
    /// Flows whose content was given up to make room.
    pub evicted: u64,
}

impl Default for Collector {
    fn default() -> Self {
        Self {
            flows: HashMap::new(),
            order: VecDeque::new(),
            names: Names::new(NAMES),
            ended: None,
            most: FLOWS,
            evicted: 0,
        }
    }
}

impl Collector {
    /// Takes a note in.
    pub fn note(&mut self, note: &Note, bytes: &[u8]) -> Heard<'_> {
        if note.kind == NoteKind::Dns {
            self.learn(note, bytes);
        }
        let lone = matches!(note.kind, NoteKind::Arp | NoteKind::Neighbour | NoteKind::Anomaly);
        if lone {
            return Heard::default();
        }
        if !self.flows.contains_key(&note.flow_id) {
            self.make_room();
            self.order.push_back(note.flow_id);
        }
        let content = self.flows.entry(note.flow_id).or_default();
        let was_whole = content.tls_whole || content.ssh_whole;
        let http = content.add(note, bytes);
        let whole = !was_whole && (content.tls_whole || content.ssh_whole);
        Heard { content: Some(content), http, whole }
    }

    fn make_room(&mut self) {
        while self.flows.len() >= self.most {
            let Some(oldest) = self.order.pop_front() else { break };
            self.evicted += u64::from(self.flows.remove(&oldest).is_some());
        }
        // Of flows that ended only the number is left here.
        if self.order.len() >= 2 * self.most.max(self.flows.len()) {
            let flows = &self.flows;
            self.order.retain(|id| flows.contains_key(id));
        }
    }

    /// What is known of a flow that reports; given up after its last event.
    pub fn about(&mut self, e: &FlowEvent) -> About<'_> {
        let v6 = e.key.is_v6();
        let (a, b) = (e.key.a.ip(v6), e.key.b.ip(v6));
        let (src, dst) = if e.orig_is_a { (a, b) } else { (b, a) };
        let (src_name, dst_name) = match self.names.is_empty() {
            true => (None, None),
            false => (self.names.name(dst, src, e.start_ns), self.names.name(src, dst, e.start_ns)),
        };
        let content = if e.end.is_some() {
            self.ended = self.flows.remove(&e.flow_id);
            self.ended.as_ref()
        } else {
            self.flows.get(&e.flow_id)
        };
        About { content, src_name, dst_name, journal: None }
    }

    /// Learns names from an answer.
    fn learn(&mut self, note: &Note, bytes: &[u8]) {
        let Some(answered) = Answered::of(note, bytes) else { return };
        let mut name: Option<Arc<str>> = None;
        for (of, ttl, address) in answered.addresses() {
            let known = name.as_ref().filter(|n| n.as_bytes() == of).cloned();
            let of = known.unwrap_or_else(|| String::from_utf8_lossy(of).into());
            self.names.learn(answered.asker, &of, address, note.timestamp_ns, ttl);
            name = Some(of);
        }
    }

    /// The names by which `asker` knew `address` at a moment.
    pub fn names(&self, asker: IpAddr, address: IpAddr, at: u64) -> Vec<Arc<str>> {
        self.names.all(asker, address, at)
    }
}

fn text(value: &[u8]) -> String {
    String::from_utf8_lossy(value).into_owned()
}

fn four(value: &[u8]) -> Option<[u8; 4]> {
    value.try_into().ok()
}

impl Content {
    /// Takes a note in; returns the request that it answers.
    fn add(&mut self, note: &Note, bytes: &[u8]) -> Option<Http> {
        let mut list = fields(bytes).filter(|(tag, _)| *tag == Tag::App);
        let app = list.next().and_then(|(_, value)| value.first()).and_then(|&n| App::of(n));
        if note.kind != NoteKind::Anomaly {
            self.app = self.app.or(app);
        }
        match note.kind {
            NoteKind::Dns => add_dns(self.dns.get_or_insert_default(), bytes),
            NoteKind::TlsClient | NoteKind::TlsServer | NoteKind::TlsEnd | NoteKind::Quic => {
                let server = note.kind != NoteKind::TlsClient && note.kind != NoteKind::Quic;
                add_tls(self.tls.get_or_insert_default(), server, bytes);
                self.tls_whole |= matches!(note.kind, NoteKind::TlsEnd | NoteKind::Quic);
            }
            NoteKind::HttpRequest => {
                let mut request = Http::default();
                add_http(&mut request, bytes);
                let first = self.http.get_or_insert_default();
                if first.method.is_none() {
                    add_http(first, bytes);
                }
                if self.requests.len() < REQUESTS {
                    self.requests.push_back(request);
                }
            }
            NoteKind::HttpResponse => {
                let first = self.http.get_or_insert_default();
                if first.status.is_none() {
                    add_http(first, bytes);
                }
                let mut answered = self.requests.pop_front().unwrap_or_default();
                add_http(&mut answered, bytes);
                return Some(answered);
            }
            NoteKind::Ssh => {
                let ssh = self.ssh.get_or_insert_default();
                add_ssh(ssh, note.side, bytes);
                self.ssh_whole = ssh.hassh.iter().all(Option::is_some);
            }
            NoteKind::Dhcp => add_dhcp(self.dhcp.get_or_insert_default(), bytes),
            NoteKind::App | NoteKind::Arp | NoteKind::Neighbour | NoteKind::Anomaly => {}
        }
        None
    }
}

fn add_dns(dns: &mut Dns, bytes: &[u8]) {
    let (mut flags, mut mine) = (0u64, dns.query.is_empty());
    for (tag, value) in fields(bytes) {
        match tag {
            Tag::DnsFlags => flags = number(value),
            Tag::Query => {
                let (Some(kind), Some(name)) = (value.get(..2), value.get(2..)) else { continue };
                let (kind, name) = (number(kind) as u16, text(name));
                if dns.query.is_empty() {
                    (dns.kind, dns.query) = (kind, name);
                } else {
                    mine |= dns.kind == kind && dns.query == name;
                }
            }
            Tag::Answer if mine && flags & 0x8000 != 0 => {
                let Some(answer) = Answer::read(value).filter(|a| a.section == 0) else { continue };
                let answer = text(answer.text);
                if dns.answers.len() < ANSWERS && !dns.answers.contains(&answer) {
                    dns.answers.push(answer);
                }
            }
            _ => {}
        }
    }
    if mine && flags & 0x8000 != 0 {
        dns.rcode = dns.rcode.or(Some((flags & 15) as u8));
    }
}

fn add_tls(tls: &mut Tls, server: bool, bytes: &[u8]) {
    for (tag, value) in fields(bytes) {
        match (tag, server) {
            (Tag::TlsVersion, _) if server || !tls.answered => {
                tls.version = Some(tls::version_name(number(value) as u16));
                tls.answered |= server;
            }
            (Tag::Sni, false) if tls.sni.is_none() => tls.sni = Some(text(value)),
            (Tag::Alpn, false) if tls.alpns.len() < 16 => tls.alpns.push(text(value)),
            (Tag::Alpn, true) if tls.alpn.is_none() => tls.alpn = Some(text(value)),
            (Tag::Ja3, false) => tls.ja3 = tls.ja3.or_else(|| value.try_into().ok()),
            (Tag::Ja3, true) => tls.ja3s = tls.ja3s.or_else(|| value.try_into().ok()),
            (Tag::Ja4, _) if tls.ja4.is_none() => tls.ja4 = Some(text(value)),
            (Tag::QuicVersion, _) if tls.quic_version.is_none() => {
                tls.quic_version = Some(text(value));
            }
            (Tag::Certificate, _) if tls.certificate.is_none() => {
                tls.certificate = certificate(value);
            }
            _ => {}
        }
    }
}

/// The fields of a certificate that people look at; by the field's own parser, which allocates, but
/// not on the packet path.
fn certificate(der: &[u8]) -> Option<Certificate> {
    let (_, parsed) = X509Certificate::from_der(der).ok()?;
    let mut names = Vec::new();
    if let Ok(Some(extension)) = parsed.subject_alternative_name() {
        for name in extension.value.general_names.iter().take(64) {
            names.extend(match name {
                GeneralName::DNSName(name) => Some((*name).to_owned()),
                GeneralName::IPAddress(ip) => four(ip).map(|ip| IpAddr::from(ip).to_string()),
                _ => None,
            });
        }
    }
    let colons =
        |bytes: &[u8]| bytes.iter().map(|b| format!("{b:02x}")).collect::<Vec<_>>().join(":");
    let validity = parsed.validity();
    Some(Certificate {
        subject: parsed.subject().to_string(),
        issuer: parsed.issuer().to_string(),
        not_before: validity.not_before.timestamp(),
        not_after: validity.not_after.timestamp(),
        names,
        serial: colons(parsed.raw_serial()).to_uppercase(),
        fingerprint: colons(&Sha1::digest(der)),
    })
}

/// Adds a request's or a response's head.
fn add_http(http: &mut Http, bytes: &[u8]) {
    for (tag, value) in fields(bytes) {
        match tag {
            Tag::Method => http.method = Some(text(value)),
            Tag::Uri => http.uri = Some(text(value)),
            Tag::Host => http.host = Some(text(value)),
            Tag::UserAgent => http.user_agent = Some(text(value)),
            Tag::Referer => http.referer = Some(text(value)),
            Tag::HttpVersion => http.minor_version = number(value) as u8,
            Tag::Status => http.status = Some(number(value) as u16),
            Tag::ContentType => http.content_type = Some(text(value)),
            Tag::Length => http.length = Some(number(value)),
            Tag::Location => http.location = Some(text(value)),
            _ => {}
        }
    }
}

fn add_ssh(ssh: &mut Ssh, side: u8, bytes: &[u8]) {
    let side = usize::from(side & 1);
    for (tag, value) in fields(bytes) {
        match tag {
            Tag::Banner if ssh.banners[side].is_none() => ssh.banners[side] = Some(text(value)),
            Tag::Hassh => ssh.hassh[side] = ssh.hassh[side].or_else(|| value.try_into().ok()),
            _ => {}
        }
    }
}

fn add_dhcp(dhcp: &mut Dhcp, bytes: &[u8]) {
    for (tag, value) in fields(bytes) {
        match tag {
            Tag::Mac => dhcp.mac = value.try_into().unwrap_or(dhcp.mac),
            Tag::Hostname => dhcp.hostname = Some(text(value)),
            Tag::VendorClass => dhcp.vendor_class = Some(text(value)),
            Tag::RequestedIp => dhcp.requested = four(value),
            Tag::AssignedIp => dhcp.assigned = four(value),
            _ => {}
        }
    }
}
