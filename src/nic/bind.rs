//! Who would take a card, and moving it.
//!
//! The kernel's `driver_override` says which driver is to have a device when it is probed next. A
//! move that does not end where it should is undone.

use std::fs;
use std::path::Path;
use std::process::Command;

use super::conf::{self, Entry};
use super::{Card, Drivers, Machine, NicError, target};

/// Kernel modules that only hold a card for a driver in user space.
const STUBS: [&str; 3] = ["vfio-pci", "uio_pci_generic", "igb_uio"];
const NOIOMMU: &str = "/sys/module/vfio/parameters/enable_unsafe_noiommu_mode";
/// The service's user, who is to open what we bind.
const USER: &str = "malakocut";

/// A card to be taken over, and how that went.
pub type Applied = (Entry, Result<(), NicError>);

/// How a card could come to a DPDK driver.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kernel {
    /// A stub has it already.
    Bound(String),
    /// The DPDK driver works beside the kernel's, nothing has to be moved.
    Beside,
    /// It can be moved to this module; without an IOMMU if so.
    Movable { module: &'static str, without_iommu: bool },
    /// It cannot, or must not.
    No(String),
}

/// How the sensor reads an interface, and why so.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Choice {
    /// By DPDK, as the card of this address.
    Pmd { address: String, why: String },
    /// By the AF_PACKET driver.
    Kernel(String),
}

impl Card {
    /// Whether a stub has it.
    pub fn is_bound(&self) -> bool {
        self.driver.as_deref().is_some_and(|d| STUBS.contains(&d))
    }

    /// The interface's name, or what there is to call it.
    pub fn name(&self) -> &str {
        self.interfaces.first().map_or(&self.address, |i| &i.name)
    }
}

impl Machine {
    /// How a card could come to a DPDK driver, and to which.
    pub fn way(&self, card: &Card, drivers: &Drivers) -> (Option<String>, Kernel) {
        let pmd = drivers.of(card.id);
        let name = pmd.map(|p| p.name.clone());
        if let Some(driver) = card.driver.clone().filter(|_| card.is_bound()) {
            return (name, Kernel::Bound(driver));
        }
        let Some(pmd) = pmd else {
            let why = format!("no installed DPDK driver knows {}", card.id);
            return (None, Kernel::No(why));
        };
        if let Some(why) = card.interfaces.iter().find_map(|i| self.needed(&i.name)) {
            return (name, Kernel::No(why));
        }
        if pmd.beside_kernel() {
            return (name, Kernel::Beside);
        }
        if pmd.works_with("vfio-pci") && self.has_module("vfio-pci") {
            if card.iommu_group.is_some() {
                let others = self.group_neighbours(card, "vfio-pci");
                if let Some((address, driver)) = others.first() {
                    let why = format!(
                        "its IOMMU group also holds {address} ({driver}), which would have to go with it"
                    );
                    return (name, Kernel::No(why));
                }
                return (name, Kernel::Movable { module: "vfio-pci", without_iommu: false });
            }
            if self.path(NOIOMMU).exists() {
                return (name, Kernel::Movable { module: "vfio-pci", without_iommu: true });
            }
        }
        if pmd.works_with("uio_pci_generic") && self.has_module("uio_pci_generic") {
            return (name, Kernel::Movable { module: "uio_pci_generic", without_iommu: true });
        }
        let why = "there is no IOMMU: switch VT-d or AMD-Vi on in the firmware, and boot the kernel \
                   with intel_iommu=on iommu=pt (amd_iommu=on)";
        (name, Kernel::No(why.into()))
    }

