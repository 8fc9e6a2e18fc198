//! The segments of a journal directory, by their file names.
//!
//! A segment is `seg-<number>-<first timestamp, ns>.pcap`, in the directory itself or in one of its
//! day directories (`YYYYMMDD`). Its companions have the same stem: `.blk` (block records), `.idx`
//! (the index, written at seal) and `.torn` (a cut-off tail). Other files are not looked at.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// A segment's file names and sizes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Unique in the directory, in the order of beginning.
    pub number: u64,
    /// Time of the first packet, nanoseconds since 1970.
    pub first_ns: u64,
    /// The pcap file.
    pub path: PathBuf,
    /// Its length, bytes.
    pub len: u64,
    /// Length of the index file, bytes; `None` where there is none.
    pub index_len: Option<u64>,
    pub has_blocks: bool,
    pub has_torn: bool,
}

impl Entry {
    /// A companion's path, such as `companion("idx")`.
    pub fn companion(&self, extension: &str) -> PathBuf {
        self.path.with_extension(extension)
    }

    /// Lengths of all files of the segment together, bytes.
    pub fn bytes_on_disk(&self) -> u64 {
        let len = |extension| fs::metadata(self.companion(extension)).map_or(0, |m| m.len());
        self.len + self.index_len.unwrap_or(0) + len("blk") + len("torn")
    }
}

/// The name of a segment's pcap file.
pub fn file_name(number: u64, first_ns: u64) -> String {
    format!("seg-{number:08}-{first_ns}.pcap")
}

/// Number and first timestamp from the name of any file of a segment.
pub fn parse_name(name: &str) -> Option<(u64, u64)> {
    let stem = name.strip_prefix("seg-")?.split('.').next()?;
    let (number, first_ns) = stem.split_once('-')?;
    let digits = |s: &str| !s.is_empty() && s.bytes().all(|b| b.is_ascii_digit());
    (digits(number) && digits(first_ns)).then_some(())?;
    Some((number.parse().ok()?, first_ns.parse().ok()?))
}

/// The segments of a directory by number. A file that vanishes meanwhile is left out.
pub fn list(directory: &Path) -> io::Result<Vec<Entry>> {
    let mut out = Vec::new();
    visit(directory, &mut |path, name| {
        if let Some((number, first_ns)) = parse_name(name)
            && path.extension().is_some_and(|e| e == "pcap")
            && let Ok(meta) = fs::metadata(path)
        {
            let has = |extension| path.with_extension(extension).exists();
            out.push(Entry {
                number,
                first_ns,
                path: path.into(),
                len: meta.len(),
                index_len: fs::metadata(path.with_extension("idx")).ok().map(|m| m.len()),
                has_blocks: has("blk"),
                has_torn: has("torn"),
            });
        }
    })?;
    out.sort_by(|a, b| (a.number, &a.path).cmp(&(b.number, &b.path)));
    Ok(out)
}

/// One more than the largest number of any file of a segment, companions left behind included.
pub fn next_number(directory: &Path) -> io::Result<u64> {
    let mut next = 1;
    visit(directory, &mut |_, name| {
        if let Some((number, _)) = parse_name(name) {
            next = next.max(number + 1);
        }
    })?;
    Ok(next)
}

fn visit(directory: &Path, take: &mut dyn FnMut(&Path, &str)) -> io::Result<()> {
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let name = entry.file_name();
        let Some(name) = name.to_str() else { continue };
        let is_day = name.len() == 8 && name.bytes().all(|b| b.is_ascii_digit());
        if is_day && entry.file_type().is_ok_and(|t| t.is_dir()) {
            for inner in fs::read_dir(entry.path())? {
                let inner = inner?;
                if let Some(name) = inner.file_name().to_str() {
                    take(&inner.path(), name);
                }
            }
        } else {
            take(&entry.path(), name);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn segments_are_found_by_name_in_the_directory_and_its_days() {
        let dir = tempfile::tempdir().unwrap();
        let day = dir.path().join("20260102");
        fs::create_dir(&day).unwrap();
        for name in ["seg-00000002-20.pcap", "seg-00000002-20.idx", "seg-00000009-5.torn", "x.pcap"]
        {
            fs::write(dir.path().join(name), b"123").unwrap();
        }
        for name in ["seg-x-1.pcap", "seg-+1-1.pcap", "seg-3.pcap", "seg-00000001.pcap"] {
            fs::write(dir.path().join(name), b"").unwrap();
        }
        fs::write(day.join(file_name(1, 10)), b"1").unwrap();
        let found = list(dir.path()).unwrap();
        let about: Vec<_> =
            found.iter().map(|e| (e.number, e.first_ns, e.len, e.index_len)).collect();
        assert_eq!(about, [(1, 10, 1, None), (2, 20, 3, Some(3))]);
        assert_eq!(next_number(dir.path()).unwrap(), 10);
        assert_eq!(parse_name("seg-123456789-42.blk"), Some((123_456_789, 42)));
    }
}
