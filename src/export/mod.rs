//! Where flow events go. One file an engine.
//!
//! `file` writes JSON lines at once. The others are [`Exporter`]s behind the spool: an event counts
//! as accepted when it is on the disk, each exporter goes through the spool with its own cursor, and
//! an event leaves the spool when all have delivered it. A [`courier`](self) each forms batches,
//! keeps what is in them before the first attempt, repeats the same bytes until the receiver
//! confirms, and sets aside what the receiver refuses alone.
//!
//! Nothing here blocks capture: while the spool takes nothing, new events are counted and dropped.

mod buffered;
mod control;
mod courier;
mod file;
mod intake;
#[cfg(feature = "kafka")]
mod kafka;
mod lines;
mod nats;
mod secops;
mod settings;
mod view;

use std::collections::BTreeMap;
use std::future::Future;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::event::{About, EventWriter, FlowEvent};
use crate::secret::{credential_path, read as secret};
use crate::spool::{Limits, Spool, SpoolError};
use crate::status::{ExportStatus, ExporterStatus, SpoolStatus};

pub use buffered::Rotation;
pub use control::{CONTROL_SOCKET, Request, ask, dead_letters};
pub use file::{EveLog, FlowLog, OpenLogError};
pub use lines::LineLog;
pub use settings::{Api, Delivery, Fields, Settings};
pub use view::{Outgoing, View};

use courier::{Courier, Wish};
use intake::Intake;

/// The exporters that there are, `none` and `file` included.
pub const NAMES: &[&str] = &["none", "file", "secops", "nats", "kafka"];

/// Export cannot start.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    #[error(transparent)]
    Spool(#[from] SpoolError),
    #[error("exporter {name}: {why}")]
    Settings { name: String, why: String },
    #[error("export: a thread could not be started: {0}")]
    Thread(std::io::Error),
}

/// A batch to be sent: the same events, id and time at every attempt, so that the same bytes go out.
#[derive(Clone, Debug)]
pub struct Frozen {
    /// Unique among all sensors.
    pub id: String,
    /// When the batch was formed, nanoseconds since 1970.
    pub formed_ns: u64,
    /// At least one.
    pub events: Vec<Outgoing>,
}

/// Why a batch was not delivered, and so what is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failure {
    /// It may work later: the same again, not before `after`.
    Retry { kind: &'static str, why: String, after: Option<Duration> },
    /// Nothing will work until somebody changes something.
    Hold { kind: &'static str, why: String },
    /// The batch is too large for the receiver.
    TooLarge { why: String },
    /// Something in the batch, or everything, is wrong.
    Invalid { why: String },
}

impl Failure {
    fn kind(&self) -> &'static str {
        match self {
            Self::Retry { kind, .. } | Self::Hold { kind, .. } => kind,
            Self::TooLarge { .. } => "too_large",
            Self::Invalid { .. } => "invalid",
        }
    }
}

/// A future of an attempt.
pub type Sending<'a> = Pin<Box<dyn Future<Output = Result<(), Failure>> + Send + 'a>>;

/// An engine that takes batches.
pub trait Exporter: Send + Sync {
    /// What an event takes of [`Exporter::room`].
    fn cost(&self, event: &Outgoing) -> usize;

    /// How much fits one batch, by [`Exporter::cost`].
    fn room(&self) -> usize;

    /// One attempt. `Ok` means that the receiver has confirmed all of it.
    fn send<'a>(&'a self, batch: &'a Frozen) -> Sending<'a>;

    /// Asks the receiver whether it would take something, without giving it anything; says what it
    /// found.
    fn test(&self) -> Pin<Box<dyn Future<Output = Result<String, String>> + Send + '_>>;
}

/// Makes an engine inside its thread's runtime.
type Make = Box<dyn FnOnce() -> Making + Send>;
type Making = Pin<Box<dyn Future<Output = Result<Arc<dyn Exporter>, String>>>>;

