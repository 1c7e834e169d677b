//! softmax along an axis of an array.

use ndarray::{ArrayD, ArrayViewD, Axis};

use super::buffer::zeros;
use super::rows::{dense, over_rows, shaped};
use crate::error::{Error, Result};
use crate::kernels::softmax::{Softmax, SoftmaxBackward};
use crate::simd::{Float, active};

/// `e^x / sum of e^x` along `axis`, which counts from the end where negative. The result is in C order.
///
/// # Errors
/// `Value` where x has no such axis; `Memory`, `Interrupted`, `Internal`.
pub fn softmax<T: Float>(x: &ArrayViewD<'_, T>, axis: isize) -> Result<ArrayD<T>> {
    let axis = check_axis(x, axis)?;
    back_in_place(last_axis(&axis_last(x, axis))?, axis)
}

/// Gradient of [`softmax`]: from `d`, that of the result, to that of x. The result is computed again.
///
/// # Errors
/// As [`softmax`]; `Shape` where d has another shape than x.
pub fn softmax_backward<T: Float>(
    x: &ArrayViewD<'_, T>,
    d: &ArrayViewD<'_, T>,
    axis: isize,
) -> Result<ArrayD<T>> {
    let axis = check_axis(x, axis)?;
    if d.shape() != x.shape() {
        return Err(Error::Shape(format!("d_out: expected {:?}, got {:?}", x.shape(), d.shape())));
    }
    let p = last_axis(&axis_last(x, axis))?;
    let d = axis_last(d, axis);
    let mut dx = dense(&d)?.into_owned();
    softmax_rows_backward(p.as_slice().unwrap_or(&[]), x.len_of(Axis(axis)), &mut dx)?;
    back_in_place(shaped(p.shape(), dx)?, axis)
}

/// The axis counted from the front.
fn check_axis<T>(x: &ArrayViewD<'_, T>, axis: isize) -> Result<usize> {
    let ndim = x.ndim() as isize;
    if axis < -ndim || axis >= ndim {
        return Err(Error::Value(format!(
            "axis: expected -{ndim} to {} for x of rank {ndim}, got {axis}",
            ndim - 1
        )));
    }
    Ok((if axis < 0 { axis + ndim } else { axis }) as usize)
}

/// The array with `axis` last, so that its numbers are rows.
fn axis_last<'a, T>(x: &ArrayViewD<'a, T>, axis: usize) -> ArrayViewD<'a, T> {
    let mut rows = x.clone();
    for i in axis..rows.ndim() - 1 {
        rows.swap_axes(i, i + 1);
    }
    rows
}

/// The array with its last axis at the place of `axis`, in C order.
fn back_in_place<T: Float>(out: ArrayD<T>, axis: usize) -> Result<ArrayD<T>> {
    if axis + 1 == out.ndim() {
        return Ok(out);
    }
    let mut view = out.view();
    for i in (axis..view.ndim() - 1).rev() {
        view.swap_axes(i, i + 1);
    }
    shaped(view.shape(), dense(&view)?.into_owned())
}

/// Gradient of a softmax over the last axis: rows of `width` numbers of its result p and of the gradient of that in `d`,
/// which becomes `p (d - sum of d p)`.
///
/// # Errors
/// `Interrupted`, `Internal`.
pub fn softmax_rows_backward<T: Float>(p: &[T], width: usize, d: &mut [T]) -> Result<()> {
    let isa = active()?;
    over_rows(&mut d[..p.len()], width, 1 + width / 4, |first, d| {
        let p = &p[first * width..first * width + d.len()];
        T::dispatch(isa, SoftmaxBackward { p, d, width });
    })
}

fn last_axis<T: Float>(x: &ArrayViewD<'_, T>) -> Result<ArrayD<T>> {
    let numbers = dense(x)?;
    let width = x.len_of(Axis(x.ndim() - 1));
    let mut out = zeros(numbers.len())?;
    let isa = active()?;
    over_rows(&mut out, width, 1 + width, |first, out| {
        let x = &numbers[first * width..first * width + out.len()];
        T::dispatch(isa, Softmax { x, out, width });
    })?;
    shaped(x.shape(), out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::naive;
    use crate::kernels::testing::{assert_same_bits, normals, rms_relative};

    #[test]
    fn every_axis_is_the_last_of_a_turned_array() {
        let x = shaped(&[3, 4, 5, 6], normals::<f32>(360, 1, 3.0)).unwrap();
        for axis in 0..4 {
            let out = softmax(&x.view(), axis).unwrap();
            assert!(out.is_standard_layout() && out.shape() == x.shape());
            assert_eq!(out, softmax(&x.view(), axis - 4).unwrap());
            for (x, y) in x.lanes(Axis(axis as usize)).into_iter().zip(out.lanes(Axis(axis as usize))) {
                let x: Vec<f64> = x.iter().map(|&x| f64::from(x)).collect();
                assert!(rms_relative(&y.to_vec(), &naive::softmax(&x)) < 2e-7);
            }
        }
    }

    #[test]
    fn layout_does_not_matter() {
        let x = shaped(&[70, 33], normals::<f64>(2310, 2, 1.0)).unwrap();
        let turned = x.t().to_owned().into_dyn();
        let a = softmax(&x.view(), 1).unwrap();
        let b = softmax(&turned.view().reversed_axes(), 1).unwrap();
        assert_same_bits(a.as_slice().unwrap(), b.as_slice().unwrap());
    }

    #[test]
    fn empty_arrays_and_wrong_axes() {
        let empty = ArrayD::<f32>::zeros(ndarray::IxDyn(&[3, 0]));
        assert_eq!(softmax(&empty.view(), -1).unwrap().shape(), [3, 0]);
        assert_eq!(softmax(&empty.view(), 0).unwrap().shape(), [3, 0]);
        for axis in [2, -3, isize::MIN, isize::MAX] {
            assert!(matches!(softmax(&empty.view(), axis), Err(Error::Value(text)) if text.contains("axis")));
        }
        let scalar = ArrayD::<f32>::zeros(ndarray::IxDyn(&[]));
        assert!(softmax(&scalar.view(), -1).is_err());
    }
}
