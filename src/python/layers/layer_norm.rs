//! `LayerNorm`.

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

/// Layer norm of rows: (x - mean) / sqrt(variance + eps) weight + bias.
///
/// Parameters
/// ----------
/// d_model : int
///     D, numbers of a row.
/// eps : float, default 1e-5
///     Added to the variance.
/// bias : bool, default True
///     Whether a bias is added.
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
/// layer_norm : The function.
///
/// References
/// ----------
/// Ba, Kiros and Hinton, "Layer Normalization", 2016, arXiv:1607.06450.
///
/// Examples
/// --------
/// >>> import headwise as hw
/// >>> hw.LayerNorm(4)([[1.0, 2.0, 3.0, 6.0]]).round(3)
/// array([[-1.069, -0.535,  0.   ,  1.604]], dtype=float32)
#[pyclass(name = "LayerNorm", module = "headwise", frozen, weakref)]
pub struct PyLayerNorm {
    held: Held<Norm<f32>, Norm<f64>>,
}

impl PyLayerNorm {
    fn of(layer: Either<Norm<f32>, Norm<f64>>) -> Self {
        Self { held: Held::new(layer) }
    }

    /// D, eps, and whether there is a bias.
    fn form(&self) -> (usize, f64, bool) {
        with_layer!(self.held.get(), |layer| (layer.width(), layer.eps().unwrap_or(EPS), layer.has_bias()))
    }

    fn keywords(&self, keywords: &Bound<'_, PyDict>) -> PyResult<()> {
        let (d, eps, bias) = self.form();
        keywords.set_item("d_model", d)?;
        keywords.set_item("eps", eps)?;
        keywords.set_item("bias", bias)
    }

    fn arguments(&self) -> String {
        let (d, eps, bias) = self.form();
        let eps = if eps == EPS { String::new() } else { format!(", eps={eps:?}") };
        format!("{d}{eps}{}", if bias { "" } else { ", bias=False" })
    }
}

/// torch's.
const EPS: f64 = 1e-5;

fn new<T: Float>(d: usize, eps: f64, bias: bool) -> Result<Norm<T>> {
    let (mut weight, bias) = (zeros(d)?, if bias { Some(zeros(d)?) } else { None });
    weight.fill(T::ONE);
    Ok(Norm::from_parts(NormKind::Layer, eps, weight, bias))
}

fn rows_of<T: Float>(layer: &Norm<T>) -> RowLayer {
    let d = layer.width();
    RowLayer { name: "LayerNorm", k: d, n: d, work: 2 * d }
}

layer_class!(PyLayerNorm, "LayerNorm", |layer| Ok(layer.cast()), {
    #[new]
    #[pyo3(signature = (d_model, *, eps = EPS, bias = true, dtype = None),
        text_signature = "(d_model, *, eps=1e-05, bias=True, dtype='float32')")]
    fn new(
        d_model: &Bound<'_, PyAny>,
        eps: f64,
        bias: bool,
        dtype: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<Self> {
        entry(|| {
            let (d, eps) = (positive_width("d_model", d_model)?, checked_eps(eps)?);
            Ok(Self::of(if dtype.map_or(Ok(false), is_f64)? {
                Either::F64(Arc::new(new(d, eps, bias)?))
            } else {
                Either::F32(Arc::new(new(d, eps, bias)?))
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
            no_more("LayerNorm", unknown)?;
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
    ///     `pullback(d_out)` gives `(d_x, grads)`: the gradient of `x`, and a dict of those of `weight` and `bias`.
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
            no_more("LayerNorm.vjp", unknown)?;
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

    /// What is added to the variance.
    #[getter]
    fn eps(&self) -> f64 {
        self.form().1
    }
});
