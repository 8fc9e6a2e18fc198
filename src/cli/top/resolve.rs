//! Names of addresses by the system's resolver, asked in the background.
//!
//! Limits: [`THREADS`] questions at once, [`WAITING`] that wait, [`KEPT`] answers; what finds no room
//! is asked for again when it is shown again.

use std::collections::HashMap;
use std::net::IpAddr;
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::{Sender, bounded};

use super::Message;
use crate::cli::text;

const THREADS: usize = 4;
const WAITING: usize = 256;
const KEPT: usize = 4_096;
/// How long an answer is good, a name and none.
const GOOD: Duration = Duration::from_secs(3_600);
const GOOD_NONE: Duration = Duration::from_secs(300);

struct Known {
    /// `None`: it has none, or is being asked for.
    name: Option<String>,
    until: Instant,
}

/// Names known so far.
pub(super) struct Resolver {
    known: HashMap<IpAddr, Known>,
    questions: Sender<IpAddr>,
}

impl Resolver {
    /// Answers go to `to`.
    pub(super) fn start(to: &Sender<Message>) -> Self {
        let (questions, waiting) = bounded::<IpAddr>(WAITING);
        for _ in 0..THREADS {
            let (waiting, to) = (waiting.clone(), to.clone());
            thread::spawn(move || {
                for ip in waiting {
                    let name = dns_lookup::lookup_addr(&ip).ok();
                    if to.send(Message::Name(ip, name)).is_err() {
                        return;
                    }
                }
            });
        }
        Self { known: HashMap::new(), questions }
    }

    /// The name, if it is known; otherwise it is asked for.
    pub(super) fn name(&mut self, ip: IpAddr) -> Option<&str> {
        let now = Instant::now();
        if self.known.get(&ip).is_none_or(|k| k.until < now) {
            self.make_room(now);
            if self.questions.try_send(ip).is_ok() {
                let name = self.known.remove(&ip).and_then(|k| k.name);
                self.known.insert(ip, Known { name, until: now + GOOD_NONE });
            }
        }
        self.known.get(&ip)?.name.as_deref()
    }

    /// Takes an answer in.
    pub(super) fn answer(&mut self, ip: IpAddr, name: Option<String>) {
        let good = if name.is_some() { GOOD } else { GOOD_NONE };
        let name = name.map(|n| text::plain(n.trim_end_matches('.')).into_owned());
        self.known.insert(ip, Known { name, until: Instant::now() + good });
    }

    /// Addresses of those names.
    pub(super) fn addresses(&self, is_wanted: impl Fn(&str) -> bool) -> Vec<IpAddr> {
        let named = self.known.iter();
        let named = named.filter(|(_, k)| k.name.as_deref().is_some_and(&is_wanted));
        let mut out: Vec<IpAddr> = named.map(|(ip, _)| *ip).collect();
        out.sort_unstable();
        out
    }

    fn make_room(&mut self, now: Instant) {
        if self.known.len() < KEPT {
            return;
        }
        self.known.retain(|_, k| k.until > now);
        if self.known.len() >= KEPT {
            // The answers that are the oldest, but for some.
            let mut untils: Vec<Instant> = self.known.values().map(|k| k.until).collect();
            untils.sort_unstable();
            let middle = untils.get(KEPT / 2).copied().unwrap_or(now);
            self.known.retain(|_, k| k.until > middle);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_kept_and_bounded() {
        let (to, answers) = crossbeam_channel::unbounded();
        let mut resolver = Resolver::start(&to);
        let local: IpAddr = "127.0.0.1".parse().unwrap();
        assert_eq!(resolver.name(local), None);
        // Whatever this machine calls it, an answer comes.
        let Ok(Message::Name(ip, _)) = answers.recv_timeout(Duration::from_secs(60)) else {
            panic!("no answer")
        };
        assert_eq!(ip, local);
        resolver.answer(local, Some("local\u{1b}host.".into()));
        assert_eq!(resolver.name(local), Some("localhost"));
        assert_eq!(resolver.addresses(|n| n == "localhost"), [local]);
        for n in 0..2 * KEPT as u32 {
            resolver.answer(IpAddr::from(n.to_be_bytes()), None);
            resolver.make_room(Instant::now());
        }
        assert!(resolver.known.len() <= KEPT, "{}", resolver.known.len());
    }
}
