//! Workers tell each other what clients were given: a name may be answered to on one worker for a
//! flow of another. A ring from each to each, never waited for.

use rtrb::{Consumer, Producer, RingBuffer};

use super::Answer;

/// Answers that a worker may be behind with.
const RING: usize = 4096;

/// One worker's rings.
#[derive(Debug, Default)]
pub struct Party {
    to: Vec<Producer<Answer>>,
    from: Vec<Consumer<Answer>>,
    /// Answers that a worker was too slow for.
    pub lost: u64,
}

/// The rings of so many workers.
pub fn parties(workers: usize) -> Vec<Party> {
    let mut all: Vec<Party> = (0..workers).map(|_| Party::default()).collect();
    for from in 0..workers {
        for to in (0..workers).filter(|to| *to != from) {
            let (tx, rx) = RingBuffer::new(RING);
            all[from].to.push(tx);
            all[to].from.push(rx);
        }
    }
    all
}

impl Party {
    pub fn tell(&mut self, answer: &Answer) {
        for ring in &mut self.to {
            self.lost += u64::from(ring.push(*answer).is_err());
        }
    }

    /// Gives what the others told.
    #[inline]
    pub fn hear(&mut self, mut take: impl FnMut(&Answer)) {
        for ring in &mut self.from {
            while let Ok(answer) = ring.pop() {
                take(&answer);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_hears_all_others_and_what_finds_no_room_is_counted() {
        let mut all = parties(3);
        let answer = |ttl| Answer { ttl, ..Answer::default() };
        all[0].tell(&answer(1));
        all[2].tell(&answer(2));
        let heard: Vec<Vec<u32>> = all
            .iter_mut()
            .map(|party| {
                let mut heard = Vec::new();
                party.hear(|a| heard.push(a.ttl));
                heard
            })
            .collect();
        assert_eq!(heard, [vec![2], vec![1, 2], vec![1]]);
        (0..RING as u32 + 5).for_each(|n| all[0].tell(&answer(n)));
        assert_eq!(all[0].lost, 10);
    }
}
