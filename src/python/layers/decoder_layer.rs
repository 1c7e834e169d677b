//! `DecoderLayer`.

use std::sync::Arc;

use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList, PyTuple};

use super::arguments::width;
use super::class::layer_class;
use super::decoder_call::{Arguments, call};
use super::decoder_vjp::vjp;
use super::encoder::left_out;
use super::held::{Either, Held, is_f64, with_layer};
use super::multi_head_attention::rebuilding;
use super::stack::{LayerArguments, repr_of_layer, set_layer};
use crate::error::Result;
use crate::nn::decoder::Decoder;
use crate::nn::encoder_layer::LayerConfig;
use crate::nn::init::Init;
use crate::nn::state::{Loader, Module, State};
use crate::python::boundary::{compute, entry};
use crate::python::keywords::no_more;
use crate::python::rng::key as rng_key;
use crate::simd::Float;

/// A stack of one layer whose parameters are named as those of a layer.
#[derive(Clone, Debug)]
struct OneLayer<T>(Decoder<T>);

impl<T> AsRef<Decoder<T>> for OneLayer<T> {
    fn as_ref(&self) -> &Decoder<T> {
        &self.0
    }
}

impl<T: Float> Module<T> for OneLayer<T> {
    fn state(&self) -> Result<State<T>> {
        self.0.layers[0].state()
    }

    fn num_parameters(&self) -> usize {
        self.0.layers[0].num_parameters()
    }

    fn load(&self, prefix: &str, loader: &mut Loader<T>) -> Result<Self> {
        let mut stack = self.0.clone();
        stack.layers[0] = self.0.layers[0].load(prefix, loader)?;
        Ok(Self(stack))
    }
}

/// One layer of a transformer decoder: self-attention, attention to a memory, and a feed-forward part.
///
/// Each part has a residual and a norm.
///
/// Parameters
/// ----------
/// d_model : int
///     D.
/// num_heads : int
///     H.
/// d_ff : int, default 2048
///     F, width of the feed-forward part.
/// num_kv_heads : int, optional
///     Hk, a divisor of H; H if left out.
/// head_dim : int, optional
///     E; D / H if left out.
/// activation : {"relu", "gelu", "gelu_tanh", "silu"}, default "relu"
///     Of the feed-forward part.
/// norm : {"layer", "rms"}, default "layer"
///     Which norm.
/// norm_first : bool, default False
///     Whether norms stand before the parts (pre-norm) or after their residuals (post-norm).
/// layer_norm_eps : float, default 1e-5
///     Added to the variance.
/// ffn : {"mlp", "glu"}, default "mlp"
///     down(act(up(x))), or gated: down(act(gate(x)) * up(x)).
/// bias : bool, default True
///     Whether projections and layer norms add a bias.
/// dropout : float, default 0.0
///     Probability with which weights and activations are dropped in training.
/// dtype : {"float32", "float64"}, default "float32"
///     What the layer computes and answers in.
/// rng : int or numpy.random.Generator, optional
///     From which the first parameters are drawn, as torch draws them.
///
/// Raises
/// ------
/// ValueError
///     If a width is 0 or does not divide, or a name is not one of those above.
///
/// References
/// ----------
/// Vaswani et al., 2017, arXiv:1706.03762; Xiong et al., 2020, arXiv:2002.04745 (pre-norm); Shazeer, 2020,
/// arXiv:2002.05202 (gates).
///
/// Examples
/// --------
/// >>> import numpy as np
/// >>> import headwise as hw
/// >>> layer = hw.DecoderLayer(16, 4, 32, rng=0)
/// >>> target, memory = np.zeros((2, 5, 16), dtype=np.float32), np.ones((2, 7, 16), dtype=np.float32)
/// >>> out, weights, cross_weights = layer(target, memory, need_weights=True)
/// >>> out.shape, weights.shape, cross_weights.shape
/// ((2, 5, 16), (2, 4, 5, 5), (2, 4, 5, 7))
#[pyclass(name = "DecoderLayer", module = "headwise", frozen, weakref)]
pub struct PyDecoderLayer {
    held: Held<OneLayer<f32>, OneLayer<f64>>,
}

impl PyDecoderLayer {
    fn of(layer: Either<OneLayer<f32>, OneLayer<f64>>) -> Self {
        Self { held: Held::new(layer) }
    }

