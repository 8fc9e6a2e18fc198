//! One segment's part of an answer: where to look, and the records there.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::expr::{Blocks, Expr};
use crate::journal::index::{
    Anchor, BLOCK_SHIFT, Damage, FILE_HEADER, IndexFile, IndexKey, Key, OpenIndex, RecordHeader,
    link_of,
};

/// Records nearer to each other than this are read in one go.
const GAP: u64 = 64 << 10;
/// Read at once, at most, unless one record is longer.
const READ: u64 = 1 << 20;
/// Read behind the start of a record whose length is not known yet.
const GUESS: u64 = 4 << 10;
/// Bytes of a record's header.
const HEADER: usize = 16;
/// How much earlier than the first packet of a segment another of it may be, where no index says.
pub(super) const SLACK_NS: u64 = 2_000_000_000;

/// What is known of a segment.
pub(super) enum Known {
    /// Sealed, with a good index.
    Sealed(Arc<IndexFile>),
    /// Being written by this process.
    Open { index: Arc<OpenIndex>, written: u64 },
    /// Nothing; why, where something should be known.
    Nothing(Option<Broken>),
}

/// What is wrong with an index, or with the file that it is of.
#[derive(Clone, Debug)]
pub(super) struct Broken {
    pub(super) what: String,
    /// Bytes that the file had when the index was made, and has no more.
    pub(super) lost: u64,
}

/// A segment, and what is known of it.
pub(super) struct Segment {
    pub(super) number: u64,
    pub(super) path: PathBuf,
    pub(super) first_ns: u64,
    /// Bytes of the pcap file that can be read.
    pub(super) len: u64,
    pub(super) known: Known,
}

impl Segment {
    /// Bounds on the times of its packets.
    pub(super) fn times(&self) -> (u64, u64) {
        match &self.known {
            Known::Sealed(index) => index.times().unwrap_or((u64::MAX, 0)),
            Known::Open { index, .. } => index.times().unwrap_or((u64::MAX, 0)),
            Known::Nothing(_) => (self.first_ns.saturating_sub(SLACK_NS), u64::MAX),
        }
    }

    fn link(&self) -> io::Result<u16> {
        Ok(match &self.known {
            Known::Sealed(index) => index.link(),
            Known::Open { index, .. } => index.link(),
            Known::Nothing(_) => {
                let mut header = [0; FILE_HEADER as usize];
                File::open(&self.path)?.read_exact_at(&mut header, 0)?;
                link_of(&header).ok_or_else(|| {
                    io::Error::new(io::ErrorKind::InvalidData, "not a pcap file of the journal")
                })?
            }
        })
    }
}

/// What bounds the records that are looked for.
pub(super) struct Bound<'a> {
    pub(super) keys: Option<&'a [Key]>,
    pub(super) index_key: Option<&'a IndexKey>,
    pub(super) expr: Expr,
    /// A filter's bound, which holds on Ethernet alone.
    pub(super) filter: Option<Expr>,
    pub(super) from_ns: u64,
    pub(super) to_ns: u64,
}

/// Where records are to be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Places {
    /// Offsets of records, ascending.
    Exact(Vec<u32>),
    /// From record to record, ascending.
    Runs(Vec<(u64, u64)>),
}

impl Places {
    pub(super) fn is_empty(&self) -> bool {
        match self {
            Self::Exact(offsets) => offsets.is_empty(),
            Self::Runs(runs) => runs.is_empty(),
        }
    }
}

/// How a segment is looked through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum How {
    Index,
    Live,
    Scan,
}

/// A segment to be read.
pub(super) struct Plan {
    pub(super) number: u64,
    pub(super) path: PathBuf,
    pub(super) link: u16,
    pub(super) len: u64,
    pub(super) min_ns: u64,
    pub(super) places: Places,
    pub(super) how: How,
    /// The index was damaged, and how.
    pub(super) damage: Option<Broken>,
    pub(super) anchors: Option<Vec<Anchor>>,
}

