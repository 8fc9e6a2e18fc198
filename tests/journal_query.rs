//! Questions to the journal against tcpdump: the same packets, whatever state the segments are in.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot run fails")]

mod common;
#[path = "common/traffic.rs"]
mod traffic;

use std::collections::HashMap;
use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use common::malakocut;
use malakocut::journal::catalogue;
use malakocut::journal::index::{self, IndexBuilder, IndexKey, rebuild};
use malakocut::journal::live::{Live, LiveSegment, Mark};
use malakocut::journal::query::{End, Journal, Net, Query, Report, Terms};
use malakocut::journal::retention::{Limits, Retention};
use malakocut::packet::{Frame, Link};
use traffic::{
    CLIENTS, Packet, Random, SERVERS, START_NS, Traffic, V4, V6, VLANS, read_pcap, v6, without_tags,
};

/// Questions of each kind.
const QUESTIONS: usize = 1_000;

/// What tcpdump takes of a file.
fn tcpdump(file: &Path, filter: &str, optimize: bool) -> Vec<Packet> {
    let out = Command::new("tcpdump")
        .args(["-r", file.to_str().unwrap(), "-w", "-", "--time-stamp-precision=nano"])
        .args((!optimize).then_some("-O"))
        .arg(filter)
        .output()
        .expect("tcpdump runs");
    let said = String::from_utf8_lossy(&out.stderr);
    if said.contains("rejects all packets") {
        return Vec::new();
    }
    assert!(out.status.success(), "{filter}: {said}");
    read_pcap(&out.stdout)
}

fn ask(journal: &Journal, query: &Query) -> (Vec<Packet>, Report) {
    let mut answer = match journal.query(query) {
        Ok(answer) => answer,
        Err(e) if e.to_string().contains("rejects all packets") => {
            return (Vec::new(), Report::default());
        }
        Err(e) => panic!("{query:?}: {e}"),
    };
    let packets: Vec<Packet> = answer
        .by_ref()
        .map(|p| Packet { ns: p.timestamp_ns, wire_len: p.wire_len, data: p.data })
        .collect();
    let report = answer.report().clone();
    assert_eq!(report.packets, packets.len() as u64);
    (packets, report)
}

/// A data directory, and what a reader must find in it.
struct State {
    name: &'static str,
    journal: Journal,
    /// How many of the traffic's packets it holds, from the first on.
    packets: usize,
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
    }
}

/// The same traffic sealed by the sensor, in the making, without and with damaged indexes.
fn states(dir: &Path, traffic: &Traffic) -> Vec<State> {
    let capture = dir.join("all.pcap");
    fs::write(&capture, traffic.pcap()).unwrap();
    let data = dir.join("data");
    let text = |p: &Path| p.to_str().unwrap().to_owned();
    malakocut(&[
        "--read",
        &text(&capture),
        "--journal",
        "on",
        "--data-dir",
        &text(&data),
        "--rotate-size",
        "100000",
        "--summary",
        "json",
    ])
    .ok();
    let sealed = data.join("pcap");
    let entries = catalogue::list(&sealed).unwrap();
    assert!(entries.len() > 6 && entries.iter().all(|e| e.index_len.is_some()));
    let whole: Vec<Packet> =
        entries.iter().flat_map(|e| read_pcap(&fs::read(&e.path).unwrap())).collect();
    assert_eq!(whole, traffic.packets, "the journal holds what came, in order");

    // Indexes gone, damaged, of another file; the last segment's last packet not all there yet.
    let mixed = dir.join("mixed");
    copy(&sealed, &mixed);
    let mut random = Random::new(5);
    for (n, entry) in catalogue::list(&mixed).unwrap().iter().enumerate() {
        let idx = entry.companion("idx");
        let mut bytes = fs::read(&idx).unwrap();
        match n % 5 {
            0 => {}
            1 => fs::remove_file(&idx).unwrap(),
            2 => {
                for _ in 0..20 {
                    let at = random.below(bytes.len() as u64) as usize;
                    bytes[at] ^= 1 << random.below(8);
                }
                fs::write(&idx, &bytes).unwrap();
            }
            3 => fs::write(&idx, &bytes[..bytes.len() / 2]).unwrap(),
            _ => fs::copy(mixed.join(entries[0].companion("idx").file_name().unwrap()), &idx)
                .map(|_| ())
                .unwrap(),
        }
    }
    let last = catalogue::list(&mixed).unwrap().pop().unwrap();
    let _ = fs::remove_file(last.companion("idx"));
    let file = fs::OpenOptions::new().write(true).open(&last.path).unwrap();
    file.set_len(last.len - 5).unwrap();

    // Nobody knows the key: flows are found by their addresses.
    let keyless = dir.join("keyless");
    copy(&sealed, &keyless);
    fs::remove_file(keyless.join(".key")).unwrap();

    let packets = whole.len();
    let state = |name, journal| State { name, journal, packets };
    let states = vec![
        state("sealed", Journal::open(&sealed).unwrap()),
        State { packets: packets - 1, ..state("mixed", Journal::open(&mixed).unwrap()) },
        state("keyless", Journal::open(&keyless).unwrap()),
        state("being written", being_written(dir, &sealed)),
    ];
    let found = ask(&states[1].journal, &Query::default()).1;
    assert!(found.scanned > 2 && found.damaged_indexes.len() >= 2, "{found:?}");
    assert!(found.is_complete(), "{found:?}");
    states
}

