//! A receiver on loopback that speaks the token protocol and both ingestion protocols, strictly, and
//! answers with faults when it is told to.

use std::collections::{BTreeMap, HashMap};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE};
use serde_json::{Value, json};

/// What happens to a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    None,
    Status(u16),
    /// The connection ends before the request is looked at, or after it was accepted.
    CutBefore,
    CutAfter,
    /// Accepted, but the answer comes too late, or is a web page.
    LateAfter,
    OddAfter,
}

#[derive(Default)]
pub struct Seen {
    /// Accepted events by id, and the order in which they first came.
    pub events: BTreeMap<String, Value>,
    pub order: Vec<String>,
    /// Bodies by first and last event.
    bodies: HashMap<(String, String), Vec<u8>>,
    pub repeats: u64,
    pub faults: BTreeMap<String, u64>,
    pub wrong: Vec<String>,
    /// Requests of any kind.
    pub requests: u64,
    /// Scopes by token.
    tokens: HashMap<String, String>,
    random: u64,
}

impl Seen {
    fn random(&mut self, below: u64) -> u64 {
        self.random = self.random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (self.random >> 33) % below
    }
}

#[derive(Clone)]
pub struct Receiver {
    pub port: u16,
    pub seen: Arc<Mutex<Seen>>,
    pub storm: Arc<Mutex<bool>>,
    /// From now on the poison is taken too.
    pub cured: Arc<AtomicBool>,
    public: Arc<Vec<u8>>,
    pub key_file: PathBuf,
}

/// The source port of the event that is never taken.
pub const POISON: u64 = 6666;
const LIMIT: usize = 4_000_000;

impl Receiver {
    pub fn start(dir: &Path) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let openssl = |args: &[&str]| {
            let out = Command::new("openssl").args(args).output().expect("openssl is installed");
            assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
            out.stdout
        };
        let pem = dir.join("key.pem");
        let pem_path = pem.to_str().unwrap();
        openssl(&["genrsa", "-out", pem_path, "2048"]);
        let public = openssl(&["rsa", "-in", pem_path, "-RSAPublicKey_out", "-outform", "DER"]);
        let key_file = dir.join("account.json");
        let key = json!({
            "type": "service_account",
            "project_id": "p",
            "private_key_id": "1",
            "private_key": std::fs::read_to_string(&pem).unwrap(),
            "client_email": "sensor@p.example",
            "client_id": "1",
            "token_uri": format!("http://127.0.0.1:{port}/token"),
        });
        std::fs::write(&key_file, key.to_string()).unwrap();
        let this = Self {
            port,
            seen: Arc::new(Mutex::new(Seen { random: 42, ..Seen::default() })),
            storm: Arc::default(),
            cured: Arc::default(),
            public: Arc::new(public),
            key_file,
        };
        let served = this.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let served = served.clone();
                std::thread::spawn(move || serve(stream, &served));
            }
        });
        this
    }
}

fn serve(stream: TcpStream, this: &Receiver) {
    let seen = &this.seen;
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    let mut out = stream;
    while let Some((line, headers, body)) = request(&mut reader) {
        seen.lock().unwrap().requests += 1;
        let fault = if *this.storm.lock().unwrap() { choose(seen) } else { Fault::None };
        match fault {
            Fault::CutBefore => return,
            Fault::Status(status) => {
                let after = if status == 429 { "Retry-After: 0\r\n" } else { "" };
                let text = "{\"error\":{\"message\":\"scripted\"}}";
                if write!(
                    out,
                    "HTTP/1.1 {status} X\r\n{after}Content-Length: {}\r\n\r\n{text}",
                    text.len()
                )
                .is_err()
                {
                    return;
                }
                continue;
            }
            _ => {}
        }
        let (status, answer) = if line.contains("/token ") {
            token(&body, seen, &this.public, this.port)
        } else {
            let (status, text) = ingest(&line, &headers, &body, this);
            match fault {
                Fault::CutAfter => return,
                Fault::LateAfter => std::thread::sleep(Duration::from_millis(900)),
                _ => {}
            }
            if fault == Fault::OddAfter && status == 200 {
                (200, "<html>please log in</html>".to_owned())
            } else {
                (status, text)
            }
        };
        if write!(out, "HTTP/1.1 {status} X\r\nContent-Length: {}\r\n\r\n{answer}", answer.len())
            .is_err()
        {
            return;
        }
    }
}

