//! The sensor's answers over HTTP: to this machine by the control socket, to others by TCP.
//!
//! Both have the same paths ([`routes`]). Whoever comes by the control socket was let in by the file's
//! mode; whoever comes by TCP shows the token. Nothing here touches the packet path: the status and
//! the alerts are copies, flows are copied out in slices, packets come from the journal's files.
//!
//! The servers' threads begin before DPDK does, so that they may run on every CPU.

mod extract;
mod extraction;
mod flows;
mod gate;
mod lines;
mod pages;
mod pieces;
mod problem;
mod question;
mod routes;
mod socket;
mod tls;
mod turns;

use std::collections::BTreeMap;
use std::fmt;
use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::sync::mpsc;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{Builder, JoinHandle};
use std::time::Duration;

use actix_web::dev::ServerHandle;
use actix_web::middleware::from_fn;
use actix_web::web::Data;
use actix_web::{App, HttpServer};

use crate::control::{AskError, House};
use crate::journal::{self, query};
use extraction::Extractions;
use gate::Gate;
use lines::Lines;
use problem::Problem;
use socket::SocketFile;
use tls::Certificate;

pub use extraction::Limits;
pub use socket::SocketError;
pub use tls::{Files as TlsFiles, TlsError};

/// Where the control socket is unless somebody says otherwise, and the API's port.
pub const CONTROL_SOCKET: &str = "/run/malakocut.sock";
pub const PORT: u16 = 8080;
/// How long a client may take nothing of its answer. One that reads 1 KB a second from a large
/// window seems to take nothing for a minute.
pub const PATIENCE: Duration = Duration::from_secs(180);

/// Threads that answer by TCP; the control socket has its own, which nobody outside can keep busy.
const WORKERS: usize = 2;
/// Connections at once, for each thread.
const CONNECTIONS: usize = 96;
/// A request's head must come within this; an idle connection is kept for so long.
const HEAD: Duration = Duration::from_secs(5);
const KEEP: Duration = Duration::from_secs(30);
/// The control thread answers within milliseconds; after so long it is in trouble.
const SENSOR: Duration = Duration::from_secs(10);
/// How often connections, limits and certificates are looked at.
const LOOK: Duration = Duration::from_secs(1);

/// What to listen on.
#[derive(Clone, Debug)]
pub struct Settings {
    pub socket: Option<SocketPath>,
    /// Only with a token.
    pub listen: Option<SocketAddr>,
    /// Somebody asked for the address.
    pub is_wanted: bool,
    pub token: Option<Token>,
    pub tls: Option<TlsFiles>,
    pub limits: Limits,
    pub patience: Duration,
    /// The flow table's, which decides where a flow of a flow id ends.
    pub idle_timeout: Duration,
}

/// The control socket's place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SocketPath {
    pub path: PathBuf,
    /// Somebody asked for it: without it the sensor does not start.
    pub is_wanted: bool,
}

/// The bearer token, which nothing shows.
#[derive(Clone)]
pub struct Token(String);

impl Token {
    /// # Errors
    /// It is too short to be safe.
    pub fn new(text: String) -> Result<Self, String> {
        match text.chars().count() {
            n if n < gate::TOKEN => {
                Err(format!("MALAKO_API_TOKEN: {n} characters; at least {}", gate::TOKEN))
            }
            _ => Ok(Self(text)),
        }
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token")
    }
}

