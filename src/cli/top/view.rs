//! Which flows are shown, in which order: what the keys set, as a question to the sensor.

use std::net::IpAddr;

use ipnet::IpNet;

use super::rules::{NAMES, Rules};
use crate::cli::client::question;
use crate::config::Networks;
use crate::control::Sort;
use crate::control::live::REACH;
use crate::event::{Expression, FIELDS};

/// Networks that no router passes on.
const LOCAL: [&str; 9] = [
    "10.0.0.0/8",
    "172.16.0.0/12",
    "192.168.0.0/16",
    "169.254.0.0/16",
    "127.0.0.0/8",
    "0.0.0.0/32",
    "fc00::/7",
    "fe80::/10",
    "::/127",
];
/// Addresses of many hosts.
const MANY: [&str; 3] = ["224.0.0.0/4", "255.255.255.255/32", "ff00::/8"];

/// Which protocols.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Protocol {
    #[default]
    All,
    Tcp,
    Udp,
    Icmp,
}

impl Protocol {
    fn next(self) -> Self {
        match self {
            Self::All => Self::Tcp,
            Self::Tcp => Self::Udp,
            Self::Udp => Self::Icmp,
            Self::Icmp => Self::All,
        }
    }

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::All => "all",
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
            Self::Icmp => "ICMP",
        }
    }
}

/// Where a flow goes, seen from here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Direction {
    Out,
    In,
    Local,
    /// Between two others.
    Through,
}

/// What is here: private networks, and those that have a name.
pub(super) struct Here(Vec<IpNet>);

impl Here {
    pub(super) fn new(networks: &Networks) -> Self {
        let private = LOCAL.iter().chain(&MANY).filter_map(|n| n.parse().ok());
        let mut nets: Vec<IpNet> = private.chain(networks.iter().map(|(_, net)| net)).collect();
        nets = IpNet::aggregate(&nets);
        Self(nets)
    }

    fn has(&self, ip: IpAddr) -> bool {
        self.0.iter().any(|net| net.contains(&ip))
    }

    pub(super) fn direction(&self, src: IpAddr, dst: IpAddr) -> Direction {
        match (self.has(src), self.has(dst)) {
            (true, true) => Direction::Local,
            (true, false) => Direction::Out,
            (false, true) => Direction::In,
            (false, false) => Direction::Through,
        }
    }

    /// Both ends of a flow are here.
    fn expression(&self) -> String {
        let nets: Vec<String> = self.0.iter().map(IpNet::to_string).collect();
        let nets = nets.join(", ");
        format!("(src_ip in [{nets}] and dst_ip in [{nets}])")
    }
}

/// What is shown.
#[derive(Clone, Debug)]
pub(super) struct View {
    pub(super) sort: Sort,
    pub(super) ascending: bool,
    pub(super) protocol: Protocol,
    /// Without flows between two local addresses.
    pub(super) remote_only: bool,
    /// Without multicast and broadcast.
    pub(super) quiet: bool,
    /// Without what the rules name.
    pub(super) ignores: bool,
    /// Names for addresses.
    pub(super) names: bool,
    /// Numbers with units.
    pub(super) scaled: bool,
    pub(super) search: String,
    /// By --filter.
    pub(super) filter: Option<String>,
    pub(super) offset: usize,
}

impl Default for View {
    fn default() -> Self {
        Self {
            sort: Sort::Bytes,
            ascending: false,
            protocol: Protocol::All,
            remote_only: false,
            quiet: false,
            ignores: true,
            names: false,
            scaled: false,
            search: String::new(),
            filter: None,
            offset: 0,
        }
    }
}

impl View {
    /// Sorts by this; by the same once more turns the order round.
    pub(super) fn sort_by(&mut self, sort: Sort) {
        self.ascending = self.sort == sort && !self.ascending;
        self.sort = sort;
        self.offset = 0;
    }

    pub(super) fn next_protocol(&mut self) {
        self.protocol = self.protocol.next();
        self.offset = 0;
    }

    /// Flows for which all that is set holds.
    pub(super) fn expression(
        &self,
        here: &Here,
        rules: &Rules,
        named: &[IpAddr],
    ) -> Option<String> {
        let mut parts = Vec::new();
        match self.protocol {
            Protocol::All => {}
            Protocol::Tcp => parts.push("protocol == \"TCP\"".to_owned()),
            Protocol::Udp => parts.push("protocol == \"UDP\"".to_owned()),
            Protocol::Icmp => parts.push("protocol in [\"ICMP\", \"ICMPv6\"]".to_owned()),
        }
        if self.remote_only {
            parts.push(format!("not {}", here.expression()));
        }
        if self.quiet {
            let many = MANY.join(", ");
            let broadcast = "dst_mac == \"ff:ff:ff:ff:ff:ff\"";
            parts.push(format!("not (src_ip in [{many}] or dst_ip in [{many}] or {broadcast})"));
        }
        if self.ignores
            && let Some(out) = rules.expression(named)
        {
            parts.push(format!("not ({out})"));
        }
        if let Some(search) = search(&self.search) {
            parts.push(search);
        }
        parts.extend(self.filter.as_deref().map(|f| format!("({f})")));
        (!parts.is_empty()).then(|| parts.join(" and "))
    }

