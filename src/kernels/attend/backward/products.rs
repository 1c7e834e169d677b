//! The products in which the pairs of a block are summed: over its keys for dq, over its queries for dk and dv.
//!
//! Each sum is a chain of fused multiply-adds that starts at zero, in ascending order, and is added to what is there. The
//! sums over queries take the pairs turned: a register tile wants adjacent numbers of one row at each step, so that nothing
//! has to be transposed.

use super::super::KEY_TILE;
use crate::kernels::gemm::{OutRows, block, for_tile};
use crate::kernels::rows::{load_up_to, store_up_to};
use crate::simd::{Float, Simd};

/// Rows of `width` numbers to which sums are added; row i starts at `start + i * stride`.
pub struct Target<'a, T> {
    /// The numbers; those of a target are used by one task at a time.
    pub out: OutRows<'a, T>,
    /// The first row.
    pub start: usize,
    /// Distance between rows.
    pub stride: usize,
    /// Numbers of a row.
    pub width: usize,
}

impl<T: Float> Target<'_, T> {
    /// `n` numbers of row `row` from `column` on.
    #[inline(always)]
    #[allow(clippy::mut_from_ref, reason = "parts are used one after the other")]
    fn part(&self, row: usize, column: usize, n: usize) -> &mut [T] {
        // SAFETY: tasks have their own rows, and a task one part at a time.
        unsafe { self.out.slice(self.start + row * self.stride + column, n) }
    }
}

/// Row i of `to` += sum over k < used of `a[i][k] b[k]`, for `n` rows of 64 numbers; rows of b at stride `ldb`, in whole vectors.
#[inline(always)]
pub fn add_rows<T: Float, S: Simd<T>>(
    s: S,
    a: &[T],
    (n, used): (usize, usize),
    b: (&[T], usize),
    to: &Target<'_, T>,
) {
    let tiles = n.div_ceil(S::ATTEND_MR);
    let mut column = 0;
    while column < to.width {
        let one = to.width - column <= S::LANES;
        let mut row = 0;
        for tile in 0..tiles {
            let rows = (n - row).div_ceil(tiles - tile);
            let (a, at) = (&a[row * KEY_TILE..], (row, column));
            if one {
                for_tile!(S, T, rows, S::ATTEND_MR, 1, rows_tile(s, a, used, b, to, at));
            } else {
                for_tile!(S, T, rows, S::ATTEND_MR, S::ATTEND_NV, rows_tile(s, a, used, b, to, at));
            }
            row += rows;
        }
        column += if one { 1 } else { S::ATTEND_NV } * S::LANES;
    }
}

/// Row j of `to` += sum over i < n of `a[i][j] b[i]`, for the first `used` of 64 columns.
#[inline(always)]
pub fn add_columns<T: Float, S: Simd<T>>(
    s: S,
    a: &[T],
    (n, used): (usize, usize),
    b: (&[T], usize),
    to: &Target<'_, T>,
) {
    let tiles = used.div_ceil(S::ATTEND_MR);
    let mut column = 0;
    while column < to.width {
        let one = to.width - column <= S::LANES;
        let mut row = 0;
        for tile in 0..tiles {
            let rows = (used - row).div_ceil(tiles - tile);
            let at = (row, column);
            if one {
                for_tile!(S, T, rows, S::ATTEND_MR, 1, columns_tile(s, a, n, b, to, at));
            } else {
                for_tile!(S, T, rows, S::ATTEND_MR, S::ATTEND_NV, columns_tile(s, a, n, b, to, at));
            }
            row += rows;
        }
        column += if one { 1 } else { S::ATTEND_NV } * S::LANES;
    }
}

#[inline(always)]
fn rows_tile<T: Float, S: Simd<T>, const MR: usize, const NV: usize>(
    s: S,
    a: &[T],
    used: usize,
    (b, ldb): (&[T], usize),
    to: &Target<'_, T>,
    at: (usize, usize),
) {
    let sums = block::<T, S, MR, NV>(s, a, KEY_TILE, &b[at.1..], ldb, used);
    add_tile(s, sums, to, at);
}

#[inline(always)]
fn columns_tile<T: Float, S: Simd<T>, const MR: usize, const NV: usize>(
    s: S,
    a: &[T],
    n: usize,
    (b, ldb): (&[T], usize),
    to: &Target<'_, T>,
    at: (usize, usize),
) {
    let sums = turned_block::<T, S, MR, NV>(s, (a, at.0), (&b[at.1..], ldb), n);
    add_tile(s, sums, to, at);
}

