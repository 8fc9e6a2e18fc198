//! TCP as seen from the side: who opened and closed, what was sent twice, how long it took.
//!
//! `conn_state` and `history` have Zeek's meaning (its documentation of conn.log); the endpoint
//! states behind them are kept the same way, without reassembly, so there is no `G` letter. A bad
//! checksum is not looked for, so there is no `C`.

use crate::event::{ConnState, History};
use crate::packet::{Tcp, tcp_flag};

/// Jumps larger than this are not believed of SYN and RST.
const LARGE_JUMP: i32 = 1 << 20;

/// What an endpoint has done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum End {
    /// Sent nothing.
    #[default]
    Inactive,
    SynSent,
    /// Joined in the middle.
    Partial,
    Established,
    /// Sent a FIN.
    Closed,
    /// Sent a RST.
    Reset,
}

/// One end; its sequence numbers are apart, in [`Numbers`].
#[derive(Clone, Copy, Debug, Default)]
struct Endpoint {
    start: u32,
    retransmits: u32,
    /// Relative sequence of the last SYN, FIN and RST, folded: a repeat shows in the history only
    /// if it differs.
    last_of_kind: [u8; 3],
    zero_windows: u8,
    state: End,
    former: End,
    closed: bool,
    fin_seen: bool,
}

/// How far each end has sent and was acknowledged; touched by every segment.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Numbers {
    last: [u32; 2],
    acked: [u32; 2],
}

impl Numbers {
    /// Takes in a segment that changes nothing but numbers: no SYN, FIN or RST, a window, of a kind
    /// that `plain` allows. Anything but TCP, of which `tcp_mask` is zero, passes through, without a
    /// branch that tells them apart.
    #[inline(always)]
    pub(super) fn take(
        &mut self,
        tcp_mask: u32,
        plain: u8,
        side: usize,
        tcp: &Tcp,
        len: u32,
    ) -> Taken {
        const ODD: u8 = tcp_flag::SYN | tcp_flag::FIN | tcp_flag::RST;
        let side = side & 1;
        let kind = if len > 0 { PLAIN_DATA } else { PLAIN_ACK } << (2 * side);
        let acked = delta(tcp.ack, self.acked[1 - side]);
        let odd = u32::from((tcp.flags & (ODD | tcp_flag::ACK)) ^ tcp_flag::ACK)
            | u32::from(plain & kind == 0)
            | u32::from(tcp.window == 0)
            | u32::from(acked > LARGE_JUMP);
        if odd & tcp_mask != 0 {
            return Taken::Not;
        }
        let newly_acked = ones(acked > 0) & tcp_mask;
        self.acked[1 - side] ^= (self.acked[1 - side] ^ tcp.ack) & newly_acked;
        let past = tcp.seq.wrapping_add(len);
        let newly_sent = ones(delta(past, self.last[side]) > 0) & tcp_mask;
        self.last[side] ^= (self.last[side] ^ past) & newly_sent;
        Taken::Plain { again: tcp_mask & !newly_sent & ones(len > 0) & 1, side }
    }
}

/// All ones if so, else zero.
#[inline]
fn ones(so: bool) -> u32 {
    u32::from(so).wrapping_neg()
}

/// What became of a segment in [`Numbers::take`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Taken {
    /// Nothing: it needs [`TcpTrack::segment`], and the numbers are as they were.
    Not,
    /// All of it; `again` is 1 if its payload had been sent before, else 0, and
    /// [`TcpTrack::retransmitted`] has to hear that.
    Plain { again: u32, side: usize },
}

const PLAIN_DATA: u8 = 1;
const PLAIN_ACK: u8 = 2;

/// Both endpoints, the originator first.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct TcpTrack {
    ends: [Endpoint; 2],
    /// Time of the last SYN, until the round trip is known; then that, nanoseconds.
    handshake_ns: u64,
    /// One bit a letter and direction: first occurrences.
    seen: u16,
    round_trip: RoundTrip,
    finished: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum RoundTrip {
    #[default]
    NoSyn,
    Asked,
    Answered,
    Known,
}

