//! The `vjp` of `MultiHeadAttention`.

use std::sync::Arc;

use numpy::Element;
use pyo3::prelude::*;
use pyo3::types::PyTuple;

use super::attention_call::{Given, Inputs, with_inputs};
use super::batch::{Batch, give, is_empty_list};
use super::held::{dict, shaped};
use super::stack_vjp::{gradient, same_tokens};
use crate::error::Error;
use crate::nn::attention::{MultiHeadAttention, SourceGradients};
use crate::ops::buffer::zeros;
use crate::ops::linear::After;
use crate::python::masks::MaskArguments;
use crate::python::outputs::array;
use crate::python::pullback::PyPullback;
use crate::simd::Float;

/// Arguments that a pullback holds and reads again.
struct Kept {
    query: Py<PyAny>,
    key: Option<Py<PyAny>>,
    value: Option<Py<PyAny>>,
    attn_mask: Option<Py<PyAny>>,
    key_mask: Option<Py<PyAny>>,
    key_lengths: Option<Py<PyAny>>,
    is_causal: bool,
    causal_offset: Option<Py<PyAny>>,
    window: Option<Py<PyAny>>,
    softcap: Option<f64>,
    scale: Option<f64>,
    head_mask: Option<Py<PyAny>>,
    dropout: Option<u64>,
}

impl Kept {
    fn new(given: &Given<'_, '_>) -> Self {
        let keep = |x: Option<&Bound<'_, PyAny>>| x.map(|x| x.clone().unbind());
        Self {
            query: given.query.clone().unbind(),
            key: keep(given.key),
            value: keep(given.value),
            attn_mask: keep(given.masks.attn_mask),
            key_mask: keep(given.masks.key_mask),
            key_lengths: keep(given.masks.key_lengths),
            is_causal: given.masks.is_causal,
            causal_offset: keep(given.masks.causal_offset),
            window: keep(given.masks.window),
            softcap: given.softcap,
            scale: given.scale,
            head_mask: keep(given.head_mask),
            dropout: given.dropout,
        }
    }

    /// The arguments as they were given.
    fn with<R>(&self, py: Python<'_>, f: impl FnOnce(&Given<'_, '_>) -> R) -> R {
        fn bound<'a, 'py>(py: Python<'py>, x: Option<&'a Py<PyAny>>) -> Option<&'a Bound<'py, PyAny>> {
            x.map(|x| x.bind(py))
        }
        f(&Given {
            query: self.query.bind(py),
            key: bound(py, self.key.as_ref()),
            value: bound(py, self.value.as_ref()),
            masks: MaskArguments {
                attn_mask: bound(py, self.attn_mask.as_ref()),
                key_mask: bound(py, self.key_mask.as_ref()),
                key_lengths: bound(py, self.key_lengths.as_ref()),
                is_causal: self.is_causal,
                causal_offset: bound(py, self.causal_offset.as_ref()),
                window: bound(py, self.window.as_ref()),
            },
            softcap: self.softcap,
            scale: self.scale,
            head_mask: bound(py, self.head_mask.as_ref()),
            need_weights: false,
            average_weights: false,
            dropout: self.dropout,
        })
    }
}

/// Attends; returns the result and the pullback.
///
/// # Errors
/// As the contract has them.
pub fn vjp<'py, T: Float + Element>(
    py: Python<'py>,
    layer: Arc<MultiHeadAttention<T>>,
    given: &Given<'_, 'py>,
) -> PyResult<Bound<'py, PyAny>> {
    if is_empty_list(given.query) {
        return Err(Error::Value("query: expected at least one sequence, got an empty list".into()).into());
    }
    let d = layer.config.d_model;
    let (axes, (out, saved, layouts)) = with_inputs(py, &layer, given, |Inputs { sources, call }| {
        let layouts = (sources.queries.layout.clone(), sources.keys.layout.clone());
        let mut out = zeros(layouts.0.total() * d)?;
        let saved = layer.forward_saved(sources, &call, &mut out, After::default())?;
        Ok((layouts.0.scatter(out, d), saved, layouts))
    })?;
    let out = give(py, &axes.query, out, d)?;
    let kept = Kept::new(given);
    let back = move |d_out: &Bound<'_, PyAny>| {
        let py = d_out.py();
        let (c, (layout, key_layout)) = (&layer.config, &layouts);
        let d_out = gradient::<T>(d_out, &axes.query, d)?;
        let d_rows = d_out.as_ref().map(Batch::rows).unwrap_or_default();
        let d_rows = &*d_rows;
        let (has_key, has_value) = (kept.key.is_some(), kept.value.is_some());
        let (_, (dx, dk, dv, grads, d_head_mask)) = kept.with(py, |given| {
            with_inputs(py, &layer, given, |Inputs { sources, call }| {
                same_tokens(sources.queries.layout, layout)?;
                same_tokens(sources.keys.layout, key_layout)?;
                let d_rows = layout.gather(d_rows, d);
                let s = key_layout.total();
                let mut dx = zeros(layout.total() * d)?;
                let mut dk = zeros(if has_key { s * c.key_dim } else { 0 })?;
                let mut dv = zeros(if has_value { s * c.value_dim } else { 0 })?;
                let into = SourceGradients {
                    queries: &mut dx,
                    keys: has_key.then_some(&mut dk[..]),
                    values: has_value.then_some(&mut dv[..]),
                };
                let (grads, d_head_mask) = layer.backward(sources, &call, &saved, &d_rows, into, None)?;
                let back = |rows, given, width| if given { key_layout.scatter(rows, width) } else { rows };
                let (dk, dv) = (back(dk, has_key, c.key_dim), back(dv, has_value, c.value_dim));
                Ok((layout.scatter(dx, d), dk, dv, grads, d_head_mask))
            })
        })?;
        let grads = dict(py, grads)?;
        if let Some(of_heads) = d_head_mask {
            grads.set_item("head_mask", array(py, shaped(&[of_heads.len()], of_heads)?))?;
        }
        let mut inputs = vec![give(py, &axes.query, dx, d)?];
        if has_key {
            inputs.push(give(py, &axes.key, dk, c.key_dim)?);
        }
        if has_value {
            inputs.push(give(py, &axes.key, dv, c.value_dim)?);
        }
        let inputs = if has_key { PyTuple::new(py, inputs)?.into_any() } else { inputs.remove(0) };
        Ok((inputs, grads).into_pyobject(py)?.into_any().unbind())
    };
    Ok((out, PyPullback::new("MultiHeadAttention", back)).into_pyobject(py)?.into_any())
}
