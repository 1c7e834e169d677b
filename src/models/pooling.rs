//! Token rows to one row for each text, and rows to unit length.
//!
//! The rows of all texts lie back to back: x is (T, D), and `starts`, B + 1 numbers, says where each text begins and the
//! last one ends. There is no padding, hence no mask.
//!
//! ```text
//! mean                  out[b, d] = sum_t x[t, d] / L_b          one chain over t in ascending order, in blocks of 256
//! cls                   out[b, d] = x[first, d]
//! max                   out[b, d] = max_t x[t, d]                a NaN stays
//! lasttoken             out[b, d] = x[last, d]
//! mean_sqrt_len_tokens  out[b, d] = sum_t x[t, d] / sqrt(L_b)    the chain of the mean
//! weightedmean          out[b, d] = sum_t (t + 1) x[t, d] / sum_t (t + 1), t counted from the start of the text
//! normalize             y = x / max(|x|, 1e-12)                  the sum of squares in 16 virtual lanes
//! ```
//!
//! Several kinds at once stand side by side in a row, (B, kinds * D). A model that was trained to leave its prompt out of
//! the pooling says how many tokens from the front of each text do not count: L, first and the sums are then those of
//! the rest, and the weights of the rest stay what they were.
//!
//! The mean is a sum over columns: each column is a chain of its own, so the loop runs over whole rows and the compiler
//! may use any vectors without changing a bit. The chain is in f64 whatever the rows are: 256 equal tokens, as a line of
//! dots has, round the same way at each step of an f32 chain, which took the error of `MiniLM` from 1.8e-7 to 3.1e-7 there.
//! A text of which no token counts gives zeros.

use crate::simd::{Float, Isa, Kernel, Simd, VIRTUAL_LANES};

/// Rows in a block of a chain: a block starts at zero and blocks are added in order. Part of the law of bits.
const BLOCK_ROWS: usize = 256;

/// The least length that is divided by, as in `torch.nn.functional.normalize`.
pub const MIN_NORM: f64 = 1e-12;

/// How the rows of a text's tokens become one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pooling {
    /// The mean of all rows.
    Mean,
    /// The first row.
    Cls,
    /// The greatest value of each column.
    Max,
    /// The last row.
    LastToken,
    /// The sum of all rows over the square root of their number.
    MeanSqrtLen,
    /// The mean of all rows, the n-th counted n times.
    WeightedMean,
}

impl Pooling {
    /// Every kind, in the order of error texts.
    pub const ALL: [Self; 6] =
        [Self::Mean, Self::Cls, Self::Max, Self::LastToken, Self::MeanSqrtLen, Self::WeightedMean];

    /// The name in sentence-transformers.
    pub fn name(self) -> &'static str {
        match self {
            Self::Mean => "mean",
            Self::Cls => "cls",
            Self::Max => "max",
            Self::LastToken => "lasttoken",
            Self::MeanSqrtLen => "mean_sqrt_len_tokens",
            Self::WeightedMean => "weightedmean",
        }
    }

    /// The kind of that name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|p| p.name() == name)
    }
}

/// Pools x (T, D) to out (B, kinds * D); text b has the rows `starts[b]..starts[b + 1]`, of which the first `left_out` do
/// not count.
///
/// # Panics
/// If the slices do not have these shapes.
pub fn pool<T: Float>(
    kinds: &[Pooling],
    x: &[T],
    starts: &[usize],
    left_out: usize,
    d: usize,
    out: &mut [T],
) {
    assert_eq!(out.len(), (starts.len() - 1) * kinds.len() * d, "out is (B, kinds * D)");
    for (row, bounds) in out.chunks_exact_mut(kinds.len() * d).zip(starts.windows(2)) {
        let first = bounds[1].min(bounds[0] + left_out);
        let tokens = &x[first * d..bounds[1] * d];
        if tokens.is_empty() {
            row.fill(T::ZERO);
            continue;
        }
        for (kind, row) in kinds.iter().zip(row.chunks_exact_mut(d)) {
            let count = (tokens.len() / d) as f64;
            match kind {
                Pooling::Mean => weighted_sum(tokens, |_| 1.0, count, row),
                Pooling::MeanSqrtLen => weighted_sum(tokens, |_| 1.0, count.sqrt(), row),
                Pooling::WeightedMean => {
                    let place = |t: usize| (left_out + t + 1) as f64;
                    // Whole numbers far below 2^53: exact.
                    let total = count * (place(0) + count - 1.0 + place(0)) / 2.0;
                    weighted_sum(tokens, place, total, row);
                }
                Pooling::Cls => row.copy_from_slice(&tokens[..d]),
                Pooling::LastToken => row.copy_from_slice(&tokens[tokens.len() - d..]),
                Pooling::Max => max(tokens, row),
            }
        }
    }
}

