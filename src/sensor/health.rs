//! What the control thread looks at once a second: links, clocks, lcores, losses.
//!
//! Findings are judged over the last ten to twenty minutes, said in the log when they come and go,
//! and written beside the data for `malakocut-cli doctor`.

use std::path::PathBuf;

use crate::doctor::{Facts, Finding, Pulse, Report, findings};
use crate::event::FlowEvent;
use crate::status::{Counter, Counters, JournalStatus};

/// Looks between two beginnings of the time that is judged.
const PERIOD: u32 = 600;
/// Looks between two reports.
const REPORT: u32 = 5;
/// Looks without progress of an lcore after which it counts as stuck. An lcore that has nothing to do
/// makes progress too.
const STUCK: u32 = 5;
/// Looks at the start in which little was seen yet.
const SETTLE: u32 = 3;

/// An lcore's heart.
#[derive(Debug)]
struct Heart {
    lcore: u32,
    beats: u64,
    /// Looks since it beat last.
    still: u32,
}

pub(super) struct Health {
    interface: String,
    /// Where the report goes; none for capture files.
    data: Option<PathBuf>,
    pulse: Pulse,
    looks: u32,
    /// The counters when the present period began, and the one before.
    since: [Counters; 2],
    link: Option<bool>,
    hearts: Vec<Heart>,
    findings: Vec<Finding>,
}

impl Health {
    pub(super) fn new(interface: Option<String>, data: Option<PathBuf>) -> Self {
        Self {
            interface: interface.unwrap_or_else(|| "the input".into()),
            data,
            pulse: Pulse::default(),
            looks: 0,
            since: [Counters::default(); 2],
            link: None,
            hearts: Vec::new(),
            findings: Vec::new(),
        }
    }

    /// Takes an event in.
    pub(super) fn flow(&mut self, event: &FlowEvent) {
        self.pulse.flow(event);
    }

    /// What this room counts itself.
    pub(super) fn counters(&self) -> &Counters {
        self.pulse.counters()
    }

    /// What is wrong now.
    pub(super) fn findings(&self) -> &[Finding] {
        &self.findings
    }

    /// Takes in whether the links are up.
    pub(super) fn link(&mut self, is_up: Option<bool>) {
        self.link = is_up;
    }

    /// Takes in how often each running lcore has come round; says so when one stands still or goes
    /// on.
    pub(super) fn beats(&mut self, now: impl Iterator<Item = (u32, u64)>) {
        for (lcore, beats) in now {
            let at = self.hearts.iter().position(|h| h.lcore == lcore);
            let Some(heart) = at.and_then(|at| self.hearts.get_mut(at)) else {
                self.hearts.push(Heart { lcore, beats, still: 0 });
                continue;
            };
            if heart.beats == beats {
                heart.still += 1;
                if heart.still == STUCK {
                    tracing::error!("lcore {lcore} has made no progress for {STUCK} s");
                }
            } else {
                if heart.still >= STUCK {
                    tracing::warn!("lcore {lcore} goes on after {} s", heart.still);
                }
                (heart.beats, heart.still) = (beats, 0);
            }
        }
    }

    /// The lcore that stands still.
    pub(super) fn stuck(&self) -> Option<u32> {
        self.hearts.iter().find(|h| h.still >= STUCK).map(|h| h.lcore)
    }

    /// Whether every lcore went on since the last look or the one before.
    pub(super) fn is_alive(&self) -> bool {
        self.hearts.iter().all(|h| h.still < 2)
    }

    /// Judges; once a second.
    pub(super) fn look(&mut self, counters: &Counters, journal: Option<&JournalStatus>) {
        self.pulse.look();
        self.looks += 1;
        if self.looks.is_multiple_of(PERIOD) {
            self.since = [self.since[1], *counters];
        }
        let now = self.judge(counters, journal);
        let before = std::mem::take(&mut self.findings);
        for finding in now.iter().filter(|f| before.iter().all(|b| b.name != f.name)) {
            let (text, mend) = (&finding.text, &finding.mend);
            tracing::warn!("{}: {text}; {mend}", finding.name);
        }
        for finding in before.iter().filter(|b| now.iter().all(|f| b.name != f.name)) {
            tracing::info!("{}: not any more", finding.name);
        }
        let changed = before != now;
        self.findings = now;
        if self.looks.is_multiple_of(REPORT) || changed {
            self.report(counters);
        }
    }

    /// What is wrong, over the time that is judged.
    pub(super) fn judge(
        &self,
        counters: &Counters,
        journal: Option<&JournalStatus>,
    ) -> Vec<Finding> {
        let counted = counters.since(&self.since[0]);
        let facts = Facts {
            counters: &counted,
            journal: journal.filter(|_| self.looks > SETTLE),
            link: self.link,
            interface: &self.interface,
            stuck_lcore: self.stuck(),
        };
        findings(&facts)
    }

    fn report(&self, counters: &Counters) {
        let Some(data) = &self.data else { return };
        let report = Report {
            pid: std::process::id(),
            interface: self.interface.clone(),
            packets: counters.get(Counter::Packets),
            findings: self.findings.clone(),
        };
        if let Err(e) = report.write(data) {
            // The disk is full, or not ours: the log says so by other ways.
            tracing::debug!("{}: {e}", data.display());
        }
    }
}

impl Drop for Health {
    fn drop(&mut self) {
        if let Some(data) = &self.data {
            Report::remove(data);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_lcore_that_stands_still_is_stuck_until_it_goes_on() {
        let mut health = Health::new(None, None);
        for _ in 0..STUCK {
            assert_eq!(health.stuck(), None);
            health.beats([(0, 7), (1, 9)].into_iter());
        }
        health.beats([(0, 7), (1, 10)].into_iter());
        assert_eq!((health.stuck(), health.is_alive()), (Some(0), false));
        health.beats([(0, 8), (1, 11)].into_iter());
        assert_eq!((health.stuck(), health.is_alive()), (None, true));
    }

    #[test]
    fn what_is_over_is_forgotten_after_two_periods() {
        let mut health = Health::new(Some("enp3s0".into()), None);
        let mut counters = Counters::default();
        counters.set(Counter::KernelDrops, 5);
        health.look(&counters, None);
        assert_eq!(health.findings()[0].name, "drops");
        for _ in 0..2 * PERIOD {
            health.look(&counters, None);
        }
        assert_eq!(health.findings(), []);
    }
}
