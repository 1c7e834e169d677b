//! `Decoder`.

use std::sync::Arc;

use pyo3::prelude::*;
use pyo3::types::{PyDict, PyTuple};

use super::arguments::{choice, width};
use super::class::layer_class;
use super::decoder_call::{Arguments, call};
use super::decoder_step::{new_cache, step};
use super::decoder_vjp::vjp;
use super::encoder::{POSITIONS, gone};
use super::held::{Either, Held, is_f64, with_layer};
use super::multi_head_attention::rebuilding;
use super::stack::{LayerArguments, repr_of_layer, set_layer};
use crate::nn::decoder::Decoder;
use crate::nn::encoder::Positions;
use crate::nn::encoder_layer::LayerConfig;
use crate::nn::init::Init;
use crate::python::boundary::{compute, entry};
use crate::python::keywords::no_more;
use crate::python::masks::MaskArguments;
use crate::python::rng::key as rng_key;

/// A stack of decoder layers: each attends to the target so far, then to what an encoder made of the source.
///
/// Parameters
/// ----------
/// num_layers : int
///     How many layers.
/// d_model : int
///     D.
/// num_heads : int
///     H.
/// d_ff : int, default 2048
///     F.
/// final_norm : bool, default False
///     Whether a norm follows the last layer.
/// positions : {None, "sinusoidal", "rotary", "alibi"}, default None
///     How tokens of the target are told apart by their place: added to the input, by turning queries and keys of
///     self-attention, by a bias that falls with distance. Places count the tokens that masks keep, from 0.
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
///     What the stack computes and answers in.
/// rng : int or numpy.random.Generator, optional
///     From which the first parameters are drawn.
///
/// Raises
/// ------
/// ValueError
///     If a width is 0 or does not divide, or a name is not one of those above.
///
/// See Also
/// --------
/// Encoder : What makes the memory.
/// Transformer : Both together.
///
/// References
/// ----------
/// Vaswani et al., 2017, arXiv:1706.03762; Su et al., 2021, arXiv:2104.09864 (rotary); Press et al., 2022,
/// arXiv:2108.12409 (ALiBi).
///
/// Examples
/// --------
/// >>> import numpy as np
/// >>> import headwise as hw
/// >>> decoder = hw.Decoder(2, 16, 4, 32, positions="sinusoidal", rng=0)
/// >>> rng = np.random.default_rng(0)
/// >>> memory = rng.standard_normal((3, 7, 16), dtype=np.float32)
/// >>> target = rng.standard_normal((3, 5, 16), dtype=np.float32)
/// >>> out = decoder(target, memory)
/// >>> out.shape
/// (3, 5, 16)
///
/// Step by step, the same bits:
///
/// >>> cache = decoder.new_cache(memory)
/// >>> steps = [decoder.step(target[:, i : i + 1], cache) for i in range(5)]
/// >>> bool((np.concatenate(steps, axis=1) == out).all())
/// True
#[pyclass(name = "Decoder", module = "headwise", frozen, weakref)]
pub struct PyDecoder {
    held: Held<Decoder<f32>, Decoder<f64>>,
}

/// Heads and groups of each layer, of self-attention and of attention to the memory.
type Heads = [Vec<(usize, usize)>; 2];

impl PyDecoder {
    fn of(stack: Either<Decoder<f32>, Decoder<f64>>) -> Self {
        Self { held: Held::new(stack) }
    }

    /// Of its layers as they were made, their number, whether there is a final norm, positions, heads of each layer.
    fn facts(&self) -> (LayerConfig, usize, bool, Option<Positions>, Heads) {
        with_layer!(self.held.get(), |s| {
            let heads = [0, 1].map(|part| {
                let of_layers = s.layers.iter().map(|l| l.heads()[part]);
                of_layers.map(|c| (c.num_heads, c.num_kv_heads)).collect()
            });
            (s.config.clone(), s.layers.len(), s.has_final_norm(), s.positions, heads)
        })
    }

