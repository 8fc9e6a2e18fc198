//! Asks the journal: which packets of a span of time belong to a flow, a host, a filter.
//!
//! A [`Journal`] reads a directory, with or without a process that writes to it; inside that
//! process it also sees the segments being written ([`Journal::with_live`]). The index only chooses
//! where to look: each packet is read again and checked, so that a segment without an index, or
//! with a damaged one, gives the same answer, only slower.
//!
//! An [`Answer`] gives packets in the order of their time with bounded memory, and then says what
//! it could not read ([`Report::gaps`]).
//!
//! Limits: packets of one segment that come later in the file than others by more than the
//! reordering window ([`HELD_MOST`]) come out late, counted in [`Report::late`].

mod expr;
mod identify;
mod join;
mod segment;
mod terms;
pub mod text;

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crate::filter::{Filter, FilterError};
use crate::journal::block;
use crate::journal::catalogue::{self, Entry};
use crate::journal::index::{IndexFile, IndexKey, Posting, read};
use crate::journal::live::Live;
use expr::Expr;
use join::Joined;
use segment::{Bound, How, Known, Plan, Reader, Segment, known};
use terms::{Verdict, Wanted};

pub use segment::Gap;
pub use terms::{BadNet, End, Identity, Net, Terms};

/// Bytes of packets held for reordering, at most, for each segment being read.
pub const HELD_MOST: usize = 32 << 20;
/// Where no index bounds the times to come, packets wait for so much later ones.
const WAIT_NS: u64 = 1_000_000_000;
/// Threads that look into indexes.
const THREADS: usize = 8;

/// A question; everything that is given must hold.
#[derive(Clone, Debug)]
pub struct Query {
    pub terms: Terms,
    pub identity: Option<Identity>,
    /// A pcap-filter expression; like [`crate::filter`], it holds whatever a frame's tags.
    pub filter: Option<String>,
    /// First and last moment, nanoseconds since 1970, inclusive.
    pub from_ns: u64,
    pub to_ns: u64,
    /// Only segments of this LINKTYPE_.
    pub link: Option<u16>,
    /// The idle timeout of the sensor, which decides where a flow of a flow id ends.
    pub idle_timeout: Duration,
    /// Set from another thread it ends the work within a read; what was not read is a gap.
    pub stop: Arc<AtomicBool>,
}

impl Default for Query {
    fn default() -> Self {
        Self {
            terms: Terms::default(),
            identity: None,
            filter: None,
            from_ns: 0,
            to_ns: u64::MAX,
            link: None,
            idle_timeout: Duration::from_secs(60),
            stop: Arc::default(),
        }
    }
}

/// A question that cannot be answered.
#[derive(Debug, thiserror::Error)]
pub enum QueryError {
    #[error("journal directory {}: {source}", path.display())]
    Directory { path: PathBuf, source: io::Error },
    #[error("filter: {0}")]
    Filter(#[from] FilterError),
    #[error("the start lies after the end")]
    Window,
}

/// A packet of an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Packet {
    pub timestamp_ns: u64,
    /// Length on the wire.
    pub wire_len: u32,
    /// LINKTYPE_ number.
    pub link: u16,
    pub data: Vec<u8>,
    /// Segment, and offset of the record in its file.
    pub segment: u64,
    pub offset: u64,
}

/// What an answer took, and what is missing from it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    pub packets: u64,
    /// Captured bytes of the packets.
    pub bytes: u64,
    /// Segments in the window.
    pub segments: usize,
    /// Of these: read by their index, read while being written, scanned for want of an index.
    pub indexed: usize,
    pub live: usize,
    pub scanned: usize,
    pub bytes_read: u64,
    /// Packets that came out behind a later one.
    pub late: u64,
    /// Segments whose index is damaged, and how; their answer is whole all the same.
    pub damaged_indexes: Vec<Gap>,
    /// What could not be read.
    pub gaps: Vec<Gap>,
}

impl Report {
    /// Whether nothing is missing.
    pub fn is_complete(&self) -> bool {
        self.gaps.is_empty()
    }
}

