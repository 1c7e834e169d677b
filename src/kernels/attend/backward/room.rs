//! The scratch of a tile of keys and of the block of queries at work on it.
//!
//! Rows are copied with zeros up to whole vectors: whatever the strides and widths of the operands, every product then reads
//! whole vectors that follow one another. A copy costs a hundredth of what is computed from it.

use super::super::KEY_TILE;
use super::super::keys::Keys;
use super::super::tile::{copy_row, product_tile, row_is_finite};
use super::products::whole_rows;
use super::{QUERY_BLOCK, pad};
use crate::kernels::pack::pack_panel;
use crate::simd::{Float, Simd};

/// A tile, a block, and the sums of the tile.
pub struct Room<'a, T> {
    e: usize,
    ev: usize,
    /// Width of rows of q, k and dk.
    pub ldq: usize,
    /// Width of rows of `d_out` and dv.
    pub ldv: usize,
    /// Panels of `ATTEND_NV` vectors of keys, each `[E][width]`.
    k_panels: &'a mut [T],
    /// The same of values.
    v_panels: &'a mut [T],
    /// `[64][E]`
    pub k: &'a mut [T],
    /// `[64][E]`
    pub q: &'a mut [T],
    /// `[64][Ev]`
    pub d_out: &'a mut [T],
    /// Scores, then weights (with dropout): `[64][64]`
    pub p: &'a mut [T],
    /// Gradients of weights, then of products: `[64][64]`
    pub ds: &'a mut [T],
    /// `[64][E]`
    pub dk: &'a mut [T],
    /// `[64][Ev]`
    pub dv: &'a mut [T],
    /// A row of numbers that are added to scores.
    pub bias: &'a mut [T],
    /// The derivative of the cap at a row of scores.
    pub slope: &'a mut [T],
    /// The factors of dropout of a row.
    pub kept: &'a mut [T],
}

/// Rows of a block and of the sums, with those that register tiles may reach beyond them.
const ROWS: usize = QUERY_BLOCK + 8;

/// Numbers that the scratch of a tile holds.
pub fn backward_len(e: usize, ev: usize) -> usize {
    let (e, ev) = (pad(e), pad(ev));
    KEY_TILE * (2 * e + ev) + ROWS * (e + ev + 2 * KEY_TILE) + KEY_TILE * (e + ev) + 3 * KEY_TILE
}

impl<'a, T: Float> Room<'a, T> {
    /// Cuts the scratch.
    #[inline(always)]
    pub fn new(scratch: &'a mut [T], e: usize, ev: usize) -> Self {
        let (ldq, ldv) = (pad(e), pad(ev));
        let mut rest = scratch;
        let mut cut = |len: usize| {
            let (part, left) = std::mem::take(&mut rest).split_at_mut(len);
            rest = left;
            part
        };
        Self {
            e,
            ev,
            ldq,
            ldv,
            k_panels: cut(KEY_TILE * ldq),
            v_panels: cut(KEY_TILE * ldv),
            k: cut(KEY_TILE * ldq),
            q: cut(ROWS * ldq),
            d_out: cut(ROWS * ldv),
            p: cut(ROWS * KEY_TILE),
            ds: cut(ROWS * KEY_TILE),
            dk: cut(KEY_TILE * ldq),
            dv: cut(KEY_TILE * ldv),
            bias: cut(KEY_TILE),
            slope: cut(KEY_TILE),
            kept: cut(KEY_TILE),
        }
    }

    /// Copies and packs the keys and the values of a tile.
    #[inline(always)]
    pub fn load_keys<S: Simd<T>>(&mut self, s: S, keys: &Keys<'_, T>, first: usize, count: usize) {
        for (c, to) in self.k.chunks_exact_mut(self.ldq).take(count).enumerate() {
            copy_row(s, &keys.k[keys.row(first + c) * keys.k_stride..][..self.e], to);
        }
        pack(s, self.k, self.ldq, (count, self.e), self.k_panels);
        // The sums for dv begin only after this.
        for (c, to) in self.dv.chunks_exact_mut(self.ldv).take(count).enumerate() {
            copy_row(s, &keys.v[keys.row(first + c) * keys.v_stride..][..self.ev], to);
        }
        pack(s, self.dv, self.ldv, (count, self.ev), self.v_panels);
    }

    /// Copies the queries of a block.
    #[inline(always)]
    pub fn load_queries<S: Simd<T>>(&mut self, s: S, q: &[T], ld: usize, n: usize) {
        for (i, to) in self.q.chunks_exact_mut(self.ldq).take(n).enumerate() {
            copy_row(s, &q[i * ld..][..self.e], to);
        }
    }

    /// Copies the gradients of the output of a block.
    #[inline(always)]
    pub fn load_d_out<S: Simd<T>>(&mut self, s: S, d_out: &[T], ld: usize, n: usize) {
        for (i, to) in self.d_out.chunks_exact_mut(self.ldv).take(n).enumerate() {
            copy_row(s, &d_out[i * ld..][..self.ev], to);
        }
    }

    /// q · k into `p` and `d_out` · v into `ds`, for `n` queries and the first `used` keys.
    #[inline(always)]
    pub fn products<S: Simd<T>>(&mut self, s: S, n: usize, used: usize) {
        let q = ((&*self.q, self.ldq), (&*self.k_panels, self.e), &mut *self.p);
        let d_out = ((&*self.d_out, self.ldv), (&*self.v_panels, self.ev), &mut *self.ds);
        // In a loop, so that the tile is compiled once.
        for (x, panels, out) in [q, d_out] {
            multiply(s, (x.0, x.1, n), panels, used, out);
        }
    }
}

/// Packs the first `width` numbers of `count` rows as panels `[width][columns]`.
#[inline(always)]
fn pack<T: Float, S: Simd<T>>(s: S, rows: &[T], ld: usize, (count, width): (usize, usize), panels: &mut [T]) {
    let columns = S::ATTEND_NV * S::LANES;
    for (p, panel) in panels.chunks_exact_mut(columns * width).take(count.div_ceil(columns)).enumerate() {
        let n = columns.min(count - p * columns);
        pack_panel(s, &rows[p * columns * ld..], ld, n, width, panel, columns);
    }
}

/// `out[i][j] = x[i] · y[j]` for `n` rows of x and the first `used` of those packed.
#[inline(always)]
fn multiply<T: Float, S: Simd<T>>(
    s: S,
    (x, ld, n): (&[T], usize, usize),
    (panels, width): (&[T], usize),
    used: usize,
    out: &mut [T],
) {
    let columns = S::ATTEND_NV * S::LANES;
    for (p, panel) in panels.chunks_exact(columns * width).take(used.div_ceil(columns)).enumerate() {
        // Few keys, or the last few of many, take half a panel.
        let one = used - p * columns <= S::LANES;
        for row in (0..n).step_by(S::ATTEND_MR) {
            let (x, out) = (&x[row * ld..], &mut out[row * KEY_TILE + p * columns..]);
            whole_rows!(one, product_tile(s, x, ld, width, (panel, columns), out));
        }
    }
}

/// Whether all numbers of whole rows are finite.
#[inline(always)]
pub fn rows_are_finite<T: Float, S: Simd<T>>(s: S, rows: &[T]) -> bool {
    row_is_finite(s, rows)
}
