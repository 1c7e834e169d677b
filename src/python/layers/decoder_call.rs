//! One call for `Decoder` and `DecoderLayer`: a layer is a stack of one.

use numpy::Element;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;

use super::batch::{Axes, Batch, Said, give, head_mask, is_empty_list, said};
use super::wanted::Wanted;
use crate::error::{Error, Result};
use crate::nn::decoder::{AttentionCall, Decoder, DecoderCall};
use crate::nn::tokens::{Layout, Tokens};
use crate::python::boundary::compute;
use crate::python::masks::{HeldMasks, MaskArguments};
use crate::simd::Float;

/// The arguments of a call, each held as `P`: borrowed during a call, owned by a pullback.
pub struct Arguments<P> {
    pub x: P,
    pub memory: P,
    pub attn_mask: Option<P>,
    pub key_mask: Option<P>,
    pub lengths: Option<P>,
    pub is_causal: bool,
    pub window: Option<P>,
    pub memory_mask: Option<P>,
    pub memory_key_mask: Option<P>,
    pub memory_lengths: Option<P>,
    pub head_mask: Option<P>,
    pub cross_head_mask: Option<P>,
    pub hidden_states: bool,
    pub need_weights: Option<P>,
    /// Key of dropout in training.
    pub dropout: Option<u64>,
    /// Whether the stack is a layer: head masks are (H,), and weights come without a list around them.
    pub is_layer: bool,
}

/// The arguments of a call.
pub type Given<'a, 'py> = Arguments<&'a Bound<'py, PyAny>>;

impl<P> Arguments<P> {
    /// The same, held otherwise.
    pub fn map<'s, Q>(&'s self, f: impl Fn(&'s P) -> Q) -> Arguments<Q> {
        let some = |x: &'s Option<P>| x.as_ref().map(&f);
        Arguments {
            x: f(&self.x),
            memory: f(&self.memory),
            attn_mask: some(&self.attn_mask),
            key_mask: some(&self.key_mask),
            lengths: some(&self.lengths),
            is_causal: self.is_causal,
            window: some(&self.window),
            memory_mask: some(&self.memory_mask),
            memory_key_mask: some(&self.memory_key_mask),
            memory_lengths: some(&self.memory_lengths),
            head_mask: some(&self.head_mask),
            cross_head_mask: some(&self.cross_head_mask),
            hidden_states: self.hidden_states,
            need_weights: some(&self.need_weights),
            dropout: self.dropout,
            is_layer: self.is_layer,
        }
    }
}

/// What a stack computes with: tokens gathered, the call.
pub struct Inputs<'a, T> {
    /// Rows of the tokens.
    pub x: Tokens<'a, T>,
    /// Rows of the memory's tokens.
    pub memory: Tokens<'a, T>,
    /// The call.
    pub call: DecoderCall<'a, T>,
}

/// What `memory_mask=` and its companions are called where masks are read.
const MEMORY_NAMES: [(&str, &str); 3] =
    [("attn_mask", "memory_mask"), ("key_mask", "memory_key_mask"), ("key_lengths", "memory_lengths")];
const OWN_NAMES: [(&str, &str); 1] = [("key_lengths", "lengths")];

/// The error in the names of the arguments that were given.
fn renamed(py: Python<'_>, error: PyErr, names: &[(&str, &str)]) -> PyErr {
    let text = error.value(py).to_string();
    match names.iter().find(|(name, _)| text.starts_with(&format!("{name}:"))) {
        Some((name, given)) => PyErr::from_type(error.get_type(py), text.replacen(name, given, 1)),
        None => error,
    }
}

/// The masks that say which keys of the memory may be attended.
///
/// # Errors
/// As the contract has them, in the names of the memory's masks.
pub fn memory_masks<'py, T: Float + Element>(
    py: Python<'py>,
    masks: &MaskArguments<'_, 'py>,
) -> PyResult<HeldMasks<'py, T>> {
    HeldMasks::read(masks).map_err(|e| renamed(py, e, &MEMORY_NAMES))
}

