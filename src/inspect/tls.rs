//! TLS handshakes in clear (RFC 8446, RFC 5246): hellos, certificates, and their fingerprints.
//!
//! Own walk over the hellos: the fingerprints need the raw lists, and the crate for it takes no
//! record that is cut and fifteen times as long (measured, 1 us to 65 ns). Certificates are handed
//! on as they are.
//!
//! JA3 and JA3S are Salesforce's (BSD-3), JA4 is FoxIO's (BSD-3); of the JA4+ family nothing is
//! here, its licence forbids.

use std::fmt::Write as _;

use arrayvec::{ArrayString, ArrayVec};
use md5::Md5;
use sha2::{Digest, Sha256};

use super::bytes::{Bytes, words};

/// The most a TLS record carries.
const MAX_RECORD: usize = (1 << 14) + 256;
/// Ciphers, extensions and signature algorithms that a fingerprint takes; a hello with more gets
/// none.
const MAX_LIST: usize = 256;

const SERVER_NAME: u16 = 0;
const GROUPS: u16 = 10;
const POINT_FORMATS: u16 = 11;
const SIGNATURE_ALGORITHMS: u16 = 13;
const ALPN: u16 = 16;
const VERSIONS: u16 = 43;

/// Handshake message types.
pub mod message {
    pub const CLIENT_HELLO: u8 = 1;
    pub const SERVER_HELLO: u8 = 2;
    pub const CERTIFICATE: u8 = 11;
    pub const SERVER_HELLO_DONE: u8 = 14;
}

/// The transport below, as JA4 has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    Tcp,
    Quic,
    Dtls,
}

/// How far the handshake of one side reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reach {
    /// More of it may come.
    Open,
    /// Encryption, an alert or something else came after it.
    Ended,
}

/// The handshake bytes of one side's stream, put together from its records.
///
/// Messages may span records and records may hold several messages. What lies in one record is
/// given as it lies there; otherwise `scratch` takes the parts, up to its capacity. `None` if the
/// stream does not begin with a record of TLS.
pub fn handshake<'a>(stream: &'a [u8], scratch: &'a mut Vec<u8>) -> Option<(&'a [u8], Reach)> {
    let mut rest = Bytes(stream);
    let (22, first) = record(&mut rest)? else { return None };
    if rest.is_empty() {
        return Some((first, Reach::Open));
    }
    join(stream, scratch);
    Some((&*scratch, reach(stream)))
}

/// Whether `stream` can be the beginning of TLS, as far as it goes.
pub fn may_be(stream: &[u8]) -> bool {
    let ok = |at: usize, good: fn(u8) -> bool| stream.get(at).is_none_or(|&b| good(b));
    ok(0, |b| b == 22) && ok(1, |b| b == 3) && ok(2, |b| b <= 4) && ok(5, |b| matches!(b, 0..=2))
}

/// The next record's type and what is there of its content.
fn record<'a>(rest: &mut Bytes<'a>) -> Option<(u8, &'a [u8])> {
    let (kind, version, len) = (rest.u8()?, rest.u16()?, usize::from(rest.u16()?));
    if !(20..=24).contains(&kind) || version >> 8 != 3 || len > MAX_RECORD {
        return None;
    }
    Some((kind, rest.take(len.min(rest.len()))?))
}

fn join(stream: &[u8], scratch: &mut Vec<u8>) {
    scratch.clear();
    let mut rest = Bytes(stream);
    while let Some((22, part)) = record(&mut rest) {
        let room = scratch.capacity() - scratch.len();
        scratch.extend_from_slice(part.get(..room).unwrap_or(part));
    }
}

fn reach(stream: &[u8]) -> Reach {
    let mut rest = Bytes(stream);
    while rest.len() >= 5 {
        match record(&mut rest) {
            Some((22, _)) => {}
            _ => return Reach::Ended,
        }
    }
    Reach::Open
}

