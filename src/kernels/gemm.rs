//! The matrix product: out = activation(x · wᵀ + bias) + residual, over weights packed in panels.
//!
//! Each output element is a chain of fused multiply-adds in ascending k. K is cut into blocks of [`K_BLOCK`];
//! the chain of each block starts at zero and the blocks are added in order:
//!
//! ```text
//! for each block of k:  acc = 0;  for k ascending: acc = fma(x[k], w[k], acc);  sum = first ? acc : sum + acc
//! out = activation(sum + bias) + residual
//! ```
//!
//! One chain over all of K loses accuracy with its length; blocks of 192 keep the error of a 1,536-long product
//! at that of a short one, and divide the widths that models have (384, 768, 1536) into few equal parts. A register
//! tile of `MR` rows and `NV` vectors holds its sums while k runs: each vector of weights loaded serves MR rows, each
//! number of x is broadcast to NV vectors. Tiles at the edges run the same chain with fewer rows, so that a row has the
//! same bits in every position and at every batch size.

use super::pack::{Panels, panel_vectors};
use crate::account::at;
use crate::kernels::activation::Activation;
use crate::simd::{Float, Kernel, Simd};

/// Length of the chains of the matrix product; part of the law of bits. Blocks of 256 cost `MiniLM` a tenth more error, and
/// are not faster: a block of weights, 192 x 48 numbers, has room in a first-level cache of 48 KB.
pub const K_BLOCK: usize = 192;

/// The product of `MR` rows of `a` with `NV` vectors of `b` over `kc` steps, each sum a chain from zero.
///
/// Row i of `a` starts at `i * lda`, step k of `b` at `k * ldb`.
#[inline(always)]
pub fn block<T: Float, S: Simd<T>, const MR: usize, const NV: usize>(
    s: S,
    a: &[T],
    lda: usize,
    b: &[T],
    ldb: usize,
    kc: usize,
) -> [[S::V; NV]; MR] {
    block_ahead::<T, S, MR, NV, false>(s, a, lda, b, ldb, kc, &[])
}

/// The same; on the way it asks for the numbers `ahead`, which the next blocks need, if `PREFETCH`: spread out, since what is
/// asked for at once stands in line, and the loads of this block behind it.
#[inline(always)]
pub fn block_ahead<T: Float, S: Simd<T>, const MR: usize, const NV: usize, const PREFETCH: bool>(
    s: S,
    a: &[T],
    lda: usize,
    b: &[T],
    ldb: usize,
    kc: usize,
    ahead: &[T],
) -> [[S::V; NV]; MR] {
    let width = NV * S::LANES;
    let mut acc = [[s.splat(T::ZERO); NV]; MR];
    let mut rows: [&[T]; MR] = [&[]; MR];
    for (i, row) in rows.iter_mut().enumerate() {
        *row = &a[i * lda..i * lda + kc];
    }
    // Four steps in a turn: the loop's own work is then lost among the multiply-adds of short chains, too.
    macro_rules! step {
        ($k:expr) => {{
            let k = $k;
            let step = &b[k * ldb..k * ldb + width];
            let mut w = [s.splat(T::ZERO); NV];
            for (j, w) in w.iter_mut().enumerate() {
                *w = s.load(&step[j * S::LANES..]);
            }
            for i in 0..MR {
                let x = s.splat(rows[i][k]);
                for j in 0..NV {
                    acc[i][j] = s.fma(x, w[j], acc[i][j]);
                }
            }
        }};
    }
    let mut k = 0;
    if PREFETCH {
        let line = 64 / size_of::<T>();
        // A few lines before every sixteen steps.
        let share = (ahead.len() / line).div_ceil(kc.div_ceil(16).max(1)) * line;
        let mut at = 0;
        while k + 16 <= kc {
            let end = (at + share).min(ahead.len());
            while at < end {
                s.prefetch(ahead, at);
                at += line;
            }
            let stop = k + 16;
            while k < stop {
                step!(k);
                step!(k + 1);
                step!(k + 2);
                step!(k + 3);
                k += 4;
            }
        }
    }
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

/// Calls `$tile::<T, S, MR, NV>($args)` for run-time counts of rows and vectors, up to the tile of `S`.
macro_rules! for_tile {
    ($S:ident, $T:ident, $rows:expr, $max_rows:expr, $vectors:expr, $tile:ident ($($arg:expr),*)) => {{
        let (rows, vectors) = ($rows, $vectors);
        macro_rules! vectors_of {
            ($mr:literal) => {
                match vectors {
                    1 => $tile::<$T, $S, $mr, 1>($($arg),*),
                    2 => $tile::<$T, $S, $mr, 2>($($arg),*),
                    _ => $tile::<$T, $S, $mr, 3>($($arg),*),
                }
            };
        }
        match rows {
            1 => vectors_of!(1),
            2 => vectors_of!(2),
            3 => vectors_of!(3),
            4 => vectors_of!(4),
            5 if $max_rows >= 5 => vectors_of!(5),
            6 if $max_rows >= 6 => vectors_of!(6),
            7 if $max_rows >= 7 => vectors_of!(7),
            _ if $max_rows >= 8 => vectors_of!(8),
            _ => unreachable!("a tile has at most {} rows", $max_rows),
        }
    }};
}
pub(crate) use for_tile;

/// What happens to a sum before it is written, in this order: + bias, activation, + residual.
#[derive(Clone, Copy, Debug)]
pub struct Epilogue<'a, T> {
    /// One number for each column.
    pub bias: Option<&'a [T]>,
    /// Applied after the bias.
    pub activation: Activation,
    /// Added last: rows as long as those of the output, at the same stride.
    pub residual: Option<&'a [T]>,
}

