//! `Embedding`.

use std::sync::Arc;

use numpy::Element;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyTuple};

use super::arguments::{optional_width, positive_width};
use super::class::layer_class;
use super::held::{Either, Held, dict, is_f64, with_layer};
use super::ids::Ids;
use super::multi_head_attention::rebuilding;
use super::rows::Rows;
use crate::error::Error;
use crate::nn::embedding::Embedding;
use crate::nn::init::Init;
use crate::ops::buffer::{elements, zeros};
use crate::python::boundary::{compute, entry};
use crate::python::keywords::no_more;
use crate::python::pullback::PyPullback;
use crate::python::rng::key as rng_key;
use crate::simd::Float;

/// A table with one row for each id.
///
/// Parameters
/// ----------
/// num_embeddings : int
///     N, ids from 0 to N - 1 have a row.
/// embedding_dim : int
///     D, numbers of a row.
/// padding_idx : int, optional
///     An id whose row begins with zeros and whose gradient is exactly 0.
/// dtype : {"float32", "float64"}, default "float32"
///     What the rows are given in.
/// rng : int or numpy.random.Generator, optional
///     From which the first rows are drawn, as torch draws them: standard normal.
///
/// Raises
/// ------
/// ValueError
///     If N or D is 0, or `padding_idx` not below N.
/// DTypeError
///     For any other dtype.
///
/// Examples
/// --------
/// >>> import headwise as hw
/// >>> table = hw.Embedding(100, 16, padding_idx=0, rng=0)
/// >>> table([[5, 7, 0], [5, 0, 0]]).shape
/// (2, 3, 16)
/// >>> out, pullback = table.vjp([3, 3, 0])
/// >>> d_ids, grads = pullback([[1.0] * 16] * 3)
/// >>> d_ids, grads["weight"][[0, 3], 0]
/// (None, array([0., 2.], dtype=float32))
#[pyclass(name = "Embedding", module = "headwise", frozen, weakref)]
pub struct PyEmbedding {
    held: Held<Embedding<f32>, Embedding<f64>>,
}

impl PyEmbedding {
    fn of(layer: Either<Embedding<f32>, Embedding<f64>>) -> Self {
        Self { held: Held::new(layer) }
    }

    /// N, D and the padding.
    fn form(&self) -> (usize, usize, Option<usize>) {
        with_layer!(self.held.get(), |layer| (layer.n(), layer.width(), layer.padding()))
    }

    fn keywords(&self, keywords: &Bound<'_, PyDict>) -> PyResult<()> {
        let (n, d, padding) = self.form();
        keywords.set_item("num_embeddings", n)?;
        keywords.set_item("embedding_dim", d)?;
        keywords.set_item("padding_idx", padding)?;
        keywords.set_item("rng", 0)
    }

    fn arguments(&self) -> String {
        let (n, d, padding) = self.form();
        let padding = padding.map_or_else(String::new, |id| format!(", padding_idx={id}"));
        format!("{n}, {d}{padding}")
    }
}

/// The rows of the ids, and the ids.
fn call<'py, T: Float + Element>(
    layer: &Embedding<T>,
    ids: &Bound<'py, PyAny>,
) -> PyResult<(Bound<'py, PyAny>, Ids)> {
    let (py, ids, d) = (ids.py(), Ids::read(ids, layer.n())?, layer.width());
    let out = compute(py, ids.numbers.len().saturating_mul(d), || {
        let mut out = zeros(elements("ids", &[ids.numbers.len(), d])?)?;
        layer.forward(&ids.numbers, &mut out)?;
        Ok(out)
    })?;
    Ok((ids.form.give(py, out, d)?, ids))
}

fn vjp<'py, T: Float + Element>(
    layer: Arc<Embedding<T>>,
    ids: &Bound<'py, PyAny>,
) -> PyResult<Bound<'py, PyAny>> {
    let (py, (out, ids)) = (ids.py(), call(&layer, ids)?);
    let pullback = move |d_out: &Bound<'_, PyAny>| {
        let py = d_out.py();
        let rows = Rows::<T>::gradient(d_out, &ids.form, layer.width())?;
        let numbers = rows.numbers();
        let work = layer.n().saturating_mul(layer.width());
        let grads = compute(py, work, || layer.backward(&ids.numbers, &numbers))?;
        Ok((py.None(), dict(py, grads)?).into_pyobject(py)?.into_any().unbind())
    };
    Ok((out, PyPullback::new("Embedding", pullback)).into_pyobject(py)?.into_any())
}

