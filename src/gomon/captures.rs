//! The last packets of each host, and the capture files made of them.
//!
//! Packets go one after the other into an arena of [`ARENA`] bytes, the oldest are overwritten;
//! each names the place of its host's packet before it. So a packet costs one copy, and nothing
//! grows. Where another host's packets have overwritten some, a capture holds fewer than asked for,
//! which is counted. Hosts above [`HOSTS`] are not kept, and counted too.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, BufWriter};
use std::path::{Path, PathBuf};
use std::time::Duration;

use arrayvec::ArrayVec;
use jiff::Timestamp;
use pcap_file::pcap::{PcapHeader, PcapPacket, PcapWriter};
use pcap_file::{DataLink, Endianness, TsResolution};

use crate::detect::Host;

/// Bytes of packets kept at most.
pub(super) const ARENA: usize = 64 << 20;
/// Hosts of which packets are kept at most, each window.
pub(super) const HOSTS: usize = 1 << 16;
/// Segments of a packet; the longest frame of an interface has half as many.
const PIECES: usize = 64;
const SNAPLEN: u32 = 262_144;
/// No place.
const NONE: u64 = u64::MAX;

/// A packet's header in the arena.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Header {
    /// Where the host's packet before this one begins.
    before: u64,
    timestamp_ns: u64,
    wire_len: u32,
    len: u32,
    link: u16,
    /// The remote end's port.
    port: u16,
}

const HEADER: usize = 28;

impl Header {
    fn bytes(&self) -> [u8; HEADER] {
        let mut out = [0; HEADER];
        out[..8].copy_from_slice(&self.before.to_le_bytes());
        out[8..16].copy_from_slice(&self.timestamp_ns.to_le_bytes());
        out[16..20].copy_from_slice(&self.wire_len.to_le_bytes());
        out[20..24].copy_from_slice(&self.len.to_le_bytes());
        out[24..26].copy_from_slice(&self.link.to_le_bytes());
        out[26..].copy_from_slice(&self.port.to_le_bytes());
        out
    }

    fn read(b: &[u8; HEADER]) -> Self {
        let long = |at: usize| {
            u64::from_le_bytes([
                b[at],
                b[at + 1],
                b[at + 2],
                b[at + 3],
                b[at + 4],
                b[at + 5],
                b[at + 6],
                b[at + 7],
            ])
        };
        let word = |at: usize| u32::from_le_bytes([b[at], b[at + 1], b[at + 2], b[at + 3]]);
        let half = |at: usize| u16::from_le_bytes([b[at], b[at + 1]]);
        Self {
            before: long(0),
            timestamp_ns: long(8),
            wire_len: word(16),
            len: word(20),
            link: half(24),
            port: half(26),
        }
    }
}

/// A packet to keep.
#[derive(Clone, Copy, Debug)]
pub(super) struct Packet {
    pub(super) timestamp_ns: u64,
    pub(super) wire_len: u32,
    /// LINKTYPE_ number.
    pub(super) link: u16,
    /// The remote end.
    pub(super) host: Host,
    pub(super) port: u16,
}

/// Keeps packets of the current window.
pub(super) struct Keeper {
    arena: Vec<u8>,
    /// Where the next packet goes; places count up for ever, modulo the arena's size.
    head: u64,
    /// Where each host's last packet begins.
    last: HashMap<Host, u64>,
    /// How many packets a capture is to hold.
    want: usize,
    directory: PathBuf,
    sample: String,
    pub(super) saved: u64,
    pub(super) failed: u64,
    /// Packets that were wanted but overwritten, of another link type, or of a host too many.
    pub(super) missing: u64,
}

/// One file of an attacked endpoint.
struct Plan {
    port: u16,
    /// Named without the port, and of all the host's packets.
    of_host: bool,
}

impl Keeper {
    pub(super) fn new(want: usize, directory: &Path, sample: &str) -> Self {
        Self {
            // Zero pages: memory only as it is used.
            arena: vec![0; ARENA],
            head: 0,
            last: HashMap::default(),
            want,
            directory: directory.into(),
            sample: sample.into(),
            saved: 0,
            failed: 0,
            missing: 0,
        }
    }

    /// Forgets the window's packets.
    pub(super) fn clear(&mut self) {
        self.last.clear();
        self.head = 0;
    }

