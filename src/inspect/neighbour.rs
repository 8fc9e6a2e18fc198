//! Which address has which MAC: ARP (RFC 826) and IPv6 neighbour discovery (RFC 4861).

/// What an ARP packet says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arp {
    pub operation: u16,
    pub src_mac: [u8; 6],
    pub src_ip: [u8; 4],
    pub dst_mac: [u8; 6],
    pub dst_ip: [u8; 4],
}

impl Arp {
    /// Reads ARP for IPv4 over Ethernet; `None` for any other.
    pub fn parse(data: &[u8]) -> Option<Self> {
        let p = data.first_chunk::<28>()?;
        if p[..6] != [0, 1, 8, 0, 6, 4] {
            return None;
        }
        let mac = |at: usize| p.get(at..)?.first_chunk::<6>().copied();
        let ip = |at: usize| p.get(at..)?.first_chunk::<4>().copied();
        Some(Self {
            operation: u16::from_be_bytes([p[6], p[7]]),
            src_mac: mac(8)?,
            src_ip: ip(14)?,
            dst_mac: mac(18)?,
            dst_ip: ip(24)?,
        })
    }
}

/// The name of an ARP operation; `None` for a number that has none in use.
pub fn operation_name(operation: u16) -> Option<&'static str> {
    Some(match operation {
        1 => "request",
        2 => "reply",
        3 => "request_reverse",
        4 => "reply_reverse",
        8 => "inarp_request",
        9 => "inarp_reply",
        _ => return None,
    })
}

/// The address and MAC that a neighbour solicitation (135) or advertisement (136) gives: the
/// sender's own, or the target's. `body` is what follows the ICMPv6 header's first four bytes.
pub fn discovery(kind: u8, src_ip: [u8; 16], body: &[u8]) -> Option<([u8; 16], [u8; 6])> {
    let target = *body.get(4..)?.first_chunk::<16>()?;
    let (wanted, ip) = match kind {
        // Of a probe for a duplicate the sender has no address yet.
        135 if src_ip != [0; 16] => (1, src_ip),
        136 => (2, target),
        _ => return None,
    };
    let mut rest = body.get(20..)?;
    // Options: type, length in units of eight bytes.
    while let Some(&[option, units]) = rest.first_chunk::<2>() {
        let len = usize::from(units) * 8;
        if len == 0 {
            return None;
        }
        if option == wanted {
            return Some((ip, *rest.get(2..len)?.first_chunk()?));
        }
        rest = rest.get(len..)?;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arp_and_neighbours() {
        let mut p = vec![0, 1, 8, 0, 6, 4, 0, 2, 1, 2, 3, 4, 5, 6, 10, 0, 0, 1];
        p.extend([6, 5, 4, 3, 2, 1, 10, 0, 0, 2]);
        let arp = Arp::parse(&p).unwrap();
        assert_eq!(
            (arp.operation, arp.src_ip, arp.src_mac),
            (2, [10, 0, 0, 1], [1, 2, 3, 4, 5, 6])
        );
        for n in 0..p.len() {
            assert_eq!(Arp::parse(&p[..n]), None);
        }
        let ip = [0xfe; 16];
        let mut body = vec![0x60, 0, 0, 0];
        body.extend(ip);
        body.extend([2, 1, 1, 2, 3, 4, 5, 6]);
        assert_eq!(discovery(136, [0; 16], &body), Some((ip, [1, 2, 3, 4, 5, 6])));
        assert_eq!(discovery(135, [1; 16], &body), None, "no source option");
        for n in 0..body.len() {
            assert_eq!(discovery(136, [0; 16], &body[..n]), None);
        }
        body[21] = 0;
        assert_eq!(discovery(136, [0; 16], &body), None, "an option without length");
    }
}
