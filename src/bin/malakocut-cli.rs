//! The malakocut-cli binary; see [`malakocut::cli`].

#![forbid(unsafe_code)]

fn main() -> std::process::ExitCode {
    malakocut::cli::run(std::env::args_os())
}
