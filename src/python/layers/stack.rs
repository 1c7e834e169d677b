//! One call for `Encoder` and `EncoderLayer`: a layer is a stack of one.

use numpy::Element;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyDict, PyList};

use super::arguments::{choice, optional_width, width};
use super::batch::{Axes, Batch, give, head_mask, is_empty_list, said};
use super::wanted::Wanted;
use crate::error::{Error, Result};
use crate::kernels::activation::Activation;
use crate::nn::attention::{AttentionConfig, WantedHeads};
use crate::nn::encoder::{Encoder, StackCall};
use crate::nn::encoder_layer::LayerConfig;
use crate::nn::norm::NormKind;
use crate::nn::tokens::Layout;
use crate::python::boundary::compute;
use crate::python::masks::{HeldMasks, MaskArguments};
use crate::simd::Float;

/// The keywords that make a layer.
pub struct LayerArguments<'a, 'py> {
    pub d_model: &'a Bound<'py, PyAny>,
    pub num_heads: &'a Bound<'py, PyAny>,
    pub d_ff: Option<&'a Bound<'py, PyAny>>,
    pub num_kv_heads: Option<&'a Bound<'py, PyAny>>,
    pub head_dim: Option<&'a Bound<'py, PyAny>>,
    pub activation: &'a str,
    pub norm: &'a str,
    pub norm_first: bool,
    pub layer_norm_eps: f64,
    pub ffn: &'a str,
    pub bias: bool,
    pub dropout: f64,
}

/// Names of activations, norms and feed-forward parts.
pub const ACTIVATIONS: [(&str, Activation); 4] = [
    ("relu", Activation::Relu),
    ("gelu", Activation::Gelu),
    ("gelu_tanh", Activation::GeluTanh),
    ("silu", Activation::Silu),
];
const NORMS: [(&str, NormKind); 2] = [("layer", NormKind::Layer), ("rms", NormKind::Rms)];
pub const FEED_FORWARDS: [(&str, bool); 2] = [("mlp", false), ("glu", true)];

