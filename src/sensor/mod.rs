//! The whole sensor: opens, starts, runs, and ends in the right order.
//!
//! Start: everything that can be refused for a plain reason, then DPDK, then ports, then lcores.
//! End (a signal, or the end of the files): sources take nothing new in and are read out; workers
//! report their flows and end; the journal's lcore ends when they have; its writer when that has;
//! then losses are counted for the last time, ports stop, and interfaces are put back.

mod desk;
mod front;
pub(crate) mod inputs;
mod plan;
mod summary;

use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};
use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use dpdk::lcore::{self, Lcore, Thread};
use rtrb::RingBuffer;

use crate::api::{Api, ApiError};
use crate::capture::{Complaint, OpenError, Source, Steer};
use crate::config::{Config, PollMode, SourceConfig, SummaryFormat};
use crate::control::{Ask, Reloaded};
use crate::detect::watch::{self, Watched, Watches};
use crate::detect::{Class, Verdict};
use crate::eve::EveWriter;
use crate::event::{About, EventWriter, FlowEvent, Note};
use crate::export::{
    self, EveLog, ExportConfig, ExportError, Exports, FlowLog, OpenLogError, Rotation,
};
use crate::flow::{FlowTable, Timeouts};
use crate::inspect::collect::Heard;
use crate::journal::{self, JournalConfig, JournalError, Scribe, retention};
use crate::status::{Counter, Counters, Group, Published};
use crate::worker::{Input, LcoreReport, Machine, Shared, Task, Worker};
use desk::Desk;
use front::Front;
use inputs::{Inputs, Prepared, Queues, Started};
use plan::Plan;
use summary::{Highlights, Summary};

/// Packets between the dealing lcore and a worker, and between a worker and the journal.
const STEER_RING: usize = 8192;
const JOURNAL_RING: usize = 4096;
/// Events between a worker and the control thread.
const EVENT_RING: usize = 8192;
/// How often the control thread looks when there was nothing to do.
const PAUSE: Duration = Duration::from_millis(1);
const PAUSE_MAX: Duration = Duration::from_millis(50);
/// How often losses are looked at and the log flushed.
const TICK: Duration = Duration::from_secs(1);
/// Ticks between EVE's lines of counters.
const STATS: u32 = 8;

