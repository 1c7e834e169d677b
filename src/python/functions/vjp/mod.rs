//! Functions that return their result and a pullback, for `headwise.vjp`: raw forms, which that module dresses with
//! docstrings and types.
//!
//! A pullback holds the arrays of the call and reads them again; it keeps what is dear to compute twice (the sums before
//! an activation), nothing else. Gradients have the dtype of the result, and stand in the order of the arrays given.

pub mod attention;
pub mod linear;
pub mod norms;
pub mod points;
pub mod rotary;
pub mod softmax;

use ndarray::ArrayD;
use numpy::Element;
use pyo3::prelude::*;
use pyo3::types::PyTuple;

use crate::error::Error;
use crate::python::arrays::{Input, Operand};
use crate::python::outputs::Target;
use crate::python::pullback::PyPullback;
use crate::simd::Float;

/// A result and its pullback.
type Vjp<'py> = (Bound<'py, PyAny>, PyPullback);

/// An argument that a pullback holds: the array itself, not a copy.
struct Kept {
    name: &'static str,
    array: Py<PyAny>,
}

impl Kept {
    fn new(name: &'static str, operand: &Operand<'_>) -> Self {
        Self { name, array: operand.array().clone().into_any().unbind() }
    }

    fn operand<'py>(&self, py: Python<'py>) -> PyResult<Operand<'py>> {
        Operand::new(self.name, self.array.bind(py))
    }
}

/// The gradient of a result of shape `shape`, dense.
fn gradient<'py, T: Float + Element>(d_out: &Bound<'py, PyAny>, shape: &[usize]) -> PyResult<Input<'py, T>> {
    let d_out = Operand::new("d_out", d_out)?;
    if d_out.shape() != shape {
        let came = d_out.shape();
        return Err(Error::Shape(format!(
            "d_out: expected {shape:?}, the shape of the result, got {came:?}"
        ))
        .into());
    }
    d_out.read_dense()
}

/// The tuple of gradients, in the dtype of the result.
fn give<'py, T: Float + Element>(
    py: Python<'py>,
    target: &Target<'py>,
    gradients: impl IntoIterator<Item = ArrayD<T>>,
) -> PyResult<Py<PyAny>> {
    let gradients = gradients.into_iter().map(|g| target.give(py, g, None)).collect::<PyResult<Vec<_>>>()?;
    Ok(PyTuple::new(py, gradients)?.into_any().unbind())
}
