//! Draws `top`: a head with rates, the table, what lies over it, a foot.

use std::net::IpAddr;

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::Style;
use ratatui::text::{Line, Span};
use ratatui::widgets::{Paragraph, RenderDirection, Sparkline, Wrap};
use serde_json::Value;

use super::app::{App, Over};
use super::fetch::Row;
use super::keys::KEYS;
use super::look::Look;
use super::view::Direction;
use crate::cli::flows::{string, subject};
use crate::cli::{names, text};
use crate::control::Sort;

/// Lines of the head: what runs, the rates, what is shown.
const HEAD: u16 = 4;

pub(super) fn draw(frame: &mut Frame<'_>, app: &mut App) {
    let [head, body, foot] =
        Layout::vertical([Constraint::Length(HEAD), Constraint::Fill(1), Constraint::Length(1)])
            .areas(frame.area());
    app.room = usize::from(body.height.saturating_sub(1)).max(1);
    draw_head(frame, app, head);
    match &app.over {
        Over::Help => draw_help(frame, app, body),
        Over::Details(_) => draw_details(frame, app, body),
        _ => draw_table(frame, app, body),
    }
    draw_foot(frame, app, foot);
}

fn draw_head(frame: &mut Frame<'_>, app: &App, area: Rect) {
    let [title, rates, shown] =
        Layout::vertical([Constraint::Length(1), Constraint::Length(2), Constraint::Length(1)])
            .areas(area);
    let (s, look) = (&app.status, app.look);
    let mut spans =
        vec![Span::styled(format!("malakocut {} ", look.text(&s.sensor)), look.heading())];
    spans.push(Span::raw(format!("up {}  {}  ", s.uptime, look.text(&s.source))));
    let lost = match s.dropped_events {
        0 => Span::styled("lost 0", look.good()),
        lost => {
            let now = s.rates.lost_per_second.ceil();
            Span::styled(format!("LOST {lost} ({}/s)", text::scaled(now)), look.bad())
        }
    };
    spans.push(lost);
    if let Some(journal) = &s.journal {
        spans.push(Span::raw(format!("  journal {:.1}h", journal.kept.hours)));
    }
    if let Some(disk) = s.disk {
        spans.push(Span::raw(format!("  {} free", text::bytes(disk.free_bytes))));
    }
    frame.render_widget(Line::from(spans), title);

    let halves: [Rect; 2] = Layout::horizontal([Constraint::Fill(1); 2]).spacing(2).areas(rates);
    let labels = [("packets/s", s.rates.packets_per_second), ("bits/s", s.rates.bits_per_second)];
    for ((area, kept), (name, now)) in halves.into_iter().zip(&app.rates).zip(labels) {
        let [label, bars] =
            Layout::horizontal([Constraint::Length(16), Constraint::Fill(1)]).areas(area);
        let most = kept.iter().copied().max().unwrap_or(0) as f64;
        let lines = vec![
            Line::styled(format!("{name:<9} {:>6}", text::scaled(now)), look.heading()),
            Line::styled(format!("{:<9} {:>6}", "  most", text::scaled(most)), look.faint()),
        ];
        frame.render_widget(Paragraph::new(lines), label);
        sparkline(frame, look, kept.iter(), bars);
    }
    frame.render_widget(Line::from(what_is_shown(app)), shown);
}

/// The latest on the right.
fn sparkline<'a>(
    frame: &mut Frame<'_>,
    look: Look,
    values: impl DoubleEndedIterator<Item = &'a u64>,
    area: Rect,
) {
    let latest: Vec<u64> = values.rev().copied().take(usize::from(area.width)).collect();
    let bars = Sparkline::default()
        .data(latest)
        .direction(RenderDirection::RightToLeft)
        .bar_set(look.bars())
        .style(look.bar());
    frame.render_widget(bars, area);
}

