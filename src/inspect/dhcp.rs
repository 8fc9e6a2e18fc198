//! DHCP for IPv4 (RFC 2131, options of RFC 2132).
//!
//! Own option walk: the crate for it allocates, and brings sixty others.

use super::bytes::Bytes;

const COOKIE: [u8; 4] = [0x63, 0x82, 0x53, 0x63];
/// Fixed fields and the cookie.
const FIXED: usize = 240;

/// A message.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Message<'a> {
    /// From a client.
    pub request: bool,
    pub id: u32,
    /// The client's address as it knows it, the one it is given, its server's and its relay's.
    pub client: [u8; 4],
    pub assigned: [u8; 4],
    pub next_server: [u8; 4],
    pub relay: [u8; 4],
    pub mac: [u8; 6],
    /// Option 53; 0 for BOOTP.
    pub kind: u8,
    pub hostname: Option<&'a [u8]>,
    pub vendor_class: Option<&'a [u8]>,
    pub requested: Option<[u8; 4]>,
    pub lease_s: Option<u32>,
    pub client_id: Option<&'a [u8]>,
}

impl<'a> Message<'a> {
    /// Reads a message; `None` if it is none.
    pub fn parse(data: &'a [u8]) -> Option<Self> {
        let fixed = data.first_chunk::<FIXED>()?;
        let four = |at: usize| fixed.get(at..).and_then(|f| f.first_chunk::<4>()).copied();
        // Ethernet addresses only.
        if !matches!(fixed[0], 1 | 2) || fixed[1..3] != [1, 6] || four(236)? != COOKIE {
            return None;
        }
        let mut out = Self {
            request: fixed[0] == 1,
            id: u32::from_be_bytes(four(4)?),
            client: four(12)?,
            assigned: four(16)?,
            next_server: four(20)?,
            relay: four(24)?,
            mac: *fixed[28..].first_chunk()?,
            ..Self::default()
        };
        let mut b = Bytes(data.get(FIXED..)?);
        while let Some(code) = b.u8() {
            match code {
                0 => continue,
                255 => break,
                _ => {}
            }
            let Some(value) = b.block8() else { break };
            let ip = value.first_chunk::<4>().copied();
            match code {
                12 => out.hostname = Some(value),
                50 => out.requested = ip,
                51 => out.lease_s = ip.map(u32::from_be_bytes),
                53 => out.kind = value.first().copied().unwrap_or(0),
                60 => out.vendor_class = Some(value),
                61 => out.client_id = Some(value),
                _ => {}
            }
        }
        Some(out)
    }
}

/// The name of a message type; `None` for a number that has none.
pub fn kind_name(kind: u8) -> Option<&'static str> {
    Some(match kind {
        1 => "discover",
        2 => "offer",
        3 => "request",
        4 => "decline",
        5 => "ack",
        6 => "nak",
        7 => "release",
        8 => "inform",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn discover() -> Vec<u8> {
        let mut m = vec![1, 1, 6, 0, 0, 0, 0x3d, 0x1d];
        m.resize(28, 0);
        m.extend([0, 0x0b, 0x82, 1, 0xfc, 0x42]);
        m.resize(236, 0);
        m.extend(COOKIE);
        m.extend([53, 1, 1, 0, 12, 3, b'p', b'c', b'1', 50, 4, 192, 168, 0, 10, 60, 2, b'v', b'c']);
        m.extend([51, 4, 0, 0, 14, 16, 255, 1, 2, 3]);
        m
    }

    #[test]
    fn fields_and_options() {
        let m = discover();
        let d = Message::parse(&m).unwrap();
        assert_eq!((d.kind, d.id, d.mac), (1, 0x3d1d, [0, 0x0b, 0x82, 1, 0xfc, 0x42]));
        assert_eq!((d.hostname, d.vendor_class), (Some(&b"pc1"[..]), Some(&b"vc"[..])));
        assert_eq!((d.requested, d.lease_s), (Some([192, 168, 0, 10]), Some(3600)));
    }

    #[test]
    fn cut_and_lying() {
        let m = discover();
        for n in 0..m.len() {
            assert_eq!(Message::parse(&m[..n]).is_some(), n >= FIXED, "{n}");
        }
        for at in 0..m.len() {
            let mut bad = m.clone();
            bad[at] = 0xff;
            Message::parse(&bad);
        }
    }
}
