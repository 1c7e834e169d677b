//! `FeedForward`.

use std::sync::Arc;

use pyo3::prelude::*;
use pyo3::types::{PyDict, PyTuple};

use super::arguments::{choice, positive_width};
use super::class::layer_class;
use super::held::{Either, Held, is_f64, with_layer};
use super::multi_head_attention::rebuilding;
use super::rows::RowLayer;
use super::stack::{ACTIVATIONS, FEED_FORWARDS, name_of};
use crate::kernels::activation::Activation;
use crate::nn::attention::config::probability;
use crate::nn::feed_forward::{FeedForward, FeedForwardConfig};
use crate::nn::init::Init;
use crate::ops::buffer::elements;
use crate::python::boundary::{compute, entry};
use crate::python::keywords::no_more;
use crate::python::rng::key as rng_key;
use crate::simd::Float;

/// The feed-forward part of a transformer's layer: down(act(up(x))), or gated: down(act(gate(x)) * up(x)).
///
/// In training, dropout is at work on the rows before `down`. There is neither a residual nor a norm.
///
/// Parameters
/// ----------
/// d_model : int
///     D, numbers of a row of input and output.
/// d_ff : int, default 2048
///     F, numbers of a hidden row.
/// activation : {"relu", "gelu", "gelu_tanh", "silu"}, default "relu"
///     Of the hidden rows.
/// ffn : {"mlp", "glu"}, default "mlp"
///     Whether there is a gate.
/// bias : bool, default True
///     Whether the maps add a bias.
/// dropout : float, default 0.0
///     Probability with which a hidden number is dropped in training.
/// dtype : {"float32", "float64"}, default "float32"
///     What the layer computes and answers in.
/// rng : int or numpy.random.Generator, optional
///     From which the first parameters are drawn, as torch draws them.
///
/// Raises
/// ------
/// ValueError
///     If a width is 0, `dropout` no probability, or a name is not one of those above.
/// DTypeError
///     For any other dtype.
///
/// Notes
/// -----
/// The parameters are named as in `EncoderLayer`: `linear1` is up, `linear_gate` the gate, `linear2` down.
///
/// References
/// ----------
/// Vaswani et al., 2017, arXiv:1706.03762; Shazeer, 2020, arXiv:2002.05202 (gates).
///
/// Examples
/// --------
/// >>> import numpy as np
/// >>> import headwise as hw
/// >>> layer = hw.FeedForward(16, 64, activation="silu", ffn="glu", rng=0)
/// >>> layer(np.zeros((2, 5, 16), dtype=np.float32)).shape
/// (2, 5, 16)
/// >>> {name: array.shape for name, array in layer.state_dict().items() if name.endswith("weight")}
/// {'linear1.weight': (64, 16), 'linear_gate.weight': (64, 16), 'linear2.weight': (16, 64)}
#[pyclass(name = "FeedForward", module = "headwise", frozen, weakref)]
pub struct PyFeedForward {
    held: Held<FeedForward<f32>, FeedForward<f64>>,
}

impl PyFeedForward {
    fn of(layer: Either<FeedForward<f32>, FeedForward<f64>>) -> Self {
        Self { held: Held::new(layer) }
    }

    fn config(&self) -> FeedForwardConfig {
        with_layer!(self.held.get(), |layer| layer.config())
    }

    fn keywords(&self, keywords: &Bound<'_, PyDict>) -> PyResult<()> {
        let c = self.config();
        keywords.set_item("d_model", c.d_model)?;
        keywords.set_item("d_ff", c.d_ff)?;
        keywords.set_item("activation", name_of(&ACTIVATIONS, c.activation))?;
        keywords.set_item("ffn", name_of(&FEED_FORWARDS, c.gated))?;
        keywords.set_item("bias", c.bias)?;
        keywords.set_item("dropout", c.dropout)?;
        keywords.set_item("rng", 0)
    }

    fn arguments(&self) -> String {
        let c = self.config();
        let mut text = format!("{}, {}", c.d_model, c.d_ff);
        if c.activation != Activation::Relu {
            text += &format!(", activation={:?}", name_of(&ACTIVATIONS, c.activation));
        }
        if c.gated {
            text += ", ffn=\"glu\"";
        }
        if !c.bias {
            text += ", bias=False";
        }
        if c.dropout != 0.0 {
            text += &format!(", dropout={}", c.dropout);
        }
        text
    }
}

fn rows_of<T: Float>(layer: &FeedForward<T>) -> RowLayer {
    let c = layer.config();
    let maps = if c.gated { 3 } else { 2 };
    RowLayer { name: "FeedForward", k: c.d_model, n: c.d_model, work: maps * c.d_model * c.d_ff }
}

