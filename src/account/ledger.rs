//! The ledger of one thread: which stage it is at, since when, and what each stage has been charged so far.

use super::Stage;

/// How many stages there are.
pub const STAGES: usize = Stage::ALL.len();

/// Ticks, and spans between two marks of the clock, of each stage.
#[derive(Clone, Copy, Debug)]
pub struct Ledger {
    stage: Option<Stage>,
    since: u64,
    /// Ticks of each stage.
    pub ticks: [u64; STAGES],
    /// Spans of each stage. Each holds the cost of one mark, which can be taken out by this number.
    pub spans: [u64; STAGES],
}

impl Ledger {
    /// A thread that is at nothing.
    pub const fn new() -> Self {
        Self { stage: None, since: 0, ticks: [0; STAGES], spans: [0; STAGES] }
    }

    /// Charges the time since the last mark to the stage that lasted so long, and begins another; returns the one before.
    pub fn turn(&mut self, stage: Option<Stage>, now: u64) -> Option<Stage> {
        if let Some(ended) = self.stage {
            // The counters of two cores may differ by a little.
            self.ticks[ended as usize] += now.saturating_sub(self.since);
            self.spans[ended as usize] += 1;
        }
        self.since = now;
        std::mem::replace(&mut self.stage, stage)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn charged(ledger: &Ledger) -> Vec<(Stage, u64, u64)> {
        let all =
            Stage::ALL.into_iter().map(|(s, _)| (s, ledger.ticks[s as usize], ledger.spans[s as usize]));
        all.filter(|&(_, ticks, spans)| ticks + spans > 0).collect()
    }

    #[test]
    fn inner_stages_are_taken_from_outer_ones() {
        let mut ledger = Ledger::new();
        let outside = ledger.turn(Some(Stage::Other), 100);
        let outer = ledger.turn(Some(Stage::Product), 110);
        let inner = ledger.turn(Some(Stage::Activation), 150);
        assert_eq!((outside, outer, inner), (None, Some(Stage::Other), Some(Stage::Product)));
        ledger.turn(inner, 157);
        ledger.turn(outer, 187);
        ledger.turn(outside, 190);
        let expected = [(Stage::Product, 40 + 30, 2), (Stage::Activation, 7, 1), (Stage::Other, 10 + 3, 2)];
        assert_eq!(charged(&ledger), expected);
    }

    #[test]
    fn stages_in_a_row_share_a_mark() {
        let mut ledger = Ledger::new();
        ledger.turn(Some(Stage::AttentionProduct), 0);
        ledger.turn(Some(Stage::Softmax), 5);
        ledger.turn(Some(Stage::AttentionProduct), 16);
        ledger.turn(None, 20);
        assert_eq!(charged(&ledger), [(Stage::AttentionProduct, 9, 2), (Stage::Softmax, 11, 1)]);
    }

    #[test]
    fn time_outside_belongs_to_nobody() {
        let mut ledger = Ledger::new();
        for start in [1000, 5000] {
            let outside = ledger.turn(Some(Stage::Norm), start);
            ledger.turn(outside, start + 3);
        }
        assert_eq!(charged(&ledger), [(Stage::Norm, 6, 2)]);
    }

    #[test]
    fn a_clock_that_steps_back_charges_nothing() {
        let mut ledger = Ledger::new();
        ledger.turn(Some(Stage::Norm), 10);
        ledger.turn(None, 8);
        assert_eq!(charged(&ledger), [(Stage::Norm, 0, 1)]);
    }
}