    /// Keeps one packet, whose bytes come in pieces.
    pub(super) fn keep<'a>(&mut self, p: &Packet, data: impl Iterator<Item = &'a [u8]>) {
        let pieces: ArrayVec<&[u8], PIECES> = data.take(PIECES).collect();
        let len: usize = pieces.iter().map(|p| p.len()).sum();
        let size = HEADER + len;
        if size > self.arena.len() {
            self.missing += 1;
            return;
        }
        if self.last.len() >= HOSTS && !self.last.contains_key(&p.host) {
            self.missing += 1;
            return;
        }
        let room = self.arena.len() as u64;
        let mut start = self.head;
        // Never across the end.
        if start % room + size as u64 > room {
            start = start.next_multiple_of(room);
        }
        let before = self.last.insert(p.host, start).unwrap_or(NONE);
        let header = Header {
            before,
            timestamp_ns: p.timestamp_ns,
            wire_len: p.wire_len,
            len: len as u32,
            link: p.link,
            port: p.port,
        };
        let mut at = (start % room) as usize;
        for piece in [&header.bytes()[..]].into_iter().chain(pieces) {
            if let Some(to) = self.arena.get_mut(at..at + piece.len()) {
                to.copy_from_slice(piece);
            }
            at += piece.len();
        }
        self.head = start + size as u64;
    }

    /// A host's packets, newest first, as far as they are still there.
    fn packets(&self, host: Host) -> impl Iterator<Item = (Header, &[u8])> {
        let room = self.arena.len() as u64;
        let mut next = self.last.get(&host).copied().unwrap_or(NONE);
        std::iter::from_fn(move || {
            if next == NONE || next + room < self.head {
                return None;
            }
            let at = (next % room) as usize;
            let header = Header::read(self.arena.get(at..)?.first_chunk()?);
            let data = self.arena.get(at + HEADER..at + HEADER + header.len as usize)?;
            next = header.before;
            Some((header, data))
        })
    }

    /// Writes the captures of a host's attacked ports: the host's last packets, and where several
    /// ports were attacked, the last ones of each further port in a file with its name.
    pub(super) fn save(&mut self, host: Host, ports: &[u16], start_ns: u64) {
        for plan in self.plan(host, ports) {
            let path = self.directory.join(self.name(host, &plan, start_ns));
            match self.write(&path, host, &plan) {
                Ok((count, missing)) => {
                    self.saved += 1;
                    self.missing += missing;
                    tracing::info!(path = %path.display(), count, "Saved attack packet capture");
                    if missing > 0 {
                        tracing::warn!(
                            path = %path.display(),
                            missing,
                            "Capture is incomplete; other packets took the memory"
                        );
                    }
                }
                Err(error) => {
                    self.failed += 1;
                    tracing::error!(
                        path = %path.display(),
                        %error,
                        "Failed to write captured packets"
                    );
                }
            }
        }
    }

    /// The port of the host's newest packet gets the file that is named after the host alone.
    fn plan(&self, host: Host, ports: &[u16]) -> Vec<Plan> {
        let newest = match ports {
            [one] => Some(*one),
            _ => self.packets(host).map(|(h, _)| h.port).find(|p| ports.contains(p)),
        };
        ports.iter().map(|&port| Plan { port, of_host: newest == Some(port) }).collect()
    }

    /// `attack_<sample>_<ip>_<time>.pcap`, or with the port behind the address.
    fn name(&self, host: Host, plan: &Plan, start_ns: u64) -> String {
        let time = Timestamp::from_nanosecond(start_ns.into()).unwrap_or_default();
        let mut parts = vec!["attack".to_owned()];
        if !self.sample.is_empty() {
            parts.push(as_file_name(&self.sample));
        }
        parts.push(as_file_name(&host.to_string()));
        if !plan.of_host {
            parts.push(plan.port.to_string());
        }
        parts.push(time.strftime("%Y%m%dT%H%M%SZ.pcap").to_string());
        parts.join("_")
    }

    /// Returns how many packets were written, and how many more there should have been.
    fn write(&self, path: &Path, host: Host, plan: &Plan) -> io::Result<(usize, u64)> {
        let mut oldest = NONE;
        let mut packets: Vec<(Header, &[u8])> = self
            .packets(host)
            .inspect(|(h, _)| oldest = h.before)
            .filter(|(h, _)| plan.of_host || h.port == plan.port)
            .take(self.want)
            .collect();
        packets.reverse();
        // A capture file has one link type.
        let link = packets.last().map_or(1, |(h, _)| h.link);
        let mut missing = packets.iter().filter(|(h, _)| h.link != link).count() as u64;
        // The chain was walked to its end, and that was not its beginning.
        missing += u64::from(packets.len() < self.want && oldest != NONE);
        packets.retain(|(h, _)| h.link == link);
        fs::create_dir_all(&self.directory)?;
        let header = PcapHeader {
            snaplen: SNAPLEN,
            datalink: DataLink::from(u32::from(link)),
            ts_resolution: TsResolution::MicroSecond,
            endianness: Endianness::native(),
            ..PcapHeader::default()
        };
        let to_io = |e: pcap_file::PcapError| io::Error::other(e);
        let file = BufWriter::new(File::create(path)?);
        let mut writer = PcapWriter::with_header(file, header).map_err(to_io)?;
        for (h, data) in &packets {
            let time = Duration::from_nanos(h.timestamp_ns);
            let data = data.get(..SNAPLEN as usize).unwrap_or(data);
            writer.write_packet(&PcapPacket::new(time, h.wire_len, data)).map_err(to_io)?;
        }
        let mut file = writer.into_writer();
        io::Write::flush(&mut file)?;
        Ok((packets.len(), missing))
    }
}

fn as_file_name(text: &str) -> String {
    text.chars()
        .map(|c| match c {
            '/' | '\\' | ':' => '-',
            c if c.is_whitespace() || c.is_control() => '_',
            c => c,
        })
        .collect()
}
