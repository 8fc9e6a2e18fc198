//! The status in Prometheus's text format (exposition format 0.0.4).

use std::fmt::Write as _;

use super::Status;
use crate::status::{Counter, Counters, Group};

/// Appends one metric: its help, its kind, and a value for each set of labels.
pub fn metric(
    out: &mut String,
    name: &str,
    kind: &str,
    help: &str,
    values: impl IntoIterator<Item = (String, f64)>,
) {
    let _ = writeln!(out, "# HELP malakocut_{name} {help}\n# TYPE malakocut_{name} {kind}");
    for (labels, value) in values {
        let _ = writeln!(out, "malakocut_{name}{labels} {value}");
    }
}

/// The whole status.
pub fn text(status: &Status) -> String {
    let mut out = String::new();
    let plain = |value: f64| [(String::new(), value)];
    let build = format!("{{version=\"{}\"}}", label(&status.version));
    metric(&mut out, "build_info", "gauge", "The program that runs.", [(build, 1.0)]);
    metric(
        &mut out,
        "uptime_seconds",
        "gauge",
        "Since the sensor's start.",
        plain(status.uptime_seconds as f64),
    );
    counters(&mut out, status);
    let rates = &status.rates;
    for (name, help, value) in [
        ("packets_per_second", "Over the last second.", rates.packets_per_second),
        ("bits_per_second", "Over the last second.", rates.bits_per_second),
    ] {
        metric(&mut out, name, "gauge", help, plain(value));
    }
    let alive = status.lcores.iter().map(|l| {
        let labels = format!("{{lcore=\"{}\",role=\"{}\"}}", l.id, l.role.name());
        (labels, f64::from(u8::from(l.alive)))
    });
    metric(&mut out, "lcore_up", "gauge", "1: the lcore runs.", alive);
    let findings = status.findings.iter().map(|f| {
        (format!("{{name=\"{}\",severity=\"{}\"}}", label(&f.name), f.severity.name()), 1.0)
    });
    metric(&mut out, "finding", "gauge", "1: the doctor finds this wrong.", findings);
    if let Some(disk) = &status.disk {
        for (name, help, value) in [
            ("disk_size_bytes", "Of the data directory's file system.", disk.total_bytes),
            ("disk_free_bytes", "Free there.", disk.free_bytes),
        ] {
            metric(&mut out, name, "gauge", help, plain(value as f64));
        }
    }
    journal(&mut out, status);
    if let Some(export) = &status.export {
        out += &export.metrics();
    }
    out
}

/// Counters with their reasons as labels, those of lcores by lcore.
fn counters(out: &mut String, status: &Status) {
    let lcores: Counters = status.lcores.iter().fold(Counters::default(), |mut sum, l| {
        sum.merge(&l.counters);
        sum
    });
    for (group, name, help) in [
        (Group::NotIp, "not_ip_packets_total", "Packets that are not IP, by what they are."),
        (Group::Malformed, "malformed_packets_total", "Packets that cannot be read, by reason."),
        (Group::Drop, "drops_total", "Lost, by reason."),
        (Group::Journal, "journal_total", "What the journal did."),
        (Group::Inspect, "inspect_total", "What reading payloads did."),
        (Group::Blocklist, "blocklist_total", "What the blocklist silenced."),
        (Group::Look, "look_total", "What the doctor counts in a sample."),
    ] {
        let all = Counter::ALL.iter().filter(|c| c.group() == group).flat_map(|&c| {
            by_lcore(
                status,
                &lcores,
                c,
                Some(if group == Group::NotIp { "kind" } else { "reason" }),
            )
        });
        metric(out, name, "counter", help, all);
    }
    for &c in Counter::ALL.iter().filter(|c| c.group() == Group::Plain) {
        let (name, kind) = match c {
            Counter::ActiveFlows => (c.name().to_owned(), "gauge"),
            _ => (format!("{}_total", c.name()), "counter"),
        };
        metric(out, &name, kind, c.help(), by_lcore(status, &lcores, c, None));
    }
}

/// A counter's value on each lcore, and without an lcore what no lcore counted.
fn by_lcore(
    status: &Status,
    lcores: &Counters,
    counter: Counter,
    reason: Option<&str>,
) -> Vec<(String, f64)> {
    let name = counter.name();
    let labels = |lcore: Option<u32>| {
        let reason = reason.map(|r| format!("{r}=\"{name}\""));
        let lcore = lcore.map(|l| format!("lcore=\"{l}\""));
        let all: Vec<String> = reason.into_iter().chain(lcore).collect();
        if all.is_empty() { String::new() } else { format!("{{{}}}", all.join(",")) }
    };
    let own = status.lcores.iter().map(|l| (l.id, l.counters.get(counter)));
    let mut out: Vec<(String, f64)> =
        own.filter(|(_, n)| *n > 0).map(|(id, n)| (labels(Some(id)), n as f64)).collect();
    let rest = status.counters.get(counter).saturating_sub(lcores.get(counter));
    if rest > 0 || out.is_empty() {
        out.push((labels(None), rest as f64));
    }
    out
}

fn journal(out: &mut String, status: &Status) {
    let Some(journal) = &status.journal else { return };
    let mut gauge = |name: &str, help: &str, value: f64| {
        metric(out, name, "gauge", help, [(String::new(), value)]);
    };
    gauge(
        "journal_lag_seconds",
        "Packet time between the newest packet and the newest that is safe.",
        journal.lag_ms as f64 / 1e3,
    );
    gauge("journal_kept_segments", "Files kept.", journal.kept.segments as f64);
    gauge("journal_kept_bytes", "Bytes kept.", journal.kept.bytes as f64);
    gauge("journal_kept_hours", "Hours of packet time kept.", journal.kept.hours);
    gauge("journal_deleted_segments", "Files deleted by retention.", journal.kept.deleted as f64);
    gauge("journal_unrepaired_segments", "Files that wait for repair.", journal.unrepaired as f64);
    let marks = |of: fn(&crate::status::Watermark) -> f64| {
        let all = journal.watermarks.iter();
        all.map(move |w| (format!("{{link=\"{}\"}}", w.link), of(w))).collect::<Vec<_>>()
    };
    for (name, help, values) in [
        ("journal_watermark_segment", "Everything before is safe.", marks(|w| w.segment as f64)),
        ("journal_watermark_offset_bytes", "Within that segment.", marks(|w| w.offset as f64)),
        (
            "journal_watermark_time_seconds",
            "The newest packet that is safe.",
            marks(|w| w.time_ns as f64 / 1e9),
        ),
    ] {
        metric(out, name, "gauge", help, values);
    }
}

/// A label's value as the format wants it.
pub fn label(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}
