//! Work that stands back for others, and clients that read nothing.

use std::io;
use std::os::fd::{AsFd, AsRawFd};

const IOPRIO_WHO_PROCESS: libc::c_int = 1;
/// Class idle: the disk when nobody else wants it.
const IDLE: libc::c_int = 3 << 13;
const NICE: i32 = 19;

/// From now on the calling thread, and threads it starts, use the disk and the CPU when others do
/// not (as far as the disk's scheduler knows priorities).
pub fn stand_back() -> io::Result<()> {
    rustix::process::setpriority_process(None, NICE)?;
    // SAFETY: the call takes three numbers; 0 is the calling thread.
    let done = unsafe { libc::syscall(libc::SYS_ioprio_set, IOPRIO_WHO_PROCESS, 0, IDLE) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Bytes given to a socket that the other end has not taken yet.
pub fn unsent(socket: impl AsFd) -> io::Result<u32> {
    let mut bytes: libc::c_int = 0;
    let fd = socket.as_fd().as_raw_fd();
    // SAFETY: `fd` is open for as long as `socket` is borrowed, and this call writes one int, to
    // which the pointer is valid.
    let done = unsafe { libc::ioctl(fd, libc::TIOCOUTQ, &raw mut bytes) };
    if done == 0 { Ok(u32::try_from(bytes).unwrap_or(0)) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};
    use std::os::unix::net::UnixStream;

    #[test]
    fn what_a_client_has_not_read_is_seen() {
        let (mut a, mut b) = UnixStream::pair().unwrap();
        assert_eq!(unsent(&a).unwrap(), 0);
        a.write_all(&[0; 1000]).unwrap();
        assert!(unsent(&a).unwrap() >= 1000);
        b.read_exact(&mut [0; 1000]).unwrap();
        assert_eq!(unsent(&a).unwrap(), 0);
    }

    #[test]
    fn over_tcp_it_is_what_finds_no_room_at_the_other_end() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut a = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (_b, _) = listener.accept().unwrap();
        a.set_nonblocking(true).unwrap();
        while a.write(&[0; 65_536]).is_ok() {}
        assert!(unsent(&a).unwrap() > 0);
    }

    #[test]
    fn a_thread_stands_back_alone() {
        let priority = |tid: u32| {
            let stat = std::fs::read_to_string(format!("/proc/self/task/{tid}/stat")).unwrap();
            stat.rsplit(") ").next().unwrap().split(' ').nth(16).unwrap().to_owned()
        };
        let me = || rustix::thread::gettid().as_raw_nonzero().get() as u32;
        let before = priority(me());
        let other = std::thread::spawn(move || {
            stand_back().unwrap();
            priority(me())
        });
        assert_eq!(other.join().unwrap(), "19");
        assert_eq!(priority(me()), before);
    }
}