/// Bits of `seen`; shifted by eight for the responder.
mod letter {
    pub(super) const SYN: u16 = 1;
    pub(super) const FIN: u16 = 2;
    pub(super) const RST: u16 = 4;
    pub(super) const DATA: u16 = 8;
    pub(super) const ACK: u16 = 16;
    pub(super) const MULTI: u16 = 32;
    pub(super) const FIN_RST: u16 = 64;
}

fn delta(a: u32, b: u32) -> i32 {
    a.wrapping_sub(b).cast_signed()
}

impl TcpTrack {
    /// Takes a segment in; `side` is 0 from the originator, 1 from the responder.
    pub(super) fn segment(
        &mut self,
        side: usize,
        tcp: &Tcp,
        len: u32,
        now: u64,
        numbers: &mut Numbers,
        history: &mut History,
    ) {
        let side = side & 1;
        let flags = tcp.flags;
        let (syn, fin) = (flags & tcp_flag::SYN != 0, flags & tcp_flag::FIN != 0);
        let (rst, ack) = (flags & tcp_flag::RST != 0, flags & tcp_flag::ACK != 0);
        // A RST's bytes are not part of the stream; SYN and FIN take one number each.
        let counted = if rst { 0 } else { len } + u32::from(syn) + u32::from(fin);
        let past = tcp.seq.wrapping_add(counted);
        let fresh = self.open_numbers(side, tcp.seq, past, syn, numbers);
        let relative = tcp.seq.wrapping_sub(self.ends[side].start);
        self.letters(side, flags, relative, len, history);
        let reset = self.ends[side].state == End::Reset;
        if tcp.window == 0 && !rst && self.ends[1 - side].state != End::Closed && !reset {
            let count = self.ends[side].zero_windows.saturating_add(1);
            self.ends[side].zero_windows = count;
            scaled(u32::from(count), side, b'W', history);
        }
        self.ends[side].fin_seen |= fin;
        if ack {
            self.acknowledge(1 - side, tcp.ack, rst, numbers);
        }
        if self.advance(side, past, flags, len, numbers) && !fresh {
            self.retransmitted(side, history);
        }
        self.round_trip(side, syn, ack, rst, now);
        self.transition(side, flags, len);
    }

    /// Counts a segment whose payload had been sent before.
    #[inline]
    pub(super) fn retransmitted(&mut self, side: usize, history: &mut History) {
        let end = &mut self.ends[side & 1];
        end.retransmits = end.retransmits.saturating_add(1);
        scaled(end.retransmits, side, b'T', history);
    }

    /// For which sides and kinds [`Numbers::take`] may replace [`TcpTrack::segment`]: those whose
    /// letter was written, between ends whose state such a segment does not change.
    pub(super) fn plain_segments(&self) -> u8 {
        let mut plain = 0;
        for side in 0..2 {
            let settled =
                matches!(self.ends[side].state, End::Established | End::Partial | End::Closed);
            if settled && self.ends[1 - side].state != End::Inactive {
                let seen = self.seen >> (8 * side);
                let data = if seen & letter::DATA != 0 { PLAIN_DATA } else { 0 };
                let ack = if seen & letter::ACK != 0 { PLAIN_ACK } else { 0 };
                plain |= (data | ack) << (2 * side);
            }
        }
        plain
    }

    /// Sets an endpoint's first numbers when it speaks for the first time, or again after a SYN
    /// with others; true if it was the first time.
    fn open_numbers(
        &mut self,
        side: usize,
        seq: u32,
        past: u32,
        syn: bool,
        numbers: &mut Numbers,
    ) -> bool {
        let end = &mut self.ends[side];
        let first = end.state == End::Inactive;
        let restart = match end.state {
            End::Inactive => true,
            End::SynSent => syn && seq != end.start,
            End::Established | End::Partial => syn,
            End::Reset => syn && end.former == End::Inactive,
            End::Closed => false,
        };
        if restart {
            // Without a SYN, count as though there had been one just before.
            let start = if first && !syn { seq.wrapping_sub(1) } else { seq };
            end.start = start;
            numbers.acked[side] = start;
            numbers.last[side] = if first && !syn { seq } else { past };
        }
        first
    }