layer_class!(PyEmbedding, "Embedding", |layer| layer.cast(), {
    #[new]
    #[pyo3(signature = (num_embeddings, embedding_dim, *, padding_idx = None, dtype = None, rng = None),
        text_signature = "(num_embeddings, embedding_dim, *, padding_idx=None, dtype='float32', rng=None)")]
    fn new(
        py: Python<'_>,
        num_embeddings: &Bound<'_, PyAny>,
        embedding_dim: &Bound<'_, PyAny>,
        padding_idx: Option<&Bound<'_, PyAny>>,
        dtype: Option<&Bound<'_, PyAny>>,
        rng: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<Self> {
        entry(|| {
            let n = positive_width("num_embeddings", num_embeddings)?;
            let d = positive_width("embedding_dim", embedding_dim)?;
            let padding = optional_width("padding_idx", padding_idx)?;
            if let Some(id) = padding.filter(|&id| id >= n) {
                let text = format!("padding_idx: expected an id below num_embeddings = {n}, got {id}");
                return Err(Error::Value(text).into());
            }
            let wide = dtype.map_or(Ok(false), is_f64)?;
            let mut init = Init::new(rng_key(py, rng)?);
            Ok(Self::of(if wide {
                Either::F64(Arc::new(Embedding::new((n, d), padding, &mut init)?))
            } else {
                Either::F32(Arc::new(Embedding::new((n, d), padding, &mut init)?))
            }))
        })
    }

    /// Look ids up.
    ///
    /// Parameters
    /// ----------
    /// ids : array_like of int or list of array_like of int
    ///     (...): of any shape, from 0 to N - 1. Exactly a list of (L_i,) arrays is a ragged batch.
    ///
    /// Returns
    /// -------
    /// ndarray or list of ndarray
    ///     (..., D); of a ragged batch, a list of (L_i, D).
    ///
    /// Raises
    /// ------
    /// ValueError
    ///     If an id has no row; negative ones do not count from the end.
    /// TypeError
    ///     If the ids are no integers.
    #[pyo3(name = "_call", signature = (ids, **unknown), text_signature = "($self, ids)")]
    fn call_with<'py>(
        &self,
        ids: &Bound<'py, PyAny>,
        unknown: Option<&Bound<'py, PyDict>>,
    ) -> PyResult<Bound<'py, PyAny>> {
        entry(|| {
            no_more("Embedding", unknown)?;
            with_layer!(self.held.get(), |layer| Ok(call(&layer, ids)?.0))
        })
    }

    /// Look ids up, and return what turns the gradient of the rows into that of the table.
    ///
    /// Parameters
    /// ----------
    /// ids : array_like of int or list of array_like of int
    ///     As in a call. They are copied.
    ///
    /// Returns
    /// -------
    /// out : ndarray or list of ndarray
    ///     As of a call.
    /// pullback : Pullback
    ///     `pullback(d_out)` gives `(None, grads)`: ids have no gradient; `grads["weight"]` is (N, D), 0 in the rows of
    ///     `padding_idx` and of ids that are not there. An id's rows are summed in the order of their places.
    ///
    /// Raises
    /// ------
    /// ValueError
    ///     If an id has no row.
    /// TypeError
    ///     If the ids are no integers.
    #[pyo3(signature = (ids, **unknown), text_signature = "($self, ids)")]
    fn vjp<'py>(
        &self,
        ids: &Bound<'py, PyAny>,
        unknown: Option<&Bound<'py, PyDict>>,
    ) -> PyResult<Bound<'py, PyAny>> {
        entry(|| {
            no_more("Embedding.vjp", unknown)?;
            with_layer!(self.held.get(), |layer| vjp(layer, ids))
        })
    }

    /// Number of rows.
    #[getter]
    fn num_embeddings(&self) -> usize {
        self.form().0
    }

    /// Numbers of a row.
    #[getter]
    fn embedding_dim(&self) -> usize {
        self.form().1
    }

    /// The id whose gradient is 0, or None.
    #[getter]
    fn padding_idx(&self) -> Option<usize> {
        self.form().2
    }
});
