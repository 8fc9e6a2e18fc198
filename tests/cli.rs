//! The binary as a user meets it: captures in, summaries, events and journal out, errors.

#![allow(clippy::unwrap_used, reason = "a test that cannot run fails")]

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use common::{
    Run, command, events, home, home_plain, home_truth, malakocut, number, segments, total,
};
use serde_json::Value;

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Flow lines that do not depend on when or how the capture was read, sorted.
fn flow_lines(args: &[&str]) -> Vec<String> {
    let run = malakocut(&[args, &["--flow-log", "-", "--sensor", "t"]].concat()).ok();
    let mut lines: Vec<String> = run.stdout.lines().map(str::to_owned).collect();
    lines.sort();
    assert!(!lines.is_empty());
    lines
}

#[test]
fn the_shipped_capture_gives_what_its_generator_put_in() {
    let truth = home_truth();
    let summary = malakocut(&["--read", text(&home()), "--summary", "json"]).ok().summary();
    for key in ["packets", "bytes"] {
        assert_eq!(number(&summary, key), number(&truth, key), "{key}");
    }
    assert_eq!(number(&summary, "decoded"), number(&truth, "ip_packets"));
    assert_eq!(total(&summary["not_ip"]), number(&truth, "not_ip"));
    assert_eq!(total(&summary["malformed"]) + total(&summary["drops"]), 0);

    let dir = tempfile::tempdir().unwrap();
    let log = dir.path().join("flows");
    // Without idle ends a flow is what the generator counts as one.
    malakocut(&["--read", text(&home()), "--flow-log", text(&log), "--idle-timeout", "3600"]).ok();
    let all = events(&log);
    let closed: Vec<&Value> = all.iter().filter(|e| e["final"] == true).collect();
    assert_eq!(closed.len() as u64, number(&truth, "flows"));
    let beacon: Vec<&&Value> = closed
        .iter()
        .filter(|e| e["dst_ip"] == truth["beacon_dst"] && e["protocol"] == "TCP")
        .collect();
    assert_eq!(beacon.len() as u64, number(&truth, "beacons"));
    assert!(beacon.iter().all(|e| e["conn_state"] == "SF" && e["orig_packets"] == 9));
    let scan = closed.iter().filter(|e| e["src_ip"] == "192.168.1.41" && e["conn_state"] != "SF");
    assert_eq!(scan.count() as u64, number(&truth, "scan_syns"));
}

#[test]
fn the_text_summary_names_the_scanner_and_the_largest_flow() {
    let run = malakocut(&["--read", text(&home())]).ok();
    assert!(run.stdout.starts_with("13183 packets, 11.3 MB in "), "{}", run.stdout);
    let busiest = run.stdout.split("Busiest hosts").nth(1).unwrap().lines().nth(2).unwrap();
    assert!(busiest.contains("192.168.1.41"), "{busiest}");
    let largest = run.stdout.split("Largest flows").nth(1).unwrap().lines().nth(2).unwrap();
    assert!(largest.contains("192.168.1.30") && largest.contains("8.8 MB"), "{largest}");
}

#[test]
fn deltas_sum_to_the_totals_and_end_once() {
    let dir = tempfile::tempdir().unwrap();
    let log = dir.path().join("flows");
    malakocut(&["--read", text(&home()), "--flow-log", text(&log), "--active-timeout", "7"]).ok();
    let mut flows: BTreeMap<String, Vec<Value>> = BTreeMap::new();
    for e in events(&log) {
        flows.entry(e["flow_id"].as_str().unwrap().to_owned()).or_default().push(e);
    }
    let mut deltas = 0;
    for (id, mut shreds) in flows {
        shreds.sort_by_key(|e| number(e, "shred_index"));
        let (mut bytes, mut packets) = (0, 0);
        let last = shreds.len() - 1;
        for (n, e) in shreds.iter().enumerate() {
            assert_eq!(number(e, "shred_index"), n as u64);
            assert_eq!(number(e, "bytes"), number(e, "orig_bytes") + number(e, "resp_bytes"));
            assert_eq!(number(e, "packets"), number(e, "orig_packets") + number(e, "resp_packets"));
            bytes += number(e, "bytes");
            packets += number(e, "packets");
            assert_eq!(
                (bytes, packets),
                (number(e, "total_bytes"), number(e, "total_packets")),
                "{id}"
            );
            assert_eq!(e["final"] == true, n == last);
            assert_eq!(e["end_reason"].is_string(), n == last);
        }
        deltas += last;
    }
    assert!(deltas > 20, "{deltas}");
}

