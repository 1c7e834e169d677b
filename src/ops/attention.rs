//! Attention over batches: cuts the work into tasks and hands each to the kernel.
//!
//! A task is up to [`TASK_ROWS`] query rows that share one key/value head of one sequence: with grouped queries, rows
//! of several heads; where sequences are short, the same of several key/value heads, one after the other. It gathers its
//! queries, attends, and writes its rows of the output, of the log-sum-exp and of the weights. Keys that are blocked for
//! the whole sequence are removed first, before tiles are cut, so that padding and holes have the bits of deletion.

mod backward;
mod task;

use super::buffer::zeros;
use super::try_parallel;
use crate::error::{Error, Result};
use crate::kernels::attend::{Mask, ScoreKind};
use crate::kernels::gemm::OutRows;
use crate::simd::{Float, active};
use crate::threads::team_size;
pub use backward::{Gradients, MaskGradient, Saved};
use task::Task;

/// Query rows of a task: enough that packing a tile of keys costs a hundredth of using it, few enough that queries and
/// sums stay in the second-level cache.
const TASK_ROWS: usize = 128;

/// Multiply-adds that make a task of several heads: about ten microseconds, beside which its own cost is small.
const TASK_WORK: usize = 1 << 20;

/// Tasks that a thread gets at least, before they get several heads.
const TASKS_A_THREAD: usize = 8;

/// Multiply-adds below which a second thread costs more than it brings.
const WORTH_A_THREAD: usize = 400_000;

/// Multiply-adds between two looks at whether the call has been interrupted.
const SEGMENT_WORK: usize = 1 << 27;

/// Distances between heads and between rows; the numbers of a row are dense.
#[derive(Clone, Copy, Debug, Default)]
pub struct Strides {
    /// From a head to the next.
    pub head: usize,
    /// From a row to the next.
    pub row: usize,
}

/// An operand: row i of head h of a sequence that begins at `start` is at `start + h * head + i * row`.
#[derive(Clone, Copy, Debug)]
pub struct Operand<'a, T> {
    /// The numbers of all sequences.
    pub data: &'a [T],
    /// Distances.
    pub strides: Strides,
}

/// One element of the batch.
#[derive(Clone, Debug)]
pub struct Sequence<'a, T> {
    /// Where queries, keys, values and output begin.
    pub starts: [usize; 4],
    /// L.
    pub q_len: usize,
    /// S, blocked keys included.
    pub k_len: usize,
    /// Keys before the one that belongs to the first query: a bias by distance counts queries from there on.
    pub past: usize,
    /// What is added to a query's place before causality and window compare it with a key's place.
    pub offset: i64,
    /// Keys that may be attended at all, if not every one.
    pub key_mask: Option<Vec<bool>>,
    /// Places that queries count as having, ascending, if not 0, 1, 2...
    pub query_places: Option<Vec<u32>>,
    /// Places that keys count as having, ascending, if not 0, 1, 2...
    pub key_places: Option<Vec<u32>>,
    /// A mask for each query and key, by head, query place and key place.
    pub mask: Mask<'a, T>,
    /// Where the log-sum-exp of row i of head h is: `start + h * head + i * row`.
    pub lse_start: usize,
    /// Where the scores of row i of slot h begin, S numbers: `start + h * head + i * row`.
    pub scores_start: usize,
    /// Distances of the scores.
    pub score_strides: Strides,
    /// Elements (head, query, key) of the batch elements before this one, for dropout.
    pub dropout_base: u64,
    /// Places of queries and of keys, by which dropout counts elements.
    pub dropout_shape: (usize, usize),
}

/// A call: operands, what a score is, and which keys are allowed.
#[derive(Clone, Debug)]
pub struct Attention<'a, T> {
    /// (L, E) for each of H heads.
    pub q: Operand<'a, T>,
    /// (S, E) for each of Hk heads.
    pub k: Operand<'a, T>,
    /// (S, Ev) for each of Hk heads.
    pub v: Operand<'a, T>,
    /// Distances of the output, Ev numbers a row.
    pub out: Strides,
    /// H
    pub heads: usize,
    /// Hk
    pub kv_heads: usize,
    /// E
    pub e: usize,
    /// Ev
    pub ev: usize,
    /// Factor of q · k.
    pub scale: T,
    /// Soft cap c: c * tanh(x / c).
    pub softcap: Option<T>,
    /// Slope of each head: - slope * |i - j| is added to the score, i and j counted among the keys that are left.
    pub alibi: Option<&'a [T]>,
    /// Whether key j is allowed only for j <= i + offset.
    pub causal: bool,
    /// Keys allowed to the left and to the right of i + offset.
    pub window: (Option<usize>, Option<usize>),
    /// Probability that a weight is dropped and the key of the generator.
    pub dropout: Option<(f64, u64)>,
    /// The batch.
    pub sequences: Vec<Sequence<'a, T>>,
}

/// The slot of each head whose scores are wanted; every head has its own if this is absent.
pub type Slots<'a> = Option<&'a [Option<usize>]>;

