//! malakocut: a network detection and response sensor for a mirror port, on DPDK.
//!
//! The modules follow the packet: `capture` takes it in, `packet` reads it, `flow` accounts for it,
//! `event` says what a flow was, `shunt` knows what is left out by its name, `inspect` says what a flow
//! was about, `journal` keeps the bytes, `spool` keeps events until they are delivered, `eve` writes
//! Suricata's lines, `export` hands the events on, `worker` is the loop that ties them together,
//! `sensor` starts and stops it all. Imports run one way, from the last to the first. `control` is what
//! is known of the running sensor, `api` its servers, `doctor` what is wrong with its set-up, `nic` its
//! cards, `secret` where tokens and passwords come from. `filter` is pcap-filter's language, `detect`
//! judges what hosts do
//! in windows of time, `cli` is malakocut-cli; `gomon` is a program of its own, which takes
//! interfaces over as the sensor does.

#![forbid(unsafe_code)]

pub mod api;
pub mod capture;
pub mod cli;
pub mod config;
pub mod control;
pub mod detect;
pub mod doctor;
pub mod eve;
pub mod event;
pub mod export;
pub mod filter;
pub mod flow;
pub mod gomon;
pub mod inspect;
pub mod journal;
pub mod log;
pub mod nic;
pub mod packet;
pub mod secret;
pub mod sensor;
pub mod shunt;
pub mod spool;
pub mod status;
pub mod worker;

/// The package's version, and of a release build the commit.
pub const VERSION: &str = env!("MALAKOCUT_VERSION");
