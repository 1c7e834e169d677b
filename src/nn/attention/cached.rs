//! Attention step by step: keys and values of earlier tokens are kept, those of new ones are added to them.
//!
//! A row of the result has the bits that the whole sequence at once would give it: projections are rows, and a query's
//! scores, tiles and sums do not depend on which other queries are there. Tiles of keys begin at the first key, so what a
//! window no longer reaches may leave the cache in whole tiles only.

use super::{Call, MultiHeadAttention};
use crate::error::Result;
use crate::kernels::attend::{Mask, ScoreKind};
use crate::nn::tokens::{Layout, buffer};
use crate::ops::attention::{Operand, Sequence, Strides, Wanted};
use crate::ops::buffer::zeros;
use crate::ops::linear::After;
use crate::ops::reused::Reused;
use crate::ops::rotary::rotate_rows_at;
use crate::simd::Float;

/// What one layer keeps of earlier tokens: keys and values, (B, Hk, capacity, E) each.
pub struct Past<'a, T> {
    /// Keys; the first rows of each head are those of the tokens so far.
    pub keys: &'a mut [T],
    /// Values.
    pub values: &'a mut [T],
    /// Rows of a head.
    pub capacity: usize,
}

/// Where the tokens of a step stand: what is the same for all layers.
#[derive(Clone, Debug)]
pub struct Step {
    /// New tokens of each sequence.
    pub layout: Layout,
    /// Rows of each sequence that the cache holds already.
    pub held: Vec<usize>,
    /// Tokens of each sequence that have left the cache.
    pub gone: usize,
    /// Tokens seen to the left.
    pub window: Option<usize>,
}

impl Step {
    /// The place of each new token in its sequence.
    pub fn places(&self) -> Vec<usize> {
        let of_sequence = |(&n, &held): (&usize, &usize)| self.gone + held..self.gone + held + n;
        self.layout.lengths.iter().zip(&self.held).flat_map(of_sequence).collect()
    }
}

/// Keys and values of another sequence, computed once: (M, Hk, S, E) each.
#[derive(Clone, Copy)]
pub struct Memory<'a, T> {
    /// Keys.
    pub keys: &'a [T],
    /// Values.
    pub values: &'a [T],
    /// S
    pub len: usize,
    /// The memory, of the M, that each sequence attends to.
    pub rows: &'a [usize],
    /// Which keys of each memory may be attended, (M, S).
    pub key_mask: Option<&'a [bool]>,
}

impl<T: Float> MultiHeadAttention<T> {
    /// Self-attention of new tokens `x` (T, D) to themselves and those before them, which `past` holds; their keys and values
    /// are added to it. Writes (T, D) into `out`.
    ///
    /// # Errors
    /// `Memory`, `Interrupted`, `Internal`.
    pub fn step(
        &self,
        x: &[T],
        step: &Step,
        past: &mut Past<'_, T>,
        call: &Call<'_, T>,
        out: &mut [T],
        after: After<'_, T>,
    ) -> Result<()> {
        let rows = step.layout.total();
        let (heads, groups, e) = (self.config.num_heads, self.config.num_kv_heads, self.config.head_dim);
        let (mut q, mut result) = (buffer(rows, heads * e)?, buffer(rows, heads * e)?);
        let (mut k, mut v) = (buffer(rows, groups * e)?, buffer(rows, groups * e)?);
        self.project_rows(x, rows, [&mut q, &mut k, &mut v])?;
        if let Some(theta) = call.rotary {
            let places = step.places();
            rotate_rows_at(&mut q, heads, e, &places, theta)?;
            rotate_rows_at(&mut k, groups, e, &places, theta)?;
        }
        let of_sequence = groups * past.capacity * e;
        let mut at = 0;
        for (b, (&n, &held)) in step.layout.lengths.iter().zip(&step.held).enumerate() {
            for (new, kept) in [(&k, &mut *past.keys), (&v, &mut *past.values)] {
                into_heads(
                    &new[at..],
                    &mut kept[b * of_sequence..],
                    (groups, n, e),
                    |i| held + i,
                    past.capacity,
                );
            }
            at += n * groups * e;
        }
        let strides = Strides { head: past.capacity * e, row: e };
        let of_batch = |(b, q_start): (usize, usize)| Sequence {
            starts: [q_start, b * of_sequence, b * of_sequence, q_start],
            k_len: step.held[b] + step.layout.lengths[b],
            past: step.held[b],
            offset: step.held[b] as i64,
            ..sequence(step.layout.lengths[b])
        };
        let call = Call { causal: true, window: (step.window, None), ..*call };
        let operands = [
            Operand { data: &q, strides: self.rows_of_heads() },
            Operand { data: past.keys, strides },
            Operand { data: past.values, strides },
        ];
        let sequences = self.starts(&step.layout).enumerate().map(of_batch).collect();
        self.over(operands, &call, sequences).run(&mut result, Wanted::default())?;
        self.out.forward(&result, rows, out, after)
    }

