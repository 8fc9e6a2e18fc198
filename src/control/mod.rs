//! What others may know and want of the running sensor.
//!
//! A [`House`] is the sensor as its servers see it: its status as of the last second, the latest
//! alerts, and a door for questions that the control thread answers in its own time. The control
//! thread's side is a [`Reception`]. Nobody who asks can make the sensor wait: the status and the
//! alerts are copies, and live flows are copied out by the workers in slices ([`live`]).

mod alerts;
pub mod live;
pub mod metrics;
mod state;

use std::sync::{Arc, Mutex, PoisonError};

use crossbeam_channel::{Receiver, Sender, bounded};
use tokio::sync::oneshot;

pub use alerts::{Alert, Alerts};
pub use live::{FlowAnswer, FlowQuery, Sort};
pub use state::{DiskStatus, LcoreStatus, Rates, Role, Status};

/// Questions that may wait; more are refused.
const WAITING: usize = 64;

/// Why there is no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AskError {
    #[error("too many questions wait for an answer; try again")]
    Busy,
    #[error("the sensor is ending")]
    Ending,
}

/// A question to the control thread.
#[derive(Debug)]
pub enum Ask {
    Flows(FlowQuery, oneshot::Sender<FlowAnswer>),
    /// Read lists, filters and log level anew, and open logs of the same names anew.
    Reload(oneshot::Sender<Reloaded>),
}

/// What a reload did.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Reloaded {
    pub done: Vec<String>,
    /// What stays as it was, and why.
    pub failed: Vec<String>,
}

/// What is known of the sensor, from any thread.
#[derive(Clone, Debug)]
pub struct House(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    status: Mutex<Arc<Status>>,
    alerts: Mutex<Alerts>,
    asks: Sender<Ask>,
}

/// The control thread's side.
#[derive(Debug)]
pub struct Reception {
    house: House,
    asks: Receiver<Ask>,
}

/// Makes both sides.
pub fn open(status: Status) -> (House, Reception) {
    let (asks, asks_rx) = bounded(WAITING);
    let status = Mutex::new(Arc::new(status));
    let house = House(Arc::new(Shared { status, alerts: Mutex::default(), asks }));
    (house.clone(), Reception { house, asks: asks_rx })
}

impl House {
    /// The sensor as of the last second.
    pub fn status(&self) -> Arc<Status> {
        Arc::clone(&self.0.status.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// The latest alerts after the one of number `after`, at most `most`, the earliest first.
    pub fn alerts(&self, after: u64, most: usize) -> Vec<Alert> {
        self.0.alerts.lock().unwrap_or_else(PoisonError::into_inner).after(after, most)
    }

    /// Asks for live flows.
    ///
    /// # Errors
    /// Too many wait, or the sensor is ending.
    pub async fn flows(&self, query: FlowQuery) -> Result<FlowAnswer, AskError> {
        self.ask(|to| Ask::Flows(query, to)).await
    }

    /// Asks for a reload.
    ///
    /// # Errors
    /// Too many wait, or the sensor is ending.
    pub async fn reload(&self) -> Result<Reloaded, AskError> {
        self.ask(Ask::Reload).await
    }

    async fn ask<T>(&self, ask: impl FnOnce(oneshot::Sender<T>) -> Ask) -> Result<T, AskError> {
        let (to, answer) = oneshot::channel();
        self.0.asks.try_send(ask(to)).map_err(|e| match e {
            crossbeam_channel::TrySendError::Full(_) => AskError::Busy,
            crossbeam_channel::TrySendError::Disconnected(_) => AskError::Ending,
        })?;
        answer.await.map_err(|_| AskError::Ending)
    }
}

impl Reception {
    /// The next question, if there is one.
    pub fn next(&self) -> Option<Ask> {
        self.asks.try_recv().ok()
    }

    /// Puts out a new status.
    pub fn publish(&self, status: Status) {
        *self.house.0.status.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(status);
    }

    /// Keeps an alert: one EVE line.
    pub fn alert(&self, timestamp_ns: u64, line: &[u8]) {
        let mut alerts = self.house.0.alerts.lock().unwrap_or_else(PoisonError::into_inner);
        alerts.push(timestamp_ns, line);
    }
}

#[cfg(test)]
mod tests;