/// The servers cannot start.
#[derive(Debug, thiserror::Error)]
pub enum ApiError {
    #[error(transparent)]
    Socket(#[from] SocketError),
    #[error("--api-listen {address}: {source}")]
    Listen { address: SocketAddr, source: std::io::Error },
    #[error("[api] {0}")]
    Tls(#[from] TlsError),
    #[error("the API did not start: {0}")]
    Start(std::io::Error),
}

/// The journal as it is asked.
struct JournalDoor {
    reader: query::Journal,
    monitor: journal::Monitor,
}

/// What handlers know.
struct State {
    house: House,
    journal: Option<Arc<JournalDoor>>,
    gate: Gate,
    extractions: Arc<Extractions>,
    idle_timeout: Duration,
    /// Answers by path and status.
    answers: Mutex<BTreeMap<(String, u16), u64>>,
}

impl State {
    fn journal(&self) -> Result<&Arc<JournalDoor>, Problem> {
        self.journal.as_ref().ok_or_else(|| Problem::not_found("the sensor keeps no journal"))
    }

    /// What the control thread says, if it does.
    async fn answered<T>(asked: impl Future<Output = Result<T, AskError>>) -> Result<T, Problem> {
        match tokio::time::timeout(SENSOR, asked).await {
            Ok(answer) => Ok(answer?),
            Err(_) => Err(Problem::busy("the sensor did not answer within 10 s", 5)),
        }
    }

    /// Counts an answer of a path, or of none that there is.
    fn count(&self, path: Option<String>, status: u16) {
        let mut answers = self.answers.lock().unwrap_or_else(PoisonError::into_inner);
        *answers.entry((path.unwrap_or_else(|| "other".into()), status)).or_default() += 1;
    }
}

/// What the sockets are.
struct Doors {
    unix: Option<(std::os::unix::net::UnixListener, SocketFile)>,
    tcp: Option<(TcpListener, Option<Arc<Certificate>>)>,
}

/// The servers; they end when this is dropped.
pub struct Api {
    handles: Vec<ServerHandle>,
    extractions: Arc<Extractions>,
    thread: Option<JoinHandle<()>>,
    _socket: Option<SocketFile>,
}

impl Api {
    /// Starts what is configured, or nothing.
    ///
    /// # Errors
    /// What was asked for cannot be had.
    pub fn start(
        settings: &Settings,
        house: House,
        journal: Option<&journal::Handle>,
    ) -> Result<Option<Self>, ApiError> {
        let Doors { unix, tcp } = open(settings)?;
        if unix.is_none() && tcp.is_none() {
            return Ok(None);
        }
        let (unix, socket) = unix.unzip();
        let extractions = Arc::new(Extractions::new(settings.limits));
        let state = Data::new(State {
            house,
            journal: journal.and_then(door),
            gate: Gate::new(settings.token.as_ref().map(|t| t.0.as_str())),
            extractions: Arc::clone(&extractions),
            idle_timeout: settings.idle_timeout,
            answers: Mutex::default(),
        });
        let lines = Arc::new(Lines::new(settings.patience));
        let (tell, told) = mpsc::channel();
        let run = move || {
            let system = actix_web::rt::System::new();
            if let Err(e) = system.block_on(serve(unix, tcp, state, lines, tell)) {
                tracing::error!("the API ended: {e}");
            }
        };
        let thread = Builder::new().name("api".into()).spawn(run).map_err(ApiError::Start)?;
        let ended = |_| ApiError::Start(std::io::Error::other("its thread ended at once"));
        let handles = told.recv().map_err(ended)?;
        Ok(Some(Self { handles, extractions, thread: Some(thread), _socket: socket }))
    }
}

/// Answers until the handles that it tells of say stop.
async fn serve(
    unix: Option<std::os::unix::net::UnixListener>,
    tcp: Option<(TcpListener, Option<Arc<Certificate>>)>,
    state: Data<State>,
    lines: Arc<Lines>,
    tell: mpsc::Sender<Vec<ServerHandle>>,
) -> std::io::Result<()> {
    let server = |workers| {
        let (state, lines) = (state.clone(), Arc::clone(&lines));
        let app = move || {
            App::new()
                .app_data(state.clone())
                .wrap(from_fn(gate::pass))
                .configure(routes::configure)
        };
        HttpServer::new(app)
            .workers(workers)
            .max_connections(CONNECTIONS)
            .client_request_timeout(HEAD)
            .keep_alive(KEEP)
            .h1_allow_half_closed(false)
            .disable_signals()
            .on_connect(move |io, extensions| lines.meet(io, extensions))
    };
    let mut running = Vec::new();
    if let Some(unix) = unix {
        running.push(server(1).listen_uds(unix)?.run());
    }
    let mut certificate = None;
    if let Some((tcp, tls)) = tcp {
        let server = server(WORKERS);
        running.push(match &tls {
            Some(tls) => {
                let config = tls.config().map_err(std::io::Error::other)?;
                server.listen_rustls_0_23(tcp, config)?.run()
            }
            None => server.listen(tcp)?.run(),
        });
        certificate = tls;
    }
    let _ = tell.send(running.iter().map(actix_web::dev::Server::handle).collect());
    let extractions = Arc::clone(&state.extractions);
    actix_web::rt::spawn(async move {
        loop {
            tokio::time::sleep(LOOK).await;
            lines.look();
            extractions.look();
            if let Some(certificate) = &certificate {
                certificate.look();
            }
        }
    });
    // Each on its own: a server that nobody waits for does nothing.
    let running: Vec<_> = running.into_iter().map(actix_web::rt::spawn).collect();
    for server in running {
        server.await.map_err(std::io::Error::other)??;
    }
    Ok(())
}

fn door(handle: &journal::Handle) -> Option<Arc<JournalDoor>> {
    match query::Journal::with_live(handle.directory(), handle.live()) {
        Ok(reader) => Some(Arc::new(JournalDoor { reader, monitor: handle.monitor() })),
        Err(e) => {
            tracing::error!("the API cannot read the journal: {e}");
            None
        }
    }
}

fn open(settings: &Settings) -> Result<Doors, ApiError> {
    let unix = match &settings.socket {
        None => None,
        Some(wanted) => match socket::bind(&wanted.path) {
            Ok(bound) => Some(bound),
            Err(e) if wanted.is_wanted => return Err(e.into()),
            Err(e) => {
                tracing::warn!("{e}; the sensor runs without one (--control-socket PATH)");
                None
            }
        },
    };
    let tcp = match (settings.listen, &settings.token) {
        (Some(address), Some(_)) => Some(open_tcp(settings, address)?),
        (Some(address), None) if settings.is_wanted => {
            tracing::warn!(
                "no API at {address}: it needs a token in MALAKO_API_TOKEN or the systemd credential \
                 api-token"
            );
            None
        }
        _ => None,
    };
    Ok(Doors { unix, tcp })
}

fn open_tcp(
    settings: &Settings,
    address: SocketAddr,
) -> Result<(TcpListener, Option<Arc<Certificate>>), ApiError> {
    let certificate = settings.tls.as_ref().map(Certificate::load).transpose()?;
    let listener =
        TcpListener::bind(address).map_err(|source| ApiError::Listen { address, source })?;
    let address = listener.local_addr().unwrap_or(address);
    let scheme = if certificate.is_some() { "https" } else { "http" };
    tracing::info!("the API is at {scheme}://{address}/");
    if address.ip().is_unspecified() {
        tracing::warn!("the API listens on every address of this machine");
    }
    if certificate.is_none() && !address.ip().is_loopback() {
        tracing::warn!("tokens and packets go in clear: give [api] tls_cert and tls_key");
    }
    Ok((listener, certificate))
}

impl Drop for Api {
    fn drop(&mut self) {
        self.extractions.stop();
        for handle in &self.handles {
            // Sent at once; the answer is the thread's end.
            drop(handle.stop(false));
        }
        if self.thread.take().is_some_and(|t| t.join().is_err()) {
            tracing::error!("the API's thread panicked");
        }
    }
}
