//! What SIGHUP and the control socket's `/reload` do: logs of the same names are opened anew, the
//! configuration is read again, and what can change while the sensor runs is put in its place: the
//! capture filter, the journal's filter, the blocklist, the log's level. The rest is named.

use rtrb::Producer;
use tokio::sync::oneshot;

use super::Outputs;
use super::quiet::Quiet;
use crate::config::Config;
use crate::control::Reloaded;
use crate::filter::Filters;
use crate::journal::Monitor;
use crate::log;

/// What there is for the workers to change.
pub(super) struct Changeable {
    /// As it is in force.
    config: Config,
    /// A filter on its way to each worker.
    filters: Vec<Producer<Option<Filters>>>,
}

/// What the log calls them.
pub(super) const CAPTURE_FILTER: &str = "the capture filter";

impl Changeable {
    pub(super) fn new(config: &Config, filters: Vec<Producer<Option<Filters>>>) -> Self {
        Self { config: config.clone(), filters }
    }

    /// Does all of it; a blocklist is read on a thread of its own, and `to` hears when that is done.
    pub(super) fn reload(
        &mut self,
        outputs: &mut Outputs,
        journal: Option<&Monitor>,
        quiet: Option<&Quiet>,
        to: Option<oneshot::Sender<Reloaded>>,
    ) {
        let mut result = Reloaded::default();
        match outputs.reopen() {
            true => result.done.push("logs".into()),
            false => result.failed.push("a log cannot be opened anew".into()),
        }
        match Config::from_process() {
            Ok(new) => self.change(new, journal, &mut result),
            Err(e) => result.failed.push(format!("the configuration stays as it was: {e}")),
        }
        let finish = move |mut result: Reloaded, list: Option<Result<String, String>>| {
            match list {
                Some(Ok(loaded)) => result.done.push(format!("blocklist: {loaded}")),
                Some(Err(e)) => result.failed.push(format!("{e}; the list stays as it was")),
                None => {}
            }
            say(&result);
            if let Some(to) = to {
                // Who asked may have gone.
                let _ = to.send(result);
            }
        };
        match quiet {
            Some(quiet) => quiet.reload(move |list| finish(result, Some(list))),
            None => finish(result, None),
        }
    }

    /// Puts in place what differs.
    fn change(&mut self, new: Config, journal: Option<&Monitor>, result: &mut Reloaded) {
        if new.log != self.config.log {
            match log::set(&new.log) {
                Ok(()) => {
                    result.done.push(format!("log level: {}", new.log));
                    self.config.log.clone_from(&new.log);
                }
                Err(e) => result.failed.push(format!("log level: {e}")),
            }
        }
        if new.capture != self.config.capture {
            match self.filter(&new.capture.expressions()) {
                Ok(()) => {
                    result.done.push("capture filter".into());
                    self.config.capture.clone_from(&new.capture);
                }
                Err(e) => result.failed.push(format!("capture filter: {e}")),
            }
        }
        if new.journal_rules.filter != self.config.journal_rules.filter
            && let Some(journal) = journal
        {
            match journal.filter(&new.journal_rules.filter) {
                Ok(()) => {
                    result.done.push("journal filter".into());
                    self.config.journal_rules.filter.clone_from(&new.journal_rules.filter);
                    self.config.journal_filter_is_default = new.journal_filter_is_default;
                }
                Err(e) => result.failed.push(format!("journal filter: {e}")),
            }
        }
        let differ = self.config.differences(&new);
        if !differ.is_empty() {
            result.failed.push(format!("a restart is needed for {}", differ.join(", ")));
        }
    }

    fn filter(&mut self, expressions: &[&str]) -> Result<(), String> {
        // All are made before any is used.
        let mut made = Vec::new();
        for ring in &self.filters {
            if ring.is_full() {
                return Err("the one before is not in place yet; try again".into());
            }
            made.push(Filters::new(CAPTURE_FILTER, expressions).map_err(|e| e.to_string())?);
        }
        for (ring, filter) in self.filters.iter_mut().zip(made) {
            // There was room, and nobody else writes.
            let _ = ring.push(filter);
        }
        Ok(())
    }
}

fn say(result: &Reloaded) {
    let Reloaded { done, failed } = result;
    if failed.is_empty() {
        tracing::info!("reloaded: {}", done.join(", "));
    } else {
        tracing::warn!("reloaded: {}; not: {}", done.join(", "), failed.join("; "));
    }
}
