//! What the flows are about: names, fingerprints and the like, out of their first packets.
//!
//! The parsers are pure functions over bytes. An [`Inspector`] belongs to one worker: it is shown
//! the payloads of flows that still want it, finds out what they speak, follows the beginnings of
//! their TCP streams as far as a parser asks, and says what it read in notes.
//!
//! Invariants: nothing is allocated after the start; a flow costs at most one state and two buffers,
//! all flows together no more than there are; when none is left, another flow's is taken away and
//! counted. A flow that is done is not shown again. No input makes it panic: lengths are believed
//! only as far as bytes go.
//!
//! Limits: the first [`Limits::packets`] packets with a payload of a flow, and up to
//! [`PATIENCE`] more while a message is incomplete; DNS is read to the end of the flow. Of an IP
//! packet in fragments the first is read.

mod answers;
mod bytes;
pub mod collect;
pub mod dhcp;
pub mod dns;
pub mod http;
pub mod neighbour;
pub mod passive;
pub mod quic;
mod report;
pub mod silence;
pub mod sniff;
pub mod ssh;
mod stream;
mod streams;
pub mod tls;

use crate::event::{App, FieldWriter, MAX_FIELDS, Note, NoteKind, NoteSink, Seen, Tag, Wants};
use crate::packet::{FlowKey, Reject, Vlans, proto};
use stream::{CAPACITY, Pool};
use streams::State;

/// Packets beyond the first few that an unfinished message may still take.
pub const PATIENCE: u8 = 40;

/// What an inspector may use.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Packets with a payload that are read of a flow, 1 to 100; 0 reads nothing.
    pub packets: u8,
    /// Flows that something is kept of at once.
    pub states: usize,
    /// Buffers of 16 KiB for messages over several packets.
    pub buffers: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { packets: 10, states: 16_384, buffers: 1024 }
    }
}

/// What an inspector did, for the counters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Packets whose payload was looked at.
    pub packets: u64,
    /// Flows given up to make room for others.
    pub states_evicted: u64,
    /// Messages given up since no buffer was free.
    pub buffers_full: u64,
}

/// Where and when a frame came from that is in no flow.
#[derive(Clone, Copy, Debug)]
pub struct Lone {
    pub timestamp_ns: u64,
    /// Source and destination.
    pub macs: Option<[[u8; 6]; 2]>,
    pub vlans: Vlans,
}

impl Lone {
    fn note(&self, kind: NoteKind, fields: &[u8]) -> Note {
        Note {
            kind,
            flow_id: 0,
            timestamp_ns: self.timestamp_ns,
            key: FlowKey::default(),
            orig_is_a: true,
            side: 0,
            vlans: self.vlans,
            macs: self.macs,
            silenced: false,
            len: fields.len() as u32,
        }
    }
}

/// Suricata's name for what is wrong with a frame; `None` where only the capture cut it.
fn decoder_event(why: Reject) -> Option<&'static str> {
    Some(match why {
        Reject::ShortLink => "decoder.ethernet.pkt_too_small",
        Reject::TooManyTags => "decoder.too_many_layers",
        Reject::Ipv4Header => "decoder.ipv4.pkt_too_small",
        Reject::Ipv6Header => "decoder.ipv6.pkt_too_small",
        Reject::Ipv6Extensions => "decoder.ipv6.trunc_exthdr",
        Reject::TransportHeader => "decoder.tcp.hlen_too_small",
        _ => return None,
    })
}

/// Reads payloads for one worker.
#[derive(Debug)]
pub struct Inspector {
    packets: u8,
    /// By the flow's place: its state and one more, 0 for none.
    state_of: Vec<u32>,
    states: Vec<State>,
    free: Vec<u32>,
    /// Which state is taken away next.
    hand: usize,
    pool: Pool,
    /// Scratch: a handshake put together, a packet decrypted, the fields of a note.
    joined: Vec<u8>,
    opened: Vec<u8>,
    fields: Vec<u8>,
    stats: Stats,
}

impl Inspector {
    /// For a table of at most `flows` flows.
    pub fn new(limits: Limits, flows: usize) -> Self {
        let on = limits.packets > 0;
        let (flows, states) = if on { (flows, limits.states.max(1)) } else { (0, 0) };
        Self {
            packets: limits.packets,
            state_of: vec![0; flows],
            states: (0..states).map(|_| State::default()).collect(),
            free: (0..states as u32).rev().collect(),
            hand: 0,
            pool: Pool::new(if on { limits.buffers } else { 0 }),
            joined: Vec::with_capacity(CAPACITY),
            opened: Vec::with_capacity(2048),
            fields: Vec::with_capacity(MAX_FIELDS),
            stats: Stats::default(),
        }
    }

