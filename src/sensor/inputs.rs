//! Opens what the configuration names, and closes it again.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use dpdk::netif::{self, KernelCounters, Takeover};
use dpdk::port::PortInfo;
use dpdk::{Eal, EalConfig, Memory, Mempool, Port, PortConfig, RxQueue};

use super::RunError;
use crate::capture::{CaptureReader, FileSource, PortKind, PortSource, Source};
use crate::config::SourceConfig;
use crate::nic::{Choice, Machine, NicError};
use crate::status::{Counter, Counters};

/// Bytes of packet data in a buffer, unless the device's frames are larger.
const ROOM: u16 = 2048;
const SMALLEST_ROOM: u16 = 128;
/// Descriptors of each queue of a card.
const DESCRIPTORS: u16 = 4096;
/// A ring of 16,384 frames holds 50 ms at the 0.3 Mpps that a kernel interface delivers here; the
/// driver's default of 512 loses a sixth of that.
const AF_PACKET_RING: &str = "blocksz=1048576,framesz=2048,framecnt=16384";

/// A device as DPDK wants to hear of it.
#[derive(Clone, Debug)]
struct Device {
    name: String,
    args: String,
    /// The kernel interface behind it, for the AF_PACKET driver.
    interface: Option<String>,
}

/// What was opened before DPDK starts: everything that can be refused for a plain reason.
pub(crate) struct Prepared {
    files: Vec<CaptureReader>,
    devices: Vec<Device>,
    pci: Vec<String>,
    takeovers: Vec<Takeover>,
    /// Buffers that devices keep for themselves.
    preloaded: u32,
    room: u16,
}

/// Running inputs.
#[derive(Default)]
pub(crate) struct Inputs {
    ports: Vec<Port>,
    kernel: Vec<KernelCounters>,
    takeovers: Arc<Vec<Takeover>>,
    /// The link of each port or interface, by name, as last seen.
    links: Vec<(String, Option<bool>)>,
}

impl Prepared {
    pub(crate) fn new(source: &SourceConfig) -> Result<Self, RunError> {
        let mut this = Self {
            files: Vec::new(),
            devices: Vec::new(),
            pci: Vec::new(),
            takeovers: Vec::new(),
            preloaded: 0,
            room: SMALLEST_ROOM,
        };
        if !matches!(source, SourceConfig::Vdevs(_)) {
            this.room = ROOM;
        }
        match source {
            SourceConfig::Files(paths) => this.files = FileSource::open(paths)?,
            SourceConfig::Pci(addresses) => this.pci.clone_from(addresses),
            SourceConfig::Interface(name) => this.interface(name)?,
            SourceConfig::Vdevs(all) => {
                for vdev in all {
                    this.vdev(vdev)?;
                }
            }
        }
        Ok(this)
    }

    fn interface(&mut self, name: &str) -> Result<(), RunError> {
        match Machine::default().choose(name) {
            Ok(Choice::Pmd { address, why }) => {
                tracing::info!("interface {name} is card {address}: {why}");
                self.pci.push(address);
                return Ok(());
            }
            Ok(Choice::Kernel(why)) => {
                tracing::info!("interface {name}: the AF_PACKET driver reads it, since {why}");
            }
            Err(NicError::Unknown(_)) => {}
            Err(e) => return Err(RunError::Input(e.to_string())),
        }
        self.take_over(name)?;
        self.devices.push(Device {
            name: "net_af_packet0".into(),
            args: format!("iface={name},{AF_PACKET_RING}"),
            interface: Some(name.to_owned()),
        });
        Ok(())
    }

    fn take_over(&mut self, name: &str) -> Result<(), RunError> {
        if !netif::exists(name) {
            return Err(RunError::Input(format!(
                "interface {name}: there is no such interface (ip link shows them; --interface names another)"
            )));
        }
        let takeover = Takeover::new(name)?;
        if takeover.was_down() {
            tracing::info!("interface {name} was down; it is up while we run");
        }
        if !takeover.changed().is_empty() {
            tracing::info!(
                "interface {name}: switched off while we run: {}",
                takeover.changed().join(", ")
            );
        }
        self.takeovers.push(takeover);
        Ok(())
    }

