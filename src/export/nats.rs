//! NATS JetStream: a batch is one message of JSON lines.
//!
//! The message id (`Nats-Msg-Id`) is the batch's, so the server drops repeats within the stream's
//! duplicate window; give the stream a window longer than outages last. A batch counts as delivered
//! when the stream has acknowledged it.

use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_nats::header::NATS_MESSAGE_ID;
use async_nats::jetstream::Context;
use async_nats::jetstream::context::PublishErrorKind;
use async_nats::{ConnectOptions, Event, HeaderMap};

use super::settings::NatsSettings;
use super::{Exporter, Failure, Frozen, Make, Outgoing, Sending, secret};

/// Servers take 1 MB by default.
const ROOM: usize = 900_000;
const CONNECT: Duration = Duration::from_secs(10);

struct Nats {
    context: Context,
    subject: String,
    timeout: Duration,
    /// The last thing that a server or the connection complained of.
    complaint: Arc<Mutex<Option<String>>>,
}

/// Checks the settings.
pub(super) fn prepare(settings: &NatsSettings, sensor: &str) -> Result<Make, String> {
    let s = settings.clone();
    if s.servers.is_empty() {
        return Err("[export.nats] servers: at least one, such as nats://host:4222".into());
    }
    let mut servers = Vec::new();
    for text in &s.servers {
        let server = text.parse::<async_nats::ServerAddr>();
        servers.push(server.map_err(|e| format!("[export.nats] servers: {text}: {e}"))?);
    }
    let plain = |c: char| if c.is_ascii_alphanumeric() || c == '-' || c == '_' { c } else { '_' };
    let name: String = sensor.chars().map(plain).collect();
    let subject = s.subject.clone().unwrap_or_else(|| format!("ndr.flow.{name}"));
    if subject.is_empty() || subject.contains([' ', '*', '>']) {
        return Err(format!("[export.nats] subject {subject}: no spaces and no wildcards"));
    }
    let credentials = match &s.credentials {
        Some(path) => Some(
            std::fs::read_to_string(path)
                .map_err(|e| format!("[export.nats] credentials {}: {e}", path.display()))?,
        ),
        None => None,
    };
    let password = secret("MALAKOCUT_NATS_PASSWORD", "nats-password")?;
    if s.user.is_some() && password.is_none() {
        return Err("[export.nats] user: set MALAKOCUT_NATS_PASSWORD to its password".into());
    }
    Ok(Box::new(move || {
        Box::pin(async move {
            let complaint = Arc::new(Mutex::new(None));
            let heard = Arc::clone(&complaint);
            let mut options = ConnectOptions::new()
                .name("malakocut")
                .connection_timeout(CONNECT.min(s.delivery.timeout))
                .retry_on_initial_connect()
                .event_callback(move |event| {
                    let heard = Arc::clone(&heard);
                    async move {
                        let mut heard = heard.lock().unwrap_or_else(PoisonError::into_inner);
                        match event {
                            Event::Connected => *heard = None,
                            Event::ServerError(e) => *heard = Some(e.to_string()),
                            Event::ClientError(e) => *heard = Some(e.to_string()),
                            Event::Disconnected => {
                                heard.get_or_insert_with(|| "not connected".into());
                            }
                            _ => {}
                        }
                    }
                });
            if let Some(text) = credentials {
                // Its message could quote the file.
                options = options
                    .credentials(&text)
                    .map_err(|_| "[export.nats] credentials: not a .creds file".to_owned())?;
            }
            if let (Some(user), Some(password)) = (s.user, password) {
                options = options.user_and_password(user, password);
            }
            if let Some(ca) = s.ca {
                options = options.add_root_certificates(ca).require_tls(true);
            }
            let client = async_nats::connect_with_options(servers, options)
                .await
                .map_err(|e| format!("[export.nats]: {e}"))?;
            let mut context = async_nats::jetstream::new(client);
            context.set_timeout(s.delivery.timeout);
            let timeout = s.delivery.timeout;
            Ok(Arc::new(Nats { context, subject, timeout, complaint }) as Arc<dyn Exporter>)
        })
    }))
}

impl Exporter for Nats {
    fn cost(&self, event: &Outgoing) -> usize {
        event.line.len() + 1
    }

    fn room(&self) -> usize {
        ROOM
    }

    fn send<'a>(&'a self, batch: &'a Frozen) -> Sending<'a> {
        Box::pin(async move {
            let mut headers = HeaderMap::new();
            headers.insert(NATS_MESSAGE_ID, batch.id.as_str());
            let mut payload = Vec::with_capacity(ROOM.min(1024 * batch.events.len()));
            for event in &batch.events {
                payload.extend_from_slice(&event.line);
                payload.push(b'\n');
            }
            let sent = async {
                let published = self.context.publish_with_headers(
                    self.subject.clone(),
                    headers,
                    payload.into(),
                );
                published.await?.await
            };
            match tokio::time::timeout(self.timeout, sent).await {
                Ok(Ok(_)) => Ok(()),
                Ok(Err(e)) => Err(self.refused(e.kind(), &e.to_string())),
                Err(_) => {
                    Err(self.refused(PublishErrorKind::TimedOut, "no acknowledgement in time"))
                }
            }
        })
    }

    fn test(&self) -> Pin<Box<dyn Future<Output = Result<String, String>> + Send + '_>> {
        Box::pin(async move {
            let found = self.context.stream_by_subject(self.subject.clone());
            match tokio::time::timeout(self.timeout, found).await {
                Ok(Ok(stream)) => Ok(format!("stream {stream} takes {}", self.subject)),
                Ok(Err(e)) => Err(format!("no stream takes {}: {e}{}", self.subject, self.heard())),
                Err(_) => Err(format!("no answer in time{}", self.heard())),
            }
        })
    }
}

impl Nats {
    fn heard(&self) -> String {
        let complaint = self.complaint.lock().unwrap_or_else(PoisonError::into_inner);
        complaint.as_ref().map_or(String::new(), |c| format!(" ({c})"))
    }

    fn refused(&self, kind: PublishErrorKind, said: &str) -> Failure {
        let heard = self.heard();
        let why = format!("NATS: {said}{heard}");
        match kind {
            PublishErrorKind::StreamNotFound => Failure::Hold {
                kind: "no_stream",
                why: format!("{why}; create a JetStream stream that takes {}", self.subject),
            },
            PublishErrorKind::MaxPayloadExceeded => Failure::TooLarge { why },
            _ if heard.to_ascii_lowercase().contains("authoriz") => {
                Failure::Hold { kind: "refused", why: format!("{why}; check user and credentials") }
            }
            PublishErrorKind::TimedOut => Failure::Retry { kind: "timeout", why, after: None },
            _ => Failure::Retry { kind: "connection", why, after: None },
        }
    }
}
