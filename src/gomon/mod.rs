//! gomon: watches one host, live or in a capture file, and reports what it does in windows of time.
//!
//! Events go to standard output or a file, everything else to standard error. A capture file is
//! read directly; an interface by the AF_PACKET driver, as the sensor reads it. A window begins with
//! the first packet after the last one ended; it is over when a packet or, live, the clock passes
//! its end. Everything runs on one thread.
//!
//! Memory is constant: the tally keeps `--max-destinations` endpoints and as many hosts, captures
//! keep what fits into [`captures::ARENA`] bytes; what was not kept is counted and said.

mod args;
mod calibrate;
mod captures;
mod input;
mod log;
mod monitor;

use std::ffi::OsString;
use std::io::Write;
use std::process::ExitCode;

pub use args::{Options, command};
pub use monitor::Totals;

use crate::capture::OpenError;
use crate::sensor::RunError;

/// Why gomon ends without having done its work.
#[derive(Debug, thiserror::Error)]
pub enum GomonError {
    #[error("{0}")]
    Usage(String),
    #[error("input {0:?} is neither a file nor a network interface")]
    NoInput(String),
    #[error("input {0:?} is a directory; expected file or interface")]
    Directory(String),
    #[error(transparent)]
    Open(#[from] OpenError),
    #[error(transparent)]
    Interface(#[from] RunError),
    #[error("{what} {path}: {source}")]
    Output { what: &'static str, path: String, source: std::io::Error },
    #[error("signals could not be set up: {0}")]
    Signals(std::io::Error),
}

/// Runs the program with its arguments.
pub fn main(argv: impl IntoIterator<Item = OsString>) -> ExitCode {
    let options = match args::parse(argv) {
        Ok(args::Asked::Run(options)) => options,
        Ok(args::Asked::Text(text)) => {
            // Help or version into a closed pipe is nobody's trouble.
            let _ = std::io::stdout().write_all(text.as_bytes());
            return ExitCode::SUCCESS;
        }
        Err(e) => return refuse(&e),
    };
    log::start(options.log_level);
    match run(&options) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(e) => refuse(&e),
    }
}

fn refuse(e: &GomonError) -> ExitCode {
    // One line, whatever the texts inside hold.
    let text = e.to_string();
    let line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    eprintln!("Error: {line}");
    ExitCode::from(1)
}

/// Whether everything could be read and written; what could not was logged.
fn run(options: &Options) -> Result<bool, GomonError> {
    let input = input::open(&options.input)?;
    let mut monitor = monitor::Monitor::new(options)?;
    eprint!("{}", args::banner(options));
    let ended = input.run(&mut monitor)?;
    let totals = monitor.finish()?;
    for line in totals.lines(options, &ended.losses) {
        eprintln!("{line}");
    }
    Ok(!ended.damaged && totals.failed_captures == 0)
}