#[test]
fn one_two_and_three_workers_give_the_same_lines() {
    let capture = home();
    let cpus =
        "0-".to_owned() + &(std::thread::available_parallelism().unwrap().get() - 1).to_string();
    let list = |n: usize| (0..n).map(|id| format!("{id}@{cpus}")).collect::<Vec<_>>().join(",");
    let of = |lcores: &str| {
        flow_lines(&["--read", text(&capture), "--lcores", lcores, "--active-timeout", "20"])
    };
    let one = of(&list(1));
    for n in 2..=4 {
        assert_eq!(one, of(&list(n)), "{n} lcores");
    }
}

#[test]
fn every_form_of_a_capture_gives_the_same_flows() {
    let dir = tempfile::tempdir().unwrap();
    let plain = home_plain(dir.path());
    let odd = dir.path().join("a,b=c d.pcap");
    fs::copy(&plain, &odd).unwrap();
    let ng = dir.path().join("home.pcapng");
    let editcap = Command::new("editcap").args(["-F", "pcapng", text(&plain), text(&ng)]).status();
    let expected = flow_lines(&["--read", text(&home())]);
    assert_eq!(expected, flow_lines(&["--read", text(&plain)]));
    assert_eq!(expected, flow_lines(&["--read", text(&odd)]));
    match editcap {
        Ok(status) if status.success() => assert_eq!(expected, flow_lines(&["--read", text(&ng)])),
        _ => println!("skipped: pcapng, editcap is not installed"),
    }
    let piped = command()
        .args(["--read", "-", "--flow-log", "-", "--sensor", "t"])
        .stdin(fs::File::open(&plain).unwrap())
        .output()
        .unwrap();
    let piped = Run::of(piped).ok();
    let mut lines: Vec<&str> = piped.stdout.lines().collect();
    lines.sort_unstable();
    assert_eq!(expected, lines);
}

#[test]
fn several_files_are_merged_by_time() {
    let dir = tempfile::tempdir().unwrap();
    let plain = home_plain(dir.path());
    // Deal the records to two files in turn, as two taps of one link would.
    let bytes = fs::read(&plain).unwrap();
    let mut halves = [bytes[..24].to_vec(), bytes[..24].to_vec()];
    let (mut at, mut n) = (24, 0);
    while at < bytes.len() {
        let len = 16 + u32::from_le_bytes(bytes[at + 8..at + 12].try_into().unwrap()) as usize;
        halves[n % 2].extend(&bytes[at..at + len]);
        (at, n) = (at + len, n + 1);
    }
    let paths = ["left", "right"].map(|name| dir.path().join(name));
    for (path, half) in paths.iter().zip(halves) {
        fs::write(path, half).unwrap();
    }
    assert_eq!(
        flow_lines(&["--read", text(&plain)]),
        flow_lines(&["--read", text(&paths[1]), "--read", text(&paths[0])])
    );
}

#[test]
fn the_pcap_driver_gives_the_same_flows_to_the_microsecond() {
    let dir = tempfile::tempdir().unwrap();
    let plain = home_plain(dir.path());
    let strip = |lines: Vec<String>| -> Vec<String> {
        let mut out: Vec<String> = lines
            .iter()
            .map(|l| {
                let e: Value = serde_json::from_str(l).unwrap();
                let keep = [
                    "src_ip",
                    "src_port",
                    "dst_ip",
                    "dst_port",
                    "orig_bytes",
                    "resp_packets",
                    "history",
                    "vlan",
                ];
                format!("{:?}", keep.map(|k| e[k].to_string()))
            })
            .collect();
        out.sort();
        out
    };
    let device = format!("net_pcap0,rx_pcap={}", text(&plain));
    let ours = strip(flow_lines(&["--read", text(&plain)]));
    for lcores in ["0@0", "0@0,1@0"] {
        assert_eq!(
            ours,
            strip(flow_lines(&["--vdev", &device, "--journal", "off", "--lcores", lcores]))
        );
    }
    // A file a queue, and more queues than lcores: all of them are read.
    let three = format!("net_pcap0,rx_pcap={0},rx_pcap={0},rx_pcap={0}", text(&plain));
    for lcores in ["0@0", "0@0,1@0,2@0"] {
        let args = ["--vdev", &three, "--journal", "off", "--summary", "json", "--lcores", lcores];
        let summary = malakocut(&args).ok().summary();
        assert_eq!(number(&summary, "packets"), 3 * number(&home_truth(), "packets"));
    }
}

#[test]
fn the_journal_holds_every_packet_bit_for_bit() {
    let dir = tempfile::tempdir().unwrap();
    let plain = home_plain(dir.path());
    let original = fs::read(&plain).unwrap();
    for lcores in ["0@0", "0@0,1@0", "0@0,1@0,2@0"] {
        let data = dir.path().join(lcores);
        malakocut(&[
            "--read",
            text(&plain),
            "--journal",
            "on",
            "--data-dir",
            text(&data),
            "--lcores",
            lcores,
        ])
        .ok();
        let files = segments(&data);
        assert_eq!(files.len(), 1);
        let journal = fs::read(&files[0]).unwrap();
        assert_eq!(journal.len(), original.len());
        if lcores != "0@0,1@0,2@0" {
            // One worker: the very bytes, behind a header with another snap length.
            assert!(journal[24..] == original[24..]);
        }
    }
}

