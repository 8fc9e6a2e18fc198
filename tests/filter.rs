//! The capture filters, from the binary's side, with tcpdump as the judge.

#![allow(clippy::unwrap_used, reason = "a test that cannot run fails")]

mod common;

use std::fs;
use std::path::Path;
use std::process::Command;

use common::{events, home_plain, home_truth, malakocut, number, segments, total};
use serde_json::Value;

/// Packets of a file that tcpdump takes by an expression, whatever their tags.
fn tcpdump(file: &Path, filter: &str) -> u64 {
    let any = format!("({filter}) or (vlan and ({filter}))");
    let filter = if filter.is_empty() { filter } else { &any };
    let out = Command::new("tcpdump").arg("-nr").arg(file).arg(filter).output().unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8(out.stdout).unwrap().lines().count() as u64
}

#[test]
fn telemetry_and_journal_see_what_the_filter_takes() {
    let dir = tempfile::tempdir().unwrap();
    let home = home_plain(dir.path());
    let file = dir.path().join("c.bpf");
    fs::write(&file, "# names\nudp port 53 # DNS\n  or arp\n").unwrap();
    let file = file.to_str().unwrap();
    let all = number(&home_truth(), "packets");
    let web = all - tcpdump(&home, "port 80 or port 443");
    let udp_without_web = tcpdump(&home, "udp and not (port 80 or port 443)");
    for (number_of, (args, want, says)) in [
        (
            &["--filter", "udp port 53"][..],
            tcpdump(&home, "udp port 53"),
            "--filter (command line)",
        ),
        (&["-capture-filter", file], tcpdump(&home, "udp port 53 or arp"), "c.bpf (command line)"),
        (&["-exclude-web"], web, "--exclude-web"),
        (&["--filter", "udp", "--exclude-web"], udp_without_web, "--exclude-web"),
        (&["--filter", "udp", "--capture-filter", file], tcpdump(&home, "udp"), "is not used"),
        (&["--filter", ""], all, "every packet"),
    ]
    .into_iter()
    .enumerate()
    {
        let mut first: Option<Vec<String>> = None;
        for lcores in ["0@0", "0@0,1@0", "0@0,1@0,2@0", "0@0,1@0,2@0,3@0"] {
            let log = dir.path().join("flows");
            let _ = fs::remove_file(&log);
            let data = dir.path().join(format!("data-{number_of}-{lcores}"));
            let ours = ["--read", home.to_str().unwrap(), "--summary", "json", "--journal", "on"];
            let more = ["--flow-log", log.to_str().unwrap(), "--data-dir", data.to_str().unwrap()];
            let run = malakocut(&[&ours[..], &more, &["--lcores", lcores], args].concat()).ok();
            assert!(run.stderr.contains(says), "{}", run.stderr);
            let summary = run.summary();
            let counted = |key| number(&summary, key);
            assert_eq!((counted("packets"), counted("filtered")), (all, all - want), "{args:?}");
            assert_eq!(counted("bytes"), number(&home_truth(), "bytes"));
            let read =
                counted("decoded") + total(&summary["not_ip"]) + total(&summary["malformed"]);
            assert_eq!(all, read + counted("filtered"));
            let in_flows: u64 = events(&log).iter().map(|e| number(e, "packets")).sum();
            assert_eq!(in_flows, counted("decoded"));
            assert_eq!(number(&summary["journal"], "packets"), want);
            assert_eq!(segments(&data).iter().map(|f| tcpdump(f, "")).sum::<u64>(), want);
            // Where a packet lies in the journal depends on who was first there.
            let without_place = |mut event: Value| {
                event.as_object_mut().unwrap().remove("journal");
                event.to_string()
            };
            let mut lines: Vec<String> = events(&log).into_iter().map(without_place).collect();
            lines.sort();
            assert_eq!(&lines, first.get_or_insert_with(|| lines.clone()), "{args:?} {lcores}");
        }
    }
}

#[test]
fn an_expression_that_is_none_shows_where_and_ends_with_2() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("bad.bpf");
    fs::write(&file, "# names\nudp port 53\n  or tcp prot 853\n").unwrap();
    let file = file.to_str().unwrap();
    for (args, says) in [
        (["--filter", "tcp prot 80"], "--filter: syntax error at \"prot\" (character 5)"),
        (["--capture-filter", file], "syntax error at \"prot\" (line 3, character 10)"),
        (["--capture-filter", "/no/such/file"], "--capture-filter /no/such/file: "),
    ] {
        let run = malakocut(&[&["--read", "no-such-capture"][..], &args].concat());
        assert_eq!(run.code, Some(2));
        assert!(run.stderr.contains(says), "{}", run.stderr);
    }
    let mut command = common::command();
    let run = command.env("MALAKOCUT_FILTER", "tcp and").args(["--read", "x"]).output().unwrap();
    assert_eq!(run.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&run.stderr).contains("its end"), "{run:?}");
}

#[test]
fn the_shipped_filter_file_compiles() {
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/configs/capture.bpf");
    let home = common::home();
    let args = ["--read", home.to_str().unwrap(), "--capture-filter", file, "--summary", "json"];
    let summary = malakocut(&args).ok().summary();
    assert!(number(&summary, "decoded") > 0, "{summary}");
}
