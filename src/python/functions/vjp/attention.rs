//! `vjp_scaled_dot_product_attention` and `vjp_attention_varlen`.
//!
//! Kept are the output and the log-sum-exp, from which the weights are computed again tile by tile: memory grows with L, not
//! with L x S.

use ndarray::ArrayD;
use numpy::{Element, PyUntypedArrayMethods};
use pyo3::prelude::*;

use super::{Kept, Vjp, give, gradient};
use crate::error::{Error, Result};
use crate::ops::buffer::zeros;
use crate::ops::masks::Masks;
use crate::ops::scaled_dot_product::{
    Attended, Forward, Options, Shapes, scaled_dot_product_attention, scaled_dot_product_attention_backward,
};
use crate::ops::varlen::{VarlenOptions, attention_varlen, attention_varlen_backward};
use crate::python::arrays::{Operand, as_array};
use crate::python::boundary::{compute, entry};
use crate::python::dtypes::Source;
use crate::python::masks::{HeldMasks, Integers, MaskArguments, integers};
use crate::python::outputs::Target;
use crate::python::pullback::PyPullback;
use crate::python::rng;
use crate::simd::Float;

/// `headwise.vjp.scaled_dot_product_attention`.
#[pyfunction]
#[pyo3(signature = (query, key, value, attn_mask = None, dropout_p = 0.0, is_causal = false, *, scale = None,
    enable_gqa = None, key_mask = None, key_lengths = None, causal_offset = None, window = None, softcap = None,
    rng = None, mask_grad = false),
    text_signature = "(query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, *, scale=None, \
enable_gqa=None, key_mask=None, key_lengths=None, causal_offset=0, window=None, softcap=None, rng=None, \
mask_grad=False)")]
#[allow(clippy::too_many_arguments, reason = "the arguments of the contract")]
pub fn vjp_scaled_dot_product_attention<'py>(
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
    rng: Option<&Bound<'py, PyAny>>,
    mask_grad: bool,
) -> PyResult<Vjp<'py>> {
    entry(|| {
        let (operands, target) = operands(query, key, value)?;
        let [q, k, v] = &operands;
        Shapes::of(q.shape(), k.shape(), v.shape())?;
        let given = MaskArguments { attn_mask, key_mask, key_lengths, is_causal, causal_offset, window };
        let mask_shape = mask_grad.then(|| mask_shape(attn_mask)).transpose()?;
        let dropout_key = if dropout_p > 0.0 || rng.is_some() { rng::key(py, rng)? } else { 0 };
        let call = Call {
            arguments: Arguments::keep(&operands, &given),
            scale,
            softcap,
            enable_gqa,
            dropout_p,
            dropout_key,
            mask_shape,
        };
        if target.is_f64() { call.vjp::<f64>(py) } else { call.vjp::<f32>(py) }
    })
}

/// The shape of a mask that has a gradient.
fn mask_shape(mask: Option<&Bound<'_, PyAny>>) -> PyResult<Vec<usize>> {
    let came = match mask {
        None => "none".to_owned(),
        Some(mask) => {
            let mask = as_array("attn_mask", mask)?;
            if let Some(Source::Float(_)) = Source::of(&mask.dtype())? {
                return Ok(mask.shape().to_vec());
            }
            format!("dtype {}", mask.dtype().str()?)
        }
    };
    Err(Error::Type(format!("mask_grad: expected a floating attn_mask to have a gradient, got {came}"))
        .into())
}

