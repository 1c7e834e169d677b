//! The `vjp` of `Encoder` and `EncoderLayer`.

use std::sync::Arc;

use ndarray::ArrayD;
use numpy::Element;
use pyo3::prelude::*;

use super::batch::{Axes, Batch, give, is_empty_list};
use super::held::{dict, shaped};
use super::stack::{Given, Inputs, with_inputs};
use crate::error::{Error, Result};
use crate::nn::encoder::Encoder;
use crate::nn::state::State;
use crate::nn::tokens::Layout;
use crate::python::masks::MaskArguments;
use crate::python::outputs::array;
use crate::python::pullback::PyPullback;
use crate::simd::Float;

/// Arguments that a pullback holds and reads again.
struct Kept {
    x: Py<PyAny>,
    attn_mask: Option<Py<PyAny>>,
    key_mask: Option<Py<PyAny>>,
    key_lengths: Option<Py<PyAny>>,
    is_causal: bool,
    window: Option<Py<PyAny>>,
    head_mask: Option<Py<PyAny>>,
    dropout: Option<u64>,
    is_layer: bool,
}

impl Kept {
    fn new(given: &Given<'_, '_>) -> Self {
        let keep = |x: Option<&Bound<'_, PyAny>>| x.map(|x| x.clone().unbind());
        Self {
            x: given.x.clone().unbind(),
            attn_mask: keep(given.masks.attn_mask),
            key_mask: keep(given.masks.key_mask),
            key_lengths: keep(given.masks.key_lengths),
            is_causal: given.masks.is_causal,
            window: keep(given.masks.window),
            head_mask: keep(given.head_mask),
            dropout: given.dropout,
            is_layer: given.is_layer,
        }
    }

    /// The arguments as they were given.
    fn with<R>(&self, py: Python<'_>, f: impl FnOnce(&Given<'_, '_>) -> R) -> R {
        fn bound<'a, 'py>(py: Python<'py>, x: Option<&'a Py<PyAny>>) -> Option<&'a Bound<'py, PyAny>> {
            x.map(|x| x.bind(py))
        }
        f(&Given {
            x: self.x.bind(py),
            masks: MaskArguments {
                attn_mask: bound(py, self.attn_mask.as_ref()),
                key_mask: bound(py, self.key_mask.as_ref()),
                key_lengths: bound(py, self.key_lengths.as_ref()),
                is_causal: self.is_causal,
                causal_offset: None,
                window: bound(py, self.window.as_ref()),
            },
            head_mask: bound(py, self.head_mask.as_ref()),
            hidden_states: false,
            need_weights: None,
            dropout: self.dropout,
            is_layer: self.is_layer,
        })
    }
}

/// Takes a batch through a stack; returns its result and the pullback.
///
/// # Errors
/// As the contract has them.
pub fn vjp<'py, T: Float + Element>(
    py: Python<'py>,
    stack: Arc<impl AsRef<Encoder<T>> + Send + Sync + 'static>,
    given: &Given<'_, 'py>,
) -> PyResult<Bound<'py, PyAny>> {
    let encoder = (*stack).as_ref();
    let d = encoder.config.attention.d_model;
    let (axes, (out, saved, layout)) =
        with_inputs(py, encoder, given, &[], |Inputs { rows, layout, call }| {
            let (out, saved) = encoder.forward_saved(&layout.gather(rows, d), layout, &call)?;
            Ok((layout.scatter(out, d), saved, layout.clone()))
        })?;
    let out = give(py, &axes, out, d)?;
    let kept = Kept::new(given);
    let name = if given.is_layer { "EncoderLayer" } else { "Encoder" };
    let back = move |d_out: &Bound<'_, PyAny>| {
        let (py, encoder) = (d_out.py(), (*stack).as_ref());
        let d_out = gradient::<T>(d_out, &axes, d)?;
        let d_rows = d_out.as_ref().map(Batch::rows).unwrap_or_default();
        let d_rows = &*d_rows;
        let (_, gradients) = kept.with(py, |given| {
            with_inputs(py, encoder, given, &[], |Inputs { layout: now, call, .. }| {
                same_tokens(now, &layout)?;
                let d_rows = layout.gather(d_rows, d);
                let mut gradients = encoder.backward(&layout, &call, &saved, &d_rows)?;
                gradients.x = layout.scatter(gradients.x, d);
                Ok(gradients)
            })
        })?;
        let mut parameters = gradients.parameters;
        if kept.is_layer {
            parameters = of_layer(parameters);
        }
        let grads = dict(py, parameters)?;
        if let Some(of_heads) = gradients.head_mask {
            grads.set_item("head_mask", array(py, of_head_mask(of_heads, kept.is_layer)?))?;
        }
        let dx = give(py, &axes, gradients.x, d)?;
        Ok((dx, grads).into_pyobject(py)?.into_any().unbind())
    };
    Ok((out, PyPullback::new(name, back)).into_pyobject(py)?.into_any())
}

/// Reads the gradient of a result of these axes; nothing where it is an empty list.
///
/// # Errors
/// `ShapeError` for other axes, `DTypeError`.
pub fn gradient<'py, T: Float + Element>(
    d_out: &Bound<'py, PyAny>,
    axes: &Axes,
    d: usize,
) -> PyResult<Option<Batch<'py, T>>> {
    if is_empty_list(d_out) && *axes == Axes::List(Vec::new()) {
        return Ok(None);
    }
    let batch = Batch::<T>::read("d_out", d_out, d)?;
    if batch.axes != *axes {
        let (want, came) = (axes.describe(d), batch.axes.describe(d));
        return Err(Error::Shape(format!("d_out: expected {want}, as the result has it, got {came}")).into());
    }
    Ok(Some(batch))
}

/// Refuses masks that name other tokens than those of the forward pass.
///
/// # Errors
/// `Value`.
pub fn same_tokens(now: &Layout, then: &Layout) -> Result<()> {
    if now == then {
        return Ok(());
    }
    Err(Error::Value(
        "x: the input or its masks were changed between the forward pass and the pullback".into(),
    ))
}

/// Gradients of a stack of one under the names of its layer.
pub fn of_layer<T>(parameters: State<T>) -> State<T> {
    let short = |name: String| name.strip_prefix("layers.0.").map_or(name.clone(), str::to_owned);
    parameters.into_iter().map(|(name, tensor)| (short(name), tensor)).collect()
}

/// (layers, H), or (H,) of a layer.
///
/// # Errors
/// `Internal`.
pub fn of_head_mask<T: Float>(of_layers: Vec<Vec<T>>, is_layer: bool) -> Result<ArrayD<T>> {
    let (layers, heads) = (of_layers.len(), of_layers.first().map_or(0, Vec::len));
    let shape = if is_layer { vec![heads] } else { vec![layers, heads] };
    shaped(&shape, of_layers.concat())
}
