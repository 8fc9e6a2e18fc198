//! The flow event: what a worker says of a flow, and its JSON line.
//!
//! A [`FlowEvent`] is plain data without heap parts, so that a worker can hand it over by copying.
//! A flow gives one event or several deltas; deltas sum exactly to the totals.

mod app;
mod content;
mod expression;
mod fields;
mod json;
mod note;
mod object;
mod seen;

use crate::packet::{FlowKey, Vlans};

pub use app::App;
pub use content::{
    About, Certificate, Content, Dhcp, Dns, Http, Place, Ssh, Tls, hex, mac, rcode_name, type_name,
};
pub use expression::{Expression, Fields};
pub use fields::{FIELDS, FlowFields, asks_what_about};
pub use json::{EventWriter, community_digest, community_id, parse_community_id, protocol_name};
pub use note::{Answer, FieldWriter, MAX_FIELDS, Note, NoteKind, NoteSink, Tag, fields, number};
pub use object::Object;
pub use seen::{Mark, Seen, Wants};

/// Packets and bytes of one direction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    pub packets: u64,
    /// Frame bytes.
    pub bytes: u64,
    /// IP packet bytes.
    pub ip_bytes: u64,
}

impl Counts {
    /// Adds another count to this one.
    #[inline]
    pub fn add(&mut self, other: Self) {
        self.packets += other.packets;
        self.bytes += other.bytes;
        self.ip_bytes += other.ip_bytes;
    }

    /// What came since `earlier`.
    pub fn since(self, earlier: Self) -> Self {
        Self {
            packets: self.packets - earlier.packets,
            bytes: self.bytes - earlier.bytes,
            ip_bytes: self.ip_bytes - earlier.ip_bytes,
        }
    }
}

/// Why a flow ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EndReason {
    Idle,
    Fin,
    Rst,
    Evicted,
    Shutdown,
    Eof,
}

impl EndReason {
    pub fn name(self) -> &'static str {
        match self {
            Self::Idle => "idle",
            Self::Fin => "fin",
            Self::Rst => "rst",
            Self::Evicted => "evicted",
            Self::Shutdown => "shutdown",
            Self::Eof => "eof",
        }
    }
}

/// How a connection went, in Zeek's terms.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConnState {
    S0,
    S1,
    S2,
    S3,
    Sf,
    Rej,
    Rsto,
    Rstr,
    Rstos0,
    Rstrh,
    Sh,
    Shr,
    Oth,
}

impl ConnState {
    pub fn name(self) -> &'static str {
        match self {
            Self::S0 => "S0",
            Self::S1 => "S1",
            Self::S2 => "S2",
            Self::S3 => "S3",
            Self::Sf => "SF",
            Self::Rej => "REJ",
            Self::Rsto => "RSTO",
            Self::Rstr => "RSTR",
            Self::Rstos0 => "RSTOS0",
            Self::Rstrh => "RSTRH",
            Self::Sh => "SH",
            Self::Shr => "SHR",
            Self::Oth => "OTH",
        }
    }
}

/// Letters of what happened, upper case by the originator; longer ones are cut at the end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct History {
    letters: [u8; 19],
    len: u8,
}

impl History {
    /// Appends a letter; `side` 1, the responder, makes it lower case.
    pub fn push(&mut self, side: usize, code: u8) {
        if let Some(slot) = self.letters.get_mut(usize::from(self.len)) {
            *slot = if side == 0 { code } else { code.to_ascii_lowercase() };
            self.len += 1;
        }
    }

    pub fn as_str(&self) -> &str {
        let letters = self.letters.get(..usize::from(self.len)).unwrap_or_default();
        std::str::from_utf8(letters).unwrap_or_default()
    }

    /// Whether the originator sent a SYN and then a RST, with nothing of weight in between.
    pub(crate) fn is_syn_then_rst(&self) -> bool {
        let text = self.as_str().trim_start_matches('^');
        let Some(rest) = text.strip_prefix('S') else { return false };
        rest.split_once('R')
            .is_some_and(|(between, _)| !between.contains(['H', 'A', 'F', 'I', 'G', 'Q']))
    }
}

/// One delta of a flow.
#[derive(Clone, Copy, Debug)]
pub struct FlowEvent {
    /// Unique to the flow, not to its addresses.
    pub flow_id: u64,
    /// Number of this delta, from 0.
    pub shred: u32,
    pub key: FlowKey,
    /// The originator is the key's `a`.
    pub orig_is_a: bool,
    /// When this was due, nanoseconds since 1970.
    pub timestamp_ns: u64,
    /// First and last packet of the flow.
    pub start_ns: u64,
    pub end_ns: u64,
    /// Time without packets until `timestamp_ns`.
    pub idle_ns: u64,
    /// This delta, by originator and responder.
    pub delta: [Counts; 2],
    /// Since the flow began.
    pub total: [Counts; 2],
    /// Set on the last delta of its flow.
    pub end: Option<EndReason>,
    pub conn_state: ConnState,
    pub history: History,
    /// Union of all TCP flags.
    pub tcp_flags: u8,
    /// Originator's and responder's.
    pub macs: [Option<[u8; 6]>; 2],
    /// Of the first frame of originator and responder.
    pub vlans: [Vlans; 2],
    pub rtt_ns: Option<u64>,
    pub retransmits: u32,
    /// Left out of telemetry and journal.
    pub silenced: bool,
}

/// Where events go. A sink that is full keeps the flow in its table rather than lose the event.
pub trait EventSink {
    /// How many events can be taken now.
    fn room(&self) -> usize;
    /// Takes one; the caller saw that there was room.
    fn push(&mut self, event: FlowEvent);
    /// What a flow that begins wants of its payload read.
    fn wants(&self) -> Wants {
        Wants::default()
    }
    /// How a flow is marked that begins at a moment.
    fn begins(&mut self, _key: &FlowKey, _orig_is_a: bool, _timestamp_ns: u64) -> Mark {
        Mark::Plain
    }
    /// Reads a payload; what the flow wants from here on.
    fn inspect(&mut self, _seen: &mut Seen<'_>) -> Wants {
        Wants::default()
    }
    /// A packet, given by its number in the burst, went to a silenced flow.
    fn silenced(&mut self, _frame: u32, _wire_len: u32) {}
    /// The flow at this place ends, and something is kept for it.
    fn forget(&mut self, _place: u32) {}
}

impl EventSink for Vec<FlowEvent> {
    fn room(&self) -> usize {
        usize::MAX
    }

    fn push(&mut self, event: FlowEvent) {
        Self::push(self, event);
    }
}
