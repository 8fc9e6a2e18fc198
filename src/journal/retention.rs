//! How long segments are kept: by age, by quota, by free space, oldest first.
//!
//! Age is counted in packet time, and only as far as it is believable: from one segment to the next
//! no more time passes than has passed by the monotonic clock, or, between segments that were there
//! before this process and where a source is read as fast as it can be, than [`STEP`]. So a clock
//! that is set a year ahead, or one damaged timestamp, makes nothing a year old; what is kept too
//! long for that goes by quota and free space.
//!
//! Files are unlinked whole: a reader that has one open reads it to its end. Their space comes back
//! when it closes it; meanwhile no more is deleted in its place than what is missing.

use std::collections::VecDeque;
use std::fs;
use std::io;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use super::block;
use super::catalogue::{self, Entry};
use super::index::IndexFile;
use crate::status::Kept;

/// How much is kept.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    pub age: Duration,
    /// All files of the journal, bytes.
    pub quota: Option<u64>,
    /// Of the file system, percent.
    pub min_free: u8,
}

/// The time believed between two segments without a witness.
pub const STEP: Duration = Duration::from_secs(3600);
/// Allowed beside what has passed by the monotonic clock.
const SLACK: Duration = Duration::from_secs(5);
/// How long freed space is given to show.
const SETTLE: Duration = Duration::from_secs(5);

struct Tracked {
    number: u64,
    path: PathBuf,
    bytes: u64,
    first_ns: u64,
    last_ns: u64,
    /// Believed time of its end, nanoseconds on a scale of its own.
    end: u64,
}

/// The segments that may be deleted, and what it takes to know when.
pub struct Retention {
    directory: PathBuf,
    limits: Limits,
    /// Sealed ones, by number.
    tracked: VecDeque<Tracked>,
    /// The newest time on that scale, the packet time it stands for, and when it was seen.
    now: u64,
    newest_ns: u64,
    seen: Instant,
    /// Whether packets come at the pace of the clock.
    is_live: bool,
    deleted: u64,
    /// What was deleted lately and may not show as free yet.
    settling: Option<(Instant, u64)>,
}

impl Retention {
    /// Looks at the segments that are there, of numbers below `below`.
    pub fn new(directory: PathBuf, limits: Limits, below: u64) -> io::Result<Self> {
        let entries = catalogue::list(&directory)?;
        let mut this = Self {
            directory,
            limits,
            tracked: VecDeque::new(),
            // Far from zero, so that nothing is before it.
            now: 1 << 62,
            newest_ns: 0,
            seen: Instant::now(),
            is_live: false,
            deleted: 0,
            settling: None,
        };
        for entry in entries.iter().filter(|e| e.number < below) {
            this.add(entry);
        }
        Ok(this)
    }

    /// Whether packets come at the pace of the clock, from now on.
    pub fn set_live(&mut self, is_live: bool) {
        self.is_live = is_live;
    }

    /// Takes a segment that is complete.
    pub fn add(&mut self, entry: &Entry) {
        let (first_ns, last_ns) = times(entry).unwrap_or((entry.first_ns, entry.first_ns));
        self.observe(last_ns, Instant::now());
        let tracked = Tracked {
            number: entry.number,
            path: entry.path.clone(),
            bytes: entry.bytes_on_disk(),
            first_ns,
            last_ns,
            end: self.now.saturating_sub(self.newest_ns.saturating_sub(last_ns)),
        };
        let at = self.tracked.partition_point(|t| t.number < tracked.number);
        self.tracked.retain(|t| t.number != entry.number);
        self.tracked.insert(at.min(self.tracked.len()), tracked);
    }

    /// A packet of this time was seen.
    fn observe(&mut self, ns: u64, at: Instant) {
        if ns <= self.newest_ns {
            return;
        }
        let believed = match self.is_live {
            true => at.duration_since(self.seen) + SLACK,
            false => STEP,
        };
        let step = (ns - self.newest_ns).min(believed.as_nanos() as u64);
        (self.now, self.newest_ns, self.seen) = (self.now + step, ns, at);
    }

