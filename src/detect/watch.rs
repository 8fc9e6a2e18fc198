//! The windows of many hosts at once, counted where the packets are.
//!
//! Each worker has a [`Watcher`] that counts its share of every watched host's packets and sends a
//! [`Part`] when a window is over; a [`Watches`] elsewhere puts the parts together and judges the
//! window when every worker is past it. Windows are aligned to multiples of their length since
//! 1970, by the source's clock that each packet carries, so that workers agree and the number of
//! workers changes nothing below the limits. Each share keeps as many endpoints as the host may
//! have.
//!
//! A packet of another host costs one lookup. Memory is taken at the start; a tally is allocated
//! only where the other side has not given one back in time. While the ring to the other side is
//! full, a live window goes on: nothing is lost, it only ends late.

use std::collections::BTreeMap;
use std::time::Duration;

use hashbrown::HashTable;
use rtrb::{Consumer, Producer, PushError};

use super::{Eve, Host, Judge, Scope, Sighting, Tally, Verdict};

/// How long to wait for a full ring.
const FULL: Duration = Duration::from_micros(100);
/// Windows of each host that may be under way from a worker to the judge.
const DEPTH: usize = 4;

/// A host that is watched.
#[derive(Clone, Debug)]
pub struct Watched {
    pub scope: Scope,
    /// How its findings are written; holds the rules too.
    pub eve: Eve,
    /// Endpoints, and hosts, that are tracked at most.
    pub limit: usize,
    pub show_idle: bool,
}

impl Watched {
    fn window_ns(&self) -> u64 {
        self.eve.rules.window_s.saturating_mul(1_000_000_000).max(1)
    }
}

/// A worker's share of one window.
#[derive(Debug)]
pub struct Part {
    watch: u32,
    /// The window's number since 1970.
    window: u64,
    /// The worker has no packets of windows before this one to come.
    until: u64,
    /// `None`: the worker saw nothing of the host.
    tally: Option<Box<Tally>>,
}

/// A worker's side of one watched host.
struct Share {
    scope: Scope,
    window_ns: u64,
    limit: usize,
    window: u64,
    tally: Box<Tally>,
}

/// Counts the watched hosts' packets of one worker.
pub struct Watcher {
    shares: Vec<Share>,
    by_host: HashTable<u32>,
    seed: u64,
    parts: Producer<Part>,
    spare: Consumer<Box<Tally>>,
    /// When the next window is over.
    due_ns: u64,
    /// The source waits for us: rather wait for the ring than end a window late.
    waits: bool,
}

/// The judge's side of one worker.
pub struct Link {
    parts: Consumer<Part>,
    spare: Producer<Box<Tally>>,
}

/// Makes both sides for one worker.
pub fn connect(watched: &[Watched], waits: bool, seed: u64) -> (Watcher, Link) {
    let depth = watched.len().max(1) * DEPTH;
    let (parts, parts_rx) = rtrb::RingBuffer::new(depth);
    let (spare_tx, spare) = rtrb::RingBuffer::new(depth);
    let mut by_host = HashTable::with_capacity(watched.len());
    for (at, w) in watched.iter().enumerate() {
        let host = w.scope.host;
        // The first of equals is the one.
        by_host.insert_unique(hash(host, seed), at as u32, |&at| {
            watched.get(at as usize).map_or(0, |w| hash(w.scope.host, seed))
        });
    }
    let shares = watched
        .iter()
        .map(|w| Share {
            scope: w.scope.clone(),
            window_ns: w.window_ns(),
            limit: w.limit,
            window: 0,
            tally: Box::new(Tally::new(w.limit, seed)),
        })
        .collect();
    let watcher = Watcher { shares, by_host, seed, parts, spare, due_ns: 0, waits };
    (watcher, Link { parts: parts_rx, spare: spare_tx })
}

#[inline]
fn hash(host: Host, seed: u64) -> u64 {
    let product =
        u128::from(host.addr.0 ^ seed | 1) * u128::from(host.addr.1 ^ 0x9e37_79b9_7f4a_7c15);
    product as u64 ^ (product >> 64) as u64
}

impl Watcher {
    /// Counts a packet if its sender is watched. `clock_ns` is the source's clock at this packet.
    #[inline]
    pub fn packet(&mut self, clock_ns: u64, s: &Sighting) {
        let shares = &self.shares;
        let is_it =
            |&at: &u32| shares.get(at as usize).is_some_and(|share| share.scope.host == s.src);
        let Some(&at) = self.by_host.find(hash(s.src, self.seed), is_it) else { return };
        self.let_time_pass(clock_ns);
        if let Some(share) = self.shares.get_mut(at as usize) {
            share.tally.count(s, &share.scope);
        }
    }

