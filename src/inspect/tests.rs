//! The inspector as a worker uses it.

use super::collect::Collector;
use super::quic::Version;
use super::silence::{Heard, silencers};
use super::tls::tests::{as_message, as_records, hello, name_extension};
use super::*;
use crate::event::{Content, Mark, fields};
use crate::packet::{Addr, Decoded, Tuple};
use crate::shunt::{Current, List};

/// One flow that is shown packet after packet.
struct Flow {
    inspector: Inspector,
    wants: Wants,
    place: u32,
    protocol: u8,
    port: u16,
    notes: Vec<(Note, Vec<u8>)>,
}

impl Flow {
    fn new(protocol: u8, port: u16) -> Self {
        let limits = Limits { packets: 10, states: 2, buffers: 3 };
        let inspector = Inspector::new(limits, 8);
        Self { wants: inspector.wants(), inspector, place: 3, protocol, port, notes: Vec::new() }
    }

    fn packet(&mut self, side: usize, stream_at: u32, payload: &[u8]) {
        if !self.wants.any() {
            return;
        }
        let (client, server) = (Addr::v4([10, 0, 0, 1]), Addr::v4([10, 0, 0, 2]));
        let tuple = match side {
            0 => Tuple {
                src: client,
                dst: server,
                sport: 4000,
                dport: self.port,
                ..Tuple::default()
            },
            _ => Tuple {
                src: server,
                dst: client,
                sport: self.port,
                dport: 4000,
                ..Tuple::default()
            },
        };
        let tuple = Tuple { proto: self.protocol, ..tuple };
        let (key, from_a) = FlowKey::of(&tuple);
        let payload_len = payload.len() as u32;
        let decoded = Decoded { tuple, payload_len, ..Decoded::default() };
        let seen = Seen {
            place: self.place,
            flow_id: u64::from(self.place),
            key,
            orig_is_a: from_a == (side == 0),
            side,
            decoded: &decoded,
            timestamp_ns: 1,
            frame: 0,
            stream_at,
            wants: self.wants,
            mark: Mark::default(),
        };
        self.wants = self.inspector.inspect(&seen, payload, &mut self.notes);
    }

    fn kinds(&self) -> Vec<NoteKind> {
        self.notes.iter().map(|(note, _)| note.kind).collect()
    }

    fn content(&self) -> Content {
        let mut collector = Collector::default();
        let mut last = Content::default();
        for (note, bytes) in &self.notes {
            if let Some(content) = collector.note(note, bytes).content {
                last = content.clone();
            }
        }
        last
    }

    fn nothing_is_held(&self) {
        assert_eq!((self.inspector.free.len(), self.inspector.pool.in_use()), (2, 0));
    }
}

/// A ClientHello of the size that post-quantum key shares make usual.
fn large_hello() -> Vec<u8> {
    let body = hello(
        0x0303,
        &[0x1301, 0x1302],
        &[(0x33, vec![7; 1200]), name_extension("example.org"), (43, vec![2, 3, 4])],
    );
    as_message(tls::message::CLIENT_HELLO, &body)
}

#[test]
fn a_hello_in_segments_of_any_size_and_order() {
    let stream = as_records(22, &large_hello(), 600);
    for size in [100, 313, 700, 1400] {
        let parts: Vec<(usize, &[u8])> =
            stream.chunks(size).enumerate().map(|(n, part)| (n * size, part)).collect();
        for turn in 0..parts.len() {
            for reversed in [false, true] {
                let mut order = parts.clone();
                order.rotate_left(turn);
                if reversed {
                    order.reverse();
                }
                let mut flow = Flow::new(proto::TCP, 443);
                // Each twice, as though it were sent again.
                for (at, part) in order.iter().flat_map(|p| [p, p]) {
                    flow.packet(0, *at as u32, part);
                }
                assert_eq!(flow.kinds(), [NoteKind::TlsClient], "{size} {turn} {reversed}");
                let tls = flow.content().tls.unwrap();
                assert_eq!(tls.sni.as_deref(), Some("example.org"));
                assert_eq!(tls.version, Some("TLS 1.3"));
                assert_eq!(flow.inspector.pool.in_use(), 0);
                flow.inspector.forget(3);
                flow.nothing_is_held();
            }
        }
    }
}

