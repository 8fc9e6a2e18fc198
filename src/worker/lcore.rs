//! What an lcore runs: its tasks in turn, and less often the longer nothing happens.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::Worker;
use crate::capture::{Complaint, Steer};
use crate::journal::Scribe;
use crate::status::{Counters, Published, Turn};

/// One job of an lcore.
pub enum Task {
    Steer(Box<Steer>),
    Worker(Box<Worker>),
    Scribe(Box<Scribe>),
}

/// What all lcores and the control thread see.
#[derive(Debug, Default)]
pub struct Shared {
    /// Set once: take nothing new in, report everything, end.
    pub stop: AtomicBool,
    /// Poll on though nothing arrives, instead of sleeping.
    pub busy: bool,
}

/// What an lcore leaves behind.
#[derive(Debug, Default)]
pub struct LcoreReport {
    pub counters: Counters,
    /// When the last of its inputs ended.
    pub received_until: Option<Instant>,
    pub complaints: Vec<Complaint>,
}

/// Turns between publications of the counters.
const PUBLISH: u32 = 256;
/// Idle turns spent spinning, then yielding, before sleeping.
const SPIN: u32 = 64;
const YIELD: u32 = 256;
/// The longest sleep at first: what a ring of 4,096 takes at 14.88 Mpps.
const SLEEP: Duration = Duration::from_micros(250);
/// The longest sleep after a second without a packet, and the idle turns that make a second.
const SLEEP_LONG: Duration = Duration::from_millis(1);
const LONG_IDLE: u32 = YIELD + 4_000;

/// Runs the tasks until all have ended.
pub fn run(mut tasks: Vec<Task>, shared: &Arc<Shared>, board: &Published) -> LcoreReport {
    let mut report = LcoreReport::default();
    let (mut turns, mut idle, mut stopping) = (0u32, 0u32, false);
    while !tasks.is_empty() {
        if !stopping && shared.stop.load(Ordering::Relaxed) {
            stopping = true;
            tasks.iter_mut().for_each(Task::stop);
        }
        let mut busy = false;
        tasks.retain_mut(|task| {
            let turn = task.turn(stopping);
            busy |= turn == Turn::Busy;
            if turn == Turn::End {
                report.take(task);
            }
            turn != Turn::End
        });
        turns = turns.wrapping_add(1);
        if busy {
            idle = 0;
        } else {
            idle = idle.saturating_add(1);
            if shared.busy { std::hint::spin_loop() } else { back_off(idle) }
        }
        if turns.is_multiple_of(PUBLISH) || idle == YIELD {
            let mut sum = report.counters;
            tasks.iter().for_each(|t| sum.merge(t.counters()));
            board.store(&sum);
        }
    }
    board.store(&report.counters);
    report
}

/// Rests after this many turns without work in a row.
pub fn back_off(idle: u32) {
    if idle < SPIN {
        std::hint::spin_loop();
    } else if idle < YIELD {
        std::thread::yield_now();
    } else {
        let step = Duration::from_micros(u64::from(idle - YIELD + 1));
        std::thread::sleep(step.min(if idle < LONG_IDLE { SLEEP } else { SLEEP_LONG }));
    }
}

impl Task {
    fn turn(&mut self, stopping: bool) -> Turn {
        match self {
            Self::Worker(worker) => worker.turn(stopping),
            Self::Steer(steer) => steer.turn(),
            Self::Scribe(scribe) => scribe.turn(),
        }
    }

    fn stop(&mut self) {
        match self {
            Self::Worker(worker) => worker.stop(),
            Self::Steer(steer) => steer.stop(),
            // It ends when the workers do.
            Self::Scribe(_) => {}
        }
    }

    fn counters(&self) -> &Counters {
        match self {
            Self::Worker(worker) => &worker.counters,
            Self::Steer(steer) => &steer.counters,
            Self::Scribe(scribe) => &scribe.counters,
        }
    }
}

impl LcoreReport {
    fn take(&mut self, task: &Task) {
        self.counters.merge(task.counters());
        match task {
            Task::Worker(worker) => {
                self.complaints.extend(worker.complaints());
                self.received_until = self.received_until.max(worker.received_until());
            }
            Task::Steer(steer) => self.complaints.extend(steer.complaints()),
            Task::Scribe(_) => {}
        }
    }
}
