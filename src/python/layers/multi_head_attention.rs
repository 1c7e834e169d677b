//! `MultiHeadAttention`.

use std::sync::Arc;

use pyo3::prelude::*;
use pyo3::types::{PyDict, PyTuple};

use super::arguments::{optional_width, width};
use super::attention_call::{Given, call};
use super::attention_vjp::vjp;
use super::held::{Either, Held, is_f64, with_layer};
use crate::error::Error;
use crate::nn::attention::{AttentionConfig, MultiHeadAttention};
use crate::nn::init::Init;
use crate::python::boundary::{compute, entry};
use crate::python::keywords::no_more;
use crate::python::masks::MaskArguments;
use crate::python::rng::key as rng_key;

/// Multi-head attention with its projections.
///
/// Projects queries, keys and values, attends in every head, joins the heads and projects the result (Vaswani et al.,
/// 2017). With fewer key/value heads than query heads, heads share them in groups (Ainslie et al., 2023).
///
/// Parameters
/// ----------
/// d_model : int
///     D, width of the queries and of the output.
/// num_heads : int
///     H.
/// num_kv_heads : int, optional
///     Hk, a divisor of H; H if left out.
/// head_dim : int, optional
///     E, width of a head; D / H if left out.
/// key_dim, value_dim : int, optional
///     Widths of keys and values before their projection; D if left out.
/// bias : bool, default True
///     Whether the projections add a bias.
/// dropout : float, default 0.0
///     Probability with which a weight is dropped in training.
/// dtype : {"float32", "float64"}, default "float32"
///     What the layer computes and answers in.
/// rng : int or numpy.random.Generator, optional
///     From which the first parameters are drawn, as torch draws them.
///
/// Raises
/// ------
/// ValueError
///     If a width is 0 or does not divide, or `dropout` is no probability.
/// DTypeError
///     For any other dtype.
///
/// References
/// ----------
/// Vaswani et al., "Attention Is All You Need", 2017, arXiv:1706.03762; Ainslie et al., "GQA", 2023, arXiv:2305.13245.
///
/// Examples
/// --------
/// >>> import numpy as np
/// >>> import headwise as hw
/// >>> attention = hw.MultiHeadAttention(16, 4, rng=0)
/// >>> x = np.random.default_rng(0).standard_normal((2, 5, 16), dtype=np.float32)
/// >>> out, weights = attention(x, need_weights=True)
/// >>> out.shape, weights.shape
/// ((2, 5, 16), (2, 4, 5, 5))
#[pyclass(name = "MultiHeadAttention", module = "headwise", frozen, weakref)]
pub struct PyMultiHeadAttention {
    held: Held<MultiHeadAttention<f32>, MultiHeadAttention<f64>>,
}

impl PyMultiHeadAttention {
    fn config(&self) -> AttentionConfig {
        with_layer!(self.held.get(), |layer| layer.config.clone())
    }

    fn of(layer: Either<MultiHeadAttention<f32>, MultiHeadAttention<f64>>) -> Self {
        Self { held: Held::new(layer) }
    }
}

