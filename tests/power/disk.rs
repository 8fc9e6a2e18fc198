//! A disk in memory that keeps a log of what was asked of it, and loses power.
//!
//! What is written is volatile until a sync of its file that began after the write had completed has
//! ended. A power cut keeps of the volatile writes any sectors, of a grown file any length, and of
//! the names changed since the last sync of names any first part, in order. A sync that fails drops
//! what it should have written. A kill keeps everything that had completed, and any first part of
//! what had not.

#![allow(unreachable_pub, reason = "one test binary alone has it")]

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::ops::Range;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use diskio::Filled;
use malakocut::journal::block::Boot;
use malakocut::journal::disk::{Disk, DiskFile, Queue};

/// A small generator, so that a seed tells the whole story (xorshift64*).
#[derive(Clone, Debug)]
pub struct Rng(u64);

impl Rng {
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    pub fn below(&mut self, n: u64) -> u64 {
        (self.next() >> 16) % n.max(1)
    }

    /// True in `percent` of a hundred cases.
    pub fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }

    pub fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.below(of.len() as u64) as usize]
    }
}

type Id = usize;
pub type Image = BTreeMap<String, Vec<u8>>;

#[derive(Clone)]
enum Op {
    Create(Id, String),
    Write { file: Id, at: u64, data: Arc<[u8]>, token: u64 },
    WriteDone(u64),
    SetLen(Id, u64),
    SyncBegin(Id, u64),
    SyncEnd(u64),
    SyncFailed(u64),
    Rename(String, String),
    Remove(String),
    SyncNames,
    Acknowledged(usize),
}

#[derive(Default)]
struct State {
    contents: Vec<Vec<u8>>,
    names: BTreeMap<String, Id>,
    log: Vec<Op>,
    token: u64,
}

/// What goes wrong while the power is on, in percent of the operations.
#[derive(Clone, Copy, Debug, Default)]
pub struct Faults {
    pub write: u64,
    pub sync: u64,
    /// Syncs are confirmed and not done.
    pub lies: bool,
    /// Bytes that all files together may have; beyond is no space.
    pub room: Option<u64>,
}

#[derive(Clone)]
pub struct PowerDisk {
    state: Arc<Mutex<State>>,
    rng: Arc<Mutex<Rng>>,
    pub faults: Arc<Mutex<Faults>>,
    boot: Boot,
    direct: bool,
}

#[derive(Clone)]
pub struct PowerFile {
    disk: PowerDisk,
    id: Id,
}

impl PowerDisk {
    pub fn new(rng: Rng, direct: bool, boot: u8) -> Self {
        Self {
            state: Arc::default(),
            rng: Arc::new(Mutex::new(rng)),
            faults: Arc::default(),
            boot: [boot; 16],
            direct,
        }
    }

    /// A disk with files on it.
    pub fn with(image: &Image, boot: u8) -> Self {
        let this = Self::new(Rng::new(1), false, boot);
        {
            let mut state = this.state.lock().unwrap();
            for (name, content) in image {
                let id = state.contents.len();
                state.contents.push(content.clone());
                state.names.insert(name.clone(), id);
            }
        }
        this
    }

    /// What programs see.
    pub fn image(&self) -> Image {
        let state = self.state.lock().unwrap();
        state.names.iter().map(|(name, &id)| (name.clone(), state.contents[id].clone())).collect()
    }

    pub fn content(&self, name: &str) -> Option<Vec<u8>> {
        let state = self.state.lock().unwrap();
        state.names.get(name).map(|&id| state.contents[id].clone())
    }

    /// Notes in the log that so many packets were promised.
    pub fn acknowledge(&self, packets: usize) {
        self.state.lock().unwrap().log.push(Op::Acknowledged(packets));
    }

    fn token(&self) -> u64 {
        let mut state = self.state.lock().unwrap();
        state.token += 1;
        state.token
    }

    fn log(&self, op: Op) {
        self.state.lock().unwrap().log.push(op);
    }

    fn fails(&self, percent: u64) -> bool {
        percent > 0 && self.rng.lock().unwrap().chance(percent)
    }

    fn used(&self) -> u64 {
        let state = self.state.lock().unwrap();
        state.names.values().map(|&id| state.contents[id].len() as u64).sum()
    }
}

fn not_found() -> io::Error {
    io::ErrorKind::NotFound.into()
}

fn put(content: &mut Vec<u8>, at: u64, data: &[u8]) {
    let end = at as usize + data.len();
    if content.len() < end {
        content.resize(end, 0);
    }
    content[at as usize..end].copy_from_slice(data);
}

