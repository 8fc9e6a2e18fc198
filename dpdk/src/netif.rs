//! The kernel's side of an interface that the AF_PACKET driver reads.
//!
//! The 22.11 driver leaves an interface promiscuous after exit, never reports what the kernel
//! dropped, and cuts frames that offloads have merged. [`Takeover`] holds the interface in a state
//! fit for a sensor and puts everything back when dropped; promiscuous mode is held by a socket's
//! membership, so that even a killed process leaves nothing behind. [`KernelCounters`] reads the
//! drop count from the driver's own sockets.

use std::fs;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use crate::{Bell, Error, Result};

/// `ethtool` switches that merge or cut frames, or take the VLAN tag off: (name, read, write).
const SWITCHES: [(&str, u32, u32); 3] = [
    ("generic-receive-offload", 0x2b, 0x2c),
    ("generic-segmentation-offload", 0x23, 0x24),
    ("tcp-segmentation-offload", 0x1e, 0x1f),
];
const ETHTOOL_GFLAGS: u32 = 0x25;
const ETHTOOL_SFLAGS: u32 = 0x26;
/// Bits of the flags word: transmit and receive VLAN acceleration, large receive offload.
const FLAG_BITS: u32 = (1 << 7) | (1 << 8) | (1 << 15);

#[repr(C)]
struct EthtoolValue {
    cmd: u32,
    data: u32,
}

/// An interface in a state fit for a sensor; dropping it puts the former state back.
#[derive(Debug)]
pub struct Takeover {
    name: String,
    index: i32,
    /// Holds the promiscuous membership and serves the ioctls.
    socket: OwnedFd,
    /// (command that writes it, former value) of each switch that was changed.
    former: Vec<(u32, u32)>,
    was_down: bool,
    /// What was switched off, for the log.
    changed: Vec<&'static str>,
}

