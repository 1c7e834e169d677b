//! `vjp_softmax`.

use numpy::Element;
use pyo3::prelude::*;

use super::{Kept, Vjp, give, gradient};
use crate::ops::softmax::{softmax, softmax_backward};
use crate::python::arrays::Operand;
use crate::python::boundary::{compute, entry};
use crate::python::outputs::Target;
use crate::python::pullback::PyPullback;
use crate::simd::Float;

/// `headwise.vjp.softmax`.
#[pyfunction]
#[pyo3(signature = (x, axis = -1), text_signature = "(x, axis=-1)")]
pub fn vjp_softmax<'py>(py: Python<'py>, x: &Bound<'py, PyAny>, axis: isize) -> PyResult<Vjp<'py>> {
    entry(|| {
        let x = Operand::new("x", x)?;
        let f64 = Target::of(&[&x]).is_f64();
        let out = if f64 { forward::<f64>(py, &x, axis) } else { forward::<f32>(py, &x, axis) }?;
        let kept = Kept::new("x", &x);
        // The result is computed again: the one that was handed out may have been rounded to half, or written to.
        let back = move |d_out: &Bound<'_, PyAny>| {
            let x = kept.operand(d_out.py())?;
            if f64 { backward::<f64>(&x, d_out, axis) } else { backward::<f32>(&x, d_out, axis) }
        };
        Ok((out, PyPullback::new("softmax", back)))
    })
}

fn forward<'py, T: Float + Element>(
    py: Python<'py>,
    x: &Operand<'py>,
    axis: isize,
) -> PyResult<Bound<'py, PyAny>> {
    let input = x.read::<T>()?;
    let view = input.view();
    let out = compute(py, view.len().saturating_mul(8), || softmax(&view, axis))?;
    Target::of(&[x]).give(py, out, None)
}

fn backward<'py, T: Float + Element>(
    x: &Operand<'py>,
    d_out: &Bound<'py, PyAny>,
    axis: isize,
) -> PyResult<Py<PyAny>> {
    let (input, d) = (x.read::<T>()?, gradient::<T>(d_out, x.shape())?);
    let (view, d) = (input.view(), d.view());
    let py = d_out.py();
    let gradient = compute(py, view.len().saturating_mul(12), || softmax_backward(&view, &d, axis))?;
    give(py, &Target::of(&[x]), [gradient])
}
