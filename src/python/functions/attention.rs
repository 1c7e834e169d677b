//! `scaled_dot_product_attention` and `attention_varlen`.

use ndarray::ArrayD;
use numpy::Element;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyString, PyTuple};

use crate::error::Error;
use crate::kernels::attend::ScoreKind;
use crate::ops::scaled_dot_product::{self, Attended, Options, Shapes};
use crate::ops::varlen::{self, VarlenOptions};
use crate::python::arrays::{Operand, type_name};
use crate::python::boundary::{compute, entry};
use crate::python::keywords::no_more;
use crate::python::masks::{HeldMasks, MaskArguments, integers};
use crate::python::outputs::{Out, Target, array};
use crate::python::rng;
use crate::simd::Float;

/// Attend: softmax(scale * query @ key.T + mask) @ value, over the keys that each query may attend.
///
/// The L x S scores are never held, unless they are asked for. Grouped queries are automatic: head h of `query` uses
/// head h // (H // Hk) of `key` and `value`. The bits of an output row depend on its own query, the keys it may
/// attend and their values alone, whatever else is in the batch, however many threads there are, whether weights
/// are asked for, and whichever instruction set is in use. What is in blocked keys and values never shows, not
/// even NaN.
///
/// Parameters
/// ----------
/// query : array_like
///     (B, H, L, E), with any number of batch axes B; (H, L, E), or (L, E) for one head. bool and integers count as
///     float64; float16 and bfloat16 are computed in float32 and rounded once.
/// key : array_like
///     (B, Hk, S, E), H a multiple of Hk; batch axes broadcast.
/// value : array_like
///     (B, Hk, S, Ev).
/// attn_mask : array_like, optional
///     Rank 1 to n, broadcast to (B, H, L, S). Boolean: True may be attended. Floating: added to the scaled and
///     capped scores; exactly ``-inf`` blocks.
/// dropout_p : float, default 0.0
///     Probability with which each weight is dropped; kept ones grow by 1 / (1 - p).
/// is_causal : bool, default False
///     Whether key j is allowed only for j <= i + `causal_offset`.
/// scale : float, optional
///     Factor of the products; 1 / sqrt(E) if absent.
/// enable_gqa : bool, optional
///     False refuses fewer key heads than query heads.
/// key_mask : array_like, optional
///     (B, S), boolean or 0 and 1: True may be attended.
/// key_lengths : array_like of int, optional
///     (B,): keys from this place on are blocked.
/// causal_offset : int, array_like of int or "bottom_right", default 0
///     The place of query 0 for causality and the window, one or (B,). "bottom_right" is `key_lengths` - L where
///     given, else S - L.
/// window : tuple of (int or None, int or None), optional
///     Keys allowed to the left and to the right of a query's place, causal or not; None is open.
/// softcap : float, optional
///     Cap c > 0: scores become c * tanh(score / c), before masks.
/// return_weights : bool or {"raw", "capped", "masked"}, default False
///     True returns the weights of each head, before dropout; a name the scores: scaled; after the cap; after masks.
/// return_lse : bool, default False
///     Whether to return the logarithm of the sum of the exponentials of a row's scores.
/// rng : None, int or numpy.random.Generator, optional
///     Where dropout's key comes from; a generator is advanced by one draw. None is different each time.
/// out : ndarray, optional
///     Takes the result: C-contiguous, of the result's shape and dtype, apart from every input.
///
/// Returns
/// -------
/// out : ndarray
///     (B, H, L, Ev). Exactly 0 where a query has no allowed key.
/// weights : ndarray
///     (B, H, L, S), with `return_weights`; exactly 0 where a query has no allowed key.
/// lse : ndarray
///     (B, H, L), with `return_lse`, float32 for half precision; -inf where a query has no allowed key.
///
/// Raises
/// ------
/// ValueError
///     If shapes do not fit (`ShapeError`) or a number is out of its range.
/// TypeError
///     If an argument is of the wrong kind or dtype (`DTypeError`).
///
/// See Also
/// --------
/// attention_varlen : The same for sequences packed one after the other.
/// allowed_mask : The boolean array that the masks mean.
///
/// References
/// ----------
/// .. [1] A. Vaswani et al., "Attention Is All You Need", 2017. https://arxiv.org/abs/1706.03762
/// .. [2] J. Ainslie et al., "GQA", 2023. https://arxiv.org/abs/2305.13245
///
/// Examples
/// --------
/// >>> import numpy as np
/// >>> import headwise as hw
/// >>> query, key = np.zeros((1, 4)), np.zeros((3, 4))
/// >>> hw.scaled_dot_product_attention(query, key, np.eye(3), attn_mask=[True, False, True])
/// array([[0.5, 0. , 0.5]])
#[pyfunction]
#[pyo3(signature = (query, key, value, attn_mask = None, dropout_p = 0.0, is_causal = false, *, scale = None,
    enable_gqa = None, key_mask = None, key_lengths = None, causal_offset = None, window = None, softcap = None,
    return_weights = None, return_lse = false, rng = None, out = None, **unknown),
    text_signature = "(query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, *, scale=None, \
enable_gqa=None, key_mask=None, key_lengths=None, causal_offset=0, window=None, softcap=None, \
return_weights=False, return_lse=False, rng=None, out=None)")]
#[allow(clippy::too_many_arguments, reason = "the arguments of the contract")]
pub fn scaled_dot_product_attention<'py>(
    py: Python<'py>,
    query: &Bound<'py, PyAny>,
    key: &Bound<'py, PyAny>,
    value: &Bound<'py, PyAny>,
    attn_mask: Option<&Bound<'py, PyAny>>,
    dropout_p: f64,
    is_causal: bool,
    scale: Option<f64>,
    enable_gqa: Option<bool>,
    key_mask: Option<&Bound<'py, PyAny>>,
    key_lengths: Option<&Bound<'py, PyAny>>,
    causal_offset: Option<&Bound<'py, PyAny>>,
    window: Option<&Bound<'py, PyAny>>,
    softcap: Option<f64>,
    return_weights: Option<&Bound<'py, PyAny>>,
    return_lse: bool,
    rng: Option<&Bound<'py, PyAny>>,
    out: Option<&Bound<'py, PyAny>>,
    unknown: Option<&Bound<'py, PyDict>>,
) -> PyResult<Bound<'py, PyAny>> {
    entry(|| {
        no_more("scaled_dot_product_attention", unknown)?;
        let operands =
            [Operand::new("query", query)?, Operand::new("key", key)?, Operand::new("value", value)?];
        let target = Target::of(&[&operands[0], &operands[1], &operands[2]]);
        let masks = MaskArguments { attn_mask, key_mask, key_lengths, is_causal, causal_offset, window };
        let call = Call {
            operands,
            target,
            masks,
            scale,
            softcap,
            enable_gqa,
            dropout_p,
            rng,
            scores: score_kind(return_weights)?,
            lse: return_lse,
            out,
        };
        if call.target.is_f64() { call.run::<f64>(py) } else { call.run::<f32>(py) }
    })
}