impl Plan {
    /// Where to look in a segment; `None` where there is nothing to be found.
    pub(super) fn of(segment: &Segment, bound: &Bound<'_>) -> io::Result<Option<Self>> {
        let (min_ns, max_ns) = segment.times();
        if max_ns < bound.from_ns || min_ns > bound.to_ns || segment.len <= FILE_HEADER {
            return Ok(None);
        }
        let mut plan = Self {
            number: segment.number,
            path: segment.path.clone(),
            link: segment.link()?,
            len: segment.len,
            min_ns,
            places: Places::Runs(vec![(FILE_HEADER, segment.len)]),
            how: How::Scan,
            damage: None,
            anchors: None,
        };
        match &segment.known {
            Known::Nothing(why) => plan.damage.clone_from(why),
            Known::Open { index, written } => {
                plan.how = How::Live;
                plan.places = open_places(index, *written, plan.link, bound);
            }
            Known::Sealed(index) => {
                let found = sealed_places(index, plan.len, bound);
                index.release();
                match found {
                    Ok((places, anchors)) => {
                        plan.how = How::Index;
                        (plan.places, plan.anchors) = (places, Some(anchors));
                    }
                    Err(damage) => plan.damage = Some(Broken { what: damage.to_string(), lost: 0 }),
                }
            }
        }
        Ok((!plan.places.is_empty()).then_some(plan))
    }

    /// Bytes that will be read, about.
    pub(super) fn bytes(&self, mean: u64) -> u64 {
        match &self.places {
            Places::Exact(offsets) => offsets.len() as u64 * mean,
            Places::Runs(runs) => runs.iter().map(|(from, to)| to - from).sum(),
        }
    }
}

fn sealed_places(
    index: &IndexFile,
    len: u64,
    bound: &Bound<'_>,
) -> Result<(Places, Vec<Anchor>), Damage> {
    let none = || (Places::Exact(Vec::new()), Vec::new());
    let within = |a: &Anchor| a.max_ns >= bound.from_ns && a.min_ns <= bound.to_ns;
    let usable = bound.index_key.filter(|key| index.is_of(key));
    if let (Some(keys), Some(index_key)) = (bound.keys, usable) {
        let mut found = Vec::new();
        for key in keys {
            let hash = index_key.hash(key);
            if index.may_hold(hash)? {
                found.extend(index.flow(hash)?);
            }
        }
        if found.is_empty() {
            return Ok(none());
        }
        found.sort_unstable();
        found.dedup();
        let anchors = index.anchors()?;
        if index.is_exact() {
            found.retain(|at| anchors.get((at >> BLOCK_SHIFT) as usize).is_none_or(&within));
            return Ok((Places::Exact(found), anchors));
        }
        let mut blocks = Blocks::none(anchors.len());
        blocks.add(&found);
        return Ok((runs(blocks, &anchors, len, within), anchors));
    }
    let anchors = index.anchors()?;
    let mut all = vec![bound.expr.clone()];
    // What a filter means on other links is not known here.
    all.extend(bound.filter.clone().filter(|_| index.link() == 1));
    let blocks = Expr::And(all).blocks(index, anchors.len())?;
    Ok((runs(blocks, &anchors, len, within), anchors))
}

/// The records that start in blocks, as stretches of the file.
fn runs(
    mut blocks: Blocks,
    anchors: &[Anchor],
    len: u64,
    within: impl Fn(&Anchor) -> bool,
) -> Places {
    for (n, anchor) in anchors.iter().enumerate() {
        if anchor.first.is_none() || !within(anchor) {
            blocks.remove(n);
        }
    }
    let mut out: Vec<(u64, u64)> = Vec::new();
    for n in blocks.iter() {
        let Some(from) = anchors.get(n).and_then(|a| a.first) else { continue };
        let next = anchors.get(n + 1..).unwrap_or_default().iter().find_map(|a| a.first);
        let to = next.unwrap_or(len).min(len);
        match out.last_mut() {
            Some(last) if last.1 == from => last.1 = to,
            _ => out.push((from, to)),
        }
    }
    Places::Runs(out)
}

fn open_places(index: &OpenIndex, written: u64, link: u16, bound: &Bound<'_>) -> Places {
    // Postings first: a flow in them is there when it is asked for.
    let postings = index.postings();
    let flows = index.flows();
    let filter = bound.filter.as_ref().filter(|_| link == 1);
    if bound.keys.is_none() && bound.expr.is_any() && filter.is_none_or(Expr::is_any) {
        return Places::Runs(vec![(FILE_HEADER, written)]);
    }
    let mut wanted = vec![false; flows];
    match bound.keys {
        Some(keys) => {
            for flow in keys.iter().filter_map(|key| index.find(key)) {
                if let Some(slot) = wanted.get_mut(flow as usize) {
                    *slot = true;
                }
            }
        }
        None => {
            for (flow, slot) in wanted.iter_mut().enumerate() {
                let key = index.key_of(flow);
                *slot = bound.expr.may_have(&key) && filter.is_none_or(|f| f.may_have(&key));
            }
        }
    }
    let mut offsets: Vec<u32> = postings
        .filter(|(flow, at)| {
            u64::from(*at) < written && wanted.get(*flow as usize).copied().unwrap_or(true)
        })
        .map(|(_, at)| at)
        .collect();
    offsets.dedup();
    Places::Exact(offsets)
}

