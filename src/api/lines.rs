//! Connections, and the end of those whose client takes nothing any more.
//!
//! The web server waits for ever until a client has taken an answer. Here every connection is looked
//! at: one with bytes on their way, of which none went within the time allowed, is shut.

use std::any::Any;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use actix_tls::accept::rustls_0_23::TlsStream;
use actix_web::HttpRequest;
use actix_web::dev::Extensions;
use actix_web::rt::net::{TcpStream, UnixStream};

use super::gate::Caller;

/// One connection, for as long as it is open.
#[derive(Debug)]
pub(super) struct Line {
    /// A second handle to the same socket.
    socket: OwnedFd,
    seen: Mutex<Seen>,
}

#[derive(Clone, Copy, Debug)]
struct Seen {
    unsent: u32,
    /// Since when it is so.
    since: Instant,
}

impl Line {
    pub(super) fn of(request: &HttpRequest) -> Option<Arc<Self>> {
        request.conn_data::<Arc<Self>>().cloned()
    }

    /// Notes that the client took something.
    pub(super) fn moved(&self) {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).since = Instant::now();
    }

    fn is_stuck(&self, patience: Duration) -> bool {
        let unsent = diskio::unsent(&self.socket).unwrap_or(0);
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        if unsent == 0 || unsent != seen.unsent {
            *seen = Seen { unsent, since: Instant::now() };
        }
        seen.since.elapsed() > patience
    }
}

/// All connections.
#[derive(Debug)]
pub(super) struct Lines {
    patience: Duration,
    open: Mutex<Vec<Weak<Line>>>,
}

impl Lines {
    /// `patience`: how long a client may take nothing.
    pub(super) fn new(patience: Duration) -> Self {
        Self { patience, open: Mutex::default() }
    }

    /// Notes who connected.
    pub(super) fn meet(&self, io: &dyn Any, extensions: &mut Extensions) {
        let remote = |stream: &TcpStream| stream.peer_addr().ok().map(Caller::Remote);
        let (caller, socket) = if let Some(stream) = io.downcast_ref::<UnixStream>() {
            let uid = stream.peer_cred().ok().map(|c| c.uid());
            (Some(Caller::Local(uid)), stream.as_fd())
        } else if let Some(stream) = io.downcast_ref::<TcpStream>() {
            (remote(stream), stream.as_fd())
        } else if let Some(stream) = io.downcast_ref::<TlsStream<TcpStream>>() {
            let (stream, _) = stream.get_ref();
            (remote(stream), stream.as_fd())
        } else {
            return;
        };
        if let Some(caller) = caller {
            extensions.insert(caller);
        }
        if let Ok(socket) = socket.try_clone_to_owned() {
            let seen = Mutex::new(Seen { unsent: 0, since: Instant::now() });
            let line = Arc::new(Line { socket, seen });
            let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
            open.retain(|l| l.strong_count() > 0);
            open.push(Arc::downgrade(&line));
            extensions.insert(line);
        }
    }

    /// Shuts those that are stuck.
    pub(super) fn look(&self) {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.retain(|line| {
            let Some(line) = line.upgrade() else { return false };
            let stuck = line.is_stuck(self.patience);
            if stuck {
                let patience = self.patience.as_secs();
                tracing::warn!("API: a client that took nothing for {patience} s is left");
                // It may be gone by now.
                let _ = rustix::net::shutdown(&line.socket, rustix::net::Shutdown::Both);
            }
            !stuck
        });
    }
}
