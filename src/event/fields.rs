//! A flow event's fields one at a time, for expressions.
//!
//! Those that most expressions ask for are taken from the record; for any other the whole line is made
//! once.

use std::borrow::Cow;
use std::cell::{OnceCell, RefCell};
use std::net::IpAddr;

use serde_json::{Map, Value};

use super::json::{by_originator, community_id, protocol_name};
use super::{About, EventWriter, FlowEvent, mac};
use crate::event::expression::{Expression, Fields};
use crate::packet::proto;

/// The names of all fields that a flow event can have, and what a live flow's row has beside.
pub const FIELDS: &[&str] = &[
    "timestamp",
    "flow_id",
    "shred_index",
    "src_ip",
    "src_port",
    "dst_ip",
    "dst_port",
    "src_mac",
    "dst_mac",
    "vlan",
    "resp_vlan",
    "protocol",
    "tcp_flags",
    "bytes",
    "packets",
    "orig_bytes",
    "orig_packets",
    "orig_ip_bytes",
    "resp_bytes",
    "resp_packets",
    "resp_ip_bytes",
    "total_bytes",
    "total_packets",
    "start",
    "end",
    "duration_sec",
    "idle_sec",
    "final",
    "end_reason",
    "conn_state",
    "history",
    "community_id",
    "icmp_type",
    "icmp_code",
    "tcp_rtt_ms",
    "retransmits",
    "app_proto",
    "src_name",
    "dst_name",
    "dns_query",
    "dns_type",
    "dns_rcode",
    "dns_answers",
    "sni",
    "tls_version",
    "alpn",
    "ja3",
    "ja3s",
    "ja4",
    "quic_version",
    "tls_subject",
    "tls_issuer",
    "tls_not_before",
    "tls_not_after",
    "tls_san",
    "http_method",
    "http_host",
    "http_uri",
    "http_user_agent",
    "http_status",
    "ssh_client",
    "ssh_server",
    "hassh",
    "hassh_server",
    "dhcp_mac",
    "dhcp_hostname",
    "dhcp_vendor_class",
    "dhcp_requested_ip",
    "dhcp_assigned_ip",
    "sensor",
    "silenced",
];

/// Fields that the flow's record alone answers for.
const OF_RECORD: &[&str] = &[
    "flow_id",
    "src_ip",
    "src_port",
    "dst_ip",
    "dst_port",
    "src_mac",
    "dst_mac",
    "protocol",
    "bytes",
    "packets",
    "duration_sec",
    "idle_sec",
    "conn_state",
    "community_id",
];

/// Whether an expression asks for what a flow was about, and not for its record alone.
pub fn asks_what_about(expression: &Expression) -> bool {
    expression.fields().iter().any(|field| !OF_RECORD.contains(field))
}

/// The fields of one event.
pub struct FlowFields<'a> {
    event: &'a FlowEvent,
    about: &'a About<'a>,
    writer: &'a RefCell<EventWriter>,
    whole: OnceCell<Map<String, Value>>,
}

impl<'a> FlowFields<'a> {
    pub fn new(
        event: &'a FlowEvent,
        about: &'a About<'a>,
        writer: &'a RefCell<EventWriter>,
    ) -> Self {
        Self { event, about, writer, whole: OnceCell::new() }
    }

    fn whole(&self) -> &Map<String, Value> {
        self.whole.get_or_init(|| {
            let mut line = Vec::new();
            self.writer.borrow_mut().write_about(self.event, self.about, &mut line);
            serde_json::from_slice(&line).unwrap_or_default()
        })
    }
}

impl Fields for FlowFields<'_> {
    fn field(&self, name: &str) -> Option<Cow<'_, Value>> {
        let e = self.event;
        let ((src, sport), (dst, dport)) = by_originator(e);
        let v6 = e.key.is_v6();
        let sum = |of: fn(&super::Counts) -> u64| e.delta.iter().map(of).sum::<u64>();
        let value = match name {
            "src_ip" => src.ip(v6).to_string().into(),
            "dst_ip" => dst.ip(v6).to_string().into(),
            "src_port" | "dst_port" if !e.key.has_ports() => return None,
            "src_port" => sport.into(),
            "dst_port" => dport.into(),
            "protocol" => protocol_name(e.key.proto()).to_string().into(),
            "bytes" => sum(|c| c.bytes).into(),
            "packets" => sum(|c| c.packets).into(),
            "duration_sec" => (e.end_ns.saturating_sub(e.start_ns) as f64 / 1e9).into(),
            "idle_sec" => (e.idle_ns as f64 / 1e9).into(),
            "conn_state" => self.text(name)?.into(),
            "community_id" => community_id(&e.key, 0).into(),
            "flow_id" => format!("{:016x}", e.flow_id).into(),
            "silenced" if e.silenced => true.into(),
            "src_mac" => mac(e.macs[0]?).into(),
            "dst_mac" => mac(e.macs[1]?).into(),
            "app_proto" | "src_name" | "dst_name" | "dns_query" | "sni" | "http_host" => {
                self.text(name)?.into()
            }
            _ => return self.whole().get(name).map(Cow::Borrowed),
        };
        Some(Cow::Owned(value))
    }

    fn text(&self, name: &str) -> Option<&str> {
        let content = self.about.content;
        match name {
            "protocol" => match self.event.key.proto() {
                proto::TCP => Some("TCP"),
                proto::UDP => Some("UDP"),
                _ => None,
            },
            "conn_state" => Some(self.event.conn_state.name()),
            "app_proto" => Some(self.about.app(self.event)?.name()),
            "src_name" => self.about.src_name.as_deref(),
            "dst_name" => self.about.dst_name.as_deref(),
            "dns_query" => Some(&content?.dns.as_ref()?.query),
            "sni" => content?.tls.as_ref()?.sni.as_deref(),
            "http_host" => content?.http.as_ref()?.host.as_deref(),
            _ => None,
        }
    }

    fn address(&self, name: &str) -> Option<IpAddr> {
        let ((src, _), (dst, _)) = by_originator(self.event);
        let v6 = self.event.key.is_v6();
        match name {
            "src_ip" => Some(src.ip(v6)),
            "dst_ip" => Some(dst.ip(v6)),
            _ => self.field(name)?.as_str()?.parse().ok(),
        }
    }
}
