//! What systemd is told, and what it gave us: readiness, the watchdog, capabilities.
//!
//! Everything here does nothing where systemd did not start us.

use std::time::{Duration, Instant};

use caps::CapSet;
use sd_notify::NotifyState;

/// How long the others may go on reporting when an lcore is stuck, before the process ends itself;
/// systemd's watchdog is there first, where there is one.
const GRACE: Duration = Duration::from_secs(15);

pub(super) struct Service {
    has_watchdog: bool,
    stuck_since: Option<Instant>,
}

impl Service {
    pub(super) fn new() -> Self {
        Self { has_watchdog: sd_notify::watchdog_enabled().is_some(), stuck_since: None }
    }

    pub(super) fn ready(&self) {
        tell(&[NotifyState::Ready]);
    }

    /// Around something that changes how we run.
    pub(super) fn reloading<T>(&self, change: impl FnOnce() -> T) -> T {
        tell(&[NotifyState::Reloading]);
        let done = change();
        tell(&[NotifyState::Ready]);
        done
    }

    pub(super) fn stopping(&self) {
        tell(&[NotifyState::Stopping]);
    }

    /// One line of how it goes, and a sign of life if there is life.
    pub(super) fn report(&self, status: &str, is_alive: bool) {
        // Without life nothing is told: a socket that nobody reads would keep us from ending.
        match (is_alive, self.has_watchdog) {
            (true, true) => tell(&[NotifyState::Watchdog, NotifyState::Status(status)]),
            (true, false) => tell(&[NotifyState::Status(status)]),
            (false, _) => {}
        }
    }

    /// Whether an lcore has been stuck for so long that nothing else is left but to end.
    pub(super) fn is_lost(&mut self, stuck: bool) -> bool {
        if !stuck {
            self.stuck_since = None;
            return false;
        }
        self.stuck_since.get_or_insert_with(Instant::now).elapsed() > GRACE
    }
}

fn tell(states: &[NotifyState<'_>]) {
    if let Err(e) = sd_notify::notify(states) {
        tracing::debug!("systemd was not told: {e}");
    }
}

/// Gives up what the calling thread, and threads that it starts, could do beyond an ordinary user.
///
/// Root keeps what it has: it owns nothing else here, and could not write its own files.
pub(super) fn give_up_capabilities() {
    let held = caps::read(None, CapSet::Permitted).unwrap_or_default();
    if rustix::process::geteuid().is_root() || held.is_empty() {
        return;
    }
    for set in [CapSet::Ambient, CapSet::Inheritable, CapSet::Effective, CapSet::Permitted] {
        if let Err(e) = caps::clear(None, set) {
            tracing::warn!("capabilities could not be given up: {e}");
            return;
        }
    }
    let mut names: Vec<String> = held.iter().map(ToString::to_string).collect();
    names.sort();
    tracing::info!("capabilities given up after the start: {}", names.join(", "));
}
