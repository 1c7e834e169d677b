//! `_adam_step`, `_sgd_step`, `_sum_of_squares`, `_cosine_decay`: the arithmetic of `headwise.optim`.

use numpy::{Element, PyUntypedArrayMethods};
use pyo3::prelude::*;

use super::in_place::{InPlace, is_f64};
use crate::kernels::update::SgdRule;
use crate::ops::squared_error::sum_of_squares;
use crate::ops::update::{adam, adam_rule, sgd};
use crate::python::arrays::Operand;
use crate::python::boundary::{compute, entry};
use crate::python::dtypes::Kind;
use crate::simd::Float;

/// Step number `step` (from 1 on) of Adam, or of AdamW where the decay is decoupled; the three arrays are changed.
#[pyfunction]
#[pyo3(signature = (parameter, gradient, exp_avg, exp_avg_sq, *, step, lr, betas, eps, weight_decay, decoupled))]
#[allow(clippy::too_many_arguments, reason = "keywords of a private function")]
pub fn _adam_step<'py>(
    py: Python<'py>,
    parameter: &Bound<'py, PyAny>,
    gradient: &Bound<'py, PyAny>,
    exp_avg: &Bound<'py, PyAny>,
    exp_avg_sq: &Bound<'py, PyAny>,
    step: u64,
    lr: f64,
    betas: (f64, f64),
    eps: f64,
    weight_decay: f64,
    decoupled: bool,
) -> PyResult<()> {
    macro_rules! run {
        ($t:ty) => {{
            let gradient = Operand::new("gradient", gradient)?;
            let len = gradient.array().len();
            let mut p = InPlace::<$t>::new("parameter", parameter, len, &[gradient.array()])?;
            let mut m = InPlace::<$t>::new("exp_avg", exp_avg, len, &[gradient.array(), p.array()])?;
            let others = [gradient.array(), p.array(), m.array()];
            let mut v = InPlace::<$t>::new("exp_avg_sq", exp_avg_sq, len, &others)?;
            let gradient = gradient.read_dense::<$t>()?;
            let ((gradient, _), rule) =
                (gradient.dense(), adam_rule(step, lr, betas, eps, weight_decay, decoupled));
            let (p, m, v) = (p.numbers(), m.numbers(), v.numbers());
            compute(py, len.saturating_mul(4), || adam(p, gradient, m, v, rule))
        }};
    }
    entry(|| if is_f64("parameter", parameter)? { run!(f64) } else { run!(f32) })
}

/// One step of SGD; `parameter` and `velocity` (None: no momentum) are changed.
#[pyfunction]
#[pyo3(signature = (parameter, gradient, velocity, *, lr, momentum, nesterov, weight_decay))]
#[allow(clippy::too_many_arguments, reason = "keywords of a private function")]
pub fn _sgd_step<'py>(
    py: Python<'py>,
    parameter: &Bound<'py, PyAny>,
    gradient: &Bound<'py, PyAny>,
    velocity: Option<&Bound<'py, PyAny>>,
    lr: f64,
    momentum: f64,
    nesterov: bool,
    weight_decay: f64,
) -> PyResult<()> {
    macro_rules! run {
        ($t:ty) => {{
            let gradient = Operand::new("gradient", gradient)?;
            let len = gradient.array().len();
            let mut p = InPlace::<$t>::new("parameter", parameter, len, &[gradient.array()])?;
            let others = [gradient.array(), p.array()];
            let mut v = velocity.map(|v| InPlace::<$t>::new("velocity", v, len, &others)).transpose()?;
            let gradient = gradient.read_dense::<$t>()?;
            let (gradient, _) = gradient.dense();
            let rule = SgdRule {
                lr: <$t>::from_f64(lr),
                momentum: <$t>::from_f64(momentum),
                nesterov,
                weight_decay: <$t>::from_f64(weight_decay),
            };
            let (p, v) = (p.numbers(), v.as_mut().map(InPlace::numbers));
            compute(py, len.saturating_mul(2), || sgd(p, gradient, v, rule))
        }};
    }
    entry(|| if is_f64("parameter", parameter)? { run!(f64) } else { run!(f32) })
}

/// The sum of the squares of an array's numbers, in f64.
#[pyfunction]
pub fn _sum_of_squares<'py>(py: Python<'py>, x: &Bound<'py, PyAny>) -> PyResult<f64> {
    fn sum<T: Float + Element>(py: Python<'_>, x: &Operand<'_>) -> PyResult<f64> {
        let x = x.read_dense::<T>()?;
        let (numbers, _) = x.dense();
        compute(py, numbers.len(), || sum_of_squares(numbers))
    }
    entry(|| {
        let x = Operand::new("grads", x)?;
        if x.kind() == Kind::F64 { sum::<f64>(py, &x) } else { sum::<f32>(py, &x) }
    })
}

/// (1 + cos(pi t)) / 2, with a cosine that is the same everywhere.
#[pyfunction]
pub fn _cosine_decay(t: f64) -> f64 {
    0.5 * (1.0 + libm::cos(std::f64::consts::PI * t))
}
