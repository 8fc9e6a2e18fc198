//! What the journal leaves out by wish: packets that its filter does not take, and what a flow has
//! beyond its cutoff.
//!
//! Works on the journal's lcore: nothing is allocated for a packet, but for the first of another link
//! type than Ethernet, for which the filter is compiled.
//!
//! The cutoff counts a flow's bytes in both directions in a table of fixed size. A flow that was
//! silent for a minute, is opened again by a SYN, or was pushed out by others, starts anew: the
//! journal then keeps more than it had to, never less. An alert about a host lifts the cutoff of all
//! its flows for ten minutes from the newest packet on ([`Lifter`]).

use std::collections::HashMap;
use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};
use std::net::IpAddr;

use crossbeam_channel::{Receiver, Sender, bounded};
use siphasher::sip::SipHasher13;

use super::index::{Key, Kind, Posting, read};
use crate::filter::{FilterError, Filters};
use crate::packet::{Addr, Frame, Link, Tuple, tcp_flag};

/// What is left out.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rules {
    /// A pcap-filter expression; the empty one takes everything.
    pub filter: String,
    /// Bytes of a flow after which only headers are kept.
    pub cutoff: Option<u64>,
}

/// What to do with a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Admit {
    /// Keep so many of its bytes.
    Keep(usize),
    Filtered,
}

/// Decides on each packet.
pub struct Admission {
    filter: Option<Filters>,
    cutoff: Option<Cutoff>,
    lifts: Option<Receiver<Host>>,
    changes: Option<Receiver<Option<Filters>>>,
}

/// Puts another filter in the place of the one there is, from any thread.
#[derive(Clone)]
pub struct Changer(Sender<Option<Filters>>);

impl std::fmt::Debug for Changer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Changer")
    }
}

impl Changer {
    /// From soon on this expression decides.
    ///
    /// # Errors
    /// It does not compile, or the change before is not in place yet.
    pub fn change(&self, expression: &str) -> Result<(), String> {
        let filter = Filters::new(WHAT, &[expression]).map_err(|e| e.to_string())?;
        let late = |_| "the one before is not in place yet; try again".to_owned();
        self.0.try_send(filter).map_err(late)
    }
}

/// What the log calls it.
const WHAT: &str = "the journal's filter";

/// An address and whether it is of IPv6.
type Host = (Addr, bool);

/// Lifts the cutoff of single hosts, from any thread.
#[derive(Clone, Debug)]
pub struct Lifter(Sender<Host>);

impl Lifter {
    /// From now on this host's packets are kept whole for a while.
    pub fn lift(&self, host: IpAddr) {
        let host = match host {
            IpAddr::V4(ip) => (Addr::v4(ip.octets()), false),
            IpAddr::V6(ip) => (Addr::v6(ip.octets()), true),
        };
        // More at once than are told apart below: the next alert tries again.
        let _ = self.0.try_send(host);
    }
}

impl Admission {
    pub fn new(rules: &Rules) -> Result<Self, FilterError> {
        let filter = Filters::new(WHAT, &[&rules.filter])?;
        let cutoff = rules.cutoff.map(Cutoff::new);
        Ok(Self { filter, cutoff, lifts: None, changes: None })
    }

    /// What changes the filter.
    pub fn changer(&mut self) -> Changer {
        let (changer, changes) = bounded(1);
        self.changes = Some(changes);
        Changer(changer)
    }

    /// What lifts the cutoff; `None` if there is none.
    pub fn lifter(&mut self) -> Option<Lifter> {
        self.cutoff.as_ref()?;
        let (lifter, lifts) = bounded(LIFTED);
        self.lifts = Some(lifts);
        Some(Lifter(lifter))
    }

    /// What is done between bursts: takes in what was lifted, and another filter.
    pub fn tend(&mut self) {
        if let Some(filter) = self.changes.as_ref().and_then(|c| c.try_recv().ok()) {
            self.filter = filter;
        }
        if let (Some(lifts), Some(cutoff)) = (&self.lifts, &mut self.cutoff) {
            lifts.try_iter().for_each(|host| cutoff.lift(host));
        }
    }

