//! Squared error of a prediction and a target of one shape, and the sum of squares that gradients are clipped by.
//!
//! ```text
//! loss = sum of (prediction - target)^2 / n,  d prediction = 2 (prediction - target) / n
//! ```
//!
//! Squares are summed in f64: the kernel's tree within blocks of 4,096 numbers in C order, the blocks in order.

use ndarray::{ArrayD, ArrayViewD};

use super::buffer::zeros;
use super::rows::{dense, over_rows, shaped};
use crate::error::Result;
use crate::kernels::squares::SumOfSquares;
use crate::simd::{Float, active};

/// Numbers of a block of a sum.
const BLOCK: usize = 4096;

/// The sum of the squares of `x`, in f64.
///
/// # Errors
/// `Memory`, `Interrupted`, `Internal`.
pub fn sum_of_squares<T: Float>(x: &[T]) -> Result<f64> {
    let mut blocks = zeros::<f64>(x.len().div_ceil(BLOCK))?;
    let isa = active()?;
    over_rows(&mut blocks, 1, BLOCK / 4, |first, sums| {
        for (sum, block) in sums.iter_mut().zip(x[first * BLOCK..].chunks(BLOCK)) {
            *sum = T::dispatch(isa, SumOfSquares { x: block });
        }
    })?;
    Ok(blocks.iter().sum())
}

/// Loss and gradient; numbers that are not `counted` give neither, whatever they are. A mean over nothing is 0.
///
/// # Errors
/// `Memory`, `Interrupted`, `Internal`.
pub fn squared_error<T: Float>(
    prediction: &ArrayViewD<'_, T>,
    target: &[T],
    counted: Option<&[bool]>,
    mean: bool,
) -> Result<(f64, ArrayD<T>)> {
    let numbers = dense(prediction)?;
    assert_eq!(numbers.len(), target.len(), "a target for each number");
    assert!(counted.is_none_or(|c| c.len() == target.len()), "a flag for each number");
    let n = match (mean, counted) {
        (false, _) => 1,
        (true, None) => target.len(),
        (true, Some(counted)) => counted.iter().filter(|&&c| c).count(),
    };
    let n = if n == 0 { 1.0 } else { n as f64 };
    let mut gradient = zeros(numbers.len())?;
    over_rows(&mut gradient, 1, 1, |first, out| {
        for (i, d) in out.iter_mut().enumerate() {
            let at = first + i;
            *d = if counted.is_none_or(|c| c[at]) { numbers[at] - target[at] } else { T::ZERO };
        }
    })?;
    let loss = sum_of_squares(&gradient)? / n;
    let n = T::from_f64(n);
    over_rows(&mut gradient, 1, 1, |_, out| {
        for d in out {
            *d = (*d + *d) / n;
        }
    })?;
    Ok((loss, shaped(prediction.shape(), gradient)?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::testing::{assert_same_bits, normals};

    #[test]
    fn what_does_not_count_leaves_no_trace() {
        let n = 10_000;
        let (x, y) = (normals::<f64>(n, 1, 1.0), normals::<f64>(n, 2, 1.0));
        let counted: Vec<bool> = (0..n).map(|i| i % 3 != 1).collect();
        let mut poisoned = x.clone();
        for (x, _) in poisoned.iter_mut().zip(&counted).filter(|(_, c)| !**c) {
            *x = f64::NAN;
        }
        let x = shaped(&[100, 100], poisoned).unwrap();
        let (loss, gradient) = squared_error(&x.view(), &y, Some(&counted), true).unwrap();
        let rest = counted.iter().filter(|c| **c).count() as f64;
        let exact =
            (0..n).filter(|&i| counted[i]).map(|i| (x.as_slice().unwrap()[i] - y[i]).powi(2)).sum::<f64>();
        assert!((loss - exact / rest).abs() <= 1e-13 * loss);
        for (i, &d) in gradient.iter().enumerate() {
            let want = if counted[i] { 2.0 * (x.as_slice().unwrap()[i] - y[i]) / rest } else { 0.0 };
            assert_eq!(d, want);
        }
        let (loss, gradient) = squared_error(&x.view(), &y, Some(&vec![false; n]), true).unwrap();
        assert_eq!(loss, 0.0);
        assert_same_bits(gradient.as_slice().unwrap(), &vec![0.0; n]);
    }
}
