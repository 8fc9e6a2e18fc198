//! Writes in flight: through io_uring, or by a few threads where that is not allowed.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, unbounded};
use diskio::{Filled, PAGE, Ring};

use super::{Queue, RealFile};

/// Operations that may be in flight at once.
const ENTRIES: u32 = 64;
const THREADS: usize = 3;

/// A queue for real files.
pub struct RealQueue {
    way: Way,
    writes: HashMap<u64, Write>,
    /// Completions that never reached the disk.
    refused: Vec<(u64, io::Error)>,
    in_flight: usize,
}

/// A write of which a part may be left to do.
struct Write {
    file: Arc<File>,
    at: u64,
    data: Filled,
    range: Range<usize>,
}

enum Way {
    Uring(Box<Ring>),
    Threads(Pool),
}

impl RealQueue {
    pub(super) fn new() -> Self {
        let way = match Ring::new(ENTRIES) {
            Ok(ring) => Way::Uring(Box::new(ring)),
            Err(e) => {
                tracing::info!("the journal writes by threads, since io_uring is refused: {e}");
                Way::Threads(Pool::new())
            }
        };
        Self { way, writes: HashMap::new(), refused: Vec::new(), in_flight: 0 }
    }

    fn start(&mut self, id: u64) {
        let Some(w) = self.writes.get(&id) else { return };
        let started = match &mut self.way {
            Way::Uring(ring) => ring.write(id, &w.file, w.at, w.data.clone(), w.range.clone()),
            Way::Threads(pool) => pool.send(Job::Write(
                id,
                Write {
                    file: Arc::clone(&w.file),
                    at: w.at,
                    data: w.data.clone(),
                    range: w.range.clone(),
                },
            )),
        };
        if let Err(e) = started {
            self.refused.push((id, e));
        }
    }

    /// Takes a completion apart: a write that was cut short goes on.
    fn completed(&mut self, id: u64, result: io::Result<usize>) -> Option<(u64, io::Result<()>)> {
        let result = match (self.writes.get_mut(&id), result) {
            (Some(_), Ok(0)) => Err(io::ErrorKind::WriteZero.into()),
            (Some(w), Ok(n)) if n < w.range.len() => {
                w.at += n as u64;
                w.range.start += n;
                // What is left may not be aligned.
                self.start(id);
                return None;
            }
            (_, result) => result.map(|_| ()),
        };
        self.writes.remove(&id);
        self.in_flight -= 1;
        Some((id, result))
    }
}

impl Queue<RealFile> for RealQueue {
    fn write(&mut self, id: u64, file: &RealFile, at: u64, data: Filled, range: Range<usize>) {
        let aligned = [at, range.start as u64, range.end as u64];
        let aligned = aligned.iter().all(|n| n.is_multiple_of(PAGE as u64));
        let file = match &file.direct {
            Some(direct) if aligned => Arc::clone(direct),
            _ => Arc::clone(&file.cached),
        };
        self.in_flight += 1;
        self.writes.insert(id, Write { file, at, data, range });
        self.start(id);
    }

    fn sync(&mut self, id: u64, file: &RealFile) {
        self.in_flight += 1;
        let started = match &mut self.way {
            Way::Uring(ring) => ring.sync(id, &file.cached),
            Way::Threads(pool) => pool.send(Job::Sync(id, Arc::clone(&file.cached))),
        };
        if let Err(e) = started {
            self.refused.push((id, e));
        }
    }

    fn next(&mut self, patience: Duration) -> Option<(u64, io::Result<()>)> {
        if let Some((id, e)) = self.refused.pop() {
            return self.completed(id, Err(e));
        }
        let (id, result) = match &mut self.way {
            Way::Uring(ring) => ring.next(patience),
            Way::Threads(pool) => pool.done.recv_timeout(patience).ok(),
        }?;
        self.completed(id, result)
    }

    fn in_flight(&self) -> usize {
        self.in_flight
    }
}

enum Job {
    Write(u64, Write),
    Sync(u64, Arc<File>),
}

/// Threads that write; they end when the pool is dropped.
struct Pool {
    jobs: Sender<Job>,
    done: Receiver<(u64, io::Result<usize>)>,
}

impl Pool {
    fn new() -> Self {
        let (jobs, todo) = unbounded::<Job>();
        let (report, done) = unbounded();
        for n in 0..THREADS {
            let (todo, report) = (todo.clone(), report.clone());
            let run = move || {
                for job in todo {
                    let _ = report.send(job.run());
                }
            };
            // With none at all, `send` fails and every write is refused.
            let _ = std::thread::Builder::new().name(format!("journal-io-{n}")).spawn(run);
        }
        Self { jobs, done }
    }

    fn send(&self, job: Job) -> io::Result<()> {
        self.jobs.send(job).map_err(|_| io::ErrorKind::BrokenPipe.into())
    }
}

impl Job {
    fn run(self) -> (u64, io::Result<usize>) {
        match self {
            Self::Sync(id, file) => (id, file.sync_data().map(|()| 0)),
            Self::Write(id, w) => {
                let bytes = w.data.bytes().get(w.range).unwrap_or_default();
                (id, w.file.write_at(bytes, w.at))
            }
        }
    }
}
