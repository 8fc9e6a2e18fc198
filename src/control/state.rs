//! The sensor's status: one copy a second, for whoever reads it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::doctor::Finding;
use crate::status::{Counter, Counters, ExportStatus, Group, JournalStatus};

/// What an lcore does; one may do all three.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Role {
    pub deals: bool,
    pub works: bool,
    pub journals: bool,
}

impl Role {
    /// Such as `worker`, or `worker+journal`.
    pub fn name(self) -> String {
        let parts = [(self.deals, "dealer"), (self.works, "worker"), (self.journals, "journal")];
        let parts: Vec<&str> = parts.into_iter().filter(|(is, _)| *is).map(|(_, n)| n).collect();
        parts.join("+")
    }
}

/// One lcore.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct LcoreStatus {
    pub id: u32,
    pub role: Role,
    /// It runs; otherwise it ended, by the end of its input or a fault.
    pub alive: bool,
    #[serde(skip)]
    pub counters: Counters,
    pub packets: u64,
    pub active_flows: u64,
}

/// Over the last second.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Rates {
    pub packets_per_second: f64,
    pub bits_per_second: f64,
    pub lost_per_second: f64,
    pub flows_per_second: f64,
}

/// The file system of the data directory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct DiskStatus {
    pub total_bytes: u64,
    pub free_bytes: u64,
}

/// Everything; the first fields have the names and meanings of the Go program's `/status`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// Such as `3h2m1s`.
    pub uptime: String,
    pub disk_free_pct: f64,
    /// Files of the journal.
    pub pcap_files: u64,
    /// Flow events, deltas included.
    pub total_events: u64,
    pub active_flows: u64,
    /// Packets and events lost, all reasons together.
    pub dropped_events: u64,
    /// Where the SecOps exporter sends to, if it is on.
    pub ingestion_url: Option<String>,
    /// Bytes of the flows reported so far by the port of their originator, and of their responder;
    /// the largest.
    pub top_src_ports: BTreeMap<u16, u64>,
    pub top_dst_ports: BTreeMap<u16, u64>,

    pub version: String,
    pub sensor: String,
    /// Where packets come from.
    pub source: String,
    pub uptime_seconds: u64,
    /// Nanoseconds since 1970, when this was put together and when the sensor started.
    pub now_ns: u64,
    pub started_ns: u64,
    /// The sum of the lcores' counters, the kernel's and the devices'.
    #[serde(skip)]
    pub counters: Counters,
    pub packets: u64,
    pub bytes: u64,
    pub decoded: u64,
    pub flows: u64,
    pub evicted: u64,
    pub truncated: u64,
    /// Left out by the capture filter.
    pub filtered: u64,
    pub not_ip: BTreeMap<String, u64>,
    pub malformed: BTreeMap<String, u64>,
    /// Losses by reason.
    pub drops: BTreeMap<String, u64>,
    /// Counters of the journal and of reading payloads.
    pub journal_counts: BTreeMap<String, u64>,
    pub inspect: BTreeMap<String, u64>,
    pub blocklist: BTreeMap<String, u64>,
    /// Of the doctor's sample.
    pub look: BTreeMap<String, u64>,
    pub rates: Rates,
    pub lcores: Vec<LcoreStatus>,
    pub disk: Option<DiskStatus>,
    pub journal: Option<JournalStatus>,
    pub export: Option<ExportStatus>,
    /// What is wrong with the set-up, as `malakocut-cli doctor` says it.
    pub findings: Vec<Finding>,
}

impl Status {
    /// Takes the sums in, and what they say by name.
    pub fn count(&mut self, counters: &Counters) {
        let group = |group| {
            let named = counters.group(group).map(|(name, n)| (name.to_owned(), n));
            named.collect::<BTreeMap<String, u64>>()
        };
        self.counters = *counters;
        self.packets = counters.get(Counter::Packets);
        self.bytes = counters.get(Counter::Bytes);
        self.decoded = counters.get(Counter::Decoded);
        self.flows = counters.get(Counter::Flows);
        self.evicted = counters.get(Counter::Evicted);
        self.truncated = counters.get(Counter::Truncated);
        self.filtered = counters.get(Counter::Filtered);
        self.total_events = counters.get(Counter::Events);
        self.active_flows = counters.get(Counter::ActiveFlows);
        self.dropped_events = counters.sum(Group::Drop);
        self.not_ip = group(Group::NotIp);
        self.malformed = group(Group::Malformed);
        self.drops = group(Group::Drop);
        self.journal_counts = group(Group::Journal);
        self.inspect = group(Group::Inspect);
        self.blocklist = group(Group::Blocklist);
        self.look = group(Group::Look);
    }
}
