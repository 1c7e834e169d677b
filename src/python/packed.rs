//! `_PackedLinear`: the product as layers do it, over weights packed once, for `make bench`. Not public.

use ndarray::ArrayView2;
use pyo3::prelude::*;

use super::arrays::Operand;
use super::boundary::{compute, entry};
use super::layers::held::shaped;
use super::outputs::array;
use crate::error::{Error, Result};
use crate::ops::buffer::zeros;
use crate::ops::linear::{After, PackedLinear};

/// Weights (N, K) and bias (N,) in float32, packed.
#[pyclass(name = "_PackedLinear", module = "headwise._core", frozen)]
pub struct PyPackedLinear {
    packed: PackedLinear<f32>,
}

#[pymethods]
impl PyPackedLinear {
    #[new]
    fn new(weight: &Bound<'_, PyAny>, bias: &Bound<'_, PyAny>) -> PyResult<Self> {
        entry(|| {
            let weight = Operand::new("weight", weight)?.read_dense::<f32>()?;
            let bias = Operand::new("bias", bias)?.read_dense::<f32>()?;
            let (data, shape) = weight.dense();
            let &[n, k] = shape.as_slice() else {
                return Err(Error::Shape(format!("weight: expected (N, K), got {shape:?}")).into());
            };
            let weight = ArrayView2::from_shape((n, k), data).map_err(|e| Error::Internal(e.to_string()))?;
            Ok(Self { packed: PackedLinear::new(weight, Some(bias.dense().0))? })
        })
    }

    /// Multiply rows (M, K) to (M, N).
    fn multiply<'py>(&self, py: Python<'py>, x: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
        entry(|| {
            let x = Operand::new("x", x)?.read_dense::<f32>()?;
            let (rows, shape) = x.dense();
            let (n, k) = (self.packed.n(), self.packed.k());
            if shape.len() != 2 || shape[1] != k {
                return Err(Error::Shape(format!("x: expected (M, K) with K = {k}, got {shape:?}")).into());
            }
            let m = shape[0];
            let out = compute(py, m * n * k, || -> Result<Vec<f32>> {
                let mut out = zeros(m * n)?;
                self.packed.forward(rows, m, &mut out, After::default())?;
                Ok(out)
            })?;
            Ok(array(py, shaped(&[m, n], out)?))
        })
    }
}
