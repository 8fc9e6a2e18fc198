//! The index against its own data: what is written is found, whatever is damaged is noticed.

use std::fs;
use std::path::PathBuf;

use super::file::Attribute;
use super::*;
use crate::packet::{Addr, Frame, Link, Tuple, proto};

/// A small generator of numbers, the same in each run.
pub(super) struct Random(pub(super) u64);

impl Random {
    pub(super) fn below(&mut self, n: u64) -> u64 {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % n
    }
}

/// An Ethernet frame with an IPv4 UDP packet.
fn udp(
    src: [u8; 4],
    dst: [u8; 4],
    sport: u16,
    dport: u16,
    vlan: Option<u16>,
    payload: usize,
) -> Vec<u8> {
    let mut out = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2];
    if let Some(id) = vlan {
        out.extend([0x81, 0]);
        out.extend(id.to_be_bytes());
    }
    out.extend([8, 0, 0x45, 0]);
    out.extend((28 + payload as u16).to_be_bytes());
    out.extend([0, 0, 0, 0, 64, 17, 0, 0]);
    out.extend(src);
    out.extend(dst);
    for n in [sport, dport, 8 + payload as u16, 0] {
        out.extend(n.to_be_bytes());
    }
    out.resize(out.len() + payload, 0xaa);
    out
}

fn tuple(src: [u8; 4], dst: [u8; 4], sport: u16, dport: u16) -> Tuple {
    let (src, dst) = (Addr::v4(src), Addr::v4(dst));
    Tuple { src, dst, sport, dport, proto: proto::UDP, ..Tuple::default() }
}

struct Made {
    _dir: tempfile::TempDir,
    pcap: PathBuf,
    idx: PathBuf,
    encoded: Vec<u8>,
    key: IndexKey,
    /// Tuple and offset of each packet.
    packets: Vec<(Tuple, u32, Option<u16>)>,
    len: u64,
}

/// A segment of `n` packets of about `hosts` squared flows.
fn made(n: usize, hosts: u64, payload: u64) -> Made {
    let dir = tempfile::tempdir().unwrap();
    let key = IndexKey::from_bytes(*b"0123456789abcdef");
    let mut random = Random(7);
    let mut file = [0xa1b2_3c4du32, 0x0004_0002, 0, 0, 262_144, 1].map(u32::to_le_bytes).concat();
    let mut builder = IndexBuilder::new(&key, 1, Limits { packets: 2 * n + 6, flows: 2 * n + 6 });
    let mut packets = Vec::new();
    for at in 0..n {
        let a = [10, 0, 0, random.below(hosts) as u8];
        let b = [10, 0, 1, random.below(hosts) as u8];
        let (sport, dport) = (1000 + random.below(4) as u16, 53);
        let (a, b, sport, dport) =
            if random.below(2) == 0 { (a, b, sport, dport) } else { (b, a, dport, sport) };
        let vlan = (random.below(3) == 0).then(|| random.below(4) as u16 + 10);
        let data = udp(a, b, sport, dport, vlan, random.below(payload + 1) as usize);
        let ns = 1_700_000_000_000_000_000 + at as u64 * 1_000_000;
        let offset = file.len();
        let words = [(ns / 1_000_000_000) as u32, (ns % 1_000_000_000) as u32];
        file.extend(words.map(u32::to_le_bytes).concat());
        file.extend([data.len() as u32; 2].map(u32::to_le_bytes).concat());
        file.extend_from_slice(&data);
        let frame = Frame {
            data: &data,
            wire_len: data.len() as u32,
            wire_len_known: at % 2 == 0,
            link: Link::Ethernet,
        };
        builder.add(offset as u64, &frame, ns, None);
        packets.push((tuple(a, b, sport, dport), offset as u32, vlan));
    }
    let pcap = dir.path().join(crate::journal::catalogue::file_name(1, 5));
    fs::write(&pcap, &file).unwrap();
    let encoded = builder.encode(file.len() as u64);
    let idx = pcap.with_extension("idx");
    fs::write(&idx, &encoded).unwrap();
    Made { _dir: dir, pcap, idx, encoded, key, packets, len: file.len() as u64 }
}

