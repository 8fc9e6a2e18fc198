//! `reload`: what the sensor reads anew, and what stays as it was.

use clap::Args;

use super::client::Door;
use super::{Outcome, Refused, text};
use crate::control::Reloaded;

#[derive(Debug, Args)]
pub(super) struct Reload {
    #[command(flatten)]
    door: Door,
}

impl Reload {
    pub(super) fn run(self) -> Result<Outcome, Refused> {
        let paint = text::Paint::for_stdout();
        let Reloaded { done, failed } = self.door.client()?.post("/reload")?;
        let mut out = String::new();
        for what in &done {
            out += &format!("{}: {}\n", paint.good("reloaded"), text::plain(what));
        }
        for what in &failed {
            out += &format!("{}: {}\n", paint.bad("failed"), text::plain(what));
        }
        if out.is_empty() {
            out += "there is nothing to reload\n";
        }
        text::print(&out)?;
        Ok(if failed.is_empty() { Outcome::Done } else { Outcome::Incomplete })
    }
}
