//! What `malakocut-cli export` asks a running sensor, over a unix socket in the spool's directory:
//! one JSON object a connection, and one back.

use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::Shared;
use super::courier::Wish;
use crate::spool::{Dead, Spool, SpoolError};

/// The socket's name in the spool's directory.
pub const CONTROL_SOCKET: &str = "export.sock";
/// A client that says nothing for so long is left.
const PATIENCE: Duration = Duration::from_secs(5);
/// Dead letters shown at once.
const SHOWN: usize = 1000;

/// What can be asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "ask", rename_all = "lowercase")]
pub enum Request {
    Status,
    /// The dead letters of an exporter, or of all.
    Dead {
        exporter: Option<String>,
    },
    /// Send the dead letters again, and whatever waits for a pause to end.
    Retry {
        exporter: Option<String>,
    },
    /// Drop the events kept for an exporter that is not configured any more.
    Forget {
        exporter: String,
    },
}

/// Asks a running sensor.
///
/// # Errors
/// `NotFound` or `ConnectionRefused`: none is running.
pub fn ask(directory: &Path, request: &Request) -> io::Result<Value> {
    let mut stream = UnixStream::connect(directory.join(CONTROL_SOCKET))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let mut line = serde_json::to_vec(request)?;
    line.push(b'\n');
    stream.write_all(&line)?;
    let mut answer = String::new();
    BufReader::new(stream).read_line(&mut answer)?;
    Ok(serde_json::from_str(&answer)?)
}

/// Dead letters as they are shown.
///
/// # Errors
/// The spool failed.
pub fn dead_letters(spool: &Spool, exporter: Option<&str>) -> Result<Value, SpoolError> {
    let names = match exporter {
        Some(name) => vec![name.to_owned()],
        None => spool.cursors(),
    };
    let mut shown = Vec::new();
    for name in names {
        let show = |d: &Dead| {
            let event: Value = serde_json::from_slice(&d.entry.line)
                .unwrap_or_else(|_| String::from_utf8_lossy(&d.entry.line).into());
            json!({"exporter": name, "event_id": d.entry.id.to_string(), "reason": d.reason, "event": event})
        };
        shown.extend(spool.dead(&name, SHOWN)?.iter().map(show));
    }
    Ok(json!({ "dead": shown }))
}

/// The running sensor's end.
pub(super) struct Server {
    path: PathBuf,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    /// Serves in the background; without the socket the export works all the same.
    pub(super) fn start(directory: &Path, shared: &Arc<Shared>) -> Option<Self> {
        let path = directory.join(CONTROL_SOCKET);
        // The spool's lock is ours, so a socket that is there is left over.
        let _ = std::fs::remove_file(&path);
        let stop = Arc::new(AtomicBool::new(false));
        let served = UnixListener::bind(&path).and_then(|listener| {
            std::fs::set_permissions(&path, PermissionsExt::from_mode(0o660))?;
            let (stop, shared) = (Arc::clone(&stop), Arc::clone(shared));
            std::thread::Builder::new().name("export-ctl".into()).spawn(move || {
                for stream in listener.incoming() {
                    if stop.load(Ordering::Relaxed) {
                        break;
                    }
                    if let Ok(stream) = stream
                        && let Err(e) = answer(&shared, stream)
                    {
                        tracing::debug!("export socket: {e}");
                    }
                }
            })
        });
        match served {
            Ok(thread) => Some(Self { path, stop, thread: Some(thread) }),
            Err(e) => {
                tracing::warn!("{}: {e}; malakocut-cli export cannot ask", path.display());
                None
            }
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        // Wakes the thread.
        let woken = UnixStream::connect(&self.path);
        if woken.is_ok()
            && let Some(thread) = self.thread.take()
        {
            let _ = thread.join();
        }
        let _ = std::fs::remove_file(&self.path);
    }
}

fn answer(shared: &Shared, stream: UnixStream) -> io::Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let mut line = String::new();
    BufReader::new(io::Read::take(&stream, 65_536)).read_line(&mut line)?;
    let answer = match serde_json::from_str::<Request>(&line) {
        Ok(request) => fulfil(shared, &request),
        Err(e) => json!({ "error": format!("not a request: {e}") }),
    };
    let mut bytes = serde_json::to_vec(&answer)?;
    bytes.push(b'\n');
    (&stream).write_all(&bytes)
}

fn fulfil(shared: &Shared, request: &Request) -> Value {
    let failed = |e: SpoolError| json!({ "error": e.to_string() });
    match request {
        Request::Status => serde_json::to_value(shared.status()).unwrap_or_default(),
        Request::Dead { exporter } => {
            dead_letters(&shared.spool, exporter.as_deref()).unwrap_or_else(failed)
        }
        Request::Retry { exporter } => {
            let wishes = shared.wishes.lock().unwrap_or_else(PoisonError::into_inner);
            let wanted: Vec<_> = wishes
                .iter()
                .filter(|(name, _)| exporter.as_ref().is_none_or(|e| e == *name))
                .collect();
            for (_, wish) in &wanted {
                let _ = wish.send(Wish::Revive);
                let _ = wish.send(Wish::Now);
            }
            match wanted.is_empty() {
                true => json!({ "error": "no such exporter is running" }),
                false => json!({ "retried": wanted.iter().map(|(n, _)| n).collect::<Vec<_>>() }),
            }
        }
        Request::Forget { exporter } => {
            let wishes = shared.wishes.lock().unwrap_or_else(PoisonError::into_inner);
            if wishes.contains_key(exporter) {
                return json!({ "error": format!("{exporter} is running") });
            }
            match shared.spool.forget(exporter) {
                Ok(()) => json!({ "forgotten": exporter }),
                Err(e) => failed(e),
            }
        }
    }
}