#[test]
fn the_journal_rotates_and_each_file_opens() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    for run in 0..2 {
        malakocut(&[
            "--read",
            text(&home()),
            "--journal",
            "on",
            "--rotate-size",
            "1MB",
            "--data-dir",
            text(&data),
        ])
        .ok();
        let files = segments(&data);
        assert!(files.len() >= 11 * (run + 1), "{} files", files.len());
        let mut packets = 0;
        for file in &files {
            assert!(fs::metadata(file).unwrap().len() <= 1_000_000);
            let out = Command::new("tcpdump").args(["--count", "-r", text(file)]).output();
            let Ok(out) = out else {
                println!("skipped: tcpdump is not installed");
                return;
            };
            assert!(out.status.success());
            let count = String::from_utf8(out.stdout).unwrap();
            packets += count.split(' ').next().unwrap().parse::<u64>().unwrap();
        }
        assert_eq!(packets, (run as u64 + 1) * number(&home_truth(), "packets"));
    }
}

#[test]
fn a_table_of_few_flows_loses_no_packet() {
    let dir = tempfile::tempdir().unwrap();
    let log = dir.path().join("flows");
    let capture = home();
    let args = [
        "--read",
        text(&capture),
        "--max-flows",
        "3",
        "--flow-log",
        text(&log),
        "--summary",
        "json",
    ];
    let summary = malakocut(&args).ok().summary();
    assert!(number(&summary, "evicted") > 100);
    let packets: u64 = events(&log).iter().map(|e| number(e, "packets")).sum();
    assert_eq!(packets, number(&summary, "decoded"));
}

#[test]
fn a_cut_capture_is_read_to_the_cut_and_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let plain = home_plain(dir.path());
    let bytes = fs::read(&plain).unwrap();
    let cut = dir.path().join("cut.pcap");
    fs::write(&cut, &bytes[..bytes.len() - 5]).unwrap();
    let run = malakocut(&["--read", text(&cut), "--summary", "json"]).ok();
    assert_eq!(number(&run.summary(), "packets"), number(&home_truth(), "packets") - 1);
    assert!(run.stderr.contains("ends within a record"), "{}", run.stderr);
    assert_eq!(run.summary()["incomplete_inputs"].as_array().unwrap().len(), 1);

    let mut damaged = bytes;
    let length = 24 + 8;
    damaged[length..length + 4].copy_from_slice(&u32::MAX.to_le_bytes());
    fs::write(&cut, damaged).unwrap();
    let run = malakocut(&["--read", text(&cut), "--summary", "json"]);
    assert_eq!(run.code, Some(1), "{}", run.stderr);
    assert!(run.stderr.contains("damaged at byte 24"), "{}", run.stderr);
    assert_eq!(number(&run.summary(), "packets"), 0);
}

#[test]
fn what_cannot_be_used_is_one_line_and_exit_2() {
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str, content: &str| {
        let path = dir.path().join(name);
        fs::write(&path, content).unwrap();
        text(&path).to_owned()
    };
    let (junk, capture) = (file("junk", "not a capture, whatever its name may say"), home());
    let bad_key = file("bad_key.toml", "# comment\nmax_flow = 3\n");
    let bad_value = file("bad_value.toml", "max_flows = \"many\"\n");
    let pcap_junk = format!("net_pcap0,rx_pcap={junk}");
    for (args, needle) in [
        (&["--read", "/nonexistent"][..], "/nonexistent: No such file"),
        (&["--read", text(&capture), "--read", &junk], "not a capture file"),
        (&["--read", "/"], "directory"),
        (&["--interface", "nosuchif0"], "nosuchif0"),
        (
            &["--vdev", "net_pcap0,rx_pcap=/nonexistent", "--journal", "off"],
            "/nonexistent: No such file",
        ),
        (&["--vdev", &pcap_junk, "--journal", "off"], "not a capture file"),
        (&["--vdev", "net_nosuch0", "--journal", "off"], "net_nosuch0"),
        (&["--vdev", "net_pcap0,nosuch=1", "--journal", "off"], "net_pcap0,nosuch=1"),
        (&["--vdev", "net_af_packet0", "--journal", "off"], "iface=NAME"),
        (&["--pci", "0000:ff:1f.7", "--journal", "off"], "0000:ff:1f.7"),
        (&["--lcores", "banana", "--read", text(&capture)], "banana"),
        (&["--lcores", "900", "--read", text(&capture)], "CPU 900"),
        (&["--config", "/nonexistent"], "configuration /nonexistent"),
        (&["--config", &bad_key], "line 2"),
        (&["--config", &bad_value], "line 1"),
        (&["--read", text(&capture), "--flow-log", "/nonexistent/x"], "flow log /nonexistent/x"),
        (
            &["--read", text(&capture), "--journal", "on", "--data-dir", "/proc/nosuch"],
            "--data-dir",
        ),
    ] {
        let run = malakocut(args);
        assert_eq!(run.code, Some(2), "{args:?}: {}{}", run.stdout, run.stderr);
        let lines: Vec<&str> =
            run.stderr.lines().filter(|l| l.starts_with("malakocut: ")).collect();
        assert!(lines.len() == 1 && lines[0].contains(needle), "{args:?}: {}", run.stderr);
        assert!(run.stdout.is_empty());
    }
}

