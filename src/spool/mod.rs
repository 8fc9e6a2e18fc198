//! The spool: events on disk from the moment they are accepted until every exporter has delivered
//! them.
//!
//! [`Spool::push`] returns when the events are on the disk; [`Spool::peek`] reads them in order;
//! [`Spool::keep`] moves an exporter's [`Cursor`] on, sets events aside as dead letters, and deletes
//! what every exporter has passed. Sequence numbers go on over restarts and are never given twice.
//!
//! The store is sled. Its flush does not reach the disk, so every commit ends with `fdatasync` on its
//! file; commits of several threads share one. Every value is framed and checked: a store that does
//! not open is set aside, and what can still be recognised in its bytes is taken over into a new one.
//!
//! Limits: the events' bytes are bounded by [`Limits::max_bytes`] (the disk holds up to about twice
//! that); the newest events are refused when they are reached, or when the disk has less than
//! [`Limits::reserve`] left. sled needs room to open at all, so a ballast file is kept that is given
//! up when the disk is full.

mod frame;
mod salvage;
mod store;

use std::collections::{BTreeMap, VecDeque};
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard};
use std::time::Duration;

use frame::{Kind, Reader, frame, put_text};
use salvage::Salvage;
use store::{Batch, OpenError, Store};

/// Longer lines are refused: nothing that takes events takes such.
pub const MAX_LINE: usize = 64 << 10;
/// Kept beside the store, to be given up when sled needs room to open.
const BALLAST: u64 = 16 << 20;
/// How long a sensor that is ending may take to let its spool go.
const LOCK: Duration = Duration::from_secs(1);
/// Records deleted in one batch.
const DELETE: usize = 512;
/// Event numbers reserved at once.
const RESERVE: u64 = 1 << 17;
/// What a record is counted with beside its line.
const OVERHEAD: u64 = 48;

/// What the spool cannot do.
#[derive(Debug, thiserror::Error)]
pub enum SpoolError {
    #[error("spool {}: another malakocut uses it; give each its own --data-dir", .0.display())]
    InUse(PathBuf),
    #[error("spool {}: {source} (check --data-dir and its permissions)", path.display())]
    Unusable { path: PathBuf, source: io::Error },
    #[error("the spool is full: {bytes} of {max_bytes} bytes")]
    Full { bytes: u64, max_bytes: u64 },
    #[error("the spool's disk has only {free} bytes left")]
    DiskFull { free: u64 },
    #[error("the spool's store failed: {0}")]
    Store(String),
}

/// How large the spool may become.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Bytes of events, dead letters included.
    pub max_bytes: u64,
    /// Bytes left free on the disk.
    pub reserve: u64,
}

/// An event's name, the same over restarts and repeats: the store it was accepted by, and its
/// number there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EventId {
    pub store: u64,
    pub seq: u64,
}

impl std::fmt::Display for EventId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:016x}-{}", self.store, self.seq)
    }
}

/// An event in the spool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    pub id: EventId,
    /// The event's own time, nanoseconds since 1970.
    pub time_ns: u64,
    /// One JSON object, without a newline.
    pub line: Vec<u8>,
}

/// A dead letter: an event that a receiver refuses, with what it said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dead {
    pub entry: Entry,
    pub reason: String,
}

/// A batch as it was first formed: the same events at every attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part {
    /// Sequence numbers, both inclusive.
    pub first: u64,
    pub last: u64,
    /// When it was formed, nanoseconds since 1970; bodies are stamped with it.
    pub formed_ns: u64,
    /// The batch that this is a piece of.
    pub family: u64,
    /// Another piece of the same batch was accepted.
    pub vouched: bool,
    /// It is a dead letter that is tried again.
    pub revived: bool,
}

/// How far an exporter is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cursor {
    /// The first event that is in no batch yet.
    pub next: u64,
    /// Batches that were formed and not all delivered, in order.
    pub parts: VecDeque<Part>,
}

impl Cursor {
    /// The first event this exporter still needs.
    pub fn low(&self) -> u64 {
        let open = self.parts.iter().filter(|p| !p.revived).map(|p| p.first).min();
        open.unwrap_or(self.next).min(self.next)
    }
}

