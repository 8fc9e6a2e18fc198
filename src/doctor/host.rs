//! What the machine itself says: memory, card, processors, clock, disk.

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::path::Path;
use std::time::{Duration, Instant};

use dpdk::lcore::Lcore;

use super::Finding;
use crate::nic::{Drivers, Kernel, Link, Machine, NicError};

/// Hugepages of 2 MiB with which the sensor runs on them.
const ENOUGH_PAGES: u64 = 64;
/// Bytes written to see how fast the disk is.
const TRIAL: usize = 64 << 20;
const PIECE: usize = 4 << 20;
/// How long lcores are watched for company.
const WATCHED: Duration = Duration::from_secs(1);
/// Clock ticks a second of /proc.
const TICKS: u64 = 100;
/// Ticks in that time by which a stranger counts as company.
const COMPANY: u64 = 5;

const HUGEPAGES: &str = "sudo /usr/lib/malakocut/setup-hugepages.sh --persistent";

/// Whether there are hugepages.
pub fn memory(machine: &Machine) -> Vec<Finding> {
    let pages = |size: &str, what: &str| -> u64 {
        let file = format!("/sys/kernel/mm/hugepages/hugepages-{size}kB/{what}");
        machine.text(file).and_then(|t| t.parse().ok()).unwrap_or(0)
    };
    let total = pages("2048", "nr_hugepages") + 512 * pages("1048576", "nr_hugepages");
    if total >= ENOUGH_PAGES {
        return Vec::new();
    }
    let text = match total {
        0 => "no hugepages are reserved: DPDK runs on ordinary pages, slower".to_owned(),
        n => format!("only {} MiB of hugepages are reserved, too few to be used", 2 * n),
    };
    vec![Finding::notice("hugepages", text, HUGEPAGES)]
}

/// Whether the interface is there, linked, nobody else's, and read in the best way.
pub fn interface(machine: &Machine, name: &str) -> Vec<Finding> {
    let mut out = Vec::new();
    if Drivers::installed(machine).is_empty() {
        out.push(Finding::problem(
            "no_dpdk_drivers",
            "no DPDK driver is installed, not even that for kernel interfaces",
            "sudo apt install librte-mempool-ring23 librte-bus-vdev23 librte-net-af-packet23 librte-net-pcap23",
        ));
    }
    let found = machine.find(name);
    let card = match found {
        Ok(card) => Some(card),
        Err(NicError::Virtual(_)) => None,
        Err(NicError::Unknown(_)) => {
            out.push(Finding::problem(
                "no_interface",
                format!("there is no interface {name}"),
                "malakocut-cli nic list; then interface = \"NAME\" in /etc/malakocut/malakocut.toml",
            ));
            return out;
        }
        Err(e) => {
            out.push(Finding::problem("nic_conf", e.to_string(), "edit that file"));
            return out;
        }
    };
    if machine.has_interface(name) {
        if let Some(why) = machine.needed(name) {
            out.push(Finding::notice(
                "own_interface",
                format!(
                    "{why} if a DPDK driver took it, and its own traffic is mixed with the mirror's"
                ),
                "use another interface for the mirror port",
            ));
        }
        match machine.interface(name).link {
            Link::NoCarrier => out.push(Finding::problem(
                "link_down",
                format!("{name}: the link is down"),
                "check the cable and the switch's mirror port",
            )),
            // The sensor brings it up.
            Link::Off | Link::Up(_) => {}
        }
    }
    let Some(card) = card else { return out };
    let (pmd, way) = machine.way(&card, &Drivers::installed(machine));
    let pmd = pmd.unwrap_or_default();
    match way {
        Kernel::Bound(_) | Kernel::Beside => {}
        Kernel::Movable { .. } => out.push(Finding::notice(
            "driver",
            format!("{name} is read by the AF_PACKET driver, though {pmd} could take the card: many times faster"),
            format!("sudo malakocut-cli nic bind {name}"),
        )),
        Kernel::No(why) if why.contains("IOMMU") => {
            out.push(Finding::notice("iommu", format!("{name} cannot be handed to {pmd}: {why}"), "see the text; then reboot"));
        }
        Kernel::No(_) => {}
    }
    out
}

