//! relu, gelu and silu of arrays and of dense rows, and their gradients.

use ndarray::{ArrayD, ArrayViewD};

use super::buffer::zeros;
use super::rows::{dense, over_rows, shaped};
use crate::error::{Error, Result};
use crate::kernels::activation::{Activate, Activation};
use crate::kernels::activation_backward::ActivateBackward;
use crate::simd::{Float, active};

/// `out[i] = activation(x[i])`, with the bits that the same activation behind a product gives.
///
/// # Errors
/// `Interrupted`, `Internal`.
pub fn activate<T: Float>(activation: Activation, x: &[T], out: &mut [T]) -> Result<()> {
    let isa = active()?;
    over_rows(&mut out[..x.len()], 1, 1, |first, out| {
        let x = &x[first..first + out.len()];
        T::dispatch(isa, Activate { x, out, activation });
    })
}

/// `d[i] *= activation'(x[i])`: from the gradient of the result to that of x, the input of the activation.
///
/// # Errors
/// `Interrupted`, `Internal`.
pub fn activate_backward<T: Float>(activation: Activation, x: &[T], d: &mut [T]) -> Result<()> {
    if activation == Activation::Identity {
        return Ok(());
    }
    let isa = active()?;
    over_rows(&mut d[..x.len()], 1, 1, |first, d| {
        let x = &x[first..first + d.len()];
        T::dispatch(isa, ActivateBackward { x, d, activation });
    })
}

/// `activation(x)` for each number, in C order.
///
/// # Errors
/// `Memory`, `Interrupted`, `Internal`.
pub fn activate_array<T: Float>(x: &ArrayViewD<'_, T>, activation: Activation) -> Result<ArrayD<T>> {
    let numbers = dense(x)?;
    let mut out = zeros(numbers.len())?;
    activate(activation, &numbers, &mut out)?;
    shaped(x.shape(), out)
}

/// max(x, 0); NaN stays NaN.
///
/// # Errors
/// As [`activate_array`].
pub fn relu<T: Float>(x: &ArrayViewD<'_, T>) -> Result<ArrayD<T>> {
    activate_array(x, Activation::Relu)
}

/// x Phi(x), or its approximation by tanh.
///
/// # Errors
/// `Value` where `approximate` is neither "none" nor "tanh"; as [`relu`].
pub fn gelu<T: Float>(x: &ArrayViewD<'_, T>, approximate: &str) -> Result<ArrayD<T>> {
    activate_array(x, gelu_named(approximate)?)
}

/// The activation that `approximate` means.
///
/// # Errors
/// `Value` where it is neither "none" nor "tanh".
pub fn gelu_named(approximate: &str) -> Result<Activation> {
    match approximate {
        "none" => Ok(Activation::Gelu),
        "tanh" => Ok(Activation::GeluTanh),
        _ => Err(Error::Value(format!("approximate: expected \"none\" or \"tanh\", got {approximate:?}"))),
    }
}

/// x sigmoid(x).
///
/// # Errors
/// As [`activate_array`].
pub fn silu<T: Float>(x: &ArrayViewD<'_, T>) -> Result<ArrayD<T>> {
    activate_array(x, Activation::Silu)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::naive;
    use crate::kernels::testing::normals;

    #[test]
    fn strided_input_gives_c_order() {
        let x = shaped(&[40, 70], normals::<f32>(2800, 1, 2.0)).unwrap();
        let turned = x.view().reversed_axes();
        for (out, kind) in [
            (relu(&turned).unwrap(), Activation::Relu),
            (gelu(&turned, "none").unwrap(), Activation::Gelu),
            (gelu(&turned, "tanh").unwrap(), Activation::GeluTanh),
            (silu(&turned).unwrap(), Activation::Silu),
        ] {
            assert!(out.is_standard_layout() && out.shape() == [70, 40]);
            for (&x, &y) in turned.iter().zip(&out) {
                let exact = naive::activation(kind, f64::from(x));
                assert!((f64::from(y) - exact).abs() <= 2.4e-7 * f64::from(x).abs());
            }
        }
        assert!(matches!(gelu(&turned, "erf"), Err(Error::Value(text)) if text.contains("approximate")));
    }

    #[test]
    fn a_number_does_not_know_its_place() {
        let x = normals::<f64>(50_001, 1, 2.0);
        let all = silu(&shaped(&[50_001], x.clone()).unwrap().view()).unwrap();
        for i in [0, 1, 19_999, 20_000, 50_000] {
            let alone = silu(&shaped(&[], vec![x[i]]).unwrap().view()).unwrap();
            assert_eq!(alone[[]].to_bits(), all[i].to_bits());
        }
    }
}