fn what_is_shown(app: &App) -> Vec<Span<'static>> {
    let (view, look) = (&app.view, app.look);
    let first = if app.rows.is_empty() { 0 } else { view.offset + 1 };
    let last = view.offset + app.rows.len();
    let mut spans = vec![Span::raw(format!("{first}-{last} of {}", app.matched))];
    if app.matched != app.flows {
        spans.push(Span::raw(format!(" ({} live)", app.flows)));
    }
    let mut is_on = vec![format!("protocol {}", view.protocol.name())];
    let rules = app.rules.len();
    for (on, name) in [
        (view.remote_only, "remote only".to_owned()),
        (view.quiet, "no multicast".to_owned()),
        (view.names, "names".to_owned()),
        (view.scaled, "units".to_owned()),
        (view.ignores && rules > 0, format!("{} applied", text::count(rules as u64, "rule"))),
        (!view.search.is_empty(), format!("search {}", look.text(&view.search))),
        (view.filter.is_some(), "filter".to_owned()),
    ] {
        if on {
            is_on.push(name);
        }
    }
    spans.push(Span::styled(format!("  {}", is_on.join(", ")), look.notable()));
    spans
}

/// A column of the table.
struct Column {
    title: &'static str,
    width: usize,
    right: bool,
    sort: Option<Sort>,
}

/// The columns that there is room for.
fn columns(width: usize) -> Vec<Column> {
    let more = width.saturating_sub(80);
    let end = 18 + (more / 4).min(27);
    let counts = if more >= 30 { [12, 10] } else { [6, 6] };
    let mut out: Vec<Column> = Vec::new();
    let mut add = |title, width, right, sort| out.push(Column { title, width, right, sort });
    add("", 1, false, None);
    if more >= 70 {
        add("flow id", 16, false, Some(Sort::FlowId));
    }
    add("source", end, false, None);
    add("", 1, false, None);
    add("destination", end - 1, false, None);
    add("proto", if more >= 10 { 7 } else { 5 }, false, Some(Sort::Protocol));
    add("info", 0, false, None);
    add("bytes", counts[0], true, Some(Sort::Bytes));
    add("pkts", counts[1], true, Some(Sort::Packets));
    add("time", 6, true, Some(Sort::Duration));
    add("idle", 6, true, Some(Sort::Idle));
    let used: usize = out.iter().map(|c| c.width + 1).sum();
    if let Some(info) = out.iter_mut().find(|c| c.title == "info") {
        info.width = (width + 1).saturating_sub(used).max(4);
    }
    out
}

fn draw_table(frame: &mut Frame<'_>, app: &mut App, area: Rect) {
    let look = app.look;
    let columns = columns(usize::from(area.width));
    let mut head = String::new();
    for c in &columns {
        let mark = match c.sort == Some(app.view.sort) {
            true => look.order(app.view.ascending),
            false => "",
        };
        let title =
            look.fit(c.title, c.width.saturating_sub(mark.chars().count())).into_owned() + mark;
        pad(&mut head, &title, c);
    }
    let mut lines = vec![Line::styled(head, look.chosen())];
    if app.rows.is_empty() {
        lines.push(Line::styled("no flows", look.faint()));
    }
    let rows = std::mem::take(&mut app.rows);
    for (at, row) in rows.iter().take(app.room).enumerate() {
        let mut text = String::new();
        let cells = cells(app, row, &columns);
        for (cell, column) in cells.iter().zip(&columns) {
            pad(&mut text, cell, column);
        }
        let style = match at == app.chosen {
            true => look.chosen(),
            false => style(app, row),
        };
        lines.push(Line::styled(text, style));
    }
    app.rows = rows;
    frame.render_widget(Paragraph::new(lines), area);
}

fn pad(out: &mut String, cell: &str, column: &Column) {
    let gap = column.width.saturating_sub(cell.chars().count());
    let gap = " ".repeat(gap);
    let (before, after) = if column.right { (&*gap, "") } else { ("", &*gap) };
    for part in [before, cell, after, " "] {
        out.push_str(part);
    }
}

fn is_silenced(row: &Row) -> bool {
    row.get("silenced") == Some(&Value::Bool(true))
}

fn style(app: &App, row: &Row) -> Style {
    if app.has_alerts(row) {
        app.look.bad()
    } else if is_silenced(row) {
        app.look.faint()
    } else {
        Style::new()
    }
}

