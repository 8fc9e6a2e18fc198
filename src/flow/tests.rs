use super::*;
use crate::event::{Counts, FlowEvent};
use crate::packet::{Addr, Fragment, Tcp, Tuple, icmp_counterpart, proto};

const SECOND: u64 = 1_000_000_000;
const START: u64 = 1_700_000_000 * SECOND;
const TIMEOUTS: Timeouts = Timeouts { idle_ns: 60 * SECOND, active_ns: 300 * SECOND };

fn table(max_flows: usize) -> FlowTable {
    FlowTable::new(max_flows, TIMEOUTS, 7, NoHint)
}

fn packet(at_s: f64, src: u8, sport: u16, dst: u8, dport: u16, proto: u8) -> Arrival {
    let ns = START + (at_s * 1e9) as u64;
    let decoded = Decoded {
        tuple: Tuple {
            src: Addr::v4([10, 0, 0, src]),
            dst: Addr::v4([10, 0, 0, dst]),
            sport,
            dport,
            proto,
            ..Default::default()
        },
        wire_len: 100,
        ip_len: 86,
        payload_len: 46,
        ..Default::default()
    };
    Arrival::new(decoded, ns, ns)
}

/// The packet, changed.
fn with(a: Arrival, change: impl FnOnce(&mut Decoded)) -> Arrival {
    let mut decoded = a.decoded;
    change(&mut decoded);
    Arrival::new(decoded, a.timestamp_ns, a.clock_ns)
}

#[allow(clippy::too_many_arguments, reason = "a packet on one line")]
fn tcp(
    at_s: f64,
    src: u8,
    sport: u16,
    dst: u8,
    dport: u16,
    flags: u8,
    seq: u32,
    ack: u32,
) -> Arrival {
    with(packet(at_s, src, sport, dst, dport, proto::TCP), |d| {
        d.payload_len = 0;
        d.tcp = Tcp { seq, ack, window: 1000, flags };
    })
}

/// Feeds the packets in bursts of `size`, drains, and returns the events sorted by flow and delta.
fn run(table: &mut FlowTable, packets: &[Arrival], size: usize) -> Vec<FlowEvent> {
    let mut events = Vec::new();
    for burst in packets.chunks(size) {
        table.burst(&mut burst.to_vec(), &mut events);
    }
    let now = packets.iter().map(|p| p.clock_ns).max().unwrap_or(0);
    assert!(table.drain(now, EndReason::Eof, &mut events));
    assert!(table.is_empty());
    events.sort_by_key(|e| (e.start_ns, e.flow_id, e.shred));
    events
}

#[test]
fn deltas_sum_to_totals_whatever_the_bursts() {
    // 20 minutes of a packet a second, answered each third second.
    let packets: Vec<Arrival> = (0..1200)
        .map(|s| match s % 3 {
            0 => packet(f64::from(s), 2, 53, 1, 5000, proto::UDP),
            _ => packet(f64::from(s), 1, 5000, 2, 53, proto::UDP),
        })
        .collect();
    let shown = |events: &[FlowEvent]| events.iter().map(|e| format!("{e:?}")).collect::<Vec<_>>();
    let events = run(&mut table(10), &packets, 1);
    assert_eq!(shown(&events), shown(&run(&mut table(10), &packets, 32)));
    // A delta is due 300 s after its first packet: at 0, 300, 600 and 900 s.
    assert_eq!(events.len(), 4);
    let mut sum = [Counts::default(); 2];
    for (n, e) in events.iter().enumerate() {
        assert_eq!(e.shred as usize, n);
        for (side, sum) in sum.iter_mut().enumerate() {
            sum.add(e.delta[side]);
            assert_eq!(*sum, e.total[side]);
        }
        assert_eq!(e.end.is_some(), n == 3);
    }
    // The first packet seen was an answer; the originator is the client all the same.
    assert!(events[0].orig_is_a, "10.0.0.1 is a");
    assert_eq!((sum[0].packets, sum[1].packets, sum[0].bytes), (800, 400, 80_000));
    assert_eq!(events[0].history.as_str(), "^dD");
}

#[test]
fn a_gap_starts_a_new_flow_whether_the_timer_or_the_packet_sees_it() {
    let gap = [
        packet(0.0, 1, 5000, 2, 53, proto::UDP),
        packet(59.0, 1, 5000, 2, 53, proto::UDP),
        packet(119.5, 1, 5000, 2, 53, proto::UDP),
    ];
    let mut quiet = table(10);
    let events = run(&mut quiet, &gap, 3);
    let mut busy = gap.to_vec();
    busy.insert(2, packet(119.4, 3, 1, 4, 2, proto::UDP));
    let mut with_timer = run(&mut table(10), &busy, 1);
    with_timer.retain(|e| e.key.port_b() == 53 || e.key.port_a() == 53);
    for events in [&events, &with_timer] {
        assert_eq!(events.len(), 2);
        assert_eq!(events[0].end, Some(EndReason::Idle));
        assert_eq!(events[0].idle_ns, 60 * SECOND);
        assert_eq!(events[0].timestamp_ns, START + 119 * SECOND);
        assert_ne!(events[0].flow_id, events[1].flow_id);
    }
}