/// Sum of tokens (L, D), each times its weight, over a divisor, to row (D).
fn weighted_sum<T: Float>(tokens: &[T], weight: impl Fn(usize) -> f64, divisor: f64, row: &mut [T]) {
    let d = row.len();
    let mut chain = vec![0.0; d];
    let mut total = vec![0.0; d];
    for (n, block) in tokens.chunks(BLOCK_ROWS * d).enumerate() {
        chain.fill(0.0);
        for (t, token) in block.chunks_exact(d).enumerate() {
            let w = weight(n * BLOCK_ROWS + t);
            for (c, &v) in chain.iter_mut().zip(token) {
                // Two roundings in f64, never fused: the same on every instruction set. A weight of 1 changes nothing.
                *c += w * v.to_f64();
            }
        }
        for (t, &c) in total.iter_mut().zip(&chain) {
            *t += c;
        }
    }
    for (r, t) in row.iter_mut().zip(total) {
        *r = T::from_f64(t / divisor);
    }
}

/// tokens (L, D) to row (D).
fn max<T: Float>(tokens: &[T], row: &mut [T]) {
    row.fill(T::NEG_INFINITY);
    for token in tokens.chunks_exact(row.len()) {
        for (r, &v) in row.iter_mut().zip(token) {
            if v > *r || v.is_nan() {
                *r = v;
            }
        }
    }
}

/// Scales each row of x (B, D) to length 1; rows shorter than 1e-12 are divided by that.
pub fn normalize_rows<T: Float>(isa: Isa, x: &mut [T], d: usize) {
    T::dispatch(isa, NormalizeRows { x, d });
}

struct NormalizeRows<'a, T> {
    x: &'a mut [T],
    d: usize,
}

impl<T: Float> Kernel<T> for NormalizeRows<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd<T>>(self, s: S) {
        for row in self.x.chunks_exact_mut(self.d) {
            let norm = sum_of_squares(s, row).sqrt();
            let least = T::from_f64(MIN_NORM);
            // Written so that a NaN stays a NaN.
            let divisor = if norm < least { least } else { norm };
            for v in row {
                *v = *v / divisor;
            }
        }
    }
}

