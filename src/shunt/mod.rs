//! What flows are left out of telemetry and journal by: a list of domains, and the addresses that
//! names were answered with.
//!
//! Plain data and tables, no packets: `inspect` reads the names, `worker` asks. The list is shared
//! and never changed; a new one takes its place as a whole ([`Current`]). The addresses are each
//! worker's own; what one worker reads of an answer it tells the others ([`Party`]).

mod address;
mod blocklist;
mod current;
mod list;
mod party;

pub use address::{Addresses, Answer, Known};
pub use blocklist::Blocklist;
pub use current::{Current, View};
pub use list::{List, ListError, Loaded};
pub use party::{Party, parties};