    fn vdev(&mut self, text: &str) -> Result<(), RunError> {
        let (name, args) = text.split_once(',').unwrap_or((text, ""));
        let mut with_ring = args.to_owned();
        let values = |key: &str| -> Vec<String> {
            let prefix = format!("{key}=");
            args.split(',').filter_map(|a| a.strip_prefix(&prefix)).map(str::to_owned).collect()
        };
        let captures = values("rx_pcap");
        let mut longest_preloaded = 0;
        for capture in &captures {
            // The driver would say so only in its log.
            let reader = FileSource::open(&[PathBuf::from(capture)])?;
            if values("infinite_rx") == ["1"] {
                let (packets, longest) = measure(reader);
                self.preloaded += packets;
                longest_preloaded = longest_preloaded.max(longest);
            }
        }
        let interface = values("iface").into_iter().next();
        let is_af_packet = name.starts_with("net_af_packet");
        if is_af_packet {
            let Some(interface) = &interface else {
                return Err(RunError::Input(format!(
                    "--vdev {text}: it names no interface (iface=NAME)"
                )));
            };
            self.take_over(interface)?;
            if values("framecnt").is_empty()
                && values("framesz").is_empty()
                && values("blocksz").is_empty()
            {
                with_ring = format!("{args},{AF_PACKET_RING}");
            }
        }
        // A frame of the ring must fit one buffer; a million preloaded packets fit where a million
        // full buffers do not.
        let frame = values("framesz").first().and_then(|v| v.parse::<u16>().ok()).unwrap_or(0);
        let room = match longest_preloaded {
            0 => ROOM.max(frame),
            longest => longest.next_multiple_of(64),
        };
        self.room = self.room.max(room);
        self.devices.push(Device {
            name: name.to_owned(),
            args: with_ring,
            interface: interface.filter(|_| is_af_packet),
        });
        Ok(())
    }

    /// Whether the source is capture files, read by ourselves.
    pub(crate) fn is_files(&self) -> bool {
        !self.files.is_empty()
    }

    /// Starts DPDK with memory for `buffers` packets beside what the devices hold.
    pub(crate) fn start(self, buffers: u32, workers: u16) -> Result<Started, RunError> {
        let buffers = buffers + self.preloaded;
        // The pcap and AF_PACKET drivers take a buffer when a packet comes; others keep rings full.
        let takes_late =
            |d: &&Device| d.name.starts_with("net_pcap") || d.name.starts_with("net_af_packet");
        let late = self.devices.iter().filter(takes_late).count();
        let filled = (self.pci.len() + self.devices.len() - late) as u32;
        let count = buffers + filled * u32::from(DESCRIPTORS) * u32::from(workers);
        let memory = choose_memory(count, self.room, self.is_files());
        let eal = Eal::init(&EalConfig { memory, pci: self.pci.clone() })?;
        let pool = Mempool::new(&eal, "packets", count, self.room)?;
        if self.is_files() {
            let source = Source::File(FileSource::new(self.files, pool));
            return Ok(Started {
                eal,
                inputs: Inputs::default(),
                queues: Queues::File(Box::new(source)),
            });
        }
        let mut ports = Vec::new();
        let mut queues = Vec::new();
        let mut spread = true;
        for address in &self.pci {
            let port = eal.pci_port(address)?;
            let (rx, symmetric) = start_port(&port, "", workers, &pool)?;
            say_how_it_is_set_up(&port)?;
            spread &= symmetric;
            queues.push(rx);
            ports.push(port);
        }
        let mut kernel = Vec::new();
        for device in &self.devices {
            let port = eal.attach_vdev(&device.name, &device.args)?;
            let (mut rx, symmetric) = start_port(&port, &device.args, workers, &pool)?;
            if let Some(interface) = &device.interface {
                let counters = KernelCounters::find(interface)?;
                if counters.bells().len() == rx.len() {
                    rx.iter_mut()
                        .zip(counters.bells())
                        .for_each(|((_, kind), b)| kind.bell = Some(b));
                }
                kernel.push(counters);
            }
            spread &= symmetric;
            queues.push(rx);
            ports.push(port);
        }
        Ok(Started {
            eal,
            inputs: Inputs {
                ports,
                kernel,
                takeovers: Arc::new(self.takeovers),
                links: Vec::new(),
            },
            queues: Queues::Ports { queues, spread },
        })
    }
}

/// Everything that runs before the lcores do.
pub(crate) struct Started {
    pub(crate) eal: Eal,
    pub(crate) inputs: Inputs,
    pub(crate) queues: Queues,
}