    pub fn stats(&self) -> Stats {
        self.stats
    }

    /// What a flow wants when it begins.
    pub fn wants(&self) -> Wants {
        Wants::packets(self.packets)
    }

    /// Reads a payload, as much of it as was captured; returns what the flow still wants.
    pub fn inspect(&mut self, seen: &Seen<'_>, payload: &[u8], out: &mut impl NoteSink) -> Wants {
        self.stats.packets += 1;
        match seen.key.proto() {
            proto::TCP => self.segment(seen, payload, out),
            proto::UDP => self.datagram(seen, payload, out),
            proto::ICMPV6 => self.icmpv6(seen, payload, out),
            _ => Wants::default(),
        }
    }

    /// Reads an ARP packet; one that is not of IPv4 over Ethernet is passed over.
    pub fn arp(&mut self, payload: &[u8], lone: &Lone, out: &mut impl NoteSink) {
        if let Some(arp) = neighbour::Arp::parse(payload) {
            report::arp(&arp, &mut FieldWriter::new(&mut self.fields));
            out.push(lone.note(NoteKind::Arp, &self.fields), &self.fields);
        }
    }

    /// Says that a frame cannot be read, and why.
    pub fn malformed(&mut self, why: Reject, lone: &Lone, out: &mut impl NoteSink) {
        if let Some(name) = decoder_event(why) {
            FieldWriter::new(&mut self.fields).put(Tag::What, &[name.as_bytes()]);
            out.push(lone.note(NoteKind::Anomaly, &self.fields), &self.fields);
        }
    }

    /// Gives up what is kept for the flow at a place, which ends.
    pub fn forget(&mut self, place: u32) {
        let Some(slot) = self.state_of.get_mut(place as usize) else { return };
        let Some(index) = std::mem::take(slot).checked_sub(1) else { return };
        self.release(index);
    }

    fn release(&mut self, index: u32) {
        let Some(state) = self.states.get_mut(index as usize) else { return };
        state.buffers().for_each(|buffer| self.pool.give_back(buffer));
        *state = State::default();
        self.free.push(index);
    }

    /// The index of the flow's state; a new one if it has none yet. `None` if it had one and lost
    /// it.
    fn state(&mut self, seen: &Seen<'_>) -> Option<u32> {
        let slot = self.state_of.get(seen.place as usize)?;
        if seen.wants.is_held() {
            return slot.checked_sub(1);
        }
        let index = match self.free.pop() {
            Some(index) => index,
            None => self.evict()?,
        };
        self.states.get_mut(index as usize)?.begin(seen.place);
        *self.state_of.get_mut(seen.place as usize)? = index + 1;
        Some(index)
    }

    /// Takes a state away from its flow: each in its turn, so that the longest kept goes first.
    #[cold]
    fn evict(&mut self) -> Option<u32> {
        self.stats.states_evicted += 1;
        self.hand = (self.hand + 1) % self.states.len().max(1);
        let place = self.states.get(self.hand)?.place();
        self.forget(place);
        self.free.pop()
    }

    fn datagram(&mut self, seen: &Seen<'_>, payload: &[u8], out: &mut impl NoteSink) -> Wants {
        if seen.wants.is_held() {
            // Only of a hello in the making is something kept.
            return self.quic(seen, payload, out);
        }
        let left = seen.wants.left().saturating_sub(1);
        let ports = [seen.decoded.tuple.sport, seen.decoded.tuple.dport];
        let Some(app) = sniff::datagram(payload, ports) else { return Wants::packets(left) };
        match app {
            App::Dns | App::Mdns | App::Llmnr | App::Nbns => {
                let Some(message) = dns::Message::parse(payload) else {
                    // What the capture cut short is nobody's fault.
                    if payload.len() == seen.decoded.payload_len as usize {
                        not_allowed(app, seen, &mut self.fields, out);
                    }
                    return Wants::packets(left);
                };
                report::dns(app, &message, &mut FieldWriter::new(&mut self.fields));
                self.note(NoteKind::Dns, seen, out);
                // Each message counts, so a flow of them is read to its end.
                seen.wants
            }
            App::Quic => self.quic(seen, payload, out),
            App::Dhcp => {
                if let Some(message) = dhcp::Message::parse(payload) {
                    report::dhcp(&message, &mut FieldWriter::new(&mut self.fields));
                    self.note(NoteKind::Dhcp, seen, out);
                }
                seen.wants
            }
            App::Dtls => {
                let Some(hello) = tls::dtls_client_hello(payload) else {
                    return Wants::packets(left);
                };
                let w = &mut FieldWriter::new(&mut self.fields);
                report::client_hello(&hello, tls::Transport::Dtls, w);
                self.note(NoteKind::TlsClient, seen, out);
                // The first may be refused for its want of a cookie; the second says the same.
                Wants::default()
            }
            _ => {
                report::app(app, &mut FieldWriter::new(&mut self.fields));
                self.note(NoteKind::App, seen, out);
                Wants::default()
            }
        }
    }

