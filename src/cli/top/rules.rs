//! What `top` leaves out: the rules of cli_ignore.conf, `TYPE:VALUE` a line with `#` comments.

use std::fs;
use std::net::IpAddr;
use std::path::Path;

use ipnet::IpNet;

/// What is left out.
#[derive(Debug, Default)]
pub(super) struct Rules {
    nets: Vec<IpNet>,
    ports: Vec<u16>,
    protocols: Vec<String>,
    /// Exact, in lower case.
    domains: Vec<String>,
    /// The ends of names, each with its dot.
    suffixes: Vec<String>,
}

/// Fields that hold names of a flow.
pub(super) const NAMES: [&str; 5] = ["src_name", "dst_name", "sni", "http_host", "dns_query"];

impl Rules {
    /// # Errors
    /// The file cannot be read, or a line is no rule.
    pub(super) fn load(path: &Path) -> Result<Self, String> {
        let text = fs::read_to_string(path).map_err(|e| format!("{}: {e}", path.display()))?;
        Self::parse(&text).map_err(|(line, why)| format!("{}, line {line}: {why}", path.display()))
    }

    fn parse(text: &str) -> Result<Self, (usize, String)> {
        let mut out = Self::default();
        for (n, line) in text.lines().enumerate() {
            let line = line.split('#').next().unwrap_or_default().trim();
            if !line.is_empty() {
                out.add(line).map_err(|why| (n + 1, why))?;
            }
        }
        Ok(out)
    }

    fn add(&mut self, line: &str) -> Result<(), String> {
        let (kind, value) = line.split_once(':').unwrap_or((line, ""));
        let (kind, value) = (kind.trim().to_ascii_lowercase(), value.trim());
        let bad = |what: &str| format!("`{value}` is not {what}");
        match kind.as_str() {
            "ip" => {
                let net = value.parse().or_else(|_| value.parse::<IpAddr>().map(IpNet::from));
                self.nets.push(net.map_err(|_| bad("an address or a network"))?);
            }
            "port" => self.ports.push(value.parse().map_err(|_| bad("a port"))?),
            "proto"
                if !value.is_empty()
                    && value.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-') =>
            {
                // As events spell them.
                let name = value
                    .to_ascii_uppercase()
                    .replace("ICMPV6", "ICMPv6")
                    .replace("ICMP6", "ICMPv6");
                self.protocols.push(name);
            }
            "proto" => return Err(bad("a protocol")),
            "domain" => {
                let name = value.trim_end_matches('.').to_ascii_lowercase();
                let end = name.strip_prefix("*.");
                let rest = end.unwrap_or(&name);
                if rest.is_empty() || rest.contains('*') {
                    return Err(bad("a domain, or *. and a domain"));
                }
                match end {
                    Some(end) => self.suffixes.push(format!(".{end}")),
                    None => self.domains.push(name),
                }
            }
            _ => {
                return Err(format!(
                    "`{line}`: a rule is ip:, port:, proto: or domain: and a value"
                ));
            }
        }
        Ok(())
    }

    pub(super) fn len(&self) -> usize {
        self.nets.len()
            + self.ports.len()
            + self.protocols.len()
            + self.domains.len()
            + self.suffixes.len()
    }

    /// Whether a name that was found for an address is left out.
    pub(super) fn has_name(&self, name: &str) -> bool {
        let name = name.trim_end_matches('.').to_ascii_lowercase();
        self.domains.contains(&name) || self.suffixes.iter().any(|s| name.ends_with(s.as_str()))
    }

    /// The flows that are left out, as an expression; `named`: addresses that turned out to have
    /// a name that is.
    pub(super) fn expression(&self, named: &[IpAddr]) -> Option<String> {
        let mut parts: Vec<String> = Vec::new();
        let list = |all: Vec<String>| all.join(", ");
        let named = named.iter().copied().map(IpNet::from);
        let nets: Vec<String> =
            self.nets.iter().copied().chain(named).map(|net| net.to_string()).collect();
        if !nets.is_empty() {
            let nets = list(nets);
            parts.push(format!("src_ip in [{nets}] or dst_ip in [{nets}]"));
        }
        if !self.ports.is_empty() {
            let ports = list(self.ports.iter().map(u16::to_string).collect());
            parts.push(format!("src_port in [{ports}] or dst_port in [{ports}]"));
        }
        if !self.protocols.is_empty() {
            let names = self.protocols.iter().map(|p| format!("\"{p}\""));
            parts.push(format!("protocol in [{}]", list(names.collect())));
        }
        let text = |s: &String| serde_json::Value::from(s.as_str()).to_string();
        if !self.domains.is_empty() {
            let names = list(self.domains.iter().map(text).collect());
            parts.extend(NAMES.map(|field| format!("{field} in [{names}]")));
        }
        for suffix in &self.suffixes {
            let suffix = text(suffix);
            parts.extend(NAMES.map(|field| format!("{field} ends_with {suffix}")));
        }
        (!parts.is_empty()).then(|| parts.join(" or "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::Expression;

    #[test]
    fn each_rule_leaves_out_what_it_says() {
        let text = "# comment\nip:192.168.1.7 # tv\n ip: 10.0.0.0/8\nip:2001:db8::/32\nport:123\nport:53\n\
                    proto:icmp\nproto:ICMPv6\ndomain:printer.local\ndomain:*.example.com\n";
        let rules = Rules::parse(text).unwrap();
        assert_eq!(rules.len(), 9);
        let named = ["198.51.100.7".parse().unwrap()];
        let out: Expression = rules.expression(&named).unwrap().parse().unwrap();
        for (event, is_out) in [
            (serde_json::json!({"src_ip": "192.168.1.7"}), true),
            (serde_json::json!({"dst_ip": "10.9.9.9"}), true),
            (serde_json::json!({"dst_ip": "2001:db8::1"}), true),
            (serde_json::json!({"dst_ip": "198.51.100.7"}), true),
            (serde_json::json!({"src_ip": "192.168.1.8", "dst_port": 80}), false),
            (serde_json::json!({"src_port": 123}), true),
            (serde_json::json!({"protocol": "ICMP"}), true),
            (serde_json::json!({"protocol": "ICMPv6"}), true),
            (serde_json::json!({"protocol": "TCP"}), false),
            (serde_json::json!({"dst_name": "printer.local"}), true),
            (serde_json::json!({"sni": "a.printer.local"}), false),
            (serde_json::json!({"sni": "a.example.com"}), true),
            (serde_json::json!({"sni": "example.com"}), false),
            (serde_json::json!({"sni": "evil-example.com"}), false),
        ] {
            assert_eq!(out.holds(event.as_object().unwrap()), is_out, "{event}");
        }
        assert!(rules.has_name("X.Example.com.") && !rules.has_name("example.com"));
        assert_eq!(Rules::default().expression(&[]), None);
    }

    #[test]
    fn what_is_no_rule_is_named_with_its_line() {
        for (text, line, needle) in [
            ("port:1\nport:99999", 2, "`99999` is not a port"),
            ("ip:10.0.0.0/33", 1, "not an address"),
            ("host:x", 1, "`host:x`"),
            ("nonsense", 1, "a rule is"),
            ("domain:*.", 1, "a domain"),
            ("domain:a*b", 1, "a domain"),
            ("proto:", 1, "a protocol"),
        ] {
            let (at, why) = Rules::parse(text).unwrap_err();
            assert!(at == line && why.contains(needle), "{text}: {at} {why}");
        }
    }
}
