//! What the journal and its readers need of the machine beyond the standard library.
//!
//! * [`Filler`], [`Filled`]: a page-aligned buffer that one thread fills while others read what is
//!   published, without locks.
//! * [`prefer_large_pages`], [`populate`]: for memory that is read at random, or soon.
//! * [`Ring`]: writes and syncs through io_uring, completed in any order.
//! * [`stand_back`]: for threads that read while others must write.
//! * [`unsent`]: what a client has not taken yet.
//!
//! Nothing here knows of packets or files' meaning.

mod courtesy;
mod pages;
mod ring;
mod staging;

pub use courtesy::{stand_back, unsent};
pub use pages::{populate, prefer_large_pages};
pub use ring::Ring;
pub use staging::{Filled, Filler, PAGE};
