//! Network cards: what the kernel says of them, which DPDK driver would take one and why not, and
//! moving one from its driver to another and back.
//!
//! Everything is read below one root directory (`/`), where the kernel's sysfs and procfs, the
//! installed DPDK drivers and our own list of cards ([`conf`]) are. A card that carries the default
//! route or the session we run in is never taken.

pub mod bind;
pub mod conf;
mod drivers;
mod session;

use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

pub use bind::{Choice, Kernel};
pub use drivers::{Drivers, Pmd};

/// Something about a card failed.
#[derive(Debug, thiserror::Error)]
pub enum NicError {
    #[error("{0}: no such network card or interface (malakocut-cli nic list shows them)")]
    Unknown(String),
    #[error(
        "{0} is no PCI card, so no DPDK driver can take it; the AF_PACKET driver reads it as it is"
    )]
    Virtual(String),
    #[error("{0}")]
    Refused(String),
    #[error("{}: {source}", path.display())]
    File { path: PathBuf, source: io::Error },
    #[error("{}, line {line}: {why}", path.display())]
    Conf { path: PathBuf, line: usize, why: String },
}

impl NicError {
    fn file(path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::File { path, source }
    }
}

/// The machine as it shows itself in files.
#[derive(Clone, Debug)]
pub struct Machine {
    root: PathBuf,
}

impl Default for Machine {
    fn default() -> Self {
        Self::at("/")
    }
}

/// A network card on the PCI bus.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Card {
    /// Such as `0000:03:00.0`.
    pub address: String,
    pub id: PciId,
    /// The kernel's driver that has it.
    pub driver: Option<String>,
    /// The kernel's interfaces on it; none where a DPDK driver's stub has it.
    pub interfaces: Vec<Interface>,
    pub iommu_group: Option<String>,
}

/// Vendor, device, subsystem's vendor and device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PciId(pub [u16; 4]);

impl fmt::Display for PciId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04x}:{:04x}", self.0[0], self.0[1])
    }
}

/// An interface of the kernel.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Interface {
    pub name: String,
    pub mac: String,
    pub link: Link,
}

/// Whether the other end is there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Link {
    /// Administratively down: nobody knows.
    #[default]
    Off,
    NoCarrier,
    /// With the speed in Mbit/s, where the driver knows it.
    Up(Option<u32>),
}

impl fmt::Display for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Off => f.write_str("off"),
            Self::NoCarrier => f.write_str("no link"),
            Self::Up(None) => f.write_str("up"),
            Self::Up(Some(mbit)) => write!(f, "{mbit} Mbit/s"),
        }
    }
}

