//! Functions of the rows of an array: `softmax`, `layer_norm`, `rms_norm`.

use numpy::Element;
use pyo3::prelude::*;

use super::one_input;
use crate::ops;
use crate::python::arrays::Operand;
use crate::python::boundary::{compute, entry};
use crate::python::outputs::Target;
use crate::simd::Float;

/// Exponentials along an axis, divided by their sum.
///
/// Parameters
/// ----------
/// x : array_like
///     Any shape of at least one axis. bool and integers count as float64; float16 and bfloat16 are computed in
///     float32 and rounded once.
/// axis : int, default -1
///     The axis whose sums are 1.
///
/// Returns
/// -------
/// ndarray
///     The shape of `x`.
///
/// Raises
/// ------
/// ValueError
///     If there is no such axis.
/// TypeError
///     If `x` is of a dtype that is not computed with (`DTypeError`).
///
/// Examples
/// --------
/// >>> import headwise as hw
/// >>> hw.softmax([0.0, 0.0])
/// array([0.5, 0.5])
#[pyfunction]
#[pyo3(signature = (x, axis = -1), text_signature = "(x, axis=-1)")]
pub fn softmax<'py>(py: Python<'py>, x: &Bound<'py, PyAny>, axis: isize) -> PyResult<Bound<'py, PyAny>> {
    one_input!(py, x, 8, |x| ops::softmax::softmax(x, axis))
}

/// Normalise rows to mean 0 and variance 1: (x - mean) / sqrt(variance + eps) * weight + bias.
///
/// Parameters
/// ----------
/// x : array_like
///     (..., D). bool and integers count as float64; float16 and bfloat16 are computed in float32 and rounded once.
/// weight : array_like, optional
///     (D,), a factor for each column.
/// bias : array_like, optional
///     (D,), added last.
/// eps : float, default 1e-5
///     Added to the variance.
///
/// Returns
/// -------
/// ndarray
///     The shape of `x`.
///
/// Raises
/// ------
/// ValueError
///     If shapes do not fit (`ShapeError`) or `eps` is negative.
/// TypeError
///     If an array is of a dtype that is not computed with (`DTypeError`).
///
/// References
/// ----------
/// .. [1] J. L. Ba, J. R. Kiros, G. E. Hinton, "Layer Normalization", 2016. https://arxiv.org/abs/1607.06450
///
/// Examples
/// --------
/// >>> import headwise as hw
/// >>> hw.layer_norm([1.0, 3.0], eps=0.0)
/// array([-1.,  1.])
#[pyfunction]
#[pyo3(signature = (x, weight = None, bias = None, *, eps = 1e-5))]
pub fn layer_norm<'py>(
    py: Python<'py>,
    x: &Bound<'py, PyAny>,
    weight: Option<&Bound<'py, PyAny>>,
    bias: Option<&Bound<'py, PyAny>>,
    eps: f64,
) -> PyResult<Bound<'py, PyAny>> {
    entry(|| {
        let norm = Norm::read(x, weight, bias)?;
        if norm.target.is_f64() { norm.layer::<f64>(py, eps) } else { norm.layer::<f32>(py, eps) }
    })
}

/// Divide rows by their root mean square: x / sqrt(mean(x**2) + eps) * weight.
///
/// Parameters
/// ----------
/// x : array_like
///     (..., D). bool and integers count as float64; float16 and bfloat16 are computed in float32 and rounded once.
/// weight : array_like, optional
///     (D,), a factor for each column.
/// eps : float, default 1e-5
///     Added to the mean square.
///
/// Returns
/// -------
/// ndarray
///     The shape of `x`.
///
/// Raises
/// ------
/// ValueError
///     If shapes do not fit (`ShapeError`) or `eps` is negative.
/// TypeError
///     If an array is of a dtype that is not computed with (`DTypeError`).
///
/// References
/// ----------
/// .. [1] B. Zhang, R. Sennrich, "Root Mean Square Layer Normalization", 2019. https://arxiv.org/abs/1910.07467
///
/// Examples
/// --------
/// >>> import headwise as hw
/// >>> hw.rms_norm([3.0, 3.0], eps=0.0)
/// array([1., 1.])
#[pyfunction]
#[pyo3(signature = (x, weight = None, *, eps = 1e-5))]
pub fn rms_norm<'py>(
    py: Python<'py>,
    x: &Bound<'py, PyAny>,
    weight: Option<&Bound<'py, PyAny>>,
    eps: f64,
) -> PyResult<Bound<'py, PyAny>> {
    entry(|| {
        let norm = Norm::read(x, weight, None)?;
        if norm.target.is_f64() { norm.rms::<f64>(py, eps) } else { norm.rms::<f32>(py, eps) }
    })
}

/// The arrays of a norm.
struct Norm<'py> {
    x: Operand<'py>,
    weight: Option<Operand<'py>>,
    bias: Option<Operand<'py>>,
    target: Target<'py>,
}

impl<'py> Norm<'py> {
    fn read(
        x: &Bound<'py, PyAny>,
        weight: Option<&Bound<'py, PyAny>>,
        bias: Option<&Bound<'py, PyAny>>,
    ) -> PyResult<Self> {
        let x = Operand::new("x", x)?;
        let weight = weight.map(|w| Operand::new("weight", w)).transpose()?;
        let bias = bias.map(|b| Operand::new("bias", b)).transpose()?;
        let target =
            Target::of(&[Some(&x), weight.as_ref(), bias.as_ref()].into_iter().flatten().collect::<Vec<_>>());
        Ok(Self { x, weight, bias, target })
    }

    fn layer<T: Float + Element>(&self, py: Python<'py>, eps: f64) -> PyResult<Bound<'py, PyAny>> {
        let x = self.x.read::<T>()?;
        let weight = self.weight.as_ref().map(Operand::read::<T>).transpose()?;
        let bias = self.bias.as_ref().map(Operand::read::<T>).transpose()?;
        let (x, weight, bias) =
            (x.view(), weight.as_ref().map(|w| w.view()), bias.as_ref().map(|b| b.view()));
        let result = compute(py, x.len().saturating_mul(8), || {
            ops::norm::layer_norm(&x, weight.as_ref(), bias.as_ref(), eps)
        })?;
        self.target.give(py, result, None)
    }

    fn rms<T: Float + Element>(&self, py: Python<'py>, eps: f64) -> PyResult<Bound<'py, PyAny>> {
        let x = self.x.read::<T>()?;
        let weight = self.weight.as_ref().map(Operand::read::<T>).transpose()?;
        let (x, weight) = (x.view(), weight.as_ref().map(|w| w.view()));
        let result =
            compute(py, x.len().saturating_mul(4), || ops::norm::rms_norm(&x, weight.as_ref(), Some(eps)))?;
        self.target.give(py, result, None)
    }
}
