//! Which lcore does what.

/// The jobs of each lcore, by index into the lcore list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Plan {
    /// The lcore that journals.
    pub(super) scribe: Option<usize>,
    /// The lcore that deals packets to the workers, where they do not poll queues themselves.
    pub(super) steer: Option<usize>,
    /// The lcores that work.
    pub(super) workers: Vec<usize>,
}

impl Plan {
    /// For `lcores` lcores (1 at least) and a source with `queues` receive queues.
    ///
    /// `spread`: the device itself gives both directions of a flow to one queue.
    pub(super) fn new(lcores: usize, queues: usize, spread: bool, journal: bool) -> Self {
        let first = usize::from(journal && lcores > 1);
        let workers: Vec<usize> = (first..lcores).collect();
        let scribe = journal.then_some(0);
        // One worker polls every queue; more need a queue each, or a dealer.
        if workers.len() == 1 || (spread && queues >= workers.len()) {
            return Self { scribe, steer: None, workers };
        }
        // Dealing takes most of an lcore; of two it shares the first worker's.
        let dealt =
            if workers.len() > 2 { workers.get(1..).unwrap_or_default().to_vec() } else { workers };
        Self { scribe, steer: Some(first), workers: dealt }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(
        lcores: usize,
        queues: usize,
        spread: bool,
        journal: bool,
    ) -> (Option<usize>, Option<usize>, Vec<usize>) {
        let p = Plan::new(lcores, queues, spread, journal);
        (p.scribe, p.steer, p.workers)
    }

    #[test]
    fn the_first_lcore_journals_and_the_others_work() {
        assert_eq!(plan(1, 1, false, true), (Some(0), None, vec![0]));
        assert_eq!(plan(1, 4, true, false), (None, None, vec![0]));
        assert_eq!(plan(2, 1, false, true), (Some(0), None, vec![1]));
        assert_eq!(plan(3, 2, true, true), (Some(0), None, vec![1, 2]));
        assert_eq!(plan(3, 4, true, false), (None, None, vec![0, 1, 2]));
    }

    #[test]
    fn fewer_queues_than_workers_or_queues_without_affinity_get_a_dealer() {
        assert_eq!(plan(3, 1, true, true), (Some(0), Some(1), vec![1, 2]));
        assert_eq!(plan(4, 1, true, true), (Some(0), Some(1), vec![2, 3]));
        assert_eq!(plan(2, 2, false, false), (None, Some(0), vec![0, 1]));
        assert_eq!(plan(4, 4, false, false), (None, Some(0), vec![1, 2, 3]));
    }
}
