//! Runs the sensor over a capture and reads what it wrote.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs::File;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

use serde_json::Value;

/// Longer than any capture here takes; what takes longer hangs.
const PATIENCE: Duration = Duration::from_secs(120);
/// Sensors run at a time.
const PARALLEL: usize = 2;

/// The oracles' directory, if there is one.
pub(crate) fn oracles() -> Option<PathBuf> {
    if let Some(named) = std::env::var_os("MALAKOCUT_ORACLES") {
        return Some(PathBuf::from(named)).filter(|path| path.is_dir());
    }
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    ["../../shared/oracles", "../shared/oracles"]
        .iter()
        .map(|relative| here.join(relative))
        .find(|path| path.is_dir())
}

/// The capture files below a directory, sorted.
pub(crate) fn captures(directory: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(directory).into_iter().flatten() {
        let path = entry.expect("a readable directory").path();
        if path.is_dir() {
            found.extend(captures(&path));
        } else if path.extension().is_some_and(|e| e == "pcap" || e == "pcapng" || e == "gz") {
            found.push(path);
        }
    }
    found.sort();
    found
}

/// What the sensor made of a capture.
#[derive(Debug)]
pub(crate) struct Run {
    pub(crate) summary: Value,
    pub(crate) events: Vec<Value>,
}

type Outcome = Result<Arc<Run>, String>;

/// Runs the sensor as it comes. Several tests look at one capture: it is read once.
pub(crate) fn run(capture: &Path) -> Outcome {
    static RUNS: OnceLock<Mutex<HashMap<PathBuf, Arc<OnceLock<Outcome>>>>> = OnceLock::new();
    let runs = RUNS.get_or_init(Mutex::default);
    let slot = Arc::clone(runs.lock().unwrap().entry(capture.to_owned()).or_default());
    slot.get_or_init(|| run_with(capture, &[]).map(Arc::new)).clone()
}

/// Runs the sensor with further arguments.
pub(crate) fn run_with(capture: &Path, arguments: &[&str]) -> Result<Run, String> {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let at = |name: &str| directory.path().join(name);
    let mut child = Command::new(binary())
        .arg("--read")
        .arg(capture)
        .args(["--exporter", "file", "--journal", "off", "--summary", "json", "--flow-log"])
        .arg(at("flows.json"))
        .arg("--data-dir")
        .arg(at("data"))
        .args(arguments)
        .stdout(File::create(at("stdout")).expect("a file"))
        .stderr(File::create(at("stderr")).expect("a file"))
        .spawn()
        .map_err(|error| format!("{}: {error}", binary().display()))?;
    let deadline = Instant::now() + PATIENCE;
    let status = loop {
        match child.try_wait().expect("a child to wait for") {
            Some(status) => break status,
            None if Instant::now() > deadline => {
                child.kill().expect("a child to end");
                child.wait().expect("an ended child");
                return Err(format!("still running after {} s", PATIENCE.as_secs()));
            }
            None => std::thread::sleep(Duration::from_millis(5)),
        }
    };
    let read = |name: &str| std::fs::read_to_string(at(name)).unwrap_or_default();
    if !status.success() {
        return Err(format!("{status}: {}", read("stderr").trim()));
    }
    let summary = serde_json::from_str(read("stdout").trim())
        .map_err(|error| format!("summary: {error}: {:?}", read("stdout")))?;
    let events = read("flows.json")
        .lines()
        .map(|line| serde_json::from_str(line).map_err(|error| format!("event: {error}: {line}")))
        .collect::<Result<_, _>>()?;
    Ok(Run { summary, events })
}

fn binary() -> PathBuf {
    std::env::var_os("MALAKOCUT_BIN")
        .map_or_else(|| PathBuf::from(env!("CARGO_BIN_EXE_malakocut")), PathBuf::from)
}

/// Applies `work` to each item, a few at a time; the results in the items' order.
pub(crate) fn in_parallel<T: Sync, R: Send>(items: &[T], work: impl Fn(&T) -> R + Sync) -> Vec<R> {
    let next = AtomicUsize::new(0);
    let done = Mutex::new(BTreeMap::new());
    std::thread::scope(|scope| {
        for _ in 0..PARALLEL {
            scope.spawn(|| {
                loop {
                    let index = next.fetch_add(1, Ordering::Relaxed);
                    let Some(item) = items.get(index) else { break };
                    let result = work(item);
                    done.lock().unwrap().insert(index, result);
                }
            });
        }
    });
    done.into_inner().unwrap().into_values().collect()
}

pub(crate) fn json(path: &Path) -> Value {
    let text = std::fs::read_to_string(path).expect("a readable file");
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// A count that has to be there.
pub(crate) fn number(object: &Value, field: &str) -> u64 {
    object[field].as_u64().unwrap_or_else(|| panic!("no count {field} in {object}"))
}

/// An address and a port; port 0 where the protocol has none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct End {
    pub(crate) ip: IpAddr,
    pub(crate) port: u16,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) packets: u64,
    pub(crate) bytes: u64,
    pub(crate) ip_bytes: u64,
}

