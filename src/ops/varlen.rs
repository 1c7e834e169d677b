//! Attention over sequences packed one after the other, (T, H, E): sequence n has the queries `cu_q[n]..cu_q[n + 1]`
//! and the keys `cu_k[n]..cu_k[n + 1]`. The same kernel as for batches, hence the same bits as one call for each.

use ndarray::{ArrayD, ArrayViewD, IxDyn};

use super::attention::{Attention, Gradients, Operand, Saved, Sequence, Strides, Wanted};
use super::masks::Offset;
use super::scaled_dot_product::{all, array, check_numbers, rows_dense};
use crate::error::{Error, Result};
use crate::kernels::attend::Mask;
use crate::simd::Float;

/// What a call wants beside query, key, value and where sequences begin.
#[derive(Clone, Debug)]
pub struct VarlenOptions<'a> {
    /// Whether keys after a query's place are blocked.
    pub is_causal: bool,
    /// The place of the first query of each sequence.
    pub causal_offset: Offset<'a>,
    /// Keys allowed to the left and to the right of a query's place.
    pub window: (Option<usize>, Option<usize>),
    /// Soft cap.
    pub softcap: Option<f64>,
    /// Factor of q · k; 1 / sqrt(E) if absent.
    pub scale: Option<f64>,
    /// Whether to return the log-sum-exp.
    pub lse: bool,
}

/// Attends; gives (Tq, H, Ev) and, if wanted, the log-sum-exp (Tq, H).
///
/// # Errors
/// `Shape` and `Value` with the argument's name, `Memory`, `Interrupted`, `Internal`.
pub fn attention_varlen<T: Float>(
    q: &ArrayViewD<'_, T>,
    k: &ArrayViewD<'_, T>,
    v: &ArrayViewD<'_, T>,
    cu_q: (&[i64], &[usize]),
    cu_k: Option<(&[i64], &[usize])>,
    options: &VarlenOptions<'_>,
) -> Result<(ArrayD<T>, Option<ArrayD<T>>)> {
    with_attention(q, k, v, (cu_q, cu_k), options, |attention| {
        let (tq, heads) = (q.shape()[0], attention.heads);
        let mut out = array(vec![tq, heads, attention.ev])?;
        let mut lse = if options.lse { Some(array(vec![tq, heads])?) } else { None };
        if !out.is_empty() || lse.as_ref().is_some_and(|x| !x.is_empty()) {
            let lse = lse.as_mut().and_then(ArrayD::as_slice_mut);
            let wanted = Wanted { lse: lse.map(|x| (x, Strides { head: 1, row: heads })), scores: None };
            attention.run(out.as_slice_mut().unwrap_or(&mut []), wanted)?;
        }
        Ok((out, lse))
    })
}

/// The gradients of query, key and value, given that of the output (Tq, H, Ev) and what [`attention_varlen`] made with the same
/// arguments.
///
/// # Errors
/// As [`attention_varlen`].
#[allow(clippy::too_many_arguments, reason = "the arguments of the function, and what it left")]
pub fn attention_varlen_backward<T: Float>(
    q: &ArrayViewD<'_, T>,
    k: &ArrayViewD<'_, T>,
    v: &ArrayViewD<'_, T>,
    cu_q: (&[i64], &[usize]),
    cu_k: Option<(&[i64], &[usize])>,
    options: &VarlenOptions<'_>,
    (out, lse): (&[T], &[T]),
    d_out: &[T],
) -> Result<[ArrayD<T>; 3]> {
    with_attention(q, k, v, (cu_q, cu_k), options, |attention| {
        let Attention { heads, kv_heads, e, ev, .. } = *attention;
        let mut gradients =
            [array(q.shape().to_vec())?, array(k.shape().to_vec())?, array(v.shape().to_vec())?];
        let packed = |width: usize, heads: usize| Strides { head: width, row: heads * width };
        // The operands may have other strides than their gradients.
        let starts: Vec<[usize; 3]> = attention
            .sequences
            .iter()
            .map(|sequence| {
                let query = sequence.lse_start / heads.max(1);
                let key = sequence.scores_start;
                [query * heads * e, key * kv_heads * e, key * kv_heads * ev]
            })
            .collect();
        let [dq, dk, dv] = gradients.each_mut().map(|x| x.as_slice_mut().unwrap_or(&mut []));
        let to = Gradients {
            dq: (dq, packed(e, heads)),
            dk: (dk, packed(e, kv_heads)),
            dv: (dv, packed(ev, kv_heads)),
            mask: None,
            starts: Some(&starts),
        };
        let saved = Saved { out, lse: (lse, Strides { head: 1, row: heads }) };
        attention.backward(saved, d_out, to)?;
        Ok(gradients)
    })
}

/// Where the sequences of queries begin, and those of keys, if elsewhere: numbers and shapes.
type Starts<'a> = ((&'a [i64], &'a [usize]), Option<(&'a [i64], &'a [usize])>);

