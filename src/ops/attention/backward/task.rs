//! One task of the gradient: sweeps over tiles of keys, and for each over the heads of the group and their queries.

use std::ops::Range;

use super::super::task::rest;
use super::super::{Attention, Kept, SEGMENT_WORK, Strides};
use super::Saved;
use super::plan::{Job, Sweep};
use crate::error::Result;
use crate::kernels::attend::{
    Backward, Dropout, KEY_TILE, Keys, Place, Prepare, QUERY_BLOCK, Row, Scoring, WantedGradients,
    backward_len,
};
use crate::kernels::gemm::OutRows;
use crate::ops::aligned::with_scratch;
use crate::simd::{Float, Isa};
use crate::threads::checkpoint;

/// What all tasks of a call share.
pub struct Shared<'a, T> {
    pub call: &'a Attention<'a, T>,
    pub isa: Isa,
    pub kept: &'a [Kept],
    pub saved: Saved<'a, T>,
    pub d_out: &'a [T],
    /// dq, dk, dv.
    pub operands: [(OutRows<'a, T>, Strides); 3],
    /// The gradient of the mask: its numbers, strides, and where sequences begin.
    pub mask: Option<(OutRows<'a, T>, [usize; 3], &'a [usize])>,
    pub starts: Option<&'a [[usize; 3]]>,
}

/// A key/value head of a sequence, and the part of it that a task has.
struct Head<'a> {
    sweep: Sweep,
    n: usize,
    /// Which key/value head.
    of: usize,
    queries: Range<usize>,
    keys: Range<usize>,
    kept: &'a Kept,
}