/// The whole messages of a handshake, each with its type; the last, if it is cut, is left out.
pub fn messages(handshake: &[u8]) -> impl Iterator<Item = (u8, &[u8])> {
    let mut b = Bytes(handshake);
    std::iter::from_fn(move || {
        let kind = b.u8()?;
        let len = b.u24()?;
        Some((kind, b.take(len)?))
    })
}

/// A ClientHello, its lists as they were sent.
#[derive(Clone, Copy, Debug, Default)]
pub struct ClientHello<'a> {
    pub version: u16,
    ciphers: &'a [u8],
    extensions: &'a [u8],
}

/// A ServerHello.
#[derive(Clone, Copy, Debug, Default)]
pub struct ServerHello<'a> {
    pub legacy_version: u16,
    pub cipher: u16,
    extensions: &'a [u8],
}

fn is_grease(value: u16) -> bool {
    value & 0x0f0f == 0x0a0a && value >> 8 == value & 0xff
}

/// The extensions of a hello: number and content.
fn extensions(list: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    let mut b = Bytes(list);
    std::iter::from_fn(move || Some((b.u16()?, b.block16()?)))
}

fn extension(list: &[u8], wanted: u16) -> Option<&[u8]> {
    extensions(list).find(|&(number, _)| number == wanted).map(|(_, content)| content)
}

fn first_alpn(list: &[u8]) -> Option<&[u8]> {
    alpns(list).next()
}

fn alpns(list: &[u8]) -> impl Iterator<Item = &[u8]> {
    let content = extension(list, ALPN).and_then(|c| Bytes(c).block16()).unwrap_or_default();
    let mut b = Bytes(content);
    std::iter::from_fn(move || b.block8())
}

impl<'a> ClientHello<'a> {
    /// Reads the body of a ClientHello message; `None` if it contradicts itself.
    pub fn parse(body: &'a [u8]) -> Option<Self> {
        Self::read(body, Transport::Tcp)
    }

    /// As [`Self::parse`], for DTLS (RFC 9147), which puts a cookie in between.
    pub fn parse_dtls(body: &'a [u8]) -> Option<Self> {
        Self::read(body, Transport::Dtls)
    }

    fn read(body: &'a [u8], transport: Transport) -> Option<Self> {
        let mut b = Bytes(body);
        let version = b.u16()?;
        b.take(32)?;
        b.block8().filter(|id| id.len() <= 32)?;
        if transport == Transport::Dtls {
            b.block8()?;
        }
        let ciphers = b.block16().filter(|c| !c.is_empty() && c.len() % 2 == 0)?;
        b.block8()?;
        // Before TLS 1.2 a hello could end here.
        let extensions = if b.is_empty() { &[][..] } else { b.block16()? };
        Some(Self { version, ciphers, extensions })
    }

