//! malakocut: a network detection and response sensor for a mirror port, on DPDK.
//!
//! The modules follow the packet: `capture` takes it in, `packet` reads it, `flow` accounts for it,
//! `event` says what a flow was, `journal` keeps the bytes, `spool` keeps events until they are delivered, `export` hands them on, `worker`
//! is the loop that ties them together, `sensor` starts and stops it all. Imports run one way, from
//! the last to the first.

#![forbid(unsafe_code)]

pub mod capture;
pub mod config;
pub mod event;
pub mod export;
pub mod flow;
pub mod journal;
pub mod packet;
pub mod sensor;
pub mod spool;
pub mod status;
pub mod worker;
