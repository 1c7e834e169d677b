//! The `vjp` of `Decoder` and `DecoderLayer`.

use std::sync::Arc;

use numpy::Element;
use pyo3::prelude::*;

use super::batch::{Batch, give};
use super::decoder_call::{Given, Inputs, with_inputs};
use super::held::dict;
use super::stack_vjp::{gradient, of_head_mask, of_layer, same_tokens};
use super::wanted::Wanted;
use crate::nn::decoder::Decoder;
use crate::python::outputs::array;
use crate::python::pullback::PyPullback;
use crate::simd::Float;

/// Takes a batch through a stack; returns its result and the pullback.
///
/// # Errors
/// As the contract has them.
pub fn vjp<'py, T: Float + Element>(
    py: Python<'py>,
    stack: Arc<impl AsRef<Decoder<T>> + Send + Sync + 'static>,
    given: &Given<'_, 'py>,
) -> PyResult<Bound<'py, PyAny>> {
    let decoder = (*stack).as_ref();
    let d = decoder.config.attention.d_model;
    let (axes, (out, saved, layouts)) =
        with_inputs(py, decoder, given, &Wanted::None, |Inputs { x, memory, call }| {
            let (out, saved) = decoder.forward_saved(x.rows, x.layout, memory, &call)?;
            Ok((x.layout.scatter(out, d), saved, [x.layout.clone(), memory.layout.clone()]))
        })?;
    let out = give(py, &axes[0], out, d)?;
    let kept = given.map(|x| (*x).clone().unbind());
    let name = if given.is_layer { "DecoderLayer" } else { "Decoder" };
    let back = move |d_out: &Bound<'_, PyAny>| {
        let (py, decoder) = (d_out.py(), (*stack).as_ref());
        let [layout, memory_layout] = &layouts;
        let d_out = gradient::<T>(d_out, &axes[0], d)?;
        let d_rows = d_out.as_ref().map(Batch::rows).unwrap_or_default();
        let d_rows = &*d_rows;
        let given = kept.map(|x| x.bind(py));
        let (_, gradients) =
            with_inputs(py, decoder, &given, &Wanted::None, |Inputs { x, memory, call }| {
                same_tokens(x.layout, layout)?;
                same_tokens(memory.layout, memory_layout)?;
                let d_rows = layout.gather(d_rows, d);
                let mut gradients = decoder.backward(layout, memory, &call, &saved, &d_rows)?;
                gradients.x = layout.scatter(gradients.x, d);
                gradients.memory = memory_layout.scatter(gradients.memory, d);
                Ok(gradients)
            })?;
        let mut parameters = gradients.parameters;
        if kept.is_layer {
            parameters = of_layer(parameters);
        }
        let grads = dict(py, parameters)?;
        for (name, of_heads) in ["head_mask", "cross_head_mask"].into_iter().zip(gradients.head_masks) {
            if let Some(of_heads) = of_heads {
                grads.set_item(name, array(py, of_head_mask(of_heads, kept.is_layer)?))?;
            }
        }
        let inputs = (give(py, &axes[0], gradients.x, d)?, give(py, &axes[1], gradients.memory, d)?);
        Ok((inputs, grads).into_pyobject(py)?.into_any().unbind())
    };
    Ok((out, PyPullback::new(name, back)).into_pyobject(py)?.into_any())
}
