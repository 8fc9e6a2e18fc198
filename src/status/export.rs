//! How the export is doing.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde::{Deserialize, Serialize};

/// What an exporter is doing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ExporterState {
    /// Everything is delivered.
    #[default]
    Idle,
    Sending,
    /// The last attempt failed, and is repeated.
    Retrying,
    /// The receiver refuses everything: somebody has to change something.
    Held,
}

impl ExporterState {
    pub fn name(self) -> &'static str {
        match self {
            Self::Idle => "idle",
            Self::Sending => "sending",
            Self::Retrying => "retrying",
            Self::Held => "held",
        }
    }
}

/// One exporter. Counts are since the sensor's start.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ExporterStatus {
    pub name: String,
    pub state: ExporterState,
    /// What went wrong last, while it is not mended.
    pub problem: Option<String>,
    /// Event numbers not delivered yet.
    pub waiting: u64,
    /// Age of the oldest of them, by the events' own time.
    pub oldest_seconds: u64,
    pub delivered: u64,
    pub batches: u64,
    /// Events that the exporter's filter or sampling left out.
    pub filtered: u64,
    /// Dead letters in the spool.
    pub dead: u64,
    /// Attempts by how they ended: `ok`, or the kind of failure.
    pub attempts: BTreeMap<String, u64>,
    /// Seconds until the next attempt, while one is waited for.
    pub next_attempt_seconds: Option<u64>,
    /// Seconds since something was delivered.
    pub last_success_seconds: Option<u64>,
}

/// The spool.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct SpoolStatus {
    pub events: u64,
    pub bytes: u64,
    pub max_bytes: u64,
    /// Why it takes nothing, while that is so.
    pub problem: Option<String>,
    /// Events lost since it took nothing.
    pub refused: u64,
    /// Exporters that are not configured and whose events are kept all the same.
    pub unclaimed: Vec<String>,
}

/// Everything.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ExportStatus {
    pub spool: SpoolStatus,
    pub exporters: Vec<ExporterStatus>,
}

impl ExportStatus {
    /// In Prometheus's text format.
    pub fn metrics(&self) -> String {
        let mut out = String::new();
        let mut one = |name: &str, kind: &str, help: &str, values: Vec<(String, u64)>| {
            let _ = writeln!(out, "# HELP malakocut_{name} {help}\n# TYPE malakocut_{name} {kind}");
            for (labels, value) in values {
                let _ = writeln!(out, "malakocut_{name}{labels} {value}");
            }
        };
        let s = &self.spool;
        let plain = |n: u64| vec![(String::new(), n)];
        one("spool_events", "gauge", "Events in the spool.", plain(s.events));
        one("spool_bytes", "gauge", "Bytes of events in the spool.", plain(s.bytes));
        one("spool_max_bytes", "gauge", "Bytes the spool may hold.", plain(s.max_bytes));
        one("spool_refused_total", "counter", "Events lost: spool full.", plain(s.refused));
        let each = |of: fn(&ExporterStatus) -> u64| -> Vec<(String, u64)> {
            let label = |e: &ExporterStatus| format!("{{exporter=\"{}\"}}", e.name);
            self.exporters.iter().map(|e| (label(e), of(e))).collect()
        };
        one("export_waiting", "gauge", "Events not delivered yet.", each(|e| e.waiting));
        one("export_oldest_seconds", "gauge", "Age of the oldest.", each(|e| e.oldest_seconds));
        one("export_delivered_total", "counter", "Events delivered.", each(|e| e.delivered));
        one("export_dead", "gauge", "Dead letters.", each(|e| e.dead));
        let held = |e: &ExporterStatus| u64::from(e.state == ExporterState::Held);
        one("export_held", "gauge", "1: the receiver refuses everything.", each(held));
        let attempts = self.exporters.iter().flat_map(|e| {
            let label = |how: &String| format!("{{exporter=\"{}\",result=\"{how}\"}}", e.name);
            e.attempts.iter().map(move |(how, n)| (label(how), *n))
        });
        one("export_attempts_total", "counter", "Attempts by result.", attempts.collect());
        out
    }
}
