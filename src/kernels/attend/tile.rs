//! One tile of keys: packed once, then attended by blocks of rows.

use super::keys::{Keys, row_bits};
use super::scoring::{Unit, is_plain, score_row};
use super::softmax::{PerRow, Running, drop_weights, exponentials, greatest};
use super::{Dropout, KEY_TILE, Row, Scoring, padded};
use crate::account::{at, turn};
use crate::kernels::gemm::{K_BLOCK, block, for_tile};
use crate::kernels::pack::pack_panel;
use crate::simd::{Float, Simd, VIRTUAL_LANES};

/// Rows of the largest block.
const MAX_ROWS: usize = 8;

/// How all blocks of a task turn scores into weights.
pub struct How<'a, T> {
    /// Scores.
    pub scoring: Scoring<'a, T>,
    /// The unit that they are computed in.
    pub unit: Unit<T>,
    /// Dropout of weights.
    pub dropout: Option<Dropout>,
    /// Whether each row may attend to each key.
    pub open: bool,
}

/// A block of rows: at most `ATTEND_MR`.
pub struct Block<'a, T> {
    /// Queries, at stride `ldq`.
    pub q: &'a [T],
    /// Distance between queries.
    pub ldq: usize,
    /// The rows.
    pub rows: &'a [Row],
    /// Running sums (rows, Ev padded), those of later blocks behind them.
    pub acc: &'a mut [T],
    /// Running maximum M of each row.
    pub row_max: &'a mut [T],
    /// Running sum of each row.
    pub row_sum: &'a mut [T],
}

/// A packed tile and the scores of the block of rows at work.
pub struct Tile<'a, T> {
    e: usize,
    first: usize,
    count: usize,
    /// Panels of `ATTEND_NV` vectors of keys, each `[E][width]`.
    k: &'a mut [T],
    gathered: &'a mut [T],
    /// [64][Ev padded]
    v: &'a mut [T],
    /// Whether the keys are read where they are, not from `k`: by a row alone.
    k_in_place: bool,
    /// Whether the values are read where they are, not from `v`.
    v_in_place: bool,
    /// Whether all values of the tile are finite, once somebody asked: then a weight of zero leaves no trace of its value.
    v_finite: Option<bool>,
    scores: &'a mut [T],
    bias: &'a mut [T],
}

impl<'a, T: Float> Tile<'a, T> {
    /// Cuts the scratch.
    pub fn new(scratch: &'a mut [T], e: usize, ev: usize) -> Self {
        let e_padded = e.div_ceil(16) * 16;
        let (k, rest) = scratch.split_at_mut(KEY_TILE * e_padded);
        let (v, rest) = rest.split_at_mut(KEY_TILE * padded(ev));
        let (scores, rest) = rest.split_at_mut(8 * KEY_TILE);
        let (bias, rest) = rest.split_at_mut(KEY_TILE);
        let gathered = &mut rest[7 * KEY_TILE..];
        Self {
            e,
            first: 0,
            count: 0,
            k,
            gathered,
            v,
            k_in_place: false,
            v_in_place: false,
            v_finite: None,
            scores,
            bias,
        }
    }

    /// Packs the keys and the values of a tile.
    #[inline(always)]
    pub fn load<S: Simd<T>>(&mut self, s: S, keys: &Keys<'_, T>, first: usize, count: usize) {
        at!(Packing);
        self.load_keys(s, keys, first, count);
        self.v_finite = None;
        // Whole vectors that follow one another need no copy: a single query would spend its time on it.
        self.v_in_place = keys.rows.is_none() && keys.ev.is_multiple_of(S::LANES);
        if !self.v_in_place {
            let ld = padded(keys.ev);
            for (c, to) in self.v.chunks_exact_mut(ld).take(count).enumerate() {
                copy_row(s, &keys.v[keys.row(first + c) * keys.v_stride..][..keys.ev], to);
            }
        }
    }

    /// Whether a row alone may take this tile as it lies: whole vectors, one chain of products.
    #[inline(always)]
    fn reads_in_place<S: Simd<T>>(&self, keys: &Keys<'_, T>, count: usize) -> bool {
        keys.rows.is_none()
            && count == KEY_TILE
            && self.e <= K_BLOCK
            && self.e.is_multiple_of(S::LANES)
            && keys.ev.is_multiple_of(S::LANES)
    }

