//! The whole sensor: opens, starts, runs, and ends in the right order.
//!
//! Start: everything that can be refused for a plain reason, then DPDK and its ports; then a thread
//! without capabilities starts and attends to all the rest: journal, exporters, lcores.
//! End (a signal, or the end of the files): sources take nothing new in and are read out; workers
//! report their flows and end; the journal's lcore ends when they have; its writer when that has;
//! then losses are counted for the last time, ports stop, and interfaces are put back.

mod desk;
mod front;
mod health;
pub(crate) mod inputs;
mod plan;
mod quiet;
mod reload;
mod service;
mod summary;

use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};
use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use dpdk::lcore::{self, Lcore, Thread};
use rtrb::RingBuffer;
use tokio::sync::oneshot;

use crate::api::{Api, ApiError};
use crate::capture::{Complaint, OpenError, Source, Steer};
use crate::config::{Config, Idle, SourceConfig, SummaryFormat};
use crate::control::{Ask, Reloaded};
use crate::detect::watch::{self, Watched, Watches};
use crate::detect::{Class, Verdict};
use crate::doctor::Look;
use crate::eve::EveWriter;
use crate::event::{About, EventWriter, FlowEvent, Note};
use crate::export::{
    self, EveLog, ExportConfig, ExportError, Exports, FlowLog, OpenLogError, Rotation,
};
use crate::filter::{FilterError, Filters};
use crate::flow::{FlowTable, Timeouts};
use crate::inspect::collect::Heard;
use crate::journal::{self, JournalConfig, JournalError, Scribe, retention};
use crate::shunt::{Blocklist, ListError};
use crate::status::{Counter, Counters, Group, Published};
use crate::worker::{Input, LcoreReport, Machine, Rest, Shared, Task, Worker};
use desk::Desk;
use front::Front;
use health::Health;
use inputs::{Inputs, Prepared, Queues, Started};
use plan::Plan;
use quiet::Quiet;
use reload::Changeable;
use service::Service;
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
    Blocklist(#[from] ListError),
    #[error("the capture filter: {0}")]
    Filter(#[from] FilterError),
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
    #[error("the control thread did not start: {0}")]
    Control(std::io::Error),
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
    let lcores = lcores(config)?;
    let prepared = Prepared::new(&config.source)?;
    let blocklist = open_blocklist(config)?;
    say_what_is_looked_at(config);
    let log = open_log(config)?;
    let eve = match &config.eve_log {
        Some(path) => {
            let writer = EveWriter::new(&config.sensor, config.source.interface());
            Some(EveLog::open(path, writer)?)
        }
        None => None,
    };
    let stop = Stop::on_signals().map_err(RunError::Signals)?;
    // A capture that comes through a pipe may keep us waiting for its first packet.
    let exports = if is_file(config) { Some(start_exports(config)?) } else { None };
    let started = prepared.start(buffers(lcores.len(), config.journal), lcores.len() as u16)?;
    // The interfaces are put back here, where the capabilities for it still are.
    let custody = started.inputs.custody();
    let outcome = std::thread::scope(|scope| {
        let run = || {
            service::give_up_capabilities();
            attended(config, &lcores, started, stop, blocklist, (log, eve, exports))
        };
        let builder = std::thread::Builder::new().name("control".into());
        let control = builder.spawn_scoped(scope, run).map_err(RunError::Control)?;
        control.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    });
    drop(custody);
    outcome
}

/// Everything after DPDK's start.
fn attended(
    config: &Config,
    lcores: &[Lcore],
    started: Started,
    mut stop: Stop,
    blocklist: Option<Arc<Blocklist>>,
    (log, eve, exports): (Option<FlowLog>, Option<EveLog>, Option<Option<Exports>>),
) -> Result<Outcome, RunError> {
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
    let exports = match exports {
        Some(started) => started,
        None => start_exports(config)?,
    };
    let (house, front) = Front::open(config);
    // Dropped last: it answers until everything has ended.
    let _api = Api::start(&config.api, house, journal.as_ref().map(|(_, handle)| handle))?;
    // Only then it matters where flows begin in the journal.
    let reports = log.is_some() || exports.is_some();
    // Only the tables need them, and they cost a look at every event.
    let highlights = (config.summary == Some(SummaryFormat::Text)).then(Highlights::default);
    let debug = config.debug;
    let live = !is_file(config);
    let data = live.then(|| config.data_dir.clone());
    let health = Health::new(config.source.interface(), data);
    let mut outputs = Outputs {
        log,
        exports,
        eve,
        front,
        highlights,
        health,
        debug,
        failed: false,
        latest_ns: 0,
    };
    let mut running =
        Running::start(config, lcores, started, journal, blocklist, reports, &mut outputs.front)?;
    let begun = Instant::now();
    running.attend(&mut stop, &mut outputs);
    Ok(running.finish(config, outputs, &mut stop, begun))
}

/// Whether this machine could run the configuration, as far as that can be said without opening
/// anything.
pub fn check(config: &Config) -> Result<(), RunError> {
    lcores(config).map(drop)
}

fn start_exports(config: &Config) -> Result<Option<Exports>, ExportError> {
    Exports::start(&ExportConfig {
        names: &config.exporters,
        settings: &config.export,
        directory: config.data_dir.join("buffer"),
        sensor: &config.sensor,
        waits: is_file(config),
    })
}

fn lcores(config: &Config) -> Result<Vec<Lcore>, RunError> {
    let allowed = lcore::affinity().map_err(RunError::Affinity)?;
    Ok(match &config.lcores {
        Some(list) => lcore::parse(list, &allowed)?,
        None => vec![Lcore { id: 0, cpus: allowed }],
    })
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

fn open_blocklist(config: &Config) -> Result<Option<Arc<Blocklist>>, RunError> {
    let Some(path) = &config.blocklist else { return Ok(None) };
    let blocklist = Blocklist::open(path)?;
    quiet::say(&blocklist, &blocklist.loaded());
    Ok(Some(Arc::new(blocklist)))
}

fn say_what_is_looked_at(config: &Config) {
    let rules = &config.capture;
    let text = if rules.expression.is_empty() { "every packet" } else { &rules.expression };
    if !rules.given.is_empty() {
        tracing::info!("telemetry and journal see what {} takes: {text}", rules.given);
    }
    if let Some(unused) = &rules.unused {
        tracing::warn!("{unused} is not used: {} beats it", rules.given);
    }
    if rules.exclude_web {
        tracing::info!("telemetry and journal do not see ports 80 and 443 (--exclude-web)");
    }
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
    quiet: Option<Quiet>,
    changeable: Changeable,
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
        blocklist: Option<Arc<Blocklist>>,
        reports: bool,
        front: &mut Front,
    ) -> Result<Self, RunError> {
        let Started { eal, inputs, queues } = started;
        let (queue_count, spread) = queues.shape();
        // What a name silences must be known before the next packet; only one worker's order of a
        // capture is the capture's own.
        let together = blocklist.is_some() && is_file(config);
        let most = if together { 1 + usize::from(journal.is_some()) } else { usize::MAX };
        let plan = Plan::new(lcores.len().min(most), queue_count, spread, journal.is_some());
        front.assign(&plan, lcores.len());
        let (mut scribe, journal) = journal.unzip();
        let mut tasks: Vec<Vec<Task>> = lcores.iter().map(|_| Vec::new()).collect();
        let mut links = Vec::new();
        let inputs_of_workers = deal_inputs(queues, &plan, &mut tasks);
        let waits = inputs_of_workers.iter().all(Input::waits);
        let mut desk = Desk::new(!waits, &config.sensor);
        if let Some(scribe) = scribe.as_mut().filter(|_| reports) {
            desk.look_up(scribe.tell_places());
        }
        let workers = plan.workers.len();
        let flows = config.max_flows.div_ceil(workers);
        let timeouts = Timeouts {
            idle_ns: config.idle_timeout.as_nanos() as u64,
            active_ns: config.active_timeout.as_nanos() as u64,
        };
        let (quiet, silencers) = blocklist.map(|list| Quiet::new(list, workers)).unzip();
        let mut silencers = silencers.unwrap_or_default().into_iter();
        let mut filters = Vec::new();
        for (input, &at) in inputs_of_workers.into_iter().zip(&plan.workers) {
            let table = FlowTable::new(flows, timeouts, seed(), Machine);
            let (event_tx, event_rx) = RingBuffer::new(EVENT_RING);
            let (giver, progress) = scribe
                .as_mut()
                .map(|scribe| {
                    let (tx, rx) = journal::handover(JOURNAL_RING);
                    let progress = rx.progress();
                    scribe.attach(rx);
                    (tx, progress)
                })
                .unzip();
            let mut worker = Worker::new(input, table, event_tx, giver);
            let progress = progress.filter(|_| reports);
            if let Some(reading) = desk.join(event_rx, progress, config.inspect_packets, flows) {
                worker.read_payloads(reading);
            }
            worker.show_flows(desk.peek());
            if let Some(silencer) = silencers.next() {
                worker.silence(silencer);
            }
            let filter = Filters::new(reload::CAPTURE_FILTER, &config.capture.expressions())?;
            let (others, others_rx) = RingBuffer::new(1);
            worker.filter(filter, others_rx);
            filters.push(others);
            if !waits {
                worker.look(Look::new(inputs.macs()));
            }
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
        let rest = match config.idle {
            Idle::Interrupt => Rest::Bell,
            Idle::Sleep => Rest::Sleep,
            Idle::Busy => Rest::Busy,
        };
        let shared = Arc::new(Shared { rest, ..Shared::default() });
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
        let changeable = Changeable::new(config, filters);
        Ok(Self {
            inputs,
            lcores: threads,
            desk,
            watches,
            quiet,
            changeable,
            journal,
            shared,
            workers,
        })
    }

    /// Takes events in until every lcore has ended.
    fn attend(&mut self, stop: &mut Stop, outputs: &mut Outputs) {
        let mut pause = PAUSE;
        let begun = Instant::now();
        let mut tick = begun;
        let (mut ticks, mut lost) = (0u32, 0);
        let mut service = Service::new();
        let counters = self.counters();
        self.publish(&counters, outputs);
        service.ready();
        loop {
            if stop.is_wanted() && !self.shared.stop.swap(true, Ordering::Relaxed) {
                service.stopping();
            }
            let stopping = self.shared.stop.load(Ordering::Relaxed);
            if self.shared.has_died.load(Ordering::Relaxed) && !stopping {
                tracing::error!("an lcore died; the others report what they have, then we end");
                self.give_up(outputs);
            }
            // Asked before the rings are emptied: nothing comes after the end.
            let ended = self.lcores.iter().all(|(_, thread, _)| thread.is_finished());
            self.hear(outputs, &service);
            let mut taken = self.desk.take(ended, outputs);
            if stop.hang_up.swap(false, Ordering::Relaxed) {
                service.reloading(|| self.reload(outputs, None));
            }
            if let Some(watches) = &mut self.watches {
                let journal = self.journal.as_ref();
                taken += watches.attend(|watched, verdict| {
                    // Before the alert can be seen: from then on the host's packets are whole.
                    if let Some(journal) = journal
                        && verdict.findings.iter().any(|f| f.class.is_alarm())
                    {
                        journal.monitor().alerted(watched.scope.host.ip());
                    }
                    outputs.verdict(watched, verdict);
                });
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
                let mut counters = self.counters();
                counters.merge(outputs.health.counters());
                if ticks.is_multiple_of(STATS) {
                    outputs.stats(begun, &counters);
                }
                outputs.flush();
                warn_of_losses(&counters, &mut lost);
                self.publish(&counters, outputs);
                if let Some(quiet) = &mut self.quiet {
                    quiet.attend(self.desk.collector());
                }
                if !self.is_well(&counters, &mut service, outputs) {
                    tracing::error!(
                        "it does not end; giving up. What the journal calls safe is safe"
                    );
                    std::process::exit(1);
                }
            }
            if taken == 0 {
                std::thread::sleep(pause);
                pause = (pause * 2).min(PAUSE_MAX);
            } else {
                pause = PAUSE;
            }
        }
        if let Some(quiet) = &mut self.quiet {
            quiet.attend(self.desk.collector());
        }
        outputs.flush();
    }

    /// Answers what is asked, or has it answered.
    fn hear(&mut self, outputs: &mut Outputs, service: &Service) {
        while let Some(ask) = outputs.front.reception.next() {
            match ask {
                Ask::Flows(query, to) => self.desk.ask(query, to),
                Ask::Reload(to) => service.reloading(|| self.reload(outputs, Some(to))),
            }
        }
    }

    fn reload(&mut self, outputs: &mut Outputs, to: Option<oneshot::Sender<Reloaded>>) {
        let journal = self.journal.as_ref().map(journal::Handle::monitor);
        self.changeable.reload(outputs, journal.as_ref(), self.quiet.as_ref(), to);
    }

    fn publish(&self, counters: &Counters, outputs: &mut Outputs) {
        let lcores = self.lcores.iter();
        let lcores = lcores.map(|(id, thread, board)| (*id, !thread.is_finished(), board.load()));
        let journal = self.journal.as_ref().map(|j| j.monitor().status());
        let export = outputs.exports.as_ref().map(Exports::status);
        let findings = outputs.health.findings().to_vec();
        outputs.front.publish(counters, lcores, journal, export, findings);
    }

    /// Looks at everything that must not go wrong in silence; false when nothing helps any more.
    fn is_well(
        &mut self,
        counters: &Counters,
        service: &mut Service,
        outputs: &mut Outputs,
    ) -> bool {
        match self.inputs.look() {
            Ok(link) => outputs.health.link(link),
            Err(gone) if !self.shared.stop.load(Ordering::Relaxed) => {
                tracing::error!("{gone}; what was received is reported, then we end");
                self.give_up(outputs);
            }
            Err(_) => {}
        }
        let running = self.lcores.iter().filter(|(_, thread, _)| !thread.is_finished());
        outputs.health.beats(running.map(|(id, _, board)| (*id, board.beats())));
        let journal = self.journal.as_ref().map(|j| j.monitor().status());
        outputs.health.look(counters, journal.as_ref());
        if outputs.health.stuck().is_some() && !self.shared.stop.load(Ordering::Relaxed) {
            self.give_up(outputs);
        }
        let status = format!(
            "{} packets, {} flows, {} lost, {} findings",
            counters.get(Counter::Packets),
            counters.get(Counter::Flows),
            counters.sum(Group::Drop),
            outputs.health.findings().len()
        );
        service.report(&status, outputs.health.is_alive());
        !service.is_lost(outputs.health.stuck().is_some())
    }

    /// Ends in order, as far as that goes, and as a failure.
    fn give_up(&self, outputs: &mut Outputs) {
        outputs.failed = true;
        self.shared.stop.store(true, Ordering::Relaxed);
    }

    /// The counters as they are.
    fn counters(&mut self) -> Counters {
        let mut now = self.inputs.losses();
        self.lcores.iter().for_each(|(_, _, board)| now.merge(&board.load()));
        if let Some(journal) = &self.journal {
            now.merge(&journal.monitor().counters());
        }
        now.set(Counter::FlowsForgotten, self.desk.forgotten());
        now.set(Counter::SilencedEvents, self.desk.silenced());
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
        counters.merge(outputs.health.counters());
        let journal = self.journal.map(|journal| {
            let (written, status) = journal.finish();
            counters.merge(&written);
            status
        });
        let received = counters.get(Counter::Packets);
        counters.set(Counter::FlowsForgotten, self.desk.forgotten());
        counters.set(Counter::SilencedEvents, self.desk.silenced());
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
        let findings = outputs.health.judge(&counters, journal.as_ref());
        let summary = Summary {
            findings: &findings,
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
    health: Health,
    debug: bool,
    failed: bool,
    /// The latest moment that anything was reported of.
    latest_ns: u64,
}

impl Outputs {
    fn take(&mut self, event: &FlowEvent, about: &About<'_>) {
        self.latest_ns = self.latest_ns.max(event.timestamp_ns);
        self.front.take(event);
        self.health.flow(event);
        if self.debug {
            self.show(event);
        }
        if event.silenced {
            return;
        }
        self.with_eve(|eve, out| eve.flow(event, about, out));
        if let Some(highlights) = &mut self.highlights {
            highlights.add(event);
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
            if finding.class.is_alarm() {
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

    /// Opens logs of the same names anew; false if one stays as it was.
    fn reopen(&mut self) -> bool {
        let mut all = true;
        if let Some(log) = &mut self.log
            && let Err(e) = log.reopen()
        {
            self.fail("the flow log", &e);
            all = false;
        }
        if let Some(eve) = &mut self.eve
            && let Err(e) = eve.reopen()
        {
            self.fail("the EVE log", &e);
            all = false;
        }
        all
    }

    fn fail(&mut self, what: &str, e: &std::io::Error) {
        if !self.failed {
            tracing::error!("{what} cannot be written: {e}");
        }
        self.failed = true;
    }
}