/// What else is written beside the output.
pub struct Wanted<'a, T> {
    /// Log-sum-exp of each row.
    pub lse: Option<(&'a mut [T], Strides)>,
    /// Scores or weights of each row; of the heads that have a slot, if not of all, each in its slot.
    pub scores: Option<(ScoreKind, &'a mut [T], Slots<'a>)>,
}

impl<T> Default for Wanted<'_, T> {
    fn default() -> Self {
        Self { lse: None, scores: None }
    }
}

/// Output places that tasks share.
struct Outputs<'a, T> {
    out: OutRows<'a, T>,
    lse: Option<(OutRows<'a, T>, Strides)>,
    scores: Option<(ScoreKind, OutRows<'a, T>, Slots<'a>)>,
}

/// The keys of a sequence that are left once those that nobody may attend are removed.
struct Kept {
    /// Rows of K and V.
    rows: Option<Vec<u32>>,
    /// Places of those rows.
    places: Option<Vec<u32>>,
    count: usize,
}

impl Kept {
    fn of<T>(sequence: &Sequence<'_, T>) -> Result<Self> {
        let Some(mask) = sequence.key_mask.as_ref().filter(|m| m.contains(&false)) else {
            return Ok(Self { rows: None, places: sequence.key_places.clone(), count: sequence.k_len });
        };
        if u32::try_from(mask.len()).is_err() {
            let text = format!("key_mask: expected fewer than 2**32 keys, got S = {}", mask.len());
            return Err(Error::Value(text));
        }
        let mut rows = zeros::<u32>(mask.iter().filter(|&&kept| kept).count())?;
        for (row, (j, _)) in rows.iter_mut().zip(mask.iter().enumerate().filter(|(_, kept)| **kept)) {
            *row = j as u32;
        }
        let mut places = zeros(rows.len())?;
        places.copy_from_slice(&rows);
        if let Some(given) = &sequence.key_places {
            for p in &mut places {
                *p = given[*p as usize];
            }
        }
        Ok(Self { count: rows.len(), rows: Some(rows), places: Some(places) })
    }
}

impl<T: Float> Attention<'_, T> {
    /// Attends; writes the output of every sequence, and what else is wanted.
    ///
    /// # Errors
    /// `Memory`, `Interrupted`, `Internal`; a wrong `HEADWISE_ISA`.
    pub fn run(&self, out: &mut [T], wanted: Wanted<'_, T>) -> Result<()> {
        let isa = active()?;
        let group = self.heads / self.kv_heads.max(1);
        let outputs = Outputs {
            out: OutRows::new(out),
            lse: wanted.lse.map(|(lse, strides)| (OutRows::new(lse), strides)),
            scores: wanted.scores.map(|(kind, scores, slots)| (kind, OutRows::new(scores), slots)),
        };
        let kept: Vec<Kept> = self.sequences.iter().map(Kept::of).collect::<Result<_>>()?;
        let mut tasks: Vec<Task<'_, T>> = Vec::new();
        let mut work = 0_usize;
        // As many as leave every thread enough tasks.
        let team = team_size();
        let all = self.sequences.len().saturating_mul(self.kv_heads);
        let most_heads = if team == 1 { self.kv_heads } else { all / (TASKS_A_THREAD * team) }
            .clamp(1, self.kv_heads.max(1));
        for (sequence, kept) in self.sequences.iter().zip(&kept) {
            let rows = group * sequence.q_len;
            let chunks = rows.div_ceil(TASK_ROWS);
            let of_head = rows.saturating_mul(sequence.k_len).saturating_mul(self.e + self.ev);
            work = work.saturating_add(of_head.saturating_mul(self.kv_heads));
            // Short sequences give a task several heads.
            let heads = (TASK_WORK / of_head.max(1)).clamp(1, most_heads);
            let parts = self.kv_heads.div_ceil(heads);
            for part in 0..parts {
                for c in 0..chunks {
                    tasks.push(Task {
                        call: self,
                        isa,
                        sequence,
                        kept,
                        kv_heads: self.kv_heads * part / parts..self.kv_heads * (part + 1) / parts,
                        chunk: rows * c / chunks..rows * (c + 1) / chunks,
                    });
                }
            }
        }
        if work < WORTH_A_THREAD {
            return try_parallel(1, |_| tasks.iter().try_for_each(|task| task.run(&outputs)));
        }
        try_parallel(tasks.len(), |i| tasks[i].run(&outputs))
    }

    /// Keys `first..end` of `kept` that causality and window allow a query at `place`.
    fn range(&self, place: usize, offset: i64, places: Option<&[u32]>, count: usize) -> (usize, usize) {
        if !self.causal && self.window == (None, None) {
            return (0, count);
        }
        let at = i128::from(offset) + place as i128;
        let mut first = 0;
        let mut end = i128::MAX;
        if let Some(left) = self.window.0 {
            first = at - left as i128;
        }
        if let Some(right) = self.window.1 {
            end = at + right as i128 + 1;
        }
        if self.causal {
            end = end.min(at + 1);
        }
        match places {
            None => (first.clamp(0, count as i128) as usize, end.clamp(0, count as i128) as usize),
            Some(places) => (
                places.partition_point(|&p| i128::from(p) < first),
                places.partition_point(|&p| i128::from(p) < end),
            ),
        }
    }
}