#[test]
fn a_port_used_again_is_another_flow() {
    use tcp_flag::{ACK, FIN, SYN};
    let mut packets = Vec::new();
    for (t, isn) in [(0.0, 100), (1.0, 900)] {
        packets.extend([
            tcp(t, 1, 5000, 2, 80, SYN, isn, 0),
            tcp(t + 0.1, 2, 80, 1, 5000, SYN | ACK, 500, isn + 1),
            tcp(t + 0.2, 1, 5000, 2, 80, FIN | ACK, isn + 1, 501),
            tcp(t + 0.3, 2, 80, 1, 5000, FIN | ACK, 501, isn + 2),
            tcp(t + 0.4, 1, 5000, 2, 80, ACK, isn + 2, 502),
        ]);
    }
    let events = run(&mut table(10), &packets, 32);
    assert_eq!(events.len(), 2);
    assert_eq!(events[0].end, Some(EndReason::Fin));
    assert!(events.iter().all(|e| e.conn_state.name() == "SF" && e.total[0].packets == 3));
    assert_eq!(events[0].rtt_ns, Some(SECOND / 5));
}

#[test]
fn closed_flows_are_reported_after_the_linger_not_after_the_idle_timeout() {
    use tcp_flag::{RST, SYN};
    let mut table = table(10);
    let mut events: Vec<FlowEvent> = Vec::new();
    let mut packets =
        vec![tcp(0.0, 1, 5000, 2, 80, SYN, 1, 0), tcp(0.1, 2, 80, 1, 5000, RST, 0, 2)];
    table.burst(&mut packets, &mut events);
    table.advance(START + 4 * SECOND, 100, &mut events);
    assert!(events.is_empty());
    table.advance(START + 6 * SECOND, 100, &mut events);
    assert_eq!(events.len(), 1);
    assert_eq!((events[0].end, events[0].conn_state.name()), (Some(EndReason::Rst), "REJ"));
}

#[test]
fn a_syn_flood_evicts_its_own_and_leaves_the_answered_flows() {
    use tcp_flag::{ACK, SYN};
    let mut table = table(100);
    let mut events: Vec<FlowEvent> = Vec::new();
    for port in 0..50 {
        let mut open = vec![
            tcp(0.0, 1, 5000 + port, 2, 80, SYN, 1, 0),
            tcp(0.1, 2, 80, 1, 5000 + port, SYN | ACK, 9, 2),
        ];
        table.burst(&mut open, &mut events);
    }
    for n in 0..20_000u32 {
        let mut syn = vec![tcp(1.0, (n % 250) as u8, (n / 250) as u16 + 1, 3, 80, SYN, n, 0)];
        table.burst(&mut syn, &mut events);
    }
    assert_eq!((table.len(), table.stats().evicted), (100, 19_950));
    assert!(events.iter().all(|e| e.end == Some(EndReason::Evicted) && e.total[1].packets == 0));
    // The oldest went first.
    assert!(events.windows(2).all(|w| w[0].start_ns <= w[1].start_ns));
    table.drain(START + 2 * SECOND, EndReason::Eof, &mut events);
    let packets: u64 = events.iter().flat_map(|e| e.delta).map(|c| c.packets).sum();
    assert_eq!(packets, 20_100);
    assert_eq!(events.iter().filter(|e| e.total[1].packets == 1).count(), 50);
}

#[test]
fn a_full_table_of_answered_flows_still_takes_new_ones() {
    let mut table = table(10);
    let mut events: Vec<FlowEvent> = Vec::new();
    for port in 0..1000u16 {
        let t = f64::from(port) / 100.0;
        let mut pair = vec![
            packet(t, 1, 2000 + port, 2, 53, proto::UDP),
            packet(t, 2, 53, 1, 2000 + port, proto::UDP),
        ];
        table.burst(&mut pair, &mut events);
    }
    assert_eq!((table.len(), events.len(), table.stats().evicted), (10, 990, 990));
}

/// A sink that takes so many events and no more.
struct Narrow(usize, Vec<FlowEvent>);
impl EventSink for Narrow {
    fn room(&self) -> usize {
        self.0 - self.1.len()
    }
    fn push(&mut self, event: FlowEvent) {
        assert!(self.room() > 0, "pushed into a full sink");
        self.1.push(event);
    }
}

