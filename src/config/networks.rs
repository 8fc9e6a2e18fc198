//! Networks by the names that people give them: `[networks]` of the configuration file.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;
use serde::Deserialize;

/// One network or several.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged, expecting = "a network like \"192.168.1.0/24\", or a list of them")]
enum Nets {
    One(IpNet),
    Several(Vec<IpNet>),
}

/// Names of networks.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(transparent)]
pub struct Networks(BTreeMap<String, Nets>);

impl Networks {
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Every network with its name.
    pub fn iter(&self) -> impl Iterator<Item = (&str, IpNet)> {
        self.0.iter().flat_map(|(name, nets)| {
            let nets = match nets {
                Nets::One(net) => std::slice::from_ref(net),
                Nets::Several(nets) => nets,
            };
            nets.iter().map(move |net| (name.as_str(), *net))
        })
    }

    /// The name of the smallest network that an address is in.
    pub fn name(&self, ip: IpAddr) -> Option<&str> {
        let around = self.iter().filter(|(_, net)| net.contains(&ip));
        around.max_by_key(|(_, net)| net.prefix_len()).map(|(name, _)| name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_smallest_network_gives_the_name() {
        let text = "all = [\"10.0.0.0/8\", \"fd00::/8\"]\ncellar = \"10.3.0.0/16\"";
        let networks: Networks = toml::from_str(text).unwrap();
        let name = |ip: &str| networks.name(ip.parse().unwrap());
        assert_eq!(name("10.3.4.5"), Some("cellar"));
        assert_eq!(name("10.4.4.5"), Some("all"));
        assert_eq!(name("fd00::1"), Some("all"));
        assert_eq!(name("192.0.2.1"), None);
        let error = toml::from_str::<Networks>("a = \"10.0.0.0/99\"").unwrap_err();
        assert!(error.to_string().contains("a network like"), "{error}");
    }
}