layer_class!(PyFeedForward, "FeedForward", |layer| layer.cast(), {
    #[new]
    #[pyo3(signature = (d_model, d_ff = None, *, activation = "relu", ffn = "mlp", bias = true, dropout = 0.0, dtype = None,
        rng = None),
        text_signature = "(d_model, d_ff=2048, *, activation='relu', ffn='mlp', bias=True, dropout=0.0, dtype='float32', rng=None)")]
    #[allow(clippy::too_many_arguments, reason = "the arguments of the contract")]
    fn new(
        py: Python<'_>,
        d_model: &Bound<'_, PyAny>,
        d_ff: Option<&Bound<'_, PyAny>>,
        activation: &str,
        ffn: &str,
        bias: bool,
        dropout: f64,
        dtype: Option<&Bound<'_, PyAny>>,
        rng: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<Self> {
        entry(|| {
            let d = positive_width("d_model", d_model)?;
            let f = d_ff.map_or(Ok(2048), |f| positive_width("d_ff", f))?;
            elements("d_ff", &[3, f, d])?;
            probability("dropout", dropout)?;
            let activation = choice("activation", activation, &ACTIVATIONS)?;
            let gated = choice("ffn", ffn, &FEED_FORWARDS)?;
            let wide = dtype.map_or(Ok(false), is_f64)?;
            let mut init = Init::new(rng_key(py, rng)?);
            Ok(Self::of(if wide {
                Either::F64(Arc::new(FeedForward::new((d, f), gated, activation, bias, dropout, &mut init)?))
            } else {
                Either::F32(Arc::new(FeedForward::new((d, f), gated, activation, bias, dropout, &mut init)?))
            }))
        })
    }

    /// Take rows through the part.
    ///
    /// Parameters
    /// ----------
    /// x : array_like or list of array_like
    ///     (..., D); exactly a list of (L_i, D) arrays is a ragged batch.
    /// training : bool, default False
    ///     Whether dropout is at work.
    /// rng : int or numpy.random.Generator, optional
    ///     Seed of dropout; a generator is advanced by one draw.
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
    #[pyo3(name = "_call", signature = (x, *, training = false, rng = None, **unknown),
        text_signature = "($self, x, *, training=False, rng=None)")]
    fn call_with<'py>(
        &self,
        x: &Bound<'py, PyAny>,
        training: bool,
        rng: Option<&Bound<'py, PyAny>>,
        unknown: Option<&Bound<'py, PyDict>>,
    ) -> PyResult<Bound<'py, PyAny>> {
        entry(|| {
            no_more("FeedForward", unknown)?;
            let dropout = training.then(|| rng_key(x.py(), rng)).transpose()?;
            with_layer!(self.held.get(), |layer| {
                let forward = |x: &[_], m, out: &mut [_]| {
                    let mut buffers = layer.buffers(m, training)?;
                    layer.forward(x, m, out, (None, &[]), dropout, &mut buffers)
                };
                Ok(rows_of(&layer).call(x, forward)?.0)
            })
        })
    }

    /// Take rows through the part, and return what turns the gradient of the result into gradients.
    ///
    /// Parameters
    /// ----------
    /// x : array_like or list of array_like
    ///     As in a call. It is held, not copied, and must not be changed before the pullback was called.
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
    ///     `pullback(d_out)` gives `(d_x, grads)`: the gradient of `x`, and a dict of those of the parameters, named as in
    ///     `state_dict`.
    ///
    /// Raises
    /// ------
    /// ValueError
    ///     If the last axis is not D.
    #[pyo3(signature = (x, *, training = false, rng = None, **unknown),
        text_signature = "($self, x, *, training=False, rng=None)")]
    fn vjp<'py>(
        &self,
        x: &Bound<'py, PyAny>,
        training: bool,
        rng: Option<&Bound<'py, PyAny>>,
        unknown: Option<&Bound<'py, PyDict>>,
    ) -> PyResult<Bound<'py, PyAny>> {
        entry(|| {
            no_more("FeedForward.vjp", unknown)?;
            let dropout = training.then(|| rng_key(x.py(), rng)).transpose()?;
            with_layer!(self.held.get(), |layer| {
                let again = layer.clone();
                rows_of(&layer).vjp(
                    x,
                    |x, m, out| layer.forward_saved(x, m, out, (None, &[]), dropout),
                    move |x, saved, dy, dx| again.backward(x, saved, dy, dropout, dx, None),
                )
            })
        })
    }

    /// D.
    #[getter]
    fn d_model(&self) -> usize {
        self.config().d_model
    }

    /// F.
    #[getter]
    fn d_ff(&self) -> usize {
        self.config().d_ff
    }
});