#[test]
fn a_hello_cut_anywhere_is_no_hello_and_holds_one_buffer() {
    let stream = as_records(22, &large_hello(), 600);
    for n in 1..stream.len() {
        let mut flow = Flow::new(proto::TCP, 443);
        flow.packet(0, 0, &stream[..n]);
        assert!(flow.notes.is_empty(), "{n}");
        assert!(flow.inspector.pool.in_use() <= 1);
        flow.inspector.forget(3);
        flow.nothing_is_held();
    }
}

#[test]
fn a_stream_that_never_ends_its_message_is_given_up() {
    // A record that claims more than comes.
    let mut flow = Flow::new(proto::TCP, 443);
    let mut at = 0;
    flow.packet(0, 0, &[22, 3, 1, 0x40, 0, 1, 0, 0x3f, 0xff]);
    at += 9;
    let mut shown = 1;
    while flow.wants.any() {
        flow.packet(0, at, &[0; 50]);
        at += 50;
        shown += 1;
    }
    assert_eq!(shown, 10 + usize::from(PATIENCE));
    flow.nothing_is_held();
}

#[test]
fn starttls_is_found_behind_its_protocol() {
    let mut flow = Flow::new(proto::TCP, 25);
    flow.packet(1, 0, b"220 mail ESMTP\r\n");
    flow.packet(0, 0, b"EHLO me\r\n");
    flow.packet(1, 16, b"250 STARTTLS\r\n");
    flow.packet(0, 9, b"STARTTLS\r\n");
    flow.packet(1, 30, b"220 go\r\n");
    flow.packet(0, 19, &as_records(22, &large_hello(), 9000));
    assert_eq!(flow.kinds(), [NoteKind::App, NoteKind::TlsClient]);
    let content = flow.content();
    assert_eq!(content.app, Some(App::Smtp));
    assert_eq!(content.tls.unwrap().sni.as_deref(), Some("example.org"));
}

#[test]
fn requests_of_one_connection() {
    let mut flow = Flow::new(proto::TCP, 8080);
    let ask = |n: u8| format!("GET /{n} HTTP/1.1\r\nHost: a\r\n\r\n");
    let (mut up, mut down) = (0, 0);
    for n in 0..3 {
        flow.packet(0, up, ask(n).as_bytes());
        up += ask(n).len() as u32;
        let answer = format!("HTTP/1.1 20{n} OK\r\nContent-Length: 5\r\n\r\n12345");
        flow.packet(1, down, answer.as_bytes());
        down += answer.len() as u32;
    }
    assert_eq!(flow.notes.len(), 6);
    let mut collector = Collector::default();
    let mut answered = Vec::new();
    for (note, bytes) in &flow.notes {
        answered.extend(collector.note(note, bytes).http);
    }
    let pairs: Vec<_> = answered.iter().map(|h| (h.uri.as_deref(), h.status)).collect();
    assert_eq!(pairs, [(Some("/0"), Some(200)), (Some("/1"), Some(201)), (Some("/2"), Some(202))]);
}

