//! `malakocut-cli top` as a user has it: in a terminal (tmux), beside a running sensor.

#![allow(clippy::unwrap_used, reason = "a test that cannot run fails")]

mod common;
mod pair;
mod sensor;

use std::cell::RefCell;
use std::fs;
use std::process::Command;

use sensor::{CLI, Sensor, text, wait};

/// A terminal with a program in it.
struct Terminal {
    server: String,
    /// What was seen last, for a failure.
    seen: RefCell<String>,
}

impl Terminal {
    /// `None`, with a message, where there is no tmux.
    fn with(name: &str, size: (u16, u16), environment: &[&str], program: &str) -> Option<Self> {
        if Command::new("tmux").arg("-V").output().is_err() {
            println!("skipped: tmux is not installed");
            return None;
        }
        let server = format!("mk-{name}-{}", std::process::id());
        let this = Self { server, seen: RefCell::default() };
        let (columns, lines) = (size.0.to_string(), size.1.to_string());
        let shell = format!(
            "env -u NO_COLOR -u LC_ALL -u LC_CTYPE {} {program}; echo ended with $?; exec sleep 600",
            environment.join(" ")
        );
        this.tmux(&["new-session", "-d", "-s", "t", "-x", &columns, "-y", &lines, &shell]);
        Some(this)
    }

    fn tmux(&self, args: &[&str]) -> String {
        let mut command = Command::new("tmux");
        command.args(["-u", "-f", "/dev/null", "-L", &self.server]).env("LC_ALL", "C.UTF-8");
        let out = command.args(args).output().unwrap();
        assert!(out.status.success(), "{args:?}: {}", String::from_utf8_lossy(&out.stderr));
        String::from_utf8(out.stdout).unwrap()
    }

    fn keys(&self, keys: &[&str]) {
        self.tmux(&[&["send-keys", "-t", "t"], keys].concat());
    }

    fn type_text(&self, text: &str) {
        self.tmux(&["send-keys", "-t", "t", "-l", text]);
    }

    fn screen(&self) -> String {
        self.tmux(&["capture-pane", "-p", "-t", "t"])
    }

    /// Waits until the screen is so.
    fn until(&self, what: &str, is_so: impl Fn(&str) -> bool) -> String {
        let seen = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            wait(what, || {
                let screen = self.screen();
                let done = is_so(&screen);
                *self.seen.borrow_mut() = screen;
                done
            });
        }));
        let screen = self.seen.borrow().clone();
        assert!(seen.is_ok(), "{what}:\n{screen}");
        screen
    }

    fn shows(&self, needle: &str) -> String {
        self.until(&format!("`{needle}` is shown"), |s| s.contains(needle))
    }

    fn shows_no(&self, needle: &str) -> String {
        self.until(&format!("`{needle}` is gone"), |s| !s.contains(needle))
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let kill = ["-L", &self.server, "kill-server"];
        let _ = Command::new("tmux").args(kill).output();
    }
}

/// The cells of a column, from where its title stands; those that are numbers, scaled or not.
fn numbers(screen: &str, title: &str) -> Vec<f64> {
    let mut lines = screen.lines().skip_while(|l| !l.contains("source"));
    let head = lines.next().unwrap();
    // The titles stand to the right, and one of them has a mark.
    let (before, from) = head.split_at(head.find(title).unwrap());
    let end = before.chars().count() + from.split(' ').next().unwrap().chars().count();
    let cell = |line: &str| {
        let upto: String = line.chars().take(end).collect();
        let last = upto.split_whitespace().last()?.to_owned();
        let digits = last.trim_end_matches(|c: char| c.is_alphabetic());
        let unit = match last.strip_prefix(digits)? {
            "k" => 1e3,
            "M" => 1e6,
            "G" => 1e9,
            "m" => 60.0,
            _ => 1.0,
        };
        Some(digits.parse::<f64>().ok()? * unit)
    };
    lines.map_while(cell).collect()
}

fn falls(values: &[f64]) -> bool {
    values.len() > 5 && values.windows(2).all(|w| w[0] >= w[1])
}

fn rises(values: &[f64]) -> bool {
    values.len() > 5 && values.windows(2).all(|w| w[0] <= w[1])
}

/// How many flows there are with what is set: the number behind ` of `.
fn matched(screen: &str) -> u64 {
    let line = screen.lines().nth(3).unwrap();
    let n = line.split(" of ").nth(1).unwrap().split(' ').next().unwrap();
    n.parse().unwrap()
}

fn table(screen: &str) -> Vec<&str> {
    screen.lines().skip_while(|l| !l.contains("source")).skip(1).collect()
}

