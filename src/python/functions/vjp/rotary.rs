//! `vjp_rotary_embedding`.

use numpy::Element;
use pyo3::prelude::*;

use super::super::length;
use super::{Kept, Vjp, give, gradient};
use crate::ops::rotary::{Rotary, rotary_embedding, rotary_embedding_backward};
use crate::python::arrays::Operand;
use crate::python::boundary::{compute, entry};
use crate::python::outputs::Target;
use crate::python::pullback::PyPullback;
use crate::simd::Float;

/// `headwise.vjp.rotary_embedding`.
#[pyfunction]
#[pyo3(signature = (x, positions = None, *, theta = 10000.0, interleaved = false, rotary_dim = None))]
pub fn vjp_rotary_embedding<'py>(
    py: Python<'py>,
    x: &Bound<'py, PyAny>,
    positions: Option<&Bound<'py, PyAny>>,
    theta: f64,
    interleaved: bool,
    rotary_dim: Option<&Bound<'py, PyAny>>,
) -> PyResult<Vjp<'py>> {
    entry(|| {
        let rotary_dim = rotary_dim.map(|r| length("rotary_dim", r)).transpose()?;
        let rotary = Rotary { theta, interleaved, rotary_dim };
        let x = Operand::new("x", x)?;
        let positions = positions.map(|p| Operand::new("positions", p)).transpose()?;
        let f64 = Target::of(&[&x]).is_f64();
        let out = if f64 {
            forward::<f64>(py, &x, positions.as_ref(), &rotary)
        } else {
            forward::<f32>(py, &x, positions.as_ref(), &rotary)
        }?;
        let kept = Kept::new("x", &x);
        let places = positions.as_ref().map(|p| Kept::new("positions", p));
        let back = move |d_out: &Bound<'_, PyAny>| {
            let py = d_out.py();
            let x = kept.operand(py)?;
            let positions = places.as_ref().map(|p| p.operand(py)).transpose()?;
            if f64 {
                backward::<f64>(&x, positions.as_ref(), d_out, &rotary)
            } else {
                backward::<f32>(&x, positions.as_ref(), d_out, &rotary)
            }
        };
        Ok((out, PyPullback::new("rotary_embedding", back)))
    })
}

fn forward<'py, T: Float + Element>(
    py: Python<'py>,
    x: &Operand<'py>,
    positions: Option<&Operand<'py>>,
    rotary: &Rotary,
) -> PyResult<Bound<'py, PyAny>> {
    let (input, positions) = (x.read::<T>()?, positions.map(Operand::read::<f64>).transpose()?);
    let (view, positions) = (input.view(), positions.as_ref().map(|p| p.view()));
    let work = view.len().saturating_mul(4);
    let out = compute(py, work, || rotary_embedding(&view, positions.as_ref(), rotary))?;
    Target::of(&[x]).give(py, out, None)
}

fn backward<'py, T: Float + Element>(
    x: &Operand<'py>,
    positions: Option<&Operand<'py>>,
    d_out: &Bound<'py, PyAny>,
    rotary: &Rotary,
) -> PyResult<Py<PyAny>> {
    let (d, positions) = (gradient::<T>(d_out, x.shape())?, positions.map(Operand::read::<f64>).transpose()?);
    let (d, positions) = (d.view(), positions.as_ref().map(|p| p.view()));
    let (py, work) = (d_out.py(), d.len().saturating_mul(4));
    let gradient = compute(py, work, || rotary_embedding_backward(&d, positions.as_ref(), rotary))?;
    give(py, &Target::of(&[x]), [gradient])
}
