//! Counters: owned by their thread, published by copying.
//!
//! A thread counts in its own [`Counters`] without atomics and copies them to its [`Published`]
//! board now and then; whoever reports sums the boards.

mod export;
mod journal;

use std::sync::atomic::{AtomicU64, Ordering};

pub use export::{ExportStatus, ExporterState, ExporterStatus, SpoolStatus};
pub use journal::{JournalBoard, JournalStatus, Kept, Watermark};

use crate::packet::Reject;

/// What one turn of an lcore's task did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    Busy,
    /// There was nothing to do, or no room for what it would make.
    Idle,
    /// It has ended; dropping it ends what it feeds.
    End,
}

/// How a counter is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Group {
    /// At the top level.
    Plain,
    NotIp,
    Malformed,
    /// Packets or records that were lost, by reason.
    Drop,
    Journal,
    /// Of reading payloads.
    Inspect,
    /// Of the blocklist.
    Blocklist,
    /// What the doctor looks at: of a sample of the packets, and of flows.
    Look,
}

macro_rules! counters {
    ($($variant:ident, $group:ident, $name:literal, $help:literal;)*) => {
        /// What is counted.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr(usize)]
        pub enum Counter { $(#[doc = $help] $variant),* }

        impl Counter {
            /// All, in the order of their numbers.
            pub const ALL: &'static [Self] = &[$(Self::$variant),*];

            pub fn name(self) -> &'static str {
                match self { $(Self::$variant => $name),* }
            }

            pub fn group(self) -> Group {
                match self { $(Self::$variant => Group::$group),* }
            }

            /// What it counts, in a sentence.
            pub fn help(self) -> &'static str {
                match self { $(Self::$variant => $help),* }
            }
        }
    };
}

counters! {
    Packets, Plain, "packets", "Packets received from the source.";
    Bytes, Plain, "bytes", "Their bytes on the wire.";
    Decoded, Plain, "decoded", "Packets that belong to a flow: IP, with a readable header.";
    Arp, NotIp, "arp", "ARP.";
    OtherEtherType, NotIp, "other_ethertype", "Another EtherType than IP.";
    Llc, NotIp, "llc", "802.2 without SNAP, such as spanning tree.";
    OtherLinkType, NotIp, "other_link_type", "A link type that is not read, such as 802.11.";
    OtherMpls, NotIp, "other_mpls", "MPLS that carries no IP.";
    OtherPpp, NotIp, "other_ppp", "PPP control and other protocols.";
    ShortLink, Malformed, "short_link", "The frame ends within its link header.";
    TooManyTags, Malformed, "too_many_tags", "More tags or labels than any network stacks.";
    Ipv4Header, Malformed, "ipv4_header", "An IPv4 header cut short or contradicting itself.";
    Ipv6Header, Malformed, "ipv6_header", "An IPv6 header cut short or contradicting itself.";
    Ipv6Extensions, Malformed, "ipv6_extensions", "IPv6 extension headers cut short or without end.";
    TransportHeader, Malformed, "transport_header", "A transport header that cannot be whole.";
    TransportCut, Malformed, "transport_cut", "The capture ends before the ports.";
    Filtered, Plain, "filtered", "Packets that --filter, --capture-filter or --exclude-web leave out.";
    Truncated, Plain, "truncated", "Packets of which less was captured than was sent.";
    LengthLies, Plain, "length_lies", "Packets whose IP length was larger than the frame.";
    Flows, Plain, "flows", "Flows begun.";
    ActiveFlows, Plain, "active_flows", "Flows that go on.";
    Evicted, Plain, "evicted", "Flows ended early to make room (--max-flows).";
    Events, Plain, "events", "Flow events, deltas included.";
    Inspected, Inspect, "packets", "Packets whose payload was looked at.";
    Notes, Inspect, "notes", "What was read: messages, handshakes, heads of requests.";
    NotesDropped, Inspect, "notes_dropped", "Notes lost since the control thread was slower.";
    StatesEvicted, Inspect, "states_evicted", "Flows no longer followed, to make room for others.";
    BuffersFull, Inspect, "buffers_full", "Messages given up since no buffer was free.";
    FlowsForgotten, Inspect, "flows_forgotten", "Flows whose names were given up to make room.";
    SilencedByName, Blocklist, "flows_by_name", "Flows silenced by a name in them.";
    SilencedByAddress, Blocklist, "flows_by_address", "Flows silenced by what their client asked for.";
    SilencedPackets, Blocklist, "packets", "Packets of silenced flows.";
    SilencedBytes, Blocklist, "bytes", "Their bytes on the wire.";
    SilencedEvents, Blocklist, "events", "Flow events that were not delivered.";
    SharedAddress, Blocklist, "shared", "Flows kept since other names share their address.";
    Reopened, Blocklist, "reopened", "Flows silenced until a name in them was not listed.";
    AnswersLost, Blocklist, "answers_lost", "DNS answers that found no room.";
    KernelDrops, Drop, "kernel", "Lost in the kernel's ring before the AF_PACKET driver.";
    LeftInRing, Drop, "left_in_ring", "Still in the kernel's ring at exit.";
    NicMissed, Drop, "nic_missed", "Lost since the card's ring was full.";
    NicErrors, Drop, "nic_errors", "Refused by the card as damaged.";
    NoBuffer, Drop, "no_buffer", "Lost since no packet buffer was free.";
    SteerFull, Drop, "worker_ring_full", "Lost since a worker's ring was full.";
    Unplaced, Drop, "unplaced", "Decoded, but no flow could take it: table and event ring full.";
    JournalOverload, Drop, "journal_overload", "Not journaled since the journal's lcore or the disk was slower.";
    JournalNoSpace, Drop, "journal_no_space", "Not journaled since the disk refused.";
    JournalPackets, Journal, "packets", "Packets that are safe in the journal.";
    JournalBytes, Journal, "bytes", "Bytes of the journal's pcap files, as far as they are safe.";
    JournalSegments, Journal, "segments", "Files begun.";
    JournalFiltered, Journal, "filtered", "Packets that --pcap-filter leaves out of the journal.";
    JournalSilenced, Journal, "silenced", "Packets that the blocklist leaves out of the journal.";
    JournalDiskBehind, Journal, "disk_behind", "Of drops.journal_overload, those lost since the disk was slower.";
    JournalCut, Journal, "cut", "Packets of which only headers are kept (--journal-cutoff).";
    JournalCutBytes, Journal, "cut_bytes", "Bytes that were cut off them.";
    Looked, Look, "packets", "Packets in the doctor's sample.";
    ToGroups, Look, "to_groups", "Of those, to broadcast and multicast addresses.";
    OwnTraffic, Look, "own_traffic", "Of those, from or to this machine itself.";
    Duplicates, Look, "duplicates", "Of those, the same packet again within 10 ms.";
    Oversize, Look, "oversize", "Of those, with more than 1,500 bytes in the frame.";
    BadChecksums, Look, "bad_checksums", "Of those, with a wrong checksum.";
    UnfinishedChecksums, Look, "unfinished_checksums", "Of those, with a checksum left to the card.";
    TcpBothWays, Look, "tcp_both_ways", "Ended TCP flows of which both directions were seen.";
    TcpOneWay, Look, "tcp_one_way", "Ended TCP flows with one direction that must have had two.";
    VlansDiffer, Look, "vlans_differ", "Ended TCP flows with another VLAN tag each way.";
    ClockSteps, Look, "clock_steps", "Times that the wall clock was set.";
}