/// What a question would take, from the index alone.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Estimate {
    /// Segments in which there may be something.
    pub segments: usize,
    /// Of these, segments that need to be scanned.
    pub scanned: usize,
    /// Records found by flow; `None` where a part is known only by block.
    pub packets: Option<u64>,
    /// Bytes that would be read, about.
    pub bytes: u64,
}

/// A reader of a journal directory.
pub struct Journal {
    directory: PathBuf,
    live: Option<Arc<Live>>,
    key: Option<IndexKey>,
    /// Indexes that were opened before, by number of their segment.
    cache: Mutex<Cache>,
}

/// Headers and flow filters of indexes, up to a budget.
#[derive(Default)]
struct Cache {
    indexes: HashMap<u64, (u64, u64, Arc<IndexFile>)>,
    bytes: usize,
}

/// Bytes of checksums and flow filters kept in memory: about 1 TB of ordinary traffic.
const CACHE: usize = 96 << 20;

impl Journal {
    /// Reads a directory of segments, whoever writes to it.
    pub fn open(directory: &Path) -> Result<Self, QueryError> {
        let fail = |source| QueryError::Directory { path: directory.into(), source };
        fs::read_dir(directory).map_err(fail)?;
        // Without the key, flows are found by their addresses.
        let key = IndexKey::load(directory).ok().flatten();
        Ok(Self { directory: directory.into(), live: None, key, cache: Mutex::default() })
    }

    /// Also reads what this process is writing.
    pub fn with_live(directory: &Path, live: Arc<Live>) -> Result<Self, QueryError> {
        Ok(Self { live: Some(live), ..Self::open(directory)? })
    }

    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// The packets that a question is about.
    pub fn query(&self, query: &Query) -> Result<Answer, QueryError> {
        let asked = match self.ask(query)? {
            Ok(asked) => asked,
            Err(report) => return Ok(Answer::empty(report)),
        };
        let mut report = asked.report;
        let mut waiting = asked.plans;
        report.segments = asked.segments;
        for plan in &waiting {
            match plan.how {
                How::Index => report.indexed += 1,
                How::Live => report.live += 1,
                How::Scan => report.scanned += 1,
            }
        }
        // The earliest last, to be taken off the end.
        waiting.sort_by_key(|p| Reverse((p.min_ns, p.number)));
        Ok(Answer { waiting, streams: Vec::new(), check: asked.check, report, newest: 0 })
    }

    /// What a question would take.
    pub fn estimate(&self, query: &Query) -> Result<Estimate, QueryError> {
        let Ok(asked) = self.ask(query)? else { return Ok(Estimate::default()) };
        let mut out = Estimate { packets: Some(0), ..Estimate::default() };
        for plan in &asked.plans {
            out.segments += 1;
            out.scanned += usize::from(plan.how == How::Scan);
            match &plan.places {
                segment::Places::Exact(offsets) => {
                    out.packets = out.packets.map(|n| n + offsets.len() as u64);
                }
                segment::Places::Runs(_) => out.packets = None,
            }
            out.bytes += plan.bytes(asked.mean);
        }
        Ok(out)
    }

    /// Packets of a window that were received and not journaled, as the block records say it.
    pub fn losses(&self, from_ns: u64, to_ns: u64) -> Result<Vec<block::Gap>, QueryError> {
        let fail = |source| QueryError::Directory { path: self.directory.clone(), source };
        let entries = catalogue::list(&self.directory).map_err(fail)?;
        let ends = entries.iter().skip(1).map(|e| e.first_ns).chain([u64::MAX]);
        let mut out = Vec::new();
        for (entry, end) in entries.iter().zip(ends) {
            let slack = segment::SLACK_NS;
            let near = entry.first_ns <= to_ns.saturating_add(slack)
                && end.saturating_add(slack) >= from_ns;
            // One that is gone by now has nothing to say.
            if let (true, Ok(bytes)) = (near, fs::read(entry.companion("blk"))) {
                let gaps = block::read(&bytes, entry.number).gaps;
                out.extend(gaps.into_iter().filter(|g| g.from_ns <= to_ns && g.to_ns >= from_ns));
            }
        }
        Ok(out)
    }