    /// The same for a row alone, which waits for memory, not for arithmetic: keys are not packed but turned in registers
    /// when they are multiplied.
    #[inline(always)]
    pub fn load_for_one<S: Simd<T>>(&mut self, s: S, keys: &Keys<'_, T>, first: usize, count: usize) {
        self.k_in_place = self.reads_in_place::<S>(keys, count);
        if !self.k_in_place {
            return self.load(s, keys, first, count);
        }
        (self.first, self.count, self.v_finite, self.v_in_place) = (first, count, None, true);
    }

    /// Products of one query with the 64 keys of a tile that was not packed. They are turned in squares, an order that the
    /// hardware does not foresee, so the next keys are asked for meanwhile, row after row. The values, which are read row
    /// after row anyway, it foresees: to ask for them too only fills the line in which all requests stand.
    #[inline(always)]
    fn products_of_one<S: Simd<T>>(&mut self, s: S, q: &[T], keys: &Keys<'_, T>) {
        let (lanes, e, ldk) = (S::LANES, self.e, keys.k_stride);
        let line = 64 / size_of::<T>();
        for at in (0..KEY_TILE).step_by(CHAINS * lanes) {
            let here = self.first + at;
            let (mut ahead, mut column) = (here + CHAINS * lanes, 0);
            let mut sums = [s.splat(T::ZERO); CHAINS];
            for k in (0..e).step_by(lanes) {
                let q = &q[k..k + lanes];
                for (i, sums) in sums.iter_mut().enumerate() {
                    for _ in (0..lanes * lanes).step_by(line) {
                        if ahead < keys.count {
                            s.prefetch(keys.k, ahead * ldk + column);
                        }
                        column += line;
                        if column >= e {
                            (ahead, column) = (ahead + 1, 0);
                        }
                    }
                    *sums = s.dot_rows(&keys.k[(here + i * lanes) * ldk + k..], ldk, q, *sums);
                }
            }
            for (i, sums) in sums.into_iter().enumerate() {
                s.store(sums, &mut self.scores[at + i * lanes..]);
            }
        }
    }

