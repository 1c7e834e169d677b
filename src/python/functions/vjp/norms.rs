//! `vjp_layer_norm` and `vjp_rms_norm`.

use numpy::Element;
use pyo3::prelude::*;

use super::{Kept, Vjp, give, gradient};
use crate::ops::norm::{NormGradients, layer_norm, layer_norm_backward, rms_norm, rms_norm_backward};
use crate::python::arrays::Operand;
use crate::python::boundary::{compute, entry};
use crate::python::outputs::Target;
use crate::python::pullback::PyPullback;
use crate::simd::Float;

/// `headwise.vjp.layer_norm`.
#[pyfunction]
#[pyo3(signature = (x, weight = None, bias = None, *, eps = 1e-5))]
pub fn vjp_layer_norm<'py>(
    py: Python<'py>,
    x: &Bound<'py, PyAny>,
    weight: Option<&Bound<'py, PyAny>>,
    bias: Option<&Bound<'py, PyAny>>,
    eps: f64,
) -> PyResult<Vjp<'py>> {
    entry(|| norm(py, "layer_norm", Kind::Layer, (x, weight, bias), eps))
}

/// `headwise.vjp.rms_norm`.
#[pyfunction]
#[pyo3(signature = (x, weight = None, *, eps = 1e-5))]
pub fn vjp_rms_norm<'py>(
    py: Python<'py>,
    x: &Bound<'py, PyAny>,
    weight: Option<&Bound<'py, PyAny>>,
    eps: f64,
) -> PyResult<Vjp<'py>> {
    entry(|| norm(py, "rms_norm", Kind::Rms, (x, weight, None), eps))
}

#[derive(Clone, Copy)]
enum Kind {
    Layer,
    Rms,
}

/// The arrays of a call, or what is held of them.
struct Arrays<A> {
    x: A,
    weight: Option<A>,
    bias: Option<A>,
}

impl<'py> Arrays<Operand<'py>> {
    /// The dtype of the result and of all gradients.
    fn target(&self) -> Target<'py> {
        let all: Vec<_> =
            [Some(&self.x), self.weight.as_ref(), self.bias.as_ref()].into_iter().flatten().collect();
        Target::of(&all)
    }

    fn keep(&self) -> Arrays<Kept> {
        let keep = |name, operand: &Option<Operand<'_>>| operand.as_ref().map(|o| Kept::new(name, o));
        Arrays {
            x: Kept::new("x", &self.x),
            weight: keep("weight", &self.weight),
            bias: keep("bias", &self.bias),
        }
    }

    fn forward<T: Float + Element>(
        &self,
        py: Python<'py>,
        kind: Kind,
        eps: f64,
    ) -> PyResult<Bound<'py, PyAny>> {
        let x = self.x.read::<T>()?;
        let weight = self.weight.as_ref().map(Operand::read::<T>).transpose()?;
        let bias = self.bias.as_ref().map(Operand::read::<T>).transpose()?;
        let (x, weight, bias) =
            (x.view(), weight.as_ref().map(|w| w.view()), bias.as_ref().map(|b| b.view()));
        let out = compute(py, x.len().saturating_mul(8), || match kind {
            Kind::Layer => layer_norm(&x, weight.as_ref(), bias.as_ref(), eps),
            Kind::Rms => rms_norm(&x, weight.as_ref(), Some(eps)),
        })?;
        self.target().give(py, out, None)
    }

    fn backward<T: Float + Element>(
        &self,
        d_out: &Bound<'py, PyAny>,
        kind: Kind,
        eps: f64,
    ) -> PyResult<Py<PyAny>> {
        let (x, d) = (self.x.read::<T>()?, gradient::<T>(d_out, self.x.shape())?);
        let weight = self.weight.as_ref().map(Operand::read::<T>).transpose()?;
        let (x, d, weight, bias) =
            (x.view(), d.view(), weight.as_ref().map(|w| w.view()), self.bias.is_some());
        let py = d_out.py();
        let NormGradients { x, weight, bias } = compute(py, x.len().saturating_mul(16), || match kind {
            Kind::Layer => layer_norm_backward(&x, &d, weight.as_ref(), bias, eps),
            Kind::Rms => rms_norm_backward(&x, &d, weight.as_ref(), eps),
        })?;
        give(py, &self.target(), [Some(x), weight, bias].into_iter().flatten())
    }
}

impl Arrays<Kept> {
    fn operands<'py>(&self, py: Python<'py>) -> PyResult<Arrays<Operand<'py>>> {
        let operand = |kept: &Option<Kept>| kept.as_ref().map(|k| k.operand(py)).transpose();
        Ok(Arrays { x: self.x.operand(py)?, weight: operand(&self.weight)?, bias: operand(&self.bias)? })
    }
}

/// x, weight and bias as they came.
type Given<'a, 'py> = (&'a Bound<'py, PyAny>, Option<&'a Bound<'py, PyAny>>, Option<&'a Bound<'py, PyAny>>);

fn norm<'py>(
    py: Python<'py>,
    of: &'static str,
    kind: Kind,
    (x, weight, bias): Given<'_, 'py>,
    eps: f64,
) -> PyResult<Vjp<'py>> {
    let operand =
        |name, object: Option<&Bound<'py, PyAny>>| object.map(|o| Operand::new(name, o)).transpose();
    let arrays =
        Arrays { x: Operand::new("x", x)?, weight: operand("weight", weight)?, bias: operand("bias", bias)? };
    let f64 = arrays.target().is_f64();
    let out = if f64 { arrays.forward::<f64>(py, kind, eps) } else { arrays.forward::<f32>(py, kind, eps) }?;
    let kept = arrays.keep();
    let back = move |d_out: &Bound<'_, PyAny>| {
        let arrays = kept.operands(d_out.py())?;
        if f64 { arrays.backward::<f64>(d_out, kind, eps) } else { arrays.backward::<f32>(d_out, kind, eps) }
    };
    Ok((out, PyPullback::new(of, back)))
}
