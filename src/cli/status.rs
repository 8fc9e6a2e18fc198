//! `status`: how the sensor is doing, on one screen.

use std::collections::BTreeMap;

use clap::Args;
use http::Method;

use super::client::Door;
use super::names::Services;
use super::text::{self, Paint};
use super::{Outcome, Refused, Show};
use crate::control::Status as Known;
use crate::status::{ExportStatus, ExporterState, JournalStatus};

pub(super) const AFTER: &str = "Exit status: 0 the sensor is well; 1 it is losing packets now, an lcore has \
ended, an exporter is held, or the spool takes nothing (what was lost before now is shown, and is \
no reason); 2 no sensor is running.";

/// Ports shown of each kind.
const PORTS: usize = 5;

#[derive(Debug, Args)]
pub(super) struct Status {
    /// One JSON object
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    door: Door,
}

impl Status {
    pub(super) fn run(self, show: Show) -> Result<Outcome, Refused> {
        let answer = self.door.client()?.bytes(&Method::GET, "/status")?;
        let status: Known = serde_json::from_slice(&answer)
            .map_err(|e| Refused(format!("the sensor's status cannot be read: {e}")))?;
        let wrong = wrong(&status);
        if self.json {
            text::print(&format!("{}\n", text::plain_json(&String::from_utf8_lossy(&answer))))?;
        } else {
            let page = Page { paint: Paint::for_stdout(), services: Services::load(), show };
            text::print(&page.write(&status, &wrong))?;
        }
        Ok(if wrong.is_empty() { Outcome::Done } else { Outcome::Incomplete })
    }
}

/// What is wrong now.
fn wrong(s: &Known) -> Vec<String> {
    let mut out = Vec::new();
    if s.rates.lost_per_second > 0.0 {
        out.push(format!(
            "{} packets a second are lost",
            text::scaled(s.rates.lost_per_second.ceil())
        ));
    }
    for lcore in s.lcores.iter().filter(|l| !l.alive) {
        out.push(format!("lcore {} ({}) has ended", lcore.id, lcore.role.name()));
    }
    let Some(export) = &s.export else { return out };
    if let Some(problem) = &export.spool.problem {
        out.push(format!("the spool takes nothing: {}", text::plain(problem)));
    }
    for held in export.exporters.iter().filter(|e| e.state == ExporterState::Held) {
        let why = held.problem.as_deref().unwrap_or("its receiver refuses everything");
        out.push(format!("exporter {} is held: {}", held.name, text::plain(why)));
    }
    out
}

/// What is not zero, the largest first: `arp 12, llc 3`.
pub(super) fn reasons(of: &BTreeMap<String, u64>) -> String {
    let mut all: Vec<_> = of.iter().filter(|(_, n)| **n > 0).collect();
    all.sort_by(|a, b| b.1.cmp(a.1));
    all.iter().map(|(name, n)| format!("{name} {n}")).collect::<Vec<_>>().join(", ")
}

struct Page {
    paint: Paint,
    services: Services,
    show: Show,
}

impl Page {
    fn write(&self, s: &Known, wrong: &[String]) -> String {
        let mut out = String::new();
        let title = format!("malakocut {} {}", s.version, text::plain(&s.sensor));
        out += &format!(
            "{}  up {}  {}\n",
            self.paint.heading(&title),
            s.uptime,
            text::plain(&s.source)
        );
        for what in wrong {
            out += &format!("{}: {what}\n", self.paint.bad("wrong"));
        }
        let mut line = |name: &str, what: String| out += &format!("{name:<10} {what}\n");
        line("packets", self.packets(s));
        line("lost", self.lost(s));
        line("flows", self.flows(s));
        if let Some(disk) = s.disk {
            let (free, total) = (text::bytes(disk.free_bytes), text::bytes(disk.total_bytes));
            line("disk", format!("{free} of {total} free ({} %)", s.disk_free_pct));
        }
        if let Some(journal) = &s.journal {
            line("journal", self.journal(journal));
        }
        for l in &s.lcores {
            let state = match l.alive {
                true => self.paint.good("running"),
                false => self.paint.bad("ended"),
            };
            let (packets, flows) = (self.number(l.packets), self.number(l.active_flows));
            let name = format!("lcore {}", l.id);
            line(&name, format!("{} {state}; {packets} packets, {flows} flows", l.role.name()));
        }
        if let Some(export) = &s.export {
            self.export(export, &mut line);
        }
        if let Some(url) = &s.ingestion_url {
            line("sends to", text::plain(url).into_owned());
        }
        for (name, ports) in [("from port", &s.top_src_ports), ("to port", &s.top_dst_ports)] {
            if !ports.is_empty() {
                line(name, self.ports(ports));
            }
        }
        out
    }

    fn number(&self, n: u64) -> String {
        if self.show.pretty { text::scaled(n as f64) } else { n.to_string() }
    }

