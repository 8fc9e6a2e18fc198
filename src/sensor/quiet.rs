//! The blocklist while the sensor runs: read anew on SIGHUP, and what is said about it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use rtrb::Consumer;

use crate::inspect::collect::Collector;
use crate::inspect::silence::{Shared, Silencer, silencers};
use crate::shunt::{Blocklist, Loaded};

/// The same is not said again for so long.
const SAID: Duration = Duration::from_secs(60);

pub(super) struct Quiet {
    blocklist: Arc<Blocklist>,
    shared: Vec<Consumer<Shared>>,
    said: Option<Instant>,
    /// Reports since then.
    unsaid: u64,
}

impl Quiet {
    /// With a silencer for each worker.
    pub(super) fn new(blocklist: Arc<Blocklist>, workers: usize) -> (Self, Vec<Silencer>) {
        let (silencers, shared) = silencers(blocklist.current(), workers).into_iter().unzip();
        (Self { blocklist, shared, said: None, unsaid: 0 }, silencers)
    }

    /// Reads the file anew, on a thread of its own: a million names take a second. `then` is told
    /// what was loaded, or why nothing was.
    pub(super) fn reload(&self, then: impl FnOnce(Result<String, String>) + Send + 'static) {
        let blocklist = Arc::clone(&self.blocklist);
        let work = move || {
            let loaded = blocklist.reload().map_err(|e| e.to_string());
            then(loaded.map(|loaded| {
                say(&blocklist, &loaded);
                loaded.to_string()
            }));
        };
        if let Err(e) = std::thread::Builder::new().name("blocklist".into()).spawn(work) {
            tracing::error!("the blocklist is not read anew: {e}");
        }
    }

    /// Says, once a minute at most, which addresses are not silenced since others share them.
    pub(super) fn attend(&mut self, collector: &Collector) {
        self.blocklist.tidy();
        let mut example = None;
        for ring in &mut self.shared {
            while let Ok(shared) = ring.pop() {
                self.unsaid += 1;
                example = Some(shared);
            }
        }
        let Some(Shared { client, address, at_ns }) = example else { return };
        if self.said.is_some_and(|said| said.elapsed() < SAID) {
            return;
        }
        let names = collector.names(client, address, at_ns).join(", ");
        let times = std::mem::take(&mut self.unsaid);
        self.said = Some(Instant::now());
        tracing::info!(
            "blocklist: {address} is not silenced for {client}, since names that are not listed share \
             it (it asked for {names}); {times} such reports since the last line, blocklist.shared \
             counts flows"
        );
    }
}

/// Says what was in a list.
pub(super) fn say(blocklist: &Blocklist, loaded: &Loaded) {
    let path = blocklist.path().display();
    match loaded.bad {
        0 => tracing::info!("blocklist {path}: {loaded}"),
        _ => tracing::warn!("blocklist {path}: {loaded}"),
    }
}
