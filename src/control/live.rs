//! Live flows: copied out by the workers in slices, chosen and ordered here.
//!
//! All questions that wait are answered by one pass over the tables, which goes on while packets are
//! worked on: a flow that begins or ends meanwhile may be missing. An answer says when it was made and
//! how long that took.
//!
//! Limits: [`ROWS_MOST`] rows an answer, [`REACH`] rows from the start of an order. Everything can be had
//! by going on behind the last flow id ([`FlowQuery::after`]).

use std::cell::RefCell;
use std::cmp::Ordering;
use std::collections::BinaryHeap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering as Memory};
use std::time::{Duration, Instant};

use rtrb::{Consumer, Producer, RingBuffer};
use tokio::sync::oneshot;

use crate::event::{
    About, Counts, EventWriter, Expression, FIELDS, FlowEvent, FlowFields, asks_what_about,
};
use crate::flow::{FlowTable, Hint};

/// Rows of one answer, at most.
pub const ROWS_MOST: usize = 10_000;
/// Rows that an answer may lie behind the first, its own included.
pub const REACH: usize = 100_000;
/// Copies on the way from a worker.
const RING: usize = 1_024;

/// What rows are ordered by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Sort {
    #[default]
    Bytes,
    Packets,
    Duration,
    Idle,
    Start,
    End,
    Protocol,
    FlowId,
}

impl Sort {
    pub const ALL: [(&str, Self); 8] = [
        ("bytes", Self::Bytes),
        ("packets", Self::Packets),
        ("duration", Self::Duration),
        ("idle", Self::Idle),
        ("start", Self::Start),
        ("end", Self::End),
        ("protocol", Self::Protocol),
        ("flow_id", Self::FlowId),
    ];

    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.iter().find(|(n, _)| *n == name).map(|(_, sort)| *sort)
    }

    fn key(self, e: &FlowEvent) -> u64 {
        let sum = |of: fn(&Counts) -> u64| e.total.iter().map(of).sum();
        match self {
            Self::Bytes => sum(|c| c.bytes),
            Self::Packets => sum(|c| c.packets),
            Self::Duration => e.end_ns.saturating_sub(e.start_ns),
            Self::Idle => e.idle_ns,
            Self::Start => e.start_ns,
            Self::End => e.end_ns,
            Self::Protocol => u64::from(e.key.proto()),
            Self::FlowId => e.flow_id,
        }
    }
}

/// Which live flows, in which order.
#[derive(Clone, Debug)]
pub struct FlowQuery {
    pub filter: Option<Expression>,
    pub sort: Sort,
    pub ascending: bool,
    /// Only flows whose id is larger.
    pub after: Option<u64>,
    pub offset: usize,
    pub limit: usize,
}

impl Default for FlowQuery {
    fn default() -> Self {
        Self {
            filter: None,
            sort: Sort::default(),
            ascending: false,
            after: None,
            offset: 0,
            limit: 1_000,
        }
    }
}

/// A question about flows that cannot be asked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum QueryError {
    #[error("filter: {0}")]
    Filter(String),
    #[error("filter: events have no field `{0}`")]
    Field(String),
    #[error("limit: 1 to {ROWS_MOST}")]
    Limit,
    #[error("offset: with the limit at most {REACH}; ask by flow_id order and `after` for more")]
    Offset,
}

impl FlowQuery {
    /// Sets the filter.
    ///
    /// # Errors
    /// It does not parse, or names a field that no event has.
    pub fn with_filter(mut self, text: &str) -> Result<Self, QueryError> {
        let filter: Expression = text.parse().map_err(QueryError::Filter)?;
        if let Some(unknown) = filter.fields().into_iter().find(|f| !FIELDS.contains(f)) {
            return Err(QueryError::Field(unknown.to_owned()));
        }
        self.filter = Some(filter);
        Ok(self)
    }

    /// # Errors
    /// It asks for too much at once.
    pub fn check(&self) -> Result<(), QueryError> {
        if self.limit == 0 || self.limit > ROWS_MOST {
            return Err(QueryError::Limit);
        }
        if self.offset.saturating_add(self.limit) > REACH {
            return Err(QueryError::Offset);
        }
        Ok(())
    }
}

