//! `_draw`: the arrays of `headwise.init`.

use numpy::Element;
use pyo3::prelude::*;

use crate::error::Error;
use crate::nn::random::{Distribution, draw};
use crate::ops::buffer::elements;
use crate::ops::rows::shaped;
use crate::python::boundary::{compute, entry};
use crate::python::outputs::array;
use crate::python::rng::key;
use crate::simd::Float;

/// Uniform numbers between a and b, or normal ones of mean a and deviation b, perhaps within bounds.
#[pyfunction]
#[pyo3(signature = (kind, shape, a, b, *, bounds = None, rng = None, dtype = "float32"))]
#[allow(clippy::too_many_arguments, reason = "keywords of a private function")]
pub fn _draw<'py>(
    py: Python<'py>,
    kind: &str,
    shape: &Bound<'py, PyAny>,
    a: f64,
    b: f64,
    bounds: Option<(f64, f64)>,
    rng: Option<&Bound<'py, PyAny>>,
    dtype: &str,
) -> PyResult<Bound<'py, PyAny>> {
    entry(|| {
        let shape = super::shape(shape)?;
        let distribution = match kind {
            "uniform" => Distribution::Uniform { low: a, high: b },
            "normal" => Distribution::Normal { mean: a, std: b, bounds },
            _ => return Err(Error::Internal(format!("a distribution {kind:?}")).into()),
        };
        match dtype {
            "float32" => numbers::<f32>(py, &shape, distribution, rng),
            "float64" => numbers::<f64>(py, &shape, distribution, rng),
            _ => Err(Error::DType(format!("dtype: expected float32 or float64, got {dtype}")).into()),
        }
    })
}

fn numbers<'py, T: Float + Element>(
    py: Python<'py>,
    shape: &[usize],
    distribution: Distribution,
    rng: Option<&Bound<'py, PyAny>>,
) -> PyResult<Bound<'py, PyAny>> {
    let work = elements("shape", shape)?.saturating_mul(20);
    let key = key(py, rng)?;
    let numbers = compute(py, work, || shaped(shape, draw::<T>(shape, distribution, key)?))?;
    Ok(array(py, numbers))
}
