//! `alerts`: the latest of them, from the running sensor.

use std::thread;
use std::time::Duration;

use clap::Args;
use serde_json::Value;

use super::client::{AlertPage, Client, Door, question};
use super::text::{self, Paint};
use super::{Outcome, Refused};
use crate::control::Alert;
use crate::journal::query::text::show;

/// How often it is asked for new ones.
const FOLLOW: Duration = Duration::from_secs(1);

#[derive(Debug, Args)]
pub(super) struct Alerts {
    /// Only those after the one of this number
    #[arg(long, value_name = "NUMBER", default_value_t = 0)]
    after: u64,
    /// At most so many of the latest
    #[arg(long, value_name = "N", default_value_t = 1_000)]
    limit: u32,
    /// One JSON object a line, as in the EVE log
    #[arg(long)]
    json: bool,
    /// Go on with those to come
    #[arg(short, long)]
    follow: bool,
    #[command(flatten)]
    door: Door,
}

impl Alerts {
    pub(super) fn run(self) -> Result<Outcome, Refused> {
        let paint = Paint::for_stdout();
        let mut client = self.door.client()?;
        let mut alerts = fetch(&mut client, self.after, self.limit)?;
        let waits = alerts.is_empty() && self.follow;
        if !self.json && !waits {
            let none = alerts.is_empty();
            let text = if none { "no alerts\n".into() } else { heading(paint) };
            if !text::print(&text)? {
                return Ok(Outcome::Done);
            }
        }
        let mut last = self.after;
        loop {
            let mut out = String::new();
            for alert in &alerts {
                last = last.max(alert.number);
                match self.json {
                    true => out += &text::plain_json(&alert.event.to_string()),
                    false => out += &line(alert, paint),
                }
                out.push('\n');
            }
            if !text::print(&out)? || !self.follow {
                return Ok(Outcome::Done);
            }
            thread::sleep(FOLLOW);
            alerts = fetch(&mut client, last, self.limit)?;
        }
    }
}

fn fetch(client: &mut Client, after: u64, limit: u32) -> Result<Vec<Alert>, Refused> {
    let parts = [("after", &*after.to_string()), ("limit", &*limit.to_string())];
    let page: AlertPage = client.get(&question("/alerts", &parts))?;
    Ok(page.alerts)
}

fn heading(paint: Paint) -> String {
    let line =
        format!("{:>6}  {:<20}  {:>8}  {:<43}  {}", "number", "time", "severity", "flow", "what");
    paint.heading(&line) + "\n"
}

fn line(alert: &Alert, paint: Paint) -> String {
    let severity = alert.event["alert"]["severity"].as_u64();
    let shown = format!("{:>8}", severity.map_or_else(|| "-".into(), |s| s.to_string()));
    let shown = match severity {
        Some(1) => paint.bad(&shown),
        Some(2) => paint.notable(&shown),
        _ => shown,
    };
    let at = show(alert.timestamp_ns);
    let ends = format!("{} > {}", end(&alert.event, "src"), end(&alert.event, "dest"));
    format!("{:>6}  {at:<20}  {shown}  {ends:<43}  {}", alert.number, what(&alert.event))
}

/// What it says, such as `Port scan: 200 ports`.
pub(super) fn what(event: &Value) -> String {
    let text = |name: &str| event["alert"][name].as_str().unwrap_or_default();
    let said = match (text("signature"), text("category")) {
        ("", category) => category.to_owned(),
        (signature, "") => signature.to_owned(),
        (signature, category) => format!("{signature} ({category})"),
    };
    text::plain(&said).into_owned()
}

/// An end of its flow.
fn end(event: &Value, side: &str) -> String {
    let ip = event[format!("{side}_ip")].as_str().unwrap_or("-");
    let ip = text::plain(ip);
    match event[format!("{side}_port")].as_u64() {
        Some(port) if ip.contains(':') => format!("[{ip}]:{port}"),
        Some(port) => format!("{ip}:{port}"),
        None => ip.into_owned(),
    }
}
