//! What an lcore runs: its tasks in turn, and less often the longer nothing happens.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use dpdk::{Bell, idle};

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
    /// An lcore panicked.
    pub has_died: AtomicBool,
    /// What to do when nothing arrives.
    pub rest: Rest,
}

/// What an lcore does when nothing arrives.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Rest {
    /// Sleep until a device rings, where all that the lcore reads can.
    Bell,
    /// Sleep longer and longer.
    #[default]
    Sleep,
    /// Poll on.
    Busy,
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

/// The longest sleep where a device rings; timers and the counters' publication wait for it.
const SLEEP_BELL: Duration = Duration::from_millis(20);

/// Runs the tasks until all have ended.
pub fn run(mut tasks: Vec<Task>, shared: &Arc<Shared>, board: &Published) -> LcoreReport {
    let _tells = TellsOfItsDeath(shared);
    let mut report = LcoreReport::default();
    let (mut turns, mut idle, mut stopping) = (0u32, 0u32, false);
    let mut sleeper = Sleeper::new(shared.rest, &tasks);
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
        board.beat(u64::from(turns));
        let mut slept = false;
        if busy {
            idle = 0;
            sleeper.wake();
        } else {
            idle = idle.saturating_add(1);
            slept = sleeper.rest(idle);
        }
        if turns.is_multiple_of(PUBLISH) || idle == YIELD || slept {
            let mut sum = report.counters;
            tasks.iter().for_each(|t| sum.merge(t.counters()));
            board.store(&sum);
        }
    }
    board.store(&report.counters);
    report
}

/// Whoever looks at [`Shared`] learns of a panic, though others go on.
struct TellsOfItsDeath<'a>(&'a Shared);

impl Drop for TellsOfItsDeath<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.has_died.store(true, Ordering::Relaxed);
        }
    }
}

/// How an lcore rests.
struct Sleeper {
    rest: Rest,
    bells: Vec<Bell>,
    /// The devices were told to ring; one more poll, then we sleep.
    is_armed: bool,
}

impl Sleeper {
    fn new(rest: Rest, tasks: &[Task]) -> Self {
        let mut bells = Vec::new();
        if rest == Rest::Bell {
            let all: Option<Vec<Vec<Bell>>> = tasks.iter().map(Task::bells).collect();
            bells = all.unwrap_or_default().concat();
            bells.truncate(idle::MOST + 1);
        }
        let rest = match rest {
            Rest::Bell if bells.is_empty() || bells.len() > idle::MOST => Rest::Sleep,
            rest => rest,
        };
        Self { rest, bells, is_armed: false }
    }

    /// Rests after this many turns without work in a row; whether that was a sleep until a ring.
    fn rest(&mut self, turns: u32) -> bool {
        match self.rest {
            Rest::Busy => std::hint::spin_loop(),
            Rest::Bell if turns >= YIELD && self.is_armed => {
                idle::sleep(&self.bells, SLEEP_BELL);
                self.is_armed = false;
                return true;
            }
            Rest::Bell if turns >= YIELD => {
                self.is_armed = idle::arm(&self.bells);
                if !self.is_armed {
                    self.rest = Rest::Sleep;
                }
            }
            Rest::Bell | Rest::Sleep => back_off(turns),
        }
        false
    }

    /// There is work after all.
    fn wake(&mut self) {
        if self.is_armed {
            idle::sleep(&self.bells, Duration::ZERO);
            self.is_armed = false;
        }
    }
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

    /// What rings when there is something to do; `None` where nothing would.
    fn bells(&self) -> Option<Vec<Bell>> {
        match self {
            Self::Worker(worker) => worker.bells(),
            Self::Steer(steer) => steer.bells(),
            // It shares an lcore only where there is one, and is then fed by it.
            Self::Scribe(_) => Some(Vec::new()),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_lcore_that_panics_tells_of_it() {
        let shared = Arc::new(Shared::default());
        let theirs = Arc::clone(&shared);
        let thread = std::thread::spawn(move || {
            let _tells = TellsOfItsDeath(&theirs);
            panic!("on purpose, in a test");
        });
        assert!(thread.join().is_err() && shared.has_died.load(Ordering::Relaxed));
    }
}
