//! Request bodies.
//!
//! Made from the batch alone, so that a repeat is the same bytes. Their size is known before they
//! are made, since batches are cut by it.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value, json};

use super::super::settings::{Api, SecopsSettings};
use super::super::{Frozen, Outgoing};
use super::udm;

/// What an entry has beside its data: two times and the names.
const LOG: usize = r#"{"data":"","logEntryTime":"","collectionTime":""},"#.len() + 2 * TIME;
const ENTRY: usize = r#"{"log_text":"","ts_rfc3339":""},"#.len() + TIME;
/// The longest time: `2026-11-24T03:12:44.123456789Z`.
const TIME: usize = 30;

/// How bodies look.
pub(super) struct Form {
    api: Api,
    /// Everything before and after the entries.
    head: String,
    tail: String,
    /// What is appended to each entry of `logs:import`.
    each: String,
}

impl Form {
    pub(super) fn new(s: &SecopsSettings, customer: String, log_type: String) -> Self {
        let text = |v: &str| Value::from(v).to_string();
        let mut each = String::new();
        let head = match s.api {
            Api::Chronicle => {
                if let Some(namespace) = &s.namespace {
                    each += &format!(",\"environmentNamespace\":{}", text(namespace));
                }
                if !s.labels.is_empty() {
                    let labels: Map<String, Value> =
                        s.labels.iter().map(|(k, v)| (k.clone(), json!({ "value": v }))).collect();
                    each += &format!(",\"labels\":{}", Value::from(labels));
                }
                let forwarder = s
                    .forwarder
                    .as_ref()
                    .map_or(String::new(), |f| format!("\"forwarder\":{},", text(f)));
                format!("{{\"inlineSource\":{{{forwarder}\"logs\":[")
            }
            Api::Udm => "{\"inlineSource\":{\"events\":[".to_owned(),
            Api::Legacy => {
                let mut head = format!(
                    "{{\"customer_id\":{},\"log_type\":{}",
                    text(&customer),
                    text(&log_type)
                );
                if let Some(namespace) = &s.namespace {
                    head += &format!(",\"namespace\":{}", text(namespace));
                }
                if !s.labels.is_empty() {
                    let labels: Vec<Value> =
                        s.labels.iter().map(|(k, v)| json!({ "key": k, "value": v })).collect();
                    head += &format!(",\"labels\":{}", Value::from(labels));
                }
                head + ",\"entries\":["
            }
        };
        let tail = match s.api {
            Api::Chronicle | Api::Udm => "]}}",
            Api::Legacy => "]}",
        };
        Self { api: s.api, head, tail: tail.to_owned(), each }
    }

    /// The size of a body without entries.
    pub(super) fn envelope(&self) -> usize {
        self.head.len() + self.tail.len()
    }

    /// Any event must fit.
    pub(super) fn smallest(&self) -> usize {
        self.envelope() + 2 * crate::spool::MAX_LINE
    }

    /// The most that an event adds to a body.
    pub(super) fn cost(&self, event: &Outgoing) -> usize {
        match self.api {
            Api::Chronicle => event.line.len().div_ceil(3) * 4 + LOG + self.each.len(),
            Api::Legacy => escaped_len(&event.line) + ENTRY,
            Api::Udm => udm::event(event).len() + 1,
        }
    }

    pub(super) fn body(&self, batch: &Frozen) -> Vec<u8> {
        let mut out = String::with_capacity(self.envelope() + batch.events.len() * 1024);
        out.push_str(&self.head);
        for (n, event) in batch.events.iter().enumerate() {
            if n > 0 {
                out.push(',');
            }
            match self.api {
                Api::Chronicle => {
                    out.push_str("{\"data\":\"");
                    STANDARD.encode_string(&event.line, &mut out);
                    // The API wants the collection after the entry, also where our clock is behind
                    // the packets'.
                    let collected = batch.formed_ns.max(event.time_ns.saturating_add(1000));
                    out.push_str("\",\"logEntryTime\":\"");
                    out.push_str(&time(event.time_ns));
                    out.push_str("\",\"collectionTime\":\"");
                    out.push_str(&time(collected));
                    out.push('"');
                    out.push_str(&self.each);
                    out.push('}');
                }
                Api::Legacy => {
                    let text = String::from_utf8_lossy(&event.line);
                    out.push_str("{\"log_text\":");
                    out.push_str(&Value::from(text).to_string());
                    out.push_str(",\"ts_rfc3339\":\"");
                    out.push_str(&time(event.time_ns));
                    out.push_str("\"}");
                }
                Api::Udm => out.push_str(&udm::event(event)),
            }
        }
        out.push_str(&self.tail);
        out.into_bytes()
    }
}