/// What the spool holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Held {
    /// The oldest event kept, and the number the next one gets.
    pub head: u64,
    pub next: u64,
    pub events: u64,
    pub bytes: u64,
    pub max_bytes: u64,
}

/// How the store was found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Opened {
    /// Where a store that did not open was put, and why it did not.
    pub set_aside: Option<(PathBuf, String)>,
    /// Events taken over from it.
    pub salvaged: u64,
}

#[derive(Clone, Default)]
struct State {
    id: u64,
    next: u64,
    head: u64,
    bytes: u64,
    /// Events in the store: another count at the next start means that some were lost.
    events: u64,
    /// Numbers below this one may have been given, whatever the store says.
    reserved: u64,
    cursors: BTreeMap<String, Cursor>,
    /// There were events and no cursors when the store was opened.
    orphaned: bool,
}

/// What is noted beside the store.
struct Mark {
    id: u64,
    /// Numbers below this one may have been given.
    reserved: u64,
    /// The spool was closed in order.
    clean: bool,
}

/// See the module. Shared by threads; one at a time pushes.
pub struct Spool {
    directory: PathBuf,
    limits: Limits,
    lock: File,
    /// `None` after a failure, until it is opened again.
    store: RwLock<Option<Store>>,
    state: Mutex<State>,
    pushing: Mutex<()>,
}

impl Spool {
    /// Opens the spool in `directory`, which is made if it is not there.
    ///
    /// # Errors
    /// The directory cannot be used, or another process uses it. A damaged store is no error.
    pub fn open(directory: &Path, limits: Limits) -> Result<(Self, Opened), SpoolError> {
        let unusable = |source| SpoolError::Unusable { path: directory.to_owned(), source };
        fs::create_dir_all(directory).map_err(unusable)?;
        let lock = File::create(directory.join("lock")).map_err(unusable)?;
        match store::lock_in_time(&lock, LOCK) {
            Ok(()) => {}
            Err(fs::TryLockError::WouldBlock) => return Err(SpoolError::InUse(directory.into())),
            Err(fs::TryLockError::Error(e)) => return Err(unusable(e)),
        }
        let state = State { next: 1, head: 1, ..State::default() };
        let spool = Self {
            directory: directory.into(),
            limits,
            lock,
            store: RwLock::new(None),
            state: Mutex::new(state),
            pushing: Mutex::new(()),
        };
        let opened = match spool.reopen() {
            Ok(opened) => opened,
            // The sensor runs, and the spool opens when there is room.
            Err(SpoolError::DiskFull { .. }) => Opened::default(),
            Err(e) => return Err(e),
        };
        Ok((spool, opened))
    }

    /// Appends events, all or none; when it returns they are on the disk. Returns the number of the
    /// first.
    ///
    /// # Errors
    /// Full, or the store failed: none of them counts, and the same may be pushed again.
    pub fn push<'a>(
        &self,
        events: impl Iterator<Item = (u64, &'a [u8])>,
    ) -> Result<u64, SpoolError> {
        let _one = lock(&self.pushing);
        let store = self.working()?;
        let store = store.as_ref().ok_or_else(closed)?;
        let (first, added, count) = {
            let mut state = lock(&self.state);
            let mut batch = Batch::default();
            let (first, mut seq, mut added) = (state.next, state.next, 0);
            for (time_ns, line) in events {
                batch.insert(&event_key(seq), event_value(state.id, seq, time_ns, line));
                added += weight(line);
                seq += 1;
            }
            let bytes = state.bytes + added;
            if bytes > self.limits.max_bytes {
                let max_bytes = self.limits.max_bytes;
                return Err(SpoolError::Full { bytes: state.bytes, max_bytes });
            }
            self.check_disk(added)?;
            if seq > state.reserved {
                self.reserve(&mut state, seq).map_err(|e| self.mark_error(&e))?;
            }
            let events = state.events + (seq - first);
            put_counts(&mut batch, seq, bytes, events);
            self.guard(store.apply(batch))?;
            (state.bytes, state.events) = (bytes, events);
            (first, added, seq - first)
        };
        let committed = self.guard(store.commit());
        let mut state = lock(&self.state);
        match committed {
            Ok(()) => state.next = first + count,
            Err(e) => {
                state.bytes -= added;
                state.events -= count;
                return Err(e);
            }
        }
        Ok(first)
    }

