//! The index of a segment from its pcap file alone.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use super::build::RECORD_HEADER;
use super::{IndexBuilder, IndexError, IndexKey, Limits};
use crate::packet::{Frame, Link};

/// Bytes before the first record of a pcap file.
pub const FILE_HEADER: u64 = 24;
/// The captured part of a packet is no longer than this (libpcap's limit).
pub const MAX_PACKET: u32 = 262_144;
const READ: usize = 1 << 20;

/// A record's header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecordHeader {
    pub timestamp_ns: u64,
    /// Bytes that follow.
    pub kept: u32,
    /// Length on the wire.
    pub wire_len: u32,
}

impl RecordHeader {
    /// Reads a header of a segment; `None` if no journal writes such a one.
    #[inline]
    pub fn parse(bytes: &[u8; RECORD_HEADER as usize]) -> Option<Self> {
        let word =
            |n: usize| u32::from_le_bytes([bytes[n], bytes[n + 1], bytes[n + 2], bytes[n + 3]]);
        let (seconds, fraction, kept, wire_len) = (word(0), word(4), word(8), word(12));
        (fraction < 1_000_000_000 && kept <= MAX_PACKET && kept <= wire_len).then(|| Self {
            timestamp_ns: u64::from(seconds) * 1_000_000_000 + u64::from(fraction),
            kept,
            wire_len,
        })
    }

    /// Bytes of the whole record.
    pub fn size(&self) -> u64 {
        RECORD_HEADER + u64::from(self.kept)
    }

    /// The packet as the index reads it.
    pub fn frame<'a>(&self, data: &'a [u8], link: u16) -> Frame<'a> {
        Frame { data, wire_len: self.wire_len, wire_len_known: true, link: Link::from_number(link) }
    }
}

/// The link type of a segment's pcap file, from its header; `None` if it is not one of ours.
pub fn link_of(header: &[u8; FILE_HEADER as usize]) -> Option<u16> {
    let word =
        |n: usize| u32::from_le_bytes([header[n], header[n + 1], header[n + 2], header[n + 3]]);
    (word(0) == 0xa1b2_3c4d && word(4) == 0x0004_0002).then_some(word(20) as u16)
}

/// Makes the index file of a pcap segment, equal byte for byte to the one that its builder makes.
///
/// The file has to be whole: one that ends within a record, or holds what is no record, is an
/// error with its place.
pub fn rebuild(pcap: &Path, key: &IndexKey) -> Result<Vec<u8>, IndexError> {
    let io = |source| IndexError::Io { path: pcap.into(), source };
    let bad = |at, what| IndexError::Pcap { path: pcap.into(), at, what };
    let mut file = File::open(pcap).map_err(io)?;
    let len = file.metadata().map_err(io)?.len();
    let mut header = [0; FILE_HEADER as usize];
    file.read_exact(&mut header).map_err(io)?;
    let link = link_of(&header).ok_or_else(|| bad(0, "not a pcap file of the journal"))?;
    // A guess of 500 bytes a packet, twenty packets a flow; it grows.
    let packets = (len / 500 + 1024) as usize;
    let mut builder = IndexBuilder::new(key, link, Limits { packets, flows: packets / 20 + 1024 });
    let mut window = Window { file, bytes: vec![0; READ], start: 0, end: 0 };
    let mut at = FILE_HEADER;
    loop {
        let Some(head) = window.take(RECORD_HEADER as usize).map_err(io)? else {
            if window.left() == 0 {
                break;
            }
            return Err(bad(at, "the file ends within a record"));
        };
        let record = head
            .first_chunk()
            .and_then(RecordHeader::parse)
            .ok_or_else(|| bad(at, "no record header"))?;
        let size = record.size() as usize;
        let Some(bytes) = window.take(size).map_err(io)? else {
            return Err(bad(at, "the file ends within a record"));
        };
        if builder.is_full() {
            builder.grow();
        }
        let data = bytes.get(RECORD_HEADER as usize..).unwrap_or_default();
        if at + record.size() > u64::from(u32::MAX) {
            return Err(bad(at, "a segment of more than 4 GiB"));
        }
        builder.add(at, &record.frame(data, link), record.timestamp_ns, None);
        window.start += size;
        at += record.size();
    }
    Ok(builder.encode(at))
}

/// A part of the file.
struct Window {
    file: File,
    bytes: Vec<u8>,
    start: usize,
    end: usize,
}

impl Window {
    fn left(&self) -> usize {
        self.end - self.start
    }

    /// The next `n` bytes without going past them; `None` if the file ends before.
    fn take(&mut self, n: usize) -> io::Result<Option<&[u8]>> {
        if self.left() < n {
            self.bytes.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.left());
            if self.bytes.len() < n {
                self.bytes.resize(n, 0);
            }
            while self.end < n {
                match self.file.read(self.bytes.get_mut(self.end..).unwrap_or_default()) {
                    Ok(0) => return Ok(None),
                    Ok(read) => self.end += read,
                    Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                    Err(e) => return Err(e),
                }
            }
        }
        Ok(self.bytes.get(self.start..self.start + n))
    }
}