/// A part of the answer that could not be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gap {
    /// Number of the segment.
    pub segment: u64,
    pub what: String,
}

/// A record that was found, in the stream's buffer.
pub(super) struct Found {
    pub(super) at: u64,
    pub(super) header: RecordHeader,
}

/// Reads a plan's records in the order of the file.
pub(super) struct Reader {
    file: File,
    path: PathBuf,
    number: u64,
    len: u64,
    places: Places,
    anchors: Option<Vec<Anchor>>,
    /// Least time of a block's packets and of all behind it.
    least: Option<Vec<u64>>,
    /// The next place in `places`, and where in a run.
    next: usize,
    at: u64,
    scans: bool,
    stop: Arc<AtomicBool>,
    buffer: Vec<u8>,
    start: u64,
    pub(super) bytes_read: u64,
    pub(super) gaps: Vec<Gap>,
}

impl Reader {
    pub(super) fn open(plan: Plan, stop: &Arc<AtomicBool>) -> io::Result<(Self, u16)> {
        let file = File::open(&plan.path)?;
        let least = plan.anchors.as_ref().map(|all| {
            let mut least: Vec<u64> = all.iter().map(|a| a.min_ns).collect();
            let mut so_far = u64::MAX;
            for ns in least.iter_mut().rev() {
                so_far = so_far.min(*ns);
                *ns = so_far;
            }
            least
        });
        let at = match &plan.places {
            Places::Runs(runs) => runs.first().map_or(plan.len, |r| r.0),
            Places::Exact(_) => 0,
        };
        let this = Self {
            file,
            path: plan.path,
            number: plan.number,
            len: plan.len,
            places: plan.places,
            anchors: plan.anchors,
            least,
            next: 0,
            at,
            scans: plan.how == How::Scan,
            stop: Arc::clone(stop),
            buffer: Vec::new(),
            start: 0,
            bytes_read: 0,
            gaps: Vec::new(),
        };
        Ok((this, plan.link))
    }

    /// No later record has a smaller time than this, as far as the index knows.
    pub(super) fn floor(&self) -> Option<u64> {
        let at = match &self.places {
            Places::Exact(offsets) => u64::from(*offsets.get(self.next)?),
            Places::Runs(_) => self.at,
        };
        self.least.as_ref()?.get((at >> BLOCK_SHIFT) as usize).copied()
    }

    /// The packet's bytes of a record that was just found.
    pub(super) fn data(&self, found: &Found) -> &[u8] {
        let from = (found.at - self.start) as usize + HEADER;
        self.buffer.get(from..from + found.header.kept as usize).unwrap_or_default()
    }

    /// The next record; `None` at the end.
    pub(super) fn next(&mut self) -> io::Result<Option<Found>> {
        loop {
            let Some((at, until)) = self.place() else { return Ok(None) };
            if self.stop.load(Ordering::Relaxed) {
                return Err(io::Error::other("given up before it was read"));
            }
            match self.record(at, until)? {
                Ok(header) => {
                    self.pass(at + header.size());
                    return Ok(Some(Found { at, header }));
                }
                Err(Bad::Tail) if self.scans => return Ok(None),
                Err(bad) => self.skip(at, bad),
            }
        }
    }

    /// Where the next record is, and up to where it is worth reading at once.
    fn place(&self) -> Option<(u64, u64)> {
        match &self.places {
            Places::Runs(runs) => {
                let (_, to) = runs.get(self.next)?;
                Some((self.at, *to))
            }
            Places::Exact(offsets) => {
                let rest = offsets.get(self.next..)?;
                let first = u64::from(*rest.first()?);
                let mut last = first;
                for at in rest.iter().skip(1).map(|at| u64::from(*at)) {
                    if at - last > GAP || at - first > READ {
                        break;
                    }
                    last = at;
                }
                Some((first, last + GUESS))
            }
        }
    }