/// RFC 3339, UTC.
pub(super) fn time(ns: u64) -> String {
    jiff::Timestamp::from_nanosecond(i128::from(ns)).map_or_else(
        // Not before the year 9999, and 64 bits end in 2554.
        |_| "1970-01-01T00:00:00Z".to_owned(),
        |t| t.to_string(),
    )
}

/// How long a JSON string of these bytes is at most, without its quotes.
fn escaped_len(line: &[u8]) -> usize {
    line.iter()
        .map(|b| match b {
            b'"' | b'\\' => 2,
            0..=0x1f => 6,
            // What is not UTF-8 becomes three bytes.
            0x80.. => 3,
            _ => 1,
        })
        .sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spool::EventId;

    fn batch(lines: &[&[u8]]) -> Frozen {
        let event = |(n, line): (usize, &&[u8])| Outgoing {
            id: EventId { store: 1, seq: n as u64 },
            time_ns: 1_700_000_000_123_456_789 + n as u64,
            line: line.to_vec(),
        };
        let events = lines.iter().enumerate().map(event).collect();
        Frozen { id: "x".into(), formed_ns: 1_700_000_000_123_456_789, events }
    }

    fn form(toml: &str) -> Form {
        Form::new(&toml::from_str(toml).unwrap(), "cust\"omer".into(), "LT".into())
    }

    const LINES: [&[u8]; 4] = [
        br#"{"timestamp":"2026-11-24T00:00:00.5Z","src_ip":"10.0.0.1","sni":"a"}"#,
        b"{\"dns_query\":\"\x7f\x00\x1b\xff\xfe \xed\xa0\x80\"}",
        "{\"dns_query\":\"\u{e0001}\u{2028}\"}".as_bytes(),
        b"not even JSON \"\\",
    ];

    #[test]
    fn every_body_is_json_and_no_larger_than_was_said() {
        for toml in [
            "",
            "namespace = 'a\"b'\nforwarder = 'f'\n[labels]\nsite = 'x\\y'",
            "api = 'legacy'",
            "api = 'legacy'\nnamespace = 'n'\n[labels]\nk = 'v'",
            "api = 'udm'",
        ] {
            let (form, batch) = (form(toml), batch(&LINES));
            let body = form.body(&batch);
            let value: Value =
                serde_json::from_slice(&body).unwrap_or_else(|e| panic!("{toml}: {e}"));
            let room: usize = batch.events.iter().map(|e| form.cost(e)).sum();
            assert!(body.len() <= form.envelope() + room, "{toml}");
            assert!(body.len() + 200 > form.envelope() + room, "{toml}: the estimate is far off");
            assert_eq!(body, form.body(&batch.clone()));
            let entries = ["/inlineSource/logs", "/inlineSource/events", "/entries"];
            let entries = entries.iter().find_map(|p| value.pointer(p)).unwrap();
            assert_eq!(entries.as_array().unwrap().len(), 4);
        }
    }

    #[test]
    fn a_log_comes_back_bit_for_bit_and_is_collected_after_it_happened() {
        let batch = batch(&LINES);
        let value: Value = serde_json::from_slice(&form("").body(&batch)).unwrap();
        for (n, log) in value["inlineSource"]["logs"].as_array().unwrap().iter().enumerate() {
            assert_eq!(STANDARD.decode(log["data"].as_str().unwrap()).unwrap(), LINES[n]);
            let at = |k: &str| log[k].as_str().unwrap().parse::<jiff::Timestamp>().unwrap();
            assert!(at("collectionTime") > at("logEntryTime"));
        }
    }
}