/// A directory of sealed segments and two that grow: all their records are in the open index, and
/// behind the mark there is what is not yet.
fn being_written(dir: &Path, sealed: &Path) -> Journal {
    let path = dir.join("growing");
    copy(sealed, &path);
    let live = Arc::new(Live::default());
    let key = IndexKey::load(&path).unwrap().unwrap();
    let entries = catalogue::list(&path).unwrap();
    for entry in entries.iter().rev().take(2) {
        fs::remove_file(entry.companion("idx")).unwrap();
        let mut builder =
            IndexBuilder::new(&key, 1, index::Limits { packets: 40_000, flows: 20_000 });
        let bytes = fs::read(&entry.path).unwrap();
        let mut at = 24;
        for p in read_pcap(&bytes) {
            let frame = Frame {
                data: &p.data,
                wire_len: p.wire_len,
                wire_len_known: true,
                link: Link::Ethernet,
            };
            builder.add(at, &frame, p.ns, None);
            at += 16 + p.data.len() as u64;
        }
        let mark = Mark::default();
        mark.raise(at);
        fs::write(&entry.path, [&bytes[..], &[0; 3000]].concat()).unwrap();
        live.begin(LiveSegment {
            number: entry.number,
            path: entry.path.clone(),
            index: builder.shared(),
            written: Arc::new(mark),
        });
    }
    Journal::with_live(&path, live).unwrap()
}

/// The traffic as tcpdump gets it: as it is, and without tags, since tcpdump looks behind none.
struct Judge<'a> {
    traffic: &'a Traffic,
    whole: PathBuf,
    bare: PathBuf,
    by_time: HashMap<u64, usize>,
}

impl<'a> Judge<'a> {
    fn new(dir: &Path, traffic: &'a Traffic) -> Self {
        let (whole, bare) = (dir.join("whole.pcap"), dir.join("bare.pcap"));
        let without: Vec<Packet> = traffic.packets.iter().map(|p| without_tags(p).0).collect();
        fs::write(&whole, traffic.pcap()).unwrap();
        fs::write(&bare, traffic::pcap(&without)).unwrap();
        let by_time = traffic.packets.iter().enumerate().map(|(n, p)| (p.ns, n)).collect();
        Self { traffic, whole, bare, by_time }
    }

    /// Which of the packets are to be found.
    fn expect(&self, query: &Query, filter: &str, with_tags: bool) -> Vec<usize> {
        let file = if with_tags { &self.whole } else { &self.bare };
        // libpcap 1.10.3 gets long expressions over ip6[] wrong when it optimises them; and the
        // two differ where a packet ends too early.
        let optimize = query.filter.is_some();
        let all = tcpdump(file, filter, optimize).into_iter().map(|p| self.by_time[&p.ns]);
        all.filter(|n| {
            let p = &self.traffic.packets[*n];
            let tagged = |id| without_tags(p).1.iter().take(2).any(|i| *i == id);
            (query.from_ns..=query.to_ns).contains(&p.ns) && query.terms.vlan.is_none_or(tagged)
        })
        .collect()
    }
}

