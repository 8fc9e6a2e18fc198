//! Ports and their receive queues.
//!
//! [`Port::start`] hands out each queue once; a queue is read by one thread at a time
//! (`&mut self`). [`Port::stop`] refuses while a queue is still held, since a driver may crash when
//! its queue is polled during a stop.

use std::ffi::{CStr, CString};
use std::sync::Arc;

use dpdk_sys as sys;

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
    rss_offloads: u64,
    rx_offloads: u64,
}

impl PortInfo {
    /// Whether the device can spread packets over queues by their addresses.
    pub fn has_rss(&self) -> bool {
        self.rss_offloads & sys::SHIM_RSS_IP != 0
    }
}

/// How to set a port up.
#[derive(Clone, Debug)]
pub struct PortConfig {
    pub rx_queues: u16,
    /// Packets that each queue's ring should hold; rounded to what the device allows.
    pub descriptors: u16,
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
        self.configure(config.rx_queues)?;
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

    fn configure(&self, rx_queues: u16) -> Result<()> {
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
        conf.rxmode.offloads = info.rx_offloads & sys::SHIM_RX_OFFLOAD_SCATTER;
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

    /// The counters of the queue's port.
    pub fn port_stats(&self) -> PortStats {
        read_stats(self.port)
    }
}
