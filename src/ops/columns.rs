//! Sums of the columns of dense rows, cut over threads by columns.

use super::rows::over_rows;
use crate::error::Result;
use crate::kernels::columns::ColumnSums;
use crate::simd::{Float, active};

/// Columns that a task takes: whole cache lines and, on every instruction set, whole groups of vectors.
const TASK_COLUMNS: usize = 64;

/// `out_j = sum_i x_ij` of x (m, n), dense: one chain a column over rows ascending in blocks of 256, the blocks added in
/// order. The gradient of a bias.
///
/// # Errors
/// `Interrupted`, `Internal`.
///
/// # Panics
/// If a slice is too short.
pub fn column_sums<T: Float>(x: &[T], m: usize, n: usize, out: &mut [T]) -> Result<()> {
    assert!(x.len() >= m * n && out.len() >= n, "columns of a sum");
    let isa = active()?;
    over_groups(&mut out[..n], m, |first, out| {
        let x = if m == 0 { x } else { &x[first..] };
        T::dispatch(isa, ColumnSums { x, ldx: n, rows: m, out });
    })
}

/// Cuts `out` into runs of whole groups of columns of `rows` numbers each.
fn over_groups<T: Send>(out: &mut [T], rows: usize, f: impl Fn(usize, &mut [T]) + Sync) -> Result<()> {
    over_rows(out, TASK_COLUMNS, 1 + rows * TASK_COLUMNS / 8, |group, out| f(group * TASK_COLUMNS, out))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::testing::{assert_same_bits, normals};

    #[test]
    fn a_column_does_not_know_its_neighbours() {
        let (m, n) = (2000, 333);
        let x = normals::<f32>(m * n, 1, 1.0);
        let mut all = vec![f32::NAN; n];
        column_sums(&x, m, n, &mut all).unwrap();
        for j in [0, 1, 63, 64, 200, 332] {
            let column: Vec<f32> = x.iter().skip(j).step_by(n).copied().collect();
            let mut alone = [f32::NAN];
            column_sums(&column, m, 1, &mut alone).unwrap();
            assert_same_bits(&alone, &all[j..=j]);
            let mut sum = 0.0;
            for (i, block) in column.chunks(256).enumerate() {
                let chain = block.iter().fold(0.0, |a, b| a + b);
                sum = if i == 0 { chain } else { sum + chain };
            }
            assert_same_bits(&alone, &[sum]);
        }
        let mut none = [7.0_f64; 3];
        column_sums(&[], 0, 3, &mut none).unwrap();
        assert_same_bits(&none, &[0.0; 3]);
    }
}