    fn letters(&mut self, side: usize, flags: u8, relative: u32, len: u32, history: &mut History) {
        let (syn, fin) = (flags & tcp_flag::SYN != 0, flags & tcp_flag::FIN != 0);
        let (rst, ack) = (flags & tcp_flag::RST != 0, flags & tcp_flag::ACK != 0);
        match u8::from(syn) + u8::from(fin) + u8::from(rst) {
            0 if len > 0 => _ = self.once(side, letter::DATA, b'D', history),
            0 if ack => _ = self.once(side, letter::ACK, b'A', history),
            0 => {}
            1 => {
                let (kind, bit, code, at) = if syn {
                    (0, letter::SYN, if ack { b'H' } else { b'S' }, relative)
                } else if fin {
                    (1, letter::FIN, b'F', relative.wrapping_add(len))
                } else {
                    (2, letter::RST, b'R', relative)
                };
                let folded = (at ^ (at >> 8) ^ (at >> 16) ^ (at >> 24)) as u8;
                let repeated = !self.once(side, bit, code, history);
                let last = std::mem::replace(&mut self.ends[side].last_of_kind[kind], folded);
                if repeated && last != folded {
                    history.push(side, code);
                }
            }
            _ if fin && rst => _ = self.once(side, letter::FIN_RST, b'I', history),
            _ => _ = self.once(side, letter::MULTI, b'Q', history),
        }
    }

    /// Writes a letter the first time; true if it was.
    fn once(&mut self, side: usize, bit: u16, code: u8, history: &mut History) -> bool {
        let bit = bit << (8 * side);
        let first = self.seen & bit == 0;
        if first {
            self.seen |= bit;
            history.push(side, code);
        }
        first
    }

    fn acknowledge(&mut self, side: usize, ack: u32, rst: bool, numbers: &mut Numbers) {
        let end = &mut self.ends[side];
        if end.state == End::Inactive {
            end.start = ack.wrapping_sub(1);
            numbers.acked[side] = end.start;
            numbers.last[side] = end.start;
            return;
        }
        let step = delta(ack, numbers.acked[side]);
        let broken = ack == 0 && step > LARGE_JUMP;
        if !rst && !broken && step > 0 {
            numbers.acked[side] = ack;
        }
    }

    /// Moves the endpoint's last number on; true for payload that does not advance it.
    fn advance(
        &mut self,
        side: usize,
        past: u32,
        flags: u8,
        len: u32,
        numbers: &mut Numbers,
    ) -> bool {
        let end = &self.ends[side];
        let last = &mut numbers.last[side];
        let step = delta(past, *last);
        if flags & (tcp_flag::SYN | tcp_flag::RST) != 0
            && !(-LARGE_JUMP..=LARGE_JUMP).contains(&step)
        {
            return false;
        }
        if flags & tcp_flag::FIN != 0 && *last == end.start.wrapping_add(1) {
            // More than 2 GB of which only SYN and FIN were seen.
            *last = past;
            return false;
        }
        if end.state == End::Reset {
            return false;
        }
        if step > 0 {
            *last = past;
            return false;
        }
        len > 0
    }

    fn round_trip(&mut self, side: usize, syn: bool, ack: bool, rst: bool, now: u64) {
        use RoundTrip::{Answered, Asked, Known, NoSyn};
        match (side, syn, ack, self.round_trip) {
            (0, true, false, NoSyn | Asked) => {
                self.handshake_ns = now;
                self.round_trip = Asked;
            }
            (1, true, true, Asked) => self.round_trip = Answered,
            (0, false, true, Answered) if !rst => {
                self.handshake_ns = now.saturating_sub(self.handshake_ns);
                self.round_trip = Known;
            }
            _ => {}
        }
    }

