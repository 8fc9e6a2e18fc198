//! The malakocut binary: read the configuration, run the sensor, report how it went.
//!
//! Exit status: 0 done; 1 something was damaged on the way, as said on standard error; 2 bad usage,
//! or an input or device that cannot be used.

#![forbid(unsafe_code)]

use std::fs::OpenOptions;
use std::process::ExitCode;

use malakocut::config::{Config, ConfigError};
use malakocut::sensor::{self, Outcome};
use tracing_subscriber::prelude::*;
use tracing_subscriber::{EnvFilter, fmt};

fn main() -> ExitCode {
    let config = match Config::from_process() {
        Ok(config) => config,
        // clap knows which of its messages are errors: --help and --version are not.
        Err(ConfigError::Usage(e)) => {
            let _ = e.print();
            return ExitCode::from(e.exit_code() as u8);
        }
        Err(e) => return refuse(&e),
    };
    if let Err(e) = start_log(config.debug) {
        return refuse(&format!("malakocut_debug.log: {e}"));
    }
    match sensor::run(&config) {
        Ok(Outcome::Complete) => ExitCode::SUCCESS,
        Ok(Outcome::Damaged) => ExitCode::from(1),
        Err(e) => refuse(&e),
    }
}

/// The web server says how many threads it starts, and who left in the middle of an answer.
const ORDINARY: &str = "info,actix_server=warn,actix_http=off";

fn refuse(why: &dyn std::fmt::Display) -> ExitCode {
    eprintln!("malakocut: {why}");
    ExitCode::from(2)
}

/// Log lines go to standard error, by MALAKOCUT_LOG or from `info` up; with `--debug`, everything
/// goes to a file too.
fn start_log(debug: bool) -> std::io::Result<()> {
    let filter =
        EnvFilter::try_from_env("MALAKOCUT_LOG").unwrap_or_else(|_| EnvFilter::new(ORDINARY));
    let ansi = std::io::IsTerminal::is_terminal(&std::io::stderr());
    let stderr = fmt::layer().with_writer(std::io::stderr).with_ansi(ansi).with_target(false);
    let file = if debug {
        let file = OpenOptions::new().create(true).append(true).open("malakocut_debug.log")?;
        Some(fmt::layer().with_writer(file).with_ansi(false).with_filter(EnvFilter::new("debug")))
    } else {
        None
    };
    tracing_subscriber::registry().with(stderr.with_filter(filter)).with(file).init();
    Ok(())
}
