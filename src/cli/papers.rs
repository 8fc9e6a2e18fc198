//! Completions and manual pages, made from the command lines themselves.

use std::io;
use std::path::PathBuf;

use clap::{Args, CommandFactory, ValueEnum};
use clap_complete::Shell;

use super::{Cli, Outcome, Refused, text};

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
    directory: Option<PathBuf>,
}

impl Man {
    pub(super) fn run(&self) -> Result<Outcome, Refused> {
        let Some(directory) = &self.directory else { return page() };
        for program in Program::ALL {
            clap_mangen::generate_to(program.command(), directory)
                .map_err(|e| Refused(format!("{}: {e}", directory.display())))?;
        }
        Ok(Outcome::Done)
    }
}

/// One page: the program, then each command.
fn page() -> Result<Outcome, Refused> {
    let mut command = Cli::command();
    command.build();
    let mut out = Vec::new();
    clap_mangen::Man::new(command.clone()).render(&mut out).map_err(Refused::because)?;
    each(&command, &mut out).map_err(Refused::because)?;
    text::print(&String::from_utf8_lossy(&out))?;
    Ok(Outcome::Done)
}

/// Appends the commands below this one.
fn each(command: &clap::Command, out: &mut Vec<u8>) -> io::Result<()> {
    for sub in command.get_subcommands().filter(|s| !s.is_hide_set()) {
        let name = sub.get_bin_name().unwrap_or_else(|| sub.get_name()).to_uppercase();
        out.extend_from_slice(format!(".SH \"{name}\"\n").as_bytes());
        let man = clap_mangen::Man::new(sub.clone());
        let mut part = Vec::new();
        man.render_synopsis_section(&mut part)?;
        man.render_description_section(&mut part)?;
        if sub.get_arguments().next().is_some() {
            man.render_options_section(&mut part)?;
        }
        // Headings of the page become headings of this part.
        let part = String::from_utf8_lossy(&part).replace("\n.SH ", "\n.SS ");
        out.extend_from_slice(part.trim_start_matches(".SH SYNOPSIS\n").as_bytes());
        each(sub, out)?;
    }
    Ok(())
}
