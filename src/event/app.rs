//! Application protocols by name.

macro_rules! apps {
    ($($variant:ident, $name:literal;)*) => {
        /// An application protocol.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr(u8)]
        pub enum App { $($variant),* }

        impl App {
            const ALL: &[Self] = &[$(Self::$variant),*];

            /// Its name, as events carry it.
            pub fn name(self) -> &'static str {
                match self { $(Self::$variant => $name),* }
            }

            /// By its number, as it travels between threads.
            pub fn of(number: u8) -> Option<Self> {
                Self::ALL.get(usize::from(number)).copied()
            }
        }
    };
}

apps! {
    Dns, "dns"; Mdns, "mdns"; Llmnr, "llmnr"; Nbns, "nbns"; Tls, "tls"; Dtls, "dtls"; Quic, "quic";
    Http, "http"; Http2, "http2"; Ssh, "ssh"; Dhcp, "dhcp"; Dhcpv6, "dhcpv6"; Ntp, "ntp";
    Snmp, "snmp"; Ssdp, "ssdp"; Stun, "stun"; Wireguard, "wireguard"; Sip, "sip"; Smtp, "smtp";
    Ftp, "ftp"; Pop3, "pop3"; Imap, "imap"; Smb, "smb"; Rdp, "rdp"; Vnc, "rfb"; Rtsp, "rtsp";
    Mqtt, "mqtt"; BitTorrent, "bittorrent"; Telnet, "telnet"; Irc, "irc"; Xmpp, "xmpp";
    Mysql, "mysql"; Postgres, "pgsql"; Redis, "redis"; Ldap, "ldap"; Kerberos, "krb5";
    Radius, "radius"; Syslog, "syslog"; Tftp, "tftp"; Ike, "ike"; Netbios, "netbios";
    Printer, "ipp"; Rpc, "rpc"; Nfs, "nfs"; OpenVpn, "openvpn"; Coap, "coap";
}

impl App {
    /// By a responder's port, for a flow whose content said nothing.
    pub fn by_port(udp: bool, port: u16) -> Option<Self> {
        Some(match (udp, port) {
            (_, 53) => Self::Dns,
            (false, 21) => Self::Ftp,
            (false, 22) => Self::Ssh,
            (false, 23) => Self::Telnet,
            (false, 25 | 465 | 587) => Self::Smtp,
            (false, 80 | 8080) => Self::Http,
            (false, 110) => Self::Pop3,
            (false, 143) => Self::Imap,
            (false, 443 | 853 | 993 | 995 | 8443 | 8883) => Self::Tls,
            (true, 443) => Self::Quic,
            (true, 67 | 68) => Self::Dhcp,
            (true, 69) => Self::Tftp,
            (_, 88) => Self::Kerberos,
            (_, 111) => Self::Rpc,
            (true, 123) => Self::Ntp,
            (true, 137) => Self::Nbns,
            (true, 138) | (false, 139) => Self::Netbios,
            (true, 161 | 162) => Self::Snmp,
            (false, 389 | 636) => Self::Ldap,
            (false, 445) => Self::Smb,
            (true, 500 | 4500) => Self::Ike,
            (true, 514) => Self::Syslog,
            (false, 554) => Self::Rtsp,
            (true, 546 | 547) => Self::Dhcpv6,
            (false, 631) => Self::Printer,
            (true, 1194) => Self::OpenVpn,
            (false, 1883) => Self::Mqtt,
            (true, 1812 | 1813) => Self::Radius,
            (true, 1900) => Self::Ssdp,
            (_, 2049) => Self::Nfs,
            (false, 3306) => Self::Mysql,
            (_, 3389) => Self::Rdp,
            (true, 3478) => Self::Stun,
            (_, 5060) => Self::Sip,
            (false, 5222 | 5269) => Self::Xmpp,
            (true, 5353) => Self::Mdns,
            (true, 5355) => Self::Llmnr,
            (false, 5432) => Self::Postgres,
            (true, 5683) => Self::Coap,
            (false, 5900) => Self::Vnc,
            (false, 6379) => Self::Redis,
            (false, 6667) => Self::Irc,
            (true, 51820) => Self::Wireguard,
            _ => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_ports() {
        assert_eq!(App::of(App::Coap as u8), Some(App::Coap));
        assert_eq!(App::of(255), None);
        assert_eq!(
            (App::by_port(true, 443), App::by_port(false, 443)),
            (Some(App::Quic), Some(App::Tls))
        );
        assert_eq!(App::by_port(false, 9), None);
    }
}
