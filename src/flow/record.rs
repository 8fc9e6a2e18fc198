//! One flow's record, and how a packet changes it.
//!
//! A record is two parts in two arrays: [`Hot`], two cache lines that every packet touches, and
//! [`Cold`], two more for what changes rarely. 256 bytes a flow together.

use super::index::NONE;
use super::tcp::{Numbers, Taken, TcpTrack};
use super::timer::Link;
use super::{Arrival, Timeouts};
use crate::event::{
    ConnState, Counts, EndReason, EventSink, FlowEvent, History, Mark, Seen, Wants,
};
use crate::packet::{Decoded, FlowKey, Vlans, proto, tcp_flag};

/// How long a closed connection stays to take in what still trails.
pub(super) const LINGER_NS: u64 = 5_000_000_000;

/// Deltas are due at multiples of 2^28 ns (268 ms).
const COARSE_BITS: u32 = 28;

/// Bits of [`Hot::bits`].
mod bit {
    pub(super) const IN_USE: u8 = 1;
    /// The originator is the key's `a`.
    pub(super) const ORIG_IS_A: u8 = 2;
    /// Both ends have said goodbye.
    pub(super) const FINISHED: u8 = 4;
    /// Something was counted since the last report.
    pub(super) const DELTA_OPEN: u8 = 8;
    /// [`Mark::Silenced`]. Such a flow takes the long way, so that the short one need not ask.
    pub(super) const SILENCED: u8 = 16;
    /// MAC and VLANs of the originator, and of the responder, were noted.
    pub(super) const NOTED: [u8; 2] = [32, 32 << 1];
    /// The link layer has MAC addresses.
    pub(super) const HAS_MAC: u8 = 128;
}

/// What every packet reads or writes.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
pub(super) struct Hot {
    pub(super) key: FlowKey,
    /// The source's clock at the last packet.
    pub(super) last_clock: u64,
    end_ns: u64,
    /// When the open delta is due, in coarse units, wrapping; only meaningful while there is one. Of a
    /// free place, the next free one.
    delta_due: u32,
    bits: u8,
    tcp_flags: u8,
    /// For which sides and kinds of segment the numbers alone need an update; and [`OPEN`].
    plain: u8,
    /// What is still to be read of its payload.
    pub(super) wants: Wants,
    total: [Counts; 2],
    numbers: Numbers,
}

/// [`Mark::Open`], where it costs no packet anything.
const OPEN: u8 = 0x80;

/// Links of the list of flows without an answer, oldest first.
#[derive(Clone, Copy, Debug)]
pub(super) struct Waiting {
    pub(super) next: u32,
    pub(super) prev: u32,
}

impl Waiting {
    /// No place has this number.
    const OUT: u32 = NONE - 1;
    /// In no list.
    pub(super) const NOT: Self = Self { next: Self::OUT, prev: Self::OUT };

    pub(super) fn is_listed(self) -> bool {
        self.prev != Self::OUT
    }
}

/// What changes rarely.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
pub(super) struct Cold {
    tcp: TcpTrack,
    id: u64,
    start_ns: u64,
    pub(super) link: Link,
    pub(super) waiting: Waiting,
    /// Where the counts of the last report are kept; most flows never report a delta.
    reported: u32,
    history: History,
    macs: [[u8; 6]; 2],
    vlans: [Vlans; 2],
}

// The design's bound: what a million flows cost.
const _: () = assert!(size_of::<Hot>() == 128 && size_of::<Cold>() <= 128);

impl Cold {
    /// Something in its first cache line, where the connection's state is.
    #[inline]
    pub(super) fn line(&self) -> &u64 {
        &self.id
    }

    /// Counts a segment that was taken in by its numbers, as one sent before.
    #[inline]
    pub(super) fn retransmitted(&mut self, side: usize) {
        self.tcp.retransmitted(side, &mut self.history);
    }
}

