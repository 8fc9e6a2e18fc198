//! The whole sensor: opens, starts, runs, and ends in the right order.
//!
//! Start: everything that can be refused for a plain reason, then DPDK, then ports, then lcores.
//! End (a signal, or the end of the files): sources take nothing new in and are read out; workers
//! report their flows and end; the journal's lcore ends when they have; its writer when that has;
//! then losses are counted for the last time, ports stop, and interfaces are put back.

mod inputs;
mod plan;
mod summary;

use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};
use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use dpdk::lcore::{self, Lcore, Thread};
use rtrb::{Consumer, RingBuffer};

use crate::capture::{Complaint, OpenError, Source, Steer};
use crate::config::{Config, SourceConfig, SummaryFormat};
use crate::event::{EventWriter, FlowEvent};
use crate::export::{self, ExportConfig, ExportError, Exports, FlowLog, OpenLogError, Rotation};
use crate::flow::{FlowTable, Timeouts};
use crate::journal::{self, JournalConfig, JournalError, Scribe, Writer};
use crate::status::{Counter, Counters, Group, Published};
use crate::worker::{Input, LcoreReport, Machine, Shared, Task, Worker};
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
    let journal = match config.journal {
        true => Some(journal::start(JournalConfig {
            directory: config.data_dir.join("pcap"),
            rotate_size: config.rotate_size,
        })?),
        false => None,
    };
    let mut stop = Stop::on_signals().map_err(RunError::Signals)?;
    let reopen = export::reopen_wanted().map_err(RunError::Signals)?;
    // Its threads begin here, where they are free to run on every CPU.
    let exports = Exports::start(&ExportConfig {
        names: &config.exporters,
        settings: &config.export,
        directory: config.data_dir.join("buffer"),
        sensor: &config.sensor,
        waits: is_file(config),
    })?;
    let started = prepared.start(buffers(lcores.len(), journal.is_some()), lcores.len() as u16)?;
    let mut running = Running::start(config, &lcores, started, journal)?;
    // Only the tables need them, and they cost a look at every event.
    let highlights = (config.summary == Some(SummaryFormat::Text)).then(Highlights::default);
    let mut outputs =
        Outputs { log, exports, reopen, highlights, debug: config.debug, failed: false };
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

/// What SIGINT and SIGTERM do: the first asks for an orderly end, one a second later ends the
/// process at once. What comes sooner is the same wish twice: `timeout`, for one, signals a process
/// and then its group.
struct Stop {
    wanted: Arc<AtomicBool>,
    at_once: Arc<AtomicBool>,
    since: Option<Instant>,
}

const SAME_WISH: Duration = Duration::from_secs(1);