    fn transition(&mut self, side: usize, flags: u8, len: u32) {
        let (syn, fin) = (flags & tcp_flag::SYN != 0, flags & tcp_flag::FIN != 0);
        let (rst, ack) = (flags & tcp_flag::RST != 0, flags & tcp_flag::ACK != 0);
        let peer = self.ends[1 - side].state;
        match self.ends[side].state {
            End::Inactive => self.first_words(side, flags, len),
            End::SynSent => {
                if fin {
                    self.set(side, End::Closed);
                }
                if rst {
                    self.set(side, End::Reset);
                }
            }
            End::Established | End::Partial => {
                if syn && !ack && self.ends[side].state == End::Partial && peer == End::Inactive {
                    self.set(side, End::SynSent);
                }
                if fin && !rst {
                    self.set(side, End::Closed);
                    if peer == End::Reset && self.ends[1 - side].former == End::Closed {
                        // A FIN, then a RST from the same end: a normal end after all.
                        self.set(1 - side, End::Closed);
                    }
                }
                if rst {
                    self.set(side, End::Reset);
                }
            }
            End::Closed => {
                if rst && peer != End::Closed {
                    self.set(side, End::Reset);
                }
            }
            End::Reset => {}
        }
        if fin || rst {
            self.close(side);
        }
    }

    fn first_words(&mut self, side: usize, flags: u8, len: u32) {
        let (syn, fin) = (flags & tcp_flag::SYN != 0, flags & tcp_flag::FIN != 0);
        let (rst, ack) = (flags & tcp_flag::RST != 0, flags & tcp_flag::ACK != 0);
        let peer = self.ends[1 - side].state;
        if syn {
            if side == 0 {
                // The answer may have been captured before the SYN.
                let answered = peer == End::Established;
                self.set(0, if answered { End::Established } else { End::SynSent });
            } else {
                if peer == End::SynSent {
                    self.set(0, End::Established);
                }
                self.set(1, End::Established);
            }
        }
        if fin {
            self.set(side, End::Closed);
        }
        if rst {
            self.set(side, End::Reset);
        }
        if self.ends[side].state == End::Inactive {
            if side == 1 && len == 0 && peer == End::SynSent {
                // Some acknowledge a SYN before they answer it.
            } else if ack && peer == End::Established {
                // The SYN was missed, the answer was not.
                self.set(side, End::Established);
            } else {
                self.set(side, End::Partial);
            }
        }
    }

    fn set(&mut self, side: usize, state: End) {
        let end = &mut self.ends[side];
        if end.state != state {
            end.former = end.state;
            end.state = state;
        }
    }

    fn close(&mut self, side: usize) {
        self.ends[side].closed = true;
        let peer = self.ends[1 - side];
        self.finished |=
            self.ends[side].state == End::Reset || peer.closed || peer.state == End::Inactive;
    }

    /// Where a segment's payload stands in its side's stream, from the first byte after the SYN, or
    /// from the first that was seen.
    pub(super) fn stream_at(&self, side: usize, tcp: &Tcp) -> u32 {
        let first = self.ends[side & 1].start.wrapping_add(1);
        let syn = u32::from(tcp.flags & tcp_flag::SYN != 0);
        tcp.seq.wrapping_add(syn).wrapping_sub(first)
    }

    /// Whether nothing more is to be expected.
    pub(super) fn is_finished(&self) -> bool {
        self.finished
    }

    /// Whether it ended by a RST rather than by FINs.
    pub(super) fn was_reset(&self) -> bool {
        self.ends.iter().any(|e| e.state == End::Reset)
    }

    /// Whether a SYN with this number opens another connection on the same ports.
    ///
    /// `flags` are the segment's; `side` its sender in this flow.
    pub(super) fn is_reused_by(&self, side: usize, tcp: &Tcp) -> bool {
        if tcp.flags & tcp_flag::SYN == 0 || tcp.flags & tcp_flag::RST != 0 {
            return false;
        }
        let [orig, resp] = &self.ends;
        if tcp.flags & tcp_flag::ACK != 0 {
            // Only where the connection's own SYN was never seen.
            return orig.state == End::Inactive
                && side == 1
                && self.finished
                && tcp.seq != resp.start;
        }
        if side == 1 {
            let simultaneous = orig.state == End::SynSent && resp.state == End::Inactive;
            return !simultaneous && tcp.seq != resp.start;
        }
        let late_syn = orig.state == End::Inactive && tcp.seq == orig.start;
        !late_syn && (self.finished || tcp.seq != orig.start)
    }

