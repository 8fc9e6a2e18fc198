//! Ports and their receive queues.
//!
//! [`Port::start`] hands out each queue once; a queue is read by one thread at a time
//! (`&mut self`). [`Port::stop`] refuses while a queue is still held, since a driver may crash when
//! its queue is polled during a stop.

use std::ffi::{CStr, CString};
use std::sync::Arc;

use dpdk_sys as sys;

use crate::idle::Bell;
use crate::mbuf::{Burst, receive_into};
use crate::{Error, Mempool, Result, strerror};

/// A port, not yet started or running.
#[derive(Debug)]
pub struct Port {
    id: u16,
    name: String,
    queues: Arc<()>,
}

/// What a driver says of its port.
#[derive(Clone, Debug)]
pub struct PortInfo {
    pub driver: String,
    pub max_rx_queues: u16,
    /// Length of the RSS key in bytes; 0 where the device has no RSS.
    pub hash_key_size: u8,
    /// Entries of the table from hash to queue.
    pub reta_size: u16,
    pub max_mtu: u16,
    rss_offloads: u64,
    rx_offloads: u64,
}

impl PortInfo {
    /// Whether the device can spread packets over queues by their addresses.
    pub fn has_rss(&self) -> bool {
        self.rss_offloads & sys::SHIM_RSS_IP != 0
    }

    /// Whether the device can lay a frame over several buffers.
    pub fn scatters(&self) -> bool {
        self.rx_offloads & sys::SHIM_RX_OFFLOAD_SCATTER != 0
    }
}

/// How a running port spreads packets over its queues, as the device reports it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Spread {
    pub key: Vec<u8>,
    /// What is hashed, such as `ipv4`.
    pub functions: Vec<&'static str>,
    /// Entries of the table from hash to queue, and how many queues stand in it; `None` where the
    /// device does not say.
    pub table: Option<(u16, usize)>,
}

impl Spread {
    /// Whether both directions of a flow get the same hash.
    pub fn is_symmetric(&self) -> bool {
        !self.key.is_empty() && self.key.chunks(2).all(|pair| SYMMETRIC_KEY.starts_with(pair))
    }
}

/// Bits of the hash functions of RTE_ETH_RSS_*, which are numbered alike in IPv4 and IPv6.
const FUNCTIONS: [(u32, &str); 15] = [
    (2, "ipv4"),
    (3, "ipv4-frag"),
    (4, "ipv4-tcp"),
    (5, "ipv4-udp"),
    (6, "ipv4-sctp"),
    (7, "ipv4-other"),
    (8, "ipv6"),
    (9, "ipv6-frag"),
    (10, "ipv6-tcp"),
    (11, "ipv6-udp"),
    (12, "ipv6-sctp"),
    (13, "ipv6-other"),
    (15, "ipv6-ex"),
    (16, "ipv6-tcp-ex"),
    (17, "ipv6-udp-ex"),
];

/// The state of a port's link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Link {
    pub is_up: bool,
    /// `None`: the device does not say.
    pub mbit: Option<u32>,
}

/// How to set a port up.
#[derive(Clone, Debug)]
pub struct PortConfig {
    pub rx_queues: u16,
    /// Packets that each queue's ring should hold; rounded to what the device allows.
    pub descriptors: u16,
    /// Ask the device for an interrupt when a queue gets its first packet, for [`RxQueue::bell`].
    pub interrupts: bool,
    /// Take frames as large as the device can.
    pub jumbo: bool,
}

/// A port's own counters.
#[derive(Clone, Copy, Debug, Default)]
pub struct PortStats {
    pub packets: u64,
    pub bytes: u64,
    /// Lost because the ring was full.
    pub missed: u64,
    /// Refused by the device as damaged.
    pub errors: u64,
    /// Lost because no buffer was free.
    pub no_buffer: u64,
}

/// What switches call jumbo frames, and a little more.
const JUMBO_MTU: u16 = 9600;
/// Both directions of a flow give the same hash with this key repeated.
const SYMMETRIC_KEY: [u8; 2] = [0x6d, 0x5a];

impl Port {
    /// Looks a port up by its device name.
    pub fn by_name(name: &str) -> Option<Self> {
        let c_name = CString::new(name).ok()?;
        let mut id = 0u16;
        // SAFETY: a valid name and a pointer to a live local.
        let rc = unsafe { sys::rte_eth_dev_get_port_by_name(c_name.as_ptr(), &raw mut id) };
        (rc == 0).then(|| Self { id, name: name.to_owned(), queues: Arc::new(()) })
    }

    /// The device name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The driver and its limits.
    pub fn info(&self) -> Result<PortInfo> {
        let info = self.raw_info()?;
        let driver = if info.driver_name.is_null() {
            String::new()
        } else {
            // SAFETY: a non-null driver name is a static NUL-terminated string.
            unsafe { CStr::from_ptr(info.driver_name) }.to_string_lossy().into_owned()
        };
        Ok(PortInfo {
            driver,
            max_rx_queues: info.max_rx_queues,
            hash_key_size: info.hash_key_size,
            reta_size: info.reta_size,
            max_mtu: info.max_mtu,
            rss_offloads: info.flow_type_rss_offloads,
            rx_offloads: info.rx_offload_capa,
        })
    }

