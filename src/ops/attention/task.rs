//! One task: some query rows of one or several key/value heads of a sequence.

use std::ops::Range;

use super::{Attention, Kept, Outputs, SEGMENT_WORK, Sequence};
use crate::error::Result;
use crate::kernels::attend::{
    Attend, Dropout, KEY_TILE, Keys, Row, ScoreKind, Scores, Scoring, padded, tile_len,
};
use crate::kernels::gemm::OutRows;
use crate::ops::aligned::with_scratch;
use crate::simd::{Float, Isa};
use crate::threads::checkpoint;

/// What a task computes: for each of its key/value heads, the rows `chunk` of the query rows that share the head, which
/// are counted through its query heads one after the other.
pub struct Task<'a, T> {
    pub call: &'a Attention<'a, T>,
    pub isa: Isa,
    pub sequence: &'a Sequence<'a, T>,
    pub kept: &'a Kept,
    pub kv_heads: Range<usize>,
    pub chunk: Range<usize>,
}

/// Scratch of a task, used by one head after the other.
struct Room<'a, T> {
    q: &'a mut [T],
    acc: &'a mut [T],
    row_max: &'a mut [T],
    row_sum: &'a mut [T],
    tile: &'a mut [T],
}

impl<T: Float> Task<'_, T> {
    /// Attends, and writes whatever is wanted.
    ///
    /// # Errors
    /// `Memory`, `Interrupted`.
    pub fn run(&self, outputs: &Outputs<'_, T>) -> Result<()> {
        let (e, ev, n) = (self.call.e, self.call.ev, self.chunk.len());
        let lengths = [n * e, n * padded(ev), n, n, tile_len(e, ev)].map(|len| len.next_multiple_of(16));
        let mut rows = self.first_rows();
        with_scratch(lengths.iter().sum(), |scratch: &mut [T]| {
            let (q, rest) = scratch.split_at_mut(lengths[0]);
            let (acc, rest) = rest.split_at_mut(lengths[1]);
            let (row_max, rest) = rest.split_at_mut(lengths[2]);
            let (row_sum, tile) = rest.split_at_mut(lengths[3]);
            let mut room = Room { q, acc, row_max: &mut row_max[..n], row_sum: &mut row_sum[..n], tile };
            for kv_head in self.kv_heads.clone() {
                self.one_head(kv_head, &rows, &mut room, outputs)?;
                // The next head's rows differ only in this.
                let group = self.group();
                for row in &mut rows {
                    row.head += group;
                    row.out += group * self.call.out.head;
                }
            }
            Ok(())
        })
    }

    /// Query heads that share a key/value head.
    fn group(&self) -> usize {
        self.call.heads / self.call.kv_heads
    }

    /// The query head and the query of row `r` of a key/value head.
    fn head_and_query(&self, kv_head: usize, r: usize) -> (usize, usize) {
        (kv_head * self.group() + r / self.sequence.q_len, r % self.sequence.q_len)
    }

    /// The rows of the first key/value head.
    fn first_rows(&self) -> Vec<Row> {
        let (sequence, kept) = (self.sequence, self.kept);
        let place = |i: usize| sequence.query_places.as_ref().map_or(i, |p| p[i] as usize);
        // Divided once: for short sequences a division a row is a fifteenth of the task.
        let mut next = self.head_and_query(self.kv_heads.start, self.chunk.start);
        let row = |_| {
            let (head, i) = next;
            next = if i + 1 < sequence.q_len { (head, i + 1) } else { (head + 1, 0) };
            let (first, end) = self.call.range(place(i), sequence.offset, kept.places.as_deref(), kept.count);
            let out = sequence.starts[3] + head * self.call.out.head + i * self.call.out.row;
            Row { head, index: i, rank: sequence.past + i, query: place(i), first, end, out }
        };
        self.chunk.clone().map(row).collect()
    }

    fn one_head(
        &self,
        kv_head: usize,
        rows: &[Row],
        room: &mut Room<'_, T>,
        outputs: &Outputs<'_, T>,
    ) -> Result<()> {
        let (call, sequence, kept) = (self.call, self.sequence, self.kept);
        let (e, ev, group) = (call.e, call.ev, self.group());
        let keys_at = |data, start: usize| rest(data, sequence.starts[start]);
        let keys = Keys {
            k: rest(keys_at(call.k.data, 1), kv_head * call.k.strides.head),
            k_stride: call.k.strides.row,
            v: rest(keys_at(call.v.data, 2), kv_head * call.v.strides.head),
            v_stride: call.v.strides.row,
            ev,
            rows: kept.rows.as_deref(),
            places: kept.places.as_deref(),
            count: kept.count,
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
        let query_at = |r: usize| {
            let (head, i) = self.head_and_query(kv_head, r);
            sequence.starts[0] + head * call.q.strides.head + i * call.q.strides.row
        };
        // Queries of one head are read where they are.
        let in_place = rows.first().map(|r| r.head) == rows.last().map(|r| r.head);
        let (q, ldq) = if in_place {
            (rest(call.q.data, query_at(self.chunk.start)), call.q.strides.row)
        } else {
            for (r, to) in self.chunk.clone().zip(room.q.chunks_exact_mut(e)) {
                to.copy_from_slice(&call.q.data[query_at(r)..][..e]);
            }
            (&*room.q, e)
        };
        // The kernel may ask for what the next head needs.
        let more = kv_head + 1 < self.kv_heads.end;
        let ahead = more.then_some([
            if in_place { group * call.q.strides.head } else { 0 },
            call.k.strides.head,
            call.v.strides.head,
        ]);
        for segment in segments(kept.count, rows.len() * (e + ev)) {
            checkpoint()?;
            let attend = Attend {
                q,
                ldq,
                e,
                keys,
                segment,
                rows,
                scoring,
                dropout,
                acc: &mut *room.acc,
                row_max: &mut *room.row_max,
                row_sum: &mut *room.row_sum,
                scratch: &mut *room.tile,
                asked: kv_head > self.kv_heads.start,
                ahead,
                out: outputs.out,
            };
            T::dispatch(self.isa, attend);
        }
        if let Some((lse, strides)) = &outputs.lse {
            for (row, (&max, &sum)) in rows.iter().zip(room.row_max.iter().zip(&*room.row_sum)) {
                let at = sequence.lse_start + row.head * strides.head + row.index * strides.row;
                // SAFETY: each row has its own place.
                let out = unsafe { lse.slice(at, 1) };
                out[0] = log_sum_exp(max, sum);
            }
        }
        if let Some((kind, scores, slots)) = &outputs.scores {
            let places = sequence.key_places.as_deref();
            let rows: Vec<Row> = rows
                .iter()
                .map(|row| {
                    let (first, end) = call.range(row.query, sequence.offset, places, sequence.k_len);
                    let strides = sequence.score_strides;
                    let slot = slots.map_or(Some(row.head), |slots| slots[row.head]);
                    let start = |slot| sequence.scores_start + slot * strides.head + row.index * strides.row;
                    Row { first, end, out: slot.map_or(Row::NOWHERE, start), ..*row }
                })
                .collect();
            let allowed = sequence.key_mask.as_deref();
            let keys = Keys { rows: None, places, allowed, count: sequence.k_len, ..keys };
            let state = (&*room.row_max, &*room.row_sum, &mut *room.tile);
            self.scores(*kind, (q, ldq), &keys, &rows, scoring, state, *scores)?;
        }
        Ok(())
    }

    /// Scores or weights of the rows over all keys of the sequence, blocked ones too.
    #[allow(clippy::too_many_arguments, reason = "one head's parts of the task")]
    fn scores(
        &self,
        kind: ScoreKind,
        (q, ldq): (&[T], usize),
        keys: &Keys<'_, T>,
        rows: &[Row],
        scoring: Scoring<'_, T>,
        (row_max, row_sum, tile): (&[T], &[T], &mut [T]),
        out: OutRows<'_, T>,
    ) -> Result<()> {
        let Attention { e, ev, .. } = *self.call;
        for segment in segments(keys.count, rows.len() * (e + ev)) {
            checkpoint()?;
            let scores = Scores {
                kind,
                q,
                ldq,
                e,
                keys: *keys,
                segment,
                rows,
                scoring,
                row_max,
                row_sum,
                scratch: &mut *tile,
                out,
            };
            T::dispatch(self.isa, scores);
        }
        Ok(())
    }
}

/// What begins `start` into `data`; nothing where a sequence without rows begins behind the end.
pub fn rest<T>(data: &[T], start: usize) -> &[T] {
    &data[start.min(data.len())..]
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
