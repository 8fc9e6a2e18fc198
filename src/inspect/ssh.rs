//! SSH banners and key exchange offers in clear (RFC 4253), and HASSH (Salesforce, BSD-3).

use md5::{Digest, Md5};

use super::bytes::Bytes;

/// Bytes of a banner line, its end included (RFC 4253, section 4.2).
const MAX_BANNER: usize = 255;
/// Lines a server may send before its banner.
const MAX_LINES: usize = 16;
/// The largest packet that has to be understood (RFC 4253, section 6.1).
const MAX_PACKET: usize = 35_000;
const KEXINIT: u8 = 20;

/// What one side said.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Opening<'a> {
    /// Its banner, without the line's end.
    pub banner: Option<&'a [u8]>,
    /// Its HASSH, by the algorithms it would use to send: the client's way for `client`.
    pub hassh: Option<[u8; 16]>,
    /// Nothing more is to be read of this side.
    pub done: bool,
}

/// Whether `stream` can be the beginning of SSH, as far as it goes.
pub fn may_be(stream: &[u8]) -> bool {
    stream.starts_with(b"SSH-") || b"SSH-".starts_with(stream)
}

/// Reads the beginning of one side's stream; `client` for the side that opened the connection.
pub fn opening(stream: &[u8], client: bool) -> Opening<'_> {
    let mut out = Opening::default();
    let mut rest = stream;
    for _ in 0..MAX_LINES {
        let Some(end) = rest.iter().position(|&b| b == b'\n') else {
            out.done = rest.len() > MAX_BANNER;
            return out;
        };
        let (line, after) = rest.split_at(end);
        rest = after.get(1..).unwrap_or_default();
        if line.starts_with(b"SSH-") {
            let banner = line.strip_suffix(b"\r").unwrap_or(line);
            out.banner = banner.get(..MAX_BANNER).or(Some(banner));
            break;
        }
    }
    if out.banner.is_none() {
        out.done = true;
        return out;
    }
    match kexinit(rest, client) {
        Kex::Hassh(hash) => {
            out.hassh = Some(hash);
            out.done = true;
        }
        Kex::Cut => {}
        Kex::Other => out.done = true,
    }
    out
}

enum Kex {
    Hassh([u8; 16]),
    Cut,
    Other,
}

fn kexinit(stream: &[u8], client: bool) -> Kex {
    let mut b = Bytes(stream);
    let (Some(len), Some(padding)) = (b.u32(), b.u8()) else { return Kex::Cut };
    let len = len as usize;
    if len > MAX_PACKET || usize::from(padding) + 1 > len {
        return Kex::Other;
    }
    if b.0.first().is_some_and(|&kind| kind != KEXINIT) {
        return Kex::Other;
    }
    let Some(payload) = b.take(len - 1 - usize::from(padding)) else { return Kex::Cut };
    lists(payload, client).map_or(Kex::Other, Kex::Hassh)
}

/// MD5 of key exchange, encryption, MAC and compression algorithms with semicolons.
fn lists(payload: &[u8], client: bool) -> Option<[u8; 16]> {
    let mut b = Bytes(payload);
    b.take(17)?;
    let mut lists = [&[][..]; 8];
    for list in &mut lists {
        let len = b.u32()? as usize;
        *list = b.take(len)?;
    }
    let [kex, _, up, down, mac_up, mac_down, pack_up, pack_down] = lists;
    let mine = if client { [up, mac_up, pack_up] } else { [down, mac_down, pack_down] };
    let mut hash = Md5::new();
    hash.update(kex);
    for list in mine {
        hash.update(b";");
        hash.update(list);
    }
    Some(hash.finalize().into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kex() -> Vec<u8> {
        let mut payload = vec![KEXINIT];
        payload.extend([9; 16]);
        for list in ["k1,k2", "rsa", "e-up", "e-down", "m-up", "m-down", "z-up", "z-down", "", ""] {
            payload.extend((list.len() as u32).to_be_bytes());
            payload.extend(list.as_bytes());
        }
        payload.extend([0; 5]);
        let padding = 4u8;
        let mut out = (payload.len() as u32 + 1 + u32::from(padding)).to_be_bytes().to_vec();
        out.push(padding);
        out.extend(payload);
        out.extend([0; 4]);
        out
    }

    #[test]
    fn banner_and_hassh_of_both_sides() {
        let mut stream = b"hello\r\nSSH-2.0-OpenSSH_9.6 x\r\n".to_vec();
        stream.extend(kex());
        for (client, text) in
            [(true, "k1,k2;e-up;m-up;z-up"), (false, "k1,k2;e-down;m-down;z-down")]
        {
            let said = opening(&stream, client);
            assert_eq!(said.banner, Some(&b"SSH-2.0-OpenSSH_9.6 x"[..]));
            assert_eq!(said.hassh, Some(Md5::digest(text).into()));
            assert!(said.done);
        }
        for n in 0..stream.len() {
            let said = opening(&stream[..n], true);
            assert_eq!(said.banner.is_some(), n >= 30, "{n}");
            // The padding at the end is not needed.
            assert_eq!(said.hassh.is_some(), n >= stream.len() - 4, "{n}");
        }
    }

    #[test]
    fn lengths_that_lie() {
        let mut stream = b"SSH-2.0-x\n".to_vec();
        let good = kex();
        for at in 0..good.len() {
            for value in [0, 1, 0x7f, 0xff] {
                let mut bad = stream.clone();
                bad.extend(&good);
                bad[10 + at] = value;
                opening(&bad, true);
            }
        }
        stream = vec![b'a'; 300];
        assert!(opening(&stream, true).done);
    }
}
