//! out = activation(x · wᵀ + bias) + residual over rows, split over threads by rows and by columns, never by K.

use std::ops::Range;

use ndarray::ArrayView2;

use super::aligned::{Aligned, with_scratch};
use super::buffer::zeros;
use super::try_parallel;
use crate::error::{Error, Result};
use crate::kernels::activation::Activation;
use crate::kernels::gemm::{Epilogue, OutRows, Product};
use crate::kernels::pack::{PackRows, Panels, UnpackRows, packed_len};
use crate::simd::{Float, Isa, Kernel, Simd, active};
use crate::threads::{checkpoint, parallel, team_size};

/// Rows that a task takes: a whole number of tiles on every instruction set (8, 6 and 4 rows), few enough that they
/// stay in the second-level cache while all panels pass by.
pub(super) const TASK_ROWS: usize = 72;

/// Multiply-adds below which a second thread costs more than it brings: about ten microseconds of work.
pub(super) const WORTH_A_THREAD: usize = 400_000;

/// Multiply-adds of the longest task: a few milliseconds, after which a call looks for Ctrl-C.
pub(super) const TASK_WORK: usize = 1 << 28;

/// Numbers of weights that are read at a time, before they are packed: they are still in the second-level cache then.
const READ_NUMBERS: usize = 1 << 16;

/// Weights (N, K) of a product, packed for the instruction set in use, and their bias (N).
pub struct PackedLinear<T> {
    pub(super) data: Aligned<T>,
    pub(super) bias: Option<Vec<T>>,
    pub(super) n: usize,
    pub(super) k: usize,
    pub(super) isa: Isa,
}

/// What follows the product: the activation, then the residual (m, N), dense.
#[derive(Clone, Copy)]
pub struct After<'a, T> {
    /// Applied to the sum and its bias.
    pub activation: Activation,
    /// Added last.
    pub residual: Option<&'a [T]>,
    /// Weights, as [`PackedLinear::panels`] gives them, of the product that comes next: a hint.
    pub next: &'a [T],
}

impl<T> Default for After<'_, T> {
    fn default() -> Self {
        Self { activation: Activation::Identity, residual: None, next: &[] }
    }
}

/// The register tile of an instruction set.
pub(super) struct RegisterTile {
    pub rows: usize,
    pub lanes: usize,
    /// Vectors in a row.
    pub nv: usize,
}

pub(super) struct TileOf;
impl<T: Float> Kernel<T> for TileOf {
    type Output = RegisterTile;
    #[inline(always)]
    fn run<S: Simd<T>>(self, _: S) -> RegisterTile {
        RegisterTile { rows: S::GEMM_MR, lanes: S::LANES, nv: S::GEMM_NV }
    }
}

impl<T: Float> PackedLinear<T> {
    /// Packs weights (N, K), row-major as torch keeps them, and a bias (N).
    ///
    /// # Errors
    /// `Shape` where the bias does not have N numbers, `Memory`.
    pub fn new(weight: ArrayView2<'_, T>, bias: Option<&[T]>) -> Result<Self> {
        let (n, k) = weight.dim();
        if let Some(b) = bias
            && b.len() != n
        {
            return Err(Error::Shape(format!(
                "bias: expected ({n},), one number for each row of weight, got ({},)",
                b.len()
            )));
        }
        let isa = active()?;
        let RegisterTile { lanes, nv, .. } = T::dispatch(isa, TileOf);
        let weight = weight.as_standard_layout();
        let w = weight.as_slice().expect("standard layout");
        let mut data = Aligned::zeros(packed_len(n, k, lanes))?;
        let panel_rows = lanes * nv;
        let out = OutRows::new(&mut data[..]);
        parallel(if n * k < WORTH_A_THREAD { 1 } else { n.div_ceil(panel_rows) }, |task| {
            let rows =
                if n * k < WORTH_A_THREAD { 0..n } else { task * panel_rows..n.min((task + 1) * panel_rows) };
            let len = packed_len(rows.len(), k, lanes);
            // SAFETY: each task packs the panel of its own rows.
            let out = unsafe { out.slice(rows.start * k, len) };
            T::dispatch(isa, PackRows { w: &w[rows.start * k..], ldw: k, n: rows.len(), k, out, nv });
        })?;
        Ok(Self { data, bias: bias.map(<[T]>::to_vec), n, k, isa })
    }

    /// The weights as they are read, for [`After::next`].
    pub fn panels(&self) -> &[T] {
        &self.data
    }

    /// Columns of the product.
    pub fn n(&self) -> usize {
        self.n
    }

    /// Columns of the input.
    pub fn k(&self) -> usize {
        self.k
    }