    /// Payload bytes that an end sent, by its sequence numbers.
    fn size(&self, side: usize, numbers: &Numbers) -> u32 {
        let side = side & 1;
        let (end, peer) = (&self.ends[side], &self.ends[1 - side]);
        let (last, acked) = (numbers.last[side], numbers.acked[side]);
        let nothing_acked = acked == end.start || acked == end.start.wrapping_add(1);
        let aborted = end.former == End::SynSent && end.state == End::Reset;
        if aborted && peer.state == End::Inactive && !nothing_acked {
            return 0;
        }
        let far = if delta(last, acked) > 0 { last } else { acked };
        let span = far.wrapping_sub(end.start);
        span.saturating_sub(1).saturating_sub(u32::from(end.fin_seen))
    }

    pub(super) fn conn_state(&self, numbers: &Numbers, history: &History) -> ConnState {
        let (o, r) = (self.ends[0].state, self.ends[1].state);
        let idle = |e: End| matches!(e, End::Inactive | End::Partial);
        if r == End::Reset {
            return if o == End::SynSent
                || (o == End::Reset && self.size(0, numbers) == 0 && self.size(1, numbers) == 0)
            {
                ConnState::Rej
            } else if idle(o) {
                ConnState::Rstrh
            } else {
                ConnState::Rstr
            };
        }
        if o == End::Reset {
            return if !idle(r) {
                ConnState::Rsto
            } else if history.is_syn_then_rst() {
                ConnState::Rstos0
            } else {
                ConnState::Oth
            };
        }
        match (o, r) {
            (End::Closed, End::Closed) => ConnState::Sf,
            (End::Closed, r) if idle(r) => ConnState::Sh,
            (End::Closed, _) => ConnState::S2,
            (o, End::Closed) if idle(o) => ConnState::Shr,
            (_, End::Closed) => ConnState::S3,
            (End::SynSent, End::Inactive) => ConnState::S0,
            (End::Established, End::Established) => ConnState::S1,
            _ => ConnState::Oth,
        }
    }

    /// Handshake round trip, nanoseconds: from the SYN to the originator's first ACK.
    pub(super) fn rtt_ns(&self) -> Option<u64> {
        (self.round_trip == RoundTrip::Known).then_some(self.handshake_ns)
    }

    /// Segments whose payload had been sent before, both directions.
    pub(super) fn retransmits(&self) -> u32 {
        self.ends.iter().map(|e| e.retransmits).sum()
    }
}

