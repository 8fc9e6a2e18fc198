//! Bidirectional flows of one worker.
//!
//! A [`FlowTable`] belongs to one thread and allocates nothing after it was made. Every moment it
//! uses is the packets' own, so that a capture gives the same flows however fast it is read and by
//! however many workers: a flow ends, and a delta is due, at a computed moment, whether a timer or
//! the flow's next packet notices it first.
//!
//! Limits: at most `max_flows` flows; when full, the oldest flow without an answer is ended, or,
//! where every flow has one, the longest idle of a sample. Ended flows are always reported: while
//! the sink has no room, timers wait, and a packet that would need a new place is counted as
//! unplaced.

mod fragment;
mod index;
mod origin;
mod record;
mod tcp;
mod timer;

use rapidhash::v3::{DEFAULT_RAPID_SECRETS, rapidhash_v3_nano_inline};

use crate::event::{EndReason, EventSink, FlowEvent};
use crate::packet::{self, Brief, Decoded, FlowKey, Fragment, Frame, Reject, tcp_flag};
use fragment::{Fragments, Join, Pending};
use index::{Index, NONE};
use record::{Birth, Cold, Flow, Hot, Reported, Waiting};
use tcp::Taken;
use timer::{Link, Links, Wheel};

/// A packet that was read, and its time.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct Arrival {
    brief: Brief,
    /// The packet's own time, nanoseconds since 1970.
    pub timestamp_ns: u64,
    /// The source's clock: never runs backwards.
    pub clock_ns: u64,
    /// Number of the packet in its burst, by which its payload is found.
    pub frame: u32,
    /// Of a common frame only what [`Arrival::unfold`] last put here.
    decoded: Decoded,
}

impl Arrival {
    /// What came at this time.
    pub fn new(decoded: Decoded, timestamp_ns: u64, clock_ns: u64) -> Self {
        Self { brief: Brief::of(&decoded), timestamp_ns, clock_ns, frame: 0, decoded }
    }

    /// Reads a frame; the times and the number are the caller's to set.
    #[inline(always)]
    pub fn read(&mut self, frame: &Frame<'_>) -> Result<(), Reject> {
        if self.brief.read(frame) { Ok(()) } else { self.walk(frame) }
    }

    #[inline(never)]
    fn walk(&mut self, frame: &Frame<'_>) -> Result<(), Reject> {
        let read = packet::walk(frame, &mut self.decoded);
        self.brief = Brief::of(&self.decoded);
        read
    }

    #[inline]
    pub fn brief(&self) -> &Brief {
        &self.brief
    }

    /// All that was read, of an uncommon frame.
    #[inline]
    pub fn uncommon(&self) -> Option<&Decoded> {
        (!self.brief.is_folded()).then_some(&self.decoded)
    }

    /// Its flow's key, and whether it travels from the key's `a` to its `b`.
    #[inline]
    fn key(&self) -> (FlowKey, bool) {
        if self.brief.is_folded() {
            let (ends, rest) = self.brief.folded_key();
            return (FlowKey::unfold(ends, rest), self.brief.from_a());
        }
        FlowKey::of(&self.decoded.tuple)
    }

    /// All that was read.
    #[inline]
    pub fn unfold(&mut self) -> &Decoded {
        if self.brief.is_folded() {
            self.decoded = self.brief.unfold();
        }
        &self.decoded
    }
}

/// How long flows live.
#[derive(Clone, Copy, Debug)]
pub struct Timeouts {
    /// Without a packet for this long a flow ends.
    pub idle_ns: u64,
    /// A flow that goes on reports a delta this long after the delta's first packet; 0 never.
    pub active_ns: u64,
}

/// Tells the machine what comes; the flow table itself knows no machine.
pub trait Hint: Copy {
    /// This will be read soon.
    fn soon<T>(self, what: &T);
    /// This memory, of which nothing was touched yet, is large and read at random.
    #[allow(clippy::ptr_arg, reason = "its capacity counts, not its elements")]
    fn large<T>(self, memory: &Vec<T>);
}