/// What is to be exported where.
pub struct ExportConfig<'a> {
    /// Exporters by name; `none` and `file` are not looked at.
    pub names: &'a [String],
    pub settings: &'a Settings,
    /// The spool's directory.
    pub directory: PathBuf,
    pub sensor: &'a str,
    /// The source waits for us: rather wait for room in the spool than lose an event.
    pub waits: bool,
}

/// What is shared with couriers and the control socket.
struct Shared {
    spool: Arc<Spool>,
    statuses: Mutex<BTreeMap<String, ExporterStatus>>,
    intake: intake::Gauges,
    wishes: Mutex<BTreeMap<String, tokio::sync::mpsc::UnboundedSender<Wish>>>,
}

impl Shared {
    fn status(&self) -> ExportStatus {
        let statuses = self.statuses.lock().unwrap_or_else(PoisonError::into_inner);
        let held = self.spool.held();
        let unclaimed =
            self.spool.cursors().into_iter().filter(|name| !statuses.contains_key(name)).collect();
        ExportStatus {
            spool: SpoolStatus {
                events: held.events,
                bytes: held.bytes,
                max_bytes: held.max_bytes,
                problem: self.intake.problem(),
                refused: self.intake.refused(),
                unclaimed,
            },
            exporters: statuses.values().cloned().collect(),
        }
    }
}

/// The running export behind the spool.
pub struct Exports {
    shared: Arc<Shared>,
    intake: Intake,
    couriers: Vec<(String, JoinHandle<()>)>,
    control: Option<control::Server>,
    writer: EventWriter,
}

impl Exports {
    /// Opens the spool and starts the exporters, each on a thread of its own; `None` if none of the
    /// names needs the spool.
    ///
    /// # Errors
    /// An exporter's settings are incomplete, or the spool cannot be used.
    pub fn start(config: &ExportConfig<'_>) -> Result<Option<Self>, ExportError> {
        let mut engines = Vec::new();
        for name in config.names.iter().filter(|n| !matches!(n.as_str(), "none" | "file")) {
            engines.push(engine(name, config.settings, config.sensor)?);
        }
        if engines.is_empty() {
            return Ok(None);
        }
        let limits = Limits {
            max_bytes: config.settings.spool.max_bytes,
            reserve: config.settings.spool.reserve,
        };
        let (spool, opened) = Spool::open(&config.directory, limits)?;
        if let Some((path, why)) = opened.set_aside {
            tracing::error!(
                "the spool's store was damaged ({why}) and is set aside as {}; {} events were saved",
                path.display(),
                opened.salvaged
            );
        }
        let shared = Arc::new(Shared {
            spool: Arc::new(spool),
            statuses: Mutex::default(),
            intake: intake::Gauges::default(),
            wishes: Mutex::default(),
        });
        let mut couriers = Vec::new();
        for (name, delivery, view, make) in engines {
            couriers.push((name.clone(), Courier::start(&shared, name, delivery, view, make)?));
        }
        for name in shared.status().spool.unclaimed {
            tracing::warn!(
                "the spool keeps events for {name}, which is not configured; `malakocut-cli export \
                 forget {name}` drops them"
            );
        }
        let control = control::Server::start(&config.directory, &shared);
        let intake = Intake::start(&shared, config.waits).map_err(ExportError::Thread)?;
        let writer = EventWriter::new(config.sensor);
        Ok(Some(Self { shared, intake, couriers, control, writer }))
    }

    /// Takes one event.
    #[inline]
    pub fn take(&mut self, event: &FlowEvent, about: &About<'_>) {
        let writer = &mut self.writer;
        self.intake.add(event.timestamp_ns, |out| writer.write_about(event, about, out));
    }

    /// Lets the spool's thread have what was taken; to be called again and again.
    pub fn pass_on(&mut self) {
        self.intake.pass_on();
    }

    /// How it is doing.
    pub fn status(&self) -> ExportStatus {
        self.shared.status()
    }