    /// Reads up to `limit` events numbered `from` to `to`, both inclusive, in order.
    ///
    /// # Errors
    /// The store failed.
    pub fn peek(&self, from: u64, to: u64, limit: usize) -> Result<Vec<Entry>, SpoolError> {
        // What is not yet on the disk is not there.
        let to = to.min(lock(&self.state).next.saturating_sub(1));
        let store = self.working()?;
        let store = store.as_ref().ok_or_else(closed)?;
        let mut out = Vec::new();
        if from > to {
            return Ok(out);
        }
        for found in store.range(&event_key(from), &event_key(to + 1)).take(limit) {
            let (_, value) = self.guard(found)?;
            match read_event(&value) {
                Some(entry) => out.push(entry),
                None => tracing::error!("an event in the spool is damaged and is passed over"),
            }
        }
        Ok(out)
    }

    /// The number of the next event to come.
    pub fn end(&self) -> u64 {
        lock(&self.state).next
    }

    /// An exporter's cursor. One that is new begins with the next event, or with the oldest where
    /// nobody's cursor is known.
    ///
    /// # Errors
    /// The store failed; the cursor counts in this process all the same.
    pub fn cursor(&self, name: &str) -> Result<Cursor, SpoolError> {
        let cursor = {
            let mut state = lock(&self.state);
            if let Some(known) = state.cursors.get(name) {
                return Ok(known.clone());
            }
            let next = if state.orphaned { state.head } else { state.next };
            let cursor = Cursor { next, parts: VecDeque::new() };
            state.cursors.insert(name.to_owned(), cursor.clone());
            cursor
        };
        self.keep(name, &cursor, &[], &[])?;
        Ok(cursor)
    }

    /// Names of all exporters that have a cursor.
    pub fn cursors(&self) -> Vec<String> {
        lock(&self.state).cursors.keys().cloned().collect()
    }

    /// Keeps an exporter's cursor, sets events aside as its dead letters, and takes others out of
    /// them; then deletes what every exporter has passed. On the disk when it returns.
    ///
    /// # Errors
    /// The store failed; the cursor counts in this process all the same.
    pub fn keep(
        &self,
        name: &str,
        cursor: &Cursor,
        died: &[Dead],
        revived: &[u64],
    ) -> Result<(), SpoolError> {
        let store = self.working()?;
        let store = store.as_ref().ok_or_else(closed)?;
        let mut batch = Batch::default();
        batch.insert(&named_key(b'c', name, None), cursor_value(name, cursor));
        let mut state = lock(&self.state);
        let mut bytes = state.bytes;
        for dead in died {
            let key = named_key(b'd', name, Some(dead.entry.id.seq));
            if !self.guard(store.contains(&key))? {
                bytes += weight(&dead.entry.line);
            }
            batch.insert(&key, dead_value(name, dead));
        }
        for seq in revived {
            let key = named_key(b'd', name, Some(*seq));
            if let Some(value) = self.guard(store.get(&key))? {
                let dead = read_dead(&value);
                bytes = bytes.saturating_sub(dead.map_or(0, |(_, d)| weight(&d.entry.line)));
                batch.remove(&key);
            }
        }
        put_counts(&mut batch, state.next, bytes, state.events);
        self.guard(store.apply(batch))?;
        state.bytes = bytes;
        state.cursors.insert(name.to_owned(), cursor.clone());
        self.trim(store, &mut state)?;
        drop(state);
        self.guard(store.commit())
    }

    /// Drops an exporter's cursor and dead letters.
    ///
    /// # Errors
    /// The store failed.
    pub fn forget(&self, name: &str) -> Result<(), SpoolError> {
        let dead: Vec<u64> = self.dead(name, usize::MAX)?.iter().map(|d| d.entry.id.seq).collect();
        self.keep(name, &Cursor { next: self.end(), parts: VecDeque::new() }, &[], &dead)?;
        let store = self.working()?;
        let store = store.as_ref().ok_or_else(closed)?;
        let mut batch = Batch::default();
        batch.remove(&named_key(b'c', name, None));
        self.guard(store.apply(batch))?;
        lock(&self.state).cursors.remove(name);
        self.guard(store.commit())
    }

