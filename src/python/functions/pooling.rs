//! The steps of attention pooling, from which `headwise.attention` is put together: not public. Their arguments were
//! checked there; all arrays are of one dtype, float32 or float64, with N = batch elements times heads in front.

use ndarray::{ArrayD, IxDyn};
use numpy::{Element, PyArrayDescr};
use pyo3::prelude::*;
use pyo3::types::PyTuple;

use crate::error::{Error, Result};
use crate::kernels::pooling::map::Function;
use crate::kernels::pooling::normalize::Normalize;
use crate::kernels::pooling::pairs::Pair;
use crate::kernels::pooling::scores::Score;
use crate::ops::pooling::{self, Over, Pairs};
use crate::python::arrays::{Operand, as_array};
use crate::python::boundary::{compute, entry};
use crate::python::memory::converted;
use crate::python::outputs::{Target, array};
use crate::python::rng;
use crate::simd::Float;

type Any<'a, 'py> = &'a Bound<'py, PyAny>;

/// Runs a body for the float type of an operand.
macro_rules! of_type {
    ($x:expr, |$t:ident| $body:expr) => {{
        let is_f64 = Target::of(&[&Operand::new("x", $x)?]).is_f64();
        if is_f64 {
            type $t = f64;
            $body
        } else {
            type $t = f32;
            $body
        }
    }};
}

/// Scores (N, L, S) of query (N, L, W) and key (N, S, W): "dot", "l2" or, with v (W), "additive".
#[pyfunction]
#[pyo3(signature = (kind, query, key, v = None))]
pub fn _pooling_scores<'py>(
    py: Python<'py>,
    kind: &str,
    query: Any<'_, 'py>,
    key: Any<'_, 'py>,
    v: Option<Any<'_, 'py>>,
) -> PyResult<Bound<'py, PyAny>> {
    entry(|| {
        of_type!(query, |T| {
            let q = Operand::new("query", query)?.read_dense::<T>()?;
            let k = Operand::new("key", key)?.read_dense::<T>()?;
            let v = v.map(|v| Operand::new("v", v)?.read_dense::<T>()).transpose()?;
            let ((q, q_shape), (k, k_shape)) = (q.dense(), k.dense());
            let v = v.as_ref().map_or(&[][..], |v| v.dense().0);
            let ([n, l, width], [m, s, other]) = (three(&q_shape)?, three(&k_shape)?);
            expect(n == m && width == other)?;
            let at = Pairs { n, l, s };
            let score = match kind {
                "dot" => None,
                "l2" => Some(Score::Distance),
                "additive" => Some(Score::Additive),
                _ => return Err(unknown(kind)),
            };
            expect(score != Some(Score::Additive) || v.len() == width)?;
            let out = compute(py, work(&[n, l, s, width]), || match score {
                None => pooling::product_scores(at, q, k, width),
                Some(score) => pooling::scores(score, at, q, k, width, v),
            })?;
            give(py, out, &[n, l, s])
        })
    })
}

/// Sums over pairs of a (N, L, S) where keep (N, L, S) is true: over "keys" (N, L, W), over "queries" (N, S, W).
#[pyfunction]
#[pyo3(signature = (kind, over, a, keep, others, own = None, v = None))]
#[allow(clippy::too_many_arguments, reason = "the operands of the formula")]
pub fn _pooling_sums<'py>(
    py: Python<'py>,
    kind: &str,
    over: &str,
    a: Any<'_, 'py>,
    keep: Any<'_, 'py>,
    others: Any<'_, 'py>,
    own: Option<Any<'_, 'py>>,
    v: Option<Any<'_, 'py>>,
) -> PyResult<Bound<'py, PyAny>> {
    entry(|| {
        of_type!(a, |T| {
            let a = Operand::new("a", a)?.read_dense::<T>()?;
            let others = Operand::new("others", others)?.read_dense::<T>()?;
            let own = own.map(|x| Operand::new("own", x)?.read_dense::<T>()).transpose()?;
            let v = v.map(|x| Operand::new("v", x)?.read_dense::<T>()).transpose()?;
            let keep = flags(keep)?;
            let ((a, shape), (others, others_shape)) = (a.dense(), others.dense());
            let [n, l, s] = three(&shape)?;
            let [m, count, width] = three(&others_shape)?;
            let pair = match kind {
                "other" => Pair::Other,
                "difference" => Pair::Difference,
                "tanh" => Pair::Tanh,
                "slope" => Pair::Slope,
                _ => return Err(unknown(kind)),
            };
            let over = if over == "keys" { Over::Keys } else { Over::Queries };
            let (rows, expected) = if over == Over::Keys { (l, s) } else { (s, l) };
            let own = own.as_ref().map_or(&[][..], |x| x.dense().0);
            let v = v.as_ref().map_or(&[][..], |x| x.dense().0);
            expect(keep.len() == a.len() && m == n && count == expected)?;
            expect(pair == Pair::Other || own.len() == n * rows * width)?;
            expect(pair != Pair::Slope || v.len() == width)?;
            let out = compute(py, work(&[n, l, s, width]), || {
                pooling::pair_sums((pair, over), Pairs { n, l, s }, a, &keep, own, others, width, v)
            })?;
            give(py, out, &[n, rows, width])
        })
    })
}

