//! `completions` and `man`, made from the commands themselves.

use clap::{Args, CommandFactory};
use clap_complete::Shell;

use super::{Cli, Outcome, Refused, text};

#[derive(Debug, Args)]
pub(super) struct Completions {
    shell: Shell,
}

impl Completions {
    pub(super) fn run(&self) -> Result<Outcome, Refused> {
        let mut out = Vec::new();
        clap_complete::generate(self.shell, &mut Cli::command(), "malakocut-cli", &mut out);
        text::print(&String::from_utf8_lossy(&out))?;
        Ok(Outcome::Done)
    }
}

/// One page: the program, then each command.
pub(super) fn page() -> Result<Outcome, Refused> {
    let mut command = Cli::command();
    command.build();
    let mut out = Vec::new();
    clap_mangen::Man::new(command.clone()).render(&mut out).map_err(Refused::because)?;
    each(&command, &mut out).map_err(Refused::because)?;
    text::print(&String::from_utf8_lossy(&out))?;
    Ok(Outcome::Done)
}

/// Appends the commands below this one.
fn each(command: &clap::Command, out: &mut Vec<u8>) -> std::io::Result<()> {
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