    /// The server's name (RFC 6066), as it was sent.
    pub fn server_name(&self) -> Option<&'a [u8]> {
        let mut b = Bytes(extension(self.extensions, SERVER_NAME)?);
        let mut list = Bytes(b.block16()?);
        (list.u8()? == 0).then(|| list.block16()).flatten()
    }

    /// The protocols offered.
    pub fn alpns(&self) -> impl Iterator<Item = &'a [u8]> {
        alpns(self.extensions)
    }

    /// The highest version offered.
    pub fn highest_version(&self) -> u16 {
        let offered = extension(self.extensions, VERSIONS)
            .and_then(|c| Bytes(c).block8())
            .into_iter()
            .flat_map(words);
        // DTLS counts downwards.
        let offered = offered.filter(|&v| !is_grease(v));
        let highest = if self.version >> 8 == 0xfe { offered.min() } else { offered.max() };
        highest.unwrap_or(self.version)
    }

    /// JA3: MD5 of versions, ciphers, extensions, groups and point formats, decimal, without GREASE.
    pub fn ja3(&self) -> [u8; 16] {
        let mut text = Hashed(Md5::new());
        let _ = write!(text, "{},", self.version);
        text.dashed(words(self.ciphers));
        text.put(",");
        text.dashed(extensions(self.extensions).map(|(number, _)| number));
        text.put(",");
        let groups = extension(self.extensions, GROUPS).and_then(|c| Bytes(c).block16());
        text.dashed(groups.into_iter().flat_map(words));
        text.put(",");
        let formats = extension(self.extensions, POINT_FORMATS).and_then(|c| Bytes(c).block8());
        text.dashed(formats.into_iter().flatten().map(|&f| u16::from(f)));
        text.0.finalize().into()
    }

    /// JA4; `None` if a list is longer than any client's.
    pub fn ja4(&self, transport: Transport) -> Option<Ja4> {
        let mut ciphers = collect(words(self.ciphers))?;
        let all = collect(extensions(self.extensions).map(|(number, _)| number))?;
        let has_name = all.contains(&SERVER_NAME);
        let mut hashed: ArrayVec<u16, MAX_LIST> =
            all.iter().copied().filter(|e| !matches!(*e, SERVER_NAME | ALPN)).collect();
        let algorithms = extension(self.extensions, SIGNATURE_ALGORITHMS)
            .and_then(|c| Bytes(c).block16())
            .into_iter()
            .flat_map(words);
        let algorithms = collect(algorithms)?;
        ciphers.sort_unstable();
        hashed.sort_unstable();
        let mut out = Ja4::new();
        let [first, last] = alpn_letters(first_alpn(self.extensions));
        let letter = match transport {
            Transport::Tcp => 't',
            Transport::Quic => 'q',
            Transport::Dtls => 'd',
        };
        write!(
            out,
            "{letter}{}{}{:02}{:02}{first}{last}_{}_",
            version_letters(self.highest_version()),
            if has_name { 'd' } else { 'i' },
            ciphers.len().min(99),
            all.len().min(99),
            short_hash(&ciphers, &[]),
        )
        .ok()?;
        // No extensions, or none that count, but perhaps signature algorithms: hashed all the same.
        out.try_push_str(&short_hash(&hashed, &algorithms)).ok()?;
        Some(out)
    }
}

impl<'a> ServerHello<'a> {
    /// Reads the body of a ServerHello message; `None` if it contradicts itself.
    pub fn parse(body: &'a [u8]) -> Option<Self> {
        let mut b = Bytes(body);
        let legacy_version = b.u16()?;
        b.take(32)?;
        // Drafts of TLS 1.3 before the 22nd had neither session id nor compression here.
        let draft = legacy_version >> 8 == 0x7f;
        if !draft {
            b.block8().filter(|id| id.len() <= 32)?;
        }
        let cipher = b.u16()?;
        if !draft {
            b.u8()?;
        }
        let extensions = if b.is_empty() { &[][..] } else { b.block16()? };
        Some(Self { legacy_version, cipher, extensions })
    }

    /// The version agreed on.
    pub fn version(&self) -> u16 {
        extension(self.extensions, VERSIONS)
            .and_then(|c| Bytes(c).u16())
            .unwrap_or(self.legacy_version)
    }

    /// The protocol chosen, where it is not encrypted.
    pub fn alpn(&self) -> Option<&'a [u8]> {
        first_alpn(self.extensions)
    }

    /// JA3S: MD5 of version, cipher and extensions, decimal.
    pub fn ja3s(&self) -> [u8; 16] {
        let mut text = Hashed(Md5::new());
        let _ = write!(text, "{},{},", self.legacy_version, self.cipher);
        text.dashed(extensions(self.extensions).map(|(number, _)| number));
        text.0.finalize().into()
    }
}

/// The ClientHello of a DTLS datagram (RFC 6347), if it begins with a whole one.
pub fn dtls_client_hello(datagram: &[u8]) -> Option<ClientHello<'_>> {
    let mut b = Bytes(datagram);
    let (kind, version) = (b.u8()?, b.u16()?);
    // Epoch and sequence number.
    b.take(8)?;
    let mut record = Bytes(b.block16()?);
    let (message, len) = (record.u8()?, record.u24()?);
    // Its number, and which part of it this is.
    record.u16()?;
    let (from, part) = (record.u24()?, record.u24()?);
    if kind != 22 || version >> 8 != 0xfe || message != message::CLIENT_HELLO {
        return None;
    }
    (from == 0 && part == len).then(|| ClientHello::parse_dtls(record.take(len)?)).flatten()
}

