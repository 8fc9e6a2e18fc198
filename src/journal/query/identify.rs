//! From a flow's name to its addresses, and for a flow id its span of time.
//!
//! Neither a community id nor a flow id can be turned around. The index keeps the first half of
//! each flow's community id, and of the flow id of each packet that may have begun a flow; what it
//! points to is read and proven. What the indexes do not know, as in floods, is found by reading
//! the segments of the window.
//!
//! A flow id names one flow of a tuple. Where it ends is settled by the flow table itself, fed with
//! the packets of that tuple from the flow's first on, so that the answer is what the event counted
//! (unless the table was full and ended the flow early).

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use super::expr::Expr;
use super::segment::{Bound, Gap, Known, Places, Plan, Reader, Segment};
use super::terms::{Communities, Found, Identity, Net, Wanted};
use super::{Journal, Query, Report, join, plan_all};
use crate::event::{EventSink, FlowEvent};
use crate::flow::{Arrival, FlowTable, NoHint, Timeouts, flow_id, opening};
use crate::journal::index::{IndexFile, Key, Kind, Posting, read};

/// The bound of one flow, where its hash cannot be looked up.
pub(super) fn bound(key: &Key) -> Expr {
    let v6 = key.is_v6();
    let [a, b] = key.addresses().unwrap_or_default();
    let net = |addr: crate::packet::Addr| Expr::Net(Net { v6, low: addr, high: addr });
    let mut all = vec![net(a), net(b)];
    all.extend(key.protocol().map(Expr::Protocol));
    Expr::And(all)
}

/// Finds the flow that has a name.
pub(super) fn resolve(
    journal: &Journal,
    segments: &[Segment],
    identity: Identity,
    query: &Query,
    report: &mut Report,
) -> Option<Found> {
    let mut search = Search {
        identity,
        communities: Communities::default(),
        posting: Box::default(),
        stop: Arc::clone(&query.stop),
    };
    let near: Vec<&Segment> = segments
        .iter()
        .filter(|s| {
            let (min, max) = s.times();
            min <= query.to_ns && max >= query.from_ns
        })
        .collect();
    let found = near
        .iter()
        .find_map(|s| search.by_index(s, report))
        .or_else(|| near.iter().find_map(|s| search.by_reading(s, query, report)))?;
    match identity {
        Identity::Community(_) => Some(Found { from_ns: 0, to_ns: u64::MAX, ..found }),
        Identity::FlowId(id) => {
            let to_ns = end_of(journal, segments, &found, id, query, report);
            Some(Found { to_ns, ..found })
        }
    }
}

struct Search {
    identity: Identity,
    communities: Communities,
    posting: Box<Posting>,
    stop: Arc<AtomicBool>,
}

impl Search {
    /// By what a segment's index keeps.
    fn by_index(&mut self, segment: &Segment, report: &mut Report) -> Option<Found> {
        let index = match &segment.known {
            Known::Nothing(_) => return None,
            Known::Open { index, written } => {
                let flows: Vec<u32> = match self.identity {
                    Identity::Community(digest) => (0..index.flows() as u32)
                        .filter(|f| self.communities.is(&index.key_of(*f as usize), &digest))
                        .collect(),
                    Identity::FlowId(id) => {
                        index.births().filter(|(_, i)| *i == id).map(|(f, _)| f).collect()
                    }
                };
                let offsets = index
                    .postings()
                    .filter(|(flow, at)| flows.contains(flow) && u64::from(*at) < *written)
                    .map(|(_, at)| at);
                return self.among(segment, Places::Exact(offsets.collect()), None, report);
            }
            Known::Sealed(index) => index,
        };
        let offsets = self.candidates(index);
        index.release();
        self.among(segment, Places::Exact(offsets?), None, report)
    }

    /// Offsets of records that an index points to.
    fn candidates(&self, index: &IndexFile) -> Option<Vec<u32>> {
        let halves = match self.identity {
            Identity::Community([a, b, c, d, ..]) => {
                index.community(u32::from_be_bytes([a, b, c, d]))
            }
            Identity::FlowId(id) => index.flow_id((id >> 32) as u32),
        };
        let mut offsets = Vec::new();
        for half in halves?.ok()? {
            offsets.extend(index.flow_by_half(half).ok()?);
        }
        offsets.sort_unstable();
        offsets.dedup();
        Some(offsets)
    }

    /// By reading all of a segment in the window, where its index cannot know.
    fn by_reading(
        &mut self,
        segment: &Segment,
        query: &Query,
        report: &mut Report,
    ) -> Option<Found> {
        if let (Identity::Community(_), Known::Sealed(index)) = (self.identity, &segment.known)
            && index.community(0).is_some_and(|r| r.is_ok())
        {
            // It has every flow's.
            return None;
        }
        if matches!((self.identity, &segment.known), (Identity::Community(_), Known::Open { .. })) {
            return None;
        }
        let bound = Bound {
            keys: None,
            index_key: None,
            expr: Expr::Any,
            filter: None,
            from_ns: query.from_ns,
            to_ns: query.to_ns,
        };
        let plan = Plan::of(segment, &bound).ok()??;
        let places = plan.places.clone();
        self.among(segment, places, Some(plan), report)
    }

