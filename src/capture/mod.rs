//! Where packets come from: ports and capture files, all of them as bursts of packet buffers.
//!
//! A [`Source`] belongs to the lcore that polls it. It stamps each packet with its time, its link
//! type and its length on the wire, and keeps a clock that never runs backwards: the largest
//! timestamp so far, or, live, the time that has passed. Sources never block.

mod file;
mod port;
mod reader;
mod steer;

use dpdk::Burst;

pub use file::FileSource;
pub use port::{PortKind, PortSource};
pub use reader::{CaptureReader, OpenError, Record, Trouble};
pub use steer::Steer;

use crate::packet::{Frame, Link};

/// What a poll gave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Poll {
    /// So many packets were appended.
    Packets(usize),
    /// Nothing now.
    Empty,
    /// Nothing ever again.
    End,
}

/// Something to poll for packets.
pub enum Source {
    File(FileSource),
    Port(PortSource),
}

impl Source {
    /// Appends what is there to `burst`.
    #[inline]
    pub fn poll(&mut self, burst: &mut Burst) -> Poll {
        match self {
            Self::File(s) => s.poll(burst),
            Self::Port(s) => s.poll(burst),
        }
    }

    /// The clock, nanoseconds; live it moves on though nothing arrives.
    pub fn clock_ns(&mut self) -> u64 {
        match self {
            Self::File(s) => s.clock_ns(),
            Self::Port(s) => s.clock_ns(),
        }
    }

    /// Packets to read before the end, once nothing new is wanted: what a live source has already
    /// taken in is read out, a file stops where it is.
    pub fn stop(&mut self) {
        match self {
            Self::File(s) => s.stop(),
            Self::Port(s) => s.stop(),
        }
    }

    /// Whether the source waits for us, so that nothing needs to be dropped when we are slow.
    pub fn waits(&self) -> bool {
        match self {
            Self::File(_) => true,
            Self::Port(s) => s.is_file(),
        }
    }

    /// What went wrong with the input, a line each.
    pub fn complaints(&self) -> Vec<Complaint> {
        match self {
            Self::File(s) => s.complaints(),
            Self::Port(_) => Vec::new(),
        }
    }
}

/// What was wrong with an input, as it is reported at the end.
#[derive(Clone, Debug)]
pub struct Complaint {
    pub text: String,
    /// The input is incomplete, but all there was could be read.
    pub is_cut: bool,
}

/// The frame that a stamped buffer holds.
#[inline]
pub fn frame(m: &dpdk::Mbuf) -> Frame<'_> {
    let meta = m.meta();
    Frame {
        data: m.data(),
        wire_len: meta.wire_len,
        wire_len_known: meta.flags & dpdk::Meta::LENGTH_UNKNOWN == 0,
        link: Link::from_number(meta.link),
    }
}
