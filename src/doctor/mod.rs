//! What is wrong with the set-up, in plain words, each with what mends it.
//!
//! [`traffic`] judges what the sensor counts while it runs; [`Look`] is the sample of packets that it
//! takes for this, [`Pulse`] the same for flows; [`host`] looks at the machine itself. A finding's
//! name is for programs and does not change.

pub mod host;
mod look;
mod pulse;
mod report;
pub mod traffic;

use serde::{Deserialize, Serialize};

pub use look::{Look, Sample};
pub use pulse::Pulse;
pub use report::{FILE, Report, ReportError};
pub use traffic::{Facts, findings};

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// The sensor works, and could work better.
    Notice,
    /// Something is lost or cannot be seen.
    Problem,
}

impl Severity {
    pub fn name(self) -> &'static str {
        match self {
            Self::Notice => "notice",
            Self::Problem => "problem",
        }
    }
}

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// What it is, for programs, such as `one_direction`.
    pub name: String,
    pub severity: Severity,
    /// What was found, in a sentence.
    pub text: String,
    /// What mends it: a command where there is one.
    pub mend: String,
}

impl Finding {
    pub(crate) fn problem(name: &str, text: impl Into<String>, mend: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            severity: Severity::Problem,
            text: text.into(),
            mend: mend.into(),
        }
    }

    pub(crate) fn notice(name: &str, text: impl Into<String>, mend: impl Into<String>) -> Self {
        Self { severity: Severity::Notice, ..Self::problem(name, text, mend) }
    }
}
