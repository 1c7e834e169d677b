//! `linear`.

use numpy::Element;
use pyo3::prelude::*;

use crate::error::{Error, Result};
use crate::kernels::activation::Activation;
use crate::ops::project::project;
use crate::python::arrays::Operand;
use crate::python::boundary::{compute, entry};
use crate::python::outputs::Target;
use crate::simd::Float;

/// Project: activation(x @ weight.T + bias).
///
/// Parameters
/// ----------
/// x : array_like
///     (..., K). bool and integers count as float64; float16 and bfloat16 are computed in float32 and rounded once.
/// weight : array_like
///     (N, K), as torch keeps it.
/// bias : array_like, optional
///     (N,), added to the sum.
/// activation : {"relu", "gelu", "gelu_tanh", "silu"}, optional
///     Applied to the biased sum.
///
/// Returns
/// -------
/// ndarray
///     (..., N).
///
/// Raises
/// ------
/// ValueError
///     If shapes do not fit (`ShapeError`) or the activation is unknown.
/// TypeError
///     If an array is of a dtype that is not computed with (`DTypeError`).
///
/// Examples
/// --------
/// >>> import headwise as hw
/// >>> hw.linear([1.0, 2.0], [[3.0, 4.0], [-5.0, 0.0]], [0.5, 0.5], activation="relu")
/// array([11.5,  0. ])
#[pyfunction]
#[pyo3(signature = (x, weight, bias = None, *, activation = None))]
pub fn linear<'py>(
    py: Python<'py>,
    x: &Bound<'py, PyAny>,
    weight: &Bound<'py, PyAny>,
    bias: Option<&Bound<'py, PyAny>>,
    activation: Option<&str>,
) -> PyResult<Bound<'py, PyAny>> {
    entry(|| {
        let activation = activation_named(activation)?;
        let operands = (Operand::new("x", x)?, Operand::new("weight", weight)?);
        let bias = bias.map(|b| Operand::new("bias", b)).transpose()?;
        let mut all = vec![&operands.0, &operands.1];
        all.extend(&bias);
        let target = Target::of(&all);
        let (x, weight) = &operands;
        if target.is_f64() {
            run::<f64>(py, &target, x, weight, bias.as_ref(), activation)
        } else {
            run::<f32>(py, &target, x, weight, bias.as_ref(), activation)
        }
    })
}

fn run<'py, T: Float + Element>(
    py: Python<'py>,
    target: &Target<'py>,
    x: &Operand<'py>,
    weight: &Operand<'py>,
    bias: Option<&Operand<'py>>,
    activation: Activation,
) -> PyResult<Bound<'py, PyAny>> {
    let (x, weight, bias) = (x.read::<T>()?, weight.read::<T>()?, bias.map(Operand::read::<T>).transpose()?);
    let (x, weight, bias) = (x.view(), weight.view(), bias.as_ref().map(|b| b.view()));
    let rows = x.shape().iter().rev().skip(1).product::<usize>() + 1;
    let result =
        compute(py, weight.len().saturating_mul(rows), || project(&x, &weight, bias.as_ref(), activation))?;
    target.give(py, result, None)
}

/// The activation of a name.
pub(crate) fn activation_named(name: Option<&str>) -> Result<Activation> {
    match name {
        None => Ok(Activation::Identity),
        Some("relu") => Ok(Activation::Relu),
        Some("gelu") => Ok(Activation::Gelu),
        Some("gelu_tanh") => Ok(Activation::GeluTanh),
        Some("silu") => Ok(Activation::Silu),
        Some(other) => Err(Error::Value(format!(
            "activation: expected \"relu\", \"gelu\", \"gelu_tanh\", \"silu\" or None, got {other:?}"
        ))),
    }
}
