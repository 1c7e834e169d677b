//! `Linear`.

use std::sync::Arc;

use pyo3::prelude::*;
use pyo3::types::{PyDict, PyTuple};

use super::arguments::positive_width;
use super::class::layer_class;
use super::held::{Either, Held, is_f64, with_layer};
use super::multi_head_attention::rebuilding;
use super::rows::RowLayer;
use crate::error::Result;
use crate::nn::init::Init;
use crate::nn::linear::Linear;
use crate::ops::buffer::elements;
use crate::ops::linear::After;
use crate::python::boundary::{compute, entry};
use crate::python::keywords::no_more;
use crate::python::rng::key as rng_key;
use crate::simd::Float;

/// A linear map of rows: y = x weightᵀ + bias.
///
/// Parameters
/// ----------
/// in_features : int
///     D, numbers of a row of the input.
/// out_features : int
///     N, numbers of a row of the output.
/// bias : bool, default True
///     Whether a bias is added.
/// dtype : {"float32", "float64"}, default "float32"
///     What the layer computes and answers in.
/// rng : int or numpy.random.Generator, optional
///     From which the first parameters are drawn, as torch draws them: uniform between -1 and 1 over sqrt(D).
///
/// Raises
/// ------
/// ValueError
///     If a width is 0.
/// DTypeError
///     For any other dtype.
///
/// Examples
/// --------
/// >>> import numpy as np
/// >>> import headwise as hw
/// >>> layer = hw.Linear(16, 3, rng=0)
/// >>> layer(np.zeros((2, 5, 16), dtype=np.float32)).shape
/// (2, 5, 3)
/// >>> out, pullback = layer.vjp(np.ones((4, 16)))
/// >>> d_x, grads = pullback(np.ones((4, 3)))
/// >>> d_x.shape, grads["weight"].shape, grads["bias"]
/// ((4, 16), (3, 16), array([4., 4., 4.], dtype=float32))
#[pyclass(name = "Linear", module = "headwise", frozen, weakref)]
pub struct PyLinear {
    held: Held<Linear<f32>, Linear<f64>>,
}

impl PyLinear {
    fn of(layer: Either<Linear<f32>, Linear<f64>>) -> Self {
        Self { held: Held::new(layer) }
    }

    /// Columns of the input and of the output, and whether there is a bias.
    fn form(&self) -> (usize, usize, bool) {
        with_layer!(self.held.get(), |layer| (layer.k(), layer.n(), layer.bias().is_some()))
    }

    fn keywords(&self, keywords: &Bound<'_, PyDict>) -> PyResult<()> {
        let (k, n, bias) = self.form();
        keywords.set_item("in_features", k)?;
        keywords.set_item("out_features", n)?;
        keywords.set_item("bias", bias)?;
        keywords.set_item("rng", 0)
    }

    fn arguments(&self) -> String {
        let (k, n, bias) = self.form();
        format!("{k}, {n}{}", if bias { "" } else { ", bias=False" })
    }
}

fn drawn<T: Float>((n, k): (usize, usize), bias: bool, init: &mut Init) -> Result<Linear<T>> {
    let weight = init.linear(&[n, k], k)?;
    let bias = if bias { Some(init.linear(&[n], k)?.vector()?) } else { None };
    weight.map((n, k), bias)
}

fn rows_of<T: Float>(layer: &Linear<T>) -> RowLayer {
    let (k, n) = (layer.k(), layer.n());
    RowLayer { name: "Linear", k, n, work: k.saturating_mul(n) }
}

layer_class!(PyLinear, "Linear", |layer| layer.cast(), {
    #[new]
    #[pyo3(signature = (in_features, out_features, *, bias = true, dtype = None, rng = None),
        text_signature = "(in_features, out_features, *, bias=True, dtype='float32', rng=None)")]
    fn new(
        py: Python<'_>,
        in_features: &Bound<'_, PyAny>,
        out_features: &Bound<'_, PyAny>,
        bias: bool,
        dtype: Option<&Bound<'_, PyAny>>,
        rng: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<Self> {
        entry(|| {
            let k = positive_width("in_features", in_features)?;
            let n = positive_width("out_features", out_features)?;
            elements("in_features", &[n, k])?;
            let wide = dtype.map_or(Ok(false), is_f64)?;
            let mut init = Init::new(rng_key(py, rng)?);
            Ok(Self::of(if wide {
                Either::F64(Arc::new(drawn((n, k), bias, &mut init)?))
            } else {
                Either::F32(Arc::new(drawn((n, k), bias, &mut init)?))
            }))
        })
    }

    /// Map rows.
    ///
    /// Parameters
    /// ----------
    /// x : array_like or list of array_like
    ///     (..., D); exactly a list of (L_i, D) arrays is a ragged batch.
    ///
    /// Returns
    /// -------
    /// ndarray or list of ndarray
    ///     (..., N); of a ragged batch, a list of (L_i, N).
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
            no_more("Linear", unknown)?;
            with_layer!(self.held.get(), |layer| {
                let forward = |x: &[_], m, out: &mut [_]| layer.forward(x, m, out, After::default());
                Ok(rows_of(&layer).call(x, forward)?.0)
            })
        })
    }

    /// Map rows, and return what turns the gradient of the result into gradients.
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
            no_more("Linear.vjp", unknown)?;
            with_layer!(self.held.get(), |layer| {
                let again = layer.clone();
                rows_of(&layer).vjp(
                    x,
                    |x, m, out| layer.forward(x, m, out, After::default()),
                    move |(x, m), (), dy, dx| again.backward(x, dy, m, Some(dx), None),
                )
            })
        })
    }

    /// Numbers of a row of the input.
    #[getter]
    fn in_features(&self) -> usize {
        self.form().0
    }

    /// Numbers of a row of the output.
    #[getter]
    fn out_features(&self) -> usize {
        self.form().1
    }
});