    fn raw_info(&self) -> Result<sys::rte_eth_dev_info> {
        let mut info = sys::rte_eth_dev_info::default();
        // SAFETY: a pointer to a live local of the right type.
        self.check("reading its capabilities", unsafe {
            sys::rte_eth_dev_info_get(self.id, &raw mut info)
        })?;
        Ok(info)
    }

    /// Sets up the receive queues over `pool`, starts the port and hands the queues out.
    pub fn start(&self, config: &PortConfig, pool: &Mempool) -> Result<Vec<RxQueue>> {
        if Arc::strong_count(&self.queues) > 1 {
            return Err(Error::QueuesInUse { name: self.name.clone() });
        }
        self.configure(config)?;
        let (mut rx, mut tx) = (config.descriptors, 0u16);
        // SAFETY: both pointers are to live locals.
        let rc =
            unsafe { sys::rte_eth_dev_adjust_nb_rx_tx_desc(self.id, &raw mut rx, &raw mut tx) };
        if rc != 0 && rc != -libc::ENOTSUP {
            self.check("choosing the ring size", rc)?;
        }
        for queue in 0..config.rx_queues {
            // SAFETY: the port is configured and stopped; the pool lives for ever; a null
            // configuration means the driver's default.
            self.check("setting up a receive queue", unsafe {
                sys::rte_eth_rx_queue_setup(
                    self.id,
                    queue,
                    rx,
                    u32::MAX,
                    std::ptr::null(),
                    pool.as_ptr(),
                )
            })?;
        }
        // SAFETY: the port is configured.
        self.check("starting", unsafe { sys::rte_eth_dev_start(self.id) })?;
        Ok((0..config.rx_queues)
            .map(|queue| RxQueue { port: self.id, queue, _held: Arc::clone(&self.queues) })
            .collect())
    }

    fn configure(&self, config: &PortConfig) -> Result<()> {
        let rx_queues = config.rx_queues;
        let info = self.info()?;
        let mut key: Vec<u8> =
            SYMMETRIC_KEY.into_iter().cycle().take(usize::from(info.hash_key_size)).collect();
        let mut conf = sys::rte_eth_conf::default();
        if rx_queues > 1 && info.has_rss() {
            conf.rxmode.mq_mode = sys::RTE_ETH_MQ_RX_RSS;
            // Addresses only, so that fragments stay with their flow; some devices then hash no
            // TCP or UDP at all, and get those bits too.
            let transport = if info.driver.contains("i40e") || info.driver.contains("ice") {
                sys::SHIM_RSS_TCP | sys::SHIM_RSS_UDP
            } else {
                0
            };
            conf.rx_adv_conf.rss_conf.rss_hf = info.rss_offloads & (sys::SHIM_RSS_IP | transport);
            if !key.is_empty() {
                conf.rx_adv_conf.rss_conf.rss_key = key.as_mut_ptr();
                conf.rx_adv_conf.rss_conf.rss_key_len = info.hash_key_size;
            }
        }
        // No other offload: VLAN tags stay in the frame, checksums are nobody's business.
        conf.rxmode.offloads = info.rx_offloads & sys::SHIM_RX_OFFLOAD_SCATTER;
        if config.jumbo && info.scatters() {
            conf.rxmode.mtu = u32::from(info.max_mtu.min(JUMBO_MTU));
        }
        conf.intr_conf.set_rxq(u32::from(config.interrupts));
        // Without a transmit ring of ours a memif server takes our receive ring for it.
        let tx_queues = u16::from(info.driver == "net_memif");
        // SAFETY: conf and the key it points to live through the call, which copies them.
        self.check("configuring", unsafe {
            sys::rte_eth_dev_configure(self.id, rx_queues, tx_queues, &raw const conf)
        })?;
        if tx_queues == 1 {
            // SAFETY: the port is configured and stopped; null means the driver's default.
            self.check("setting up a transmit queue", unsafe {
                sys::rte_eth_tx_queue_setup(self.id, 0, 256, u32::MAX, std::ptr::null())
            })?;
        }
        Ok(())
    }

    /// Asks the device to receive frames for every address; some always do and refuse to be asked.
    pub fn promiscuous(&self) -> Result<()> {
        // SAFETY: takes only the port's number.
        let rc = unsafe { sys::rte_eth_promiscuous_enable(self.id) };
        if rc == -libc::ENOTSUP { Ok(()) } else { self.check("promiscuous mode", rc) }
    }

    /// How the port spreads packets, read back from the device; `None` where it does not say.
    pub fn spread(&self) -> Result<Option<Spread>> {
        let info = self.info()?;
        if info.hash_key_size == 0 {
            return Ok(None);
        }
        let mut key = vec![0u8; usize::from(info.hash_key_size)];
        let mut conf = sys::rte_eth_rss_conf {
            rss_key: key.as_mut_ptr(),
            rss_key_len: info.hash_key_size,
            ..Default::default()
        };
        // SAFETY: conf and the key it points to live through the call, which writes at most
        // rss_key_len bytes of the key.
        if unsafe { sys::rte_eth_dev_rss_hash_conf_get(self.id, &raw mut conf) } != 0 {
            return Ok(None);
        }
        let set = FUNCTIONS.iter().filter(|(bit, _)| conf.rss_hf & (1 << bit) != 0);
        let functions = set.map(|(_, name)| *name).collect();
        Ok(Some(Spread { key, functions, table: self.table(info.reta_size) }))
    }

