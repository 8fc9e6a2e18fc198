//! A reader of capture files that shares nothing with the sensor's: what a file holds, for
//! comparison with what the sensor says it read.

use std::collections::BTreeSet;
use std::io::Read;
use std::path::Path;

/// What a capture file holds.
#[derive(Debug, Default)]
pub(crate) struct Totals {
    pub(crate) packets: u64,
    /// Sum of the lengths on the wire.
    pub(crate) bytes: u64,
    /// LINKTYPE_ numbers of its interfaces.
    pub(crate) links: BTreeSet<u32>,
}

impl Totals {
    fn add(&mut self, captured: u32, original: u32) {
        self.packets += 1;
        // Some writers leave the original length at 0.
        self.bytes += u64::from(original.max(captured));
    }
}

/// Reads a capture to its end. A last record that is cut off is no packet.
pub(crate) fn totals(path: &Path) -> Totals {
    let data = contents(path);
    let mut totals = Totals::default();
    match data.first_chunk::<4>() {
        Some([0x0a, 0x0d, 0x0d, 0x0a]) => pcapng(&data, &mut totals),
        Some([0xd4, 0xc3, 0xb2, 0xa1] | [0x4d, 0x3c, 0xb2, 0xa1]) => {
            pcap(&data, Order::Little, &mut totals);
        }
        Some([0xa1, 0xb2, 0xc3, 0xd4] | [0xa1, 0xb2, 0x3c, 0x4d]) => {
            pcap(&data, Order::Big, &mut totals);
        }
        _ => panic!("{}: not a capture file", path.display()),
    }
    totals
}

fn contents(path: &Path) -> Vec<u8> {
    let data = std::fs::read(path).expect("a readable capture");
    if !data.starts_with(&[0x1f, 0x8b]) {
        return data;
    }
    let mut plain = Vec::new();
    flate2::read::MultiGzDecoder::new(&data[..]).read_to_end(&mut plain).expect("a whole gzip");
    plain
}

#[derive(Clone, Copy)]
enum Order {
    Little,
    Big,
}

impl Order {
    fn u32(self, data: &[u8], at: usize) -> Option<u32> {
        let bytes = *data.get(at..)?.first_chunk()?;
        Some(match self {
            Self::Little => u32::from_le_bytes(bytes),
            Self::Big => u32::from_be_bytes(bytes),
        })
    }

    fn u16(self, data: &[u8], at: usize) -> Option<u16> {
        let bytes = *data.get(at..)?.first_chunk()?;
        Some(match self {
            Self::Little => u16::from_le_bytes(bytes),
            Self::Big => u16::from_be_bytes(bytes),
        })
    }
}

/// Classic pcap: a header of 24 bytes, then records of 16 bytes and the frame.
fn pcap(data: &[u8], order: Order, totals: &mut Totals) {
    // The upper half of the link type's word says whether frames carry their checksum.
    totals.links.extend(order.u32(data, 20).map(|word| word & 0xffff));
    let mut at = 24;
    while let (Some(captured), Some(original)) = (order.u32(data, at + 8), order.u32(data, at + 12))
    {
        at += 16 + captured as usize;
        if at > data.len() {
            break;
        }
        totals.add(captured, original);
    }
}

/// pcapng: blocks of a type and a length; each section has its own byte order and interfaces.
fn pcapng(data: &[u8], totals: &mut Totals) {
    let mut order = Order::Little;
    let mut snap_lengths: Vec<u32> = Vec::new();
    let mut at = 0;
    while let Some(rest) = data.get(at..).filter(|rest| rest.len() >= 12) {
        if rest.starts_with(&[0x0a, 0x0d, 0x0d, 0x0a]) {
            order =
                if rest[8..12] == [0x1a, 0x2b, 0x3c, 0x4d] { Order::Big } else { Order::Little };
            snap_lengths.clear();
        }
        let length = order.u32(rest, 4).expect("a block's length") as usize;
        let Some(block) = rest.get(..length).filter(|block| block.len() >= 12) else { break };
        let word = |at| order.u32(block, at).expect("a whole block");
        match order.u32(block, 0) {
            // Interface description.
            Some(1) => {
                totals.links.extend(order.u16(block, 8).map(u32::from));
                snap_lengths.push(word(12));
            }
            // Enhanced packet; the obsolete packet block has its lengths at the same place.
            Some(6 | 2) => totals.add(word(20), word(24)),
            // Simple packet: of the first interface, cut at its snap length.
            Some(3) => {
                let original = word(8);
                let snap = snap_lengths.first().copied().filter(|&s| s != 0).unwrap_or(u32::MAX);
                totals.add(original.min(snap).min((length as u32).saturating_sub(16)), original);
            }
            _ => {}
        }
        at += length;
    }
}
