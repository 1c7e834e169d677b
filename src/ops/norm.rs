//! Layer norm and RMS norm along the last axis of an array.

mod backward;

pub use backward::{
    NormGradients, layer_norm_backward, layer_norm_rows_backward, rms_norm_backward, rms_norm_rows_backward,
};

use ndarray::{ArrayD, ArrayViewD};

use super::buffer::zeros;
use super::rows::{dense, over_rows, shaped};
use crate::error::{Error, Result};
use crate::kernels::norm::{LayerNorm, RmsNorm};
use crate::simd::{Float, active};

/// `(x - mean) / sqrt(var + eps) * weight + bias` over the last axis, (..., D); weight and bias are (D,).
///
/// # Errors
/// `Shape` where x has no axis or a parameter another shape, `Value` for a negative eps; `Memory`, `Interrupted`.
pub fn layer_norm<T: Float>(
    x: &ArrayViewD<'_, T>,
    weight: Option<&ArrayViewD<'_, T>>,
    bias: Option<&ArrayViewD<'_, T>>,
    eps: f64,
) -> Result<ArrayD<T>> {
    let width = last_width(x)?;
    check_parameter("weight", weight, width)?;
    check_parameter("bias", bias, width)?;
    let eps = check_eps(eps)?;
    let weight = weight.map(dense).transpose()?;
    let bias = bias.map(dense).transpose()?;
    each_run(x, width, |isa, x, out| {
        let (weight, bias) = (weight.as_deref(), bias.as_deref());
        T::dispatch(isa, LayerNorm { x, out, width, weight, bias, eps });
    })
}

/// `x / sqrt(mean of x^2 + eps) * weight` over the last axis, (..., D); weight is (D,). Without an eps it is the
/// distance from 1 to the next number of x's type, as in torch.
///
/// # Errors
/// As [`layer_norm`].
pub fn rms_norm<T: Float>(
    x: &ArrayViewD<'_, T>,
    weight: Option<&ArrayViewD<'_, T>>,
    eps: Option<f64>,
) -> Result<ArrayD<T>> {
    let width = last_width(x)?;
    check_parameter("weight", weight, width)?;
    let eps =
        check_eps(eps.unwrap_or(if size_of::<T>() == 4 { f64::from(f32::EPSILON) } else { f64::EPSILON }))?;
    let weight = weight.map(dense).transpose()?;
    each_run(x, width, |isa, x, out| {
        let weight = weight.as_deref();
        T::dispatch(isa, RmsNorm { x, out, width, weight, eps });
    })
}

/// Layer norm of dense rows of `width` numbers, for layers, which have checked their shapes.
///
/// # Errors
/// `Interrupted`, `Internal`.
pub fn layer_norm_rows<T: Float>(
    x: &[T],
    width: usize,
    weight: Option<&[T]>,
    bias: Option<&[T]>,
    eps: T,
    out: &mut [T],
) -> Result<()> {
    let isa = active()?;
    over_rows(&mut out[..x.len()], width, 1 + width / 2, |first, out| {
        let x = &x[first * width..first * width + out.len()];
        T::dispatch(isa, LayerNorm { x, out, width, weight, bias, eps });
    })
}

/// RMS norm of dense rows of `width` numbers, for layers.
///
/// # Errors
/// `Interrupted`, `Internal`.
pub fn rms_norm_rows<T: Float>(
    x: &[T],
    width: usize,
    weight: Option<&[T]>,
    eps: T,
    out: &mut [T],
) -> Result<()> {
    let isa = active()?;
    over_rows(&mut out[..x.len()], width, 1 + width / 2, |first, out| {
        let x = &x[first * width..first * width + out.len()];
        T::dispatch(isa, RmsNorm { x, out, width, weight, eps });
    })
}

fn each_run<T: Float>(
    x: &ArrayViewD<'_, T>,
    width: usize,
    f: impl Fn(crate::simd::Isa, &[T], &mut [T]) + Sync,
) -> Result<ArrayD<T>> {
    let numbers = dense(x)?;
    let mut out = zeros(numbers.len())?;
    let isa = active()?;
    over_rows(&mut out, width, 1 + width / 2, |first, out| {
        f(isa, &numbers[first * width..first * width + out.len()], out);
    })?;
    shaped(x.shape(), out)
}

