//! Reads capture files: pcap of either byte order in micro- or nanoseconds, pcapng, gzip of both.
//!
//! A record is a slice of the reader's own buffer, valid until it is consumed, so that nothing is
//! copied twice. A file that ends within a record gives everything before it and then
//! [`Trouble::Cut`]; one that makes no sense gives [`Trouble::Corrupt`] with the place.
//!
//! Formats: draft-ietf-opsawg-pcap, draft-ietf-opsawg-pcapng.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use flate2::read::MultiGzDecoder;

/// Larger records and blocks are taken for damage (libpcap's own limit is 262,144 of data).
const MAX_BLOCK: usize = 16 << 20;
const MAX_PACKET: u32 = 262_144;

/// A file that cannot be used at all.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("{}: {source}", path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error("{}: not a capture file (pcap or pcapng, plain or gzip): {why}", path.display())]
    Format { path: PathBuf, why: String },
}

/// Why a file gives no more records before its end.
#[derive(Debug, thiserror::Error)]
pub enum Trouble {
    #[error("{}: the file ends within a record, at byte {at}; everything before it was read", path.display())]
    Cut { path: PathBuf, at: u64 },
    #[error("{}: damaged at byte {at}: {what}; everything before it was read", path.display())]
    Corrupt { path: PathBuf, at: u64, what: &'static str },
    #[error("{}: {source} at byte {at}; everything before it was read", path.display())]
    Io { path: PathBuf, at: u64, source: io::Error },
}

impl Trouble {
    /// Whether the file is merely incomplete, as a copy of a capture that is still written.
    pub fn is_cut(&self) -> bool {
        matches!(self, Self::Cut { .. })
    }
}

/// One packet of a file.
#[derive(Clone, Copy, Debug)]
pub struct Record<'a> {
    pub timestamp_ns: u64,
    pub wire_len: u32,
    /// LINKTYPE_ number.
    pub link: u16,
    pub data: &'a [u8],
}

/// A capture file being read.
pub struct CaptureReader {
    path: PathBuf,
    input: Input,
    format: Format,
    big_endian: bool,
    /// The record that `peek` gave and `consume` takes.
    current: Option<Found>,
    done: bool,
}

enum Format {
    Pcap { nanoseconds: bool, link: u16, extra: usize },
    Pcapng { interfaces: Vec<Interface> },
}

#[derive(Clone, Copy, Debug)]
struct Interface {
    link: u16,
    snaplen: u32,
    /// Timestamp units a second.
    units: u64,
    offset_s: i64,
}

const PCAP_MICRO: u32 = 0xa1b2_c3d4;
const PCAP_NANO: u32 = 0xa1b2_3c4d;
/// Alexey Kuznetzov's variant: eight bytes more in each record.
const PCAP_MODIFIED: u32 = 0xa1b2_cd34;
const SECTION: u32 = 0x0a0d_0d0a;

impl CaptureReader {
    /// Opens a file; `-` is standard input. `buffer` is how much is read at once.
    pub fn open(path: &Path, buffer: usize) -> Result<Self, OpenError> {
        let io = |source| OpenError::Io { path: path.into(), source };
        let name = if path.as_os_str() == "-" { Path::new("/dev/stdin") } else { path };
        let file = File::open(name).map_err(io)?;
        if file.metadata().map_err(io)?.is_dir() {
            return Err(io(io::ErrorKind::IsADirectory.into()));
        }
        let mut input = Input::new(Box::new(file), buffer);
        if input.fill(2).map_err(io)? && input.data().starts_with(&[0x1f, 0x8b]) {
            input = Input::new(Box::new(MultiGzDecoder::new(input)), buffer);
        }
        Self::start(path, input)
    }