/// Asks everything on two threads; each question has its filter for tcpdump.
fn compare(states: &[State], judge: &Judge<'_>, questions: &[(Query, String, bool)]) {
    let begun = Instant::now();
    let (next, found, some) = (AtomicUsize::new(0), AtomicUsize::new(0), AtomicUsize::new(0));
    let work = || {
        while let Some((query, filter, with_tags)) =
            questions.get(next.fetch_add(1, Ordering::Relaxed))
        {
            let expected = judge.expect(query, filter, *with_tags);
            for state in states {
                let want = expected.iter().filter(|n| **n < state.packets);
                let mut want: Vec<&Packet> = want.map(|n| &judge.traffic.packets[*n]).collect();
                want.sort();
                let (got, report) = ask(&state.journal, query);
                assert!(report.is_complete(), "{}: {query:?}: {report:?}", state.name);
                assert!(got.is_sorted_by_key(|p| p.ns), "{}: {query:?}: order", state.name);
                let mut got: Vec<&Packet> = got.iter().collect();
                got.sort();
                found.fetch_add(got.len(), Ordering::Relaxed);
                some.fetch_add(usize::from(!got.is_empty()), Ordering::Relaxed);
                if got != want {
                    let missing = want.iter().find(|p| !got.contains(p));
                    let extra = got.iter().find(|p| !want.contains(p));
                    panic!(
                        "{}: {query:?}\n{filter}\n{} packets, tcpdump has {}; missing {missing:02x?}, \
                         extra {extra:02x?}",
                        state.name,
                        got.len(),
                        want.len()
                    );
                }
            }
        }
    };
    std::thread::scope(|scope| {
        let threads = [scope.spawn(work), scope.spawn(work)];
        threads.into_iter().for_each(|t| t.join().unwrap());
    });
    let (found, some) = (found.into_inner(), some.into_inner());
    println!(
        "{} questions of {} states: {found} packets, {some} answers not empty, all as tcpdump's, {:.1} s",
        questions.len(),
        states.len(),
        begun.elapsed().as_secs_f64()
    );
    assert!(some > questions.len() && found > 10 * questions.len());
}

fn window(r: &mut Random, last_ns: u64) -> (u64, u64) {
    if r.one_in(3) {
        return (0, u64::MAX);
    }
    let span = last_ns - START_NS;
    let from = START_NS + r.below(span);
    (from, from + r.below(span / 2))
}

fn random_address(r: &mut Random) -> IpAddr {
    if r.one_in(3) { v6(r.of(&V6)).into() } else { IpAddr::from(r.of(&V4)) }
}

fn random_net(r: &mut Random) -> (Net, String) {
    let address = random_address(r);
    let length = match address {
        IpAddr::V4(_) => r.of(&[32, 32, 32, 24, 25, 16, 8, 0]),
        IpAddr::V6(_) => r.of(&[128, 128, 128, 64, 56, 32, 0]),
    };
    let net: Net = format!("{address}/{length}").parse().unwrap();
    let low = net.low.ip(net.v6);
    (net, format!("{low}/{length}"))
}

/// A random pcap-filter expression.
fn random_filter(r: &mut Random, depth: u32) -> String {
    if depth > 0 && r.one_in(2) {
        let (a, b) = (random_filter(r, depth - 1), random_filter(r, depth - 1));
        return match r.below(5) {
            0 | 1 => format!("({a}) and ({b})"),
            2 => format!("({a}) or ({b})"),
            3 => format!("not ({a}) and ({b})"),
            _ => format!("({a}) && !({b})"),
        };
    }
    let direction = r.of(&["", "src ", "dst "]);
    let port = if r.one_in(2) { r.of(&CLIENTS) } else { r.of(&SERVERS) };
    match r.below(16) {
        0 | 1 => format!("{direction}host {}", random_address(r)),
        2 => format!("{direction}net {}", random_net(r).1),
        3 | 4 => format!("{direction}port {port}"),
        5 => format!("{}{direction}port {port}", r.of(&["tcp ", "udp ", "sctp "])),
        6 => format!("{direction}portrange {}-{}", port.min(443), port.max(443)),
        7 => r.of(&["tcp", "udp", "icmp", "icmp6", "arp", "ip", "ip6", "sctp", "rarp"]).into(),
        8 => "tcp[tcpflags] & (tcp-syn|tcp-fin) != 0".into(),
        9 => format!("{} {}", r.of(&["less", "greater"]), r.of(&[60, 90, 200, 800])),
        10 => format!("ether host 02:00:00:00:01:0{}", r.below(4)),
        11 => "ip[6:2] & 0x3fff != 0".into(),
        12 => "icmp[0] = 3 or icmp[0] = 11".into(),
        13 => format!("ip proto {}", r.of(&[1, 6, 17, 47, 132])),
        14 => format!("host {} and port {port}", random_address(r)),
        _ => "ether proto 0x88cc".into(),
    }
}

