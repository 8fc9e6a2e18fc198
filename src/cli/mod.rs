//! malakocut-cli: asks the journal and looks after it.
//!
//! Works on the files alone, so with or without a running sensor. Exit status: 0 done; 1 something
//! is missing from the answer, damaged, or could not be repaired, as said on standard error; 2 bad
//! usage, or a directory or output that cannot be used.

mod export;
mod extract;
mod journal;
mod text;

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
    about = "Asks malakocut's journal for packets, and looks after it",
    disable_help_subcommand = true
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Take packets out of the journal as a capture file
    #[command(after_help = extract::EXAMPLES)]
    Extract(Box<extract::Extract>),
    /// Ask how the export is doing, try it, and look after dead letters
    #[command(subcommand)]
    Export(export::Export),
    /// List, check and repair the journal's files
    #[command(subcommand)]
    Journal(journal::Journal),
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
    let cli = match Cli::try_parse_from(args) {
        Ok(cli) => cli,
        // clap knows which of its messages are errors: --help and --version are not.
        Err(e) => {
            let _ = e.print();
            return ExitCode::from(e.exit_code() as u8);
        }
    };
    let done = match cli.command {
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
