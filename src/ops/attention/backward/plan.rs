//! How the gradient of attention is cut into tasks. Nothing of it shows in a bit of the result.

use std::ops::Range;

use super::super::{Attention, Kept, TASK_WORK, TASKS_A_THREAD, WORTH_A_THREAD};
use crate::kernels::attend::{KEY_TILE, QUERY_BLOCK};
use crate::simd::Float;

/// What a task computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sweep {
    /// All gradients of queries, keys and values.
    Operands,
    /// Those of queries.
    Queries,
    /// Those of keys and values.
    Keys,
    /// That of the mask.
    Mask,
}

/// A task: for each sequence and each key/value head, the pairs of some queries of each head of the group and some keys.
#[derive(Clone, Debug)]
pub struct Job {
    pub sweep: Sweep,
    pub sequences: Range<usize>,
    pub kv_heads: Range<usize>,
    /// May go beyond the queries there are.
    pub queries: Range<usize>,
    /// Keys among those that are kept; may go beyond them.
    pub keys: Range<usize>,
}

/// The whole of a range that is cut to what there is.
const ALL: Range<usize> = 0..usize::MAX;

/// How to cut.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    /// Whether one sweep computes all gradients.
    pub one_sweep: bool,
    /// Whether one thread does everything: there is too little for two.
    pub alone: bool,
    /// Key/value heads of a task, at most.
    pub heads: usize,
    /// Queries of a task of [`Sweep::Queries`], whole blocks.
    pub queries: usize,
    /// Keys of a task of [`Sweep::Keys`], whole tiles.
    pub keys: usize,
}

/// Products of one sweep for all gradients, and of two sweeps.
const PRODUCTS: (usize, usize) = (5, 7);

impl Plan {
    /// The plan for `team` threads.
    pub fn new<T: Float>(call: &Attention<'_, T>, kept: &[Kept], team: usize) -> Self {
        let group = call.heads / call.kv_heads.max(1);
        // Pairs of a head.
        let pairs = call.sequences.iter().zip(kept).map(|(sequence, kept)| {
            group.saturating_mul(sequence.q_len).saturating_mul(kept.count.max(KEY_TILE))
        });
        let (mut total, mut most) = (0_usize, 0);
        for pairs in pairs {
            total = total.saturating_add(pairs.saturating_mul(call.kv_heads));
            most = most.max(pairs);
        }
        let tasks = call.sequences.len().saturating_mul(call.kv_heads).max(1);
        // The thread that has most to do.
        let slowest = most.max((total / tasks).saturating_mul(tasks.div_ceil(team)));
        let one_sweep = slowest.saturating_mul(PRODUCTS.0) <= (total / team).saturating_mul(PRODUCTS.1);
        // Multiply-adds of a pair.
        let each = PRODUCTS.0 * (call.e + call.ev) / 2;
        let (of_head, most_heads) = (total / tasks, tasks / (TASKS_A_THREAD * team));
        let heads =
            (TASK_WORK / of_head.saturating_mul(each).max(1)).min(most_heads).clamp(1, call.kv_heads.max(1));
        // Some tasks for each thread: causal ones are uneven.
        let longest = kept.iter().map(|k| k.count).max().unwrap_or(0);
        let keys = longest.saturating_mul(tasks).div_ceil(TASKS_A_THREAD * team);
        Self {
            one_sweep: one_sweep || team == 1,
            alone: total.saturating_mul(each) < WORTH_A_THREAD,
            heads,
            queries: 2 * QUERY_BLOCK,
            keys: keys.next_multiple_of(KEY_TILE).max(KEY_TILE),
        }
    }

    /// The tasks; `mask` holds the strides of its gradient and where sequences begin.
    pub fn jobs<T: Float>(
        &self,
        call: &Attention<'_, T>,
        kept: &[Kept],
        mask: Option<([usize; 3], &[usize])>,
    ) -> Vec<Job> {
        let mut jobs = Vec::new();
        let parts = call.kv_heads.div_ceil(self.heads.max(1));
        for (n, (sequence, kept)) in call.sequences.iter().zip(kept).enumerate() {
            for part in 0..parts {
                let job = Job {
                    sweep: Sweep::Operands,
                    sequences: n..n + 1,
                    kv_heads: call.kv_heads * part / parts..call.kv_heads * (part + 1) / parts,
                    queries: ALL,
                    keys: ALL,
                };
                if self.one_sweep {
                    jobs.push(job);
                    continue;
                }
                // At least one, which writes the zeros of keys that nobody sees.
                for first in (0..kept.count.max(1)).step_by(self.keys) {
                    let keys = first..first + self.keys;
                    jobs.push(Job { sweep: Sweep::Keys, keys, ..job.clone() });
                }
                for first in (0..sequence.q_len).step_by(self.queries) {
                    let queries = first..first + self.queries;
                    jobs.push(Job { sweep: Sweep::Queries, queries, ..job.clone() });
                }
            }
        }
        if let Some((strides, starts)) = mask {
            jobs.extend(mask_jobs(call, strides, starts));
        }
        jobs
    }
}

/// Tasks of which no two write to the same element of a mask: cut along the axes that it has.
fn mask_jobs<T: Float>(call: &Attention<'_, T>, strides: [usize; 3], starts: &[usize]) -> Vec<Job> {
    let mut distinct = starts.to_vec();
    distinct.sort_unstable();
    distinct.dedup();
    let sequences = if distinct.len() == starts.len() { 1 } else { call.sequences.len() };
    let heads = if strides[0] > 0 { 1 } else { call.kv_heads };
    // A query's number is its place, unless places are given.
    let places = call.sequences.iter().any(|s| s.query_places.is_some());
    let longest = call.sequences.iter().map(|s| s.q_len).max().unwrap_or(0);
    let queries = if strides[1] > 0 && !places { QUERY_BLOCK } else { longest };
    let mut jobs = Vec::new();
    for n in (0..call.sequences.len()).step_by(sequences.max(1)) {
        for head in (0..call.kv_heads).step_by(heads.max(1)) {
            for first in (0..longest).step_by(queries.max(1)) {
                jobs.push(Job {
                    sweep: Sweep::Mask,
                    sequences: n..n + sequences,
                    kv_heads: head..head + heads,
                    queries: first..first + queries,
                    keys: ALL,
                });
            }
        }
    }
    jobs
}
