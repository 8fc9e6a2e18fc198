//! The index of a journal segment: which of its packets belong to a flow, and which of its 64 KiB
//! blocks hold an address, a port, a protocol, a VLAN.
//!
//! [`IndexBuilder`] grows with the segment on the journal's lcore and can be asked meanwhile
//! ([`OpenIndex`]); [`IndexBuilder::encode`] makes the file that seals the segment, [`rebuild`] the
//! same file, byte for byte, from the pcap alone. An index only chooses where to look: every packet
//! is read and checked again, so that hashes that collide cost time and nothing else. A damaged
//! file is noticed by its checksums, a page at a time, and is as good as none.
//!
//! A flow's key is [`crate::packet::FlowKey`], without VLAN. Fragments are posted under their pair
//! of hosts and joined to their flow by the reader; an ICMP error is posted also under the flow that
//! it is about; ARP under its two addresses, other frames under EtherType and MAC addresses, and
//! what cannot be read in one place.
//!
//! Limits: segments of less than 4 GiB; tunnels are indexed by their outer addresses.

mod build;
mod encode;
mod file;
mod key;
mod map;
mod rebuild;
#[cfg(test)]
mod tests;

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use siphasher::sip::SipHasher13;

pub(super) use build::hash as hash_with;
pub use build::{Foreseen, IndexBuilder, OpenIndex};
pub(crate) use file::{Anchor, Attribute};
pub use file::{Damage, IndexFile};
pub use key::{Key, Kind, Posting, read};
pub use rebuild::{FILE_HEADER, MAX_PACKET, RecordHeader, link_of, rebuild};

/// Blocks are of 64 KiB; a packet is in the block where its record header starts.
pub const BLOCK_SHIFT: u32 = 16;

/// How much one segment may hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Packets, where those that are posted twice or thrice count so often.
    pub packets: usize,
    pub flows: usize,
}

/// An index cannot be made or kept.
#[derive(Debug, thiserror::Error)]
pub enum IndexError {
    #[error("{}: {source}", path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error("{}: damaged at byte {at}: {what}", path.display())]
    Pcap { path: PathBuf, at: u64, what: &'static str },
}

/// The secret of an installation's indexes, so that nobody can choose addresses that collide.
#[derive(Clone, PartialEq, Eq)]
pub struct IndexKey([u8; 16]);

impl std::fmt::Debug for IndexKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "IndexKey(id {:08x})", self.id())
    }
}

const KEY_FILE: &str = ".key";

impl IndexKey {
    pub fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }

    /// The key kept in a journal directory; `None` where there is none, or it is damaged.
    pub fn load(directory: &Path) -> Result<Option<Self>, IndexError> {
        let path = directory.join(KEY_FILE);
        match fs::read(&path) {
            Ok(bytes) => Ok(<[u8; 16]>::try_from(bytes).ok().map(Self)),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(IndexError::Io { path, source }),
        }
    }

    /// The key kept in a journal directory; a new one where there is none, or it is damaged, which
    /// makes older indexes useless for flows, not for addresses.
    pub fn load_or_create(directory: &Path) -> Result<Self, IndexError> {
        if let Some(key) = Self::load(directory)? {
            return Ok(key);
        }
        let path = directory.join(KEY_FILE);
        let new = directory.join(".key.tmp");
        let make = || {
            let mut bytes = [0; 16];
            File::open("/dev/urandom")?.read_exact(&mut bytes)?;
            let mut file = OpenOptions::new().write(true).create(true).truncate(true).open(&new)?;
            file.write_all(&bytes)?;
            file.sync_all()?;
            fs::rename(&new, &path)?;
            File::open(directory)?.sync_all()?;
            Ok(Self(bytes))
        };
        make().map_err(|source| IndexError::Io { path: path.clone(), source })
    }

    /// Says which key it is, without saying the key.
    pub(crate) fn id(&self) -> u32 {
        (self.hasher().hash(b"malakocut index key") >> 32) as u32
    }

    fn hasher(&self) -> SipHasher13 {
        SipHasher13::new_with_key(&self.0)
    }

    pub(crate) fn hash(&self, key: &Key) -> u64 {
        build::hash(&self.hasher(), key)
    }
}