    /// Opens the Initial packets of a client's datagram until its hello is whole.
    fn quic(&mut self, seen: &Seen<'_>, payload: &[u8], out: &mut impl NoteSink) -> Wants {
        let left = seen.wants.left().saturating_sub(1);
        let give_up = |this: &mut Self| {
            this.forget(seen.place);
            Wants::default()
        };
        if seen.side != 0 {
            return match (seen.wants.is_held(), left) {
                (true, 0) => give_up(self),
                (true, _) => Wants::held(left),
                (false, _) => Wants::packets(left),
            };
        }
        let Some(index) = self.state(seen) else { return Wants::default() };
        let Some(state) = self.states.get_mut(index as usize) else { return Wants::default() };
        let buffer = state.first_buffer();
        if *buffer == stream::NONE {
            let Some(free) = self.pool.take() else {
                self.stats.buffers_full += 1;
                return give_up(self);
            };
            *buffer = free;
        }
        let Some(assembly) = self.pool.get(*buffer) else { return give_up(self) };
        let mut rest = payload;
        while let Some(header) = quic::Header::parse(rest) {
            if header.is_initial() {
                let keys = quic::Keys::new(header.version, header.dcid, quic::Side::Client);
                if quic::open(rest, &keys, &mut self.opened).is_some() {
                    for (at, bytes) in quic::crypto_frames(&self.opened) {
                        assembly.insert(usize::try_from(at).unwrap_or(usize::MAX), bytes);
                    }
                }
            }
            let Some(next) = quic::skip(rest) else { break };
            rest = next;
        }
        let message = tls::messages(assembly.prefix()).next();
        if let Some((tls::message::CLIENT_HELLO, body)) = message
            && let Some(hello) = tls::ClientHello::parse(body)
        {
            let w = &mut FieldWriter::new(&mut self.fields);
            report::client_hello(&hello, tls::Transport::Quic, w);
            if let Some(header) = quic::Header::parse(payload) {
                w.text(Tag::QuicVersion, header.version.name().as_bytes(), 16);
            }
            self.note(NoteKind::Quic, seen, out);
            return give_up(self);
        }
        // A whole message that is none, or no more packets: the protocol is known at least.
        if message.is_some() || left == 0 {
            report::app(App::Quic, &mut FieldWriter::new(&mut self.fields));
            self.note(NoteKind::App, seen, out);
            return give_up(self);
        }
        Wants::held(left)
    }

    fn icmpv6(&mut self, seen: &Seen<'_>, payload: &[u8], out: &mut impl NoteSink) -> Wants {
        let (kind, _) = seen.decoded.icmp;
        if !matches!(kind, 135 | 136) {
            return Wants::default();
        }
        let src = seen.decoded.tuple.src.bytes();
        if let Some((ip, mac)) = neighbour::discovery(kind, src, payload) {
            let w = &mut FieldWriter::new(&mut self.fields);
            w.put(Tag::Ip, &[&ip]);
            w.put(Tag::Mac, &[&mac]);
            self.note(NoteKind::Neighbour, seen, out);
        }
        Wants::packets(seen.wants.left().saturating_sub(1))
    }

    fn note(&self, kind: NoteKind, seen: &Seen<'_>, out: &mut impl NoteSink) {
        note(kind, seen, &self.fields, out);
    }
}

/// Hands on the fields written so far.
fn note(kind: NoteKind, seen: &Seen<'_>, fields: &[u8], out: &mut impl NoteSink) {
    let d = seen.decoded;
    let note = Note {
        kind,
        flow_id: seen.flow_id,
        timestamp_ns: seen.timestamp_ns,
        key: seen.key,
        orig_is_a: seen.orig_is_a,
        side: seen.side as u8,
        vlans: d.vlans,
        macs: d.has_mac.then_some([d.src_mac, d.dst_mac]),
        silenced: false,
        len: fields.len() as u32,
    };
    out.push(note, fields);
}

/// Says that a payload is not what its port or its beginning says it is.
fn not_allowed(app: App, seen: &Seen<'_>, fields: &mut Vec<u8>, out: &mut impl NoteSink) {
    let w = &mut FieldWriter::new(fields);
    report::app(app, w);
    w.put(Tag::What, &[b"malformed_data"]);
    note(NoteKind::Anomaly, seen, fields, out);
}

#[cfg(test)]
mod tests;
