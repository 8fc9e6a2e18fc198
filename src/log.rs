//! The log: lines on standard error, of a level that can change while we run.

use std::fs::OpenOptions;
use std::io;
use std::sync::OnceLock;

use tracing_subscriber::prelude::*;
use tracing_subscriber::reload::{Handle, Layer};
use tracing_subscriber::{EnvFilter, Registry, fmt};

/// What is logged unless somebody says otherwise. The web server says how many threads it starts, and
/// who left in the middle of an answer.
pub const ORDINARY: &str = "info,actix_server=warn,actix_http=off";

/// Where `--debug` writes everything to.
const DEBUG_FILE: &str = "malakocut_debug.log";

static LEVEL: OnceLock<Handle<EnvFilter, Registry>> = OnceLock::new();

/// Starts it; with `debug`, everything goes to a file too.
///
/// # Errors
/// The file cannot be written, or the level is none.
pub fn start(level: &str, debug: bool) -> io::Result<()> {
    let filter = EnvFilter::try_new(level).map_err(io::Error::other)?;
    let (filter, handle) = Layer::new(filter);
    let ansi = io::IsTerminal::is_terminal(&io::stderr());
    let stderr = fmt::layer().with_writer(io::stderr).with_ansi(ansi).with_target(false);
    let file = if debug {
        let named = |e: io::Error| io::Error::new(e.kind(), format!("{DEBUG_FILE}: {e}"));
        let file = OpenOptions::new().create(true).append(true).open(DEBUG_FILE).map_err(named)?;
        Some(fmt::layer().with_writer(file).with_ansi(false).with_filter(EnvFilter::new("debug")))
    } else {
        None
    };
    let _ = LEVEL.set(handle);
    tracing_subscriber::registry().with(stderr.with_filter(filter)).with(file).init();
    Ok(())
}

/// Whether it can be a level: `debug`, or by room, such as `info,malakocut::journal=debug`.
///
/// # Errors
/// Says what is wrong.
pub fn check(level: &str) -> Result<(), String> {
    EnvFilter::try_new(level).map(drop).map_err(|e| e.to_string())
}

/// Changes the level of what is running.
///
/// # Errors
/// It is no level, or nothing is running.
pub fn set(level: &str) -> Result<(), String> {
    let filter = EnvFilter::try_new(level).map_err(|e| e.to_string())?;
    let handle = LEVEL.get().ok_or("the log is not running")?;
    handle.reload(filter).map_err(|e| e.to_string())
}
