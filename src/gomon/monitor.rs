//! Packets into windows, windows into verdicts, verdicts into events, captures and a summary.

use std::collections::BTreeMap;
use std::hash::{BuildHasher, RandomState};
use std::path::{Path, PathBuf};

use super::calibrate::Calibration;
use super::captures::{Keeper, Packet};
use super::{GomonError, Options};
use crate::detect::{Class, Eve, Host, Judge, Place, Scope, Subject, Tally, Verdict, sight};
use crate::export::LineLog;
use crate::packet::{Decoded, Frame};
use crate::status::{Counters, Group};

/// Bytes of events that are written at once.
const CHUNK: usize = 1 << 20;

/// What a run found.
#[derive(Clone, Debug, Default)]
pub struct Totals {
    pub packets: u64,
    pub attacks: u64,
    pub scans: u64,
    pub idle: u64,
    pub captures: u64,
    pub failed_captures: u64,
    /// Packets to destinations that were not tracked.
    pub untracked: u64,
    /// Packets that captures lack.
    pub uncaptured: u64,
    /// What the calibration says; empty without one.
    calibration: Vec<String>,
}

/// Watches one host.
pub(super) struct Monitor {
    scope: Scope,
    window_ns: u64,
    /// When the current window began.
    start_ns: Option<u64>,
    tally: Tally,
    judge: Judge,
    eve: Eve,
    show_idle: bool,
    log: LineLog,
    log_name: String,
    lines: Vec<u8>,
    keeper: Option<Keeper>,
    calibration: Option<Calibration>,
    scratch: Box<Decoded>,
    totals: Totals,
}

impl Monitor {
    /// Opens the outputs.
    pub(super) fn new(o: &Options) -> Result<Self, GomonError> {
        let output = |what, path: &Path, source| GomonError::Output {
            what,
            path: path.display().to_string(),
            source,
        };
        let path = o.eve_log.clone().unwrap_or_else(|| PathBuf::from("-"));
        let log = LineLog::open(&path).map_err(|e| output("eve-log-path", &path, e))?;
        let saving = o.save_packets > 0 && !o.calibrate;
        if saving {
            // Rather now than when an attack is to be saved.
            std::fs::create_dir_all(&o.capture_dir)
                .map_err(|e| output("capture-dir", &o.capture_dir, e))?;
        }
        Ok(Self {
            scope: o.scope.clone(),
            window_ns: o.rules.window_s * 1_000_000_000,
            start_ns: None,
            tally: Tally::new(o.max_destinations, RandomState::new().hash_one(0)),
            judge: Judge::new(o.rules),
            eve: Eve {
                style: o.style,
                subject: Subject {
                    src_ip: o.src_ip.clone(),
                    c2_ip: o.c2_ip.clone(),
                    sample_id: o.sample_id.clone(),
                    sensor: String::new(),
                },
                rules: o.rules,
            },
            show_idle: o.show_idle,
            log,
            log_name: o.log_name(),
            lines: Vec::new(),
            keeper: saving.then(|| Keeper::new(o.save_packets, &o.capture_dir, &o.sample_id)),
            calibration: o.calibrate.then(Calibration::default),
            scratch: Box::default(),
            totals: Totals::default(),
        })
    }

    /// Packets so far.
    pub(super) fn packets(&self) -> u64 {
        self.totals.packets
    }

