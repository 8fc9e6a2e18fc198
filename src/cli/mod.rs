//! malakocut-cli: asks the running sensor over its control socket, asks the journal and looks after it.
//!
//! What concerns the journal works on the files alone, with or without a running sensor. Exit status:
//! 0 done; 1 something is wrong, missing from the answer, damaged, or could not be repaired, as said;
//! 2 bad usage, no running sensor, or a directory or output that cannot be used.

mod alerts;
mod client;
mod export;
mod extract;
mod flows;
mod journal;
mod manual;
mod names;
mod reload;
mod status;
mod text;
mod top;

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

use crate::config::{self, Layer};

/// A command that came to nothing; exit status 2.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Refused(String);

impl Refused {
    fn because(why: impl std::fmt::Display) -> Self {
        Self(why.to_string())
    }
}

/// How a command ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    Done,
    /// Something is missing or damaged; it was said.
    Incomplete,
}

#[derive(Debug, Parser)]
#[command(
    name = "malakocut-cli",
    version,
    about = "Shows what malakocut sees, asks its journal for packets, and looks after it",
    after_help = "Exit status: 0 done; 1 something is wrong or missing, as said; 2 bad usage, or no \
                  running sensor. NO_COLOR=1 turns colours off.",
    disable_help_subcommand = true
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
    #[command(flatten)]
    show: Show,
}

/// How things are shown; as the Go program had it, before or after the command.
#[derive(Clone, Copy, Debug, Args)]
struct Show {
    /// Names for addresses, by what the sensor saw in DNS and by asking the system's resolver
    #[arg(long, global = true)]
    resolve: bool,
    /// Numbers with units: 12.3k instead of 12345
    #[arg(long, global = true)]
    pretty: bool,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Show how the sensor is doing
    #[command(after_help = status::AFTER)]
    Status(status::Status),
    /// Show the live flows and what goes through them, as it changes
    #[command(after_help = top::AFTER)]
    Top(top::Top),
    /// List live flows: as a table, JSON lines or CSV
    #[command(after_help = flows::EXAMPLES)]
    Flows(flows::Flows),
    /// List the latest alerts
    Alerts(alerts::Alerts),
    /// Have the sensor read its lists, filters and log level anew
    Reload(reload::Reload),
    /// Take packets out of the journal as a capture file
    #[command(after_help = extract::EXAMPLES)]
    Extract(Box<extract::Extract>),
    /// Ask how the export is doing, try it, and look after dead letters
    #[command(subcommand)]
    Export(export::Export),
    /// List, check and repair the journal's files
    #[command(subcommand)]
    Journal(journal::Journal),
    /// Write the completions of a shell to standard output
    Completions(manual::Completions),
    /// Write the manual page to standard output
    Man,
}

/// Where the journal is.
#[derive(Debug, Args)]
struct Place {
    /// The sensor's data directory; the journal is its folder pcap/ [default: the configuration
    /// file's, or /var/lib/malakocut]
    #[arg(long, value_name = "DIR", env = "MALAKOCUT_DATA_DIR")]
    data_dir: Option<PathBuf>,
    /// Configuration file
    #[arg(long, value_name = "FILE", env = "MALAKOCUT_CONFIG")]
    config: Option<PathBuf>,
}

impl Place {
    /// The spool's directory.
    fn spool(&self) -> Result<PathBuf, Refused> {
        let (journal, _) = self.find()?;
        Ok(journal.with_file_name("buffer"))
    }

    /// The journal's directory, and what the configuration file says.
    fn find(&self) -> Result<(PathBuf, Layer), Refused> {
        let file = config::file_layer(self.config.as_deref()).map_err(Refused::because)?;
        let data = self.data_dir.clone().filter(|d| !d.as_os_str().is_empty());
        let data = data.or_else(|| file.data_dir.clone());
        let data = data.unwrap_or_else(|| config::DEFAULT_DATA_DIR.into());
        Ok((data.join("pcap"), file))
    }
}

/// Runs the command of these arguments, the program's name first.
pub fn run(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let cli = match Cli::try_parse_from(original_spellings(args)) {
        Ok(cli) => cli,
        // clap knows which of its messages are errors: --help and --version are not.
        Err(e) => {
            let _ = e.print();
            return ExitCode::from(e.exit_code() as u8);
        }
    };
    let done = match cli.command {
        Command::Status(status) => status.run(cli.show),
        Command::Top(top) => top.run(cli.show),
        Command::Flows(flows) => flows.run(cli.show),
        Command::Alerts(alerts) => alerts.run(),
        Command::Reload(reload) => reload.run(),
        Command::Completions(completions) => completions.run(),
        Command::Man => manual::page(),
        Command::Extract(extract) => extract.run(),
        Command::Export(export) => export.run(),
        Command::Journal(journal) => journal.run(),
    };
    match done {
        Ok(Outcome::Done) => ExitCode::SUCCESS,
        Ok(Outcome::Incomplete) => ExitCode::from(1),
        Err(refused) => {
            eprintln!("malakocut-cli: {refused}");
            ExitCode::from(2)
        }
    }
}

/// The Go original wrote its options with one dash.
fn original_spellings(args: impl IntoIterator<Item = OsString>) -> impl Iterator<Item = OsString> {
    args.into_iter().map(|arg| match arg.to_str() {
        Some(name @ ("-resolve" | "-pretty")) => format!("-{name}").into(),
        _ => arg,
    })
}
