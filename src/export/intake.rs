//! From the control thread to the spool.
//!
//! Events are written into chunks; a thread of its own appends them to the spool, as many chunks at
//! once as are waiting. The control thread never waits for the disk of a live sensor that takes
//! nothing: it counts and drops. While the disk is only slow, it waits, and events stay in the
//! workers' rings and tables.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, TrySendError};

use super::Shared;
use crate::spool::{MAX_LINE, SpoolError};

/// Events handed over at once, and bytes.
const CHUNK: usize = 512;
const CHUNK_BYTES: usize = 1 << 20;
/// Chunks that wait for the disk.
const WAITING: usize = 32;
/// Events appended with one commit.
const COMMIT: usize = 4096;
/// The pause while the spool takes nothing.
const PAUSE: Duration = Duration::from_millis(500);
/// How long the end waits for a spool that takes nothing.
const END: Duration = Duration::from_secs(10);

/// What others see of it.
#[derive(Default)]
pub(super) struct Gauges {
    refused: AtomicU64,
    problem: Mutex<Option<String>>,
    /// The spool takes nothing.
    blocked: AtomicBool,
    /// What cannot be pushed now is given up.
    give_up: AtomicBool,
}

impl Gauges {
    pub(super) fn refused(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
    }

    pub(super) fn problem(&self) -> Option<String> {
        self.problem.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn refuse(&self, events: usize) {
        self.refused.fetch_add(events as u64, Ordering::Relaxed);
    }

    fn set(&self, problem: Option<String>) {
        self.blocked.store(problem.is_some(), Ordering::Relaxed);
        *self.problem.lock().unwrap_or_else(PoisonError::into_inner) = problem;
    }
}

/// Some events, their lines one behind the other.
#[derive(Default)]
struct Chunk {
    bytes: Vec<u8>,
    /// Time and end of each.
    ends: Vec<(u64, usize)>,
}

impl Chunk {
    fn lines(&self) -> impl Iterator<Item = (u64, &[u8])> {
        let mut start = 0;
        self.ends.iter().map(move |&(time, end)| {
            let line = self.bytes.get(start..end).unwrap_or_default();
            start = end;
            (time, line)
        })
    }
}

/// The control thread's end.
pub(super) struct Intake {
    chunk: Chunk,
    to_spool: Option<Sender<Chunk>>,
    thread: Option<JoinHandle<()>>,
    shared: Arc<Shared>,
    waits: bool,
}

impl Intake {
    pub(super) fn start(shared: &Arc<Shared>, waits: bool) -> io::Result<Self> {
        let (to_spool, chunks) = crossbeam_channel::bounded(WAITING);
        let theirs = Arc::clone(shared);
        let thread = std::thread::Builder::new()
            .name("spool".into())
            .spawn(move || append(&theirs, &chunks))?;
        Ok(Self {
            chunk: Chunk::default(),
            to_spool: Some(to_spool),
            thread: Some(thread),
            shared: Arc::clone(shared),
            waits,
        })
    }

    /// Adds an event, whose line `write` appends.
    pub(super) fn add(&mut self, time_ns: u64, write: impl FnOnce(&mut Vec<u8>)) {
        let start = self.chunk.bytes.len();
        write(&mut self.chunk.bytes);
        if self.chunk.bytes.last() == Some(&b'\n') {
            self.chunk.bytes.pop();
        }
        let end = self.chunk.bytes.len();
        if end == start {
            return;
        }
        if end - start > MAX_LINE {
            tracing::error!("an event of {} bytes is too long to be exported", end - start);
            self.chunk.bytes.truncate(start);
            self.shared.intake.refuse(1);
            return;
        }
        self.chunk.ends.push((time_ns, end));
        if self.chunk.ends.len() >= CHUNK || end >= CHUNK_BYTES {
            self.hand_over();
        }
    }

    /// Hands over what there is, if the spool's thread has nothing else to do.
    pub(super) fn pass_on(&mut self) {
        if self.to_spool.as_ref().is_some_and(Sender::is_empty) {
            self.hand_over();
        }
    }

    /// Hands over what there is.
    pub(super) fn hand_over(&mut self) {
        let Some(to_spool) = &self.to_spool else { return };
        if self.chunk.ends.is_empty() {
            return;
        }
        let gauges = &self.shared.intake;
        let mut chunk = std::mem::take(&mut self.chunk);
        loop {
            match to_spool.try_send(chunk) {
                Ok(()) => return,
                Err(TrySendError::Full(back)) => {
                    if gauges.blocked.load(Ordering::Relaxed) && !self.waits {
                        gauges.refuse(back.ends.len());
                        return;
                    }
                    chunk = back;
                    std::thread::sleep(Duration::from_millis(1));
                }
                Err(TrySendError::Disconnected(back)) => return gauges.refuse(back.ends.len()),
            }
        }
    }

    /// Waits until everything is in the spool; says whether nothing was lost.
    pub(super) fn finish(&mut self, stop: &mut impl FnMut() -> bool) -> bool {
        drop(self.to_spool.take());
        let begun = Instant::now();
        if let Some(thread) = self.thread.take() {
            while !thread.is_finished() {
                if begun.elapsed() > END && (!self.waits || stop()) {
                    self.shared.intake.give_up.store(true, Ordering::Relaxed);
                }
                std::thread::sleep(Duration::from_millis(1));
            }
            if thread.join().is_err() {
                tracing::error!("the spool's thread panicked; what it held is lost");
                return false;
            }
        }
        let refused = self.shared.intake.refused();
        if refused > 0 {
            tracing::error!("{refused} events were lost since the spool took nothing");
        }
        refused == 0
    }
}

/// The thread: appends chunks until there are no more.
fn append(shared: &Shared, chunks: &Receiver<Chunk>) {
    loop {
        let first = match chunks.recv_timeout(Duration::from_secs(1)) {
            Ok(chunk) => chunk,
            Err(RecvTimeoutError::Timeout) => continue,
            Err(RecvTimeoutError::Disconnected) => return,
        };
        let mut together = vec![first];
        let mut events: usize = together.iter().map(|c| c.ends.len()).sum();
        while events < COMMIT
            && let Ok(chunk) = chunks.try_recv()
        {
            events += chunk.ends.len();
            together.push(chunk);
        }
        let mut said: Option<Instant> = None;
        while let Err(e) = shared.spool.push(together.iter().flat_map(Chunk::lines)) {
            if said.is_none_or(|at| at.elapsed() > Duration::from_secs(60)) {
                said = Some(Instant::now());
                let hint = match &e {
                    SpoolError::Full { .. } => "; see `malakocut-cli export status`",
                    _ => "",
                };
                tracing::error!("new events are not taken: {e}{hint}");
            }
            shared.intake.set(Some(e.to_string()));
            if shared.intake.give_up.load(Ordering::Relaxed) {
                shared.intake.refuse(events);
                break;
            }
            std::thread::sleep(PAUSE);
        }
        if said.is_some() && shared.intake.problem().is_some() {
            tracing::info!(
                "the spool takes events again; lost so far: {}",
                shared.intake.refused()
            );
        }
        shared.intake.set(None);
    }
}