/// The flows of a question.
#[derive(Clone, Debug, Default)]
pub struct FlowAnswer {
    /// The source's clock when the pass ended, nanoseconds since 1970.
    pub at_ns: u64,
    /// How long the pass took.
    pub took: Duration,
    /// Live flows in all, and those that the filter takes.
    pub flows: u64,
    pub matched: u64,
    /// A flow event's JSON object each, without a newline; `bytes` and `packets` are its totals, and
    /// what the blocklist silences is marked.
    pub rows: Vec<Vec<u8>>,
}

/// Who knows what flows are about.
pub trait Names {
    fn about(&mut self, event: &FlowEvent) -> About<'_>;
}

/// A flow in its place in an order.
struct Row {
    key: u64,
    event: FlowEvent,
}

impl Row {
    fn order(&self) -> (u64, u64) {
        (self.key, self.event.flow_id)
    }
}

impl PartialEq for Row {
    fn eq(&self, other: &Self) -> bool {
        self.order() == other.order()
    }
}

impl Eq for Row {}

impl PartialOrd for Row {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Row {
    fn cmp(&self, other: &Self) -> Ordering {
        self.order().cmp(&other.order())
    }
}

/// One question during a pass.
struct Running {
    query: FlowQuery,
    to: oneshot::Sender<FlowAnswer>,
    /// The filter asks for names and the like, which must be looked up.
    asks_what_about: bool,
    matched: u64,
    /// The rows to be given so far, the one to go next on top.
    best: BinaryHeap<Row>,
}

impl Running {
    fn offer(&mut self, event: &FlowEvent, names: &mut impl Names, writer: &RefCell<EventWriter>) {
        if self.query.after.is_some_and(|after| event.flow_id <= after) {
            return;
        }
        if let Some(filter) = &self.query.filter {
            let about = if self.asks_what_about { names.about(event) } else { About::default() };
            if !filter.holds(&FlowFields::new(event, &about, writer)) {
                return;
            }
        }
        self.matched += 1;
        let key = self.query.sort.key(event);
        // The heap gives up its largest: of a descending order that is to be the smallest.
        let key = if self.query.ascending { key } else { !key };
        let wanted = self.query.offset + self.query.limit;
        if self.best.len() < wanted {
            self.best.push(Row { key, event: *event });
        } else if self.best.peek().is_some_and(|worst| (key, event.flow_id) < worst.order()) {
            self.best.pop();
            self.best.push(Row { key, event: *event });
        }
    }

    fn finish(self, answer: FlowAnswer, names: &mut impl Names, writer: &RefCell<EventWriter>) {
        let rows = self.best.into_sorted_vec().into_iter().skip(self.query.offset);
        let line = |row: Row| {
            let mut line = Vec::new();
            writer.borrow_mut().write_about(&row.event, &names.about(&row.event), &mut line);
            line.pop();
            if row.event.silenced {
                line.pop();
                line.extend_from_slice(b",\"silenced\":true}");
            }
            line
        };
        let answer = FlowAnswer { matched: self.matched, rows: rows.map(line).collect(), ..answer };
        // Who asked may have gone.
        let _ = self.to.send(answer);
    }
}

/// A worker's side: copies its flows out when it is asked.
pub struct Peek {
    wanted: Arc<AtomicU32>,
    finished: Arc<AtomicU32>,
    /// The last pass that was finished.
    done: u32,
    next: u32,
    rows: Producer<FlowEvent>,
}

impl Peek {
    /// Whether a pass is under way.
    #[inline]
    pub fn is_wanted(&self) -> bool {
        self.wanted.load(Memory::Relaxed) != self.done
    }