/// Counts and number of the last delta of the flows that have reported one, by place; freed places
/// are used again.
#[derive(Default)]
pub(super) struct Reported {
    counts: Vec<([Counts; 2], u32)>,
    free: Vec<u32>,
}

impl Reported {
    /// The counts at the last delta, and the number of the next.
    fn get(&self, at: u32) -> ([Counts; 2], u32) {
        self.counts.get(at as usize).copied().unwrap_or_default()
    }

    /// Keeps them at `at`, or at a new place; returns the place.
    fn set(&mut self, at: u32, counts: ([Counts; 2], u32)) -> u32 {
        if let Some(slot) = self.counts.get_mut(at as usize) {
            *slot = counts;
            return at;
        }
        match self.free.pop() {
            Some(at) => self.set(at, counts),
            None => {
                self.counts.push(counts);
                // A place given back must find room without an allocation then.
                self.free.reserve(self.counts.len());
                self.counts.len() as u32 - 1
            }
        }
    }

    pub(super) fn release(&mut self, at: u32) {
        if at != NONE {
            self.free.push(at);
        }
    }
}

/// A flow to begin.
pub(super) struct Birth<'a> {
    pub(super) key: FlowKey,
    pub(super) orig_is_a: bool,
    /// The first packet seen was not the originator's.
    pub(super) flipped: bool,
    pub(super) id: u64,
    pub(super) arrival: &'a Arrival,
    pub(super) wants: Wants,
    pub(super) mark: Mark,
}

impl Birth<'_> {
    pub(super) fn hot(&self) -> Hot {
        let mut hot = Hot {
            key: self.key,
            last_clock: self.arrival.clock_ns,
            end_ns: self.arrival.timestamp_ns,
            delta_due: 0,
            bits: bit::IN_USE | if self.orig_is_a { bit::ORIG_IS_A } else { 0 },
            tcp_flags: 0,
            plain: 0,
            wants: self.wants,
            total: [Counts::default(); 2],
            numbers: Numbers::default(),
        };
        hot.set_mark(self.mark);
        hot
    }

    pub(super) fn cold(&self) -> Cold {
        let mut history = History::default();
        if self.flipped && matches!(self.key.proto(), proto::TCP | proto::UDP) {
            history.push(0, b'^');
        }
        Cold {
            id: self.id,
            start_ns: self.arrival.timestamp_ns,
            link: Link::UNLINKED,
            waiting: Waiting::NOT,
            tcp: TcpTrack::default(),
            reported: NONE,
            history,
            macs: [[0; 6]; 2],
            vlans: [Vlans::default(); 2],
        }
    }
}

impl Hot {
    /// Something in each of its two cache lines.
    #[inline]
    pub(super) fn lines(&self) -> [&u64; 2] {
        [&self.last_clock, &self.total[1].bytes]
    }

    fn has(&self, bit: u8) -> bool {
        self.bits & bit != 0
    }

    fn set(&mut self, bit: u8, on: bool) {
        self.bits = if on { self.bits | bit } else { self.bits & !bit };
    }

    pub(super) fn in_use(&self) -> bool {
        self.has(bit::IN_USE)
    }

    /// Ends its use; `next` is the next free place.
    pub(super) fn retire(&mut self, next: u32) {
        self.bits = 0;
        self.delta_due = next;
    }

    /// What [`Hot::retire`] was told.
    pub(super) fn next_free(&self) -> u32 {
        self.delta_due
    }

    pub(super) fn is_silenced(&self) -> bool {
        self.has(bit::SILENCED)
    }

    fn mark(&self) -> Mark {
        match (self.is_silenced(), self.plain & OPEN != 0) {
            (true, _) => Mark::Silenced,
            (false, true) => Mark::Open,
            (false, false) => Mark::Plain,
        }
    }

    fn set_mark(&mut self, mark: Mark) {
        self.set(bit::SILENCED, mark == Mark::Silenced);
        self.plain = (self.plain & !OPEN) | if mark == Mark::Open { OPEN } else { 0 };
    }

