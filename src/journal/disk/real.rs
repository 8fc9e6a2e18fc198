//! Real files.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{FallocateFlags, OFlags, fallocate, fstatfs};

use super::{Disk, DiskFile, RealQueue};
use crate::journal::block::Boot;

/// A directory.
#[derive(Clone, Debug)]
pub struct RealDisk {
    directory: PathBuf,
    boot: Boot,
}

impl RealDisk {
    pub fn new(directory: &Path) -> Self {
        Self { directory: directory.into(), boot: boot() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }
}

/// The kernel's random id of this boot; zeros, which are nobody's, where it has none.
fn boot() -> Boot {
    let text = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let hex: String = text.chars().filter(char::is_ascii_hexdigit).collect();
    u128::from_str_radix(&hex, 16).unwrap_or(0).to_be_bytes()
}

/// A file, open twice where it can be: for direct writes, and through the cache for the rest.
#[derive(Clone, Debug)]
pub struct RealFile {
    pub(super) cached: Arc<File>,
    pub(super) direct: Option<Arc<File>>,
}

/// The magic number of tmpfs, statfs(2): it takes O_DIRECT since Linux 6.6, to no use, and what is
/// reserved there is memory.
const TMPFS: i64 = 0x0102_1994;

impl Disk for RealDisk {
    type File = RealFile;
    type Queue = RealQueue;

    fn create(&self, name: &str) -> io::Result<RealFile> {
        let path = self.path(name);
        let cached = OpenOptions::new().read(true).write(true).create_new(true).open(&path)?;
        let on_tmpfs = fstatfs(&cached).is_ok_and(|s| s.f_type == TMPFS);
        let direct = (!on_tmpfs).then(|| {
            let flags = OFlags::DIRECT.bits() as i32;
            OpenOptions::new().write(true).custom_flags(flags).open(&path).ok()
        });
        Ok(RealFile { cached: Arc::new(cached), direct: direct.flatten().map(Arc::new) })
    }

    fn open(&self, name: &str) -> io::Result<RealFile> {
        let cached = OpenOptions::new().read(true).write(true).open(self.path(name))?;
        Ok(RealFile { cached: Arc::new(cached), direct: None })
    }

    fn list(&self) -> io::Result<Vec<(String, u64)>> {
        let mut out = Vec::new();
        for entry in fs::read_dir(&self.directory)? {
            let entry = entry?;
            // What vanishes meanwhile is not there.
            let Ok(meta) = entry.metadata() else { continue };
            if let (true, Ok(name)) = (meta.is_file(), entry.file_name().into_string()) {
                out.push((name, meta.len()));
            }
        }
        Ok(out)
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        fs::rename(self.path(from), self.path(to))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        fs::remove_file(self.path(name))
    }

    fn sync_names(&self) -> io::Result<()> {
        File::open(&self.directory)?.sync_all()
    }

    fn queue(&self) -> RealQueue {
        RealQueue::new()
    }

    fn boot(&self) -> Boot {
        self.boot
    }
}

impl DiskFile for RealFile {
    fn read_at(&self, to: &mut [u8], at: u64) -> io::Result<usize> {
        FileExt::read_at(&*self.cached, to, at)
    }

    fn write_at(&self, bytes: &[u8], at: u64) -> io::Result<()> {
        self.cached.write_all_at(bytes, at)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.cached.set_len(len)
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.cached.metadata()?.len())
    }

    fn sync(&self) -> io::Result<()> {
        self.cached.sync_data()
    }

    fn reserve(&self, from: u64, bytes: u64) {
        if self.direct.is_some() {
            // A file system without it, or without room, says so when it is written to.
            let _ = fallocate(&*self.cached, FallocateFlags::KEEP_SIZE, from, bytes);
        }
    }

    fn is_direct(&self) -> bool {
        self.direct.is_some()
    }
}
