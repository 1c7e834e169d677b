//! `vjp_relu`, `vjp_gelu`, `vjp_silu`.

use numpy::Element;
use pyo3::prelude::*;

use super::{Kept, Vjp, give, gradient};
use crate::kernels::activation::Activation;
use crate::ops::activation::{activate_array, activate_backward, gelu_named};
use crate::ops::buffer::zeros;
use crate::ops::rows::shaped;
use crate::python::arrays::Operand;
use crate::python::boundary::{compute, entry};
use crate::python::outputs::Target;
use crate::python::pullback::PyPullback;
use crate::simd::Float;

/// `headwise.vjp.relu`.
#[pyfunction]
pub fn vjp_relu<'py>(py: Python<'py>, x: &Bound<'py, PyAny>) -> PyResult<Vjp<'py>> {
    entry(|| point(py, "relu", x, Activation::Relu))
}

/// `headwise.vjp.gelu`.
#[pyfunction]
#[pyo3(signature = (x, approximate = "none"))]
pub fn vjp_gelu<'py>(py: Python<'py>, x: &Bound<'py, PyAny>, approximate: &str) -> PyResult<Vjp<'py>> {
    entry(|| point(py, "gelu", x, gelu_named(approximate)?))
}

/// `headwise.vjp.silu`.
#[pyfunction]
pub fn vjp_silu<'py>(py: Python<'py>, x: &Bound<'py, PyAny>) -> PyResult<Vjp<'py>> {
    entry(|| point(py, "silu", x, Activation::Silu))
}

fn point<'py>(
    py: Python<'py>,
    of: &'static str,
    x: &Bound<'py, PyAny>,
    activation: Activation,
) -> PyResult<Vjp<'py>> {
    let x = Operand::new("x", x)?;
    let f64 = Target::of(&[&x]).is_f64();
    let out = if f64 { forward::<f64>(py, &x, activation) } else { forward::<f32>(py, &x, activation) }?;
    let kept = Kept::new("x", &x);
    let back = move |d_out: &Bound<'_, PyAny>| {
        let x = kept.operand(d_out.py())?;
        if f64 { backward::<f64>(&x, d_out, activation) } else { backward::<f32>(&x, d_out, activation) }
    };
    Ok((out, PyPullback::new(of, back)))
}

fn forward<'py, T: Float + Element>(
    py: Python<'py>,
    x: &Operand<'py>,
    activation: Activation,
) -> PyResult<Bound<'py, PyAny>> {
    let input = x.read::<T>()?;
    let view = input.view();
    let out = compute(py, view.len().saturating_mul(20), || activate_array(&view, activation))?;
    Target::of(&[x]).give(py, out, None)
}

fn backward<'py, T: Float + Element>(
    x: &Operand<'py>,
    d_out: &Bound<'py, PyAny>,
    activation: Activation,
) -> PyResult<Py<PyAny>> {
    let (input, d) = (x.read_dense::<T>()?, gradient::<T>(d_out, x.shape())?);
    let ((numbers, shape), (d, _)) = (input.dense(), d.dense());
    let py = d_out.py();
    let gradient = compute(py, numbers.len().saturating_mul(20), || {
        let mut dx = zeros(numbers.len())?;
        dx.copy_from_slice(d);
        activate_backward(activation, numbers, &mut dx)?;
        shaped(&shape, dx)
    })?;
    give(py, &Target::of(&[x]), [gradient])
}
