//! The sensor's answers over HTTP: to this machine by the control socket, to others by TCP.
//!
//! Both have the same paths ([`routes`]). Whoever comes by the control socket was let in by the file's
//! mode; whoever comes by TCP shows the token. Nothing here touches the packet path: the status and
//! the alerts are copies, flows are copied out in slices, packets come from the journal's files.
//!
//! The servers' threads begin before DPDK does, so that they may run on every CPU.

mod flows;
mod gate;
mod pieces;
mod problem;
mod routes;
mod socket;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc;
use std::thread::{Builder, JoinHandle};
use std::time::Duration;

use actix_web::dev::ServerHandle;
use actix_web::middleware::from_fn;
use actix_web::web::Data;
use actix_web::{App, HttpServer};

use crate::control::House;
use crate::journal::{self, query};
use problem::Problem;
use socket::SocketFile;

pub use socket::SocketError;

/// Where the control socket is unless somebody says otherwise.
pub const CONTROL_SOCKET: &str = "/run/malakocut.sock";
/// Threads that answer, for each listener.
const WORKERS: usize = 2;
/// Connections at once, for each of them.
const CONNECTIONS: usize = 256;
/// A request's head must come within this; an idle connection is kept for so long.
const HEAD: Duration = Duration::from_secs(5);
const KEEP: Duration = Duration::from_secs(30);

/// What to listen on.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    pub socket: Option<SocketPath>,
}

/// The control socket's place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SocketPath {
    pub path: PathBuf,
    /// Somebody asked for it: without it the sensor does not start.
    pub is_wanted: bool,
}

/// The servers cannot start.
#[derive(Debug, thiserror::Error)]
pub enum ApiError {
    #[error(transparent)]
    Socket(#[from] SocketError),
    #[error("the API's thread did not start: {0}")]
    Thread(std::io::Error),
}

/// The journal as it is asked.
pub(crate) struct JournalDoor {
    reader: query::Journal,
    monitor: journal::Monitor,
}

/// What handlers know.
struct State {
    house: House,
    journal: Option<Arc<JournalDoor>>,
}

impl State {
    fn journal(&self) -> Result<&Arc<JournalDoor>, Problem> {
        self.journal.as_ref().ok_or_else(|| Problem::not_found("the sensor keeps no journal"))
    }
}

/// The servers; they end when this is dropped.
pub struct Api {
    handle: ServerHandle,
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
        let Some((unix, socket)) = open_socket(settings)? else { return Ok(None) };
        let journal = journal.and_then(|handle| {
            match query::Journal::with_live(handle.directory(), handle.live()) {
                Ok(reader) => Some(Arc::new(JournalDoor { reader, monitor: handle.monitor() })),
                Err(e) => {
                    tracing::error!("the API cannot read the journal: {e}");
                    None
                }
            }
        });
        let state = Data::new(State { house, journal });
        let (tell, told) = mpsc::channel();
        let run = move || {
            let server = HttpServer::new(move || {
                App::new()
                    .app_data(state.clone())
                    .wrap(from_fn(gate::pass))
                    .configure(routes::configure)
            })
            .workers(WORKERS)
            .max_connections(CONNECTIONS)
            .client_request_timeout(HEAD)
            .keep_alive(KEEP)
            .h1_allow_half_closed(false)
            .disable_signals()
            .on_connect(gate::meet);
            let served = actix_web::rt::System::new().block_on(async {
                let server = server.listen_uds(unix)?.run();
                let _ = tell.send(server.handle());
                server.await
            });
            if let Err(e) = served {
                tracing::error!("the API ended: {e}");
            }
        };
        let thread = Builder::new().name("api".into()).spawn(run).map_err(ApiError::Thread)?;
        let ended = || ApiError::Thread(std::io::Error::other("it ended at once"));
        let handle = told.recv().map_err(|_| ended())?;
        Ok(Some(Self { handle, thread: Some(thread), _socket: Some(socket) }))
    }
}

fn open_socket(
    settings: &Settings,
) -> Result<Option<(std::os::unix::net::UnixListener, SocketFile)>, SocketError> {
    let Some(wanted) = &settings.socket else { return Ok(None) };
    match socket::bind(&wanted.path) {
        Ok(bound) => Ok(Some(bound)),
        Err(e) if wanted.is_wanted => Err(e),
        Err(e) => {
            tracing::warn!("{e}; the sensor runs without one (--control-socket PATH)");
            Ok(None)
        }
    }
}

impl Drop for Api {
    fn drop(&mut self) {
        // Sent at once; the answer is the thread's end.
        drop(self.handle.stop(false));
        if self.thread.take().is_some_and(|t| t.join().is_err()) {
            tracing::error!("the API's thread panicked");
        }
    }
}
