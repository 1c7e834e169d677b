//! Functions of single numbers: `relu`, `gelu`, `silu`.

use pyo3::prelude::*;

use super::one_input;
use crate::ops;

/// Return max(x, 0); NaN stays NaN.
///
/// Parameters
/// ----------
/// x : array_like
///     Any shape. bool and integers count as float64; float16 and bfloat16 are computed in float32 and rounded once.
///
/// Returns
/// -------
/// ndarray
///     The shape of `x`.
///
/// Raises
/// ------
/// TypeError
///     If `x` is of a dtype that is not computed with (`DTypeError`).
///
/// Examples
/// --------
/// >>> import headwise as hw
/// >>> hw.relu([-1.0, 2.0])
/// array([0., 2.])
#[pyfunction]
pub fn relu<'py>(py: Python<'py>, x: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
    one_input!(py, x, 1, ops::activation::relu)
}

/// Return x * Phi(x), Phi the distribution function of the standard normal.
///
/// Parameters
/// ----------
/// x : array_like
///     Any shape. bool and integers count as float64; float16 and bfloat16 are computed in float32 and rounded once.
/// approximate : {"none", "tanh"}, default "none"
///     "tanh" gives 0.5 * x * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 * x**3))).
///
/// Returns
/// -------
/// ndarray
///     The shape of `x`.
///
/// Raises
/// ------
/// ValueError
///     If `approximate` is another.
/// TypeError
///     If `x` is of a dtype that is not computed with (`DTypeError`).
///
/// References
/// ----------
/// .. [1] D. Hendrycks, K. Gimpel, "Gaussian Error Linear Units", 2016. https://arxiv.org/abs/1606.08415
///
/// Examples
/// --------
/// >>> import headwise as hw
/// >>> hw.gelu([-1.0, 0.0, 1.0]).round(4)
/// array([-0.1587,  0.    ,  0.8413])
#[pyfunction]
#[pyo3(signature = (x, approximate = "none"))]
pub fn gelu<'py>(py: Python<'py>, x: &Bound<'py, PyAny>, approximate: &str) -> PyResult<Bound<'py, PyAny>> {
    one_input!(py, x, 30, |x| ops::activation::gelu(x, approximate))
}

/// Return x / (1 + exp(-x)), also known as swish.
///
/// Parameters
/// ----------
/// x : array_like
///     Any shape. bool and integers count as float64; float16 and bfloat16 are computed in float32 and rounded once.
///
/// Returns
/// -------
/// ndarray
///     The shape of `x`.
///
/// Raises
/// ------
/// TypeError
///     If `x` is of a dtype that is not computed with (`DTypeError`).
///
/// Examples
/// --------
/// >>> import headwise as hw
/// >>> hw.silu([0.0, 1.0]).round(4)
/// array([0.    , 0.7311])
#[pyfunction]
pub fn silu<'py>(py: Python<'py>, x: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
    one_input!(py, x, 20, ops::activation::silu)
}
