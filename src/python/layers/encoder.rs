//! `Encoder`.

use std::sync::Arc;

use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList, PyTuple};

use super::arguments::{choice, width};
use super::held::{Either, Held, is_f64, with_layer};
use super::multi_head_attention::rebuilding;
use super::stack::{Given, LayerArguments, call, repr_of_layer, set_layer};
use super::stack_vjp::vjp;
use crate::nn::encoder::{Encoder, Positions};
use crate::nn::encoder_layer::LayerConfig;
use crate::nn::init::Init;
use crate::python::boundary::{compute, entry};
use crate::python::keywords::no_more;
use crate::python::masks::MaskArguments;
use crate::python::rng::key as rng_key;

/// Names of positions.
pub const POSITIONS: [(&str, Positions); 3] =
    [("sinusoidal", Positions::Sinusoidal), ("rotary", Positions::Rotary), ("alibi", Positions::Alibi)];

/// A stack of encoder layers.
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
///     How tokens are told apart by their place: added to the input, by turning queries and keys, by a bias that falls
///     with distance. Places count the tokens that masks keep, from 0.
/// num_kv_heads, head_dim, activation, norm, norm_first, layer_norm_eps, ffn, bias, dropout : optional
///     Of each layer, as in `EncoderLayer`.
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
/// References
/// ----------
/// Vaswani et al., 2017, arXiv:1706.03762; Su et al., 2021, arXiv:2104.09864 (rotary); Press et al., 2022,
/// arXiv:2108.12409 (ALiBi).
///
/// Examples
/// --------
/// >>> import numpy as np
/// >>> import headwise as hw
/// >>> encoder = hw.Encoder(2, 16, 4, 32, positions="sinusoidal", rng=0)
/// >>> sentences = [np.ones((n, 16), dtype=np.float32) for n in (3, 7)]
/// >>> [out.shape for out in encoder(sentences)]
/// [(3, 16), (7, 16)]
#[pyclass(name = "Encoder", module = "headwise", frozen, weakref)]
pub struct PyEncoder {
    held: Held<Encoder<f32>, Encoder<f64>>,
}

impl PyEncoder {
    fn of(stack: Either<Encoder<f32>, Encoder<f64>>) -> Self {
        Self { held: Held::new(stack) }
    }

    /// Of its layers as they were made, their number, whether there is a final norm, positions, heads of each layer.
    fn facts(&self) -> (LayerConfig, usize, bool, Option<Positions>, Vec<(usize, usize)>) {
        with_layer!(self.held.get(), |s| {
            let heads = s
                .layers
                .iter()
                .map(|l| (l.config.attention.num_heads, l.config.attention.num_kv_heads))
                .collect();
            (s.config.clone(), s.layers.len(), s.has_final_norm(), s.positions, heads)
        })
    }
}

