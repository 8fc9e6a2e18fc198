//! Where the packets come from: a capture file, or an interface.
//!
//! A file is read without DPDK: its start alone sleeps 100 ms to measure the clock, which is longer
//! than reading a million packets takes.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use dpdk::mbuf::free_burst;
use dpdk::netif;

use super::GomonError;
use super::monitor::Monitor;
use crate::capture::{Batch, CaptureReader, Poll, frame};
use crate::config::SourceConfig;
use crate::nic::Machine;
use crate::packet::{Frame, Link};
use crate::sensor::inputs::{Inputs, Prepared, Started};
use crate::status::{Counters, Group};
use crate::worker::back_off;

/// Read at once from a file.
const BUFFER: usize = 1 << 20;
/// Packets of a file between two looks at the signals.
const LOOK: u64 = 1024;
/// Buffers for a burst and what the pool's cache holds back.
const BUFFERS: u32 = 1023;
/// How often losses are looked at.
const TICK: Duration = Duration::from_secs(1);

/// An input that could be opened.
pub(super) enum Input {
    File(Box<CaptureReader>, Stop),
    Interface(Box<Prepared>, Stop),
}

/// How the input ended.
#[derive(Debug, Default)]
pub(super) struct Ended {
    /// What never arrived here, by reason.
    pub(super) losses: Counters,
    /// A file that made no sense from some point on.
    pub(super) damaged: bool,
}

/// Set by SIGINT and SIGTERM.
pub(super) struct Stop(Arc<AtomicBool>);

impl Stop {
    /// A second signal ends the process at once.
    fn on_signals() -> Result<Self, GomonError> {
        use signal_hook::consts::{SIGINT, SIGTERM};
        let wanted = Arc::new(AtomicBool::new(false));
        for signal in [SIGINT, SIGTERM] {
            signal_hook::flag::register_conditional_shutdown(signal, 1, Arc::clone(&wanted))
                .and_then(|_| signal_hook::flag::register(signal, Arc::clone(&wanted)))
                .map_err(GomonError::Signals)?;
        }
        Ok(Self(wanted))
    }

    fn is_wanted(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// A file if it is called `.pcap` or is there, else an interface.
pub(super) fn open(name: &str) -> Result<Input, GomonError> {
    let path = Path::new(name);
    if path.is_dir() {
        return Err(GomonError::Directory(name.into()));
    }
    if name.to_lowercase().ends_with(".pcap") || path.exists() {
        let reader = CaptureReader::open(path, BUFFER)?;
        return Ok(Input::File(Box::new(reader), Stop::on_signals()?));
    }
    if !netif::exists(name) && Machine::default().find(name).is_err() {
        return Err(GomonError::NoInput(name.into()));
    }
    let prepared = Prepared::new(&SourceConfig::Interface(name.into()))?;
    Ok(Input::Interface(Box::new(prepared), Stop::on_signals()?))
}

impl Input {
    /// Hands every packet over until the end or a signal.
    pub(super) fn run(self, monitor: &mut Monitor) -> Result<Ended, GomonError> {
        match self {
            Self::File(reader, stop) => read_file(*reader, &stop, monitor),
            Self::Interface(prepared, stop) => listen(prepared.start(BUFFERS, 1)?, &stop, monitor),
        }
    }
}

fn read_file(
    mut reader: CaptureReader,
    stop: &Stop,
    monitor: &mut Monitor,
) -> Result<Ended, GomonError> {
    let mut damaged = false;
    loop {
        let record = match reader.peek() {
            Ok(Some(record)) => record,
            Ok(None) => break,
            Err(trouble) => {
                // A cut file is what a capture that is still written looks like.
                match trouble.is_cut() {
                    true => tracing::debug!("{trouble}"),
                    false => tracing::error!("{trouble}"),
                }
                damaged = !trouble.is_cut();
                break;
            }
        };
        let frame = Frame {
            data: record.data,
            wire_len: record.wire_len,
            wire_len_known: true,
            link: Link::from_number(record.link),
        };
        let pieces = std::iter::once(record.data);
        monitor.packet(record.timestamp_ns, record.link, &frame, pieces)?;
        reader.consume();
        if monitor.packets().is_multiple_of(LOOK) && stop.is_wanted() {
            break;
        }
    }
    Ok(Ended { damaged, ..Ended::default() })
}

fn listen(started: Started, stop: &Stop, monitor: &mut Monitor) -> Result<Ended, GomonError> {
    let Started { eal: _eal, mut inputs, queues } = started;
    let mut batch = Batch::default();
    let (mut idle, mut stopping, mut lost) = (0u32, false, 0);
    let mut tick = Instant::now();
    let mut outcome = Ok(());
    for mut source in queues.split(1) {
        while outcome.is_ok() {
            if !stopping && stop.is_wanted() {
                stopping = true;
                source.stop();
            }
            match source.poll(&mut batch) {
                Poll::Packets(_) => {
                    idle = 0;
                    outcome = batch.iter().try_for_each(|(packet, stamp)| {
                        let (time, link) = (stamp.timestamp_ns, stamp.meta.link);
                        monitor.packet(time, link, &frame(packet, stamp), packet.segments())
                    });
                    free_burst(&mut batch.packets);
                }
                Poll::Empty => {
                    outcome = monitor.let_time_pass(source.clock_ns());
                    idle = idle.saturating_add(1);
                    back_off(idle);
                }
                Poll::End => break,
            }
            if tick.elapsed() >= TICK {
                tick = Instant::now();
                warn_of_losses(&mut inputs, &mut lost);
            }
        }
    }
    let losses = inputs.finish(monitor.packets());
    outcome.map(|()| Ended { losses, damaged: false })
}

/// Says once a second that packets are being lost, and why.
fn warn_of_losses(inputs: &mut Inputs, before: &mut u64) {
    let losses = inputs.losses();
    let lost = losses.sum(Group::Drop);
    if lost > *before {
        tracing::warn!(
            packets = lost - *before,
            total = lost,
            reasons = losses.reasons(Group::Drop),
            "Packets lost before they arrived here; counts are low"
        );
    }
    *before = lost;
}
