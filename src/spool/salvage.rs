//! What can still be recognised in the files of a store that does not open.
//!
//! The store's files are read from end to end for whole frames. An old value of a key may be found
//! beside its newest: events never change, and of an exporter's cursors the one that is farthest
//! counts, so at worst an event is delivered twice under the same id.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use super::frame::{self, Kind, MAX_BODY, Reader};
use super::{Cursor, Dead, EventId, cursor_of, dead_of, get_entry};

const CHUNK: usize = 1 << 20;

/// Where the body of an event's value lies.
#[derive(Clone, Copy)]
struct Place {
    file: u32,
    at: u64,
    len: u32,
    crc: u32,
}

/// What was found.
#[derive(Default)]
pub(super) struct Salvage {
    /// The newest store id seen in an event; 0: none.
    pub(super) id: u64,
    /// One more than the highest event number seen.
    pub(super) next: u64,
    pub(super) cursors: BTreeMap<String, Cursor>,
    /// By exporter and event number; one that was tried again may be among them.
    pub(super) dead: BTreeMap<(String, u64), Dead>,
    files: Vec<PathBuf>,
    events: BTreeMap<u64, Place>,
}

/// Moves a store out of the way, to `<path>.damaged-<n>`.
pub(super) fn set_aside(path: &Path) -> io::Result<PathBuf> {
    let to = (1..)
        .map(|n| path.with_extension(format!("damaged-{n}")))
        .find(|p| !p.exists())
        .ok_or_else(|| io::Error::other("no name left for a damaged store"))?;
    fs::rename(path, &to)?;
    Ok(to)
}

/// A copy of a store's files as they are, if the disk has room for it.
pub(super) fn copy(path: &Path, to: &Path, free: u64) -> Option<()> {
    let files = || fs::read_dir(path).ok().map(|d| d.flatten().filter(|e| e.path().is_file()));
    let size: u64 = files()?.filter_map(|e| Some(e.metadata().ok()?.len())).sum();
    let _ = fs::remove_dir_all(to);
    if free < 2 * size + (64 << 20) {
        return None;
    }
    fs::create_dir(to).ok()?;
    for file in files()? {
        fs::copy(file.path(), to.join(file.file_name())).ok()?;
    }
    Some(())
}

impl Salvage {
    /// Reads everything in `directory`; what cannot be read is passed over.
    pub(super) fn of(directory: &Path) -> Self {
        let mut this = Self::default();
        let mut folders = vec![directory.to_owned()];
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
                match entry.file_type() {
                    Ok(kind) if kind.is_dir() => folders.push(entry.path()),
                    Ok(kind) if kind.is_file() => this.files.push(entry.path()),
                    _ => {}
                }
            }
        }
        for (n, path) in this.files.clone().iter().enumerate() {
            if let Err(e) = this.read(n as u32, path) {
                tracing::warn!("{}: {e}; the rest of it is not salvaged", path.display());
            }
        }
        this
    }

    /// The same files, in another place.
    pub(super) fn moved(mut self, from: &Path, to: &Path) -> Self {
        for path in &mut self.files {
            if let Ok(rest) = path.strip_prefix(from) {
                *path = to.join(rest);
            }
        }
        self
    }

    fn read(&mut self, number: u32, path: &Path) -> io::Result<()> {
        let mut file = File::open(path)?;
        let mut bytes = Vec::with_capacity(CHUNK + MAX_BODY + 64);
        let (mut at, mut ended) = (0u64, false);
        while !ended {
            let before = bytes.len();
            let room = CHUNK + MAX_BODY;
            ended = (&mut file).take(room as u64).read_to_end(&mut bytes)? == 0;
            let real = bytes.len();
            if ended {
                // Behind the end nothing goes on.
                bytes.resize(before + MAX_BODY + 64, 0);
            }
            let whole = bytes.as_ptr();
            let left = frame::scan(&bytes, |kind, body| {
                let offset = body.as_ptr().addr() - whole.addr();
                self.take(kind, body, number, at + offset as u64);
            });
            let keep = if ended { 0 } else { left.min(real) };
            at += (real - keep) as u64;
            bytes.truncate(real);
            bytes.drain(..real - keep);
        }
        Ok(())
    }

    fn take(&mut self, kind: Kind, body: &[u8], file: u32, at: u64) {
        let mut r = Reader(body);
        match kind {
            Kind::Event => {
                let Some(entry) = get_entry(&mut r) else { return };
                let EventId { store, seq } = entry.id;
                if seq + 1 > self.next {
                    (self.next, self.id) = (seq + 1, store);
                }
                let (len, crc) = (body.len() as u32, crc32fast::hash(body));
                self.events.insert(seq, Place { file, at, len, crc });
            }
            Kind::Cursor => {
                let Some((name, cursor)) = cursor_of(body) else { return };
                self.next = self.next.max(cursor.next);
                let known = self.cursors.entry(name).or_default();
                if (cursor.low(), cursor.next) >= (known.low(), known.next) {
                    *known = cursor;
                }
            }
            Kind::Dead => {
                let Some((name, dead)) = dead_of(body) else { return };
                self.dead.insert((name, dead.entry.id.seq), dead);
            }
            Kind::Meta => {}
        }
    }

    /// Calls `each` with number, value and line of every event from `low` on, in order.
    pub(super) fn each<E>(
        &self,
        low: u64,
        mut each: impl FnMut(u64, Vec<u8>, &[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut open: BTreeMap<u32, File> = BTreeMap::new();
        for (&seq, &Place { file, at, len, crc }) in self.events.range(low..) {
            let mut body = vec![0; len as usize];
            let mut read = || -> io::Result<()> {
                let path = self.files.get(file as usize).ok_or(io::ErrorKind::NotFound)?;
                let handle = match open.entry(file) {
                    std::collections::btree_map::Entry::Occupied(e) => e.into_mut(),
                    std::collections::btree_map::Entry::Vacant(e) => e.insert(File::open(path)?),
                };
                handle.seek(SeekFrom::Start(at))?;
                handle.read_exact(&mut body)
            };
            if let Err(e) = read() {
                tracing::warn!("event {seq} could not be read again: {e}");
                continue;
            }
            // sled may have written over it since.
            if crc32fast::hash(&body) != crc {
                continue;
            }
            let Some(entry) = get_entry(&mut Reader(&body)) else { continue };
            let value = frame::frame(Kind::Event, |out| out.extend_from_slice(&body));
            each(seq, value, &entry.line)?;
        }
        Ok(())
    }
}