    fn config(&self) -> LayerConfig {
        with_layer!(self.held.get(), |layer| layer.0.config.clone())
    }

    fn keywords(&self, keywords: &Bound<'_, PyDict>) -> PyResult<()> {
        set_layer(keywords, &self.config())
    }

    fn arguments(&self) -> String {
        repr_of_layer(&self.config())
    }

    /// What `prune_heads` is to be called with for as many heads as are left; `None` where all are.
    fn pruned<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        let c = self.config().attention;
        let made = (c.num_heads, c.num_kv_heads);
        let left = with_layer!(self.held.get(), |layer| {
            layer.0.layers[0].heads().map(|c| (c.num_heads, c.num_kv_heads))
        });
        if left == [made; 2] {
            return Ok(py.None().into_bound(py));
        }
        let [own, cross] = left.map(|left| PyList::new(py, left_out(made, left)));
        Ok((own?, cross?).into_pyobject(py)?.into_any())
    }
}

fn one<T: Float>(config: LayerConfig, init: &mut Init) -> Result<OneLayer<T>> {
    Ok(OneLayer(Decoder::new(1, config, false, None, init)?))
}

layer_class!(
    PyDecoderLayer,
    "DecoderLayer",
    |layer| layer.0.cast().map(OneLayer),
    |this, py| this.pruned(py),
    {
        #[new]
        #[pyo3(signature = (d_model, num_heads, d_ff = None, *, num_kv_heads = None, head_dim = None, activation = "relu", norm = "layer", norm_first = false,
        layer_norm_eps = 1e-5, ffn = "mlp", bias = true, dropout = 0.0, dtype = None, rng = None),
        text_signature = "(d_model, num_heads, d_ff=2048, *, num_kv_heads=None, head_dim=None, activation='relu', norm='layer', norm_first=False, layer_norm_eps=1e-05, ffn='mlp', bias=True, dropout=0.0, dtype='float32', rng=None)")]
        #[allow(clippy::too_many_arguments, reason = "the arguments of the contract")]
        fn new(
            py: Python<'_>,
            d_model: &Bound<'_, PyAny>,
            num_heads: &Bound<'_, PyAny>,
            d_ff: Option<&Bound<'_, PyAny>>,
            num_kv_heads: Option<&Bound<'_, PyAny>>,
            head_dim: Option<&Bound<'_, PyAny>>,
            activation: &str,
            norm: &str,
            norm_first: bool,
            layer_norm_eps: f64,
            ffn: &str,
            bias: bool,
            dropout: f64,
            dtype: Option<&Bound<'_, PyAny>>,
            rng: Option<&Bound<'_, PyAny>>,
        ) -> PyResult<Self> {
            entry(|| {
                let arguments = LayerArguments {
                    d_model,
                    num_heads,
                    d_ff,
                    num_kv_heads,
                    head_dim,
                    activation,
                    norm,
                    norm_first,
                    layer_norm_eps,
                    ffn,
                    bias,
                    dropout,
                };
                let config = arguments.config()?;
                let wide = dtype.map_or(Ok(false), is_f64)?;
                let mut init = Init::new(rng_key(py, rng)?);
                Ok(Self::of(if wide {
                    Either::F64(Arc::new(one(config, &mut init)?))
                } else {
                    Either::F32(Arc::new(one(config, &mut init)?))
                }))
            })
        }

        /// Take target tokens through the layer.
        ///
        /// Parameters
        /// ----------
        /// x : array_like or list of array_like
        ///     (B, L, D) or (L, D), the target; exactly a list of (L_i, D) arrays is a ragged batch, computed without padding.
        /// memory : array_like or list of array_like
        ///     (B, S, D), (S, D) or a list of (S_i, D): what the encoder made of the source.
        /// attn_mask : array_like, optional
        ///     Of self-attention: broadcasts to (B, H, L, L). Boolean: True may be attended. Floating: added to the scores,
        ///     -inf blocks.
        /// key_mask : array_like, optional
        ///     (B, L), boolean or 0 and 1: True is a token of the target, False padding, whose output rows are 0.
        /// lengths : array_like of int, optional
        ///     (B,): tokens of each target; what follows is padding.
        /// is_causal : bool, default True
        ///     Whether a token sees only itself and those before it.
        /// window : tuple of (int or None, int or None), optional
        ///     Tokens of the target seen to the left and to the right.
        /// memory_mask : array_like, optional
        ///     Of attention to the memory: broadcasts to (B, H, L, S), as `attn_mask`.
        /// memory_key_mask : array_like, optional
        ///     (B, S), boolean or 0 and 1: which tokens of the memory may be attended.
        /// memory_lengths : array_like of int, optional
        ///     (B,): tokens of each memory; what follows is padding.
        /// head_mask, cross_head_mask : array_like, optional
        ///     (H,): factor of each head's result, in self-attention and in attention to the memory.
        /// need_weights : bool, default False
        ///     Whether to return the weights too.
        /// training : bool, default False
        ///     Whether dropout is at work.
        /// rng : int or numpy.random.Generator, optional
        ///     Seed of dropout; a generator is advanced by one draw.
        ///
        /// Returns
        /// -------
        /// out : ndarray or list of ndarray
        ///     Of the shape of `x`.
        /// weights : ndarray or list of ndarray
        ///     Of self-attention, (B, H, L, L), before dropout. Only with `need_weights`.
        /// cross_weights : ndarray or list of ndarray
        ///     Of attention to the memory, (B, H, L, S). Only with `need_weights`.
        ///
        /// Raises
        /// ------
        /// ValueError
        ///     If shapes do not fit or a value is out of range.
        /// TypeError
        ///     If a mask is of the wrong kind, or a list goes with an array.
        #[pyo3(name = "_call", signature = (x, memory, *, attn_mask = None, key_mask = None, lengths = None, is_causal = true, window = None,
        memory_mask = None, memory_key_mask = None, memory_lengths = None, head_mask = None, cross_head_mask = None,
        need_weights = false, training = false, rng = None, **unknown),
        text_signature = "($self, x, memory, *, attn_mask=None, key_mask=None, lengths=None, is_causal=True, window=None, memory_mask=None, memory_key_mask=None, memory_lengths=None, head_mask=None, cross_head_mask=None, need_weights=False, training=False, rng=None)")]
        #[allow(clippy::too_many_arguments, reason = "the arguments of the contract")]
        fn call_with<'py>(
            &self,
            py: Python<'py>,
            x: &Bound<'py, PyAny>,
            memory: &Bound<'py, PyAny>,
            attn_mask: Option<&Bound<'py, PyAny>>,
            key_mask: Option<&Bound<'py, PyAny>>,
            lengths: Option<&Bound<'py, PyAny>>,
            is_causal: bool,
            window: Option<&Bound<'py, PyAny>>,
            memory_mask: Option<&Bound<'py, PyAny>>,
            memory_key_mask: Option<&Bound<'py, PyAny>>,
            memory_lengths: Option<&Bound<'py, PyAny>>,
            head_mask: Option<&Bound<'py, PyAny>>,
            cross_head_mask: Option<&Bound<'py, PyAny>>,
            need_weights: bool,
            training: bool,
            rng: Option<&Bound<'py, PyAny>>,
            unknown: Option<&Bound<'py, PyDict>>,
        ) -> PyResult<Bound<'py, PyAny>> {
            entry(|| {
                no_more("DecoderLayer", unknown)?;
                let need_weights = pyo3::types::PyBool::new(py, need_weights).to_owned().into_any();
                let given = Arguments {
                    x,
                    memory,
                    attn_mask,
                    key_mask,
                    lengths,
                    is_causal,
                    window,
                    memory_mask,
                    memory_key_mask,
                    memory_lengths,
                    head_mask,
                    cross_head_mask,
                    hidden_states: false,
                    need_weights: Some(&need_weights),
                    dropout: training.then(|| rng_key(py, rng)).transpose()?,
                    is_layer: true,
                };
                with_layer!(self.held.get(), |layer| call(py, &layer.0, &given))
            })
        }

        /// Take target tokens through the layer, and return what turns the gradient of the result into gradients.
        ///
        /// Parameters
        /// ----------
        /// x, memory : array_like or list of array_like
        ///     As in a call. They are held, not copied, and must not be changed before the pullback was called.
        /// attn_mask, key_mask, lengths, is_causal, window : optional
        ///     As in a call; held likewise.
        /// memory_mask, memory_key_mask, memory_lengths, head_mask, cross_head_mask : optional
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
        ///     `pullback(d_out)` gives `((d_x, d_memory), grads)`: the gradients of both inputs, 0 where there is padding, and a
        ///     dict of those of the parameters, named as in `state_dict`, with those of the head masks where they were given.
        ///
        /// Raises
        /// ------
        /// ValueError
        ///     If shapes do not fit or a value is out of range.
        /// TypeError
        ///     If a mask is of the wrong kind, or a list goes with an array.
        #[pyo3(signature = (x, memory, *, attn_mask = None, key_mask = None, lengths = None, is_causal = true, window = None,
        memory_mask = None, memory_key_mask = None, memory_lengths = None, head_mask = None, cross_head_mask = None,
        training = false, rng = None, **unknown),
        text_signature = "($self, x, memory, *, attn_mask=None, key_mask=None, lengths=None, is_causal=True, window=None, memory_mask=None, memory_key_mask=None, memory_lengths=None, head_mask=None, cross_head_mask=None, training=False, rng=None)")]
        #[allow(clippy::too_many_arguments, reason = "the arguments of the contract")]
        fn vjp<'py>(
            &self,
            py: Python<'py>,
            x: &Bound<'py, PyAny>,
            memory: &Bound<'py, PyAny>,
            attn_mask: Option<&Bound<'py, PyAny>>,
            key_mask: Option<&Bound<'py, PyAny>>,
            lengths: Option<&Bound<'py, PyAny>>,
            is_causal: bool,
            window: Option<&Bound<'py, PyAny>>,
            memory_mask: Option<&Bound<'py, PyAny>>,
            memory_key_mask: Option<&Bound<'py, PyAny>>,
            memory_lengths: Option<&Bound<'py, PyAny>>,
            head_mask: Option<&Bound<'py, PyAny>>,
            cross_head_mask: Option<&Bound<'py, PyAny>>,
            training: bool,
            rng: Option<&Bound<'py, PyAny>>,
            unknown: Option<&Bound<'py, PyDict>>,
        ) -> PyResult<Bound<'py, PyAny>> {
            entry(|| {
                no_more("DecoderLayer.vjp", unknown)?;
                let given = Arguments {
                    x,
                    memory,
                    attn_mask,
                    key_mask,
                    lengths,
                    is_causal,
                    window,
                    memory_mask,
                    memory_key_mask,
                    memory_lengths,
                    head_mask,
                    cross_head_mask,
                    hidden_states: false,
                    need_weights: None,
                    dropout: training.then(|| rng_key(py, rng)).transpose()?,
                    is_layer: true,
                };
                with_layer!(self.held.get(), |layer| vjp(py, layer, &given))
            })
        }

        /// Return a layer without some heads, smaller by their parameters.
        ///
        /// Parameters
        /// ----------
        /// heads : iterable of int
        ///     The heads of self-attention that go.
        /// cross_heads : iterable of int, optional
        ///     The heads of attention to the memory that go.
        ///
        /// Returns
        /// -------
        /// DecoderLayer
        ///
        /// Raises
        /// ------
        /// ValueError
        ///     If a head is not there, none would be left, or groups of queries would be left unequal.
        #[pyo3(signature = (heads, cross_heads = None))]
        fn prune_heads(
            &self,
            heads: &Bound<'_, PyAny>,
            cross_heads: Option<&Bound<'_, PyAny>>,
        ) -> PyResult<Self> {
            let read = |heads: &Bound<'_, PyAny>| {
                heads.try_iter()?.map(|h| width("heads", &h?)).collect::<PyResult<Vec<_>>>()
            };
            entry(|| {
                let all = [(0, read(heads)?, cross_heads.map_or_else(|| Ok(Vec::new()), read)?)];
                Ok(Self::of(match self.held.get() {
                    Either::F32(layer) => Either::F32(Arc::new(OneLayer(layer.0.prune(&all)?))),
                    Either::F64(layer) => Either::F64(Arc::new(OneLayer(layer.0.prune(&all)?))),
                }))
            })
        }

        /// D.
        #[getter]
        fn d_model(&self) -> usize {
            self.config().attention.d_model
        }

        /// H of the layer as it was made, before any pruning.
        #[getter]
        fn num_heads(&self) -> usize {
            self.config().attention.num_heads
        }
    }
);