impl<T: Float> Shared<'_, T> {
    /// Runs a task.
    ///
    /// # Errors
    /// `Memory`, `Interrupted`.
    pub fn run(&self, job: &Job) -> Result<()> {
        for n in job.sequences.clone() {
            let (sequence, kept) = (&self.call.sequences[n], &self.kept[n]);
            let queries = job.queries.start.min(sequence.q_len)..job.queries.end.min(sequence.q_len);
            // Without queries, or values of any width, there is nothing to sum.
            let count = if queries.is_empty() || self.call.ev == 0 { 0 } else { kept.count };
            let keys = job.keys.start.min(count)..job.keys.end.min(count);
            for kv_head in job.kv_heads.clone() {
                let (queries, keys) = (queries.clone(), keys.clone());
                let head = Head { sweep: job.sweep, n, of: kv_head, queries, keys, kept };
                if job.keys.start == 0 {
                    self.clear_keys(&head, count);
                }
                self.clear_queries(&head);
                if !head.keys.is_empty() {
                    self.sweep(&head)?;
                }
            }
        }
        Ok(())
    }

    /// Where an operand's gradient begins in a sequence, for a head.
    fn place(&self, operand: usize, n: usize, head: usize) -> Place<'_, T> {
        let (out, strides) = self.operands[operand];
        let start = self.starts.map_or(self.call.sequences[n].starts[operand], |starts| starts[n][operand]);
        Place { out, start: start + head * strides.head, stride: strides.row }
    }

    /// Query heads that share the key/value head.
    fn heads(&self, head: &Head<'_>) -> Range<usize> {
        let group = self.call.heads / self.call.kv_heads;
        head.of * group..(head.of + 1) * group
    }

    /// Zeros for the keys that no sum will be written for.
    fn clear_keys(&self, head: &Head<'_>, count: usize) {
        if matches!(head.sweep, Sweep::Queries | Sweep::Mask) {
            return;
        }
        let sequence = &self.call.sequences[head.n];
        let removed = |j: usize| count == 0 || sequence.key_mask.as_ref().is_some_and(|m| !m[j]);
        for (operand, width) in [(1, self.call.e), (2, self.call.ev)] {
            let place = self.place(operand, head.n, head.of);
            for j in (0..sequence.k_len).filter(|&j| removed(j)) {
                // SAFETY: each row of keys has its own place, and one task has all those that are removed.
                unsafe { place.out.slice(place.start + j * place.stride, width) }.fill(T::ZERO);
            }
        }
    }

    /// Zeros for the sums of queries to start with.
    fn clear_queries(&self, head: &Head<'_>) {
        if matches!(head.sweep, Sweep::Keys | Sweep::Mask) {
            return;
        }
        for h in self.heads(head) {
            let place = self.place(0, head.n, h);
            for i in head.queries.clone() {
                // SAFETY: each query has its own place and one task.
                unsafe { place.out.slice(place.start + i * place.stride, self.call.e) }.fill(T::ZERO);
            }
        }
    }

    /// The rows of all heads of the group, one head after the other.
    fn rows(&self, head: &Head<'_>) -> Vec<Row> {
        let (sequence, kept) = (&self.call.sequences[head.n], head.kept);
        let places = kept.places.as_deref();
        let mut rows = Vec::with_capacity(self.heads(head).len() * head.queries.len());
        for h in self.heads(head) {
            for i in head.queries.clone() {
                let query = sequence.query_places.as_ref().map_or(i, |p| p[i] as usize);
                let (first, end) = self.call.range(query, sequence.offset, places, kept.count);
                rows.push(Row {
                    head: h,
                    index: i,
                    rank: sequence.past + i,
                    query,
                    first,
                    end,
                    out: Row::NOWHERE,
                });
            }
        }
        rows
    }

    fn sweep(&self, head: &Head<'_>) -> Result<()> {
        let rows = self.rows(head);
        let n = rows.len().next_multiple_of(16);
        with_scratch(3 * n + backward_len(self.call.e, self.call.ev), |scratch: &mut [T]| {
            let (max, left) = scratch.split_at_mut(n);
            let (inverse, left) = left.split_at_mut(n);
            let (delta, tile) = left.split_at_mut(n);
            let mut saved = [&mut max[..rows.len()], &mut inverse[..rows.len()], &mut delta[..rows.len()]];
            self.prepare(head, &mut saved);
            self.tiles(head, &rows, saved.map(|x| &*x), tile)
        })
    }

    /// Where row `i` of the output begins.
    fn out_start(&self, n: usize, h: usize, i: usize) -> usize {
        self.call.sequences[n].starts[3] + h * self.call.out.head + i * self.call.out.row
    }

    fn prepare(&self, head: &Head<'_>, saved: &mut [&mut [T]; 3]) {
        let (lse, strides) = self.saved.lse;
        let (sequence, l) = (&self.call.sequences[head.n], head.queries.len());
        for (part, h) in self.heads(head).enumerate() {
            let [max, inverse, delta] = saved.each_mut().map(|x| &mut x[part * l..(part + 1) * l]);
            for (max, i) in max.iter_mut().zip(head.queries.clone()) {
                *max = lse[sequence.lse_start + h * strides.head + i * strides.row];
            }
            let start = self.out_start(head.n, h, head.queries.start);
            let prepare = Prepare {
                max,
                inverse,
                delta,
                out: &self.saved.out[start..],
                d_out: &self.d_out[start..],
                ld: self.call.out.row,
                ev: self.call.ev,
            };
            T::dispatch(self.isa, prepare);
        }
    }

    fn tiles(&self, head: &Head<'_>, rows: &[Row], saved: [&[T]; 3], tile: &mut [T]) -> Result<()> {
        let Self { call, .. } = self;
        let sequence = &call.sequences[head.n];
        let keys = Keys {
            k: rest(call.k.data, sequence.starts[1] + head.of * call.k.strides.head),
            k_stride: call.k.strides.row,
            v: rest(call.v.data, sequence.starts[2] + head.of * call.v.strides.head),
            v_stride: call.v.strides.row,
            ev: call.ev,
            rows: head.kept.rows.as_deref(),
            places: head.kept.places.as_deref(),
            count: head.kept.count,
            allowed: None,
        };
        let scoring =
            Scoring { scale: call.scale, softcap: call.softcap, alibi: call.alibi, mask: sequence.mask };
        let dropout = call.dropout.map(|(p, key)| Dropout {
            p,
            key,
            base: sequence.dropout_base,
            shape: sequence.dropout_shape,
        });
        let (heads, l) = (self.heads(head), head.queries.len());
        let work = 3 * KEY_TILE * (call.e + call.ev);
        let step = (SEGMENT_WORK / work).next_multiple_of(QUERY_BLOCK).max(QUERY_BLOCK);
        for first in head.keys.clone().step_by(KEY_TILE) {
            for (part, h) in heads.clone().enumerate() {
                for at in (0..l).step_by(step) {
                    checkpoint()?;
                    let some = at..l.min(at + step);
                    let i = head.queries.start + some.start;
                    let q = sequence.starts[0] + h * call.q.strides.head + i * call.q.strides.row;
                    let of_head = part * l + some.start..part * l + some.end;
                    let backward = Backward {
                        q: &call.q.data[q..],
                        ldq: call.q.strides.row,
                        d_out: &self.d_out[self.out_start(head.n, h, i)..],
                        ldo: call.out.row,
                        e: call.e,
                        keys,
                        first,
                        rows: &rows[of_head.clone()],
                        saved: saved.map(|x| &x[of_head.clone()]),
                        scoring,
                        dropout,
                        scratch: &mut *tile,
                        begin: part == 0 && at == 0,
                        end: part + 1 == heads.len() && some.end == l,
                        wanted: self.wanted(head, h, i),
                    };
                    T::dispatch(self.isa, backward);
                }
            }
        }
        Ok(())
    }

    /// What the kernel has to compute for query head `h` from query `i` on.
    fn wanted(&self, head: &Head<'_>, h: usize, i: usize) -> WantedGradients<'_, T> {
        let dq = || {
            let place = self.place(0, head.n, h);
            Place { start: place.start + i * place.stride, ..place }
        };
        let dkv = || [1, 2].map(|operand| self.place(operand, head.n, head.of));
        match (head.sweep, self.mask) {
            (Sweep::Mask, Some((out, strides, starts))) => {
                WantedGradients::Mask(out, starts[head.n], strides)
            }
            (Sweep::Queries, _) => WantedGradients::Operands { dq: Some(dq()), dkv: None },
            (Sweep::Keys, _) => WantedGradients::Operands { dq: None, dkv: Some(dkv()) },
            _ => WantedGradients::Operands { dq: Some(dq()), dkv: Some(dkv()) },
        }
    }
}
