//! What is fuzzed, for the fuzzer and for the test that does the same without one.
//!
//! Each takes any bytes; it must neither panic nor grow.

use std::hint::black_box;

use malakocut::event::{Mark, Note, NoteSink, Seen, Tag, Wants, fields};
use malakocut::inspect::collect::Collector;
use malakocut::inspect::{Inspector, Limits, dhcp, dns, http, neighbour, quic, ssh, tls};
use malakocut::packet::{Addr, Decoded, FlowKey, Tuple, proto};

/// A target takes any bytes.
pub type Target = fn(&[u8]);

/// Name and function of each.
pub const ALL: [(&str, Target); 8] = [
    ("dns", dns),
    ("tls", tls),
    ("quic", quic),
    ("http", http),
    ("ssh", ssh),
    ("dhcp", dhcp),
    ("neighbour", neighbour),
    ("inspector", inspector),
];

pub fn dns(data: &[u8]) {
    let Some(message) = dns::Message::parse(data) else { return };
    for question in message.questions() {
        black_box(dns::netbios_name(&question.name));
    }
    for record in message.records() {
        black_box((record.text(), record.target(), record.addresses().count()));
    }
}

pub fn tls(data: &[u8]) {
    let mut scratch = Vec::with_capacity(2048);
    if let Some((handshake, _)) = tls::handshake(data, &mut scratch) {
        for (_, body) in tls::messages(handshake) {
            hellos(body);
        }
    }
    assert_eq!(scratch.capacity(), 2048);
    hellos(data);
    black_box(tls::dtls_client_hello(data).map(|h| h.ja4(tls::Transport::Dtls)));
}

fn hellos(body: &[u8]) {
    if let Some(hello) = tls::ClientHello::parse(body) {
        black_box((hello.ja3(), hello.ja4(tls::Transport::Tcp), hello.server_name()));
        black_box((hello.alpns().count(), hello.highest_version()));
    }
    if let Some(hello) = tls::ServerHello::parse(body) {
        black_box((hello.ja3s(), hello.version(), hello.alpn()));
    }
    black_box(tls::certificates(body).count());
}

pub fn quic(data: &[u8]) {
    let mut out = Vec::with_capacity(2048);
    if let Some(header) = quic::Header::parse(data) {
        let keys = quic::Keys::new(header.version, header.dcid, quic::Side::Client);
        black_box(quic::open(data, &keys, &mut out));
    }
    assert_eq!(out.capacity(), 2048);
    black_box(quic::skip(data));
    black_box(quic::crypto_frames(data).count());
}

pub fn http(data: &[u8]) {
    black_box((http::request(data), http::response(data)));
}

pub fn ssh(data: &[u8]) {
    black_box((ssh::opening(data, true), ssh::opening(data, false)));
}

pub fn dhcp(data: &[u8]) {
    black_box(dhcp::Message::parse(data));
}

pub fn neighbour(data: &[u8]) {
    black_box(neighbour::Arp::parse(data));
    for kind in [135, 136] {
        black_box(neighbour::discovery(kind, [1; 16], data));
    }
}

/// Gives the notes to a collector, as the control thread does.
struct Control(Collector);

impl NoteSink for Control {
    fn push(&mut self, note: Note, bytes: &[u8]) {
        assert_eq!(note.len as usize, bytes.len());
        for (tag, value) in fields(bytes) {
            black_box((tag == Tag::App, value.len()));
        }
        black_box(self.0.note(&note, bytes).whole);
    }
}

/// A row of packets, each behind four bytes: its flow and side, where it stands in its stream, its
/// length; some flows are TCP, some are UDP on the ports of each protocol.
pub fn inspector(data: &[u8]) {
    let limits = Limits { packets: 10, states: 3, buffers: 2 };
    let mut inspector = Inspector::new(limits, 8);
    let mut wants = [inspector.wants(); 8];
    let mut control = Control(Collector::default());
    let mut rest = data;
    while let Some((&[flow, high, low, len], after)) = rest.split_first_chunk::<4>() {
        let (payload, after) = after.split_at(after.len().min(usize::from(len) * 4));
        rest = after;
        let (place, side) = (flow & 7, usize::from(flow >> 3 & 1));
        if flow & 0xf0 == 0xf0 && wants[usize::from(place)].is_held() {
            inspector.forget(u32::from(place));
            wants[usize::from(place)] = Wants::default();
        }
        let port = [80, 443, 22, 53, 53, 443, 67, 5353][usize::from(place)];
        let protocol = if place < 4 { proto::TCP } else { proto::UDP };
        let (client, server) = (Addr::v4([10, 0, 0, place]), Addr::v4([10, 0, 0, 99]));
        let (mine, theirs) = (40_000 + u16::from(place), port);
        let tuple = match side {
            0 => Tuple { src: client, dst: server, sport: mine, dport: theirs, ..Tuple::default() },
            _ => Tuple { src: server, dst: client, sport: theirs, dport: mine, ..Tuple::default() },
        };
        let tuple = Tuple { proto: protocol, ..tuple };
        let (key, from_a) = FlowKey::of(&tuple);
        let decoded = Decoded { tuple, payload_len: payload.len() as u32, ..Decoded::default() };
        let wanted = &mut wants[usize::from(place)];
        if wanted.any() && !payload.is_empty() {
            let seen = Seen {
                place: u32::from(place),
                flow_id: u64::from(place) + 1,
                key,
                orig_is_a: from_a == (side == 0),
                side,
                decoded: &decoded,
                timestamp_ns: 1,
                frame: 0,
                stream_at: u32::from(u16::from_be_bytes([high, low])),
                wants: *wanted,
                mark: Mark::Plain,
            };
            *wanted = inspector.inspect(&seen, payload, &mut control);
        }
    }
}
