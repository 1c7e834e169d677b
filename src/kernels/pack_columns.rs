//! Panels for the products of the backward pass.
//!
//! A panel is `[K][width]`: for each step of the product the numbers of some of its columns, side by side. Going back, the
//! steps are the rows of a matrix that the forward pass had the other way:
//!
//! ```text
//! dw = dyᵀ · x   x (m, K), row-major: a step is a row, whose numbers lie side by side already: copied
//! dx = dy · w    w (N, K) in the forward panels [K][width of N]: each is a row-major matrix, a row for each column of
//!                dx: turned, as `PackRows` turns the rows of a weight
//! ```
//!
//! Nothing is computed.

use super::pack::pack_panel;
use crate::simd::{Float, Kernel, Simd};

/// Packs columns of `x`, row-major at stride `ldx`, as one panel: a step for each row.
pub struct PackColumns<'a, T> {
    /// The matrix from the first of the columns on.
    pub x: &'a [T],
    /// Distance between its rows.
    pub ldx: usize,
    /// Its rows: the steps of the product.
    pub steps: usize,
    /// Columns to pack, at most a panel's.
    pub columns: usize,
    /// The panel: the columns rounded up to whole vectors, times the steps.
    pub out: &'a mut [T],
}

impl<T: Float> Kernel<T> for PackColumns<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd<T>>(self, s: S) {
        let width = self.columns.div_ceil(S::LANES) * S::LANES;
        let whole = self.columns / S::LANES * S::LANES;
        if width == 0 {
            return;
        }
        assert!(self.out.len() >= width * self.steps, "room for a panel");
        for (step, out) in self.out.chunks_exact_mut(width).enumerate().take(self.steps) {
            let row = &self.x[step * self.ldx..][..self.columns];
            for c in (0..whole).step_by(S::LANES) {
                s.store(s.load(&row[c..]), &mut out[c..]);
            }
            if whole < width {
                s.store(s.load_partial(&row[whole..]), &mut out[whole..]);
            }
        }
    }
}

/// Packs columns `first..first + columns` of a weight (N, K) that lies in panels, as [`PackRows`](super::pack::PackRows)
/// makes them, as one panel of N steps.
pub struct TurnPanels<'a, T> {
    /// The panels of the weight.
    pub panels: &'a [T],
    /// Its rows: the steps of the product.
    pub n: usize,
    /// Its columns.
    pub k: usize,
    /// The first column to pack.
    pub first: usize,
    /// Columns to pack, at most a panel's.
    pub columns: usize,
    /// The panel: the columns rounded up to whole vectors, times N.
    pub out: &'a mut [T],
    /// Vectors in a row of a whole panel.
    pub nv: usize,
}

impl<T: Float> Kernel<T> for TurnPanels<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd<T>>(self, s: S) {
        let whole = self.nv * S::LANES;
        let width = self.columns.div_ceil(S::LANES) * S::LANES;
        for step in (0..self.n).step_by(whole) {
            let steps = whole.min(self.n - step);
            let ld = steps.div_ceil(S::LANES) * S::LANES;
            let rows = &self.panels[step * self.k + self.first * ld..];
            pack_panel(s, rows, ld, self.columns, steps, &mut self.out[step * width..], width);
        }
    }
}

/// Writes the transpose of `rows` rows of `x`, at stride `ldx`: out (columns, rows) at a stride of the rows rounded up to
/// whole vectors, what is beyond them zero.
pub struct Transpose<'a, T> {
    /// The matrix from the first of the columns on.
    pub x: &'a [T],
    /// Distance between its rows.
    pub ldx: usize,
    /// Rows to turn.
    pub rows: usize,
    /// Columns to turn.
    pub columns: usize,
    /// Where they go.
    pub out: &'a mut [T],
}

impl<T: Float> Kernel<T> for Transpose<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd<T>>(self, s: S) {
        let ldo = self.rows.div_ceil(S::LANES) * S::LANES;
        pack_panel(s, self.x, self.ldx, self.rows, self.columns, self.out, ldo);
    }
}

#[cfg(test)]
mod tests {
    use super::super::pack::{PackRows, packed_len};
    use super::*;
    use crate::kernels::testing::{assert_same_bits, for_each_isa, normals};
    use crate::simd::Isa;

    /// The lanes of an instruction set and the vectors of a panel's row.
    struct Tile;
    impl<T: Float> Kernel<T> for Tile {
        type Output = (usize, usize);
        #[inline(always)]
        fn run<S: Simd<T>>(self, _: S) -> (usize, usize) {
            (S::LANES, S::GEMM_NV)
        }
    }

    /// Row-major (rows, columns) turned.
    fn turned<T: Float>(x: &[T], rows: usize, columns: usize) -> Vec<T> {
        (0..rows * columns).map(|i| x[i % rows * columns + i / rows]).collect()
    }

    fn panels_are_those_of_the_turned_matrix<T: Float>(isa: Isa, (): ()) {
        let (lanes, nv) = T::dispatch(isa, Tile);
        let whole = lanes * nv;
        for steps in [0, 1, lanes - 1, lanes, whole + 1, 2 * whole + lanes + 3] {
            for columns in [1, lanes, whole - 1, whole] {
                let (k, first) = (columns + 5, 3);
                let w = normals::<T>(steps * k, 1, 1.0);
                let part: Vec<T> = turned(&w, steps, k)[first * steps..(first + columns) * steps].to_vec();
                let mut expected = vec![T::ONE; packed_len(columns, steps, lanes)];
                T::dispatch(
                    isa,
                    PackRows { w: &part, ldw: steps, n: columns, k: steps, out: &mut expected, nv },
                );

                let mut out = vec![T::NAN; expected.len()];
                let x = if steps == 0 { &w[..] } else { &w[first..] };
                T::dispatch(isa, PackColumns { x, ldx: k, steps, columns, out: &mut out });
                assert_same_bits(&out, &expected);

                let mut panels = vec![T::NAN; packed_len(steps, k, lanes)];
                T::dispatch(isa, PackRows { w: &w, ldw: k, n: steps, k, out: &mut panels, nv });
                out.fill(T::NAN);
                let turn = TurnPanels { panels: &panels, n: steps, k, first, columns, out: &mut out, nv };
                T::dispatch(isa, turn);
                assert_same_bits(&out, &expected);
            }
        }
    }

    fn transposes<T: Float>(isa: Isa, (): ()) {
        let (lanes, _) = T::dispatch(isa, Tile);
        for rows in [1, lanes, lanes + 1, 70] {
            for columns in [0, 1, lanes, 2 * lanes + 3] {
                let x = normals::<T>(rows * columns, 1, 1.0);
                let ldo = rows.next_multiple_of(lanes);
                let mut out = vec![T::NAN; columns * ldo];
                T::dispatch(isa, Transpose { x: &x, ldx: columns, rows, columns, out: &mut out });
                for (expected, out) in turned(&x, rows, columns).chunks(rows).zip(out.chunks(ldo)) {
                    assert_same_bits(&out[..rows], expected);
                    assert_same_bits(&out[rows..], &vec![T::ZERO; ldo - rows]);
                }
            }
        }
    }

    for_each_isa! {
        panels_of_columns: panels_are_those_of_the_turned_matrix, (), ();
        matrices_are_turned: transposes, (), ();
    }
}