/// What lcores can poll.
pub(crate) enum Queues {
    File(Box<Source>),
    /// The queues of each port; `spread` if each port gives both directions of a flow to one
    /// queue, the same on all ports.
    Ports {
        queues: Vec<Vec<(RxQueue, PortKind)>>,
        spread: bool,
    },
}

impl Queues {
    /// Queues per port, and whether they keep a flow together.
    pub(crate) fn shape(&self) -> (usize, bool) {
        match self {
            Self::File(_) => (1, false),
            Self::Ports { queues, spread } => {
                (queues.iter().map(Vec::len).min().unwrap_or(0), *spread)
            }
        }
    }

    /// One source for each of `n` pollers: queue q of each port goes to poller q mod n.
    pub(crate) fn split(self, n: usize) -> Vec<Source> {
        match self {
            Self::File(source) => vec![*source],
            Self::Ports { queues, .. } => {
                let mut hands: Vec<Vec<(RxQueue, PortKind)>> = (0..n).map(|_| Vec::new()).collect();
                for (at, queue) in queues.into_iter().flat_map(|q| q.into_iter().enumerate()) {
                    if let Some(hand) = hands.get_mut(at % n.max(1)) {
                        hand.push(queue);
                    }
                }
                hands.into_iter().map(|hand| Source::Port(PortSource::new(hand))).collect()
            }
        }
    }
}

/// Starts a port; returns its queues and whether they keep both directions of a flow together.
fn start_port(
    port: &Port,
    args: &str,
    workers: u16,
    pool: &Mempool,
) -> Result<(Vec<(RxQueue, PortKind)>, bool), RunError> {
    let info: PortInfo = port.info()?;
    let kind = PortKind::of(&info.driver, args);
    let rx_queues = if info.has_rss() {
        workers.clamp(1, info.max_rx_queues.max(1))
    } else if matches!(info.driver.as_str(), "net_pcap" | "net_af_packet") {
        // Every file and every socket must be read; nobody else would.
        info.max_rx_queues.max(1)
    } else {
        1
    };
    let is_card = !info.driver.starts_with("net_pcap") && info.driver != "net_af_packet";
    let mut config =
        PortConfig { rx_queues, descriptors: DESCRIPTORS, interrupts: is_card, jumbo: is_card };
    let queues = match port.start(&config, pool) {
        Ok(queues) => queues,
        // Drivers without interrupts, or without jumbo frames on this card, say so only now.
        Err(e) if is_card => {
            tracing::debug!("{e}; tried again without interrupts and jumbo frames");
            (config.interrupts, config.jumbo) = (false, false);
            port.start(&config, pool)?
        }
        Err(e) => return Err(e.into()),
    };
    // The AF_PACKET driver's interface is made promiscuous by the takeover, which puts it back.
    if info.driver != "net_af_packet" {
        port.promiscuous()?;
    }
    tracing::info!("port {}: driver {}, {rx_queues} receive queue(s)", port.name(), info.driver);
    // The kernel's fanout hashes ports, which fragments lack: its queues do not keep a flow together.
    let with_bell = |q: RxQueue| {
        let bell = if config.interrupts { q.bell() } else { None };
        (q, PortKind { bell, ..kind })
    };
    Ok((queues.into_iter().map(with_bell).collect(), info.has_rss()))
}

/// What the device itself reports of how it was set up.
fn say_how_it_is_set_up(port: &Port) -> Result<(), RunError> {
    let name = port.name();
    if port.strips_vlan() {
        tracing::warn!("port {name}: the device takes VLAN tags out of frames");
    }
    match port.spread()? {
        None => tracing::info!("port {name}: no RSS"),
        Some(spread) => {
            let key: String = spread.key.iter().map(|b| format!("{b:02x}")).collect();
            let table = match spread.table {
                Some((entries, queues)) => format!("{entries} table entries for {queues} queue(s)"),
                None => "a table that it does not show".into(),
            };
            tracing::info!(
                "port {name}: RSS by {}; {table}; key {key}, {}",
                if spread.functions.is_empty() {
                    "nothing".into()
                } else {
                    spread.functions.join(" ")
                },
                if spread.is_symmetric() { "the same for both directions" } else { "its own" },
            );
        }
    }
    Ok(())
}