    /// Product of `m` dense rows `x` (m, K) into `out` (m, N).
    ///
    /// # Errors
    /// `Interrupted`, `Internal`.
    pub fn forward(&self, x: &[T], m: usize, out: &mut [T], after: After<'_, T>) -> Result<()> {
        assert!(x.len() >= m * self.k && out.len() >= m * self.n, "rows of a product");
        let (n, k) = (self.n, self.k);
        if m == 0 || n == 0 {
            return Ok(());
        }
        let RegisterTile { rows: mr, lanes, nv } = T::dispatch(self.isa, TileOf);
        let panels = n.div_ceil(lanes * nv);
        let row_tasks = m.div_ceil(TASK_ROWS);
        let small = m * n * k < WORTH_A_THREAD;
        let team = if small { 1 } else { team_size() };
        // Few rows are split by columns as well, so that every thread has work and the last one little to wait for.
        let wanted = if team > 1 { (4 * team).div_ceil(row_tasks) } else { 1 };
        let long = (m.div_ceil(row_tasks) * n * k).div_ceil(TASK_WORK);
        let column_tasks = wanted.max(long).clamp(1, panels);
        let shared = OutRows::new(out);
        let tiles = m.div_ceil(mr);
        let task = |row_task: usize, column_task: usize| {
            // Whole tiles, but for the last.
            let rows = mr * (tiles * row_task / row_tasks)..m.min(mr * (tiles * (row_task + 1) / row_tasks));
            let first = rows.start;
            let panels = panels * column_task / column_tasks..panels * (column_task + 1) / column_tasks;
            // The next task takes the same columns of other rows, or its share of the next product.
            let next = if row_task + 1 < row_tasks {
                &self.data[panels.start * lanes * nv * k..]
            } else {
                &after.next[after.next.len() * column_task / column_tasks..]
            };
            T::dispatch(
                self.isa,
                Product {
                    x: &x[first * k..],
                    ldx: k,
                    m: rows.len(),
                    weights: Panels { data: &self.data, n, k },
                    panels,
                    ldo: n,
                    first_row: first,
                    first_column: 0,
                    out: shared,
                    then: &[],
                    next,
                    onto: false,
                    epilogue: Epilogue {
                        bias: self.bias.as_deref(),
                        activation: after.activation,
                        residual: after.residual,
                    },
                },
            );
        };
        if small {
            return parallel(1, |_| (0..row_tasks).for_each(|r| task(r, 0)));
        }
        parallel(row_tasks * column_tasks, |i| task(i / column_tasks, i % column_tasks))
    }

    /// `m` rows `x` (m, K) times the weights into `out` (m, N), without the bias, all of it on this thread; or `onto` what is
    /// there. For products too small to be cut, one after the other.
    pub(super) fn rows_here(&self, x: &[T], m: usize, out: &mut [T], onto: bool) {
        let (n, k) = (self.n, self.k);
        assert!(x.len() >= m * k && out.len() >= m * n, "rows of a product");
        if m == 0 || n == 0 {
            return;
        }
        let RegisterTile { lanes, nv, .. } = T::dispatch(self.isa, TileOf);
        let out = OutRows::new(out);
        for first_row in (0..m).step_by(TASK_ROWS) {
            let product = Product {
                x: &x[first_row * k..],
                ldx: k,
                m: TASK_ROWS.min(m - first_row),
                weights: Panels { data: &self.data, n, k },
                panels: 0..n.div_ceil(lanes * nv),
                ldo: n,
                first_row,
                first_column: 0,
                out,
                then: &[],
                next: &self.data,
                onto,
                epilogue: Epilogue { bias: None, activation: Activation::Identity, residual: None },
            };
            T::dispatch(self.isa, product);
        }
    }

    /// Packs weights (N, K) that `rows` writes where it is told to, some whole rows at a time and from several threads,
    /// so that they are never in memory twice. `bias` has N numbers.
    ///
    /// # Errors
    /// `Memory`, `Interrupted`, `Internal`, and the errors of `rows`.
    ///
    /// # Panics
    /// If `bias` does not have N numbers.
    pub fn read(
        (n, k): (usize, usize),
        bias: Option<Vec<T>>,
        rows: impl Fn(Range<usize>, &mut [T]) -> Result<()> + Sync,
    ) -> Result<Self> {
        assert!(bias.as_ref().is_none_or(|b| b.len() == n), "one number of the bias for each row");
        let isa = active()?;
        let RegisterTile { lanes, nv, .. } = T::dispatch(isa, TileOf);
        let mut data = Aligned::zeros(packed_len(n, k, lanes))?;
        let out = OutRows::new(&mut data[..]);
        let task_rows = lanes * nv * (READ_NUMBERS / (k * lanes * nv).max(1)).max(1);
        try_parallel(n.div_ceil(task_rows), |task| {
            let at = task * task_rows..n.min((task + 1) * task_rows);
            with_scratch(at.len() * k, |w: &mut [T]| {
                rows(at.clone(), w)?;
                // SAFETY: each task packs the panels of its own rows.
                let out = unsafe { out.slice(at.start * k, packed_len(at.len(), k, lanes)) };
                T::dispatch(isa, PackRows { w, ldw: k, n: at.len(), k, out, nv });
                Ok(())
            })
        })?;
        Ok(Self { data, bias, n, k, isa })
    }

