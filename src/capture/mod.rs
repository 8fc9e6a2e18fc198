//! Where packets come from: ports and capture files, all of them as bursts of packet buffers.
//!
//! A [`Source`] belongs to the lcore that polls it. It stamps each packet with its time, its link
//! type and its length on the wire, and keeps a clock that never runs backwards: the largest
//! timestamp so far, or, live, the time that has passed. Sources never block.

mod file;
mod port;
mod reader;
mod steer;

use dpdk::mbuf::free_burst;
use dpdk::{BURST, Bell, Burst, Mbuf, Meta};

pub use file::FileSource;
pub use port::{PortKind, PortSource};
pub use reader::{CaptureReader, OpenError, Record, Trouble};
pub use steer::Steer;

use crate::packet::{Frame, Link};

/// What a poll gave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Poll {
    /// So many packets came.
    Packets(usize),
    /// Nothing now.
    Empty,
    /// Nothing ever again.
    End,
}

/// When and how a packet came.
#[derive(Clone, Copy, Debug, Default)]
pub struct Stamp {
    /// The packet's own time, nanoseconds since 1970.
    pub timestamp_ns: u64,
    pub meta: Meta,
    pub link: Link,
}

impl Stamp {
    pub fn new(timestamp_ns: u64, meta: Meta) -> Self {
        Self { timestamp_ns, meta, link: Link::from_number(meta.link) }
    }
}

/// A burst and its stamps. The stamps go into the buffers only where these change hands
/// ([`Batch::stamp_buffers`]): a buffer's second cache line is dear.
pub struct Batch {
    pub packets: Burst,
    stamps: [Stamp; BURST],
}

impl Default for Batch {
    fn default() -> Self {
        Self { packets: Burst::new(), stamps: [Stamp::default(); BURST] }
    }
}

impl Batch {
    /// The packets with their stamps.
    #[inline]
    pub fn iter(&self) -> impl Iterator<Item = (&Mbuf, &Stamp)> {
        self.packets.iter().zip(&self.stamps)
    }

    fn push(&mut self, packet: Mbuf, stamp: Stamp) {
        if let Some(slot) = self.stamps.get_mut(self.packets.len()) {
            *slot = stamp;
            self.packets.push(packet);
        }
    }

    /// Keeps those for which `keep` says so, by number, in order; the others go back to the pool.
    pub fn retain(&mut self, mut keep: impl FnMut(usize, &Mbuf, &Stamp) -> bool) {
        let mut kept = 0;
        for n in 0..self.packets.len() {
            if self.packets.get(n).zip(self.stamps.get(n)).is_some_and(|(p, s)| keep(n, p, s)) {
                self.packets.swap(kept, n);
                self.stamps.swap(kept, n);
                kept += 1;
            }
        }
        let mut others: Burst = self.packets.drain(kept..).collect();
        free_burst(&mut others);
    }

    /// Takes packets over that another lcore stamped.
    pub fn take_stamped(&mut self, packets: impl Iterator<Item = Mbuf>) {
        for packet in packets {
            let stamp = Stamp::new(packet.timestamp_ns(), packet.meta());
            self.push(packet, stamp);
        }
    }

    /// Writes the stamps into the buffers, for whoever gets them next.
    pub fn stamp_buffers(&mut self) {
        for (packet, stamp) in self.packets.iter_mut().zip(&self.stamps) {
            packet.stamp(stamp.timestamp_ns, stamp.meta);
        }
    }
}

/// Something to poll for packets.
pub enum Source {
    File(FileSource),
    Port(PortSource),
}

impl Source {
    /// Fills an empty batch with what is there.
    #[inline]
    pub fn poll(&mut self, batch: &mut Batch) -> Poll {
        match self {
            Self::File(s) => s.poll(batch),
            Self::Port(s) => s.poll(batch),
        }
    }

    /// The clock, nanoseconds; live it moves on though nothing arrives.
    pub fn clock_ns(&mut self) -> u64 {
        match self {
            Self::File(s) => s.clock_ns(),
            Self::Port(s) => s.clock_ns(),
        }
    }

    /// Takes nothing new: what a live source has already taken in is read out, a file stops where it
    /// is.
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

    /// What rings when something comes; `None` where nothing would.
    pub fn bells(&self) -> Option<Vec<Bell>> {
        match self {
            Self::File(_) => None,
            Self::Port(s) => s.bells(),
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

/// The frame in a buffer.
#[inline]
pub fn frame<'a>(packet: &'a Mbuf, stamp: &Stamp) -> Frame<'a> {
    let meta = &stamp.meta;
    Frame {
        data: packet.data(),
        wire_len: meta.wire_len,
        wire_len_known: meta.flags & Meta::LENGTH_UNKNOWN == 0,
        link: stamp.link,
    }
}