/// A flow: the events of one flow_id put together.
#[derive(Clone, Debug)]
pub(crate) struct Flow {
    pub(crate) id: String,
    pub(crate) proto: u8,
    pub(crate) src: End,
    pub(crate) dst: End,
    pub(crate) orig: Counts,
    pub(crate) resp: Counts,
    /// What the last event says of the whole flow.
    pub(crate) total: Counts,
    pub(crate) conn_state: String,
    pub(crate) history: String,
    pub(crate) community_id: String,
    pub(crate) vlans: BTreeSet<u64>,
    pub(crate) src_mac: Option<String>,
    pub(crate) dst_mac: Option<String>,
    pub(crate) icmp_type: Option<u64>,
    start: String,
}

/// The flows of a run, in the order in which they began.
pub(crate) fn flows(events: &[Value]) -> Vec<Flow> {
    let mut by_id: BTreeMap<&str, Vec<&Value>> = BTreeMap::new();
    for event in events {
        by_id.entry(event["flow_id"].as_str().expect("flow_id")).or_default().push(event);
    }
    let mut flows: Vec<Flow> = by_id
        .into_values()
        .map(|mut deltas| {
            deltas.sort_by_key(|event| number(event, "shred_index"));
            assemble(&deltas)
        })
        .collect();
    flows.sort_by(|a, b| (&a.start, &a.id).cmp(&(&b.start, &b.id)));
    flows
}

fn assemble(deltas: &[&Value]) -> Flow {
    let last = deltas.last().expect("a flow has an event");
    let string = |field: &str| last[field].as_str().map(str::to_owned);
    let sum = |field: &str| deltas.iter().map(|event| number(event, field)).sum();
    let end = |ip: &str, port: &str| End {
        ip: last[ip].as_str().expect("an address").parse().expect("an address"),
        port: last[port].as_u64().map_or(0, |port| u16::try_from(port).expect("a port")),
    };
    let both = |event: &&Value| [event["vlan"].clone(), event["resp_vlan"].clone()];
    let vlans =
        deltas.iter().flat_map(both).flat_map(|ids| ids.as_array().cloned().unwrap_or_default());
    Flow {
        id: string("flow_id").expect("flow_id"),
        proto: protocol_number(last["protocol"].as_str().expect("protocol")),
        src: end("src_ip", "src_port"),
        dst: end("dst_ip", "dst_port"),
        orig: Counts {
            packets: sum("orig_packets"),
            bytes: sum("orig_bytes"),
            ip_bytes: sum("orig_ip_bytes"),
        },
        resp: Counts {
            packets: sum("resp_packets"),
            bytes: sum("resp_bytes"),
            ip_bytes: sum("resp_ip_bytes"),
        },
        total: Counts {
            packets: number(last, "total_packets"),
            bytes: number(last, "total_bytes"),
            ip_bytes: 0,
        },
        conn_state: string("conn_state").unwrap_or_default(),
        history: string("history").unwrap_or_default(),
        community_id: string("community_id").unwrap_or_default(),
        vlans: vlans.map(|id| id.as_u64().expect("a VLAN id")).collect(),
        src_mac: string("src_mac"),
        dst_mac: string("dst_mac"),
        icmp_type: last["icmp_type"].as_u64(),
        start: string("start").unwrap_or_default(),
    }
}

/// The number of an IP protocol as events name it; `IP-99` where it has no name.
fn protocol_number(name: &str) -> u8 {
    match name {
        "ICMP" => 1,
        "IGMP" => 2,
        "IPIP" => 4,
        "TCP" => 6,
        "UDP" => 17,
        "IPv6" => 41,
        "RSVP" => 46,
        "GRE" => 47,
        "ESP" => 50,
        "AH" => 51,
        "ICMPv6" => 58,
        "OSPF" => 89,
        "PIM" => 103,
        "VRRP" => 112,
        "L2TP" => 115,
        "SCTP" => 132,
        other => other
            .strip_prefix("IP-")
            .and_then(|number| number.parse().ok())
            .unwrap_or_else(|| panic!("protocol {other:?}")),
    }
}

/// The name of an IP protocol in a row's key.
pub(crate) fn protocol_name(number: u8) -> String {
    match number {
        1 => "icmp".into(),
        6 => "tcp".into(),
        17 => "udp".into(),
        58 => "icmp6".into(),
        132 => "sctp".into(),
        other => format!("proto-{other}"),
    }
}

/// The protocols that make up nearly all traffic.
pub(crate) fn is_common(protocol: u8) -> bool {
    matches!(protocol, 1 | 6 | 17 | 58)
}

/// Whether frames of this link type are radio frames (802.11, with or without radiotap), inside
/// which the sensor does not look.
pub(crate) fn is_radio(link: u32) -> bool {
    matches!(link, 105 | 119 | 127 | 163 | 192)
}

impl std::fmt::Display for End {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match (self.ip, self.port) {
            (ip, 0) => write!(f, "{ip}"),
            (IpAddr::V4(ip), port) => write!(f, "{ip}:{port}"),
            (IpAddr::V6(ip), port) => write!(f, "[{ip}]:{port}"),
        }
    }
}