    /// How the sensor reads this interface: by its card's DPDK driver where the card is bound, or is
    /// to be bound ([`conf`]) and goes along, else by the kernel.
    pub fn choose(&self, interface: &str) -> Result<Choice, NicError> {
        let entries = conf::read(self)?;
        let entry =
            entries.into_iter().find(|e| e.interface == interface || e.address == interface);
        let card = match self.find(interface) {
            Ok(card) => card,
            Err(NicError::Virtual(_)) => {
                return Ok(Choice::Kernel("it is no PCI card".into()));
            }
            Err(e) => return Err(e),
        };
        let (pmd, way) = self.way(&card, &Drivers::installed(self));
        let pmd = pmd.unwrap_or_else(|| "a DPDK driver".into());
        let address = card.address.clone();
        Ok(match (way, entry) {
            (Kernel::Bound(module), _) => {
                Choice::Pmd { address, why: format!("{pmd} reads it, since {module} holds it") }
            }
            (Kernel::Beside, Some(_)) => {
                Choice::Pmd { address, why: format!("{pmd} reads it, beside the kernel's driver") }
            }
            (_, Some(entry)) => match self.take(&card, &entry.module) {
                Ok(()) => {
                    let why =
                        format!("{pmd} reads it, now bound to {} by {}", entry.module, conf::FILE);
                    Choice::Pmd { address, why }
                }
                Err(e) => Choice::Kernel(format!("{} is to have it, but: {e}", entry.module)),
            },
            (Kernel::Movable { .. } | Kernel::Beside, None) => Choice::Kernel(format!(
                "{} has the card; malakocut-cli nic bind {interface} hands it to {pmd}",
                card.driver.as_deref().unwrap_or("no driver")
            )),
            (Kernel::No(why), None) => Choice::Kernel(why),
        })
    }

    /// Whether the kernel has a module, loaded or not.
    fn has_module(&self, name: &str) -> bool {
        let loaded = self.path("/sys/module").join(name.replace('-', "_")).exists();
        let release = self.text("/proc/sys/kernel/osrelease").unwrap_or_default();
        let directory = Path::new("/lib/modules").join(release);
        let listed = |file: &str| {
            let list = self.text(directory.join(file)).unwrap_or_default();
            let names = list.lines().filter_map(|l| l.split(':').next()?.rsplit('/').next());
            let mut stems = names.filter_map(|n| n.split(".ko").next());
            stems.any(|n| n.replace('_', "-") == name.replace('_', "-"))
        };
        loaded || listed("modules.dep") || listed("modules.builtin")
    }

    /// Moves a card to the module that suits, or to `wanted`, and remembers it for the next start.
    pub fn bind(&self, what: &str, wanted: Option<&str>) -> Result<Entry, NicError> {
        let card = self.find(what)?;
        let refuse = |why: String| Err(NicError::Refused(format!("{what} is not taken: {why}")));
        if let Some(why) = card.interfaces.iter().find_map(|i| self.needed(&i.name)) {
            return refuse(why);
        }
        let (_, way) = self.way(&card, &Drivers::installed(self));
        let module = match (wanted, way) {
            (Some(module), Kernel::Beside) => {
                return refuse(format!("its DPDK driver does not work with {module}"));
            }
            (Some(module), _) => module.to_owned(),
            (None, Kernel::Bound(driver)) => driver,
            (None, Kernel::Beside) => "-".to_owned(),
            (None, Kernel::Movable { module, .. }) => module.to_owned(),
            (None, Kernel::No(why)) => return refuse(why),
        };
        let known = conf::read(self)?.into_iter().find(|e| e.address == card.address);
        let interface = match card.interfaces.first() {
            Some(interface) => interface.name.clone(),
            None => known.map_or_else(|| "-".to_owned(), |e| e.interface),
        };
        let entry = Entry { address: card.address.clone(), module, interface };
        self.take(&card, &entry.module)?;
        conf::add(self, entry.clone())?;
        Ok(entry)
    }

    /// Gives a card back to the kernel's own driver, and forgets it; which driver has it now.
    pub fn unbind(&self, what: &str) -> Result<Card, NicError> {
        let card = self.find(what)?;
        if card.is_bound() {
            self.release(&card)?;
        }
        let forgotten = conf::remove(self, &card.address)?;
        if !card.is_bound() && !forgotten {
            let why = format!(
                "{what} is not bound: {} has it",
                card.driver.as_deref().unwrap_or("nobody")
            );
            return Err(NicError::Refused(why));
        }
        self.find(&card.address)
    }