/// Weights of scores (..., S) over the keys that keep (..., S) names; `k` is that of "top_k".
#[pyfunction]
#[pyo3(signature = (kind, scores, keep, k = 0))]
pub fn _pooling_weights<'py>(
    py: Python<'py>,
    kind: &str,
    scores: Any<'_, 'py>,
    keep: Any<'_, 'py>,
    k: usize,
) -> PyResult<Bound<'py, PyAny>> {
    entry(|| {
        of_type!(scores, |T| {
            let scores = Operand::new("scores", scores)?.read_dense::<T>()?;
            let (keep, (scores, shape)) = (flags(keep)?, scores.dense());
            let (normalize, s) = (normalize(kind, k)?, last(&shape)?);
            expect(keep.len() == scores.len())?;
            let out =
                compute(py, work(&[scores.len(), 16]), || pooling::weights(normalize, scores, &keep, s))?;
            give(py, out, &shape)
        })
    })
}

/// From the gradient d (..., S) of weights to that of their scores.
#[pyfunction]
pub fn _pooling_weights_backward<'py>(
    py: Python<'py>,
    kind: &str,
    weights: Any<'_, 'py>,
    keep: Any<'_, 'py>,
    d: Any<'_, 'py>,
    k: usize,
) -> PyResult<Bound<'py, PyAny>> {
    entry(|| {
        of_type!(weights, |T| {
            let weights = Operand::new("weights", weights)?.read_dense::<T>()?;
            let d = Operand::new("d", d)?.read_dense::<T>()?;
            let (keep, (weights, shape), (d, _)) = (flags(keep)?, weights.dense(), d.dense());
            let (normalize, s) = (normalize(kind, k)?, last(&shape)?);
            expect(keep.len() == weights.len() && d.len() == weights.len())?;
            let out = compute(py, work(&[weights.len(), 8]), || {
                pooling::weights_backward(normalize, weights, &keep, d, s)
            })?;
            give(py, out, &shape)
        })
    })
}

/// One key of each row of probabilities p (..., S), with weight 1.
#[pyfunction]
pub fn _pooling_draw<'py>(
    py: Python<'py>,
    p: Any<'_, 'py>,
    keep: Any<'_, 'py>,
    rng: Any<'_, 'py>,
) -> PyResult<Bound<'py, PyAny>> {
    entry(|| {
        of_type!(p, |T| {
            let key = rng::key(py, Some(rng))?;
            let p = Operand::new("p", p)?.read_dense::<T>()?;
            let (keep, (p, shape)) = (flags(keep)?, p.dense());
            let s = last(&shape)?;
            expect(keep.len() == p.len())?;
            let out = compute(py, work(&[p.len(), 2]), || pooling::draw(p, &keep, s, key))?;
            give(py, out, &shape)
        })
    })
}

