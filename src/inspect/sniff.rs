//! Which protocol a flow speaks, by its first bytes.

use super::{http, ssh, tls};
use crate::event::App;

/// What the first bytes of a stream say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sniffed {
    Is(App),
    /// Too few to tell.
    Short,
    Unknown,
}

/// By the first bytes of one side of a TCP stream. `ports` are the sender's and the receiver's.
pub(super) fn stream(bytes: &[u8], ports: [u16; 2]) -> Sniffed {
    if bytes.len() < 4 {
        return if bytes.is_empty() || may_become(bytes) {
            Sniffed::Short
        } else {
            Sniffed::Unknown
        };
    }
    if tls::may_be(bytes) {
        return Sniffed::Is(App::Tls);
    }
    if ssh::may_be(bytes) {
        return Sniffed::Is(App::Ssh);
    }
    if bytes.starts_with(b"PRI * HTTP/2") {
        return Sniffed::Is(App::Http2);
    }
    if bytes.starts_with(b"NOTIFY ") && ports.contains(&5060) {
        return Sniffed::Is(App::Sip);
    }
    if http::may_be_request(bytes) || http::may_be_response(bytes) {
        let http = !contains(bytes, b" RTSP/1.") && !contains(bytes, b" SIP/2.");
        return Sniffed::Is(if http {
            App::Http
        } else if contains(bytes, b" SIP/2.") {
            App::Sip
        } else {
            App::Rtsp
        });
    }
    if ports.contains(&53) {
        return Sniffed::Is(App::Dns);
    }
    banner(bytes, ports).map_or(Sniffed::Unknown, Sniffed::Is)
}

/// Whether three bytes or fewer can begin one of the protocols that are read further.
fn may_become(bytes: &[u8]) -> bool {
    tls::may_be(bytes)
        || ssh::may_be(bytes)
        || http::may_be_request(bytes)
        || http::may_be_response(bytes)
}

fn contains(bytes: &[u8], needle: &[u8]) -> bool {
    let line = bytes.get(..256).unwrap_or(bytes);
    line.windows(needle.len()).any(|w| w == needle)
}

/// Protocols that are only named.
fn banner(b: &[u8], ports: [u16; 2]) -> Option<App> {
    let starts = |what: &[u8]| b.starts_with(what);
    let on = |list: &[u16]| ports.iter().any(|p| list.contains(p));
    let at = |n: usize| b.get(n).copied().unwrap_or(0);
    Some(match at(0) {
        b'2' if starts(b"220") && on(&[21]) => App::Ftp,
        b'2' if starts(b"220") && (on(&[25, 587, 465, 2525]) || contains(b, b"SMTP")) => App::Smtp,
        b'E' | b'H' if starts(b"EHLO ") || starts(b"HELO ") => App::Smtp,
        b'+' if starts(b"+OK") => App::Pop3,
        b'*' if starts(b"* OK") => App::Imap,
        b'*' if on(&[6379]) || contains(b, b"\r\n$") => App::Redis,
        0 if matches!(b.get(4..8), Some(b"\xffSMB" | b"\xfeSMB")) => App::Smb,
        3 if at(1) == 0 && at(5) & 0xe0 == 0xe0 && at(4) >= 6 => App::Rdp,
        b'R' if starts(b"RFB 00") => App::Vnc,
        b'D' | b'S' | b'P' if contains(b, b" RTSP/1.") => App::Rtsp,
        b'R' if starts(b"RTSP/1.") => App::Rtsp,
        b'I' | b'R' | b'S' if contains(b, b" SIP/2.") || starts(b"SIP/2.") => App::Sip,
        0x10 if matches!(b.get(2..8), Some([0, 4, b'M', b'Q', b'T', b'T'])) => App::Mqtt,
        0x13 if b.get(1..).is_some_and(|r| r.starts_with(b"BitTorrent")) => App::BitTorrent,
        0xff if (0xfb..=0xfe).contains(&at(1)) => App::Telnet,
        b'<' if contains(b, b"<stream:stream") => App::Xmpp,
        b'N' | b'U' | b'C' | b'P' | b':'
            if [&b"NICK "[..], b"USER ", b"CAP LS", b"PASS "].iter().any(|s| starts(s))
                && on(&[194, 6660, 6665, 6666, 6667, 6668, 6669, 7000]) =>
        {
            App::Irc
        }
        _ if at(3) == 0 && at(4) == 10 && on(&[3306]) => App::Mysql,
        0 if matches!(b.get(4..8), Some([0, 3, 0, 0] | [4, 0xd2, 0x16, 0x2f])) => App::Postgres,
        0x30 if on(&[389, 3268]) => App::Ldap,
        0x80 if at(4) == 0 && on(&[111, 2049]) => App::Rpc,
        _ => return None,
    })
}

