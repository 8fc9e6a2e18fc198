//! `POST /extract`: the question, field by field, so that every error names its field.

use std::time::Duration;

use serde_json::{Map, Value};

use super::problem::Problem;
use crate::journal::query::text;
use crate::journal::query::{End, Net, Query, Terms};

/// What is asked of the journal.
#[derive(Clone, Debug)]
pub(super) struct Question {
    pub(super) query: Query,
    /// Only say what it would take.
    pub(super) dry_run: bool,
}

/// Reads a question. `idle_timeout` decides where a flow of a flow id ends.
pub(super) fn parse(body: &[u8], idle_timeout: Duration) -> Result<Question, Problem> {
    let fields: Map<String, Value> = serde_json::from_slice(body)
        .map_err(|e| Problem::bad(format!("the body is no JSON object: {e}")))?;
    let mut query = Query { idle_timeout, ..Query::default() };
    let mut dry_run = false;
    for (name, value) in &fields {
        let wrong = |why: String| Problem::field(name, why);
        // As good as left out.
        if value.is_null() {
            if KNOWN.contains(&name.as_str()) {
                continue;
            }
            return Err(wrong("there is no such field".into()));
        }
        let Terms { ends: [src, dst], hosts, ports, protocol, vlan } = &mut query.terms;
        match name.as_str() {
            "src_ip" => src.net = Some(net(value).map_err(wrong)?),
            "dst_ip" => dst.net = Some(net(value).map_err(wrong)?),
            "src_port" => src.port = Some(whole(value, u16::MAX).map_err(wrong)?),
            "dst_port" => dst.port = Some(whole(value, u16::MAX).map_err(wrong)?),
            "ip" => *hosts = several(value, net).map_err(wrong)?,
            "port" => *ports = several(value, |v| whole(v, u16::MAX)).map_err(wrong)?,
            "protocol" => {
                *protocol = Some(match value {
                    Value::String(name) => text::protocol(name).map_err(wrong)?,
                    number => whole(number, 255).map_err(wrong)? as u8,
                });
            }
            "vlan" => *vlan = Some(whole(value, 4095).map_err(wrong)?),
            "start" => query.from_ns = moment(value).map_err(wrong)?,
            "end" => query.to_ns = moment(value).map_err(wrong)?,
            "community_id" | "flow_id" if query.identity.is_some() => {
                return Err(wrong("give either community_id or flow_id".into()));
            }
            "community_id" => {
                query.identity =
                    Some(text::community(string(value).map_err(wrong)?).map_err(wrong)?);
            }
            "flow_id" => {
                query.identity = Some(text::flow_id(string(value).map_err(wrong)?).map_err(wrong)?);
            }
            "filter" => query.filter = Some(string(value).map_err(wrong)?.to_owned()),
            "link" => query.link = Some(whole(value, u16::MAX).map_err(wrong)?),
            "dry_run" => dry_run = value.as_bool().ok_or_else(|| wrong("true or false".into()))?,
            _ => return Err(wrong("there is no such field".into())),
        }
    }
    let terms = &query.terms;
    let bounded = !terms.hosts.is_empty()
        || terms.ends.iter().any(|e: &End| e.net.is_some())
        || query.identity.is_some();
    if !bounded {
        return Err(Problem::field("src_ip", "give an address, a community_id or a flow_id"));
    }
    if query.from_ns > query.to_ns {
        return Err(Problem::field("end", "it lies before the start"));
    }
    Ok(Question { query, dry_run })
}

const KNOWN: [&str; 15] = [
    "src_ip",
    "dst_ip",
    "src_port",
    "dst_port",
    "ip",
    "port",
    "protocol",
    "vlan",
    "start",
    "end",
    "community_id",
    "flow_id",
    "filter",
    "link",
    "dry_run",
];

fn string(value: &Value) -> Result<&str, String> {
    value.as_str().ok_or_else(|| "a string".to_owned())
}

fn net(value: &Value) -> Result<Net, String> {
    let text = string(value)?;
    text.parse().map_err(|e: crate::journal::query::BadNet| e.to_string())
}

