//! Fragments to the flow of their packet's first fragment, which alone carries ports.
//!
//! Before packets are read, the first fragments between the hosts in question are, and whether
//! their ports are wanted. A later fragment then goes with the last first one before it of the same
//! hosts, protocol and id, or where that is missing with the next one.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use super::expr::Expr;
use super::segment::{Bound, Gap, Reader, Segment};
use super::terms::{Verdict, Wanted, fragments_of};
use super::{Journal, Report, plan_all};
use crate::journal::index::{Key, Posting, read};
use crate::packet::{FlowKey, Tuple};

/// Reassembly gives up after this long, as the flow table does.
pub(super) const LIFE_NS: u64 = 30_000_000_000;
/// First fragments kept at most.
const MOST: usize = 4 << 20;

/// A fragmented packet: its hosts and protocol, id and direction.
type Name = ([u64; 5], u32, bool);

/// First fragments, and whether they are wanted.
#[derive(Default)]
pub(super) struct Joined(HashMap<Name, Vec<(u64, bool)>>);

fn name(posting: &Posting) -> Option<Name> {
    let d = &posting.decoded;
    let bare = Tuple { sport: 0, dport: 0, one_way: false, ..d.tuple };
    Some((Key::fragments(&d.tuple).0, d.fragment?.id, FlowKey::of(&bare).1))
}

impl Joined {
    /// Reads the first fragments that matter in a window of time.
    pub(super) fn gather(
        journal: &Journal,
        segments: &[Segment],
        wanted: &Wanted,
        (from_ns, to_ns): (u64, u64),
        stop: &Arc<AtomicBool>,
        report: &mut Report,
    ) -> Self {
        let mut out = Self::default();
        let keys: Option<Vec<Key>> =
            wanted.keys().map(|keys| keys.iter().map(fragments_of).collect());
        let (from_ns, to_ns) = (from_ns.saturating_sub(LIFE_NS), to_ns.saturating_add(LIFE_NS));
        let bound = Bound {
            keys: keys.as_deref(),
            index_key: journal.key.as_ref(),
            expr: match &wanted.flow {
                Some(found) => Expr::And(vec![super::identify::bound(&found.key), Expr::Fragments]),
                None => Expr::of_fragments(&wanted.terms),
            },
            filter: None,
            from_ns,
            to_ns,
        };
        // Each part has tags of its own.
        let terms = super::Terms { vlan: None, ..wanted.terms.clone() };
        let wanted = Wanted { terms, ..wanted.clone() };
        let mut posting = Box::<Posting>::default();
        for plan in plan_all(segments, &bound, report) {
            let number = plan.number;
            let gap = |what: String| Gap { segment: number, what };
            let (mut reader, link) = match Reader::open(plan, stop) {
                Ok(opened) => opened,
                Err(e) => {
                    report.gaps.push(gap(e.to_string()));
                    continue;
                }
            };
            loop {
                match reader.next() {
                    Ok(Some(found)) => {
                        let data = reader.data(&found);
                        read(&found.header.frame(data, link), &mut posting);
                        out.take(&posting, &wanted, found.header.timestamp_ns);
                    }
                    Ok(None) => break,
                    Err(e) => {
                        report.gaps.push(gap(e.to_string()));
                        break;
                    }
                }
            }
            report.bytes_read += reader.bytes_read;
            if out.0.len() > MOST {
                report
                    .gaps
                    .push(gap("too many fragmented packets to join; narrow the window".into()));
                break;
            }
        }
        out.0.values_mut().for_each(|firsts| firsts.sort_unstable());
        out
    }

    fn take(&mut self, posting: &Posting, wanted: &Wanted, timestamp_ns: u64) {
        if posting.decoded.fragment.is_some_and(|f| f.offset == 0)
            && let Some(name) = name(posting)
        {
            let yes = wanted.verdict(posting, timestamp_ns) == Verdict::Yes;
            self.0.entry(name).or_default().push((timestamp_ns, yes));
        }
    }

    /// Whether a later fragment goes with a first one that is wanted.
    pub(super) fn has(&self, posting: &Posting, timestamp_ns: u64) -> bool {
        let Some(firsts) = name(posting).and_then(|name| self.0.get(&name)) else { return false };
        let after = firsts.partition_point(|(ns, _)| *ns <= timestamp_ns);
        let near = |first: Option<&(u64, bool)>| {
            first.filter(|(ns, _)| ns.abs_diff(timestamp_ns) <= LIFE_NS).copied()
        };
        near(after.checked_sub(1).and_then(|n| firsts.get(n)))
            .or_else(|| near(firsts.get(after)))
            .is_some_and(|(_, yes)| yes)
    }
}