/// Whether the lcores have their CPUs for themselves.
pub fn lcores(machine: &Machine, lcores: &[Lcore], own: Option<u32>) -> Vec<Finding> {
    let mut out = Vec::new();
    // An lcore that floats is nobody's neighbour for long.
    let pinned: Vec<(u32, usize)> = lcores
        .iter()
        .filter_map(|l| match l.cpus.as_slice() {
            &[cpu] => Some((l.id, cpu)),
            _ => None,
        })
        .collect();
    for (at, (id, cpu)) in pinned.iter().enumerate() {
        let mut others = pinned.iter().skip(at + 1);
        if let Some((other, _)) = others.find(|(_, c)| c == cpu) {
            out.push(Finding::notice(
                "lcores_share_cpu",
                format!("lcores {id} and {other} share CPU {cpu}"),
                "give each a CPU of its own: lcores = \"1-3\" in /etc/malakocut/malakocut.toml",
            ));
        }
        let siblings = format!("/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list");
        let siblings = list(&machine.text(siblings).unwrap_or_default());
        let twin = |(_, c): &&(u32, usize)| c != cpu && siblings.contains(c);
        if let Some((other, _)) = pinned.iter().skip(at + 1).find(twin) {
            out.push(Finding::notice(
                "lcores_share_core",
                format!("lcores {id} and {other} are two threads of one processor core"),
                "lscpu -e shows which CPUs share a core; give each lcore a core of its own",
            ));
        }
    }
    if !pinned.is_empty() {
        out.extend(company(machine, &pinned, own));
    }
    out
}

/// Which other programs work on the lcores' CPUs right now.
fn company(machine: &Machine, pinned: &[(u32, usize)], own: Option<u32>) -> Vec<Finding> {
    let before = threads(machine);
    std::thread::sleep(WATCHED);
    let after = threads(machine);
    let mut busiest: BTreeMap<usize, (u64, String)> = BTreeMap::new();
    for (key, (ticks, cpu, name)) in after {
        let (pid, _) = key;
        let worked = ticks.saturating_sub(before.get(&key).map_or(ticks, |b| b.0));
        if worked < COMPANY || Some(pid) == own || pid == std::process::id() {
            continue;
        }
        let entry = busiest.entry(cpu).or_default();
        if worked > entry.0 {
            *entry = (worked, name);
        }
    }
    let shared = pinned.iter().filter_map(|(id, cpu)| {
        let (worked, name) = busiest.get(cpu)?;
        Some(Finding::notice(
            "lcores_shared",
            format!("{name} uses {} % of CPU {cpu}, which is lcore {id}'s", worked * 100 / TICKS),
            format!("keep others off it: isolcpus={cpu} on the kernel's command line, or CPUAffinity= of that service"),
        ))
    });
    shared.collect()
}

type Threads = BTreeMap<(u32, u32), (u64, usize, String)>;

/// Clock ticks used, last CPU and name of each thread, by process and thread.
fn threads(machine: &Machine) -> Threads {
    let mut out = BTreeMap::new();
    let numbers = |directory: &Path| -> Vec<u32> {
        let entries = fs::read_dir(directory).into_iter().flatten().flatten();
        entries.filter_map(|e| e.file_name().to_str()?.parse().ok()).collect()
    };
    let proc = machine.path("/proc");
    for pid in numbers(&proc) {
        let tasks = proc.join(pid.to_string()).join("task");
        for tid in numbers(&tasks) {
            let stat = fs::read_to_string(tasks.join(tid.to_string()).join("stat"));
            if let Some(found) = stat.ok().and_then(|s| of_stat(&s)) {
                out.insert((pid, tid), found);
            }
        }
    }
    out
}