/// Reads the masks of the memory against the axes of queries and keys.
///
/// # Errors
/// As the contract has them, in the names of the memory's masks.
pub fn memory_said<'a, T: Float + Element>(
    py: Python<'_>,
    masks: &'a HeldMasks<'_, T>,
    heads: usize,
    queries: &Axes,
    keys: &Axes,
) -> PyResult<Said<'a, T>> {
    said(&masks.masks(), heads, queries, keys).map_err(|e| renamed(py, e.into(), &MEMORY_NAMES))
}

/// An argument that is a batch; nothing where it is an empty list.
fn batch<'py, T: Float + Element>(
    name: &'static str,
    object: &Bound<'py, PyAny>,
    d: usize,
) -> PyResult<Option<Batch<'py, T>>> {
    if is_empty_list(object) { Ok(None) } else { Batch::read(name, object, d).map(Some) }
}

/// Reads the arguments of a call and hands them to `f`, which runs without the interpreter's lock; also returns the axes of
/// `x` and of the memory.
///
/// # Errors
/// As the contract has them, and those of `f`.
pub fn with_inputs<'py, T: Float + Element, R: Send>(
    py: Python<'py>,
    stack: &Decoder<T>,
    given: &Given<'_, 'py>,
    wanted: &Wanted,
    f: impl FnOnce(Inputs<'_, T>) -> Result<R> + Send,
) -> PyResult<([Axes; 2], R)> {
    let c = &stack.config.attention;
    let d = c.d_model;
    let (x, memory) = (batch::<T>("x", given.x, d)?, batch::<T>("memory", given.memory, d)?);
    let axes = [&x, &memory].map(|b| b.as_ref().map_or(Axes::List(Vec::new()), |b| b.axes.clone()));
    match (&x, &memory) {
        (Some(x), Some(memory)) => memory.goes_with(x, false)?,
        (None, None) => {}
        (x, _) => {
            let (given, empty) = if x.is_some() { ("x", "memory") } else { ("memory", "x") };
            let text = format!("{empty}: expected as many sequences as {given} has, got an empty list");
            return Err(Error::Shape(text).into());
        }
    }
    let own = MaskArguments {
        attn_mask: given.attn_mask,
        key_mask: given.key_mask,
        key_lengths: given.lengths,
        is_causal: given.is_causal,
        causal_offset: None,
        window: given.window,
    };
    let cross = MaskArguments {
        attn_mask: given.memory_mask,
        key_mask: given.memory_key_mask,
        key_lengths: given.memory_lengths,
        ..MaskArguments::default()
    };
    let held = HeldMasks::<T>::read(&own).map_err(|e| renamed(py, e, &OWN_NAMES))?;
    let of_memory = memory_masks::<T>(py, &cross)?;
    let masks = held.masks();
    let own = said(&masks, c.num_heads, &axes[0], &axes[0]).map_err(|e| renamed(py, e.into(), &OWN_NAMES))?;
    let cross = memory_said(py, &of_memory, c.num_heads, &axes[0], &axes[1])?;
    let factors = [
        factors::<T>(stack, "head_mask", given.head_mask, 0, given.is_layer)?,
        factors::<T>(stack, "cross_head_mask", given.cross_head_mask, 1, given.is_layer)?,
    ];
    let layout_of = |b: &Option<Batch<'_, T>>, keep: Option<&[bool]>| {
        b.as_ref().map_or_else(|| Layout::dense(Vec::new()), |b| b.layout(keep))
    };
    let layout = layout_of(&x, own.keep.as_deref());
    let memory_layout = layout_of(&memory, cross.keep.as_deref());
    let listed = wanted.listed(stack.layers.len());
    let weights = wanted.of_layers(&listed);
    let call = DecoderCall {
        own: AttentionCall {
            masks: &own.elements,
            causal: masks.is_causal,
            window: masks.window,
            head_mask: factors[0].as_deref(),
            weights: &weights,
        },
        cross: AttentionCall {
            masks: &cross.elements,
            head_mask: factors[1].as_deref(),
            weights: &weights,
            ..AttentionCall::default()
        },
        hidden_states: given.hidden_states,
        dropout: given.dropout,
    };
    let rows = x.as_ref().map(Batch::rows).unwrap_or_default();
    let memory_rows = memory.as_ref().map(Batch::rows).unwrap_or_default();
    let (rows, memory_rows) = (&*rows, &*memory_rows);
    let work = (layout.total() + memory_layout.total()).saturating_mul(stack.config.d_ff * d);
    let made = compute(py, work.saturating_mul(stack.layers.len()), || {
        let (x, memory) = (layout.gather(rows, d), memory_layout.gather(memory_rows, d));
        f(Inputs {
            x: Tokens { rows: &x, layout: &layout },
            memory: Tokens { rows: &memory, layout: &memory_layout },
            call,
        })
    })?;
    Ok((axes, made))
}

