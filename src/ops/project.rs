//! activation(x · weightᵀ + bias) on arrays whose last axis is the width: the one-shot form of
//! [`PackedLinear`](super::linear::PackedLinear), for weights that are used this once. Layers keep theirs packed.

use ndarray::{ArrayD, ArrayViewD, Ix2, IxDyn};

use super::buffer::{elements, zeros};
use super::linear::product_once;
use super::scaled_dot_product::array;
use crate::error::{Error, Result};
use crate::kernels::activation::Activation;
use crate::simd::Float;

/// Projects x (..., K) by weight (N, K) and bias (N,) to (..., N).
///
/// # Errors
/// `Shape` with the argument's name, `Memory`, `Interrupted`, `Internal`.
pub fn project<T: Float>(
    x: &ArrayViewD<'_, T>,
    weight: &ArrayViewD<'_, T>,
    bias: Option<&ArrayViewD<'_, T>>,
    activation: Activation,
) -> Result<ArrayD<T>> {
    let Some((&k, rows)) = x.shape().split_last() else {
        return Err(Error::Shape("x: expected (..., K), got a number".into()));
    };
    let matrix = weight.view().into_dimensionality::<Ix2>().ok().filter(|w| w.ncols() == k);
    let Some(matrix) = matrix else {
        return Err(Error::Shape(format!(
            "weight: expected (N, K) with K = {k}, the last axis of x {:?}, got {:?}",
            x.shape(),
            weight.shape()
        )));
    };
    let n = matrix.nrows();
    if let Some(b) = bias.filter(|b| b.shape() != [n]) {
        let came = b.shape();
        return Err(Error::Shape(format!(
            "bias: expected (N,) = ({n},), one number for each row of weight, got {came:?}"
        )));
    }
    let shape = [rows, &[n]].concat();
    let mut out = zeros(elements("x", &shape)?)?;
    let m = rows.iter().product();
    let bias = bias.map(|b| b.iter().copied().collect::<Vec<T>>());
    let weight = matrix.as_standard_layout();
    let weight = (weight.as_slice().unwrap_or(&[]), n, k);
    let copy;
    let x = if let Some(x) = x.as_slice() {
        x
    } else {
        let mut dense: ArrayD<T> = array(x.shape().to_vec())?;
        dense.assign(x);
        copy = dense;
        copy.as_slice().unwrap_or(&[])
    };
    product_once(x, m, weight, bias.as_deref(), activation, &mut out)?;
    ArrayD::from_shape_vec(IxDyn(&shape), out).map_err(|e| Error::Internal(e.to_string()))
}
