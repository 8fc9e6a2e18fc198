//! One flow: everything that its event says, its alerts, and how to get its packets.

use std::collections::VecDeque;
use std::net::IpAddr;

use ratatui::text::{Line, Span};
use serde_json::Value;

use super::app::App;
use super::fetch::{Row, id_of};
use super::look::Look;
use crate::cli::flows::{end, string};
use crate::cli::{alerts, names, text};
use crate::journal::query::text::show;

/// Rounds whose bytes are kept.
const ROUNDS: usize = 256;
/// Alerts of its hosts that are shown.
const HOST_ALERTS: usize = 5;
/// Fields that have a place of their own.
const PLACED: [&str; 33] = [
    "timestamp",
    "flow_id",
    "shred_index",
    "src_ip",
    "src_port",
    "dst_ip",
    "dst_port",
    "src_mac",
    "dst_mac",
    "src_name",
    "dst_name",
    "protocol",
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
    "conn_state",
    "history",
    "sensor",
    "icmp_type",
    "icmp_code",
    "silenced",
];

/// A flow whose details are open.
#[derive(Debug)]
pub(super) struct Details {
    pub(super) id: u64,
    row: Row,
    pub(super) ended: bool,
    /// Bytes a second, a round each.
    pub(super) rates: VecDeque<u64>,
    /// When it was looked at last.
    at_ns: u64,
    pub(super) scroll: u16,
}

impl Details {
    pub(super) fn of(row: &Row, at_ns: u64) -> Option<Self> {
        let id = id_of(row)?;
        Some(Self { id, row: row.clone(), ended: false, rates: VecDeque::new(), at_ns, scroll: 0 })
    }

    /// Takes the flow in as it is now; `None`: it has ended.
    pub(super) fn take(&mut self, row: Option<Row>, at_ns: u64) {
        self.ended = row.is_none();
        let Some(row) = row else { return };
        if at_ns > self.at_ns {
            let bytes = |row: &Row| row.get("bytes").and_then(Value::as_u64).unwrap_or(0);
            let new = bytes(&row).saturating_sub(bytes(&self.row)) as f64;
            self.rates.push_back((new * 1e9 / (at_ns - self.at_ns) as f64) as u64);
            if self.rates.len() > ROUNDS {
                self.rates.pop_front();
            }
            self.at_ns = at_ns;
        }
        self.row = row;
    }

    /// What takes its packets out of the journal.
    pub(super) fn command(&self) -> String {
        format!("malakocut-cli extract --flow-id {0:016x} -w flow-{0:016x}.pcap", self.id)
    }