/// The class of what a stack returns.
static OUTPUT: PyOnceLock<Py<PyAny>> = PyOnceLock::new();

/// Calls a stack.
///
/// # Errors
/// As the contract has them.
pub fn call<'py, T: Float + Element>(
    py: Python<'py>,
    stack: &Decoder<T>,
    given: &Given<'_, 'py>,
) -> PyResult<Bound<'py, PyAny>> {
    let d = stack.config.attention.d_model;
    let heads = [0, 1].map(|part| heads(stack, part));
    // Which heads there are is asked of the smaller of both attentions.
    let least: Vec<usize> = heads[0].iter().zip(&heads[1]).map(|(&a, &b)| a.min(b)).collect();
    let wanted = Wanted::read(given.need_weights, &least)?;
    let listed = wanted.listed(least.len());
    let (axes, output) = with_inputs(py, stack, given, &wanted, |Inputs { x, memory, call }| {
        let mut output = stack.forward(x.rows.to_vec(), x.layout, memory, &call)?;
        let layout = x.layout;
        output.rows = layout.scatter(output.rows, d);
        output.hidden_states = output.hidden_states.into_iter().map(|h| layout.scatter(h, d)).collect();
        for (part, keys) in [(0, layout), (1, memory.layout)] {
            for (n, weights) in output.weights[part].iter_mut().enumerate() {
                let count = wanted.of_layers(&listed).get(n).map_or(0, |w| w.count(heads[part][n]));
                *weights = layout.scatter_weights(keys, std::mem::take(weights), count);
            }
        }
        Ok(output)
    })?;
    let [of_x, of_memory] = &axes;
    let out = give(py, of_x, output.rows, d)?;
    if wanted.is_none() && !given.hidden_states {
        return Ok(out);
    }
    let hidden = output.hidden_states.into_iter().map(|h| give(py, of_x, h, d));
    let hidden = given.hidden_states.then(|| hidden.collect::<PyResult<Vec<_>>>()).transpose()?;
    let [own, cross] = output.weights;
    let own = wanted.give(py, own, &heads[0], (of_x, of_x))?;
    let cross = wanted.give(py, cross, &heads[1], (of_x, of_memory))?;
    if given.is_layer {
        let first = |maps: Option<Bound<'py, PyAny>>| maps.map(|m| m.get_item(0)).transpose();
        return Ok((out, first(own)?, first(cross)?).into_pyobject(py)?.into_any());
    }
    OUTPUT.import(py, "headwise._layers", "DecoderOutput")?.call1((out, hidden, own, cross))
}

/// Heads of self-attention (0) or of attention to the memory (1), of each layer.
pub fn heads<T: Float>(stack: &Decoder<T>, part: usize) -> Vec<usize> {
    stack.layers.iter().map(|l| l.heads()[part].num_heads).collect()
}

/// Factors of the heads of each layer.
fn factors<T: Float + Element>(
    stack: &Decoder<T>,
    name: &str,
    given: Option<&Bound<'_, PyAny>>,
    part: usize,
    is_layer: bool,
) -> PyResult<Option<Vec<Vec<T>>>> {
    let of_layers = heads(stack, part);
    let count = of_layers.first().copied().unwrap_or(stack.config.attention.num_heads);
    let expected = [of_layers.len(), count];
    let (expected, letters) =
        if is_layer { (&expected[1..], "(H,)") } else { (&expected[..], "(num_layers, H)") };
    if given.is_some() && of_layers.iter().any(|&h| h != count) {
        let text = format!("{name}: layers have different numbers of heads after pruning");
        return Err(Error::Value(text).into());
    }
    let mask = head_mask::<T>(given, expected, letters);
    let mask = mask.map_err(|e| match given {
        Some(given) => renamed(given.py(), e, &[("head_mask", name)]),
        None => e,
    })?;
    Ok(mask.map(|m| m.chunks_exact(count).map(<[T]>::to_vec).collect()))
}