#[test]
fn random_filters_give_what_tcpdump_takes() {
    let dir = tempfile::tempdir().unwrap();
    let traffic = Traffic::new(11, 4_000, true);
    let states = states(dir.path(), &traffic);
    let last_ns = traffic.packets.iter().map(|p| p.ns).max().unwrap();
    let mut r = Random::new(23);
    let questions: Vec<_> = (0..QUESTIONS)
        .map(|n| {
            let text = match n % 10 {
                // Tags are the filter's own business where it speaks of them.
                0 => format!("vlan {} and ({})", r.of(&VLANS), random_filter(&mut r, 1)),
                1 if n % 20 == 1 => "vlan and vlan and udp".into(),
                _ => random_filter(&mut r, 2),
            };
            let (from_ns, to_ns) = window(&mut r, last_ns);
            let with_tags = text.contains("vlan");
            let filter = Some(text.clone());
            (Query { filter, from_ns, to_ns, ..Query::default() }, text, with_tags)
        })
        .collect();
    compare(&states, &Judge::new(dir.path(), &traffic), &questions);
}

/// Terms as a filter for tcpdump, piece by piece; each piece has what tcpdump's own words do not.
fn in_tcpdumps_words(traffic: &Traffic, t: &Terms) -> String {
    let mut pieces = vec![plain(t), hop_by_hop(t)];
    if !t.ports.is_empty() || t.ends.iter().any(|e| e.port.is_some()) {
        pieces.extend(fragments(traffic, t));
    }
    // Last, since what reads behind a short packet ends the whole filter.
    pieces.extend([quoted_v4(t), quoted_v6(t)]);
    pieces.join(" or ")
}

/// All parts of the datagrams that have it, by their ids.
fn fragments(traffic: &Traffic, t: &Terms) -> Vec<String> {
    let of = |n: &Net, ip: IpAddr| n.contains(Net::of(ip).low, ip.is_ipv6());
    let has = |f: &&traffic::Fragmented| {
        let is = |e: &End, ip: IpAddr, port: u16| {
            e.net.is_none_or(|n| of(&n, ip)) && e.port.is_none_or(|p| p == port)
        };
        let ends = |a: &End, b: &End| is(a, f.src, f.sport) && is(b, f.dst, f.dport);
        let [a, b] = &t.ends;
        (ends(a, b) || ends(b, a))
            && t.protocol.is_none_or(|p| p == 17)
            && t.ports.iter().all(|p| [f.sport, f.dport].contains(p))
            && t.hosts.iter().all(|n| of(n, f.src) || of(n, f.dst))
    };
    let text = |f: &traffic::Fragmented| match f.src {
        IpAddr::V4(_) => format!("(ip[6:2] & 0x3fff != 0 and ip[4:2] = {})", f.id),
        IpAddr::V6(_) => format!("(ip6[6] = 44 and ip6[44:4] = {})", f.id),
    };
    traffic.fragmented.iter().filter(has).map(text).collect()
}

/// Both directions of two ends, and each host and port on either side, given how to say that.
fn either_way(
    t: &Terms,
    net: &dyn Fn(&Net, bool) -> String,
    port: &dyn Fn(u16, bool) -> String,
) -> String {
    let end = |e: &End, is_src: bool| {
        let mut all = vec!["greater 0".to_owned()];
        all.extend(e.net.as_ref().map(|n| net(n, is_src)));
        all.extend(e.port.map(|p| port(p, is_src)));
        all.join(" and ")
    };
    let [a, b] = &t.ends;
    let mut all = vec![format!(
        "(({} and {}) or ({} and {}))",
        end(a, true),
        end(b, false),
        end(b, true),
        end(a, false)
    )];
    all.extend(t.hosts.iter().map(|n| format!("({} or {})", net(n, true), net(n, false))));
    all.extend(t.ports.iter().map(|p| format!("({} or {})", port(*p, true), port(*p, false))));
    all.join(" and ")
}

fn side(is_src: bool) -> &'static str {
    if is_src { "src" } else { "dst" }
}

/// By tcpdump's own words, for headers that are whole.
fn plain(t: &Terms) -> String {
    let net = |n: &Net, is_src| format!("{} net {}", side(is_src), cidr(n));
    let port = |p: u16, is_src| format!("{} port {p}", side(is_src));
    let proto = match t.protocol {
        Some(p) => format!("(ip proto {p} or ip6 proto {p})"),
        None => "(ip or ip6 or arp or rarp)".into(),
    };
    let ported = !t.ports.is_empty() || t.ends.iter().any(|e| e.port.is_some());
    // Where a header claims to end before its ports there are none.
    let whole = if ported { "ip[2:2] != 21" } else { "greater 0" };
    format!(
        "({proto} and (not ip or (ip[0] & 0xf0 = 0x40 and ip[0] & 0xf >= 5 and {whole})) and {})",
        either_way(t, &net, &port)
    )
}

