//! `top`: the live flows on a terminal, as they change.
//!
//! The sensor sorts, filters and cuts: only the rows that are seen travel (`view`). One thread asks
//! it (`fetch`), one waits for keys, a few for names (`resolve`); all send messages to the one that
//! draws (`draw`). Text from the network comes to the terminal without control characters.

mod app;
mod details;
mod draw;
mod fetch;
mod keys;
mod look;
mod resolve;
mod rules;
mod view;

use std::io::{self, IsTerminal, Write};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use clap::Args;
use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, unbounded};
use ratatui::DefaultTerminal;
use ratatui::crossterm::event::{self, Event, KeyEvent, KeyEventKind};

use super::client::{AskError, Door};
use super::names::Vendors;
use super::{Outcome, Refused, Show};
use crate::control::Status;
use crate::event::Expression;
use app::App;
use fetch::Answers;
use keys::Next;
use look::Look;
use rules::Rules;
use view::View;

pub(super) const AFTER: &str = "Press ? in it for the keys. The rules of what is left out stand in a file, one \
a line: ip:192.168.1.7, ip:10.0.0.0/8, port:53, proto:icmp, domain:printer.local, domain:*.example.com.";

/// Where the rules of what is left out are looked for when nobody says.
const IGNORE_FILE: &str = "/etc/malakocut/configs/cli_ignore.conf";
/// How often signals are looked at while nothing happens.
const GLANCE: Duration = Duration::from_millis(500);

#[derive(Debug, Args)]
pub(super) struct Top {
    /// Seconds between two looks at the sensor, 0.2 to 3600
    #[arg(long, value_name = "S", default_value = "1", value_parser = seconds)]
    interval: Duration,
    /// Only flows for which this holds, as for `flows`
    #[arg(long, value_name = "FILTER", value_parser = expression)]
    filter: Option<String>,
    /// Rules of what is left out [default: /etc/malakocut/configs/cli_ignore.conf]
    #[arg(long, value_name = "FILE")]
    ignore_file: Option<PathBuf>,
    /// Draw with ASCII alone; the default where the locale is not UTF-8
    #[arg(long)]
    ascii: bool,
    #[command(flatten)]
    door: Door,
}

fn seconds(text: &str) -> Result<Duration, String> {
    let all = 0.2..=3600.0;
    let s = text.parse().ok().filter(|s| all.contains(s)).ok_or("seconds, 0.2 to 3600")?;
    Ok(Duration::from_secs_f64(s))
}

fn expression(text: &str) -> Result<String, String> {
    text.parse::<Expression>().map(|_| text.to_owned())
}

/// What the drawing thread hears.
#[derive(Debug)]
enum Message {
    Key(KeyEvent),
    Resize,
    Answers(Box<Answers>),
    Problem(AskError),
    /// An address's name by reverse DNS.
    Name(IpAddr, Option<String>),
    Vendors(Vendors),
    /// The terminal is gone.
    End,
}

impl Top {
    pub(super) fn run(self, show: Show) -> Result<Outcome, Refused> {
        let (mut client, file) = self.door.find()?;
        let (rules, rules_from) = self.rules()?;
        // What can be said in a line is said before the screen is taken.
        let _: Status = client.get("/status")?;
        if !io::stdout().is_terminal() || !io::stdin().is_terminal() {
            return Err(Refused("top needs a terminal; `flows` and `status` do not".into()));
        }
        let (to, messages) = unbounded();
        let view = View {
            filter: self.filter,
            names: show.resolve,
            scaled: show.pretty,
            ..View::default()
        };
        let look = Look::of_environment(self.ascii);
        let mut app = App::new(view, file.networks, rules, rules_from, look, to.clone());
        let ended = Arc::new(AtomicBool::new(false));
        for signal in
            [signal_hook::consts::SIGTERM, signal_hook::consts::SIGHUP, signal_hook::consts::SIGINT]
        {
            signal_hook::flag::register(signal, Arc::clone(&ended)).map_err(Refused::because)?;
        }
        let mut terminal = ratatui::try_init().map_err(Refused::because)?;
        let interval = self.interval;
        thread::spawn({
            let to = to.clone();
            move || to.send(Message::Vendors(Vendors::load()))
        });
        let drawn = terminal.draw(|frame| draw::draw(frame, &mut app)).map(|_| ());
        let wanted = fetch::start(client, app.wanted(), interval, to.clone());
        thread::spawn(move || keys(&to));
        let done = drawn.and_then(|()| watch(&mut terminal, &mut app, &messages, &wanted, &ended));
        let restored = ratatui::try_restore();
        done.and(restored).map_err(Refused::because)?;
        Ok(Outcome::Done)
    }

    /// The rules, and the file that they are from.
    fn rules(&self) -> Result<(Rules, PathBuf), Refused> {
        let path = match &self.ignore_file {
            Some(path) => path.clone(),
            None if Path::new(IGNORE_FILE).exists() => IGNORE_FILE.into(),
            None => return Ok((Rules::default(), IGNORE_FILE.into())),
        };
        let rules = Rules::load(&path).map_err(Refused)?;
        Ok((rules, path))
    }
}

/// Draws whenever something has changed, until the user has seen enough.
fn watch(
    terminal: &mut DefaultTerminal,
    app: &mut App,
    messages: &Receiver<Message>,
    wanted: &Sender<fetch::Wanted>,
    ended: &AtomicBool,
) -> io::Result<()> {
    let mut last = app.wanted();
    while !ended.load(Ordering::Relaxed) {
        let first = match messages.recv_timeout(GLANCE) {
            Ok(message) => message,
            Err(RecvTimeoutError::Timeout) => continue,
            Err(RecvTimeoutError::Disconnected) => return Ok(()),
        };
        for message in std::iter::once(first).chain(messages.try_iter()) {
            match app.hear(message) {
                Next::Draw => {}
                Next::Clear => terminal.clear()?,
                Next::Copy(text) => copy(&text)?,
                Next::End => return Ok(()),
            }
        }
        terminal.draw(|frame| draw::draw(frame, app))?;
        // Drawing says how many rows there is room for.
        let now = app.wanted();
        if now != last {
            last = now.clone();
            let _ = wanted.send(now);
        }
    }
    Ok(())
}

/// Into the terminal's clipboard, also over ssh: OSC 52.
fn copy(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    write!(out, "\x1b]52;c;{}\x07", STANDARD.encode(text))?;
    out.flush()
}

/// The thread that waits for keys.
fn keys(to: &Sender<Message>) {
    loop {
        let message = match event::read() {
            Ok(Event::Key(key)) if key.kind != KeyEventKind::Release => Message::Key(key),
            Ok(Event::Resize(..)) => Message::Resize,
            Ok(_) => continue,
            Err(_) => Message::End,
        };
        let is_end = matches!(message, Message::End);
        if to.send(message).is_err() || is_end {
            return;
        }
    }
}