    /// Takes a packet in. `link` is the frame's LINKTYPE_ number; its bytes come in pieces, the
    /// frame's own first.
    #[inline]
    pub(super) fn packet<'a>(
        &mut self,
        timestamp_ns: u64,
        link: u16,
        frame: &Frame<'_>,
        pieces: impl Iterator<Item = &'a [u8]>,
    ) -> Result<(), GomonError> {
        self.let_time_pass(timestamp_ns)?;
        self.start_ns.get_or_insert(timestamp_ns);
        self.totals.packets += 1;
        let Some(s) = sight(frame, &mut self.scratch) else { return Ok(()) };
        let (host, port) = if s.src == self.scope.host {
            match self.tally.count(&s, &self.scope) {
                Place::Counted => {}
                Place::Untracked => {
                    if self.tally.untracked() == 1 {
                        tracing::warn!(
                            limit = self.tally.limit(),
                            "Maximum number of destinations reached; continuing with partial counts"
                        );
                    }
                }
                Place::LeftOut => return Ok(()),
            }
            (s.dst, s.dst_port)
        } else if s.dst == self.scope.host {
            (s.src, s.src_port)
        } else {
            return Ok(());
        };
        if let Some(keeper) = &mut self.keeper
            && self.scope.counts(host)
        {
            let packet = Packet { timestamp_ns, wire_len: frame.wire_len, link, host, port };
            keeper.keep(&packet, pieces);
        }
        Ok(())
    }

    /// Ends the window if it is over at `now_ns`.
    #[inline]
    pub(super) fn let_time_pass(&mut self, now_ns: u64) -> Result<(), GomonError> {
        match self.start_ns {
            // A packet from before the window belongs to it.
            Some(start) if now_ns.saturating_sub(start) >= self.window_ns => self.close(start),
            _ => Ok(()),
        }
    }

    #[cold]
    fn close(&mut self, start_ns: u64) -> Result<(), GomonError> {
        self.start_ns = None;
        let verdict = self.judge.judge(start_ns, &self.tally);
        self.totals.untracked += self.tally.untracked();
        self.tally.clear();
        if let Some(verdict) = verdict {
            tracing::debug!(
                packets = verdict.packets,
                destinations = verdict.endpoints,
                findings = verdict.findings.len(),
                "Window closed"
            );
            match &mut self.calibration {
                Some(calibration) => calibration.window(self.judge.rules(), &verdict),
                None => self.report(&verdict)?,
            }
        }
        if let Some(keeper) = &mut self.keeper {
            keeper.clear();
        }
        Ok(())
    }

    fn report(&mut self, verdict: &Verdict) -> Result<(), GomonError> {
        self.lines.clear();
        let mut attacked: BTreeMap<Host, Vec<u16>> = BTreeMap::new();
        for finding in &verdict.findings {
            match finding.class {
                Class::Idle if !self.show_idle => continue,
                Class::Idle => self.totals.idle += 1,
                Class::Scan | Class::PortScan => self.totals.scans += 1,
                Class::Attack => {
                    self.totals.attacks += 1;
                    if let Some(d) = finding.destination {
                        attacked.entry(d.host).or_default().push(d.port);
                    }
                }
                Class::Connection => {}
            }
            self.eve
                .write(verdict, finding, &mut self.lines)
                .map_err(|source| output(&self.log_name, source))?;
            if self.lines.len() >= CHUNK {
                self.log.write(&self.lines).map_err(|source| output(&self.log_name, source))?;
                self.lines.clear();
            }
        }
        self.log.write(&self.lines).map_err(|source| output(&self.log_name, source))?;
        if let Some(keeper) = &mut self.keeper {
            for (host, ports) in attacked {
                keeper.save(host, &ports, verdict.start_ns);
            }
        }
        Ok(())
    }

    /// Ends the last window.
    pub(super) fn finish(mut self) -> Result<Totals, GomonError> {
        if let Some(start) = self.start_ns {
            self.close(start)?;
        }
        let mut totals = self.totals;
        if let Some(keeper) = &self.keeper {
            (totals.captures, totals.uncaptured) = (keeper.saved, keeper.missing);
            totals.failed_captures = keeper.failed;
        }
        totals.calibration = self.calibration.map(|c| c.lines()).unwrap_or_default();
        Ok(totals)
    }
}

fn output(path: &str, source: std::io::Error) -> GomonError {
    GomonError::Output { what: "events cannot be written to", path: path.into(), source }
}

impl Totals {
    /// What is said at the end of a run.
    pub(super) fn lines(&self, o: &Options, losses: &Counters) -> Vec<String> {
        let mut lines = Vec::new();
        if losses.sum(Group::Drop) > 0 {
            lines.push(format!(
                "Lost: {} of {} packets never arrived here ({}); the counts above are low",
                losses.sum(Group::Drop),
                self.packets + losses.sum(Group::Drop),
                losses.reasons(Group::Drop)
            ));
        }
        if self.untracked > 0 {
            lines.push(format!(
                "Not tracked: {} packet(s) to destinations above --max-destinations {}",
                self.untracked, o.max_destinations
            ));
        }
        if self.uncaptured > 0 {
            lines.push(format!("Not captured: at least {} packet(s)", self.uncaptured));
        }
        if !self.calibration.is_empty() {
            lines.extend(self.calibration.iter().cloned());
            return lines;
        }
        lines.push(format!("Analysis complete. Eve log: {}", o.log_name()));
        lines.push(format!(
            "Summary: {} attack alert(s), {} scan alert(s), {} idle window(s), {} capture(s) saved",
            self.attacks, self.scans, self.idle, self.captures
        ));
        lines
    }
}
