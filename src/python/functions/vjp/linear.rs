//! `vjp_linear`.

use numpy::Element;
use pyo3::prelude::*;

use super::super::linear::activation_named;
use super::{Kept, Vjp, give, gradient};
use crate::kernels::activation::Activation;
use crate::ops::activation::activate;
use crate::ops::buffer::zeros;
use crate::ops::project::project;
use crate::ops::project_backward::{ProjectGradients, project_backward};
use crate::ops::rows::shaped;
use crate::python::arrays::Operand;
use crate::python::boundary::{compute, entry};
use crate::python::outputs::Target;
use crate::python::pullback::PyPullback;
use crate::simd::Float;

/// `headwise.vjp.linear`.
#[pyfunction]
#[pyo3(signature = (x, weight, bias = None, *, activation = None))]
pub fn vjp_linear<'py>(
    py: Python<'py>,
    x: &Bound<'py, PyAny>,
    weight: &Bound<'py, PyAny>,
    bias: Option<&Bound<'py, PyAny>>,
    activation: Option<&str>,
) -> PyResult<Vjp<'py>> {
    entry(|| {
        let activation = activation_named(activation)?;
        let arrays = Arrays {
            x: Operand::new("x", x)?,
            weight: Operand::new("weight", weight)?,
            bias: bias.map(|b| Operand::new("bias", b)).transpose()?,
        };
        if arrays.target().is_f64() {
            arrays.run::<f64>(py, activation)
        } else {
            arrays.run::<f32>(py, activation)
        }
    })
}

struct Arrays<'py> {
    x: Operand<'py>,
    weight: Operand<'py>,
    bias: Option<Operand<'py>>,
}

impl<'py> Arrays<'py> {
    /// The dtype of the result and of all gradients.
    fn target(&self) -> Target<'py> {
        let mut all = vec![&self.x, &self.weight];
        all.extend(&self.bias);
        Target::of(&all)
    }

    fn run<T: Float + Element>(self, py: Python<'py>, activation: Activation) -> PyResult<Vjp<'py>> {
        let (x, weight) = (self.x.read::<T>()?, self.weight.read::<T>()?);
        let bias = self.bias.as_ref().map(Operand::read::<T>).transpose()?;
        let (x, weight, bias) = (x.view(), weight.view(), bias.as_ref().map(|b| b.view()));
        let rows = x.shape().iter().rev().skip(1).product::<usize>() + 1;
        let work = weight.len().saturating_mul(rows);
        // The sums before an activation are what its slope is taken at: dear to compute, so they stay.
        let (out, before) = compute(py, work, || {
            let sums = project(&x, &weight, bias.as_ref(), Activation::Identity)?;
            if activation == Activation::Identity {
                return Ok((sums, None));
            }
            let shape = sums.shape().to_vec();
            let (sums, _) = sums.into_raw_vec_and_offset();
            let mut out = zeros(sums.len())?;
            activate(activation, &sums, &mut out)?;
            Ok((shaped(&shape, out)?, Some(sums)))
        })?;
        let shape = out.shape().to_vec();
        let out = self.target().give(py, out, None)?;
        let kept = (Kept::new("x", &self.x), Kept::new("weight", &self.weight));
        let kept_bias = self.bias.as_ref().map(|b| Kept::new("bias", b));
        let back = move |d_out: &Bound<'_, PyAny>| {
            let py = d_out.py();
            let arrays = Arrays {
                x: kept.0.operand(py)?,
                weight: kept.1.operand(py)?,
                bias: kept_bias.as_ref().map(|b| b.operand(py)).transpose()?,
            };
            let before = before.as_deref().map(|sums| (activation, sums));
            arrays.backward::<T>(d_out, &shape, before, work)
        };
        Ok((out, PyPullback::new("linear", back)))
    }

    fn backward<T: Float + Element>(
        &self,
        d_out: &Bound<'py, PyAny>,
        shape: &[usize],
        before: Option<(Activation, &[T])>,
        work: usize,
    ) -> PyResult<Py<PyAny>> {
        let d = gradient::<T>(d_out, shape)?;
        let (x, weight) = (self.x.read_dense::<T>()?, self.weight.read_dense::<T>()?);
        let (x, weight, d, bias) = (x.view(), weight.view(), d.view(), self.bias.is_some());
        let py = d_out.py();
        let ProjectGradients { x, weight, bias } =
            compute(py, work.saturating_mul(2), || project_backward(&x, &weight, bias, before, &d))?;
        give(py, &self.target(), [Some(x), Some(weight), bias].into_iter().flatten())
    }
}
