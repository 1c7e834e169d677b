//! Gradients of [`project`](super::project::project): of x (..., K), of weight (N, K) and of bias (N,).

use ndarray::{ArrayD, ArrayViewD};

use super::activation::activate_backward;
use super::buffer::zeros;
use super::columns::column_sums;
use super::linear_backward::{input_gradient_once, weight_gradient};
use super::rows::{dense, shaped};
use crate::error::{Error, Result};
use crate::kernels::activation::Activation;
use crate::simd::Float;

/// A gradient for each argument.
pub struct ProjectGradients<T> {
    /// Of x, of its shape.
    pub x: ArrayD<T>,
    /// Of the weight (N, K).
    pub weight: ArrayD<T>,
    /// Of the bias (N,).
    pub bias: Option<ArrayD<T>>,
}

/// From the gradient `d` (..., N) of the result to those of the arguments, that of a bias if it is asked for; `before`
/// is the activation with what it was applied to, as many numbers as `d` has.
///
/// # Errors
/// `Shape` where the arrays do not fit each other, `Memory`, `Interrupted`, `Internal`.
pub fn project_backward<T: Float>(
    x: &ArrayViewD<'_, T>,
    weight: &ArrayViewD<'_, T>,
    bias: bool,
    before: Option<(Activation, &[T])>,
    d: &ArrayViewD<'_, T>,
) -> Result<ProjectGradients<T>> {
    let misfit = || {
        Error::Shape(format!(
            "x (..., K), weight (N, K) and d_out (..., N) do not fit: {:?}, {:?} and {:?}",
            x.shape(),
            weight.shape(),
            d.shape()
        ))
    };
    let (Some((&k, rows)), &[n, weight_k]) = (x.shape().split_last(), weight.shape()) else {
        return Err(misfit());
    };
    if weight_k != k || d.shape().split_last() != Some((&n, rows)) {
        return Err(misfit());
    }
    let m = rows.iter().product();
    let (numbers, w, mut d) = (dense(x)?, dense(weight)?, dense(d)?);
    if let Some((activation, before)) = before {
        if before.len() != d.len() {
            return Err(misfit());
        }
        activate_backward(activation, before, d.to_mut())?;
    }
    let mut dx = zeros(numbers.len())?;
    input_gradient_once(&d, m, (&w, n, k), &mut dx)?;
    let mut dw = zeros(w.len())?;
    weight_gradient(&numbers, &d, m, (n, k), &mut dw)?;
    let db = if bias {
        let mut db = zeros(n)?;
        column_sums(&d, m, n, &mut db)?;
        Some(shaped(&[n], db)?)
    } else {
        None
    };
    Ok(ProjectGradients { x: shaped(x.shape(), dx)?, weight: shaped(&[n, k], dw)?, bias: db })
}
