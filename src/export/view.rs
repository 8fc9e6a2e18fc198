//! Which events an exporter gets, and which of their fields.
//!
//! Hashed addresses stay addresses (in fd00::/8) and hashed MACs stay MACs (locally administered), so
//! that receivers that check their form take them; other values become 32 hex digits. The hash is
//! HMAC-SHA-256 under the user's key: the same value gives the same result on every sensor that has
//! the key, and without the key nobody can try values. Where an address is hashed or left out, the
//! community id is too, since addresses can be guessed from it.

use std::borrow::Cow;
use std::net::{IpAddr, Ipv6Addr};

use ring::hmac;
use serde_json::{Map, Value};

use super::settings::Fields;
use crate::event::Expression;
use crate::spool::{Entry, EventId};

/// An event as an exporter sends it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outgoing {
    pub id: EventId,
    pub time_ns: u64,
    /// One JSON object that begins with its `event_id`.
    pub line: Vec<u8>,
}

/// What an exporter sees.
pub struct View {
    filter: Option<Expression>,
    sample: u64,
    leave_out: Vec<String>,
    hash: Vec<String>,
    key: Option<hmac::Key>,
}

impl View {
    /// # Errors
    /// A field is to be hashed and there is no key.
    pub fn new(name: &str, fields: &Fields, key: Option<&str>) -> Result<Self, String> {
        let key = match (fields.hash.is_empty(), key) {
            (true, _) => None,
            (false, Some(key)) if key.len() >= 16 => {
                Some(hmac::Key::new(hmac::HMAC_SHA256, key.as_bytes()))
            }
            (false, _) => {
                return Err(format!(
                    "[export.{name}.fields] hash: set MALAKOCUT_HASH_KEY (or the systemd credential \
                     hash-key) to a secret of at least 16 characters"
                ));
            }
        };
        let mut hash = fields.hash.clone();
        let mut leave_out = fields.leave_out.clone();
        let is_address = |f: &String| f == "src_ip" || f == "dst_ip";
        let community = "community_id".to_owned();
        if leave_out.iter().any(is_address) {
            leave_out.push(community);
        } else if hash.iter().any(is_address) && !leave_out.contains(&community) {
            hash.push(community);
        }
        Ok(Self { filter: fields.filter.clone(), sample: fields.sample, leave_out, hash, key })
    }

    pub(super) fn reads_fields(&self) -> bool {
        self.filter.is_some()
            || self.sample > 1
            || !self.leave_out.is_empty()
            || !self.hash.is_empty()
    }

    /// The line as it is to be written, or `None` if it is not wanted.
    pub fn line<'a>(&self, line: &'a [u8]) -> Option<Cow<'a, [u8]>> {
        if !self.reads_fields() {
            return Some(Cow::Borrowed(line));
        }
        let Ok(Value::Object(mut event)) = serde_json::from_slice(line) else {
            // Not ours to judge; the receiver will.
            return Some(Cow::Borrowed(line));
        };
        if self.filter.as_ref().is_some_and(|f| !f.holds(&event)) || !self.is_sampled(&event) {
            return None;
        }
        if self.leave_out.is_empty() && self.hash.is_empty() {
            return Some(Cow::Borrowed(line));
        }
        event.retain(|field, _| !self.leave_out.contains(field));
        for field in &self.hash {
            if let (Some(value), Some(key)) = (event.get_mut(field), &self.key) {
                hide(value, key);
            }
        }
        serde_json::to_vec(&event).ok().map(Cow::Owned)
    }

    /// The event as it is sent, or `None` if it is not wanted.
    pub fn outgoing(&self, entry: &Entry) -> Option<Outgoing> {
        let line = self.line(&entry.line)?;
        let id = entry.id;
        let mut out = format!("{{\"event_id\":\"{id}\"").into_bytes();
        match line.strip_prefix(b"{") {
            Some(rest) if rest.trim_ascii_start() == b"}" => out.push(b'}'),
            Some(rest) => {
                out.push(b',');
                out.extend_from_slice(rest);
            }
            None => out = line.into_owned(),
        }
        Some(Outgoing { id, time_ns: entry.time_ns, line: out })
    }

    fn is_sampled(&self, event: &Map<String, Value>) -> bool {
        if self.sample <= 1 {
            return true;
        }
        let id = event.get("flow_id").and_then(Value::as_str).unwrap_or_default();
        u64::from(crc32fast::hash(id.as_bytes())).is_multiple_of(self.sample)
    }
}