    /// Up to `limit` of an exporter's dead letters, the oldest first.
    ///
    /// # Errors
    /// The store failed.
    pub fn dead(&self, name: &str, limit: usize) -> Result<Vec<Dead>, SpoolError> {
        self.dead_from(name, 0, limit)
    }

    /// A dead letter by its event's number.
    ///
    /// # Errors
    /// The store failed.
    pub fn dead_letter(&self, name: &str, seq: u64) -> Result<Option<Dead>, SpoolError> {
        Ok(self.dead_from(name, seq, 1)?.pop().filter(|d| d.entry.id.seq == seq))
    }

    fn dead_from(&self, name: &str, seq: u64, limit: usize) -> Result<Vec<Dead>, SpoolError> {
        let store = self.working()?;
        let store = store.as_ref().ok_or_else(closed)?;
        let (from, to) = (named_key(b'd', name, Some(seq)), named_key(b'd', name, Some(u64::MAX)));
        let mut out = Vec::new();
        for found in store.range(&from, &to).take(limit) {
            out.extend(read_dead(&self.guard(found)?.1).map(|(_, dead)| dead));
        }
        Ok(out)
    }

    /// What the spool holds.
    pub fn held(&self) -> Held {
        let state = lock(&self.state);
        Held {
            head: state.head,
            next: state.next,
            events: state.events,
            bytes: state.bytes,
            max_bytes: self.limits.max_bytes,
        }
    }

    /// Deletes the events that no exporter needs.
    fn trim(&self, store: &Store, state: &mut State) -> Result<(), SpoolError> {
        let low = state.cursors.values().map(Cursor::low).min().unwrap_or(state.head);
        while state.head < low {
            let mut batch = Batch::default();
            let (mut freed, mut count, mut upto) = (0, 0, low);
            for found in store.range(&event_key(state.head), &event_key(low)) {
                let (key, value) = self.guard(found)?;
                if count == DELETE {
                    upto = event_seq(&key).unwrap_or(low);
                    break;
                }
                freed += read_event(&value).map_or(0, |e| weight(&e.line));
                batch.remove(&key);
                count += 1;
            }
            let bytes = state.bytes.saturating_sub(freed);
            let events = state.events.saturating_sub(count as u64);
            put_counts(&mut batch, state.next, bytes, events);
            self.guard(store.apply(batch))?;
            (state.bytes, state.events, state.head) = (bytes, events, upto);
        }
        Ok(())
    }

    fn check_disk(&self, added: u64) -> Result<(), SpoolError> {
        // Room that the ballast was given up for is not for events, or the store would not open again.
        let ballast = if self.lay_ballast() { 0 } else { BALLAST };
        let free = free_bytes(&self.directory).unwrap_or(u64::MAX);
        if free < self.limits.reserve + 2 * added + ballast {
            return Err(SpoolError::DiskFull { free });
        }
        Ok(())
    }