const COUNT: usize = Counter::ALL.len();

/// One thread's counters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Counters([u64; COUNT]);

impl Default for Counters {
    fn default() -> Self {
        Self([0; COUNT])
    }
}

impl Counters {
    #[inline]
    pub fn add(&mut self, counter: Counter, n: u64) {
        self.0[counter as usize] += n;
    }

    #[inline]
    pub fn set(&mut self, counter: Counter, n: u64) {
        self.0[counter as usize] = n;
    }

    #[inline]
    pub fn get(&self, counter: Counter) -> u64 {
        self.0[counter as usize]
    }

    /// Counts a frame that makes no flow.
    pub fn reject(&mut self, reason: Reject) {
        self.add(
            match reason {
                Reject::Arp => Counter::Arp,
                Reject::OtherEtherType => Counter::OtherEtherType,
                Reject::Llc => Counter::Llc,
                Reject::OtherLinkType => Counter::OtherLinkType,
                Reject::OtherMpls => Counter::OtherMpls,
                Reject::OtherPpp => Counter::OtherPpp,
                Reject::ShortLink => Counter::ShortLink,
                Reject::TooManyTags => Counter::TooManyTags,
                Reject::Ipv4Header => Counter::Ipv4Header,
                Reject::Ipv6Header => Counter::Ipv6Header,
                Reject::Ipv6Extensions => Counter::Ipv6Extensions,
                Reject::TransportHeader => Counter::TransportHeader,
                Reject::TransportCut => Counter::TransportCut,
            },
            1,
        );
    }

    /// Adds another thread's counters to these.
    pub fn merge(&mut self, other: &Self) {
        for (mine, theirs) in self.0.iter_mut().zip(other.0) {
            *mine += theirs;
        }
    }

    /// What was counted since `then`.
    pub fn since(&self, then: &Self) -> Self {
        let mut out = *self;
        out.0.iter_mut().zip(then.0).for_each(|(now, then)| *now = now.saturating_sub(then));
        out
    }

    /// The counters of a group, by name, in order.
    pub fn group(&self, group: Group) -> impl Iterator<Item = (&'static str, u64)> {
        Counter::ALL.iter().filter(move |c| c.group() == group).map(|&c| (c.name(), self.get(c)))
    }

    /// What a group counted, such as `arp 2, llc 1`.
    pub fn reasons(&self, group: Group) -> String {
        let counted = self.group(group).filter(|(_, n)| *n > 0);
        counted.map(|(name, n)| format!("{name} {n}")).collect::<Vec<_>>().join(", ")
    }

    /// The sum of a group.
    pub fn sum(&self, group: Group) -> u64 {
        self.group(group).map(|(_, n)| n).sum()
    }
}

/// Where a thread's counters can be read by others.
#[derive(Debug)]
pub struct Published {
    counters: [AtomicU64; COUNT],
    /// The owner's last turn: a thread that goes on has a new one time and again.
    beats: AtomicU64,
}

impl Default for Published {
    fn default() -> Self {
        let counters = std::array::from_fn(|_| AtomicU64::new(0));
        Self { counters, beats: AtomicU64::new(0) }
    }
}

impl Published {
    /// Called by the owner alone.
    pub fn store(&self, counters: &Counters) {
        for (to, from) in self.counters.iter().zip(counters.0) {
            to.store(from, Ordering::Relaxed);
        }
    }

    /// Says which turn the owner is at; called by the owner alone.
    #[inline]
    pub fn beat(&self, turn: u64) {
        self.beats.store(turn, Ordering::Relaxed);
    }

    /// The turn that the owner is at.
    pub fn beats(&self) -> u64 {
        self.beats.load(Ordering::Relaxed)
    }

    pub fn load(&self) -> Counters {
        let mut out = Counters::default();
        for (to, from) in out.0.iter_mut().zip(&self.counters) {
            *to = from.load(Ordering::Relaxed);
        }
        out
    }
}
