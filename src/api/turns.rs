//! Turns at the disk: so many at once, the others in the order of their coming.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How often those who wait look whether they still have to.
const LOOK: Duration = Duration::from_millis(200);
/// A turn this long ends when somebody waits.
const SLICE: Duration = Duration::from_millis(100);

#[derive(Debug)]
struct Queue {
    free: usize,
    waiting: VecDeque<u64>,
    next: u64,
}

/// The turns there are.
#[derive(Debug)]
pub(super) struct Turns {
    queue: Mutex<Queue>,
    changed: Condvar,
}

/// One turn, given back when dropped.
#[derive(Debug)]
pub(super) struct Turn {
    of: Arc<Turns>,
    since: Instant,
}

impl Turns {
    pub(super) fn new(turns: usize) -> Self {
        let queue = Queue { free: turns, waiting: VecDeque::new(), next: 0 };
        Self { queue: Mutex::new(queue), changed: Condvar::new() }
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        // Three numbers, whole whoever panicked.
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for a turn; `None` when `stop` is set, or after `patience`.
    pub(super) fn take(
        self: &Arc<Self>,
        stop: &AtomicBool,
        patience: Option<Duration>,
    ) -> Option<Turn> {
        let begun = Instant::now();
        let mut queue = self.lock();
        let mine = queue.next;
        queue.next += 1;
        queue.waiting.push_back(mine);
        loop {
            if queue.free > 0 && queue.waiting.front() == Some(&mine) {
                queue.waiting.pop_front();
                queue.free -= 1;
                // The next may have one too.
                self.changed.notify_all();
                return Some(Turn { of: Arc::clone(self), since: Instant::now() });
            }
            if stop.load(Ordering::Relaxed) || patience.is_some_and(|p| begun.elapsed() >= p) {
                queue.waiting.retain(|n| *n != mine);
                self.changed.notify_all();
                return None;
            }
            let waited = self.changed.wait_timeout(queue, LOOK);
            queue = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

impl Turn {
    /// Time since it began.
    pub(super) fn lasts(&self) -> Duration {
        self.since.elapsed()
    }

    /// Whether it has been long enough for others to have theirs.
    pub(super) fn is_over(&self) -> bool {
        self.lasts() > SLICE && !self.of.lock().waiting.is_empty()
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.of.lock().free += 1;
        self.of.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_come_first_served_and_nobody_waits_for_one_who_left() {
        let turns = Arc::new(Turns::new(1));
        let (go, gone) = (AtomicBool::new(false), AtomicBool::new(true));
        let first = turns.take(&go, None).unwrap();
        assert!(!first.is_over());
        assert!(turns.take(&gone, None).is_none());
        assert!(turns.take(&go, Some(Duration::from_millis(1))).is_none());
        let theirs = Arc::clone(&turns);
        let waits =
            std::thread::spawn(move || theirs.take(&AtomicBool::new(false), None).is_some());
        while turns.lock().waiting.is_empty() {
            std::thread::yield_now();
        }
        std::thread::sleep(SLICE + LOOK);
        assert!(first.is_over());
        drop(first);
        assert!(waits.join().unwrap());
        let queue = turns.lock();
        assert_eq!((queue.free, queue.waiting.len()), (1, 0));
    }
}
