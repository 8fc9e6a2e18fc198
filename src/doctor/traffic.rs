//! What the sensor's own counters say of the set-up.

use super::Finding;
use crate::status::{Counter, Counters, Group, JournalStatus};

/// What is known of a running sensor.
#[derive(Clone, Copy, Debug)]
pub struct Facts<'a> {
    /// What was counted in the time that is judged.
    pub counters: &'a Counters,
    pub journal: Option<&'a JournalStatus>,
    /// Whether the links are up; `None`: nobody knows.
    pub link: Option<bool>,
    /// How the interface is called.
    pub interface: &'a str,
    /// An lcore that makes no progress.
    pub stuck_lcore: Option<u32>,
}

/// Packets, and flows, that must have been looked at before they are judged.
const ENOUGH_PACKETS: u64 = 100;
const ENOUGH_FLOWS: u64 = 10;
/// The journal is this far behind, milliseconds: the disk is slower than the wire.
const LAG_MS: u64 = 5_000;

/// What is wrong, the worst first.
pub fn findings(facts: &Facts<'_>) -> Vec<Finding> {
    let mut out = Vec::new();
    machine(facts, &mut out);
    mirror(facts, &mut out);
    losses(facts, &mut out);
    out.sort_by_key(|f| std::cmp::Reverse(f.severity));
    out
}

fn machine(facts: &Facts<'_>, out: &mut Vec<Finding>) {
    let Facts { counters: c, interface, .. } = *facts;
    if let Some(lcore) = facts.stuck_lcore {
        out.push(Finding::problem(
            "lcore_stuck",
            format!("lcore {lcore} makes no progress"),
            "systemctl restart malakocut; the service does so by itself",
        ));
    }
    if facts.link == Some(false) {
        out.push(Finding::problem(
            "link_down",
            format!("{interface}: the link is down"),
            format!("check the cable and the switch's mirror port; ip link show {interface}"),
        ));
    }
    if c.get(Counter::ClockSteps) > 0 {
        out.push(Finding::problem(
            "clock_steps",
            format!(
                "the clock was set {} time(s) while the sensor ran; times of packets jump",
                c.get(Counter::ClockSteps)
            ),
            "timedatectl set-ntp true, or apt install chrony, which slews instead",
        ));
    }
}

fn mirror(facts: &Facts<'_>, out: &mut Vec<Finding>) {
    let Facts { counters: c, interface, .. } = *facts;
    let looked = c.get(Counter::Looked);
    if looked >= ENOUGH_PACKETS {
        let share = |counter| percent(c.get(counter), looked);
        let others = looked - c.get(Counter::ToGroups) - c.get(Counter::OwnTraffic);
        if others == 0 {
            out.push(Finding::problem(
                "no_foreign_unicast",
                format!("{interface} brings only broadcasts, multicasts and this machine's own traffic: it is no mirror port"),
                "set the switch to mirror (SPAN) the ports or VLANs to watch to this port, both directions",
            ));
        } else if share(Counter::OwnTraffic) >= 5 {
            out.push(Finding::notice(
                "own_traffic",
                format!(
                    "{} % of the frames on {interface} are this machine's own",
                    share(Counter::OwnTraffic)
                ),
                format!(
                    "ip address flush dev {interface}: use another interface for the machine itself"
                ),
            ));
        }
        if share(Counter::Duplicates) >= 3 {
            out.push(Finding::problem(
                "duplicates",
                format!(
                    "{} % of the packets come twice: counts and bytes are too high",
                    share(Counter::Duplicates)
                ),
                "mirror each port or VLAN once, or in one direction (rx) only, on the switch",
            ));
        }
        if share(Counter::UnfinishedChecksums) >= 5 {
            out.push(Finding::notice(
                "unfinished_checksums",
                format!(
                    "{} % of the checksums were left to a card: the mirror is inside a host",
                    share(Counter::UnfinishedChecksums)
                ),
                "ethtool -K INTERFACE tx off on the mirrored host; malakocut itself does not mind",
            ));
        }
        if share(Counter::BadChecksums) >= 1 {
            out.push(Finding::problem(
                "bad_checksums",
                format!("{} % of the packets have wrong checksums: they are damaged on the way", share(Counter::BadChecksums)),
                format!("ethtool -S {interface} shows errors; try another cable, transceiver or mirror port"),
            ));
        }
        if share(Counter::Oversize) >= 1 {
            out.push(Finding::notice(
                "oversize",
                format!("{} % of the frames are larger than 1,500 bytes inside: jumbo frames, or merged by a host's offloads", share(Counter::Oversize)),
                "ethtool -K INTERFACE gro off lro off tso off gso off, if a host mirrors them",
            ));
        }
    }
    let (both, one) = (c.get(Counter::TcpBothWays), c.get(Counter::TcpOneWay));
    if both + one >= ENOUGH_FLOWS && percent(one, both + one) >= 50 {
        out.push(Finding::problem(
            "one_direction",
            format!(
                "{} % of the TCP connections are seen in one direction only",
                percent(one, both + one)
            ),
            "mirror both directions (rx and tx) of each port on the switch",
        ));
    }
    if both >= ENOUGH_FLOWS && percent(c.get(Counter::VlansDiffer), both) >= 30 {
        out.push(Finding::notice(
            "vlan_per_direction",
            format!("the two directions of {} % of the connections carry different VLAN tags", percent(c.get(Counter::VlansDiffer), both)),
            "nothing to mend: flows are put together all the same, vlan and resp_vlan show both; a mirror of whole VLANs instead of ports has one tag",
        ));
    }
    if c.get(Counter::Truncated) > 0 {
        out.push(Finding::problem(
            "truncated",
            format!("{} packets were larger than the ring's frames and cut", c.get(Counter::Truncated)),
            format!("malakocut --vdev net_af_packet0,iface={interface},blocksz=1048576,framesz=16384,framecnt=4096"),
        ));
    }
}

