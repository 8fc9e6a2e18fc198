//! The bytes of a segment: a classic pcap file of nanosecond resolution, little-endian
//! (draft-ietf-opsawg-pcap).

/// Bytes before the first packet record.
pub const FILE_HEADER: usize = 24;
/// Bytes before each packet.
pub const RECORD_HEADER: usize = 16;
/// No packet is kept longer than this.
pub const SNAPLEN: u32 = 262_144;

const MAGIC_NS: u32 = 0xa1b2_3c4d;
const VERSION: u32 = 0x0004_0002;
const NS: u64 = 1_000_000_000;

fn words<const N: usize, const B: usize>(words: [u32; N]) -> [u8; B] {
    let mut out = [0; B];
    for (to, word) in out.as_chunks_mut::<4>().0.iter_mut().zip(words) {
        *to = word.to_le_bytes();
    }
    out
}

/// The file header for a link type.
pub fn file_header(link: u16) -> [u8; FILE_HEADER] {
    words([MAGIC_NS, VERSION, 0, 0, SNAPLEN, u32::from(link)])
}

/// The link type of a file that begins with such a header.
pub fn link_of(header: &[u8]) -> Option<u16> {
    let header: [u8; FILE_HEADER] = header.get(..FILE_HEADER)?.try_into().ok()?;
    let link = u16::from_le_bytes([header[20], header[21]]);
    (header == file_header(link)).then_some(link)
}

/// What stands before each packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecordHeader {
    pub seconds: u32,
    pub nanoseconds: u32,
    /// Bytes in the file.
    pub captured: u32,
    /// Bytes on the wire.
    pub wire: u32,
}

impl RecordHeader {
    #[inline]
    pub fn new(timestamp_ns: u64, captured: u32, wire: u32) -> Self {
        Self {
            seconds: (timestamp_ns / NS) as u32,
            nanoseconds: (timestamp_ns % NS) as u32,
            captured,
            // None is of no bytes at all, and so a header of zeros is none of ours.
            wire: wire.max(captured).max(1),
        }
    }

    #[inline]
    pub fn encode(&self) -> [u8; RECORD_HEADER] {
        words([self.seconds, self.nanoseconds, self.captured, self.wire])
    }

    #[inline]
    pub fn decode(bytes: &[u8; RECORD_HEADER]) -> Self {
        let mut w = [0; 4];
        for (to, from) in w.iter_mut().zip(bytes.as_chunks::<4>().0) {
            *to = u32::from_le_bytes(*from);
        }
        Self { seconds: w[0], nanoseconds: w[1], captured: w[2], wire: w[3] }
    }

    /// Nanoseconds since 1970.
    #[inline]
    pub fn timestamp_ns(&self) -> u64 {
        u64::from(self.seconds) * NS + u64::from(self.nanoseconds)
    }

    /// Whether it could be one that the journal wrote.
    #[inline]
    pub fn is_plausible(&self) -> bool {
        u64::from(self.nanoseconds) < NS
            && self.captured <= SNAPLEN
            && self.captured <= self.wire
            && self.wire != 0
    }
}
