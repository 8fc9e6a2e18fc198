//! Delivers the spool's events to one engine.
//!
//! A batch is a range of event numbers with the time it was formed, kept in the spool before its
//! first attempt; its bytes follow from these, so every repeat is the same. What becomes of it:
//!
//! | answer | then |
//! |---|---|
//! | confirmed | done; the cursor moves over what is done without a gap |
//! | may work later | the same again after a pause: full jitter, doubling from `retry_first` up to `retry_longest`, or what the receiver asks for |
//! | refused whatever it is | held: everything is kept, one attempt every `hold` |
//! | too large | two halves, and smaller batches from then on |
//! | invalid | two halves, and so on to single events; see below |
//!
//! A single event that is invalid is only suspected, for the fault may be a setting. When another
//! event is accepted after that, the suspect is tried once more, and is a dead letter if it fails
//! again. When two batches in a row have nothing in them that is accepted, it is a setting: held,
//! with a single new event tried every `hold`. While anything is wrong, one batch is under way.

use std::collections::{BTreeSet, VecDeque};
use std::sync::{Arc, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::settings::Delivery;
use super::view::View;
use super::{ExportError, Exporter, Failure, Frozen, Make, Outgoing, Shared};
use crate::spool::{Cursor, Dead, Part, SpoolError};
use crate::status::{ExporterState, ExporterStatus};

/// How often the spool is asked for news.
const LOOK: Duration = Duration::from_millis(20);
/// How often the status is published.
const PUBLISH: Duration = Duration::from_millis(250);
/// Batches under suspicion as a whole that are kept; then no new one is tried.
const SUSPICIOUS: usize = 16;
/// A limit learned from a receiver that says too large does not go below this.
const SMALLEST_ROOM: usize = 4096;
/// Room for events in one batch when the spool is read.
const READ: usize = 4096;
/// How long attempts under way may take at the end.
const END: Duration = Duration::from_secs(5);
/// The longest pause a receiver may ask for.
const LONGEST_AFTER: Duration = Duration::from_secs(3600);

/// What a courier is asked to do.
#[derive(Clone, Debug)]
pub(super) enum Wish {
    /// Try again now, whatever the pause.
    Now,
    /// Send the dead letters again.
    Revive,
    /// End when everything is delivered.
    Drain,
    /// End soon.
    End,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Progress {
    Pending,
    Underway,
    /// It failed alone, and nothing was accepted since.
    Suspect,
    /// As before, but something was accepted since: it fails once more, and is dead.
    Tested,
}

struct Open {
    part: Part,
    progress: Progress,
}

/// The end of an attempt: the part's first event and whether it is a dead letter, what happened, how
/// many events it had, and the body's size.
struct Ended {
    first: u64,
    revived: bool,
    result: Result<(), Failure>,
    events: Vec<Outgoing>,
    cost: usize,
    begun: Instant,
}

pub(super) struct Courier {
    name: String,
    shared: Arc<Shared>,
    exporter: Arc<dyn Exporter>,
    delivery: Delivery,
    view: View,
    wishes: UnboundedReceiver<Wish>,
    next: u64,
    open: VecDeque<Open>,
    underway: JoinSet<Ended>,
    /// Since when events wait for a batch to fill.
    waiting_since: Option<Instant>,
    room: usize,
    failures: u32,
    not_before: Option<Instant>,
    held: bool,
    /// Events that are dead, and those that are dead no more; to be kept.
    died: Vec<Dead>,
    revived: Vec<u64>,
    changed: bool,
    draining: bool,
    ending: Option<Instant>,
    status: ExporterStatus,
    last_success: Option<Instant>,
    last_failure: Option<Instant>,
    /// When an event became a suspect, or suspects were tried again.
    suspected: Option<Instant>,
    published: Option<Instant>,
}

impl Courier {
    /// Starts an exporter's thread.
    pub(super) fn start(
        shared: &Arc<Shared>,
        name: String,
        delivery: Delivery,
        view: View,
        make: Make,
    ) -> Result<JoinHandle<()>, ExportError> {
        let runtime = super::runtime().map_err(ExportError::Thread)?;
        let bad = |why| ExportError::Settings { name: name.clone(), why };
        let exporter = runtime.block_on(make()).map_err(bad)?;
        let mut courier = Self::new(shared, &name, delivery, view, exporter);
        courier.publish();
        std::thread::Builder::new()
            .name(format!("to-{name}"))
            .spawn(move || runtime.block_on(courier.run()))
            .map_err(ExportError::Thread)
    }

    fn new(
        shared: &Arc<Shared>,
        name: &str,
        delivery: Delivery,
        view: View,
        exporter: Arc<dyn Exporter>,
    ) -> Self {
        let (tx, wishes) = unbounded_channel();
        shared.wishes.lock().unwrap_or_else(PoisonError::into_inner).insert(name.to_owned(), tx);
        let cursor = shared.spool.cursor(name).unwrap_or_else(|e| {
            tracing::warn!("{name}: {e}");
            Cursor { next: shared.spool.end(), parts: VecDeque::new() }
        });
        let open = cursor.parts.iter().map(|&part| Open { part, progress: Progress::Pending });
        let dead = shared.spool.dead(name, usize::MAX).map_or(0, |d| d.len() as u64);
        Self {
            name: name.to_owned(),
            shared: Arc::clone(shared),
            room: exporter.room(),
            exporter,
            delivery,
            view,
            wishes,
            next: cursor.next,
            open: open.collect(),
            underway: JoinSet::new(),
            waiting_since: None,
            failures: 0,
            not_before: None,
            held: false,
            died: Vec::new(),
            revived: Vec::new(),
            changed: false,
            draining: false,
            ending: None,
            status: ExporterStatus { name: name.to_owned(), dead, ..ExporterStatus::default() },
            last_success: None,
            last_failure: None,
            suspected: None,
            published: None,
        }
    }

    async fn run(&mut self) {
        loop {
            while let Ok(wish) = self.wishes.try_recv() {
                self.grant(&wish);
            }
            if let Err(e) = self.step() {
                self.status.problem = Some(e.to_string());
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
            if self.is_at_end() {
                break;
            }
            self.publish_sometimes();
            tokio::select! {
                ended = self.underway.join_next(), if !self.underway.is_empty() => {
                    match ended {
                        Some(Ok(ended)) => self.take(ended),
                        Some(Err(e)) => self.lost(&e),
                        None => {}
                    }
                }
                () = tokio::time::sleep(LOOK) => {}
            }
        }
        self.publish();
    }

    /// Forms batches, keeps them, and starts attempts.
    fn step(&mut self) -> Result<(), SpoolError> {
        if self.ending.is_none() && self.not_before.is_none_or(|at| Instant::now() >= at) {
            if self.held {
                self.probe();
            }
            let allowed = self.allowed();
            self.look_at_suspects();
            let ready = |o: &Open| matches!(o.progress, Progress::Pending | Progress::Tested);
            let mut waiting = self.open.iter().filter(|o| ready(o)).count();
            while waiting + self.underway.len() < allowed && self.form()? {
                waiting += 1;
            }
            // Before the first attempt what is in a batch is on the disk.
            self.keep()?;
            while self.underway.len() < allowed {
                let Some(at) = self.open.iter().position(ready) else { break };
                self.start_attempt(at)?;
            }
        }
        self.keep()
    }

    /// Attempts under way at once.
    fn allowed(&self) -> usize {
        if self.failures > 0 || self.held { 1 } else { self.delivery.in_flight }
    }

    /// While held for suspects: one of each batch is tried again.
    fn probe(&mut self) {
        let mut families = BTreeSet::new();
        for open in self.open.iter_mut().filter(|o| o.progress == Progress::Suspect) {
            if families.insert(open.part.family) {
                open.progress = Progress::Pending;
            }
        }
        self.held = false;
        self.failures = self.failures.max(1);
    }

    /// Batches of which nothing was accepted and nothing is left to try.
    fn barren(&self) -> usize {
        let mut suspects = BTreeSet::new();
        let mut others = BTreeSet::new();
        for o in &self.open {
            match o.progress {
                Progress::Suspect => suspects.insert(o.part.family),
                _ => others.insert(o.part.family),
            };
        }
        suspects.difference(&others).count()
    }

    /// Forms the next batch, if there are enough events or they have waited long enough.
    fn form(&mut self) -> Result<bool, SpoolError> {
        let barren = self.barren();
        if barren >= SUSPICIOUS {
            return Ok(false);
        }
        let most = if barren >= 2 { 1 } else { self.delivery.events };
        loop {
            let end = self.shared.spool.end();
            if self.next >= end {
                self.waiting_since = None;
                return Ok(false);
            }
            let since = *self.waiting_since.get_or_insert_with(Instant::now);
            let full = end - self.next >= most as u64;
            if !full && !self.draining && since.elapsed() < self.delivery.linger {
                return Ok(false);
            }
            let read = READ.min(4 * most);
            let entries = self.shared.spool.peek(self.next, u64::MAX - 1, read)?;
            let (mut events, mut cost, mut last) = (0, 0, self.next);
            for entry in &entries {
                if let Some(out) = self.view.outgoing(entry) {
                    let more = self.exporter.cost(&out);
                    if events > 0 && cost + more > self.room {
                        break;
                    }
                    (events, cost) = (events + 1, cost + more);
                } else {
                    self.status.filtered += 1;
                }
                last = entry.id.seq;
                if events == most {
                    break;
                }
            }
            if entries.is_empty() {
                // Numbers that were never given, or damaged events.
                last = end - 1;
            }
            let first = self.next;
            self.next = last + 1;
            self.waiting_since = None;
            self.changed = true;
            if events > 0 {
                let part = Part {
                    first,
                    last,
                    formed_ns: wall_clock_ns(),
                    family: first,
                    vouched: false,
                    revived: false,
                };
                self.open.push_back(Open { part, progress: Progress::Pending });
                return Ok(true);
            }
        }
    }

    fn start_attempt(&mut self, at: usize) -> Result<(), SpoolError> {
        let Some(open) = self.open.get_mut(at) else { return Ok(()) };
        let part = open.part;
        let entries = if part.revived {
            let dead = self.shared.spool.dead_letter(&self.name, part.first)?;
            dead.map(|d| d.entry).into_iter().collect()
        } else {
            self.shared.spool.peek(part.first, part.last, usize::MAX)?
        };
        let events: Vec<Outgoing> = entries.iter().filter_map(|e| self.view.outgoing(e)).collect();
        let Some((first, last)) = events.first().zip(events.last()) else {
            // The settings have changed, and nothing of it is wanted any more.
            self.close(at);
            return Ok(());
        };
        let mut id = format!("{:016x}-{}-{}", first.id.store, first.id.seq, last.id.seq);
        if part.revived {
            id = format!("{id}-{:x}", part.formed_ns);
        }
        // It was refused before, and others were accepted since: once more, and it is dead.
        open.part.vouched |= open.progress == Progress::Tested;
        open.progress = Progress::Underway;
        let frozen = Frozen { id, formed_ns: part.formed_ns, events };
        let cost = frozen.events.iter().map(|e| self.exporter.cost(e)).sum();
        let (exporter, limit) = (Arc::clone(&self.exporter), self.delivery.timeout);
        let begun = Instant::now();
        self.underway.spawn(async move {
            // The engines have timeouts of their own; this one holds whatever they do.
            let result = tokio::time::timeout(limit * 2, exporter.send(&frozen));
            let result = result.await.unwrap_or_else(|_| {
                let why = format!("no answer within {} s", limit.as_secs_f64() * 2.0);
                Err(Failure::Retry { kind: "timeout", why, after: None })
            });
            let (first, revived) = (part.first, part.revived);
            Ended { first, revived, result, events: frozen.events, cost, begun }
        });
        Ok(())
    }

    /// What an attempt's end means.
    fn take(&mut self, ended: Ended) {
        let how = ended.result.as_ref().err().map_or("ok", Failure::kind);
        *self.status.attempts.entry(how.to_owned()).or_default() += 1;
        let is_it = |o: &Open| {
            o.part.first == ended.first
                && o.part.revived == ended.revived
                && o.progress == Progress::Underway
        };
        let Some(at) = self.open.iter().position(is_it) else { return };
        match ended.result {
            Ok(()) => self.delivered(at, &ended),
            Err(Failure::Retry { why, after, .. }) => {
                self.again(at);
                self.back_off(after);
                self.say(&format!("{why}; it is tried again"));
            }
            Err(Failure::Hold { why, .. }) => {
                self.again(at);
                self.hold(&why);
            }
            Err(Failure::TooLarge { why }) => {
                if ended.events.len() > 1 {
                    self.room = (ended.cost / 2).max(SMALLEST_ROOM).min(self.room);
                    self.split(at, &ended.events);
                } else {
                    self.refused(at, ended.events, &why);
                }
            }
            Err(Failure::Invalid { why }) => {
                if ended.events.len() > 1 {
                    self.say(&format!("{why}; looking for the event that it is about"));
                    self.split(at, &ended.events);
                } else {
                    self.refused(at, ended.events, &why);
                }
            }
        }
    }

    fn delivered(&mut self, at: usize, ended: &Ended) {
        let Some(part) = self.close(at) else { return };
        if part.revived {
            self.revived.push(part.first);
            self.status.dead = self.status.dead.saturating_sub(1);
        }
        for other in &mut self.open {
            other.part.vouched |= other.part.family == part.family;
            if other.progress == Progress::Suspect {
                other.progress = Progress::Tested;
            }
        }
        self.status.delivered += ended.events.len() as u64;
        self.status.batches += 1;
        self.last_success = Some(Instant::now());
        // What began before the last failure says nothing about the time after it.
        if self.last_failure.is_none_or(|at| ended.begun >= at) {
            if self.status.problem.take().is_some() && (self.failures > 0 || self.held) {
                tracing::info!("{}: it delivers again", self.name);
            }
            (self.failures, self.held, self.not_before) = (0, false, None);
        }
    }

    /// A part is done with.
    fn close(&mut self, at: usize) -> Option<Part> {
        self.changed = true;
        self.open.remove(at).map(|o| o.part)
    }

    /// The same part is to be tried again.
    fn again(&mut self, at: usize) {
        if let Some(open) = self.open.get_mut(at) {
            open.progress = Progress::Pending;
        }
    }

    fn split(&mut self, at: usize, events: &[Outgoing]) {
        let Some(middle) = events.get(events.len() / 2).map(|e| e.id.seq) else { return };
        let Some(mut open) = self.open.remove(at) else { return };
        open.progress = Progress::Pending;
        let (mut left, mut right) = (open.part, open.part);
        (left.last, right.first) = (middle - 1, middle);
        for part in [right, left] {
            self.open.insert(at, Open { part, progress: Progress::Pending });
        }
        self.changed = true;
    }

    /// A single event was refused.
    fn refused(&mut self, at: usize, events: Vec<Outgoing>, why: &str) {
        let Some(open) = self.open.get_mut(at) else { return };
        if open.part.revived {
            // It stays what it was.
            self.close(at);
            self.say(&format!("a dead letter is refused again: {why}"));
        } else if open.part.vouched {
            self.close(at);
            self.bury(events, why);
        } else {
            open.progress = Progress::Suspect;
            self.suspected = Some(Instant::now());
            self.say(&format!("{why}; an event is refused, and others are tried"));
            if self.barren() >= 2 {
                self.hold(&format!(
                    "{why}; nothing at all is accepted: check the log type and the address"
                ));
            }
        }
    }

    /// When nothing but suspects is left, they are tried again now and then; at the end of a run in
    /// which something was accepted, for the last time.
    fn look_at_suspects(&mut self) {
        let only = self.open.iter().all(|o| o.progress == Progress::Suspect);
        if self.open.is_empty() || !only || self.next < self.shared.spool.end() {
            return;
        }
        let last = self.draining && self.last_success.is_some() && self.barren() < 2;
        if last || self.suspected.is_none_or(|at| at.elapsed() >= self.delivery.hold) {
            let progress = if last { Progress::Tested } else { Progress::Pending };
            self.open.iter_mut().for_each(|o| o.progress = progress);
            self.suspected = Some(Instant::now());
        }
    }

    fn bury(&mut self, events: Vec<Outgoing>, why: &str) {
        for event in events {
            match self.shared.spool.peek(event.id.seq, event.id.seq, 1) {
                Ok(found) => {
                    for entry in found {
                        tracing::warn!("{}: event {} is a dead letter: {why}", self.name, event.id);
                        self.died.push(Dead { entry, reason: why.to_owned() });
                        self.status.dead += 1;
                    }
                }
                Err(e) => tracing::error!("{}: event {}: {e}", self.name, event.id),
            }
        }
    }

    fn back_off(&mut self, after: Option<Duration>) {
        let now = Instant::now();
        self.last_failure = Some(now);
        // What fails together counts once.
        if self.not_before.is_none_or(|at| now >= at) {
            self.failures = self.failures.saturating_add(1);
        }
        let doublings = self.failures.saturating_sub(1).min(20);
        let longest = self
            .delivery
            .retry_first
            .saturating_mul(1 << doublings)
            .min(self.delivery.retry_longest);
        let mut pause = longest.mul_f64(random());
        if let Some(after) = after {
            pause = pause.max(after.min(LONGEST_AFTER));
        }
        let at = now + pause;
        self.not_before = Some(self.not_before.map_or(at, |old| old.max(at)));
    }

    fn hold(&mut self, why: &str) {
        self.held = true;
        self.failures = self.failures.max(1);
        self.last_failure = Some(Instant::now());
        // Not all sensors at the same moment.
        let pause = self.delivery.hold.mul_f64(0.75 + random() / 2.0);
        self.not_before = Some(Instant::now() + pause);
        if self.status.problem.as_deref() != Some(why) {
            tracing::error!("{}: {why}; events are kept until it is mended", self.name);
        }
        self.status.problem = Some(why.to_owned());
    }

    fn say(&mut self, why: &str) {
        if self.status.problem.is_none() {
            tracing::warn!("{}: {why}", self.name);
        }
        self.status.problem = Some(why.to_owned());
    }

    /// An attempt's task panicked.
    fn lost(&mut self, e: &tokio::task::JoinError) {
        tracing::error!("{}: an attempt ended without a result: {e}", self.name);
        for open in self.open.iter_mut().filter(|o| o.progress == Progress::Underway) {
            open.progress = Progress::Pending;
        }
        self.underway.abort_all();
        self.back_off(None);
    }

    fn grant(&mut self, wish: &Wish) {
        match wish {
            Wish::Now => self.not_before = None,
            Wish::Drain => self.draining = true,
            Wish::End => {
                self.ending.get_or_insert_with(Instant::now);
            }
            Wish::Revive => {
                self.not_before = None;
                let dead = self.shared.spool.dead(&self.name, usize::MAX).unwrap_or_default();
                for seq in dead.iter().map(|d| d.entry.id.seq) {
                    let known = |o: &Open| o.part.revived && o.part.first == seq;
                    if self.open.iter().any(known) {
                        continue;
                    }
                    let part = Part {
                        first: seq,
                        last: seq,
                        formed_ns: wall_clock_ns(),
                        family: seq,
                        vouched: false,
                        revived: true,
                    };
                    self.open.push_back(Open { part, progress: Progress::Pending });
                    self.changed = true;
                }
            }
        }
    }

    /// Keeps what has changed.
    fn keep(&mut self) -> Result<(), SpoolError> {
        if !std::mem::take(&mut self.changed) {
            return Ok(());
        }
        let parts = self.open.iter().map(|o| o.part).collect();
        let cursor = Cursor { next: self.next, parts };
        let kept = self.shared.spool.keep(&self.name, &cursor, &self.died, &self.revived);
        if kept.is_ok() {
            self.died.clear();
            self.revived.clear();
        } else {
            self.changed = true;
        }
        kept
    }

    fn is_at_end(&self) -> bool {
        match self.ending {
            Some(since) => self.underway.is_empty() || since.elapsed() > END,
            None => {
                self.draining
                    && self.underway.is_empty()
                    && self.open.is_empty()
                    && self.next >= self.shared.spool.end()
            }
        }
    }

    fn publish_sometimes(&mut self) {
        if self.published.is_none_or(|at| at.elapsed() >= PUBLISH) {
            self.publish();
        }
    }

    fn publish(&mut self) {
        self.published = Some(Instant::now());
        let open = self.open.iter().filter(|o| !o.part.revived);
        let formed: u64 = open.clone().map(|o| o.part.last - o.part.first + 1).sum();
        let oldest = open.map(|o| o.part.first).min().unwrap_or(self.next);
        let s = &mut self.status;
        s.waiting = formed + self.shared.spool.end().saturating_sub(self.next);
        s.oldest_seconds = match self.shared.spool.peek(oldest, oldest, 1) {
            Ok(found) => found
                .first()
                .map_or(0, |e| wall_clock_ns().saturating_sub(e.time_ns) / 1_000_000_000),
            Err(_) => s.oldest_seconds,
        };
        s.state = if self.held {
            ExporterState::Held
        } else if self.failures > 0 {
            ExporterState::Retrying
        } else if s.waiting > 0 {
            ExporterState::Sending
        } else {
            ExporterState::Idle
        };
        let now = Instant::now();
        s.next_attempt_seconds =
            self.not_before.filter(|at| *at > now).map(|at| (at - now).as_secs());
        s.last_success_seconds = self.last_success.map(|at| at.elapsed().as_secs());
        self.shared
            .statuses
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(self.name.clone(), s.clone());
    }
}

pub(super) fn wall_clock_ns() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_nanos() as u64)
}

/// From 0 to 1.
fn random() -> f64 {
    use std::hash::{BuildHasher, Hasher, RandomState};
    (RandomState::new().build_hasher().finish() >> 11) as f64 / (1u64 << 53) as f64
}

#[cfg(test)]
mod tests;
