//! Reads an index file: only the pages that a question needs, each checked.
//!
//! Layout, all numbers little-endian: a header page (magic, version, what the segment spans, the
//! sections), a table with the CRC-32C of each later page, then the sections. The header has its
//! own checksum and that of the table.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use super::IndexKey;
use super::map::{MapReader, Values};

pub(super) const PAGE: usize = 4096;
pub(super) const MAGIC: [u8; 8] = *b"MLKTIDX\x01";
pub(super) const SECTION_BYTES: usize = 32;
/// Where the section table starts in the header.
pub(super) const SECTIONS_AT: usize = 96;
/// Bytes of a block's row in [`Kind::Anchors`].
pub(super) const ANCHOR: usize = 12;
/// Bytes of a block of the flow filter, and bits set in it for each flow.
pub(super) const FILTER_BLOCK: usize = 64;
pub(super) const FILTER_BITS: u32 = 6;

/// The flow directory gives blocks, not offsets.
pub(super) const FLAG_BLOCKS: u32 = 1;

/// Why an index file cannot be used; the segment can still be scanned.
#[derive(Debug, thiserror::Error)]
pub enum Damage {
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error("a checksum does not match")]
    Checksum,
    #[error("{0}")]
    Nonsense(&'static str),
    #[error("it belongs to a pcap file of {expected} bytes, this one has {found}")]
    OtherFile { expected: u64, found: u64 },
}

/// What a section holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(super) enum Kind {
    /// Upper half of a flow's hash to offsets of its records (or to blocks).
    Flows = 1,
    /// IPv4 address to blocks.
    V4 = 2,
    /// IPv6 address to blocks.
    V6 = 3,
    /// TCP, UDP or SCTP port to blocks.
    Ports = 4,
    /// [`Attribute`] to blocks.
    Attributes = 5,
    /// First half of a community id to the upper half of its flow's hash.
    Communities = 6,
    /// Upper half of a flow id to the upper half of its flow's hash.
    FlowIds = 7,
    /// A row a block: where its first record is, least and greatest time.
    Anchors = 8,
    /// Blocked Bloom filter of flow hashes.
    Filter = 9,
}

/// A property that packets are posted under, by block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Attribute {
    Protocol(u8),
    Vlan(u16),
    EtherType(u16),
    /// Fragments, the first of a packet included.
    Fragments,
    /// Frames that could not be read.
    Other,
}

impl Attribute {
    pub(super) fn number(self) -> u32 {
        match self {
            Self::Protocol(n) => 1 << 16 | u32::from(n),
            Self::Vlan(n) => 2 << 16 | u32::from(n),
            Self::EtherType(n) => 3 << 16 | u32::from(n),
            Self::Fragments => 4 << 16,
            Self::Other => 5 << 16,
        }
    }
}

/// Where a section is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Section {
    pub(super) kind: u32,
    pub(super) groups: u32,
    pub(super) offset: u64,
    pub(super) len: u64,
    pub(super) entries: u64,
}

/// What the header says of the segment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) flags: u32,
    pub(super) pcap_len: u64,
    pub(super) packets: u64,
    pub(super) flows: u64,
    pub(super) min_ns: u64,
    pub(super) max_ns: u64,
    pub(super) link: u32,
    pub(super) key_id: u32,
    /// Block times count in units of 2 to this, nanoseconds.
    pub(super) time_shift: u32,
    pub(super) file_len: u64,
    pub(super) sections: Vec<Section>,
}

impl Header {
    /// The header page, its checksum included.
    pub(super) fn to_page(&self, table_crc: u32) -> [u8; PAGE] {
        let mut out = [0; PAGE];
        let mut fields = MAGIC.to_vec();
        for n in [1, self.flags, self.link, self.key_id, self.time_shift, super::BLOCK_SHIFT] {
            fields.extend_from_slice(&n.to_le_bytes());
        }
        for n in [self.pcap_len, self.packets, self.flows, self.min_ns, self.max_ns, self.file_len]
        {
            fields.extend_from_slice(&n.to_le_bytes());
        }
        fields.extend_from_slice(&(self.sections.len() as u32).to_le_bytes());
        fields.resize(SECTIONS_AT, 0);
        for s in &self.sections {
            fields.extend_from_slice(&s.kind.to_le_bytes());
            fields.extend_from_slice(&s.groups.to_le_bytes());
            for n in [s.offset, s.len, s.entries] {
                fields.extend_from_slice(&n.to_le_bytes());
            }
        }
        out[..fields.len()].copy_from_slice(&fields);
        out[PAGE - 8..PAGE - 4].copy_from_slice(&table_crc.to_le_bytes());
        let crc = crc32c::crc32c(&out[..PAGE - 4]);
        out[PAGE - 4..].copy_from_slice(&crc.to_le_bytes());
        out
    }