#[test]
fn dns_over_tcp_to_the_end_of_the_flow() {
    let mut query = vec![0, 0, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    query.extend(b"\x01a\x02bc\0\0\x01\0\x01");
    let framed = [&(query.len() as u16).to_be_bytes()[..], &query].concat();
    // Many messages, cut into segments that heed none of them.
    let stream = framed.repeat(100);
    let mut flow = Flow::new(proto::TCP, 53);
    for (n, part) in stream.chunks(37).enumerate() {
        flow.packet(0, n as u32 * 37, part);
    }
    assert_eq!(flow.notes.len(), 100);
    assert!(
        fields(&flow.notes[99].1).any(|(tag, value)| tag == Tag::Query && &value[2..] == b"a.bc")
    );
}

fn crypto(at: usize, bytes: &[u8]) -> Vec<u8> {
    let at = (at as u16 | 0x4000).to_be_bytes();
    let len = (bytes.len() as u16 | 0x4000).to_be_bytes();
    [&[6][..], &at, &len, bytes].concat()
}

#[test]
fn a_quic_hello_over_datagrams_frames_and_coalesced_packets() {
    let hello = large_hello();
    let (first, rest) = hello.split_at(500);
    let (second, third) = rest.split_at(100);
    for version in [Version::Draft29, Version::V1, Version::V2] {
        let id = [1, 2, 3, 4, 5, 6, 7, 8];
        let seal = |number, frames: Vec<u8>| quic::tests::seal(version, &id, number, b"", &frames);
        // Frames out of order within a packet, two packets in a datagram, and the last one first.
        let one = seal(0, [crypto(500, second), vec![0; 30], crypto(0, first)].concat());
        let two = seal(1, crypto(600, &third[..200]));
        let last = seal(2, crypto(800, &third[200..]));
        let mut flow = Flow::new(proto::UDP, 443);
        flow.packet(0, 0, &last);
        assert!(flow.notes.is_empty() && flow.inspector.pool.in_use() == 1);
        flow.packet(1, 0, b"what the server says");
        flow.packet(0, 0, &[one, two].concat());
        assert_eq!(flow.kinds(), [NoteKind::Quic]);
        let tls = flow.content().tls.unwrap();
        assert_eq!(tls.sni.as_deref(), Some("example.org"));
        assert_eq!(tls.quic_version.as_deref(), Some(version.name()));
        assert!(tls.ja4.unwrap().starts_with("q13d0203"));
        for (name, mark) in [("example.org", Mark::Silenced), ("other.example", Mark::Open)] {
            let list = List::read(name.as_bytes(), "test").unwrap().0;
            let (mut silencer, _) = silencers(&Current::new(list), 1).pop().unwrap();
            let (note, bytes) = &flow.notes[0];
            let mut notes: Vec<(Note, Vec<u8>)> = Vec::new();
            let silencer = Some(&mut silencer);
            let mut heard = Heard { notes: &mut notes, silencer, mark: Mark::Plain };
            heard.push(*note, bytes);
            assert_eq!(heard.mark, mark, "{name}");
            assert_eq!(notes[0].0.silenced, mark == Mark::Silenced);
        }
        assert!(!flow.wants.any());
        flow.nothing_is_held();
    }
}

#[test]
fn after_a_retry_the_new_connection_id_gives_the_keys() {
    let hello = large_hello();
    let (first, rest) = hello.split_at(700);
    let mut flow = Flow::new(proto::UDP, 443);
    // The first attempt, which the server answers with a Retry, was cut short.
    flow.packet(0, 0, &quic::tests::seal(Version::V1, b"original", 0, b"", &crypto(0, first)));
    let mut retry = vec![0xf0, 0, 0, 0, 1, 0, 8];
    retry.extend(b"serverid");
    retry.extend([9; 40]);
    flow.packet(1, 0, &retry);
    for (number, at, part) in [(1, 0, first), (2, 700, rest)] {
        let packet =
            quic::tests::seal(Version::V1, b"serverid", number, b"token", &crypto(at, part));
        flow.packet(0, 0, &packet);
    }
    assert_eq!(flow.kinds(), [NoteKind::Quic]);
    flow.nothing_is_held();
}

#[test]
fn more_flows_than_states_take_turns_and_are_counted() {
    let mut flow = Flow::new(proto::TCP, 443);
    let stream = as_records(22, &large_hello(), 600);
    for place in 0..5 {
        flow.place = place;
        flow.wants = flow.inspector.wants();
        flow.packet(0, 0, &stream[..300]);
        assert!(flow.wants.is_held());
    }
    assert_eq!(flow.inspector.stats().states_evicted, 3);
    assert_eq!(flow.inspector.pool.in_use(), 2, "an evicted flow's buffer is free again");
    // A flow that lost its state is done; one that kept it goes on.
    flow.place = 0;
    flow.packet(0, 300, &stream[300..]);
    assert!(!flow.wants.any() && flow.notes.is_empty());
    flow.wants = Wants::held(9);
    flow.place = 4;
    flow.packet(0, 300, &stream[300..]);
    assert_eq!(flow.kinds(), [NoteKind::TlsClient]);
}

#[test]
fn without_a_free_buffer_a_message_is_given_up_and_counted() {
    let limits = Limits { packets: 10, states: 4, buffers: 0 };
    let mut flow = Flow::new(proto::TCP, 443);
    flow.inspector = Inspector::new(limits, 8);
    let stream = as_records(22, &large_hello(), 600);
    flow.packet(0, 0, &stream[..300]);
    flow.packet(0, 300, &stream[300..]);
    assert_eq!(flow.inspector.stats().buffers_full, 1);
    assert!(flow.notes.is_empty());
}

#[test]
fn turned_off_it_wants_nothing() {
    let inspector = Inspector::new(Limits { packets: 0, ..Limits::default() }, 1_000_000);
    assert!(!inspector.wants().any());
    assert_eq!((inspector.state_of.len(), inspector.states.len()), (0, 0));
}
