//! The gradients of a product y = x · wᵀ (+ b): dx = dy · w and dw = dyᵀ · x. That of b is a sum of columns.
//!
//! Both are products again, by the same tiles and with the same chains: the sum over N (dx) or over the rows (dw) runs in
//! ascending order, in blocks of [`K_BLOCK`] that start at zero and are added in order. Threads cut what is left, never
//! that sum.
//!
//! The weight of dx is there already, packed for the forward product: each task turns the columns of its panel out of
//! those panels. dw has a long sum and two matrices that lie the wrong way round. Some blocks of rows at a time, x is
//! packed as panels for all threads, then every task turns its columns of dy into rows and takes them through the panels
//! while both are in the second-level cache; what the blocks before have left in dw is added to.

use std::ops::Range;

use super::aligned::{Aligned, with_scratch};
use super::linear::{PackedLinear, RegisterTile, TASK_ROWS, TASK_WORK, TileOf, WORTH_A_THREAD, by_panels};
use super::reused::Reused;
use super::try_parallel;
use crate::error::Result;
use crate::kernels::activation::Activation;
use crate::kernels::gemm::{Epilogue, K_BLOCK, OutRows, Product};
use crate::kernels::pack::{Panels, packed_len};
use crate::kernels::pack_columns::{PackColumns, Transpose, TurnPanels};
use crate::simd::{Float, active};
use crate::threads::{checkpoint, parallel, team_size};

/// Rows of x and dy that are taken at a time: enough that the sums so far are seldom read again, few enough that
/// [`TASK_ROWS`] columns of dy stay in the second-level cache.
const STEPS: usize = 4 * K_BLOCK;

/// What follows a sum: nothing.
fn nothing<'a, T>() -> Epilogue<'a, T> {
    Epilogue { bias: None, activation: Activation::Identity, residual: None }
}

impl<T: Float> PackedLinear<T> {
    /// The gradient of the input of a product, dx = dy · w: `m` rows dy (m, N) into dx (m, K), dense; `residual` (m, K) is
    /// added last.
    ///
    /// # Errors
    /// `Memory`, `Interrupted`, `Internal`.
    ///
    /// # Panics
    /// If a slice is too short.
    pub fn backward_input(&self, dy: &[T], m: usize, dx: &mut [T], residual: Option<&[T]>) -> Result<()> {
        let (n, k) = (self.n(), self.k());
        assert!(dy.len() >= m * n && dx.len() >= m * k, "rows of a gradient");
        if m == 0 || k == 0 {
            return Ok(());
        }
        let RegisterTile { lanes, nv, .. } = T::dispatch(self.isa, TileOf);
        let panels = self.panels();
        let pack = |columns: Range<usize>, out: &mut [T]| {
            let (first, columns) = (columns.start, columns.len());
            T::dispatch(self.isa, TurnPanels { panels, n, k, first, columns, out, nv });
        };
        // What a panel is turned from lies in pieces, one in each of the forward panels: nothing to ask for at once.
        debug_assert_eq!(panels.len(), packed_len(n, k, lanes));
        by_panels(self.isa, dy, m, (k, n), pack, |_| &[][..], Epilogue { residual, ..nothing() }, dx)
    }

    /// The weights (K, N) of the product dy · w, packed, for a caller that takes it often: its results are those of
    /// [`Self::backward_input`], bit for bit.
    ///
    /// # Errors
    /// `Memory`, `Interrupted`, `Internal`.
    pub fn turned(&self) -> Result<Self> {
        let (n, k) = (self.n, self.k);
        let RegisterTile { lanes, nv, .. } = T::dispatch(self.isa, TileOf);
        let mut data = Aligned::zeros(packed_len(k, n, lanes))?;
        let shared = OutRows::new(&mut data[..]);
        let whole = lanes * nv;
        let panel = |panel: usize| {
            let first = panel * whole;
            let columns = whole.min(k - first);
            // SAFETY: each task packs its own panel.
            let out = unsafe { shared.slice(first * n, packed_len(columns, n, lanes)) };
            T::dispatch(self.isa, TurnPanels { panels: self.panels(), n, k, first, columns, out, nv });
        };
        let panels = k.div_ceil(whole);
        if n * k < WORTH_A_THREAD {
            parallel(1, |_| (0..panels).for_each(panel))?;
        } else {
            parallel(panels, panel)?;
        }
        Ok(Self { data, bias: None, n: k, k: n, isa: self.isa })
    }
}

