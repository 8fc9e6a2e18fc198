//! Extractions: a thread each, which reads the journal in its turn and hands a capture file to its
//! connection, a chunk at a time.
//!
//! Memory of one: the journal's own bound, and a few [`CHUNK`]s. A connection that takes nothing keeps
//! the thread waiting without a turn; one that is gone ends it. What there is to say when all is read
//! is kept for the last [`REMEMBERED`].

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::Builder;
use std::time::{Duration, Instant};

use actix_web::http::StatusCode;
use actix_web::web::Bytes;
use serde::Serialize;
use serde_json::Value;
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::mpsc::{Receiver, Sender, channel};

use super::JournalDoor;
use super::problem::Problem;
use super::question::Question;
use super::turns::{Turn, Turns};
use crate::journal::extract::{Format, Output, OutputError};
use crate::journal::query::text::rfc3339;
use crate::journal::query::{Answer, QueryError};

/// Bytes given to a connection at once. An answer that is no longer is known whole before it begins.
const CHUNK: usize = 256 << 10;
/// Chunks that may wait for a connection.
const WAITING: usize = 2;
/// What was found is sent on at least so often.
const SOON: Duration = Duration::from_secs(1);
/// How long a question waits for its first turn.
const PATIENCE: Duration = Duration::from_secs(30);
/// Extractions that ended and can be asked about.
const REMEMBERED: usize = 1000;
/// Gaps and losses shown of each kind.
const SHOWN: usize = 100;

/// What extractions may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Extractions open at once.
    pub open: usize,
    /// Of these, so many read at the same time.
    pub reading: usize,
    /// Bytes of packets in one answer.
    pub bytes: Option<u64>,
    /// Time of reading for one answer, waiting for others and for the client not counted.
    pub time: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self { open: 128, reading: 4, bytes: None, time: Duration::from_secs(3600) }
    }
}

/// How an extraction is doing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Progress {
    #[default]
    Running,
    /// Everything was handed over.
    Done,
    /// It was broken off; `error` says why.
    Failed,
    /// The client went.
    Abandoned,
}

/// Packets that were received and not journaled.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Loss {
    from: String,
    to: String,
    packets: u64,
    reason: &'static str,
}

/// What is known of an extraction.
#[derive(Clone, Debug, Default, Serialize)]
pub(super) struct Facts {
    pub(super) state: Progress,
    pub(super) packets: u64,
    /// Captured bytes of the packets.
    pub(super) bytes: u64,
    /// Whether the answer has everything that the journal has; null until that is known.
    pub(super) complete: Option<bool>,
    pub(super) error: Option<String>,
    pub(super) segments: usize,
    /// Of these, read without an index.
    pub(super) scanned: usize,
    pub(super) bytes_read: u64,
    /// Packets given behind a later one.
    pub(super) late: u64,
    /// What could not be read.
    pub(super) gaps: Vec<String>,
    /// Packets of all traffic in the window that never came into the journal, and when.
    pub(super) lost: u64,
    pub(super) losses: Vec<Loss>,
    /// Everything up to this packet was safe when the answer began.
    pub(super) watermark: Option<String>,
    pub(super) took_ms: u64,
}

/// One extraction.
#[derive(Debug)]
pub(super) struct Extraction {
    pub(super) id: String,
    caller: String,
    asked: Value,
    begun: Instant,
    started: String,
    /// Set when no more is wanted.
    stop: Arc<AtomicBool>,
    /// The limit that it ran into.
    limit: Mutex<Option<String>>,
    /// Time of reading until the present turn, and when that began.
    worked: Mutex<(Duration, Option<Instant>)>,
    facts: Mutex<Facts>,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Plain facts, each right on its own.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Extraction {
    pub(super) fn facts(&self) -> Facts {
        locked(&self.facts).clone()
    }

    fn note(&self, change: impl FnOnce(&mut Facts)) {
        let mut facts = locked(&self.facts);
        change(&mut facts);
        facts.took_ms = self.begun.elapsed().as_millis() as u64;
    }

    /// Ends it, as the client is gone.
    fn abandon(&self) {
        self.stop.store(true, Ordering::Relaxed);
    }

    /// Ends it for having read too long.
    fn hold_to(&self, most: Duration) {
        let (before, since) = *locked(&self.worked);
        if before + since.map_or(Duration::ZERO, |s| s.elapsed()) > most {
            locked(&self.limit)
                .get_or_insert_with(|| format!("more than {} s of reading", most.as_secs()));
            self.stop.store(true, Ordering::Relaxed);
        }
    }

    pub(super) fn json(&self) -> Value {
        let mut all = serde_json::to_value(self.facts()).unwrap_or_default();
        if let Value::Object(map) = &mut all {
            map.insert("request_id".into(), self.id.clone().into());
            map.insert("caller".into(), self.caller.clone().into());
            map.insert("asked".into(), self.asked.clone());
            map.insert("started".into(), self.started.clone().into());
        }
        all
    }
}

/// All of them.
#[derive(Debug)]
pub(super) struct Extractions {
    limits: Limits,
    turns: Arc<Turns>,
    open: Mutex<Vec<Arc<Extraction>>>,
    ended: Mutex<VecDeque<Arc<Extraction>>>,
    /// Since the start: packets and bytes handed out.
    given: Mutex<(u64, u64)>,
}

impl Extractions {
    pub(super) fn new(limits: Limits) -> Self {
        Self {
            limits,
            turns: Arc::new(Turns::new(limits.reading)),
            open: Mutex::default(),
            ended: Mutex::default(),
            given: Mutex::default(),
        }
    }

