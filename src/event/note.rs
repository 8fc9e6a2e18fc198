//! Notes: what a worker read in a flow's payload, on its way to the control thread.
//!
//! A [`Note`] is plain data; what varies in length follows it as fields, each a tag, a length of two
//! bytes and the bytes, in a buffer of bounded size. Nothing here is allocated for a note. Texts are
//! as they came from the network: whoever shows them makes them safe.

use crate::packet::{FlowKey, Vlans};

macro_rules! numbered {
    ($(#[$doc:meta])* $name:ident { $($(#[$of:meta])* $variant:ident),* $(,)? }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr(u8)]
        pub enum $name { $($(#[$of])* $variant),* }

        impl $name {
            const ALL: &[Self] = &[$(Self::$variant),*];

            fn of(number: u8) -> Option<Self> {
                Self::ALL.get(usize::from(number)).copied()
            }
        }
    };
}

/// What a note is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoteKind {
    /// The flow's protocol, of which no more is read.
    App,
    /// A message of DNS, mDNS, LLMNR or NetBIOS names.
    Dns,
    TlsClient,
    TlsServer,
    /// The end of what is in clear of a TLS server, with its certificate if that was.
    TlsEnd,
    Quic,
    HttpRequest,
    HttpResponse,
    Ssh,
    Dhcp,
    Arp,
    /// IPv6 neighbour discovery.
    Neighbour,
    /// Something that its protocol does not allow.
    Anomaly,
}

numbered! {
    /// What a field of a note is. Numbers are big-endian.
    Tag {
        /// One byte, an [`App`](super::App).
        App,
        /// Two bytes.
        DnsId,
        /// Two bytes, as on the wire.
        DnsFlags,
        /// Type, two bytes, then the name.
        Query,
        /// Section, one byte; type, two; TTL, four; length of the owner, two; owner; data as text.
        Answer,
        /// TTL, four bytes; length of the owner, two; owner; address of 4 or 16 bytes.
        Address,
        /// Two bytes.
        TlsVersion,
        Sni,
        /// Repeated, in order.
        Alpn,
        /// 16 bytes.
        Ja3,
        Ja3s,
        Ja4,
        /// DER.
        Certificate,
        QuicVersion,
        Method,
        Uri,
        Host,
        UserAgent,
        Referer,
        /// One byte: the minor version.
        HttpVersion,
        /// Two bytes.
        Status,
        ContentType,
        /// Eight bytes.
        Length,
        Location,
        Banner,
        /// 16 bytes.
        Hassh,
        /// One byte.
        DhcpType,
        /// Four bytes.
        DhcpId,
        ClientIp,
        AssignedIp,
        NextServerIp,
        RelayIp,
        RequestedIp,
        /// Four bytes, seconds.
        Lease,
        Hostname,
        VendorClass,
        ClientId,
        /// 6 bytes.
        Mac,
        /// 4 or 16 bytes.
        Ip,
        /// The target's, of ARP.
        TargetMac,
        TargetIp,
        /// Two bytes.
        Operation,
        /// The name of what is not allowed.
        What,
    }
}

/// What a worker read in one place of one flow.
#[derive(Clone, Copy, Debug)]
pub struct Note {
    pub kind: NoteKind,
    /// The flow's; 0 for what is in none (ARP).
    pub flow_id: u64,
    /// Of the packet that completed it, nanoseconds since 1970.
    pub timestamp_ns: u64,
    pub key: FlowKey,
    /// The originator is the key's `a`.
    pub orig_is_a: bool,
    /// 0 sent by the originator, 1 by the responder.
    pub side: u8,
    pub vlans: Vlans,
    /// Source and destination of the frame.
    pub macs: Option<[[u8; 6]; 2]>,
    /// Not for telemetry: of a silenced flow, or with a name that is.
    pub silenced: bool,
    /// Bytes of its fields.
    pub len: u32,
}

/// Where notes go.
pub trait NoteSink {
    /// Takes a note and its fields.
    fn push(&mut self, note: Note, fields: &[u8]);
}

/// For tests and tools: keeps them.
impl NoteSink for Vec<(Note, Vec<u8>)> {
    fn push(&mut self, note: Note, fields: &[u8]) {
        Self::push(self, (note, fields.to_vec()));
    }
}

/// Bytes of the fields of one note at most.
pub const MAX_FIELDS: usize = 16 * 1024;

/// Writes fields into a buffer, which never grows past its capacity.
#[derive(Debug)]
pub struct FieldWriter<'a>(&'a mut Vec<u8>);

impl<'a> FieldWriter<'a> {
    /// Empties the buffer.
    pub fn new(buffer: &'a mut Vec<u8>) -> Self {
        buffer.clear();
        Self(buffer)
    }

    /// Appends a field, or nothing if there is no room for all of it.
    pub fn put(&mut self, tag: Tag, parts: &[&[u8]]) {
        let len: usize = parts.iter().map(|p| p.len()).sum();
        let room = self.0.capacity() - self.0.len();
        let Ok(short) = u16::try_from(len) else { return };
        if len + 3 > room {
            return;
        }
        self.0.push(tag as u8);
        self.0.extend_from_slice(&short.to_be_bytes());
        parts.iter().for_each(|p| self.0.extend_from_slice(p));
    }

    /// Appends the first `most` bytes of a text.
    pub fn text(&mut self, tag: Tag, text: &[u8], most: usize) {
        self.put(tag, &[text.get(..most).unwrap_or(text)]);
    }

    /// Appends a text if there is one.
    pub fn some(&mut self, tag: Tag, text: Option<&[u8]>, most: usize) {
        if let Some(text) = text {
            self.text(tag, text, most);
        }
    }
}

/// The fields of a note, in order.
pub fn fields(mut bytes: &[u8]) -> impl Iterator<Item = (Tag, &[u8])> {
    std::iter::from_fn(move || {
        let (&[tag, high, low], rest) = bytes.split_first_chunk()?;
        let (value, rest) = rest.split_at_checked(usize::from(u16::from_be_bytes([high, low])))?;
        bytes = rest;
        Some((Tag::of(tag)?, value))
    })
}

/// The parts of [`Tag::Answer`].
#[derive(Clone, Copy, Debug)]
pub struct Answer<'a> {
    pub section: u8,
    pub kind: u16,
    pub ttl: u32,
    pub owner: &'a [u8],
    pub text: &'a [u8],
}

impl<'a> Answer<'a> {
    /// `None` for what is too short.
    pub fn read(value: &'a [u8]) -> Option<Self> {
        let (&[section, k0, k1, t0, t1, t2, t3, l0, l1], rest) = value.split_first_chunk()?;
        let (owner, text) = rest.split_at_checked(usize::from(u16::from_be_bytes([l0, l1])))?;
        let (kind, ttl) = (u16::from_be_bytes([k0, k1]), u32::from_be_bytes([t0, t1, t2, t3]));
        Some(Self { section, kind, ttl, owner, text })
    }
}

/// A number of up to eight bytes.
pub fn number(bytes: &[u8]) -> u64 {
    bytes.iter().take(8).fold(0, |n, &b| n << 8 | u64::from(b))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let mut buffer = Vec::with_capacity(40);
        let mut w = FieldWriter::new(&mut buffer);
        w.text(Tag::Sni, b"example.com", 7);
        w.put(Tag::Query, &[&[0, 1], b"a.b"]);
        w.some(Tag::Host, None, 9);
        w.put(Tag::Uri, &[&[b'x'; 30]]);
        w.put(Tag::What, &[b"end"]);
        assert_eq!(buffer.capacity(), 40, "it never grows");
        let all: Vec<_> = fields(&buffer).collect();
        assert_eq!(
            all,
            [(Tag::Sni, &b"example"[..]), (Tag::Query, b"\0\x01a.b"), (Tag::What, b"end")]
        );
        for n in 0..buffer.len() {
            fields(&buffer[..n]).count();
        }
    }
}