impl Disk for PowerDisk {
    type File = PowerFile;
    type Queue = PowerQueue;

    fn create(&self, name: &str) -> io::Result<PowerFile> {
        let faults = *self.faults.lock().unwrap();
        if self.fails(faults.write / 4) {
            return Err(io::Error::from_raw_os_error(30));
        }
        let mut state = self.state.lock().unwrap();
        if state.names.contains_key(name) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        let id = state.contents.len();
        state.contents.push(Vec::new());
        state.names.insert(name.into(), id);
        state.log.push(Op::Create(id, name.into()));
        drop(state);
        Ok(PowerFile { disk: self.clone(), id })
    }

    fn open(&self, name: &str) -> io::Result<PowerFile> {
        let id = *self.state.lock().unwrap().names.get(name).ok_or_else(not_found)?;
        Ok(PowerFile { disk: self.clone(), id })
    }

    fn list(&self) -> io::Result<Vec<(String, u64)>> {
        Ok(self.image().into_iter().map(|(name, bytes)| (name, bytes.len() as u64)).collect())
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let mut state = self.state.lock().unwrap();
        let id = state.names.remove(from).ok_or_else(not_found)?;
        state.names.insert(to.into(), id);
        state.log.push(Op::Rename(from.into(), to.into()));
        Ok(())
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        let mut state = self.state.lock().unwrap();
        state.names.remove(name).ok_or_else(not_found)?;
        state.log.push(Op::Remove(name.into()));
        Ok(())
    }

    fn sync_names(&self) -> io::Result<()> {
        self.log(Op::SyncNames);
        Ok(())
    }

    fn queue(&self) -> PowerQueue {
        PowerQueue { disk: self.clone(), flights: Vec::new() }
    }

    fn boot(&self) -> Boot {
        self.boot
    }
}

impl PowerFile {
    fn checked(&self, at: u64, len: usize) -> io::Result<()> {
        let faults = *self.disk.faults.lock().unwrap();
        if self.disk.fails(faults.write) {
            return Err(io::Error::from_raw_os_error(5));
        }
        let own = self.len()?;
        let grown = self.disk.used() - own + own.max(at + len as u64);
        if faults.room.is_some_and(|room| grown > room) {
            return Err(io::ErrorKind::StorageFull.into());
        }
        Ok(())
    }

    fn begin(&self, bytes: &[u8], at: u64) -> u64 {
        let token = self.disk.token();
        self.disk.log(Op::Write { file: self.id, at, data: bytes.into(), token });
        token
    }

    fn done(&self, bytes: &[u8], at: u64, token: u64) {
        let mut state = self.disk.state.lock().unwrap();
        put(&mut state.contents[self.id], at, bytes);
        state.log.push(Op::WriteDone(token));
    }
}

impl DiskFile for PowerFile {
    fn read_at(&self, to: &mut [u8], at: u64) -> io::Result<usize> {
        let state = self.disk.state.lock().unwrap();
        let from = state.contents[self.id].get(at as usize..).unwrap_or_default();
        let n = from.len().min(to.len());
        to[..n].copy_from_slice(&from[..n]);
        Ok(n)
    }

    fn write_at(&self, bytes: &[u8], at: u64) -> io::Result<()> {
        self.checked(at, bytes.len())?;
        let token = self.begin(bytes, at);
        self.done(bytes, at, token);
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut state = self.disk.state.lock().unwrap();
        state.contents[self.id].resize(len as usize, 0);
        state.log.push(Op::SetLen(self.id, len));
        Ok(())
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.disk.state.lock().unwrap().contents[self.id].len() as u64)
    }

    fn sync(&self) -> io::Result<()> {
        let token = self.disk.token();
        self.disk.log(Op::SyncBegin(self.id, token));
        self.disk.log(Op::SyncEnd(token));
        Ok(())
    }

    fn reserve(&self, _from: u64, _bytes: u64) {}

    fn is_direct(&self) -> bool {
        self.disk.direct
    }
}

enum Flight {
    Write { id: u64, file: PowerFile, at: u64, data: Filled, range: Range<usize>, token: u64 },
    Sync { id: u64, token: u64 },
}

/// Completes in any order, when it likes.
pub struct PowerQueue {
    disk: PowerDisk,
    flights: Vec<Flight>,
}

impl Queue<PowerFile> for PowerQueue {
    fn write(&mut self, id: u64, file: &PowerFile, at: u64, data: Filled, range: Range<usize>) {
        let token = file.begin(&data.bytes()[range.clone()], at);
        self.flights.push(Flight::Write { id, file: file.clone(), at, data, range, token });
    }

