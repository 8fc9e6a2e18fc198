//! Which interfaces must not be taken: those of the default route, and those by which the session
//! we run in came, with everything that lies below them (bridge, bond, VLAN).

use std::collections::BTreeSet;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::{Machine, names};

/// A route of the kernel.
struct Route {
    network: IpAddr,
    bits: u32,
    interface: String,
}

impl Route {
    fn covers(&self, address: IpAddr) -> bool {
        match (self.network, address) {
            (IpAddr::V4(n), IpAddr::V4(a)) => {
                let mask = u32::MAX.checked_shl(32 - self.bits).unwrap_or(0);
                n.to_bits() & mask == a.to_bits() & mask
            }
            (IpAddr::V6(n), IpAddr::V6(a)) => {
                let mask = u128::MAX.checked_shl(128 - self.bits).unwrap_or(0);
                n.to_bits() & mask == a.to_bits() & mask
            }
            _ => false,
        }
    }
}

impl Machine {
    /// Why this interface must not be taken away from the kernel, if so.
    pub fn needed(&self, interface: &str) -> Option<String> {
        let routes = self.routes();
        let default = routes.iter().filter(|r| r.bits == 0).map(|r| r.interface.clone());
        if self.with_lower(default.collect()).contains(interface) {
            return Some(format!(
                "{interface} carries the default route: you would lose this machine"
            ));
        }
        let client = self.session_client()?;
        let covering = routes.iter().filter(|r| r.covers(client));
        let best = covering.max_by_key(|r| r.bits).map(|r| r.interface.clone());
        self.with_lower(best.into_iter().collect())
            .contains(interface)
            .then(|| format!("{interface} carries this session (from {client}): you would lose it"))
    }

    /// The interfaces and everything they stand on.
    fn with_lower(&self, mut open: Vec<String>) -> BTreeSet<String> {
        let mut all = BTreeSet::new();
        while let Some(name) = open.pop() {
            if all.insert(name.clone()) {
                let below = names(&self.path("/sys/class/net").join(name)).into_iter();
                open.extend(below.filter_map(|n| n.strip_prefix("lower_").map(str::to_owned)));
            }
        }
        all
    }

    /// Where the session came from. sudo takes the variable away, so the processes above us are
    /// asked too.
    fn session_client(&self) -> Option<IpAddr> {
        let mut pid = "self".to_owned();
        for _ in 0..64 {
            let directory = self.path("/proc").join(&pid);
            let environment = fs::read(directory.join("environ")).unwrap_or_default();
            let found =
                environment.split(|b| *b == 0).find_map(|v| v.strip_prefix(b"SSH_CONNECTION="));
            if let Some(client) = found.and_then(|v| client(&String::from_utf8_lossy(v))) {
                return Some(client);
            }
            let status = fs::read_to_string(directory.join("status")).ok()?;
            let parent = status.lines().find_map(|l| l.strip_prefix("PPid:"))?.trim().to_owned();
            if parent == "0" {
                return None;
            }
            pid = parent;
        }
        None
    }

    fn routes(&self) -> Vec<Route> {
        let v4 = self.text("/proc/net/route").unwrap_or_default();
        let v6 = self.text("/proc/net/ipv6_route").unwrap_or_default();
        v4.lines().skip(1).filter_map(route_v4).chain(v6.lines().filter_map(route_v6)).collect()
    }
}

/// The first word of `client port server port`.
fn client(connection: &str) -> Option<IpAddr> {
    // A link-local address carries its interface behind a %.
    let word = connection.split_whitespace().next()?.split('%').next()?;
    match word.parse().ok()? {
        IpAddr::V6(v6) => Some(v6.to_canonical()),
        v4 => Some(v4),
    }
}

/// Interface, destination, gateway, flags, ..., mask (the eighth), numbers in the host's order.
fn route_v4(line: &str) -> Option<Route> {
    let words: Vec<&str> = line.split_whitespace().collect();
    let number = |at: usize| u32::from_str_radix(words.get(at)?, 16).ok();
    let network = Ipv4Addr::from(number(1)?.to_ne_bytes());
    let bits = number(7)?.count_ones();
    Some(Route { network: network.into(), bits, interface: (*words.first()?).to_owned() })
}

/// Destination, its length in bits, ..., flags (the ninth), interface; all in hexadecimal.
fn route_v6(line: &str) -> Option<Route> {
    const REJECT: u32 = 0x200;
    let words: Vec<&str> = line.split_whitespace().collect();
    let network = Ipv6Addr::from(u128::from_str_radix(words.first()?, 16).ok()?);
    let bits = u32::from_str_radix(words.get(1)?, 16).ok()?;
    let flags = u32::from_str_radix(words.get(8)?, 16).ok()?;
    let interface = (*words.get(9)?).to_owned();
    (flags & REJECT == 0 && interface != "lo").then_some(Route {
        network: network.into(),
        bits,
        interface,
    })
}