fn cells(app: &mut App, row: &Row, columns: &[Column]) -> Vec<String> {
    let look = app.look;
    let number = |field: &str| row.get(field).and_then(Value::as_u64).unwrap_or(0);
    let seconds =
        |field: &str| text::seconds(row.get(field).and_then(Value::as_f64).unwrap_or(0.0));
    let ip = |field: &str| string(row, field).parse::<IpAddr>().ok();
    let ends = (ip("src_ip"), ip("dst_ip"));
    let direction = match ends {
        (Some(src), Some(dst)) => Some(app.here.direction(src, dst)),
        _ => None,
    };
    let mut signs = [direction.map_or("", |d| look.direction(d)), mark(app, row)];
    let mut out = Vec::with_capacity(columns.len());
    for Column { title, width, .. } in columns {
        let cell = match *title {
            // The mark comes first.
            "" => std::mem::take(&mut signs[if out.is_empty() { 1 } else { 0 }]).to_owned(),
            "flow id" => look.text(&string(row, "flow_id")).into_owned(),
            "source" => end_cell(app, row, "src", ends.0, *width),
            "destination" => end_cell(app, row, "dst", ends.1, *width),
            "proto" => look.text(&string(row, "protocol")).replace("ICMPv6", "ICMP6"),
            "info" => info(app, row, direction, *width),
            "bytes" => count(number("bytes"), app.view.scaled, *width),
            "pkts" => count(number("packets"), app.view.scaled, *width),
            "time" => seconds("duration_sec"),
            _ => seconds("idle_sec"),
        };
        out.push(look.fit(&cell, *width).into_owned());
    }
    out
}

fn mark(app: &App, row: &Row) -> &'static str {
    if app.has_alerts(row) {
        "!"
    } else if is_silenced(row) {
        "s"
    } else {
        ""
    }
}

/// With its unit also where the plain number finds no room.
fn count(n: u64, scaled: bool, width: usize) -> String {
    let plain = n.to_string();
    if scaled || plain.len() > width { text::scaled(n as f64) } else { plain }
}

/// Host and port; the port is whole, the host is cut. The name of its network, if there is room.
fn end_cell(app: &mut App, row: &Row, side: &str, ip: Option<IpAddr>, width: usize) -> String {
    let get = |field: &str| string(row, &format!("{side}_{field}"));
    let name = match app.view.names {
        true => app.name_of(ip, &get("name")),
        false => None,
    };
    let host = name.unwrap_or_else(|| app.look.text(&get("ip")).into_owned());
    let port = row.get(&format!("{side}_port")).and_then(Value::as_u64);
    let service = port.filter(|_| app.view.names).and_then(|p| u16::try_from(p).ok());
    let service = service.and_then(|p| app.services.name(p, &string(row, "protocol")));
    let port_text = service.map(str::to_owned).or_else(|| port.map(|p| p.to_string()));
    let room = width.saturating_sub(port_text.as_ref().map_or(0, |p| p.len() + 1));
    let room = if host.contains(':') && port.is_some() { room.saturating_sub(2) } else { room };
    let host = app.look.fit(&host, room);
    let mut out = match port_text {
        Some(port) if host.contains(':') => format!("[{host}]:{port}"),
        Some(port) => format!("{host}:{port}"),
        None => host.into_owned(),
    };
    if let Some(network) = ip.and_then(|ip| app.networks.name(ip))
        && out.chars().count() + network.chars().count() < width
    {
        out += " ";
        out += &app.look.text(network);
    }
    out
}

/// Flags or message, and where there is room protocol and name, and who made the card.
fn info(app: &App, row: &Row, direction: Option<Direction>, width: usize) -> String {
    let get = |field: &str| app.look.text(&string(row, field)).into_owned();
    let kind = row.get("icmp_type").and_then(Value::as_u64);
    let first = match kind {
        Some(kind) => {
            let code = row.get("icmp_code").and_then(Value::as_u64).unwrap_or(0);
            let name = names::icmp(get("protocol") != "ICMP", kind, code);
            name.map_or_else(|| format!("type {kind}"), str::to_owned)
        }
        // SYN|ACK|PSH|FIN as SAPF.
        None => {
            let flags = get("tcp_flags");
            flags.split('|').filter_map(|flag| flag.chars().next()).collect::<String>()
        }
    };
    if width < 10 {
        return if first.is_empty() { get("app_proto") } else { first };
    }
    // Beyond a router every address has the router's card.
    let near = if direction == Some(Direction::In) { "dst_mac" } else { "src_mac" };
    let vendor = app.vendors.name(&get(near)).unwrap_or_default().to_owned();
    let subject = app.look.text(&subject(row)).into_owned();
    let parts =
        [first, get("conn_state"), get("app_proto"), subject, app.look.text(&vendor).into_owned()];
    parts.into_iter().filter(|p| !p.is_empty()).collect::<Vec<_>>().join(" ")
}