    /// Ends the windows that are over at `clock_ns`.
    #[inline]
    pub fn let_time_pass(&mut self, clock_ns: u64) {
        if clock_ns >= self.due_ns {
            self.close(clock_ns);
        }
    }

    #[cold]
    fn close(&mut self, clock_ns: u64) {
        self.due_ns = u64::MAX;
        for at in 0..self.shares.len() {
            let Some(share) = self.shares.get(at) else { break };
            let now = clock_ns / share.window_ns;
            if now > share.window && !self.send(at, now) {
                // Asked again with the next packet.
                self.due_ns = 0;
                continue;
            }
            if let Some(share) = self.shares.get(at) {
                let end = (now + 1).saturating_mul(share.window_ns);
                self.due_ns = self.due_ns.min(end);
            }
        }
    }

    /// Sends a share's window away; false if there is no room for it.
    fn send(&mut self, at: usize, until: u64) -> bool {
        while self.parts.is_full() {
            if !self.waits || self.parts.is_abandoned() {
                return false;
            }
            std::thread::sleep(FULL);
        }
        let Some(share) = self.shares.get_mut(at) else { return true };
        let tally = (share.tally.packets() > 0).then(|| {
            let fresh = match self.spare.pop() {
                Ok(tally) if tally.limit() == share.limit => tally,
                _ => Box::new(Tally::new(share.limit, self.seed)),
            };
            std::mem::replace(&mut share.tally, fresh)
        });
        let part = Part { watch: at as u32, window: share.window, until, tally };
        share.window = until;
        // There was room, and nobody else fills it.
        matches!(self.parts.push(part), Ok(()) | Err(PushError::Full(_)))
    }

    /// Sends what is left; false if that has to be tried again.
    pub fn finish(&mut self) -> bool {
        if self.parts.is_abandoned() {
            return true;
        }
        (0..self.shares.len()).all(|at| {
            let done = self.shares.get(at).is_some_and(|share| share.window == u64::MAX);
            done || self.send(at, u64::MAX)
        })
    }
}

/// Puts the workers' shares together and judges the windows.
pub struct Watches {
    watched: Vec<Watched>,
    judges: Vec<Judge>,
    links: Vec<Link>,
    /// Up to which window each worker has told everything, by watch and worker.
    told: Vec<Vec<u64>>,
    /// Windows that some worker still owes a share of.
    open: Vec<BTreeMap<u64, Tally>>,
    seed: u64,
    untracked: u64,
}

impl Watches {
    pub fn new(watched: Vec<Watched>, links: Vec<Link>, seed: u64) -> Self {
        Self {
            judges: watched.iter().map(|w| Judge::new(w.eve.rules)).collect(),
            told: vec![vec![0; links.len()]; watched.len()],
            open: watched.iter().map(|_| BTreeMap::new()).collect(),
            watched,
            links,
            seed,
            untracked: 0,
        }
    }

    /// Packets to destinations above a limit, so far.
    pub fn untracked(&self) -> u64 {
        self.untracked
    }

    /// Takes in what the workers sent and gives the verdict on each window that is complete, in
    /// order for each host. Returns how many parts came.
    pub fn attend(&mut self, mut report: impl FnMut(&Watched, &Verdict)) -> usize {
        let mut taken = 0;
        for (worker, link) in self.links.iter_mut().enumerate() {
            while let Ok(part) = link.parts.pop() {
                taken += 1;
                let at = part.watch as usize;
                if let Some(told) = self.told.get_mut(at).and_then(|t| t.get_mut(worker)) {
                    *told = part.until;
                }
                let (Some(mut tally), Some(watched)) = (part.tally, self.watched.get(at)) else {
                    continue;
                };
                if let Some(open) = self.open.get_mut(at) {
                    // Every share fits: the workers' limits are the bound.
                    let limit = watched.limit.saturating_mul(self.told.first().map_or(1, Vec::len));
                    open.entry(part.window)
                        .or_insert_with(|| Tally::growing(limit, self.seed))
                        .absorb(&tally);
                }
                tally.clear();
                let _ = link.spare.push(tally);
            }
        }
        if taken > 0 {
            (0..self.watched.len()).for_each(|at| self.judge(at, &mut report));
        }
        taken
    }