#[pymethods]
impl PyMultiHeadAttention {
    #[new]
    #[pyo3(signature = (d_model, num_heads, *, num_kv_heads = None, head_dim = None, key_dim = None, value_dim = None,
        bias = true, dropout = 0.0, dtype = None, rng = None),
        text_signature = "(d_model, num_heads, *, num_kv_heads=None, head_dim=None, key_dim=None, value_dim=None, bias=True, dropout=0.0, dtype='float32', rng=None)")]
    #[allow(clippy::too_many_arguments, reason = "the arguments of the contract")]
    fn new(
        py: Python<'_>,
        d_model: &Bound<'_, PyAny>,
        num_heads: &Bound<'_, PyAny>,
        num_kv_heads: Option<&Bound<'_, PyAny>>,
        head_dim: Option<&Bound<'_, PyAny>>,
        key_dim: Option<&Bound<'_, PyAny>>,
        value_dim: Option<&Bound<'_, PyAny>>,
        bias: bool,
        dropout: f64,
        dtype: Option<&Bound<'_, PyAny>>,
        rng: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<Self> {
        entry(|| {
            let config = AttentionConfig::new(
                width("d_model", d_model)?,
                width("num_heads", num_heads)?,
                optional_width("num_kv_heads", num_kv_heads)?,
                optional_width("head_dim", head_dim)?,
                (optional_width("key_dim", key_dim)?, optional_width("value_dim", value_dim)?),
                bias,
                dropout,
            )?;
            let wide = dtype.map_or(Ok(false), is_f64)?;
            let mut init = Init::new(rng_key(py, rng)?);
            Ok(Self::of(if wide {
                Either::F64(Arc::new(MultiHeadAttention::new(config, &mut init)?))
            } else {
                Either::F32(Arc::new(MultiHeadAttention::new(config, &mut init)?))
            }))
        })
    }

    /// Attend from each query to all keys; to the queries themselves if no key is given.
    ///
    /// Parameters
    /// ----------
    /// query : array_like or list of array_like
    ///     (B, L, D) or (L, D); exactly a list of (L_i, D) arrays is a ragged batch, computed without padding.
    /// key, value : array_like or list of array_like, optional
    ///     (B, S, key_dim) and (B, S, value_dim). `key` is `query` if left out, `value` is `key`.
    /// attn_mask : array_like, optional
    ///     Broadcasts to (B, H, L, S). Boolean: True may be attended. Floating: added to the scores, -inf blocks.
    /// key_mask : array_like, optional
    ///     (B, S), boolean or 0 and 1: True may be attended. In self-attention it names padded queries too, whose
    ///     output rows are 0.
    /// key_lengths : array_like of int, optional
    ///     (B,): keys from this place on are blocked, as by `key_mask`.
    /// is_causal : bool, default False
    ///     Whether key j is allowed only for j <= i + offset.
    /// causal_offset : int, array_like of int or "bottom_right", default 0
    ///     The place of query 0 among the keys.
    /// window : tuple of (int or None, int or None), optional
    ///     Keys allowed to the left and right of a query's place.
    /// softcap : float, optional
    ///     Cap c > 0: scores become c tanh(score / c), before masks.
    /// scale : float, optional
    ///     Factor of the products; 1 / sqrt(E) if left out.
    /// head_mask : array_like, optional
    ///     (H,): factor of each head's result. The weights returned are not multiplied by it.
    /// need_weights : bool, default False
    ///     Whether to return the weights too; asking never changes the output.
    /// average_weights : bool, default False
    ///     Whether the weights returned are the mean over heads.
    /// training : bool, default False
    ///     Whether dropout is at work.
    /// rng : int or numpy.random.Generator, optional
    ///     Seed of dropout; a generator is advanced by one draw.
    ///
    /// Returns
    /// -------
    /// out : ndarray or list of ndarray
    ///     Of the shape of `query`.
    /// weights : ndarray or list of ndarray
    ///     (B, H, L, S), before dropout; (B, L, S) if averaged. Only with `need_weights`.
    ///
    /// Raises
    /// ------
    /// ValueError
    ///     If shapes do not fit or a value is out of range.
    /// TypeError
    ///     If a mask is of the wrong kind, or a list is mixed with an array.
    #[pyo3(name = "_call", signature = (query, key = None, value = None, *, attn_mask = None, key_mask = None, key_lengths = None,
        is_causal = false, causal_offset = None, window = None, softcap = None, scale = None, head_mask = None,
        need_weights = false, average_weights = false, training = false, rng = None, **unknown),
        text_signature = "($self, query, key=None, value=None, *, attn_mask=None, key_mask=None, key_lengths=None, is_causal=False, causal_offset=0, window=None, softcap=None, scale=None, head_mask=None, need_weights=False, average_weights=False, training=False, rng=None)")]
    #[allow(clippy::too_many_arguments, reason = "the arguments of the contract")]
    #[allow(clippy::fn_params_excessive_bools, reason = "the arguments of the contract")]
    fn call_with<'py>(
        &self,
        py: Python<'py>,
        query: &Bound<'py, PyAny>,
        key: Option<&Bound<'py, PyAny>>,
        value: Option<&Bound<'py, PyAny>>,
        attn_mask: Option<&Bound<'py, PyAny>>,
        key_mask: Option<&Bound<'py, PyAny>>,
        key_lengths: Option<&Bound<'py, PyAny>>,
        is_causal: bool,
        causal_offset: Option<&Bound<'py, PyAny>>,
        window: Option<&Bound<'py, PyAny>>,
        softcap: Option<f64>,
        scale: Option<f64>,
        head_mask: Option<&Bound<'py, PyAny>>,
        need_weights: bool,
        average_weights: bool,
        training: bool,
        rng: Option<&Bound<'py, PyAny>>,
        unknown: Option<&Bound<'py, PyDict>>,
    ) -> PyResult<Bound<'py, PyAny>> {
        entry(|| {
            no_more("MultiHeadAttention", unknown)?;
            key_before_value(key, value)?;
            let given = Given {
                query,
                key,
                value,
                masks: MaskArguments { attn_mask, key_mask, key_lengths, is_causal, causal_offset, window },
                softcap: super::arguments::softcap(softcap)?,
                scale,
                head_mask,
                need_weights,
                average_weights,
                dropout: training.then(|| rng_key(py, rng)).transpose()?,
            };
            with_layer!(self.held.get(), |layer| call(py, &layer, &given))
        })
    }

    /// Attend as a call does, and return what turns the gradient of the result into gradients.
    ///
    /// Parameters
    /// ----------
    /// query : array_like or list of array_like
    ///     As in a call. It is held, not copied, and must not be changed before the pullback was called.
    /// key, value : array_like or list of array_like, optional
    ///     As in a call; held likewise.
    /// attn_mask, key_mask, key_lengths, is_causal, causal_offset, window, softcap, scale, head_mask : optional
    ///     As in a call; held likewise.
    /// training : bool, default False
    ///     Whether dropout is at work.
    /// rng : int or numpy.random.Generator, optional
    ///     Seed of dropout; a generator is advanced by one draw. The pullback drops the same numbers.
    ///
    /// Returns
    /// -------
    /// out : ndarray or list of ndarray
    ///     As of a call, the same bits.
    /// pullback : Pullback
    ///     `pullback(d_out)` gives `(d_query, grads)` in self-attention, else `((d_query, d_key), grads)` or
    ///     `((d_query, d_key, d_value), grads)`, whichever were given; `grads` is a dict of the gradients of the parameters,
    ///     named as in `state_dict`, with that of `head_mask` where one was given.
    ///
    /// Raises
    /// ------
    /// ValueError
    ///     If shapes do not fit or a value is out of range.
    /// TypeError
    ///     If a mask is of the wrong kind, or a list is mixed with an array.
    #[pyo3(signature = (query, key = None, value = None, *, attn_mask = None, key_mask = None, key_lengths = None,
        is_causal = false, causal_offset = None, window = None, softcap = None, scale = None, head_mask = None,
        training = false, rng = None, **unknown),
        text_signature = "($self, query, key=None, value=None, *, attn_mask=None, key_mask=None, key_lengths=None, is_causal=False, causal_offset=0, window=None, softcap=None, scale=None, head_mask=None, training=False, rng=None)")]
    #[allow(clippy::too_many_arguments, reason = "the arguments of the contract")]
    fn vjp<'py>(
        &self,
        py: Python<'py>,
        query: &Bound<'py, PyAny>,
        key: Option<&Bound<'py, PyAny>>,
        value: Option<&Bound<'py, PyAny>>,
        attn_mask: Option<&Bound<'py, PyAny>>,
        key_mask: Option<&Bound<'py, PyAny>>,
        key_lengths: Option<&Bound<'py, PyAny>>,
        is_causal: bool,
        causal_offset: Option<&Bound<'py, PyAny>>,
        window: Option<&Bound<'py, PyAny>>,
        softcap: Option<f64>,
        scale: Option<f64>,
        head_mask: Option<&Bound<'py, PyAny>>,
        training: bool,
        rng: Option<&Bound<'py, PyAny>>,
        unknown: Option<&Bound<'py, PyDict>>,
    ) -> PyResult<Bound<'py, PyAny>> {
        entry(|| {
            no_more("MultiHeadAttention.vjp", unknown)?;
            key_before_value(key, value)?;
            let given = Given {
                query,
                key,
                value,
                masks: MaskArguments { attn_mask, key_mask, key_lengths, is_causal, causal_offset, window },
                softcap: super::arguments::softcap(softcap)?,
                scale,
                head_mask,
                need_weights: false,
                average_weights: false,
                dropout: training.then(|| rng_key(py, rng)).transpose()?,
            };
            with_layer!(self.held.get(), |layer| vjp(py, layer, &given))
        })
    }

    /// Return copies of the parameters by name, in torch's names wherever torch could hold the layer.
    ///
    /// Returns
    /// -------
    /// dict of str to ndarray
    fn state_dict<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        entry(|| self.held.state_dict(py))
    }

    /// Load parameters by name: packed, separate or split forms, with or without wrappers' prefixes.
    ///
    /// Parameters
    /// ----------
    /// state : mapping of str to array_like
    ///     The parameters.
    /// strict : bool, default True
    ///     Whether a missing or an unexpected name is an error.
    ///
    /// Raises
    /// ------
    /// ValueError
    ///     If a parameter has another shape, or names do not fit; then nothing changes.
    #[pyo3(signature = (state, strict = true))]
    fn load_state_dict(&self, state: &Bound<'_, PyAny>, strict: bool) -> PyResult<()> {
        entry(|| self.held.load(state, strict))
    }

    /// Return the same layer in another dtype.
    ///
    /// Parameters
    /// ----------
    /// dtype : {"float32", "float64"}
    ///     What the new layer computes in.
    ///
    /// Returns
    /// -------
    /// MultiHeadAttention
    fn to(&self, dtype: &Bound<'_, PyAny>) -> PyResult<Self> {
        entry(|| {
            let (py, work) = (dtype.py(), self.held.num_parameters());
            let wide = is_f64(dtype)?;
            Ok(Self::of(with_layer!(self.held.get(), |layer| if wide {
                Either::F64(Arc::new(compute(py, work, || layer.cast())?))
            } else {
                Either::F32(Arc::new(compute(py, work, || layer.cast())?))
            })))
        })
    }

    /// Return a layer without some heads, smaller by their parameters.
    ///
    /// Parameters
    /// ----------
    /// heads : iterable of int
    ///     The heads that go.
    ///
    /// Returns
    /// -------
    /// MultiHeadAttention
    ///
    /// Raises
    /// ------
    /// ValueError
    ///     If a head is not there, none would be left, or groups of queries would be left unequal.
    fn prune_heads(&self, heads: &Bound<'_, PyAny>) -> PyResult<Self> {
        entry(|| {
            let heads = heads.try_iter()?.map(|h| width("heads", &h?)).collect::<PyResult<Vec<_>>>()?;
            Ok(Self::of(match self.held.get() {
                Either::F32(layer) => Either::F32(Arc::new(layer.prune(&heads)?)),
                Either::F64(layer) => Either::F64(Arc::new(layer.prune(&heads)?)),
            }))
        })
    }

    /// How many numbers the parameters have.
    #[getter]
    fn num_parameters(&self) -> usize {
        self.held.num_parameters()
    }

    /// D.
    #[getter]
    fn d_model(&self) -> usize {
        self.config().d_model
    }

    /// H.
    #[getter]
    fn num_heads(&self) -> usize {
        self.config().num_heads
    }

    /// Hk.
    #[getter]
    fn num_kv_heads(&self) -> usize {
        self.config().num_kv_heads
    }

    /// E.
    #[getter]
    fn head_dim(&self) -> usize {
        self.config().head_dim
    }

    /// NumPy's name of the dtype.
    #[getter]
    fn dtype(&self) -> &'static str {
        self.held.dtype()
    }

    fn __repr__(&self) -> String {
        let c = self.config();
        let mut text = format!("MultiHeadAttention({}, {}", c.d_model, c.num_heads);
        text += &repr_of_attention(&c);
        for (name, dim) in [("key_dim", c.key_dim), ("value_dim", c.value_dim)] {
            if dim != c.d_model {
                text += &format!(", {name}={dim}");
            }
        }
        text + &format!("{}, dtype={:?})", repr_of_rest(&c), self.held.dtype())
    }

    fn __reduce__<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, PyTuple>> {
        let (py, this) = (slf.py(), slf.get());
        let c = this.config();
        let keywords = PyDict::new(py);
        set_attention(&keywords, &c)?;
        keywords.set_item("key_dim", c.key_dim)?;
        keywords.set_item("value_dim", c.value_dim)?;
        keywords.set_item("dtype", this.held.dtype())?;
        rebuilding(slf.as_any(), keywords, py.None().into_bound(py), this.held.state_dict(py)?)
    }
}