#[test]
fn a_rebuilt_index_is_the_one_that_was_written() {
    for (n, hosts, payload) in [(0, 1, 0), (1, 1, 9), (3_000, 12, 900), (20_000, 250, 0)] {
        let made = made(n, hosts, payload);
        assert_eq!(rebuild(&made.pcap, &made.key).unwrap(), made.encoded, "{n} packets");
    }
}

#[test]
fn every_flow_gives_the_offsets_of_its_packets_and_no_packet_is_missed() {
    let made = made(4_000, 10, 800);
    let index = IndexFile::open(&made.idx, made.len).unwrap();
    index.verify().unwrap();
    assert!(index.is_exact() && index.is_of(&made.key));
    assert_eq!(index.packets(), 4_000);
    for (tuple, _, _) in made.packets.iter().take(300) {
        let want: Vec<u32> = made
            .packets
            .iter()
            .filter(|(t, _, _)| Key::flow(t) == Key::flow(tuple))
            .map(|(_, offset, _)| *offset)
            .collect();
        let hash = made.key.hash(&Key::flow(tuple));
        assert_eq!(index.flow(hash).unwrap(), want);
        assert!(index.may_hold(hash).unwrap());
    }
    assert!(index.keep_filter().unwrap() > 0);
    assert!(
        made.packets.iter().all(|(t, ..)| index.may_hold(made.key.hash(&Key::flow(t))).unwrap())
    );
    let absent = (0..1000u16)
        .filter(|n| {
            let hash = made.key.hash(&Key::flow(&tuple([192, 0, 2, 1], [10, 0, 0, 1], *n, 9)));
            assert!(index.flow(hash).unwrap().is_empty());
            index.may_hold(hash).unwrap()
        })
        .count();
    assert!(absent < 50, "the filter lets {absent} of 1000 through");
}

#[test]
fn addresses_ports_and_attributes_give_their_blocks() {
    let made = made(4_000, 10, 800);
    let index = IndexFile::open(&made.idx, made.len).unwrap();
    let blocks = |wants: &dyn Fn(&Tuple, Option<u16>) -> bool| {
        let mut out: Vec<u32> = made
            .packets
            .iter()
            .filter(|(t, _, v)| wants(t, *v))
            .map(|(_, offset, _)| offset >> BLOCK_SHIFT)
            .collect();
        out.dedup();
        out
    };
    let host = Addr::v4([10, 0, 0, 3]);
    let mut got = Vec::new();
    index.v4(0x0a00_0003, 0x0a00_0003, &mut |b| got.extend_from_slice(b)).unwrap();
    assert_eq!(got, blocks(&|t, _| t.src == host || t.dst == host));
    let mut ports = Vec::new();
    index.ports(1001, 1002, &mut |b| ports.extend_from_slice(b)).unwrap();
    ports.sort_unstable();
    ports.dedup();
    assert_eq!(ports, blocks(&|t, _| [t.sport, t.dport].iter().any(|p| (1001..=1002).contains(p))));
    assert_eq!(index.attribute(Attribute::Vlan(11)).unwrap(), blocks(&|_, v| v == Some(11)));
    assert_eq!(index.attribute(Attribute::Protocol(17)).unwrap(), blocks(&|_, _| true));
    assert!(index.attribute(Attribute::Protocol(6)).unwrap().is_empty());
    assert_eq!(index.attribute(Attribute::EtherType(0x0800)).unwrap().first(), Some(&0));
    let anchors = index.anchors().unwrap();
    assert_eq!(
        anchors.len() as u64,
        made.len.div_ceil(1 << BLOCK_SHIFT),
        "no rows of another section"
    );
    for (n, (_, offset, _)) in made.packets.iter().enumerate() {
        let ns = 1_700_000_000_000_000_000 + n as u64 * 1_000_000;
        let anchor = anchors[(offset >> BLOCK_SHIFT) as usize];
        assert!(anchor.min_ns <= ns && ns <= anchor.max_ns);
        assert!(anchor.first.unwrap() <= u64::from(*offset));
    }
}