fn cidr(n: &Net) -> String {
    let (low, high) = (n.low.ip(n.v6), n.high.ip(n.v6));
    let length = match (low, high) {
        (IpAddr::V4(a), IpAddr::V4(b)) => (u32::from(a) ^ u32::from(b)).leading_zeros(),
        (IpAddr::V6(a), IpAddr::V6(b)) => (u128::from(a) ^ u128::from(b)).leading_zeros(),
        _ => unreachable!(),
    };
    format!("{low}/{length}")
}

/// A network compared with the bytes of an address at an offset, 32 bits at a time.
fn at_offset(n: &Net, base: &str, offset: usize, v6: bool) -> String {
    if n.v6 != v6 {
        return "less 1".into();
    }
    let wide = |a: malakocut::packet::Addr| (u128::from(a.0) << 64) | u128::from(a.1);
    let (low, mask) = (wide(n.low), !(wide(n.low) ^ wide(n.high)));
    let words = if v6 { 4 } else { 1 };
    let all: Vec<String> = (0..words)
        .map(|w| {
            let cut = |x: u128| (x >> (96 - 32 * w)) as u32;
            format!("{base}[{}:4] & {:#x} = {:#x}", offset + 4 * w, cut(mask), cut(low) & cut(mask))
        })
        .collect();
    format!("({})", all.join(" and "))
}

/// By the packet quoted in an ICMP error.
fn quoted_v4(t: &Terms) -> String {
    let net = |n: &Net, is_src: bool| at_offset(n, "icmp", if is_src { 20 } else { 24 }, false);
    let port = |p: u16, is_src: bool| format!("icmp[{}:2] = {p}", if is_src { 28 } else { 30 });
    let proto = t.protocol.map_or_else(|| "greater 0".into(), |p| format!("icmp[17] = {p}"));
    format!("((icmp[0] = 3 or icmp[0] = 11) and {proto} and {})", either_way(t, &net, &port))
}

fn quoted_v6(t: &Terms) -> String {
    let net = |n: &Net, is_src: bool| at_offset(n, "ip6", if is_src { 56 } else { 72 }, true);
    let port = |p: u16, is_src: bool| format!("ip6[{}:2] = {p}", if is_src { 88 } else { 90 });
    let proto = t.protocol.map_or_else(|| "greater 0".into(), |p| format!("ip6[54] = {p}"));
    format!("(ip6[6] = 58 and ip6[40] <= 3 and {proto} and {})", either_way(t, &net, &port))
}

/// UDP behind a hop-by-hop header.
fn hop_by_hop(t: &Terms) -> String {
    let net = |n: &Net, is_src| format!("{} net {}", side(is_src), cidr(n));
    let port = |p: u16, is_src: bool| format!("ip6[{}:2] = {p}", if is_src { 48 } else { 50 });
    if t.protocol.is_some_and(|p| p != 17) {
        return "less 1".into();
    }
    format!("(ip6[6] = 0 and ip6[40] = 17 and {})", either_way(t, &net, &port))
}

