//! Software RSS: one lcore polls the sources and deals the packets to the workers' rings.
//!
//! All packets between two hosts, in both directions and fragments included, go to one worker, so
//! that flows do not depend on the number of workers. Where the source waits for us a full ring
//! makes us wait; else the packet is dropped and counted.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use arrayvec::ArrayVec;
use dpdk::{BURST, Bell, Mbuf};
use rtrb::Producer;

use super::{Batch, Complaint, Poll, Source, frame};
use crate::packet;
use crate::status::{Counter, Counters, Turn};

pub struct Steer {
    sources: Vec<Source>,
    rings: Vec<Producer<Mbuf>>,
    /// Packets that wait for room, oldest first.
    held: VecDeque<(usize, Mbuf)>,
    batch: Batch,
    waits: bool,
    /// Tells the workers what time it is; written after the packets of that time were dealt.
    clock: Arc<AtomicU64>,
    pub counters: Counters,
}

impl Steer {
    pub fn new(sources: Vec<Source>, rings: Vec<Producer<Mbuf>>, clock: Arc<AtomicU64>) -> Self {
        let waits = sources.iter().all(Source::waits);
        Self {
            sources,
            rings,
            held: VecDeque::with_capacity(BURST),
            batch: Batch::default(),
            waits,
            clock,
            counters: Counters::default(),
        }
    }

    /// Polls each source once and deals what came. Dropping it afterwards ends the workers' input.
    pub fn turn(&mut self) -> Turn {
        if !self.deal_held() {
            return Turn::Idle;
        }
        let (mut packets, mut ended) = (0, 0);
        for n in 0..self.sources.len() {
            let Some(source) = self.sources.get_mut(n) else { break };
            match source.poll(&mut self.batch) {
                Poll::Packets(got) => packets += got,
                Poll::Empty => {}
                Poll::End => ended += 1,
            }
            self.deal();
            if !self.held.is_empty() {
                return Turn::Busy;
            }
        }
        let now = self.sources.iter_mut().map(Source::clock_ns).max().unwrap_or(0);
        self.clock.store(now, Ordering::Release);
        match packets {
            0 if ended == self.sources.len() => Turn::End,
            0 => Turn::Idle,
            _ => Turn::Busy,
        }
    }

    fn deal(&mut self) {
        let workers = self.rings.len() as u64;
        self.batch.stamp_buffers();
        self.counters.add(Counter::Packets, self.batch.packets.len() as u64);
        let hashes = self.batch.iter().map(|(packet, stamp)| packet::steer(&frame(packet, stamp)));
        let hashes: ArrayVec<u32, BURST> = hashes.collect();
        let mut packets = std::mem::take(&mut self.batch.packets);
        for (packet, hash) in packets.drain(..).zip(hashes) {
            let worker = ((u64::from(hash) * workers) >> 32) as usize;
            self.push(worker, packet);
        }
        self.batch.packets = packets;
    }

    fn push(&mut self, worker: usize, packet: Mbuf) {
        // Behind packets that wait, wait too: a flow's packets keep their order.
        if !self.held.is_empty() {
            self.held.push_back((worker, packet));
            return;
        }
        let Some(ring) = self.rings.get_mut(worker) else { return };
        if let Err(rtrb::PushError::Full(packet)) = ring.push(packet) {
            if self.waits {
                self.held.push_back((worker, packet));
            } else {
                self.counters.add(Counter::Bytes, u64::from(packet.meta().wire_len));
                self.counters.add(Counter::SteerFull, 1);
            }
        }
    }

    /// True when nothing waits any more.
    fn deal_held(&mut self) -> bool {
        while let Some((worker, packet)) = self.held.pop_front() {
            let Some(ring) = self.rings.get_mut(worker) else { continue };
            if let Err(rtrb::PushError::Full(packet)) = ring.push(packet) {
                if ring.is_abandoned() {
                    // Its worker is dead: nobody will ever make room.
                    self.counters.add(Counter::Bytes, u64::from(packet.meta().wire_len));
                    self.counters.add(Counter::SteerFull, 1);
                    continue;
                }
                self.held.push_front((worker, packet));
                return false;
            }
        }
        true
    }

    /// Takes nothing new from the sources.
    pub fn stop(&mut self) {
        self.sources.iter_mut().for_each(Source::stop);
    }

    /// What rings when there is something to deal.
    pub fn bells(&self) -> Option<Vec<Bell>> {
        let each: Option<Vec<_>> = self.sources.iter().map(Source::bells).collect();
        each.map(|e| e.concat())
    }

    pub fn complaints(&self) -> Vec<Complaint> {
        self.sources.iter().flat_map(Source::complaints).collect()
    }
}
