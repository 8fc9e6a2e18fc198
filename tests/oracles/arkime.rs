//! Arkime's sessions: packets and frame bytes by direction, VLAN ids, MAC addresses, community id.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde_json::Value;

use crate::capture;
use crate::known::Row;
use crate::sensor::{self, End, Flow};

/// Protocols of a session (Arkime's names) that say that it was inside another.
const TUNNELS: [&str; 8] = ["gre", "gtp", "vxlan", "geneve", "teredo", "erspan", "ipip", "ppp"];

/// A protocol and two ends, the smaller first.
type Key = (u8, End, End);

/// One way of a session or of a flow.
#[derive(Clone, Debug, Default)]
struct Way {
    packets: u64,
    bytes: u64,
    macs: BTreeSet<String>,
}

/// A session, or the flows that make one up: `a` is the way from the key's smaller end.
#[derive(Clone, Debug, Default)]
struct Session {
    a: Way,
    b: Way,
    /// Whether the key's smaller end opened the first one.
    opened_by_a: Option<bool>,
    vlans: BTreeSet<u64>,
    community_ids: BTreeSet<String>,
    plain: bool,
}

/// Each session that has addresses, and how we differ from it.
pub(crate) fn rows(directory: &Path) -> Vec<Row> {
    let captures: Vec<_> = sensor::captures(directory)
        .into_iter()
        .filter(|capture| capture.with_extension("test").exists())
        .collect();
    let rows = sensor::in_parallel(&captures, |capture| rows_of(capture));
    rows.into_iter().flatten().collect()
}

fn rows_of(capture: &Path) -> Vec<Row> {
    let radio = capture::totals(capture).links.into_iter().any(sensor::is_radio);
    let sessions = sensor::json(&capture.with_extension("test"));
    let sessions = sessions["sessions3"].as_array().expect("a list of sessions");
    let mut expected: BTreeMap<Key, Session> = BTreeMap::new();
    for session in sessions {
        add_session(&mut expected, session.get("body").unwrap_or(session));
    }
    let outcome = sensor::run(capture);
    let mut ours: BTreeMap<Key, Session> = BTreeMap::new();
    for flow in outcome.iter().flat_map(|run| sensor::flows(&run.events)) {
        add_flow(&mut ours, &flow);
    }
    let file = capture.file_name().expect("a name").to_string_lossy();
    expected
        .iter()
        .map(|(key, session)| Row {
            file: file.to_string(),
            key: name(key),
            plain: session.plain && !radio,
            difference: match &outcome {
                Ok(_) => difference(&file, key, session, ours.get(key)),
                Err(error) => Some(error.clone()),
            },
        })
        .collect()
}

fn name((protocol, a, b): &Key) -> String {
    format!("{} {a} {b}", sensor::protocol_name(*protocol))
}

/// The key of two ends, and whether the first is its smaller one.
///
/// ICMP and what has no ports is told apart by addresses, as Arkime does.
fn key(protocol: u8, mut src: End, mut dst: End) -> (Key, bool) {
    if !matches!(protocol, 6 | 17 | 132) {
        (src.port, dst.port) = (0, 0);
    }
    if src <= dst { ((protocol, src, dst), true) } else { ((protocol, dst, src), false) }
}

/// Sessions of one key are summed: Arkime splits long ones.
fn add_session(expected: &mut BTreeMap<Key, Session>, session: &Value) {
    let end = |side: &str| {
        let side = &session[side];
        Some(End {
            ip: side["ip"].as_str()?.parse().expect("an address"),
            port: side["port"].as_u64().map_or(0, |port| u16::try_from(port).expect("a port")),
        })
    };
    // What is not IP (ARP, LLDP) makes no flow.
    let (Some(src), Some(dst)) = (end("source"), end("destination")) else { return };
    let protocol = u8::try_from(sensor::number(session, "ipProtocol")).expect("a protocol");
    let (key, from_a) = key(protocol, src, dst);
    let entry = expected.entry(key).or_default();
    let (sent, answered) =
        if from_a { (&mut entry.a, &mut entry.b) } else { (&mut entry.b, &mut entry.a) };
    for (way, side) in [(sent, &session["source"]), (answered, &session["destination"])] {
        way.packets += sensor::number(side, "packets");
        way.bytes += sensor::number(side, "bytes");
        way.macs.extend(strings(&side["mac"]));
    }
    entry.opened_by_a.get_or_insert(from_a);
    let ids = session["network"]["vlan"]["id"].as_array();
    entry.vlans.extend(ids.into_iter().flatten().filter_map(Value::as_u64));
    entry.community_ids.extend(session["network"]["community_id"].as_str().map(str::to_owned));
    let tunnelled = strings(&session["protocol"]).any(|name| TUNNELS.contains(&name.as_str()));
    entry.plain = sensor::is_common(protocol) && !tunnelled && session.get("srcOuterIp").is_none();
}

fn strings(list: &Value) -> impl Iterator<Item = String> {
    list.as_array().into_iter().flatten().filter_map(|item| item.as_str().map(str::to_owned))
}

fn add_flow(ours: &mut BTreeMap<Key, Session>, flow: &Flow) {
    let (key, from_a) = key(flow.proto, flow.src, flow.dst);
    let entry = ours.entry(key).or_default();
    let (sent, answered) =
        if from_a { (&mut entry.a, &mut entry.b) } else { (&mut entry.b, &mut entry.a) };
    for (way, counts, mac) in
        [(sent, flow.orig, &flow.src_mac), (answered, flow.resp, &flow.dst_mac)]
    {
        way.packets += counts.packets;
        way.bytes += counts.bytes;
        way.macs.extend(mac.clone());
    }
    entry.opened_by_a.get_or_insert(from_a);
    entry.vlans.extend(&flow.vlans);
    entry.community_ids.insert(flow.community_id.clone());
}

fn difference(file: &str, key: &Key, want: &Session, ours: Option<&Session>) -> Option<String> {
    let Some(ours) = ours else { return Some("no such flow".into()) };
    let mut found = Vec::new();
    for (end, want, ours) in [(key.1, &want.a, &ours.a), (key.2, &want.b, &ours.b)] {
        if want.packets != ours.packets {
            found.push(format!("packets of {end} {}, ours {}", want.packets, ours.packets));
        }
        if want.bytes != ours.bytes {
            found.push(format!("bytes of {end} {}, ours {}", want.bytes, ours.bytes));
        }
        // A flow keeps one address an end, Arkime all that it saw.
        if !want.macs.is_empty() && (ours.macs.is_empty() || !ours.macs.is_subset(&want.macs)) {
            found.push(format!("mac of {end} {:?}, ours {:?}", want.macs, ours.macs));
        }
    }
    if want.vlans != ours.vlans {
        found.push(format!("vlan {:?}, ours {:?}", want.vlans, ours.vlans));
    }
    if !want.community_ids.is_subset(&ours.community_ids) {
        let (want, ours) = (&want.community_ids, &ours.community_ids);
        found.push(format!("community_id {want:?}, ours {ours:?}"));
    }
    if want.opened_by_a != ours.opened_by_a {
        // No difference: which end opened a session whose beginning is missing is a guess.
        println!("# arkime: {file}: {}: another originator", name(key));
    }
    if found.is_empty() { None } else { Some(found.join("; ")) }
}
