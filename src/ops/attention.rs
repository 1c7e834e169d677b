//! Attention over batches: cuts the work into tasks and hands each to the kernel.
//!
//! A task is up to [`TASK_ROWS`] query rows that share one key/value head of one sequence: with grouped queries, rows
//! of several heads. It gathers its queries, attends, and writes its rows of the output, of the log-sum-exp and of the
//! weights. Keys that are blocked for the whole sequence are removed first, before tiles are cut, so that padding and
//! holes have the bits of deletion.

use std::ops::Range;

use super::aligned::with_scratch;
use super::buffer::zeros;
use super::try_parallel;
use crate::error::{Error, Result};
use crate::kernels::attend::{
    Attend, Dropout, KEY_TILE, Keys, Mask, Row, ScoreKind, Scores, Scoring, padded, tile_len,
};
use crate::kernels::gemm::OutRows;
use crate::simd::{Float, Isa, active};
use crate::threads::checkpoint;

/// Query rows of a task: enough that packing a tile of keys costs a hundredth of using it, few enough that queries and
/// sums stay in the second-level cache.
const TASK_ROWS: usize = 128;

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
        let mut tasks: Vec<(usize, usize, Range<usize>)> = Vec::new();
        let mut work = 0_usize;
        for (b, sequence) in self.sequences.iter().enumerate() {
            let rows = group * sequence.q_len;
            let chunks = rows.div_ceil(TASK_ROWS);
            for kv_head in 0..self.kv_heads {
                for c in 0..chunks {
                    tasks.push((b, kv_head, rows * c / chunks..rows * (c + 1) / chunks));
                }
            }
            let pairs = self.heads.saturating_mul(sequence.q_len).saturating_mul(sequence.k_len);
            work = work.saturating_add(pairs.saturating_mul(self.e + self.ev));
        }
        let run = |(b, kv_head, rows): &(usize, usize, Range<usize>)| {
            self.task(isa, &self.sequences[*b], &kept[*b], *kv_head, rows.clone(), &outputs)
        };
        if work < WORTH_A_THREAD {
            return try_parallel(1, |_| tasks.iter().try_for_each(run));
        }
        try_parallel(tasks.len(), |i| run(&tasks[i]))
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

    #[allow(
        clippy::too_many_lines,
        reason = "the parts of one call of the kernel, cut out of what tasks share"
    )]
    fn task(
        &self,
        isa: Isa,
        sequence: &Sequence<'_, T>,
        kept: &Kept,
        kv_head: usize,
        chunk: Range<usize>,
        outputs: &Outputs<'_, T>,
    ) -> Result<()> {
        let (e, ev, n) = (self.e, self.ev, chunk.len());
        let group = self.heads / self.kv_heads;
        let place = |i: usize| sequence.query_places.as_ref().map_or(i, |p| p[i] as usize);
        let head_and_query = |r: usize| (kv_head * group + r / sequence.q_len, r % sequence.q_len);
        // Divided once: for short sequences a division a row is a fifteenth of the task.
        let mut next = head_and_query(chunk.start);
        let rows: Vec<Row> = chunk
            .clone()
            .map(|_| {
                let (head, i) = next;
                next = if i + 1 < sequence.q_len { (head, i + 1) } else { (head + 1, 0) };
                let (first, end) = self.range(place(i), sequence.offset, kept.places.as_deref(), kept.count);
                let out = sequence.starts[3] + head * self.out.head + i * self.out.row;
                Row { head, index: i, query: place(i), first, end, out }
            })
            .collect();
        let keys = Keys {
            k: &self.k.data[(sequence.starts[1] + kv_head * self.k.strides.head).min(self.k.data.len())..],
            k_stride: self.k.strides.row,
            v: &self.v.data[(sequence.starts[2] + kv_head * self.v.strides.head).min(self.v.data.len())..],
            v_stride: self.v.strides.row,
            ev,
            rows: kept.rows.as_deref(),
            places: kept.places.as_deref(),
            count: kept.count,
            allowed: None,
        };
        let scoring =
            Scoring { scale: self.scale, softcap: self.softcap, alibi: self.alibi, mask: sequence.mask };
        let dropout = self.dropout.map(|(p, key)| Dropout {
            p,
            key,
            base: sequence.dropout_base,
            shape: sequence.dropout_shape,
        });
        let lengths = [n * e, n * padded(ev), n, n, tile_len(e, ev)].map(|len| len.next_multiple_of(16));
        with_scratch(lengths.iter().sum(), |scratch: &mut [T]| {
            let (q, rest) = scratch.split_at_mut(lengths[0]);
            let (acc, rest) = rest.split_at_mut(lengths[1]);
            let (row_max, rest) = rest.split_at_mut(lengths[2]);
            let (row_sum, tile) = rest.split_at_mut(lengths[3]);
            let (row_max, row_sum) = (&mut row_max[..n], &mut row_sum[..n]);
            let query_at = |r: usize| {
                let (head, i) = head_and_query(r);
                sequence.starts[0] + head * self.q.strides.head + i * self.q.strides.row
            };
            // Queries of one head are read where they are.
            let one_head = n > 0 && head_and_query(chunk.start).0 == head_and_query(chunk.end - 1).0;
            let (q, ldq) = if one_head {
                (&self.q.data[query_at(chunk.start)..], self.q.strides.row)
            } else {
                for (r, to) in chunk.clone().zip(q.chunks_exact_mut(e)) {
                    to.copy_from_slice(&self.q.data[query_at(r)..][..e]);
                }
                (&*q, e)
            };
            for segment in segments(kept.count, n * (e + ev)) {
                checkpoint()?;
                let attend = Attend {
                    q,
                    ldq,
                    e,
                    keys,
                    segment,
                    rows: &rows,
                    scoring,
                    dropout,
                    acc: &mut *acc,
                    row_max: &mut *row_max,
                    row_sum: &mut *row_sum,
                    scratch: &mut *tile,
                    out: outputs.out,
                };
                T::dispatch(isa, attend);
            }
            if let Some((lse, strides)) = &outputs.lse {
                for (r, (&max, &sum)) in chunk.clone().zip(row_max.iter().zip(&*row_sum)) {
                    let (head, i) = head_and_query(r);
                    // SAFETY: each row has its own place.
                    let out =
                        unsafe { lse.slice(sequence.lse_start + head * strides.head + i * strides.row, 1) };
                    out[0] = log_sum_exp(max, sum);
                }
            }
            if let Some((kind, scores, slots)) = &outputs.scores {
                let rows: Vec<Row> = chunk
                    .clone()
                    .zip(&rows)
                    .map(|(r, row)| {
                        let (head, i) = head_and_query(r);
                        let places = sequence.key_places.as_deref();
                        let (first, end) = self.range(row.query, sequence.offset, places, sequence.k_len);
                        let strides = sequence.score_strides;
                        let slot = slots.map_or(Some(head), |slots| slots[head]);
                        let start = |slot| sequence.scores_start + slot * strides.head + i * strides.row;
                        Row { first, end, out: slot.map_or(Row::NOWHERE, start), ..*row }
                    })
                    .collect();
                let places = sequence.key_places.as_deref();
                let allowed = sequence.key_mask.as_deref();
                let keys = Keys { rows: None, places, allowed, count: sequence.k_len, ..keys };
                for segment in segments(sequence.k_len, n * (e + ev)) {
                    checkpoint()?;
                    let scores = Scores {
                        kind: *kind,
                        q,
                        ldq,
                        e,
                        keys,
                        segment,
                        rows: &rows,
                        scoring,
                        row_max: &*row_max,
                        row_sum: &*row_sum,
                        scratch: &mut *tile,
                        out: *scores,
                    };
                    T::dispatch(isa, scores);
                }
            }
            Ok(())
        })
    }
}

/// Cuts keys into whole tiles that take a few milliseconds each, so that Ctrl-C is not kept waiting by a task with very
/// many keys; at least one segment.
fn segments(keys: usize, work_per_key: usize) -> impl Iterator<Item = Range<usize>> {
    let step = (SEGMENT_WORK / work_per_key.max(1)).next_multiple_of(KEY_TILE).max(KEY_TILE);
    (0..keys.max(1)).step_by(step).map(move |first| first..keys.min(first + step))
}

/// M ln 2 + ln l in f64, rounded once; -inf where nothing was added.
fn log_sum_exp<T: Float>(max: T, sum: T) -> T {
    if max == T::NEG_INFINITY && !sum.is_nan() {
        return T::NEG_INFINITY;
    }
    T::from_f64(libm::fma(max.to_f64(), std::f64::consts::LN_2, libm::log(sum.to_f64())))
}