    fn from_page(page: &[u8; PAGE]) -> Result<(Self, u32), Damage> {
        let word =
            |at: usize| u32::from_le_bytes([page[at], page[at + 1], page[at + 2], page[at + 3]]);
        let long = |at: usize| u64::from(word(at)) | u64::from(word(at + 4)) << 32;
        if page[..8] != MAGIC {
            return Err(Damage::Nonsense("it does not begin like an index"));
        }
        if crc32c::crc32c(&page[..PAGE - 4]) != word(PAGE - 4) {
            return Err(Damage::Checksum);
        }
        if word(8) != 1 || word(28) != super::BLOCK_SHIFT {
            return Err(Damage::Nonsense("an index of another version"));
        }
        let count = word(80) as usize;
        if count > (PAGE - 8 - SECTIONS_AT) / SECTION_BYTES || word(24) > 63 {
            return Err(Damage::Nonsense("an impossible header"));
        }
        let sections = (0..count)
            .map(|n| SECTIONS_AT + n * SECTION_BYTES)
            .map(|at| Section {
                kind: word(at),
                groups: word(at + 4),
                offset: long(at + 8),
                len: long(at + 16),
                entries: long(at + 24),
            })
            .collect();
        let header = Self {
            flags: word(12),
            link: word(16),
            key_id: word(20),
            time_shift: word(24),
            pcap_len: long(32),
            packets: long(40),
            flows: long(48),
            min_ns: long(56),
            max_ns: long(64),
            file_len: long(72),
            sections,
        };
        Ok((header, word(PAGE - 8)))
    }
}

/// What a block of the segment spans.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Anchor {
    /// Where the first record that starts in the block is, in the file; `None` if none does.
    pub(crate) first: Option<u64>,
    /// At most the least and at least the greatest time of its packets.
    pub(crate) min_ns: u64,
    pub(crate) max_ns: u64,
}

/// An index file whose header was found good.
///
/// The file itself is opened when something is read and closed by [`IndexFile::release`], so that
/// thousands of indexes can be at hand.
pub struct IndexFile {
    path: PathBuf,
    file: Mutex<Option<Arc<File>>>,
    /// The flow filter, where it is kept in memory.
    filter: OnceLock<Vec<u8>>,
    header: Header,
    /// Checksums of the pages from `data` on.
    pages: Vec<u32>,
    /// Where the sections start.
    data: u64,
}

impl IndexFile {
    /// Opens the index of a pcap file of `pcap_len` bytes.
    pub fn open(path: &Path, pcap_len: u64) -> Result<Self, Damage> {
        let file = File::open(path)?;
        let len = file.metadata()?.len();
        let mut page = [0; PAGE];
        read_at(&file, &mut page, 0)?;
        let (header, table_crc) = Header::from_page(&page)?;
        if header.file_len != len {
            return Err(Damage::Nonsense("it is cut short, or longer than it should be"));
        }
        if header.pcap_len != pcap_len {
            return Err(Damage::OtherFile { expected: header.pcap_len, found: pcap_len });
        }
        let (data, count) = table_shape(len)?;
        let mut table = vec![0; count * 4];
        read_at(&file, &mut table, PAGE as u64)?;
        if crc32c::crc32c(&table) != table_crc {
            return Err(Damage::Checksum);
        }
        let pages = table.as_chunks::<4>().0.iter().map(|b| u32::from_le_bytes(*b)).collect();
        for s in &header.sections {
            if s.offset < data || s.offset.checked_add(s.len).is_none_or(|end| end > len) {
                return Err(Damage::Nonsense("a section outside of the file"));
            }
        }
        let file = Mutex::new(Some(Arc::new(file)));
        Ok(Self { path: path.into(), file, filter: OnceLock::new(), header, pages, data })
    }

