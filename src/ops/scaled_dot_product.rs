//! Scaled dot-product attention (Vaswani et al. 2017) on arrays:
//!
//! ```text
//! s[i, j] = c tanh(scale * q_i · k_j / c) + mask[i, j]      (no soft cap: scale * q_i · k_j + mask[i, j])
//! out_i = sum_j softmax(s[i, :])_j v_j                       over the keys that query i may attend
//! ```
//!
//! Here shapes are checked and axes broadcast; each element of the batch becomes a [`Sequence`], which points into
//! the operands as they lie in memory, and [`Attention`] does the work.

mod backward;

use ndarray::{ArrayD, ArrayViewD, CowArray, IxDyn};

use super::attention::{Attention, Operand, Sequence, Strides, Wanted};
use super::buffer::{elements, zeros};
use super::masks::{Masks, Pairs, broadcast};
use crate::error::{Error, Result};
use crate::kernels::attend::{Mask, ScoreKind};
use crate::simd::Float;

pub use backward::{AttentionGradients, Forward, scaled_dot_product_attention_backward};

/// What a call wants beside query, key and value.
#[derive(Clone, Debug)]
pub struct Options<'a, T> {
    /// Which keys may be attended, and what is added to scores.
    pub masks: Masks<'a, T>,
    /// Factor of q · k; 1 / sqrt(E) if absent.
    pub scale: Option<f64>,
    /// Soft cap.
    pub softcap: Option<f64>,
    /// `Some(false)` refuses fewer key heads than query heads.
    pub enable_gqa: Option<bool>,
    /// Probability that a weight is dropped.
    pub dropout_p: f64,
    /// Key of the generator of dropout.
    pub dropout_key: u64,
    /// Which scores to return, if any.
    pub scores: Option<ScoreKind>,
    /// Whether to return the log-sum-exp.
    pub lse: bool,
}

impl<T> Default for Options<'_, T> {
    fn default() -> Self {
        Self {
            masks: Masks::default(),
            scale: None,
            softcap: None,
            enable_gqa: None,
            dropout_p: 0.0,
            dropout_key: 0,
            scores: None,
            lse: false,
        }
    }
}

/// What a call gives.
#[derive(Clone, Debug)]
pub struct Attended<T> {
    /// (B..., H, L, Ev)
    pub out: ArrayD<T>,
    /// (B..., H, L, S)
    pub scores: Option<ArrayD<T>>,
    /// (B..., H, L)
    pub lse: Option<ArrayD<T>>,
}

/// The letters of a call.
#[derive(Clone, Debug)]
pub struct Shapes {
    /// (B...)
    pub batch: Vec<usize>,
    /// H
    pub heads: usize,
    /// Hk
    pub kv_heads: usize,
    /// L
    pub l: usize,
    /// S
    pub s: usize,
    /// E
    pub e: usize,
    /// Ev
    pub ev: usize,
    /// Whether the operands are one head without batch, (L, E).
    pub one_head: bool,
}

impl Shapes {
    /// Reads the shapes of query (B..., H, L, E), key (B..., Hk, S, E) and value (B..., Hk, S, Ev).
    ///
    /// # Errors
    /// `Shape`, with the argument, the letters and what came.
    pub fn of(q: &[usize], k: &[usize], v: &[usize]) -> Result<Self> {
        let one_head = q.len() == 2;
        for (name, letters, shape) in
            [("query", "(B, H, L, E)", q), ("key", "(B, Hk, S, E)", k), ("value", "(B, Hk, S, Ev)", v)]
        {
            if shape.len() < 2 || (shape.len() == 2) != one_head {
                return Err(Error::Shape(format!(
                    "{name}: expected {letters}, or two axes in query, key and value alike for one head, got {shape:?} \
                     beside query {q:?}"
                )));
            }
        }
        let last = |shape: &[usize], n: usize| shape[shape.len() - n];
        let head_axis = |shape: &[usize]| if one_head { 1 } else { last(shape, 3) };
        let (e, s) = (last(q, 1), last(k, 2));
        let hint =
            if q.len() == 3 || k.len() == 3 { "; three axes are (H, L, E), not (N, L, E)" } else { "" };
        if e == 0 {
            return Err(Error::Shape(format!("query: expected (B, H, L, E) with E > 0, got {q:?}")));
        }
        if last(k, 1) != e {
            return Err(Error::Shape(format!(
                "key: expected (B, Hk, S, E) with E = {e}, that of query {q:?}, got {k:?}"
            )));
        }
        if last(v, 2) != s {
            return Err(Error::Shape(format!(
                "value: expected (B, Hk, S, Ev) with S = {s}, that of key {k:?}, got {v:?}"
            )));
        }
        let (heads, kv_heads) = (head_axis(q), head_axis(k));
        if head_axis(v) != kv_heads {
            return Err(Error::Shape(format!(
                "value: expected (B, Hk, S, Ev) with Hk = {kv_heads} heads, those of key {k:?}, got {v:?}{hint}"
            )));
        }
        if heads != kv_heads && (kv_heads == 0 || heads % kv_heads != 0) {
            return Err(Error::Shape(format!(
                "key: expected (B, Hk, S, E) with a number of heads Hk that divides H = {heads} of query {q:?}, got \
                 {k:?}{hint}"
            )));
        }
        let batch_of = |shape: &[usize]| shape[..shape.len().saturating_sub(3)].to_vec();
        let fit = |a: &[usize], name: &str, shape: &[usize]| {
            broadcast(a, &batch_of(shape)).ok_or_else(|| {
                Error::Shape(format!(
                    "{name}: expected batch axes B that broadcast with {a:?}, those of query {q:?}, got {shape:?}"
                ))
            })
        };
        let batch = fit(&fit(&batch_of(q), "key", k)?, "value", v)?;
        Ok(Self { batch, heads, kv_heads, l: last(q, 2), s, e, ev: last(v, 1), one_head })
    }

