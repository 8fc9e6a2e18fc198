//! Passive DNS: which name an address was asked for by, and when.
//!
//! A name is looked up as of a moment and for whoever asked; answers that came later do not count,
//! so that the result does not depend on when it is looked up. An answer counts for its TTL, but at
//! least [`SHORTEST`] since programs go on using an address, and at most [`LONGEST`].
//!
//! Limits: [`Names::new`]'s number of answers in all, the earliest learned going first; for one
//! address [`PER_ADDRESS`], the oldest going first.

use std::collections::{HashMap, VecDeque};
use std::net::IpAddr;
use std::sync::Arc;

const SECOND: u64 = 1_000_000_000;
const SHORTEST: u64 = 300 * SECOND;
const LONGEST: u64 = 86_400 * SECOND;
const PER_ADDRESS: usize = 16;

/// The table.
#[derive(Debug)]
pub struct Names {
    by_address: HashMap<IpAddr, Vec<Answer>>,
    /// Addresses in the order in which answers for them were learned, one at least each answer.
    order: VecDeque<IpAddr>,
    most: usize,
}

#[derive(Clone, Debug)]
struct Answer {
    /// Who asked; `None` where all were told.
    asker: Option<IpAddr>,
    name: Arc<str>,
    from: u64,
    until: u64,
}

impl Names {
    /// A table of at most so many answers.
    pub fn new(most: usize) -> Self {
        Self { by_address: HashMap::new(), order: VecDeque::new(), most: most.max(1) }
    }

    /// Answers that are kept, and few that are not any more.
    pub fn len(&self) -> usize {
        self.order.len()
    }

    pub fn is_empty(&self) -> bool {
        self.order.is_empty()
    }

    /// Takes in that `name` was given `address` at a moment, for so many seconds.
    pub fn learn(
        &mut self,
        asker: Option<IpAddr>,
        name: &Arc<str>,
        address: IpAddr,
        at: u64,
        ttl: u32,
    ) {
        let until = at.saturating_add((u64::from(ttl) * SECOND).clamp(SHORTEST, LONGEST));
        let answers = self.by_address.entry(address).or_default();
        // Asked again by the same before it ran out, and nothing else in between: one answer.
        let last = answers.iter_mut().filter(|a| a.asker == asker).max_by_key(|a| a.from);
        if let Some(last) = last.filter(|a| a.name == *name && a.from <= at && at <= a.until) {
            last.until = last.until.max(until);
            return;
        }
        answers.push(Answer { asker, name: Arc::clone(name), from: at, until });
        self.order.push_back(address);
        if answers.len() > PER_ADDRESS {
            // Its place in the order stays: it only makes this address's answers go a little earlier.
            forget_oldest(answers);
        }
        while self.order.len() > self.most {
            let Some(address) = self.order.pop_front() else { break };
            if let Some(answers) = self.by_address.get_mut(&address) {
                forget_oldest(answers);
                if answers.is_empty() {
                    self.by_address.remove(&address);
                }
            }
        }
    }

    /// The name by which `asker` knew `address` at a moment; if it did not ask itself, the one that
    /// anyone asked for last.
    pub fn name(&self, asker: IpAddr, address: IpAddr, at: u64) -> Option<Arc<str>> {
        let answers = self.by_address.get(&address)?;
        let valid = answers.iter().filter(|a| a.from <= at && at <= a.until);
        valid
            .max_by_key(|a| (a.asker == Some(asker), a.from, &a.name, a.asker))
            .map(|a| Arc::clone(&a.name))
    }

    /// All names by which `asker` knew `address` at a moment, in the order of the alphabet.
    pub fn all(&self, asker: IpAddr, address: IpAddr, at: u64) -> Vec<Arc<str>> {
        let answers = self.by_address.get(&address).map_or(&[][..], Vec::as_slice);
        let valid = |a: &&Answer| a.asker == Some(asker) && a.from <= at && at <= a.until;
        let mut names: Vec<Arc<str>> =
            answers.iter().filter(valid).map(|a| Arc::clone(&a.name)).collect();
        names.sort();
        names.dedup();
        names
    }
}

fn forget_oldest(answers: &mut Vec<Answer>) {
    let oldest = answers.iter().enumerate().min_by_key(|(_, a)| (a.from, &a.name, a.asker));
    if let Some((at, _)) = oldest {
        answers.remove(at);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(n: u8) -> IpAddr {
        IpAddr::from([10, 0, 0, n])
    }

    #[test]
    fn the_askers_own_and_latest_before_the_moment() {
        let mut names = Names::new(100);
        let s = SECOND;
        names.learn(Some(ip(1)), &"a".into(), ip(9), 10 * s, 60);
        names.learn(Some(ip(1)), &"b".into(), ip(9), 20 * s, 60);
        names.learn(Some(ip(2)), &"c".into(), ip(9), 30 * s, 60);
        let name = |asker, at: u64| names.name(ip(asker), ip(9), at * s).map(|n| n.to_string());
        assert_eq!(name(1, 9), None);
        assert_eq!(name(1, 10).as_deref(), Some("a"));
        assert_eq!(name(1, 25).as_deref(), Some("b"));
        assert_eq!(name(1, 35).as_deref(), Some("b"), "its own before another's");
        assert_eq!(name(3, 35).as_deref(), Some("c"), "another's if it has none");
        assert_eq!(name(1, 321).as_deref(), Some("c"), "its own ran out");
        assert_eq!(name(1, 400), None);
    }

    #[test]
    fn a_million_names_stay_within_their_bound() {
        let mut names = Names::new(1000);
        for n in 0..1_000_000u32 {
            let address = IpAddr::from((n / 3).to_be_bytes());
            names.learn(None, &n.to_string().into(), address, u64::from(n), 60);
        }
        assert_eq!(names.len(), 1000);
        assert!(names.by_address.len() <= 1000);
        let kept: usize = names.by_address.values().map(Vec::len).sum();
        assert_eq!(kept, 1000);
        // One address with a million names.
        for n in 0..100_000u32 {
            names.learn(None, &n.to_string().into(), ip(1), u64::from(n) << 32, 60);
        }
        assert!(names.len() <= 1000 && names.by_address[&ip(1)].len() <= PER_ADDRESS);
    }
}
