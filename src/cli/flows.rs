//! `flows`: live flows of the running sensor, as a table, JSON lines or CSV.

use std::borrow::Cow;

use clap::{Args, ValueEnum};
use serde_json::{Map, Value};

use super::client::{Client, Door, FlowPage, question};
use super::names::Services;
use super::text::{self, Paint};
use super::{Outcome, Refused, Show};
use crate::control::Sort;
use crate::control::live::ROWS_MOST;
use crate::event::FIELDS;

pub(super) const EXAMPLES: &str = "Examples:
  malakocut-cli flows                                        the largest live flows
  malakocut-cli flows 'dst_port == 443 and bytes > 1e6' --sort duration
  malakocut-cli flows 'src_ip in 192.168.1.0/24 and not sni' --all --json
  malakocut-cli flows 'sni contains \"example\" or dns_query contains \"example\"' --csv

A filter speaks of the fields of a flow event: ==, !=, <, <=, >, >=, contains, ends_with, in
[value, ...], in 10.0.0.0/8, a field alone if it is there; and, or, not, parentheses.";

/// Columns of CSV when nobody says.
const COLUMNS: &str = "flow_id,start,end,src_ip,src_port,dst_ip,dst_port,protocol,app_proto,bytes,\
packets,orig_bytes,resp_bytes,duration_sec,idle_sec,conn_state,history,src_name,dst_name,dns_query,sni,\
http_host,community_id";

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Order {
    Asc,
    Desc,
}

#[derive(Debug, Args)]
pub(super) struct Flows {
    /// Only flows for which this holds, such as 'protocol == "TCP" and dst_port in [80, 443]'
    #[arg(value_name = "FILTER")]
    filter: Option<String>,
    /// Largest of this first
    #[arg(long, value_name = "KEY", default_value = "bytes",
        value_parser = Sort::ALL.map(|(name, _)| name))]
    sort: String,
    /// asc: the smallest first
    #[arg(long, value_name = "asc|desc", default_value = "desc", hide_possible_values = true)]
    order: Order,
    /// At most so many
    #[arg(long, value_name = "N", default_value_t = 1_000,
        value_parser = clap::value_parser!(u32).range(1..=ROWS_MOST as i64))]
    limit: u32,
    /// Every flow, however many, in the order of their ids
    #[arg(long, conflicts_with_all = ["sort", "order", "limit"])]
    all: bool,
    /// One JSON object a line
    #[arg(long, conflicts_with = "csv")]
    json: bool,
    /// Comma-separated values, with a line of headings
    #[arg(long)]
    csv: bool,
    /// Columns of the CSV, by the names of a flow event's fields
    #[arg(long, value_name = "FIELD,...", requires = "csv", value_delimiter = ',',
        default_value = COLUMNS, hide_default_value = true)]
    fields: Vec<String>,
    #[command(flatten)]
    door: Door,
}

impl Flows {
    pub(super) fn run(self, show: Show) -> Result<Outcome, Refused> {
        if let Some(unknown) = self.fields.iter().find(|f| !FIELDS.contains(&f.as_str())) {
            return Err(Refused(format!("--fields: a flow event has no field {unknown}")));
        }
        let mut client = self.door.client()?;
        let form = self.form(show);
        if !text::print(&form.heading())? {
            return Ok(Outcome::Done);
        }
        if self.all {
            return self.everything(&mut client, &form);
        }
        let order = if matches!(self.order, Order::Asc) { "asc" } else { "desc" };
        let limit = self.limit.to_string();
        let parts = [("sort", self.sort.as_str()), ("order", order), ("limit", &limit)];
        let page = self.page(&mut client, &parts)?;
        text::print(&form.rows(&page)?)?;
        let shown = page.rows.len() as u64;
        if page.matched > shown {
            eprintln!(
                "malakocut-cli: {shown} of {} flows; --limit N shows more, --all every one",
                page.matched
            );
        }
        Ok(Outcome::Done)
    }

    /// Page by page, going on behind the last id.
    fn everything(&self, client: &mut Client, form: &Form) -> Result<Outcome, Refused> {
        let limit = ROWS_MOST.to_string();
        let mut after: Option<String> = None;
        loop {
            let order = [("sort", "flow_id"), ("order", "asc"), ("limit", &limit)];
            let behind = after.as_deref().map(|id| ("after", id));
            let parts: Vec<_> = order.into_iter().chain(behind).collect();
            let page = self.page(client, &parts)?;
            let read_on = text::print(&form.rows(&page)?)?;
            let Some(last) = page.rows.last().filter(|_| page.matched > page.rows.len() as u64)
            else {
                return Ok(Outcome::Done);
            };
            if !read_on {
                return Ok(Outcome::Done);
            }
            after = match object(last.get())?.get("flow_id").and_then(Value::as_str) {
                Some(id) => Some(id.to_owned()),
                None => return Err(Refused::because("the sensor gave a flow without an id")),
            };
        }
    }

    fn page(&self, client: &mut Client, parts: &[(&str, &str)]) -> Result<FlowPage, Refused> {
        let filter = self.filter.as_deref().map(|f| ("filter", f));
        let parts: Vec<_> = filter.into_iter().chain(parts.iter().copied()).collect();
        Ok(client.get(&question("/flows", &parts))?)
    }