    /// Deletes what is due. `oldest_open` and later segments are left alone; `open_bytes` is what
    /// those take.
    pub fn enforce(&mut self, newest_ns: u64, oldest_open: u64, open_bytes: u64) -> Kept {
        self.observe(newest_ns, Instant::now());
        let age = self.limits.age.as_nanos() as u64;
        while let Some(oldest) = self.oldest(oldest_open)
            && self.now - oldest.end > age
        {
            self.delete("it is older than --retention");
        }
        let mut bytes = open_bytes + self.bytes();
        while self.limits.quota.is_some_and(|quota| bytes > quota)
            && let Some(oldest) = self.oldest(oldest_open)
        {
            bytes -= oldest.bytes;
            self.delete("the journal is larger than --journal-quota");
        }
        self.free_space(oldest_open);
        self.kept(open_bytes)
    }

    fn free_space(&mut self, oldest_open: u64) {
        let Ok(fs) = rustix::fs::statvfs(&self.directory) else { return };
        let wanted =
            fs.f_blocks.saturating_mul(fs.f_frsize) / 100 * u64::from(self.limits.min_free);
        let free = fs.f_bavail.saturating_mul(fs.f_frsize);
        // What a reader has open is not free yet, and deleting more would not make it so.
        let settling = self.settling.filter(|(since, _)| since.elapsed() < SETTLE);
        let mut free = free + settling.map_or(0, |(_, bytes)| bytes);
        let mut freed = 0;
        while free < wanted
            && let Some(oldest) = self.oldest(oldest_open)
        {
            free += oldest.bytes;
            freed += oldest.bytes;
            self.delete("less than --min-free is free");
        }
        self.settling = match (settling, freed) {
            (old, 0) => old,
            (old, freed) => Some((Instant::now(), freed + old.map_or(0, |(_, bytes)| bytes))),
        };
    }

    fn oldest(&self, oldest_open: u64) -> Option<&Tracked> {
        self.tracked.front().filter(|t| t.number < oldest_open)
    }

    fn delete(&mut self, why: &str) {
        let Some(oldest) = self.tracked.pop_front() else { return };
        tracing::debug!("journal: {} is deleted: {why}", oldest.path.display());
        // The packets first: an index without them is nothing, packets without an index are whole.
        for extension in ["pcap", "idx", "blk", "torn"] {
            match fs::remove_file(oldest.path.with_extension(extension)) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => {
                    tracing::warn!("journal: {} cannot be deleted: {e}", oldest.path.display());
                }
                _ => {}
            }
        }
        self.deleted += 1;
    }

    fn bytes(&self) -> u64 {
        self.tracked.iter().map(|t| t.bytes).sum()
    }

    fn kept(&self, open_bytes: u64) -> Kept {
        // The oldest one's whole length counts: its first packet is still there.
        let oldest = self.tracked.front();
        let hours = oldest.map_or(0.0, |t| {
            let ns =
                self.now - t.end + t.last_ns.saturating_sub(t.first_ns).min(STEP.as_nanos() as u64);
            Duration::from_nanos(ns).as_secs_f64() / 3600.0
        });
        Kept {
            segments: self.tracked.len() as u64,
            bytes: self.bytes() + open_bytes,
            hours,
            deleted: self.deleted,
        }
    }
}

