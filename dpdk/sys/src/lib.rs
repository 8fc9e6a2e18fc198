//! Raw bindings to the system's DPDK 22.11.
//!
//! Generated at build time from `csrc/shim.h`, which also declares the `shim_*` functions for what
//! DPDK offers only as inlines, macros or thread-locals. Nothing here is safe to call without
//! reading DPDK's own documentation; the crate `dpdk` is the safe side.

#![allow(
    non_camel_case_types,
    non_snake_case,
    non_upper_case_globals,
    unused_qualifications,
    unreachable_pub,
    unsafe_op_in_unsafe_fn,
    clippy::all
)]

include!(concat!(env!("OUT_DIR"), "/bindings.rs"));