/// query, key and value, and the dtype of the result and of all gradients.
fn operands<'py>(
    query: &Bound<'py, PyAny>,
    key: &Bound<'py, PyAny>,
    value: &Bound<'py, PyAny>,
) -> PyResult<([Operand<'py>; 3], Target<'py>)> {
    let operands = [Operand::new("query", query)?, Operand::new("key", key)?, Operand::new("value", value)?];
    let target = Target::of(&[&operands[0], &operands[1], &operands[2]]);
    Ok((operands, target))
}

/// The arrays of a call, held.
struct Arguments {
    operands: [Kept; 3],
    attn_mask: Option<Py<PyAny>>,
    key_mask: Option<Py<PyAny>>,
    key_lengths: Option<Py<PyAny>>,
    is_causal: bool,
    causal_offset: Option<Py<PyAny>>,
    window: Option<Py<PyAny>>,
}

impl Arguments {
    fn keep(operands: &[Operand<'_>; 3], given: &MaskArguments<'_, '_>) -> Self {
        let hold = |object: Option<&Bound<'_, PyAny>>| object.map(|o| o.clone().unbind());
        let [query, key, value] = operands;
        Self {
            operands: [Kept::new("query", query), Kept::new("key", key), Kept::new("value", value)],
            attn_mask: hold(given.attn_mask),
            key_mask: hold(given.key_mask),
            key_lengths: hold(given.key_lengths),
            is_causal: given.is_causal,
            causal_offset: hold(given.causal_offset),
            window: hold(given.window),
        }
    }

    fn operands<'py>(&self, py: Python<'py>) -> PyResult<([Operand<'py>; 3], Target<'py>)> {
        let [query, key, value] = &self.operands;
        let operands = [query.operand(py)?, key.operand(py)?, value.operand(py)?];
        let target = Target::of(&[&operands[0], &operands[1], &operands[2]]);
        Ok((operands, target))
    }

    fn masks<'py, T: Float + Element>(&self, py: Python<'py>) -> PyResult<HeldMasks<'py, T>> {
        let bind = |object: &'_ Option<Py<PyAny>>| object.as_ref().map(|o| o.bind(py).clone());
        let [attn_mask, key_mask, key_lengths, causal_offset, window] =
            [&self.attn_mask, &self.key_mask, &self.key_lengths, &self.causal_offset, &self.window].map(bind);
        HeldMasks::read(&MaskArguments {
            attn_mask: attn_mask.as_ref(),
            key_mask: key_mask.as_ref(),
            key_lengths: key_lengths.as_ref(),
            is_causal: self.is_causal,
            causal_offset: causal_offset.as_ref(),
            window: window.as_ref(),
        })
    }
}

/// What the backward pass needs of the forward one; a copy of the output, which the caller may change.
struct Left<T> {
    out: Vec<T>,
    lse: Vec<T>,
    shape: Vec<usize>,
}

impl<T: Float> Left<T> {
    fn of(out: &ArrayD<T>, lse: Option<ArrayD<T>>) -> Result<Self> {
        let mut copy = zeros(out.len())?;
        copy.copy_from_slice(out.as_slice().unwrap_or(&[]));
        let (lse, _) = lse.map(ArrayD::into_raw_vec_and_offset).unwrap_or_default();
        Ok(Self { out: copy, lse, shape: out.shape().to_vec() })
    }
}

/// A call of `scaled_dot_product_attention`.
struct Call {
    arguments: Arguments,
    scale: Option<f64>,
    softcap: Option<f64>,
    enable_gqa: Option<bool>,
    dropout_p: f64,
    dropout_key: u64,
    mask_shape: Option<Vec<usize>>,
}

impl Call {
    fn options<'a, T>(&self, masks: Masks<'a, T>) -> Options<'a, T> {
        Options {
            masks,
            scale: self.scale,
            softcap: self.softcap,
            enable_gqa: self.enable_gqa,
            dropout_p: self.dropout_p,
            dropout_key: self.dropout_key,
            scores: None,
            lse: true,
        }
    }

    fn vjp<T: Float + Element>(self, py: Python<'_>) -> PyResult<Vjp<'_>> {
        let ([query, key, value], target) = self.arguments.operands(py)?;
        let shapes = Shapes::of(query.shape(), key.shape(), value.shape())?;
        let held = self.arguments.masks::<T>(py)?;
        let (q, k, v) = (query.read::<T>()?, key.read::<T>()?, value.read::<T>()?);
        let (q, k, v) = (q.view(), k.view(), v.view());
        let options = self.options(held.masks());
        let (out, left) = compute(py, shapes.work(), || {
            let Attended { out, lse, .. } = scaled_dot_product_attention(&q, &k, &v, &options)?;
            let left = Left::of(&out, lse)?;
            Ok((out, left))
        })?;
        let out = target.give(py, out, None)?;
        let back = move |d_out: &Bound<'_, PyAny>| self.back::<T>(d_out, &left);
        Ok((out, PyPullback::new("scaled_dot_product_attention", back)))
    }

    fn back<T: Float + Element>(&self, d_out: &Bound<'_, PyAny>, left: &Left<T>) -> PyResult<Py<PyAny>> {
        let py = d_out.py();
        let d_out = gradient::<T>(d_out, &left.shape)?;
        let ([query, key, value], target) = self.arguments.operands(py)?;
        let shapes = Shapes::of(query.shape(), key.shape(), value.shape())?;
        let held = self.arguments.masks::<T>(py)?;
        let (q, k, v) = (query.read::<T>()?, key.read::<T>()?, value.read::<T>()?);
        let (q, k, v, (d_out, _)) = (q.view(), k.view(), v.view(), d_out.dense());
        let options = self.options(held.masks());
        let forward = Forward { out: &left.out, lse: &left.lse };
        let mask_shape = self.mask_shape.as_deref();
        let gradients = compute(py, shapes.work().saturating_mul(3), || {
            scaled_dot_product_attention_backward(&q, &k, &v, &options, forward, d_out, mask_shape)
        })?;
        give(py, &target, gradients.operands.into_iter().chain(gradients.mask))
    }
}