    /// Everything up to the reading of packets; where an identity is no flow's, what was read for it.
    fn ask(&self, query: &Query) -> Result<Result<Asked, Report>, QueryError> {
        if query.from_ns > query.to_ns {
            return Err(QueryError::Window);
        }
        let mut check = Check::of(query)?;
        let mut segments = self.segments(query.link)?;
        let mut report = Report::default();
        if let Some(identity) = query.identity {
            match identify::resolve(self, &segments, identity, query, &mut report) {
                Some(found) => {
                    check.from_ns = check.from_ns.max(found.from_ns);
                    check.to_ns = check.to_ns.min(found.to_ns.saturating_add(join::LIFE_NS));
                    check.wanted.flow = Some(found);
                }
                None => return Ok(Err(report)),
            }
        }
        let (from_ns, to_ns) = (check.from_ns, check.to_ns);
        segments.retain(|s| {
            let (min, max) = s.times();
            // A fragment's first part may lie a little outside.
            min <= to_ns.saturating_add(join::LIFE_NS)
                && max >= from_ns.saturating_sub(join::LIFE_NS)
        });
        if check.wanted.joins() {
            let window = (from_ns, to_ns);
            check.joined =
                Joined::gather(self, &segments, &check.wanted, window, &query.stop, &mut report);
        }
        let keys = check.wanted.keys().map(|mut keys| {
            let fragments: Vec<_> = keys.iter().map(terms::fragments_of).collect();
            keys.extend(fragments);
            keys
        });
        let bound = Bound {
            keys: keys.as_deref(),
            index_key: self.key.as_ref(),
            expr: match &check.wanted.flow {
                Some(found) => identify::bound(&found.key),
                None => Expr::of_terms(&check.wanted.terms),
            },
            filter: query.filter.as_deref().map(Expr::of_filter),
            from_ns,
            to_ns,
        };
        let in_window = segments.iter().filter(|s| {
            let (min, max) = s.times();
            min <= to_ns && max >= from_ns
        });
        let count = in_window.count();
        let mean = mean_record(&segments);
        let plans = plan_all(&segments, &bound, &mut report);
        Ok(Ok(Asked { check, plans, report, segments: count, mean }))
    }

    /// The segments there are, with their indexes open.
    fn segments(&self, link: Option<u16>) -> Result<Vec<Segment>, QueryError> {
        let fail = |source| QueryError::Directory { path: self.directory.clone(), source };
        // First what is being written: what is sealed meanwhile is still in the list.
        let live = self.live.as_ref().map(|l| l.list()).unwrap_or_default();
        let entries = catalogue::list(&self.directory).map_err(fail)?;
        self.forget(&entries);
        let make = |entry: &Entry| {
            let open = live.iter().find(|l| l.number == entry.number);
            let known = match open {
                Some(open) => {
                    let written = open.written.get();
                    Known::Open { index: Arc::clone(&open.index), written }
                }
                None => self.sealed(entry),
            };
            Segment {
                number: entry.number,
                path: entry.path.clone(),
                first_ns: entry.first_ns,
                len: match &known {
                    Known::Open { written, .. } => *written,
                    _ => entry.len,
                },
                known,
            }
        };
        let mut out = in_parallel(&entries, &make);
        if let Some(link) = link {
            out.retain(|s| match &s.known {
                Known::Sealed(index) => index.link() == link,
                Known::Open { index, .. } => index.link() == link,
                Known::Nothing(_) => true,
            });
        }
        Ok(out)
    }
}