    /// The question for so many rows.
    pub(super) fn question(&self, rows: usize, expression: Option<&str>) -> String {
        let sort = Sort::ALL.iter().find(|(_, s)| *s == self.sort).map_or("bytes", |(n, _)| n);
        let order = if self.ascending { "asc" } else { "desc" };
        let offset = self.offset.min(REACH.saturating_sub(rows)).to_string();
        let rows = rows.max(1).to_string();
        let parts = [("sort", sort), ("order", order), ("offset", &offset), ("limit", &rows)];
        let filter = expression.map(|f| ("filter", f));
        question("/flows", &parts.into_iter().chain(filter).collect::<Vec<_>>())
    }
}

/// What was typed: an expression, an address or network, a port, or a part of a name or address.
fn search(text: &str) -> Option<String> {
    let text = text.trim();
    if text.is_empty() {
        return None;
    }
    if let Ok(net) = text.parse::<IpNet>().or_else(|_| text.parse::<IpAddr>().map(IpNet::from)) {
        return Some(format!("(src_ip in {net} or dst_ip in {net})"));
    }
    if let Ok(port) = text.parse::<u16>() {
        return Some(format!("(src_port == {port} or dst_port == {port})"));
    }
    // A word alone is a name that is looked for, even if it is that of a field.
    let is_expression = |e: &Expression| e.fields().iter().all(|f| FIELDS.contains(f));
    if text.contains(['=', '<', '>', ' ']) && text.parse().is_ok_and(|e| is_expression(&e)) {
        return Some(format!("({text})"));
    }
    let quoted = serde_json::Value::from(text).to_string();
    // Text of addresses is made for it, flow by flow: not for what cannot be part of one.
    let is_part = text.bytes().all(|b| b.is_ascii_hexdigit() || b == b'.' || b == b':');
    let addresses: &[&str] = if is_part { &["src_ip", "dst_ip"] } else { &[] };
    let fields = addresses.iter().chain(&["app_proto"]).chain(&NAMES);
    let mut parts: Vec<String> = fields.map(|f| format!("{f} contains {quoted}")).collect();
    if text.bytes().all(|b| b.is_ascii_alphanumeric()) {
        let protocol = text.to_ascii_uppercase().replace("ICMPV6", "ICMPv6");
        parts.push(format!("protocol == \"{protocol}\""));
    }
    Some(format!("({})", parts.join(" or ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn holds(view: &View, event: &serde_json::Value) -> bool {
        let networks: Networks = toml::from_str("lab = \"198.51.100.0/24\"").unwrap();
        let text = view.expression(&Here::new(&networks), &Rules::default(), &[]);
        let Some(text) = text else { return true };
        let expression: Expression = text.parse().unwrap_or_else(|e| panic!("{text}: {e}"));
        expression.holds(event.as_object().unwrap())
    }

    #[test]
    fn toggles_are_expressions() {
        let flow = |protocol: &str, src: &str, dst: &str| {
            serde_json::json!({"protocol": protocol, "src_ip": src, "dst_ip": dst,
                "dst_mac": "00:00:5e:00:53:01", "src_port": 40000, "dst_port": 443})
        };
        let out = flow("TCP", "192.168.1.2", "203.0.113.5");
        let inside = flow("UDP", "fe80::1", "ff02::fb");
        let lab = flow("ICMP", "10.1.1.1", "198.51.100.9");
        let shown = |view: &View| [&out, &inside, &lab].map(|e| holds(view, e));
        let mut view = View::default();
        assert_eq!(shown(&view), [true, true, true]);
        for expected in [[true, false, false], [false, true, false], [false, false, true]] {
            view.next_protocol();
            assert_eq!(shown(&view), expected, "{:?}", view.protocol);
        }
        let remote = View { remote_only: true, ..View::default() };
        assert_eq!(shown(&remote), [true, false, false]);
        let quiet = View { quiet: true, ..View::default() };
        assert_eq!(shown(&quiet), [true, false, true]);
        let filter = Some("dst_port == 443 or bytes > 1".to_owned());
        let both = View { filter, remote_only: true, ..View::default() };
        assert_eq!(shown(&both), [true, false, false]);
    }

    #[test]
    fn what_is_typed_is_looked_for() {
        let event = serde_json::json!({"protocol": "UDP", "src_ip": "192.168.1.2", "dst_ip": "2001:db8::7", "src_port": 40000,
            "dst_port": 443, "sni": "cdn.example", "bytes": 5});
        for (text, found) in [
            ("", true),
            ("192.168.1.2", true),
            ("192.168.0.0/16", true),
            ("10.0.0.0/8", false),
            ("168.1", true),
            ("2001:db8::/32", true),
            ("443", true),
            ("44", false),
            ("cdn", true),
            ("udp", true),
            ("tcp", false),
            ("a\"b", false),
            ("bytes > 4", true),
            ("bytes > 5", false),
            ("sni", false),
            ("no such", false),
        ] {
            let view = View { search: text.into(), ..View::default() };
            assert_eq!(holds(&view, &event), found, "{text}");
        }
    }

    #[test]
    fn directions() {
        let here = Here::new(&toml::from_str("lab = \"198.51.100.0/24\"").unwrap());
        let direction =
            |src: &str, dst: &str| here.direction(src.parse().unwrap(), dst.parse().unwrap());
        assert_eq!(direction("192.168.1.1", "203.0.113.1"), Direction::Out);
        assert_eq!(direction("2001:db8::1", "fd00::1"), Direction::In);
        assert_eq!(direction("198.51.100.1", "224.0.0.251"), Direction::Local);
        assert_eq!(direction("203.0.113.1", "2001:db8::1"), Direction::Through);
    }
}
