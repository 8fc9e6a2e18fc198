//! The members of the lines about content.

use std::net::{IpAddr, Ipv4Addr};

use crate::event::{
    Answer, App, Http, Object, Ssh, Tag, Tls, fields, hex, mac, number, rcode_name, type_name,
};

fn text(value: &[u8]) -> String {
    String::from_utf8_lossy(value).into_owned()
}

fn find(bytes: &[u8], wanted: Tag) -> Option<&[u8]> {
    fields(bytes).find(|(tag, _)| *tag == wanted).map(|(_, value)| value)
}

pub(super) fn app(bytes: &[u8]) -> Option<&'static str> {
    find(bytes, Tag::App)?.first().and_then(|&n| App::of(n)).map(App::name)
}

/// Version 3 of the format: questions and answers in one object.
pub(super) fn dns(bytes: &[u8], o: &mut Object<'_>) {
    let flags = find(bytes, Tag::DnsFlags).map_or(0, number) as u16;
    let response = flags & 0x8000 != 0;
    o.number("version", 3);
    o.text("type", if response { "response" } else { "request" });
    o.number("id", find(bytes, Tag::DnsId).map_or(0, number));
    o.text("flags", &format!("{flags:x}"));
    for (bit, name) in [
        (0x8000, "qr"),
        (0x0400, "aa"),
        (0x0200, "tc"),
        (0x0100, "rd"),
        (0x0080, "ra"),
        (0x0040, "z"),
    ] {
        if flags & bit != 0 {
            o.flag(name, true);
        }
    }
    o.number("opcode", flags >> 11 & 15);
    if response {
        o.text("rcode", &rcode_name((flags & 15) as u8));
    }
    let queries = fields(bytes).filter(|(tag, _)| *tag == Tag::Query);
    o.objects("queries", queries, |o, (_, value)| {
        let (kind, name) = value.split_at_checked(2).unwrap_or((value, &[]));
        o.text("rrname", &text(name));
        o.text("rrtype", &type_name(number(kind) as u16));
    });
    for (section, name) in [(0, "answers"), (1, "authorities"), (2, "additionals")] {
        let all = fields(bytes).filter(|(tag, _)| *tag == Tag::Answer);
        let answers = all.filter_map(|(_, value)| Answer::read(value));
        o.objects(name, answers.filter(|a| a.section == section), |o, a| {
            o.text("rrname", &text(a.owner));
            o.text("rrtype", &type_name(a.kind));
            o.number("ttl", a.ttl);
            o.text("rdata", &text(a.text));
        });
    }
}

pub(super) fn dhcp(bytes: &[u8], o: &mut Object<'_>) {
    let ip = |tag| Some(Ipv4Addr::from(<[u8; 4]>::try_from(find(bytes, tag)?).ok()?).to_string());
    let request = find(bytes, Tag::Operation).map_or(1, number) == 1;
    o.text("type", if request { "request" } else { "reply" });
    o.number("id", find(bytes, Tag::DhcpId).map_or(0, number));
    if let Some(mac_bytes) = find(bytes, Tag::Mac).and_then(|m| m.try_into().ok()) {
        o.text("client_mac", &mac(mac_bytes));
    }
    let kind = find(bytes, Tag::DhcpType).map_or(0, number);
    o.some("dhcp_type", dhcp_type(kind as u8));
    o.some("client_ip", ip(Tag::ClientIp).as_deref());
    o.some("assigned_ip", ip(Tag::AssignedIp).as_deref());
    o.some("requested_ip", ip(Tag::RequestedIp).as_deref());
    o.some("next_server_ip", ip(Tag::NextServerIp).as_deref());
    o.some("relay_ip", ip(Tag::RelayIp).as_deref());
    if let Some(lease) = find(bytes, Tag::Lease) {
        o.number("lease_time", number(lease));
    }
    o.some("hostname", find(bytes, Tag::Hostname).map(text).as_deref());
    o.some("vendor_class_identifier", find(bytes, Tag::VendorClass).map(text).as_deref());
}

/// The name of a DHCP message type (RFC 2132, section 9.6).
fn dhcp_type(kind: u8) -> Option<&'static str> {
    let names = ["discover", "offer", "request", "decline", "ack", "nak", "release", "inform"];
    names.get(usize::from(kind).checked_sub(1)?).copied()
}

