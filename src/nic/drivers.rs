//! Which cards the installed DPDK drivers take, as these say themselves: each carries a line
//! `PMD_INFO_STRING= {...}` with its name, the kernel modules it works with, and PCI ids.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;

use serde::Deserialize;

use super::{Machine, PciId, names};

const MARK: &[u8] = b"PMD_INFO_STRING= ";
/// In a driver's list it stands for any id.
const ANY: u16 = 0xffff;

/// One driver.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Pmd {
    pub name: String,
    /// Kernel modules it needs, such as `* igb_uio | uio_pci_generic | vfio-pci`.
    #[serde(default)]
    kmod: String,
    #[serde(default)]
    pci_ids: Vec<[u16; 4]>,
}

impl Pmd {
    /// Whether it works through the kernel's own driver, which keeps the card.
    pub fn beside_kernel(&self) -> bool {
        !self.kmod.is_empty() && !self.works_with("vfio-pci") && !self.kmod.contains("uio")
    }

    /// Whether it can use a card that this kernel module has.
    pub fn works_with(&self, module: &str) -> bool {
        self.kmod.split(['|', '&', '*', ' ']).any(|m| m == module)
    }

    fn takes(&self, id: PciId) -> bool {
        let fits = |list: &[u16; 4]| {
            list.iter().zip(id.0).all(|(wanted, is)| *wanted == ANY || *wanted == is)
        };
        self.pci_ids.iter().any(fits)
    }
}

/// The drivers that are installed.
#[derive(Clone, Debug, Default)]
pub struct Drivers(Vec<Pmd>);

impl Drivers {
    /// Reads the plugins of DPDK.
    pub fn installed(machine: &Machine) -> Self {
        let mut files = BTreeSet::new();
        for arch in names(&machine.path("/usr/lib")) {
            let dpdk = machine.path("/usr/lib").join(arch).join("dpdk");
            for plugins in names(&dpdk).into_iter().filter(|n| n.starts_with("pmds-")) {
                let directory = dpdk.join(plugins);
                let nets = names(&directory).into_iter().filter(|n| n.starts_with("librte_net_"));
                // Most names are links to others.
                files.extend(nets.filter_map(|n| fs::canonicalize(directory.join(n)).ok()));
            }
        }
        let mut pmds: Vec<Pmd> = files.iter().flat_map(of_plugin).collect();
        pmds.sort_by(|a, b| a.name.cmp(&b.name));
        pmds.dedup();
        Self(pmds)
    }

    /// Whether there is none at all.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The driver that takes a card of this id.
    pub fn of(&self, id: PciId) -> Option<&Pmd> {
        self.0.iter().find(|pmd| pmd.takes(id))
    }
}

fn of_plugin(file: &PathBuf) -> Vec<Pmd> {
    let bytes = fs::read(file).unwrap_or_default();
    let mut rest = bytes.as_slice();
    let mut out = Vec::new();
    while let Some(at) = rest.windows(MARK.len()).position(|w| w == MARK) {
        rest = rest.get(at + MARK.len()..).unwrap_or_default();
        let end = rest.iter().position(|b| *b == 0).unwrap_or(rest.len());
        let line = rest.get(..end).unwrap_or_default();
        out.extend(serde_json::from_slice::<Pmd>(line).ok());
    }
    out
}
