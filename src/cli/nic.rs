//! `malakocut-cli nic`: which cards there are, and handing them to DPDK and back.

use std::io::{self, Write};

use clap::{Args, Subcommand};
use serde_json::json;

use super::{Outcome, Refused};
use crate::nic::{Card, Drivers, Interface, Kernel, Machine, NicError};

#[derive(Debug, Subcommand)]
pub(super) enum Nic {
    /// List network cards: who has them, and which DPDK driver would take them or why not
    List(List),
    /// Hand a card to DPDK, now and at each start of the service
    Bind(Bind),
    /// Give a card back to the kernel's driver
    Unbind(Which),
    /// Bind the cards of /etc/malakocut/nic.conf; the service does so when it starts
    Apply,
}

#[derive(Debug, Args)]
pub(super) struct List {
    /// One JSON object a line
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
pub(super) struct Bind {
    /// Interface name (enp3s0) or PCI address (0000:03:00.0)
    #[arg(value_name = "CARD")]
    card: String,
    /// Kernel module to hold it: vfio-pci, uio_pci_generic or igb_uio [default: what suits]
    #[arg(long, value_name = "MODULE")]
    driver: Option<String>,
}

#[derive(Debug, Args)]
pub(super) struct Which {
    /// PCI address, or the interface's name before it was bound
    #[arg(value_name = "CARD")]
    card: String,
}

impl Nic {
    pub(super) fn run(self) -> Result<Outcome, Refused> {
        let machine = Machine::default();
        match self {
            Self::List(list) => list.run(&machine),
            Self::Bind(bind) => {
                let entry = machine.bind(&bind.card, bind.driver.as_deref()).map_err(explained)?;
                print(&match entry.module.as_str() {
                    "-" => format!(
                        "{}: its DPDK driver works beside the kernel's; malakocut takes it from the next start on\n",
                        entry.address
                    ),
                    module => format!(
                        "{} ({}) is bound to {module}, now and at each start\n",
                        entry.address, entry.interface
                    ),
                })
            }
            Self::Unbind(which) => {
                let card = machine.unbind(&which.card).map_err(explained)?;
                let driver = card.driver.as_deref().unwrap_or("no driver");
                print(&format!("{} is back with {driver} ({})\n", card.address, card.name()))
            }
            Self::Apply => apply(&machine),
        }
    }
}

fn explained(e: NicError) -> Refused {
    match &e {
        NicError::File { source, .. } if source.kind() == io::ErrorKind::PermissionDenied => {
            Refused::because(format!("{e}; this needs root"))
        }
        _ => Refused::because(e),
    }
}

fn apply(machine: &Machine) -> Result<Outcome, Refused> {
    let mut outcome = Outcome::Done;
    for (entry, done) in machine.apply().map_err(explained)? {
        match done {
            Ok(()) if entry.module == "-" => {}
            Ok(()) => {
                print(&format!("{} ({}): {}\n", entry.address, entry.interface, entry.module))?;
            }
            Err(e) => {
                eprintln!("malakocut-cli: {e}");
                outcome = Outcome::Incomplete;
            }
        }
    }
    Ok(outcome)
}

impl List {
    fn run(&self, machine: &Machine) -> Result<Outcome, Refused> {
        let drivers = Drivers::installed(machine);
        let mut rows =
            vec![["card", "interface", "id", "driver", "link", "IOMMU", "DPDK"].map(str::to_owned)];
        for card in machine.cards() {
            let (pmd, way) = machine.way(&card, &drivers);
            if self.json {
                print(&format!("{}\n", object(&card, pmd.as_deref(), &way)))?;
                continue;
            }
            let of = |f: fn(&Interface) -> String| {
                let all: Vec<String> = card.interfaces.iter().map(f).collect();
                if all.is_empty() { "-".into() } else { all.join(",") }
            };
            rows.push([
                card.address.clone(),
                of(|i| i.name.clone()),
                card.id.to_string(),
                card.driver.clone().unwrap_or_else(|| "-".into()),
                of(|i| i.link.to_string()),
                card.iommu_group.clone().map_or_else(|| "none".into(), |g| format!("group {g}")),
                said(pmd.as_deref(), &way),
            ]);
        }
        for interface in machine.virtual_interfaces() {
            let name = interface.name.clone();
            if self.json {
                let link = interface.link.to_string();
                print(&format!(
                    "{}\n",
                    json!({"interface": name, "mac": interface.mac, "link": link})
                ))?;
                continue;
            }
            let why = "no PCI card; the AF_PACKET driver reads it";
            let dash = || "-".to_owned();
            rows.push([
                dash(),
                name,
                dash(),
                dash(),
                interface.link.to_string(),
                dash(),
                why.into(),
            ]);
        }
        if !self.json {
            print(&table(&rows))?;
        }
        Ok(Outcome::Done)
    }
}

fn object(card: &Card, pmd: Option<&str>, way: &Kernel) -> serde_json::Value {
    let interfaces: Vec<serde_json::Value> = card
        .interfaces
        .iter()
        .map(|i| json!({"name": i.name, "mac": i.mac, "link": i.link.to_string()}))
        .collect();
    let state = match way {
        Kernel::Bound(_) => "bound",
        Kernel::Beside => "beside",
        Kernel::Movable { .. } => "bindable",
        Kernel::No(_) => "no",
    };
    json!({"card": card.address, "id": card.id.to_string(), "driver": card.driver,
        "interfaces": interfaces, "iommu_group": card.iommu_group, "pmd": pmd, "state": state,
        "says": said(pmd, way)})
}

/// Which DPDK driver takes it and how, or why none does.
fn said(pmd: Option<&str>, way: &Kernel) -> String {
    let pmd = pmd.unwrap_or("no installed driver");
    match way {
        Kernel::Bound(module) => format!("{pmd} by {module}, bound"),
        Kernel::Beside => format!("{pmd}, beside the kernel's driver"),
        Kernel::Movable { module, without_iommu: false } => format!("{pmd} by {module}"),
        Kernel::Movable { module, .. } => format!("{pmd} by {module}, without an IOMMU"),
        Kernel::No(why) => format!("no: {why}"),
    }
}

fn table(rows: &[[String; 7]]) -> String {
    let width = |column: usize| {
        rows.iter().filter_map(|r| r.get(column)).map(|c| c.chars().count()).max().unwrap_or(0)
    };
    let mut out = String::new();
    for row in rows {
        let mut line = String::new();
        for (column, cell) in row.iter().enumerate() {
            let width = if column == 6 { 0 } else { width(column) + 2 };
            line += &format!("{cell:<width$}");
        }
        out += line.trim_end();
        out.push('\n');
    }
    out
}

fn print(text: &str) -> Result<Outcome, Refused> {
    io::stdout().write_all(text.as_bytes()).map_err(Refused::because).map(|()| Outcome::Done)
}
