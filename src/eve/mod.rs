//! Suricata's EVE: JSON lines that its dashboards and pipelines take in.
//!
//! Every line is valid by Suricata's schema. `flow_id` is the low 53 bits of the flow event's, so
//! that programs that keep numbers as floating point keep it whole; `community_id` is the same in
//! both. `src` is the originator in every line that belongs to a flow.
//!
//! A flow's deltas are `netflow` lines, one a direction; its end is a `flow` line with its totals.
//! mDNS, LLMNR and NetBIOS names are `dns` lines whose `app_proto` says which.

mod content;

use std::net::IpAddr;

use crate::event::{
    About, Content, EndReason, FlowEvent, Http, Note, NoteKind, Object, community_id, mac,
};
use crate::packet::{FlowKey, proto, tcp_flag};
use crate::status::{Counter, Counters, Group};

/// What a line says about whose traffic it is.
struct Ends<'a> {
    flow_id: u64,
    key: &'a FlowKey,
    orig_is_a: bool,
}

/// Writes EVE lines.
#[derive(Clone, Debug)]
pub struct EveWriter {
    sensor: String,
    interface: Option<String>,
}

impl EveWriter {
    /// `interface`: the one that packets come from, where it is one.
    pub fn new(sensor: impl Into<String>, interface: Option<String>) -> Self {
        Self { sensor: sensor.into(), interface }
    }

    /// The lines of a flow's event: its delta, and at its end what is still to be said of it.
    pub fn flow(&self, e: &FlowEvent, about: &About<'_>, out: &mut Vec<u8>) {
        let ends = Ends { flow_id: e.flow_id, key: &e.key, orig_is_a: e.orig_is_a };
        if e.end.is_some()
            && let Some(content) = about.content
        {
            self.rest(e, &ends, content, out);
        }
        for side in [0, 1] {
            if e.delta[side].packets > 0 {
                self.netflow(e, &ends, about, side, out);
            }
        }
        let Some(end) = e.end else { return };
        self.line("flow", e.timestamp_ns, Some(&ends), out, |o| {
            vlans(e, o);
            o.some("app_proto", about.app(e).map(crate::event::App::name));
            if let [Some(src), Some(dst)] = e.macs {
                o.object("ether", |o| {
                    o.texts("src_macs", [mac(src)]);
                    o.texts("dest_macs", [mac(dst)]);
                });
            }
            o.object("flow", |o| {
                totals(e, o);
                o.text("start", &time(e.start_ns));
                o.text("end", &time(e.end_ns));
                o.number("age", age(e));
                o.text("state", state(e, end));
                o.text("reason", reason(end));
                o.flag("alerted", false);
            });
            if e.key.proto() == proto::TCP {
                o.object("tcp", |o| tcp(e, end, o));
            }
        });
    }

    /// Handshakes and requests whose other half never came.
    fn rest(&self, e: &FlowEvent, ends: &Ends<'_>, content: &Content, out: &mut Vec<u8>) {
        if content.tls.is_some() && !content.tls_whole {
            self.handshake(ends, e.end_ns, content, out);
        }
        if content.ssh.is_some() && !content.ssh_whole {
            self.ssh(ends, e.end_ns, content, out);
        }
        for request in &content.requests {
            self.http(ends, e.end_ns, request, out);
        }
    }

    fn netflow(
        &self,
        e: &FlowEvent,
        ends: &Ends<'_>,
        about: &About<'_>,
        side: usize,
        out: &mut Vec<u8>,
    ) {
        let ends = Ends { orig_is_a: ends.orig_is_a == (side == 0), ..*ends };
        self.line("netflow", e.timestamp_ns, Some(&ends), out, |o| {
            vlans(e, o);
            o.some("app_proto", about.app(e).map(crate::event::App::name));
            o.object("netflow", |o| {
                let delta = &e.delta[side & 1];
                o.number("pkts", delta.packets);
                o.number("bytes", delta.bytes);
                o.text("start", &time(e.start_ns));
                o.text("end", &time(e.end_ns));
                o.number("age", age(e));
            });
        });
    }

