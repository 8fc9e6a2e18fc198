//! Whose traffic counts: the watched host, and the destinations that are left out.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use crate::packet::Addr;

/// An address with its family, as packets carry it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Host {
    pub v6: bool,
    pub addr: Addr,
}

impl Host {
    pub fn ip(self) -> IpAddr {
        self.addr.ip(self.v6)
    }

    fn wide(self) -> u128 {
        (u128::from(self.addr.0) << 64) | u128::from(self.addr.1)
    }
}

/// An IPv4-mapped IPv6 address is the IPv4 address.
impl From<IpAddr> for Host {
    fn from(ip: IpAddr) -> Self {
        match ip.to_canonical() {
            IpAddr::V4(ip) => Self { v6: false, addr: Addr::v4(ip.octets()) },
            IpAddr::V6(ip) => Self { v6: true, addr: Addr::v6(ip.octets()) },
        }
    }
}

/// Text that names no address or network.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ScopeError {
    #[error("{0:?} is not an IP address")]
    Address(String),
    #[error("{0:?} is not an IP address or a network such as 192.0.2.0/24")]
    Network(String),
    #[error("{0:?} has a prefix length that its address family does not have")]
    Length(String),
}

impl FromStr for Host {
    type Err = ScopeError;

    fn from_str(text: &str) -> Result<Self, ScopeError> {
        let ip: IpAddr = text.trim().parse().map_err(|_| ScopeError::Address(text.into()))?;
        Ok(ip.into())
    }
}

/// An address or a network; bits behind the prefix length do not count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Prefix {
    network: Host,
    mask: u128,
}

impl Prefix {
    pub fn contains(&self, host: Host) -> bool {
        host.v6 == self.network.v6 && (host.wide() ^ self.network.wide()) & self.mask == 0
    }
}

impl From<Host> for Prefix {
    fn from(network: Host) -> Self {
        Self { network, mask: u128::MAX }
    }
}

impl FromStr for Prefix {
    type Err = ScopeError;

    fn from_str(text: &str) -> Result<Self, ScopeError> {
        let network = || ScopeError::Network(text.into());
        let (address, length) = match text.trim().split_once('/') {
            Some((address, length)) => (address, Some(length)),
            None => (text, None),
        };
        let host: Host = address.parse().map_err(|_| network())?;
        let Some(length) = length else { return Ok(host.into()) };
        // The sign that `parse` would take is not part of a length.
        let digits = !length.is_empty() && length.bytes().all(|b| b.is_ascii_digit());
        let bits: u32 = length.parse().ok().filter(|_| digits).ok_or_else(network)?;
        if bits > if host.v6 { 128 } else { 32 } {
            return Err(ScopeError::Length(text.into()));
        }
        // IPv4 sits in the highest bits, so one rule serves both.
        let mask = u128::MAX.checked_shl(128 - bits).unwrap_or(0);
        Ok(Self { network: host, mask })
    }
}

/// The watched host and the destinations that do not count.
#[derive(Clone, Debug)]
pub struct Scope {
    pub host: Host,
    /// Single addresses, sorted.
    single: Vec<Host>,
    networks: Vec<Prefix>,
}

impl Scope {
    /// The host itself never counts as a destination, nor does what `left_out` holds.
    pub fn new(host: Host, left_out: impl IntoIterator<Item = Prefix>) -> Self {
        let (single, networks): (Vec<Prefix>, Vec<Prefix>) =
            left_out.into_iter().partition(|p| p.mask == u128::MAX);
        let mut single: Vec<Host> = single.into_iter().map(|p| p.network).collect();
        single.push(host);
        single.sort_unstable();
        single.dedup();
        Self { host, single, networks }
    }

    /// Whether traffic to this destination counts.
    pub fn counts(&self, destination: Host) -> bool {
        self.single.binary_search(&destination).is_err()
            && !self.networks.iter().any(|n| n.contains(destination))
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.ip().fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(text: &str) -> Host {
        text.parse().unwrap()
    }

    #[test]
    fn addresses_and_networks_in_any_spelling() {
        let left_out = ["192.0.2.10", "198.51.100.7/24", "2001:DB8:0::0/33", "::ffff:203.0.113.1"];
        let scope = Scope::new(host("10.0.0.5"), left_out.map(|p| p.parse().unwrap()));
        for (text, counts) in [
            ("10.0.0.5", false),
            ("10.0.0.6", true),
            ("192.0.2.10", false),
            ("192.0.2.11", true),
            ("198.51.100.255", false),
            ("198.51.101.0", true),
            ("203.0.113.1", false),
            ("2001:db8:7fff::1", false),
            ("2001:db8:8000::1", true),
        ] {
            assert_eq!(scope.counts(host(text)), counts, "{text}");
        }
        let everything = Scope::new(host("10.0.0.5"), ["0.0.0.0/0".parse().unwrap()]);
        assert!(!everything.counts(host("8.8.8.8")) && everything.counts(host("::1")));
    }

    #[test]
    fn what_is_no_address_is_refused() {
        for text in
            ["", "10.0.0", "10.0.0.0/", "10.0.0.0/+8", "10.0.0.0/33", "::/129", "host", "1/2/3"]
        {
            assert!(text.parse::<Prefix>().is_err(), "{text}");
        }
        assert!("10.0.0.0/8".parse::<Host>().is_err());
    }
}