/// Tells nothing.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoHint;

impl Hint for NoHint {
    fn soon<T>(self, _what: &T) {}
    fn large<T>(self, _memory: &Vec<T>) {}
}

/// What a table did, for the counters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TableStats {
    /// Flows begun.
    pub created: u64,
    /// Flows ended to make room.
    pub evicted: u64,
    /// Packets that no flow could take since the sink had no room.
    pub unplaced: u64,
}

/// Flows looked at for the longest idle one when none is without an answer.
const SAMPLE: usize = 16;
/// Packets whose table lines are fetched ahead.
const AHEAD: usize = 32;
/// Timers worked off after each burst.
const TIMERS_PER_BURST: usize = 256;

/// The flows of one worker.
pub struct FlowTable<H = NoHint> {
    hint: H,
    index: Index,
    slab: Slab,
    wheel: Wheel,
    fragments: Fragments,
    reported: Reported,
    timeouts: Timeouts,
    /// The shortest silence that ends a flow.
    quiet_ns: u64,
    /// Secrets of the hash.
    secrets: [u64; 5],
    max_flows: usize,
    /// First and last of the flows without an answer.
    waiting: (u32, u32),
    /// Scratch of a burst.
    probes: Box<[Probe]>,
    /// Places and sides of segments that were sent again.
    again: Box<[(u32, u32)]>,
    /// Where the next eviction sample starts.
    hand: u32,
    stats: TableStats,
}

struct Slab {
    hot: Vec<Hot>,
    cold: Vec<Cold>,
    /// The first of the free places, which are chained, and how many there are.
    free: (u32, usize),
}

impl Links for Slab {
    #[inline]
    fn link(&mut self, place: u32) -> &mut Link {
        &mut self.cold[place as usize].link
    }
}

impl Slab {
    #[inline]
    fn flow(&mut self, place: u32) -> Flow<'_> {
        Flow { hot: &mut self.hot[place as usize], cold: &mut self.cold[place as usize] }
    }

    /// Ends the use of a place.
    fn give_back(&mut self, place: u32) {
        self.hot[place as usize].retire(self.free.0);
        self.free = (place, self.free.1 + 1);
    }

    /// A place that was used before.
    fn take_free(&mut self) -> Option<u32> {
        let place = self.free.0;
        let next = self.hot.get(place as usize)?.next_free();
        self.free = (next, self.free.1 - 1);
        Some(place)
    }
}

impl<H: Hint> FlowTable<H> {
    /// A table for at most `max_flows` flows (1 at least); memory is touched as flows come.
    /// `seed` keeps others from choosing addresses that collide.
    pub fn new(max_flows: usize, timeouts: Timeouts, seed: u64, hint: H) -> Self {
        let max_flows = max_flows.clamp(1, NONE as usize - 2);
        let slab = Slab {
            hot: Vec::with_capacity(max_flows),
            cold: Vec::with_capacity(max_flows),
            free: (NONE, 0),
        };
        hint.large(&slab.hot);
        hint.large(&slab.cold);
        Self {
            hint,
            index: Index::new(max_flows, hint),
            slab,
            wheel: Wheel::new(),
            fragments: Fragments::new(),
            reported: Reported::default(),
            quiet_ns: timeouts.idle_ns.min(record::LINGER_NS),
            timeouts,
            secrets: secrets(seed),
            max_flows,
            waiting: (NONE, NONE),
            probes: vec![Probe::default(); AHEAD].into(),
            again: vec![(NONE, 0); AHEAD].into(),
            hand: 0,
            stats: TableStats::default(),
        }
    }

    /// Flows in the table.
    pub fn len(&self) -> usize {
        self.slab.hot.len() - self.slab.free.1
    }

