//! The boolean array that masks mean, (B..., H, L, S): true where a query may attend a key.

use std::sync::Mutex;

use ndarray::{ArrayD, IxDyn};

use super::buffer::{elements, zeros};
use super::masks::{AttnMask, Dense, Element, Masks, Offset, Pairs, broadcast};
use crate::error::{Error, Result};
use crate::simd::Float;
use crate::threads::parallel;

/// Says for each query and key whether `masks` allow the pair. The batch axes and H are those of the masks; with
/// no mask that has heads the result has H = 1, with none that has a batch either it is (L, S).
///
/// # Errors
/// `Shape` where masks do not fit each other or L and S, `Value` for lengths outside 0 to S, `Memory`.
pub fn allowed_mask<T: Float>(l: usize, s: usize, masks: &Masks<'_, T>) -> Result<ArrayD<bool>> {
    let attn_shape = match &masks.attn_mask {
        Some(AttnMask::Allowed(m)) => m.shape.as_slice(),
        Some(AttnMask::Added(m)) => m.shape.as_slice(),
        None => &[],
    };
    let has_heads = attn_shape.len() > 2;
    let heads = if has_heads { attn_shape[attn_shape.len() - 3] } else { 1 };
    let batch = batch_of(masks, if has_heads { &attn_shape[..attn_shape.len() - 3] } else { &[] })?;
    let mut shape = batch.clone();
    if has_heads || !batch.is_empty() {
        shape.push(heads);
    }
    shape.extend([l, s]);
    let len = elements("allowed_mask", &shape)?;
    let sequences = masks.elements(&batch, heads, l, s)?;
    let mut allowed = zeros::<bool>(len)?;
    if len > 0 {
        let rows: Vec<_> = allowed.chunks_mut(l * s).map(Mutex::new).collect();
        parallel(rows.len(), |task| {
            let (element, head) = (&sequences[task / heads], task % heads);
            if let Ok(mut rows) = rows[task].lock() {
                for (i, row) in rows.chunks_mut(s).enumerate() {
                    let (first, end) = masks.range(i, element.offset, s);
                    fill(&mut row[first..end], first, element, head, i);
                }
            }
        })?;
    }
    ArrayD::from_shape_vec(IxDyn(&shape), allowed).map_err(|e| Error::Internal(e.to_string()))
}

/// One row, from key `first` on.
fn fill<T: Float>(row: &mut [bool], first: usize, element: &Element<'_, T>, head: usize, i: usize) {
    for (c, allowed) in row.iter_mut().enumerate() {
        let j = first + c;
        *allowed = element.key_mask.as_ref().is_none_or(|keys| keys[j])
            && match element.pairs {
                Pairs::All => true,
                Pairs::Allowed(data, [h, q, k]) => data[head * h + i * q + j * k],
                Pairs::Added(data, [h, q, k]) => data[head * h + i * q + j * k] != T::NEG_INFINITY,
            };
    }
}

/// The batch axes that all masks share.
fn batch_of<T>(masks: &Masks<'_, T>, of_attn: &[usize]) -> Result<Vec<usize>> {
    let shape = |m: Option<&Dense<'_, i64>>| m.map_or(Vec::new(), |m| m.shape.clone());
    let of_keys = masks.key_mask.as_ref().map_or(&[][..], |m| &m.shape[..m.shape.len().saturating_sub(1)]);
    let of_offset = match &masks.causal_offset {
        Offset::Each(m) => m.shape.clone(),
        _ => Vec::new(),
    };
    let mut batch = of_attn.to_vec();
    for (name, other) in [
        ("key_mask", of_keys),
        ("key_lengths", &shape(masks.key_lengths.as_ref())),
        ("causal_offset", &of_offset),
    ] {
        batch = broadcast(&batch, other).ok_or_else(|| {
            Error::Shape(format!("{name}: its batch axes {other:?} do not broadcast with {batch:?}"))
        })?;
    }
    Ok(batch)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(mask: &ArrayD<bool>) -> Vec<String> {
        let s = *mask.shape().last().unwrap();
        let flat: Vec<char> = mask.iter().map(|&a| if a { '1' } else { '.' }).collect();
        flat.chunks(s).map(|row| row.iter().collect()).collect()
    }

    #[test]
    fn causal_window_and_offset() {
        let mut masks = Masks::<f32> { is_causal: true, ..Masks::default() };
        assert_eq!(rows(&allowed_mask(3, 4, &masks).unwrap()), ["1...", "11..", "111."]);
        masks.causal_offset = Offset::BottomRight;
        assert_eq!(rows(&allowed_mask(3, 4, &masks).unwrap()), ["11..", "111.", "1111"]);
        masks.window.0 = Some(1);
        assert_eq!(rows(&allowed_mask(3, 4, &masks).unwrap()), ["11..", ".11.", "..11"]);
        masks = Masks { window: (Some(0), Some(1)), causal_offset: Offset::All(-1), ..Masks::default() };
        assert_eq!(rows(&allowed_mask(3, 4, &masks).unwrap()), ["1...", "11..", ".11."]);
        masks.causal_offset = Offset::All(i64::MAX);
        assert_eq!(rows(&allowed_mask(2, 3, &masks).unwrap()), ["...", "..."]);
        masks.causal_offset = Offset::All(i64::MIN);
        assert_eq!(rows(&allowed_mask(2, 3, &masks).unwrap()), ["...", "..."]);
    }

    #[test]
    fn batches_lengths_and_pairs() {
        let lengths = Dense { data: &[3, 1][..], shape: vec![2] };
        let key_mask = Dense { data: &[true, false, true][..], shape: vec![3] };
        let added = [0.0, f32::NEG_INFINITY, 1.0, f32::NAN];
        let attn = Dense { data: &added[..], shape: vec![2, 2, 1] };
        let masks = Masks {
            attn_mask: Some(AttnMask::Added(attn)),
            key_mask: Some(key_mask),
            key_lengths: Some(lengths),
            ..Masks::default()
        };
        let mask = allowed_mask(2, 3, &masks).unwrap();
        assert_eq!(mask.shape(), [2, 2, 2, 3]);
        assert_eq!(rows(&mask), ["1.1", "...", "1.1", "1.1", "1..", "...", "1..", "1.."]);
    }

    #[test]
    fn what_does_not_fit_is_named() {
        let three = Dense { data: &[true; 3][..], shape: vec![3] };
        let masks = Masks::<f32> { key_mask: Some(three.clone()), ..Masks::default() };
        assert!(allowed_mask(2, 4, &masks).unwrap_err().to_string().starts_with("key_mask"));
        let masks = Masks::<f32> { attn_mask: Some(AttnMask::Allowed(three)), ..Masks::default() };
        assert!(allowed_mask(2, 4, &masks).unwrap_err().to_string().starts_with("attn_mask"));
        let long = Dense { data: &[5][..], shape: vec![] };
        let masks = Masks::<f32> { key_lengths: Some(long), ..Masks::default() };
        assert!(matches!(allowed_mask(2, 4, &masks), Err(Error::Value(_))));
        assert!(matches!(allowed_mask(1 << 40, 1 << 40, &Masks::<f32>::default()), Err(Error::Shape(_))));
    }
}