    /// How much of a packet is kept, if any.
    #[inline]
    pub fn admit(&mut self, link: u16, timestamp_ns: u64, wire_len: u32, data: &[u8]) -> Admit {
        if self.filter.as_mut().is_some_and(|f| !f.take(link, wire_len, data)) {
            return Admit::Filtered;
        }
        match &mut self.cutoff {
            None => Admit::Keep(data.len()),
            Some(cutoff) => Admit::Keep(cutoff.keep(link, timestamp_ns, wire_len, data)),
        }
    }

    /// The packet that was admitted last is in the journal.
    #[inline]
    pub fn kept(&mut self) {
        if let Some(cutoff) = &mut self.cutoff {
            cutoff.count();
        }
    }
}

const SETS: usize = 1 << 14;
const WAYS: usize = 4;
/// A flow that was silent for so long starts anew.
const SILENT_NS: u64 = 60_000_000_000;
/// Hosts whose cutoff is lifted at once, and for how long after an alert.
const LIFTED: usize = 1024;
const LIFT_NS: u64 = 600_000_000_000;

#[derive(Clone, Copy, Default)]
struct Count {
    hash: u64,
    bytes: u64,
    last_ns: u64,
}

/// Bytes of flows.
struct Cutoff {
    limit: u64,
    hasher: SipHasher13,
    sets: Box<[[Count; WAYS]]>,
    posting: Box<Posting>,
    /// Set, way and new count of the packet that is being decided.
    pending: Option<(usize, usize, Count)>,
    /// Hosts whose packets are kept whole, and until when.
    lifted: HashMap<Host, u64>,
    newest_ns: u64,
}

impl Cutoff {
    fn new(limit: u64) -> Self {
        let random = || RandomState::new().build_hasher().finish();
        Self {
            limit,
            hasher: SipHasher13::new_with_keys(random(), random()),
            sets: vec![[Count::default(); WAYS]; SETS].into(),
            posting: Box::default(),
            pending: None,
            lifted: HashMap::with_capacity(LIFTED),
            newest_ns: 0,
        }
    }

    fn lift(&mut self, host: Host) {
        if self.lifted.len() >= LIFTED
            && !self.lifted.contains_key(&host)
            && let Some(first) = self.lifted.iter().min_by_key(|l| *l.1).map(|l| *l.0)
        {
            self.lifted.remove(&first);
        }
        self.lifted.insert(host, self.newest_ns.saturating_add(LIFT_NS));
    }

    fn is_lifted(&self, timestamp_ns: u64, t: &Tuple) -> bool {
        let is = |addr| self.lifted.get(&(addr, t.v6)).is_some_and(|until| timestamp_ns <= *until);
        !self.lifted.is_empty() && (is(t.src) || is(t.dst))
    }

    /// Bytes of the packet to keep: all while the flow is below its limit, then its headers.
    fn keep(&mut self, link: u16, timestamp_ns: u64, wire_len: u32, data: &[u8]) -> usize {
        self.pending = None;
        self.newest_ns = self.newest_ns.max(timestamp_ns);
        let link = Link::from_number(link);
        read(&Frame { data, wire_len, wire_len_known: true, link }, &mut self.posting);
        let d = &self.posting.decoded;
        let Some(key) = self.posting.keys.first().filter(|key| is_flow(key)) else {
            return data.len();
        };
        let hash = super::index::hash_with(&self.hasher, key) | 1;
        let at = (hash >> 32) as usize % SETS;
        let Some(ways) = self.sets.get(at) else { return data.len() };
        let opens = d.tcp.flags & (tcp_flag::SYN | tcp_flag::ACK) == tcp_flag::SYN;
        let found = ways.iter().position(|c| c.hash == hash);
        let oldest = || (0..WAYS).min_by_key(|w| ways.get(*w).map_or(0, |c| c.last_ns));
        let way = found.or_else(oldest).unwrap_or(0);
        let before = found
            .and_then(|w| ways.get(w))
            .filter(|c| !opens && timestamp_ns.saturating_sub(c.last_ns) < SILENT_NS)
            .map_or(0, |c| c.bytes);
        let count = Count { hash, bytes: before + u64::from(wire_len), last_ns: timestamp_ns };
        self.pending = Some((at, way, count));
        if before < self.limit || self.is_lifted(timestamp_ns, &d.tuple) {
            data.len()
        } else {
            data.len().min(d.payload_at as usize)
        }
    }