fn losses(facts: &Facts<'_>, out: &mut Vec<Finding>) {
    let c = facts.counters;
    let lost = |counter| c.get(counter);
    let before_us = lost(Counter::KernelDrops)
        + lost(Counter::NicMissed)
        + lost(Counter::NoBuffer)
        + lost(Counter::SteerFull)
        + lost(Counter::Unplaced);
    if before_us > 0 {
        out.push(Finding::problem(
            "drops",
            format!("packets are lost: {}", c.reasons(Group::Drop)),
            "give it more lcores (--lcores 1-3), a card bound to DPDK (malakocut-cli nic list), hugepages; --idle busy",
        ));
    }
    if lost(Counter::NicErrors) > 0 {
        out.push(Finding::problem(
            "nic_errors",
            format!("the card refused {} damaged frames", lost(Counter::NicErrors)),
            "try another cable, transceiver or mirror port",
        ));
    }
    if lost(Counter::JournalNoSpace) > 0 {
        out.push(Finding::problem(
            "disk_refuses",
            format!("the disk refused {} packets of the journal: it is full or failing", lost(Counter::JournalNoSpace)),
            "df -h /var/lib/malakocut; free space, or set journal_quota or min_free in /etc/malakocut/malakocut.toml",
        ));
    }
    let lag = facts.journal.map_or(0, |j| j.lag_ms);
    let behind = lost(Counter::JournalDiskBehind);
    if behind > 0 || lag > LAG_MS {
        out.push(Finding::problem(
            "disk_slow",
            format!(
                "the disk is slower than the wire: the journal lost {} packets and is {:.1} s behind",
                behind,
                lag as f64 / 1000.0
            ),
            "journal less (pcap_filter, journal_cutoff in /etc/malakocut/malakocut.toml), or use a faster disk for data_dir",
        ));
    }
    let not_taken = lost(Counter::JournalOverload).saturating_sub(behind);
    if not_taken > 0 {
        out.push(Finding::problem(
            "journal_lcore_slow",
            format!("the journal's lcore, the first of --lcores, was too slow for {not_taken} packets"),
            "give it a processor of its own (malakocut-cli doctor says who shares it), or journal less (pcap_filter, journal_cutoff in /etc/malakocut/malakocut.toml)",
        ));
    }
}

fn percent(part: u64, whole: u64) -> u64 {
    part * 100 / whole.max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(set: &[(Counter, u64)], link: Option<bool>, lag_ms: u64) -> Vec<String> {
        let mut counters = Counters::default();
        set.iter().for_each(|(c, n)| counters.set(*c, *n));
        let journal = JournalStatus { lag_ms, ..JournalStatus::default() };
        let facts = Facts {
            counters: &counters,
            journal: Some(&journal),
            link,
            interface: "enp3s0",
            stuck_lcore: None,
        };
        findings(&facts).into_iter().map(|f| f.name).collect()
    }

    #[test]
    fn a_healthy_mirror_has_no_findings_and_each_fault_its_own() {
        let healthy = [
            (Counter::Looked, 10_000),
            (Counter::ToGroups, 500),
            (Counter::Duplicates, 20),
            (Counter::BadChecksums, 10),
            (Counter::TcpBothWays, 900),
            (Counter::TcpOneWay, 20),
        ];
        assert_eq!(names(&healthy, Some(true), 900), [""; 0]);
        let with = |more: &[(Counter, u64)]| names(&[&healthy[..], more].concat(), Some(true), 0);
        assert_eq!(with(&[(Counter::Duplicates, 5000)]), ["duplicates"]);
        assert_eq!(with(&[(Counter::BadChecksums, 200)]), ["bad_checksums"]);
        assert_eq!(with(&[(Counter::UnfinishedChecksums, 900)]), ["unfinished_checksums"]);
        assert_eq!(with(&[(Counter::Oversize, 900)]), ["oversize"]);
        assert_eq!(with(&[(Counter::OwnTraffic, 900)]), ["own_traffic"]);
        assert_eq!(with(&[(Counter::ToGroups, 10_000)]), ["no_foreign_unicast"]);
        assert_eq!(with(&[(Counter::TcpOneWay, 2000)]), ["one_direction"]);
        assert_eq!(with(&[(Counter::VlansDiffer, 500)]), ["vlan_per_direction"]);
        assert_eq!(with(&[(Counter::Truncated, 1)]), ["truncated"]);
        assert_eq!(with(&[(Counter::ClockSteps, 1)]), ["clock_steps"]);
        assert_eq!(with(&[(Counter::KernelDrops, 1)]), ["drops"]);
        assert_eq!(with(&[(Counter::NicErrors, 1)]), ["nic_errors"]);
        assert_eq!(with(&[(Counter::JournalNoSpace, 1)]), ["disk_refuses"]);
        let overload =
            |behind| [(Counter::JournalOverload, 2), (Counter::JournalDiskBehind, behind)];
        assert_eq!(with(&overload(0)), ["journal_lcore_slow"]);
        assert_eq!(with(&overload(1)), ["disk_slow", "journal_lcore_slow"]);
        assert_eq!(with(&overload(2)), ["disk_slow"]);
        assert_eq!(names(&healthy, Some(false), 6000), ["link_down", "disk_slow"]);
        // Too little to tell.
        assert_eq!(names(&[(Counter::Looked, 20), (Counter::ToGroups, 20)], None, 0), [""; 0]);
    }
}
