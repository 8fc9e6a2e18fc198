//! Who opened a flow, also when its first packet seen is not its first packet.

use crate::packet::{Decoded, proto, tcp_flag};

/// Ports from 1024 up on which servers commonly listen, sorted.
const SERVER_PORTS: [u16; 58] = [
    1080, 1194, 1433, 1521, 1701, 1723, 1812, 1813, 1883, 1900, 2049, 2375, 2376, 3000, 3128, 3260,
    3306, 3389, 3478, 4500, 4789, 5000, 5060, 5061, 5201, 5222, 5269, 5353, 5355, 5432, 5671, 5672,
    5683, 5900, 5984, 5985, 5986, 6379, 6443, 6667, 8000, 8008, 8009, 8080, 8081, 8086, 8123, 8333,
    8443, 8883, 8888, 9000, 9090, 9092, 9100, 9200, 11211, 27017,
];
/// Where the ephemeral ports of most systems begin.
const EPHEMERAL: u16 = 32768;

/// Ports below 1024 from which clients speak: DHCP and DHCPv6.
const CLIENT_PORTS: [u16; 2] = [68, 546];

fn is_server(port: u16) -> bool {
    ((1..1024).contains(&port) && !CLIENT_PORTS.contains(&port))
        || SERVER_PORTS.binary_search(&port).is_ok()
}

/// Whether the sender of a flow's first packet is its originator.
pub(super) fn sender_opened(d: &Decoded) -> bool {
    let (sport, dport) = (d.tuple.sport, d.tuple.dport);
    // A group opens nothing; a subnet's broadcast address shows only in the frame's.
    if d.tuple.dst.is_group(d.tuple.v6) || (d.has_mac && d.dst_mac[0] & 1 != 0) {
        return true;
    }
    match d.tuple.proto {
        proto::TCP => match d.tcp.flags & (tcp_flag::SYN | tcp_flag::ACK) {
            tcp_flag::SYN => true,
            both if both == tcp_flag::SYN | tcp_flag::ACK => false,
            _ => match by_service(sport, dport) {
                Some(opened) => opened,
                None => !(sport < EPHEMERAL && dport >= EPHEMERAL),
            },
        },
        proto::UDP | proto::SCTP => by_service(sport, dport).unwrap_or(true),
        proto::ICMP => !matches!(d.icmp.0, 0 | 9 | 14 | 16 | 18),
        proto::ICMPV6 => !matches!(d.icmp.0, 129 | 131 | 134 | 136 | 140 | 145),
        _ => true,
    }
}

/// By which port is a service's; the lower one where both are. `None` where neither says anything.
fn by_service(sport: u16, dport: u16) -> Option<bool> {
    match (is_server(sport), is_server(dport)) {
        (false, true) => Some(true),
        (true, false) => Some(false),
        (true, true) if sport != dport => Some(sport > dport),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packet::{Addr, Tcp, Tuple};

    fn opened(proto: u8, sport: u16, dport: u16, flags: u8) -> bool {
        sender_opened(&Decoded {
            tuple: Tuple { sport, dport, proto, ..Default::default() },
            tcp: Tcp { flags, ..Default::default() },
            icmp: (sport as u8, dport as u8),
            ..Default::default()
        })
    }

    #[test]
    fn a_group_address_is_never_the_originator() {
        for (dst, v6) in [
            (Addr::v4([255, 255, 255, 255]), false),
            (Addr::v4([224, 0, 0, 251]), false),
            (Addr::v6([0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 2]), true),
        ] {
            let tuple =
                Tuple { dst, v6, sport: 67, dport: 68, proto: proto::UDP, ..Tuple::default() };
            assert!(sender_opened(&Decoded { tuple, ..Decoded::default() }), "{dst:?}");
        }
    }

    #[test]
    fn the_ports_are_sorted() {
        assert!(SERVER_PORTS.is_sorted());
    }

    #[test]
    fn the_opener_is_found_from_the_middle() {
        const SYN: u8 = tcp_flag::SYN;
        const ACK: u8 = tcp_flag::ACK;
        // A SYN says it, whatever the ports.
        assert!(opened(proto::TCP, 80, 40000, SYN));
        assert!(!opened(proto::TCP, 40000, 80, SYN | ACK));
        assert!(!opened(proto::TCP, 443, 50000, ACK));
        assert!(opened(proto::TCP, 50000, 443, ACK));
        assert!(!opened(proto::TCP, 7777, 50000, ACK));
        assert!(opened(proto::TCP, 50000, 50001, ACK));
        assert!(!opened(proto::UDP, 53, 33000, 0));
        assert!(opened(proto::UDP, 123, 123, 0));
        assert!(!opened(proto::UDP, 67, 68, 0) && opened(proto::UDP, 68, 67, 0));
        assert!(!opened(proto::UDP, 547, 546, 0) && opened(proto::UDP, 546, 547, 0));
        assert!(opened(proto::UDP, 6881, 51413, 0));
        assert!(!opened(proto::ICMP, 0, 8, 0) && opened(proto::ICMP, 8, 0, 0));
        assert!(!opened(proto::ICMPV6, 136, 135, 0) && opened(proto::ICMPV6, 1, 4, 0));
    }
}