/// The product of `MR` columns of `a` from `first` on, rows of 64 numbers, with `NV` vectors of `b` over `kc` rows, each sum a
/// chain from zero: [`block`], but for a step's numbers of `a` being adjacent.
#[inline(always)]
fn turned_block<T: Float, S: Simd<T>, const MR: usize, const NV: usize>(
    s: S,
    (a, first): (&[T], usize),
    (b, ldb): (&[T], usize),
    kc: usize,
) -> [[S::V; NV]; MR] {
    let width = NV * S::LANES;
    let mut acc = [[s.splat(T::ZERO); NV]; MR];
    let a = &a[..kc * KEY_TILE];
    macro_rules! step {
        ($k:expr) => {{
            let k = $k;
            let x = &a[k * KEY_TILE + first..k * KEY_TILE + first + MR];
            let step = &b[k * ldb..k * ldb + width];
            let mut w = [s.splat(T::ZERO); NV];
            for (j, w) in w.iter_mut().enumerate() {
                *w = s.load(&step[j * S::LANES..]);
            }
            for i in 0..MR {
                let x = s.splat(x[i]);
                for j in 0..NV {
                    acc[i][j] = s.fma(x, w[j], acc[i][j]);
                }
            }
        }};
    }
    let mut k = 0;
    while k + 4 <= kc {
        step!(k);
        step!(k + 1);
        step!(k + 2);
        step!(k + 3);
        k += 4;
    }
    while k < kc {
        step!(k);
        k += 1;
    }
    acc
}

/// Numbers of the largest register tile: 8 x 32.
const TILE: usize = 256;

/// Adds a register tile to the target. Out of the registers by constant indices only: any other use of the sums makes the
/// compiler keep them in memory while the product runs.
#[inline(always)]
fn add_tile<T: Float, S: Simd<T>, const MR: usize, const NV: usize>(
    s: S,
    sums: [[S::V; NV]; MR],
    to: &Target<'_, T>,
    (row, column): (usize, usize),
) {
    let width = NV * S::LANES;
    if column + width <= to.width {
        for (i, sums) in sums.iter().enumerate() {
            let out = to.part(row + i, column, width);
            for (j, &sum) in sums.iter().enumerate() {
                let out = &mut out[j * S::LANES..];
                s.store(s.add(s.load(out), sum), out);
            }
        }
        return;
    }
    let mut numbers = [T::ZERO; TILE];
    for i in 0..MR {
        for j in 0..NV {
            s.store(sums[i][j], &mut numbers[(i * NV + j) * S::LANES..]);
        }
    }
    for i in 0..MR {
        let out = to.part(row + i, column, to.width - column);
        for (out, &sum) in out.iter_mut().zip(&numbers[i * width..]) {
            *out += sum;
        }
    }
}

/// [`add_rows`] where operands of blocked pairs hold NaN or inf: such pairs are passed over.
#[inline(always)]
pub fn add_rows_selected<T: Float, S: Simd<T>>(
    s: S,
    a: &[T],
    bits: &[u64],
    used: usize,
    b: (&[T], usize),
    to: &Target<'_, T>,
) {
    for (i, &bits) in bits.iter().enumerate() {
        let allowed = |c: usize| (bits >> c & 1 != 0).then(|| a[i * KEY_TILE + c]);
        add_selected(s, used, allowed, b, to, i);
    }
}

/// [`add_columns`] in the same case.
#[inline(always)]
pub fn add_columns_selected<T: Float, S: Simd<T>>(
    s: S,
    a: &[T],
    bits: &[u64],
    used: usize,
    b: (&[T], usize),
    to: &Target<'_, T>,
) {
    for c in 0..used {
        let allowed = |i: usize| (bits[i] >> c & 1 != 0).then(|| a[i * KEY_TILE + c]);
        add_selected(s, bits.len(), allowed, b, to, c);
    }
}

/// Row `row` of `to` += sum over k < kc of `a(k) b[k]`, where a(k) is there.
#[inline(always)]
fn add_selected<T: Float, S: Simd<T>>(
    s: S,
    kc: usize,
    a: impl Fn(usize) -> Option<T>,
    (b, ldb): (&[T], usize),
    to: &Target<'_, T>,
    row: usize,
) {
    for at in (0..to.width).step_by(S::LANES) {
        let mut sum = s.splat(T::ZERO);
        for k in 0..kc {
            if let Some(a) = a(k) {
                sum = s.fma(s.splat(a), s.load(&b[k * ldb + at..]), sum);
            }
        }
        let n = S::LANES.min(to.width - at);
        let out = to.part(row, at, n);
        let sum = s.add(load_up_to(s, out, 0, n), sum);
        store_up_to(s, sum, out, 0, n);
    }
}