impl Takeover {
    /// Brings the interface up, makes it promiscuous and switches merging offloads off.
    ///
    /// A switch that the driver does not have is passed over; an interface that does not exist or
    /// may not be touched is an error.
    pub fn new(name: &str) -> Result<Self> {
        let fail = |what: &'static str, source: io::Error| Error::Interface {
            name: name.into(),
            what,
            source,
        };
        let index = index_of(name).map_err(|e| fail("there is no such interface", e))?;
        // SAFETY: plain system call; the result is checked.
        let fd = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) };
        if fd < 0 {
            return Err(fail(
                "a packet socket was refused (root, or CAP_NET_RAW and CAP_NET_ADMIN, is needed)",
                io::Error::last_os_error(),
            ));
        }
        // SAFETY: fd was just opened and nobody else has it.
        let socket = unsafe { OwnedFd::from_raw_fd(fd) };
        let mut this = Self {
            name: name.into(),
            index,
            socket,
            former: Vec::new(),
            was_down: false,
            changed: Vec::new(),
        };
        this.bring_up().map_err(|e| fail("it could not be brought up", e))?;
        this.add_promiscuous(index).map_err(|e| fail("promiscuous mode was refused", e))?;
        this.offloads_off();
        Ok(this)
    }

    /// Whether the interface is gone, or another one has its name.
    pub fn is_gone(&self) -> bool {
        index_of(&self.name).ok() != Some(self.index)
    }

    /// Whether the interface is up and the other end is there; `None` where it is gone.
    pub fn has_link(&self) -> Option<bool> {
        self.flags().ok().map(|f| f & libc::IFF_RUNNING as i16 != 0)
    }

    /// The interface's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Names of the offloads that were switched off.
    pub fn changed(&self) -> &[&'static str] {
        &self.changed
    }

    /// Whether the interface was down before.
    pub fn was_down(&self) -> bool {
        self.was_down
    }

    fn request(&self) -> libc::ifreq {
        // SAFETY: all-zero is a valid ifreq.
        let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
        // The last byte stays zero.
        let room = request.ifr_name.len() - 1;
        for (to, from) in request.ifr_name.iter_mut().take(room).zip(self.name.bytes()) {
            *to = from.cast_signed();
        }
        request
    }

    fn ioctl(&self, command: libc::Ioctl, request: &mut libc::ifreq) -> io::Result<()> {
        // SAFETY: the interface ioctls read and write one ifreq, which lives through the call, and
        // what its data pointer names, which the callers keep alive.
        let rc =
            unsafe { libc::ioctl(self.socket.as_raw_fd(), command, std::ptr::from_mut(request)) };
        if rc < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    fn flags(&self) -> io::Result<i16> {
        let mut request = self.request();
        self.ioctl(libc::SIOCGIFFLAGS, &mut request)?;
        // SAFETY: SIOCGIFFLAGS filled this member of the union.
        Ok(unsafe { request.ifr_ifru.ifru_flags })
    }

    fn set_flags(&self, flags: i16) -> io::Result<()> {
        let mut request = self.request();
        request.ifr_ifru.ifru_flags = flags;
        self.ioctl(libc::SIOCSIFFLAGS, &mut request)
    }

    fn bring_up(&mut self) -> io::Result<()> {
        let flags = self.flags()?;
        if flags & libc::IFF_UP as i16 == 0 {
            self.set_flags(flags | libc::IFF_UP as i16)?;
            self.was_down = true;
        }
        Ok(())
    }

    fn add_promiscuous(&self, index: i32) -> io::Result<()> {
        // SAFETY: all-zero is a valid packet_mreq.
        let mut member: libc::packet_mreq = unsafe { std::mem::zeroed() };
        member.mr_ifindex = index;
        member.mr_type = libc::PACKET_MR_PROMISC as u16;
        // SAFETY: passes a live local and its size.
        let rc = unsafe {
            libc::setsockopt(
                self.socket.as_raw_fd(),
                libc::SOL_PACKET,
                libc::PACKET_ADD_MEMBERSHIP,
                (&raw const member).cast(),
                size_of_val(&member) as u32,
            )
        };
        if rc < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    fn ethtool(&self, cmd: u32, data: u32) -> io::Result<u32> {
        let mut value = EthtoolValue { cmd, data };
        let mut request = self.request();
        request.ifr_ifru.ifru_data = (&raw mut value).cast();
        self.ioctl(libc::SIOCETHTOOL, &mut request)?;
        Ok(value.data)
    }

    fn offloads_off(&mut self) {
        for (name, read, write) in SWITCHES {
            if self.ethtool(read, 0).is_ok_and(|on| on != 0) && self.ethtool(write, 0).is_ok() {
                self.former.push((write, 1));
                self.changed.push(name);
            }
        }
        if let Ok(flags) = self.ethtool(ETHTOOL_GFLAGS, 0) {
            let off = flags & !FLAG_BITS;
            if off != flags && self.ethtool(ETHTOOL_SFLAGS, off).is_ok() {
                self.former.push((ETHTOOL_SFLAGS, flags));
                self.changed.push("large-receive-offload and VLAN acceleration");
            }
        }
    }
}

impl Drop for Takeover {
    fn drop(&mut self) {
        for &(write, value) in self.former.iter().rev() {
            if let Err(e) = self.ethtool(write, value) {
                tracing::warn!("interface {}: an offload could not be put back: {e}", self.name);
            }
        }
        if self.was_down
            && let Err(e) = self.flags().and_then(|f| self.set_flags(f & !(libc::IFF_UP as i16)))
        {
            tracing::warn!("interface {} could not be put down again: {e}", self.name);
        }
    }
}

/// Whether the kernel has an interface of this name.
pub fn exists(name: &str) -> bool {
    index_of(name).is_ok()
}

fn index_of(name: &str) -> io::Result<i32> {
    if name.len() >= libc::IFNAMSIZ {
        return Err(io::Error::from_raw_os_error(libc::ENODEV));
    }
    let name = std::ffi::CString::new(name)?;
    // SAFETY: a valid NUL-terminated name.
    match unsafe { libc::if_nametoindex(name.as_ptr()) } {
        0 => Err(io::Error::last_os_error()),
        index => i32::try_from(index).map_err(io::Error::other),
    }
}

/// The kernel's packet and drop counts of the driver's sockets on one interface.
///
/// Reading resets the kernel's counters, so this keeps the sums; make one per interface.
#[derive(Debug)]
pub struct KernelCounters {
    sockets: Vec<i32>,
    /// Packets that the kernel offered, those it dropped included.
    pub packets: u64,
    /// Packets that the kernel dropped since the ring was full.
    pub drops: u64,
}

#[repr(C)]
#[derive(Default)]
struct TpacketStats {
    packets: u32,
    drops: u32,
}

impl KernelCounters {
    /// Finds the AF_PACKET sockets of this process that are bound to `interface`.
    pub fn find(interface: &str) -> Result<Self> {
        let fail = |what, source| Error::Interface { name: interface.into(), what, source };
        let index = index_of(interface).map_err(|e| fail("there is no such interface", e))?;
        let mut sockets = Vec::new();
        let entries = fs::read_dir("/proc/self/fd").map_err(|e| fail("listing open files", e))?;
        for entry in entries.flatten() {
            if let Some(fd) = entry.file_name().to_str().and_then(|n| n.parse::<i32>().ok())
                && bound_to(fd, index)
            {
                sockets.push(fd);
            }
        }
        Ok(Self { sockets, packets: 0, drops: 0 })
    }

    /// What rings when a packet comes, one for each socket, in the order of the driver's queues.
    pub fn bells(&self) -> impl ExactSizeIterator<Item = Bell> {
        self.sockets.iter().map(|&fd| Bell { fd, rings: None })
    }

    /// Adds what the kernel counted since the last call.
    pub fn update(&mut self) {
        for &fd in &self.sockets {
            let mut stats = TpacketStats::default();
            let mut len = size_of::<TpacketStats>() as u32;
            // SAFETY: a live local and its size; a descriptor that was closed meanwhile, or is
            // another kind of file by now, makes the call fail.
            let rc = unsafe {
                libc::getsockopt(
                    fd,
                    libc::SOL_PACKET,
                    libc::PACKET_STATISTICS,
                    (&raw mut stats).cast(),
                    &raw mut len,
                )
            };
            if rc == 0 {
                self.packets += u64::from(stats.packets);
                self.drops += u64::from(stats.drops);
            }
        }
    }
}

fn bound_to(fd: i32, index: i32) -> bool {
    let (mut domain, mut len) = (0i32, size_of::<i32>() as u32);
    // SAFETY: live locals and their sizes; not a socket makes the call fail.
    let rc = unsafe {
        libc::getsockopt(
            fd,
            libc::SOL_SOCKET,
            libc::SO_DOMAIN,
            (&raw mut domain).cast(),
            &raw mut len,
        )
    };
    if rc != 0 || domain != libc::AF_PACKET {
        return false;
    }
    // SAFETY: all-zero is a valid sockaddr_ll.
    let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    let mut len = size_of_val(&address) as u32;
    // SAFETY: a live local and its size.
    let rc = unsafe { libc::getsockname(fd, (&raw mut address).cast(), &raw mut len) };
    rc == 0 && address.sll_ifindex == index
}