    /// The page, but for what stands below it.
    pub(super) fn lines(&self, app: &mut App) -> Vec<Line<'static>> {
        let mut out = self.ends(app);
        out.extend(self.alerts(app));
        out.extend(self.course(app.look));
        out.extend(self.rest(app.look));
        out
    }

    fn get(&self, look: Look, field: &str) -> String {
        look.text(&string(&self.row, field)).into_owned()
    }

    fn number(&self, field: &str) -> Option<u64> {
        self.row.get(field).and_then(Value::as_u64)
    }

    /// Which flow it is.
    fn ends(&self, app: &mut App) -> Vec<Line<'static>> {
        let look = app.look;
        let protocol = self.get(look, "protocol");
        let live = if self.ended { "ended" } else { "live" };
        let silenced = self.row.get("silenced") == Some(&Value::Bool(true));
        let silenced =
            if silenced { ", silenced by the blocklist: counted, not reported" } else { "" };
        let message = self.number("icmp_type").map(|kind| {
            let code = self.number("icmp_code").unwrap_or(0);
            let name = names::icmp(protocol != "ICMP", kind, code).unwrap_or("unknown");
            format!("type {kind}, code {code}: {name}")
        });
        let lines = [
            ("flow", format!("{:016x}, {protocol}, {live}{silenced}", self.id)),
            ("from", self.end(app, "src")),
            ("to", self.end(app, "dst")),
            ("message", message.unwrap_or_default()),
        ];
        lines.into_iter().filter_map(|(name, what)| labelled(look, name, what)).collect()
    }

    /// How it went.
    fn course(&self, look: Look) -> Vec<Line<'static>> {
        let sum = |side: &str| {
            let count = |what: &str| self.number(&format!("{side}_{what}")).unwrap_or(0);
            format!("{}, {}", text::bytes(count("bytes")), text::count(count("packets"), "packet"))
        };
        let seconds =
            |field: &str| text::seconds(self.row.get(field).and_then(Value::as_f64).unwrap_or(0.0));
        let (lasted, idle) = (seconds("duration_sec"), seconds("idle_sec"));
        // To the second is enough here.
        let start: String = self.get(look, "start").chars().take(19).collect();
        let (state, history) = (self.get(look, "conn_state"), self.get(look, "history"));
        let lines = [
            ("sent", sum("orig")),
            ("answered", sum("resp")),
            ("time", format!("began {start}Z, lasted {lasted} so far, idle {idle}")),
            ("state", format!("{state}{}", state_means(&state))),
            ("history", format!("{history}{}", history_means(&history))),
        ];
        lines.into_iter().filter_map(|(name, what)| labelled(look, name, what)).collect()
    }

    /// All other fields that there are.
    fn rest(&self, look: Look) -> Vec<Line<'static>> {
        let rest = self.row.iter().filter(|(field, _)| !PLACED.contains(&field.as_str()));
        let lines = rest.filter_map(|(field, value)| {
            let shown = |v: &Value| v.as_str().map_or_else(|| v.to_string(), str::to_owned);
            let value = match value {
                Value::Array(several) => several.iter().map(shown).collect::<Vec<_>>().join(", "),
                one => shown(one),
            };
            labelled(look, &look.text(field), look.text(&value).into_owned())
        });
        lines.collect()
    }

    /// Those about the flow, and the latest about its hosts.
    fn alerts(&self, app: &App) -> Vec<Line<'static>> {
        let look = app.look;
        let (of_flow, of_hosts) = app.alerts_of(&self.row);
        let of_hosts = of_hosts.into_iter().take(HOST_ALERTS).map(|a| ("its host", a));
        let all = of_flow.into_iter().map(|a| ("alert", a)).chain(of_hosts);
        let lines = all.filter_map(|(name, alert)| {
            let said = look.text(&alerts::what(&alert.event)).into_owned();
            let line = labelled(look, name, format!("{} {said}", show(alert.timestamp_ns)))?;
            Some(line.style(look.bad()))
        });
        lines.collect()
    }

    /// Address and port, then all that the end is called.
    fn end(&self, app: &mut App, side: &str) -> String {
        let get = |field: &str| string(&self.row, &format!("{side}_{field}"));
        let ip: Option<IpAddr> = get("ip").parse().ok();
        let port = self.row.get(&format!("{side}_port")).and_then(Value::as_u64);
        let mut out = end(&get("ip"), port);
        let mut called: Vec<String> = Vec::new();
        let service = port.and_then(|p| u16::try_from(p).ok());
        let service = service.and_then(|p| app.services.name(p, &string(&self.row, "protocol")));
        called.extend(service.map(str::to_owned));
        called.extend(app.name_of(ip, &get("name")));
        called.extend(ip.and_then(|ip| app.networks.name(ip)).map(|n| format!("network {n}")));
        let mac = get("mac");
        if !mac.is_empty() {
            let vendor = app.vendors.name(&mac).map(|v| format!(" ({v})")).unwrap_or_default();
            called.push(format!("{mac}{vendor}"));
        }
        for name in called {
            out += ", ";
            out += &app.look.text(&name);
        }
        out
    }
}

/// A line of a name and what it is; none for what is not there.
fn labelled(look: Look, name: &str, what: String) -> Option<Line<'static>> {
    let name = Span::styled(format!("{name:<12} "), look.faint());
    (!what.is_empty()).then(|| Line::from(vec![name, Span::raw(what)]))
}

/// A connection's state in words; Zeek's terms.
fn state_means(state: &str) -> &'static str {
    match state {
        "S0" => ": a SYN without an answer",
        "S1" => ": established, not closed",
        "SF" => ": established and closed in order, or answered",
        "REJ" => ": refused",
        "S2" => ": the originator has closed, the responder has not",
        "S3" => ": the responder has closed, the originator has not",
        "RSTO" => ": reset by the originator",
        "RSTR" => ": reset by the responder",
        "RSTOS0" => ": a SYN, then a reset by the originator",
        "RSTRH" => ": a SYN-ACK, then a reset by the responder",
        "SH" => ": a SYN and a FIN without an answer",
        "SHR" => ": a SYN-ACK and a FIN, no SYN seen",
        "OTH" => ": no beginning was seen",
        _ => "",
    }
}

/// What the letters of a history say.
fn history_means(history: &str) -> String {
    let mut out: Vec<String> = Vec::new();
    for letter in history.chars() {
        let what = match letter.to_ascii_lowercase() {
            's' => "SYN",
            'h' => "SYN-ACK",
            'a' => "ACK",
            'd' => "data",
            'f' => "FIN",
            'r' => "RST",
            't' => "sent again",
            'w' => "window zero",
            'i' => "flags that contradict",
            'q' => "many flags",
            '^' => "turned round",
            _ => continue,
        };
        let said = format!("{letter} {what}");
        if !out.contains(&said) {
            out.push(said);
        }
    }
    match out.is_empty() {
        true => String::new(),
        false => format!(" (capitals: originator; {})", out.join(", ")),
    }
}
