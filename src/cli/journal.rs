//! `journal ls|verify|repair`: the journal's files.

use std::fs;
use std::io;
use std::path::Path;

use clap::{Args, Subcommand};
use serde_json::json;

use super::{Outcome, Place, Refused, text};
use crate::journal::catalogue::{self, Entry};
use crate::journal::disk::{RealDisk, replace};
use crate::journal::index::{self, Damage, IndexError, IndexFile, IndexKey};
use crate::journal::query::text::show;
use crate::journal::recover::{self, Repaired};
use crate::journal::{Indexes, JournalError, Lock, check};

#[derive(Debug, Subcommand)]
pub(super) enum Journal {
    /// List the segments
    Ls(Ls),
    /// Read every byte and check it: block checksums, packet records, indexes against the packets
    Verify(Check),
    /// Cut torn tails off (they are kept beside), make missing and damaged indexes
    Repair(Check),
}

#[derive(Debug, Args)]
pub(super) struct Ls {
    /// One JSON object a line
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    place: Place,
}

#[derive(Debug, Args)]
pub(super) struct Check {
    /// Only these segments, by number
    #[arg(value_name = "NUMBER")]
    numbers: Vec<u64>,
    #[command(flatten)]
    place: Place,
}

impl Journal {
    pub(super) fn run(&self) -> Result<Outcome, Refused> {
        match self {
            Self::Ls(ls) => ls.run(),
            Self::Verify(check) => check.verify(),
            Self::Repair(check) => check.repair(),
        }
    }
}

fn list(directory: &Path) -> Result<Vec<Entry>, Refused> {
    let fail = |e: io::Error| Refused(format!("journal directory {}: {e}", directory.display()));
    catalogue::list(directory).map_err(fail)
}

/// What is known of a segment at a glance.
struct Glance {
    state: &'static str,
    index: Option<IndexFile>,
}

fn glance(entry: &Entry) -> Glance {
    if entry.index_len.is_none() {
        return Glance { state: "open", index: None };
    }
    match IndexFile::open(&entry.companion("idx"), entry.len) {
        Ok(index) => Glance { state: "sealed", index: Some(index) },
        Err(Damage::Io(e)) if e.kind() == io::ErrorKind::NotFound => {
            Glance { state: "open", index: None }
        }
        Err(_) => Glance { state: "damaged index", index: None },
    }
}

impl Ls {
    fn run(&self) -> Result<Outcome, Refused> {
        let (directory, _) = self.place.find()?;
        let entries = list(&directory)?;
        let paint = text::Paint::for_stdout();
        if !self.json {
            let line = format!(
                "{:>8}  {:<20}  {:<20}  {:>9}  {:>9}  {:>6}  {:>4}  {}",
                "number", "from", "to", "packets", "size", "index", "link", "state"
            );
            println!("{}", paint.heading(&line));
        }
        let (mut bytes, mut packets) = (0, 0);
        for entry in &entries {
            let Glance { state, index } = glance(entry);
            let times = index.as_ref().and_then(IndexFile::times);
            let from_ns = times.map_or(entry.first_ns, |t| t.0);
            bytes += entry.bytes_on_disk();
            packets += index.as_ref().map_or(0, IndexFile::packets);
            if self.json {
                let sizes = index.as_ref().map(|i| {
                    let sizes = i.sizes().into_iter();
                    sizes
                        .map(|(name, n)| (name.to_owned(), json!(n)))
                        .collect::<serde_json::Map<_, _>>()
                });
                let line = json!({
                    "number": entry.number,
                    "file": entry.path,
                    "from_ns": from_ns,
                    "to_ns": times.map(|t| t.1),
                    "packets": index.as_ref().map(IndexFile::packets),
                    "flows": index.as_ref().map(IndexFile::flows),
                    "link": index.as_ref().map(IndexFile::link),
                    "bytes": entry.len,
                    "index_bytes": entry.index_len,
                    "index_sections": sizes,
                    "exact": index.as_ref().map(IndexFile::is_exact),
                    "state": state,
                    "torn": entry.has_torn,
                });
                println!("{line}");
                continue;
            }
            let or_dash = |n: Option<u64>| n.map_or_else(|| "-".into(), |n| n.to_string());
            let part = entry.index_len.filter(|_| index.is_some());
            let part = part.map(|n| format!("{:.2}%", n as f64 * 100.0 / entry.len.max(1) as f64));
            let state = match (state, entry.has_torn) {
                ("sealed", false) => paint.good("sealed"),
                ("sealed", true) => paint.notable("sealed, torn tail kept"),
                ("open", _) => paint.notable("open"),
                (state, _) => paint.bad(state),
            };
            println!(
                "{:>8}  {:<20}  {:<20}  {:>9}  {:>9}  {:>6}  {:>4}  {state}",
                entry.number,
                show(from_ns),
                times.map_or_else(|| "-".into(), |t| show(t.1)),
                or_dash(index.as_ref().map(IndexFile::packets)),
                text::bytes(entry.len),
                part.unwrap_or_else(|| "-".into()),
                or_dash(index.as_ref().map(|i| u64::from(i.link()))),
            );
        }
        if !self.json {
            println!(
                "{}, {} on disk, {} in sealed ones",
                text::count(entries.len() as u64, "segment"),
                text::bytes(bytes),
                text::count(packets, "packet"),
            );
        }
        Ok(Outcome::Done)
    }
}