    pub(super) fn is_finished(&self) -> bool {
        self.has(bit::FINISHED)
    }

    /// 0 for a packet of the originator, 1 for one of the responder.
    #[inline]
    pub(super) fn side(&self, from_a: bool) -> usize {
        usize::from(from_a != self.has(bit::ORIG_IS_A))
    }

    /// When this flow ends if nothing more comes.
    #[inline]
    pub(super) fn end_at(&self, timeouts: &Timeouts) -> u64 {
        let quiet =
            if self.is_finished() { LINGER_NS.min(timeouts.idle_ns) } else { timeouts.idle_ns };
        self.last_clock.saturating_add(quiet)
    }

    /// Whether this packet may end the flow or its delta, so that more must be asked. `quiet_ns` is
    /// the shortest silence that ends any flow.
    #[inline]
    pub(super) fn needs_a_look(
        &self,
        arrival: &Arrival,
        quiet_ns: u64,
        timeouts: &Timeouts,
    ) -> bool {
        arrival.clock_ns.saturating_sub(self.last_clock) >= quiet_ns
            || arrival.timestamp_ns.saturating_sub(self.end_ns) > timeouts.idle_ns
            || arrival.decoded.tcp.flags & tcp_flag::SYN != 0
            || (self.has(bit::DELTA_OPEN)
                && timeouts.active_ns != 0
                && coarse_steps(arrival.clock_ns, self.delta_due) <= 0)
    }

    /// Takes a packet of this flow in if only counts and numbers change; [`Taken::Not`] leaves the
    /// record as it was. `quiet_ns` is the shortest silence that ends any flow.
    #[inline(always)]
    pub(super) fn take_plain(
        &mut self,
        arrival: &Arrival,
        from_a: bool,
        quiet_ns: u64,
        timeouts: &Timeouts,
    ) -> Taken {
        let brief = arrival.brief();
        let (timestamp_ns, clock_ns) = (arrival.timestamp_ns, arrival.clock_ns);
        let side = self.side(from_a) & 1;
        let settled = bit::IN_USE | bit::DELTA_OPEN | (bit::NOTED[0] << side);
        let shown = self.wants.any() & (brief.payload_len != 0);
        let is_due = (timeouts.active_ns != 0) & (coarse_steps(clock_ns, self.delta_due) <= 0);
        // A time from before the last one is as far from it as one can be.
        if (self.bits & (settled | bit::SILENCED) != settled)
            | shown
            | is_due
            | (timestamp_ns.wrapping_sub(self.end_ns) > timeouts.idle_ns)
            | (clock_ns.wrapping_sub(self.last_clock) >= quiet_ns)
        {
            return Taken::Not;
        }
        let (tcp, len) = (&brief.tcp, brief.payload_len);
        let taken = self.numbers.take(brief.tcp_mask(), self.plain, side, tcp, len);
        if taken == Taken::Not {
            return taken;
        }
        // Zero for all but TCP.
        self.tcp_flags |= brief.tcp.flags;
        self.end_ns = timestamp_ns;
        self.last_clock = clock_ns;
        self.total[side].add(Counts {
            packets: 1,
            bytes: u64::from(brief.wire_len),
            ip_bytes: u64::from(brief.ip_len),
        });
        taken
    }
}

/// Coarse units from a moment until a coarse one, negative when it has passed.
#[inline]
fn coarse_steps(from: u64, until: u32) -> i32 {
    until.wrapping_sub((from >> COARSE_BITS) as u32).cast_signed()
}

/// The counts of one packet.
#[inline]
pub(super) fn one(d: &Decoded) -> Counts {
    Counts { packets: 1, bytes: u64::from(d.wire_len), ip_bytes: u64::from(d.ip_len) }
}

/// Both parts of a flow.
pub(super) struct Flow<'a> {
    pub(super) hot: &'a mut Hot,
    pub(super) cold: &'a mut Cold,
}