    fn form(&self, show: Show) -> Form {
        if self.json {
            Form::Json
        } else if self.csv {
            Form::Csv(self.fields.clone())
        } else {
            Form::Table(Table { paint: Paint::for_stdout(), services: Services::load(), show })
        }
    }
}

fn object(row: &str) -> Result<Map<String, Value>, Refused> {
    serde_json::from_str(row)
        .map_err(|e| Refused(format!("the sensor gave a flow that cannot be read: {e}")))
}

/// How flows are written.
enum Form {
    Json,
    Csv(Vec<String>),
    Table(Table),
}

impl Form {
    fn heading(&self) -> String {
        match self {
            Self::Csv(fields) => fields.join(",") + "\r\n",
            _ => String::new(),
        }
    }

    fn rows(&self, page: &FlowPage) -> Result<String, Refused> {
        let rows = page.rows.iter().map(|r| r.get());
        match self {
            Self::Json => Ok(rows.map(|r| text::plain_json(r).into_owned() + "\n").collect()),
            Self::Csv(fields) => rows.map(|r| Ok(csv(&object(r)?, fields))).collect(),
            Self::Table(table) => {
                let rows: Result<Vec<_>, Refused> =
                    rows.map(|r| Ok(table.row(&object(r)?))).collect();
                Ok(text::table(&HEADINGS, &rows?, table.paint))
            }
        }
    }
}

/// A line as RFC 4180 has it.
fn csv(row: &Map<String, Value>, fields: &[String]) -> String {
    let cells = fields.iter().map(|field| {
        let cell = match row.get(field) {
            None => Cow::Borrowed(""),
            Some(Value::String(text)) => text::plain(text),
            Some(Value::Array(several)) => {
                let texts =
                    several.iter().map(|v| v.as_str().map_or_else(|| v.to_string(), str::to_owned));
                text::plain(&texts.collect::<Vec<_>>().join(" ")).into_owned().into()
            }
            Some(other) => other.to_string().into(),
        };
        match cell.contains([',', '"']) {
            true => format!("\"{}\"", cell.replace('"', "\"\"")),
            false => cell.into_owned(),
        }
    });
    cells.collect::<Vec<_>>().join(",") + "\r\n"
}

const HEADINGS: [&str; 9] = [
    "originator",
    "responder",
    "proto",
    ">bytes",
    ">packets",
    ">duration",
    ">idle",
    "state",
    "what",
];

struct Table {
    paint: Paint,
    services: Services,
    show: Show,
}

impl Table {
    fn row(&self, row: &Map<String, Value>) -> Vec<String> {
        let number = |field: &str| row.get(field).and_then(Value::as_u64).unwrap_or(0);
        let seconds =
            |field: &str| text::seconds(row.get(field).and_then(Value::as_f64).unwrap_or(0.0));
        let shown = |n: u64| match self.show.pretty {
            true => text::scaled(n as f64),
            false => n.to_string(),
        };
        vec![
            self.end(row, "src"),
            self.end(row, "dst"),
            string(row, "protocol").into_owned(),
            shown(number("bytes")),
            shown(number("packets")),
            seconds("duration_sec"),
            seconds("idle_sec"),
            string(row, "conn_state").into_owned(),
            what(row, &self.services),
        ]
    }

    fn end(&self, row: &Map<String, Value>, side: &str) -> String {
        let name = string(row, &format!("{side}_name"));
        let host = match self.show.resolve && !name.is_empty() {
            true => name,
            false => string(row, &format!("{side}_ip")),
        };
        end(&host, row.get(&format!("{side}_port")).and_then(Value::as_u64))
    }
}

/// Address and port.
pub(super) fn end(host: &str, port: Option<u64>) -> String {
    match port {
        Some(port) if host.contains(':') => format!("[{host}]:{port}"),
        Some(port) => format!("{host}:{port}"),
        None => host.to_owned(),
    }
}

/// A field's text, safe for a terminal; empty if there is none.
pub(super) fn string<'a>(row: &'a Map<String, Value>, field: &str) -> Cow<'a, str> {
    row.get(field).and_then(Value::as_str).map_or(Cow::Borrowed(""), text::plain)
}

/// The name a flow asked for, or was about.
pub(super) fn subject<'a>(row: &'a Map<String, Value>) -> Cow<'a, str> {
    let names = ["sni", "http_host", "dns_query", "dhcp_hostname", "ssh_server"];
    names.iter().map(|f| string(row, f)).find(|s| !s.is_empty()).unwrap_or_default()
}

/// Protocol and name: `tls www.example.org`; a port's service where nothing was read.
fn what(row: &Map<String, Value>, services: &Services) -> String {
    let app = string(row, "app_proto");
    let port = row.get("dst_port").and_then(Value::as_u64).and_then(|p| u16::try_from(p).ok());
    let service = port.and_then(|p| services.name(p, &string(row, "protocol")));
    let app = if app.is_empty() { service.unwrap_or_default() } else { &*app };
    format!("{app} {}", subject(row)).trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn csv_cells_hold_whatever_comes() {
        let row = serde_json::json!({"sni": "a\"b,c\u{1b}\r\n", "vlan": [3, 4], "bytes": 7});
        let fields = ["bytes", "sni", "dst_port", "vlan"].map(str::to_owned);
        assert_eq!(csv(row.as_object().unwrap(), &fields), "7,\"a\"\"b,c\",,3 4\r\n");
    }
}