    /// The line of a note, if it makes one by itself or completes one.
    pub fn note(
        &self,
        note: &Note,
        fields: &[u8],
        content: Option<&Content>,
        answered: Option<&Http>,
        whole: bool,
        out: &mut Vec<u8>,
    ) {
        let ends = Ends { flow_id: note.flow_id, key: &note.key, orig_is_a: note.orig_is_a };
        let at = note.timestamp_ns;
        match note.kind {
            NoteKind::Dns => self.line("dns", at, Some(&ends), out, |o| {
                note_vlans(note, o);
                o.some("app_proto", content::app(fields));
                o.object("dns", |o| content::dns(fields, o));
            }),
            NoteKind::Dhcp => self.line("dhcp", at, Some(&ends), out, |o| {
                note_vlans(note, o);
                o.text("app_proto", "dhcp");
                o.object("dhcp", |o| content::dhcp(fields, o));
            }),
            NoteKind::Arp => self.line("arp", at, None, out, |o| {
                note_vlans(note, o);
                o.object("arp", |o| content::arp(fields, o));
            }),
            NoteKind::Anomaly => {
                let ends = (note.flow_id != 0).then_some(&ends);
                self.line("anomaly", at, ends, out, |o| {
                    note_vlans(note, o);
                    o.object("anomaly", |o| content::anomaly(fields, o));
                });
            }
            NoteKind::HttpResponse => {
                if let Some(http) = answered {
                    self.http(&ends, at, http, out);
                }
            }
            NoteKind::TlsEnd | NoteKind::Quic if whole => {
                if let Some(content) = content {
                    self.handshake(&ends, at, content, out);
                }
            }
            NoteKind::Ssh if whole => {
                if let Some(content) = content {
                    self.ssh(&ends, at, content, out);
                }
            }
            _ => {}
        }
    }

    fn handshake(&self, ends: &Ends<'_>, at: u64, content: &Content, out: &mut Vec<u8>) {
        let Some(tls) = &content.tls else { return };
        if let Some(version) = &tls.quic_version {
            return self.line("quic", at, Some(ends), out, |o| {
                o.text("app_proto", "quic");
                o.object("quic", |o| {
                    o.text("version", version);
                    content::fingerprints(tls, o);
                });
            });
        }
        self.line("tls", at, Some(ends), out, |o| {
            o.some("app_proto", content.app.map(crate::event::App::name));
            o.object("tls", |o| content::tls(tls, o));
        });
    }

    fn ssh(&self, ends: &Ends<'_>, at: u64, content: &Content, out: &mut Vec<u8>) {
        let Some(ssh) = &content.ssh else { return };
        self.line("ssh", at, Some(ends), out, |o| {
            o.text("app_proto", "ssh");
            o.object("ssh", |o| content::ssh(ssh, o));
        });
    }

    fn http(&self, ends: &Ends<'_>, at: u64, http: &Http, out: &mut Vec<u8>) {
        self.line("http", at, Some(ends), out, |o| {
            o.text("app_proto", "http");
            o.object("http", |o| content::http(http, o));
        });
    }

    /// The counters so far.
    pub fn stats(&self, at: u64, uptime_s: u64, c: &Counters, out: &mut Vec<u8>) {
        self.line("stats", at, None, out, |o| {
            o.object("stats", |o| {
                o.number("uptime", uptime_s);
                o.object("capture", |o| {
                    o.number("kernel_packets", c.get(Counter::Packets) + c.sum(Group::Drop));
                    o.number("kernel_drops", c.sum(Group::Drop));
                    o.number("errors", c.get(Counter::NicErrors));
                });
                o.object("decoder", |o| {
                    let packets = c.get(Counter::Packets);
                    o.number("pkts", packets);
                    o.number("bytes", c.get(Counter::Bytes));
                    o.number("invalid", c.sum(Group::Malformed));
                    o.number("arp", c.get(Counter::Arp));
                    o.number("unknown_ethertype", c.get(Counter::OtherEtherType));
                    o.number(
                        "avg_pkt_size",
                        c.get(Counter::Bytes).checked_div(packets).unwrap_or(0),
                    );
                });
                o.object("flow", |o| {
                    o.number("total", c.get(Counter::Flows));
                    o.number("emerg_mode_entered", c.get(Counter::Evicted));
                });
            });
        });
    }