    /// The values of the tile and the distance of their rows.
    #[inline(always)]
    fn values<'b>(&'b self, keys: &Keys<'b, T>) -> (&'b [T], usize) {
        if self.v_in_place {
            (&keys.v[self.first * keys.v_stride..], keys.v_stride)
        } else {
            (self.v, padded(keys.ev))
        }
    }

    /// Whether all values of the tile are finite.
    #[inline(always)]
    fn is_finite<S: Simd<T>>(&mut self, s: S, keys: &Keys<'_, T>) -> bool {
        if let Some(finite) = self.v_finite {
            return finite;
        }
        let (v, ld) = self.values(keys);
        let finite = (0..self.count).all(|c| row_is_finite(s, &v[c * ld..][..keys.ev]));
        self.v_finite = Some(finite);
        finite
    }

    /// Packs the keys of a tile.
    #[inline(always)]
    pub fn load_keys<S: Simd<T>>(&mut self, s: S, keys: &Keys<'_, T>, first: usize, count: usize) {
        (self.first, self.count) = (first, count);
        let e = self.e;
        let (rows, stride) = if keys.rows.is_some() {
            for (c, to) in self.gathered.chunks_exact_mut(e).take(count).enumerate() {
                to.copy_from_slice(&keys.k[keys.row(first + c) * keys.k_stride..][..e]);
            }
            (&*self.gathered, e)
        } else {
            (&keys.k[first * keys.k_stride..], keys.k_stride)
        };
        let width = S::ATTEND_NV * S::LANES;
        for (p, panel) in self.k.chunks_exact_mut(width * e).take(count.div_ceil(width)).enumerate() {
            let columns = width.min(count - p * width);
            pack_panel(s, &rows[p * width * stride..], stride, columns, e, panel, width);
        }
    }

    /// Scores, softmax and P·V of a block of rows.
    #[inline(always)]
    pub fn attend<S: Simd<T>>(&mut self, s: S, block: Block<'_, T>, keys: &Keys<'_, T>, how: &How<'_, T>) {
        let Block { q, ldq, rows, acc, row_max, row_sum } = block;
        let mut bits = [u64::MAX >> (KEY_TILE - self.count); MAX_ROWS];
        let (mut any, mut every) = (bits[0], bits[0]);
        if !how.open {
            (any, every) = (0, u64::MAX);
            for (bits, row) in bits.iter_mut().zip(rows) {
                *bits = row_bits(row, keys, &how.scoring.mask, self.first, self.count);
                any |= *bits;
                every &= *bits;
            }
            if any == 0 {
                return;
            }
        }
        at!(AttentionProduct);
        // Keys beyond the last allowed one add exact zeros: they are left out.
        let used = KEY_TILE - any.leading_zeros() as usize;
        if self.k_in_place {
            self.products_of_one(s, q, keys);
        } else {
            self.products(s, q, ldq, rows.len(), used);
        }
        turn!(Softmax);
        if !is_plain(&how.scoring, &how.unit) {
            for (i, row) in rows.iter().enumerate() {
                self.score_row(s, i, row, keys, (&how.scoring, &how.unit), used);
            }
        }
        // Two loops instead of one: each step of a row waits for the one before (maximum, exponentials), and rows that do
        // the same step side by side fill the waits.
        let factor = how.unit.factor;
        let mut tops: PerRow<T> = [T::NEG_INFINITY; VIRTUAL_LANES];
        for i in 0..rows.len() {
            tops[i] = greatest(s, self.row(i), bits[i], used);
        }
        let running = Running::update(s, &tops, factor, row_max);
        for i in 0..rows.len() {
            let sum = exponentials(s, self.row(i), factor, bits[i], used, running.max[i]);
            row_sum[i] = row_sum[i] * running.factor[i] + sum;
            row_max[i] = running.max[i];
        }
        if let Some(dropout) = &how.dropout {
            for (i, row) in rows.iter().enumerate() {
                let first = self.first;
                drop_weights(dropout, row, keys, first, &mut self.row(i)[..used]);
            }
        }
        turn!(AttentionProduct);
        let whole = every == u64::MAX >> (KEY_TILE - used);
        if whole || self.is_finite(s, keys) {
            self.weigh(s, keys, rows.len(), used, &running.factor, acc);
        } else {
            self.weigh_selected(s, keys, &bits[..rows.len()], used, &running.factor, acc);
        }
    }

    /// Products q · k of a block of rows with the first `used` keys, unscaled.
    #[inline(always)]
    pub fn products<S: Simd<T>>(&mut self, s: S, q: &[T], ldq: usize, rows: usize, used: usize) {
        let (e, width) = (self.e, S::ATTEND_NV * S::LANES);
        for (p, panel) in self.k.chunks_exact(width * e).take(used.div_ceil(width)).enumerate() {
            let out = &mut self.scores[p * width..];
            // Few keys, or the last few of many, take half a panel.
            if used - p * width <= S::LANES {
                for_tile!(S, T, rows, S::ATTEND_MR, 1, product_tile(s, q, ldq, e, (panel, width), out));
            } else {
                for_tile!(
                    S,
                    T,
                    rows,
                    S::ATTEND_MR,
                    S::ATTEND_NV,
                    product_tile(s, q, ldq, e, (panel, width), out)
                );
            }
        }
    }

    /// Turns the products of a row into scores where they are more than that: cap and bias.
    #[inline(always)]
    pub fn score_row<S: Simd<T>>(
        &mut self,
        s: S,
        i: usize,
        row: &Row,
        keys: &Keys<'_, T>,
        (scoring, unit): (&Scoring<'_, T>, &Unit<T>),
        used: usize,
    ) {
        let x = &mut self.scores[i * KEY_TILE..(i + 1) * KEY_TILE];
        let place = (self.first, self.count.min(used), used);
        score_row(s, unit, x, self.bias, row, keys, scoring, place);
    }

    /// The scores of row `i` of the block.
    #[inline(always)]
    pub fn row(&mut self, i: usize) -> &mut [T] {
        &mut self.scores[i * KEY_TILE..(i + 1) * KEY_TILE]
    }

    /// acc = acc * factor + P·V.
    #[inline(always)]
    fn weigh<S: Simd<T>>(
        &self,
        s: S,
        keys: &Keys<'_, T>,
        rows: usize,
        used: usize,
        factor: &PerRow<T>,
        acc: &mut [T],
    ) {
        let (v, ldv) = self.values(keys);
        let lda = padded(keys.ev);
        let vectors = if self.v_in_place { keys.ev } else { lda } / S::LANES;
        let mut at = 0;
        // A row alone has registers for many columns at a time, and so reads each row of values in one run.
        while rows == 1 && vectors - at >= ALONE_NV {
            let columns = (&v[at * S::LANES..], ldv, &mut acc[at * S::LANES..], lda);
            weigh_tile::<T, S, 1, ALONE_NV>(s, self.scores, columns, used, factor);
            at += ALONE_NV;
        }
        while at < vectors {
            let nv = S::ATTEND_NV.min(vectors - at);
            let columns = (&v[at * S::LANES..], ldv, &mut acc[at * S::LANES..], lda);
            for_tile!(S, T, rows, S::ATTEND_MR, nv, weigh_tile(s, self.scores, columns, used, factor));
            at += nv;
        }
    }

    /// The same where values that are blocked for some rows hold NaN or inf: they are passed over.
    #[inline(always)]
    fn weigh_selected<S: Simd<T>>(
        &self,
        s: S,
        keys: &Keys<'_, T>,
        bits: &[u64],
        used: usize,
        factor: &PerRow<T>,
        acc: &mut [T],
    ) {
        let (v, ldv) = self.values(keys);
        let lda = padded(keys.ev);
        let width = if self.v_in_place { keys.ev } else { lda };
        for (i, &bits) in bits.iter().enumerate() {
            let p = &self.scores[i * KEY_TILE..(i + 1) * KEY_TILE];
            for at in (0..width).step_by(S::LANES) {
                let out = &mut acc[i * lda + at..];
                let mut sum = s.splat(T::ZERO);
                for c in (0..used).filter(|c| bits >> c & 1 != 0) {
                    sum = s.fma(s.splat(p[c]), s.load(&v[c * ldv + at..]), sum);
                }
                s.store(s.add(s.mul(s.load(out), s.splat(factor[i])), sum), out);
            }
        }
    }
}