    fn keywords(&self, keywords: &Bound<'_, PyDict>) -> PyResult<()> {
        let (config, layers, final_norm, positions, _) = self.facts();
        set_layer(keywords, &config)?;
        keywords.set_item("num_layers", layers)?;
        keywords.set_item("final_norm", final_norm)?;
        keywords.set_item("positions", POSITIONS.iter().find(|(_, p)| Some(*p) == positions).map(|(n, _)| *n))
    }

    fn arguments(&self) -> String {
        let (config, layers, final_norm, positions, _) = self.facts();
        let mut text = format!("{layers}, {}", repr_of_layer(&config));
        if final_norm {
            text += ", final_norm=True";
        }
        if let Some((name, _)) = POSITIONS.iter().find(|(_, p)| Some(*p) == positions) {
            text += &format!(", positions={name:?}");
        }
        text
    }

    /// What `prune_heads` is to be called with for as many heads as are left; `None` where all are.
    fn pruned<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        let (config, _, _, _, [own, cross]) = self.facts();
        let made = (config.attention.num_heads, config.attention.num_kv_heads);
        if own.iter().chain(&cross).all(|&left| left == made) {
            return Ok(py.None().into_bound(py));
        }
        let both = (gone(py, made, &own)?, gone(py, made, &cross)?);
        Ok(both.into_pyobject(py)?.into_any())
    }
}

/// Heads by layer.
fn by_layer(name: &str, heads: Option<&Bound<'_, PyAny>>) -> PyResult<Vec<(usize, Vec<usize>)>> {
    let Some(heads) = heads else { return Ok(Vec::new()) };
    let mut all = Vec::new();
    for item in heads.call_method0("items")?.try_iter()? {
        let (layer, heads): (Bound<'_, PyAny>, Bound<'_, PyAny>) = item?.extract()?;
        let heads = heads.try_iter()?.map(|h| width(name, &h?)).collect::<PyResult<Vec<_>>>()?;
        all.push((width(name, &layer)?, heads));
    }
    Ok(all)
}