/// Rows `0..m` of `x` times the columns of some panels.
///
/// x (m, K) at stride `ldx`; out (m, columns) at stride `ldo`, starting at the first column of the first panel.
pub struct Product<'a, T> {
    /// Input rows.
    pub x: &'a [T],
    /// Distance between rows of `x`.
    pub ldx: usize,
    /// Number of rows.
    pub m: usize,
    /// All panels of the weights.
    pub weights: Panels<'a, T>,
    /// The panels to compute.
    pub panels: std::ops::Range<usize>,
    /// Distance between rows of the output and of the residual.
    pub ldo: usize,
    /// The row of the output, and of the residual, that row 0 of `x` makes.
    pub first_row: usize,
    /// The column of the output, and of the residual, that column 0 of the weights makes.
    pub first_column: usize,
    /// The whole output matrix; only the rows and the columns of `panels` are written.
    pub out: OutRows<'a, T>,
    /// What is read after these panels and may be asked for meanwhile; if empty, each block asks for the next.
    pub then: &'a [T],
    /// The weights that are read after the last of these, as far as they are known.
    pub next: &'a [T],
    /// Whether the blocks are added to what the output holds: those of a product whose earlier steps were taken before.
    pub onto: bool,
    /// What follows the sum.
    pub epilogue: Epilogue<'a, T>,
}

/// Output rows that several threads write, each its own columns.
#[derive(Clone, Copy)]
pub struct OutRows<'a, T> {
    start: *mut T,
    len: usize,
    owner: std::marker::PhantomData<&'a mut [T]>,
}

// SAFETY: it is a mutable slice whose users promise, at `slice`, to keep to disjoint parts.
unsafe impl<T: Send> Send for OutRows<'_, T> {}
// SAFETY: as above.
unsafe impl<T: Send> Sync for OutRows<'_, T> {}

impl<'a, T> OutRows<'a, T> {
    /// Shares a slice.
    pub fn new(out: &'a mut [T]) -> Self {
        Self { start: out.as_mut_ptr(), len: out.len(), owner: std::marker::PhantomData }
    }

    /// A part of the slice.
    ///
    /// # Safety
    /// No two parts that are alive at the same time overlap.
    #[inline(always)]
    #[allow(clippy::mut_from_ref, reason = "the caller promises disjoint parts")]
    pub unsafe fn slice(&self, start: usize, len: usize) -> &'a mut [T] {
        assert!(start <= self.len && len <= self.len - start, "output slice out of range");
        // SAFETY: in range by the assertion; disjoint by the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(start), len) }
    }
}