    /// One line: what every line has, and the members of its own.
    fn line(
        &self,
        kind: &str,
        at: u64,
        ends: Option<&Ends<'_>>,
        out: &mut Vec<u8>,
        members: impl FnOnce(&mut Object<'_>),
    ) {
        Object::write(out, |o| {
            o.text("timestamp", &time(at));
            o.text("event_type", kind);
            o.some("host", Some(self.sensor.as_str()).filter(|s| !s.is_empty()));
            o.some("in_iface", self.interface.as_deref());
            if let Some(ends) = ends {
                ends.write(o);
            }
            members(o);
        });
        out.push(b'\n');
    }
}

impl Ends<'_> {
    fn write(&self, o: &mut Object<'_>) {
        let k = self.key;
        let (a, b) = ((k.a.ip(k.is_v6()), k.port_a()), (k.b.ip(k.is_v6()), k.port_b()));
        let ((src, sport), (dst, dport)) = if self.orig_is_a { (a, b) } else { (b, a) };
        o.number("flow_id", self.flow_id & ((1 << 53) - 1));
        o.text("src_ip", &address(src));
        let ported = matches!(k.proto(), proto::TCP | proto::UDP | proto::SCTP);
        if ported {
            o.number("src_port", sport);
        }
        o.text("dest_ip", &address(dst));
        if ported {
            o.number("dest_port", dport);
        }
        o.text("proto", &protocol(k.proto()));
        o.number("ip_v", if k.is_v6() { 6 } else { 4 });
        if matches!(k.proto(), proto::ICMP | proto::ICMPV6) {
            o.number("icmp_type", sport & 0xff);
            o.number("icmp_code", if k.is_one_way() { dport & 0xff } else { 0 });
        }
        o.text("community_id", &community_id(k, 0));
    }
}

/// IPv6 addresses are written out as Suricata does it, in full.
fn address(ip: IpAddr) -> String {
    match ip {
        IpAddr::V4(ip) => ip.to_string(),
        IpAddr::V6(ip) => ip.segments().map(|s| format!("{s:04x}")).join(":"),
    }
}

fn protocol(number: u8) -> String {
    match number {
        proto::ICMPV6 => "IPv6-ICMP".into(),
        other => crate::event::protocol_name(other).to_string(),
    }
}

/// Microseconds, as in `2025-01-01T00:00:00.000000+0000`.
fn time(ns: u64) -> String {
    match jiff::Timestamp::from_nanosecond(i128::from(ns)) {
        Ok(time) => {
            format!("{}.{:06}+0000", time.strftime("%Y-%m-%dT%H:%M:%S"), ns / 1000 % 1_000_000)
        }
        Err(_) => "9999-12-31T23:59:59.999999+0000".into(),
    }
}

fn age(e: &FlowEvent) -> u64 {
    (e.end_ns / 1_000_000_000).saturating_sub(e.start_ns / 1_000_000_000)
}

fn vlans(e: &FlowEvent, o: &mut Object<'_>) {
    o.numbers("vlan", e.vlans[0].ids());
}

fn note_vlans(note: &Note, o: &mut Object<'_>) {
    o.numbers("vlan", note.vlans.ids());
}

fn totals(e: &FlowEvent, o: &mut Object<'_>) {
    o.number("pkts_toserver", e.total[0].packets);
    o.number("pkts_toclient", e.total[1].packets);
    o.number("bytes_toserver", e.total[0].bytes);
    o.number("bytes_toclient", e.total[1].bytes);
}

fn state(e: &FlowEvent, end: EndReason) -> &'static str {
    match end {
        EndReason::Fin | EndReason::Rst => "closed",
        _ if e.total.iter().all(|c| c.packets > 0) => "established",
        _ => "new",
    }
}

fn reason(end: EndReason) -> &'static str {
    match end {
        EndReason::Idle | EndReason::Fin | EndReason::Rst => "timeout",
        EndReason::Evicted => "forced",
        EndReason::Shutdown | EndReason::Eof => "shutdown",
    }
}

fn tcp(e: &FlowEvent, end: EndReason, o: &mut Object<'_>) {
    o.text("tcp_flags", &format!("{:02x}", e.tcp_flags));
    for (bit, name) in [
        (tcp_flag::SYN, "syn"),
        (tcp_flag::FIN, "fin"),
        (tcp_flag::RST, "rst"),
        (tcp_flag::PSH, "psh"),
        (tcp_flag::ACK, "ack"),
        (tcp_flag::URG, "urg"),
        (tcp_flag::ECE, "ecn"),
        (tcp_flag::CWR, "cwr"),
    ] {
        if e.tcp_flags & bit != 0 {
            o.flag(name, true);
        }
    }
    let answered = e.total[1].packets > 0;
    o.text(
        "state",
        match end {
            EndReason::Fin | EndReason::Rst => "closed",
            _ if answered && e.tcp_flags & tcp_flag::ACK != 0 => "established",
            _ => "syn_sent",
        },
    );
}
