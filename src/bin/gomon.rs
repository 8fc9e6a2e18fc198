//! The gomon binary: watch one host in a capture file or on an interface.
//!
//! Exit status: 0 done; 1 bad usage, an input that cannot be used, or an output that could not be
//! written, as said on standard error.

#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    malakocut::gomon::main(std::env::args_os())
}
