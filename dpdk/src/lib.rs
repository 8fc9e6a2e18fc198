//! A small safe layer over the parts of DPDK 22.11 that a receive-only program uses.
//!
//! * [`eal`]: start DPDK once a process, attach devices, and keep its log lines.
//! * [`mempool`], [`mbuf`]: packet buffers that free themselves.
//! * [`memory`]: prefetch and large pages.
//! * [`port`]: configure, start and read a port; each receive queue is handed out once.
//! * [`idle`]: sleeping until a queue has something.
//! * [`clock`]: whether the kernel's clock is synchronised.
//! * [`lcore`]: threads pinned to CPUs and known to DPDK, so that they get a mempool cache.
//! * [`netif`]: what the AF_PACKET driver leaves to others: promiscuous mode, offloads and the
//!   kernel's own drop counter of an ordinary network interface.
//!
//! Nothing here knows of flows, files or the sensor. All of the workspace's `unsafe` code lives in
//! this crate and in `dpdk-sys`.

pub mod clock;
pub mod eal;
pub mod idle;
pub mod lcore;
pub mod mbuf;
pub mod memory;
pub mod mempool;
pub mod netif;
pub mod port;

pub use eal::{Eal, EalConfig, Memory};
pub use idle::Bell;
pub use mbuf::{BURST, Burst, Mbuf, Meta};
pub use mempool::Mempool;
pub use port::{Link, Port, PortConfig, PortInfo, PortStats, RxQueue, Spread};

/// What can go wrong in this crate.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// `rte_eal_init` failed or was called twice.
    #[error("DPDK did not start: {0}")]
    Init(String),
    /// A device could not be attached; the text is DPDK's own explanation.
    #[error("device {name}: {why}")]
    Device { name: String, why: String },
    /// A packet-buffer pool could not be created.
    #[error(
        "no memory for {count} packet buffers of {room} bytes ({why}); \
         run scripts/setup-hugepages.sh, or ask for smaller rings"
    )]
    Pool { count: u32, room: u16, why: String },
    /// A port refused a setting.
    #[error("port {name}: {what} failed: {why}")]
    Port { name: String, what: &'static str, why: String },
    /// A port is still read by somebody.
    #[error("port {name}: its receive queues are still in use")]
    QueuesInUse { name: String },
    /// An lcore list that cannot be understood or that this machine cannot run.
    #[error("--lcores {list}: {why}")]
    Lcores { list: String, why: String },
    /// A thread could not be started, pinned or registered.
    #[error("lcore {id}: {why}")]
    Lcore { id: u32, why: String },
    /// A kernel network interface refused something.
    #[error("interface {name}: {what}: {source}")]
    Interface { name: String, what: &'static str, source: std::io::Error },
}

/// The result of everything in this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// DPDK's text for an error number, given as -errno or errno.
fn strerror(code: i32) -> String {
    // SAFETY: rte_strerror returns a pointer to a NUL-terminated static or per-thread buffer,
    // valid until the next call on this thread; it is copied at once.
    unsafe { std::ffi::CStr::from_ptr(dpdk_sys::rte_strerror(code.abs())) }
        .to_string_lossy()
        .into_owned()
}
