//! A flow event in Google's Unified Data Model; the same mapping as the parser in `configs/secops`.

use serde_json::{Map, Value, json};

use super::super::Outgoing;
use super::body::time;

/// The entry of `events:import`: `{"udm":{...}}`.
pub(super) fn event(event: &Outgoing) -> String {
    let line = serde_json::from_slice::<Map<String, Value>>(&event.line).unwrap_or_default();
    json!({ "udm": udm(event, &line) }).to_string()
}

/// UDM has names for these protocols; another gives no `ip_protocol`.
fn ip_protocol(name: &str) -> Option<&'static str> {
    Some(match name {
        "TCP" => "TCP",
        "UDP" => "UDP",
        "ICMP" => "ICMP",
        "ICMPv6" => "ICMP6",
        "IGMP" => "IGMP",
        "GRE" => "GRE",
        "ESP" => "ESP",
        "SCTP" => "SCTP",
        "IPv6" => "IP6IN4",
        "PIM" => "PIM",
        "VRRP" => "VRRP",
        _ => return None,
    })
}

fn application(name: &str) -> Option<&'static str> {
    Some(match name {
        "dns" => "DNS",
        "http" => "HTTP",
        "tls" => "HTTPS",
        "quic" => "QUIC",
        "ssh" => "SSH",
        "dhcp" => "DHCP",
        _ => return None,
    })
}

fn udm(event: &Outgoing, line: &Map<String, Value>) -> Value {
    let text = |field: &str| line.get(field).and_then(Value::as_str).filter(|t| !t.is_empty());
    let number = |field: &str| line.get(field).and_then(Value::as_u64);
    let mut out = Tree::default();
    let is_dns = text("dns_query").is_some();
    let kind = if is_dns { "NETWORK_DNS" } else { "NETWORK_CONNECTION" };
    out.put("metadata.event_type", kind);
    out.put("metadata.event_timestamp", time(event.time_ns));
    out.put("metadata.product_log_id", event.id.to_string());
    out.put("metadata.product_event_type", "flow");
    out.put("metadata.vendor_name", "malakocut");
    out.put("metadata.product_name", "malakocut");
    for (side, noun) in [("src", "principal"), ("dst", "target")] {
        let put = |out: &mut Tree, from: &str, to: &str, many: bool| {
            if let Some(value) = text(&format!("{side}_{from}")) {
                let value = if many { json!([value]) } else { json!(value) };
                out.put(&format!("{noun}.{to}"), value);
            }
        };
        put(&mut out, "ip", "ip", true);
        put(&mut out, "mac", "mac", true);
        put(&mut out, "name", "hostname", false);
        if let Some(port) = number(&format!("{side}_port")) {
            out.put(&format!("{noun}.port"), port);
        }
    }
    if let Some(name) = text("protocol").and_then(ip_protocol) {
        out.put("network.ip_protocol", name);
    }
    if let Some(name) = is_dns.then_some("DNS").or_else(|| application(text("app_proto")?)) {
        out.put("network.application_protocol", name);
    }
    for (from, to) in [
        ("orig_bytes", "network.sent_bytes"),
        ("resp_bytes", "network.received_bytes"),
        ("orig_packets", "network.sent_packets"),
        ("resp_packets", "network.received_packets"),
    ] {
        if let Some(n) = number(from) {
            // 64-bit numbers are text in protobuf's JSON.
            out.put(to, n.to_string());
        }
    }
    for (from, to) in [
        ("flow_id", "network.session_id"),
        ("community_id", "network.community_id"),
        ("sni", "network.tls.client.server_name"),
        ("ja3", "network.tls.client.ja3"),
        ("ja3s", "network.tls.server.ja3s"),
        ("ja4", "network.tls.client.ja4"),
        ("tls_version", "network.tls.version"),
        ("alpn", "network.tls.next_protocol"),
        ("tls_subject", "network.tls.server.certificate.subject"),
        ("tls_issuer", "network.tls.server.certificate.issuer"),
        ("http_method", "network.http.method"),
        ("http_user_agent", "network.http.user_agent"),
        ("http_host", "target.hostname"),
        ("sensor", "observer.hostname"),
    ] {
        if let Some(value) = text(from) {
            out.put(to, value);
        }
    }
    if let Some(seconds) = line.get("duration_sec").and_then(Value::as_f64) {
        out.put("network.session_duration", format!("{seconds:.9}s"));
    }
    if let Some(name) = text("dns_query") {
        out.put("network.dns.questions", json!([{ "name": name }]));
        let answers: Vec<Value> = line
            .get("dns_answers")
            .and_then(Value::as_array)
            .into_iter()
            .flatten()
            .map(|a| json!({ "data": a.as_str().map_or_else(|| a.to_string(), str::to_owned) }))
            .collect();
        if !answers.is_empty() {
            out.put("network.dns.answers", answers);
        }
    }
    // Everything, by its own name, so that nothing is lost that UDM has no field for.
    for (field, value) in line {
        let value = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        out.put(&format!("additional.{field}"), value);
    }
    Value::Object(out.0)
}

#[derive(Default)]
struct Tree(Map<String, Value>);

impl Tree {
    fn put(&mut self, path: &str, value: impl Into<Value>) {
        let mut at = &mut self.0;
        let mut names = path.split('.').peekable();
        while let Some(name) = names.next() {
            if names.peek().is_none() {
                at.insert(name.to_owned(), value.into());
                return;
            }
            let next = at.entry(name).or_insert_with(|| Value::Object(Map::new()));
            match next {
                Value::Object(inner) => at = inner,
                _ => return,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spool::EventId;

    #[test]
    fn bytes_go_by_direction_and_unknown_protocols_name_none() {
        let line = br#"{"src_ip":"10.0.0.1","src_port":5,"dst_ip":"192.0.2.1","dst_port":53,"protocol":"UDP","orig_bytes":18446744073709551615,"resp_bytes":7,"duration_sec":0.5,"dns_query":"a.example","dns_answers":["192.0.2.9"],"vlan":[3]}"#;
        let mut out = Outgoing {
            id: EventId { store: 1, seq: 2 },
            time_ns: 1_700_000_000_000_000_000,
            line: line.to_vec(),
        };
        let v: Value = serde_json::from_str(&event(&out)).unwrap();
        let udm = &v["udm"];
        assert_eq!(udm["network"]["sent_bytes"], "18446744073709551615");
        assert_eq!(udm["network"]["received_bytes"], "7");
        assert_eq!(udm["network"]["session_duration"], "0.500000000s");
        assert_eq!(udm["metadata"]["event_type"], "NETWORK_DNS");
        assert_eq!(udm["metadata"]["event_timestamp"], "2023-11-14T22:13:20Z");
        assert_eq!(udm["network"]["dns"]["answers"][0]["data"], "192.0.2.9");
        assert_eq!(udm["principal"]["ip"], json!(["10.0.0.1"]));
        assert_eq!(udm["additional"]["vlan"], "[3]");
        out.line = br#"{"protocol":"IP-254","src_ip":"10.0.0.1"}"#.to_vec();
        let v: Value = serde_json::from_str(&event(&out)).unwrap();
        assert!(v["udm"]["network"].get("ip_protocol").is_none());
    }
}