    /// Judges a host's windows that no worker can add to.
    fn judge(&mut self, at: usize, report: &mut impl FnMut(&Watched, &Verdict)) {
        let (Some(watched), Some(judge), Some(open), Some(told)) = (
            self.watched.get(at),
            self.judges.get_mut(at),
            self.open.get_mut(at),
            self.told.get(at),
        ) else {
            return;
        };
        let complete = told.iter().copied().min().unwrap_or(0);
        while let Some(first) = open.first_entry().filter(|first| *first.key() < complete) {
            let (window, tally) = first.remove_entry();
            self.untracked += tally.untracked();
            let start_ns = window.saturating_mul(watched.window_ns());
            if let Some(verdict) = judge.judge(start_ns, &tally) {
                report(watched, &verdict);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::detect::{Class, EveStyle, Protocol, Rules, ScanMode, Subject};

    const SECOND: u64 = 1_000_000_000;

    fn host(text: &str) -> Host {
        text.parse().unwrap()
    }

    fn watched(address: &str) -> Watched {
        let rules = Rules {
            window_s: 10,
            packet_threshold: 5.0,
            destination_threshold: 2.0,
            port_threshold: None,
            mode: ScanMode::FilteredHostRate,
            c2_known: true,
        };
        let eve = Eve { style: EveStyle::Suricata, subject: Subject::default(), rules };
        Watched { scope: Scope::new(host(address), []), eve, limit: 100, show_idle: false }
    }

    fn sighting(src: &str, dst: &str) -> Sighting {
        let protocol = Protocol { number: 6, has_port: true };
        Sighting { src: host(src), dst: host(dst), src_port: 1, dst_port: 80, protocol }
    }

    fn verdicts(watches: &mut Watches) -> Vec<(String, u64, u64, Class)> {
        let mut out = Vec::new();
        watches.attend(|w, v| {
            let first = v.findings.first().map(|f| f.class).unwrap();
            out.push((w.scope.host.to_string(), v.start_ns / SECOND, v.packets, first));
        });
        out
    }

    #[test]
    fn a_window_is_judged_when_every_worker_is_past_it() {
        let watched = vec![watched("10.0.0.5"), watched("10.0.0.6")];
        let (mut a, link_a) = connect(&watched, false, 1);
        let (mut b, link_b) = connect(&watched, false, 2);
        let mut watches = Watches::new(watched, vec![link_a, link_b], 3);
        for n in 0..30 {
            let (src, dst) = ("10.0.0.5", format!("192.0.2.{n}"));
            // Both see half of the hosts, one of them earlier.
            a.packet(1001 * SECOND, &sighting(src, &dst));
            b.packet(1004 * SECOND, &sighting(src, &format!("198.51.100.{n}")));
            b.packet(1004 * SECOND, &sighting("10.0.0.7", &dst));
        }
        b.packet(1009 * SECOND, &sighting("10.0.0.6", "192.0.2.1"));
        a.let_time_pass(1010 * SECOND);
        assert_eq!(verdicts(&mut watches), []);
        b.let_time_pass(1012 * SECOND);
        assert_eq!(
            verdicts(&mut watches),
            [
                ("10.0.0.5".to_owned(), 1000, 60, Class::Scan),
                ("10.0.0.6".to_owned(), 1000, 1, Class::Idle)
            ]
        );
        // The end sends what is left, at once.
        a.packet(1013 * SECOND, &sighting("10.0.0.6", "192.0.2.1"));
        assert!(a.finish() && b.finish() && a.finish());
        assert_eq!(verdicts(&mut watches), [("10.0.0.6".to_owned(), 1010, 1, Class::Idle)]);
    }

    #[test]
    fn a_full_ring_ends_a_window_late_but_loses_nothing() {
        let watched = vec![watched("10.0.0.5")];
        let (mut watcher, link) = connect(&watched, false, 1);
        let mut watches = Watches::new(watched, vec![link], 3);
        let windows = 10;
        for n in 0..windows {
            watcher.packet(n * 10 * SECOND, &sighting("10.0.0.5", "192.0.2.1"));
        }
        let mut packets: u64 = verdicts(&mut watches).iter().map(|v| v.2).sum();
        assert!(packets < windows);
        assert!(watcher.finish());
        packets += verdicts(&mut watches).iter().map(|v| v.2).sum::<u64>();
        assert_eq!(packets, windows);
    }
}
