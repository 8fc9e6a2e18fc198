//! What Arkime's sessions were about: DNS, HTTP, TLS, SSH, DHCP, QUIC. Ours are the EVE lines.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde_json::Value;

use crate::capture;
use crate::known::Row;
use crate::sensor::{self, End};

/// Protocol, two ends (the smaller first), and the field.
type Key = (u8, End, End, &'static str);
type Table = BTreeMap<Key, BTreeSet<String>>;

/// Each field of each session, and how we differ from it.
pub(crate) fn rows(directory: &Path) -> Vec<Row> {
    let captures: Vec<_> = sensor::captures(directory)
        .into_iter()
        .filter(|capture| capture.with_extension("test").exists())
        .collect();
    sensor::in_parallel(&captures, |capture| rows_of(capture)).into_iter().flatten().collect()
}

fn rows_of(capture: &Path) -> Vec<Row> {
    let radio = capture::totals(capture).links.into_iter().any(sensor::is_radio);
    let sessions = sensor::json(&capture.with_extension("test"));
    let mut expected = Table::new();
    for session in sessions["sessions3"].as_array().expect("a list of sessions") {
        add_session(&mut expected, session.get("body").unwrap_or(session));
    }
    let directory = tempfile::tempdir().expect("a temporary directory");
    let eve = directory.path().join("eve.json");
    let outcome =
        sensor::run_with(capture, &["--eve-log", eve.to_str().expect("a path")]).map(|_| ());
    let mut ours = Table::new();
    for line in std::fs::read_to_string(&eve).unwrap_or_default().lines() {
        add_line(&mut ours, &serde_json::from_str(line).expect("EVE is JSON"));
    }
    let file = capture.file_name().expect("a name").to_string_lossy();
    let none = BTreeSet::new();
    expected
        .iter()
        .map(|(key, want)| {
            let got = ours.get(key).unwrap_or(&none);
            let difference = match &outcome {
                Err(error) => Some(error.clone()),
                // Of a chain of certificates the first is the server's; Arkime lists all.
                Ok(()) if key.3 == "cert.hash" => (got.is_empty() || !got.is_subset(want))
                    .then(|| format!("{want:?}, ours {got:?}")),
                Ok(()) => (got != want).then(|| format!("{want:?}, ours {got:?}")),
            };
            Row {
                file: file.to_string(),
                key: format!("{} {} {} {}", sensor::protocol_name(key.0), key.1, key.2, key.3),
                plain: !radio && difference.as_ref().is_none_or(|_| !ours.is_empty()),
                difference,
            }
        })
        .collect()
}

fn end(ip: &Value, port: &Value) -> Option<End> {
    Some(End {
        ip: ip.as_str()?.parse().expect("an address"),
        port: port.as_u64().map_or(0, |port| u16::try_from(port).expect("a port")),
    })
}

fn strings(value: &Value) -> Vec<String> {
    match value {
        Value::Array(list) => list.iter().flat_map(strings).collect(),
        Value::String(text) => vec![text.clone()],
        Value::Number(number) => vec![number.to_string()],
        _ => Vec::new(),
    }
}

fn add(table: &mut Table, ends: (u8, End, End), field: &'static str, values: Vec<String>) {
    let (protocol, a, b) = ends;
    let (a, b) = if a <= b { (a, b) } else { (b, a) };
    if !values.is_empty() {
        table.entry((protocol, a, b, field)).or_default().extend(values);
    }
}

fn add_session(table: &mut Table, session: &Value) {
    let at = |side: &str| end(&session[side]["ip"], &session[side]["port"]);
    let (Some(a), Some(b)) = (at("source"), at("destination")) else { return };
    let protocol = u8::try_from(sensor::number(session, "ipProtocol")).expect("a protocol");
    let ends = (protocol, a, b);
    for (field, value) in [
        ("tls.ja3", &session["tls"]["ja3"]),
        ("tls.ja3s", &session["tls"]["ja3s"]),
        ("tls.ja4", &session["tls"]["ja4"]),
        ("http.useragent", &session["http"]["useragent"]),
        ("ssh.version", &session["ssh"]["version"]),
        ("ssh.hassh", &session["ssh"]["hassh"]),
        ("ssh.hasshServer", &session["ssh"]["hasshServer"]),
        ("dhcp.mac", &session["dhcp"]["mac"]),
        ("dhcp.type", &session["dhcp"]["type"]),
        ("quic.host", &session["quic"]["host"]),
    ] {
        add(table, ends, field, strings(value));
    }
    // Hosts of requests and names of servers are one field there, some with a port.
    let hosts = strings(&session["http"]["host"]).into_iter();
    add(table, ends, "http.host", hosts.map(without_port).collect());
    for certificate in session["cert"].as_array().into_iter().flatten() {
        add(table, ends, "cert.hash", strings(&certificate["hash"]));
    }
    for dns in session["dns"].as_array().into_iter().flatten() {
        let asked = strings(&dns["queryHost"]).into_iter().map(|n| n.replace("<root>", "."));
        add(table, ends, "dns.host", asked.collect());
        add(table, ends, "dns.type", strings(&dns["qt"]));
        add(table, ends, "dns.status", strings(&dns["status"]));
        let answers = dns["answers"].as_array().into_iter().flatten();
        let ips = answers.flat_map(|answer| strings(&answer["ip"]));
        let ips = ips.map(|ip| ip.parse::<std::net::IpAddr>().expect("an address").to_string());
        add(table, ends, "dns.ip", ips.collect());
    }
}

fn add_line(table: &mut Table, line: &Value) {
    let ends = [("src_ip", "src_port"), ("dest_ip", "dest_port")]
        .map(|(ip, port)| end(&line[ip], &line[port]));
    let [Some(a), Some(b)] = ends else { return };
    let protocol = match line["proto"].as_str().expect("a protocol") {
        "TCP" => 6,
        "UDP" => 17,
        _ => return,
    };
    let ends = (protocol, a, b);
    let dns = &line["dns"];
    for query in dns["queries"].as_array().into_iter().flatten() {
        add(table, ends, "dns.host", strings(&query["rrname"]));
        add(table, ends, "dns.type", strings(&query["rrtype"]));
    }
    add(table, ends, "dns.status", strings(&dns["rcode"]));
    for section in ["answers", "authorities", "additionals"] {
        for answer in dns[section].as_array().into_iter().flatten() {
            if matches!(answer["rrtype"].as_str(), Some("A" | "AAAA")) {
                add(table, ends, "dns.ip", strings(&answer["rdata"]));
            }
        }
    }
    let tls = if line["quic"].is_object() { &line["quic"] } else { &line["tls"] };
    add(table, ends, "tls.ja3", strings(&tls["ja3"]["hash"]));
    add(table, ends, "tls.ja3s", strings(&tls["ja3s"]["hash"]));
    add(table, ends, "tls.ja4", strings(&tls["ja4"]));
    add(table, ends, "cert.hash", strings(&tls["fingerprint"]));
    add(table, ends, "quic.host", strings(&line["quic"]["sni"]));
    add(table, ends, "http.host", strings(&tls["sni"]));
    add(table, ends, "http.host", strings(&line["http"]["hostname"]));
    add(table, ends, "http.useragent", strings(&line["http"]["http_user_agent"]));
    for (side, hassh) in [("client", "ssh.hassh"), ("server", "ssh.hasshServer")] {
        let ssh = &line["ssh"][side];
        add(table, ends, hassh, strings(&ssh["hassh"]["hash"]));
        if let (Some(proto), Some(software)) =
            (ssh["proto_version"].as_str(), ssh["software_version"].as_str())
        {
            let banner = format!("ssh-{proto}-{software}").to_lowercase();
            add(table, ends, "ssh.version", vec![banner]);
        }
    }
    add(table, ends, "dhcp.mac", strings(&line["dhcp"]["client_mac"]));
    let kinds = strings(&line["dhcp"]["dhcp_type"]);
    add(table, ends, "dhcp.type", kinds.into_iter().map(|k| k.to_uppercase()).collect());
}

fn without_port(host: String) -> String {
    match host.rsplit_once(':') {
        Some((name, port)) if port.parse::<u16>().is_ok() => name.to_owned(),
        _ => host,
    }
}