    /// Ends. With `deliver` everything is delivered first, however long it takes, unless `stop` says
    /// otherwise; without, what is under way may end, and the rest stays in the spool. Returns
    /// whether no event was lost, and none waits that was to be delivered; and how it ended.
    pub fn finish(mut self, deliver: bool, mut stop: impl FnMut() -> bool) -> (bool, ExportStatus) {
        self.intake.hand_over();
        let mut complete = self.intake.finish(&mut stop);
        let wish = |wish: Wish| {
            let all = self.shared.wishes.lock().unwrap_or_else(PoisonError::into_inner);
            all.values().for_each(|w| drop(w.send(wish.clone())));
        };
        wish(if deliver { Wish::Drain } else { Wish::End });
        let mut said = Instant::now();
        while self.couriers.iter().any(|(_, thread)| !thread.is_finished()) {
            if deliver && stop() {
                wish(Wish::End);
            }
            if said.elapsed() > Duration::from_secs(10) {
                said = Instant::now();
                for e in self.shared.status().exporters.iter().filter(|e| e.waiting > 0) {
                    let problem = e.problem.as_deref().unwrap_or("under way");
                    tracing::info!("{} events wait for {}: {problem}", e.waiting, e.name);
                }
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        for (name, thread) in self.couriers.drain(..) {
            if thread.join().is_err() {
                tracing::error!("exporter {name} panicked; its events stay in the spool");
                complete = false;
            }
        }
        drop(self.control.take());
        let status = self.shared.status();
        for e in status.exporters.iter().filter(|e| e.waiting > 0 || e.dead > 0) {
            let problem = e.problem.as_ref().map(|p| format!(" ({p})")).unwrap_or_default();
            tracing::warn!(
                "{}: {} events wait in the spool, {} are dead letters{problem}",
                e.name,
                e.waiting,
                e.dead
            );
            complete &= !deliver || e.waiting == 0;
        }
        (complete, status)
    }
}

/// Checks an exporter's settings; it is made in its own thread.
fn engine(
    name: &str,
    settings: &Settings,
    sensor: &str,
) -> Result<(String, Delivery, View, Make), ExportError> {
    let bad = |why: String| ExportError::Settings { name: name.to_owned(), why };
    let (delivery, fields) = match name {
        "secops" => (&settings.secops.delivery, &settings.secops.fields),
        "nats" => (&settings.nats.delivery, &settings.nats.fields),
        "kafka" => (&settings.kafka.delivery, &settings.kafka.fields),
        _ => return Err(bad(format!("there is none; there are: {}", NAMES.join(", ")))),
    };
    let key = secret("MALAKOCUT_HASH_KEY", "hash-key").map_err(bad)?;
    let view = View::new(name, fields, key.as_deref()).map_err(bad)?;
    let make: Make = match name {
        "secops" => secops::prepare(&settings.secops).map_err(bad)?,
        "nats" => nats::prepare(&settings.nats, sensor).map_err(bad)?,
        #[cfg(feature = "kafka")]
        "kafka" => kafka::prepare(&settings.kafka, sensor).map_err(bad)?,
        _ => return Err(bad("this malakocut was built without it (cargo feature kafka)".into())),
    };
    Ok((name.to_owned(), delivery.clone(), view, make))
}

/// What the flow log sees, if it is not everything.
///
/// # Errors
/// A field is to be hashed and there is no key.
pub fn file_view(fields: &Fields) -> Result<Option<View>, ExportError> {
    let bad = |why: String| ExportError::Settings { name: "file".into(), why };
    let key = secret("MALAKOCUT_HASH_KEY", "hash-key").map_err(bad)?;
    let view = View::new("file", fields, key.as_deref()).map_err(bad)?;
    Ok(view.reads_fields().then_some(view))
}

/// Asks an exporter's receiver whether it would take something.
///
/// # Errors
/// What is wrong, or what the receiver said.
pub fn test(name: &str, settings: &Settings, sensor: &str) -> Result<String, String> {
    let (_, _, _, make) = engine(name, settings, sensor).map_err(|e| e.to_string())?;
    let runtime = runtime().map_err(|e| e.to_string())?;
    runtime.block_on(async { make().await?.test().await })
}

/// Where the SecOps exporter sends events to.
pub fn ingestion_url(settings: &Settings) -> Option<String> {
    secops::ingestion_url(&settings.secops)
}

fn runtime() -> std::io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()
}
