//! What a frame says: link layer, addresses, ports, TCP fields.
//!
//! Pure functions over bytes: no clock, no I/O, no DPDK. A header is believed only as far as the
//! bytes go; what cannot be read ends in a reason ([`Reject`]), never in a panic.

mod brief;
mod decode;
mod key;
mod link;

pub use brief::Brief;
pub use decode::{Decoded, Fragment, Frame, Reject, Tcp, Vlans, decode, steer, walk};
pub use key::{Addr, FlowKey, Tuple, icmp_counterpart};
pub use link::Link;

/// IP protocol numbers that the sensor treats in their own way.
pub mod proto {
    pub const ICMP: u8 = 1;
    pub const TCP: u8 = 6;
    pub const UDP: u8 = 17;
    pub const IPV6_FRAGMENT: u8 = 44;
    pub const ICMPV6: u8 = 58;
    pub const SCTP: u8 = 132;
}

/// TCP flag bits (RFC 9293, section 3.1).
pub mod tcp_flag {
    pub const FIN: u8 = 0x01;
    pub const SYN: u8 = 0x02;
    pub const RST: u8 = 0x04;
    pub const PSH: u8 = 0x08;
    pub const ACK: u8 = 0x10;
    pub const URG: u8 = 0x20;
    pub const ECE: u8 = 0x40;
    pub const CWR: u8 = 0x80;
}