/// Writes a letter at the 1st, 10th, 100th … time.
fn scaled(count: u32, side: usize, code: u8, history: &mut History) {
    if count != 1 && !count.is_multiple_of(10) {
        return;
    }
    if count.checked_ilog10().is_some_and(|power| 10u32.pow(power) == count) {
        history.push(side, code);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: u8 = tcp_flag::SYN;
    const A: u8 = tcp_flag::ACK;
    const F: u8 = tcp_flag::FIN;
    const R: u8 = tcp_flag::RST;

    /// Segments as (side, flags, seq, ack, length).
    fn run(segments: &[(usize, u8, u32, u32, u32)]) -> (&'static str, String, TcpTrack) {
        let (state, history, track, _) = run_all(segments, false);
        // Where only the numbers change, taking the short way gives the same.
        let (state2, history2, track2, _) = run_all(segments, true);
        assert_eq!((state, &history), (state2, &history2));
        assert_eq!(format!("{track:?}"), format!("{track2:?}"));
        (state, history, track)
    }

    fn run_all(
        segments: &[(usize, u8, u32, u32, u32)],
        plain: bool,
    ) -> (&'static str, String, TcpTrack, Numbers) {
        let (mut track, mut history) = (TcpTrack::default(), History::default());
        let mut numbers = Numbers::default();
        for (n, &(side, flags, seq, ack, len)) in segments.iter().enumerate() {
            let tcp = Tcp { seq, ack, window: 100, flags };
            let plain = if plain { track.plain_segments() } else { 0 };
            match numbers.take(u32::MAX, plain, side, &tcp, len) {
                Taken::Not => {
                    let now = 1_000 * (n as u64 + 1);
                    track.segment(side, &tcp, len, now, &mut numbers, &mut history);
                }
                Taken::Plain { again: 1, .. } => track.retransmitted(side, &mut history),
                Taken::Plain { .. } => {}
            }
        }
        let state = track.conn_state(&numbers, &history).name();
        (state, history.as_str().to_owned(), track, numbers)
    }

    #[test]
    fn a_whole_connection() {
        let whole = [
            (0, S, 10, 0, 0),
            (1, S | A, 90, 11, 0),
            (0, A, 11, 91, 0),
            (0, A, 11, 91, 5),
            (1, A, 91, 16, 7),
            (0, F | A, 16, 98, 0),
            (1, F | A, 98, 17, 0),
            (0, A, 17, 99, 0),
        ];
        let (state, history, track) = run(&whole);
        assert_eq!((state, history.as_str()), ("SF", "ShADdFf"));
        assert!(track.is_finished() && !track.was_reset());
        assert_eq!((track.rtt_ns(), track.retransmits()), (Some(2000), 0));
        let numbers = run_all(&whole, true).3;
        assert_eq!((track.size(0, &numbers), track.size(1, &numbers)), (5, 7));
    }

    #[test]
    fn the_other_ends() {
        assert_eq!(run(&[(0, S, 1, 0, 0)]).0, "S0");
        assert_eq!(run(&[(0, S, 1, 0, 0), (1, R | A, 0, 2, 0)]).0, "REJ");
        assert_eq!(run(&[(0, S, 1, 0, 0), (1, S | A, 5, 2, 0), (0, R, 2, 0, 0)]).0, "RSTO");
        assert_eq!(run(&[(0, S, 1, 0, 0), (0, R, 2, 0, 0)]).0, "RSTOS0");
        assert_eq!(run(&[(0, S, 1, 0, 0), (0, F | A, 2, 9, 0)]).0, "SH");
        assert_eq!(run(&[(1, S | A, 5, 2, 0), (1, F | A, 6, 2, 0)]).0, "SHR");
        assert_eq!(run(&[(1, S | A, 5, 2, 0), (1, R, 6, 2, 0)]).0, "RSTRH");
        assert_eq!(run(&[(0, A, 5, 2, 3), (1, A, 2, 8, 4)]).0, "OTH");
        let open = [(0, S, 1, 0, 0), (1, S | A, 5, 2, 0), (0, A, 2, 6, 0)];
        assert_eq!(run(&open).0, "S1");
        assert_eq!(run(&[&open[..], &[(0, F | A, 2, 6, 0)]].concat()).0, "S2");
        assert_eq!(run(&[&open[..], &[(1, F | A, 6, 2, 0)]].concat()).0, "S3");
        assert_eq!(run(&[&open[..], &[(1, R, 6, 2, 0)]].concat()).0, "RSTR");
    }

    #[test]
    fn an_answer_captured_before_its_syn() {
        let (state, history, _) =
            run(&[(1, S | A, 5, 2, 0), (0, S, 1, 0, 0), (0, A, 2, 6, 0), (0, A, 2, 6, 4)]);
        assert_eq!((state, history.as_str()), ("S1", "hSAD"));
    }

    #[test]
    fn what_is_sent_twice_shows_at_powers_of_ten() {
        let mut segments = vec![(0, S, 1, 0, 0), (1, S | A, 5, 2, 0), (0, A, 2, 6, 10)];
        segments.extend([(0, A, 2, 6, 10); 11]);
        let (_, history, track) = run(&segments);
        assert_eq!((history.as_str(), track.retransmits()), ("ShDTT", 11));
    }

    #[test]
    fn a_new_syn_is_a_new_connection_and_a_repeated_one_is_not() {
        let open = [(0, S, 1, 0, 0), (1, S | A, 5, 2, 0), (0, A, 2, 6, 0)];
        let syn = |seq| Tcp { seq, ack: 0, window: 0, flags: S };
        let (.., track) = run(&open);
        assert!(!track.is_reused_by(0, &syn(1)) && track.is_reused_by(0, &syn(7777)));
        assert!(track.is_reused_by(1, &syn(7777)));
        let (.., reset) = run(&[&open[..], &[(1, R, 6, 2, 0)]].concat());
        assert!(reset.is_reused_by(0, &syn(1)));
        let (.., started) = run(&open[..1]);
        assert!(!started.is_reused_by(1, &syn(7777)), "a simultaneous open");
        let (.., answer_first) = run(&[(1, S | A, 5, 2, 0)]);
        assert!(!answer_first.is_reused_by(0, &syn(1)));
    }
}
