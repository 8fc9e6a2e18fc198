//! `malakocut-cli` beside a running sensor: what it prints, in which form, and its exit status.

#![allow(clippy::unwrap_used, reason = "a test that cannot run fails")]

mod common;
mod pair;
mod sensor;

use std::collections::BTreeSet;
use std::fs;
use std::io::Write;
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};
use std::time::Duration;

use common::{Run, lines, number, packets_of, total};
use sensor::{CLI, Sensor, text, wait};
use serde_json::Value;

fn cli(args: &[&str]) -> Run {
    Run::of(Command::new(CLI).args(args).output().unwrap())
}

#[test]
fn where_no_sensor_runs_one_line_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let nowhere = dir.path().join("socket");
    // A socket that nobody listens on any more.
    let left = dir.path().join("left");
    drop(std::os::unix::net::UnixListener::bind(&left).unwrap());
    for socket in [&nowhere, &left] {
        for command in ["status", "top", "flows", "alerts", "reload"] {
            let run = cli(&[command, "--socket", text(socket)]);
            assert_eq!((run.code, run.stdout.as_str()), (Some(2), ""), "{command}");
            assert_eq!(run.stderr.lines().count(), 1, "{command}: {}", run.stderr);
            assert!(run.stderr.contains("no sensor is running"), "{command}: {}", run.stderr);
            assert!(run.stderr.contains(text(socket)), "{command}: {}", run.stderr);
        }
    }
    for args in [&["flows", "--sort", "size"][..], &["status", "--jsn"], &["flows", "--limit", "0"]]
    {
        assert_eq!(cli(args).code, Some(2), "{args:?}");
    }
}

#[test]
fn status_says_how_it_is() {
    let Some(sensor) = Sensor::with_flows(&["--active-timeout", "1"]) else { return };
    wait("ports are known", || sensor.status()["top_dst_ports"]["443"].is_u64());
    let run = sensor.cli(&["status"]).ok();
    println!("{}", run.stdout);
    assert!(run.stdout.starts_with("malakocut "), "{}", run.stdout);
    for needle in [
        "attic",
        "up 0h0m",
        "interface mirror",
        "packets    13004 (",
        "lost       nothing",
        "443 https",
        "lcore 0",
    ] {
        assert!(run.stdout.contains(needle), "{needle}: {}", run.stdout);
    }
    assert!(!run.stdout.contains('\x1b'), "no colours into a pipe");
    // As the Go program had its options, before or after.
    for args in [&["-pretty", "-resolve", "status"][..], &["status", "--pretty"]] {
        let run = sensor.cli(args).ok();
        assert!(run.stdout.contains("13.0k ("), "{}", run.stdout);
    }
    let status = sensor.status();
    assert_eq!(number(&status, "packets"), sensor.packets);
    assert_eq!(number(&status, "dropped_events"), 0);
}

#[test]
fn colours_are_for_terminals_that_want_them() {
    let Some(sensor) = Sensor::start(&[]) else { return };
    let on_a_terminal = |environment: &str| {
        let program = format!("{environment} {CLI} status --socket {}", text(&sensor.socket));
        let out = Command::new("script")
            .args(["-qec", &program, "/dev/null"])
            .env("TERM", "xterm")
            .stdin(Stdio::null())
            .output()
            .unwrap();
        String::from_utf8(out.stdout).unwrap()
    };
    let coloured = on_a_terminal("env -u NO_COLOR");
    assert!(coloured.contains("\x1b[32mnothing"), "{coloured:?}");
    for environment in ["env NO_COLOR=1", "env -u NO_COLOR TERM=dumb"] {
        let plain = on_a_terminal(environment);
        assert!(plain.contains("nothing") && !plain.contains('\x1b'), "{environment}: {plain:?}");
    }
}