#[inline(always)]
fn sum_of_squares<T: Float, S: Simd<T>>(s: S, row: &[T]) -> T {
    let parts = VIRTUAL_LANES / S::LANES;
    let mut acc = [s.splat(T::ZERO); VIRTUAL_LANES];
    let blocks = row.chunks_exact(VIRTUAL_LANES);
    let rest = blocks.remainder();
    for block in blocks {
        for i in 0..parts {
            let v = s.load(&block[i * S::LANES..]);
            acc[i] = s.fma(v, v, acc[i]);
        }
    }
    // Absent lanes load as 0 and add 0 * 0 to a sum that is never -0: nothing.
    for (i, tail) in rest.chunks(S::LANES).enumerate() {
        let v = s.load_partial(tail);
        acc[i] = s.fma(v, v, acc[i]);
    }
    s.fold_add(&acc[..parts])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simd;

    /// Numbers in -1..1 without a pattern.
    fn numbers(n: usize) -> Vec<f64> {
        let mut state = 1u64;
        (0..n)
            .map(|_| {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                (state >> 11) as f64 / (1u64 << 52) as f64 - 1.0
            })
            .collect()
    }

    #[test]
    fn each_text_is_pooled_by_itself() {
        let d = 3;
        let starts = [0, 1, 1, 4];
        let x = [1.0, 2.0, 3.0, -1.0, 5.0, 0.0, -2.0, 4.0, 1.0, -6.0, 0.0, 2.0];
        for (pooling, last) in [
            (Pooling::Mean, [-3.0, 3.0, 1.0]),
            (Pooling::Cls, [-1.0, 5.0, 0.0]),
            (Pooling::Max, [-1.0, 5.0, 2.0]),
            (Pooling::LastToken, [-6.0, 0.0, 2.0]),
            (Pooling::MeanSqrtLen, [-9.0, 9.0, 3.0].map(|sum: f64| sum / 3.0f64.sqrt())),
            (Pooling::WeightedMean, [-23.0 / 6.0, 13.0 / 6.0, 8.0 / 6.0]),
        ] {
            let mut out = [9.0; 9];
            pool(&[pooling], &x, &starts, 0, d, &mut out);
            assert_eq!(out[..3], [1.0, 2.0, 3.0], "{pooling:?}");
            assert_eq!(out[3..6], [0.0; 3], "{pooling:?}");
            assert_eq!(out[6..], last, "{pooling:?}");
            assert_eq!(Pooling::from_name(pooling.name()), Some(pooling));
        }
    }

    #[test]
    fn several_kinds_stand_side_by_side() {
        let x = [1.0, 2.0, 3.0, -6.0, 5.0, 1.0];
        let mut out = [0.0; 8];
        pool(&[Pooling::Cls, Pooling::Max], &x, &[0, 1, 3], 0, 2, &mut out);
        assert_eq!(out, [1.0, 2.0, 1.0, 2.0, 3.0, -6.0, 5.0, 1.0]);
    }

    #[test]
    fn tokens_left_out_do_not_count() {
        // The first text has three tokens, of which two are left out; the second has no more than that.
        let x = [9.0, 7.0, 4.0, 8.0, 8.0];
        for (pooling, want) in [
            (Pooling::Mean, 4.0),
            (Pooling::Cls, 4.0),
            (Pooling::Max, 4.0),
            (Pooling::LastToken, 4.0),
            (Pooling::MeanSqrtLen, 4.0),
            (Pooling::WeightedMean, 4.0),
        ] {
            let mut out = [1.0; 2];
            pool(&[pooling], &x, &[0, 3, 5], 2, 1, &mut out);
            assert_eq!(out, [want, 0.0], "{pooling:?}");
        }
        // The weights of the rest stay: 2 and 3.
        let mut out = [0.0];
        pool(&[Pooling::WeightedMean], &x, &[0, 3], 1, 1, &mut out);
        assert_eq!(out, [(2.0 * 7.0 + 3.0 * 4.0) / 5.0]);
    }

    #[test]
    fn the_mean_is_one_chain_in_blocks_of_256() {
        let (rows, d) = (600, 2);
        let x = numbers(rows * d);
        let mut out = [0.0; 2];
        pool(&[Pooling::Mean], &x, &[0, rows], 0, d, &mut out);
        for (column, got) in out.iter().enumerate() {
            let mut total = 0.0;
            for block in 0..3 {
                let mut chain = 0.0;
                for t in block * 256..(block * 256 + 256).min(rows) {
                    chain += x[t * d + column];
                }
                total += chain;
            }
            assert_eq!(got.to_bits(), (total / 600.0f64).to_bits());
        }
    }

    #[test]
    fn equal_rows_have_their_own_mean() {
        // In f32 these chains end 32, 8 and 29 units in the last place away.
        let row = [0.1f32, 1.0 / 3.0, -0.7];
        let x: Vec<f32> = row.into_iter().cycle().take(3 * 256).collect();
        let mut out = [0.0; 3];
        pool(&[Pooling::Mean], &x, &[0, 256], 0, 3, &mut out);
        assert_eq!(out.map(f32::to_bits), row.map(f32::to_bits));
    }

    #[test]
    fn a_nan_stays_in_its_column() {
        let x = [f32::NAN, 1.0, 2.0, 3.0];
        let mut out = [0.0; 2];
        pool(&[Pooling::Max], &x, &[0, 2], 0, 2, &mut out);
        assert!(out[0].is_nan());
        assert_eq!(out[1].to_bits(), 3.0f32.to_bits());
    }

    /// The rule of the law in plain steps: lane i sums the squares of i, i + 16, ..., then the tree.
    fn norm_by_the_rule(row: &[f32]) -> f32 {
        let mut lanes = [0.0f64; VIRTUAL_LANES];
        let mut acc = [0.0f32; VIRTUAL_LANES];
        for (i, &v) in row.iter().enumerate() {
            // A square of an f32 is exact in f64, and so is the sum of two that differ by less than 2^29.
            lanes[i % 16] = f64::from(v) * f64::from(v);
            acc[i % 16] = (f64::from(acc[i % 16]) + lanes[i % 16]) as f32;
        }
        for half in [8, 4, 2, 1] {
            for i in 0..half {
                acc[i] += acc[i + half];
            }
        }
        acc[0].sqrt()
    }

    #[test]
    fn every_instruction_set_gives_the_same_unit_rows() {
        for d in [1, 3, 15, 16, 17, 31, 33, 64, 100, 384] {
            // Eighths with few digits: the f64 sums of the rule above stay exact.
            let x: Vec<f32> = numbers(2 * d).iter().map(|v| (v * 1024.0).round() as f32 / 8.0).collect();
            for isa in simd::available() {
                let mut got = x.clone();
                normalize_rows(isa, &mut got, d);
                for (row, source) in got.chunks(d).zip(x.chunks(d)) {
                    let norm = norm_by_the_rule(source).max(1e-12);
                    for (g, v) in row.iter().zip(source) {
                        assert_eq!(g.to_bits(), (v / norm).to_bits(), "{isa} D {d}");
                    }
                }
            }
        }
    }

    #[test]
    fn rows_of_zeros_stay_and_nan_spreads() {
        for isa in simd::available() {
            let mut x = [0.0f64, 0.0, f64::NAN, 1.0, 3e-13, 4e-13];
            normalize_rows(isa, &mut x, 2);
            assert_eq!(x[..2], [0.0, 0.0]);
            assert!(x[2].is_nan() && x[3].is_nan());
            assert!((x[4] - 0.3).abs() < 1e-12 && (x[5] - 0.4).abs() < 1e-12);
        }
    }
}
