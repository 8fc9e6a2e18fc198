//! What the control thread counts for the doctor: of flows that ended, which directions were seen;
//! and steps of the wall clock.

use std::time::{Duration, Instant, SystemTime};

use crate::event::FlowEvent;
use crate::packet::proto;
use crate::status::{Counter, Counters};

const ACK: u8 = 0x10;
/// Packets of one side alone that are no scan, no answer to one and no leftover.
const SPEAKS: u64 = 3;
/// The wall clock runs this much ahead or behind between two looks: it was set.
const STEP: Duration = Duration::from_millis(500);

#[derive(Debug)]
pub struct Pulse {
    clock: (Instant, SystemTime),
    counters: Counters,
}

impl Default for Pulse {
    fn default() -> Self {
        Self { clock: (Instant::now(), SystemTime::now()), counters: Counters::default() }
    }
}

impl Pulse {
    /// Takes an event in.
    pub fn flow(&mut self, event: &FlowEvent) {
        if event.end.is_none() || event.key.proto() != proto::TCP {
            return;
        }
        let [orig, resp] = event.total.map(|c| c.packets);
        if orig > 0 && resp > 0 {
            self.counters.add(Counter::TcpBothWays, 1);
            let differ = event.vlans[0] != event.vlans[1];
            self.counters.add(Counter::VlansDiffer, u64::from(differ));
        } else if event.tcp_flags & ACK != 0 && orig.max(resp) >= SPEAKS {
            self.counters.add(Counter::TcpOneWay, 1);
        }
    }

    /// Looks at the clocks.
    pub fn look(&mut self) {
        self.look_at((Instant::now(), SystemTime::now()));
    }

    fn look_at(&mut self, now: (Instant, SystemTime)) {
        let passed = now.0 - self.clock.0;
        let expected = self.clock.1 + passed;
        let off = now.1.duration_since(expected).unwrap_or_else(|e| e.duration());
        if off > STEP {
            self.counters.add(Counter::ClockSteps, 1);
            let way = if now.1 > expected { "forward" } else { "back" };
            tracing::warn!("the clock was set {way} by {:.1} s", off.as_secs_f64());
        }
        self.clock = now;
    }

    pub fn counters(&self) -> &Counters {
        &self.counters
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_that_is_set_either_way_is_a_step_and_one_that_is_slewed_is_none() {
        let mut pulse = Pulse::default();
        let (start, wall) = pulse.clock;
        let second = Duration::from_secs(1);
        let steps = |pulse: &Pulse| pulse.counters().get(Counter::ClockSteps);
        pulse.look_at((start + second, wall + second + Duration::from_millis(20)));
        assert_eq!(steps(&pulse), 0);
        pulse.look_at((start + 2 * second, wall + 3600 * second));
        assert_eq!(steps(&pulse), 1);
        pulse.look_at((start + 3 * second, wall + 3 * second));
        assert_eq!(steps(&pulse), 2);
        pulse.look_at((start + 4 * second, wall + 4 * second));
        assert_eq!(steps(&pulse), 2);
    }
}
