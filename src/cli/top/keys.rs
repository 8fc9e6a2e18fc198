//! What the keys do.

use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyModifiers};

use super::app::{App, Over};
use super::details::Details;
use super::fetch::id_of;
use crate::control::Sort;

/// Keys and what they do, for the help.
pub(super) const KEYS: [(&str, &str); 15] = [
    ("q", "quit"),
    ("b p d i o", "sort by bytes, packets, duration, idleness, protocol"),
    ("s e", "sort by start, latest packet; a key again: the other way round"),
    ("f", "all, TCP, UDP, ICMP"),
    ("x", "only what enters or leaves the local networks"),
    ("m", "without multicast and broadcast"),
    ("g", "with and without what the rules leave out"),
    ("r", "names: DNS that the sensor saw, then reverse DNS; services"),
    ("h", "numbers with units"),
    ("/", "search: address, network, port, part of a name, expression"),
    ("Up Down k j", "choose a flow; PgUp PgDn Home End: pages, first, last"),
    ("Enter", "its names, history, alerts, and how to get its packets"),
    ("c", "there: copy the command for that"),
    ("Esc", "back; in the table: drop the search"),
    ("Ctrl-L ?", "draw all anew; this page"),
];

/// What is to happen now.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Next {
    Draw,
    Clear,
    Copy(String),
    End,
}

impl App {
    pub(super) fn key(&mut self, key: KeyEvent) -> Next {
        self.note = None;
        if key.modifiers.contains(KeyModifiers::CONTROL) {
            return match key.code {
                KeyCode::Char('c') => Next::End,
                KeyCode::Char('l') => Next::Clear,
                _ => Next::Draw,
            };
        }
        match &self.over {
            Over::Nothing => self.table_key(key.code),
            Over::Help => match key.code {
                KeyCode::Char('q') => Next::End,
                _ => self.close(),
            },
            Over::Search(_) => self.search_key(key.code),
            Over::Details(_) => self.details_key(key.code),
        }
    }

    fn close(&mut self) -> Next {
        self.over = Over::Nothing;
        Next::Draw
    }

    fn table_key(&mut self, code: KeyCode) -> Next {
        let view = &mut self.view;
        match code {
            KeyCode::Char('q') => return Next::End,
            KeyCode::Char('?') => self.over = Over::Help,
            KeyCode::Char('/') => self.over = Over::Search(view.search.clone()),
            KeyCode::Char('b') => self.sort(Sort::Bytes),
            KeyCode::Char('p') => self.sort(Sort::Packets),
            KeyCode::Char('d') => self.sort(Sort::Duration),
            KeyCode::Char('i') => self.sort(Sort::Idle),
            KeyCode::Char('o') => self.sort(Sort::Protocol),
            KeyCode::Char('s') => self.sort(Sort::Start),
            KeyCode::Char('e') => self.sort(Sort::End),
            KeyCode::Char('f') => view.next_protocol(),
            KeyCode::Char('x') => view.remote_only = !view.remote_only,
            KeyCode::Char('m') => view.quiet = !view.quiet,
            KeyCode::Char('g') => self.rules_key(),
            KeyCode::Char('h') => view.scaled = !view.scaled,
            KeyCode::Char('r') => {
                view.names = !view.names;
                self.resolve();
            }
            KeyCode::Esc => {
                view.search.clear();
                self.follows = None;
            }
            KeyCode::Enter => self.open(),
            _ => self.walk(code),
        }
        Next::Draw
    }

    fn sort(&mut self, by: Sort) {
        self.view.sort_by(by);
        (self.chosen, self.follows) = (0, None);
    }

    fn rules_key(&mut self) {
        self.view.ignores = !self.view.ignores;
        if self.rules.len() == 0 {
            let file = self.rules_from.display();
            self.note = Some(format!("{file} has no rules: nothing is left out"));
        }
    }

    fn walk(&mut self, code: KeyCode) {
        let (last_row, last) = (self.rows.len().saturating_sub(1), self.last_offset());
        let page = self.room.max(1);
        let offset = &mut self.view.offset;
        match code {
            KeyCode::Up | KeyCode::Char('k') if self.chosen == 0 => {
                *offset = offset.saturating_sub(1);
            }
            KeyCode::Up | KeyCode::Char('k') => self.chosen -= 1,
            KeyCode::Down | KeyCode::Char('j') if self.chosen >= last_row => {
                *offset = (*offset + 1).min(last);
            }
            KeyCode::Down | KeyCode::Char('j') => self.chosen += 1,
            KeyCode::PageUp if *offset == 0 => self.chosen = 0,
            KeyCode::PageUp => *offset = offset.saturating_sub(page),
            KeyCode::PageDown if *offset >= last => self.chosen = last_row,
            KeyCode::PageDown => *offset = (*offset + page).min(last),
            KeyCode::Home => (*offset, self.chosen) = (0, 0),
            KeyCode::End => (*offset, self.chosen) = (last, last_row),
            _ => return,
        }
        let is_step = matches!(code, KeyCode::Up | KeyCode::Down | KeyCode::Char('j' | 'k'));
        let here = self.rows.get(self.chosen).and_then(id_of);
        self.follows = here.filter(|_| is_step && self.chosen > 0 && self.chosen < last_row);
    }

    fn open(&mut self) {
        let Some(row) = self.rows.get(self.chosen) else { return };
        if let Some(details) = Details::of(row, self.status.now_ns) {
            self.over = Over::Details(Box::new(details));
        }
    }

    fn search_key(&mut self, code: KeyCode) -> Next {
        let Over::Search(typed) = &mut self.over else { return Next::Draw };
        match code {
            KeyCode::Char(c) => typed.push(c),
            KeyCode::Backspace => _ = typed.pop(),
            KeyCode::Enter => {
                self.view.search = std::mem::take(typed);
                (self.view.offset, self.chosen, self.follows) = (0, 0, None);
                return self.close();
            }
            KeyCode::Esc => return self.close(),
            _ => {}
        }
        Next::Draw
    }

    fn details_key(&mut self, code: KeyCode) -> Next {
        let Over::Details(details) = &mut self.over else { return Next::Draw };
        match code {
            KeyCode::Char('q') | KeyCode::Esc | KeyCode::Enter => return self.close(),
            KeyCode::Char('c') => {
                let command = details.command();
                self.note = Some("copied, if the terminal allows it (OSC 52)".into());
                return Next::Copy(command);
            }
            KeyCode::Up | KeyCode::Char('k') => details.scroll = details.scroll.saturating_sub(1),
            KeyCode::Down | KeyCode::Char('j') => details.scroll += 1,
            KeyCode::PageUp => details.scroll = details.scroll.saturating_sub(10),
            KeyCode::PageDown => details.scroll += 10,
            KeyCode::Home => details.scroll = 0,
            KeyCode::Char('r') => {
                self.view.names = !self.view.names;
                self.resolve();
            }
            KeyCode::Char('h') => self.view.scaled = !self.view.scaled,
            _ => {}
        }
        Next::Draw
    }
}
