//! The cards that are to be bound at each start: `/etc/malakocut/nic.conf`, a line each of address,
//! kernel module and the interface's name before, which goes on naming the card.

use std::fs;
use std::path::{Path, PathBuf};

use super::{Machine, NicError};

/// Where the list is.
pub const FILE: &str = "/etc/malakocut/nic.conf";

const HEAD: &str = "\
# Cards that malakocut takes over at each start; malakocut-cli nic bind and unbind write this file.
# PCI address, kernel module (vfio-pci, uio_pci_generic, or - where the kernel's driver keeps the
# card), interface before.
";

/// A card to be taken over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    pub address: String,
    /// `-`: the DPDK driver works beside the kernel's.
    pub module: String,
    /// `-`: it had none.
    pub interface: String,
}

/// The entries; none where there is no list.
pub fn read(machine: &Machine) -> Result<Vec<Entry>, NicError> {
    let path = machine.path(FILE);
    let text = match fs::read_to_string(&path) {
        Ok(text) => text,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(NicError::file(&path)(e)),
    };
    let mut entries = Vec::new();
    for (at, line) in text.lines().enumerate() {
        let line = line.split('#').next().unwrap_or_default();
        let words: Vec<&str> = line.split_whitespace().collect();
        match words.as_slice() {
            [] => {}
            &[address, module, interface] if is_address(address) => entries.push(Entry {
                address: address.into(),
                module: module.into(),
                interface: interface.into(),
            }),
            _ => {
                let why = format!("not \"ADDRESS MODULE INTERFACE\": {}", line.trim());
                return Err(NicError::Conf { path, line: at + 1, why });
            }
        }
    }
    Ok(entries)
}

/// Adds a card, or changes how it is taken over.
pub(super) fn add(machine: &Machine, entry: Entry) -> Result<(), NicError> {
    let mut entries = read(machine)?;
    entries.retain(|e| e.address != entry.address);
    entries.push(entry);
    write(machine, &entries)
}

/// Takes a card out; whether it was in there.
pub(super) fn remove(machine: &Machine, address: &str) -> Result<bool, NicError> {
    let mut entries = read(machine)?;
    let before = entries.len();
    entries.retain(|e| e.address != address);
    if entries.len() == before {
        return Ok(false);
    }
    write(machine, &entries).map(|()| true)
}

fn write(machine: &Machine, entries: &[Entry]) -> Result<(), NicError> {
    let path = machine.path(FILE);
    let lines = entries.iter().map(|e| format!("{} {} {}\n", e.address, e.module, e.interface));
    let text = HEAD.to_owned() + &lines.collect::<String>();
    // As a whole, so that no reader meets half of it.
    let new: PathBuf = path.with_extension("conf.new");
    let directory = path.parent().unwrap_or_else(|| Path::new("/"));
    fs::create_dir_all(directory).map_err(NicError::file(directory))?;
    fs::write(&new, text).map_err(NicError::file(&new))?;
    fs::rename(&new, &path).map_err(NicError::file(&path))
}

/// `0000:03:00.0`.
fn is_address(text: &str) -> bool {
    let hex = |t: &str, n| t.len() == n && t.bytes().all(|b| b.is_ascii_hexdigit());
    let parts: Vec<&str> = text.split([':', '.']).collect();
    matches!(parts.as_slice(), &[domain, bus, slot, function]
        if hex(domain, 4) && hex(bus, 2) && hex(slot, 2) && hex(function, 1))
}