#[test]
fn a_flood_is_indexed_by_block() {
    let made = made(20_000, 250, 0);
    let index = IndexFile::open(&made.idx, made.len).unwrap();
    assert!(!index.is_exact());
    for (tuple, offset, _) in made.packets.iter().take(200) {
        let blocks = index.flow(made.key.hash(&Key::flow(tuple))).unwrap();
        assert!(blocks.contains(&(offset >> BLOCK_SHIFT)));
    }
}

/// Everything that can be asked of an index.
fn ask_everything(index: &IndexFile, made: &Made) -> Result<Vec<Vec<u32>>, Damage> {
    let mut out = Vec::new();
    for (tuple, _, _) in made.packets.iter().take(20) {
        let hash = made.key.hash(&Key::flow(tuple));
        out.push(vec![u32::from(index.may_hold(hash)?)]);
        out.push(index.flow(hash)?);
    }
    index.v4(0, u32::MAX, &mut |b| out.push(b.to_vec()))?;
    index.v6(0, u128::MAX, &mut |b| out.push(b.to_vec()))?;
    index.ports(0, u16::MAX, &mut |b| out.push(b.to_vec()))?;
    out.push(index.attribute(Attribute::Other)?);
    out.push(index.anchors()?.iter().map(|a| a.first.unwrap_or(0) as u32).collect());
    index.community(5).transpose()?;
    index.flow_id(5).transpose()?;
    index.verify()?;
    Ok(out)
}

#[test]
fn an_index_cut_at_any_byte_is_noticed() {
    let made = made(300, 5, 100);
    for n in 0..made.encoded.len() {
        fs::write(&made.idx, &made.encoded[..n]).unwrap();
        assert!(IndexFile::open(&made.idx, made.len).is_err(), "{n} bytes");
    }
    fs::write(&made.idx, &made.encoded).unwrap();
    assert!(matches!(IndexFile::open(&made.idx, made.len + 1), Err(Damage::OtherFile { .. })));
}

#[test]
fn a_flipped_bit_anywhere_is_noticed_and_changes_no_answer() {
    let made = made(600, 8, 300);
    let whole = IndexFile::open(&made.idx, made.len).unwrap();
    let want = ask_everything(&whole, &made).unwrap();
    let mut random = Random(3);
    let mut noticed = 0;
    let places = made.encoded.len() / 7;
    for at in (0..made.encoded.len()).step_by(7) {
        let mut bytes = made.encoded.clone();
        bytes[at] ^= 1 << random.below(8);
        fs::write(&made.idx, &bytes).unwrap();
        match IndexFile::open(&made.idx, made.len).and_then(|i| ask_everything(&i, &made)) {
            Err(_) => noticed += 1,
            // Padding that nothing depends on.
            Ok(answer) => assert_eq!(answer, want, "byte {at}"),
        }
    }
    assert!(noticed * 10 > places * 3, "{noticed} of {places} noticed");
}

#[test]
fn damage_that_checksums_do_not_see_makes_no_panic() {
    let made = made(300, 5, 100);
    let mut random = Random(11);
    for _ in 0..3_000 {
        let mut bytes = made.encoded.clone();
        for _ in 0..=random.below(3) {
            let at = random.below(bytes.len() as u64) as usize;
            bytes[at] = random.below(256) as u8;
        }
        // Checksums as somebody who wants to be believed would make them.
        let (data, count) = file::table_shape(bytes.len() as u64).unwrap();
        let table: Vec<u8> = bytes[data as usize..]
            .chunks(4096)
            .flat_map(|p| crc32c::crc32c(p).to_le_bytes())
            .collect();
        assert_eq!(table.len(), count * 4);
        bytes[4096..4096 + table.len()].copy_from_slice(&table);
        bytes[4088..4092].copy_from_slice(&crc32c::crc32c(&table).to_le_bytes());
        let crc = crc32c::crc32c(&bytes[..4092]);
        bytes[4092..4096].copy_from_slice(&crc.to_le_bytes());
        fs::write(&made.idx, &bytes).unwrap();
        let _ = IndexFile::open(&made.idx, made.len).and_then(|i| ask_everything(&i, &made));
    }
}