    /// The open file.
    fn file(&self) -> io::Result<Arc<File>> {
        let mut slot = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(file) = &*slot {
            return Ok(Arc::clone(file));
        }
        let file = Arc::new(File::open(&self.path)?);
        *slot = Some(Arc::clone(&file));
        Ok(file)
    }

    /// Closes the file until something is read again.
    pub(crate) fn release(&self) {
        *self.file.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// Keeps the flow filter in memory; the bytes that this index then takes there.
    pub(crate) fn keep_filter(&self) -> Result<usize, Damage> {
        if self.filter.get().is_none() {
            let s = self.section(Kind::Filter).unwrap_or_default();
            let _ = self.filter.set(if s.len == 0 { Vec::new() } else { self.bytes(s)? });
        }
        Ok(self.filter.get().map_or(0, Vec::len) + self.pages.len() * 4)
    }

    pub fn packets(&self) -> u64 {
        self.header.packets
    }

    pub fn flows(&self) -> u64 {
        self.header.flows
    }

    /// LINKTYPE_ number of the segment.
    pub fn link(&self) -> u16 {
        self.header.link as u16
    }

    /// Least and greatest time of its packets; `None` if it has none.
    pub fn times(&self) -> Option<(u64, u64)> {
        (self.header.packets > 0).then_some((self.header.min_ns, self.header.max_ns))
    }

    /// Whether the flow directory is exact, or only gives blocks.
    pub fn is_exact(&self) -> bool {
        self.header.flags & FLAG_BLOCKS == 0
    }

    /// Whether flows are hashed with this key.
    pub fn is_of(&self, key: &IndexKey) -> bool {
        self.header.key_id == key.id()
    }

    /// Bytes of each section, by name.
    pub fn sizes(&self) -> Vec<(&'static str, u64)> {
        const NAMES: [&str; 9] = [
            "flows",
            "ipv4",
            "ipv6",
            "ports",
            "attributes",
            "communities",
            "flow ids",
            "anchors",
            "filter",
        ];
        let name = |s: &Section| NAMES.get(s.kind.wrapping_sub(1) as usize).copied();
        self.header.sections.iter().filter_map(|s| Some((name(s)?, s.len))).collect()
    }

    /// Checks every page.
    pub fn verify(&self) -> Result<(), Damage> {
        let mut cursor = self.cursor(self.data, self.header.file_len);
        while cursor.position() < self.header.file_len {
            cursor.fill()?;
            cursor.position = cursor.start + cursor.buffer.len() as u64;
        }
        Ok(())
    }

    fn section(&self, kind: Kind) -> Option<Section> {
        self.header.sections.iter().find(|s| s.kind == kind as u32).copied()
    }

    fn map(&self, kind: Kind) -> Option<MapReader<'_>> {
        let values = match kind {
            Kind::Communities | Kind::FlowIds => Values::Singles,
            _ => Values::Lists,
        };
        Some(MapReader::new(self, self.section(kind)?, kind == Kind::V6, values))
    }

    fn lookup(&self, kind: Kind, key: u128) -> Result<Vec<u32>, Damage> {
        self.map(kind).map_or(Ok(Vec::new()), |map| map.find(key))
    }

    /// Whether the flow filter lets a hash through; true where there is no filter.
    pub(crate) fn may_hold(&self, hash: u64) -> Result<bool, Damage> {
        if let Some(filter) = self.filter.get() {
            return Ok(passes(filter, hash));
        }
        let Some(section) = self.section(Kind::Filter).filter(|s| s.len >= FILTER_BLOCK as u64)
        else {
            return Ok(true);
        };
        let (block, bits) = filter_bits(hash, section.len as usize / FILTER_BLOCK);
        let at = section.offset + (block * FILTER_BLOCK) as u64;
        let mut cursor = self.cursor(at, at + FILTER_BLOCK as u64);
        let mut bytes = [0; FILTER_BLOCK];
        for byte in &mut bytes {
            *byte = cursor.byte()?;
        }
        Ok(bits.iter().all(|&bit| bytes[bit / 8] & (1 << (bit % 8)) != 0))
    }

    fn bytes(&self, s: Section) -> Result<Vec<u8>, Damage> {
        let mut cursor = self.cursor(s.offset, s.offset + s.len);
        let mut out = Vec::with_capacity(s.len as usize);
        while out.len() < s.len as usize {
            cursor.fill()?;
            out.extend_from_slice(cursor.rest());
            cursor.position += cursor.rest().len() as u64;
        }
        // What was read ends with a page, the section need not.
        out.truncate(s.len as usize);
        Ok(out)
    }