/// "tanh", "sigmoid" or "exp" of each number.
#[pyfunction]
pub fn _pooling_map<'py>(py: Python<'py>, kind: &str, x: Any<'_, 'py>) -> PyResult<Bound<'py, PyAny>> {
    entry(|| {
        of_type!(x, |T| {
            let function = match kind {
                "tanh" => Function::Tanh,
                "sigmoid" => Function::Sigmoid,
                "exp" => Function::Exp,
                _ => return Err(unknown(kind)),
            };
            let x = Operand::new("x", x)?.read_dense::<T>()?;
            let (x, shape) = x.dense();
            let out = compute(py, work(&[x.len(), 8]), || pooling::map(function, x))?;
            give(py, out, &shape)
        })
    })
}

/// Rows (..., W) brought to length 1, and their lengths (...).
#[pyfunction]
pub fn _pooling_unit<'py>(py: Python<'py>, x: Any<'_, 'py>) -> PyResult<Bound<'py, PyTuple>> {
    entry(|| {
        of_type!(x, |T| {
            let x = Operand::new("x", x)?.read_dense::<T>()?;
            let (x, shape) = x.dense();
            let width = last(&shape)?;
            let (unit, lengths) = compute(py, x.len(), || pooling::unit_rows(x, width))?;
            let rows = &shape[..shape.len() - 1];
            PyTuple::new(py, [give(py, unit, &shape)?, give(py, lengths, rows)?])
        })
    })
}

/// From gradients of unit rows to those of the rows that they were made of.
#[pyfunction]
pub fn _pooling_unit_backward<'py>(
    py: Python<'py>,
    unit: Any<'_, 'py>,
    lengths: Any<'_, 'py>,
    d: Any<'_, 'py>,
) -> PyResult<Bound<'py, PyAny>> {
    entry(|| {
        of_type!(unit, |T| {
            let unit = Operand::new("unit", unit)?.read_dense::<T>()?;
            let lengths = Operand::new("lengths", lengths)?.read_dense::<T>()?;
            let d = Operand::new("d", d)?.read_dense::<T>()?;
            let ((unit, shape), (lengths, _), (d, _)) = (unit.dense(), lengths.dense(), d.dense());
            let width = last(&shape)?;
            expect(d.len() == unit.len() && lengths.len() * width == unit.len())?;
            let out = compute(py, d.len(), || pooling::unit_rows_backward(unit, lengths, d, width))?;
            give(py, out, &shape)
        })
    })
}

fn normalize(kind: &str, k: usize) -> PyResult<Normalize> {
    match kind {
        "softmax" => Ok(Normalize::Softmax),
        "hard" => Ok(Normalize::Hard),
        "sparsemax" => Ok(Normalize::Sparsemax),
        "sigmoid" => Ok(Normalize::Sigmoid),
        "top_k" => Ok(Normalize::TopK(k)),
        _ => Err(unknown(kind)),
    }
}

fn flags(object: &Bound<'_, PyAny>) -> PyResult<Vec<bool>> {
    let array = as_array("keep", object)?;
    let bytes = converted::<u8>(&array, PyArrayDescr::of::<bool>(object.py()))?;
    Ok(bytes.iter().map(|&b| b != 0).collect())
}

fn three(shape: &[usize]) -> Result<[usize; 3]> {
    shape.try_into().map_err(|_| Error::Internal(format!("pooling: three axes, got {shape:?}")))
}

fn last(shape: &[usize]) -> Result<usize> {
    shape.last().copied().ok_or_else(|| Error::Internal("pooling: at least one axis".into()))
}

fn expect(fits: bool) -> Result<()> {
    if fits { Ok(()) } else { Err(Error::Internal("pooling: shapes that do not fit".into())) }
}

fn unknown(kind: &str) -> PyErr {
    Error::Internal(format!("pooling: {kind:?} is not known")).into()
}

fn work(factors: &[usize]) -> usize {
    factors.iter().fold(1, |n: usize, &m| n.saturating_mul(m))
}

fn give<'py, T: Float + Element>(
    py: Python<'py>,
    out: Vec<T>,
    shape: &[usize],
) -> PyResult<Bound<'py, PyAny>> {
    let out = ArrayD::from_shape_vec(IxDyn(shape), out).map_err(|e| Error::Internal(e.to_string()))?;
    Ok(array(py, out))
}
