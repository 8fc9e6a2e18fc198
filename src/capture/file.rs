//! Capture files as a source: merged by time, stamped to the nanosecond.
//!
//! Files are opened together, so that a bad one is known before anything runs; the packet that
//! comes next is the one with the smallest timestamp among the files' heads, and packets of one
//! file keep their order.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::collections::binary_heap::PeekMut;
use std::path::PathBuf;

use dpdk::{Burst, Mempool, Meta};

use super::reader::{CaptureReader, OpenError};
use super::{Batch, Complaint, Poll, Stamp};

/// Read at once from each file; less when there are many.
const BUFFER: usize = 1 << 20;
const BUFFER_MANY: usize = 1 << 16;

pub struct FileSource {
    readers: Vec<CaptureReader>,
    /// Files that have a next packet, by its time, then in the order given.
    heads: BinaryHeap<Reverse<(u64, usize)>>,
    pool: Mempool,
    /// Fresh buffers.
    stock: Box<Burst>,
    clock: u64,
    complaints: Vec<Complaint>,
    stopped: bool,
}

impl FileSource {
    /// Opens all files; the first that cannot be used is the error.
    pub fn open(paths: &[PathBuf]) -> Result<Vec<CaptureReader>, OpenError> {
        let buffer = if paths.len() > 16 { BUFFER_MANY } else { BUFFER };
        paths.iter().map(|path| CaptureReader::open(path, buffer)).collect()
    }

    /// Reads the opened files into buffers of `pool`.
    pub fn new(readers: Vec<CaptureReader>, pool: Mempool) -> Self {
        let mut this = Self {
            heads: BinaryHeap::with_capacity(readers.len()),
            readers,
            pool,
            stock: Box::default(),
            clock: 0,
            complaints: Vec::new(),
            stopped: false,
        };
        for (n, reader) in this.readers.iter_mut().enumerate() {
            if let Some(time) = next_time(reader, &mut this.complaints) {
                this.heads.push(Reverse((time, n)));
            }
        }
        this
    }

    pub(super) fn poll(&mut self, batch: &mut Batch) -> Poll {
        while !batch.packets.is_full() && !self.stopped {
            let Some(mut head) = self.heads.peek_mut() else { break };
            let Reverse((_, n)) = *head;
            let Some(reader) = self.readers.get_mut(n) else { break };
            let Ok(Some(record)) = reader.peek() else { break };
            // An empty pool: the packet stays where it is until buffers come back.
            let Some(packet) = self.pool.copy_in(record.data, &mut self.stock) else { break };
            self.clock = self.clock.max(record.timestamp_ns);
            let (wire_len, link) = (record.wire_len, record.link);
            let meta = Meta { clock_ns: self.clock, wire_len, link, flags: 0 };
            batch.push(packet, Stamp::new(record.timestamp_ns, meta));
            reader.consume();
            match next_time(reader, &mut self.complaints) {
                Some(time) => *head = Reverse((time, n)),
                None => _ = PeekMut::pop(head),
            }
        }
        match batch.packets.len() {
            0 if self.stopped || self.heads.is_empty() => Poll::End,
            0 => Poll::Empty,
            n => Poll::Packets(n),
        }
    }

    pub(super) fn clock_ns(&self) -> u64 {
        self.clock
    }

    pub(super) fn stop(&mut self) {
        self.stopped = true;
    }

    pub(super) fn complaints(&self) -> Vec<Complaint> {
        self.complaints.clone()
    }
}

/// The time of the file's next packet; what ends the file otherwise than orderly is noted.
fn next_time(reader: &mut CaptureReader, complaints: &mut Vec<Complaint>) -> Option<u64> {
    match reader.peek() {
        Ok(record) => record.map(|r| r.timestamp_ns),
        Err(trouble) => {
            let is_cut = trouble.is_cut();
            complaints.push(Complaint { text: trouble.to_string(), is_cut });
            None
        }
    }
}