    /// The store, opened again if it has failed.
    fn working(&self) -> Result<RwLockReadGuard<'_, Option<Store>>, SpoolError> {
        {
            let store = self.store.read().unwrap_or_else(PoisonError::into_inner);
            if store.as_ref().is_some_and(|s| !s.has_failed()) {
                return Ok(store);
            }
        }
        let opened = self.reopen()?;
        if let Some((path, why)) = opened.set_aside {
            tracing::error!(
                "the spool's store was damaged ({why}) and is set aside as {}; {} events were saved",
                path.display(),
                opened.salvaged
            );
        }
        Ok(self.store.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Remembers that the store failed, so that it is opened again.
    fn guard<T>(&self, result: Result<T, sled::Error>) -> Result<T, SpoolError> {
        result.map_err(|e| {
            if let Some(store) = &*self.store.read().unwrap_or_else(PoisonError::into_inner) {
                store.fail();
            }
            match &e {
                sled::Error::Io(io) if io.kind() == io::ErrorKind::StorageFull => {
                    SpoolError::DiskFull { free: free_bytes(&self.directory).unwrap_or(0) }
                }
                _ => SpoolError::Store(e.to_string()),
            }
        })
    }

    /// Opens the store; sets a damaged one aside and saves what is in it.
    fn reopen(&self) -> Result<Opened, SpoolError> {
        let mut slot = self.store.write().unwrap_or_else(PoisonError::into_inner);
        if slot.as_ref().is_some_and(|s| !s.has_failed()) {
            return Ok(Opened::default());
        }
        // sled locks its file: the old one goes first.
        *slot = None;
        let path = self.directory.join("store");
        let mut opened = Opened::default();
        let mark = self.read_mark();
        let first = lock(&self.state).next == 1;
        // sled writes over what it takes for torn, and may open a damaged file as an empty store. So
        // after an end out of order its files are copied first, and what it drops is put back.
        let unclean = first && mark.as_ref().is_some_and(|m| !m.clean);
        let before = self.directory.join("store.before");
        let free = free_bytes(&self.directory).unwrap_or(0);
        let copied = unclean && salvage::copy(&path, &before, free).is_some();
        let seen = match (unclean, copied) {
            (true, true) => Salvage::of(&before),
            (true, false) => Salvage::of(&path),
            _ => Salvage::default(),
        };
        let open = || self.open_store(&path, mark.as_ref(), unclean, &seen);
        let mut attempt = open();
        if matches!(&attempt, Err(e) if e.is_full()) {
            // Room to open; when there is more again, the ballast is laid anew.
            let _ = fs::remove_file(self.ballast());
            attempt = open();
        }
        let (store, mut state, saved) = match attempt {
            Err(OpenError::Damaged(why)) => {
                let aside = salvage::set_aside(&path).map_err(|e| self.unusable(e))?;
                let found = if copied {
                    let _ = fs::remove_dir_all(&aside);
                    fs::rename(&before, &aside).map_err(|e| self.unusable(e))?;
                    seen.moved(&before, &aside)
                } else {
                    Salvage::of(&aside)
                };
                let begun = self.begin_anew(&path, mark.as_ref(), &found).map_err(|e| {
                    // As it was, for another time.
                    let _ = fs::remove_dir_all(&path).and_then(|()| fs::rename(&aside, &path));
                    self.open_error(e)
                })?;
                opened.set_aside = Some((aside, why));
                begun
            }
            other => other.map_err(|e| self.open_error(e))?,
        };
        opened.salvaged = saved;
        let next = state.next;
        let reserved = self.reserve(&mut state, next).map_err(|e| self.mark_error(&e));
        *lock(&self.state) = state;
        *slot = Some(store);
        drop(slot);
        reserved?;
        let _ = fs::remove_dir_all(&before);
        self.lay_ballast();
        Ok(opened)
    }

    /// Opens the store and reads its state; what was `seen` in it before is put back where it is
    /// missing, and it is said how many events that is.
    fn open_store(
        &self,
        path: &Path,
        mark: Option<&Mark>,
        unclean: bool,
        seen: &Salvage,
    ) -> Result<(Store, State, u64), OpenError> {
        let store = Store::open(path)?;
        let mut state = lock(&self.state).clone();
        if let Some(mark) = mark.filter(|_| unclean) {
            state.reserved = mark.reserved;
        }
        load(&store, &mut state, mark)?;
        let saved = put_back(&store, &mut state, seen)?;
        Ok((store, state, saved))
    }

    /// Makes a new store with what was found in a damaged one; says how many events that is.
    fn begin_anew(
        &self,
        path: &Path,
        mark: Option<&Mark>,
        found: &Salvage,
    ) -> Result<(Store, State, u64), OpenError> {
        let store = Store::open(path)?;
        let mut state = lock(&self.state).clone();
        state.reserved = state.reserved.max(mark.map_or(0, |m| m.reserved));
        let saved = take_over(&store, &mut state, found, mark)?;
        Ok((store, state, saved))
    }

    fn unusable(&self, source: io::Error) -> SpoolError {
        SpoolError::Unusable { path: self.directory.join("store"), source }
    }

    fn open_error(&self, e: OpenError) -> SpoolError {
        if e.is_full() {
            return SpoolError::DiskFull { free: free_bytes(&self.directory).unwrap_or(0) };
        }
        self.unusable(e.into_io())
    }

    /// Notes beside the store that numbers up to some beyond `next` may be given: sled opens some
    /// damaged files as an empty store.
    fn reserve(&self, state: &mut State, next: u64) -> io::Result<()> {
        let reserved = next + RESERVE;
        self.write_mark(&Mark { id: state.id, reserved, clean: false })?;
        state.reserved = reserved;
        Ok(())
    }

    fn write_mark(&self, mark: &Mark) -> io::Result<()> {
        let path = self.directory.join("mark.new");
        let mut file = File::create(&path)?;
        file.write_all(&frame(Kind::Meta, |out| {
            out.extend_from_slice(&mark.id.to_le_bytes());
            out.extend_from_slice(&mark.reserved.to_le_bytes());
            out.push(u8::from(mark.clean));
        }))?;
        file.sync_all()?;
        fs::rename(path, self.directory.join("mark"))?;
        File::open(&self.directory)?.sync_all()
    }

    fn read_mark(&self) -> Option<Mark> {
        let bytes = fs::read(self.directory.join("mark")).ok()?;
        let mut r = Reader(frame::open(&bytes, Kind::Meta)?);
        Some(Mark { id: r.u64()?, reserved: r.u64()?, clean: r.u8()? == 1 })
    }

    fn mark_error(&self, e: &io::Error) -> SpoolError {
        if e.kind() == io::ErrorKind::StorageFull {
            return SpoolError::DiskFull { free: free_bytes(&self.directory).unwrap_or(0) };
        }
        SpoolError::Store(format!("{}: {e}", self.directory.join("mark").display()))
    }

    fn ballast(&self) -> PathBuf {
        self.directory.join("ballast")
    }

    /// Lays the ballast, if it is not there and there is room; says whether it is there.
    fn lay_ballast(&self) -> bool {
        let path = self.ballast();
        if fs::metadata(&path).is_ok_and(|m| m.len() >= BALLAST) {
            return true;
        }
        if free_bytes(&self.directory).is_none_or(|free| free <= 4 * BALLAST) {
            return false;
        }
        let laid = File::create(&path).and_then(|f| {
            rustix::fs::fallocate(&f, rustix::fs::FallocateFlags::empty(), 0, BALLAST)?;
            f.sync_all()
        });
        if laid.is_err() {
            let _ = fs::remove_file(&path);
        }
        laid.is_ok()
    }
}

/// Fills a new store with what was found in a damaged one; says how many events that is.
fn take_over(
    store: &Store,
    state: &mut State,
    found: &Salvage,
    mark: Option<&Mark>,
) -> Result<u64, sled::Error> {
    state.id = mark.map_or(found.id, |m| m.id);
    if state.id == 0 {
        state.id = random_id();
    }
    // Never a number twice: what was pushed last may not have been found.
    state.next = state.next.max(found.next).max(state.reserved);
    (state.head, state.bytes, state.events) = (state.next, 0, 0);
    let mut batch = Batch::default();
    batch.insert(ID, meta_value(state.id));
    store.apply(batch)?;
    put_back(store, state, found)
}

/// Stores the events of `found` that are still wanted and are not there; says how many.
fn put_back(store: &Store, state: &mut State, found: &Salvage) -> Result<u64, sled::Error> {
    state.next = state.next.max(found.next).max(state.reserved);
    let mut batch = Batch::default();
    for (name, cursor) in &found.cursors {
        let known = state.cursors.entry(name.clone()).or_default();
        if (known.low(), known.next) < (cursor.low(), cursor.next) {
            *known = cursor.clone();
        }
    }
    for (name, cursor) in &state.cursors {
        batch.insert(&named_key(b'c', name, None), cursor_value(name, cursor));
    }
    for ((name, seq), dead) in &found.dead {
        let key = named_key(b'd', name, Some(*seq));
        if !store.contains(&key)? {
            batch.insert(&key, dead_value(name, dead));
            state.bytes += weight(&dead.entry.line);
        }
    }
    let low = state.cursors.values().map(Cursor::low).min().unwrap_or(0);
    let mut saved = 0;
    let mut waiting = 0;
    found.each(low, |seq, value, line| -> Result<(), sled::Error> {
        let key = event_key(seq);
        if store.contains(&key)? {
            return Ok(());
        }
        state.head = state.head.min(seq);
        state.bytes += weight(line);
        (saved, waiting) = (saved + 1, waiting + 1);
        batch.insert(&key, value);
        if waiting == DELETE {
            waiting = 0;
            put_counts(&mut batch, state.next, state.bytes, state.events + saved);
            store.apply(std::mem::take(&mut batch))?;
        }
        Ok(())
    })?;
    state.events += saved;
    put_counts(&mut batch, state.next, state.bytes, state.events);
    store.apply(batch)?;
    store.commit()?;
    state.orphaned = state.cursors.is_empty() && state.events > 0;
    Ok(saved)
}

impl Drop for Spool {
    fn drop(&mut self) {
        // Gives sled's file back before others may take the lock.
        *self.store.write().unwrap_or_else(PoisonError::into_inner) = None;
        let state = lock(&self.state);
        if state.id != 0 {
            let mark = Mark { id: state.id, reserved: state.reserved, clean: true };
            if let Err(e) = self.write_mark(&mark) {
                tracing::warn!("{}: {e}", self.directory.join("mark").display());
            }
        }
        // Closing it would do, but for a child process that has just been forked and still has it.
        let _ = self.lock.unlock();
    }
}

/// Reads the state of a store that opened; says what is wrong if events were lost in it.
fn load(store: &Store, state: &mut State, mark: Option<&Mark>) -> Result<(), OpenError> {
    let number = |key: &[u8]| -> Result<Option<u64>, OpenError> {
        let value = store.get(key)?;
        Ok(value.and_then(|v| Reader(frame::open(&v, Kind::Meta)?).u64()))
    };
    let id = number(ID)?;
    if mark.is_some_and(|m| id != Some(m.id)) {
        return Err(OpenError::Damaged("it is not the store that was there".into()));
    }
    let mut batch = Batch::default();
    state.id = id.unwrap_or_else(random_id);
    batch.insert(ID, meta_value(state.id));
    let running = state.next > 1;
    let (mut events, mut head, mut last) = (0, None, 0);
    for found in store.range(&event_key(0), &event_key(u64::MAX)) {
        let (key, _) = found?;
        let Some(seq) = event_seq(&key) else { continue };
        events += 1;
        last = seq;
        if running && seq >= state.next {
            // A push that failed is pushed again, so what it left is not an event.
            batch.remove(&key);
            events -= 1;
            continue;
        }
        head = head.or(Some(seq));
    }
    if !running {
        let expected = number(EVENTS)?.unwrap_or(0);
        if events != expected {
            let why = format!("it holds {events} events of {expected}");
            return Err(OpenError::Damaged(why));
        }
        state.next = number(NEXT)?.unwrap_or(1).max(last + 1);
    }
    for found in store.range(b"c", b"d") {
        if let Some((name, cursor)) = read_cursor(&found?.1) {
            state.cursors.entry(name).or_insert(cursor);
        }
    }
    state.head = head.unwrap_or(state.next);
    state.events = events;
    state.bytes = number(BYTES)?.unwrap_or(0);
    put_counts(&mut batch, state.next, state.bytes, events);
    store.apply(batch)?;
    Ok(store.commit()?)
}

const ID: &[u8] = b"mid";
const NEXT: &[u8] = b"mnext";
const BYTES: &[u8] = b"mbytes";
const EVENTS: &[u8] = b"mevents";

/// The counts that go with a change of the events.
fn put_counts(batch: &mut Batch, next: u64, bytes: u64, events: u64) {
    for (key, n) in [(NEXT, next), (BYTES, bytes), (EVENTS, events)] {
        batch.insert(key, meta_value(n));
    }
}

fn event_key(seq: u64) -> [u8; 9] {
    let mut key = [b'e'; 9];
    if let Some(number) = key.get_mut(1..) {
        number.copy_from_slice(&seq.to_be_bytes());
    }
    key
}

fn event_seq(key: &[u8]) -> Option<u64> {
    match key.split_first()? {
        (b'e', number) => Some(u64::from_be_bytes(number.try_into().ok()?)),
        _ => None,
    }
}

/// A cursor's key, or a dead letter's.
fn named_key(kind: u8, name: &str, seq: Option<u64>) -> Vec<u8> {
    let mut key = vec![kind];
    key.extend_from_slice(name.as_bytes());
    if let Some(seq) = seq {
        key.push(0);
        key.extend_from_slice(&seq.to_be_bytes());
    }
    key
}

fn weight(line: &[u8]) -> u64 {
    line.len() as u64 + OVERHEAD
}

fn meta_value(n: u64) -> Vec<u8> {
    frame(Kind::Meta, |out| out.extend_from_slice(&n.to_le_bytes()))
}

fn put_entry(out: &mut Vec<u8>, id: EventId, time_ns: u64, line: &[u8]) {
    for n in [id.store, id.seq, time_ns] {
        out.extend_from_slice(&n.to_le_bytes());
    }
    put_text(out, line);
}

fn get_entry(r: &mut Reader<'_>) -> Option<Entry> {
    let id = EventId { store: r.u64()?, seq: r.u64()? };
    Some(Entry { id, time_ns: r.u64()?, line: r.text()?.to_vec() })
}

fn event_value(store: u64, seq: u64, time_ns: u64, line: &[u8]) -> Vec<u8> {
    frame(Kind::Event, |out| put_entry(out, EventId { store, seq }, time_ns, line))
}

fn read_event(value: &[u8]) -> Option<Entry> {
    get_entry(&mut Reader(frame::open(value, Kind::Event)?))
}

fn dead_value(name: &str, dead: &Dead) -> Vec<u8> {
    frame(Kind::Dead, |out| {
        put_text(out, name.as_bytes());
        put_entry(out, dead.entry.id, dead.entry.time_ns, &dead.entry.line);
        put_text(out, dead.reason.as_bytes());
    })
}

fn read_dead(value: &[u8]) -> Option<(String, Dead)> {
    dead_of(frame::open(value, Kind::Dead)?)
}

fn dead_of(body: &[u8]) -> Option<(String, Dead)> {
    let mut r = Reader(body);
    let name = String::from_utf8(r.text()?.to_vec()).ok()?;
    let entry = get_entry(&mut r)?;
    Some((name, Dead { entry, reason: String::from_utf8_lossy(r.text()?).into_owned() }))
}

fn cursor_value(name: &str, cursor: &Cursor) -> Vec<u8> {
    frame(Kind::Cursor, |out| {
        put_text(out, name.as_bytes());
        out.extend_from_slice(&cursor.next.to_le_bytes());
        for p in &cursor.parts {
            for n in [p.first, p.last, p.formed_ns, p.family] {
                out.extend_from_slice(&n.to_le_bytes());
            }
            out.push(u8::from(p.vouched) | u8::from(p.revived) << 1);
        }
    })
}

fn read_cursor(value: &[u8]) -> Option<(String, Cursor)> {
    cursor_of(frame::open(value, Kind::Cursor)?)
}

fn cursor_of(body: &[u8]) -> Option<(String, Cursor)> {
    let mut r = Reader(body);
    let name = String::from_utf8(r.text()?.to_vec()).ok()?;
    let mut cursor = Cursor { next: r.u64()?, parts: VecDeque::new() };
    while !r.0.is_empty() {
        let (first, last, formed_ns, family) = (r.u64()?, r.u64()?, r.u64()?, r.u64()?);
        let bits = r.u8()?;
        let (vouched, revived) = (bits & 1 != 0, bits & 2 != 0);
        cursor.parts.push_back(Part { first, last, formed_ns, family, vouched, revived });
    }
    Some((name, cursor))
}

fn free_bytes(path: &Path) -> Option<u64> {
    let stat = rustix::fs::statvfs(path).ok()?;
    Some(stat.f_bavail * stat.f_frsize)
}

/// Not guessed by others, and another one for every store.
fn random_id() -> u64 {
    use std::hash::{BuildHasher, Hasher, RandomState};
    RandomState::new().build_hasher().finish().max(1)
}

fn closed() -> SpoolError {
    SpoolError::Store("it is closed".into())
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