impl Flow<'_> {
    /// Takes a packet in, whatever it changes.
    pub(super) fn take(&mut self, arrival: &Arrival, side: usize, timeouts: &Timeouts) {
        let d = &arrival.decoded;
        let side = side & 1;
        self.add(
            one(d),
            side,
            [arrival.timestamp_ns, arrival.timestamp_ns],
            arrival.clock_ns,
            timeouts,
        );
        if !self.hot.has(bit::NOTED[side]) {
            self.note(d, side);
        }
        let later_fragment = d.fragment.is_some_and(|f| f.offset != 0);
        match d.tuple.proto {
            proto::TCP if !later_fragment => {
                self.hot.tcp_flags |= d.tcp.flags;
                self.cold.tcp.segment(
                    side,
                    &d.tcp,
                    d.payload_len,
                    arrival.timestamp_ns,
                    &mut self.hot.numbers,
                    &mut self.cold.history,
                );
                self.hot.plain = (self.hot.plain & OPEN) | self.cold.tcp.plain_segments();
                self.hot.set(bit::FINISHED, self.cold.tcp.is_finished());
            }
            proto::UDP if self.hot.total[side].packets == 1 => self.cold.history.push(side, b'D'),
            _ => {}
        }
    }

    /// Adds counts that arrived between two moments.
    pub(super) fn add(
        &mut self,
        count: Counts,
        side: usize,
        [first_ns, last_ns]: [u64; 2],
        clock: u64,
        timeouts: &Timeouts,
    ) {
        if !self.hot.has(bit::DELTA_OPEN) {
            self.hot.set(bit::DELTA_OPEN, true);
            let due = clock.saturating_add(timeouts.active_ns) >> COARSE_BITS;
            self.hot.delta_due = (due as u32).wrapping_add(1);
        }
        self.hot.total[side & 1].add(count);
        // Packets out of order never make a flow end before it starts.
        self.cold.start_ns = self.cold.start_ns.min(first_ns);
        self.hot.end_ns = self.hot.end_ns.max(last_ns);
        self.hot.last_clock = self.hot.last_clock.max(clock);
    }

    /// Shows the packet to whoever reads payloads, and notes what the flow wants from here on.
    #[inline(never)]
    pub(super) fn show(
        &mut self,
        place: u32,
        side: usize,
        arrival: &Arrival,
        sink: &mut impl EventSink,
    ) {
        let d = &arrival.decoded;
        // A later fragment has no beginning.
        if d.fragment.is_some_and(|f| f.offset != 0) {
            return;
        }
        let mut seen = Seen {
            place,
            flow_id: self.cold.id,
            key: self.hot.key,
            orig_is_a: self.hot.has(bit::ORIG_IS_A),
            side: side & 1,
            decoded: d,
            timestamp_ns: arrival.timestamp_ns,
            frame: arrival.frame,
            stream_at: self.cold.tcp.stream_at(side, &d.tcp),
            wants: self.hot.wants,
            mark: self.hot.mark(),
        };
        let before = seen.mark;
        self.hot.wants = sink.inspect(&mut seen);
        if seen.mark != before {
            self.hot.set_mark(seen.mark);
        }
    }

    fn note(&mut self, d: &Decoded, side: usize) {
        self.hot.set(bit::NOTED[side], true);
        self.cold.vlans[side] = d.vlans;
        if d.has_mac {
            self.cold.macs[side] = d.src_mac;
            if !self.hot.has(bit::HAS_MAC) {
                self.cold.macs[1 - side] = d.dst_mac;
            }
            self.hot.set(bit::HAS_MAC, true);
        }
    }

    /// Why this flow ended, and when, if the packet belongs to another on the same ports: after a
    /// gap, or by a new handshake.
    pub(super) fn ends_before(
        &self,
        arrival: &Arrival,
        side: usize,
        timeouts: &Timeouts,
    ) -> Option<(EndReason, u64)> {
        let end = self.hot.end_at(timeouts);
        // By the packets' own time too: the clock stands still after one stamp of the far future.
        let gap = arrival.timestamp_ns.saturating_sub(self.hot.end_ns);
        if end <= arrival.clock_ns || gap > timeouts.idle_ns {
            return Some((self.natural_end(), end));
        }
        let d = &arrival.decoded;
        if d.tuple.proto == proto::TCP && self.cold.tcp.is_reused_by(side, &d.tcp) {
            return Some((self.natural_end(), arrival.clock_ns));
        }
        None
    }

    pub(super) fn natural_end(&self) -> EndReason {
        match (self.cold.tcp.is_finished(), self.cold.tcp.was_reset()) {
            (true, true) => EndReason::Rst,
            (true, false) => EndReason::Fin,
            (false, _) => EndReason::Idle,
        }
    }

    /// When the open delta is due, if it is before the flow's end and there is one.
    pub(super) fn delta_at(&self, timeouts: &Timeouts) -> Option<u64> {
        if timeouts.active_ns == 0 || !self.hot.has(bit::DELTA_OPEN) {
            return None;
        }
        let steps = i64::from(coarse_steps(self.hot.last_clock, self.hot.delta_due));
        let at = ((self.hot.last_clock >> COARSE_BITS).saturating_add_signed(steps)) << COARSE_BITS;
        (at < self.hot.end_at(timeouts)).then_some(at)
    }

    /// The moment at which a timer should look at this flow.
    pub(super) fn deadline(&self, timeouts: &Timeouts) -> u64 {
        self.delta_at(timeouts).unwrap_or_else(|| self.hot.end_at(timeouts))
    }

    /// The event of the open delta, which it closes. `due` is when it was due, on the source's
    /// clock.
    pub(super) fn event(
        &mut self,
        end: Option<EndReason>,
        due: u64,
        reported: &mut Reported,
    ) -> FlowEvent {
        let (before, shred) = reported.get(self.cold.reported);
        let event = FlowEvent {
            shred,
            delta: [0, 1].map(|side| self.hot.total[side].since(before[side])),
            end,
            ..describe(self.hot, self.cold, due)
        };
        let (hot, cold) = (&mut *self.hot, &mut *self.cold);
        hot.set(bit::DELTA_OPEN, false);
        if end.is_none() {
            cold.reported = reported.set(cold.reported, (hot.total, shred + 1));
        } else {
            reported.release(std::mem::replace(&mut cold.reported, NONE));
        }
        event
    }
}