    /// Goes on behind a record.
    fn pass(&mut self, end: u64) {
        match &self.places {
            Places::Exact(_) => self.next += 1,
            Places::Runs(runs) => {
                self.at = end;
                if runs.get(self.next).is_none_or(|r| end >= r.1) {
                    self.next += 1;
                    self.at = runs.get(self.next).map_or(self.len, |r| r.0);
                }
            }
        }
    }

    /// Notes damage and goes on where records are known to start.
    fn skip(&mut self, at: u64, bad: Bad) {
        let what = match bad {
            Bad::Tail => "the file ends within a record",
            Bad::Header => "no record header",
        };
        let next = self.anchors.as_ref().and_then(|all| {
            let later = all.get((at >> BLOCK_SHIFT) as usize + 1..).unwrap_or_default();
            later.iter().find_map(|a| a.first)
        });
        let resume = next.unwrap_or(self.len).max(at + 1);
        let place = format!("{}: damaged at byte {at}: {what}", self.path.display());
        let lost = resume.min(self.len).saturating_sub(at);
        self.gaps.push(Gap {
            segment: self.number,
            what: match &self.places {
                Places::Exact(_) => format!("{place}; one packet not read"),
                Places::Runs(_) => format!("{place}; {lost} bytes not read"),
            },
        });
        match &self.places {
            Places::Exact(_) => self.next += 1,
            Places::Runs(_) => self.pass(resume),
        }
    }

    /// Reads the record at an offset into the buffer.
    fn record(&mut self, at: u64, until: u64) -> io::Result<Result<RecordHeader, Bad>> {
        if !self.ensure(at, HEADER as u64, until)? {
            return Ok(Err(Bad::Tail));
        }
        let from = (at - self.start) as usize;
        let Some(bytes) = self.buffer.get(from..).and_then(|b| b.first_chunk::<HEADER>()) else {
            return Ok(Err(Bad::Tail));
        };
        // Room that was set aside and not written yet.
        if self.scans && bytes.iter().all(|b| *b == 0) {
            return Ok(Err(Bad::Tail));
        }
        let Some(header) = RecordHeader::parse(bytes) else { return Ok(Err(Bad::Header)) };
        Ok(if self.ensure(at, header.size(), until)? { Ok(header) } else { Err(Bad::Tail) })
    }

    /// Has `n` bytes from `at` in the buffer; false if the file ends before.
    fn ensure(&mut self, at: u64, n: u64, until: u64) -> io::Result<bool> {
        let end = at + n;
        if at >= self.start && end <= self.start + self.buffer.len() as u64 {
            return Ok(true);
        }
        if end > self.len {
            return Ok(false);
        }
        let stop = until.min(at + READ).max(end).min(self.len);
        self.buffer.resize((stop - at) as usize, 0);
        self.start = at;
        let mut filled = 0;
        while let Some(room) = self.buffer.get_mut(filled..).filter(|r| !r.is_empty()) {
            match self.file.read_at(room, at + filled as u64) {
                Ok(0) => break,
                Ok(read) => filled += read,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => {
                    self.buffer.clear();
                    return Err(e);
                }
            }
        }
        self.buffer.truncate(filled);
        self.bytes_read += filled as u64;
        Ok(filled as u64 >= n)
    }
}

/// Why there is no record where one was expected.
enum Bad {
    /// The file ends, or is not written further.
    Tail,
    Header,
}

/// Opens what there is of an index; damage is no error, only a reason to scan.
pub(super) fn known(path: &Path, has_index: bool, len: u64) -> Known {
    if !has_index {
        return Known::Nothing(None);
    }
    match IndexFile::open(&path.with_extension("idx"), len) {
        Ok(index) => {
            index.release();
            Known::Sealed(Arc::new(index))
        }
        // It went with its segment.
        Err(Damage::Io(e)) if e.kind() == io::ErrorKind::NotFound => Known::Nothing(None),
        Err(damage) => {
            let lost = match damage {
                // Looked at again: a file sealed meanwhile has grown.
                Damage::OtherFile { expected, .. } => {
                    std::fs::metadata(path).map_or(0, |m| expected.saturating_sub(m.len()))
                }
                _ => 0,
            };
            Known::Nothing(Some(Broken { what: damage.to_string(), lost }))
        }
    }
}