/// The gradient of the input of a product with weights (N, K), dense, that are used this once: dx = dy · w, as
/// [`PackedLinear::backward_input`] has it, bit for bit.
///
/// # Errors
/// `Memory`, `Interrupted`, `Internal`.
///
/// # Panics
/// If a slice is too short.
pub fn input_gradient_once<T: Float>(
    dy: &[T],
    m: usize,
    (w, n, k): (&[T], usize, usize),
    dx: &mut [T],
) -> Result<()> {
    assert!(dy.len() >= m * n && w.len() >= n * k && dx.len() >= m * k, "rows of a gradient");
    if m == 0 || k == 0 {
        return Ok(());
    }
    let isa = active()?;
    let pack = |columns: Range<usize>, out: &mut [T]| {
        let x = w.get(columns.start..).unwrap_or(&[]);
        T::dispatch(isa, PackColumns { x, ldx: k, steps: n, columns: columns.len(), out });
    };
    by_panels(isa, dy, m, (k, n), pack, |_| &[][..], nothing(), dx)
}

/// The gradient of the weight of a product, dw = dyᵀ · x: x (m, K) and dy (m, N) into dw (N, K), dense.
///
/// # Errors
/// `Memory`, `Interrupted`, `Internal`.
///
/// # Panics
/// If a slice is too short.
pub fn weight_gradient<T: Float>(
    x: &[T],
    dy: &[T],
    m: usize,
    (n, k): (usize, usize),
    dw: &mut [T],
) -> Result<()> {
    assert!(x.len() >= m * k && dy.len() >= m * n && dw.len() >= n * k, "rows of a gradient");
    let dw = &mut dw[..n * k];
    if m == 0 {
        dw.fill(T::ZERO);
    }
    if m == 0 || n == 0 || k == 0 {
        return Ok(());
    }
    let isa = active()?;
    let RegisterTile { rows: mr, lanes, nv } = T::dispatch(isa, TileOf);
    let whole = lanes * nv;
    let panels = k.div_ceil(whole);
    let mut packed = Reused::<T>::new(packed_len(k, m.min(STEPS), lanes))?;
    let out = OutRows::new(dw);
    let team = if m * n * k < WORTH_A_THREAD { 1 } else { team_size() };

    // Columns of dy, rows of dw, are dealt as those of a forward product are.
    let row_tasks = n.div_ceil(TASK_ROWS);
    let wanted = if team > 1 { (4 * team).div_ceil(row_tasks) } else { 1 };
    let long = (n.div_ceil(row_tasks) * k * m.min(STEPS)).div_ceil(TASK_WORK);
    let column_tasks = wanted.max(long).clamp(1, panels);
    let tiles = n.div_ceil(mr);

    for start in (0..m).step_by(STEPS) {
        let steps = STEPS.min(m - start);
        let shared = OutRows::new(&mut packed[..packed_len(k, steps, lanes)]);
        let pack = |panel: usize| {
            checkpoint()?;
            let first = panel * whole;
            let columns = whole.min(k - first);
            // SAFETY: each task packs its own panel.
            let out = unsafe { shared.slice(first * steps, packed_len(columns, steps, lanes)) };
            T::dispatch(isa, PackColumns { x: &x[start * k + first..], ldx: k, steps, columns, out });
            Ok(())
        };
        if team == 1 {
            try_parallel(1, |_| (0..panels).try_for_each(pack))?;
        } else {
            try_parallel(panels, pack)?;
        }
        let ldx = steps.next_multiple_of(lanes);
        let data = &packed[..packed_len(k, steps, lanes)];
        let task = |task: usize| {
            let (row_task, column_task) = (task / column_tasks, task % column_tasks);
            // Whole tiles, but for the last.
            let rows = mr * (tiles * row_task / row_tasks)..n.min(mr * (tiles * (row_task + 1) / row_tasks));
            with_scratch(rows.len() * ldx, |turned: &mut [T]| {
                let dy = &dy[start * n + rows.start..];
                let columns = rows.len();
                T::dispatch(isa, Transpose { x: dy, ldx: n, rows: steps, columns, out: &mut *turned });
                checkpoint()?;
                let product = Product {
                    x: turned,
                    ldx,
                    m: rows.len(),
                    weights: Panels { data, n: k, k: steps },
                    panels: panels * column_task / column_tasks..panels * (column_task + 1) / column_tasks,
                    ldo: k,
                    first_row: rows.start,
                    first_column: 0,
                    out,
                    then: &[],
                    next: &[],
                    onto: start > 0,
                    epilogue: nothing(),
                };
                T::dispatch(isa, product);
                Ok(())
            })
        };
        if team == 1 {
            try_parallel(1, |_| (0..row_tasks * column_tasks).try_for_each(task))?;
        } else {
            try_parallel(row_tasks * column_tasks, task)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::naive::dot;
    use crate::kernels::testing::{assert_same_bits, normals, rms_relative};
    use crate::ops::linear::After;
    use ndarray::ArrayView2;

    /// (m, N, K): single numbers, parts of tiles and of panels, several blocks of every sum, several tasks.
    const SHAPES: [(usize, usize, usize); 8] = [
        (1, 1, 1),
        (3, 7, 100),
        (65, 33, 129),
        (200, 50, 17),
        (769, 20, 49),
        (1600, 75, 96),
        (130, 400, 300),
        (20, 1000, 3),
    ];

    fn transposed<T: Float>(x: &[T], rows: usize, columns: usize) -> Vec<T> {
        (0..rows * columns).map(|i| x[i % rows * columns + i / rows]).collect()
    }

    /// a (m, k) · bᵀ (k, n) by the forward product, whose chains the gradients must have.
    fn forward<T: Float>(
        a: &[T],
        b: &[T],
        (m, n, k): (usize, usize, usize),
        residual: Option<&[T]>,
    ) -> Vec<T> {
        let mut out = vec![T::NAN; m * n];
        let packed = PackedLinear::new(ArrayView2::from_shape((n, k), b).unwrap(), None).unwrap();
        packed.forward(a, m, &mut out, After { residual, ..After::default() }).unwrap();
        out
    }

    fn naive(a: &[f64], b: &[f64], (m, n, k): (usize, usize, usize)) -> Vec<f64> {
        (0..m * n).map(|i| dot(&a[i / n * k..][..k], &b[i % n * k..][..k])).collect()
    }

    fn wide<T: Float>(x: &[T]) -> Vec<f64> {
        x.iter().map(|x| x.to_f64()).collect()
    }

    fn check<T: Float>(bound: f64) {
        for (m, n, k) in SHAPES {
            let (x, dy, w) =
                (normals::<T>(m * k, 1, 1.0), normals::<T>(m * n, 2, 1.0), normals::<T>(n * k, 3, 1.0));
            let packed = PackedLinear::new(ArrayView2::from_shape((n, k), &w).unwrap(), None).unwrap();
            let turned = transposed(&w, n, k);
            for residual in [None, Some(&x[..])] {
                let mut dx = vec![T::NAN; m * k];
                packed.backward_input(&dy, m, &mut dx, residual).unwrap();
                assert_same_bits(&dx, &forward(&dy, &turned, (m, k, n), residual));
                if residual.is_none() {
                    assert!(rms_relative(&dx, &naive(&wide(&dy), &wide(&turned), (m, k, n))) <= bound);
                    let mut once = vec![T::NAN; m * k];
                    input_gradient_once(&dy, m, (&w, n, k), &mut once).unwrap();
                    assert_same_bits(&once, &dx);
                    // On one thread, from nothing and onto zeros, which begin the same sums.
                    let again = packed.turned().unwrap();
                    for onto in [false, true] {
                        let mut here = vec![if onto { T::ZERO } else { T::NAN }; m * k];
                        again.rows_here(&dy, m, &mut here, onto);
                        assert_same_bits(&here, &dx);
                    }
                }
            }
            let mut dw = vec![T::NAN; n * k];
            weight_gradient(&x, &dy, m, (n, k), &mut dw).unwrap();
            let (x, dy) = (transposed(&x, m, k), transposed(&dy, m, n));
            assert_same_bits(&dw, &forward(&dy, &x, (n, k, m), None));
            assert!(rms_relative(&dw, &naive(&wide(&dy), &wide(&x), (n, k, m))) <= bound);
        }
    }

    #[test]
    fn gradients_have_the_chains_of_the_forward_product() {
        check::<f32>(5e-7);
        check::<f64>(1e-15);
    }

    #[test]
    fn nothing_comes_of_nothing() {
        let w = PackedLinear::<f32>::new(ArrayView2::from_shape((0, 3), &[]).unwrap(), None).unwrap();
        let mut dx = [7.0; 6];
        w.backward_input(&[], 2, &mut dx, None).unwrap();
        assert_same_bits(&dx, &[0.0; 6]);
        let mut dw = [7.0; 6];
        weight_gradient::<f32>(&[], &[], 0, (2, 3), &mut dw).unwrap();
        assert_same_bits(&dw, &[0.0; 6]);
        weight_gradient::<f32>(&[1.0; 4], &[], 4, (0, 1), &mut []).unwrap();
    }
}
