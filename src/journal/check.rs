//! Checks a segment without changing it: every byte is read.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;

use super::block::{self, Blocks};
use super::catalogue::Entry;
use super::index::{FILE_HEADER, IndexFile, IndexKey, RecordHeader, link_of, rebuild};

/// What was found.
#[derive(Clone, Debug, Default)]
pub struct Found {
    /// Whole packet records from the start on.
    pub packets: u64,
    /// There is an index file.
    pub is_sealed: bool,
    /// There are block records that cover all of it.
    pub proved: bool,
    pub problems: Vec<String>,
    /// The only problem is a last record that is not whole.
    pub only_tail: bool,
}

const READ: usize = 1 << 20;

/// Checks block checksums, packet records and the index against the packets.
pub fn segment(entry: &Entry, key: Option<&IndexKey>) -> io::Result<Found> {
    let file = File::open(&entry.path)?;
    let len = file.metadata()?.len();
    let mut out = Found { is_sealed: entry.index_len.is_some(), ..Found::default() };
    let blocks = match fs::read(entry.companion("blk")) {
        Ok(bytes) => block::read(&bytes, entry.number),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Blocks::default(),
        Err(e) => return Err(e),
    };
    walk(&file, len, &mut out)?;
    checksums(&file, len, &blocks, &mut out)?;
    if let Some(from) = blocks.unverified_from.filter(|_| out.is_sealed) {
        // It says so itself; the bytes may be good.
        tracing::debug!("{}: no checksum proved byte {from} on", entry.path.display());
    }
    out.only_tail &= out.problems.len() == 1;
    if out.is_sealed {
        index(entry, len, key, &mut out);
    }
    Ok(out)
}

/// Walks the packet records.
fn walk(file: &File, len: u64, out: &mut Found) -> io::Result<()> {
    let mut header = [0; FILE_HEADER as usize];
    if len < FILE_HEADER {
        out.problems.push("the file ends within its header".into());
        out.only_tail = true;
        return Ok(());
    }
    file.read_exact_at(&mut header, 0)?;
    if link_of(&header).is_none() {
        out.problems.push("it does not begin like a segment".into());
        return Ok(());
    }
    let (mut at, mut buffer, mut start) = (FILE_HEADER, Vec::new(), 0);
    while at < len {
        let inside = at >= start && at + 16 <= start + buffer.len() as u64;
        if !inside {
            start = at;
            buffer.resize(READ.min((len - at) as usize), 0);
            file.read_exact_at(&mut buffer, at)?;
        }
        let head = buffer.get((at - start) as usize..).and_then(|b| b.first_chunk::<16>());
        let Some(head) = head else {
            out.problems.push(format!("the file ends within a record, at byte {at}"));
            out.only_tail = true;
            return Ok(());
        };
        let zeros = head.iter().all(|b| *b == 0);
        match RecordHeader::parse(head).filter(|_| !zeros) {
            Some(record) if at + record.size() <= len => at += record.size(),
            Some(_) => {
                out.problems.push(format!("the file ends within a record, at byte {at}"));
                out.only_tail = true;
                return Ok(());
            }
            None => {
                out.problems.push(format!("no packet record at byte {at}"));
                // Room that is not written yet.
                out.only_tail = zeros;
                return Ok(());
            }
        }
        out.packets += 1;
    }
    Ok(())
}

/// Holds the blocks against their records.
fn checksums(file: &File, len: u64, blocks: &Blocks, out: &mut Found) -> io::Result<()> {
    let size = u64::from(blocks.size());
    let mut proved = 0;
    for (number, records) in &blocks.blocks {
        // The one that covers most.
        let Some(record) = records.iter().max_by_key(|r| r.covered) else { continue };
        let start = u64::from(*number) * size;
        let end = start + u64::from(record.covered);
        if end > len {
            let what = format!("{} bytes are missing that were written", end - len);
            out.problems.push(what);
            continue;
        }
        let mut bytes = vec![0; record.covered as usize];
        file.read_exact_at(&mut bytes, start)?;
        if crc32c::crc32c(&bytes) != record.crc {
            out.problems.push(format!("bytes {start} to {end} do not match their checksum"));
        }
        if start == proved {
            proved = end;
        }
    }
    out.proved = proved == len;
    Ok(())
}

fn index(entry: &Entry, len: u64, key: Option<&IndexKey>, out: &mut Found) {
    let path = entry.companion("idx");
    let index = match IndexFile::open(&path, len).and_then(|i| i.verify().map(|()| i)) {
        Ok(index) => index,
        Err(e) => return out.problems.push(format!("index: {e}")),
    };
    let Some(key) = key.filter(|key| index.is_of(key)) else {
        return out
            .problems
            .push("index: made with another key; journal repair makes it anew".into());
    };
    match (rebuild(&entry.path, key), fs::read(&path)) {
        (Ok(made), Ok(stored)) if made == stored => {}
        (Ok(_), Ok(_)) => out.problems.push("index: not that of these packets".into()),
        // Said by the walk already.
        (Err(_), _) => {}
        (_, Err(e)) => out.problems.push(format!("index: {e}")),
    }
}
