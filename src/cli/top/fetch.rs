//! The thread that asks the sensor, so that a slow answer never holds up a key.

use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, unbounded};
use serde_json::{Map, Value};

use super::Message;
use crate::cli::client::{AlertPage, AskError, Client, FlowPage, question};
use crate::control::{Alert, Status};

pub(super) type Row = Map<String, Value>;

/// What is wanted from now on, each time.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Wanted {
    /// Path and question of the rows.
    pub(super) rows: String,
    /// The flow whose details are open.
    pub(super) flow: Option<u64>,
}

/// One round of answers.
#[derive(Debug)]
pub(super) struct Answers {
    /// What was wanted.
    pub(super) wanted: Wanted,
    pub(super) status: Status,
    pub(super) flows: u64,
    pub(super) matched: u64,
    pub(super) rows: Vec<Row>,
    /// The flow asked for, if it is still live.
    pub(super) flow: Option<Row>,
    /// Alerts that are new.
    pub(super) alerts: Vec<Alert>,
}

/// Asks at once when something else is wanted, and every `interval`.
pub(super) fn start(
    mut client: Client,
    first: Wanted,
    interval: Duration,
    to: Sender<Message>,
) -> Sender<Wanted> {
    let (wanted, wanted_rx) = unbounded();
    thread::spawn(move || {
        let (mut last_alert, mut started) = (0, 0);
        let mut wanted = first;
        loop {
            let begun = Instant::now();
            let message = match round(&mut client, &wanted, last_alert) {
                Ok(answers) => {
                    // A sensor that was started anew counts its alerts from 1.
                    let is_new = started != answers.status.started_ns;
                    let last = if is_new { 0 } else { last_alert };
                    last_alert = answers.alerts.last().map_or(last, |a| a.number);
                    started = answers.status.started_ns;
                    Message::Answers(Box::new(answers))
                }
                Err(e) => Message::Problem(e),
            };
            if to.send(message).is_err() {
                return;
            }
            match next(&wanted_rx, begun + interval) {
                Some(next) => wanted = next.unwrap_or(wanted),
                None => return,
            }
        }
    });
    wanted
}

/// What is wanted next: something else, or at the given time the same; `None`: nobody is there.
fn next(wanted: &Receiver<Wanted>, at: Instant) -> Option<Option<Wanted>> {
    match wanted.recv_deadline(at) {
        // Of several keys in a row the last counts.
        Ok(first) => Some(Some(wanted.try_iter().last().unwrap_or(first))),
        Err(RecvTimeoutError::Timeout) => Some(None),
        Err(RecvTimeoutError::Disconnected) => None,
    }
}

fn round(client: &mut Client, wanted: &Wanted, last_alert: u64) -> Result<Answers, AskError> {
    let page: FlowPage = client.get(&wanted.rows)?;
    let flow = match wanted.flow {
        Some(id) => flow(client, id)?,
        None => None,
    };
    let after = last_alert.to_string();
    let alerts: AlertPage =
        client.get(&question("/alerts", &[("after", &after), ("limit", "1000")]))?;
    let rows = page.rows.iter().filter_map(|r| serde_json::from_str(r.get()).ok());
    Ok(Answers {
        wanted: wanted.clone(),
        status: client.get("/status")?,
        flows: page.flows,
        matched: page.matched,
        rows: rows.collect(),
        flow,
        alerts: alerts.alerts,
    })
}

/// The live flow of this id: the first behind the id before it.
fn flow(client: &mut Client, id: u64) -> Result<Option<Row>, AskError> {
    let after = format!("{:016x}", id.wrapping_sub(1));
    let order = [("sort", "flow_id"), ("order", "asc"), ("limit", "1"), ("after", &after)];
    let page: FlowPage = client.get(&question("/flows", &order))?;
    let row: Option<Row> = page.rows.first().and_then(|r| serde_json::from_str(r.get()).ok());
    Ok(row.filter(|r| id_of(r) == Some(id)))
}

/// A row's flow id.
pub(super) fn id_of(row: &Row) -> Option<u64> {
    row.get("flow_id").and_then(Value::as_str).and_then(|id| u64::from_str_radix(id, 16).ok())
}
