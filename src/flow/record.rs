//! One flow's record, and how a packet changes it.

use super::index::NONE;
use super::tcp::TcpTrack;
use super::timer::Link;
use super::{Arrival, Timeouts};
use crate::event::{ConnState, Counts, EndReason, FlowEvent, History};
use crate::packet::{Decoded, FlowKey, Vlans, proto};

/// How long a closed connection stays to take in what still trails.
pub(super) const LINGER_NS: u64 = 5_000_000_000;

/// Links of the list of flows without an answer, oldest first.
#[derive(Clone, Copy, Debug)]
pub(super) struct Waiting {
    pub(super) next: u32,
    pub(super) prev: u32,
    pub(super) listed: bool,
}

#[derive(Clone, Debug)]
pub(super) struct Flow {
    pub(super) key: FlowKey,
    pub(super) hash: u64,
    /// The source's clock at the last packet.
    pub(super) last_clock: u64,
    /// The same at the first packet of the open delta; meaningless while that is empty.
    delta_clock: u64,
    pub(super) link: Link,
    pub(super) waiting: Waiting,
    pub(super) in_use: bool,
    pub(super) orig_is_a: bool,
    /// Directions whose MAC and VLANs were noted.
    noted: [bool; 2],
    tcp_flags: u8,
    shred: u32,
    total: [Counts; 2],
    start_ns: u64,
    end_ns: u64,
    tcp: TcpTrack,
    history: History,
    id: u64,
    reported: [Counts; 2],
    macs: [Option<[u8; 6]>; 2],
    vlans: [Vlans; 2],
    icmp: (u8, u8),
}

impl Flow {
    pub(super) fn new(
        key: FlowKey,
        hash: u64,
        orig_is_a: bool,
        id: u64,
        arrival: &Arrival,
    ) -> Self {
        Self {
            key,
            hash,
            last_clock: arrival.clock_ns,
            delta_clock: arrival.clock_ns,
            link: Link::UNLINKED,
            waiting: Waiting { next: NONE, prev: NONE, listed: false },
            in_use: true,
            orig_is_a,
            noted: [false; 2],
            tcp_flags: 0,
            shred: 0,
            total: [Counts::default(); 2],
            start_ns: arrival.timestamp_ns,
            end_ns: arrival.timestamp_ns,
            tcp: TcpTrack::default(),
            history: History::default(),
            id,
            reported: [Counts::default(); 2],
            macs: [None; 2],
            vlans: [Vlans::default(); 2],
            icmp: arrival.decoded.icmp,
        }
    }

    /// Writes the mark of an originator that was not the first sender.
    pub(super) fn mark_flipped(&mut self) {
        if matches!(self.key.proto(), proto::TCP | proto::UDP) {
            self.history.push(0, b'^');
        }
    }

    /// 0 for a packet of the originator, 1 for one of the responder.
    #[inline]
    pub(super) fn side(&self, from_a: bool) -> usize {
        usize::from(from_a != self.orig_is_a)
    }

    /// Takes a packet in.
    #[inline]
    pub(super) fn update(&mut self, arrival: &Arrival, side: usize) {
        let d = &arrival.decoded;
        let count =
            Counts { packets: 1, bytes: u64::from(d.wire_len), ip_bytes: u64::from(d.ip_len) };
        self.add(count, side, arrival.timestamp_ns, arrival.timestamp_ns, arrival.clock_ns);
        if !self.noted[side & 1] {
            self.note(d, side & 1);
        }
        let later_fragment = d.fragment.is_some_and(|f| f.offset != 0);
        match d.tuple.proto {
            proto::TCP if !later_fragment => {
                self.tcp_flags |= d.tcp.flags;
                self.tcp.segment(
                    side,
                    &d.tcp,
                    d.payload_len,
                    arrival.timestamp_ns,
                    &mut self.history,
                );
            }
            // A later fragment is a part of a datagram that was noted by its first.
            proto::UDP if self.total[side & 1].packets == 1 => self.history.push(side, b'D'),
            _ => {}
        }
    }

    /// Adds counts that arrived between two moments.
    #[inline]
    pub(super) fn add(
        &mut self,
        count: Counts,
        side: usize,
        first_ns: u64,
        last_ns: u64,
        clock: u64,
    ) {
        if self.total == self.reported {
            self.delta_clock = clock;
        }
        self.total[side & 1].add(count);
        // Packets out of order never make a flow end before it starts.
        self.start_ns = self.start_ns.min(first_ns);
        self.end_ns = self.end_ns.max(last_ns);
        self.last_clock = self.last_clock.max(clock);
    }