/// Vectors of keys that a row alone multiplies side by side; the chain of one waits for its multiply-adds.
const CHAINS: usize = 2;

/// Vectors of values that a row alone takes at a time: eight chains fill the latency of two multiply-adders.
const ALONE_NV: usize = 8;

/// Copies a row of values, zeros after it.
#[inline(always)]
pub fn copy_row<T: Float, S: Simd<T>>(s: S, from: &[T], to: &mut [T]) {
    for at in (0..to.len()).step_by(S::LANES) {
        let v = if at + S::LANES <= from.len() {
            s.load(&from[at..])
        } else {
            s.load_partial(&from[at.min(from.len())..])
        };
        s.store(v, &mut to[at..]);
    }
}

/// Whether all numbers of a row are finite.
#[inline(always)]
pub fn row_is_finite<T: Float, S: Simd<T>>(s: S, x: &[T]) -> bool {
    let limit = s.splat(T::MAX);
    let all = u64::MAX >> (64 - S::LANES);
    (0..x.len()).step_by(S::LANES).all(|at| {
        let v = if at + S::LANES <= x.len() { s.load(&x[at..]) } else { s.load_partial(&x[at..]) };
        s.mask_to_bits(s.le(s.abs(v), limit)) == all
    })
}

#[inline(always)]
pub fn product_tile<T: Float, S: Simd<T>, const MR: usize, const NV: usize>(
    s: S,
    q: &[T],
    ldq: usize,
    e: usize,
    (panel, width): (&[T], usize),
    out: &mut [T],
) {
    let mut start = 0;
    loop {
        let kc = K_BLOCK.min(e - start);
        let sums = block::<T, S, MR, NV>(s, &q[start..], ldq, &panel[start * width..], width, kc);
        for i in 0..MR {
            for j in 0..NV {
                let out = &mut out[i * KEY_TILE + j * S::LANES..];
                let v = if start > 0 { s.add(s.load(out), sums[i][j]) } else { sums[i][j] };
                s.store(v, out);
            }
        }
        start += kc;
        if start == e {
            break;
        }
    }
}

#[inline(always)]
fn weigh_tile<T: Float, S: Simd<T>, const MR: usize, const NV: usize>(
    s: S,
    p: &[T],
    (v, ldv, acc, lda): (&[T], usize, &mut [T], usize),
    used: usize,
    factor: &PerRow<T>,
) {
    let sums = block::<T, S, MR, NV>(s, p, KEY_TILE, v, ldv, used);
    for i in 0..MR {
        let factor = s.splat(factor[i]);
        for j in 0..NV {
            let out = &mut acc[i * lda + j * S::LANES..];
            s.store(s.add(s.mul(s.load(out), factor), sums[i][j]), out);
        }
    }
}
