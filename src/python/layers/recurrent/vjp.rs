//! The `vjp` of recurrent layers.

use std::sync::Arc;

use numpy::Element;
use pyo3::prelude::*;
use pyo3::types::PyTuple;

use super::{Batch, Given, Read, give, give_states, read, read_states, sequences};
use crate::error::Error;
use crate::nn::recurrent::{Recurrent, States};
use crate::python::boundary::compute;
use crate::python::layers::held::dict;
use crate::python::layers::stack_vjp::gradient;
use crate::python::pullback::PyPullback;
use crate::simd::Float;

/// Takes a batch through a layer; returns ((out, state), pullback).
///
/// # Errors
/// As the contract has them.
pub(super) fn vjp<'py, T: Float + Element>(
    py: Python<'py>,
    name: &'static str,
    layer: Arc<Recurrent<T>>,
    given: &Given<'_, 'py>,
) -> PyResult<Bound<'py, PyAny>> {
    let c = layer.config().clone();
    let Read { batch, steps, state } = read::<T>(&c, given)?;
    let dropout = given.dropout;
    let work = steps.rows().saturating_mul(layer.work());
    let rows = batch.rows();
    let run = compute(py, work, || layer.forward(&rows, &steps, state.as_ref(), dropout, true))?;
    drop(rows);
    let Some(saved) = run.saved else { return Err(Error::Internal("nothing kept".into()).into()) };
    let axes = batch.axes;
    let out = give(py, &axes, run.out, c.output_size())?;
    let last = give_states(py, run.state, &c, &axes)?;
    let back = move |given: &Bound<'_, PyAny>| {
        let (py, c) = (given.py(), layer.config());
        let [d_out, d_state] = split(given)?;
        let d_out = d_out.map(|d| gradient::<T>(&d, &axes, c.output_size())).transpose()?.flatten();
        let d_state = match d_state {
            Some(d_state) => read_states("d_state", &d_state, c, &axes)?,
            None => States::zeros(c, sequences(&axes))?,
        };
        let d_rows = d_out.as_ref().map(Batch::rows);
        let gradients = compute(py, work.saturating_mul(2), || {
            layer.backward(&steps, &saved, d_rows.as_deref(), &d_state, dropout)
        })?;
        let d_x = give(py, &axes, gradients.x, c.input_size)?;
        let d_state = give_states(py, gradients.state, c, &axes)?;
        let inputs = (d_x, d_state).into_pyobject(py)?;
        Ok((inputs, dict(py, gradients.parameters)?).into_pyobject(py)?.into_any().unbind())
    };
    let result = (out, last).into_pyobject(py)?;
    Ok((result, PyPullback::new(name, back)).into_pyobject(py)?.into_any())
}

/// The gradients of out and of state, of `d_out` or `(d_out, d_state)`; what is None is 0.
fn split<'py>(given: &Bound<'py, PyAny>) -> PyResult<[Option<Bound<'py, PyAny>>; 2]> {
    let Ok(pair) = given.cast::<PyTuple>() else { return Ok([Some(given.clone()), None]) };
    if pair.len() != 2 {
        let came = pair.len();
        let text = format!("d_out: expected an array, a list, or (d_out, d_state), got a tuple of {came}");
        return Err(Error::Type(text).into());
    }
    let part = |i| -> PyResult<_> { Ok(Some(pair.get_item(i)?).filter(|part| !part.is_none())) };
    Ok([part(0)?, part(1)?])
}
