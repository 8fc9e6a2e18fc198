//! What numbers are called: ports by /etc/services, the makers of network cards by the registries of
//! the IEEE as Debian's package `ieee-data` has them, ICMP types.
//!
//! Both tables are read when the program starts to need them; where they are missing there are no
//! names.

use std::collections::HashMap;
use std::fs;
use std::path::Path;

const SERVICES: &str = "/etc/services";
const REGISTRIES: &str = "/usr/share/ieee-data";
/// The registries, and the bits of an address that each gives out.
const BLOCKS: [(&str, u32); 3] = [("oui.csv", 24), ("mam.csv", 28), ("oui36.csv", 36)];

/// Services by port.
#[derive(Debug, Default)]
pub(super) struct Services(HashMap<(u16, bool), String>);

impl Services {
    pub(super) fn load() -> Self {
        Self::parse(&fs::read_to_string(SERVICES).unwrap_or_default())
    }

    fn parse(text: &str) -> Self {
        let mut out = HashMap::new();
        for line in text.lines() {
            let line = line.split('#').next().unwrap_or_default();
            let mut words = line.split_whitespace();
            let (Some(name), Some(port)) = (words.next(), words.next()) else { continue };
            let Some((port, protocol)) = port.split_once('/') else { continue };
            if let (Ok(port), "tcp" | "udp") = (port.parse(), protocol) {
                out.entry((port, protocol == "udp")).or_insert_with(|| name.to_owned());
            }
        }
        Self(out)
    }

    /// By protocol, as events name it.
    pub(super) fn name(&self, port: u16, protocol: &str) -> Option<&str> {
        self.0.get(&(port, protocol == "UDP")).map(String::as_str)
    }

    /// Of either protocol.
    pub(super) fn any(&self, port: u16) -> Option<&str> {
        self.name(port, "TCP").or_else(|| self.name(port, "UDP"))
    }
}

/// Makers of network cards.
#[derive(Debug, Default)]
pub(super) struct Vendors(HashMap<(u32, u64), Box<str>>);

impl Vendors {
    pub(super) fn load() -> Self {
        let mut this = Self::default();
        for (file, bits) in BLOCKS {
            let text = fs::read(Path::new(REGISTRIES).join(file)).unwrap_or_default();
            this.read(&String::from_utf8_lossy(&text), bits);
        }
        this
    }

    /// Takes a registry in: `MA-L,00005E,"ICANN, IANA Department",...`.
    fn read(&mut self, csv: &str, bits: u32) {
        for line in csv.lines() {
            let mut fields = line.splitn(3, ',');
            let (Some(_), Some(block), Some(rest)) = (fields.next(), fields.next(), fields.next())
            else {
                continue;
            };
            let name = match rest.strip_prefix('"') {
                Some(quoted) => quoted.split('"').next(),
                None => rest.split(',').next(),
            };
            if let (Ok(block), Some(name)) = (u64::from_str_radix(block, 16), name) {
                self.0.insert((bits, block), name.trim().into());
            }
        }
    }

    /// By an address as in `00:11:22:33:44:55`; the smallest block gives the name. Addresses that a
    /// host made up for itself have none.
    pub(super) fn name(&self, mac: &str) -> Option<&str> {
        let digits: String = mac.split(':').collect();
        let mac = u64::from_str_radix(&digits, 16).ok().filter(|_| digits.len() == 12)?;
        if mac >> 41 & 1 == 1 {
            return (mac >> 40 & 1 == 0).then_some("made up (random)");
        }
        BLOCKS
            .iter()
            .rev()
            .find_map(|(_, bits)| self.0.get(&(*bits, mac >> (48 - bits))))
            .map(|n| &**n)
    }
}

/// What an ICMP message says, for ICMPv6 if `six`.
pub(super) fn icmp(six: bool, kind: u64, code: u64) -> Option<&'static str> {
    Some(match (six, kind, code) {
        (false, 0, _) | (true, 129, _) => "echo reply",
        (false, 8, _) | (true, 128, _) => "echo",
        (false, 3, 0) | (true, 1, 0) => "no route",
        (false, 3, 1) | (true, 1, 3) => "host unreachable",
        (false, 3, 2) => "protocol unreachable",
        (false, 3, 3) | (true, 1, 4) => "port unreachable",
        (false, 3, 4) | (true, 2, _) => "too big",
        (false, 3, 9 | 10 | 13) | (true, 1, 1) => "prohibited",
        (false, 3, _) | (true, 1, _) => "unreachable",
        (false, 4, _) => "source quench",
        (false, 5, _) | (true, 137, _) => "redirect",
        (false, 9, _) | (true, 134, _) => "router advertisement",
        (false, 10, _) | (true, 133, _) => "router solicitation",
        (false, 11, _) | (true, 3, _) => "time exceeded",
        (false, 12, _) | (true, 4, _) => "parameter problem",
        (false, 13, _) => "timestamp",
        (false, 14, _) => "timestamp reply",
        (true, 130, _) => "group query",
        (true, 131 | 143, _) => "group report",
        (true, 132, _) => "group left",
        (true, 135, _) => "neighbour solicitation",
        (true, 136, _) => "neighbour advertisement",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn services_by_port_and_protocol() {
        let text =
            "# c\nssh 22/tcp # x\nsyslog\t514/udp\nshell 514/tcp cmd\nbad\nx y/tcp\nz 1/sctp\n";
        let services = Services::parse(text);
        assert_eq!(services.name(22, "TCP"), Some("ssh"));
        assert_eq!(services.name(514, "UDP"), Some("syslog"));
        assert_eq!(services.any(514), Some("shell"));
        assert_eq!((services.name(22, "UDP"), services.any(1)), (None, None));
    }

    #[test]
    fn vendors_by_the_smallest_block() {
        let mut vendors = Vendors::default();
        vendors
            .read("Registry,Assignment,Organization Name,x\nMA-L,00005E,\"ICANN, IANA\",a\n", 24);
        vendors.read("MA-L,70B3D5,IEEE Registration Authority,y\n", 24);
        vendors.read("MA-S,70B3D5F2F,\"Small \"\"X\"\" one\",y\n", 36);
        assert_eq!(vendors.name("00:00:5e:00:53:01"), Some("ICANN, IANA"));
        assert_eq!(vendors.name("70:b3:d5:f2:f1:23"), Some("Small"));
        assert_eq!(vendors.name("70:b3:d5:00:01:23"), Some("IEEE Registration Authority"));
        assert_eq!(vendors.name("da:a1:19:00:00:01"), Some("made up (random)"));
        assert_eq!(vendors.name("ff:ff:ff:ff:ff:ff"), None);
        assert_eq!(vendors.name("nonsense"), None);
    }
}