/// `headwise.vjp.attention_varlen`.
#[pyfunction]
#[pyo3(signature = (query, key, value, cu_seqlens_q, cu_seqlens_k = None, *, is_causal = false,
    causal_offset = None, window = None, softcap = None, scale = None),
    text_signature = "(query, key, value, cu_seqlens_q, cu_seqlens_k=None, *, is_causal=False, causal_offset=0, \
window=None, softcap=None, scale=None)")]
#[allow(clippy::too_many_arguments, reason = "the arguments of the contract")]
pub fn vjp_attention_varlen<'py>(
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
) -> PyResult<Vjp<'py>> {
    entry(|| {
        let (operands, target) = operands(query, key, value)?;
        let given = MaskArguments { is_causal, causal_offset, window, ..MaskArguments::default() };
        let call = Packed {
            arguments: Arguments::keep(&operands, &given),
            cu_q: integers("cu_seqlens_q", cu_seqlens_q)?,
            cu_k: cu_seqlens_k.map(|cu| integers("cu_seqlens_k", cu)).transpose()?,
            softcap,
            scale,
        };
        if target.is_f64() { call.vjp::<f64>(py) } else { call.vjp::<f32>(py) }
    })
}

/// A call of `attention_varlen`.
struct Packed {
    arguments: Arguments,
    cu_q: Integers,
    cu_k: Option<Integers>,
    softcap: Option<f64>,
    scale: Option<f64>,
}

/// Numbers and their shape.
type Numbers<'a> = (&'a [i64], &'a [usize]);

impl Packed {
    fn options<'a, T>(&self, masks: Masks<'a, T>) -> VarlenOptions<'a> {
        VarlenOptions {
            is_causal: masks.is_causal,
            causal_offset: masks.causal_offset,
            window: masks.window,
            softcap: self.softcap,
            scale: self.scale,
            lse: true,
        }
    }

    fn starts(&self) -> (Numbers<'_>, Option<Numbers<'_>>) {
        (slices(&self.cu_q), self.cu_k.as_ref().map(slices))
    }

    fn vjp<T: Float + Element>(self, py: Python<'_>) -> PyResult<Vjp<'_>> {
        let ([query, key, value], target) = self.arguments.operands(py)?;
        let held = self.arguments.masks::<T>(py)?;
        let (q, k, v) = (query.read::<T>()?, key.read::<T>()?, value.read::<T>()?);
        let (q, k, v) = (q.view(), k.view(), v.view());
        let options = self.options(held.masks());
        let (cu_q, cu_k) = self.starts();
        // At most: all keys for every query.
        let work = q.len().saturating_mul(k.shape().first().map_or(1, |&n| n.max(1)));
        let (out, left) = compute(py, work, || {
            let (out, lse) = attention_varlen(&q, &k, &v, cu_q, cu_k, &options)?;
            let left = Left::of(&out, lse)?;
            Ok((out, left))
        })?;
        let out = target.give(py, out, None)?;
        let back = move |d_out: &Bound<'_, PyAny>| self.back::<T>(d_out, &left);
        Ok((out, PyPullback::new("attention_varlen", back)))
    }

    fn back<T: Float + Element>(&self, d_out: &Bound<'_, PyAny>, left: &Left<T>) -> PyResult<Py<PyAny>> {
        let py = d_out.py();
        let d_out = gradient::<T>(d_out, &left.shape)?;
        let ([query, key, value], target) = self.arguments.operands(py)?;
        let held = self.arguments.masks::<T>(py)?;
        let (q, k, v) = (query.read::<T>()?, key.read::<T>()?, value.read::<T>()?);
        let (q, k, v, (d_out, _)) = (q.view(), k.view(), v.view(), d_out.dense());
        let options = self.options(held.masks());
        let (cu_q, cu_k) = self.starts();
        let work = q.len().saturating_mul(k.shape().first().map_or(1, |&n| n.max(1)));
        let gradients = compute(py, work.saturating_mul(3), || {
            let forward = (&left.out[..], &left.lse[..]);
            attention_varlen_backward(&q, &k, &v, cu_q, cu_k, &options, forward, d_out)
        })?;
        give(py, &target, gradients)
    }
}

fn slices((numbers, shape): &Integers) -> Numbers<'_> {
    (numbers, shape)
}