#[test]
fn every_key_does_what_the_help_says() {
    let logs = tempfile::tempdir().unwrap();
    let (watch, eve) = (logs.path().join("watch.toml"), logs.path().join("eve.json"));
    fs::write(&watch, sensor::WATCH).unwrap();
    let watched = ["--config", text(&watch), "--eve-log", text(&eve)];
    let Some(sensor) = Sensor::with_flows(&watched) else { return };
    let dir = sensor.dir.path();
    let rules = dir.join("ignore.conf");
    fs::write(&rules, "# scanner\nip:192.168.1.41\nport:5353\ndomain:*.example.org\n").unwrap();
    let config = dir.join("malakocut.toml");
    fs::write(&config, "[networks]\nhome = \"192.168.1.0/24\"\n").unwrap();
    let program = format!(
        "{CLI} top --socket {} --config {} --ignore-file {} --interval 0.3",
        text(&sensor.socket),
        text(&config),
        text(&rules)
    );
    let Some(t) = Terminal::with("keys", (80, 24), &["LANG=C.UTF-8"], &program) else { return };
    let screen = t.shows("192.168.1.30");
    println!("{screen}");
    assert!(screen.lines().all(|l| l.chars().count() <= 80), "{screen}");
    assert!(screen.contains("malakocut attic") && screen.contains("lost 0"), "{screen}");
    assert!(screen.contains("packets/s") && screen.contains("bits/s"), "{screen}");
    assert!(falls(&numbers(&screen, "byte")), "by bytes at first: {screen}");
    assert!(screen.contains('\u{2192}'), "outward: {screen}");
    let left = matched(&screen);

    // g: the rules.
    t.keys(&["g"]);
    let all = matched(&t.until("all flows", |s| matched(s) > left));
    assert!(all > left + 100, "the scanner's alone are more: {left} of {all}");
    t.shows_no("rules applied");

    // Sorting; the same key again turns it round.
    for (key, title) in [("p", "pkt"), ("d", "tim"), ("b", "byte")] {
        t.keys(&[key]);
        t.until(&format!("{key} falls"), |s| falls(&numbers(s, title)));
        t.keys(&[key]);
        t.until(&format!("{key} rises"), |s| rises(&numbers(s, title)));
    }
    t.keys(&["o"]);
    t.until("by protocol", |s| table(s).first().is_some_and(|l| l.contains("ICMP6")));
    t.keys(&["i"]);
    t.until("by idleness", |s| s.contains("idle\u{25bc}") || s.contains("idl\u{25bc}"));
    t.keys(&["s"]);
    t.until("by start", |s| !s.contains('\u{25bc}'));
    t.keys(&["e", "b"]);

    // f: protocols in turn.
    for (name, other) in [("TCP", "UDP"), ("UDP", "TCP"), ("ICMP", "UDP")] {
        t.keys(&["f"]);
        t.until(&format!("only {name}"), |s| {
            let rows = table(s);
            s.contains(&format!("protocol {name}"))
                && rows.iter().any(|l| l.contains(&format!(" {name}")))
                && !rows.iter().any(|l| l.contains(&format!(" {other} ")))
        });
    }
    t.shows("echo");
    t.keys(&["f"]);
    t.until("all again", |s| matched(s) == all);

    // x: what stays inside goes; m: multicast goes.
    t.keys(&["x"]);
    let remote = t.until("remote only", |s| matched(s) < all);
    assert!(remote.contains("remote only") && !remote.contains('\u{2194}'), "{remote}");
    t.keys(&["x"]);
    t.until("all again", |s| matched(s) == all);
    t.type_text("/224.0.0.0/4");
    t.keys(&["Enter"]);
    let multicast =
        matched(&t.until("multicast", |s| s.contains("search 224.0.0.0/4") && matched(s) < all));
    assert!(multicast > 0);
    t.keys(&["m"]);
    t.shows("no flows");
    t.keys(&["Escape"]);
    t.until("the rest", |s| (1..all).contains(&matched(s)) && s.contains("no multicast"));
    t.keys(&["m"]);
    t.until("all again", |s| matched(s) == all);

    // h: units; r: names and services.
    let exact = t.screen();
    t.keys(&["h"]);
    let scaled = t.until("units", |s| s.contains("units") && s.contains("M "));
    assert!(!exact.contains("units") && scaled.contains("8.8M"), "{scaled}");
    t.keys(&["h", "r"]);
    t.shows("film.examp");
    t.shows(":https");
    t.keys(&["r"]);
    t.shows_no(":https");

    // Search: names, ports, expressions; empty is all.
    for (what, want) in
        [("film.example", "192.0.2.140"), ("dst_port == 443 and bytes > 1e6", "8687")]
    {
        t.type_text(&format!("/{what}"));
        t.shows(&format!("/{what}_"));
        t.keys(&["Enter"]);
        t.until(what, |s| s.contains("search") && matched(s) < 10 && s.contains(want));
        t.keys(&["Escape"]);
        t.until("all again", |s| matched(s) == all);
    }
    t.type_text("/zz");
    t.keys(&["BSpace", "BSpace", "Escape"]);
    t.until("nothing searched", |s| matched(s) == all && !s.contains("/_"));

    // Arrows, pages, ends.
    let ends = |s: &str| -> String { table(s)[0].chars().take(40).collect() };
    let first = ends(&t.screen());
    t.keys(&["PageDown"]);
    t.until("second page", |s| s.contains("19-36 of") && ends(s) != first);
    t.keys(&["End"]);
    t.shows(&format!("-{all} of {all}"));
    t.keys(&["PageUp"]);
    t.shows_no(&format!("-{all} of {all}"));
    t.keys(&["Home"]);
    t.until("the first", |s| ends(s) == first);
    t.keys(&["Down", "j", "Up", "k"]);

    // Enter: details of the largest flow.
    t.keys(&["Enter"]);
    let page = t.shows("malakocut-cli extract --flow-id");
    println!("{page}");
    for needle in
        ["192.168.1.30:40837", "network home", "192.0.2.140:443", "film.example.com", "history"]
    {
        assert!(page.contains(needle), "{needle}: {page}");
    }
    t.keys(&["c"]);
    t.shows("copied");
    t.keys(&["Down", "Up", "Escape"]);
    t.shows("source");

    // A flow with an alert is marked; its page has the alert.
    t.type_text("/198.51.100.77");
    t.keys(&["Enter"]);
    t.until("the mark", |s| table(s)[0].starts_with("! 192.168.1.41:36716"));
    t.keys(&["Enter"]);
    t.until("the alert", |s| {
        s.contains("198.51.100.77:443") && s.contains("alert ") && s.contains("attack")
    });
    // One at a time: a terminal that gets two in one read cannot tell them from one.
    t.keys(&["Escape"]);
    t.shows("source");
    t.keys(&["Escape"]);
    t.until("all again", |s| matched(s) == all);

    // ?: the help; g's file is named there.
    t.keys(&["?"]);
    let help = t.shows("any key: back");
    println!("{help}");
    assert!(help.contains("ignore.conf: 3 rules") && help.contains("multicast"), "{help}");
    t.keys(&["Escape"]);
    t.shows("source");
    t.keys(&["C-l"]);
    t.shows("source");

    // Larger and smaller.
    t.tmux(&["resize-window", "-t", "t", "-x", "200", "-y", "50"]);
    let wide = t.until("wide", |s| s.contains("flow id") && table(s).len() > 40);
    println!("{wide}");
    assert!(
        wide.contains("192.168.1.30:40837 home") && wide.contains("film.example.com"),
        "{wide}"
    );
    t.tmux(&["resize-window", "-t", "t", "-x", "30", "-y", "6"]);
    t.shows_no("flow id");
    t.tmux(&["resize-window", "-t", "t", "-x", "80", "-y", "24"]);
    t.shows("destination");

    t.keys(&["q"]);
    t.shows("ended with 0");
}

