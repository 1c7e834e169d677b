//! What operations on rows share: inputs made dense, outputs of a shape, and rows dealt to threads.

use std::borrow::Cow;
use std::sync::Mutex;

use ndarray::{ArrayD, ArrayViewD, IxDyn};

use super::buffer::zeros;
use crate::error::{Error, Result};
use crate::threads::parallel;

/// Work of a task, in units of about a nanosecond: enough to pay for waking a thread.
const TASK: usize = 20_000;

/// The numbers in C order: borrowed where they lie so already, else copied.
///
/// # Errors
/// `Memory`.
pub(crate) fn dense<'a, T: bytemuck::Pod>(x: &'a ArrayViewD<'_, T>) -> Result<Cow<'a, [T]>> {
    if let Some(x) = x.as_slice() {
        return Ok(Cow::Borrowed(x));
    }
    let mut copy = zeros(x.len())?;
    for (to, from) in copy.iter_mut().zip(x) {
        *to = *from;
    }
    Ok(Cow::Owned(copy))
}

/// An array of `shape` around numbers in C order.
///
/// # Errors
/// `Internal` if the shape has another number of elements.
pub(crate) fn shaped<T>(shape: &[usize], numbers: Vec<T>) -> Result<ArrayD<T>> {
    ArrayD::from_shape_vec(IxDyn(shape), numbers).map_err(|e| Error::Internal(format!("output shape: {e}")))
}

/// Cuts `out` into runs of whole rows of `width` numbers and calls `f(first row, run)` for each, on several threads
/// where there is enough to do; `cost` is the work of a row in nanoseconds, roughly.
///
/// # Errors
/// `Interrupted`, `Internal`.
pub(crate) fn over_rows<T: Send>(
    out: &mut [T],
    width: usize,
    cost: usize,
    f: impl Fn(usize, &mut [T]) + Sync,
) -> Result<()> {
    if out.is_empty() {
        return Ok(());
    }
    let run = TASK.div_ceil(cost.max(1));
    // Each run is taken by the one task of its number; the lock is never waited for.
    let runs: Vec<_> = out.chunks_mut(run.saturating_mul(width)).map(|rows| Mutex::new(Some(rows))).collect();
    parallel(runs.len(), |i| {
        let rows = runs[i].lock().ok().and_then(|mut rows| rows.take());
        if let Some(rows) = rows {
            f(i * run, rows);
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::Array2;

    #[test]
    fn dense_is_c_order() {
        let x = Array2::from_shape_fn((3, 4), |(i, j)| (4 * i + j) as f32).into_dyn();
        assert!(matches!(dense(&x.view()).unwrap(), Cow::Borrowed(_)));
        let turned = x.view().reversed_axes();
        let numbers = dense(&turned).unwrap().into_owned();
        assert_eq!(numbers, [0., 4., 8., 1., 5., 9., 2., 6., 10., 3., 7., 11.]);
        assert_eq!(shaped(&[4, 3], numbers).unwrap(), turned);
        assert!(matches!(shaped(&[5], vec![0.0]), Err(Error::Internal(_))));
    }

    #[test]
    fn every_row_once() {
        for (rows, width, cost) in [(0, 3, 1), (1, 1, 1), (1000, 3, 100), (7, 5, 1 << 40), (100_000, 2, 1)] {
            let mut out = vec![0; rows * width];
            over_rows(&mut out, width, cost, |first, run| {
                for (i, row) in run.chunks_mut(width).enumerate() {
                    row.fill(first + i + 1);
                }
            })
            .unwrap();
            assert!(out.chunks(width).enumerate().all(|(i, row)| row.iter().all(|&x| x == i + 1)));
        }
    }
}