layer_class!(PyDecoder, "Decoder", |layer| layer.cast(), |this, py| this.pruned(py), {
    #[new]
    #[pyo3(signature = (num_layers, d_model, num_heads, d_ff = None, *, final_norm = false, positions = None,
        num_kv_heads = None, head_dim = None, activation = "relu", norm = "layer", norm_first = false,
        layer_norm_eps = 1e-5, ffn = "mlp", bias = true, dropout = 0.0, dtype = None, rng = None),
        text_signature = "(num_layers, d_model, num_heads, d_ff=2048, *, final_norm=False, positions=None, num_kv_heads=None, head_dim=None, activation='relu', norm='layer', norm_first=False, layer_norm_eps=1e-05, ffn='mlp', bias=True, dropout=0.0, dtype='float32', rng=None)")]
    #[allow(clippy::too_many_arguments, reason = "the arguments of the contract")]
    #[allow(clippy::fn_params_excessive_bools, reason = "the arguments of the contract")]
    fn new(
        py: Python<'_>,
        num_layers: &Bound<'_, PyAny>,
        d_model: &Bound<'_, PyAny>,
        num_heads: &Bound<'_, PyAny>,
        d_ff: Option<&Bound<'_, PyAny>>,
        final_norm: bool,
        positions: Option<&str>,
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
            let layers = width("num_layers", num_layers)?;
            let config = arguments.config()?;
            let positions = positions.map(|p| choice("positions", p, &POSITIONS)).transpose()?;
            let wide = dtype.map_or(Ok(false), is_f64)?;
            let mut init = Init::new(rng_key(py, rng)?);
            Ok(Self::of(if wide {
                Either::F64(Arc::new(Decoder::new(layers, config, final_norm, positions, &mut init)?))
            } else {
                Either::F32(Arc::new(Decoder::new(layers, config, final_norm, positions, &mut init)?))
            }))
        })
    }

    /// Take target tokens through the stack.
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
    ///     (num_layers, H): factor of each head's result, in self-attention and in attention to the memory.
    /// output_hidden_states : bool, default False
    ///     Whether to return the input and what each layer made of it.
    /// need_weights : bool or list of tuple of (int, int), default False
    ///     Whether to return the weights of every layer, or those of the (layer, head) listed.
    /// training : bool, default False
    ///     Whether dropout is at work.
    /// rng : int or numpy.random.Generator, optional
    ///     Seed of dropout; a generator is advanced by one draw.
    ///
    /// Returns
    /// -------
    /// ndarray, list of ndarray or DecoderOutput
    ///     Of the shape of `x`; a named tuple (output, hidden_states, weights, cross_weights) if more is asked for. `weights`
    ///     of self-attention are a list of (B, H, L, L), one for each layer, or a dict of (layer, head) to (B, L, L);
    ///     `cross_weights`, of attention to the memory, likewise with S for the last axis.
    ///
    /// Raises
    /// ------
    /// ValueError
    ///     If shapes do not fit or a value is out of range.
    /// TypeError
    ///     If a mask is of the wrong kind, or a list goes with an array.
    #[pyo3(name = "_call", signature = (x, memory, *, attn_mask = None, key_mask = None, lengths = None, is_causal = true, window = None,
        memory_mask = None, memory_key_mask = None, memory_lengths = None, head_mask = None, cross_head_mask = None, output_hidden_states = false,
        need_weights = None, training = false, rng = None, **unknown),
        text_signature = "($self, x, memory, *, attn_mask=None, key_mask=None, lengths=None, is_causal=True, window=None, memory_mask=None, memory_key_mask=None, memory_lengths=None, head_mask=None, cross_head_mask=None, output_hidden_states=False, need_weights=False, training=False, rng=None)")]
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
        output_hidden_states: bool,
        need_weights: Option<&Bound<'py, PyAny>>,
        training: bool,
        rng: Option<&Bound<'py, PyAny>>,
        unknown: Option<&Bound<'py, PyDict>>,
    ) -> PyResult<Bound<'py, PyAny>> {
        entry(|| {
            no_more("Decoder", unknown)?;
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
                hidden_states: output_hidden_states,
                need_weights,
                dropout: training.then(|| rng_key(py, rng)).transpose()?,
                is_layer: false,
            };
            with_layer!(self.held.get(), |layer| call(py, &layer, &given))
        })
    }

    /// Take target tokens through the stack, and return what turns the gradient of the result into gradients.
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
            no_more("Decoder.vjp", unknown)?;
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
                is_layer: false,
            };
            with_layer!(self.held.get(), |layer| vjp(py, layer, &given))
        })
    }

    /// Make a cache for `step`: the keys and values of the memory, computed once, and room for those of the target.
    ///
    /// Parameters
    /// ----------
    /// memory : array_like or list of array_like
    ///     (B, S, D), (S, D) or a list of (S_i, D): what the encoder made of the source.
    /// memory_key_mask : array_like, optional
    ///     (B, S), boolean or 0 and 1: which tokens of the memory may be attended.
    /// memory_lengths : array_like of int, optional
    ///     (B,): tokens of each memory; what follows is padding.
    /// window : tuple of (int or None, int or None), optional
    ///     Tokens of the target seen to the left, as in a call; the cache lets go of those that no token to come will see.
    ///     The right side has no effect, since steps are causal.
    ///
    /// Returns
    /// -------
    /// DecoderCache
    ///     Of as many sequences as there are memories, without tokens. It belongs to the parameters that the decoder has
    ///     now: after `load_state_dict` make another.
    ///
    /// Raises
    /// ------
    /// ValueError
    ///     If shapes do not fit or a value is out of range.
    /// TypeError
    ///     If a mask is of the wrong kind.
    #[pyo3(signature = (memory, *, memory_key_mask = None, memory_lengths = None, window = None, **unknown),
        text_signature = "($self, memory, *, memory_key_mask=None, memory_lengths=None, window=None)")]
    fn new_cache<'py>(
        &self,
        py: Python<'py>,
        memory: &Bound<'py, PyAny>,
        memory_key_mask: Option<&Bound<'py, PyAny>>,
        memory_lengths: Option<&Bound<'py, PyAny>>,
        window: Option<&Bound<'py, PyAny>>,
        unknown: Option<&Bound<'py, PyDict>>,
    ) -> PyResult<Bound<'py, PyAny>> {
        entry(|| {
            no_more("Decoder.new_cache", unknown)?;
            let masks = MaskArguments {
                key_mask: memory_key_mask,
                key_lengths: memory_lengths,
                window,
                ..MaskArguments::default()
            };
            with_layer!(self.held.get(), |layer| new_cache(py, &layer, memory, &masks))
        })
    }

    /// Take the next tokens of the target through the stack; their keys and values are added to the cache.
    ///
    /// Each row has the bits that a causal call over the whole target would give it, whatever the sizes of the steps.
    ///
    /// Parameters
    /// ----------
    /// x : array_like
    ///     (B, n, D), the next n tokens of each sequence of the cache; (n, D) for a cache of one sequence.
    /// cache : DecoderCache
    ///     What `new_cache` made; it is changed. If the call fails or is interrupted, it holds what it held before.
    /// lengths : array_like of int, optional
    ///     (B,): how many of the n are tokens; what follows is padding, whose output rows are 0.
    /// need_weights : bool, default False
    ///     Whether to return the weights of attention to the memory too.
    ///
    /// Returns
    /// -------
    /// out : ndarray
    ///     Of the shape of `x`.
    /// cross_weights : list of ndarray
    ///     Of each layer (B, H, n, S). Only with `need_weights`.
    ///
    /// Raises
    /// ------
    /// ValueError
    ///     If shapes do not fit, the cache belongs to other parameters, or another thread is using it.
    /// TypeError
    ///     If `cache` is none, or of another dtype.
    #[pyo3(signature = (x, cache, *, lengths = None, need_weights = false))]
    fn step<'py>(
        &self,
        py: Python<'py>,
        x: &Bound<'py, PyAny>,
        cache: &Bound<'py, PyAny>,
        lengths: Option<&Bound<'py, PyAny>>,
        need_weights: bool,
    ) -> PyResult<Bound<'py, PyAny>> {
        entry(|| with_layer!(self.held.get(), |layer| step(py, &layer, x, cache, lengths, need_weights)))
    }

    /// Return a stack without some heads, smaller by their parameters.
    ///
    /// Parameters
    /// ----------
    /// heads : mapping of int to iterable of int
    ///     The heads of self-attention that go, by layer.
    /// cross_heads : mapping of int to iterable of int, optional
    ///     The heads of attention to the memory that go, by layer.
    ///
    /// Returns
    /// -------
    /// Decoder
    ///
    /// Raises
    /// ------
    /// ValueError
    ///     If a layer or a head is not there, or a layer would be left without heads.
    #[pyo3(signature = (heads, cross_heads = None))]
    fn prune_heads(
        &self,
        heads: &Bound<'_, PyAny>,
        cross_heads: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<Self> {
        entry(|| {
            let own = by_layer("heads", Some(heads))?;
            let cross = by_layer("cross_heads", cross_heads)?;
            Ok(Self::of(match self.held.get() {
                Either::F32(stack) => Either::F32(Arc::new(stack.prune(&own, &cross)?)),
                Either::F64(stack) => Either::F64(Arc::new(stack.prune(&own, &cross)?)),
            }))
        })
    }

    /// How many layers.
    #[getter]
    fn num_layers(&self) -> usize {
        self.facts().1
    }

    /// D.
    #[getter]
    fn d_model(&self) -> usize {
        self.facts().0.attention.d_model
    }

    /// H of the layers as they were made, before any pruning.
    #[getter]
    fn num_heads(&self) -> usize {
        self.facts().0.attention.num_heads
    }
});
