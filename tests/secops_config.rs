//! The SecOps parser and rules name only fields that UDM has, and the parser every field that flow
//! events have.

#![allow(clippy::unwrap_used, reason = "a test that cannot run fails")]

mod common;

use std::collections::BTreeSet;
use std::path::Path;

use common::{home, malakocut};

/// From the Unified Data Model field list; what is repeated is written without its index.
const UDM: &[&str] = &[
    "additional.fields",
    "metadata.event_timestamp",
    "metadata.event_timestamp.seconds",
    "metadata.event_type",
    "metadata.product_event_type",
    "metadata.product_log_id",
    "metadata.product_name",
    "metadata.vendor_name",
    "network.application_protocol",
    "network.community_id",
    "network.connection_state",
    "network.direction",
    "network.dns.answers",
    "network.dns.questions",
    "network.http.method",
    "network.http.user_agent",
    "network.ip_protocol",
    "network.received_bytes",
    "network.received_packets",
    "network.sent_bytes",
    "network.sent_packets",
    "network.session_duration.seconds",
    "network.session_id",
    "network.tls.client.ja3",
    "network.tls.client.ja4",
    "network.tls.client.server_name",
    "network.tls.next_protocol",
    "network.tls.server.certificate.issuer",
    "network.tls.server.certificate.subject",
    "network.tls.server.ja3s",
    "network.tls.version",
    "observer.hostname",
    "principal.hostname",
    "principal.ip",
    "principal.mac",
    "principal.port",
    "target.hostname",
    "target.ip",
    "target.mac",
    "target.port",
];

fn config(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("configs/secops").join(name);
    std::fs::read_to_string(path).unwrap()
}

fn paths(text: &str, prefix: &str) -> BTreeSet<String> {
    let is_path = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '.';
    text.split(prefix)
        .skip(1)
        .map(|rest| rest.split(|c| !is_path(c)).next().unwrap().trim_matches('.').to_owned())
        .collect()
}

#[test]
fn parser_and_rules_name_only_fields_that_udm_has() {
    let parser = paths(&config("malakocut.conf"), "event.idm.read_only_udm.");
    let rules = paths(&config("rules.yaral"), "$e.");
    assert!(parser.len() > 30 && rules.len() > 8, "{} {}", parser.len(), rules.len());
    for path in parser.iter().chain(&rules) {
        assert!(UDM.contains(&path.as_str()), "{path}");
    }
    // What the rules look at, the parser fills.
    for path in &rules {
        let base = path.trim_end_matches(".seconds");
        assert!(parser.contains(base) || base == "metadata.event_timestamp", "{path}");
    }
}

#[test]
fn the_parser_takes_every_field_of_a_flow_event() {
    let parser = config("malakocut.conf");
    let run = malakocut(&["--read", home().to_str().unwrap(), "--flow-log", "-"]).ok();
    let mut fields = BTreeSet::new();
    for line in run.stdout.lines() {
        let event: serde_json::Value = serde_json::from_str(line).unwrap();
        fields.extend(event.as_object().unwrap().keys().cloned());
    }
    // What no flow of the capture has, by the writer's own names.
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/event/content.rs");
    let source = std::fs::read_to_string(source).unwrap();
    for name in source.split("out, \"").skip(1) {
        fields.insert(name.split('"').next().unwrap().to_owned());
    }
    assert!(fields.len() > 60, "{fields:?}");
    // The journal's place is for the sensor's own interface.
    for field in fields.iter().filter(|f| *f != "journal") {
        let used = [format!("[{field}]"), format!("%{{{field}}}"), format!(" in {field} ")];
        let named = used.iter().any(|u| parser.contains(u)) || field == "timestamp";
        assert!(named, "{field} is not in the parser");
    }
    // Braces are balanced, or the parser is not one.
    let count = |c| {
        parser
            .lines()
            .filter(|l| !l.trim().starts_with('#'))
            .map(|l| l.matches(c).count())
            .sum::<usize>()
    };
    assert_eq!(count('{'), count('}'));
}
