//! Text for people: sizes, counts, tables, colours where they are wanted.

use std::borrow::Cow;
use std::io::{self, ErrorKind, IsTerminal, Write};

use super::Refused;

/// Bytes in the unit that reads best.
pub(super) fn bytes(n: u64) -> String {
    let units =
        [(1_000_000_000_000, "TB"), (1_000_000_000, "GB"), (1_000_000, "MB"), (1_000, "kB")];
    match units.into_iter().find(|(size, _)| n >= *size) {
        Some((size, unit)) => format!("{:.1} {unit}", n as f64 / size as f64),
        None => format!("{n} B"),
    }
}

/// A number with its noun: `1 packet`, `2 packets`.
pub(super) fn count(n: u64, noun: &str) -> String {
    if n == 1 { format!("1 {noun}") } else { format!("{n} {noun}s") }
}

/// A count in the unit that reads best: `999`, `12.3k`, `4.5M`.
pub(super) fn scaled(n: f64) -> String {
    let units = [(1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")];
    // What would be shown as 1000.0k is 1.0M.
    match units.into_iter().find(|(size, _)| n >= size * 0.99995) {
        Some((size, unit)) => format!("{:.1}{unit}", n / size),
        None => format!("{n:.0}"),
    }
}

/// Seconds, as short as can be: `0.5s`, `42s`, `3m07s`, `2h05m`, `4d03h`.
pub(super) fn seconds(s: f64) -> String {
    let whole = s as u64;
    match whole {
        0..10 => format!("{s:.1}s"),
        10..60 => format!("{whole}s"),
        60..3_600 => format!("{}m{:02}s", whole / 60, whole % 60),
        3_600..86_400 => format!("{}h{:02}m", whole / 3_600, whole / 60 % 60),
        _ => format!("{}d{:02}h", whole / 86_400, whole / 3_600 % 24),
    }
}

/// Text from the network as a terminal may have it: without control characters, and without what
/// is invisible or turns the direction of writing.
pub(super) fn plain(text: &str) -> Cow<'_, str> {
    let is_bad = |c: char| {
        c.is_control()
            || matches!(c, '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
                | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e0fff}')
    };
    match text.contains(is_bad) {
        true => text.replace(is_bad, "").into(),
        false => text.into(),
    }
}

/// JSON as a terminal may have it: control characters that JSON allows in its strings are escaped.
pub(super) fn plain_json(json: &str) -> Cow<'_, str> {
    let is_bad = |c: char| matches!(c, '\u{7f}'..='\u{9f}');
    if !json.contains(is_bad) {
        return json.into();
    }
    let mut out = String::with_capacity(json.len() + 16);
    for c in json.chars() {
        match is_bad(c) {
            true => out.push_str(&format!("\\u{:04x}", u32::from(c))),
            false => out.push(c),
        }
    }
    out.into()
}

/// Lines of cells under their headings; those of a heading that begins with `>` stand to the right.
pub(super) fn table(headings: &[&str], rows: &[Vec<String>], paint: Paint) -> String {
    let titles: Vec<&str> = headings.iter().map(|h| h.trim_start_matches('>')).collect();
    let widths: Vec<usize> = titles
        .iter()
        .enumerate()
        .map(|(at, title)| {
            let cells = rows.iter().filter_map(|r| r.get(at)).map(|c| c.chars().count());
            cells.chain([title.len()]).max().unwrap_or(0)
        })
        .collect();
    let line = |cells: &mut dyn Iterator<Item = &str>| {
        let mut out = String::new();
        for ((cell, width), heading) in cells.zip(&widths).zip(headings) {
            match heading.starts_with('>') {
                true => out += &format!("{cell:>width$}  "),
                false => out += &format!("{cell:<width$}  "),
            }
        }
        out.trim_end().to_owned()
    };
    let mut out = paint.heading(&line(&mut titles.iter().copied())) + "\n";
    for row in rows {
        out += &line(&mut row.iter().map(String::as_str));
        out.push('\n');
    }
    out
}

/// Writes to standard output; false if nobody reads it any more, which is no error.
pub(super) fn print(text: &str) -> Result<bool, Refused> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Ok(()) => Ok(true),
        Err(e) if e.kind() == ErrorKind::BrokenPipe => Ok(false),
        Err(e) => Err(Refused::because(format!("standard output: {e}"))),
    }
}

/// Colours, on a terminal that may have them (no-color.org).
#[derive(Clone, Copy)]
pub(super) struct Paint(bool);

impl Paint {
    pub(super) fn for_stdout() -> Self {
        let unwanted = std::env::var_os("NO_COLOR").is_some_and(|v| !v.is_empty());
        let dumb = std::env::var_os("TERM").is_some_and(|v| v == "dumb");
        Self(io::stdout().is_terminal() && !unwanted && !dumb)
    }

    fn with(self, code: &str, text: &str) -> String {
        if self.0 { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }

    pub(super) fn good(self, text: &str) -> String {
        self.with("32", text)
    }

    pub(super) fn notable(self, text: &str) -> String {
        self.with("33", text)
    }

    pub(super) fn bad(self, text: &str) -> String {
        self.with("31", text)
    }

    pub(super) fn heading(self, text: &str) -> String {
        self.with("1", text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_that_read_well() {
        for (n, want) in
            [(0.0, "0"), (999.0, "999"), (1_000.0, "1.0k"), (999_960.0, "1.0M"), (2e12, "2.0T")]
        {
            assert_eq!(scaled(n), want);
        }
        for (s, want) in
            [(0.04, "0.0s"), (9.96, "10.0s"), (59.9, "59s"), (61.0, "1m01s"), (90_000.0, "1d01h")]
        {
            assert_eq!(seconds(s), want);
        }
    }

    #[test]
    fn nothing_from_the_network_moves_the_cursor() {
        let hostile = "a\u{1b}[2J\u{9b}1mb\u{7f}\r\n\u{202e}c\u{200b}\u{e0041}\u{e9}";
        assert_eq!(plain(hostile), "a[2J1mbc\u{e9}");
        let json = serde_json::to_string(hostile).unwrap();
        let shown = plain_json(&json);
        assert!(!shown.contains(char::is_control), "{shown}");
        assert_eq!(serde_json::from_str::<String>(&shown).unwrap(), hostile);
    }

    #[test]
    fn a_table_is_aligned() {
        let rows = [vec!["a".into(), "1".into(), "x".into()], vec!["bb".into(), "10".into()]];
        let shown = table(&["name", ">n", "more"], &rows, Paint(false));
        assert_eq!(shown, "name   n  more\na      1  x\nbb    10\n");
    }
}