fn draw_help(frame: &mut Frame<'_>, app: &App, area: Rect) {
    let look = app.look;
    let mut lines: Vec<Line<'_>> = KEYS
        .iter()
        .map(|(keys, what)| {
            Line::from(vec![Span::styled(format!("{keys:<13}"), look.heading()), Span::raw(*what)])
        })
        .collect();
    let signs = [
        (Direction::Out, "outward"),
        (Direction::In, "inward"),
        (Direction::Local, "local"),
        (Direction::Through, "between others"),
    ];
    let signs = signs.map(|(direction, what)| format!("{} {what}", look.direction(direction)));
    lines.push(Line::raw(format!("{:<13}{}", "direction", signs.join(", "))));
    lines.push(Line::raw(format!("{:<13}! has alerts, s silenced by the blocklist", "marks")));
    let (file, rules) = (app.rules_from.display(), text::count(app.rules.len() as u64, "rule"));
    lines.push(Line::raw(format!("{:<13}{file}: {rules}", "left out")));
    frame.render_widget(Paragraph::new(lines), area);
}

fn draw_details(frame: &mut Frame<'_>, app: &mut App, area: Rect) {
    let over = std::mem::take(&mut app.over);
    if let Over::Details(details) = &over {
        let [page, rate, packets] =
            Layout::vertical([Constraint::Fill(1), Constraint::Length(1), Constraint::Length(1)])
                .areas(area);
        let lines = details.lines(app);
        let scroll = details.scroll.min(lines.len().saturating_sub(1) as u16);
        let page_of = Paragraph::new(lines).wrap(Wrap { trim: false }).scroll((scroll, 0));
        frame.render_widget(page_of, page);
        let [label, bars] =
            Layout::horizontal([Constraint::Length(16), Constraint::Fill(1)]).areas(rate);
        let now = details.rates.back().copied().unwrap_or(0);
        let label_text = format!("{:<9} {:>6}", "bytes/s", text::scaled(now as f64));
        frame.render_widget(Line::styled(label_text, app.look.heading()), label);
        sparkline(frame, app.look, details.rates.iter(), bars);
        let name = Span::styled(format!("{:<12} ", "its packets"), app.look.heading());
        frame.render_widget(Line::from(vec![name, Span::raw(details.command())]), packets);
    }
    app.over = over;
}

fn draw_foot(frame: &mut Frame<'_>, app: &App, area: Rect) {
    let look = app.look;
    let line = match (&app.over, &app.problem, &app.note) {
        (Over::Search(typed), ..) => Line::raw(format!("/{}_", look.text(typed))),
        (_, Some(problem), _) => Line::styled(look.text(problem).into_owned(), look.bad()),
        (_, _, Some(note)) => Line::styled(look.text(note).into_owned(), look.notable()),
        (Over::Details(_), ..) => {
            Line::styled("Esc back  c copy the command  r names  q back", look.faint())
        }
        (Over::Help, ..) => Line::styled("any key: back", look.faint()),
        (Over::Nothing, ..) => Line::styled(
            "? help  q quit  bpdio sort  f protocol  x remote  m multicast  r names  / search",
            look.faint(),
        ),
    };
    frame.render_widget(line, area);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_columns_fill_every_width() {
        for width in 80..250 {
            let columns = columns(width);
            let used: usize = columns.iter().map(|c| c.width + 1).sum();
            assert_eq!(used, width + 1, "{width}");
            assert!(columns.iter().all(|c| c.width > 0));
        }
    }
}