    fn start(path: &Path, mut input: Input) -> Result<Self, OpenError> {
        let format = |why: &str| OpenError::Format { path: path.into(), why: why.into() };
        let io = |source| OpenError::Io { path: path.into(), source };
        if !input.fill(24).map_err(io)? {
            return Err(format(if input.data().is_empty() {
                "it is empty"
            } else {
                "it is shorter than a file header"
            }));
        }
        let data = input.data();
        let magic = word(data, 0, false);
        let this = |mut input: Input, format, big_endian, skip| {
            input.advance(skip);
            Self { path: path.into(), input, format, big_endian, current: None, done: false }
        };
        if magic == SECTION {
            return Ok(this(input, Format::Pcapng { interfaces: Vec::new() }, false, 0));
        }
        let (kind, big_endian) = match magic {
            PCAP_MICRO | PCAP_NANO | PCAP_MODIFIED => (magic, false),
            other => (other.swap_bytes(), true),
        };
        let link = word(data, 20, big_endian) as u16;
        let (nanoseconds, extra) = match kind {
            PCAP_MICRO => (false, 0),
            PCAP_NANO => (true, 0),
            PCAP_MODIFIED => (false, 8),
            _ => return Err(format(&format!("its first bytes are {magic:08x}"))),
        };
        Ok(this(input, Format::Pcap { nanoseconds, link, extra }, big_endian, 24))
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The next packet, the same until [`CaptureReader::consume`]; `None` at the end. After an
    /// error there is nothing more.
    pub fn peek(&mut self) -> Result<Option<Record<'_>>, Trouble> {
        if self.current.is_none() && !self.done {
            let located = match &self.format {
                Format::Pcap { .. } => self.locate_pcap(),
                Format::Pcapng { .. } => self.locate_pcapng(),
            };
            self.done = !matches!(located, Ok(Some(_)));
            self.current = located.map_err(|stop| self.trouble(stop))?;
        }
        let Some(found) = self.current else { return Ok(None) };
        let data = self.input.data().get(found.at..found.at + found.len).unwrap_or_default();
        Ok(Some(Record {
            timestamp_ns: found.timestamp_ns,
            wire_len: found.wire_len.max(found.len as u32),
            link: found.link,
            data,
        }))
    }

    /// Goes on behind the packet that was peeked.
    pub fn consume(&mut self) {
        if let Some(found) = self.current.take() {
            self.input.advance(found.size);
        }
    }

    fn trouble(&self, stop: Stop) -> Trouble {
        let (path, at) = (self.path.clone(), self.input.position);
        match stop {
            Stop::Cut => Trouble::Cut { path, at },
            Stop::Corrupt(what) => Trouble::Corrupt { path, at, what },
            Stop::Io(source) if source.kind() == io::ErrorKind::UnexpectedEof => {
                Trouble::Cut { path, at }
            }
            Stop::Io(source) => Trouble::Io { path, at, source },
        }
    }

    fn locate_pcap(&mut self) -> Result<Option<Found>, Stop> {
        let Format::Pcap { nanoseconds, link, extra } = self.format else { return Ok(None) };
        let header = 16 + extra;
        if !self.input.fill(header)? {
            return if self.input.data().is_empty() { Ok(None) } else { Err(Stop::Cut) };
        }
        let field = |input: &Input, n: usize| word(input.data(), 4 * n, self.big_endian);
        let (seconds, fraction) = (field(&self.input, 0), field(&self.input, 1));
        let (len, wire_len) = (field(&self.input, 2), field(&self.input, 3));
        if len > MAX_PACKET {
            return Err(Stop::Corrupt("a packet of more than 262,144 bytes"));
        }
        let size = header + len as usize;
        if !self.input.fill(size)? {
            return Err(Stop::Cut);
        }
        let fraction_ns = u64::from(fraction) * if nanoseconds { 1 } else { 1000 };
        Ok(Some(Found {
            timestamp_ns: u64::from(seconds) * 1_000_000_000 + fraction_ns,
            wire_len,
            link,
            at: header,
            len: len as usize,
            size,
        }))
    }

    /// Walks blocks up to the next one with a packet.
    fn locate_pcapng(&mut self) -> Result<Option<Found>, Stop> {
        loop {
            if !self.input.fill(12)? {
                return if self.input.data().is_empty() { Ok(None) } else { Err(Stop::Cut) };
            }
            if word(self.input.data(), 0, false) == SECTION {
                self.big_endian = match word(self.input.data(), 8, false) {
                    0x1a2b_3c4d => false,
                    0x4d3c_2b1a => true,
                    _ => return Err(Stop::Corrupt("a section without its byte-order magic")),
                };
                if let Format::Pcapng { interfaces } = &mut self.format {
                    interfaces.clear();
                }
            }
            let kind = word(self.input.data(), 0, self.big_endian);
            let size = word(self.input.data(), 4, self.big_endian) as usize;
            if size < 12 || !size.is_multiple_of(4) || size > MAX_BLOCK {
                return Err(Stop::Corrupt("a block with an impossible length"));
            }
            if !self.input.fill(size)? {
                return Err(Stop::Cut);
            }
            if let Some(found) = self.block(kind, size)? {
                return Ok(Some(found));
            }
            self.input.advance(size);
        }
    }