/// The certificates of a Certificate message before TLS 1.3, the server's own first; DER.
pub fn certificates(body: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut b = Bytes(body);
    let len = b.u24().unwrap_or(0);
    let mut list = Bytes(b.take(len.min(b.len())).unwrap_or_default());
    std::iter::from_fn(move || {
        let len = list.u24()?;
        list.take(len)
    })
}

/// A JA4 fingerprint: 36 characters.
pub type Ja4 = ArrayString<40>;

/// A version by the name that people use.
pub fn version_name(version: u16) -> &'static str {
    match version {
        0x0002 => "SSLv2",
        0x0300 => "SSLv3",
        0x0301 => "TLS 1.0",
        0x0302 => "TLS 1.1",
        0x0303 => "TLS 1.2",
        // Drafts of TLS 1.3 and their greasing relatives.
        0x0304 | 0x7f00..=0x7fff | 0xfb00..=0xfbff => "TLS 1.3",
        0xfeff => "DTLS 1.0",
        0xfefd => "DTLS 1.2",
        0xfefc => "DTLS 1.3",
        _ => "unknown",
    }
}

fn version_letters(version: u16) -> &'static str {
    match version {
        0x0304 => "13",
        0x0303 => "12",
        0x0302 => "11",
        0x0301 => "10",
        0x0300 => "s3",
        0x0002 => "s2",
        0xfeff => "d1",
        0xfefd => "d2",
        0xfefc => "d3",
        _ => "00",
    }
}

/// First and last character of the first protocol, or of its hex digits if they are no letters.
fn alpn_letters(alpn: Option<&[u8]>) -> [char; 2] {
    let (Some(&first), Some(&last)) = (alpn.and_then(<[u8]>::first), alpn.and_then(<[u8]>::last))
    else {
        return ['0', '0'];
    };
    if first.is_ascii_alphanumeric() && last.is_ascii_alphanumeric() {
        return [char::from(first), char::from(last)];
    }
    let digit = |nibble: u8| char::from_digit(u32::from(nibble), 16).unwrap_or('0');
    [digit(first >> 4), digit(last & 15)]
}

/// The values without GREASE; `None` if there are too many.
fn collect(list: impl Iterator<Item = u16>) -> Option<ArrayVec<u16, MAX_LIST>> {
    let mut out = ArrayVec::new();
    for value in list.filter(|&v| !is_grease(v)) {
        out.try_push(value).ok()?;
    }
    Some(out)
}

/// The first twelve hex digits of the SHA-256 of `list` in hex with commas, then `_` and `more` if
/// there is any.
fn short_hash(list: &[u16], more: &[u16]) -> ArrayString<12> {
    let mut out = ArrayString::new();
    if list.is_empty() && more.is_empty() {
        out.push_str("000000000000");
        return out;
    }
    let mut text = Hashed(Sha256::new());
    text.commas(list);
    if !more.is_empty() {
        text.put("_");
        text.commas(more);
    }
    for &byte in text.0.finalize().iter().take(6) {
        digits(u16::from(byte)).into_iter().skip(2).for_each(|digit| out.push(char::from(digit)));
    }
    out
}

/// A number's four hexadecimal digits. Formatting took a third of what a fingerprint costs.
fn digits(value: u16) -> [u8; 4] {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    [12, 8, 4, 0].map(|shift| DIGITS[usize::from(value >> shift & 0xf)])
}

/// Text that is hashed as it is written.
pub(super) struct Hashed<D>(pub(super) D);

impl<D: Digest> std::fmt::Write for Hashed<D> {
    fn write_str(&mut self, text: &str) -> std::fmt::Result {
        self.0.update(text);
        Ok(())
    }
}

impl<D: Digest> Hashed<D> {
    fn put(&mut self, text: &str) {
        self.0.update(text);
    }