    /// Offsets of the records posted under a flow's hash, or blocks, in ascending order.
    pub(crate) fn flow(&self, hash: u64) -> Result<Vec<u32>, Damage> {
        self.flow_by_half((hash >> 32) as u32)
    }

    pub(crate) fn flow_by_half(&self, half: u32) -> Result<Vec<u32>, Damage> {
        self.lookup(Kind::Flows, u128::from(half))
    }

    /// Halves of the hashes of flows that may have this community id's first half; `None` where
    /// the index does not know.
    pub(crate) fn community(&self, half: u32) -> Option<Result<Vec<u32>, Damage>> {
        Some(self.map(Kind::Communities)?.find(u128::from(half)))
    }

    /// Halves of the hashes of flows in which a packet may have begun the flow of this id.
    pub(crate) fn flow_id(&self, half: u32) -> Option<Result<Vec<u32>, Damage>> {
        Some(self.map(Kind::FlowIds)?.find(u128::from(half)))
    }

    /// Blocks of the IPv4 addresses from `low` to `high`; each list ascending.
    pub(crate) fn v4(
        &self,
        low: u32,
        high: u32,
        take: &mut dyn FnMut(&[u32]),
    ) -> Result<(), Damage> {
        self.ranged(Kind::V4, u128::from(low), u128::from(high), take)
    }

    pub(crate) fn v6(
        &self,
        low: u128,
        high: u128,
        take: &mut dyn FnMut(&[u32]),
    ) -> Result<(), Damage> {
        self.ranged(Kind::V6, low, high, take)
    }

    pub(crate) fn ports(
        &self,
        low: u16,
        high: u16,
        take: &mut dyn FnMut(&[u32]),
    ) -> Result<(), Damage> {
        self.ranged(Kind::Ports, u128::from(low), u128::from(high), take)
    }

    fn ranged(
        &self,
        kind: Kind,
        low: u128,
        high: u128,
        take: &mut dyn FnMut(&[u32]),
    ) -> Result<(), Damage> {
        let Some(map) = self.map(kind) else { return Ok(()) };
        map.range(low, high, &mut |values| take(&values))
    }

    pub(crate) fn attribute(&self, attribute: Attribute) -> Result<Vec<u32>, Damage> {
        self.lookup(Kind::Attributes, u128::from(attribute.number()))
    }

    /// What each block spans.
    pub(crate) fn anchors(&self) -> Result<Vec<Anchor>, Damage> {
        let Some(section) = self.section(Kind::Anchors) else { return Ok(Vec::new()) };
        let h = &self.header;
        let time = |units: u32, more: u64| {
            let units = u64::from(units) + more;
            h.min_ns.saturating_add(units.checked_shl(h.time_shift).unwrap_or(u64::MAX))
        };
        let bytes = self.bytes(section)?;
        let rows = bytes.as_chunks::<ANCHOR>().0;
        let rows = rows.iter().enumerate().map(|(n, r)| {
            let word = |at: usize| u32::from_le_bytes([r[at], r[at + 1], r[at + 2], r[at + 3]]);
            let start = (n as u64) << super::BLOCK_SHIFT;
            Anchor {
                first: (word(0) != u32::MAX).then(|| start + u64::from(word(0))),
                min_ns: time(word(4), 0),
                max_ns: time(word(8), 1),
            }
        });
        Ok(rows.collect())
    }

    pub(super) fn cursor(&self, at: u64, end: u64) -> Cursor<'_> {
        Cursor { file: self, position: at, end, start: at, buffer: Vec::new() }
    }
}

/// The block of a flow filter of `blocks` blocks, and the bits in it, that a hash sets.
pub(super) fn filter_bits(hash: u64, blocks: usize) -> (usize, [usize; FILTER_BITS as usize]) {
    let block = ((u128::from(hash) * blocks as u128) >> 64) as usize;
    let mixed = hash.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let bits = std::array::from_fn(|n| (mixed >> (n * 9 + 4)) as usize % (FILTER_BLOCK * 8));
    (block, bits)
}

