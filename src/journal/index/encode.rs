//! The index file of a sealed segment: a function of the segment's content and key alone.

use super::BLOCK_SHIFT;
use super::build::{IndexBuilder, OpenIndex, Span};
use super::file::{
    Attribute, FILTER_BLOCK, FLAG_BLOCKS, Header, Kind as SectionKind, PAGE, Section, filter_bits,
    table_shape,
};
use super::key::Kind;
use super::map::MapWriter;
use crate::event::community_digest;
use crate::packet::{Addr, FlowKey};

/// The flow directory gives blocks where offsets would take more than this part of the data.
const EXACT_UP_TO: u64 = 50;
/// Bits of the flow filter for each flow, its largest size, and the least bits worth having.
const FILTER_BITS_A_FLOW: usize = 10;
const FILTER_MOST: usize = 128 << 10;
const FILTER_LEAST_BITS: usize = 3;

impl IndexBuilder {
    /// The whole index file of a segment whose pcap file has `pcap_len` bytes; for an ordinary
    /// thread. Empty if packets were added after it was full: such a segment has to be rebuilt.
    pub fn encode(&self, pcap_len: u64) -> Vec<u8> {
        if self.is_incomplete() { Vec::new() } else { encode(&self.shared(), pcap_len) }
    }
}

fn encode(open: &OpenIndex, pcap_len: u64) -> Vec<u8> {
    let by_flow = ByFlow::of(open);
    let order = in_order_of_hash(open);
    let exact = directory(&by_flow, &order, 0);
    let is_exact = exact.len() as u64 <= pcap_len / EXACT_UP_TO;
    let flows = if is_exact { exact } else { directory(&by_flow, &order, BLOCK_SHIFT) };
    let mut sections = vec![(SectionKind::Flows, Part::of(flows))];
    sections.extend(by_block(open, &by_flow));
    if is_exact {
        let (communities, flow_ids) = identities(open);
        sections.push((SectionKind::Communities, Part::of(communities)));
        sections.push((SectionKind::FlowIds, Part::of(flow_ids)));
    }
    let (min_ns, max_ns) = open.times().unwrap_or((0, 0));
    let (time_shift, anchors) = anchors(open, min_ns, max_ns);
    sections.push((SectionKind::Anchors, anchors));
    sections.push((SectionKind::Filter, filter(&order)));
    let header = Header {
        flags: if is_exact { 0 } else { FLAG_BLOCKS },
        pcap_len,
        packets: open.packets(),
        flows: order.len() as u64,
        min_ns,
        max_ns,
        link: u32::from(open.link()),
        key_id: open.index_key().id(),
        time_shift,
        ..Header::default()
    };
    assemble(header, sections)
}

/// A section's bytes and counts.
#[derive(Default)]
struct Part {
    bytes: Vec<u8>,
    groups: u32,
    entries: u64,
}

impl Part {
    fn of(map: MapWriter) -> Self {
        let (groups, entries) = (map.groups, map.entries);
        Self { bytes: map.finish(), groups, entries }
    }
}

/// Header, checksums of the pages, sections.
fn assemble(mut header: Header, parts: Vec<(SectionKind, Part)>) -> Vec<u8> {
    let data: usize = parts.iter().map(|(_, p)| p.bytes.len()).sum();
    // As many table pages as the pages behind them need.
    let mut table_pages = 0;
    while table_pages * (PAGE / 4) < data.div_ceil(PAGE) {
        table_pages += 1;
    }
    let start = (1 + table_pages) * PAGE;
    header.file_len = (start + data) as u64;
    let mut out = vec![0; start];
    out.reserve(data);
    for (kind, part) in parts {
        header.sections.push(Section {
            kind: kind as u32,
            groups: part.groups,
            offset: out.len() as u64,
            len: part.bytes.len() as u64,
            entries: part.entries,
        });
        out.extend_from_slice(&part.bytes);
    }
    debug_assert!(
        table_shape(header.file_len)
            .is_ok_and(|(at, n)| { at == start as u64 && n == data.div_ceil(PAGE) })
    );
    let table: Vec<u8> =
        out[start..].chunks(PAGE).flat_map(|page| crc32c::crc32c(page).to_le_bytes()).collect();
    let page = header.to_page(crc32c::crc32c(&table));
    out[..PAGE].copy_from_slice(&page);
    out[PAGE..PAGE + table.len()].copy_from_slice(&table);
    out
}