    /// Whether there are no flows.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub fn stats(&self) -> TableStats {
        self.stats
    }

    /// Copies of the flows in up to `most` places from `from` on, each with its totals, as of `now`
    /// on the source's clock. Returns where to go on; `None`: that was the last.
    pub fn copy(
        &self,
        from: u32,
        most: usize,
        now: u64,
        mut each: impl FnMut(FlowEvent),
    ) -> Option<u32> {
        let until = (from as usize).saturating_add(most).min(self.slab.hot.len());
        let places = (from as usize).min(until)..until;
        let halves = self.slab.hot.get(places.clone())?.iter().zip(self.slab.cold.get(places)?);
        for (hot, cold) in halves.filter(|(hot, _)| hot.in_use()) {
            each(record::describe(hot, cold, now));
        }
        (until < self.slab.hot.len()).then_some(until as u32)
    }

    /// Takes a burst of packets in, in order; then works off some timers.
    pub fn burst(&mut self, arrivals: &mut [Arrival], sink: &mut impl EventSink) {
        let Some(last) = arrivals.last() else { return };
        let now = last.clock_ns;
        self.wheel.start(arrivals[0].clock_ns);
        for few in arrivals.chunks_mut(AHEAD) {
            self.few(few, sink);
        }
        self.advance(now, TIMERS_PER_BURST, sink);
    }

    /// So few packets that what all of them will read can be fetched before the first is worked on.
    #[inline]
    fn few(&mut self, arrivals: &mut [Arrival], sink: &mut impl EventSink) {
        self.hash_all(arrivals);
        self.guess_all(arrivals);
        // Retransmissions are noted and worked off later, without a branch on each packet; before
        // anything else happens to a flow, which would come first in its history.
        let mut again = 0;
        for (n, arrival) in arrivals.iter_mut().enumerate() {
            let Some(&probe) = self.probes.get(n) else { break };
            match self.plain(arrival, probe.guess) {
                Taken::Plain { again: is_again, side } => {
                    if let Some(slot) = self.again.get_mut(again) {
                        *slot = (probe.guess, side as u32);
                    }
                    again += is_again as usize;
                }
                Taken::Not => {
                    self.retransmitted(std::mem::take(&mut again));
                    self.long_way(arrival, probe.hash, sink);
                }
            }
        }
        self.retransmitted(again);
    }

    /// Hashes so many packets, [`AHEAD`] at most, and fetches their lines of the index.
    pub fn hash_all(&mut self, arrivals: &[Arrival]) {
        for (probe, arrival) in self.probes.iter_mut().zip(arrivals) {
            let hash = if arrival.brief.is_folded() {
                let (ends, rest) = arrival.brief.folded_key();
                hash_folded(&self.secrets, ends, rest)
            } else {
                hash(&self.secrets, &arrival.key().0)
            };
            probe.hash = hash;
            if let Some(line) = self.index.line(hash) {
                self.hint.soon(line);
            }
        }
    }

    /// Finds the places where the hashed packets' flows likely are, and fetches them.
    pub fn guess_all(&mut self, arrivals: &[Arrival]) {
        for (probe, _) in self.probes.iter_mut().zip(arrivals) {
            probe.guess = self.index.guess(probe.hash).unwrap_or(NONE);
            let place = probe.guess as usize;
            if let Some((hot, cold)) = self.slab.hot.get(place).zip(self.slab.cold.get(place)) {
                hot.lines().into_iter().for_each(|line| self.hint.soon(line));
                // Handshakes, ends and retransmissions ask for it; asking which costs more.
                self.hint.soon(cold.line());
            }
        }
    }

    /// Takes a packet into the flow that was guessed, if it is the right one and the packet changes
    /// nothing but counts and numbers: most packets.
    #[inline(always)]
    fn plain(&mut self, arrival: &Arrival, guess: u32) -> Taken {
        // A guess from before this burst's own new flows and ends holds only if the key says so.
        let Some(hot) = self.slab.hot.get_mut(guess as usize) else { return Taken::Not };
        // Not in a flood's way.
        if arrival.brief.tcp.flags & tcp_flag::SYN != 0 {
            return Taken::Not;
        }
        let from_a = if arrival.brief.is_folded() {
            let (ends, rest) = arrival.brief.folded_key();
            if !hot.key.is(ends, rest) {
                return Taken::Not;
            }
            arrival.brief.from_a()
        } else {
            let (key, from_a) = arrival.key();
            if arrival.decoded.fragment.is_some() || hot.key != key {
                return Taken::Not;
            }
            from_a
        };
        hot.take_plain(arrival, from_a, self.quiet_ns, &self.timeouts)
    }

    /// Takes a packet in that is more than counts and numbers.
    #[inline(never)]
    fn long_way(&mut self, arrival: &mut Arrival, hash: u64, sink: &mut impl EventSink) {
        match arrival.unfold().fragment {
            None => {
                let (key, from_a) = arrival.key();
                self.keyed(arrival, &key, hash, from_a, sink);
            }
            Some(fragment) => self.fragment(arrival, fragment, sink),
        }
    }

    /// Works off so many noted retransmissions.
    #[inline]
    fn retransmitted(&mut self, noted: usize) {
        for &(place, side) in self.again.iter().take(noted) {
            if let Some(cold) = self.slab.cold.get_mut(place as usize) {
                cold.retransmitted(side as usize);
            }
        }
    }

    #[cold]
    fn fragment(&mut self, arrival: &mut Arrival, fragment: Fragment, sink: &mut impl EventSink) {
        match self.fragments.join(arrival, fragment) {
            Join::Flow { earlier, pushed_out } => {
                let place = self.packet(arrival, sink);
                if let (Some(place), Some(p)) = (place, earlier) {
                    self.add_pending(place, &p);
                }
                self.orphan(pushed_out, sink);
            }
            Join::Waits { pushed_out } => self.orphan(pushed_out, sink),
        }
    }

    /// Adds fragments that waited to a flow.
    fn add_pending(&mut self, place: u32, p: &Pending) {
        let mut flow = self.slab.flow(place);
        // The waiting parts carry no ports, which order the key only between equal addresses.
        let (_, from_a) = FlowKey::of(&p.first.tuple);
        let side = flow.hot.side(from_a);
        let span = [p.first_ns, p.last_ns];
        flow.add(p.counts, side, span, p.last_clock, &self.timeouts);
    }

    /// Fragments whose first part never came: a flow without ports.
    fn orphan(&mut self, pending: Option<Pending>, sink: &mut impl EventSink) {
        let Some(mut p) = pending else { return };
        let without = Decoded { wire_len: 0, ip_len: 0, ..p.first };
        let mut first = Arrival::new(without, p.first_ns, p.first_clock);
        // It is not in this burst.
        first.frame = u32::MAX;
        // This counts the first of them, without its bytes.
        p.counts.packets -= 1;
        match self.packet(&first, sink) {
            None => self.stats.unplaced += p.counts.packets,
            Some(place) => self.add_pending(place, &p),
        }
    }

    /// Accounts for one packet, all of which was read; returns its flow's place.
    fn packet(&mut self, arrival: &Arrival, sink: &mut impl EventSink) -> Option<u32> {
        let (key, from_a) = FlowKey::of(&arrival.decoded.tuple);
        self.keyed(arrival, &key, hash(&self.secrets, &key), from_a, sink)
    }

    /// The same once its key is known.
    #[inline(never)]
    fn keyed(
        &mut self,
        arrival: &Arrival,
        key: &FlowKey,
        hash: u64,
        from_a: bool,
        sink: &mut impl EventSink,
    ) -> Option<u32> {
        let flows = &self.slab.hot;
        let is_it = |p: u32| flows.get(p as usize).is_some_and(|flow| flow.key == *key);
        let Some(place) = self.index.find(hash, is_it) else {
            let place = self.create(key, hash, from_a, arrival, sink)?;
            return self.take(place, from_a, arrival, sink);
        };
        if self.slab.hot[place as usize].needs_a_look(arrival, self.quiet_ns, &self.timeouts) {
            return self.looked_at(place, key, hash, from_a, arrival, sink);
        }
        self.take(place, from_a, arrival, sink)
    }

    /// A packet that may end its flow or its delta.
    #[inline(never)]
    fn looked_at(
        &mut self,
        place: u32,
        key: &FlowKey,
        hash: u64,
        from_a: bool,
        arrival: &Arrival,
        sink: &mut impl EventSink,
    ) -> Option<u32> {
        let flow = self.slab.flow(place);
        let side = flow.hot.side(from_a);
        let Some((reason, at)) = flow.ends_before(arrival, side, &self.timeouts) else {
            self.report_delta(place, arrival.clock_ns, sink)?;
            return self.take(place, from_a, arrival, sink);
        };
        self.needs_room(2, sink)?;
        self.report_delta(place, at, sink)?;
        self.end(place, reason, at, sink);
        let place = self.create(key, hash, from_a, arrival, sink)?;
        self.take(place, from_a, arrival, sink)
    }

    /// Takes a packet into its flow, whatever it changes.
    #[inline(never)]
    fn take(
        &mut self,
        place: u32,
        from_a: bool,
        arrival: &Arrival,
        sink: &mut impl EventSink,
    ) -> Option<u32> {
        let mut flow = self.slab.flow(place);
        let side = flow.hot.side(from_a);
        let was_finished = flow.hot.is_finished();
        flow.take(arrival, side, &self.timeouts);
        if flow.hot.is_finished() && !was_finished {
            self.rearm(place);
        }
        if side == 1 && self.slab.cold[place as usize].waiting.is_listed() {
            self.unlist(place);
        }
        let mut flow = self.slab.flow(place);
        if flow.hot.wants.any() && arrival.decoded.payload_len != 0 {
            flow.show(place, side, arrival, sink);
        }
        if flow.hot.is_silenced() {
            sink.silenced(arrival.frame, arrival.decoded.wire_len);
        }
        Some(place)
    }

    /// Moves the flow's timer to an earlier deadline.
    #[cold]
    fn rearm(&mut self, place: u32) {
        self.wheel.remove(&mut self.slab, place);
        let deadline = self.slab.flow(place).deadline(&self.timeouts);
        self.wheel.insert(&mut self.slab, place, deadline);
    }

    /// Reports the flow's delta if it was due at `clock`; `None` if the sink has no room for it.
    fn report_delta(&mut self, place: u32, clock: u64, sink: &mut impl EventSink) -> Option<()> {
        let delta = self.slab.flow(place).delta_at(&self.timeouts);
        if let Some(at) = delta.filter(|&at| at <= clock) {
            self.needs_room(1, sink)?;
            sink.push(self.slab.flow(place).event(None, at, &mut self.reported));
        }
        Some(())
    }

    /// `None`, and the packet counted as unplaced, if the sink has no room for so many events.
    fn needs_room(&mut self, events: usize, sink: &impl EventSink) -> Option<()> {
        if sink.room() < events {
            self.stats.unplaced += 1;
            return None;
        }
        Some(())
    }

    #[inline(never)]
    fn create(
        &mut self,
        key: &FlowKey,
        hash: u64,
        from_a: bool,
        arrival: &Arrival,
        sink: &mut impl EventSink,
    ) -> Option<u32> {
        if self.len() >= self.max_flows {
            self.needs_room(1, sink)?;
            self.evict(arrival.clock_ns, sink);
        }
        let opened = origin::sender_opened(&arrival.decoded);
        let orig_is_a = opened == from_a;
        let birth = Birth {
            key: *key,
            orig_is_a,
            flipped: !opened,
            id: birth_id(key, arrival),
            arrival,
            wants: sink.wants(),
            mark: sink.begins(key, orig_is_a, arrival.timestamp_ns),
        };
        let place = match self.slab.take_free() {
            Some(place) => {
                self.slab.hot[place as usize] = birth.hot();
                self.slab.cold[place as usize] = birth.cold();
                place
            }
            None => {
                self.slab.hot.push(birth.hot());
                self.slab.cold.push(birth.cold());
                self.slab.hot.len() as u32 - 1
            }
        };
        self.index.insert(hash, place);
        let Timeouts { idle_ns, active_ns } = self.timeouts;
        let soonest = if active_ns == 0 { idle_ns } else { idle_ns.min(active_ns) };
        self.wheel.insert(&mut self.slab, place, arrival.clock_ns.saturating_add(soonest));
        if opened {
            self.list(place);
        }
        self.stats.created += 1;
        Some(place)
    }

    /// Ends a flow: reports it and frees its place. The caller saw that the sink has room.
    fn end(&mut self, place: u32, reason: EndReason, at: u64, sink: &mut impl EventSink) {
        sink.push(self.slab.flow(place).event(Some(reason), at, &mut self.reported));
        if self.slab.cold[place as usize].waiting.is_listed() {
            self.unlist(place);
        }
        self.wheel.remove(&mut self.slab, place);
        let hot = &self.slab.hot[place as usize];
        if hot.wants.is_held() {
            sink.forget(place);
        }
        let key = hot.key;
        self.index.remove(hash(&self.secrets, &key), place);
        self.slab.give_back(place);
    }

    #[cold]
    fn evict(&mut self, clock: u64, sink: &mut impl EventSink) {
        let place =
            if self.waiting.0 != NONE { self.waiting.0 } else { self.longest_idle_of_sample() };
        self.end(place, EndReason::Evicted, clock, sink);
        self.stats.evicted += 1;
    }

    fn longest_idle_of_sample(&mut self) -> u32 {
        let len = self.slab.hot.len();
        let mut best = (u64::MAX, self.hand % len as u32);
        let mut seen = 0;
        for step in 0..len {
            let place = (self.hand as usize + step) % len;
            let hot = &self.slab.hot[place];
            if hot.in_use() {
                best = best.min((hot.last_clock, place as u32));
                seen += 1;
            }
            if seen == SAMPLE {
                break;
            }
        }
        self.hand = ((self.hand as usize + SAMPLE) % len) as u32;
        best.1
    }

    /// Works off up to `budget` timers that are due at `now`.
    pub fn advance(&mut self, now: u64, budget: usize, sink: &mut impl EventSink) {
        let pending = self.fragments.give_up(now, false);
        self.orphan(pending, sink);
        if !self.wheel.is_behind(now) {
            return;
        }
        for _ in 0..budget {
            if sink.room() < 2 {
                return;
            }
            let Some(place) = self.wheel.pop(&mut self.slab, now) else { return };
            if self.settle(place, now, sink) {
                let deadline = self.slab.flow(place).deadline(&self.timeouts);
                self.wheel.insert(&mut self.slab, place, deadline.max(now));
            }
        }
    }

    /// Reports what is due of a flow at `now`, its end included; true if it lives on. The caller
    /// saw that the sink has room for two.
    fn settle(&mut self, place: u32, now: u64, sink: &mut impl EventSink) -> bool {
        let mut flow = self.slab.flow(place);
        if let Some(at) = flow.delta_at(&self.timeouts).filter(|&at| at <= now) {
            sink.push(flow.event(None, at, &mut self.reported));
        }
        let (reason, at) = (flow.natural_end(), flow.hot.end_at(&self.timeouts));
        if at > now {
            return true;
        }
        self.end(place, reason, at, sink);
        false
    }

    /// Ends every flow, at most as many as the sink has room for; true when none is left.
    ///
    /// Flows that were due before `now` end for their own reason, the others for `reason`.
    pub fn drain(&mut self, now: u64, reason: EndReason, sink: &mut impl EventSink) -> bool {
        while let Some(pending) = self.fragments.give_up(now, true) {
            self.orphan(Some(pending), sink);
        }
        while (self.hand as usize) < self.slab.hot.len() || !self.is_empty() {
            if self.hand as usize >= self.slab.hot.len() {
                self.hand = 0;
            }
            let place = self.hand;
            if !self.slab.hot[place as usize].in_use() {
                self.hand += 1;
                continue;
            }
            if sink.room() < 2 {
                return false;
            }
            if self.settle(place, now, sink) {
                let at = now.max(self.slab.hot[place as usize].last_clock);
                self.end(place, reason, at, sink);
            }
            self.hand += 1;
        }
        true
    }

    fn list(&mut self, place: u32) {
        let last = self.waiting.1;
        self.slab.cold[place as usize].waiting = Waiting { next: NONE, prev: last };
        if last == NONE {
            self.waiting.0 = place;
        } else {
            self.slab.cold[last as usize].waiting.next = place;
        }
        self.waiting.1 = place;
    }

    fn unlist(&mut self, place: u32) {
        let Waiting { next, prev } = self.slab.cold[place as usize].waiting;
        match prev {
            NONE => self.waiting.0 = next,
            _ => self.slab.cold[prev as usize].waiting.next = next,
        }
        match next {
            NONE => self.waiting.1 = prev,
            _ => self.slab.cold[next as usize].waiting.prev = prev,
        }
        self.slab.cold[place as usize].waiting = Waiting::NOT;
    }
}