    /// The first record at some places that proves to have the name.
    fn among(
        &mut self,
        segment: &Segment,
        places: Places,
        plan: Option<Plan>,
        report: &mut Report,
    ) -> Option<Found> {
        if places.is_empty() {
            return None;
        }
        let everything = Bound {
            keys: None,
            index_key: None,
            expr: Expr::Any,
            filter: None,
            from_ns: 0,
            to_ns: u64::MAX,
        };
        let plan = match plan {
            Some(plan) => plan,
            None => Plan { places, ..Plan::of(segment, &everything).ok()?? },
        };
        let (mut reader, link) = Reader::open(plan, &self.stop).ok()?;
        let found = loop {
            match reader.next() {
                Ok(Some(record)) => {
                    let data = reader.data(&record);
                    read(&record.header.frame(data, link), &mut self.posting);
                    if let Some(key) = self.proven(record.header.timestamp_ns) {
                        let from_ns = record.header.timestamp_ns;
                        break Some(Found { key, from_ns, to_ns: u64::MAX });
                    }
                }
                Ok(None) => break None,
                Err(e) => {
                    report.gaps.push(Gap { segment: segment.number, what: e.to_string() });
                    break None;
                }
            }
        };
        report.bytes_read += reader.bytes_read;
        found
    }

    /// The key by which the packet just read has the name.
    fn proven(&mut self, timestamp_ns: u64) -> Option<Key> {
        let p = &self.posting;
        let tcp = p.decoded.tcp;
        match self.identity {
            Identity::Community(digest) => {
                let keys = p.keys.iter().take(p.count);
                keys.copied().find(|key| self.communities.is(key, &digest))
            }
            Identity::FlowId(id) => {
                let key = p.keys.first().filter(|key| key.kind() == Kind::Flow)?;
                (flow_id(&key.0, timestamp_ns, opening(tcp.flags, tcp.seq)) == id).then_some(*key)
            }
        }
    }
}

/// Waits for the event that ends one flow.
struct End {
    id: u64,
    end_ns: Option<u64>,
}

impl EventSink for End {
    fn room(&self) -> usize {
        usize::MAX
    }

    fn push(&mut self, event: FlowEvent) {
        if event.flow_id == self.id && event.end.is_some() {
            self.end_ns = Some(event.end_ns);
        }
    }
}

/// The last moment of the flow that began with a packet, by the flow table's own rules.
fn end_of(
    journal: &Journal,
    segments: &[Segment],
    found: &Found,
    id: u64,
    query: &Query,
    report: &mut Report,
) -> u64 {
    let idle_ns = u64::try_from(query.idle_timeout.as_nanos()).unwrap_or(u64::MAX);
    let mut table = FlowTable::new(16, Timeouts { idle_ns, active_ns: 0 }, 1, NoHint);
    let mut end = End { id, end_ns: None };
    let keys = [found.key, super::terms::fragments_of(&found.key)];
    let bound = Bound {
        keys: Some(&keys),
        index_key: journal.key.as_ref(),
        expr: bound(&found.key),
        filter: None,
        from_ns: found.from_ns,
        to_ns: u64::MAX,
    };
    let wanted = Wanted { flow: Some(*found), ..Wanted::default() };
    let window = (found.from_ns, u64::MAX);
    let joined = join::Joined::gather(journal, segments, &wanted, window, &query.stop, report);
    let mut plans = plan_all(segments, &bound, report);
    plans.sort_by_key(|p| (p.min_ns, p.number));
    let mut clock = 0;
    let mut posting = Box::<Posting>::default();
    for plan in plans {
        let Ok((mut reader, link)) = Reader::open(plan, &query.stop) else { continue };
        while let Ok(Some(record)) = reader.next() {
            let ns = record.header.timestamp_ns;
            let data = reader.data(&record);
            read(&record.header.frame(data, link), &mut posting);
            let own = posting.keys.first() == Some(&found.key)
                || (posting.keys.first().is_some_and(|k| k.kind() == Kind::Fragments)
                    && joined.has(&posting, ns));
            if !own || ns < found.from_ns {
                continue;
            }
            clock = ns.max(clock);
            let mut arrival = Arrival::new(posting.decoded, ns, clock);
            table.burst(std::slice::from_mut(&mut arrival), &mut end);
            if let Some(end_ns) = end.end_ns {
                return end_ns;
            }
        }
    }
    table.drain(clock, crate::event::EndReason::Eof, &mut end);
    end.end_ns.unwrap_or(u64::MAX)
}
