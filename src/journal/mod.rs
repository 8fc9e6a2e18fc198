//! The packet journal: plain pcap files of everything that was received.
//!
//! Workers hand their packets to the [`Scribe`] on the journal's lcore, which merges them by time
//! into chunks and frees the buffers at once; an ordinary thread writes the chunks to files. A
//! chunk holds whole records, so that tcpdump and Wireshark can open each file at any moment, the
//! one being written too. When the disk is slower than the wire, chunks run out and packets are
//! dropped and counted here; capture never waits.
//!
//! Files are nanosecond pcap, named `seg-<number>-<first timestamp>.pcap`, a new one at the
//! rotation size, and one for each link type.

pub mod catalogue;
pub mod index;
pub mod live;
pub mod query;
mod scribe;
mod segment;

pub use scribe::Scribe;
pub use segment::{JournalConfig, JournalError, Writer, start};