/// Hugepages if enough are free, else ordinary pages; files never need hugepages.
fn choose_memory(buffers: u32, room: u16, files: bool) -> Memory {
    // A buffer's pool header, its own header and headroom, its data, padded against cache conflicts;
    // pages cut objects short, so a quarter more.
    let pool = (u64::from(buffers) * (64 + 128 + 128 + u64::from(room) + 64)) >> 20;
    let need = pool + pool / 4 + 64;
    let free: u64 = ["2048", "1048576"]
        .iter()
        .map(|kb| {
            let path = format!("/sys/kernel/mm/hugepages/hugepages-{kb}kB/free_hugepages");
            let pages: u64 = read_number(Path::new(&path)).unwrap_or(0);
            pages * kb.parse::<u64>().unwrap_or(0) / 1024
        })
        .sum();
    if !files && free >= need {
        return Memory::Huge;
    }
    if !files {
        tracing::info!(
            "{free} MiB of hugepages are free, {need} are wanted: running on ordinary pages, slower; \
             scripts/setup-hugepages.sh reserves them"
        );
    }
    Memory::Ordinary { mib: need as u32 }
}

fn read_number(path: &Path) -> Option<u64> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

/// Packets of the captures, and the length of the longest.
fn measure(readers: Vec<CaptureReader>) -> (u32, u16) {
    let (mut packets, mut longest) = (0, 0);
    for mut reader in readers {
        while let Ok(Some(record)) = reader.peek() {
            longest = longest.max(record.data.len());
            packets += 1;
            reader.consume();
        }
    }
    (packets, u16::try_from(longest).unwrap_or(u16::MAX))
}

impl Inputs {
    /// What devices and kernel lost so far.
    pub(crate) fn losses(&mut self) -> Counters {
        let mut out = Counters::default();
        for port in &self.ports {
            let s = port.stats();
            out.add(Counter::NicMissed, s.missed);
            out.add(Counter::NicErrors, s.errors);
            out.add(Counter::NoBuffer, s.no_buffer);
        }
        for kernel in &mut self.kernel {
            kernel.update();
            out.add(Counter::KernelDrops, kernel.drops);
        }
        out
    }

    /// Looks at links and interfaces: says what changed; the state for whoever asks.
    ///
    /// # Errors
    /// An interface or card is gone: what is left does not come back by itself.
    pub(crate) fn look(&mut self) -> Result<Option<bool>, String> {
        if let Some(gone) = self.takeovers.iter().find(|t| t.is_gone()) {
            return Err(format!("interface {} is gone", gone.name()));
        }
        if let Some(gone) = self.ports.iter().find(|p| p.is_removed()) {
            return Err(format!("port {}: the card is gone", gone.name()));
        }
        let mut now: Vec<(String, Option<bool>)> =
            self.takeovers.iter().map(|t| (t.name().to_owned(), t.has_link())).collect();
        if self.takeovers.is_empty() {
            let up = |p: &Port| p.link().map(|l| l.is_up);
            now = self.ports.iter().map(|p| (p.name().to_owned(), up(p))).collect();
        }
        for (at, (name, is_up)) in now.iter().enumerate() {
            // Up at the start is as it should be.
            let before = self.links.get(at).map_or(Some(true), |(_, up)| *up);
            match (before, is_up) {
                (Some(true), Some(false)) => tracing::warn!("{name}: the link is down"),
                (Some(false), Some(true)) => tracing::info!("{name}: the link is up"),
                _ => {}
            }
        }
        self.links = now;
        Ok(self.links.iter().filter_map(|(_, up)| *up).reduce(|a, b| a && b))
    }

    /// What puts the interfaces back once nobody has it any more; that takes the capabilities of the
    /// thread in which it happens.
    pub(crate) fn custody(&self) -> Arc<Vec<Takeover>> {
        Arc::clone(&self.takeovers)
    }

    /// The addresses of the machine's own on these ports.
    pub(crate) fn macs(&self) -> Vec<[u8; 6]> {
        self.ports.iter().filter_map(Port::mac).collect()
    }

    /// Packets that the kernel took in for us, those it dropped included.
    fn kernel_packets(&self) -> u64 {
        self.kernel.iter().map(|k| k.packets).sum()
    }

    /// Counts the last losses, then stops the ports and puts the interfaces back. `received` is
    /// what our lcores got; they have ended.
    pub(crate) fn finish(mut self, received: u64) -> Counters {
        let mut losses = self.losses();
        if !self.kernel.is_empty() {
            let seen = received + losses.get(Counter::KernelDrops);
            losses.set(Counter::LeftInRing, self.kernel_packets().saturating_sub(seen));
        }
        for port in self.ports {
            if let Err(e) = port.stop() {
                tracing::warn!("{e}");
            }
        }
        losses
    }
}