    #[cold]
    fn note(&mut self, d: &Decoded, side: usize) {
        self.noted[side] = true;
        if d.has_mac {
            self.macs[side] = Some(d.src_mac);
            self.macs[1 - side].get_or_insert(d.dst_mac);
        }
        if let Some(vlans) = self.vlans.get_mut(side) {
            *vlans = d.vlans;
        }
    }

    /// Why this flow ended, and when, if the packet belongs to another on the same ports: after a
    /// gap, or by a new handshake.
    #[inline]
    pub(super) fn ends_before(
        &self,
        arrival: &Arrival,
        side: usize,
        timeouts: &Timeouts,
    ) -> Option<(EndReason, u64)> {
        let end = self.end_at(timeouts);
        // By the packets' own time too: the clock stands still after one stamp of the far future.
        let gap = arrival.timestamp_ns.saturating_sub(self.end_ns);
        if end <= arrival.clock_ns || gap > timeouts.idle_ns {
            return Some((self.natural_end(), end));
        }
        let d = &arrival.decoded;
        if d.tuple.proto == proto::TCP && self.tcp.is_reused_by(side, &d.tcp) {
            return Some((self.natural_end(), arrival.clock_ns));
        }
        None
    }

    pub(super) fn natural_end(&self) -> EndReason {
        match (self.tcp.is_finished(), self.tcp.was_reset()) {
            (true, true) => EndReason::Rst,
            (true, false) => EndReason::Fin,
            (false, _) => EndReason::Idle,
        }
    }

    /// Whether both ends have said goodbye.
    #[inline]
    pub(super) fn is_finished(&self) -> bool {
        self.tcp.is_finished()
    }

    /// When this flow ends if nothing more comes.
    #[inline]
    pub(super) fn end_at(&self, timeouts: &Timeouts) -> u64 {
        let quiet =
            if self.is_finished() { LINGER_NS.min(timeouts.idle_ns) } else { timeouts.idle_ns };
        self.last_clock.saturating_add(quiet)
    }

    /// When the open delta is due, if it is before the flow's end and there is one.
    #[inline]
    pub(super) fn delta_at(&self, timeouts: &Timeouts) -> Option<u64> {
        if timeouts.active_ns == 0 || self.total == self.reported {
            return None;
        }
        let at = self.delta_clock.saturating_add(timeouts.active_ns);
        (at < self.end_at(timeouts)).then_some(at)
    }

    /// The moment at which a timer should look at this flow.
    pub(super) fn deadline(&self, timeouts: &Timeouts) -> u64 {
        self.delta_at(timeouts).unwrap_or_else(|| self.end_at(timeouts))
    }

    /// The event of the open delta, which it closes. `due` is when it was due, on the source's
    /// clock.
    pub(super) fn event(&mut self, end: Option<EndReason>, due: u64) -> FlowEvent {
        let idle_ns = due.saturating_sub(self.last_clock);
        let delta = [0, 1].map(|side| self.total[side].since(self.reported[side]));
        let shred = self.shred;
        self.shred += 1;
        self.reported = self.total;
        FlowEvent {
            flow_id: self.id,
            shred,
            key: self.key,
            orig_is_a: self.orig_is_a,
            timestamp_ns: self.end_ns.saturating_add(idle_ns),
            start_ns: self.start_ns,
            end_ns: self.end_ns,
            idle_ns,
            delta,
            total: self.total,
            end,
            conn_state: self.conn_state(),
            history: self.history,
            tcp_flags: self.tcp_flags,
            icmp: self.icmp,
            macs: self.macs,
            vlans: self.vlans,
            rtt_ns: self.tcp.rtt_ns(),
            retransmits: self.tcp.retransmits(),
        }
    }

    fn conn_state(&self) -> ConnState {
        match self.key.proto() {
            proto::TCP => self.tcp.conn_state(&self.history),
            proto::UDP => match self.total.map(|c| c.packets != 0) {
                [true, true] => ConnState::Sf,
                [true, false] => ConnState::S0,
                [false, true] => ConnState::Shr,
                [false, false] => ConnState::Oth,
            },
            _ => ConnState::Oth,
        }
    }
}