    /// The weights (N, K), row-major: those that were packed, bit for bit.
    ///
    /// # Errors
    /// `Memory`, `Interrupted`, `Internal`.
    pub fn unpack(&self) -> Result<Vec<T>> {
        let (n, k) = (self.n, self.k);
        let RegisterTile { lanes, nv, .. } = T::dispatch(self.isa, TileOf);
        let mut rows = zeros(n * k)?;
        let out = OutRows::new(&mut rows[..]);
        let task_rows = if n * k < WORTH_A_THREAD { n.next_multiple_of(lanes * nv) } else { lanes * nv };
        parallel(n.div_ceil(task_rows.max(1)), |task| {
            let at = task * task_rows..n.min((task + 1) * task_rows);
            let panels = &self.data[at.start * k..][..packed_len(at.len(), k, lanes)];
            // SAFETY: each task writes its own rows.
            let out = unsafe { out.slice(at.start * k, at.len() * k) };
            T::dispatch(self.isa, UnpackRows { panels, n: at.len(), k, out, nv });
        })?;
        Ok(rows)
    }

    /// The bias (N).
    pub fn bias(&self) -> Option<&[T]> {
        self.bias.as_deref()
    }
}

/// The same product with weights (N, K), dense, that are used this once.
///
/// # Errors
/// `Memory`, `Interrupted`, `Internal`.
pub fn product_once<T: Float>(
    x: &[T],
    m: usize,
    (w, n, k): (&[T], usize, usize),
    bias: Option<&[T]>,
    activation: Activation,
    out: &mut [T],
) -> Result<()> {
    let isa = active()?;
    let RegisterTile { nv, .. } = T::dispatch(isa, TileOf);
    let pack = |columns: Range<usize>, out: &mut [T]| {
        let (first, n) = (columns.start, columns.len());
        T::dispatch(isa, PackRows { w: &w[first * k..], ldw: k, n, k, out, nv });
    };
    let read = |columns: Range<usize>| &w[columns.start * k..columns.end * k];
    by_panels(isa, x, m, (n, k), pack, read, Epilogue { bias, activation, residual: None }, out)
}

/// A product whose panels are packed as they are used: every task packs one where it stays in the cache and takes all
/// rows through it, so that no packed copy of the weights is ever in memory.
///
/// `pack` makes the panel of some columns; `read` tells what it reads for them, which is asked for ahead of time.
///
/// # Errors
/// `Memory`, `Interrupted`, `Internal`.
#[allow(clippy::too_many_arguments, reason = "two callers, in the order of the product")]
pub(super) fn by_panels<'a, T: Float>(
    isa: Isa,
    x: &[T],
    m: usize,
    (n, k): (usize, usize),
    pack: impl Fn(Range<usize>, &mut [T]) + Sync,
    read: impl Fn(Range<usize>) -> &'a [T] + Sync,
    epilogue: Epilogue<'_, T>,
    out: &mut [T],
) -> Result<()> {
    let RegisterTile { lanes, nv, .. } = T::dispatch(isa, TileOf);
    let whole = lanes * nv;
    let panels = n.div_ceil(whole);
    let shared = OutRows::new(out);
    let team = team_size();
    let task = |panel: usize| {
        let first = panel * whole;
        let columns = whole.min(n - first);
        // The columns that this thread is likely to pack next.
        let then = read(((panel + team) * whole).min(n)..((panel + team + 1) * whole).min(n));
        with_scratch(packed_len(columns, k, lanes), |packed: &mut [T]| {
            pack(first..first + columns, &mut *packed);
            for rows in (0..m).step_by(TASK_ROWS) {
                checkpoint()?;
                T::dispatch(
                    isa,
                    Product {
                        x: &x[rows * k..],
                        ldx: k,
                        m: TASK_ROWS.min(m - rows),
                        weights: Panels { data: packed, n: columns, k },
                        panels: 0..1,
                        ldo: n,
                        first_row: rows,
                        first_column: first,
                        out: shared,
                        then: &then[then.len() * rows / m..then.len() * (rows + TASK_ROWS).min(m) / m],
                        next: &[],
                        onto: false,
                        epilogue: Epilogue { bias: epilogue.bias.map(|b| &b[first..]), ..epilogue },
                    },
                );
            }
            Ok(())
        })
    };
    if m * n * k < WORTH_A_THREAD {
        return try_parallel(1, |_| (0..panels).try_for_each(task));
    }
    try_parallel(panels, task)
}