/// Replaces a value, and each of several, by its hash.
fn hide(value: &mut Value, key: &hmac::Key) {
    match value {
        Value::Array(several) => several.iter_mut().for_each(|v| hide(v, key)),
        Value::String(text) => *text = hidden(text, key),
        Value::Null => {}
        other => *other = Value::String(hidden(&other.to_string(), key)),
    }
}

fn hidden(text: &str, key: &hmac::Key) -> String {
    let tag = hmac::sign(key, text.as_bytes());
    let mut bytes = [0u8; 16];
    bytes.iter_mut().zip(tag.as_ref()).for_each(|(to, from)| *to = *from);
    if text.parse::<IpAddr>().is_ok() {
        bytes[0] = 0xfd;
        return Ipv6Addr::from(bytes).to_string();
    }
    let is_mac = text.len() == 17
        && text.split(':').count() == 6
        && text.split(':').all(|p| p.len() == 2 && u8::from_str_radix(p, 16).is_ok());
    if is_mac {
        bytes[0] = bytes[0] & 0xfc | 0x02;
        let parts: Vec<String> = bytes.iter().take(6).map(|b| format!("{b:02x}")).collect();
        return parts.join(":");
    }
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINE: &str = r#"{"flow_id":"00ff","src_ip":"10.0.0.9","src_mac":"00:00:5e:00:53:42","dst_ip":"192.0.2.1","sni":"a.example","bytes":12345678901234567,"community_id":"1:x"}"#;

    fn view(toml: &str, key: Option<&str>) -> Result<View, String> {
        View::new("secops", &toml::from_str(toml).unwrap(), key)
    }

    fn seen(view: &View) -> Option<Value> {
        view.line(LINE.as_bytes()).map(|l| serde_json::from_slice(&l).unwrap())
    }

    #[test]
    fn without_wishes_the_line_is_the_same_behind_its_id() {
        let entry =
            Entry { id: EventId { store: 1, seq: 7 }, time_ns: 3, line: LINE.as_bytes().to_vec() };
        let out = view("", None).unwrap().outgoing(&entry).unwrap();
        let text = String::from_utf8(out.line).unwrap();
        let rest = text.strip_prefix("{\"event_id\":\"0000000000000001-7\",").unwrap();
        assert_eq!(rest, &LINE[1..]);
        let empty = Entry { line: b"{}".to_vec(), ..entry };
        let out = view("", None).unwrap().outgoing(&empty).unwrap();
        assert_eq!(out.line, b"{\"event_id\":\"0000000000000001-7\"}");
    }

    #[test]
    fn hashes_keep_the_form_and_hide_the_value() {
        let wish = "hash = [\"src_ip\", \"src_mac\", \"sni\"]\nleave_out = [\"dst_ip\"]";
        assert!(view(wish, None).err().unwrap().contains("MALAKOCUT_HASH_KEY"));
        let one = seen(&view(wish, Some("0123456789abcdef")).unwrap()).unwrap();
        let again = seen(&view(wish, Some("0123456789abcdef")).unwrap()).unwrap();
        let other = seen(&view(wish, Some("another key, also long")).unwrap()).unwrap();
        assert_eq!(one, again);
        assert_ne!(one["src_ip"], other["src_ip"]);
        let ip: Ipv6Addr = one["src_ip"].as_str().unwrap().parse().unwrap();
        assert!(ip.is_unique_local());
        assert_eq!(one["src_mac"].as_str().unwrap().len(), 17);
        assert_eq!(one["sni"].as_str().unwrap().len(), 32);
        assert!(one.get("dst_ip").is_none() && one.get("community_id").is_none());
        assert_eq!(one["bytes"], 12_345_678_901_234_567_u64);
        let hashed = view("hash = [\"dst_ip\"]", Some("0123456789abcdef")).unwrap();
        assert_ne!(seen(&hashed).unwrap()["community_id"], "1:x");
    }

    #[test]
    fn filters_and_samples_choose_whole_flows() {
        assert!(seen(&view("filter = 'bytes < 5'", None).unwrap()).is_none());
        assert!(seen(&view("filter = 'sni'", None).unwrap()).is_some());
        let sampled = view("sample = 10", None).unwrap();
        let chosen = (0..10_000)
            .filter(|n| {
                let line = format!("{{\"flow_id\":\"{n:016x}\"}}");
                sampled.line(line.as_bytes()).is_some()
            })
            .count();
        assert!((800..1200).contains(&chosen), "{chosen}");
    }
}