    /// Copies the flows of up to `most` places; false if there is no room.
    pub fn copy<H: Hint>(&mut self, table: &FlowTable<H>, most: usize, now: u64) -> bool {
        let most = most.min(self.rows.slots());
        if most == 0 {
            return false;
        }
        let rows = &mut self.rows;
        match table.copy(self.next, most, now, |event| _ = rows.push(event)) {
            Some(next) => self.next = next,
            None => {
                self.next = 0;
                self.done = self.wanted.load(Memory::Relaxed);
                // After the rows: who sees this finds them there.
                self.finished.store(self.done, Memory::Release);
            }
        }
        true
    }
}

/// The control thread's side of one worker.
struct Peeked {
    wanted: Arc<AtomicU32>,
    finished: Arc<AtomicU32>,
    rows: Consumer<FlowEvent>,
}

/// The control thread's side: passes over the flows of all workers.
pub struct Live {
    workers: Vec<Peeked>,
    /// Number of the pass under way, or of the last one.
    number: u32,
    waiting: Vec<(FlowQuery, oneshot::Sender<FlowAnswer>)>,
    pass: Option<Pass>,
    writer: RefCell<EventWriter>,
}

struct Pass {
    begun: Instant,
    running: Vec<Running>,
    flows: u64,
    latest_ns: u64,
}

impl Live {
    /// `sensor` is its name, which rows carry.
    pub fn new(sensor: &str) -> Self {
        Self {
            workers: Vec::new(),
            number: 0,
            waiting: Vec::new(),
            pass: None,
            writer: RefCell::new(EventWriter::new(sensor)),
        }
    }

    /// Joins a worker.
    pub fn join(&mut self) -> Peek {
        let (rows, rows_rx) = RingBuffer::new(RING);
        let wanted = Arc::new(AtomicU32::new(0));
        let finished = Arc::new(AtomicU32::new(0));
        let theirs = (Arc::clone(&wanted), Arc::clone(&finished));
        self.workers.push(Peeked { wanted, finished, rows: rows_rx });
        Peek { wanted: theirs.0, finished: theirs.1, done: 0, next: 0, rows }
    }

    /// Takes a question in.
    pub fn ask(&mut self, query: FlowQuery, to: oneshot::Sender<FlowAnswer>) {
        self.waiting.push((query, to));
    }

    /// Goes on with the pass under way, or begins one; how many copies were taken in.
    pub fn attend(&mut self, names: &mut impl Names) -> usize {
        if self.pass.is_none() {
            self.begin();
        }
        let Some(pass) = &mut self.pass else { return 0 };
        let mut taken = 0;
        let mut ended = true;
        for worker in &mut self.workers {
            // Asked before the ring is emptied: nothing of this pass comes after the end.
            let done = worker.finished.load(Memory::Acquire) == self.number;
            ended &= done || worker.rows.is_abandoned();
            let n = worker.rows.slots();
            let Ok(rows) = worker.rows.read_chunk(n) else { continue };
            for event in rows {
                pass.latest_ns = pass.latest_ns.max(event.timestamp_ns);
                for running in &mut pass.running {
                    running.offer(&event, names, &self.writer);
                }
            }
            pass.flows += n as u64;
            taken += n;
        }
        if ended && let Some(pass) = self.pass.take() {
            let (at_ns, flows) = (pass.latest_ns, pass.flows);
            let took = pass.begun.elapsed();
            for running in pass.running {
                let answer = FlowAnswer { at_ns, took, flows, ..FlowAnswer::default() };
                running.finish(answer, names, &self.writer);
            }
            return taken.max(1);
        }
        taken
    }

    fn begin(&mut self) {
        if self.waiting.is_empty() {
            return;
        }
        self.number = self.number.wrapping_add(1);
        for worker in &self.workers {
            worker.wanted.store(self.number, Memory::Relaxed);
        }
        let running = self.waiting.drain(..);
        let running = running.map(|(query, to)| Running {
            asks_what_about: query.filter.as_ref().is_some_and(asks_what_about),
            query,
            to,
            matched: 0,
            best: BinaryHeap::new(),
        });
        let running = running.collect();
        self.pass = Some(Pass { begun: Instant::now(), running, flows: 0, latest_ns: 0 });
    }
}