/// `pid (name) state ...`: utime and stime are the 14th and 15th field, the CPU is the 39th.
fn of_stat(stat: &str) -> Option<(u64, usize, String)> {
    let (head, rest) = stat.rsplit_once(')')?;
    let name = head.split_once('(')?.1.to_owned();
    let fields: Vec<&str> = rest.split_whitespace().collect();
    let number = |field: usize| fields.get(field - 3)?.parse::<u64>().ok();
    Some((number(14)? + number(15)?, number(39)? as usize, name))
}

/// `0,2-3`.
fn list(text: &str) -> Vec<usize> {
    let part = |p: &str| -> Option<std::ops::RangeInclusive<usize>> {
        let (a, b) = p.split_once('-').unwrap_or((p, p));
        Some(a.trim().parse().ok()?..=b.trim().parse().ok()?)
    };
    text.split(',').filter_map(part).flatten().collect()
}

/// Whether the wall clock is right.
pub fn clock() -> Vec<Finding> {
    match dpdk::clock::is_synchronised() {
        Some(false) => vec![Finding::problem(
            "clock_unsynchronised",
            "the clock is not synchronised: times of packets and events cannot be compared with others'",
            "sudo timedatectl set-ntp true, or sudo apt install chrony",
        )],
        Some(true) | None => Vec::new(),
    }
}

/// Whether the disk has room and is fast enough for a link of this speed.
pub fn disk(data: &Path, min_free: u8, link: Option<u32>) -> Vec<Finding> {
    let mut out = Vec::new();
    let place = data.display();
    let Some(directory) = data.ancestors().find(|d| d.is_dir()) else { return out };
    match rustix::fs::statvfs(directory) {
        Ok(s) => {
            let free = s.f_bavail * 100 / s.f_blocks.max(1);
            let bytes = s.f_bavail * s.f_frsize;
            if free <= u64::from(min_free) {
                out.push(Finding::problem(
                    "disk_full",
                    format!(
                        "{place}: {free} % free ({:.1} GB), and the journal keeps {min_free} % free by \
                         deleting its oldest files",
                        bytes as f64 / 1e9
                    ),
                    format!("du -xh {place} | sort -h | tail; or another disk for data_dir"),
                ));
            }
        }
        Err(e) => out.push(disk_refuses(data, &e.into())),
    }
    match trial(directory) {
        Ok(rate) => {
            // A mirror of a link brings both its directions, but no more than the port takes.
            let wire = link.map_or(0, |mbit| u64::from(mbit) * 1_000_000 / 8);
            if rate < wire {
                out.push(Finding::notice(
                    "disk_slow",
                    format!(
                        "the disk of {place} takes {} MB/s, the link can bring {} MB/s",
                        rate / 1_000_000,
                        wire / 1_000_000
                    ),
                    "journal less (pcap_filter, journal_cutoff), or use a faster disk for data_dir",
                ));
            }
        }
        // Root, or the service, may write there; not knowing is no fault.
        Err(e) if e.kind() == io::ErrorKind::PermissionDenied => {}
        Err(e) => out.push(disk_refuses(data, &e)),
    }
    out
}

fn disk_refuses(data: &Path, e: &io::Error) -> Finding {
    Finding::problem(
        "disk_refuses",
        format!("{}: {e}", data.display()),
        format!("df -h {0}; mount | grep {0}; dmesg", data.display()),
    )
}

