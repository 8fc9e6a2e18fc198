//! Verdicts on watched hosts, into a log of EVE alert lines.

use std::io;
use std::path::Path;

use crate::detect::watch::Watched;
use crate::detect::{Class, Verdict};
use crate::export::LineLog;

/// Bytes of lines that are written at once.
const CHUNK: usize = 1 << 20;

/// Where the findings of `[detect.watch]` go.
pub(super) struct Alerts {
    log: LineLog,
    lines: Vec<u8>,
}

impl Alerts {
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        Ok(Self { log: LineLog::open(path)?, lines: Vec::new() })
    }

    /// Writes what was found in one window, so that a reader sees it at once.
    pub(super) fn write(&mut self, watched: &Watched, verdict: &Verdict) -> io::Result<()> {
        self.lines.clear();
        for finding in &verdict.findings {
            if finding.class != Class::Idle || watched.show_idle {
                watched.eve.write(verdict, finding, &mut self.lines)?;
            }
            if self.lines.len() >= CHUNK {
                self.log.write(&self.lines)?;
                self.lines.clear();
            }
        }
        self.log.write(&self.lines)
    }
}