/// The postings sorted by flow, those of a flow in the order of the file.
struct ByFlow {
    /// Where each flow's offsets end; they start where those of the flow before end.
    ends: Vec<u32>,
    offsets: Vec<u32>,
}

impl ByFlow {
    fn of(open: &OpenIndex) -> Self {
        let postings = open.postings();
        let mut ends = vec![0u32; open.flows() + 1];
        let mut offsets = vec![0u32; postings.len()];
        for (flow, _) in postings {
            if let Some(n) = ends.get_mut(flow as usize + 1) {
                *n += 1;
            }
        }
        for at in 1..ends.len() {
            ends[at] += ends[at - 1];
        }
        for (flow, offset) in open.postings() {
            if let Some(next) = ends.get_mut(flow as usize) {
                if let Some(slot) = offsets.get_mut(*next as usize) {
                    *slot = offset;
                }
                *next += 1;
            }
        }
        Self { ends, offsets }
    }

    fn offsets(&self, flow: usize) -> &[u32] {
        let start = flow.checked_sub(1).map_or(0, |before| self.ends[before]) as usize;
        self.offsets.get(start..self.ends[flow] as usize).unwrap_or_default()
    }

    fn blocks(&self, flow: usize) -> impl Iterator<Item = u32> {
        let mut last = None;
        self.offsets(flow)
            .iter()
            .map(|offset| offset >> BLOCK_SHIFT)
            .filter(move |block| last.replace(*block) != Some(*block))
    }
}

/// The flows by their hashes.
fn in_order_of_hash(open: &OpenIndex) -> Vec<(u64, u32)> {
    let mut order: Vec<(u64, u32)> =
        (0..open.flows()).map(|flow| (open.hash_of(flow), flow as u32)).collect();
    order.sort_unstable();
    order
}

/// The flow directory: offsets (`shift` 0) or blocks.
fn directory(by_flow: &ByFlow, order: &[(u64, u32)], shift: u32) -> MapWriter {
    let mut map = MapWriter::new(false);
    let mut values = Vec::new();
    for same in order.chunk_by(|a, b| a.0 >> 32 == b.0 >> 32) {
        values.clear();
        for (_, flow) in same {
            values.extend(by_flow.offsets(*flow as usize).iter().map(|offset| offset >> shift));
        }
        if same.len() > 1 {
            values.sort_unstable();
        }
        values.dedup();
        map.list(u128::from(same[0].0 >> 32), &values);
    }
    map
}

/// The maps from addresses, ports and attributes to blocks.
fn by_block(open: &OpenIndex, by_flow: &ByFlow) -> Vec<(SectionKind, Part)> {
    let (mut v4, mut v6, mut ports, mut attributes) =
        (Vec::new(), Vec::<(u128, u32)>::new(), Vec::new(), Vec::new());
    let pair = |key: u32, block: u32| u64::from(key) << 32 | u64::from(block);
    for flow in 0..open.flows() {
        let key = open.key_of(flow);
        let own = [
            key.protocol().map(Attribute::Protocol),
            key.ether_type().map(Attribute::EtherType),
            (key.kind() == Kind::Fragments).then_some(Attribute::Fragments),
            (key.kind() == Kind::Other).then_some(Attribute::Other),
        ];
        let (addresses, of_flow) = (key.addresses(), key.ports());
        for block in by_flow.blocks(flow) {
            for Addr(high, low) in addresses.into_iter().flatten() {
                if key.is_v6() {
                    v6.push(((u128::from(high) << 64) | u128::from(low), block));
                } else {
                    v4.push(pair((high >> 32) as u32, block));
                }
            }
            ports.extend(of_flow.into_iter().flatten().map(|p| pair(u32::from(p), block)));
            attributes.extend(own.iter().flatten().map(|a| pair(a.number(), block)));
        }
    }
    for (id, block) in open.tags() {
        attributes.push(pair(Attribute::Vlan(id as u16).number(), block));
    }
    v6.sort_unstable();
    v6.dedup();
    let mut wide = MapWriter::new(true);
    let mut blocks = Vec::new();
    for same in v6.chunk_by(|a, b| a.0 == b.0) {
        blocks.clear();
        blocks.extend(same.iter().map(|p| p.1));
        wide.list(same[0].0, &blocks);
    }
    vec![
        (SectionKind::V4, narrow(v4)),
        (SectionKind::V6, Part::of(wide)),
        (SectionKind::Ports, narrow(ports)),
        (SectionKind::Attributes, narrow(attributes)),
    ]
}