/// The name of a choice.
pub fn name_of<T: Copy + PartialEq>(choices: &[(&'static str, T)], value: T) -> &'static str {
    choices.iter().find(|(_, v)| *v == value).map_or("?", |(n, _)| n)
}

impl LayerArguments<'_, '_> {
    /// Checks them.
    ///
    /// # Errors
    /// `ValueError` and `TypeError`, naming the argument.
    pub fn config(&self) -> PyResult<LayerConfig> {
        let attention = AttentionConfig::new(
            width("d_model", self.d_model)?,
            width("num_heads", self.num_heads)?,
            optional_width("num_kv_heads", self.num_kv_heads)?,
            optional_width("head_dim", self.head_dim)?,
            (None, None),
            self.bias,
            self.dropout,
        )?;
        let config = LayerConfig {
            attention,
            d_ff: optional_width("d_ff", self.d_ff)?.unwrap_or(2048),
            activation: choice("activation", self.activation, &ACTIVATIONS)?,
            norm: choice("norm", self.norm, &NORMS)?,
            norm_first: self.norm_first,
            layer_norm_eps: self.layer_norm_eps,
            gated: choice("ffn", self.ffn, &FEED_FORWARDS)?,
        };
        Ok(config.check()?)
    }
}

/// Keywords that make the same layer again.
pub fn set_layer(keywords: &Bound<'_, PyDict>, c: &LayerConfig) -> PyResult<()> {
    super::multi_head_attention::set_attention(keywords, &c.attention)?;
    keywords.set_item("d_ff", c.d_ff)?;
    keywords.set_item("activation", name_of(&ACTIVATIONS, c.activation))?;
    keywords.set_item("norm", name_of(&NORMS, c.norm))?;
    keywords.set_item("norm_first", c.norm_first)?;
    keywords.set_item("layer_norm_eps", c.layer_norm_eps)?;
    keywords.set_item("ffn", name_of(&FEED_FORWARDS, c.gated))
}

/// The arguments of a layer, those that are assumed left out.
pub fn repr_of_layer(c: &LayerConfig) -> String {
    let a = &c.attention;
    let mut text = format!("{}, {}, {}", a.d_model, a.num_heads, c.d_ff);
    text += &super::multi_head_attention::repr_of_attention(a);
    if c.activation != Activation::Relu {
        text += &format!(", activation={:?}", name_of(&ACTIVATIONS, c.activation));
    }
    if c.norm != NormKind::Layer {
        text += &format!(", norm={:?}", name_of(&NORMS, c.norm));
    }
    if c.norm_first {
        text += ", norm_first=True";
    }
    if (c.layer_norm_eps - 1e-5).abs() > 0.0 {
        text += &format!(", layer_norm_eps={:?}", c.layer_norm_eps);
    }
    if c.gated {
        text += ", ffn=\"glu\"";
    }
    text + &super::multi_head_attention::repr_of_rest(a)
}

/// The keywords of a call.
pub struct Given<'a, 'py> {
    pub x: &'a Bound<'py, PyAny>,
    pub masks: MaskArguments<'a, 'py>,
    pub head_mask: Option<&'a Bound<'py, PyAny>>,
    pub hidden_states: bool,
    pub need_weights: Option<&'a Bound<'py, PyAny>>,
    pub dropout: Option<u64>,
    /// Whether the stack is a layer: `head_mask` is (H,), and weights come without a list around them.
    pub is_layer: bool,
}

/// The class of what a stack returns.
static OUTPUT: PyOnceLock<Py<PyAny>> = PyOnceLock::new();

/// What a stack computes with.
pub struct Inputs<'a, T> {
    /// All rows, padding included.
    pub rows: &'a [T],
    /// Which of them are tokens.
    pub layout: &'a Layout,
    /// The call.
    pub call: StackCall<'a, T>,
}

/// Reads the arguments of a call and hands them to `f`, which runs without the interpreter's lock; also returns the axes.
///
/// # Errors
/// As the contract has them, and those of `f`.
pub fn with_inputs<'py, T: Float + Element, R: Send>(
    py: Python<'py>,
    stack: &Encoder<T>,
    given: &Given<'_, 'py>,
    weights: &[WantedHeads<'_>],
    f: impl FnOnce(Inputs<'_, T>) -> Result<R> + Send,
) -> PyResult<(Axes, R)> {
    let c = &stack.config.attention;
    let x = if is_empty_list(given.x) { None } else { Some(Batch::<T>::read("x", given.x, c.d_model)?) };
    let axes = x.as_ref().map_or(Axes::List(Vec::new()), |x| x.axes.clone());
    let held = HeldMasks::<T>::read(&given.masks)?;
    let masks = held.masks();
    let said = said(&masks, c.num_heads, &axes, &axes).map_err(rename_lengths)?;
    let factors = factors::<T>(stack, given)?;
    let layout = x.as_ref().map_or_else(|| Layout::dense(Vec::new()), |x| x.layout(said.keep.as_deref()));
    let rows = x.as_ref().map(Batch::rows).unwrap_or_default();
    let call = StackCall {
        masks: &said.elements,
        causal: masks.is_causal,
        window: masks.window,
        head_mask: factors.as_deref(),
        weights,
        hidden_states: given.hidden_states,
        dropout: given.dropout,
    };
    let work = layout.total().saturating_mul(stack.config.d_ff * c.d_model);
    let inputs = Inputs { rows: &rows, layout: &layout, call };
    let made = compute(py, work.saturating_mul(stack.layers.len()), || f(inputs))?;
    Ok((axes, made))
}

/// Calls a stack.
///
/// # Errors
/// As the contract has them.
pub fn call<'py, T: Float + Element>(
    py: Python<'py>,
    stack: &Encoder<T>,
    given: &Given<'_, 'py>,
) -> PyResult<Bound<'py, PyAny>> {
    let d = stack.config.attention.d_model;
    let heads: Vec<usize> = stack.layers.iter().map(|l| l.config.attention.num_heads).collect();
    let wanted = Wanted::read(given.need_weights, &heads)?;
    if is_empty_list(given.x) && !given.hidden_states && wanted.is_none() {
        return Ok(PyList::empty(py).into_any());
    }
    let listed = wanted.listed(heads.len());
    let weights = wanted.of_layers(&listed);
    let (axes, output) = with_inputs(py, stack, given, &weights, |Inputs { rows, layout, call }| {
        let mut output = stack.forward(layout.gather(rows, d).into_owned(), layout, &call)?;
        output.rows = layout.scatter(output.rows, d);
        output.hidden_states = output.hidden_states.into_iter().map(|h| layout.scatter(h, d)).collect();
        for (n, w) in output.weights.iter_mut().enumerate() {
            let heads = weights.get(n).map_or(0, |w| w.count(heads[n]));
            *w = layout.scatter_weights(layout, std::mem::take(w), heads);
        }
        Ok(output)
    })?;
    let out = give(py, &axes, output.rows, d)?;
    if wanted.is_none() && !given.hidden_states {
        return Ok(out);
    }
    let hidden = output.hidden_states.into_iter().map(|h| give(py, &axes, h, d));
    let hidden = given.hidden_states.then(|| hidden.collect::<PyResult<Vec<_>>>()).transpose()?;
    let maps = wanted.give(py, output.weights, &heads, (&axes, &axes))?;
    if given.is_layer {
        let of_layer = maps.map(|m| m.get_item(0)).transpose()?;
        return Ok((out, of_layer).into_pyobject(py)?.into_any());
    }
    OUTPUT.import(py, "headwise._layers", "EncoderOutput")?.call1((out, hidden, maps))
}

/// Factors of the heads of each layer.
fn factors<T: Float + Element>(stack: &Encoder<T>, given: &Given<'_, '_>) -> PyResult<Option<Vec<Vec<T>>>> {
    let heads =
        stack.layers.first().map_or(stack.config.attention.num_heads, |l| l.config.attention.num_heads);
    if given.is_layer {
        return Ok(head_mask::<T>(given.head_mask, &[heads], "(H,)")?.map(|m| vec![m]));
    }
    if given.head_mask.is_some() && stack.layers.iter().any(|l| l.config.attention.num_heads != heads) {
        return Err(
            Error::Value("head_mask: layers have different numbers of heads after pruning".into()).into()
        );
    }
    let mask = head_mask::<T>(given.head_mask, &[stack.layers.len(), heads], "(num_layers, H)")?;
    Ok(mask.map(|m| m.chunks_exact(heads).map(<[T]>::to_vec).collect()))
}

/// Encoders call `key_lengths` `lengths`.
pub fn rename_lengths(error: Error) -> Error {
    match error {
        Error::Shape(text) => Error::Shape(text.replace("key_lengths", "lengths")),
        Error::Value(text) => Error::Value(text.replace("key_lengths", "lengths")),
        other => other,
    }
}