pub(super) fn arp(bytes: &[u8], o: &mut Object<'_>) {
    let mac_of = |tag| find(bytes, tag).and_then(|m| m.try_into().ok()).map(mac);
    let ip_of = |tag| {
        let bytes: [u8; 4] = find(bytes, tag)?.try_into().ok()?;
        Some(IpAddr::from(bytes).to_string())
    };
    o.text("hw_type", "ethernet");
    o.text("proto_type", "ipv4");
    let operation = find(bytes, Tag::Operation).map_or(0, number);
    let name = match operation {
        1 => Some("request"),
        2 => Some("reply"),
        3 => Some("request_reverse"),
        4 => Some("reply_reverse"),
        8 => Some("inarp_request"),
        9 => Some("inarp_reply"),
        _ => None,
    };
    o.text("opcode", name.map_or_else(|| operation.to_string(), str::to_owned).as_str());
    o.some("src_mac", mac_of(Tag::Mac).as_deref());
    o.some("src_ip", ip_of(Tag::Ip).as_deref());
    o.some("dest_mac", mac_of(Tag::TargetMac).as_deref());
    o.some("dest_ip", ip_of(Tag::TargetIp).as_deref());
}

pub(super) fn anomaly(bytes: &[u8], o: &mut Object<'_>) {
    match app(bytes) {
        Some(app) => {
            o.text("app_proto", app);
            o.text("type", "applayer");
            o.text("layer", "proto_parser");
        }
        None => o.text("type", "decode"),
    }
    o.some("event", find(bytes, Tag::What).map(text).as_deref());
}

/// Names and fingerprints of a hello.
pub(super) fn fingerprints(tls: &Tls, o: &mut Object<'_>) {
    o.some("sni", tls.sni.as_deref());
    if let Some(ja3) = tls.ja3 {
        o.object("ja3", |o| o.text("hash", &hex(ja3)));
    }
    if let Some(ja3s) = tls.ja3s {
        o.object("ja3s", |o| o.text("hash", &hex(ja3s)));
    }
    o.some("ja4", tls.ja4.as_deref());
}

pub(super) fn tls(tls: &Tls, o: &mut Object<'_>) {
    fingerprints(tls, o);
    o.some("version", tls.version);
    o.texts("client_alpns", &tls.alpns);
    o.texts("server_alpns", &tls.alpn);
    let Some(certificate) = &tls.certificate else { return };
    o.text("subject", &certificate.subject);
    o.text("issuerdn", &certificate.issuer);
    o.text("serial", &certificate.serial);
    o.text("fingerprint", &certificate.fingerprint);
    o.some("notbefore", date(certificate.not_before).as_deref());
    o.some("notafter", date(certificate.not_after).as_deref());
    o.texts("subjectaltname", &certificate.names);
}

/// As in `2025-01-01T00:00:00`; the schema knows the years 1000 to 2999.
fn date(seconds: i64) -> Option<String> {
    let time = jiff::Timestamp::from_second(seconds).ok()?;
    let text = time.strftime("%Y-%m-%dT%H:%M:%S").to_string();
    (text.len() == 19 && text.starts_with(['1', '2'])).then_some(text)
}

pub(super) fn ssh(ssh: &Ssh, o: &mut Object<'_>) {
    for (side, name) in [(0, "client"), (1, "server")] {
        let (banner, hassh) = (&ssh.banners[side], ssh.hassh[side]);
        if banner.is_none() && hassh.is_none() {
            continue;
        }
        o.object(name, |o| {
            let rest = banner.as_deref().and_then(|b| b.strip_prefix("SSH-"));
            if let Some((version, software)) = rest.and_then(|r| r.split_once('-')) {
                o.text("proto_version", version);
                o.text("software_version", software.split(' ').next().unwrap_or(software));
            }
            if let Some(hassh) = hassh {
                o.object("hassh", |o| o.text("hash", &hex(hassh)));
            }
        });
    }
}

pub(super) fn http(http: &Http, o: &mut Object<'_>) {
    let host = http.host.as_deref();
    o.some("hostname", host.map(without_port));
    if let Some(port) = host.and_then(port_of) {
        o.number("http_port", port);
    }
    o.some("url", http.uri.as_deref());
    o.some("http_user_agent", http.user_agent.as_deref());
    o.some("http_content_type", http.content_type.as_deref());
    o.some("http_refer", http.referer.as_deref());
    o.some("http_method", http.method.as_deref());
    o.text("protocol", &format!("HTTP/1.{}", http.minor_version));
    if let Some(status) = http.status {
        o.number("status", status);
    }
    o.some("redirect", http.location.as_deref());
    if let Some(length) = http.length {
        o.number("length", length);
    }
}

/// The port behind a host's name.
fn port_of(host: &str) -> Option<u16> {
    let (name, port) = host.rsplit_once(':')?;
    (!name.contains(':') || name.ends_with(']')).then(|| port.parse().ok()).flatten()
}

fn without_port(host: &str) -> &str {
    match port_of(host) {
        Some(_) => host.rsplit_once(':').map_or(host, |(name, _)| name),
        None => host,
    }
}