    fn sync(&mut self, id: u64, file: &PowerFile) {
        let token = self.disk.token();
        self.disk.log(Op::SyncBegin(file.id, token));
        self.flights.push(Flight::Sync { id, token });
    }

    fn next(&mut self, _patience: Duration) -> Option<(u64, io::Result<()>)> {
        if self.flights.is_empty() || self.disk.fails(40) {
            return None;
        }
        let at = self.disk.rng.lock().unwrap().below(self.flights.len() as u64) as usize;
        let faults = *self.disk.faults.lock().unwrap();
        match self.flights.swap_remove(at) {
            Flight::Write { id, file, at, data, range, token } => {
                let bytes = &data.bytes()[range];
                let result = file.checked(at, bytes.len());
                if result.is_ok() {
                    file.done(bytes, at, token);
                }
                Some((id, result))
            }
            Flight::Sync { id, token } if self.disk.fails(faults.sync) => {
                self.disk.log(Op::SyncFailed(token));
                Some((id, Err(io::Error::from_raw_os_error(5))))
            }
            Flight::Sync { id, token } => {
                if !faults.lies {
                    self.disk.log(Op::SyncEnd(token));
                }
                Some((id, Ok(())))
            }
        }
    }

    fn in_flight(&self) -> usize {
        self.flights.len()
    }
}

#[derive(Clone)]
enum Change {
    Write { at: u64, data: Arc<[u8]>, token: u64, done: bool },
    SetLen(u64),
}

#[derive(Clone, Default)]
struct FileState {
    durable: Vec<u8>,
    volatile: Vec<(u64, Change)>,
}

/// Walks the log and makes what a cut leaves.
#[derive(Clone)]
pub struct Replay {
    log: Arc<Vec<Op>>,
    at: usize,
    files: Vec<FileState>,
    names: BTreeMap<String, Id>,
    name_ops: Vec<Op>,
    /// What a sync covers, by its token.
    syncs: HashMap<u64, (Id, Vec<u64>)>,
    next_change: u64,
    pub acknowledged: usize,
}

/// How much of the volatile is kept.
#[derive(Clone, Copy, Debug)]
pub struct Cut {
    pub sector: u64,
    /// Percent of the sectors.
    pub keep: u64,
    /// Sectors that were never written hold what was there before: old packets.
    pub stale: bool,
}

impl Replay {
    pub fn new(disk: &PowerDisk, before: &Image) -> Self {
        let state = disk.state.lock().unwrap();
        let mut this = Self {
            log: Arc::new(state.log.clone()),
            at: 0,
            files: Vec::new(),
            names: BTreeMap::new(),
            name_ops: Vec::new(),
            syncs: HashMap::new(),
            next_change: 0,
            acknowledged: 0,
        };
        for (name, content) in before {
            this.names.insert(name.clone(), this.files.len());
            this.files.push(FileState { durable: content.clone(), volatile: Vec::new() });
        }
        this
    }

    pub fn len(&self) -> usize {
        self.log.len()
    }

    /// Goes on to a position in the log.
    pub fn to(&mut self, position: usize, rng: &mut Rng) {
        while self.at < position.min(self.log.len()) {
            let op = self.log[self.at].clone();
            self.at += 1;
            self.take(op, rng);
        }
    }

    fn take(&mut self, op: Op, rng: &mut Rng) {
        self.next_change += 1;
        let change = self.next_change;
        match op {
            Op::Create(id, _) => {
                assert_eq!(id, self.files.len());
                self.files.push(FileState::default());
                self.name_ops.push(op);
            }
            Op::Rename(..) | Op::Remove(_) => self.name_ops.push(op),
            Op::Write { file, at, data, token } => {
                let write = Change::Write { at, data, token, done: false };
                self.files[file].volatile.push((change, write));
            }
            Op::WriteDone(wanted) => {
                for (_, change) in self.files.iter_mut().flat_map(|f| &mut f.volatile) {
                    if let Change::Write { token, done, .. } = change {
                        *done |= *token == wanted;
                    }
                }
            }
            Op::SetLen(file, len) => {
                self.files[file].volatile.push((change, Change::SetLen(len)));
            }
            Op::SyncBegin(file, token) => {
                let covered = self.files[file].volatile.iter();
                let covered = covered
                    .filter(|(_, c)| !matches!(c, Change::Write { done: false, .. }))
                    .map(|(n, _)| *n)
                    .collect();
                self.syncs.insert(token, (file, covered));
            }
            Op::SyncEnd(token) => self.settle(token, |_| true),
            // What it should have written may have reached the disk or not, and is forgotten.
            Op::SyncFailed(token) => {
                let keep = rng.pick(&[0, 50, 100]);
                self.settle(token, |_| rng.chance(keep));
            }
            Op::SyncNames => {
                for op in std::mem::take(&mut self.name_ops) {
                    apply_name(&mut self.names, &op);
                }
            }
            Op::Acknowledged(n) => self.acknowledged = n,
        }
    }