/// By the content of a UDP packet. `ports` are the sender's and the receiver's.
pub(super) fn datagram(b: &[u8], ports: [u16; 2]) -> Option<App> {
    let on = |list: &[u16]| ports.iter().any(|p| list.contains(p));
    let at = |n: usize| b.get(n).copied().unwrap_or(0);
    let be32 = |n: usize| b.get(n..).and_then(|s| s.first_chunk::<4>()).copied();
    Some(match () {
        () if on(&[53]) => App::Dns,
        () if on(&[5353]) => App::Mdns,
        () if on(&[5355]) => App::Llmnr,
        () if on(&[137]) => App::Nbns,
        () if super::quic::Header::parse(b).is_some() => App::Quic,
        () if on(&[67, 68]) && be32(236) == Some([0x63, 0x82, 0x53, 0x63]) => App::Dhcp,
        () if on(&[546, 547]) => App::Dhcpv6,
        () if on(&[123]) && b.len() >= 48 && (1..=4).contains(&(at(0) >> 3 & 7)) => App::Ntp,
        () if on(&[161, 162]) && at(0) == 0x30 => App::Snmp,
        () if b.starts_with(b"M-SEARCH * ") || b.starts_with(b"NOTIFY * ") => App::Ssdp,
        () if on(&[1900]) && b.starts_with(b"HTTP/1.") => App::Ssdp,
        () if be32(4) == Some([0x21, 0x12, 0xa4, 0x42]) && at(0) < 0x40 => App::Stun,
        () if be32(0) == Some([1, 0, 0, 0]) && b.len() == 148 => App::Wireguard,
        () if be32(0) == Some([2, 0, 0, 0]) && b.len() == 92 => App::Wireguard,
        () if matches!(at(0), 20..=25) && at(1) == 0xfe && matches!(at(2), 0xfd | 0xff) => {
            App::Dtls
        }
        () if contains(b, b" SIP/2.0") || b.starts_with(b"SIP/2.0 ") => App::Sip,
        () if b.starts_with(b"d1:") && contains(b, b"1:y1:") => App::BitTorrent,
        () if on(&[514]) && at(0) == b'<' => App::Syslog,
        () if on(&[69]) && at(0) == 0 && matches!(at(1), 1 | 2) => App::Tftp,
        () if on(&[1812, 1813]) => App::Radius,
        () if on(&[500]) && b.len() >= 28 => App::Ike,
        () if on(&[4500]) && be32(0) == Some([0; 4]) => App::Ike,
        () if on(&[138]) => App::Netbios,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_bytes_say_what_it_is() {
        for (bytes, ports, app) in [
            (&b"\x16\x03\x01\x02\x00\x01"[..], [40000, 4443], App::Tls),
            (b"GET / HTTP/1.1\r\n", [1, 2], App::Http),
            (b"OPTIONS rtsp://x/ RTSP/1.0\r\n", [1, 554], App::Rtsp),
            (b"SSH-2.0-x", [1, 2222], App::Ssh),
            (b"PRI * HTTP/2.0\r\n", [1, 2], App::Http2),
            (b"\0\0\0\x45\xfeSMB@\0", [1, 445], App::Smb),
            (b"220 mail ESMTP\r\n", [25, 1], App::Smtp),
            (b"\x03\0\0\x13\x0e\xe0\0\0", [1, 3389], App::Rdp),
        ] {
            assert_eq!(stream(bytes, ports), Sniffed::Is(app));
            for n in 0..bytes.len() {
                stream(&bytes[..n], ports);
            }
        }
        assert_eq!(stream(b"\x16\x03", [1, 2]), Sniffed::Short);
        assert_eq!(stream(b"zzzzzz", [1, 2]), Sniffed::Unknown);
        let mut stun = vec![0, 1, 0, 0, 0x21, 0x12, 0xa4, 0x42];
        stun.resize(20, 0);
        assert_eq!(datagram(&stun, [1, 2]), Some(App::Stun));
    }
}