/// The sensor could not start.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    #[error("{0}")]
    Input(String),
    #[error(transparent)]
    Open(#[from] OpenError),
    #[error(transparent)]
    Dpdk(#[from] dpdk::Error),
    #[error(transparent)]
    Log(#[from] OpenLogError),
    #[error(transparent)]
    Journal(#[from] JournalError),
    #[error(transparent)]
    Export(#[from] ExportError),
    #[error(transparent)]
    Api(#[from] ApiError),
    #[error("the CPUs of this process could not be read: {0}")]
    Affinity(std::io::Error),
    #[error("signals could not be set up: {0}")]
    Signals(std::io::Error),
}

/// How a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    Complete,
    /// Something was lost that should not be: a damaged input, a panicked lcore, an output that
    /// could not be written. It was said on standard error.
    Damaged,
}

/// Runs the sensor until its input ends or a signal stops it.
pub fn run(config: &Config) -> Result<Outcome, RunError> {
    let allowed = lcore::affinity().map_err(RunError::Affinity)?;
    let lcores = match &config.lcores {
        Some(list) => lcore::parse(list, &allowed)?,
        None => vec![Lcore { id: 0, cpus: allowed }],
    };
    let prepared = Prepared::new(&config.source)?;
    let log = open_log(config)?;
    let eve = match &config.eve_log {
        Some(path) => {
            let writer = EveWriter::new(&config.sensor, config.source.interface());
            Some(EveLog::open(path, writer)?)
        }
        None => None,
    };
    if config.journal {
        say_what_is_journaled(config);
    }
    let journal = match config.journal {
        true => Some(journal::start(JournalConfig {
            directory: config.data_dir.join("pcap"),
            rotate_size: config.rotate_size,
            keep: retention::Limits {
                age: config.retention,
                quota: config.journal_quota,
                min_free: config.min_free,
            },
            rules: config.journal_rules.clone(),
        })?),
        false => None,
    };
    let mut stop = Stop::on_signals().map_err(RunError::Signals)?;
    // Its threads begin here, where they are free to run on every CPU.
    let exports = Exports::start(&ExportConfig {
        names: &config.exporters,
        settings: &config.export,
        directory: config.data_dir.join("buffer"),
        sensor: &config.sensor,
        waits: is_file(config),
    })?;
    let (house, front) = Front::open(config);
    // Dropped last: it answers until everything has ended.
    let _api = Api::start(&config.api, house, journal.as_ref().map(|(_, handle)| handle))?;
    // Only the tables need them, and they cost a look at every event.
    let highlights = (config.summary == Some(SummaryFormat::Text)).then(Highlights::default);
    let debug = config.debug;
    let started = prepared.start(buffers(lcores.len(), journal.is_some()), lcores.len() as u16)?;
    let mut outputs =
        Outputs { log, exports, eve, front, highlights, debug, failed: false, latest_ns: 0 };
    let mut running = Running::start(config, &lcores, started, journal, &mut outputs.front)?;
    let begun = Instant::now();
    running.attend(&mut stop, &mut outputs);
    Ok(running.finish(config, outputs, &mut stop, begun))
}

fn is_file(config: &Config) -> bool {
    matches!(config.source, SourceConfig::Files(_))
}

fn open_log(config: &Config) -> Result<Option<FlowLog>, RunError> {
    let Some(path) = &config.flow_log else { return Ok(None) };
    let settings = &config.export.file;
    let rotation = Rotation { size: settings.rotate_size, keep: settings.keep };
    let view = export::file_view(&settings.fields)?;
    let log = FlowLog::open(path, EventWriter::new(&config.sensor))?;
    Ok(Some(log.with(rotation, view)))
}

fn say_what_is_journaled(config: &Config) {
    let rules = &config.journal_rules;
    match (rules.filter.as_str(), config.journal_filter_is_default) {
        ("", _) => tracing::info!("the journal keeps every packet"),
        (filter, true) => tracing::info!(
            "the journal keeps what its default filter takes, {filter}; --pcap-filter \"\" keeps \
             every packet"
        ),
        (filter, false) => tracing::info!("the journal keeps what its filter takes, {filter}"),
    }
    if let Some(bytes) = rules.cutoff {
        tracing::info!("the journal keeps only headers of a flow after {bytes} bytes");
    }
}

/// What SIGINT and SIGTERM do: the first asks for an orderly end, one a second later ends the
/// process at once. What comes sooner is the same wish twice: `timeout`, for one, signals a process
/// and then its group.
///
/// SIGHUP asks for logs of the same names to be opened anew.
struct Stop {
    hang_up: Arc<AtomicBool>,
    wanted: Arc<AtomicBool>,
    at_once: Arc<AtomicBool>,
    since: Option<Instant>,
}

const SAME_WISH: Duration = Duration::from_secs(1);

impl Stop {
    fn on_signals() -> std::io::Result<Self> {
        use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
        let (wanted, at_once, hang_up) = (Arc::default(), Arc::default(), Arc::default());
        signal_hook::flag::register(SIGHUP, Arc::clone(&hang_up))?;
        for signal in [SIGINT, SIGTERM] {
            signal_hook::flag::register_conditional_shutdown(signal, 1, Arc::clone(&at_once))?;
            signal_hook::flag::register(signal, Arc::clone(&wanted))?;
        }
        Ok(Self { hang_up, wanted, at_once, since: None })
    }

    fn is_wanted(&mut self) -> bool {
        if !self.wanted.load(Ordering::Relaxed) {
            return false;
        }
        if self.since.get_or_insert_with(Instant::now).elapsed() > SAME_WISH {
            self.at_once.store(true, Ordering::Relaxed);
        }
        true
    }
}

/// Buffers that rings, bursts and caches can hold at once; devices' own rings come on top.
///
/// No more than that: a pool that fits the processor's cache is fast, and a large one takes long to
/// make.
fn buffers(lcores: usize, journal: bool) -> u32 {
    let workers = lcores - usize::from(journal && lcores > 1);
    let steered = if workers > 1 { STEER_RING } else { 0 };
    let journaled = if journal { JOURNAL_RING + 64 } else { 0 };
    let cache = dpdk::mempool::CACHE as usize * 3 / 2;
    (workers * (steered + journaled) + lcores * (cache + 4 * dpdk::BURST) + 512) as u32
}

/// A seed that others cannot guess, so that nobody can choose addresses that collide.
fn seed() -> u64 {
    RandomState::new().build_hasher().finish()
}

/// Everything that runs.
struct Running {
    inputs: Inputs,
    lcores: Vec<(u32, Thread<LcoreReport>, Arc<Published>)>,
    desk: Desk,
    watches: Option<Watches>,
    journal: Option<journal::Handle>,
    shared: Arc<Shared>,
    workers: usize,
}

impl Running {
    fn start(
        config: &Config,
        lcores: &[Lcore],
        started: Started,
        journal: Option<(Scribe, journal::Handle)>,
        front: &mut Front,
    ) -> Result<Self, RunError> {
        let Started { eal, inputs, queues } = started;
        let (queue_count, spread) = queues.shape();
        let plan = Plan::new(lcores.len(), queue_count, spread, journal.is_some());
        front.assign(&plan, lcores.len());
        let (mut scribe, journal) = journal.unzip();
        let mut tasks: Vec<Vec<Task>> = lcores.iter().map(|_| Vec::new()).collect();
        let mut links = Vec::new();
        let inputs_of_workers = deal_inputs(queues, &plan, &mut tasks);
        let waits = inputs_of_workers.iter().all(Input::waits);
        let mut desk = Desk::new(!waits, &config.sensor);
        let workers = plan.workers.len();
        let flows = config.max_flows.div_ceil(workers);
        let timeouts = Timeouts {
            idle_ns: config.idle_timeout.as_nanos() as u64,
            active_ns: config.active_timeout.as_nanos() as u64,
        };
        for (input, &at) in inputs_of_workers.into_iter().zip(&plan.workers) {
            let table = FlowTable::new(flows, timeouts, seed(), Machine);
            let (event_tx, event_rx) = RingBuffer::new(EVENT_RING);
            let giver = scribe.as_mut().map(|scribe| {
                let (tx, rx) = journal::handover(JOURNAL_RING);
                scribe.attach(rx);
                tx
            });
            let mut worker = Worker::new(input, table, event_tx, giver);
            if let Some(reading) = desk.join(event_rx, config.inspect_packets, flows) {
                worker.read_payloads(reading);
            }
            worker.show_flows(desk.peek());
            if !config.watch.is_empty() {
                let (watcher, link) = watch::connect(&config.watch, waits, seed());
                worker.watch(watcher);
                links.push(link);
            }
            if let Some(tasks) = tasks.get_mut(at) {
                tasks.push(Task::Worker(Box::new(worker)));
            }
        }
        if let (Some(mut scribe), Some(at)) = (scribe, plan.scribe) {
            scribe.wait_for_disk(waits);
            if let Some(journal) = &journal {
                journal.set_live(!waits);
            }
            if let Some(tasks) = tasks.get_mut(at) {
                tasks.push(Task::Scribe(Box::new(scribe)));
            }
        }
        let busy = config.poll == PollMode::Busy;
        let shared = Arc::new(Shared { busy, ..Shared::default() });
        let mut threads = Vec::new();
        for (lcore, tasks) in lcores.iter().zip(tasks) {
            let board = Arc::new(Published::default());
            let (theirs, shared) = (Arc::clone(&board), Arc::clone(&shared));
            let thread =
                lcore::spawn(&eal, lcore, move || crate::worker::run(tasks, &shared, &theirs))?;
            threads.push((lcore.id, thread, board));
        }
        let watches =
            (!links.is_empty()).then(|| Watches::new(config.watch.clone(), links, seed()));
        Ok(Self { inputs, lcores: threads, desk, watches, journal, shared, workers })
    }

    /// Takes events in until every lcore has ended.
    fn attend(&mut self, stop: &mut Stop, outputs: &mut Outputs) {
        let mut pause = PAUSE;
        let begun = Instant::now();
        let mut tick = begun;
        let (mut ticks, mut lost) = (0u32, 0);
        let counters = self.counters();
        self.publish(&counters, outputs);
        loop {
            if stop.is_wanted() {
                self.shared.stop.store(true, Ordering::Relaxed);
            }
            // Asked before the rings are emptied: nothing comes after the end.
            let ended = self.lcores.iter().all(|(_, thread, _)| thread.is_finished());
            self.hear(outputs);
            let mut taken = self.desk.take(ended, outputs);
            if stop.hang_up.swap(false, Ordering::Relaxed) {
                outputs.reopen();
            }
            if let Some(watches) = &mut self.watches {
                taken += watches.attend(|watched, verdict| outputs.verdict(watched, verdict));
            }
            if ended && taken == 0 {
                break;
            }
            if let Some(exports) = &mut outputs.exports {
                exports.pass_on();
            }
            if tick.elapsed() >= TICK {
                tick = Instant::now();
                ticks = ticks.wrapping_add(1);
                let counters = self.counters();
                if ticks.is_multiple_of(STATS) {
                    outputs.stats(begun, &counters);
                }
                outputs.flush();
                warn_of_losses(&counters, &mut lost);
                self.publish(&counters, outputs);
            }
            if taken == 0 {
                std::thread::sleep(pause);
                pause = (pause * 2).min(PAUSE_MAX);
            } else {
                pause = PAUSE;
            }
        }
        outputs.flush();
    }

    /// Answers what is asked, or has it answered.
    fn hear(&mut self, outputs: &mut Outputs) {
        while let Some(ask) = outputs.front.reception.next() {
            match ask {
                Ask::Flows(query, to) => self.desk.ask(query, to),
                Ask::Reload(to) => {
                    outputs.reopen();
                    // Who asked may have gone.
                    let _ = to.send(Reloaded { done: vec!["logs".into()], failed: Vec::new() });
                }
            }
        }
    }

    fn publish(&self, counters: &Counters, outputs: &mut Outputs) {
        let lcores = self.lcores.iter();
        let lcores = lcores.map(|(id, thread, board)| (*id, !thread.is_finished(), board.load()));
        let journal = self.journal.as_ref().map(|j| j.monitor().status());
        let export = outputs.exports.as_ref().map(Exports::status);
        outputs.front.publish(counters, lcores, journal, export);
    }

    /// The counters as they are.
    fn counters(&mut self) -> Counters {
        let mut now = self.inputs.losses();
        self.lcores.iter().for_each(|(_, _, board)| now.merge(&board.load()));
        if let Some(journal) = &self.journal {
            now.merge(&journal.monitor().counters());
        }
        now.set(Counter::FlowsForgotten, self.desk.forgotten());
        now
    }

    fn finish(
        self,
        config: &Config,
        mut outputs: Outputs,
        stop: &mut Stop,
        begun: Instant,
    ) -> Outcome {
        let mut counters = Counters::default();
        let mut complaints: Vec<Complaint> = Vec::new();
        let mut damaged = false;
        let mut received_until = begun;
        for (id, thread, _) in self.lcores {
            match thread.join() {
                Ok(report) => {
                    counters.merge(&report.counters);
                    complaints.extend(report.complaints);
                    received_until = received_until.max(report.received_until.unwrap_or(begun));
                }
                Err(_) => {
                    tracing::error!("lcore {id} panicked; what it held is lost");
                    damaged = true;
                }
            }
        }
        if let Some(untracked) = self.watches.map(|w| w.untracked()).filter(|n| *n > 0) {
            tracing::warn!(
                "[detect.watch]: {untracked} packets went to destinations above max_destinations; \
                 they are in the rates of the window, not in those of a destination"
            );
        }
        let journal = self.journal.map(|journal| {
            let (written, status) = journal.finish();
            counters.merge(&written);
            status
        });
        let received = counters.get(Counter::Packets);
        counters.set(Counter::FlowsForgotten, self.desk.forgotten());
        counters.merge(&self.inputs.finish(received));
        outputs.stats(begun, &counters);
        outputs.flush();
        for complaint in &complaints {
            tracing::warn!("{}", complaint.text);
            damaged |= !complaint.is_cut;
        }
        let incomplete: Vec<String> = complaints.into_iter().map(|c| c.text).collect();
        // A capture's events are all delivered; a sensor's may wait in the spool for its next start.
        let deliver = is_file(config) && !stop.is_wanted();
        let exported = outputs.exports.take().map(|e| e.finish(deliver, || stop.is_wanted()));
        damaged |= exported.as_ref().is_some_and(|(complete, _)| !complete);
        let summary = Summary {
            export: exported.map(|(_, status)| status),
            counters,
            elapsed: received_until - begun,
            journal,
            workers: self.workers,
            incomplete: &incomplete,
        };
        let text = match config.summary {
            Some(SummaryFormat::Json) => summary.json() + "\n",
            Some(SummaryFormat::Text) => {
                summary.text(&outputs.highlights.take().unwrap_or_default())
            }
            None => String::new(),
        };
        if let Err(e) = std::io::stdout().write_all(text.as_bytes()) {
            outputs.fail("the summary", &e);
        }
        if damaged || outputs.failed { Outcome::Damaged } else { Outcome::Complete }
    }
}

/// Says once a second that packets are being lost, and why.
fn warn_of_losses(now: &Counters, lost_before: &mut u64) {
    let lost = now.sum(Group::Drop);
    if lost > *lost_before {
        tracing::warn!(
            "{} packets lost since the last report; in all: {}",
            lost - *lost_before,
            now.reasons(Group::Drop)
        );
    }
    *lost_before = lost;
}

/// Gives each worker its input, and the dealing lcore its task.
fn deal_inputs(queues: Queues, plan: &Plan, tasks: &mut [Vec<Task>]) -> Vec<Input> {
    let workers = plan.workers.len();
    let Some(at) = plan.steer else {
        return queues.split(workers).into_iter().map(Input::Source).collect();
    };
    let sources = queues.split(1);
    let waits = sources.iter().all(Source::waits);
    let clock = Arc::new(AtomicU64::new(0));
    let mut rings = Vec::new();
    let inputs = (0..workers)
        .map(|_| {
            let (tx, rx) = RingBuffer::new(STEER_RING);
            rings.push(tx);
            Input::Ring { ring: rx, clock: Arc::clone(&clock), waits }
        })
        .collect();
    if let Some(tasks) = tasks.get_mut(at) {
        tasks.push(Task::Steer(Box::new(Steer::new(sources, rings, clock))));
    }
    inputs
}

/// Where events go.
struct Outputs {
    log: Option<FlowLog>,
    exports: Option<Exports>,
    eve: Option<EveLog>,
    front: Front,
    highlights: Option<Highlights>,
    debug: bool,
    failed: bool,
    /// The latest moment that anything was reported of.
    latest_ns: u64,
}

impl Outputs {
    fn take(&mut self, event: &FlowEvent, about: &About<'_>) {
        self.latest_ns = self.latest_ns.max(event.timestamp_ns);
        self.front.take(event);
        self.with_eve(|eve, out| eve.flow(event, about, out));
        if let Some(highlights) = &mut self.highlights {
            highlights.add(event);
        }
        if self.debug {
            self.show(event);
        }
        if let Some(log) = &mut self.log
            && let Err(e) = log.write(event, about)
        {
            self.fail("the flow log", &e);
        }
        if let Some(exports) = &mut self.exports {
            exports.take(event, about);
        }
    }

    fn hear(&mut self, note: &Note, fields: &[u8], heard: &Heard<'_>) {
        self.latest_ns = self.latest_ns.max(note.timestamp_ns);
        if let Some(highlights) = &mut self.highlights {
            highlights.hear(note, fields, heard.content);
        }
        self.with_eve(|eve, out| {
            eve.note(note, fields, heard.content, heard.http.as_ref(), heard.whole, out);
        });
    }

    fn stats(&mut self, begun: Instant, counters: &Counters) {
        let (at, uptime) = (self.latest_ns, begun.elapsed().as_secs());
        self.with_eve(|eve, out| eve.stats(at, uptime, counters, out));
    }

    fn with_eve(&mut self, write: impl FnOnce(&EveWriter, &mut Vec<u8>)) {
        if let Some(eve) = &mut self.eve
            && let Err(e) = eve.write(write)
        {
            self.fail("the EVE log", &e);
        }
    }

    /// What was found in one window, so that a reader sees it at once.
    fn verdict(&mut self, watched: &Watched, verdict: &Verdict) {
        let mut line = Vec::new();
        for finding in &verdict.findings {
            line.clear();
            // Writing to memory cannot fail.
            let _ = watched.eve.write(verdict, finding, &mut line);
            if finding.class.is_alarming() {
                self.front.reception.alert(verdict.start_ns, &line);
            }
            if finding.class != Class::Idle || watched.show_idle {
                self.with_eve(|_, out| out.extend_from_slice(&line));
            }
        }
        if let Some(eve) = &mut self.eve
            && let Err(e) = eve.flush()
        {
            self.fail("the EVE log", &e);
        }
    }

    fn show(&mut self, event: &FlowEvent) {
        let line = summary::one_line(event);
        tracing::debug!("flow {line}");
        if let Err(e) = writeln!(std::io::stdout(), "{line}") {
            self.fail("standard output", &e);
            self.debug = false;
        }
    }

    fn flush(&mut self) {
        if let Some(log) = &mut self.log
            && let Err(e) = log.flush()
        {
            self.fail("the flow log", &e);
        }
        if let Some(eve) = &mut self.eve
            && let Err(e) = eve.flush()
        {
            self.fail("the EVE log", &e);
        }
    }

    fn reopen(&mut self) {
        if let Some(log) = &mut self.log
            && let Err(e) = log.reopen()
        {
            self.fail("the flow log", &e);
        }
        if let Some(eve) = &mut self.eve
            && let Err(e) = eve.reopen()
        {
            self.fail("the EVE log", &e);
        }
    }

    fn fail(&mut self, what: &str, e: &std::io::Error) {
        if !self.failed {
            tracing::error!("{what} cannot be written: {e}");
        }
        self.failed = true;
    }
}