/// A flow as it is at `now`, on the source's clock: the delta is the total.
pub(super) fn describe(hot: &Hot, cold: &Cold, now: u64) -> FlowEvent {
    let idle_ns = now.saturating_sub(hot.last_clock);
    let mac = |side: usize| hot.has(bit::HAS_MAC).then_some(cold.macs[side]);
    FlowEvent {
        flow_id: cold.id,
        shred: 0,
        key: hot.key,
        orig_is_a: hot.has(bit::ORIG_IS_A),
        timestamp_ns: hot.end_ns.saturating_add(idle_ns),
        start_ns: cold.start_ns,
        end_ns: hot.end_ns,
        idle_ns,
        delta: hot.total,
        total: hot.total,
        end: None,
        conn_state: conn_state(hot, cold),
        history: cold.history,
        tcp_flags: hot.tcp_flags,
        macs: [mac(0), mac(1)],
        vlans: cold.vlans,
        rtt_ns: cold.tcp.rtt_ns(),
        retransmits: cold.tcp.retransmits(),
        silenced: hot.is_silenced(),
    }
}

fn conn_state(hot: &Hot, cold: &Cold) -> ConnState {
    match hot.key.proto() {
        proto::TCP => cold.tcp.conn_state(&hot.numbers, &cold.history),
        proto::UDP => match hot.total.map(|c| c.packets != 0) {
            [true, true] => ConnState::Sf,
            [true, false] => ConnState::S0,
            [false, true] => ConnState::Shr,
            [false, false] => ConnState::Oth,
        },
        _ => ConnState::Oth,
    }
}