/// Whether a filter in memory lets a hash through.
fn passes(filter: &[u8], hash: u64) -> bool {
    if filter.len() < FILTER_BLOCK {
        return true;
    }
    let (block, bits) = filter_bits(hash, filter.len() / FILTER_BLOCK);
    let at = block * FILTER_BLOCK;
    bits.iter().all(|&bit| filter.get(at + bit / 8).is_none_or(|b| b & (1 << (bit % 8)) != 0))
}

/// Where the sections of a file of that length start, and how many pages they have.
pub(super) fn table_shape(len: u64) -> Result<(u64, usize), Damage> {
    let pages = len.div_ceil(PAGE as u64).saturating_sub(1);
    // The table takes a page for each 1,024 pages, its own not counted.
    let table = pages.div_ceil(PAGE as u64 / 4 + 1);
    if len > 1 << 40 || pages < table {
        return Err(Damage::Nonsense("an impossible length"));
    }
    Ok(((1 + table) * PAGE as u64, (pages - table) as usize))
}

fn read_at(file: &File, buffer: &mut [u8], at: u64) -> Result<(), Damage> {
    file.read_exact_at(buffer, at).map_err(|e| match e.kind() {
        io::ErrorKind::UnexpectedEof => Damage::Nonsense("it is cut short"),
        _ => Damage::Io(e),
    })
}

/// Reads forward through checked pages.
pub(super) struct Cursor<'a> {
    file: &'a IndexFile,
    position: u64,
    end: u64,
    /// Where the buffer starts in the file.
    start: u64,
    buffer: Vec<u8>,
}

/// Read at once: a page at first, more where reading goes on.
const READ_MOST: u64 = 1 << 18;

impl Cursor<'_> {
    pub(super) fn position(&self) -> u64 {
        self.position
    }

    pub(super) fn seek(&mut self, at: u64) {
        self.position = at;
    }

    fn rest(&self) -> &[u8] {
        let from = self.position.wrapping_sub(self.start) as usize;
        self.buffer.get(from..).unwrap_or_default()
    }

    /// Reads the pages at the position.
    fn fill(&mut self) -> Result<(), Damage> {
        let page = PAGE as u64;
        if self.position >= self.end || self.position < self.file.data {
            return Err(Damage::Nonsense("a reference outside of its section"));
        }
        let before = self.buffer.len() as u64;
        let onward = before > 0 && self.start + before == self.position;
        let want = if onward { (before * 2).clamp(page, READ_MOST) } else { page };
        let start = self.position / page * page;
        let last = self.end.div_ceil(page) * page;
        let end = (start + want).min(last).min(self.file.header.file_len);
        self.buffer.resize((end - start) as usize, 0);
        self.start = start;
        let file = self.file.file()?;
        read_at(&file, &mut self.buffer, start)?;
        let first = ((start - self.file.data) / page) as usize;
        let crcs = self.file.pages.get(first..).unwrap_or_default();
        for (n, bytes) in self.buffer.chunks(PAGE).enumerate() {
            if crcs.get(n) != Some(&crc32c::crc32c(bytes)) {
                self.buffer.clear();
                return Err(Damage::Checksum);
            }
        }
        Ok(())
    }

    #[inline]
    pub(super) fn byte(&mut self) -> Result<u8, Damage> {
        if self.rest().is_empty() || self.position >= self.end {
            self.fill()?;
        }
        let byte = self.rest().first().copied().ok_or(Damage::Nonsense("an entry cut short"))?;
        self.position += 1;
        Ok(byte)
    }

    /// A number of `N` bytes.
    pub(super) fn number<const N: usize>(&mut self) -> Result<u128, Damage> {
        let mut out = 0;
        for n in 0..N {
            out |= u128::from(self.byte()?) << (8 * n);
        }
        Ok(out)
    }

    #[inline]
    pub(super) fn varint(&mut self) -> Result<u128, Damage> {
        let first = self.byte()?;
        if first < 0x80 {
            return Ok(u128::from(first));
        }
        let mut out = u128::from(first & 0x7f);
        let mut shift = 7;
        loop {
            let byte = self.byte()?;
            if shift > 126 || shift == 126 && byte > 3 {
                return Err(Damage::Nonsense("a number too large"));
            }
            out |= u128::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Ok(out);
            }
            shift += 7;
        }
    }

    pub(super) fn skip_varints(&mut self, count: u128) -> Result<(), Damage> {
        let mut left = count;
        while left > 0 {
            if self.byte()? < 0x80 {
                left -= 1;
            }
        }
        Ok(())
    }
}
