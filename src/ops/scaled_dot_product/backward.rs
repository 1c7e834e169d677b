//! The gradients of scaled dot-product attention on arrays. They are computed for the whole of the broadcast batch; where
//! an input was repeated along an axis, its gradients are summed there, ascending.

use ndarray::{ArrayD, ArrayViewD, IxDyn};

use super::{Options, Shapes, array, lse_strides, with_attention};
use crate::error::{Error, Result};
use crate::ops::attention::{Gradients, MaskGradient, Saved, Strides};
use crate::ops::buffer::{elements, zeros};
use crate::ops::masks::{Dense, place};
use crate::simd::Float;

/// What [`super::scaled_dot_product_attention`] made with the same arguments, in C order.
#[derive(Clone, Copy, Debug)]
pub struct Forward<'a, T> {
    /// (B..., H, L, Ev)
    pub out: &'a [T],
    /// (B..., H, L)
    pub lse: &'a [T],
}

/// Gradients, of the shapes of what they belong to.
#[derive(Clone, Debug)]
pub struct AttentionGradients<T> {
    /// Of query, key and value.
    pub operands: [ArrayD<T>; 3],
    /// Of the float mask, if its shape was given.
    pub mask: Option<ArrayD<T>>,
}

/// The gradients of query, key, value and, where the shape of one is given, of the float mask, given that of the output.
///
/// # Errors
/// As [`super::scaled_dot_product_attention`].
pub fn scaled_dot_product_attention_backward<T: Float>(
    q: &ArrayViewD<'_, T>,
    k: &ArrayViewD<'_, T>,
    v: &ArrayViewD<'_, T>,
    options: &Options<'_, T>,
    forward: Forward<'_, T>,
    d_out: &[T],
    mask_shape: Option<&[usize]>,
) -> Result<AttentionGradients<T>> {
    with_attention(q, k, v, options, |shapes, attention| {
        let &Shapes { heads, kv_heads, l, s, e, ev, .. } = shapes;
        let count = attention.sequences.len();
        let of_one = [heads * l * e, kv_heads * s * e, kv_heads * s * ev];
        let [mut dq, mut dk, mut dv] =
            [zeros(count * of_one[0])?, zeros(count * of_one[1])?, zeros(count * of_one[2])?];
        let starts: Vec<[usize; 3]> = (0..count).map(|b| of_one.map(|n| b * n)).collect();
        let mut mask = mask_shape.map(|shape| Ok((array(shape.to_vec())?, shape))).transpose()?;
        let walked = mask.as_ref().map(|(x, shape)| mask_strides(x, shape, shapes, count)).transpose()?;
        let gradients = Gradients {
            dq: (&mut dq, Strides { head: l * e, row: e }),
            dk: (&mut dk, Strides { head: s * e, row: e }),
            dv: (&mut dv, Strides { head: s * ev, row: ev }),
            mask: mask.as_mut().zip(walked.as_ref()).map(|((x, _), (strides, starts))| MaskGradient {
                data: x.as_slice_mut().unwrap_or(&mut []),
                strides: *strides,
                starts,
            }),
            starts: Some(&starts),
        };
        let saved = Saved { out: forward.out, lse: (forward.lse, lse_strides(shapes)) };
        attention.backward(saved, d_out, gradients)?;
        let operands = [
            summed(dq, of_one[0], q.shape(), shapes)?,
            summed(dk, of_one[1], k.shape(), shapes)?,
            summed(dv, of_one[2], v.shape(), shapes)?,
        ];
        Ok(AttentionGradients { operands, mask: mask.map(|(x, _)| x) })
    })
}

/// Strides by head, query and key of the gradient of a mask, and where it begins for each element of the batch.
fn mask_strides<T: Float>(
    mask: &ArrayD<T>,
    shape: &[usize],
    shapes: &Shapes,
    count: usize,
) -> Result<([usize; 3], Vec<usize>)> {
    let full = [&shapes.batch[..], &[shapes.heads, shapes.l, shapes.s]].concat();
    let dense = Dense { data: mask.as_slice().unwrap_or(&[]), shape: shape.to_vec() };
    let strides = dense.strides("attn_mask", "(B, H, L, S)", &full)?;
    let (batch, last) = strides.split_at(shapes.batch.len());
    Ok(([last[0], last[1], last[2]], (0..count).map(|b| place(b, &shapes.batch, batch)).collect()))
}

/// Gradients of the whole batch, `of_one` numbers an element, as those of an array of shape `shape`.
fn summed<T: Float>(x: Vec<T>, of_one: usize, shape: &[usize], shapes: &Shapes) -> Result<ArrayD<T>> {
    let own = &shape[..shape.len().saturating_sub(3)];
    let data = if own == shapes.batch {
        x
    } else {
        let batch = Dense::<T> { data: &[], shape: own.to_vec() };
        let strides = batch.strides("query", "(B,)", &shapes.batch)?;
        let mut sums = zeros(elements("query", own)? * of_one)?;
        for (b, part) in x.chunks_exact(of_one.max(1)).enumerate() {
            let at = place(b, &shapes.batch, &strides) * of_one;
            for (sum, &x) in sums[at..at + of_one].iter_mut().zip(part) {
                *sum += x;
            }
        }
        sums
    };
    ArrayD::from_shape_vec(IxDyn(shape), data).map_err(|e| Error::Internal(e.to_string()))
}