/// A call whose arguments are sorted.
struct Call<'a, 'py> {
    operands: [Operand<'py>; 3],
    target: Target<'py>,
    masks: MaskArguments<'a, 'py>,
    scale: Option<f64>,
    softcap: Option<f64>,
    enable_gqa: Option<bool>,
    dropout_p: f64,
    rng: Option<&'a Bound<'py, PyAny>>,
    scores: Option<ScoreKind>,
    lse: bool,
    out: Option<&'a Bound<'py, PyAny>>,
}

impl<'py> Call<'_, 'py> {
    fn run<T: Float + Element>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        let [query, key, value] = &self.operands;
        let shapes = Shapes::of(query.shape(), key.shape(), value.shape())?;
        scaled_dot_product::check_numbers(self.softcap, self.dropout_p)?;
        let held = HeldMasks::<T>::read(&self.masks)?;
        let out = match self.out {
            None => None,
            Some(out) => {
                let mut inputs = vec![query.array(), key.array(), value.array()];
                inputs.extend(held.arrays());
                let out = Out::new(out, &self.target, &inputs)?;
                out.check_shape(&shapes.of_result(&[shapes.l, shapes.ev]))?;
                Some(out)
            }
        };
        // A generator is advanced whether or not anything is dropped; the system is asked only where it matters.
        let dropout_key =
            if self.dropout_p > 0.0 || self.rng.is_some() { rng::key(py, self.rng)? } else { 0 };
        let (q, k, v) = (query.read::<T>()?, key.read::<T>()?, value.read::<T>()?);
        let (q, k, v) = (q.view(), k.view(), v.view());
        let options = Options {
            masks: held.masks(),
            scale: self.scale,
            softcap: self.softcap,
            enable_gqa: self.enable_gqa,
            dropout_p: self.dropout_p,
            dropout_key,
            scores: self.scores,
            lse: self.lse,
        };
        let Attended { out: result, scores, lse } = compute(py, shapes.work(), || {
            scaled_dot_product::scaled_dot_product_attention(&q, &k, &v, &options)
        })?;
        let mut results = vec![self.target.give(py, result, out.as_ref())?];
        if let Some(scores) = scores {
            results.push(self.target.give(py, scores, None)?);
        }
        results.extend(lse.map(|lse| array(py, lse)));
        answer(py, results)
    }
}

