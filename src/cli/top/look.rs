//! What the terminal can show: UTF-8 or ASCII, colours or none.

use std::borrow::Cow;
use std::env;

use ratatui::style::{Color, Modifier, Style};
use ratatui::symbols::bar;

use super::view::Direction;
use crate::cli::text;

const ASCII_BARS: bar::Set<'static> = bar::Set {
    full: "#",
    seven_eighths: "#",
    three_quarters: "*",
    five_eighths: "+",
    half: "=",
    three_eighths: "-",
    one_quarter: ":",
    one_eighth: ".",
    empty: " ",
};

#[derive(Clone, Copy, Debug)]
pub(super) struct Look {
    ascii: bool,
    colours: bool,
}

impl Look {
    pub(super) fn of_environment(ascii: bool) -> Self {
        let set = |name: &str| env::var(name).ok().filter(|v| !v.is_empty());
        let locale = ["LC_ALL", "LC_CTYPE", "LANG"].into_iter().find_map(set).unwrap_or_default();
        let locale = locale.to_ascii_lowercase();
        let utf8 = locale.contains("utf-8") || locale.contains("utf8");
        Self { ascii: ascii || !utf8, colours: set("NO_COLOR").is_none() }
    }

    pub(super) fn bars(self) -> bar::Set<'static> {
        if self.ascii { ASCII_BARS } else { bar::NINE_LEVELS }
    }

    pub(super) fn direction(self, direction: Direction) -> &'static str {
        let (ascii, sign) = match direction {
            Direction::Out => (">", "\u{2192}"),
            Direction::In => ("<", "\u{2190}"),
            Direction::Local => ("=", "\u{2194}"),
            Direction::Through => ("x", "\u{21c4}"),
        };
        if self.ascii { ascii } else { sign }
    }

    /// The mark of the column that sorts.
    pub(super) fn order(self, ascending: bool) -> &'static str {
        match (self.ascii, ascending) {
            (true, true) => "^",
            (true, false) => "v",
            (false, true) => "\u{25b2}",
            (false, false) => "\u{25bc}",
        }
    }

    /// Text from the network, as this terminal may have it.
    pub(super) fn text(self, text: &str) -> Cow<'_, str> {
        let plain = text::plain(text);
        match self.ascii && !plain.is_ascii() {
            true => plain.replace(|c: char| !c.is_ascii(), "?").into(),
            false => plain,
        }
    }

    /// Cut to so many characters, marked at the end if it was longer.
    pub(super) fn fit(self, text: &str, width: usize) -> Cow<'_, str> {
        if text.chars().count() <= width {
            return text.into();
        }
        let mut out: String = text.chars().take(width.saturating_sub(1)).collect();
        if width > 0 {
            out.push(if self.ascii { '~' } else { '\u{2026}' });
        }
        out.into()
    }

    fn coloured(self, colour: Color) -> Style {
        if self.colours { Style::new().fg(colour) } else { Style::new() }
    }

    pub(super) fn bad(self) -> Style {
        self.coloured(Color::Red).add_modifier(Modifier::BOLD)
    }

    pub(super) fn good(self) -> Style {
        self.coloured(Color::Green)
    }

    pub(super) fn notable(self) -> Style {
        self.coloured(Color::Yellow)
    }

    pub(super) fn faint(self) -> Style {
        self.coloured(Color::DarkGray)
    }

    pub(super) fn bar(self) -> Style {
        self.coloured(Color::Cyan)
    }

    pub(super) fn heading(self) -> Style {
        Style::new().add_modifier(Modifier::BOLD)
    }

    pub(super) fn chosen(self) -> Style {
        Style::new().add_modifier(Modifier::REVERSED)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ascii_terminals_get_ascii() {
        let look = Look { ascii: true, colours: false };
        assert_eq!(look.text("na\u{ef}ve\u{1b}[m"), "na?ve[m");
        assert_eq!(look.fit("abcdef", 4), "abc~");
        assert_eq!((look.fit("abcd", 4), look.fit("ab", 0)), ("abcd".into(), "".into()));
        for direction in [Direction::Out, Direction::In, Direction::Local, Direction::Through] {
            assert!(look.direction(direction).is_ascii());
        }
        assert!(look.order(true).is_ascii() && look.bars().half.is_ascii());
        assert_eq!(look.good(), Style::new());
    }
}
