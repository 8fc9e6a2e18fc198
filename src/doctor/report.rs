//! What a running sensor found, in a file beside its data, for whoever asks without a socket.

use std::fs;
use std::io;
use std::path::Path;
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use super::Finding;

/// Its name in the data directory.
pub const FILE: &str = "health.json";
/// A file that was not written for so long is of a sensor that does not run.
const FRESH: Duration = Duration::from_secs(30);

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    pub pid: u32,
    pub interface: String,
    /// Packets received since the start.
    pub packets: u64,
    pub findings: Vec<Finding>,
}

/// The report cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum ReportError {
    #[error("{0}")]
    File(#[from] io::Error),
    #[error("it is no report: {0}")]
    Json(#[from] serde_json::Error),
}

impl Report {
    /// Replaces the file as a whole.
    pub fn write(&self, data: &Path) -> Result<(), ReportError> {
        let new = data.join("health.json.new");
        fs::write(&new, serde_json::to_vec(self)?)?;
        Ok(fs::rename(new, data.join(FILE))?)
    }

    /// The report of the sensor that runs on this data directory; `None`: none runs.
    pub fn read(data: &Path) -> Result<Option<Self>, ReportError> {
        let path = data.join(FILE);
        let written = match fs::metadata(&path).and_then(|m| m.modified()) {
            Ok(written) => written,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(e.into()),
        };
        let age = SystemTime::now().duration_since(written).unwrap_or_default();
        let report: Self = serde_json::from_slice(&fs::read(&path)?)?;
        let runs = Path::new("/proc").join(report.pid.to_string()).exists();
        Ok((runs && age < FRESH).then_some(report))
    }

    /// Takes the file away.
    pub fn remove(data: &Path) {
        let _ = fs::remove_file(data.join(FILE));
    }
}