#[test]
fn without_utf8_and_without_colours_it_is_ascii_and_plain() {
    let Some(sensor) = Sensor::with_flows(&[]) else { return };
    let program = format!("{CLI} top --socket {} --interval 0.3", text(&sensor.socket));
    let Some(t) = Terminal::with("ascii", (80, 24), &["LANG=C"], &program) else { return };
    let screen = t.shows("192.168.1.30");
    assert!(screen.is_ascii(), "{screen}");
    assert!(table(&screen).iter().any(|l| l.contains(" > ")), "{screen}");
    let coloured = t.tmux(&["capture-pane", "-e", "-p", "-t", "t"]);
    assert!(coloured.contains("\x1b[38;5;2mlost 0"), "green: {coloured:?}");
    t.keys(&["C-c"]);
    t.shows("ended with 0");

    let plain = ["LANG=C", "NO_COLOR=1"];
    let Some(t) = Terminal::with("plain", (80, 24), &plain, &program) else { return };
    t.shows("192.168.1.30");
    let coloured = t.tmux(&["capture-pane", "-e", "-p", "-t", "t"]);
    let has_colour = coloured.contains("\x1b[38;")
        || (30..=37).chain(90..=97).any(|n| coloured.contains(&format!("\x1b[{n}m")));
    assert!(!has_colour, "{coloured:?}");
}

#[test]
fn a_sensor_that_goes_and_comes_back_is_said_and_waited_for() {
    let Some(mut sensor) = Sensor::with_flows(&[]) else { return };
    let program = format!("{CLI} top --socket {} --interval 0.3", text(&sensor.socket));
    let Some(t) = Terminal::with("gone", (80, 24), &["LANG=C.UTF-8"], &program) else { return };
    t.shows("192.168.1.30");
    sensor.stop();
    t.shows("no sensor is running");
    t.shows("192.168.1.30");
    sensor.restart();
    t.shows_no("no sensor is running");
    t.shows("no flows");
}