    /// Multiply-adds of the call, roughly.
    pub fn work(&self) -> usize {
        [self.heads, self.l, self.s, self.e + self.ev]
            .iter()
            .chain(&self.batch)
            .fold(1_usize, |n, &m| n.saturating_mul(m))
    }

    /// The shape of a result whose last axes are `last`.
    pub fn of_result(&self, last: &[usize]) -> Vec<usize> {
        let heads = if self.one_head { &[][..] } else { &[self.heads] };
        [&self.batch[..], heads, last].concat()
    }
}

/// Attends; see the head of this file.
///
/// # Errors
/// `Shape` and `Value` as the contract has them, `Memory`, `Interrupted`, `Internal`.
pub fn scaled_dot_product_attention<T: Float>(
    q: &ArrayViewD<'_, T>,
    k: &ArrayViewD<'_, T>,
    v: &ArrayViewD<'_, T>,
    options: &Options<'_, T>,
) -> Result<Attended<T>> {
    with_attention(q, k, v, options, |shapes, attention| {
        let &Shapes { l, s, ev, .. } = shapes;
        let result = |last: &[usize]| array(shapes.of_result(last));
        let mut out = result(&[l, ev])?;
        let mut scores = options.scores.map(|_| result(&[l, s])).transpose()?;
        let mut lse = if options.lse { Some(result(&[l])?) } else { None };
        let empty = |x: &Option<ArrayD<T>>| x.as_ref().is_none_or(ArrayD::is_empty);
        if out.is_empty() && empty(&scores) && empty(&lse) {
            return Ok(Attended { out, scores, lse });
        }
        let wanted = Wanted {
            lse: lse.as_mut().and_then(ArrayD::as_slice_mut).map(|x| (x, lse_strides(shapes))),
            scores: options
                .scores
                .zip(scores.as_mut().and_then(ArrayD::as_slice_mut))
                .map(|(kind, x)| (kind, x, None)),
        };
        attention.run(out.as_slice_mut().unwrap_or(&mut []), wanted)?;
        Ok(Attended { out, scores, lse })
    })
}

/// Distances of the log-sum-exp (B..., H, L).
fn lse_strides(shapes: &Shapes) -> Strides {
    Strides { head: shapes.l, row: 1 }
}