/// Earliest and latest packet time of a segment, by its index or else its block records.
fn times(entry: &Entry) -> Option<(u64, u64)> {
    if let Ok(index) = IndexFile::open(&entry.companion("idx"), entry.len) {
        return index.times();
    }
    let blocks = block::read(&fs::read(entry.companion("blk")).ok()?, entry.number);
    blocks.times().filter(|(_, last)| *last != u64::MAX)
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::path::Path;

    use super::*;
    use crate::journal::block::{Block, Record};

    const HOUR: u64 = 3_600_000_000_000;
    const START: u64 = 1_700_000_000_000_000_000;

    /// A segment of an hour's packets, as far as retention looks.
    fn segment(directory: &Path, number: u64, first_ns: u64, last_ns: u64) -> Entry {
        let path = directory.join(catalogue::file_name(number, first_ns));
        fs::write(&path, vec![7; 1000]).unwrap();
        let times = Some((first_ns, last_ns));
        let block = Block { number: 0, covered: 1000, first: Some(24), times, crc: 0 };
        fs::write(path.with_extension("blk"), Record::Block(block).encode(number)).unwrap();
        catalogue::list(directory).unwrap().into_iter().find(|e| e.number == number).unwrap()
    }

    fn limits(hours: u64, quota: Option<u64>) -> Limits {
        Limits { age: Duration::from_nanos(hours * HOUR), quota, min_free: 0 }
    }

    fn left(directory: &Path) -> Vec<u64> {
        catalogue::list(directory).unwrap().iter().map(|e| e.number).collect()
    }

    #[test]
    fn what_is_older_than_the_age_goes_by_packet_time_and_no_file_of_it_stays() {
        let dir = tempfile::tempdir().unwrap();
        for n in 0..10 {
            segment(dir.path(), n + 1, START + n * HOUR, START + (n + 1) * HOUR);
        }
        let mut kept = Retention::new(dir.path().into(), limits(4, None), 100).unwrap();
        let status = kept.enforce(0, u64::MAX, 0);
        // The newest ends at hour 10: those that end before hour 6 go.
        assert_eq!(left(dir.path()), [6, 7, 8, 9, 10]);
        assert_eq!((status.segments, status.deleted, status.hours), (5, 5, 5.0));
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 10);
    }

    #[test]
    fn a_clock_set_a_year_ahead_erases_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let year = 365 * 24 * HOUR;
        for n in 0..10 {
            segment(dir.path(), n + 1, START + n * HOUR / 10, START + (n + 1) * HOUR / 10);
        }
        let mut kept = Retention::new(dir.path().into(), limits(48, None), 11).unwrap();
        kept.set_live(true);
        kept.enforce(START + HOUR, u64::MAX, 0);
        // The step comes with packets of the new time, in a segment of their own.
        kept.enforce(START + year, u64::MAX, 0);
        let entry = segment(dir.path(), 11, START + year, START + year + HOUR / 10);
        kept.add(&entry);
        kept.enforce(START + year + HOUR / 5, u64::MAX, 0);
        assert_eq!(left(dir.path()).len(), 11);
        // Nor at the next start, nor when the clock is set back.
        let mut kept = Retention::new(dir.path().into(), limits(48, None), 12).unwrap();
        kept.set_live(true);
        let entry = segment(dir.path(), 12, START + 2 * HOUR, START + 3 * HOUR);
        kept.add(&entry);
        let status = kept.enforce(START + 3 * HOUR, u64::MAX, 0);
        assert_eq!(left(dir.path()).len(), 12);
        assert!(status.hours < 3.0, "{status:?}");
    }

    #[test]
    fn the_quota_takes_the_oldest_and_never_what_is_open() {
        let dir = tempfile::tempdir().unwrap();
        for n in 0..10 {
            segment(dir.path(), n + 1, START + n * HOUR / 10, START + (n + 1) * HOUR / 10);
        }
        let mut kept = Retention::new(dir.path().into(), limits(48, Some(4500)), 100).unwrap();
        let status = kept.enforce(0, 10, 1000);
        assert_eq!(left(dir.path()), [8, 9, 10]);
        assert!(status.bytes <= 4500, "{status:?}");
        kept.limits.quota = Some(0);
        kept.enforce(0, 10, 1000);
        assert_eq!(left(dir.path()), [10]);
    }

    #[test]
    fn a_reader_reads_a_deleted_segment_to_its_end() {
        let dir = tempfile::tempdir().unwrap();
        for n in 0..3 {
            segment(dir.path(), n + 1, START + n * HOUR, START + (n + 1) * HOUR);
        }
        let mut reader = fs::File::open(dir.path().join(catalogue::file_name(1, START))).unwrap();
        let mut start = [0; 100];
        reader.read_exact(&mut start).unwrap();
        let mut kept = Retention::new(dir.path().into(), limits(1, None), 100).unwrap();
        kept.enforce(0, u64::MAX, 0);
        assert_eq!(left(dir.path()), [2, 3]);
        let mut rest = Vec::new();
        reader.read_to_end(&mut rest).unwrap();
        assert_eq!(rest.len(), 900);
    }
}
