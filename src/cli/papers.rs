//! Completions and manual pages, made from the command lines themselves.

use std::io;
use std::path::PathBuf;

use clap::{Args, CommandFactory, ValueEnum};
use clap_complete::Shell;

use super::{Cli, Outcome, Refused};

/// A program of ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Program {
    Malakocut,
    MalakocutCli,
    Gomon,
}

impl Program {
    const ALL: [Self; 3] = [Self::Malakocut, Self::MalakocutCli, Self::Gomon];

    fn command(self) -> clap::Command {
        match self {
            Self::Malakocut => crate::config::command(),
            Self::MalakocutCli => Cli::command(),
            Self::Gomon => crate::gomon::command(),
        }
    }
}

#[derive(Debug, Args)]
pub(super) struct Completions {
    /// bash, zsh, fish, elvish or powershell
    #[arg(value_name = "SHELL")]
    shell: Shell,
    /// malakocut, malakocut-cli or gomon
    #[arg(value_name = "PROGRAM", default_value = "malakocut-cli", hide_possible_values = true)]
    program: Program,
}

impl Completions {
    pub(super) fn run(&self) -> Outcome {
        let mut command = self.program.command();
        let name = command.get_name().to_owned();
        clap_complete::generate(self.shell, &mut command, name, &mut io::stdout());
        Outcome::Done
    }
}

#[derive(Debug, Args)]
pub(super) struct Man {
    /// Directory for the pages of all three programs
    #[arg(value_name = "DIR")]
    directory: PathBuf,
}

impl Man {
    pub(super) fn run(&self) -> Result<Outcome, Refused> {
        for program in Program::ALL {
            clap_mangen::generate_to(program.command(), &self.directory)
                .map_err(|e| Refused(format!("{}: {e}", self.directory.display())))?;
        }
        Ok(Outcome::Done)
    }
}