    fn count(&mut self) {
        if let Some((at, way, count)) = self.pending.take()
            && let Some(slot) = self.sets.get_mut(at).and_then(|s| s.get_mut(way))
        {
            *slot = count;
        }
    }
}

fn is_flow(key: &Key) -> bool {
    matches!(key.kind(), Kind::Flow | Kind::Fragments)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn udp(port: u16, payload: usize) -> Vec<u8> {
        let mut out = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 8, 0, 0x45, 0];
        out.extend((28 + payload as u16).to_be_bytes());
        out.extend([0, 0, 0, 0, 64, 17, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
        out.extend(5000u16.to_be_bytes());
        out.extend(port.to_be_bytes());
        out.extend((8 + payload as u16).to_be_bytes());
        out.resize(out.len() + 2 + payload, 0);
        out
    }

    #[test]
    fn after_the_cutoff_only_headers_are_kept_until_the_flow_starts_anew() {
        let rules = Rules { filter: String::new(), cutoff: Some(1000) };
        let mut admission = Admission::new(&rules).unwrap();
        let data = udp(9, 358);
        let at = |admission: &mut Admission, port, ns| {
            let mut data = data.clone();
            data[36..38].copy_from_slice(&u16::to_be_bytes(port));
            let answer = admission.admit(1, ns, 400, &data);
            admission.kept();
            answer
        };
        let got: Vec<_> = (0..5).map(|n| at(&mut admission, 9, n)).collect();
        assert_eq!(got[..3], [Admit::Keep(400); 3]);
        assert_eq!(got[3..], [Admit::Keep(42); 2]);
        assert_eq!(at(&mut admission, 10, 6), Admit::Keep(400), "another flow");
        assert_eq!(at(&mut admission, 9, 5 + SILENT_NS), Admit::Keep(400), "after a silence");
        // What was not written does not count.
        for _ in 0..10 {
            assert_eq!(admission.admit(1, 9, 400, &udp(77, 358)), Admit::Keep(400));
        }
    }

    #[test]
    fn an_alert_lifts_the_cutoff_of_a_host_for_a_while() {
        let rules = Rules { filter: String::new(), cutoff: Some(0) };
        let mut admission = Admission::new(&rules).unwrap();
        let lifter = admission.lifter().unwrap();
        let data = udp(9, 358);
        let (whole, cut) = (Admit::Keep(400), Admit::Keep(42));
        assert_eq!(admission.admit(1, 5, 400, &data), cut);
        lifter.lift("203.0.113.9".parse().unwrap());
        admission.tend();
        assert_eq!(admission.admit(1, 6, 400, &data), cut, "it is another host");
        // The frame's receiver; what counts is when the lcore hears of it.
        lifter.lift("10.0.0.2".parse().unwrap());
        assert_eq!(admission.admit(1, 7, 400, &data), cut);
        admission.tend();
        assert_eq!(admission.admit(1, 8, 400, &data), whole);
        assert_eq!(admission.admit(1, 7 + LIFT_NS, 400, &data), whole);
        assert_eq!(admission.admit(1, 8 + LIFT_NS, 400, &data), cut, "it is over");
        // However many are lifted, the last ones are.
        for n in 0..2 * LIFTED as u32 {
            lifter.lift(std::net::Ipv4Addr::from(n).into());
            admission.tend();
        }
        lifter.lift("10.0.0.1".parse().unwrap());
        admission.tend();
        assert_eq!(admission.admit(1, 9 + LIFT_NS, 400, &data), whole);
        assert!(admission.cutoff.unwrap().lifted.len() <= LIFTED);
    }

    #[test]
    fn the_default_filter_leaves_out_what_it_says() {
        let text = crate::filter::strip_comments(include_str!("../../configs/journal.bpf"));
        let mut admission = Admission::new(&Rules { filter: text, cutoff: None }).unwrap();
        let mut kept = |port: u16| {
            let data = udp(port, 20);
            admission.admit(1, 0, data.len() as u32, &data) == Admit::Keep(data.len())
        };
        for port in [80, 443, 3478, 3479, 9293, 9308, 19132, 5353, 1900] {
            assert!(!kept(port), "{port}");
        }
        for port in [53, 22, 123, 25565, 65000, 8080, 67, 1901] {
            assert!(kept(port), "{port}");
        }
    }
}
