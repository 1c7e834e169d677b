//! `TextEncoder.forward`: rows of token ids to hidden states.

use pyo3::prelude::*;

use super::shaped;
use crate::error::{Error, Result};
use crate::models::text_encoder::{Packed, TextEncoder};
use crate::ops::buffer::zeros;
use crate::python::arrays::Operand;
use crate::python::boundary::compute;
use crate::python::dtypes::Source;
use crate::simd::Float;

/// Rows of token ids as `forward` takes them.
pub struct Rows {
    pub ids: Vec<u32>,
    pub mask: Option<Vec<u32>>,
    pub types: Option<Vec<u32>>,
    /// (B, L).
    pub shape: [usize; 2],
}

/// The last hidden states (B, L, D); 0 for padding.
pub fn hidden<'py, T: Float + numpy::Element>(
    py: Python<'py>,
    model: &TextEncoder<T>,
    rows: &Rows,
) -> PyResult<Bound<'py, PyAny>> {
    let [b, l] = rows.shape;
    let d = model.config().hidden_size;
    let longest = model.config().max_position_embeddings;
    if l > longest {
        return Err(
            Error::Shape(format!("input_ids: expected at most {longest} tokens in a row, got {l}")).into()
        );
    }
    let out = compute(py, usize::MAX, || {
        let mut packed = Packed::new();
        let mut places = Vec::new();
        for row in 0..b {
            for column in 0..l {
                let at = row * l + column;
                if rows.mask.as_ref().is_none_or(|m| m[at] == 1) {
                    packed.push_token(rows.ids[at], rows.types.as_ref().map_or(0, |t| t[at]), column as u32);
                    places.push(at);
                }
            }
            packed.close();
        }
        let states = model.hidden(&packed)?;
        if places.len() == b * l {
            return Ok(states);
        }
        let mut out = zeros(b * l * d)?;
        for (state, at) in states.chunks_exact(d).zip(places) {
            out[at * d..(at + 1) * d].copy_from_slice(state);
        }
        Ok(out)
    })?;
    shaped(py, out, &[b, l, d])
}

/// An array (B, L) of whole numbers that are not negative.
pub fn whole_numbers(
    name: &'static str,
    object: &Bound<'_, PyAny>,
    expected: Option<[usize; 2]>,
) -> PyResult<(Vec<u32>, [usize; 2])> {
    let operand = Operand::new(name, object)?;
    let shape = operand.shape();
    let &[b, l] = shape else {
        return Err(Error::Shape(format!("{name}: expected shape (B, L), got {shape:?}")).into());
    };
    if let Some([want_b, want_l]) = expected.filter(|&e| e != [b, l]) {
        return Err(
            Error::Shape(format!("{name}: expected shape ({want_b}, {want_l}), got ({b}, {l})")).into()
        );
    }
    // An empty list counts as float64, and holds no number that could be none.
    if !matches!(operand.source(), Source::Bool | Source::Integer) && b * l > 0 {
        return Err(
            Error::Type(format!("{name}: expected whole numbers, got {}", operand.kind().name())).into()
        );
    }
    // Integers beyond 2^53 are not exact in f64, but they are out of range all the same.
    let numbers = operand.read::<f64>()?;
    let whole = |&v: &f64| {
        if v >= 0.0 && v <= f64::from(u32::MAX) {
            Ok(v as u32)
        } else {
            Err(Error::Value(format!("{name}: expected whole numbers of at least 0, got {v}")))
        }
    };
    let numbers = numbers.view().iter().map(whole).collect::<Result<_>>()?;
    Ok((numbers, [b, l]))
}
