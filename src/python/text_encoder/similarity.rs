//! `_unit_rows`: embeddings brought to unit length by the kernel that models do it with. Not public.

use numpy::Element;
use pyo3::prelude::*;

use super::shaped;
use crate::error::{Error, Result};
use crate::models::pooling::normalize_rows;
use crate::python::arrays::Operand;
use crate::python::boundary::{compute, entry};
use crate::python::outputs::Target;
use crate::simd::{self, Float};

/// Rows (B, D) divided by their lengths, or by 1e-12 where they are shorter.
#[pyfunction]
pub fn _unit_rows<'py>(py: Python<'py>, x: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
    entry(|| {
        let x = Operand::new("embeddings", x)?;
        if Target::of(&[&x]).is_f64() { unit_rows::<f64>(py, &x) } else { unit_rows::<f32>(py, &x) }
    })
}

fn unit_rows<'py, T: Float + Element>(py: Python<'py>, x: &Operand<'py>) -> PyResult<Bound<'py, PyAny>> {
    let x = x.read_dense::<T>()?;
    let (rows, shape) = x.dense();
    let &[b, d] = shape.as_slice() else {
        return Err(Error::Shape(format!("embeddings: expected (B, D), got {shape:?}")).into());
    };
    let out = compute(py, rows.len(), || -> Result<Vec<T>> {
        let mut out = rows.to_vec();
        if d > 0 {
            normalize_rows(simd::active()?, &mut out, d);
        }
        Ok(out)
    })?;
    shaped(py, out, &[b, d])
}