impl Journal {
    /// What is known of a segment that is not being written here.
    fn sealed(&self, entry: &Entry) -> Known {
        let Some(index_len) = entry.index_len else { return Known::Nothing(None) };
        let cache = || self.cache.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((len, of, index)) = cache().indexes.get(&entry.number)
            && (*len, *of) == (index_len, entry.len)
        {
            return Known::Sealed(Arc::clone(index));
        }
        let known = known(&entry.path, true, entry.len);
        // For one question only a process reads no filter that it may not need.
        if let (Known::Sealed(index), true) = (&known, self.live.is_some()) {
            let bytes = index.keep_filter().unwrap_or(usize::MAX);
            index.release();
            let mut cache = cache();
            if bytes <= CACHE.saturating_sub(cache.bytes) {
                cache.bytes += bytes;
                let kept = (index_len, entry.len, Arc::clone(index));
                cache.indexes.insert(entry.number, kept);
            }
        }
        known
    }

    /// Forgets the indexes of segments that are gone.
    fn forget(&self, entries: &[Entry]) {
        let mut cache = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
        if cache.indexes.is_empty() {
            return;
        }
        let there: std::collections::HashSet<u64> = entries.iter().map(|e| e.number).collect();
        cache.indexes.retain(|number, _| there.contains(number));
        cache.bytes = cache.indexes.values().map(|(_, _, i)| i.keep_filter().unwrap_or(0)).sum();
    }
}

/// Bytes of a record of these segments, on average.
fn mean_record(segments: &[Segment]) -> u64 {
    let (mut bytes, mut packets) = (0, 0);
    for s in segments {
        let n = match &s.known {
            Known::Sealed(index) => index.packets(),
            Known::Open { index, .. } => index.packets(),
            Known::Nothing(_) => continue,
        };
        bytes += s.len;
        packets += n;
    }
    bytes.checked_div(packets).unwrap_or(0)
}

/// Applies `make` to each item on a few threads, in order.
fn in_parallel<T: Sync, R: Send>(items: &[T], make: &(dyn Fn(&T) -> R + Sync)) -> Vec<R> {
    let threads = items.len().div_ceil(4).min(THREADS);
    if threads < 2 {
        return items.iter().map(make).collect();
    }
    let next = AtomicUsize::new(0);
    let mut out: Vec<(usize, R)> = std::thread::scope(|scope| {
        let work = || {
            let mut mine = Vec::new();
            loop {
                let n = next.fetch_add(1, Ordering::Relaxed);
                let Some(item) = items.get(n) else { return mine };
                mine.push((n, make(item)));
            }
        };
        let handles: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        handles.into_iter().flat_map(|h| h.join().unwrap_or_default()).collect()
    });
    out.sort_by_key(|(n, _)| *n);
    out.into_iter().map(|(_, r)| r).collect()
}

/// Plans for all segments; what cannot be opened is a gap.
fn plan_all(segments: &[Segment], bound: &Bound<'_>, report: &mut Report) -> Vec<Plan> {
    let plans = in_parallel(segments, &|s| (s.number, Plan::of(s, bound)));
    let mut out = Vec::new();
    for (number, plan) in plans {
        match plan {
            Ok(Some(plan)) => {
                if let Some(broken) = &plan.damage {
                    let index = plan.path.with_extension("idx");
                    let what = format!("{}: {}", index.display(), broken.what);
                    note(&mut report.damaged_indexes, Gap { segment: number, what });
                    if broken.lost > 0 {
                        let (path, lost) = (plan.path.display(), broken.lost);
                        let what = format!("{path}: its last {lost} bytes are gone");
                        note(&mut report.gaps, Gap { segment: number, what });
                    }
                }
                out.push(plan);
            }
            Ok(None) => {}
            Err(e) => {
                let what = opening(segments, number, &e);
                report.gaps.push(Gap { segment: number, what });
            }
        }
    }
    out
}

/// Each is said once, however often the segment is looked into.
fn note(gaps: &mut Vec<Gap>, gap: Gap) {
    if !gaps.contains(&gap) {
        gaps.push(gap);
    }
}