/// # Errors
/// `TypeError` for a value without a key.
fn key_before_value(key: Option<&Bound<'_, PyAny>>, value: Option<&Bound<'_, PyAny>>) -> PyResult<()> {
    if key.is_none() && value.is_some() {
        return Err(Error::Type("value: expected key as well; self-attention has neither".into()).into());
    }
    Ok(())
}

/// `num_kv_heads` and `head_dim` where they are not what is assumed.
pub(super) fn repr_of_attention(c: &AttentionConfig) -> String {
    let mut text = String::new();
    if c.num_kv_heads != c.num_heads {
        text += &format!(", num_kv_heads={}", c.num_kv_heads);
    }
    if c.query_width() != c.d_model {
        text += &format!(", head_dim={}", c.head_dim);
    }
    text
}

/// `bias` and `dropout` where they are not what is assumed.
pub(super) fn repr_of_rest(c: &AttentionConfig) -> String {
    let mut text = String::new();
    if !c.bias {
        text += ", bias=False";
    }
    if c.dropout != 0.0 {
        text += &format!(", dropout={}", c.dropout);
    }
    text
}

/// Keywords that make the same attention again.
pub(super) fn set_attention(keywords: &Bound<'_, PyDict>, c: &AttentionConfig) -> PyResult<()> {
    keywords.set_item("d_model", c.d_model)?;
    keywords.set_item("num_heads", c.num_heads)?;
    keywords.set_item("num_kv_heads", c.num_kv_heads)?;
    keywords.set_item("head_dim", c.head_dim)?;
    keywords.set_item("bias", c.bias)?;
    keywords.set_item("dropout", c.dropout)?;
    // First values that are replaced at once; none need be drawn from the system.
    keywords.set_item("rng", 0)
}

/// What `__reduce__` returns: `headwise._layers.rebuild` and its arguments.
pub(super) fn rebuilding<'py>(
    object: &Bound<'py, PyAny>,
    keywords: Bound<'py, PyDict>,
    heads: Bound<'py, PyAny>,
    state: Bound<'py, PyDict>,
) -> PyResult<Bound<'py, PyTuple>> {
    let py = object.py();
    let rebuild = py.import("headwise._layers")?.getattr("rebuild")?;
    let arguments = (object.get_type(), keywords, heads, state).into_pyobject(py)?;
    (rebuild, arguments).into_pyobject(py)
}
