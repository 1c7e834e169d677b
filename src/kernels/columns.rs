//! Sums of columns: `out_j = sum_i x_ij`, the gradient of a bias.
//!
//! ```text
//! for each block of 256 rows:  acc = 0;  for the rows ascending: acc += x[i];  out = first ? acc : out + acc
//! ```
//!
//! One chain a column, never cut over threads; blocks, since the error of a single chain grows with its length.

use super::rows::{load_up_to, store_up_to};
use crate::simd::{Float, Kernel, Simd};

/// Length of the chains of sums over rows; part of the law of bits.
pub const ROW_BLOCK: usize = 256;

/// Vectors that are summed side by side: independent chains hide the latency of each.
const VECTORS: usize = 4;

/// Sums of the columns of x (rows, columns) at stride `ldx`.
pub struct ColumnSums<'a, T> {
    /// The rows, from the first column that is summed.
    pub x: &'a [T],
    /// Distance between them.
    pub ldx: usize,
    /// Their number; the sum of none is 0.
    pub rows: usize,
    /// The sums, one for each column.
    pub out: &'a mut [T],
}

impl<T: Float> Kernel<T> for ColumnSums<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd<T>>(self, s: S) {
        let Self { x, ldx, rows, out } = self;
        if rows == 0 {
            return out.fill(T::ZERO);
        }
        let columns = out.len();
        for start in (0..rows).step_by(ROW_BLOCK) {
            let end = rows.min(start + ROW_BLOCK);
            for first in (0..columns).step_by(VECTORS * S::LANES) {
                let mut acc = [s.splat(T::ZERO); VECTORS];
                if first + VECTORS * S::LANES <= columns {
                    for row in start..end {
                        let row = &x[row * ldx + first..][..VECTORS * S::LANES];
                        for (v, acc) in acc.iter_mut().enumerate() {
                            *acc = s.add(*acc, s.load(&row[v * S::LANES..]));
                        }
                    }
                } else {
                    for row in start..end {
                        let row = &x[row * ldx..][..columns];
                        for (v, acc) in acc.iter_mut().enumerate() {
                            let at = first + v * S::LANES;
                            if at < columns {
                                *acc = s.add(*acc, load_up_to(s, row, at, S::LANES.min(columns - at)));
                            }
                        }
                    }
                }
                for (v, &acc) in acc.iter().enumerate() {
                    let at = first + v * S::LANES;
                    if at < columns {
                        let n = S::LANES.min(columns - at);
                        let sum = if start == 0 { acc } else { s.add(load_up_to(s, out, at, n), acc) };
                        store_up_to(s, sum, out, at, n);
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::naive;
    use crate::kernels::testing::{assert_same_bits, for_each_isa, lengths, normals};
    use crate::simd::Isa;

    fn agrees<T: Float>(isa: Isa, bound: f64) {
        for columns in lengths().into_iter().filter(|&n| n > 0) {
            for rows in [0, 1, 7, ROW_BLOCK, ROW_BLOCK + 1, 2 * ROW_BLOCK + 3] {
                let x = normals::<T>(rows * columns, 3, 1.0);
                let sums = |isa| {
                    let mut out = vec![T::NAN; columns];
                    T::dispatch(isa, ColumnSums { x: &x, ldx: columns, rows, out: &mut out });
                    out
                };
                let out = sums(isa);
                assert_same_bits(&out, &sums(Isa::Scalar));
                let wide: Vec<f64> = x.iter().map(|x| x.to_f64()).collect();
                let exact = naive::column_sums(&wide, columns);
                // Relative to the numbers that were summed: the sums themselves may cancel.
                let size = (rows.max(1) as f64).sqrt();
                for (sum, exact) in out.iter().zip(exact) {
                    assert!((sum.to_f64() - exact).abs() <= bound * size, "({rows}, {columns})");
                }
            }
        }
    }

    for_each_isa! {
        sums_agree_with_the_formula: agrees, 2e-6, 4e-15;
    }
}