fn opening(segments: &[Segment], number: u64, e: &io::Error) -> String {
    let path = segments.iter().find(|s| s.number == number).map(|s| s.path.display().to_string());
    let path = path.unwrap_or_default();
    match e.kind() {
        io::ErrorKind::NotFound => format!("{path}: it expired while the question was answered"),
        _ => format!("{path}: {e}"),
    }
}

struct Asked {
    check: Check,
    plans: Vec<Plan>,
    report: Report,
    segments: usize,
    mean: u64,
}

/// Decides on each packet.
struct Check {
    wanted: Wanted,
    joined: Joined,
    /// The filter's text, and its programs by link type.
    filter: Option<String>,
    programs: HashMap<u16, Option<Filter>>,
    from_ns: u64,
    to_ns: u64,
    link: Option<u16>,
    stop: Arc<AtomicBool>,
    /// Nothing of a packet's content is asked.
    is_any: bool,
    scratch: Box<Posting>,
}

impl Check {
    fn of(query: &Query) -> Result<Self, QueryError> {
        let filter = query.filter.clone().filter(|f| !f.trim().is_empty());
        let mut programs = HashMap::new();
        if let Some(text) = &filter {
            // Wrong text is wrong on every link.
            programs.insert(1, Some(Filter::compile(text, 1)?));
        }
        let wanted = Wanted { terms: query.terms.clone(), flow: None };
        let is_any =
            !query.terms.ask_tuple() && query.terms.vlan.is_none() && query.identity.is_none();
        Ok(Self {
            wanted,
            joined: Joined::default(),
            filter,
            programs,
            from_ns: query.from_ns,
            to_ns: query.to_ns,
            link: query.link,
            stop: Arc::clone(&query.stop),
            is_any,
            scratch: Box::default(),
        })
    }

    fn wants(&mut self, reader: &Reader, found: &segment::Found, link: u16) -> bool {
        let ns = found.header.timestamp_ns;
        if ns < self.from_ns || ns > self.to_ns {
            return false;
        }
        let data = reader.data(found);
        if !self.is_any {
            read(&found.header.frame(data, link), &mut self.scratch);
            match self.wanted.verdict(&self.scratch, ns) {
                Verdict::No => return false,
                Verdict::Yes => {}
                Verdict::AsFirst => {
                    if !self.joined.has(&self.scratch, ns) {
                        return false;
                    }
                }
            }
        }
        let Some(text) = &self.filter else { return true };
        let program = self.programs.entry(link).or_insert_with(|| Filter::compile(text, link).ok());
        program.as_ref().is_some_and(|p| p.matches(data, found.header.wire_len))
    }
}

/// Packets of one segment, put in order.
struct Stream {
    reader: Reader,
    link: u16,
    /// Found, by time and offset.
    held: BinaryHeap<Reverse<Held>>,
    held_bytes: usize,
    newest: u64,
    ended: bool,
    number: u64,
}

#[derive(PartialEq, Eq)]
struct Held(Packet);

impl PartialOrd for Held {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Held {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        let key = |h: &Self| (h.0.timestamp_ns, h.0.offset);
        key(self).cmp(&key(other))
    }
}

impl Stream {
    /// Reads until the earliest packet is known; its time.
    fn ready(&mut self, check: &mut Check, report: &mut Report) -> Option<u64> {
        loop {
            if let Some(Reverse(Held(first))) = self.held.peek() {
                let floor = self.reader.floor();
                let floor = floor.unwrap_or_else(|| self.newest.saturating_sub(WAIT_NS));
                if self.ended || first.timestamp_ns <= floor || self.held_bytes >= HELD_MOST {
                    return Some(first.timestamp_ns);
                }
            } else if self.ended {
                return None;
            }
            match self.reader.next() {
                Ok(Some(found)) => {
                    self.newest = self.newest.max(found.header.timestamp_ns);
                    if check.wants(&self.reader, &found, self.link) {
                        self.held_bytes += found.header.kept as usize;
                        self.held.push(Reverse(Held(Packet {
                            timestamp_ns: found.header.timestamp_ns,
                            wire_len: found.header.wire_len,
                            link: self.link,
                            data: self.reader.data(&found).to_vec(),
                            segment: self.number,
                            offset: found.at,
                        })));
                    }
                }
                Ok(None) => self.ended = true,
                Err(e) => {
                    report.gaps.push(Gap { segment: self.number, what: e.to_string() });
                    self.ended = true;
                }
            }
        }
    }
}