#[test]
fn a_full_sink_loses_no_event_and_counts_what_it_could_not_place() {
    let mut table = table(4);
    let mut sink = Narrow(3, Vec::new());
    for port in 0..20u16 {
        table.burst(&mut [packet(0.0, 1, 2000 + port, 2, 53, proto::UDP)], &mut sink);
    }
    // Four in the table, three reported, thirteen counted.
    assert_eq!((table.len(), sink.1.len(), table.stats().unplaced), (4, 3, 13));
    assert!(!table.drain(START, EndReason::Shutdown, &mut sink));
    sink.0 = 100;
    assert!(table.drain(START, EndReason::Shutdown, &mut sink));
    assert_eq!(sink.1.len(), 7);
}

#[test]
fn fragments_join_their_flow_in_any_order_and_orphans_stand_alone() {
    let part = |t: f64, id: u32, offset: u32, more: bool| {
        with(packet(t, 1, 0, 2, 0, proto::UDP), |d| {
            if offset == 0 {
                (d.tuple.sport, d.tuple.dport) = (5000, 53);
            }
            d.fragment = Some(Fragment { id, offset, more });
        })
    };
    let packets = [
        part(0.0, 1, 0, true),
        part(0.1, 1, 1480, false),
        part(1.0, 2, 1480, false),
        part(1.1, 2, 2960, false),
        part(1.2, 2, 0, true),
        part(2.0, 3, 1480, false),
        part(2.0, 3, 2960, false),
    ];
    let events = run(&mut table(10), &packets, 32);
    let seen: Vec<(u16, u64, u64)> =
        events.iter().map(|e| (e.key.port_a(), e.total[0].packets, e.total[0].bytes)).collect();
    assert_eq!(seen, [(5000, 5, 500), (0, 2, 200)]);
    assert_eq!(events[0].start_ns, START);
}

#[test]
fn one_stamp_of_the_far_future_neither_freezes_nor_multiplies_flows() {
    let mut packets = vec![packet(0.0, 1, 5000, 2, 53, proto::UDP)];
    let mut far = packet(1.0, 3, 1, 4, 2, proto::UDP);
    far.timestamp_ns += 400 * 86_400 * SECOND;
    far.clock_ns = far.timestamp_ns;
    packets.push(far);
    for s in 2..100 {
        let mut p = packet(f64::from(s), 1, 5000, 2, 53, proto::UDP);
        p.clock_ns = far.clock_ns;
        packets.push(p);
    }
    for size in [1, 32] {
        let events = run(&mut table(10), &packets, size);
        // Split once at the jump, then one flow.
        assert_eq!(events.iter().filter(|e| e.key.port_b() == 53).count(), 2);
    }
}

#[test]
fn icmp_answers_pair_and_errors_do_not() {
    let icmp = |t, src, dst, kind: u8, code: u8| {
        with(packet(t, src, u16::from(kind), dst, u16::from(code), proto::ICMP), |d| {
            d.icmp = (kind, code);
            match icmp_counterpart(proto::ICMP, kind) {
                Some(answer) => d.tuple.dport = u16::from(answer),
                None => d.tuple.one_way = true,
            }
        })
    };
    let events = run(
        &mut table(10),
        &[
            icmp(0.0, 2, 1, 0, 0),
            icmp(0.1, 1, 2, 8, 0),
            icmp(0.2, 1, 2, 3, 3),
            icmp(0.3, 2, 1, 3, 3),
        ],
        32,
    );
    assert_eq!(events.len(), 3);
    assert_eq!((events[0].total[0].packets, events[0].total[1].packets), (1, 1));
    assert!(events[0].orig_is_a, "the one who asked");
}

#[test]
fn the_hash_spreads_neighbours_over_buckets_and_tags() {
    let table = table(10);
    let (mut buckets, mut tags) =
        (std::collections::HashSet::new(), std::collections::HashSet::new());
    let mut n = 0u32;
    for host in 0..64u8 {
        for port in 0..256u16 {
            for v6 in [false, true] {
                let src = if v6 {
                    let mut bytes = [0x20; 16];
                    bytes[15] = host;
                    Addr::v6(bytes)
                } else {
                    Addr::v4([192, 168, 1, host])
                };
                let dst = if v6 { Addr::v6([0x30; 16]) } else { Addr::v4([10, 0, 0, 1]) };
                let t = Tuple {
                    src,
                    dst,
                    sport: 40_000 + port,
                    dport: 443,
                    proto: proto::TCP,
                    v6,
                    one_way: false,
                };
                let hash = hash(&table.secrets, &FlowKey::of(&t).0);
                buckets.insert(hash & 0xffff);
                tags.insert(hash >> 48);
                n += 1;
            }
        }
    }
    // 32,768 keys thrown at 65,536 places fill 39.3 % of them.
    assert_eq!(n, 32_768);
    for filled in [buckets.len(), tags.len()] {
        assert!((25_400..26_200).contains(&filled), "{filled}");
    }
}
