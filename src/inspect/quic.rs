//! QUIC Initial packets: header protection, keys and CRYPTO frames (RFC 9000, 9001, 9369).
//!
//! The keys of Initial packets follow from the connection id that the client chose, so anyone can
//! read them. Versions 1, 2 and draft 29 (whose secrets drafts 30 to 32 share).

use aes::Aes128;
use aes::cipher::BlockCipherEncrypt;
use aes_gcm::aead::AeadInOut;
use aes_gcm::{Aes128Gcm, KeyInit};
use hkdf::Hkdf;
use sha2::Sha256;

use super::bytes::Bytes;

/// The longest connection id of these versions.
pub const MAX_ID: usize = 20;
const TAG: usize = 16;

/// A version whose Initial packets can be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    Draft29,
    V1,
    V2,
}

impl Version {
    /// By its number.
    pub fn of(number: u32) -> Option<Self> {
        match number {
            0xff00_001d..=0xff00_0020 => Some(Self::Draft29),
            1 => Some(Self::V1),
            0x6b33_43cf => Some(Self::V2),
            _ => None,
        }
    }

    pub fn name(self) -> &'static str {
        match self {
            Self::Draft29 => "draft-29",
            Self::V1 => "1",
            Self::V2 => "2",
        }
    }

    fn salt(self) -> &'static [u8; 20] {
        match self {
            Self::Draft29 => {
                b"\xaf\xbf\xec\x28\x99\x93\xd2\x4c\x9e\x97\x86\xf1\x9c\x61\x11\xe0\x43\x90\xa8\x99"
            }
            Self::V1 => {
                b"\x38\x76\x2c\xf7\xf5\x59\x34\xb3\x4d\x17\x9a\xe6\xa4\xc8\x0c\xad\xcc\xbb\x7f\x0a"
            }
            Self::V2 => {
                b"\x0d\xed\xe3\xde\xf7\x00\xa6\xdb\x81\x93\x81\xbe\x6e\x26\x9d\xcb\xf9\xbd\x2e\xd9"
            }
        }
    }

    /// The type bits of an Initial packet.
    fn initial(self) -> u8 {
        if self == Self::V2 { 1 } else { 0 }
    }

    /// The type bits of a Retry packet.
    fn retry(self) -> u8 {
        if self == Self::V2 { 0 } else { 3 }
    }

    fn labels(self) -> [&'static [u8]; 3] {
        match self {
            Self::V2 => [b"quicv2 key", b"quicv2 iv", b"quicv2 hp"],
            _ => [b"quic key", b"quic iv", b"quic hp"],
        }
    }
}

/// A long header, as far as it is not protected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header<'a> {
    pub version: Version,
    kind: u8,
    /// Destination and source connection ids.
    pub dcid: &'a [u8],
    pub scid: &'a [u8],
}

impl<'a> Header<'a> {
    /// Reads the beginning of a datagram; `None` if it is no long header of a known version.
    pub fn parse(datagram: &'a [u8]) -> Option<Self> {
        Self::read(&mut Bytes(datagram))
    }

    fn read(b: &mut Bytes<'a>) -> Option<Self> {
        let first = b.u8()?;
        let version = Version::of(b.u32()?)?;
        let (dcid, scid) = (b.block8()?, b.block8()?);
        let long = first & 0xc0 == 0xc0 && dcid.len() <= MAX_ID && scid.len() <= MAX_ID;
        long.then_some(Self { version, kind: first >> 4 & 3, dcid, scid })
    }

    pub fn is_initial(&self) -> bool {
        self.kind == self.version.initial()
    }

    pub fn is_retry(&self) -> bool {
        self.kind == self.version.retry()
    }
}

/// Keys of one side's Initial packets.
pub struct Keys {
    packet: Aes128Gcm,
    iv: [u8; 12],
    header: Aes128,
}

/// Whose packets keys are for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    Client,
    Server,
}

