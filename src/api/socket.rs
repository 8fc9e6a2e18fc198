//! The control socket: for this machine's administrators, whom the file's mode admits.

use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use rustix::fs::{Gid, chown};

/// Who may use it beside root, where there is such a group.
const GROUP: &str = "malakocut";

/// Why there is no control socket.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    #[error("control socket {}: another malakocut answers there", .0.display())]
    InUse(PathBuf),
    #[error("control socket {}: there is something else of this name", .0.display())]
    NotASocket(PathBuf),
    #[error("control socket {}: {source}", path.display())]
    Io { path: PathBuf, source: io::Error },
}

/// A listening socket's file, which goes when this does.
#[derive(Debug)]
pub(super) struct SocketFile {
    path: PathBuf,
    /// Device and inode, by which it is known for ours.
    is: (u64, u64),
}

/// Listens at a path. What a sensor that is gone left there is replaced.
pub(super) fn bind(path: &Path) -> Result<(UnixListener, SocketFile), SocketError> {
    let fail = |source| SocketError::Io { path: path.into(), source };
    match fs::symlink_metadata(path) {
        Ok(meta) if !meta.file_type().is_socket() => {
            return Err(SocketError::NotASocket(path.into()));
        }
        // Whoever listens there accepts.
        Ok(_) if UnixStream::connect(path).is_ok() => return Err(SocketError::InUse(path.into())),
        _ => {}
    }
    // Under its own name nobody meets it before its mode is right.
    let mut new = path.as_os_str().to_owned();
    new.push(format!(".{}", std::process::id()));
    let new = PathBuf::from(new);
    let _ = fs::remove_file(&new);
    let made = UnixListener::bind(&new).and_then(|listener| {
        fs::set_permissions(&new, fs::Permissions::from_mode(0o660))?;
        if let Some(gid) = group(&fs::read_to_string("/etc/group").unwrap_or_default()) {
            chown(&new, None, Some(Gid::from_raw(gid)))?;
        }
        let meta = fs::metadata(&new)?;
        fs::rename(&new, path)?;
        Ok((listener, (meta.dev(), meta.ino())))
    });
    let (listener, is) = made.map_err(|e| {
        let _ = fs::remove_file(&new);
        fail(e)
    })?;
    Ok((listener, SocketFile { path: path.into(), is }))
}

/// The number of the group in the text of `/etc/group`.
fn group(text: &str) -> Option<u32> {
    let mut fields = text.lines().map(|line| line.split(':'));
    fields.find_map(|mut f| (f.next() == Some(GROUP)).then(|| f.nth(1)?.parse().ok())?)
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if fs::symlink_metadata(&self.path).is_ok_and(|m| (m.dev(), m.ino()) == self.is) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stale_socket_is_replaced_and_a_live_one_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        drop(UnixListener::bind(&path).unwrap());
        let (listener, file) = bind(&path).unwrap();
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o660);
        assert!(matches!(bind(&path), Err(SocketError::InUse(_))));
        drop((listener, file));
        assert!(!path.exists() && fs::read_dir(dir.path()).unwrap().next().is_none());
        fs::write(&path, "mine").unwrap();
        assert!(matches!(bind(&path), Err(SocketError::NotASocket(_))));
        let missing = dir.path().join("no/s");
        assert!(matches!(bind(&missing), Err(SocketError::Io { .. })));
    }

    #[test]
    fn anothers_socket_of_the_same_name_stays() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let (listener, file) = bind(&path).unwrap();
        drop(listener);
        let (_listener, _second) = bind(&path).unwrap();
        drop(file);
        assert!(path.exists());
    }

    #[test]
    fn the_group_is_found_by_its_whole_name() {
        let text = "root:x:0:\nmalakocutter:x:7:\nmalakocut:x:812:anna\n";
        assert_eq!(group(text), Some(812));
        assert_eq!(group("malakocut:x:\n"), None);
    }
}