#[test]
fn flows_in_every_form_and_order() {
    let logs = tempfile::tempdir().unwrap();
    let log = logs.path().join("ended.json");
    let Some(sensor) = Sensor::with_flows(&["--flow-log", text(&log)]) else { return };
    let table = sensor.cli(&["flows"]).ok().stdout;
    println!("{}", table.lines().take(12).collect::<Vec<_>>().join("\n"));
    let first = table.lines().nth(1).unwrap();
    for needle in ["192.168.1.30:40837", "192.0.2.140:443", "TCP", "8687", "tls film.example.com"] {
        assert!(first.contains(needle), "{needle}: {first}");
    }
    let named = sensor.cli(&["flows", "-resolve", "--limit", "1"]).ok();
    assert!(named.stdout.contains("film.example.com:443"), "{}", named.stdout);
    assert!(named.stderr.contains("--all"), "{}", named.stderr);

    let all = lines(&sensor.cli(&["flows", "--all", "--json"]).ok().stdout);
    let ids: BTreeSet<&str> = all.iter().map(|e| e["flow_id"].as_str().unwrap()).collect();
    assert_eq!(ids.len(), all.len());
    assert_eq!(all.len(), table.lines().count() - 1);
    let in_flows: u64 = all.iter().map(|e| number(e, "packets")).sum();
    wait("what has ended is in the log", || {
        let ended = lines(&fs::read_to_string(&log).unwrap());
        let in_ended: u64 = ended.iter().map(|e| number(e, "packets")).sum();
        in_flows + in_ended == number(&sensor.status(), "decoded")
    });

    let bytes = |args: &[&str]| -> Vec<u64> {
        let all = [&["flows", "--json"], args].concat();
        lines(&sensor.cli(&all).ok().stdout).iter().map(|e| number(e, "bytes")).collect()
    };
    assert!(bytes(&[]).windows(2).all(|w| w[0] >= w[1]));
    assert!(bytes(&["--order", "asc"]).windows(2).all(|w| w[0] <= w[1]));
    let tls = "protocol == \"TCP\" and sni ends_with \".example.com\" and dst_ip in 192.0.2.0/24";
    let some = lines(&sensor.cli(&["flows", tls, "--json"]).ok().stdout);
    assert!(!some.is_empty() && some.len() < all.len());
    assert!(some.iter().all(|e| e["sni"].as_str().unwrap().ends_with(".example.com")));

    let csv = sensor.cli(&["flows", tls, "--csv", "--fields", "src_ip,sni,bytes"]).ok().stdout;
    let mut rows = csv.split("\r\n");
    assert_eq!(rows.next(), Some("src_ip,sni,bytes"));
    let first = &some[0];
    let want = format!(
        "{},{},{}",
        first["src_ip"].as_str().unwrap(),
        first["sni"].as_str().unwrap(),
        first["bytes"]
    );
    assert_eq!(rows.next(), Some(want.as_str()));

    for (args, needle) in [
        (&["flows", "src_prot == 1"][..], "src_prot"),
        (&["flows", "bytes >"], "a number"),
        (&["flows", "--csv", "--fields", "colour"], "colour"),
    ] {
        let run = sensor.cli(args);
        assert_eq!(run.code, Some(2), "{args:?}");
        assert!(run.stderr.contains(needle), "{args:?}: {}", run.stderr);
    }
    // Who reads only the beginning is no error.
    let mut child = sensor
        .command(&["flows", "--all", "--json"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let run = Run::of(child.wait_with_output().unwrap());
    assert_eq!((run.code, run.stderr.as_str()), (Some(0), ""));
}

#[test]
fn alerts_as_a_table_as_lines_and_those_to_come() {
    let dir = tempfile::tempdir().unwrap();
    let config = dir.path().join("malakocut.toml");
    let eve = dir.path().join("eve.json");
    fs::write(&config, sensor::WATCH).unwrap();
    let Some(sensor) = Sensor::with_flows(&["--config", text(&config), "--eve-log", text(&eve)])
    else {
        return;
    };
    // Windows of a second end by the clock.
    let mut table = String::new();
    wait("the windows' alerts, and no more", || {
        let before = std::mem::replace(&mut table, sensor.cli(&["alerts"]).ok().stdout);
        std::thread::sleep(Duration::from_millis(1500));
        table.contains("192.168.1.41") && table == before
    });
    println!("{}", table.lines().take(5).collect::<Vec<_>>().join("\n"));
    assert!(table.starts_with("number"), "{table}");
    let all = lines(&sensor.cli(&["alerts", "--json"]).ok().stdout);
    assert_eq!(all.len(), table.lines().count() - 1);
    assert!(all.iter().all(|e| e["event_type"] == "alert" && e["src_ip"] == "192.168.1.41"));
    let few = lines(&sensor.cli(&["alerts", "--json", "--limit", "2"]).ok().stdout);
    assert_eq!(few, all[all.len().saturating_sub(2)..]);
    let none = sensor.cli(&["alerts", "--after", &all.len().to_string()]).ok();
    assert_eq!(none.stdout, "no alerts\n");
    // An end that nobody waits for.
    let mut follow =
        sensor.command(&["alerts", "--follow", "--json"]).stdout(Stdio::piped()).spawn().unwrap();
    let read = std::io::BufReader::new(follow.stdout.take().unwrap());
    let first = std::io::BufRead::lines(read).next().unwrap().unwrap();
    assert_eq!(serde_json::from_str::<Value>(&first).unwrap(), all[0]);
    follow.kill().unwrap();
    follow.wait().unwrap();
}

#[test]
fn a_reload_says_what_it_did() {
    let dir = tempfile::tempdir().unwrap();
    let log = dir.path().join("flows.json");
    let Some(sensor) = Sensor::start(&["--flow-log", text(&log)]) else { return };
    fs::rename(&log, dir.path().join("old")).unwrap();
    let run = sensor.cli(&["reload"]).ok();
    println!("{}", run.stdout);
    assert!(run.stdout.contains("reloaded: "), "{}", run.stdout);
    wait("the log is opened anew", || log.exists());
}

#[test]
fn completions_and_the_manual_know_every_command() {
    let bash = cli(&["completions", "bash"]).ok().stdout;
    let check = format!("{bash}\ncomplete -p malakocut-cli");
    let out = Run::of(Command::new("bash").args(["-c", &check]).output().unwrap()).ok();
    assert!(out.stdout.contains("malakocut-cli"), "{}", out.stdout);
    for shell in ["zsh", "fish", "elvish", "powershell"] {
        assert!(cli(&["completions", shell]).ok().stdout.contains("extract"), "{shell}");
    }
    assert_eq!(cli(&["completions", "tcsh"]).code, Some(2));
    let manual = cli(&["man"]).ok().stdout;
    assert!(manual.contains(".TH malakocut-cli 1"), "{manual}");
    for command in
        ["STATUS", "TOP", "FLOWS", "ALERTS", "RELOAD", "EXTRACT", "JOURNAL VERIFY", "EXPORT DEAD"]
    {
        assert!(
            manual.contains(&format!(".SH \"MALAKOCUT-CLI {command}\"")),
            "{command}: {manual}"
        );
    }
}

/// Sends at 100,000 packets a second while so many clients ask for flows and never read the answer;
/// how many packets were lost.
fn lost_beside(clients: usize) -> Option<u64> {
    let sensor = Sensor::with_flows(&[])?;
    let silent: Vec<UnixStream> = (0..clients)
        .map(|_| {
            let mut stream = UnixStream::connect(&sensor.socket).unwrap();
            for _ in 0..4 {
                let question = b"GET /flows?limit=10000 HTTP/1.1\r\nHost: localhost\r\n\r\n";
                stream.write_all(question).unwrap();
            }
            stream
        })
        .collect();
    let capture = sensor.dir.path().join("home.pcap");
    let once = packets_of(&capture).len() as u64;
    let send = ["-q", "--pps", "100000", "-l", "20", "-i", "sender", text(&capture)];
    sensor.pair.output("tcpreplay", &send);
    let sent = sensor.packets + 20 * once;
    let mut lost = 0;
    wait("everything is counted, and others are answered", || {
        let status = sensor.status();
        lost = total(&status["drops"]);
        number(&status, "packets") + lost == sent
    });
    drop(silent);
    Some(lost)
}

#[test]
fn clients_that_never_read_cost_no_packet() {
    let mut all = Vec::new();
    for _ in 0..3 {
        let Some(lost) = lost_beside(8) else { return };
        if lost == 0 {
            println!("8 silent clients, 100,000 packets/s: nothing lost");
            return;
        }
        all.push(lost);
    }
    // A machine that is too busy loses without them too.
    let alone = lost_beside(0);
    println!("lost beside silent clients {all:?}, without them {alone:?}");
    assert!(alone.is_some_and(|lost| lost > 0), "{all:?} lost");
}
