//! What the workers send, taken in on the control thread in an order that does not depend on how
//! many they are.
//!
//! A flow's notes are there before its event. A name may have been answered to on one worker for a
//! flow of another: an event waits until every other worker has read up to the flow's start. Live, a
//! worker that stands still holds the others' events no longer than [`PATIENCE`].

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rtrb::{Consumer, RingBuffer};
use tokio::sync::oneshot;

use super::Outputs;
use crate::control::live::{FlowAnswer, FlowQuery, Live, Names, Peek};
use crate::event::{About, FlowEvent, Note};
use crate::inspect::collect::Collector;
use crate::inspect::{Inspector, Limits};
use crate::worker::Reading;

/// Notes between a worker and the control thread, and bytes of their fields.
const NOTE_RING: usize = 8192;
const FIELD_RING: usize = 1 << 21;
/// How long an event waits for another worker, where the source does not wait for us.
const PATIENCE: Duration = Duration::from_secs(1);

/// Where one worker's reports arrive.
struct Reports {
    events: Consumer<FlowEvent>,
    notes: Option<Notes>,
    /// Since when its next event waits.
    waits_since: Option<Instant>,
}

struct Notes {
    notes: Consumer<Note>,
    fields: Consumer<u8>,
    until: Arc<AtomicU64>,
}

/// All workers' reports.
pub(super) struct Desk {
    workers: Vec<Reports>,
    collector: Collector,
    fields: Vec<u8>,
    live: bool,
    flows: Live,
    /// Events of silenced flows.
    silenced: u64,
}

impl Names for Collector {
    fn about(&mut self, event: &FlowEvent) -> About<'_> {
        self.about(event)
    }
}

impl Desk {
    /// `live`: the source does not wait for us. `sensor` is its name.
    pub(super) fn new(live: bool, sensor: &str) -> Self {
        Self {
            workers: Vec::new(),
            collector: Collector::default(),
            fields: Vec::new(),
            live,
            flows: Live::new(sensor),
            silenced: 0,
        }
    }

    /// A worker's way to show its flows.
    pub(super) fn peek(&mut self) -> Peek {
        self.flows.join()
    }

    /// Takes a question about live flows in.
    pub(super) fn ask(&mut self, query: FlowQuery, to: oneshot::Sender<FlowAnswer>) {
        self.flows.ask(query, to);
    }

    /// Joins a worker: its events, and with `packets` a way to read payloads for a table of so many
    /// flows.
    pub(super) fn join(
        &mut self,
        events: Consumer<FlowEvent>,
        packets: u8,
        flows: usize,
    ) -> Option<Reading> {
        let reading = (packets > 0).then(|| {
            let limits = Limits { packets, ..Limits::default() };
            let (notes, notes_rx) = RingBuffer::new(NOTE_RING);
            let (fields, fields_rx) = RingBuffer::new(FIELD_RING);
            let until = Arc::new(AtomicU64::new(0));
            let theirs = Arc::clone(&until);
            let inspector = Inspector::new(limits, flows);
            let reading = Reading { inspector, notes, fields, until: theirs };
            (reading, Notes { notes: notes_rx, fields: fields_rx, until })
        });
        let (reading, notes) = reading.unzip();
        self.workers.push(Reports { events, notes, waits_since: None });
        reading
    }

    /// Flows whose names were given up to make room.
    pub(super) fn forgotten(&self) -> u64 {
        self.collector.evicted
    }

    /// Events that were of silenced flows.
    pub(super) fn silenced(&self) -> u64 {
        self.silenced
    }

    /// What is known of flows and names.
    pub(super) fn collector(&self) -> &Collector {
        &self.collector
    }

    /// Takes in what there is; how much that was. With `all`, nothing waits.
    pub(super) fn take(&mut self, all: bool, outputs: &mut Outputs) -> usize {
        // In this order: up to where each has read; which events there are; the notes, among them
        // all that belong to those events and all up to those moments; then the events.
        let until: Vec<u64> = self.workers.iter().map(Reports::until).collect();
        let events: Vec<usize> = self.workers.iter().map(|w| w.events.slots()).collect();
        let mut taken = 0;
        for worker in &mut self.workers {
            taken += worker.take_notes(&mut self.collector, &mut self.fields, outputs);
        }
        for (at, n) in events.into_iter().enumerate() {
            let others = until.iter().enumerate().filter(|(other, _)| *other != at);
            let ready = others.map(|(_, &until)| until).min().unwrap_or(u64::MAX);
            let ready = if all { u64::MAX } else { ready };
            if let Some(worker) = self.workers.get_mut(at) {
                let mut hand = |event: &FlowEvent| {
                    let about = self.collector.about(event);
                    self.silenced += u64::from(event.silenced);
                    outputs.take(event, &about);
                };
                taken += worker.take_events(n, ready, self.live, &mut hand);
            }
        }
        taken + self.flows.attend(&mut self.collector)
    }
}

impl Reports {
    fn until(&self) -> u64 {
        self.notes.as_ref().map_or(u64::MAX, |n| n.until.load(Ordering::Acquire))
    }

    fn take_notes(
        &mut self,
        collector: &mut Collector,
        buffer: &mut Vec<u8>,
        outputs: &mut Outputs,
    ) -> usize {
        let Some(Notes { notes, fields, .. }) = &mut self.notes else { return 0 };
        let n = notes.slots();
        for _ in 0..n {
            let Ok(note) = notes.pop() else { break };
            buffer.resize(note.len as usize, 0);
            // They were written before the note.
            if fields.pop_entire_slice(buffer).is_ok() {
                let heard = collector.note(&note, buffer);
                if !note.silenced {
                    outputs.hear(&note, buffer, &heard);
                }
            }
        }
        n
    }

    fn take_events(
        &mut self,
        n: usize,
        ready: u64,
        live: bool,
        hand: &mut impl FnMut(&FlowEvent),
    ) -> usize {
        for taken in 0..n {
            let Ok(event) = self.events.peek() else { return taken };
            if event.start_ns > ready {
                let since = *self.waits_since.get_or_insert_with(Instant::now);
                if !live || since.elapsed() < PATIENCE {
                    return taken;
                }
            } else {
                self.waits_since = None;
            }
            hand(event);
            let _ = self.events.pop();
        }
        n
    }
}