impl Check {
    fn chosen(&self, directory: &Path) -> Result<Vec<Entry>, Refused> {
        let mut entries = list(directory)?;
        if let Some(missing) = self.numbers.iter().find(|n| entries.iter().all(|e| e.number != **n))
        {
            return Err(Refused(format!("{}: no segment {missing}", directory.display())));
        }
        entries.retain(|e| self.numbers.is_empty() || self.numbers.contains(&e.number));
        Ok(entries)
    }

    fn verify(&self) -> Result<Outcome, Refused> {
        let (directory, _) = self.place.find()?;
        let key = IndexKey::load(&directory).map_err(Refused::because)?;
        let paint = text::Paint::for_stdout();
        let in_use = matches!(Lock::take(&directory), Err(JournalError::InUse { .. }));
        let (mut good, mut bad, mut open) = (0u64, 0u64, 0u64);
        for entry in self.chosen(&directory)? {
            let found = check::segment(&entry, key.as_ref());
            let name = entry.path.display();
            match found {
                Ok(found) if found.problems.is_empty() => {
                    match found.is_sealed {
                        true => good += 1,
                        false => open += 1,
                    }
                    let what = if found.is_sealed { "good" } else { "good so far, not sealed" };
                    println!(
                        "{name}: {}, {}{}",
                        paint.good(what),
                        text::count(found.packets, "packet"),
                        if found.proved { "" } else { ", without block checksums" }
                    );
                }
                // Its end is being written.
                Ok(found) if in_use && !found.is_sealed && found.only_tail => {
                    open += 1;
                    println!(
                        "{name}: {}, {}",
                        paint.good("good so far, being written"),
                        text::count(found.packets, "packet")
                    );
                }
                Ok(found) => {
                    bad += 1;
                    for problem in &found.problems {
                        println!("{name}: {}", paint.bad(problem));
                    }
                }
                Err(e) if e.kind() == io::ErrorKind::NotFound => {
                    println!("{name}: expired meanwhile");
                }
                Err(e) => {
                    bad += 1;
                    println!("{name}: {}", paint.bad(&e.to_string()));
                }
            }
        }
        println!("{good} good, {open} not sealed yet, {bad} with problems");
        Ok(if bad == 0 { Outcome::Done } else { Outcome::Incomplete })
    }

    fn repair(&self) -> Result<Outcome, Refused> {
        let (directory, _) = self.place.find()?;
        let entries = self.chosen(&directory)?;
        // What a sensor writes to, it repairs itself.
        let _lock = Lock::take(&directory).map_err(Refused::because)?;
        let key = IndexKey::load_or_create(&directory).map_err(Refused::because)?;
        let disk = RealDisk::new(&directory);
        let indexes = Indexes { directory, key: key.clone() };
        let paint = text::Paint::for_stdout();
        let (mut fine, mut done, mut failed) = (0u64, 0u64, 0u64);
        for entry in entries {
            let name = entry.path.display();
            let was = state_of_index(&entry, &key);
            if was == IndexState::Good {
                fine += 1;
                continue;
            }
            let said = if was == IndexState::Useless { renew(&disk, &entry, &key) } else { None };
            let said = said.unwrap_or_else(|| recovered(&disk, &entry, &indexes));
            match said {
                Ok(what) => {
                    done += 1;
                    println!("{name}: {}", paint.good(&what));
                }
                Err(e) => {
                    failed += 1;
                    println!("{name}: {}", paint.bad(&format!("not repaired: {e}")));
                }
            }
        }
        println!("{fine} needed nothing, {done} repaired, {failed} could not be");
        Ok(if failed == 0 { Outcome::Done } else { Outcome::Incomplete })
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum IndexState {
    Good,
    /// There is one, damaged or of another key.
    Useless,
    Missing,
}

fn state_of_index(entry: &Entry, key: &IndexKey) -> IndexState {
    if entry.index_len.is_none() {
        return IndexState::Missing;
    }
    let checked = IndexFile::open(&entry.companion("idx"), entry.len)
        .and_then(|index| index.verify().map(|()| index.is_of(key)));
    match checked {
        Ok(true) => IndexState::Good,
        _ => IndexState::Useless,
    }
}

/// A new index for a segment that is whole; `None` if it is not.
fn renew(disk: &RealDisk, entry: &Entry, key: &IndexKey) -> Option<io::Result<String>> {
    match index::rebuild(&entry.path, key) {
        Ok(bytes) => {
            let name = entry.companion("idx");
            let name = name.file_name().and_then(|n| n.to_str()).unwrap_or_default().to_owned();
            Some(replace(disk, &name, &bytes).map(|()| "index made anew".into()))
        }
        Err(IndexError::Io { source, .. }) => Some(Err(source)),
        Err(IndexError::Pcap { .. }) => None,
    }
}

/// Cuts what is torn and makes the index, as the sensor does at its start.
fn recovered(disk: &RealDisk, entry: &Entry, indexes: &Indexes) -> io::Result<String> {
    let name = entry.path.file_name().and_then(|n| n.to_str()).unwrap_or_default();
    // Repair takes a segment with an index file for sealed.
    match fs::remove_file(entry.companion("idx")) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    Ok(match recover::repair(disk, name, indexes)? {
        Repaired::Sealed => "sealed".into(),
        Repaired::Done { packets, cut: 0 } => {
            format!("sealed with {}", text::count(packets, "packet"))
        }
        Repaired::Done { packets, cut } => format!(
            "sealed with {}; {} behind them were not packets and are kept in .torn",
            text::count(packets, "packet"),
            text::count(cut, "byte")
        ),
        Repaired::Empty => "no packet in it; removed".into(),
        Repaired::Unreadable => "does not begin like a segment; put aside as .torn".into(),
    })
}