/// Checks the arguments and hands `run` the call that they make.
fn with_attention<T: Float, R>(
    q: &ArrayViewD<'_, T>,
    k: &ArrayViewD<'_, T>,
    v: &ArrayViewD<'_, T>,
    (cu_q, cu_k): Starts<'_>,
    options: &VarlenOptions<'_>,
    run: impl FnOnce(&Attention<'_, T>) -> Result<R>,
) -> Result<R> {
    let &[tq, heads, e] = q.shape() else { return Err(three_axes("query", "(Tq, H, E)", q.shape())) };
    let &[tk, kv_heads, ke] = k.shape() else { return Err(three_axes("key", "(Tk, Hk, E)", k.shape())) };
    let &[tv, v_heads, ev] = v.shape() else { return Err(three_axes("value", "(Tk, Hk, Ev)", v.shape())) };
    if e == 0 || ke != e || heads != kv_heads && (kv_heads == 0 || heads % kv_heads != 0) {
        return Err(Error::Shape(format!(
            "key: expected (Tk, Hk, E) with E > 0 as in query and Hk heads that divide H, got {:?} beside query {:?}",
            k.shape(),
            q.shape()
        )));
    }
    if (tv, v_heads) != (tk, kv_heads) {
        return Err(Error::Shape(format!(
            "value: expected (Tk, Hk, Ev) with Tk = {tk} and Hk = {kv_heads} as in key, got {:?}",
            v.shape()
        )));
    }
    check_numbers(options.softcap, 0.0)?;
    let queries = starts("cu_seqlens_q", cu_q, "Tq", tq)?;
    let keys = match cu_k {
        Some(cu) => starts("cu_seqlens_k", cu, "Tk", tk)?,
        // The queries' own list; an error in it then is one of key's length.
        None if tk == tq => queries.clone(),
        None => {
            return Err(Error::Shape(format!(
                "cu_seqlens_k: needed, since key has Tk = {tk} rows and query Tq = {tq}"
            )));
        }
    };
    if keys.len() != queries.len() {
        return Err(Error::Shape(format!(
            "cu_seqlens_k: expected {} numbers, one for each of cu_seqlens_q, got {}",
            queries.len(),
            keys.len()
        )));
    }
    let count = queries.len() - 1;
    let offset = |n: usize, l: usize, s: usize| match &options.causal_offset {
        Offset::All(at) => *at,
        Offset::Each(each) => each.data[if each.data.len() == 1 { 0 } else { n }],
        Offset::BottomRight => s as i64 - l as i64,
    };
    if let Offset::Each(each) = &options.causal_offset
        && !(each.data.len() == count && each.shape.len() == 1 || each.data.len() == 1)
    {
        return Err(Error::Shape(format!(
            "causal_offset: expected an int or ({count},), one for each sequence, got {:?}",
            each.shape
        )));
    }

    let (q, k, v) = (rows_dense(q)?, rows_dense(k)?, rows_dense(v)?);
    let strides = |x: &ndarray::CowArray<'_, T, IxDyn>| {
        let of = |axis: usize| if x.shape()[axis] > 1 { x.strides()[axis] as usize } else { 0 };
        Strides { head: of(1), row: of(0) }
    };
    let (qs, ks, vs) = (strides(&q), strides(&k), strides(&v));
    let sequences = (0..count).map(|n| {
        let (l, s) = (queries[n + 1] - queries[n], keys[n + 1] - keys[n]);
        Sequence {
            starts: [queries[n] * qs.row, keys[n] * ks.row, keys[n] * vs.row, queries[n] * heads * ev],
            q_len: l,
            k_len: s,
            past: 0,
            offset: offset(n, l, s),
            key_mask: None,
            query_places: None,
            key_places: None,
            mask: Mask::None,
            lse_start: queries[n] * heads,
            // No scores are written: where the keys begin, for their gradients.
            scores_start: keys[n],
            score_strides: Strides::default(),
            dropout_base: 0,
            dropout_shape: (l, s),
        }
    });
    let attention = Attention {
        q: Operand { data: all(&q), strides: qs },
        k: Operand { data: all(&k), strides: ks },
        v: Operand { data: all(&v), strides: vs },
        out: Strides { head: ev, row: heads * ev },
        heads,
        kv_heads,
        e,
        ev,
        scale: T::from_f64(options.scale.unwrap_or_else(|| 1.0 / (e as f64).sqrt())),
        softcap: options.softcap.map(T::from_f64),
        alibi: None,
        causal: options.is_causal,
        window: options.window,
        dropout: None,
        sequences: sequences.collect(),
    };
    run(&attention)
}

fn three_axes(name: &str, letters: &str, shape: &[usize]) -> Error {
    Error::Shape(format!("{name}: expected {letters}, got {shape:?}"))
}

/// Checks a list of where sequences begin: from 0, never falling, to the number of rows.
fn starts(name: &str, (cu, shape): (&[i64], &[usize]), letter: &str, rows: usize) -> Result<Vec<usize>> {
    let good = shape.len() == 1
        && cu.first() == Some(&0)
        && cu.last() == Some(&(rows as i64))
        && cu.windows(2).all(|w| w[0] <= w[1]);
    if good {
        return Ok(cu.iter().map(|&n| n as usize).collect());
    }
    let shown =
        if cu.len() > 8 { format!("{:?}... of shape {shape:?}", &cu[..8]) } else { format!("{cu:?}") };
    Err(Error::Shape(format!(
        "{name}: expected one axis of numbers that begin with 0, never fall, and end with {letter} = {rows}, got {shown}"
    )))
}