/// Checks the arguments and hands `run` the call that they make.
fn with_attention<T: Float, R>(
    q: &ArrayViewD<'_, T>,
    k: &ArrayViewD<'_, T>,
    v: &ArrayViewD<'_, T>,
    options: &Options<'_, T>,
    run: impl FnOnce(&Shapes, &Attention<'_, T>) -> Result<R>,
) -> Result<R> {
    let shapes = Shapes::of(q.shape(), k.shape(), v.shape())?;
    let Shapes { heads, kv_heads, l, s, e, ev, .. } = shapes;
    check_numbers(options.softcap, options.dropout_p)?;
    if options.enable_gqa == Some(false) && heads != kv_heads {
        return Err(Error::Shape(format!(
            "enable_gqa: False, but query has H = {heads} heads and key Hk = {kv_heads}"
        )));
    }
    let (q, k, v) = (rows_dense(q)?, rows_dense(k)?, rows_dense(v)?);
    let [qs, ks, vs] = [&q, &k, &v].map(|x| Placed::of(x, &shapes));
    let of_batch = options.masks.elements(&shapes.batch, heads, l, s)?;
    let pairs = heads * l * s;
    let sequences = of_batch.into_iter().enumerate().map(|(b, element)| Sequence {
        starts: [qs.start(b), ks.start(b), vs.start(b), b * heads * l * ev],
        q_len: l,
        k_len: s,
        past: 0,
        offset: element.offset,
        key_mask: element.key_mask,
        query_places: None,
        key_places: None,
        mask: match element.pairs {
            Pairs::All => Mask::None,
            Pairs::Allowed(data, strides) => Mask::Bool(data, strides),
            Pairs::Added(data, strides) => Mask::Float(data, strides),
        },
        lse_start: b * heads * l,
        scores_start: b * pairs,
        score_strides: Strides { head: l * s, row: s },
        dropout_base: (b * pairs) as u64,
        dropout_shape: (l, s),
    });
    let scale = options.scale.unwrap_or_else(|| 1.0 / (e as f64).sqrt());
    let attention = Attention {
        q: qs.operand(),
        k: ks.operand(),
        v: vs.operand(),
        out: Strides { head: l * ev, row: ev },
        heads,
        kv_heads,
        e,
        ev,
        scale: T::from_f64(scale),
        softcap: options.softcap.map(T::from_f64),
        alibi: None,
        causal: options.masks.is_causal,
        window: options.masks.window,
        dropout: (options.dropout_p > 0.0).then_some((options.dropout_p, options.dropout_key)),
        sequences: sequences.collect(),
    };
    run(&shapes, &attention)
}

/// Soft cap and probability in their ranges.
///
/// # Errors
/// `Value`.
pub fn check_numbers(softcap: Option<f64>, dropout_p: f64) -> Result<()> {
    if let Some(c) = softcap
        && !(c > 0.0 && c.is_finite())
    {
        return Err(Error::Value(format!("softcap: expected a positive number, got {c}")));
    }
    if !(0.0..=1.0).contains(&dropout_p) {
        return Err(Error::Value(format!("dropout_p: expected a probability from 0 to 1, got {dropout_p}")));
    }
    Ok(())
}

/// The array with its last axis dense and no negative stride; a copy where it is not.
///
/// # Errors
/// `Memory`.
pub(crate) fn rows_dense<'a, T: Float>(x: &'a ArrayViewD<'_, T>) -> Result<CowArray<'a, T, IxDyn>> {
    let regular = x.strides().iter().all(|&s| s >= 0);
    match (x.strides().last(), x.shape().last()) {
        (Some(&stride), Some(&n)) if regular && (n <= 1 || stride == 1) => Ok(x.view().into()),
        _ => {
            let mut copy = array(x.shape().to_vec())?;
            copy.assign(x);
            Ok(copy.into())
        }
    }
}

/// Zeros of a shape.
///
/// # Errors
/// `Memory`, `Shape` where no array can have it.
pub(crate) fn array<T: Float>(shape: Vec<usize>) -> Result<ArrayD<T>> {
    let data = zeros(elements("query", &shape)?)?;
    ArrayD::from_shape_vec(IxDyn(&shape), data).map_err(|e| Error::Internal(e.to_string()))
}

/// An operand as it lies in memory: all its numbers, the distances between heads and rows, and where each element of
/// the (broadcast) batch begins.
struct Placed<'a, T> {
    data: &'a [T],
    strides: Strides,
    batch: Vec<(usize, usize)>,
}

impl<'a, T> Placed<'a, T> {
    fn of(x: &'a CowArray<'_, T, IxDyn>, shapes: &Shapes) -> Self {
        let rank = x.ndim();
        let stride = |axis: usize| if x.shape()[axis] > 1 { x.strides()[axis] as usize } else { 0 };
        let strides =
            Strides { head: if shapes.one_head { 0 } else { stride(rank - 3) }, row: stride(rank - 2) };
        let own = rank.saturating_sub(3);
        let missing = shapes.batch.len() - own;
        let batch = shapes.batch.iter().enumerate();
        let batch =
            batch.map(|(axis, &n)| (n, if axis < missing { 0 } else { stride(axis - missing) })).collect();
        Self { data: all(x), strides, batch }
    }

    fn start(&self, mut b: usize) -> usize {
        let mut at = 0;
        for &(n, stride) in self.batch.iter().rev() {
            at += b % n * stride;
            b /= n;
        }
        at
    }

    fn operand(&self) -> Operand<'a, T> {
        Operand { data: self.data, strides: self.strides }
    }
}

/// The memory from the first to the last element of an array without negative strides.
pub(crate) fn all<'a, T>(x: &'a CowArray<'_, T, IxDyn>) -> &'a [T] {
    if x.is_empty() {
        return &[];
    }
    let last: usize = x.shape().iter().zip(x.strides()).map(|(&n, &s)| (n - 1) * s.unsigned_abs()).sum();
    assert!(x.shape().iter().zip(x.strides()).all(|(&n, &s)| n == 1 || s >= 0), "a negative stride");
    // SAFETY: no stride is negative, so the array's pointer is its lowest element and `last` the distance to its
    // highest; both lie in one allocation, and with them all that is between. Numbers of any bits are valid.
    unsafe { std::slice::from_raw_parts(x.as_ptr(), last + 1) }
}