#[test]
fn random_tuples_give_the_conversation_its_fragments_and_its_errors() {
    let dir = tempfile::tempdir().unwrap();
    let traffic = Traffic::new(12, 4_000, false);
    let states = states(dir.path(), &traffic);
    let last_ns = traffic.packets.iter().map(|p| p.ns).max().unwrap();
    let mut r = Random::new(29);
    let questions: Vec<_> = (0..QUESTIONS)
        .map(|n| {
            let some_port = |r: &mut Random| {
                if r.one_in(2) { r.of(&CLIENTS) } else { r.of(&SERVERS) }
            };
            let mut terms = Terms::default();
            match n % 5 {
                0 | 1 => {
                    let v6_pair = r.one_in(3);
                    let host = |r: &mut Random| match v6_pair {
                        true => Net::of(v6(r.of(&V6)).into()),
                        false => Net::of(IpAddr::from(r.of(&V4))),
                    };
                    terms.ends = [
                        End { net: Some(host(&mut r)), port: Some(r.of(&CLIENTS)) },
                        End { net: Some(host(&mut r)), port: Some(r.of(&SERVERS)) },
                    ];
                    if r.one_in(2) {
                        terms.ends.swap(0, 1);
                    }
                    if !r.one_in(4) {
                        terms.protocol = Some(r.of(&[6, 17, 17, 132]));
                    }
                }
                2 => {
                    terms.hosts.push(random_net(&mut r).0);
                    if r.one_in(2) {
                        terms.ports.push(some_port(&mut r));
                    }
                }
                3 => {
                    terms.ends[0].net = Some(random_net(&mut r).0);
                    if r.one_in(2) {
                        terms.ends[1].port = Some(some_port(&mut r));
                    }
                    if r.one_in(2) {
                        terms.protocol = Some(r.of(&[1, 6, 17, 58, 47]));
                    }
                }
                _ => {
                    terms.hosts = vec![random_net(&mut r).0, random_net(&mut r).0];
                    if r.one_in(3) {
                        terms.ports = vec![some_port(&mut r), some_port(&mut r)];
                        terms.protocol = Some(17);
                    }
                }
            }
            if r.one_in(8) {
                terms.vlan = Some(r.of(&VLANS));
            }
            let (from_ns, to_ns) = window(&mut r, last_ns);
            let filter = in_tcpdumps_words(&traffic, &terms);
            (Query { terms, from_ns, to_ns, ..Query::default() }, filter, false)
        })
        .collect();
    compare(&states, &Judge::new(dir.path(), &traffic), &questions);
}

#[test]
fn an_index_that_the_sensor_wrote_is_the_one_made_from_its_packets() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    fs::write(path("a.pcap"), Traffic::new(3, 6_000, true).pcap()).unwrap();
    common::home_plain(dir.path());
    malakocut(&[
        "--read",
        &path("a.pcap"),
        "--read",
        &path("home.pcap"),
        "--journal",
        "on",
        "--data-dir",
        &path("data"),
        "--rotate-size",
        "1MB",
        "--summary",
        "json",
    ])
    .ok();
    let journal = PathBuf::from(path("data")).join("pcap");
    let key = IndexKey::load(&journal).unwrap().unwrap();
    let entries = catalogue::list(&journal).unwrap();
    for entry in &entries {
        assert_eq!(rebuild(&entry.path, &key).unwrap(), fs::read(entry.companion("idx")).unwrap());
    }
    println!("{} indexes equal, byte for byte", entries.len());
}

#[test]
fn what_expires_under_a_reader_comes_whole_or_is_said_to_be_missing() {
    let dir = tempfile::tempdir().unwrap();
    let traffic = Traffic::new(31, 6_000, true);
    let capture = dir.path().join("all.pcap");
    fs::write(&capture, traffic.pcap()).unwrap();
    let data = dir.path().join("data");
    let text = |p: &Path| p.to_str().unwrap().to_owned();
    let (read, to) = (text(&capture), text(&data));
    let args = ["--read", &read, "--journal", "on", "--data-dir", &to, "--rotate-size", "200kB"];
    malakocut(&args).ok();
    let directory = data.join("pcap");
    let held: HashMap<u64, usize> = catalogue::list(&directory)
        .unwrap()
        .iter()
        .map(|e| (e.number, read_pcap(&fs::read(&e.path).unwrap()).len()))
        .collect();
    assert!(held.len() > 4);
    let journal = Journal::open(&directory).unwrap();
    let mut answer = journal.query(&Query::default()).unwrap();
    let first = answer.next().unwrap();
    // Everything goes, as when the disk is full, while one segment is being read.
    let limits = Limits { age: Duration::MAX, quota: Some(0), min_free: 0 };
    let kept = Retention::new(directory, limits, u64::MAX).unwrap().enforce(0, u64::MAX, 0);
    assert_eq!((kept.deleted as usize, kept.segments), (held.len(), 0));
    let mut got = HashMap::from([(first.segment, 1)]);
    for packet in answer.by_ref() {
        *got.entry(packet.segment).or_insert(0) += 1;
    }
    let report = answer.report();
    for (segment, packets) in &held {
        let gap = report.gaps.iter().find(|g| g.segment == *segment);
        match got.get(segment) {
            Some(n) => assert_eq!((n, gap), (packets, None), "segment {segment}"),
            None => assert!(gap.unwrap().what.contains("expired while"), "{gap:?}"),
        }
    }
    println!("{} of {} segments whole, the others said to be missing", got.len(), held.len());
    assert!(!report.is_complete() && got.contains_key(&first.segment));
}