    /// Those open now; packets and bytes given since the start.
    pub(super) fn counts(&self) -> (usize, u64, u64) {
        let (packets, bytes) = *locked(&self.given);
        (locked(&self.open).len(), packets, bytes)
    }

    pub(super) fn find(&self, id: &str) -> Option<Arc<Extraction>> {
        let open = locked(&self.open).iter().find(|e| e.id == id).cloned();
        open.or_else(|| locked(&self.ended).iter().find(|e| e.id == id).cloned())
    }

    /// Ends what runs longer than it may.
    pub(super) fn look(&self) {
        locked(&self.open).iter().for_each(|e| e.hold_to(self.limits.time));
    }

    /// Ends all.
    pub(super) fn stop(&self) {
        locked(&self.open).iter().for_each(|e| e.abandon());
    }

    /// Takes a question in and begins to answer it.
    pub(super) fn begin(
        self: &Arc<Self>,
        door: &Arc<JournalDoor>,
        order: Order,
    ) -> Result<Stream, Problem> {
        let extraction = Arc::new(Extraction {
            id: order.id,
            caller: order.caller,
            asked: order.asked,
            begun: Instant::now(),
            started: jiff::Timestamp::now().to_string(),
            stop: Arc::default(),
            limit: Mutex::default(),
            worked: Mutex::default(),
            facts: Mutex::default(),
        });
        {
            let mut open = locked(&self.open);
            if open.len() >= self.limits.open {
                return Err(Problem::busy("too many extractions are open", 2));
            }
            open.push(Arc::clone(&extraction));
        }
        let leave = Leave { of: Arc::clone(self), extraction: Arc::clone(&extraction) };
        let (out, items) = channel(WAITING);
        let mut question = order.question;
        question.query.stop = Arc::clone(&extraction.stop);
        let door = Arc::clone(door);
        let format = order.format;
        let name = format!("extract-{}", extraction.id.get(..6).unwrap_or_default());
        Builder::new()
            .name(name)
            .spawn(move || {
                // As good as it can be; without it only the order of service is lost.
                if let Err(e) = diskio::stand_back() {
                    tracing::debug!("an extraction keeps its priority: {e}");
                }
                let mut work = Work { leave, door, question, format, out, turn: None, sent: 0 };
                if let Err(Broken(problem)) = work.run() {
                    work.fail(problem);
                }
            })
            .map_err(Problem::internal)?;
        Ok(Stream { items, extraction, ended: false })
    }
}

/// A question with who asks it and how the answer is wanted.
pub(super) struct Order {
    pub(super) id: String,
    pub(super) caller: String,
    pub(super) asked: Value,
    pub(super) question: Question,
    pub(super) format: Format,
}

/// What comes from the thread.
#[derive(Debug)]
pub(super) enum Item {
    /// The journal was asked; [`Facts`] say what was found about it.
    Head,
    Data(Bytes),
    /// The end of the file: nothing comes behind it.
    Last(Bytes),
    /// The answer of a dry run.
    Estimate(Value),
    Broken(Problem),
}

/// The connection's side.
#[derive(Debug)]
pub(super) struct Stream {
    pub(super) items: Receiver<Item>,
    pub(super) extraction: Arc<Extraction>,
    pub(super) ended: bool,
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.extraction.abandon();
    }
}

/// Takes an extraction from the open ones, however its thread ends, and writes the audit line.
struct Leave {
    of: Arc<Extractions>,
    extraction: Arc<Extraction>,
}