impl<T: Float> Kernel<T> for Product<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd<T>>(self, s: S) {
        at!(Product);
        let (m, mr) = (self.m, S::GEMM_MR);
        if m == 0 {
            return;
        }
        // Rows are dealt evenly to the tiles: 9 rows are 5 + 4, not 8 + 1.
        let tiles = m.div_ceil(mr);
        let k = self.weights.k;
        let blocks = k.div_ceil(K_BLOCK).max(1);
        for panel in self.panels.clone() {
            let vectors = panel_vectors(self.weights.n, panel, S::LANES, S::GEMM_NV);
            // All rows pass by one block of a panel before the next: the block stays in the first-level cache.
            for b in 0..blocks {
                let (start, end) = (b * K_BLOCK, k.min((b + 1) * K_BLOCK));
                let last = panel + 1 == self.panels.end && b + 1 == blocks;
                let next = if last && self.then.is_empty() {
                    &self.next[..self.next.len().min(K_BLOCK * S::GEMM_NV * S::LANES)]
                } else if self.then.is_empty() {
                    self.weights.block(panel, S::GEMM_NV * S::LANES, end * vectors * S::LANES)
                } else {
                    let (part, parts) =
                        ((panel - self.panels.start) * blocks + b, self.panels.len() * blocks);
                    share(self.then, part, parts)
                };
                let mut row = 0;
                for tile in 0..tiles {
                    let rows = (m - row).div_ceil(tiles - tile);
                    let (steps, ahead) = (start..end, share(next, tile, tiles));
                    for_tile!(
                        S,
                        T,
                        rows,
                        S::GEMM_MR,
                        vectors,
                        tile_of(s, &self, (row, panel), steps.clone(), ahead)
                    );
                    row += rows;
                }
            }
        }
    }
}

/// Part `i` of `n` equal parts.
#[inline(always)]
fn share<T>(x: &[T], i: usize, n: usize) -> &[T] {
    &x[x.len() * i / n..x.len() * (i + 1) / n]
}

/// One register tile over one block of K, and after the last its epilogue while the tile is in the cache.
#[inline(always)]
fn tile_of<T: Float, S: Simd<T>, const MR: usize, const NV: usize>(
    s: S,
    p: &Product<'_, T>,
    (row, panel): (usize, usize),
    steps: std::ops::Range<usize>,
    ahead: &[T],
) {
    let (start, kc) = (steps.start, steps.len());
    let first_column = panel * S::GEMM_NV * S::LANES;
    let columns = (NV * S::LANES).min(p.weights.n - first_column);
    let weights = p.weights.panel(panel, S::GEMM_NV * S::LANES);
    let (k, ldb) = (p.weights.k, NV * S::LANES);
    let x = &p.x[row * p.ldx + start..];
    let acc = block_ahead::<T, S, MR, NV, true>(s, x, p.ldx, &weights[start * ldb..], ldb, kc, ahead);
    let last = steps.end == k;
    let Epilogue { bias, activation, residual } = p.epilogue;
    let bias = bias.filter(|_| last).map(|bias| &bias[first_column..first_column + columns]);
    let at = (p.first_row + row) * p.ldo + p.first_column + first_column;
    let add = start > 0 || p.onto;
    if columns == NV * S::LANES {
        // Out of the registers by constant indices only: any other use of the sums makes the compiler keep them in memory
        // while k runs.
        macro_rules! write {
            (|$sum:ident, $j:ident, $out:ident| $value:expr) => {
                for (i, sums) in acc.iter().enumerate() {
                    // SAFETY: tiles do not overlap, and each is written by the one thread that has its panel.
                    let out = unsafe { p.out.slice(at + i * p.ldo, NV * S::LANES) };
                    for ($j, &$sum) in sums.iter().enumerate() {
                        let $out = &mut out[$j * S::LANES..];
                        s.store($value, $out);
                    }
                }
            };
        }
        match (add, bias) {
            (false, None) => write!(|sum, j, out| sum),
            (true, None) => write!(|sum, j, out| s.add(s.load(out), sum)),
            (false, Some(bias)) => write!(|sum, j, out| s.add(sum, s.load(&bias[j * S::LANES..]))),
            (true, Some(bias)) => {
                write!(|sum, j, out| s.add(s.add(s.load(out), sum), s.load(&bias[j * S::LANES..])));
            }
        }
    } else {
        let mut sums = [T::ZERO; TILE];
        for i in 0..MR {
            for j in 0..NV {
                s.store(acc[i][j], &mut sums[(i * NV + j) * S::LANES..]);
            }
        }
        for i in 0..MR {
            // SAFETY: as above.
            let out = unsafe { p.out.slice(at + i * p.ldo, columns) };
            write_row(s, &sums[i * ldb..(i + 1) * ldb], add, bias, out);
        }
    }
    if last && (activation != Activation::Identity || residual.is_some()) {
        T::dispatch(S::ISA, Finish { rows: MR, start: at, columns, product: p });
    }
}