fn choose(seen: &Mutex<Seen>) -> Fault {
    let mut seen = seen.lock().unwrap();
    let fault = match seen.random(200) {
        0..=79 => Fault::None,
        80..=94 => Fault::Status(500),
        95..=109 => Fault::Status(503),
        110..=124 => Fault::Status(429),
        125..=134 => Fault::Status(408),
        135..=144 => Fault::Status(401),
        145..=149 => Fault::Status(403),
        150..=151 => Fault::Status(413),
        152..=169 => Fault::CutBefore,
        170..=184 => Fault::CutAfter,
        185..=186 => Fault::LateAfter,
        _ => Fault::OddAfter,
    };
    *seen.faults.entry(format!("{fault:?}")).or_default() += 1;
    fault
}

fn request(
    reader: &mut BufReader<TcpStream>,
) -> Option<(String, HashMap<String, String>, Vec<u8>)> {
    let mut line = String::new();
    if reader.read_line(&mut line).ok()? == 0 {
        return None;
    }
    let mut headers = HashMap::new();
    loop {
        let mut text = String::new();
        reader.read_line(&mut text).ok()?;
        let text = text.trim_end();
        if text.is_empty() {
            break;
        }
        let (name, value) = text.split_once(": ")?;
        headers.insert(name.to_ascii_lowercase(), value.to_owned());
    }
    let length: usize = headers.get("content-length").map_or(0, |n| n.parse().unwrap());
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    Some((line.trim_end().to_owned(), headers, body))
}

/// RFC 7523: a signed assertion for a token.
fn token(body: &[u8], seen: &Mutex<Seen>, public: &[u8], port: u16) -> (u16, String) {
    let check = || -> Result<String, String> {
        let text = std::str::from_utf8(body).map_err(|e| e.to_string())?;
        let fields: HashMap<&str, &str> =
            text.split('&').filter_map(|p| p.split_once('=')).collect();
        let jwt = fields.get("assertion").ok_or("no assertion")?.replace("%3D", "=");
        let parts: Vec<&str> = jwt.split('.').collect();
        let [head, claims, signature] = parts[..] else { return Err("not a JWT".into()) };
        let decode = |t: &str| URL_SAFE.decode(t).map_err(|e| e.to_string());
        ring::signature::UnparsedPublicKey::new(
            &ring::signature::RSA_PKCS1_2048_8192_SHA256,
            public,
        )
        .verify(format!("{head}.{claims}").as_bytes(), &decode(signature)?)
        .map_err(|_| "bad signature")?;
        let claims: Value = serde_json::from_slice(&decode(claims)?).map_err(|e| e.to_string())?;
        let now = jiff::Timestamp::now().as_second();
        let right = claims["iss"] == "sensor@p.example"
            && claims["aud"] == format!("http://127.0.0.1:{port}/token")
            && (claims["iat"].as_i64().unwrap() - now).abs() <= 300
            && (claims["exp"].as_i64().unwrap() - now) <= 3600;
        let scope = claims["scope"].as_str().unwrap_or_default().to_owned();
        right.then_some(scope).ok_or_else(|| format!("claims {claims}"))
    };
    let result = check();
    let mut seen = seen.lock().unwrap();
    if let Err(why) = &result {
        seen.wrong.push(why.clone());
        return (400, "{\"error\":\"invalid_grant\"}".into());
    }
    let token = format!("token-{}", seen.tokens.len());
    seen.tokens.insert(token.clone(), result.unwrap_or_default());
    (200, json!({"access_token": token, "expires_in": 3600, "token_type": "Bearer"}).to_string())
}