    /// Decimal numbers with dashes, GREASE left out.
    fn dashed(&mut self, list: impl Iterator<Item = u16>) {
        for (n, value) in list.filter(|&v| !is_grease(v)).enumerate() {
            let (mut text, mut rest, mut len) = ([b'-'; 6], value, 0);
            for digit in text.iter_mut().rev() {
                *digit = b'0' + (rest % 10) as u8;
                (rest, len) = (rest / 10, len + 1);
                if rest == 0 {
                    break;
                }
            }
            let from = text.len() - len - usize::from(n != 0);
            self.0.update(text.get(from..).unwrap_or_default());
        }
    }

    fn commas(&mut self, list: &[u16]) {
        for (n, value) in list.iter().enumerate() {
            let [a, b, c, d] = digits(*value);
            let text = [b',', a, b, c, d];
            self.0.update(text.get(usize::from(n == 0)..).unwrap_or_default());
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    fn block16(content: &[u8]) -> Vec<u8> {
        [&(content.len() as u16).to_be_bytes()[..], content].concat()
    }

    fn numbers(list: &[u16]) -> Vec<u8> {
        list.iter().flat_map(|n| n.to_be_bytes()).collect()
    }

    /// The body of a ClientHello.
    pub(in crate::inspect) fn hello(
        version: u16,
        ciphers: &[u16],
        extensions: &[(u16, Vec<u8>)],
    ) -> Vec<u8> {
        let mut body = version.to_be_bytes().to_vec();
        body.extend([7; 32]);
        body.push(0);
        body.extend(block16(&numbers(ciphers)));
        body.extend([1, 0]);
        let list: Vec<u8> = extensions
            .iter()
            .flat_map(|(n, content)| [n.to_be_bytes().to_vec(), block16(content)].concat())
            .collect();
        body.extend(block16(&list));
        body
    }

    pub(in crate::inspect) fn name_extension(name: &str) -> (u16, Vec<u8>) {
        let entry = [&[0][..], &block16(name.as_bytes())].concat();
        (0, block16(&entry))
    }

    pub(in crate::inspect) fn as_message(kind: u8, body: &[u8]) -> Vec<u8> {
        [&[kind], &(body.len() as u32).to_be_bytes()[1..], body].concat()
    }

    pub(in crate::inspect) fn as_records(kind: u8, bytes: &[u8], size: usize) -> Vec<u8> {
        bytes.chunks(size).flat_map(|c| [&[kind, 3, 1][..], &block16(c)].concat()).collect()
    }

    /// The hello of the JA4 specification's example (technical_details/JA4.md).
    fn of_the_specification() -> Vec<u8> {
        let ciphers = [
            0x1a1a, 0x1301, 0x1302, 0x1303, 0xc02b, 0xc02f, 0xc02c, 0xc030, 0xcca9, 0xcca8, 0xc013,
            0xc014, 0x009c, 0x009d, 0x002f, 0x0035,
        ];
        let algorithms = [0x0403, 0x0804, 0x0401, 0x0503, 0x0805, 0x0501, 0x0806, 0x0601];
        let mut versions = vec![4];
        versions.extend(numbers(&[0x0304, 0x0303]));
        let with = |n: u16| {
            let content = match n {
                0 => name_extension("example.com").1,
                0x10 => block16(b"\x02h2\x08http/1.1"),
                0x0d => block16(&numbers(&algorithms)),
                0x2b => versions.clone(),
                _ => Vec::new(),
            };
            (n, content)
        };
        let order = [
            0x2a2a, 0x001b, 0x0000, 0x0033, 0x0010, 0x4469, 0x0017, 0x002d, 0x000d, 0x0005, 0x0023,
            0x0012, 0x002b, 0xff01, 0x000b, 0x000a, 0x0015, 0x1a1a,
        ];
        hello(0x0303, &ciphers, &order.map(with))
    }

    #[test]
    fn ja4_of_the_specification() {
        let body = of_the_specification();
        let hello = ClientHello::parse(&body).unwrap();
        assert_eq!(&hello.ja4(Transport::Tcp).unwrap()[..], "t13d1516h2_8daaf6152771_e5627efa2ab1");
        assert!(hello.ja4(Transport::Quic).unwrap().starts_with("q13d1516h2_"));
        assert_eq!(hello.server_name(), Some(&b"example.com"[..]));
        assert_eq!(hello.alpns().collect::<Vec<_>>(), [&b"h2"[..], b"http/1.1"]);
    }

    #[test]
    fn letters_of_odd_protocols() {
        for (alpn, letters) in [
            (Some(&b"h2"[..]), "h2"),
            (Some(b"\xab\xcd"), "ad"),
            (Some(b" a"), "21"),
            (Some(b"x"), "xx"),
            (Some(b""), "00"),
            (None, "00"),
        ] {
            assert_eq!(alpn_letters(alpn).iter().collect::<String>(), letters);
        }
    }

    #[test]
    fn a_hello_without_extensions_or_algorithms() {
        let mut body = vec![3, 1];
        body.extend([7; 32]);
        body.extend([0, 0, 2, 0, 0x2f, 1, 0]);
        let hello = ClientHello::parse(&body).unwrap();
        assert_eq!(&hello.ja4(Transport::Tcp).unwrap()[..], {
            let hash = short_hash(&[0x002f], &[]);
            format!("t10i010000_{hash}_000000000000")
        });
        // MD5 of "769,47,,,".
        let md5: [u8; 16] = Md5::digest("769,47,,,").into();
        assert_eq!(hello.ja3(), md5);
    }

    #[test]
    fn a_hello_over_records_of_any_size() {
        let body = of_the_specification();
        let whole = as_message(message::CLIENT_HELLO, &body);
        for size in [1, 2, 5, 100, 1000] {
            let stream = as_records(22, &whole, size);
            let mut scratch = Vec::with_capacity(4096);
            let (bytes, reach) = handshake(&stream, &mut scratch).unwrap();
            assert_eq!(reach, Reach::Open);
            let (kind, found) = messages(bytes).next().unwrap();
            assert_eq!((kind, found), (message::CLIENT_HELLO, &body[..]));
            // Cut anywhere: no message yet, and no panic.
            for n in 0..stream.len() {
                let mut scratch = Vec::with_capacity(4096);
                if let Some((bytes, _)) = handshake(&stream[..n], &mut scratch) {
                    assert_eq!(messages(bytes).count(), 0, "{size} {n}");
                }
            }
        }
        // More than the scratch holds is cut, not grown.
        let mut scratch = Vec::with_capacity(64);
        let stream = as_records(22, &whole, 50);
        handshake(&stream, &mut scratch).unwrap();
        assert_eq!((scratch.len(), scratch.capacity()), (64, 64));
    }

    #[test]
    fn encryption_ends_a_handshake() {
        let hello = as_message(message::SERVER_HELLO, &[3; 40]);
        let mut stream = as_records(22, &hello, 1000);
        stream.extend(as_records(20, &[1], 10));
        let mut scratch = Vec::with_capacity(4096);
        let (bytes, reach) = handshake(&stream, &mut scratch).unwrap();
        assert_eq!((messages(bytes).count(), reach), (1, Reach::Ended));
    }

    #[test]
    fn truncated_hellos_and_lying_lengths_are_refused() {
        let body = of_the_specification();
        for n in 0..body.len() {
            // The end of a list of extensions is where the body ends: no shorter one is whole.
            assert!(ClientHello::parse(&body[..n]).is_none() || n == 34 + 1 + 34 + 2, "{n}");
        }
        for at in 0..body.len() {
            for value in [0, 1, 0x7f, 0xff] {
                let mut lying = body.clone();
                lying[at] = value;
                if let Some(hello) = ClientHello::parse(&lying) {
                    hello.ja3();
                    hello.ja4(Transport::Tcp);
                    hello.server_name();
                }
            }
        }
        let many: Vec<u16> = (0..300).map(|n| 0x2000 + n).collect();
        let body = hello(0x0303, &many, &[]);
        assert_eq!(ClientHello::parse(&body).unwrap().ja4(Transport::Tcp), None);
    }
}