    fn table(&self, size: u16) -> Option<(u16, usize)> {
        const GROUP: usize = sys::RTE_ETH_RETA_GROUP_SIZE as usize;
        let entry = sys::rte_eth_rss_reta_entry64 { mask: u64::MAX, ..Default::default() };
        let mut groups = vec![entry; usize::from(size).div_ceil(GROUP)];
        // SAFETY: the groups hold `size` entries.
        let rc = unsafe { sys::rte_eth_dev_rss_reta_query(self.id, groups.as_mut_ptr(), size) };
        if size == 0 || rc != 0 {
            return None;
        }
        let entries = groups.iter().flat_map(|g| g.reta).take(usize::from(size));
        let queues: std::collections::BTreeSet<u16> = entries.collect();
        Some((size, queues.len()))
    }

    /// Whether the device takes VLAN tags out of the frames.
    pub fn strips_vlan(&self) -> bool {
        // SAFETY: takes only the port's number.
        let offloads = unsafe { sys::rte_eth_dev_get_vlan_offload(self.id) };
        offloads > 0 && offloads as u32 & sys::RTE_ETH_VLAN_STRIP_OFFLOAD != 0
    }

    /// The link as it is now; `None` where the device does not say.
    pub fn link(&self) -> Option<Link> {
        let (mut mbit, mut up) = (0u32, 0i32);
        // SAFETY: both pointers are to live locals.
        let rc = unsafe { sys::shim_link(self.id, &raw mut mbit, &raw mut up) };
        let known = Some(mbit).filter(|&m| m != 0 && m != u32::MAX);
        (rc == 0).then_some(Link { is_up: up != 0, mbit: known })
    }

    /// Whether the card is gone.
    pub fn is_removed(&self) -> bool {
        // SAFETY: takes only the port's number.
        unsafe { sys::rte_eth_dev_is_removed(self.id) == 1 }
    }

    /// The device's own address.
    pub fn mac(&self) -> Option<[u8; 6]> {
        let mut address = sys::rte_ether_addr::default();
        // SAFETY: a pointer to a live local.
        let rc = unsafe { sys::rte_eth_macaddr_get(self.id, &raw mut address) };
        (rc == 0).then_some(address.addr_bytes)
    }

    /// The port's counters.
    pub fn stats(&self) -> PortStats {
        read_stats(self.id)
    }

    /// Stops and closes the port.
    pub fn stop(self) -> Result<()> {
        if Arc::strong_count(&self.queues) > 1 {
            return Err(Error::QueuesInUse { name: self.name });
        }
        // SAFETY: nobody polls any more: all queues were dropped.
        self.check("stopping", unsafe { sys::rte_eth_dev_stop(self.id) })?;
        // SAFETY: the port is stopped.
        self.check("closing", unsafe { sys::rte_eth_dev_close(self.id) })
    }

    fn check(&self, what: &'static str, rc: i32) -> Result<()> {
        if rc >= 0 {
            return Ok(());
        }
        Err(Error::Port { name: self.name.clone(), what, why: strerror(rc) })
    }
}

fn read_stats(port: u16) -> PortStats {
    let mut s = sys::rte_eth_stats::default();
    // SAFETY: a pointer to a live local; on failure it stays zero.
    unsafe { sys::rte_eth_stats_get(port, &raw mut s) };
    PortStats {
        packets: s.ipackets,
        bytes: s.ibytes,
        missed: s.imissed,
        errors: s.ierrors,
        no_buffer: s.rx_nombuf,
    }
}

/// One receive queue of a running port.
#[derive(Debug)]
pub struct RxQueue {
    port: u16,
    queue: u16,
    _held: Arc<()>,
}

impl RxQueue {
    /// Appends what has arrived to `burst`, up to its free room, and returns how many.
    #[inline]
    pub fn rx(&mut self, burst: &mut Burst) -> usize {
        // SAFETY: rx_burst writes at most the asked number of packets, each with one reference
        // for us; `&mut self` keeps any other thread off this queue.
        unsafe {
            receive_into(burst, |to, room| sys::shim_rx_burst(self.port, self.queue, to, room))
        }
    }

    /// What rings when a packet comes, where the device has an interrupt for this queue.
    pub fn bell(&self) -> Option<Bell> {
        // SAFETY: takes only numbers.
        let fd = unsafe { sys::rte_eth_dev_rx_intr_ctl_q_get_fd(self.port, self.queue) };
        (fd >= 0).then_some(Bell { fd, rings: Some((self.port, self.queue)) })
    }

    /// The counters of the queue's port.
    pub fn port_stats(&self) -> PortStats {
        read_stats(self.port)
    }
}