impl Drop for Leave {
    fn drop(&mut self) {
        let e = &self.extraction;
        e.note(|f| {
            if f.state == Progress::Running {
                f.state = Progress::Failed;
                f.error.get_or_insert_with(|| "the reading thread panicked".into());
            }
        });
        let f = e.facts();
        let error = f.error.as_ref().map(|why| format!(" ({why})")).unwrap_or_default();
        tracing::info!(
            "audit: extraction {} for {}: {} -> {:?}{error}, {} packets, {} bytes, {} ms",
            e.id,
            e.caller,
            e.asked,
            f.state,
            f.packets,
            f.bytes,
            f.took_ms
        );
        {
            let mut given = locked(&self.of.given);
            *given = (given.0 + f.packets, given.1 + f.bytes);
        }
        locked(&self.of.open).retain(|other| !Arc::ptr_eq(other, e));
        let mut ended = locked(&self.of.ended);
        if ended.len() == REMEMBERED {
            ended.pop_front();
        }
        ended.push_back(Arc::clone(e));
    }
}

/// Why a thread ends before its answer does.
struct Broken(Option<Problem>);

impl From<Problem> for Broken {
    fn from(problem: Problem) -> Self {
        Self(Some(problem))
    }
}

/// The client went, or the sensor ends.
const GONE: Broken = Broken(None);

/// The bytes of the file that are not sent yet.
#[derive(Clone, Default)]
struct Page(Rc<RefCell<Vec<u8>>>);

impl Page {
    fn len(&self) -> usize {
        self.0.borrow().len()
    }

    fn take(&self, room: usize) -> Bytes {
        std::mem::replace(&mut *self.0.borrow_mut(), Vec::with_capacity(room)).into()
    }
}

impl io::Write for Page {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.borrow_mut().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The thread's work.
struct Work {
    leave: Leave,
    door: Arc<JournalDoor>,
    question: Question,
    format: Format,
    out: Sender<Item>,
    turn: Option<Turn>,
    /// Chunks given away.
    sent: usize,
}

impl Work {
    fn run(&mut self) -> Result<(), Broken> {
        self.take_turn(Some(PATIENCE))?;
        if self.question.dry_run {
            let estimate = self.estimate()?;
            self.note(|f| f.state = Progress::Done);
            return self.send(Item::Estimate(estimate));
        }
        let mut answer = self.door.reader.query(&self.question.query).map_err(refuse)?;
        self.begin(&answer);
        self.send(Item::Head)?;
        let page = Page::default();
        let mut file = Output::new(self.format, page.clone());
        let mut sent = Instant::now();
        while let Some(packet) = answer.next() {
            file.write(&packet).map_err(unwritable)?;
            let full = page.len() >= CHUNK;
            if full || sent.elapsed() > SOON {
                self.count(&answer);
                self.check_bytes(&answer)?;
                self.send(Item::Data(page.take(CHUNK + 4096)))?;
                self.sent += 1;
                sent = Instant::now();
                self.pass_turn()?;
            }
        }
        self.end(answer, file, &page)
    }

    fn end(&mut self, answer: Answer, file: Output<Page>, page: &Page) -> Result<(), Broken> {
        self.count(&answer);
        self.check_bytes(&answer)?;
        let report = answer.report();
        let complete = report.is_complete();
        self.note(|f| {
            f.complete = Some(complete);
            f.gaps = report.gaps.iter().take(SHOWN).map(|g| g.what.clone()).collect();
        });
        if self.extraction().stop.load(Ordering::Relaxed) {
            return Err(self.why_stopped());
        }
        let closing = self.closing();
        let link = self.question.query.link.unwrap_or(1);
        file.finish_with(link, &closing).map_err(unwritable)?;
        let rest = page.take(0);
        if !complete && self.sent > 0 {
            // Nobody reads a header that is sent already: the transfer itself has to show it.
            self.send(Item::Data(rest))?;
            let gaps = self.extraction().facts().gaps;
            let what = gaps.first().cloned().unwrap_or_default();
            return Err(Problem::internal(format!("the answer has gaps: {what}")).into());
        }
        self.note(|f| f.state = Progress::Done);
        self.send(Item::Last(rest))
    }

    /// What the answer's end says, for formats that can say it.
    fn closing(&self) -> String {
        let f = self.extraction().facts();
        format!(
            "malakocut: extraction {}; packets {}, bytes {}, complete {}, packets lost before the \
             journal {}, watermark {}",
            self.extraction().id,
            f.packets,
            f.bytes,
            f.complete.unwrap_or_default(),
            f.lost,
            f.watermark.as_deref().unwrap_or("none")
        )
    }

    fn extraction(&self) -> &Arc<Extraction> {
        &self.leave.extraction
    }

    fn note(&self, change: impl FnOnce(&mut Facts)) {
        self.extraction().note(change);
    }

    /// What is known before the first packet.
    fn begin(&self, answer: &Answer) {
        let (lost, losses) = self.losses();
        let watermark = self.watermark();
        let report = answer.report();
        self.note(|f| {
            f.segments = report.segments;
            f.scanned = report.scanned;
            f.lost = lost;
            f.losses = losses;
            f.watermark = watermark;
        });
    }