/// A map of pairs of a key and a block.
fn narrow(mut pairs: Vec<u64>) -> Part {
    pairs.sort_unstable();
    pairs.dedup();
    let mut map = MapWriter::new(false);
    let mut blocks = Vec::new();
    for same in pairs.chunk_by(|a, b| a >> 32 == b >> 32) {
        blocks.clear();
        blocks.extend(same.iter().map(|p| *p as u32));
        map.list(u128::from(same[0] >> 32), &blocks);
    }
    Part::of(map)
}

/// Community ids and flow ids to the flows that may have them.
fn identities(open: &OpenIndex) -> (MapWriter, MapWriter) {
    let half = |flow: usize| (open.hash_of(flow) >> 32) as u32;
    let mut communities: Vec<(u32, u32)> = (0..open.flows())
        .filter(|&flow| open.key_of(flow).kind() == Kind::Flow)
        .map(|flow| (community_half(&open.key_of(flow)), half(flow)))
        .collect();
    let mut flow_ids: Vec<(u32, u32)> =
        open.births().map(|(flow, id)| ((id >> 32) as u32, half(flow as usize))).collect();
    let map = |pairs: &mut Vec<(u32, u32)>| {
        pairs.sort_unstable();
        pairs.dedup();
        let mut map = MapWriter::new(false);
        pairs.iter().for_each(|(key, value)| map.single(u128::from(*key), *value));
        map
    };
    (map(&mut communities), map(&mut flow_ids))
}

/// A row a block: offset of its first record in it, least and greatest time.
fn anchors(open: &OpenIndex, min_ns: u64, max_ns: u64) -> (u32, Part) {
    let mut shift = 0;
    while (max_ns - min_ns) >> shift >= u64::from(u32::MAX) {
        shift += 1;
    }
    let mut part = Part::default();
    for span in open.spans() {
        let none = Span { first: u32::MAX, min_ns: u64::MAX, max_ns: min_ns };
        let Span { first, min_ns: from, max_ns: to } = span.unwrap_or(none);
        let unit = |ns: u64| (ns.saturating_sub(min_ns) >> shift).min(u64::from(u32::MAX)) as u32;
        for n in [first, unit(from), unit(to)] {
            part.bytes.extend_from_slice(&n.to_le_bytes());
        }
        part.entries += 1;
    }
    (shift, part)
}

/// A blocked Bloom filter of the flows' hashes; empty where there are too many for it to be small.
fn filter(order: &[(u64, u32)]) -> Part {
    let bits = order.len() * FILTER_BITS_A_FLOW;
    let bytes = bits.div_ceil(8).next_multiple_of(FILTER_BLOCK).min(FILTER_MOST);
    if order.is_empty() || bytes * 8 < order.len() * FILTER_LEAST_BITS {
        return Part::default();
    }
    let mut out = vec![0u8; bytes];
    for (hash, _) in order {
        let (block, bits) = filter_bits(*hash, bytes / FILTER_BLOCK);
        for bit in bits {
            out[block * FILTER_BLOCK + bit / 8] |= 1 << (bit % 8);
        }
    }
    Part { bytes: out, groups: 0, entries: order.len() as u64 }
}

/// The first four bytes of a flow's community id.
fn community_half(key: &super::Key) -> u32 {
    let digest = community_digest(&FlowKey::from_words(key.0), 0);
    u32::from_be_bytes([digest[0], digest[1], digest[2], digest[3]])
}
