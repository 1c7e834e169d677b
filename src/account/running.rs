//! The ledgers of all threads, and their totals.

use std::cell::RefCell;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::Stage;
use super::ledger::{Ledger, STAGES};
use crate::simd::ticks;

thread_local! {
    static LEDGER: RefCell<Ledger> = const { RefCell::new(Ledger::new()) };
}

static TICKS: [AtomicU64; STAGES] = [const { AtomicU64::new(0) }; STAGES];
static SPANS: [AtomicU64; STAGES] = [const { AtomicU64::new(0) }; STAGES];
static CALLS: AtomicU64 = AtomicU64::new(0);

/// Until it is dropped, this thread is at a stage.
#[must_use = "a part ends when it is dropped"]
pub struct Part {
    outer: Option<Stage>,
    /// When it began, if it is a whole call.
    call: Option<u64>,
}

impl Drop for Part {
    fn drop(&mut self) {
        let (_, now) = turn(self.outer);
        if self.outer.is_none() {
            settle();
        }
        if let Some(began) = self.call {
            CALLS.fetch_add(now.saturating_sub(began), Ordering::Relaxed);
        }
    }
}

/// Begins a stage.
pub fn stage(stage: Stage) -> Part {
    Part { outer: turn(Some(stage)).0, call: None }
}

/// Goes on with another stage.
pub fn turn_to(stage: Stage) {
    turn(Some(stage));
}

/// Begins a whole call, by the thread that makes it.
pub fn call() -> Part {
    let (outer, now) = turn(Some(Stage::Other));
    Part { outer, call: Some(now) }
}

/// Marks the clock; returns the stage before and the time. A call, not a few instructions here and there: kernels should
/// change as little as can be.
#[inline(never)]
fn turn(stage: Option<Stage>) -> (Option<Stage>, u64) {
    let now = ticks();
    (LEDGER.with_borrow_mut(|ledger| ledger.turn(stage, now)), now)
}

/// Adds what this thread was charged to the totals.
fn settle() {
    let Ledger { ticks, spans, .. } = LEDGER.replace(Ledger::new());
    for (totals, own) in [(&TICKS, ticks), (&SPANS, spans)] {
        for (total, own) in totals.iter().zip(own).filter(|(_, own)| *own > 0) {
            total.fetch_add(own, Ordering::Relaxed);
        }
    }
}

/// What all threads were charged, in seconds.
pub struct Totals {
    /// By stage, over all threads.
    pub seconds: [f64; STAGES],
    /// Spans between two marks, by stage.
    pub spans: [u64; STAGES],
    /// Of calls from their beginning to their end, on the threads that made them.
    pub calls: f64,
    /// What a mark costs; each span holds as much.
    pub mark: f64,
}

/// The totals since they were last taken.
pub fn take() -> Totals {
    let tick = seconds_of_a_tick();
    let swap = |totals: &[AtomicU64; STAGES]| totals.each_ref().map(|total| total.swap(0, Ordering::Relaxed));
    let (ticks, spans) = (swap(&TICKS), swap(&SPANS));
    let calls = CALLS.swap(0, Ordering::Relaxed) as f64 * tick;
    let mark = ticks_of_a_mark() * tick;
    // The marks that were measured are no part of anything.
    swap(&TICKS);
    swap(&SPANS);
    Totals { seconds: ticks.map(|t| t as f64 * tick), spans, calls, mark }
}

/// The clock against the system's, once.
fn seconds_of_a_tick() -> f64 {
    static TICK: OnceLock<f64> = OnceLock::new();
    *TICK.get_or_init(|| {
        let (start, first) = (Instant::now(), ticks());
        while start.elapsed() < Duration::from_millis(10) {
            std::hint::spin_loop();
        }
        start.elapsed().as_secs_f64() / (ticks() - first) as f64
    })
}

/// The mean of many marks, one after the other.
fn ticks_of_a_mark() -> f64 {
    const MARKS: u32 = 2000;
    let _part = stage(Stage::Other);
    let first = ticks();
    for _ in 0..MARKS {
        turn_to(Stage::Other);
    }
    (ticks() - first) as f64 / f64::from(MARKS)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn here() -> Option<Stage> {
        let (stage, _) = turn(None);
        turn(stage);
        stage
    }

    #[test]
    fn parts_begin_and_end_with_their_blocks() {
        assert_eq!(here(), None);
        let call = call();
        assert_eq!(here(), Some(Stage::Other));
        {
            let _part = stage(Stage::AttentionProduct);
            turn_to(Stage::Softmax);
            assert_eq!(here(), Some(Stage::Softmax));
        }
        assert_eq!(here(), Some(Stage::Other));
        drop(call);
        assert_eq!(here(), None);
        assert_eq!(LEDGER.with_borrow(|ledger| ledger.spans), [0; STAGES]);
    }
}
