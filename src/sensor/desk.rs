//! What the workers send, taken in on the control thread in an order that does not depend on how
//! many they are.
//!
//! A flow's notes are there before its event. A name may have been answered to on one worker for a
//! flow of another: an event waits until every other worker has read up to the flow's start. Live, a
//! worker that stands still holds the others' events no longer than [`PATIENCE`]. An event also
//! waits until the journal is done with what its worker had received by then, and so knows where the
//! flow begins there.

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
use crate::journal::{Places, Progress};
use crate::worker::{Reading, Report};

/// Notes between a worker and the control thread, and bytes of their fields.
const NOTE_RING: usize = 8192;
const FIELD_RING: usize = 1 << 21;
/// How long an event waits for another worker, where the source does not wait for us.
const PATIENCE: Duration = Duration::from_secs(1);

/// Where one worker's reports arrive.
struct Reports {
    events: Consumer<Report>,
    notes: Option<Notes>,
    journal: Option<Progress>,
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
    places: Option<Places>,
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

/// What an event may have to wait for.
#[derive(Clone, Copy)]
struct Ready {
    /// Up to which moment the other workers have read.
    until: u64,
    /// How many of its worker's packets the journal is done with.
    journaled: u64,
}

impl Desk {
    /// `live`: the source does not wait for us. `sensor` is its name.
    pub(super) fn new(live: bool, sensor: &str) -> Self {
        Self {
            workers: Vec::new(),
            collector: Collector::default(),
            places: None,
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

    /// Has events say where their flows begin in the journal.
    pub(super) fn look_up(&mut self, places: Places) {
        self.places = Some(places);
    }

    /// Joins a worker: its events, how far the journal is with its packets, and with `packets` a way
    /// to read payloads for a table of so many flows.
    pub(super) fn join(
        &mut self,
        events: Consumer<Report>,
        journal: Option<Progress>,
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
        self.workers.push(Reports { events, notes, journal, waits_since: None });
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
        // In this order: up to where each has read, and how far the journal is; which events there
        // are; the notes and places, among them all that belong to those events and all up to those
        // moments; then the events.
        let until: Vec<u64> = self.workers.iter().map(Reports::until).collect();
        let journaled: Vec<u64> = self.workers.iter().map(Reports::journaled).collect();
        let events: Vec<usize> = self.workers.iter().map(|w| w.events.slots()).collect();
        let mut taken = self.places.as_mut().map_or(0, Places::learn);
        for worker in &mut self.workers {
            taken += worker.take_notes(&mut self.collector, &mut self.fields, outputs);
        }
        for (at, (n, journaled)) in events.into_iter().zip(journaled).enumerate() {
            let others = until.iter().enumerate().filter(|(other, _)| *other != at);
            let until = others.map(|(_, &until)| until).min().unwrap_or(u64::MAX);
            let ready = match all {
                true => Ready { until: u64::MAX, journaled: u64::MAX },
                false => Ready { until, journaled },
            };
            taken += self.take_events(at, n, ready, outputs);
        }
        taken + self.flows.attend(&mut self.collector)
    }

    /// Takes as many as `n` of a worker's events.
    fn take_events(&mut self, at: usize, n: usize, ready: Ready, outputs: &mut Outputs) -> usize {
        let Some(worker) = self.workers.get_mut(at) else { return 0 };
        for taken in 0..n {
            let Ok(Report { event, received }) = worker.events.peek() else { return taken };
            if event.start_ns > ready.until || *received > ready.journaled {
                let since = *worker.waits_since.get_or_insert_with(Instant::now);
                if !self.live || since.elapsed() < PATIENCE {
                    return taken;
                }
            } else {
                worker.waits_since = None;
            }
            let mut about = self.collector.about(event);
            if let Some(places) = &mut self.places {
                about.journal = places.of(event.flow_id, event.end.is_some());
            }
            self.silenced += u64::from(event.silenced);
            outputs.take(event, &about);
            let _ = worker.events.pop();
        }
        n
    }
}

impl Reports {
    fn until(&self) -> u64 {
        self.notes.as_ref().map_or(u64::MAX, |n| n.until.load(Ordering::Acquire))
    }

    fn journaled(&self) -> u64 {
        self.journal.as_ref().map_or(u64::MAX, Progress::get)
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
}
