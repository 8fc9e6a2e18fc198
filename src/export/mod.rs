//! Where flow events go. One file an engine; here the plain one: a log of JSON lines.

mod file;

pub use file::{FlowLog, OpenLogError};
