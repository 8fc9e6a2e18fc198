//! On a tree of files as sysfs and procfs show them.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use super::*;

/// A machine made of files.
struct Made {
    root: tempfile::TempDir,
    machine: Machine,
}

impl Made {
    fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        let machine = Machine::at(root.path());
        let this = Self { root, machine };
        this.write("/proc/sys/kernel/osrelease", "6.1.0-test");
        this.write(
            "/usr/lib/x86_64-linux-gnu/dpdk/pmds-23.0/librte_net_a.so.23.0",
            "\x7fELF\0PMD_INFO_STRING= {\"name\": \"net_igc\", \"kmod\": \"* igb_uio | uio_pci_generic | vfio-pci\", \
             \"pci_ids\": [[32902, 5618, 65535, 65535]]}\0\
             PMD_INFO_STRING= {\"name\": \"mlx5_pci\", \"kmod\": \"* ib_uverbs & mlx5_core & mlx5_ib\", \
             \"pci_ids\": [[5555, 4115, 65535, 65535]]}\0",
        );
        this
    }

    fn write(&self, path: &str, text: &str) {
        let path = self.machine.path(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    fn link(&self, from: &str, to: &str) {
        let from = self.machine.path(from);
        fs::create_dir_all(from.parent().unwrap()).unwrap();
        symlink(to, from).unwrap();
    }

    fn card(
        &self,
        address: &str,
        id: (u16, u16),
        driver: &str,
        interface: &str,
        group: Option<&str>,
    ) {
        let at = format!("/sys/bus/pci/devices/{address}");
        self.write(&format!("{at}/class"), "0x020000\n");
        self.write(&format!("{at}/vendor"), &format!("0x{:04x}\n", id.0));
        self.write(&format!("{at}/device"), &format!("0x{:04x}\n", id.1));
        self.link(&format!("{at}/driver"), &format!("../../../bus/pci/drivers/{driver}"));
        self.write(&format!("{at}/net/{interface}/mtu"), "1500");
        self.write(&format!("/sys/class/net/{interface}/carrier"), "1\n");
        self.write(&format!("/sys/class/net/{interface}/speed"), "2500\n");
        if let Some(group) = group {
            self.link(
                &format!("{at}/iommu_group"),
                &format!("../../../kernel/iommu_groups/{group}"),
            );
            self.link(&format!("/sys/kernel/iommu_groups/{group}/devices/{address}"), "../x");
        }
    }

    fn way(&self, card: &str) -> (Option<String>, Kernel) {
        let drivers = Drivers::installed(&self.machine);
        self.machine.way(&self.machine.find(card).unwrap(), &drivers)
    }
}

const IGC: (u16, u16) = (0x8086, 0x15f2);
const VFIO: &str = "/lib/modules/6.1.0-test/modules.dep";

#[test]
fn a_card_says_who_would_take_it_and_why_not() {
    let made = Made::new();
    made.card("0000:03:00.0", IGC, "igc", "enp3s0", Some("7"));
    made.card("0000:04:00.0", (0x10ec, 0x8168), "r8169", "enp4s0", Some("8"));
    made.card("0000:05:00.0", (5555, 4115), "mlx5_core", "enp5s0", Some("9"));
    let (pmd, way) = made.way("enp3s0");
    assert_eq!(pmd.as_deref(), Some("net_igc"));
    // The module is not there.
    assert!(matches!(way, Kernel::No(why) if why.contains("IOMMU")));
    made.write(VFIO, "kernel/drivers/vfio/pci/vfio-pci.ko: kernel/drivers/vfio/vfio.ko\n");
    assert_eq!(
        made.way("0000:03:00.0").1,
        Kernel::Movable { module: "vfio-pci", without_iommu: false }
    );
    assert_eq!(made.way("03:00.0").0.as_deref(), Some("net_igc"));
    assert!(matches!(made.way("enp4s0"), (None, Kernel::No(why)) if why.contains("10ec:8168")));
    assert_eq!(made.way("enp5s0"), (Some("mlx5_pci".into()), Kernel::Beside));
    // Another device of its group is the kernel's.
    made.link("/sys/kernel/iommu_groups/7/devices/0000:03:00.1", "../x");
    made.link("/sys/bus/pci/devices/0000:03:00.1/driver", "../drivers/snd_hda_intel");
    assert!(matches!(made.way("enp3s0").1, Kernel::No(why) if why.contains("snd_hda_intel")));
    let card = made.machine.find("enp3s0").unwrap();
    assert_eq!(card.interfaces[0].link, Link::Up(Some(2500)));
    assert!(matches!(made.machine.find("enp9s0"), Err(NicError::Unknown(_))));
    made.write("/sys/class/net/veth0/address", "02:00:00:00:00:01");
    assert!(matches!(made.machine.find("veth0"), Err(NicError::Virtual(_))));
}

#[test]
fn without_an_iommu_it_is_vfio_where_the_kernel_has_that_mode_else_uio() {
    let made = Made::new();
    made.card("0000:03:00.0", IGC, "igc", "enp3s0", None);
    made.write(
        VFIO,
        "kernel/drivers/vfio/pci/vfio-pci.ko:\nkernel/drivers/uio/uio_pci_generic.ko.xz:\n",
    );
    assert_eq!(
        made.way("enp3s0").1,
        Kernel::Movable { module: "uio_pci_generic", without_iommu: true }
    );
    made.write("/sys/module/vfio/parameters/enable_unsafe_noiommu_mode", "N\n");
    assert_eq!(made.way("enp3s0").1, Kernel::Movable { module: "vfio-pci", without_iommu: true });
}

#[test]
fn the_interface_of_the_default_route_or_of_the_session_is_not_taken() {
    let made = Made::new();
    made.card("0000:03:00.0", IGC, "igc", "enp3s0", Some("7"));
    made.card("0000:04:00.0", IGC, "igc", "enp4s0", Some("8"));
    made.write(VFIO, "kernel/drivers/vfio/pci/vfio-pci.ko:\n");
    let routes = |rows: &str| {
        let head =
            "Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\tMTU\tWindow\tIRTT\n";
        made.write("/proc/net/route", &format!("{head}{rows}"));
    };
    routes("enp3s0\t00000000\t0100000A\t0003\t0\t0\t0\t00000000\t0\t0\t0\n");
    let error = made.machine.bind("enp3s0", None).unwrap_err().to_string();
    assert!(error.contains("default route"), "{error}");
    assert!(matches!(made.way("enp3s0").1, Kernel::No(_)));
    // By way of a bridge on top of it.
    routes("br0\t00000000\t0100000A\t0003\t0\t0\t0\t00000000\t0\t0\t0\n");
    made.write("/sys/class/net/br0/lower_enp3s0/x", "");
    assert!(made.machine.needed("enp3s0").unwrap().contains("default route"));
    // The session came from 10.0.0.7; the variable is that of a process above us, as under sudo.
    routes("enp4s0\t0000000A\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0\n");
    assert_eq!(made.machine.needed("enp4s0"), None);
    made.write("/proc/self/environ", "PATH=/bin\0");
    made.write("/proc/self/status", "Name:\tx\nPPid:\t42\n");
    made.write("/proc/42/environ", "A=b\0SSH_CONNECTION=10.0.0.7 50000 10.0.0.1 22\0");
    let error = made.machine.bind("0000:04:00.0", Some("vfio-pci")).unwrap_err().to_string();
    assert!(error.contains("this session (from 10.0.0.7)"), "{error}");
    // The default route in IPv6 only.
    routes("");
    let zero = "0".repeat(32);
    made.write(
        "/proc/net/ipv6_route",
        &format!("{zero} 00 {zero} 00 fe80{} 00000400 1 0 00000003 enp4s0\n", "0".repeat(28)),
    );
    assert!(made.machine.needed("enp4s0").unwrap().contains("default route"));
}

#[test]
fn a_bound_card_goes_on_by_its_interfaces_name() {
    let made = Made::new();
    let address = "0000:03:00.0";
    made.card(address, IGC, "vfio-pci", "gone", Some("7"));
    fs::remove_dir_all(made.machine.path(format!("/sys/bus/pci/devices/{address}/net"))).unwrap();
    made.write(conf::FILE, "# ours\n\n0000:03:00.0 vfio-pci enp3s0 # the mirror\n");
    let card = made.machine.find("enp3s0").unwrap();
    assert!(card.is_bound() && card.address == address);
    // Binding it again changes nothing; the name stays.
    let entry = made.machine.bind("enp3s0", None).unwrap();
    assert_eq!((entry.module.as_str(), entry.interface.as_str()), ("vfio-pci", "enp3s0"));
    assert_eq!(conf::read(&made.machine).unwrap(), [entry]);
    made.write(conf::FILE, "0000:03:00.0 vfio-pci\n");
    let error = conf::read(&made.machine).unwrap_err().to_string();
    assert!(error.contains("line 1"), "{error}");
    assert!(Path::new(made.root.path()).exists());
}
