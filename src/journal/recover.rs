//! Repair of segments that were not sealed: after a crash, a kill or a power cut.
//!
//! The blocks of a segment are held against their records, from the first on, as far as they agree.
//! Behind that, if the machine has not been restarted since, nothing that was written can have been
//! lost, and packet records are taken as long as they can be ones; after a restart nothing is
//! believed that no checksum proves. What is cut off is put aside in a `.torn` file, never thrown
//! away. A segment without block records is walked to its first bad record, whatever happened.
//!
//! A second repair changes nothing, and one that is interrupted is done again.

use std::io;

use super::block::{self, Block, Blocks, Boot, Head, Ledger, Mark, Record};
use super::disk::{Disk, DiskFile, read_all, replace};
use super::writer::companion;
use super::{catalogue, pcap};

/// Makes and checks index files.
pub trait Indexer<D: Disk> {
    /// Whether the segment's index file belongs to a pcap file of this length.
    fn is_valid(&self, disk: &D, name: &str, len: u64) -> bool;
    /// The index file of a pcap file.
    fn rebuild(&self, disk: &D, name: &str) -> io::Result<Vec<u8>>;
}

/// What was done to a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Repaired {
    /// It was sealed.
    Sealed,
    /// Its index is in place; so many packets, so many bytes cut off and put aside.
    Done { packets: u64, cut: u64 },
    /// There was no packet in it; it was removed.
    Empty,
    /// It does not begin as a segment does; it was put aside as a whole.
    Unreadable,
}

/// The pcap files of a directory, by number.
pub fn segments<D: Disk>(disk: &D) -> io::Result<Vec<(u64, String)>> {
    let names = disk.list()?.into_iter().filter(|(name, _)| name.ends_with(".pcap"));
    let numbered = names.filter_map(|(name, _)| Some((catalogue::parse_name(&name)?.0, name)));
    let mut out: Vec<(u64, String)> = numbered.collect();
    out.sort();
    Ok(out)
}

/// Removes what a crash left of files that were being made, and companions of no segment, of
/// numbers below `below`.
pub fn tidy<D: Disk>(disk: &D, below: u64) -> io::Result<()> {
    let all = disk.list()?;
    for (name, _) in &all {
        let Some((number, _)) = catalogue::parse_name(name).filter(|(n, _)| *n < below) else {
            continue;
        };
        let stem = name.split('.').next().unwrap_or_default();
        let is_data = |n: &str| [".pcap", ".torn"].iter().any(|e| n.strip_suffix(e) == Some(stem));
        let orphan = [".blk", ".idx"].iter().any(|e| name.ends_with(e))
            && !all.iter().any(|(n, _)| is_data(n));
        if name.ends_with(".tmp") || orphan {
            tracing::debug!("journal: {name}, left behind by segment {number}, is removed");
            disk.remove(name)?;
        }
    }
    Ok(())
}

/// Bytes read at once.
const READ: usize = 1 << 20;

/// Repairs and seals one segment. The files must not be written by anybody else.
pub fn repair<D: Disk>(disk: &D, name: &str, indexer: &impl Indexer<D>) -> io::Result<Repaired> {
    let file = disk.open(name)?;
    let len = file.len()?;
    if indexer.is_valid(disk, name, len) {
        return Ok(Repaired::Sealed);
    }
    let number = catalogue::parse_name(name).map_or(0, |(number, _)| number);
    let mut header = [0; pcap::FILE_HEADER];
    let got = read_to(&file, &mut header, 0, len)?;
    let link = pcap::link_of(header.get(..got).unwrap_or_default());
    if len == 0 || (link.is_some() && len == pcap::FILE_HEADER as u64) {
        remove_all(disk, name)?;
        return Ok(Repaired::Empty);
    }
    if link.is_none() {
        // Whoever knows its link type can mend the header.
        disk.rename(name, &companion(name, "torn"))?;
        disk.sync_names()?;
        return Ok(Repaired::Unreadable);
    }
    let (blocks, has_records) = match disk.open(&companion(name, "blk")) {
        Ok(records) => (block::read(&read_all(&records)?, number), true),
        Err(e) if e.kind() == io::ErrorKind::NotFound => (Blocks::default(), false),
        Err(e) => return Err(e),
    };
    let boot = blocks.head.map(|h| h.boot);
    let may_walk = !has_records || boot == Some(disk.boot()) && disk.boot() != Boot::default();
    let found = examine(&file, len, &blocks, may_walk)?;
    if found.mark.packets == 0 {
        put_aside(disk, name, &file, pcap::FILE_HEADER as u64, len)?;
        remove_all(disk, name)?;
        return Ok(Repaired::Empty);
    }
    put_aside(disk, name, &file, found.mark.end, len)?;
    // Before the cut: the old records prove whole blocks, which the cut makes shorter.
    replace(disk, &companion(name, "blk"), &records(number, &blocks, &found))?;
    // Also gives back what was reserved behind the end.
    file.set_len(found.mark.end)?;
    file.sync()?;
    replace(disk, &companion(name, "idx"), &indexer.rebuild(disk, name)?)?;
    Ok(Repaired::Done { packets: found.mark.packets, cut: len - found.mark.end })
}

/// What a segment was found to hold.
struct Found {
    /// Its last whole packet.
    mark: Mark,
    /// Bytes proved by checksums.
    proved: u64,
    /// Records of the blocks up to the mark.
    blocks: Vec<Block>,
}