    fn settle(&mut self, token: u64, mut keep: impl FnMut(u64) -> bool) {
        let Some((file, covered)) = self.syncs.remove(&token) else { return };
        let file = &mut self.files[file];
        let (now, later): (Vec<_>, Vec<_>) =
            file.volatile.drain(..).partition(|(n, _)| covered.contains(n));
        file.volatile = later;
        for (n, change) in now {
            match change {
                Change::Write { at, data, .. } if keep(n) => put(&mut file.durable, at, &data),
                Change::SetLen(len) if keep(n) => file.durable.resize(len as usize, 0),
                _ => {}
            }
        }
    }

    /// What a power cut here leaves.
    pub fn power_cut(&self, cut: Cut, rng: &mut Rng) -> Image {
        let mut names = self.names.clone();
        let kept = rng.below(self.name_ops.len() as u64 + 1) as usize;
        self.name_ops.iter().take(kept).for_each(|op| apply_name(&mut names, op));
        let old: Vec<u8> = self
            .files
            .iter()
            .find(|f| f.durable.len() > 2000)
            .map_or_else(|| (0..4096u32).map(|n| n as u8).collect(), |f| f.durable.clone());
        let content = |id: Id, rng: &mut Rng| surviving(&self.files[id], cut, &old, rng);
        names.iter().map(|(name, &id)| (name.clone(), content(id, rng))).collect()
    }

    /// What a kill here leaves.
    pub fn kill(&self, rng: &mut Rng) -> Image {
        let mut names = self.names.clone();
        self.name_ops.iter().for_each(|op| apply_name(&mut names, op));
        let content = |id: Id, rng: &mut Rng| {
            let mut out = self.files[id].durable.clone();
            for (_, change) in &self.files[id].volatile {
                match change {
                    Change::SetLen(len) => out.resize(*len as usize, 0),
                    Change::Write { at, data, done: true, .. } => put(&mut out, *at, data),
                    Change::Write { at, data, .. } => {
                        let n = rng.below(data.len() as u64 + 1) as usize;
                        put(&mut out, *at, &data[..rng.pick(&[0, n, data.len()])]);
                    }
                }
            }
            out
        };
        names.iter().map(|(name, &id)| (name.clone(), content(id, rng))).collect()
    }
}

fn surviving(file: &FileState, cut: Cut, old: &[u8], rng: &mut Rng) -> Vec<u8> {
    let durable_len = file.durable.len();
    let mut out = file.durable.clone();
    // Which bytes behind the durable end were ever written.
    let mut written = vec![true; durable_len];
    for (_, change) in &file.volatile {
        match change {
            Change::SetLen(len) if rng.chance(50) => {
                out.resize(*len as usize, 0);
                written.resize(*len as usize, true);
            }
            Change::SetLen(_) => {}
            Change::Write { at, data, .. } => {
                let (mut from, end) = (*at, at + data.len() as u64);
                while from < end {
                    let to = (from - from % cut.sector + cut.sector).min(end);
                    if rng.chance(cut.keep) {
                        if written.len() < to as usize {
                            written.resize(to as usize, false);
                        }
                        put(&mut out, from, &data[(from - at) as usize..(to - at) as usize]);
                        written[from as usize..to as usize].fill(true);
                    }
                    from = to;
                }
            }
        }
    }
    if cut.stale {
        for (n, byte) in out.iter_mut().enumerate() {
            if !written[n] {
                *byte = old[n % old.len()];
            }
        }
    }
    // The length is kept by itself: any that it had, or was growing to.
    if out.len() > durable_len {
        let grown = (out.len() - durable_len) as u64;
        let len = durable_len as u64 + rng.below(grown + 1);
        let len = rng.pick(&[len, len - len % cut.sector, out.len() as u64]);
        out.truncate(len.max(durable_len as u64) as usize);
    }
    out
}

fn apply_name(names: &mut BTreeMap<String, Id>, op: &Op) {
    match op {
        Op::Create(id, name) => {
            names.insert(name.clone(), *id);
        }
        Op::Rename(from, to) => {
            if let Some(id) = names.remove(from) {
                names.insert(to.clone(), id);
            }
        }
        Op::Remove(name) => {
            names.remove(name);
        }
        _ => {}
    }
}
