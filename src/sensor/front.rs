//! The sensor's side towards its servers: puts its status out once a second, keeps alerts, and answers
//! what is asked.

use std::path::{Path, PathBuf};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use crate::config::{Config, SourceConfig};
use crate::control::{DiskStatus, House, LcoreStatus, Rates, Reception, Role, Status, open};
use crate::doctor::Finding;
use crate::event::FlowEvent;
use crate::export;
use crate::status::{Counter, Counters, ExportStatus, Group, JournalStatus};

use super::plan::Plan;

/// Ports shown in the status.
const PORTS: usize = 20;

/// Bytes by port, of originators and of responders.
struct Ports([Box<[u64]>; 2]);

impl Default for Ports {
    fn default() -> Self {
        Self([0, 1].map(|_| vec![0; 1 << 16].into_boxed_slice()))
    }
}

impl Ports {
    fn add(&mut self, event: &FlowEvent) {
        if !event.key.has_ports() {
            return;
        }
        let ends = [event.key.port_a(), event.key.port_b()];
        let bytes: u64 = event.delta.iter().map(|c| c.bytes).sum();
        for (side, port) in
            if event.orig_is_a { ends } else { [ends[1], ends[0]] }.into_iter().enumerate()
        {
            if let Some(sum) = self.0.get_mut(side).and_then(|p| p.get_mut(usize::from(port))) {
                *sum += bytes;
            }
        }
    }

    fn largest(&self, side: usize) -> impl Iterator<Item = (u16, u64)> {
        let all = self.0.get(side).into_iter().flat_map(|p| p.iter().copied().enumerate());
        let mut all: Vec<(u64, u16)> =
            all.filter(|(_, sum)| *sum > 0).map(|(port, sum)| (sum, port as u16)).collect();
        all.sort_unstable_by(|a, b| b.cmp(a));
        all.into_iter().take(PORTS).map(|(sum, port)| (port, sum))
    }
}

/// What the control thread tells and is asked.
pub(super) struct Front {
    pub(super) reception: Reception,
    /// What does not change.
    fixed: Status,
    roles: Vec<Role>,
    begun: Instant,
    before: Option<(Instant, Counters)>,
    ports: Ports,
    data_dir: PathBuf,
}

impl Front {
    /// Opens the door; `House` is for servers.
    pub(super) fn open(config: &Config) -> (House, Self) {
        let now_ns = wall_clock_ns();
        let fixed = Status {
            version: crate::VERSION.into(),
            sensor: config.sensor.clone(),
            source: describe(&config.source),
            started_ns: now_ns,
            now_ns,
            ingestion_url: config
                .exporters
                .iter()
                .any(|e| e == "secops")
                .then(|| export::ingestion_url(&config.export))
                .flatten(),
            ..Status::default()
        };
        let (house, reception) = open(fixed.clone());
        let front = Self {
            reception,
            fixed,
            roles: Vec::new(),
            begun: Instant::now(),
            before: None,
            ports: Ports::default(),
            data_dir: config.data_dir.clone(),
        };
        (house, front)
    }

    /// Which lcore does what.
    pub(super) fn assign(&mut self, plan: &Plan, lcores: usize) {
        let role = |at| Role {
            deals: plan.steer == Some(at),
            works: plan.workers.contains(&at),
            journals: plan.scribe == Some(at),
        };
        self.roles = (0..lcores).map(role).collect();
    }

    /// Takes an event in.
    pub(super) fn take(&mut self, event: &FlowEvent) {
        self.ports.add(event);
    }

    /// Puts out the status as it is. `lcores`: number, whether it runs, and its counters.
    pub(super) fn publish(
        &mut self,
        now: &Counters,
        lcores: impl Iterator<Item = (u32, bool, Counters)>,
        journal: Option<JournalStatus>,
        export: Option<ExportStatus>,
        findings: Vec<Finding>,
    ) {
        let rates = self.rates(now);
        let roles = self.roles.iter().copied().chain(std::iter::repeat(Role::default()));
        let lcores = lcores.zip(roles).map(|((id, alive, counters), role)| LcoreStatus {
            id,
            role,
            alive,
            packets: counters.get(Counter::Packets),
            active_flows: counters.get(Counter::ActiveFlows),
            counters,
        });
        let uptime = self.begun.elapsed().as_secs();
        let disk = disk(&self.data_dir);
        let mut status = Status {
            uptime: format!("{}h{}m{}s", uptime / 3600, uptime / 60 % 60, uptime % 60),
            uptime_seconds: uptime,
            now_ns: wall_clock_ns(),
            disk_free_pct: disk.map_or(0.0, |d| {
                (1000.0 * d.free_bytes as f64 / d.total_bytes.max(1) as f64).round() / 10.0
            }),
            pcap_files: journal.as_ref().map_or(0, |j| j.kept.segments),
            top_src_ports: self.ports.largest(0).collect(),
            top_dst_ports: self.ports.largest(1).collect(),
            rates,
            lcores: lcores.collect(),
            disk,
            journal,
            export,
            findings,
            ..self.fixed.clone()
        };
        status.count(now);
        self.reception.publish(status);
    }

    fn rates(&mut self, now: &Counters) -> Rates {
        let at = Instant::now();
        let Some((since, before)) = self.before.replace((at, *now)) else {
            return Rates::default();
        };
        let seconds = (at - since).as_secs_f64().max(1e-3);
        let rate =
            |of: &dyn Fn(&Counters) -> u64| of(now).saturating_sub(of(&before)) as f64 / seconds;
        Rates {
            packets_per_second: rate(&|c| c.get(Counter::Packets)),
            bits_per_second: rate(&|c| c.get(Counter::Bytes)) * 8.0,
            lost_per_second: rate(&|c| c.sum(Group::Drop)),
            flows_per_second: rate(&|c| c.get(Counter::Flows)),
        }
    }
}

fn describe(source: &SourceConfig) -> String {
    match source {
        SourceConfig::Interface(name) => format!("interface {name}"),
        SourceConfig::Pci(cards) => format!("card {}", cards.join(", ")),
        SourceConfig::Vdevs(all) => format!("device {}", all.join(" ")),
        SourceConfig::Files(paths) => {
            let names: Vec<String> = paths.iter().map(|p| p.display().to_string()).collect();
            format!("files {}", names.join(", "))
        }
    }
}

fn wall_clock_ns() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_nanos() as u64)
}

/// The file system of a directory, or of the nearest one above it that exists.
fn disk(path: &Path) -> Option<DiskStatus> {
    let found = path.ancestors().find_map(|p| rustix::fs::statvfs(p).ok())?;
    Some(DiskStatus {
        total_bytes: found.f_blocks * found.f_frsize,
        free_bytes: found.f_bavail * found.f_frsize,
    })
}
