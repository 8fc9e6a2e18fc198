//! A packet on its way to whoever reads payloads, and how much more that reader wants.

use crate::packet::{Decoded, FlowKey};

/// What the blocklist makes of a flow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mark {
    /// Nothing was said of it.
    #[default]
    Plain,
    /// Counted, but out of telemetry and journal.
    Silenced,
    /// It has a name that is not listed: from here on it is not silenced.
    Open,
}

/// How much of a flow is still to be read: a number of packets, and whether the reader keeps
/// something for the flow that must be given up with it. Zero when the flow is done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Wants(u8);

impl Wants {
    /// Packets at most.
    pub const MOST: u8 = 0x7f;
    const HELD: u8 = 0x80;

    /// So many packets; nothing is kept.
    pub fn packets(n: u8) -> Self {
        Self(n.min(Self::MOST))
    }

    /// So many packets, for which something is kept.
    pub fn held(n: u8) -> Self {
        Self(n.min(Self::MOST) | Self::HELD)
    }

    #[inline]
    pub fn any(self) -> bool {
        self.0 != 0
    }

    pub fn left(self) -> u8 {
        self.0 & Self::MOST
    }

    pub fn is_held(self) -> bool {
        self.0 & Self::HELD != 0
    }
}

/// A packet with a payload, of a flow that wants it read.
#[derive(Clone, Copy, Debug)]
pub struct Seen<'a> {
    /// The flow's place in its table, which no other flow has as long as it lasts.
    pub place: u32,
    pub flow_id: u64,
    pub key: FlowKey,
    /// The originator is the key's `a`.
    pub orig_is_a: bool,
    /// 0 sent by the originator, 1 by the responder.
    pub side: usize,
    pub decoded: &'a Decoded,
    pub timestamp_ns: u64,
    /// Number of the packet in its burst.
    pub frame: u32,
    /// Where the payload stands in its side's TCP stream.
    pub stream_at: u32,
    pub wants: Wants,
    /// Whoever reads the payload may change it.
    pub mark: Mark,
}