    /// Binds what is remembered; a line for each, whether it went well.
    pub fn apply(&self) -> Result<Vec<Applied>, NicError> {
        let bind = |entry: Entry| {
            let done = self.find(&entry.address).and_then(|card| {
                match card.interfaces.iter().find_map(|i| self.needed(&i.name)) {
                    Some(why) => {
                        Err(NicError::Refused(format!("{} is not taken: {why}", entry.address)))
                    }
                    None => self.take(&card, &entry.module),
                }
            });
            (entry, done)
        };
        Ok(conf::read(self)?.into_iter().map(bind).collect())
    }

    fn take(&self, card: &Card, module: &str) -> Result<(), NicError> {
        if module == "-" {
            return Ok(());
        }
        if !STUBS.contains(&module) {
            let why = format!("{module} holds no cards for DPDK; {} do", STUBS.join(", "));
            return Err(NicError::Refused(why));
        }
        if card.driver.as_deref() != Some(module) {
            self.load(module)?;
            if card.iommu_group.is_none() && module == "vfio-pci" {
                let path = self.path(NOIOMMU);
                fs::write(&path, "Y").map_err(NicError::file(&path))?;
            }
            if let Err(e) = self.move_to(card, Some(module)) {
                // As it was, as far as that goes.
                let _ = self.move_to(card, None);
                return Err(e);
            }
        }
        self.hand_to_service(card);
        Ok(())
    }

    fn release(&self, card: &Card) -> Result<(), NicError> {
        self.move_to(card, None)
    }

    fn load(&self, module: &str) -> Result<(), NicError> {
        let loaded = self.path("/sys/module").join(module.replace('-', "_"));
        if loaded.exists() {
            return Ok(());
        }
        let done = Command::new("modprobe").arg(module).output();
        let why = match done {
            Ok(output) if output.status.success() => return Ok(()),
            Ok(output) => String::from_utf8_lossy(&output.stderr).trim().to_owned(),
            Err(e) => e.to_string(),
        };
        Err(NicError::Refused(format!("the kernel module {module} cannot be loaded: {why}")))
    }

    /// To a module, or to the driver that the kernel would choose.
    fn move_to(&self, card: &Card, module: Option<&str>) -> Result<(), NicError> {
        let at = self.device(&card.address);
        let write = |path: std::path::PathBuf, text: &str| {
            fs::write(&path, text).map_err(NicError::file(&path))
        };
        write(at.join("driver_override"), &format!("{}\n", module.unwrap_or_default()))?;
        if target(&at.join("driver")).is_some() {
            write(at.join("driver/unbind"), &card.address)?;
        }
        write(self.path("/sys/bus/pci/drivers_probe"), &card.address)?;
        match (module, target(&at.join("driver"))) {
            (None, _) => Ok(()),
            (Some(module), Some(driver)) if driver == module => Ok(()),
            (Some(module), _) => {
                let why =
                    format!("{} did not go to {module}; the kernel's log says why", card.address);
                Err(NicError::Refused(why))
            }
        }
    }

    /// The service opens the card as a user of its own.
    fn hand_to_service(&self, card: &Card) {
        let Some(group) = target(&self.device(&card.address).join("iommu_group")) else { return };
        let Some((user, group_id)) = self.user(USER) else { return };
        for node in [group.clone(), format!("noiommu-{group}")] {
            let node = self.path("/dev/vfio").join(node);
            if node.exists()
                && let Err(e) = std::os::unix::fs::chown(&node, Some(user), Some(group_id))
            {
                tracing::warn!("{}: {e}", node.display());
            }
        }
    }

    /// Ids of a user and its group.
    fn user(&self, name: &str) -> Option<(u32, u32)> {
        let users = self.text("/etc/passwd")?;
        let line = users.lines().find(|l| l.split(':').next() == Some(name))?;
        let mut words = line.split(':').skip(2);
        Some((words.next()?.parse().ok()?, words.next()?.parse().ok()?))
    }
}
