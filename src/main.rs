//! The malakocut binary: read the configuration, run the sensor, report how it went.
//!
//! Exit status: 0 done; 1 something was damaged on the way, as said on standard error; 2 bad usage,
//! or an input or device that cannot be used.

#![forbid(unsafe_code)]

use std::process::ExitCode;

use malakocut::config::{Config, ConfigError};
use malakocut::log;
use malakocut::sensor::{self, Outcome};

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
    if config.check_only {
        return match sensor::check(&config) {
            Ok(()) => {
                println!("the configuration is good");
                ExitCode::SUCCESS
            }
            Err(e) => refuse(&e),
        };
    }
    if let Err(e) = log::start(&config.log, config.debug) {
        return refuse(&e);
    }
    match sensor::run(&config) {
        Ok(Outcome::Complete) => ExitCode::SUCCESS,
        Ok(Outcome::Damaged) => ExitCode::from(1),
        Err(e) => refuse(&e),
    }
}

fn refuse(why: &dyn std::fmt::Display) -> ExitCode {
    eprintln!("malakocut: {why}");
    ExitCode::from(2)
}