impl Machine {
    /// The machine whose root directory this is.
    pub fn at(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// A path below the root.
    pub(crate) fn path(&self, absolute: impl AsRef<Path>) -> PathBuf {
        let path = absolute.as_ref();
        self.root.join(path.strip_prefix("/").unwrap_or(path))
    }

    /// A small file's text without the white space around it.
    pub(crate) fn text(&self, absolute: impl AsRef<Path>) -> Option<String> {
        fs::read_to_string(self.path(absolute)).ok().map(|t| t.trim().to_owned())
    }

    fn device(&self, address: &str) -> PathBuf {
        self.path("/sys/bus/pci/devices").join(address)
    }

    /// Every network card, by address.
    pub fn cards(&self) -> Vec<Card> {
        let class = |address: &String| text(&self.device(address).join("class"));
        let mut cards: Vec<Card> = names(&self.path("/sys/bus/pci/devices"))
            .into_iter()
            .filter(|address| class(address).is_some_and(|c| c.starts_with("0x02")))
            .map(|address| self.card(address))
            .collect();
        cards.sort_by(|a, b| a.address.cmp(&b.address));
        cards
    }

    fn card(&self, address: String) -> Card {
        let at = self.device(&address);
        let number = |file: &str| {
            let text = text(&at.join(file)).unwrap_or_default();
            u16::from_str_radix(text.trim_start_matches("0x"), 16).unwrap_or(0)
        };
        let id = PciId(["vendor", "device", "subsystem_vendor", "subsystem_device"].map(number));
        // A virtio card's interface is on the virtio device below it.
        let below = names(&at).into_iter().filter(|n| n.starts_with("virtio")).map(|n| at.join(n));
        let nets = std::iter::once(at.clone()).chain(below).map(|d| d.join("net"));
        let interfaces = nets.flat_map(|d| names(&d)).map(|n| self.interface(&n)).collect();
        Card {
            id,
            driver: target(&at.join("driver")),
            iommu_group: target(&at.join("iommu_group")),
            interfaces,
            address,
        }
    }

    /// What is known of an interface.
    pub fn interface(&self, name: &str) -> Interface {
        let at = self.path("/sys/class/net").join(name);
        // Reading the carrier of an interface that is down is an error.
        let link = match text(&at.join("carrier")).as_deref() {
            Some("1") => {
                let speed = text(&at.join("speed")).and_then(|s| s.parse().ok());
                Link::Up(speed.filter(|s| (1..u32::MAX).contains(s)))
            }
            Some(_) => Link::NoCarrier,
            None => Link::Off,
        };
        Interface { name: name.into(), mac: text(&at.join("address")).unwrap_or_default(), link }
    }

    /// The interfaces that are no card's, the loopback left out.
    pub fn virtual_interfaces(&self) -> Vec<Interface> {
        let cards = self.cards();
        let of_card =
            |name: &String| cards.iter().any(|c| c.interfaces.iter().any(|i| i.name == *name));
        let all = names(&self.path("/sys/class/net")).into_iter();
        all.filter(|n| n != "lo" && !of_card(n)).map(|n| self.interface(&n)).collect()
    }

    /// Whether the kernel has an interface of this name.
    pub fn has_interface(&self, name: &str) -> bool {
        !name.is_empty() && !name.contains('/') && self.path("/sys/class/net").join(name).exists()
    }

    /// The card of an address (with or without its domain), of a kernel's interface, or of an
    /// interface as it was called before the card was bound.
    pub fn find(&self, what: &str) -> Result<Card, NicError> {
        let cards = self.cards();
        let long = format!("0000:{what}");
        let has = |c: &&Card| {
            c.address == what || c.address == long || c.interfaces.iter().any(|i| i.name == what)
        };
        if let Some(card) = cards.iter().find(has) {
            return Ok(card.clone());
        }
        let remembered = conf::read(self)?.into_iter().find(|e| e.interface == what);
        match remembered.and_then(|e| cards.iter().find(|c| c.address == e.address).cloned()) {
            Some(card) => Ok(card),
            None if self.has_interface(what) => Err(NicError::Virtual(what.into())),
            None => Err(NicError::Unknown(what.into())),
        }
    }

    /// Devices of the card's IOMMU group that another driver than `taker` has: they go to a guest
    /// together or not at all.
    fn group_neighbours(&self, card: &Card, taker: &str) -> Vec<(String, String)> {
        let Some(group) = &card.iommu_group else { return Vec::new() };
        let devices = self.path("/sys/kernel/iommu_groups").join(group).join("devices");
        names(&devices)
            .into_iter()
            .filter(|address| *address != card.address)
            .filter_map(|address| {
                let driver = target(&self.device(&address).join("driver"))?;
                // Bridges stay with the kernel.
                (driver != taker && driver != "pcieport").then_some((address, driver))
            })
            .collect()
    }
}

fn text(path: &Path) -> Option<String> {
    fs::read_to_string(path).ok().map(|t| t.trim().to_owned())
}

/// What a link points to, by its last name.
fn target(link: &Path) -> Option<String> {
    let target = fs::read_link(link).ok()?;
    target.file_name().map(|n| n.to_string_lossy().into_owned())
}

/// The names in a directory, sorted; none where there is no such directory.
fn names(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let mut out: Vec<String> =
        entries.map(|e| e.file_name().to_string_lossy().into_owned()).collect();
    out.sort();
    out
}

#[cfg(test)]
mod tests;
