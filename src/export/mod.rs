//! Where flow events go. One file an engine; here the plain one: a log of JSON lines.

mod file;
mod lines;

pub use file::{EveLog, FlowLog, OpenLogError};