fn examine<F: DiskFile>(file: &F, len: u64, blocks: &Blocks, may_walk: bool) -> io::Result<Found> {
    let size = blocks.size();
    let proved = proved_prefix(file, len, blocks)?;
    let mut ledger = Ledger::new(size);
    feed(file, &mut ledger, proved, &mut |_| {})?;
    if may_walk {
        let end = walkable(blocks, proved, len);
        feed(file, &mut ledger, end, &mut |_| {})?;
    }
    let mark = ledger.mark();
    // Once more to the mark only, for the records of what is left.
    let (mut ledger, mut all) = (Ledger::new(size), Vec::new());
    feed(file, &mut ledger, mark.end, &mut |block| all.push(block))?;
    all.extend(ledger.marked());
    Ok(Found { mark, proved: proved.min(mark.end), blocks: all })
}

/// How many bytes from the start agree with their records.
fn proved_prefix<F: DiskFile>(file: &F, len: u64, blocks: &Blocks) -> io::Result<u64> {
    let size = u64::from(blocks.size());
    let mut bytes = vec![0; blocks.size() as usize];
    let mut proved = 0;
    for (number, records) in &blocks.blocks {
        let start = u64::from(*number) * size;
        // Whole blocks up to this one, or nothing behind can be joined to the start.
        if start != proved {
            break;
        }
        let got = read_to(file, &mut bytes, start, len)?;
        let agrees = |b: &&Block| {
            let covered = bytes.get(..b.covered as usize).filter(|_| b.covered as usize <= got);
            covered.is_some_and(|covered| crc32c::crc32c(covered) == b.crc)
        };
        let best = records.iter().filter(agrees).map(|b| b.covered).max();
        proved += u64::from(best.unwrap_or(0));
    }
    Ok(proved)
}

/// Up to where the file may be walked without proof: to its end, or to the next block that has a
/// record it does not agree with.
fn walkable(blocks: &Blocks, proved: u64, len: u64) -> u64 {
    let size = u64::from(blocks.size());
    let disagrees = blocks.blocks.iter().find(|(number, records)| {
        let start = u64::from(**number) * size;
        let covered = records.iter().map(|b| u64::from(b.covered)).max().unwrap_or(0);
        start + covered > proved
    });
    disagrees.map_or(len, |(number, _)| (u64::from(*number) * size).max(proved))
}

fn feed<F: DiskFile>(
    file: &F,
    ledger: &mut Ledger,
    to: u64,
    full: &mut impl FnMut(Block),
) -> io::Result<()> {
    let mut bytes = vec![0; READ];
    while ledger.at() < to {
        let got = read_to(file, &mut bytes, ledger.at(), to)?;
        if got == 0 {
            break;
        }
        ledger.take(bytes.get(..got).unwrap_or_default(), full);
    }
    Ok(())
}

/// Fills `to` from `at` on, not beyond `end`.
fn read_to<F: DiskFile>(file: &F, to: &mut [u8], at: u64, end: u64) -> io::Result<usize> {
    let most = usize::try_from(end.saturating_sub(at)).unwrap_or(usize::MAX).min(to.len());
    let mut got = 0;
    while let Some(rest) = to.get_mut(got..most).filter(|rest| !rest.is_empty()) {
        match file.read_at(rest, at + got as u64) {
            Ok(0) => break,
            Ok(n) => got += n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(got)
}

/// Copies what is behind `from` to the `.torn` file, unless there is nothing but zeros.
fn put_aside<D: Disk>(disk: &D, name: &str, file: &D::File, from: u64, len: u64) -> io::Result<()> {
    let mut bytes = vec![0; READ];
    let mut last = from;
    let mut at = from;
    while at < len {
        let got = read_to(file, &mut bytes, at, len)?;
        if got == 0 {
            break;
        }
        let read = bytes.get(..got).unwrap_or_default();
        if let Some(n) = read.iter().rposition(|&b| b != 0) {
            last = at + n as u64 + 1;
        }
        at += got as u64;
    }
    if last == from {
        return Ok(());
    }
    let (torn, beside) = (companion(name, "torn"), companion(name, "torn.tmp"));
    match disk.remove(&beside) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    let mut copy = || -> io::Result<()> {
        let to = disk.create(&beside)?;
        let mut at = from;
        while at < last {
            let got = read_to(file, &mut bytes, at, last)?;
            if got == 0 {
                break;
            }
            to.write_at(bytes.get(..got).unwrap_or_default(), at - from)?;
            at += got as u64;
        }
        to.sync()?;
        disk.rename(&beside, &torn)?;
        disk.sync_names()
    };
    copy().inspect_err(|_| {
        let _ = disk.remove(&beside);
    })
}

/// The pcap file first: companions without it are tidied up at the next start.
fn remove_all<D: Disk>(disk: &D, name: &str) -> io::Result<()> {
    disk.remove(name)?;
    for extension in ["idx", "blk"] {
        match disk.remove(&companion(name, extension)) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
    }
    disk.sync_names()
}

/// The block file of a repaired segment. Its boot is nobody's: what it does not prove was cut off.
fn records(number: u64, old: &Blocks, found: &Found) -> Vec<u8> {
    let head = Head { block: old.size(), boot: Boot::default() };
    let mut all = vec![Record::Head(head)];
    all.extend(old.gaps.iter().copied().map(Record::Gap));
    let unverified = match old.unverified_from {
        Some(from) => Some(from.min(found.proved)),
        None => (found.proved < found.mark.end).then_some(found.proved),
    };
    all.extend(unverified.map(|from| Record::Unverified { from }));
    all.extend(found.blocks.iter().copied().map(Record::Block));
    all.iter().flat_map(|r| r.encode(number)).collect()
}