/// A packet's hash, and the place that its first line gave.
#[derive(Clone, Copy, Default)]
struct Probe {
    hash: u64,
    guess: u32,
}

#[inline]
fn hash(secrets: &[u64; 5], key: &FlowKey) -> u64 {
    let ([w0, w1, w2, w3, w4], [s0, s1, s2, s3, s4]) = (key.words(), secrets);
    if !key.is_v6() {
        return hash_folded(secrets, key.ends(), w4);
    }
    let ends = fold(w0 ^ s0, w2 ^ s1) ^ fold(w1 ^ s2, w3 ^ s3);
    fold(ends ^ w4, *s4)
}

/// The hash of an IPv4 key of which this is the folded form.
#[inline]
fn hash_folded([s0, s1, _, _, s4]: &[u64; 5], ends: u64, rest: u64) -> u64 {
    fold(fold(ends ^ s0, rest ^ s1), *s4)
}

/// The halves of a product, folded: the mixing step of wyhash and its kin.
#[inline(always)]
fn fold(a: u64, b: u64) -> u64 {
    let product = u128::from(a) * u128::from(b);
    product as u64 ^ (product >> 64) as u64
}

/// Five odd secrets of one seed.
fn secrets(seed: u64) -> [u64; 5] {
    [1u64, 2, 3, 4, 5].map(|n| {
        let bytes = [seed.to_le_bytes(), n.to_le_bytes()].concat();
        rapidhash_v3_nano_inline::<true, false>(&bytes, &DEFAULT_RAPID_SECRETS) | 1
    })
}

fn birth_id(key: &FlowKey, arrival: &Arrival) -> u64 {
    let d = &arrival.decoded;
    flow_id(&key.words(), arrival.timestamp_ns, opening(d.tcp.flags, d.tcp.seq))
}

/// What sets apart two connections that start at one moment: a SYN's sequence number.
pub fn opening(tcp_flags: u8, seq: u32) -> u32 {
    if tcp_flags & tcp_flag::SYN != 0 { seq } else { 0 }
}

/// The id of a flow whose first packet has this key, time and [`opening`]: the same for the same
/// packets in any run.
pub fn flow_id(key: &[u64; 5], timestamp_ns: u64, opening: u32) -> u64 {
    let mut all = [0; 52];
    for (to, word) in all.as_chunks_mut::<8>().0.iter_mut().zip(key) {
        *to = word.to_le_bytes();
    }
    all[40..48].copy_from_slice(&timestamp_ns.to_le_bytes());
    all[48..].copy_from_slice(&opening.to_le_bytes());
    rapidhash_v3_nano_inline::<true, false>(&all, &DEFAULT_RAPID_SECRETS)
}

#[cfg(test)]
mod tests;
