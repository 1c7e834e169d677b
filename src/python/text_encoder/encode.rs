//! Texts to arrays: embeddings, states of tokens, ids.

use ndarray::Array1;
use numpy::Element;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList, PyTuple};

use super::shaped;
use super::texts::{OwnedText, views};
use crate::error::Result;
use crate::models::text_encoder::{EncodeCall, TextEncoder, TokenCount};
use crate::python::boundary::compute;
use crate::python::outputs::array;
use crate::simd::Float;

/// (embeddings (B, width), tokens used (B,), cut (B,)).
pub fn embed<'py, T: Float + Element>(
    py: Python<'py>,
    model: &TextEncoder<T>,
    texts: &[OwnedText],
    call: EncodeCall,
) -> PyResult<Bound<'py, PyTuple>> {
    let found = compute(py, usize::MAX, || model.encode(&views(texts), call))?;
    let rows = shaped(py, found.rows, &[texts.len(), found.width])?;
    let (used, cut) = counts(py, &found.counts);
    PyTuple::new(py, [rows, used, cut])
}

/// (a tuple (ids (L,), types (L,), states (L, D), embedding (D,)) for each text, tokens used (B,), cut (B,)).
pub fn states<'py, T: Float + Element>(
    py: Python<'py>,
    model: &TextEncoder<T>,
    texts: &[OwnedText],
    call: EncodeCall,
) -> PyResult<Bound<'py, PyTuple>> {
    let found = compute(py, usize::MAX, || model.states(&views(texts), call))?;
    let (used, cut) = counts(py, &found.iter().map(|f| f.count).collect::<Vec<_>>());
    let rows = PyList::empty(py);
    for text in found {
        let (l, wide) = (text.tokens.ids.len(), model.config().hidden_size);
        rows.append(PyTuple::new(
            py,
            [
                numbers(py, text.tokens.ids.into_iter().map(i64::from)),
                numbers(py, text.tokens.type_ids.into_iter().map(i64::from)),
                shaped(py, text.states, &[l, wide])?,
                shaped(py, text.embedding, &[model.width()])?,
            ],
        )?)?;
    }
    PyTuple::new(py, [rows.into_any(), used, cut])
}

/// Tokens of each text before it is cut, (B,).
pub fn lengths<'py, T: Float>(
    py: Python<'py>,
    model: &TextEncoder<T>,
    texts: &[OwnedText],
) -> PyResult<Bound<'py, PyAny>> {
    let found = compute(py, usize::MAX, || model.lengths(&views(texts)))?;
    Ok(numbers(py, found.into_iter().map(|n| n as i64)))
}

/// `input_ids`, `attention_mask` and `token_type_ids`, (B, L) each, padded on the right.
pub fn features<'py, T: Float>(
    py: Python<'py>,
    model: &TextEncoder<T>,
    texts: &[OwnedText],
) -> PyResult<Bound<'py, PyDict>> {
    let pad = i64::from(model.config().pad_token_id);
    let [ids, mask, types] = {
        let rows = compute(py, usize::MAX, || padded(model, texts, pad))?;
        let shape = [texts.len(), rows.longest];
        [shaped(py, rows.ids, &shape)?, shaped(py, rows.mask, &shape)?, shaped(py, rows.types, &shape)?]
    };
    let features = PyDict::new(py);
    features.set_item("input_ids", ids)?;
    features.set_item("attention_mask", mask)?;
    features.set_item("token_type_ids", types)?;
    Ok(features)
}

/// Token ids as one rectangle.
struct Padded {
    ids: Vec<i64>,
    mask: Vec<i64>,
    types: Vec<i64>,
    longest: usize,
}

fn padded<T: Float>(model: &TextEncoder<T>, texts: &[OwnedText], pad: i64) -> Result<Padded> {
    let (tokens, counts) = model.tokenize(&views(texts))?;
    let longest = counts.iter().map(|c| c.used).max().unwrap_or(0);
    let mut rows = Padded { ids: Vec::new(), mask: Vec::new(), types: Vec::new(), longest };
    for (text, end) in tokens.iter().zip((1..).map(|row| row * longest)) {
        rows.ids.extend(text.ids.iter().map(|&id| i64::from(id)));
        rows.types.extend(text.type_ids.iter().map(|&id| i64::from(id)));
        rows.mask.resize(rows.ids.len(), 1);
        rows.ids.resize(end, pad);
        rows.types.resize(end, 0);
        rows.mask.resize(end, 0);
    }
    Ok(rows)
}

fn counts<'py>(py: Python<'py>, counts: &[TokenCount]) -> (Bound<'py, PyAny>, Bound<'py, PyAny>) {
    let cut: Array1<bool> = counts.iter().map(|c| c.cut).collect();
    (numbers(py, counts.iter().map(|c| c.used as i64)), array(py, cut.into_dyn()))
}

fn numbers(py: Python<'_>, numbers: impl Iterator<Item = i64>) -> Bound<'_, PyAny> {
    array(py, numbers.collect::<Array1<i64>>().into_dyn())
}