    fn losses(&self) -> (u64, Vec<Loss>) {
        let query = &self.question.query;
        let all = self.door.reader.losses(query.from_ns, query.to_ns).unwrap_or_default();
        let lost = all.iter().map(|l| u64::from(l.packets)).sum();
        let shown = all.iter().take(SHOWN).map(|l| Loss {
            from: rfc3339(l.from_ns),
            to: rfc3339(l.to_ns),
            packets: l.packets.into(),
            reason: l.reason.name(),
        });
        (lost, shown.collect())
    }

    fn watermark(&self) -> Option<String> {
        let status = self.door.monitor.status();
        status.watermarks.iter().map(|w| w.time_ns).max().map(rfc3339)
    }

    fn count(&self, answer: &Answer) {
        let report = answer.report();
        self.note(|f| {
            f.packets = report.packets;
            f.bytes = report.bytes;
            f.bytes_read = report.bytes_read;
            f.late = report.late;
        });
    }

    fn check_bytes(&self, answer: &Answer) -> Result<(), Broken> {
        match self.leave.of.limits.bytes {
            Some(most) if answer.report().bytes > most => {
                let why = format!("more than the {most} bytes that one answer may have; narrow it");
                Err(Problem::new(StatusCode::PAYLOAD_TOO_LARGE, why).into())
            }
            _ => Ok(()),
        }
    }

    fn estimate(&self) -> Result<Value, Broken> {
        let e = self.door.reader.estimate(&self.question.query).map_err(refuse)?;
        let (lost, losses) = self.losses();
        Ok(serde_json::json!({
            "segments": e.segments,
            "scanned": e.scanned,
            "packets": e.packets,
            "bytes": e.bytes,
            "lost": lost,
            "losses": losses,
            "watermark": self.watermark(),
        }))
    }

    /// Hands something over; the turn is given up while the connection has no room.
    fn send(&mut self, item: Item) -> Result<(), Broken> {
        match self.out.try_send(item) {
            Ok(()) => Ok(()),
            Err(TrySendError::Closed(_)) => Err(GONE),
            Err(TrySendError::Full(item)) => {
                self.leave_turn();
                self.out.blocking_send(item).map_err(|_| GONE)?;
                self.take_turn(None)
            }
        }
    }

    fn take_turn(&mut self, patience: Option<Duration>) -> Result<(), Broken> {
        let extraction = Arc::clone(self.extraction());
        match self.leave.of.turns.take(&extraction.stop, patience) {
            Some(turn) => {
                locked(&extraction.worked).1 = Some(Instant::now());
                self.turn = Some(turn);
                Ok(())
            }
            None if extraction.stop.load(Ordering::Relaxed) => Err(self.why_stopped()),
            None => Err(Problem::busy("other extractions take all the time there is", 5).into()),
        }
    }

    fn leave_turn(&mut self) {
        if let Some(turn) = self.turn.take() {
            let mut worked = locked(&self.extraction().worked);
            *worked = (worked.0 + turn.lasts(), None);
        }
    }

    /// Lets others have theirs.
    fn pass_turn(&mut self) -> Result<(), Broken> {
        if self.turn.as_ref().is_some_and(Turn::is_over) {
            self.leave_turn();
            self.take_turn(None)?;
        }
        Ok(())
    }

    fn why_stopped(&self) -> Broken {
        let limit = locked(&self.extraction().limit).clone();
        limit.map_or(GONE, |why| Problem::busy(why, 60).into())
    }

    /// Notes how it ended, and tells the connection.
    fn fail(&mut self, problem: Option<Problem>) {
        self.leave_turn();
        match problem {
            None => self.note(|f| f.state = Progress::Abandoned),
            Some(problem) => {
                self.note(|f| {
                    f.state = Progress::Failed;
                    f.complete = Some(false);
                    f.error = Some(problem.to_string());
                });
                // Who asked may have gone.
                let _ = self.out.blocking_send(Item::Broken(problem));
            }
        }
    }
}

fn refuse(e: QueryError) -> Problem {
    match e {
        QueryError::Filter(e) => Problem::field("filter", e),
        QueryError::Window => Problem::field("end", e),
        QueryError::Directory { .. } => Problem::internal(e),
    }
}

fn unwritable(e: OutputError) -> Problem {
    match e {
        OutputError::Links { first, other } => Problem::new(
            StatusCode::NOT_ACCEPTABLE,
            format!(
                "packets of link types {first} and {other}, of which a pcap file holds one: choose \
                 with link, or accept application/x-pcapng"
            ),
        ),
        OutputError::Io(_) | OutputError::Packet(_) => Problem::internal(e),
    }
}
