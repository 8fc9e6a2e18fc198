//! `malakocut-cli export`: how the export is doing, whether its receivers answer, and dead letters.
//!
//! Asks the running sensor over the socket in the spool's directory. Where none runs, dead letters and
//! the spool's content are read from the spool itself.

use std::io::{self, Write};
use std::path::Path;

use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::{Outcome, Place, Refused};
use crate::export::{self, Request};
use crate::spool::{Limits, Spool};
use crate::status::{ExportStatus, ExporterState};

#[derive(Debug, Subcommand)]
pub(super) enum Export {
    /// Show what each exporter has delivered, what waits, and what is wrong
    Status(Status),
    /// Ask an exporter's receiver whether it would take events; sends none
    Test(Test),
    /// Show the events that a receiver refused, with its reason, one JSON object a line
    Dead(Which),
    /// Send the dead letters of a running sensor again
    RetryDead(Which),
    /// Drop the events kept for an exporter that is not configured any more
    Forget(Forget),
}

#[derive(Debug, Args)]
pub(super) struct Status {
    #[command(flatten)]
    place: Place,
    /// One JSON object
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
pub(super) struct Test {
    /// secops, nats or kafka
    #[arg(value_name = "EXPORTER")]
    exporter: String,
    #[command(flatten)]
    place: Place,
}

#[derive(Debug, Args)]
pub(super) struct Which {
    /// Only of this exporter
    #[arg(value_name = "EXPORTER")]
    exporter: Option<String>,
    #[command(flatten)]
    place: Place,
}

#[derive(Debug, Args)]
pub(super) struct Forget {
    #[arg(value_name = "EXPORTER")]
    exporter: String,
    #[command(flatten)]
    place: Place,
}

impl Export {
    pub(super) fn run(self) -> Result<Outcome, Refused> {
        match self {
            Self::Status(status) => status.run(),
            Self::Test(test) => test.run(),
            Self::Dead(which) => which.show(),
            Self::RetryDead(which) => which.retry(),
            Self::Forget(forget) => forget.run(),
        }
    }
}

impl Status {
    fn run(self) -> Result<Outcome, Refused> {
        let directory = self.place.spool()?;
        let value = match asked(&directory, &Request::Status)? {
            Some(value) => value,
            None => {
                let held = opened(&directory)?.held();
                json!({"spool": {"events": held.events, "bytes": held.bytes, "max_bytes": 0,
                    "problem": "no sensor is running", "refused": 0, "unclaimed": []},
                    "exporters": []})
            }
        };
        if self.json {
            print(&format!("{value}\n"))?;
            return Ok(Outcome::Done);
        }
        let status: ExportStatus = serde_json::from_value(value).map_err(Refused::because)?;
        print(&table(&status))?;
        let held = status.exporters.iter().any(|e| e.state == ExporterState::Held);
        Ok(if held { Outcome::Incomplete } else { Outcome::Done })
    }
}

fn table(status: &ExportStatus) -> String {
    let s = &status.spool;
    let mut out = format!("spool: {} events, {} bytes", s.events, s.bytes);
    if s.max_bytes > 0 {
        out += &format!(" of {}", s.max_bytes);
    }
    if s.refused > 0 {
        out += &format!("; {} events were lost, since it took nothing", s.refused);
    }
    if let Some(problem) = &s.problem {
        out += &format!("; {problem}");
    }
    out.push('\n');
    for e in &status.exporters {
        out += &format!(
            "{}: {}; {} delivered, {} waiting, {} dead letters",
            e.name,
            e.state.name(),
            e.delivered,
            e.waiting,
            e.dead
        );
        if e.waiting > 0 {
            out += &format!("; the oldest is {} s old", e.oldest_seconds);
        }
        if let Some(seconds) = e.next_attempt_seconds {
            out += &format!("; next attempt in {seconds} s");
        }
        out.push('\n');
        if let Some(problem) = &e.problem {
            out += &format!("  {problem}\n");
        }
    }
    for name in &s.unclaimed {
        out += &format!("{name}: not configured; its events are kept (export forget {name})\n");
    }
    out
}

impl Test {
    fn run(self) -> Result<Outcome, Refused> {
        let (_, file) = self.place.find()?;
        let lookup = |name: &str| std::env::var(name).ok();
        let settings = file.export.map(|e| *e).unwrap_or_default().with_environment(lookup);
        settings.check().map_err(Refused::because)?;
        let sensor = file.sensor.unwrap_or_else(crate::config::hostname);
        match export::test(&self.exporter, &settings, &sensor) {
            Ok(found) => {
                print(&format!("{}: {found}\n", self.exporter))?;
                Ok(Outcome::Done)
            }
            Err(why) => {
                eprintln!("malakocut-cli: {}: {why}", self.exporter);
                Ok(Outcome::Incomplete)
            }
        }
    }
}

impl Which {
    fn show(self) -> Result<Outcome, Refused> {
        let directory = self.place.spool()?;
        let request = Request::Dead { exporter: self.exporter.clone() };
        let value = match asked(&directory, &request)? {
            Some(value) => value,
            None => export::dead_letters(&opened(&directory)?, self.exporter.as_deref())
                .map_err(Refused::because)?,
        };
        for letter in value["dead"].as_array().into_iter().flatten() {
            print(&format!("{letter}\n"))?;
        }
        Ok(Outcome::Done)
    }

    fn retry(self) -> Result<Outcome, Refused> {
        let directory = self.place.spool()?;
        match asked(&directory, &Request::Retry { exporter: self.exporter })? {
            Some(value) => print(&format!("{value}\n")).map(|()| Outcome::Done),
            None => Err(Refused::because("no sensor is running that could send them")),
        }
    }
}

impl Forget {
    fn run(self) -> Result<Outcome, Refused> {
        let directory = self.place.spool()?;
        let request = Request::Forget { exporter: self.exporter.clone() };
        if asked(&directory, &request)?.is_none() {
            let spool = opened(&directory)?;
            if !spool.cursors().contains(&self.exporter) {
                return Err(Refused::because(format!("nothing is kept for {}", self.exporter)));
            }
            spool.forget(&self.exporter).map_err(Refused::because)?;
        }
        print(&format!("{} is forgotten\n", self.exporter))?;
        Ok(Outcome::Done)
    }
}

/// What the running sensor answers; `None`: none is running.
fn asked(directory: &Path, request: &Request) -> Result<Option<Value>, Refused> {
    use io::ErrorKind::{ConnectionRefused, NotFound};
    match export::ask(directory, request) {
        Ok(value) => match value.get("error").and_then(Value::as_str) {
            Some(why) => Err(Refused::because(why)),
            None => Ok(Some(value)),
        },
        Err(e) if matches!(e.kind(), NotFound | ConnectionRefused) => Ok(None),
        Err(e) => Err(Refused::because(format!("{}: {e}", directory.display()))),
    }
}

/// The spool of a sensor that does not run.
fn opened(directory: &Path) -> Result<Spool, Refused> {
    if !directory.join("store").exists() {
        return Err(Refused::because(format!("{}: there is no spool", directory.display())));
    }
    let limits = Limits { max_bytes: u64::MAX, reserve: 0 };
    Spool::open(directory, limits).map(|(spool, _)| spool).map_err(Refused::because)
}

fn print(text: &str) -> Result<(), Refused> {
    io::stdout().write_all(text.as_bytes()).map_err(Refused::because)
}