#[test]
fn a_signal_that_comes_twice_at_once_still_ends_in_order() {
    let dir = tempfile::tempdir().unwrap();
    let device = format!("net_pcap0,rx_pcap={},infinite_rx=1", text(&home_plain(dir.path())));
    for signals in [vec!["-INT"], vec!["-INT", "-INT", "-TERM"]] {
        let mut child = command()
            .args(["--vdev", &device, "--journal", "off", "--summary", "json"])
            .stdout(Stdio::piped())
            .stderr(fs::File::create(dir.path().join("stderr")).unwrap())
            .spawn()
            .unwrap();
        while !fs::read_to_string(dir.path().join("stderr")).unwrap().contains("receive queue") {
            assert!(child.try_wait().unwrap().is_none());
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        std::thread::sleep(std::time::Duration::from_millis(200));
        for signal in signals {
            Command::new("kill").args([signal, &child.id().to_string()]).status().unwrap();
        }
        let run = Run::of(child.wait_with_output().unwrap()).ok();
        let summary = run.summary();
        assert!(number(&summary, "packets") > 0 && number(&summary, "flows") > 200, "{summary}");
    }
}

#[test]
fn several_processes_at_once() {
    let children: Vec<_> = (0..4)
        .map(|_| {
            command()
                .args(["--read", text(&home()), "--summary", "json"])
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()
                .unwrap()
        })
        .collect();
    for child in children {
        let run = Run::of(child.wait_with_output().unwrap()).ok();
        assert_eq!(number(&run.summary(), "packets"), number(&home_truth(), "packets"));
    }
}

#[test]
fn without_root_and_without_hugepages() {
    if !common::is_root() {
        println!("skipped: not root, so every other test shows it");
        return;
    }
    // The build may lie where only root can look.
    let dir = tempfile::tempdir().unwrap();
    let (binary, capture) = (dir.path().join("malakocut"), dir.path().join("home.pcap.gz"));
    fs::copy(common::BINARY, &binary).unwrap();
    fs::copy(home(), &capture).unwrap();
    let open = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    for path in [dir.path(), &binary, &capture] {
        fs::set_permissions(path, Clone::clone(&open)).unwrap();
    }
    let output = Command::new("setpriv")
        .args(["--reuid=65534", "--regid=65534", "--clear-groups", "--bounding-set=-all"])
        .args([text(&binary), "--read", text(&capture), "--summary", "json"])
        .current_dir("/")
        .output()
        .unwrap();
    let run = Run::of(output).ok();
    assert_eq!(number(&run.summary(), "packets"), number(&home_truth(), "packets"));
}

#[test]
fn the_shipped_configuration_holds_the_defaults_and_every_option() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("configs/malakocut.toml");
    let summary =
        malakocut(&["--config", text(&path), "--read", text(&home()), "--journal", "off"]).ok();
    assert!(summary.stdout.contains("13183 packets"), "a flag's source hides the file's");
    let shipped = fs::read_to_string(&path).unwrap();
    let help = malakocut(&["--help"]).ok().stdout;
    for option in help.lines().filter_map(|l| l.trim().strip_prefix("--")) {
        let key = option.split([' ', '\n']).next().unwrap().replace('-', "_");
        let known = ["config", "check_config", "help", "version", "read", "summary"]
            .contains(&key.as_str());
        assert!(known || shipped.contains(&format!("{key} = ")), "{key} is not in the file");
    }
}

#[test]
fn help_and_version_are_not_errors() {
    let help = malakocut(&["--help"]).ok();
    for option in ["--lcores", "--read", "--vdev", "--flow-log", "Examples:"] {
        assert!(help.stdout.contains(option), "{option}");
    }
    assert!(malakocut(&["--version"]).ok().stdout.starts_with("malakocut 0."));
}