#[test]
fn an_open_index_is_asked_from_another_thread_while_it_grows() {
    let key = IndexKey::from_bytes([9; 16]);
    let mut builder = IndexBuilder::new(&key, 1, Limits { packets: 40_000, flows: 20_000 });
    let open = builder.shared();
    let data: Vec<Vec<u8>> =
        (0..5_000u16).map(|n| udp([10, 0, 0, 1], [10, 0, 0, 2], n % 500, 53, None, 10)).collect();
    let reader = std::thread::spawn(move || {
        let wanted = Key::flow(&tuple([10, 0, 0, 1], [10, 0, 0, 2], 7, 53));
        let mut before = 0;
        while open.packets() < 5_000 {
            let Some(flow) = open.find(&wanted) else { continue };
            let offsets: Vec<u32> =
                open.postings().filter(|(f, _)| *f == flow).map(|(_, at)| at).collect();
            assert!(offsets.len() >= before);
            assert!(offsets.iter().enumerate().all(|(n, at)| *at == (n as u32 * 500 + 7) * 100));
            before = offsets.len();
        }
        assert!(open.find(&wanted).is_some());
    });
    for (n, data) in data.iter().enumerate() {
        let frame = Frame { data, wire_len: 52, wire_len_known: true, link: Link::Ethernet };
        builder.add(n as u64 * 100, &frame, n as u64, None);
        if n % 64 == 0 {
            std::thread::yield_now();
        }
    }
    reader.join().unwrap();
    // Used again, it is as new.
    let first = builder.encode(500_000);
    builder.reset(1);
    for (n, data) in data.iter().enumerate() {
        let frame = Frame { data, wire_len: 52, wire_len_known: true, link: Link::Ethernet };
        builder.add(n as u64 * 100, &frame, n as u64, None);
    }
    assert_eq!(builder.encode(500_000), first);
}

#[test]
fn a_full_index_says_so_and_is_never_encoded_without_its_packets() {
    let key = IndexKey::from_bytes([9; 16]);
    let mut builder = IndexBuilder::new(&key, 1, Limits { packets: 100, flows: 50 });
    let mut added = 0u64;
    while !builder.is_full() {
        let data = udp([10, 0, 0, 1], [10, 0, 0, 2], added as u16, 53, None, 10);
        let frame = Frame { data: &data, wire_len: 52, wire_len_known: true, link: Link::Ethernet };
        builder.add(24 + added * 100, &frame, added, None);
        added += 1;
    }
    assert!((40..=50).contains(&added), "{added}");
    assert!(!builder.encode(10_000).is_empty());
    let data = udp([10, 0, 0, 1], [10, 0, 0, 2], 9, 53, None, 10);
    let frame = Frame { data: &data, wire_len: 52, wire_len_known: true, link: Link::Ethernet };
    builder.add(90_000, &frame, 1, None);
    assert!(builder.encode(100_000).is_empty());
}

#[test]
fn the_key_is_kept_and_a_damaged_one_replaced() {
    let dir = tempfile::tempdir().unwrap();
    assert_eq!(IndexKey::load(dir.path()).unwrap(), None);
    let made = IndexKey::load_or_create(dir.path()).unwrap();
    assert_eq!(IndexKey::load_or_create(dir.path()).unwrap(), made);
    fs::write(dir.path().join(".key"), b"short").unwrap();
    assert_eq!(IndexKey::load(dir.path()).unwrap(), None);
    assert_ne!(IndexKey::load_or_create(dir.path()).unwrap(), made);
}