    fn packets(&self, s: &Known) -> String {
        let mut out = format!(
            "{} ({}/s), {} ({} b/s)",
            self.number(s.packets),
            text::scaled(s.rates.packets_per_second),
            text::bytes(s.bytes),
            text::scaled(s.rates.bits_per_second)
        );
        for (name, reasons) in
            [("not IP", reasons(&s.not_ip)), ("malformed", reasons(&s.malformed))]
        {
            if !reasons.is_empty() {
                out += &format!("; {name}: {reasons}");
            }
        }
        if s.truncated > 0 {
            out += &format!("; {} truncated", s.truncated);
        }
        out
    }

    fn lost(&self, s: &Known) -> String {
        if s.dropped_events == 0 {
            return self.paint.good("nothing");
        }
        let reasons = reasons(&s.drops);
        let now = text::scaled(s.rates.lost_per_second.ceil());
        self.paint.bad(&format!("{} ({now}/s): {reasons}", self.number(s.dropped_events)))
    }

    fn flows(&self, s: &Known) -> String {
        let mut out = format!(
            "{} live, {} begun ({}/s), {} events",
            self.number(s.active_flows),
            self.number(s.flows),
            text::scaled(s.rates.flows_per_second),
            self.number(s.total_events)
        );
        if s.evicted > 0 {
            let evicted = format!("{} ended early to make room", self.number(s.evicted));
            out += &format!("; {}", self.paint.notable(&evicted));
        }
        out
    }

    fn journal(&self, j: &JournalStatus) -> String {
        let kept = &j.kept;
        let mut out = format!(
            "{:.1} h kept in {}, {}; safe up to {} ms behind",
            kept.hours,
            text::count(kept.segments, "file"),
            text::bytes(kept.bytes),
            j.lag_ms
        );
        if j.unrepaired > 0 {
            let waiting = format!("{} wait for repair", text::count(j.unrepaired, "file"));
            out += &format!("; {}", self.paint.notable(&waiting));
        }
        out
    }

    fn export(&self, export: &ExportStatus, line: &mut impl FnMut(&str, String)) {
        let s = &export.spool;
        let mut spool = format!("{} events, {}", self.number(s.events), text::bytes(s.bytes));
        if s.max_bytes > 0 {
            spool += &format!(" of {}", text::bytes(s.max_bytes));
        }
        if s.refused > 0 {
            let lost = format!("{} events were lost", self.number(s.refused));
            spool += &format!("; {}", self.paint.bad(&lost));
        }
        line("spool", spool);
        for e in &export.exporters {
            let state = match e.state {
                ExporterState::Held => self.paint.bad(e.state.name()),
                ExporterState::Retrying => self.paint.notable(e.state.name()),
                _ => self.paint.good(e.state.name()),
            };
            let (delivered, waiting) = (self.number(e.delivered), self.number(e.waiting));
            let mut what = format!("{state}; {delivered} delivered, {waiting} waiting");
            if e.waiting > 0 {
                what += &format!(", the oldest {} old", text::seconds(e.oldest_seconds as f64));
            }
            if e.dead > 0 {
                what += &format!("; {}", self.paint.notable(&text::count(e.dead, "dead letter")));
            }
            if let Some(problem) = &e.problem {
                what += &format!("; {}", text::plain(problem));
            }
            line(&e.name, what);
        }
    }

    /// The largest: `443 https 1.2 GB, 53 domain 3.4 MB`.
    fn ports(&self, ports: &BTreeMap<u16, u64>) -> String {
        let mut all: Vec<(u64, u16)> = ports.iter().map(|(port, bytes)| (*bytes, *port)).collect();
        all.sort_unstable_by(|a, b| b.cmp(a));
        let shown = all.into_iter().take(PORTS).map(|(bytes, port)| {
            let name = self.services.any(port).map(|name| format!(" {name}")).unwrap_or_default();
            format!("{port}{name} {}", text::bytes(bytes))
        });
        shown.collect::<Vec<_>>().join(", ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::LcoreStatus;
    use crate::status::ExporterStatus;

    #[test]
    fn what_is_wrong_now_is_said_and_what_was_lost_before_is_not_wrong() {
        let mut status = Known { dropped_events: 7, ..Known::default() };
        status.drops.insert("kernel".into(), 7);
        assert_eq!(wrong(&status), Vec::<String>::new());
        status.rates.lost_per_second = 0.4;
        status.lcores = vec![LcoreStatus { id: 3, ..LcoreStatus::default() }];
        let held = ExporterStatus {
            name: "nats".into(),
            state: ExporterState::Held,
            problem: Some("no\u{1b}[2J".into()),
            ..ExporterStatus::default()
        };
        let mut export = ExportStatus { exporters: vec![held], ..ExportStatus::default() };
        export.spool.problem = Some("full".into());
        status.export = Some(export);
        let all = wrong(&status).join("|");
        assert_eq!(
            all,
            "1 packets a second are lost|lcore 3 () has ended|the spool takes nothing: full|\
             exporter nats is held: no[2J"
        );
    }
}