impl Stop {
    fn on_signals() -> std::io::Result<Self> {
        use signal_hook::consts::{SIGINT, SIGTERM};
        let (wanted, at_once) = (Arc::default(), Arc::default());
        for signal in [SIGINT, SIGTERM] {
            signal_hook::flag::register_conditional_shutdown(signal, 1, Arc::clone(&at_once))?;
            signal_hook::flag::register(signal, Arc::clone(&wanted))?;
        }
        Ok(Self { wanted, at_once, since: None })
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

/// Buffers that rings, bursts and caches can hold at once.
fn buffers(lcores: usize, journal: bool) -> u32 {
    let rings = STEER_RING + if journal { JOURNAL_RING + 64 } else { 0 };
    let cache = dpdk::mempool::CACHE as usize * 3 / 2;
    (lcores * (rings + cache + 4 * dpdk::BURST) + 2048) as u32
}

/// A seed that others cannot guess, so that nobody can choose addresses that collide.
fn seed() -> u64 {
    RandomState::new().build_hasher().finish()
}

/// Everything that runs.
struct Running {
    inputs: Inputs,
    lcores: Vec<(u32, Thread<LcoreReport>, Arc<Published>)>,
    events: Vec<Consumer<FlowEvent>>,
    writer: Option<Writer>,
    shared: Arc<Shared>,
    workers: usize,
}

impl Running {
    fn start(
        config: &Config,
        lcores: &[Lcore],
        started: Started,
        journal: Option<(Scribe, Writer)>,
    ) -> Result<Self, RunError> {
        let Started { eal, inputs, queues } = started;
        let (queue_count, spread) = queues.shape();
        let plan = Plan::new(lcores.len(), queue_count, spread, journal.is_some());
        let (mut scribe, writer) = journal.unzip();
        let mut tasks: Vec<Vec<Task>> = lcores.iter().map(|_| Vec::new()).collect();
        let mut events = Vec::new();
        let inputs_of_workers = deal_inputs(queues, &plan, &mut tasks);
        let waits = inputs_of_workers.iter().all(Input::waits);
        let workers = plan.workers.len();
        let timeouts = Timeouts {
            idle_ns: config.idle_timeout.as_nanos() as u64,
            active_ns: config.active_timeout.as_nanos() as u64,
        };
        for (input, &at) in inputs_of_workers.into_iter().zip(&plan.workers) {
            let table =
                FlowTable::new(config.max_flows.div_ceil(workers), timeouts, seed(), Machine);
            let (event_tx, event_rx) = RingBuffer::new(EVENT_RING);
            let journal = scribe.as_mut().map(|scribe| {
                let (tx, rx) = RingBuffer::new(JOURNAL_RING);
                scribe.attach(rx);
                tx
            });
            events.push(event_rx);
            if let Some(tasks) = tasks.get_mut(at) {
                tasks.push(Task::Worker(Box::new(Worker::new(input, table, event_tx, journal))));
            }
        }
        if let (Some(mut scribe), Some(at)) = (scribe, plan.scribe) {
            scribe.wait_for_disk(waits);
            if let Some(tasks) = tasks.get_mut(at) {
                tasks.push(Task::Scribe(Box::new(scribe)));
            }
        }
        let shared = Arc::new(Shared::default());
        let mut threads = Vec::new();
        for (lcore, tasks) in lcores.iter().zip(tasks) {
            let board = Arc::new(Published::default());
            let (theirs, shared) = (Arc::clone(&board), Arc::clone(&shared));
            let thread =
                lcore::spawn(&eal, lcore, move || crate::worker::run(tasks, &shared, &theirs))?;
            threads.push((lcore.id, thread, board));
        }
        Ok(Self { inputs, lcores: threads, events, writer, shared, workers })
    }

    /// Takes events in until every lcore has ended.
    fn attend(&mut self, stop: &mut Stop, outputs: &mut Outputs) {
        let mut pause = PAUSE;
        let mut tick = Instant::now();
        let mut lost = 0;
        loop {
            if stop.is_wanted() {
                self.shared.stop.store(true, Ordering::Relaxed);
            }
            // Asked before the rings are emptied: nothing comes after the end.
            let ended = self.lcores.iter().all(|(_, thread, _)| thread.is_finished());
            let mut taken = 0;
            for ring in &mut self.events {
                let n = ring.slots();
                if let Ok(chunk) = ring.read_chunk(n) {
                    taken += n;
                    chunk.into_iter().for_each(|event| outputs.take(&event));
                }
            }
            if ended && taken == 0 {
                break;
            }
            outputs.pass_on();
            if tick.elapsed() >= TICK {
                tick = Instant::now();
                outputs.flush();
                self.warn_of_losses(&mut lost);
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

    /// Says once a second that packets are being lost, and why.
    fn warn_of_losses(&mut self, lost_before: &mut u64) {
        let mut now = self.inputs.losses();
        self.lcores.iter().for_each(|(_, _, board)| now.merge(&board.load()));
        if let Some(writer) = &self.writer {
            now.merge(&writer.published().load());
        }
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
        if let Some(writer) = self.writer {
            counters.merge(&writer.finish());
        }
        let received = counters.get(Counter::Packets);
        counters.merge(&self.inputs.finish(received));
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
    /// Set when the log is to be opened anew.
    reopen: Arc<AtomicBool>,
    highlights: Option<Highlights>,
    debug: bool,
    failed: bool,
}

impl Outputs {
    fn take(&mut self, event: &FlowEvent) {
        if let Some(highlights) = &mut self.highlights {
            highlights.add(event);
        }
        if self.debug {
            self.show(event);
        }
        if let Some(log) = &mut self.log
            && let Err(e) = log.write(event)
        {
            self.fail("the flow log", &e);
        }
        if let Some(exports) = &mut self.exports {
            exports.take(event);
        }
    }

    /// When a turn's events are all taken.
    fn pass_on(&mut self) {
        if let Some(exports) = &mut self.exports {
            exports.pass_on();
        }
        if export::taken(&self.reopen)
            && let Some(log) = &mut self.log
            && let Err(e) = log.reopen()
        {
            self.fail("the flow log", &e);
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
    }

    fn fail(&mut self, what: &str, e: &std::io::Error) {
        if !self.failed {
            tracing::error!("{what} cannot be written: {e}");
        }
        self.failed = true;
    }
}