/// One array as it is, several as a tuple.
fn answer<'py>(py: Python<'py>, mut results: Vec<Bound<'py, PyAny>>) -> PyResult<Bound<'py, PyAny>> {
    match results.len() {
        1 => Ok(results.swap_remove(0)),
        _ => Ok(PyTuple::new(py, results)?.into_any()),
    }
}

/// `return_weights`: a bool or the name of a stage.
fn score_kind(wanted: Option<&Bound<'_, PyAny>>) -> PyResult<Option<ScoreKind>> {
    let Some(wanted) = wanted else { return Ok(None) };
    if let Ok(name) = wanted.cast::<PyString>() {
        return match name.to_cow()?.as_ref() {
            "raw" => Ok(Some(ScoreKind::Raw)),
            "capped" => Ok(Some(ScoreKind::Capped)),
            "masked" => Ok(Some(ScoreKind::Masked)),
            other => Err(Error::Value(format!(
                "return_weights: expected a bool, \"raw\", \"capped\" or \"masked\", got {other:?}"
            ))
            .into()),
        };
    }
    match wanted.extract::<bool>() {
        Ok(yes) => Ok(yes.then_some(ScoreKind::Weights)),
        Err(_) => Err(Error::Type(format!(
            "return_weights: expected a bool, \"raw\", \"capped\" or \"masked\", got {}",
            type_name(wanted)
        ))
        .into()),
    }
}

