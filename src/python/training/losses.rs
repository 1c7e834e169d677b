//! `_cross_entropy`, `_squared_error`, `_contrastive`: the arithmetic of `headwise.losses`.

use numpy::{Element, PyArrayDescr, PyUntypedArrayMethods};
use pyo3::prelude::*;

use crate::error::Error;
use crate::kernels::cross_entropy::Targets;
use crate::ops::contrastive::contrastive;
use crate::ops::cross_entropy::{Options, cross_entropy};
use crate::ops::squared_error::squared_error;
use crate::python::arrays::{Operand, as_array};
use crate::python::boundary::{compute, entry};
use crate::python::dtypes::Source;
use crate::python::masks::integers;
use crate::python::memory::converted;
use crate::python::outputs::Target;
use crate::simd::Float;

type Loss<'py> = (f64, Bound<'py, PyAny>);

/// Loss and gradient of logits (..., C). Targets are classes (...,) or probabilities (..., C).
#[pyfunction]
#[pyo3(signature = (logits, targets, *, class_weight, counted, label_smoothing, mean))]
pub fn _cross_entropy<'py>(
    py: Python<'py>,
    logits: &Bound<'py, PyAny>,
    targets: &Bound<'py, PyAny>,
    class_weight: Option<&Bound<'py, PyAny>>,
    counted: Option<&Bound<'py, PyAny>>,
    label_smoothing: f64,
    mean: bool,
) -> PyResult<Loss<'py>> {
    entry(|| {
        let logits = Operand::new("logits", logits)?;
        let counted = counted.map(flags).transpose()?;
        let given = (targets, class_weight, counted.as_deref());
        if Target::of(&[&logits]).is_f64() {
            entropy::<f64>(py, &logits, given, label_smoothing, mean)
        } else {
            entropy::<f32>(py, &logits, given, label_smoothing, mean)
        }
    })
}

fn entropy<'py, T: Float + Element>(
    py: Python<'py>,
    logits: &Operand<'py>,
    (targets, class_weight, counted): (&Bound<'py, PyAny>, Option<&Bound<'py, PyAny>>, Option<&[bool]>),
    smoothing: f64,
    mean: bool,
) -> PyResult<Loss<'py>> {
    let rows = logits.shape().split_last().map_or(&[][..], |(_, rows)| rows);
    let weight = class_weight.map(|w| Operand::new("class_weight", w)?.read_dense::<T>()).transpose()?;
    let weight = weight.as_ref().map(|w| w.dense().0);
    let options = Options { class_weight: weight, counted, smoothing, mean };
    let given = Operand::new("targets", targets)?;
    let (classes, probabilities);
    let targets = match given.source() {
        Source::Integer if given.shape() == rows => {
            (classes, _) = integers("targets", targets)?;
            Targets::Classes(&classes)
        }
        Source::Float(_) if given.shape() == logits.shape() => {
            probabilities = given.read_dense::<T>()?;
            Targets::Probabilities(probabilities.dense().0)
        }
        Source::Integer | Source::Float(_) => {
            return Err(Error::Shape(format!(
                "targets: expected classes, integers {rows:?}, or probabilities, floating numbers {:?}, for logits of shape \
                 {:?}, got {} of shape {:?}",
                logits.shape(),
                logits.shape(),
                given.array().dtype(),
                given.shape()
            ))
            .into());
        }
        Source::Bool => {
            return Err(
                Error::Type("targets: expected integers or floating numbers, got booleans".into()).into()
            );
        }
    };
    let input = logits.read::<T>()?;
    let view = input.view();
    let (loss, gradient) =
        compute(py, view.len().saturating_mul(10), || cross_entropy(&view, targets, options))?;
    Ok((loss, Target::of(&[logits]).give(py, gradient, None)?))
}

/// Loss and gradient of a prediction; the target and the flags have its shape.
#[pyfunction]
#[pyo3(signature = (prediction, target, *, counted, mean))]
pub fn _squared_error<'py>(
    py: Python<'py>,
    prediction: &Bound<'py, PyAny>,
    target: &Bound<'py, PyAny>,
    counted: Option<&Bound<'py, PyAny>>,
    mean: bool,
) -> PyResult<Loss<'py>> {
    macro_rules! run {
        ($t:ty, $prediction:expr, $target:expr, $counted:expr, $result:expr) => {{
            let (input, target) = ($prediction.read::<$t>()?, $target.read_dense::<$t>()?);
            let (view, (target, _)) = (input.view(), target.dense());
            let (loss, gradient) =
                compute(py, view.len().saturating_mul(4), || squared_error(&view, target, $counted, mean))?;
            Ok((loss, $result.give(py, gradient, None)?))
        }};
    }
    entry(|| {
        let prediction = Operand::new("prediction", prediction)?;
        let target = Operand::new("target", target)?;
        if target.shape() != prediction.shape() {
            return Err(Error::Shape(format!(
                "target: expected shape {:?}, that of prediction, got {:?}",
                prediction.shape(),
                target.shape()
            ))
            .into());
        }
        let counted = counted.map(flags).transpose()?;
        let (counted, result) = (counted.as_deref(), Target::of(&[&prediction]));
        if result.is_f64() {
            run!(f64, prediction, target, counted, result)
        } else {
            run!(f32, prediction, target, counted, result)
        }
    })
}

/// Loss and both gradients of queries (B, D) and documents (N, D).
#[pyfunction]
#[pyo3(signature = (queries, documents, *, temperature, symmetric))]
pub fn _contrastive<'py>(
    py: Python<'py>,
    queries: &Bound<'py, PyAny>,
    documents: &Bound<'py, PyAny>,
    temperature: f64,
    symmetric: bool,
) -> PyResult<(f64, Bound<'py, PyAny>, Bound<'py, PyAny>)> {
    macro_rules! run {
        ($t:ty, $queries:expr, $documents:expr, $result:expr) => {{
            let (q, d) = ($queries.read::<$t>()?, $documents.read::<$t>()?);
            let (q, d) = (q.view(), d.view());
            let work = q.len().saturating_mul(d.shape().first().copied().unwrap_or(1)).saturating_mul(3);
            let (loss, dq, dd) = compute(py, work, || contrastive(&q, &d, temperature, symmetric))?;
            Ok((loss, $result.give(py, dq, None)?, $result.give(py, dd, None)?))
        }};
    }
    entry(|| {
        let queries = Operand::new("queries", queries)?;
        let documents = Operand::new("documents", documents)?;
        let result = Target::of(&[&queries, &documents]);
        if result.is_f64() {
            run!(f64, queries, documents, result)
        } else {
            run!(f32, queries, documents, result)
        }
    })
}

/// The booleans of an array whose kind and shape have been checked.
fn flags(object: &Bound<'_, PyAny>) -> PyResult<Vec<bool>> {
    let array = as_array("mask", object)?;
    let bytes = converted::<u8>(&array, PyArrayDescr::of::<bool>(object.py()))?;
    Ok(bytes.iter().map(|&b| b != 0).collect())
}
