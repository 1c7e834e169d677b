//! `RMSNorm`.

use std::sync::Arc;

use pyo3::prelude::*;
use pyo3::types::{PyDict, PyTuple};

use super::arguments::{eps as checked_eps, positive_width};
use super::class::layer_class;
use super::held::{Either, Held, is_f64, with_layer};
use super::multi_head_attention::rebuilding;
use super::rows::RowLayer;
use crate::error::Result;
use crate::nn::norm::{Norm, NormKind};
use crate::ops::buffer::zeros;
use crate::python::boundary::{compute, entry};
use crate::python::keywords::no_more;
use crate::simd::Float;

/// RMS norm of rows: x / sqrt(mean of x^2 + eps) weight.
///
/// Parameters
/// ----------
/// d_model : int
///     D, numbers of a row.
/// eps : float, optional
///     Added to the mean of the squares. If left out it is, as in torch, the distance from 1 to the next number of the
///     dtype: 1.19e-7 in float32.
/// dtype : {"float32", "float64"}, default "float32"
///     What the layer computes and answers in.
///
/// Raises
/// ------
/// ValueError
///     If D is 0, or `eps` below 0.
/// DTypeError
///     For any other dtype.
///
/// See Also
/// --------
/// rms_norm : The function.
///
/// References
/// ----------
/// Zhang and Sennrich, "Root Mean Square Layer Normalization", 2019, arXiv:1910.07467.
///
/// Examples
/// --------
/// >>> import headwise as hw
/// >>> hw.RMSNorm(4)([[1.0, 2.0, 3.0, 6.0]]).round(3)
/// array([[0.283, 0.566, 0.849, 1.697]], dtype=float32)
#[pyclass(name = "RMSNorm", module = "headwise", frozen, weakref)]
pub struct PyRMSNorm {
    held: Held<Norm<f32>, Norm<f64>>,
}

impl PyRMSNorm {
    fn of(layer: Either<Norm<f32>, Norm<f64>>) -> Self {
        Self { held: Held::new(layer) }
    }

    /// D and eps.
    fn form(&self) -> (usize, Option<f64>) {
        with_layer!(self.held.get(), |layer| (layer.width(), layer.eps()))
    }

    fn keywords(&self, keywords: &Bound<'_, PyDict>) -> PyResult<()> {
        let (d, eps) = self.form();
        keywords.set_item("d_model", d)?;
        keywords.set_item("eps", eps)
    }

    fn arguments(&self) -> String {
        let (d, eps) = self.form();
        format!("{d}{}", eps.map_or_else(String::new, |eps| format!(", eps={eps:?}")))
    }
}

fn new<T: Float>(d: usize, eps: Option<f64>) -> Result<Norm<T>> {
    let mut weight = zeros(d)?;
    weight.fill(T::ONE);
    Ok(Norm::from_parts(NormKind::Rms, eps, weight, None))
}

fn rows_of<T: Float>(layer: &Norm<T>) -> RowLayer {
    let d = layer.width();
    RowLayer { name: "RMSNorm", k: d, n: d, work: 2 * d }
}

layer_class!(PyRMSNorm, "RMSNorm", |layer| Ok(layer.cast()), {
    #[new]
    #[pyo3(signature = (d_model, *, eps = None, dtype = None),
        text_signature = "(d_model, *, eps=None, dtype='float32')")]
    fn new(d_model: &Bound<'_, PyAny>, eps: Option<f64>, dtype: Option<&Bound<'_, PyAny>>) -> PyResult<Self> {
        entry(|| {
            let (d, eps) = (positive_width("d_model", d_model)?, eps.map(checked_eps).transpose()?);
            Ok(Self::of(if dtype.map_or(Ok(false), is_f64)? {
                Either::F64(Arc::new(new(d, eps)?))
            } else {
                Either::F32(Arc::new(new(d, eps)?))
            }))
        })
    }

    /// Normalize rows.
    ///
    /// Parameters
    /// ----------
    /// x : array_like or list of array_like
    ///     (..., D); exactly a list of (L_i, D) arrays is a ragged batch.
    ///
    /// Returns
    /// -------
    /// ndarray or list of ndarray
    ///     Of the shape of `x`.
    ///
    /// Raises
    /// ------
    /// ValueError
    ///     If the last axis is not D.
    #[pyo3(name = "_call", signature = (x, **unknown), text_signature = "($self, x)")]
    fn call_with<'py>(
        &self,
        x: &Bound<'py, PyAny>,
        unknown: Option<&Bound<'py, PyDict>>,
    ) -> PyResult<Bound<'py, PyAny>> {
        entry(|| {
            no_more("RMSNorm", unknown)?;
            with_layer!(self.held.get(), |layer| {
                let forward = |x: &[_], _, out: &mut [_]| layer.forward(x, out);
                Ok(rows_of(&layer).call(x, forward)?.0)
            })
        })
    }

    /// Normalize rows, and return what turns the gradient of the result into gradients.
    ///
    /// Parameters
    /// ----------
    /// x : array_like or list of array_like
    ///     As in a call. It is held, not copied, and must not be changed before the pullback was called.
    ///
    /// Returns
    /// -------
    /// out : ndarray or list of ndarray
    ///     As of a call, the same bits.
    /// pullback : Pullback
    ///     `pullback(d_out)` gives `(d_x, grads)`: the gradient of `x`, and a dict of that of `weight`.
    ///
    /// Raises
    /// ------
    /// ValueError
    ///     If the last axis is not D.
    #[pyo3(signature = (x, **unknown), text_signature = "($self, x)")]
    fn vjp<'py>(
        &self,
        x: &Bound<'py, PyAny>,
        unknown: Option<&Bound<'py, PyDict>>,
    ) -> PyResult<Bound<'py, PyAny>> {
        entry(|| {
            no_more("RMSNorm.vjp", unknown)?;
            with_layer!(self.held.get(), |layer| {
                let again = layer.clone();
                rows_of(&layer).vjp(
                    x,
                    |x, _, out| layer.forward(x, out),
                    move |(x, _), (), dy, dx| again.backward(x, dy, dx),
                )
            })
        })
    }

    /// D.
    #[getter]
    fn d_model(&self) -> usize {
        self.form().0
    }

    /// What is added to the mean of the squares, or None where it is the dtype's.
    #[getter]
    fn eps(&self) -> Option<f64> {
        self.form().1
    }
});