/// Key, IV and header protection key (RFC 9001, section 5.2).
pub fn secrets(version: Version, dcid: &[u8], side: Side) -> ([u8; 16], [u8; 12], [u8; 16]) {
    let initial = Hkdf::<Sha256>::new(Some(version.salt()), dcid);
    let label: &[u8] = if side == Side::Client { b"client in" } else { b"server in" };
    let mut secret = [0; 32];
    expand(&initial, label, &mut secret);
    let (mut key, mut iv, mut header) = ([0; 16], [0; 12], [0; 16]);
    if let Ok(own) = Hkdf::<Sha256>::from_prk(&secret) {
        let [for_key, for_iv, for_header] = version.labels();
        expand(&own, for_key, &mut key);
        expand(&own, for_iv, &mut iv);
        expand(&own, for_header, &mut header);
    }
    (key, iv, header)
}

/// HKDF-Expand-Label of TLS 1.3 without a context. An output this short cannot fail.
fn expand(from: &Hkdf<Sha256>, label: &[u8], out: &mut [u8]) {
    let lens = [0, out.len() as u8, 6 + label.len() as u8];
    let _ = from.expand_multi_info(&[&lens, b"tls13 ", label, &[0]], out);
}

impl Keys {
    pub fn new(version: Version, dcid: &[u8], side: Side) -> Self {
        let (key, iv, header) = secrets(version, dcid, side);
        Self { packet: Aes128Gcm::new(&key.into()), iv, header: Aes128::new(&header.into()) }
    }
}

/// Opens the Initial packet that `datagram` begins with into `out`, which is cleared first and
/// grows no further than its capacity; what else is coalesced follows in the second result.
/// `None` if it is no such packet or does not open.
pub fn open<'d>(datagram: &'d [u8], keys: &Keys, out: &mut Vec<u8>) -> Option<&'d [u8]> {
    let mut b = Bytes(datagram);
    let header = Header::read(&mut b)?;
    if !header.is_initial() {
        return None;
    }
    let token = varint(&mut b)?;
    b.take(usize::try_from(token).ok()?)?;
    let len = usize::try_from(varint(&mut b)?).ok()?;
    let number_at = datagram.len() - b.len();
    let rest = b.0.get(len..)?;
    let protected = b.take(len)?;
    // The sample stands where the payload would be behind a packet number of four bytes.
    let mut mask = aes::Block::from(*protected.get(4..)?.first_chunk::<16>()?);
    keys.header.encrypt_block(&mut mask);
    let first = datagram.first()? ^ (mask[0] & 0x0f);
    let number_len = usize::from(first & 3) + 1;
    let mut number = 0u32;
    // The associated data: the header with its protection taken off.
    let header_len = number_at + number_len;
    if header_len > out.capacity() || protected.len() < number_len + TAG {
        return None;
    }
    let mut aad = arrayvec::ArrayVec::<u8, MAX_HEADER>::new();
    aad.try_extend_from_slice(datagram.get(..header_len)?).ok()?;
    *aad.first_mut()? = first;
    for n in 0..number_len {
        let byte = aad.get_mut(number_at + n)?;
        *byte ^= mask[n + 1];
        number = number << 8 | u32::from(*byte);
    }
    let mut nonce = keys.iv;
    for (byte, part) in nonce.iter_mut().rev().zip(number.to_le_bytes()) {
        *byte ^= part;
    }
    let (sealed, tag) = protected.get(number_len..)?.split_last_chunk::<TAG>()?;
    if sealed.len() > out.capacity() {
        return None;
    }
    out.clear();
    out.extend_from_slice(sealed);
    let opened = keys.packet.decrypt_inout_detached(
        &nonce.into(),
        &aad,
        out.as_mut_slice().into(),
        &(*tag).into(),
    );
    opened.is_ok().then_some(rest)
}

/// The longest header with a token that is read: tokens of some servers take a few hundred bytes.
const MAX_HEADER: usize = 1024;