fn last_width<T>(x: &ArrayViewD<'_, T>) -> Result<usize> {
    let scalar = || Error::Shape("x: expected (..., D), got an array without axes".into());
    x.shape().last().copied().ok_or_else(scalar)
}

fn check_parameter<T>(name: &str, p: Option<&ArrayViewD<'_, T>>, width: usize) -> Result<()> {
    match p {
        Some(p) if p.shape() != [width] => Err(Error::Shape(format!(
            "{name}: expected (D,) = ({width},), the last axis of x, got {:?}",
            p.shape()
        ))),
        _ => Ok(()),
    }
}

/// The eps that kernels add, in their own type.
fn check_eps<T: Float>(eps: f64) -> Result<T> {
    if eps >= 0.0 && eps.is_finite() {
        return Ok(T::from_f64(eps));
    }
    Err(Error::Value(format!("eps: expected a number from 0 on, got {eps}")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::naive;
    use crate::kernels::testing::{assert_same_bits, normals, rms_relative};
    use ndarray::IxDyn;

    fn wide(x: &[f32]) -> Vec<f64> {
        x.iter().map(|&x| f64::from(x)).collect()
    }

    #[test]
    fn rows_agree_with_the_formula() {
        let (x, w, b) =
            (normals::<f32>(60 * 384, 1, 2.0), normals::<f32>(384, 2, 1.0), normals::<f32>(384, 3, 1.0));
        let array = shaped(&[3, 20, 384], x.clone()).unwrap();
        let (weight, bias) = (shaped(&[384], w.clone()).unwrap(), shaped(&[384], b.clone()).unwrap());
        let layer = layer_norm(&array.view(), Some(&weight.view()), Some(&bias.view()), 1e-5).unwrap();
        let rms = rms_norm(&array.view(), Some(&weight.view()), None).unwrap();
        let (w, b) = (wide(&w), wide(&b));
        for (i, x) in x.chunks(384).enumerate() {
            let x = wide(x);
            let row = |y: &ArrayD<f32>| y.as_slice().unwrap()[i * 384..(i + 1) * 384].to_vec();
            assert!(rms_relative(&row(&layer), &naive::layer_norm(&x, Some(&w), Some(&b), 1e-5)) < 2e-7);
            assert!(rms_relative(&row(&rms), &naive::rms_norm(&x, Some(&w), f64::from(f32::EPSILON))) < 2e-7);
        }
    }

    #[test]
    fn layout_does_not_matter() {
        let x = shaped(&[50, 33], normals::<f64>(1650, 2, 1.0)).unwrap();
        let turned = x.t().to_owned().into_dyn();
        let a = layer_norm(&x.view(), None, None, 1e-5).unwrap();
        let b = layer_norm(&turned.view().reversed_axes(), None, None, 1e-5).unwrap();
        assert_same_bits(a.as_slice().unwrap(), b.as_slice().unwrap());
    }

    #[test]
    fn what_does_not_fit_is_named() {
        let x = ArrayD::<f32>::zeros(IxDyn(&[2, 8]));
        let (seven, flat) = (ArrayD::zeros(IxDyn(&[7])), ArrayD::zeros(IxDyn(&[1, 8])));
        for wrong in [&seven, &flat] {
            for result in [
                layer_norm(&x.view(), Some(&wrong.view()), None, 1e-5),
                layer_norm(&x.view(), None, Some(&wrong.view()), 1e-5),
                rms_norm(&x.view(), Some(&wrong.view()), None),
            ] {
                assert!(matches!(result, Err(Error::Shape(text)) if text.contains("(D,) = (8,)")));
            }
        }
        for eps in [-1.0, f64::NAN, f64::INFINITY] {
            assert!(matches!(rms_norm(&x.view(), None, Some(eps)), Err(Error::Value(_))));
        }
        let scalar = ArrayD::<f32>::zeros(IxDyn(&[]));
        assert!(matches!(layer_norm(&scalar.view(), None, None, 1e-5), Err(Error::Shape(_))));
        let empty = ArrayD::<f32>::zeros(IxDyn(&[3, 0]));
        assert_eq!(layer_norm(&empty.view(), None, None, 1e-5).unwrap().shape(), [3, 0]);
    }
}