/// Numbers of the largest register tile: 8 x 48.
const TILE: usize = 384;

/// Writes a row of sums, added to what earlier blocks left there, and then the bias to it.
#[inline(always)]
fn write_row<T: Float, S: Simd<T>>(s: S, sums: &[T], add: bool, bias: Option<&[T]>, out: &mut [T]) {
    let mut at = 0;
    while at < out.len() {
        let end = out.len().min(at + S::LANES);
        let whole = end - at == S::LANES;
        let mut v = s.load(&sums[at..]);
        if add {
            v = s.add(if whole { s.load(&out[at..]) } else { s.load_partial(&out[at..end]) }, v);
        }
        if let Some(bias) = bias {
            v = s.add(v, if whole { s.load(&bias[at..]) } else { s.load_partial(&bias[at..end]) });
        }
        if whole {
            s.store(v, &mut out[at..]);
        } else {
            s.store_partial(v, &mut out[at..end]);
        }
        at += S::LANES;
    }
}

/// Activation and residual, over a tile that was just written, with its bias, and is still in the first-level cache.
///
/// A kernel of its own: compiled into the tile's loops, the code of the activations makes the compiler spill their sums
/// (AVX-512 fell from 95 to 45 % of the peak).
struct Finish<'a, 'b, T> {
    rows: usize,
    /// The tile's first element of the output.
    start: usize,
    columns: usize,
    product: &'a Product<'b, T>,
}

impl<T: Float> Kernel<T> for Finish<'_, '_, T> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd<T>>(self, s: S) {
        // One loop for each function, so that none asks which it is.
        match self.product.epilogue.activation {
            Activation::Identity => self.each(s, Activation::Identity),
            Activation::Relu => self.each(s, Activation::Relu),
            Activation::Gelu => self.each(s, Activation::Gelu),
            Activation::GeluTanh => self.each(s, Activation::GeluTanh),
            Activation::Silu => self.each(s, Activation::Silu),
        }
    }
}

impl<T: Float> Finish<'_, '_, T> {
    #[inline(always)]
    fn each<S: Simd<T>>(&self, s: S, activation: Activation) {
        at!(if activation == Activation::Identity => Residual else Activation);
        let whole = self.columns / S::LANES * S::LANES;
        let residual = self.product.epilogue.residual;
        for i in 0..self.rows {
            let start = self.start + i * self.product.ldo;
            // SAFETY: tiles do not overlap, and the slices of `tile_of` have ended.
            let out = unsafe { self.product.out.slice(start, self.columns) };
            let residual = residual.map(|r| &r[start..start + self.columns]);
            let (vectors, rest) = out.split_at_mut(whole);
            for (j, out) in vectors.chunks_exact_mut(S::LANES).enumerate() {
                let mut v = activation.apply(s, s.load(out));
                if let Some(residual) = residual {
                    v = s.add(v, s.load(&residual[j * S::LANES..]));
                }
                s.store(v, out);
            }
            if !rest.is_empty() {
                let mut v = activation.apply(s, s.load_partial(rest));
                if let Some(residual) = residual {
                    v = s.add(v, s.load_partial(&residual[whole..]));
                }
                s.store_partial(v, rest);
            }
        }
    }
}

#[cfg(test)]
mod tests;