    fn block(&mut self, kind: u32, size: usize) -> Result<Option<Found>, Stop> {
        let Format::Pcapng { interfaces } = &mut self.format else { return Ok(None) };
        let big = self.big_endian;
        let block = self.input.data().get(..size).unwrap_or_default();
        // The fixed part of each block, its header of 8 and the trailing length of 4 included.
        let at_least = |n: usize| {
            if size < n { Err(Stop::Corrupt("a block too short for its kind")) } else { Ok(()) }
        };
        match kind {
            // Interface description.
            1 => {
                at_least(20)?;
                interfaces.push(interface(block, big));
                Ok(None)
            }
            // Enhanced packet, and the obsolete packet block with a 16-bit interface number.
            6 | 2 => {
                at_least(32)?;
                let number = if kind == 6 {
                    word(block, 8, big) as usize
                } else {
                    usize::from(half(block, 8, big))
                };
                let Some(i) = interfaces.get(number) else {
                    return Err(Stop::Corrupt("a packet of an interface that was not described"));
                };
                let units =
                    (u64::from(word(block, 12, big)) << 32) | u64::from(word(block, 16, big));
                let len = word(block, 20, big) as usize;
                if len > size - 32 {
                    return Err(Stop::Corrupt("a packet longer than its block"));
                }
                Ok(Some(Found {
                    timestamp_ns: i.nanoseconds(units),
                    wire_len: word(block, 24, big),
                    link: i.link,
                    at: 28,
                    len,
                    size,
                }))
            }
            // Simple packet: no time, the first interface, cut at its snap length.
            3 => {
                at_least(16)?;
                let Some(i) = interfaces.first() else {
                    return Err(Stop::Corrupt("a packet of an interface that was not described"));
                };
                let wire_len = word(block, 8, big);
                let kept = if i.snaplen == 0 { wire_len } else { wire_len.min(i.snaplen) };
                let len = (kept as usize).min(size - 16);
                Ok(Some(Found { timestamp_ns: 0, wire_len, link: i.link, at: 12, len, size }))
            }
            _ => Ok(None),
        }
    }
}

#[derive(Clone, Copy)]
struct Found {
    timestamp_ns: u64,
    wire_len: u32,
    link: u16,
    at: usize,
    len: usize,
    size: usize,
}

enum Stop {
    Cut,
    Corrupt(&'static str),
    Io(io::Error),
}

impl From<io::Error> for Stop {
    fn from(e: io::Error) -> Self {
        Self::Io(e)
    }
}

fn interface(block: &[u8], big: bool) -> Interface {
    let mut out = Interface {
        link: half(block, 8, big),
        snaplen: word(block, 12, big),
        units: 1_000_000,
        offset_s: 0,
    };
    let mut at = 16;
    while at + 4 <= block.len() - 4 {
        let (code, len) = (half(block, at, big), usize::from(half(block, at + 2, big)));
        let value = block.get(at + 4..at + 4 + len).unwrap_or_default();
        match (code, value) {
            (0, _) => break,
            // if_tsresol: a power of ten, or of two when the top bit is set.
            (9, [exponent, ..]) => {
                out.units = match exponent {
                    0..=19 => 10u64.pow(u32::from(*exponent)),
                    0x80..=0xbf => 1u64 << (exponent & 0x3f),
                    _ => out.units,
                };
            }
            (14, [_, _, _, _, _, _, _, _]) => {
                let (first, second) = (word(value, 0, big), word(value, 4, big));
                let wide = if big {
                    (u64::from(first) << 32) | u64::from(second)
                } else {
                    (u64::from(second) << 32) | u64::from(first)
                };
                out.offset_s = wide.cast_signed();
            }
            _ => {}
        }
        at += 4 + len.next_multiple_of(4);
    }
    out
}

impl Interface {
    fn nanoseconds(&self, units: u64) -> u64 {
        let ns = u128::from(units) * 1_000_000_000 / u128::from(self.units);
        let offset = i128::from(self.offset_s) * 1_000_000_000;
        u64::try_from(i128::try_from(ns).unwrap_or(i128::MAX).saturating_add(offset)).unwrap_or(0)
    }
}

fn word(data: &[u8], at: usize, big: bool) -> u32 {
    let bytes = data.get(at..).and_then(|d| d.first_chunk::<4>()).copied().unwrap_or_default();
    if big { u32::from_be_bytes(bytes) } else { u32::from_le_bytes(bytes) }
}

fn half(data: &[u8], at: usize, big: bool) -> u16 {
    let bytes = data.get(at..).and_then(|d| d.first_chunk::<2>()).copied().unwrap_or_default();
    if big { u16::from_be_bytes(bytes) } else { u16::from_le_bytes(bytes) }
}

/// A window over a stream, grown only for a block larger than any before.
struct Input {
    source: Box<dyn Read + Send>,
    buffer: Vec<u8>,
    start: usize,
    end: usize,
    /// Bytes of the stream before `start`.
    position: u64,
}

impl Input {
    fn new(source: Box<dyn Read + Send>, buffer: usize) -> Self {
        Self { source, buffer: vec![0; buffer], start: 0, end: 0, position: 0 }
    }