/// Skips the packet of any kind that `datagram` begins with; what is coalesced behind it.
pub fn skip(datagram: &[u8]) -> Option<&[u8]> {
    let mut b = Bytes(datagram);
    let header = Header::read(&mut b)?;
    if header.is_retry() {
        return None;
    }
    if header.is_initial() {
        let token = varint(&mut b)?;
        b.take(usize::try_from(token).ok()?)?;
    }
    let len = varint(&mut b)?;
    b.take(usize::try_from(len).ok()?)?;
    Some(b.0)
}

/// A variable-length integer (RFC 9000, section 16).
fn varint(b: &mut Bytes<'_>) -> Option<u64> {
    let first = b.u8()?;
    let more = (1usize << (first >> 6)) - 1;
    let rest = b.take(more)?;
    Some(rest.iter().fold(u64::from(first & 0x3f), |value, &byte| value << 8 | u64::from(byte)))
}

/// The CRYPTO frames of an Initial packet: offset and bytes. Ends at a frame that does not belong
/// there.
pub fn crypto_frames(payload: &[u8]) -> impl Iterator<Item = (u64, &[u8])> {
    let mut b = Bytes(payload);
    std::iter::from_fn(move || {
        loop {
            match b.u8()? {
                // Padding and PING.
                0 | 1 => {}
                kind @ (2 | 3) => {
                    let (_largest, _delay) = (varint(&mut b)?, varint(&mut b)?);
                    let ranges = varint(&mut b)?;
                    let _first = varint(&mut b)?;
                    // Each takes two bytes at least, so a lie ends with the payload.
                    for _ in 0..ranges.saturating_mul(2) {
                        varint(&mut b)?;
                    }
                    for _ in 0..if kind == 3 { 3 } else { 0 } {
                        varint(&mut b)?;
                    }
                }
                6 => {
                    let (offset, len) = (varint(&mut b)?, varint(&mut b)?);
                    return Some((offset, b.take(usize::try_from(len).ok()?)?));
                }
                _ => return None,
            }
        }
    })
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in crate::inspect) fn hex(text: &str) -> Vec<u8> {
        let digits: Vec<u8> =
            text.chars().filter_map(|c| c.to_digit(16)).map(|d| d as u8).collect();
        digits.chunks(2).map(|d| d[0] << 4 | d[1]).collect()
    }

    /// Protects an Initial packet as a client does.
    pub(in crate::inspect) fn seal(
        version: Version,
        dcid: &[u8],
        number: u32,
        token: &[u8],
        frames: &[u8],
    ) -> Vec<u8> {
        let keys = Keys::new(version, dcid, Side::Client);
        let wire = match version {
            Version::Draft29 => 0xff00_001d,
            Version::V1 => 1,
            Version::V2 => 0x6b33_43cfu32,
        };
        let mut header = vec![0xc3 | version.initial() << 4];
        header.extend(wire.to_be_bytes());
        header.push(dcid.len() as u8);
        header.extend(dcid);
        header.extend([0, 0x40, token.len() as u8]);
        header.extend(token);
        let len = (4 + frames.len() + TAG) as u16;
        header.extend((len | 0x4000).to_be_bytes());
        let number_at = header.len();
        header.extend(number.to_be_bytes());
        let mut nonce = keys.iv;
        for (byte, part) in nonce.iter_mut().rev().zip(number.to_le_bytes()) {
            *byte ^= part;
        }
        let mut sealed = frames.to_vec();
        let tag = keys
            .packet
            .encrypt_inout_detached(&nonce.into(), &header, sealed.as_mut_slice().into())
            .unwrap();
        let mut packet = [&header[..], &sealed, &tag].concat();
        let mut mask = aes::Block::from(*packet[number_at + 4..].first_chunk::<16>().unwrap());
        keys.header.encrypt_block(&mut mask);
        packet[0] ^= mask[0] & 0x0f;
        for n in 0..4 {
            packet[number_at + n] ^= mask[n + 1];
        }
        packet
    }

    #[test]
    fn keys_of_rfc_9001_appendix_a1() {
        let dcid = hex("8394c8f03e515708");
        let (key, iv, hp) = secrets(Version::V1, &dcid, Side::Client);
        assert_eq!(key[..], hex("1f369613dd76d5467730efcbe3b1a22d"));
        assert_eq!(iv[..], hex("fa044b2f42a3fd3b46fb255c"));
        assert_eq!(hp[..], hex("9f50449e04a0e810283a1e9933adedd2"));
        let (key, iv, hp) = secrets(Version::V1, &dcid, Side::Server);
        assert_eq!(key[..], hex("cf3a5331653c364c88f0f379b6067e37"));
        assert_eq!(iv[..], hex("0ac1493ca1905853b0bba03e"));
        assert_eq!(hp[..], hex("c206b8d9b9f0f37644430b490eeaa314"));
    }

    #[test]
    fn keys_of_rfc_9369_appendix_a1() {
        let dcid = hex("8394c8f03e515708");
        let (key, iv, hp) = secrets(Version::V2, &dcid, Side::Client);
        assert_eq!(key[..], hex("8b1a0bc121284290a29e0971b5cd045d"));
        assert_eq!(iv[..], hex("91f73e2351d8fa91660e909f"));
        assert_eq!(hp[..], hex("45b95e15235d6f45a6b19cbcb0294ba9"));
    }

    /// RFC 9001, appendix A.3: the server's Initial packet.
    #[test]
    fn the_servers_packet_of_rfc_9001_appendix_a3() {
        let packet = hex(
            "cf000000010008f067a5502a4262b5004075c0d95a482cd0991cd25b0aac406a5816b6394100f37a1c69797554780bb38cc5a99f5ede4cf73c3ec2493a1839b3dbcba3f6ea46c5b7684df3548e7ddeb9c3bf9c73cc3f3bded74b562bfb19fb84022f8ef4cdd93795d77d06edbb7aaf2f58891850abbdca3d20398c276456cbc42158407dd074ee",
        );
        let keys = Keys::new(Version::V1, &hex("8394c8f03e515708"), Side::Server);
        let mut out = Vec::with_capacity(2048);
        assert_eq!(open(&packet, &keys, &mut out), Some(&[][..]));
        assert_eq!(
            out,
            hex(
                "02000000000600405a020000560303eefce7f7b37ba1d1632e96677825ddf73988cfc79825df566dc5430b9a045a1200130100002e00330024001d00209d3c940d89690b84d08a60993c144eca684d1081287c834d5311bcf32bb9da1a002b00020304"
            )
        );
        let (offset, bytes) = crypto_frames(&out).next().unwrap();
        assert_eq!((offset, bytes.len()), (0, 0x5a));
        let mut spoiled = packet.clone();
        for at in 0..packet.len() {
            spoiled[at] ^= 1;
            assert_eq!(open(&spoiled, &keys, &mut out), None, "{at}");
            spoiled[at] ^= 1;
            open(&packet[..at], &keys, &mut out);
        }
    }

    #[test]
    fn what_is_sealed_opens_in_each_version() {
        for version in [Version::Draft29, Version::V1, Version::V2] {
            let frames = [&[6, 0, 5][..], b"hello", &[0; 40], &[1], &[6, 5, 2], b"!!"].concat();
            let packet = seal(version, &[1, 2, 3, 4, 5, 6, 7, 8], 2, b"token", &frames);
            let coalesced = [&packet[..], b"more"].concat();
            let header = Header::parse(&coalesced).unwrap();
            assert!(header.is_initial() && header.version == version);
            let keys = Keys::new(version, header.dcid, Side::Client);
            let mut out = Vec::with_capacity(2048);
            assert_eq!(open(&coalesced, &keys, &mut out), Some(&b"more"[..]));
            assert_eq!(crypto_frames(&out).collect::<Vec<_>>(), [(0, &b"hello"[..]), (5, b"!!")]);
            assert_eq!(skip(&coalesced), Some(&b"more"[..]));
        }
    }

    #[test]
    fn a_billion_acknowledged_ranges_end_with_the_payload() {
        let frames = [2, 0, 0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 6, 0, 1];
        assert_eq!(crypto_frames(&frames).count(), 0);
    }
}
