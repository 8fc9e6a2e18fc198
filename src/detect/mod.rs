//! Detection: what single hosts do in fixed windows of time.
//!
//! A [`Sighting`] is what a frame says to a detector: who sends to which endpoint. A [`Tally`]
//! counts the endpoints and hosts that one host sends to during one window; a [`Judge`] holds a
//! tally against thresholds and gives a [`Verdict`] of [`Finding`]s: floods of one endpoint, scans,
//! ordinary connections. [`Eve`] writes findings as EVE JSON lines. [`watch`] runs the windows of
//! many hosts inside workers.
//!
//! Pure: no clock, no I/O, no DPDK. Memory is bounded whatever the traffic: a tally keeps
//! [`Tally::limit`] endpoints and as many hosts, counts packets to others, and says how many.

mod eve;
mod judge;
mod scope;
mod sighting;
mod tally;
pub mod watch;

pub use eve::{Eve, EveStyle, Subject};
pub use judge::{Class, Destination, Finding, Judge, Rules, ScanMode, Verdict};
pub use scope::{Host, Prefix, Scope, ScopeError};
pub use sighting::{Protocol, Sighting, sight};
pub use tally::{Endpoint, Place, Tally};

/// Endpoints, and hosts, that a tally keeps unless told otherwise.
pub const DEFAULT_LIMIT: usize = 1024;