#[pymethods]
impl PyEncoder {
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
                Either::F64(Arc::new(Encoder::new(layers, config, final_norm, positions, &mut init)?))
            } else {
                Either::F32(Arc::new(Encoder::new(layers, config, final_norm, positions, &mut init)?))
            }))
        })
    }

    /// Take tokens through all layers.
    ///
    /// Parameters
    /// ----------
    /// x : array_like or list of array_like
    ///     (B, L, D) or (L, D); exactly a list of (L_i, D) arrays is a ragged batch, computed without padding.
    /// attn_mask : array_like, optional
    ///     Broadcasts to (B, H, L, L). Boolean: True may be attended. Floating: added to the scores, -inf blocks.
    /// key_mask : array_like, optional
    ///     (B, L), boolean or 0 and 1: True is a token, False padding, whose output rows are 0.
    /// lengths : array_like of int, optional
    ///     (B,): tokens of each sequence; what follows is padding.
    /// is_causal : bool, default False
    ///     Whether a token sees only itself and those before it.
    /// window : tuple of (int or None, int or None), optional
    ///     Tokens seen to the left and to the right.
    /// head_mask : array_like, optional
    ///     (num_layers, H): factor of each head's result.
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
    /// ndarray, list of ndarray or EncoderOutput
    ///     Of the shape of `x`; a named tuple (output, hidden_states, weights) if more is asked for. `hidden_states` are
    ///     the input and each layer's output, the last after the final norm. `weights` are a list of (B, H, L, L), one
    ///     for each layer, or a dict of (layer, head) to (B, L, L).
    ///
    /// Raises
    /// ------
    /// ValueError
    ///     If shapes do not fit or a value is out of range.
    /// TypeError
    ///     If a mask is of the wrong kind.
    #[pyo3(name = "_call", signature = (x, *, attn_mask = None, key_mask = None, lengths = None, is_causal = false, window = None,
        head_mask = None, output_hidden_states = false, need_weights = None, training = false, rng = None, **unknown),
        text_signature = "($self, x, *, attn_mask=None, key_mask=None, lengths=None, is_causal=False, window=None, head_mask=None, output_hidden_states=False, need_weights=False, training=False, rng=None)")]
    #[allow(clippy::too_many_arguments, reason = "the arguments of the contract")]
    fn call_with<'py>(
        &self,
        py: Python<'py>,
        x: &Bound<'py, PyAny>,
        attn_mask: Option<&Bound<'py, PyAny>>,
        key_mask: Option<&Bound<'py, PyAny>>,
        lengths: Option<&Bound<'py, PyAny>>,
        is_causal: bool,
        window: Option<&Bound<'py, PyAny>>,
        head_mask: Option<&Bound<'py, PyAny>>,
        output_hidden_states: bool,
        need_weights: Option<&Bound<'py, PyAny>>,
        training: bool,
        rng: Option<&Bound<'py, PyAny>>,
        unknown: Option<&Bound<'py, PyDict>>,
    ) -> PyResult<Bound<'py, PyAny>> {
        entry(|| {
            no_more("Encoder", unknown)?;
            let given = Given {
                x,
                masks: MaskArguments {
                    attn_mask,
                    key_mask,
                    key_lengths: lengths,
                    is_causal,
                    causal_offset: None,
                    window,
                },
                head_mask,
                hidden_states: output_hidden_states,
                need_weights,
                dropout: training.then(|| rng_key(py, rng)).transpose()?,
                is_layer: false,
            };
            with_layer!(self.held.get(), |stack| call(py, &stack, &given))
        })
    }

    /// Take tokens through the stack, and return what turns the gradient of the result into gradients.
    ///
    /// Parameters
    /// ----------
    /// x : array_like or list of array_like
    ///     As in a call. It is held, not copied, and must not be changed before the pullback was called.
    /// attn_mask, key_mask, lengths, is_causal, window, head_mask : optional
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
    ///     `pullback(d_out)` gives `(d_x, grads)`: the gradient of `x`, 0 where `x` is padding, and a dict of those of the
    ///     parameters, named as in `state_dict`, with that of `head_mask` where one was given.
    ///
    /// Raises
    /// ------
    /// ValueError
    ///     If shapes do not fit or a value is out of range.
    /// TypeError
    ///     If a mask is of the wrong kind.
    #[pyo3(signature = (x, *, attn_mask = None, key_mask = None, lengths = None, is_causal = false, window = None,
        head_mask = None, training = false, rng = None, **unknown),
        text_signature = "($self, x, *, attn_mask=None, key_mask=None, lengths=None, is_causal=False, window=None, head_mask=None, training=False, rng=None)")]
    #[allow(clippy::too_many_arguments, reason = "the arguments of the contract")]
    fn vjp<'py>(
        &self,
        py: Python<'py>,
        x: &Bound<'py, PyAny>,
        attn_mask: Option<&Bound<'py, PyAny>>,
        key_mask: Option<&Bound<'py, PyAny>>,
        lengths: Option<&Bound<'py, PyAny>>,
        is_causal: bool,
        window: Option<&Bound<'py, PyAny>>,
        head_mask: Option<&Bound<'py, PyAny>>,
        training: bool,
        rng: Option<&Bound<'py, PyAny>>,
        unknown: Option<&Bound<'py, PyDict>>,
    ) -> PyResult<Bound<'py, PyAny>> {
        entry(|| {
            no_more("Encoder.vjp", unknown)?;
            let masks = MaskArguments {
                attn_mask,
                key_mask,
                key_lengths: lengths,
                is_causal,
                causal_offset: None,
                window,
            };
            let dropout = training.then(|| rng_key(py, rng)).transpose()?;
            let given = Given {
                x,
                masks,
                head_mask,
                hidden_states: false,
                need_weights: None,
                dropout,
                is_layer: false,
            };
            with_layer!(self.held.get(), |layer| vjp(py, layer, &given))
        })
    }

    /// Return copies of the parameters by torch's names.
    ///
    /// Returns
    /// -------
    /// dict of str to ndarray
    fn state_dict<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        entry(|| self.held.state_dict(py))
    }

    /// Load parameters by name, with or without wrappers' prefixes.
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

    /// Return the same stack in another dtype.
    ///
    /// Parameters
    /// ----------
    /// dtype : {"float32", "float64"}
    ///     What the new stack computes in.
    ///
    /// Returns
    /// -------
    /// Encoder
    fn to(&self, dtype: &Bound<'_, PyAny>) -> PyResult<Self> {
        entry(|| {
            let (py, work) = (dtype.py(), self.held.num_parameters());
            let wide = is_f64(dtype)?;
            Ok(Self::of(with_layer!(self.held.get(), |stack| if wide {
                Either::F64(Arc::new(compute(py, work, || stack.cast())?))
            } else {
                Either::F32(Arc::new(compute(py, work, || stack.cast())?))
            })))
        })
    }

    /// Return a stack without some heads, smaller by their parameters.
    ///
    /// Parameters
    /// ----------
    /// heads : mapping of int to iterable of int
    ///     The heads that go, by layer.
    ///
    /// Returns
    /// -------
    /// Encoder
    ///
    /// Raises
    /// ------
    /// ValueError
    ///     If a layer or a head is not there, or a layer would be left without heads.
    fn prune_heads(&self, heads: &Bound<'_, PyAny>) -> PyResult<Self> {
        entry(|| {
            let mut all = Vec::new();
            for item in heads.call_method0("items")?.try_iter()? {
                let (layer, heads): (Bound<'_, PyAny>, Bound<'_, PyAny>) = item?.extract()?;
                let heads = heads.try_iter()?.map(|h| width("heads", &h?)).collect::<PyResult<Vec<_>>>()?;
                all.push((width("heads", &layer)?, heads));
            }
            Ok(Self::of(match self.held.get() {
                Either::F32(stack) => Either::F32(Arc::new(stack.prune(&all)?)),
                Either::F64(stack) => Either::F64(Arc::new(stack.prune(&all)?)),
            }))
        })
    }

    /// Return a deeper encoder of single heads: as many heads in all, and nearly as many parameters.
    ///
    /// Parameters
    /// ----------
    /// rng : int or numpy.random.Generator, optional
    ///     From which its first parameters are drawn.
    ///
    /// Returns
    /// -------
    /// Encoder
    ///     With a layer of one head for each head of this one, and everything else as it is here. Its parameters are
    ///     fresh: heads that worked side by side cannot be put one behind the other with the same result.
    ///
    /// Notes
    /// -----
    /// N layers of H heads become N H layers. A head keeps its width E, so that all projections hold as many weights as
    /// before, and the F hidden numbers are shared out, F / H for each layer (the nearest whole number where H does not
    /// divide it). What is added are the norms and output biases of the new layers, 6 N (H - 1) D numbers as usually made;
    /// grouped heads (`num_kv_heads`) get a key and a value each. Heads that were pruned do not count. With ALiBi every
    /// layer has the slope of a single head, 2^-8.
    ///
    /// Such depth is hard to train post-norm; `headwise.init.admin` is what the paper starts it with.
    ///
    /// References
    /// ----------
    /// Liu, Liu, Han, "Multi-head or Single-head? An Empirical Comparison for Transformer Training", 2021,
    /// arXiv:2106.09650.
    ///
    /// Examples
    /// --------
    /// >>> import headwise as hw
    /// >>> encoder = hw.Encoder(2, 32, 4, 128, rng=0)
    /// >>> deep = encoder.to_deep_single_head(rng=0)
    /// >>> deep
    /// Encoder(8, 32, 1, 32, head_dim=8, dtype="float32")
    /// >>> encoder.num_parameters, deep.num_parameters
    /// (25408, 26560)
    #[pyo3(signature = (*, rng = None))]
    fn to_deep_single_head<'py>(
        slf: &Bound<'py, Self>,
        rng: Option<&Bound<'py, PyAny>>,
    ) -> PyResult<Bound<'py, PyAny>> {
        slf.py().import("headwise._deep_single_head")?.call_method1("deep_single_head", (slf, rng))
    }

    /// How many numbers the parameters have.
    #[getter]
    fn num_parameters(&self) -> usize {
        self.held.num_parameters()
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

    /// NumPy's name of the dtype.
    #[getter]
    fn dtype(&self) -> &'static str {
        self.held.dtype()
    }

    fn __repr__(&self) -> String {
        let (config, layers, final_norm, positions, _) = self.facts();
        let mut text = format!("Encoder({layers}, {}", repr_of_layer(&config));
        if final_norm {
            text += ", final_norm=True";
        }
        if let Some((name, _)) = POSITIONS.iter().find(|(_, p)| Some(*p) == positions) {
            text += &format!(", positions={name:?}");
        }
        text + &format!(", dtype={:?})", self.held.dtype())
    }

    fn __reduce__<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, PyTuple>> {
        let (py, this) = (slf.py(), slf.get());
        let (config, layers, final_norm, positions, heads) = this.facts();
        let keywords = PyDict::new(py);
        set_layer(&keywords, &config)?;
        keywords.set_item("num_layers", layers)?;
        keywords.set_item("final_norm", final_norm)?;
        keywords
            .set_item("positions", POSITIONS.iter().find(|(_, p)| Some(*p) == positions).map(|(n, _)| *n))?;
        keywords.set_item("dtype", this.held.dtype())?;
        let made = (config.attention.num_heads, config.attention.num_kv_heads);
        let gone = gone(py, made, &heads)?;
        rebuilding(slf.as_any(), keywords, gone.into_any(), this.held.state_dict(py)?)
    }
}

/// Heads to prune, by layer, so that as many heads and groups are left of those that were made. Which heads went does not
/// matter to a stack whose parameters are loaded next: only how many are left.
///
/// # Errors
/// `MemoryError`.
pub fn gone<'py>(
    py: Python<'py>,
    made: (usize, usize),
    left: &[(usize, usize)],
) -> PyResult<Bound<'py, PyDict>> {
    let gone = PyDict::new(py);
    for (n, &left) in left.iter().enumerate().filter(|(_, left)| **left != made) {
        gone.set_item(n, PyList::new(py, left_out(made, left))?)?;
    }
    Ok(gone)
}

/// The heads of one layer for [`gone`].
pub fn left_out(made: (usize, usize), (left, groups): (usize, usize)) -> Vec<usize> {
    let (group, per_group) = (made.0 / made.1, left / groups);
    (0..made.0).filter(|h| h / group >= groups || h % group >= per_group).collect()
}