    /// Attention of tokens `x` (T, D) to memories whose keys and values are there. Writes (T, D) into `out`; returns the
    /// weights, (H, L, S) of each sequence back to back, where `call` wants them.
    ///
    /// # Errors
    /// `Memory`, `Interrupted`, `Internal`.
    pub fn step_over(
        &self,
        x: &[T],
        layout: &Layout,
        memory: &Memory<'_, T>,
        call: &Call<'_, T>,
        out: &mut [T],
        after: After<'_, T>,
    ) -> Result<Vec<T>> {
        let (rows, s) = (layout.total(), memory.len);
        let (heads, groups, e) = (self.config.num_heads, self.config.num_kv_heads, self.config.head_dim);
        let (mut q, mut result): (Reused<T>, Reused<T>) =
            (buffer(rows, heads * e)?, buffer(rows, heads * e)?);
        self.q.forward(x, rows, &mut q, After { next: self.out.panels(), ..After::default() })?;
        let wanted = call.weights.count(heads);
        let mut sequences = Vec::with_capacity(layout.lengths.len());
        let mut scores = 0;
        for (b, q_start) in self.starts(layout).enumerate() {
            let (n, m) = (layout.lengths[b], memory.rows[b]);
            sequences.push(Sequence {
                starts: [q_start, m * groups * s * e, m * groups * s * e, q_start],
                k_len: s,
                key_mask: memory.key_mask.map(|mask| mask[m * s..(m + 1) * s].to_vec()),
                scores_start: scores,
                score_strides: Strides { head: n * s, row: s },
                ..sequence(n)
            });
            scores += wanted * n * s;
        }
        let mut weights = zeros(scores)?;
        let strides = Strides { head: s * e, row: e };
        let operands = [
            Operand { data: &q[..], strides: self.rows_of_heads() },
            Operand { data: memory.keys, strides },
            Operand { data: memory.values, strides },
        ];
        let scores = (wanted > 0).then_some((ScoreKind::Weights, &mut weights[..], None));
        self.over(operands, call, sequences).run(&mut result, Wanted { lse: None, scores })?;
        self.out.forward(&result, rows, out, after)?;
        Ok(weights)
    }

    /// The keys and values (M, Hk, S, E) of memories whose tokens are the rows `x`; 0 where there is no token.
    ///
    /// # Errors
    /// `Memory`, `Interrupted`, `Internal`.
    pub fn memorize(&self, x: &[T], layout: &Layout, s: usize) -> Result<[Vec<T>; 2]> {
        let (rows, groups, e) = (layout.total(), self.config.num_kv_heads, self.config.head_dim);
        let mut projected = buffer(rows, groups * e)?;
        let mut both = [Vec::new(), Vec::new()];
        for (projection, kept) in [&self.k, &self.v].into_iter().zip(&mut both) {
            projection.forward(x, rows, &mut projected, After::default())?;
            *kept = zeros(layout.lengths.len() * groups * s * e)?;
            let mut at = 0;
            for (b, &n) in layout.lengths.iter().enumerate() {
                let places = layout.places_of(b);
                let place = |i: usize| places.map_or(i, |p| p[i] as usize);
                let of_sequence = &mut kept[b * groups * s * e..];
                into_heads(&projected[at..], of_sequence, (groups, n, e), place, s);
                at += n * groups * e;
            }
        }
        Ok(both)
    }

    /// Distances of projected rows (T, H E).
    fn rows_of_heads(&self) -> Strides {
        Strides { head: self.config.head_dim, row: self.config.query_width() }
    }

    /// Where the projected queries of each sequence begin.
    fn starts(&self, layout: &Layout) -> impl Iterator<Item = usize> {
        let width = self.config.query_width();
        layout.lengths.iter().scan(0, move |at, n| Some(std::mem::replace(at, *at + n * width)))
    }
}

/// `n` queries and nothing said of keys.
fn sequence<T: Float>(n: usize) -> Sequence<'static, T> {
    Sequence {
        starts: [0; 4],
        q_len: n,
        k_len: 0,
        past: 0,
        offset: 0,
        key_mask: None,
        query_places: None,
        key_places: None,
        mask: Mask::None,
        lse_start: 0,
        scores_start: 0,
        score_strides: Strides::default(),
        dropout_base: 0,
        dropout_shape: (0, 0),
    }
}

/// Rows (n, heads e) into heads (heads, rows a head, e), row i at `place(i)`.
fn into_heads<T: Copy>(
    rows: &[T],
    heads: &mut [T],
    (count, n, e): (usize, usize, usize),
    place: impl Fn(usize) -> usize,
    rows_a_head: usize,
) {
    for (i, row) in rows.chunks_exact(count * e).take(n).enumerate() {
        for (h, part) in row.chunks_exact(e).enumerate() {
            heads[(h * rows_a_head + place(i)) * e..][..e].copy_from_slice(part);
        }
    }
}