/// Bytes a second that the disk takes for good.
fn trial(directory: &Path) -> io::Result<u64> {
    let path = directory.join(format!(".malakocut-doctor-{}", std::process::id()));
    let mut file = OpenOptions::new().write(true).create_new(true).open(&path)?;
    // Gone with the last who has it open, whatever happens to us.
    fs::remove_file(&path)?;
    let piece = vec![0xa5u8; PIECE];
    let begun = Instant::now();
    for _ in 0..TRIAL / PIECE {
        file.write_all(&piece)?;
    }
    file.sync_data()?;
    Ok((TRIAL as f64 / begun.elapsed().as_secs_f64().max(1e-6)) as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hugepages_are_missed_until_there_are_enough() {
        let root = tempfile::tempdir().unwrap();
        let machine = Machine::at(root.path());
        assert_eq!(memory(&machine)[0].name, "hugepages");
        let directory = root.path().join("sys/kernel/mm/hugepages/hugepages-2048kB");
        fs::create_dir_all(&directory).unwrap();
        fs::write(directory.join("nr_hugepages"), "32\n").unwrap();
        assert!(memory(&machine)[0].text.contains("only 64 MiB"));
        fs::write(directory.join("nr_hugepages"), "256\n").unwrap();
        assert_eq!(memory(&machine), []);
    }

    #[test]
    fn an_interface_says_what_is_missing_at_it() {
        let root = tempfile::tempdir().unwrap();
        let machine = Machine::at(root.path());
        let write = |path: &str, text: &str| {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        let names = |name: &str| -> Vec<String> {
            interface(&machine, name).into_iter().map(|f| f.name).collect()
        };
        assert_eq!(names("enp3s0"), ["no_dpdk_drivers", "no_interface"]);
        write(
            "usr/lib/x/dpdk/pmds-23.0/librte_net_a.so",
            "PMD_INFO_STRING= {\"name\": \"net_igc\", \"kmod\": \"* vfio-pci\", \"pci_ids\": [[32902, 5618, 65535, 65535]]}\0",
        );
        let card = "sys/bus/pci/devices/0000:03:00.0";
        write(&format!("{card}/class"), "0x020000");
        write(&format!("{card}/vendor"), "0x8086");
        write(&format!("{card}/device"), "0x15f2");
        write(&format!("{card}/net/enp3s0/mtu"), "1500");
        write("sys/class/net/enp3s0/carrier", "0");
        assert_eq!(names("enp3s0"), ["link_down", "iommu"]);
        write("sys/class/net/enp3s0/carrier", "1");
        write("sys/module/vfio_pci/x", "");
        write("sys/module/vfio/parameters/enable_unsafe_noiommu_mode", "N");
        assert_eq!(names("0000:03:00.0"), ["driver"]);
        write("proc/net/route", "head\nenp3s0 00000000 0100000A 0003 0 0 0 00000000 0 0 0\n");
        assert_eq!(names("enp3s0"), ["own_interface"]);
    }

    #[test]
    fn lcores_that_share_are_named() {
        let root = tempfile::tempdir().unwrap();
        let machine = Machine::at(root.path());
        let lcore = |id, cpus: &[usize]| Lcore { id, cpus: cpus.to_vec() };
        let names = |all: &[Lcore]| -> Vec<String> {
            lcores(&machine, all, None).into_iter().map(|f| f.name).collect()
        };
        let own = [lcore(0, &[0]), lcore(1, &[1])];
        assert_eq!(names(&own), [""; 0]);
        assert_eq!(names(&[lcore(0, &[0]), lcore(1, &[0])]), ["lcores_share_cpu"]);
        assert_eq!(names(&[lcore(0, &[0, 1]), lcore(1, &[0, 1])]), [""; 0]);
        let topology = root.path().join("sys/devices/system/cpu/cpu0/topology");
        fs::create_dir_all(&topology).unwrap();
        fs::write(topology.join("thread_siblings_list"), "0-1\n").unwrap();
        assert_eq!(names(&own), ["lcores_share_core"]);
    }

    #[test]
    fn a_line_of_proc_is_read_whatever_the_program_calls_itself() {
        let mut fields = vec!["S".to_owned()];
        fields.extend((4..=52).map(|n| n.to_string()));
        let stat = format!("7 (a) b (c)) {}", fields.join(" "));
        assert_eq!(of_stat(&stat), Some((14 + 15, 39, "a) b (c)".into())));
    }

    #[test]
    fn a_disk_has_a_speed_and_leaves_nothing_behind() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(disk(dir.path(), 0, None), []);
        // No disk takes this.
        assert_eq!(disk(dir.path(), 0, Some(4_000_000))[0].name, "disk_slow");
        assert!(disk(dir.path(), 100, None).iter().any(|f| f.name == "disk_full"));
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
