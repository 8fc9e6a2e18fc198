//! Asks the running sensor: HTTP on its control socket.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use http::{Method, Request, header};
use http_body_util::{BodyExt, Empty};
use hyper::body::Bytes;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::value::RawValue;
use tokio::net::UnixStream;
use tokio::runtime::{self, Runtime};

use super::Refused;
use crate::api::CONTROL_SOCKET;
use crate::config::{self, Layer};
use crate::control::Alert;

/// A sensor that does not answer for so long stands still.
const PATIENCE: Duration = Duration::from_secs(30);

/// Where the sensor is asked.
#[derive(Clone, Debug, Args)]
pub(super) struct Door {
    /// The sensor's control socket [default: the configuration file's, or /run/malakocut.sock]
    #[arg(long, value_name = "PATH", env = "MALAKOCUT_CONTROL_SOCKET")]
    socket: Option<PathBuf>,
    /// Configuration file
    #[arg(long, value_name = "FILE", env = "MALAKOCUT_CONFIG")]
    config: Option<PathBuf>,
}

impl Door {
    /// A client, and what the configuration file says.
    pub(super) fn find(&self) -> Result<(Client, Layer), Refused> {
        let file = config::file_layer(self.config.as_deref()).map_err(Refused::because)?;
        let given = self.socket.clone().filter(|s| !s.as_os_str().is_empty());
        let given = given.or_else(|| file.control_socket.clone());
        let path = given.unwrap_or_else(|| CONTROL_SOCKET.into());
        Ok((Client::new(path)?, file))
    }

    pub(super) fn client(&self) -> Result<Client, Refused> {
        Ok(self.find()?.0)
    }
}

/// Why there is no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum AskError {
    #[error("no sensor is running: {0}: {1}; start one, or name its socket with --socket PATH")]
    NotRunning(PathBuf, &'static str),
    #[error("{0}: permission denied; be root or in the socket's group")]
    Denied(PathBuf),
    #[error("the sensor refuses: {0}")]
    Refused(String),
    #[error("the sensor gave no answer that can be read: {0}")]
    Broken(String),
}

impl From<AskError> for Refused {
    fn from(e: AskError) -> Self {
        Self::because(e)
    }
}

fn broken(why: impl std::fmt::Display) -> AskError {
    AskError::Broken(why.to_string())
}

/// The flows of one question; their order is the one asked for.
#[derive(Debug, Deserialize)]
pub(super) struct FlowPage {
    /// Live flows in all, and those that the filter takes.
    pub(super) flows: u64,
    pub(super) matched: u64,
    /// A flow event's object each, as the sensor wrote it.
    pub(super) rows: Vec<Box<RawValue>>,
}

#[derive(Debug, Deserialize)]
pub(super) struct AlertPage {
    pub(super) alerts: Vec<Alert>,
}

#[derive(Deserialize)]
struct Problem {
    error: String,
}

/// A connection that is kept from one question to the next.
pub(super) struct Client {
    socket: PathBuf,
    runtime: Runtime,
    kept: Option<SendRequest<Empty<Bytes>>>,
}

impl Client {
    fn new(socket: PathBuf) -> Result<Self, Refused> {
        let runtime = runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(Refused::because)?;
        Ok(Self { socket, runtime, kept: None })
    }

    pub(super) fn get<T: DeserializeOwned>(&mut self, path: &str) -> Result<T, AskError> {
        serde_json::from_slice(&self.bytes(&Method::GET, path)?).map_err(broken)
    }

    pub(super) fn post<T: DeserializeOwned>(&mut self, path: &str) -> Result<T, AskError> {
        serde_json::from_slice(&self.bytes(&Method::POST, path)?).map_err(broken)
    }

    /// The answer as it came.
    pub(super) fn bytes(&mut self, method: &Method, path: &str) -> Result<Bytes, AskError> {
        let kept = self.kept.take().filter(|k| !k.is_closed());
        let asked = ask(&self.socket, kept, method, path);
        let timed = async { tokio::time::timeout(PATIENCE, asked).await };
        let (answer, kept) = self
            .runtime
            .block_on(timed)
            .map_err(|_| broken(format!("none came within {} s", PATIENCE.as_secs())))??;
        self.kept = Some(kept);
        Ok(answer)
    }
}

async fn ask(
    socket: &Path,
    kept: Option<SendRequest<Empty<Bytes>>>,
    method: &Method,
    path: &str,
) -> Result<(Bytes, SendRequest<Empty<Bytes>>), AskError> {
    let was_kept = kept.is_some();
    let mut sender = match kept {
        Some(sender) => sender,
        None => connect(socket).await?,
    };
    let mut sent = sender.send_request(request(method, path)?).await;
    // The sensor may have hung up since the last question.
    let is_gone = |e: &hyper::Error| e.is_closed() || e.is_canceled() || e.is_incomplete_message();
    if was_kept && sent.as_ref().is_err_and(is_gone) {
        sender = connect(socket).await?;
        sent = sender.send_request(request(method, path)?).await;
    }
    let answer = sent.map_err(broken)?;
    let status = answer.status();
    let bytes = answer.into_body().collect().await.map_err(broken)?.to_bytes();
    if status.is_success() {
        return Ok((bytes, sender));
    }
    let why = serde_json::from_slice(&bytes).map(|p: Problem| p.error);
    Err(AskError::Refused(why.unwrap_or_else(|_| status.to_string())))
}

fn request(method: &Method, path: &str) -> Result<Request<Empty<Bytes>>, AskError> {
    Request::builder()
        .method(method)
        .uri(path)
        .header(header::HOST, "localhost")
        .body(Empty::new())
        .map_err(broken)
}

async fn connect(socket: &Path) -> Result<SendRequest<Empty<Bytes>>, AskError> {
    let stream = UnixStream::connect(socket).await.map_err(|e| match e.kind() {
        ErrorKind::NotFound => AskError::NotRunning(socket.into(), "there is no such socket"),
        ErrorKind::ConnectionRefused => AskError::NotRunning(socket.into(), "nobody listens there"),
        ErrorKind::PermissionDenied => AskError::Denied(socket.into()),
        _ => broken(format!("{}: {e}", socket.display())),
    })?;
    let (sender, connection) = handshake(TokioIo::new(stream)).await.map_err(broken)?;
    tokio::spawn(connection);
    Ok(sender)
}

/// A path with its question; values may hold any text.
pub(super) fn question(path: &str, parts: &[(&str, &str)]) -> String {
    let mut out = path.to_owned();
    for (n, (name, value)) in parts.iter().enumerate() {
        out.push(if n == 0 { '?' } else { '&' });
        out.push_str(name);
        out.push('=');
        for byte in value.bytes() {
            match byte {
                b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
                    out.push(char::from(byte));
                }
                _ => out.push_str(&format!("%{byte:02X}")),
            }
        }
    }
    out
}
