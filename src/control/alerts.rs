//! The latest alerts.
//!
//! Limit: [`KEPT`]; the earliest go first. Numbers go on, so that a reader notices what it missed.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Alerts kept.
pub(super) const KEPT: usize = 1_000;

/// One alert.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Alert {
    /// From 1 since the sensor's start.
    pub number: u64,
    /// Nanoseconds since 1970.
    pub timestamp_ns: u64,
    /// As in the EVE log.
    pub event: Value,
}

/// The latest of them.
#[derive(Debug, Default)]
pub struct Alerts {
    kept: VecDeque<Alert>,
    last: u64,
}

impl Alerts {
    pub fn push(&mut self, timestamp_ns: u64, line: &[u8]) {
        self.last += 1;
        if self.kept.len() == KEPT {
            self.kept.pop_front();
        }
        let event = serde_json::from_slice(line).unwrap_or_default();
        self.kept.push_back(Alert { number: self.last, timestamp_ns, event });
    }

    /// Those after a number, at most `most` of the latest, the earliest first.
    pub fn after(&self, number: u64, most: usize) -> Vec<Alert> {
        let new = self.kept.iter().filter(|a| a.number > number).count();
        self.kept.iter().skip(self.kept.len() - new.min(most)).cloned().collect()
    }
}