    #[inline]
    fn data(&self) -> &[u8] {
        self.buffer.get(self.start..self.end).unwrap_or_default()
    }

    fn advance(&mut self, n: usize) {
        let n = n.min(self.end - self.start);
        self.start += n;
        self.position += n as u64;
    }

    /// Makes sure that `n` bytes are there; false if the stream ends before.
    #[inline]
    fn fill(&mut self, n: usize) -> io::Result<bool> {
        if self.end - self.start >= n { Ok(true) } else { self.refill(n) }
    }

    #[cold]
    fn refill(&mut self, n: usize) -> io::Result<bool> {
        self.buffer.copy_within(self.start..self.end, 0);
        self.end -= self.start;
        self.start = 0;
        if self.buffer.len() < n {
            self.buffer.resize(n.next_power_of_two(), 0);
        }
        while self.end < n {
            let Some(room) = self.buffer.get_mut(self.end..) else { break };
            match self.source.read(room) {
                Ok(0) => return Ok(false),
                Ok(got) => self.end += got,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        Ok(true)
    }
}

/// So that a gzip stream can be read through the window that its magic was seen in.
impl Read for Input {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        if self.data().is_empty() {
            return self.source.read(out);
        }
        let n = self.data().len().min(out.len());
        out.iter_mut().zip(self.data()).for_each(|(to, from)| *to = *from);
        self.advance(n);
        Ok(n)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn pcap(magic: u32, big: bool, packets: &[(u32, u32, &[u8])]) -> Vec<u8> {
        let w = |v: u32| if big { v.to_be_bytes() } else { v.to_le_bytes() };
        let h = |v: u16| if big { v.to_be_bytes() } else { v.to_le_bytes() };
        let mut out = [&w(magic)[..], &h(2), &h(4), &w(0), &w(0), &w(65535), &w(1)].concat();
        for (s, f, data) in packets {
            let len = data.len() as u32;
            out.extend([w(*s), w(*f), w(len), w(len + 7)].concat());
            if magic == PCAP_MODIFIED {
                out.extend([0; 8]);
            }
            out.extend(*data);
        }
        out
    }

    fn pcapng(big: bool) -> Vec<u8> {
        let w = |v: u32| if big { v.to_be_bytes() } else { v.to_le_bytes() };
        let h = |v: u16| if big { v.to_be_bytes() } else { v.to_le_bytes() };
        let block = |kind: u32, body: &[u8]| {
            let len = (body.len().next_multiple_of(4) + 12) as u32;
            let mut out = [w(kind), w(len)].concat();
            out.extend(body);
            out.resize(len as usize - 4, 0);
            out.extend(w(len));
            out
        };
        let idb = |link: u16, tsresol: u8| {
            let options = [&h(9)[..], &h(1), &[tsresol, 0, 0, 0], &h(0), &h(0)].concat();
            block(1, &[&h(link)[..], &h(0), &w(0), &options].concat())
        };
        let epb = |interface: u32, units: u64, data: &[u8]| {
            let len = data.len() as u32;
            let head =
                [w(interface), w((units >> 32) as u32), w(units as u32), w(len), w(len)].concat();
            block(6, &[&head[..], data].concat())
        };
        [
            block(
                SECTION,
                &[&w(0x1a2b_3c4d)[..], &h(1), &h(0), &w(u32::MAX), &w(u32::MAX)].concat(),
            ),
            idb(1, 9),
            idb(101, 0x94),
            epb(0, 5_000_000_001, b"first"),
            block(0x0bad, b"an unknown block"),
            epb(1, (7 << 20) + (1 << 19), b"second"),
            block(3, &[&w(6)[..], b"simple"].concat()),
        ]
        .concat()
    }

    type Seen = (u64, u32, u16, Vec<u8>);

    fn read(bytes: &[u8], buffer: usize) -> (Vec<Seen>, Option<Trouble>) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("capture,with=odd name");
        std::fs::write(&path, bytes).unwrap();
        let mut reader = CaptureReader::open(&path, buffer).unwrap();
        let mut out = Vec::new();
        loop {
            match reader.peek() {
                Ok(None) => return (out, None),
                Err(trouble) => {
                    assert!(matches!(reader.peek(), Ok(None)), "an error ends the file");
                    return (out, Some(trouble));
                }
                Ok(Some(r)) => out.push((r.timestamp_ns, r.wire_len, r.link, r.data.to_vec())),
            }
            reader.consume();
        }
    }

    #[test]
    fn every_kind_of_pcap_plain_and_gzipped() {
        for big in [false, true] {
            for (magic, scale) in [(PCAP_MICRO, 1000), (PCAP_NANO, 1), (PCAP_MODIFIED, 1000)] {
                if big && magic == PCAP_MODIFIED {
                    continue;
                }
                let bytes = pcap(magic, big, &[(5, 3, b"abc"), (6, 9, b"")]);
                let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
                gz.write_all(&bytes).unwrap();
                for (input, buffer) in [(bytes, 64), (gz.finish().unwrap(), 1 << 20)] {
                    let (seen, trouble) = read(&input, buffer);
                    assert!(trouble.is_none());
                    let want = [
                        (5_000_000_000 + 3 * scale, 10, 1, b"abc".to_vec()),
                        (6_000_000_000 + 9 * scale, 7, 1, Vec::new()),
                    ];
                    assert_eq!(seen, want);
                }
            }
        }
    }

    #[test]
    fn pcapng_of_both_byte_orders_with_each_packet_kind() {
        for big in [false, true] {
            let (seen, trouble) = read(&pcapng(big), 16);
            assert!(trouble.is_none(), "{trouble:?}");
            assert_eq!(
                seen,
                [
                    (5_000_000_001, 5, 1, b"first".to_vec()),
                    (7_500_000_000, 6, 101, b"second".to_vec()),
                    (0, 6, 1, b"simple".to_vec()),
                ]
            );
        }
    }

    #[test]
    fn a_file_cut_anywhere_gives_what_is_before_and_says_so() {
        for whole in
            [pcap(PCAP_NANO, false, &[(1, 0, b"abcdef"), (2, 0, b"ghijkl")]), pcapng(false)]
        {
            let (all, _) = read(&whole, 4096);
            for n in 28..whole.len() {
                let (seen, trouble) = read(&whole[..n], 4096);
                assert_eq!(seen[..], all[..seen.len()]);
                if let Some(trouble) = trouble {
                    assert!(trouble.is_cut(), "{trouble}");
                }
            }
        }
    }

    #[test]
    fn damage_is_named_with_its_place() {
        let mut bytes = pcap(PCAP_NANO, false, &[(1, 0, b"abcdef"), (2, 0, b"x")]);
        bytes[46 + 8..46 + 12].copy_from_slice(&u32::MAX.to_le_bytes());
        let (seen, trouble) = read(&bytes, 4096);
        assert_eq!(seen.len(), 1);
        assert!(trouble.unwrap().to_string().contains("damaged at byte 46"));
        // No flipped byte makes it panic or loop.
        let whole = pcapng(false);
        for at in 0..whole.len() {
            for value in [0, 1, 0x7f, 0xff] {
                let mut flipped = whole.clone();
                flipped[at] = value;
                let dir = tempfile::tempdir().unwrap();
                let path = dir.path().join("f");
                std::fs::write(&path, &flipped).unwrap();
                if let Ok(mut reader) = CaptureReader::open(&path, 64) {
                    for _ in 0..100 {
                        if !matches!(reader.peek(), Ok(Some(_))) {
                            break;
                        }
                        reader.consume();
                    }
                }
            }
        }
    }

    #[test]
    fn what_is_no_capture_says_why() {
        let dir = tempfile::tempdir().unwrap();
        let open = |name: &str, bytes: Option<&[u8]>| {
            let path = dir.path().join(name);
            if let Some(bytes) = bytes {
                std::fs::write(&path, bytes).unwrap();
            }
            CaptureReader::open(&path, 64).err().unwrap().to_string()
        };
        assert!(open("missing", None).contains("missing: No such file"));
        assert!(open("empty", Some(b"")).contains("it is empty"));
        assert!(open("short", Some(&[0xd4, 0xc3])).contains("shorter"));
        assert!(open("text", Some(&[b'a'; 100])).contains("not a capture file"));
        assert!(
            CaptureReader::open(dir.path(), 64).err().unwrap().to_string().contains("directory")
        );
    }
}