/// The packets of an answer, in the order of their time.
pub struct Answer {
    /// Segments not opened yet, the earliest last.
    waiting: Vec<Plan>,
    streams: Vec<Stream>,
    check: Check,
    report: Report,
    /// The latest time given so far.
    newest: u64,
}

impl Answer {
    fn empty(report: Report) -> Self {
        let check = Check {
            wanted: Wanted::default(),
            joined: Joined::default(),
            filter: None,
            programs: HashMap::new(),
            from_ns: 0,
            to_ns: 0,
            link: None,
            stop: Arc::default(),
            is_any: true,
            scratch: Box::default(),
        };
        Self { waiting: Vec::new(), streams: Vec::new(), check, report, newest: 0 }
    }

    /// What was read and what is missing; whole when the last packet was given.
    pub fn report(&self) -> &Report {
        &self.report
    }

    /// Leaves what is not read yet.
    fn give_up(&mut self) {
        let left =
            self.streams.iter().map(|s| s.number).chain(self.waiting.iter().map(|p| p.number));
        if let Some(segment) = left.min() {
            let what = "given up before everything was read".into();
            self.report.gaps.push(Gap { segment, what });
        }
        self.streams.clear();
        self.waiting.clear();
    }

    fn open(&mut self, plan: Plan) {
        let (number, path) = (plan.number, plan.path.clone());
        match Reader::open(plan, &self.check.stop) {
            Ok((_, link)) if self.check.link.is_some_and(|wanted| wanted != link) => {}
            Ok((reader, link)) => self.streams.push(Stream {
                reader,
                link,
                held: BinaryHeap::new(),
                held_bytes: 0,
                newest: 0,
                ended: false,
                number,
            }),
            Err(e) => {
                let what = match e.kind() {
                    io::ErrorKind::NotFound => "it expired while the question was answered".into(),
                    _ => e.to_string(),
                };
                let what = format!("{}: {what}", path.display());
                self.report.gaps.push(Gap { segment: number, what });
            }
        }
    }

    /// The stream with the earliest packet.
    fn earliest(&mut self) -> Option<usize> {
        loop {
            let mut best: Option<(u64, u64, usize)> = None;
            let mut ended = Vec::new();
            for (n, stream) in self.streams.iter_mut().enumerate() {
                match stream.ready(&mut self.check, &mut self.report) {
                    Some(ns) => {
                        let mine = (ns, stream.number, n);
                        best = Some(best.map_or(mine, |b| b.min(mine)));
                    }
                    None => ended.push(n),
                }
            }
            for n in ended.iter().rev() {
                let stream = self.streams.swap_remove(*n);
                self.report.bytes_read += stream.reader.bytes_read;
                self.report.gaps.extend(stream.reader.gaps);
            }
            // A segment not opened yet may begin earlier.
            match self.waiting.pop_if(|p| best.is_none_or(|b| p.min_ns <= b.0)) {
                Some(plan) => self.open(plan),
                None if ended.is_empty() => return best.map(|b| b.2),
                None => {}
            }
        }
    }
}

impl Iterator for Answer {
    type Item = Packet;

    fn next(&mut self) -> Option<Packet> {
        if self.check.stop.load(Ordering::Relaxed) {
            self.give_up();
            return None;
        }
        let n = self.earliest()?;
        let stream = self.streams.get_mut(n)?;
        let Reverse(Held(packet)) = stream.held.pop()?;
        stream.held_bytes -= packet.data.len();
        self.report.packets += 1;
        self.report.bytes += packet.data.len() as u64;
        self.report.late += u64::from(packet.timestamp_ns < self.newest);
        self.newest = self.newest.max(packet.timestamp_ns);
        Some(packet)
    }
}
