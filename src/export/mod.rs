//! Where flow events go. One file an engine; here the plain ones: logs of JSON lines.

mod buffered;
mod file;
mod lines;

pub use file::{EveLog, FlowLog, OpenLogError};
pub use lines::LineLog;
