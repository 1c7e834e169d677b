//! `TextEncoder.vjp`: texts to embeddings, and the way back.

use numpy::Element;
use pyo3::prelude::*;

use super::texts::{OwnedText, views};
use crate::models::text_encoder::TextEncoder;
use crate::python::boundary::compute;
use crate::python::layers::batch::{Axes, give};
use crate::python::layers::held::dict;
use crate::python::layers::rows::{Form, Rows};
use crate::python::pullback::PyPullback;
use crate::simd::Float;

/// The embeddings (B, width) of texts, and the pullback.
pub fn vjp<'py, T: Float + Element>(
    py: Python<'py>,
    model: &TextEncoder<T>,
    texts: &[OwnedText],
    skip: usize,
    first_layer: usize,
) -> PyResult<Bound<'py, PyAny>> {
    let (width, d) = (model.width(), model.config().hidden_size);
    let texts = views(texts);
    let form = Form::Array(vec![texts.len()]);
    let (out, saved) = compute(py, usize::MAX, || model.vjp(&texts, skip, first_layer))?;
    let out = form.give(py, out, width)?;
    let back = move |d_out: &Bound<'_, PyAny>| {
        let py = d_out.py();
        let d_rows = Rows::<T>::gradient(d_out, &form, width)?;
        let numbers = d_rows.numbers();
        let gradients = compute(py, usize::MAX, || saved.backward(&numbers))?;
        let inputs = give(py, &Axes::List(saved.lengths().to_vec()), gradients.inputs, d)?;
        let grads = dict(py, gradients.parameters)?;
        Ok((inputs, grads).into_pyobject(py)?.into_any().unbind())
    };
    Ok((out, PyPullback::new("TextEncoder", back)).into_pyobject(py)?.into_any())
}
