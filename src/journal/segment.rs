//! The thread that writes chunks to segment files.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;

use crossbeam_channel::{Receiver, Sender, bounded};
use pcap_file::pcap::PcapHeader;
use pcap_file::{DataLink, Endianness, TsResolution};

use crate::status::{Counter, Counters, Published};

/// How the journal is kept.
#[derive(Clone, Debug)]
pub struct JournalConfig {
    /// Where the files go; made if it is not there.
    pub directory: PathBuf,
    /// A file is ended before it grows larger than this, bytes.
    pub rotate_size: u64,
}

/// The journal cannot be kept.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    #[error("journal directory {}: {source}; choose another with --data-dir, or --journal off", path.display())]
    Directory { path: PathBuf, source: io::Error },
    #[error("the journal's thread did not start: {0}")]
    Thread(io::Error),
}

/// Whole pcap records of one link type.
#[derive(Debug, Default)]
pub(super) struct Chunk {
    pub(super) records: Vec<u8>,
    pub(super) packets: u64,
    pub(super) link: u16,
    pub(super) first_ns: u64,
}

/// Chunks that may be filled or written at once.
const CHUNKS: usize = 32;
const CHUNK_BYTES: u64 = 1 << 18;
const SNAPLEN: u32 = 262_144;
const FILE_HEADER: u64 = 24;

/// The lcore's end of the chunk exchange.
pub(super) struct Exchange {
    pub(super) full: Sender<Chunk>,
    pub(super) empty: Receiver<Chunk>,
    /// Bytes that a chunk holds at most, unless one record alone is larger.
    pub(super) limit: usize,
}

/// The writing thread; [`Writer::finish`] waits until everything handed over is on disk.
pub struct Writer {
    thread: JoinHandle<()>,
    published: Arc<Published>,
}

impl Writer {
    /// Waits for the end, which comes when the scribe is gone, and returns what was written.
    pub fn finish(self) -> Counters {
        if self.thread.join().is_err() {
            tracing::error!("the journal's thread panicked");
        }
        self.published.load()
    }

    /// Where the counters can be read meanwhile.
    pub fn published(&self) -> Arc<Published> {
        Arc::clone(&self.published)
    }
}

/// Starts the writing thread; the exchange goes to the journal's lcore.
pub fn start(config: JournalConfig) -> Result<(super::Scribe, Writer), JournalError> {
    let directory = |source| JournalError::Directory { path: config.directory.clone(), source };
    fs::create_dir_all(&config.directory).map_err(directory)?;
    let sequence = next_sequence(&config).map_err(directory)?;
    // Fails now, not at the first packet, where we may not write.
    let probe = config.directory.join(".write-test");
    File::create(&probe).and_then(|_| fs::remove_file(&probe)).map_err(directory)?;
    let limit = CHUNK_BYTES.min(config.rotate_size - FILE_HEADER) as usize;
    let (full_tx, full_rx) = bounded::<Chunk>(CHUNKS);
    let (empty_tx, empty_rx) = bounded::<Chunk>(CHUNKS);
    for _ in 0..CHUNKS {
        // A packet larger than the limit has a chunk to itself.
        let records = Vec::with_capacity(limit.max(SNAPLEN as usize + 16));
        let _ = empty_tx.send(Chunk { records, ..Chunk::default() });
    }
    let published = Arc::new(Published::default());
    let board = Arc::clone(&published);
    let thread = std::thread::Builder::new()
        .name("journal-writer".into())
        .spawn(move || {
            Segments { config, sequence, open: Vec::new(), counters: Counters::default() }
                .run(&full_rx, &empty_tx, &board);
        })
        .map_err(JournalError::Thread)?;
    let exchange = Exchange { full: full_tx, empty: empty_rx, limit };
    Ok((super::Scribe::new(exchange), Writer { thread, published }))
}

/// One more than the largest number in the directory.
fn next_sequence(config: &JournalConfig) -> io::Result<u64> {
    let mut next = 1;
    for entry in fs::read_dir(&config.directory)? {
        let name = entry?.file_name();
        let number = name
            .to_str()
            .and_then(|n| n.strip_prefix("seg-"))
            .and_then(|n| n.split('-').next())
            .and_then(|n| n.parse::<u64>().ok());
        next = next.max(number.map_or(0, |n| n + 1));
    }
    Ok(next)
}

struct Segment {
    file: File,
    path: PathBuf,
    link: u16,
    /// Length up to the last whole record.
    len: u64,
}

struct Segments {
    config: JournalConfig,
    sequence: u64,
    open: Vec<Segment>,
    counters: Counters,
}

impl Segments {
    fn run(&mut self, full: &Receiver<Chunk>, empty: &Sender<Chunk>, board: &Published) {
        let mut warned = false;
        for mut chunk in full {
            match self.write(&chunk) {
                Ok(()) => {
                    self.counters.add(Counter::JournalPackets, chunk.packets);
                    warned = false;
                }
                Err(e) => {
                    self.counters.add(Counter::JournalNoSpace, chunk.packets);
                    if !warned {
                        tracing::error!(
                            "journal {}: {e}; packets are not kept",
                            self.config.directory.display()
                        );
                        warned = true;
                    }
                }
            }
            board.store(&self.counters);
            chunk.records.clear();
            chunk.packets = 0;
            let _ = empty.send(chunk);
        }
    }

    fn write(&mut self, chunk: &Chunk) -> io::Result<()> {
        let bytes = chunk.records.len() as u64;
        let at = self.open.iter().position(|s| s.link == chunk.link);
        let at = match at {
            Some(at) if self.open[at].len + bytes <= self.config.rotate_size => at,
            other => {
                if let Some(at) = other {
                    self.open.swap_remove(at);
                }
                let segment = self.begin(chunk.link, chunk.first_ns)?;
                self.open.push(segment);
                self.open.len() - 1
            }
        };
        let segment = &mut self.open[at];
        if let Err(e) = segment.file.write_all(&chunk.records) {
            // Back to the last whole record, so that the file stays readable.
            if let Err(again) = segment.file.set_len(segment.len) {
                tracing::warn!("{}: {again}; its last record may be cut", segment.path.display());
                self.open.swap_remove(at);
            } else {
                use std::io::Seek;
                let end = segment.len;
                segment.file.seek(io::SeekFrom::Start(end))?;
            }
            return Err(e);
        }
        segment.len += bytes;
        self.counters.add(Counter::JournalBytes, bytes);
        Ok(())
    }

    fn begin(&mut self, link: u16, first_ns: u64) -> io::Result<Segment> {
        let name = format!("seg-{:08}-{first_ns}.pcap", self.sequence);
        let path = self.config.directory.join(name);
        let mut file = OpenOptions::new().write(true).create_new(true).open(&path)?;
        let header = PcapHeader {
            snaplen: SNAPLEN,
            datalink: DataLink::from(u32::from(link)),
            ts_resolution: TsResolution::NanoSecond,
            endianness: Endianness::Little,
            ..PcapHeader::default()
        };
        let mut bytes = Vec::with_capacity(FILE_HEADER as usize);
        header.write_to(&mut bytes).map_err(io::Error::other)?;
        if let Err(e) = file.write_all(&bytes) {
            // A file without its header is no capture.
            drop(file);
            let _ = fs::remove_file(&path);
            return Err(e);
        }
        self.sequence += 1;
        self.counters.add(Counter::JournalSegments, 1);
        self.counters.add(Counter::JournalBytes, FILE_HEADER);
        Ok(Segment { file, path, link, len: FILE_HEADER })
    }
}
