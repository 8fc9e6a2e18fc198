//! What the journal needs of the machine beyond the standard library.
//!
//! * [`Filler`], [`Filled`]: a page-aligned buffer that one thread fills while others read what is
//!   published, without locks.
//! * [`Ring`]: writes and syncs through io_uring, completed in any order.
//!
//! Nothing here knows of packets or files' meaning.

mod ring;
mod staging;

pub use ring::Ring;
pub use staging::{Filled, Filler, PAGE};