fn ingest(
    line: &str,
    headers: &HashMap<String, String>,
    body: &[u8],
    this: &Receiver,
) -> (u16, String) {
    let mut seen = this.seen.lock().unwrap();
    let bearer = headers.get("authorization").and_then(|a| a.strip_prefix("Bearer "));
    let Some(scope) = bearer.and_then(|b| seen.tokens.get(b)) else {
        return (401, String::new());
    };
    let wanted = if line.contains("/v2/") { "malachite-ingestion" } else { "cloud-platform" };
    if *scope != format!("https://www.googleapis.com/auth/{wanted}") {
        return (403, json!({"error": {"message": "insufficient scope"}}).to_string());
    }
    if line.starts_with("GET ") {
        let there = line.contains("/logTypes/LT ");
        return if there { (200, "{}".into()) } else { (404, String::new()) };
    }
    if body.len() > LIMIT {
        return (413, String::new());
    }
    match entries(line, headers, body) {
        Err(why) => {
            seen.wrong.push(format!("{line}: {why}"));
            (400, json!({"error": {"message": why}}).to_string())
        }
        Ok(entries) => {
            let cured = this.cured.load(Ordering::Relaxed);
            if !cured && entries.iter().any(|e| e["src_port"] == POISON) {
                return (400, json!({"error": {"message": "invalid entry"}}).to_string());
            }
            let id = |e: &Value| e["event_id"].as_str().unwrap().to_owned();
            let key = (id(&entries[0]), id(&entries[entries.len() - 1]));
            match seen.bodies.get(&key) {
                Some(before) if before == body => seen.repeats += 1,
                Some(_) => seen.wrong.push(format!("{key:?} came again with other bytes")),
                None => {
                    seen.bodies.insert(key, body.to_vec());
                }
            }
            for entry in entries {
                if seen.events.insert(id(&entry), entry.clone()).is_none() {
                    seen.order.push(id(&entry));
                }
            }
            (200, "{}".into())
        }
    }
}

/// The events in a body, if every rule of its protocol is kept.
fn entries(
    line: &str,
    headers: &HashMap<String, String>,
    body: &[u8],
) -> Result<Vec<Value>, String> {
    if headers.get("content-type").map(String::as_str) != Some("application/json") {
        return Err("content type".into());
    }
    let body: Value = serde_json::from_slice(body).map_err(|e| e.to_string())?;
    let text =
        |v: &Value, k: &str| v[k].as_str().map(str::to_owned).ok_or_else(|| format!("no {k}"));
    let time = |v: &Value, k: &str| {
        text(v, k)?.parse::<jiff::Timestamp>().map_err(|e| format!("{k}: {e}"))
    };
    let path = line.split(' ').nth(1).unwrap_or_default();
    let mut out = Vec::new();
    if path.ends_with("/logTypes/LT/logs:import") {
        for log in body["inlineSource"]["logs"].as_array().ok_or("no logs")? {
            let data = STANDARD.decode(text(log, "data")?).map_err(|e| e.to_string())?;
            if time(log, "collectionTime")? <= time(log, "logEntryTime")? {
                return Err("collected before it happened".into());
            }
            out.push(serde_json::from_slice(&data).map_err(|e| e.to_string())?);
        }
    } else if path == "/v2/unstructuredlogentries:batchCreate" {
        if text(&body, "customer_id")? != "c-1" || text(&body, "log_type")? != "LT" {
            return Err("customer or log type".into());
        }
        for entry in body["entries"].as_array().ok_or("no entries")? {
            time(entry, "ts_rfc3339")?;
            out.push(serde_json::from_str(&text(entry, "log_text")?).map_err(|e| e.to_string())?);
        }
    } else if path.ends_with("/events:import") {
        for event in body["inlineSource"]["events"].as_array().ok_or("no events")? {
            let udm = &event["udm"];
            time(&udm["metadata"], "event_timestamp")?;
            if udm["principal"]["ip"].as_array().is_none_or(|a| a.len() != 1) {
                return Err("principal.ip".into());
            }
            out.push(json!({
                "event_id": text(&udm["metadata"], "product_log_id")?,
                "src_port": udm["principal"]["port"],
            }));
        }
    } else {
        return Err(format!("no such path {path}"));
    }
    if out.is_empty() { Err("empty".into()) } else { Ok(out) }
}
