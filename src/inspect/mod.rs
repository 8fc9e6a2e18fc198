//! What the flows are about.
mod bytes;
pub mod dhcp;
pub mod dns;
pub mod http;
pub mod neighbour;
pub mod quic;
pub mod sniff;
pub mod ssh;
pub mod tls;