/// A whole number up to `most`.
fn whole(value: &Value, most: u16) -> Result<u16, String> {
    let number = value.as_u64().and_then(|n| u16::try_from(n).ok()).filter(|n| *n <= most);
    number.ok_or_else(|| format!("a whole number from 0 to {most}"))
}

/// One, or an array of one or two.
fn several<T>(value: &Value, one: impl Fn(&Value) -> Result<T, String>) -> Result<Vec<T>, String> {
    match value {
        Value::Array(all) if (1..=2).contains(&all.len()) => all.iter().map(one).collect(),
        Value::Array(_) => Err("one or two of them".into()),
        single => Ok(vec![one(single)?]),
    }
}

/// RFC 3339, seconds since 1970, or so long before now.
fn moment(value: &Value) -> Result<u64, String> {
    match value {
        Value::String(written) => text::moment(written),
        Value::Number(seconds) => text::moment(&seconds.to_string()),
        _ => Err("a moment such as \"2026-01-02T03:04:05Z\" or seconds since 1970".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn field(body: &str) -> String {
        let problem = parse(body.as_bytes(), Duration::from_secs(60)).unwrap_err();
        problem.to_string()
    }

    #[test]
    fn every_field_and_what_is_wrong_with_it() {
        let good = r#"{"src_ip":"10.0.0.1","dst_ip":"192.0.2.0/24","src_port":1,"dst_port":65535,
            "protocol":"tcp","start":"2026-01-02T03:04:05Z","end":1767323045.5,"vlan":20,
            "filter":"tcp","link":1,"dry_run":true,"port":[1,2],"ip":"10.0.0.1","flow_id":null}"#;
        let q = parse(good.as_bytes(), Duration::from_secs(60)).unwrap();
        assert!(q.dry_run && q.query.to_ns == 1_767_323_045_500_000_000);
        assert_eq!((q.query.terms.ports.len(), q.query.terms.protocol), (2, Some(6)));
        for (body, names) in [
            (r#"{"src_ip":"host"}"#, "src_ip:"),
            (r#"{"dst_ip":4}"#, "dst_ip:"),
            (r#"{"src_ip":"10.0.0.1","src_port":65536}"#, "src_port:"),
            (r#"{"src_ip":"10.0.0.1","dst_port":"80"}"#, "dst_port:"),
            (r#"{"src_ip":"10.0.0.1","protocol":"tcpp"}"#, "protocol:"),
            (r#"{"src_ip":"10.0.0.1","protocol":256}"#, "protocol:"),
            (r#"{"src_ip":"10.0.0.1","start":"yesterday"}"#, "start:"),
            (r#"{"src_ip":"10.0.0.1","end":true}"#, "end:"),
            (r#"{"src_ip":"10.0.0.1","start":2,"end":1}"#, "end:"),
            (r#"{"src_ip":"10.0.0.1","start":-1e300}"#, "start:"),
            (r#"{"ip":["10.0.0.1","10.0.0.2","10.0.0.3"]}"#, "ip:"),
            (r#"{"ip":[]}"#, "ip:"),
            (r#"{"community_id":"1:no"}"#, "community_id:"),
            (r#"{"flow_id":"12"}"#, "flow_id:"),
            (
                r#"{"community_id":"1:0obY5qdXvEqAjcWj+38nMbjXg2c=","flow_id":"e94041171c4e9bba"}"#,
                "flow_id:",
            ),
            (r#"{"src_ip":"10.0.0.1","dry_run":"yes"}"#, "dry_run:"),
            (r#"{"src_ip":"10.0.0.1","vlan":4096}"#, "vlan:"),
            (r#"{"src_ip":"10.0.0.1","sport":1}"#, "sport:"),
            (r#"{"sport":null}"#, "sport:"),
            (r#"{"filter":"tcp"}"#, "src_ip:"),
            ("{}", "src_ip:"),
            ("[]", "JSON"),
            ("", "JSON"),
        ] {
            let said = field(body);
            assert!(said.contains(names), "{body}: {said}");
        }
    }
}
