//! Runs the real binary and reads what it writes.

#![allow(dead_code, unreachable_pub, reason = "each test binary uses its own part")]
#![allow(clippy::unwrap_used, reason = "a test that cannot run fails")]

pub mod packets;

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;

/// The sensor's binary, built for this test run.
pub const BINARY: &str = env!("CARGO_BIN_EXE_malakocut");

/// The program for one watched host.
pub const GOMON: &str = env!("CARGO_BIN_EXE_gomon");

/// The folder of the oracles, which are not part of the project.
pub fn oracles() -> Option<PathBuf> {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let named = std::env::var_os("MALAKOCUT_ORACLES").map(PathBuf::from);
    let near = ["../../shared/oracles", "../shared/oracles"].map(|p| here.join(p));
    named.into_iter().chain(near).find(|path| path.is_dir())
}

/// Holds EVE lines against Suricata's schema; false, said, where that cannot be done.
pub fn eve_is_valid(lines: &Path) -> bool {
    let Some(check) = oracles().map(|o| o.join("eve_check.py")).filter(|p| p.exists()) else {
        println!("skipped: the schema check, there are no oracles");
        return false;
    };
    let has = Command::new("python3").args(["-c", "import jsonschema"]).output();
    if !has.is_ok_and(|o| o.status.success()) {
        println!("skipped: the schema check, python3 has no jsonschema");
        return false;
    }
    let out = Command::new("python3").arg(check).arg(lines).output().unwrap();
    let said = String::from_utf8_lossy(&out.stdout).into_owned();
    assert!(out.status.success(), "{said}");
    println!("schema: {}", said.trim());
    true
}

/// The capture that the project ships.
pub fn home() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/captures/home.pcap.gz")
}

/// What its generator says is in it.
pub fn home_truth() -> Value {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/captures/home.truth.json");
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

/// The shipped capture, decompressed into `dir`.
pub fn home_plain(dir: &Path) -> PathBuf {
    use std::io::Read;
    let mut bytes = Vec::new();
    let file = std::fs::File::open(home()).unwrap();
    flate2::read::MultiGzDecoder::new(file).read_to_end(&mut bytes).unwrap();
    let path = dir.join("home.pcap");
    std::fs::write(&path, bytes).unwrap();
    path
}

/// A finished run.
pub struct Run {
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl Run {
    pub fn of(output: Output) -> Self {
        Self {
            code: output.status.code(),
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8(output.stderr).unwrap(),
        }
    }

    /// The JSON summary, the last line of standard output.
    pub fn summary(&self) -> Value {
        let line =
            self.stdout.lines().last().unwrap_or_else(|| panic!("no output: {}", self.stderr));
        serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}\n{}", self.stderr))
    }

    /// The run, if it ended well.
    pub fn ok(self) -> Self {
        assert_eq!(self.code, Some(0), "{}", self.stderr);
        self
    }
}

/// The binary with a clean environment.
pub fn command() -> Command {
    let mut command = Command::new(BINARY);
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("MALAKOCUT_") {
            command.env_remove(name);
        }
    }
    command
}

/// Runs the binary to its end.
pub fn malakocut(args: &[&str]) -> Run {
    Run::of(command().args(args).output().unwrap())
}

/// Runs gomon in a folder.
pub fn gomon(dir: &Path, args: &[&str]) -> Run {
    Run::of(Command::new(GOMON).args(args).current_dir(dir).output().unwrap())
}

/// The objects of a text with one a line.
pub fn lines(text: &str) -> Vec<Value> {
    text.lines().map(|l| serde_json::from_str(l).unwrap_or_else(|e| panic!("{e}: {l}"))).collect()
}

/// Time, length and bytes of each packet of a capture file.
pub fn packets_of(path: &Path) -> Vec<(u64, u32, Vec<u8>)> {
    let mut reader = malakocut::capture::CaptureReader::open(path, 1 << 16).unwrap();
    let mut out = Vec::new();
    while let Some(record) = reader.peek().unwrap() {
        out.push((record.timestamp_ns, record.wire_len, record.data.to_vec()));
        reader.consume();
    }
    out
}

/// The pcap files of a journal, by number.
pub fn segments(data: &Path) -> Vec<PathBuf> {
    let files = std::fs::read_dir(data.join("pcap")).unwrap().map(|f| f.unwrap().path());
    let mut out: Vec<PathBuf> =
        files.filter(|path| path.extension().is_some_and(|e| e == "pcap")).collect();
    out.sort();
    out
}

/// The events of a flow log.
pub fn events(path: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(path).unwrap();
    text.lines().map(|l| serde_json::from_str(l).unwrap_or_else(|e| panic!("{e}: {l}"))).collect()
}

/// A number of an event or summary.
pub fn number(v: &Value, key: &str) -> u64 {
    v[key].as_u64().unwrap_or_else(|| panic!("no {key} in {v}"))
}

/// The sum of an object's numbers.
pub fn total(v: &Value) -> u64 {
    v.as_object().unwrap().values().map(|n| n.as_u64().unwrap()).sum()
}

/// Whether this process is root.
pub fn is_root() -> bool {
    std::fs::metadata("/proc/self").is_ok_and(|m| std::os::unix::fs::MetadataExt::uid(&m) == 0)
}

/// Holds the places that events name against the journal's files; how many name one.
pub fn places_are_right(data: &Path, events: &[Value]) -> usize {
    let mut files = std::collections::HashMap::new();
    let mut named = 0;
    for event in events.iter().filter(|e| !e["journal"].is_null()) {
        let place = &event["journal"];
        let file = files.entry(number(place, "segment")).or_insert_with_key(|wanted| {
            let prefix = format!("seg-{wanted:08}-");
            let is_it = |p: &PathBuf| p.file_name().unwrap().to_str().unwrap().starts_with(&prefix);
            std::fs::read(segments(data).into_iter().find(is_it).unwrap()).unwrap()
        });
        let at = number(place, "offset") as usize;
        let word =
            |n: usize| u64::from(u32::from_le_bytes(file[at + n..at + n + 4].try_into().unwrap()));
        let start: jiff::Timestamp = event["start"].as_str().unwrap().parse().unwrap();
        let ns = u128::from(word(0) * 1_000_000_000 + word(4));
        assert_eq!(ns, start.as_nanosecond().cast_unsigned(), "{event}");
        named += 1;
    }
    named
}
