//! What was read, as the fields of a note.

use super::{dhcp, dns, http, neighbour, ssh, tls};
use crate::event::{App, FieldWriter, Tag};

/// Bytes of a text that are kept; of a target, which is often longer, more.
const TEXT: usize = 512;
const URI: usize = 2048;
/// A certificate that is larger is left out.
const CERTIFICATE: usize = 8192;

pub(super) fn app(app: App, w: &mut FieldWriter<'_>) {
    w.put(Tag::App, &[&[app as u8]]);
}

pub(super) fn dns(app: App, m: &dns::Message<'_>, w: &mut FieldWriter<'_>) {
    self::app(app, w);
    w.put(Tag::DnsId, &[&m.id.to_be_bytes()]);
    w.put(Tag::DnsFlags, &[&m.flags.to_be_bytes()]);
    let netbios = |name: &dns::Name| match app {
        App::Nbns => dns::netbios_name(name).unwrap_or(*name),
        _ => *name,
    };
    for q in m.questions() {
        w.put(Tag::Query, &[&q.kind.to_be_bytes(), netbios(&q.name).as_bytes()]);
    }
    for r in m.records() {
        let owner = netbios(&r.owner);
        let owner_len = (owner.len() as u16).to_be_bytes();
        let (kind, ttl) = (r.kind.to_be_bytes(), r.ttl.to_be_bytes());
        if let Some(text) = r.text() {
            let head: [&[u8]; 5] = [&[r.section as u8], &kind, &ttl, &owner_len, owner.as_bytes()];
            let [section, kind, ttl, len, owner] = head;
            w.put(Tag::Answer, &[section, kind, ttl, len, owner, text.as_bytes()]);
        }
        for address in r.addresses() {
            w.put(Tag::Address, &[&ttl, &owner_len, owner.as_bytes(), address]);
        }
    }
}

/// A ClientHello over any transport.
pub(super) fn client_hello(
    hello: &tls::ClientHello<'_>,
    transport: tls::Transport,
    w: &mut FieldWriter<'_>,
) {
    app(
        match transport {
            tls::Transport::Tcp => App::Tls,
            tls::Transport::Quic => App::Quic,
            tls::Transport::Dtls => App::Dtls,
        },
        w,
    );
    w.put(Tag::TlsVersion, &[&hello.highest_version().to_be_bytes()]);
    w.some(Tag::Sni, hello.server_name(), TEXT);
    hello.alpns().take(16).for_each(|alpn| w.text(Tag::Alpn, alpn, 64));
    w.put(Tag::Ja3, &[&hello.ja3()]);
    if let Some(ja4) = hello.ja4(transport) {
        w.put(Tag::Ja4, &[ja4.as_bytes()]);
    }
}

pub(super) fn server_hello(hello: &tls::ServerHello<'_>, w: &mut FieldWriter<'_>) {
    app(App::Tls, w);
    w.put(Tag::TlsVersion, &[&hello.version().to_be_bytes()]);
    w.some(Tag::Alpn, hello.alpn(), 64);
    w.put(Tag::Ja3, &[&hello.ja3s()]);
}

pub(super) fn certificate(certificate: Option<&[u8]>, w: &mut FieldWriter<'_>) {
    w.some(Tag::Certificate, certificate.filter(|c| c.len() <= CERTIFICATE), CERTIFICATE);
}

pub(super) fn request(r: &http::Request<'_>, w: &mut FieldWriter<'_>) {
    app(App::Http, w);
    w.text(Tag::Method, r.method.as_bytes(), 32);
    w.text(Tag::Uri, r.uri.as_bytes(), URI);
    w.put(Tag::HttpVersion, &[&[r.version]]);
    w.some(Tag::Host, r.host, TEXT);
    w.some(Tag::UserAgent, r.user_agent, TEXT);
    w.some(Tag::Referer, r.referer, URI);
}

pub(super) fn response(r: &http::Response<'_>, w: &mut FieldWriter<'_>) {
    app(App::Http, w);
    w.put(Tag::Status, &[&r.status.to_be_bytes()]);
    w.put(Tag::HttpVersion, &[&[r.version]]);
    w.some(Tag::ContentType, r.content_type, TEXT);
    if let Some(length) = r.length {
        w.put(Tag::Length, &[&length.to_be_bytes()]);
    }
    w.some(Tag::Location, r.location, URI);
}

pub(super) fn ssh(said: &ssh::Opening<'_>, w: &mut FieldWriter<'_>) {
    app(App::Ssh, w);
    w.some(Tag::Banner, said.banner, 255);
    if let Some(hassh) = said.hassh {
        w.put(Tag::Hassh, &[&hassh]);
    }
}

pub(super) fn dhcp(m: &dhcp::Message<'_>, w: &mut FieldWriter<'_>) {
    app(App::Dhcp, w);
    // Which way it went says the operation, 1 for a client's.
    w.put(Tag::Operation, &[&u16::from(if m.request { 1u8 } else { 2 }).to_be_bytes()]);
    w.put(Tag::DhcpType, &[&[m.kind]]);
    w.put(Tag::DhcpId, &[&m.id.to_be_bytes()]);
    w.put(Tag::Mac, &[&m.mac]);
    for (tag, ip) in [
        (Tag::ClientIp, m.client),
        (Tag::AssignedIp, m.assigned),
        (Tag::NextServerIp, m.next_server),
        (Tag::RelayIp, m.relay),
        (Tag::RequestedIp, m.requested.unwrap_or_default()),
    ] {
        if ip != [0; 4] {
            w.put(tag, &[&ip]);
        }
    }
    if let Some(lease) = m.lease_s {
        w.put(Tag::Lease, &[&lease.to_be_bytes()]);
    }
    w.some(Tag::Hostname, m.hostname, 255);
    w.some(Tag::VendorClass, m.vendor_class, 255);
    w.some(Tag::ClientId, m.client_id, 255);
}

pub(super) fn arp(arp: &neighbour::Arp, w: &mut FieldWriter<'_>) {
    w.put(Tag::Operation, &[&arp.operation.to_be_bytes()]);
    w.put(Tag::Mac, &[&arp.src_mac]);
    w.put(Tag::Ip, &[&arp.src_ip]);
    w.put(Tag::TargetMac, &[&arp.dst_mac]);
    w.put(Tag::TargetIp, &[&arp.dst_ip]);
}
