//! A call of `MultiHeadAttention`: arguments read, tokens gathered, the crate called, padding put back.

use numpy::Element;
use pyo3::prelude::*;
use pyo3::types::PyList;

use super::batch::{Axes, Batch, give, give_weights, head_mask, is_empty_list, said};
use crate::error::{Error, Result};
use crate::nn::attention::{AttentionBuffers, Call, MultiHeadAttention, Sources, WantedHeads};
use crate::nn::tokens::{Layout, Tokens};
use crate::ops::buffer::zeros;
use crate::ops::linear::After;
use crate::python::boundary::compute;
use crate::python::masks::{HeldMasks, MaskArguments};
use crate::simd::Float;

/// The keywords of a call.
pub struct Given<'a, 'py> {
    pub query: &'a Bound<'py, PyAny>,
    pub key: Option<&'a Bound<'py, PyAny>>,
    pub value: Option<&'a Bound<'py, PyAny>>,
    pub masks: MaskArguments<'a, 'py>,
    pub softcap: Option<f64>,
    pub scale: Option<f64>,
    pub head_mask: Option<&'a Bound<'py, PyAny>>,
    pub need_weights: bool,
    pub average_weights: bool,
    pub dropout: Option<u64>,
}

/// What a layer computes with: tokens gathered, the call.
pub struct Inputs<'a, T> {
    /// Rows of the tokens.
    pub sources: Sources<'a, T>,
    /// The call.
    pub call: Call<'a, T>,
}

/// The axes of a call: those of the queries and of the keys.
pub struct CallAxes {
    pub query: Axes,
    pub key: Axes,
}

/// Reads the arguments of a call and hands them to `f`, which runs without the interpreter's lock.
///
/// # Errors
/// As the contract has them, and those of `f`.
pub fn with_inputs<'py, T: Float + Element, R: Send>(
    py: Python<'py>,
    layer: &MultiHeadAttention<T>,
    given: &Given<'_, 'py>,
    f: impl FnOnce(Inputs<'_, T>) -> Result<R> + Send,
) -> PyResult<(CallAxes, R)> {
    let c = &layer.config;
    let query = Batch::<T>::read("query", given.query, c.d_model)?;
    let keys = if let Some(key) = given.key {
        let keys = Batch::<T>::read("key", key, c.key_dim)?;
        keys.goes_with(&query, false)?;
        Some(keys)
    } else {
        if c.key_dim != c.d_model || c.value_dim != c.d_model {
            let text = format!("key: expected, with key_dim = {} and value_dim = {}", c.key_dim, c.value_dim);
            return Err(Error::Type(text + "; self-attention needs both to be D").into());
        }
        None
    };
    let values = match given.value {
        Some(value) => Some(Batch::<T>::read("value", value, c.value_dim)?),
        None if keys.is_some() && c.value_dim != c.key_dim => {
            return Err(Error::Type(format!("value: expected, with value_dim = {}", c.value_dim)).into());
        }
        None => None,
    };
    if let (Some(values), Some(keys)) = (&values, &keys) {
        values.goes_with(keys, true)?;
    }
    let held = HeldMasks::<T>::read(&given.masks)?;
    let masks = held.masks();
    let key_axes = keys.as_ref().map_or(&query.axes, |k| &k.axes);
    let said = said(&masks, c.num_heads, &query.axes, key_axes)?;
    let factors = head_mask::<T>(given.head_mask, &[c.num_heads], "(H,)")?;
    let keep = said.keep.as_deref();
    let layout = query.layout(if keys.is_none() { keep } else { None });
    let key_layout = keys.as_ref().map(|k| k.layout(keep));
    let call = Call {
        masks: &said.elements,
        causal: masks.is_causal,
        window: masks.window,
        softcap: given.softcap,
        scale: given.scale,
        head_mask: factors.as_deref(),
        dropout: given.dropout,
        weights: if given.need_weights { WantedHeads::All } else { WantedHeads::None },
        ..Call::default()
    };
    let (rows, key_rows) = (query.rows(), keys.as_ref().map(Batch::rows));
    let value_rows = values.as_ref().map(Batch::rows);
    let (rows, key_rows, value_rows) = (&*rows, key_rows.as_deref(), value_rows.as_deref());
    let work = layout.total().saturating_mul(c.d_model * c.query_width());
    let made = compute(py, work, || {
        let x = layout.gather(rows, c.d_model);
        let gathered = |rows: Option<_>, width| Some(key_layout.as_ref()?.gather(rows?, width));
        let (kx, vx) = (gathered(key_rows, c.key_dim), gathered(value_rows, c.value_dim));
        let keys =
            Tokens { rows: kx.as_deref().unwrap_or(&x), layout: key_layout.as_ref().unwrap_or(&layout) };
        let values = vx.as_deref().unwrap_or(keys.rows);
        let sources = Sources { queries: Tokens { rows: &x, layout: &layout }, keys, values };
        f(Inputs { sources, call })
    })?;
    Ok((CallAxes { key: key_axes.clone(), query: query.axes }, made))
}

/// Calls a layer.
///
/// # Errors
/// As the contract has them.
pub fn call<'py, T: Float + Element>(
    py: Python<'py>,
    layer: &MultiHeadAttention<T>,
    given: &Given<'_, 'py>,
) -> PyResult<Bound<'py, PyAny>> {
    let c = &layer.config;
    if given.key.is_none() && is_empty_list(given.query) {
        let empty = PyList::empty(py);
        return Ok(if given.need_weights {
            (empty.clone(), empty).into_pyobject(py)?.into_any()
        } else {
            empty.into_any()
        });
    }
    let (need_weights, average_weights) = (given.need_weights, given.average_weights);
    let (axes, (out, weights)) = with_inputs(py, layer, given, |Inputs { sources, call }| {
        let (layout, key_layout) = (sources.queries.layout, sources.keys.layout);
        let mut buffers = AttentionBuffers::new(c, layout.total(), key_layout.total())?;
        let mut out = zeros(layout.total() * c.d_model)?;
        let weights = layer.forward(sources, &call, &mut buffers, &mut out, After::default())?;
        let weights =
            if average_weights { mean_of_heads(&weights, layout, key_layout, c.num_heads) } else { weights };
        let heads = if average_weights { 1 } else { c.num_heads };
        let weights = if need_weights { layout.scatter_weights(key_layout, weights, heads) } else { weights };
        Ok((layout.scatter(out, c.d_model), weights))
    })?;
    let out = give(py, &axes.query, out, c.d_model)?;
    if !need_weights {
        return Ok(out);
    }
    let heads = (!average_weights).then_some(c.num_heads);
    let weights = give_weights(py, &axes.query, &axes.key, weights, heads)?;
    Ok((out, weights).into_pyobject(py)?.into_any())
}

/// The mean over heads, summed in their order.
fn mean_of_heads<T: Float>(weights: &[T], queries: &Layout, keys: &Layout, heads: usize) -> Vec<T> {
    let mut mean = Vec::with_capacity(weights.len() / heads.max(1));
    let mut at = 0;
    for (l, s) in queries.lengths.iter().zip(&keys.lengths) {
        let n = l * s;
        for i in 0..n {
            let sum = (0..heads).fold(T::ZERO, |sum, h| sum + weights[at + h * n + i]);
            mean.push(sum / T::from_f64(heads as f64));
        }
        at += heads * n;
    }
    mean
}