/// Attend within sequences that are packed one after the other.
///
/// Sequence n has the queries ``cu_seqlens_q[n]`` to ``cu_seqlens_q[n + 1]`` and the keys that `cu_seqlens_k` names
/// alike. The result has the same bits as one call of `scaled_dot_product_attention` for each sequence.
///
/// Parameters
/// ----------
/// query : array_like
///     (Tq, H, E).
/// key : array_like
///     (Tk, Hk, E), H a multiple of Hk.
/// value : array_like
///     (Tk, Hk, Ev).
/// cu_seqlens_q : array_like of int
///     (N + 1,): 0, the ends of the sequences, the last of them Tq.
/// cu_seqlens_k : array_like of int, optional
///     The same for keys; `cu_seqlens_q` if absent.
/// is_causal : bool, default False
///     Whether key j of a sequence is allowed only for j <= i + `causal_offset`.
/// causal_offset : int, array_like of int or "bottom_right", default 0
///     The place of query 0 of each sequence, one or (N,). "bottom_right" puts the last query at the last key.
/// window : tuple of (int or None, int or None), optional
///     Keys allowed to the left and to the right of a query's place, causal or not; None is open.
/// softcap : float, optional
///     Cap c > 0: scores become c * tanh(score / c).
/// scale : float, optional
///     Factor of the products; 1 / sqrt(E) if absent.
/// return_lse : bool, default False
///     Whether to return the logarithm of the sum of the exponentials of a row's scores.
///
/// Returns
/// -------
/// out : ndarray
///     (Tq, H, Ev).
/// lse : ndarray
///     (Tq, H), with `return_lse`.
///
/// Raises
/// ------
/// ValueError
///     If shapes or lists do not fit (`ShapeError`) or a number is out of its range.
/// TypeError
///     If an argument is of the wrong kind or dtype (`DTypeError`).
///
/// See Also
/// --------
/// scaled_dot_product_attention : The same for batches.
///
/// Examples
/// --------
/// >>> import numpy as np
/// >>> import headwise as hw
/// >>> x = np.ones((5, 2, 4), dtype=np.float32)
/// >>> hw.attention_varlen(x, x, x, [0, 2, 5]).shape
/// (5, 2, 4)
#[pyfunction]
#[pyo3(signature = (query, key, value, cu_seqlens_q, cu_seqlens_k = None, *, is_causal = false,
    causal_offset = None, window = None, softcap = None, scale = None, return_lse = false),
    text_signature = "(query, key, value, cu_seqlens_q, cu_seqlens_k=None, *, is_causal=False, causal_offset=0, \
window=None, softcap=None, scale=None, return_lse=False)")]
#[allow(clippy::too_many_arguments, reason = "the arguments of the contract")]
pub fn attention_varlen<'py>(
    py: Python<'py>,
    query: &Bound<'py, PyAny>,
    key: &Bound<'py, PyAny>,
    value: &Bound<'py, PyAny>,
    cu_seqlens_q: &Bound<'py, PyAny>,
    cu_seqlens_k: Option<&Bound<'py, PyAny>>,
    is_causal: bool,
    causal_offset: Option<&Bound<'py, PyAny>>,
    window: Option<&Bound<'py, PyAny>>,
    softcap: Option<f64>,
    scale: Option<f64>,
    return_lse: bool,
) -> PyResult<Bound<'py, PyAny>> {
    entry(|| {
        let operands =
            [Operand::new("query", query)?, Operand::new("key", key)?, Operand::new("value", value)?];
        let target = Target::of(&[&operands[0], &operands[1], &operands[2]]);
        let call = Packed {
            operands,
            target,
            cu_q: integers("cu_seqlens_q", cu_seqlens_q)?,
            cu_k: cu_seqlens_k.map(|cu| integers("cu_seqlens_k", cu)).transpose()?,
            masks: MaskArguments { is_causal, causal_offset, window, ..MaskArguments::default() },
            softcap,
            scale,
            lse: return_lse,
        };
        if call.target.is_f64() { call.run::<f64>(py) } else { call.run::<f32>(py) }
    })
}

/// A call of `attention_varlen` whose arguments are sorted.
struct Packed<'a, 'py> {
    operands: [Operand<'py>; 3],
    target: Target<'py>,
    cu_q: (Vec<i64>, Vec<usize>),
    cu_k: Option<(Vec<i64>, Vec<usize>)>,
    masks: MaskArguments<'a, 'py>,
    softcap: Option<f64>,
    scale: Option<f64>,
    lse: bool,
}

impl<'py> Packed<'_, 'py> {
    fn run<T: Float + Element>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        let held = HeldMasks::<T>::read(&self.masks)?;
        let masks = held.masks();
        let options = VarlenOptions {
            is_causal: masks.is_causal,
            causal_offset: masks.causal_offset,
            window: masks.window,
            softcap: self.softcap,
            scale: self.scale,
            lse: self.lse,
        };
        let [query, key, value] = &self.operands;
        let (q, k, v) = (query.read::<T>()?, key.read::<T>()?, value.read::<T>()?);
        let (q, k, v) = (q.view(), k.view(), v.view());
        let cu_q = (&self.cu_q.0[..], &self.cu_q.1[..]);
        let cu_k = self.cu_k.as_ref().map(|(cu, shape)| (&cu[..], &shape[..]));
        // At most: all keys for every query.
        let work = q.len().saturating_mul(k.shape().first().map_or(1, |&n| n.max(1)));
        let (result, lse): (ArrayD<T>, Option<ArrayD<T>>) =
            compute(py, work, || varlen::attention_varlen(&q, &k, &v, cu_q, cu_k, &options))?;
        let mut results = vec![self.target.give(py, result, None)?];
        results.extend(lse.map(|lse| array(py, lse)));
        answer(py, results)
    }
}
