//! The one rule for masks: key j may be attended by query i of head h in batch element b where *all* hold of
//!
//! - `key_mask[b, j]` is true, and j < `key_lengths[b]`;
//! - causal: j <= i + offset; window: i + offset - left <= j <= i + offset + right (open where `None`);
//! - `attn_mask[b, h, i, j]` is true, or, where it is floating, not -inf (it is added to the score).
//!
//! Masks stay as small as they were given: an axis of one element, or one that is absent, is walked with stride 0.
//! [`Masks::elements`] sorts what is given by batch element: what blocks a key for a whole sequence apart from what
//! blocks single pairs, since the first kind of key is removed before anything is computed.

use super::buffer::{elements as count_of, zeros};
use crate::error::{Error, Result};
use crate::simd::Float;

/// A dense array in C order that broadcasts.
#[derive(Clone, Debug)]
pub struct Dense<'a, T> {
    /// The elements.
    pub data: &'a [T],
    /// The shape; its product is the number of elements.
    pub shape: Vec<usize>,
}

/// A mask for pairs of a query and a key, rank 1 to n, that broadcasts to (B..., H, L, S).
#[derive(Clone, Debug)]
pub enum AttnMask<'a, T> {
    /// True may be attended.
    Allowed(Dense<'a, bool>),
    /// Added to the score; exactly -inf blocks.
    Added(Dense<'a, T>),
}

/// Where the diagonal is: query i stands at place i + offset among the keys.
#[derive(Clone, Debug)]
pub enum Offset<'a> {
    /// One for all.
    All(i64),
    /// One for each batch element.
    Each(Dense<'a, i64>),
    /// The last query stands at the last key: `key_lengths` - L where given, else S - L.
    BottomRight,
}

/// Everything that says which keys may be attended.
#[derive(Clone, Debug)]
pub struct Masks<'a, T> {
    /// Broadcasts to (B..., H, L, S).
    pub attn_mask: Option<AttnMask<'a, T>>,
    /// Broadcasts to (B..., S).
    pub key_mask: Option<Dense<'a, bool>>,
    /// Broadcasts to (B...).
    pub key_lengths: Option<Dense<'a, i64>>,
    /// Whether keys after a query's place are blocked.
    pub is_causal: bool,
    /// The place of query 0.
    pub causal_offset: Offset<'a>,
    /// Keys allowed to the left and to the right of a query's place.
    pub window: (Option<usize>, Option<usize>),
}

impl<T> Default for Masks<'_, T> {
    fn default() -> Self {
        Self {
            attn_mask: None,
            key_mask: None,
            key_lengths: None,
            is_causal: false,
            causal_offset: Offset::All(0),
            window: (None, None),
        }
    }
}

/// Elements (head, query, key) of a mask are at `head * strides[0] + query * strides[1] + key * strides[2]`.
#[derive(Clone, Copy, Debug)]
pub enum Pairs<'a, T> {
    /// Every pair.
    All,
    /// True may be attended.
    Allowed(&'a [bool], [usize; 3]),
    /// Added to the score; exactly -inf blocks.
    Added(&'a [T], [usize; 3]),
}

/// What the masks say of one element of the batch.
#[derive(Clone, Debug)]
pub struct Element<'a, T> {
    /// Query i stands at place i + offset.
    pub offset: i64,
    /// Keys that may be attended at all; `None` = every one.
    pub key_mask: Option<Vec<bool>>,
    /// What is said of pairs.
    pub pairs: Pairs<'a, T>,
}

impl<T> Dense<'_, T> {
    /// Strides with which the array is walked as one of shape `target`; 0 where it is repeated.
    pub(super) fn strides(&self, name: &str, letters: &str, target: &[usize]) -> Result<Vec<usize>> {
        let fits = self.shape.len() <= target.len()
            && self.shape.iter().rev().zip(target.iter().rev()).all(|(&n, &t)| n == t || n == 1);
        if !fits {
            let hint =
                if self.shape.len() == 3 && target.len() > 2 { "; three axes are (H, L, S)" } else { "" };
            return Err(Error::Shape(format!(
                "{name}: expected a shape that broadcasts to {letters} = {target:?}, got {:?}{hint}",
                self.shape
            )));
        }
        let mut strides = vec![0; target.len()];
        let mut step = 1;
        for (axis, &n) in self.shape.iter().enumerate().rev() {
            if n != 1 {
                strides[target.len() - self.shape.len() + axis] = step;
            }
            step *= n;
        }
        Ok(strides)
    }
}

/// The index into an array walked with `strides`, of element `flat` (in C order) of an array of shape `shape`.
pub(super) fn place(mut flat: usize, shape: &[usize], strides: &[usize]) -> usize {
    let mut at = 0;
    for (&n, &stride) in shape.iter().zip(strides).rev() {
        at += flat % n.max(1) * stride;
        flat /= n.max(1);
    }
    at
}

/// NumPy's broadcasting of two shapes, or `None`.
pub fn broadcast(a: &[usize], b: &[usize]) -> Option<Vec<usize>> {
    let rank = a.len().max(b.len());
    let at = |shape: &[usize], axis: usize| (axis + shape.len()).checked_sub(rank).map_or(1, |i| shape[i]);
    (0..rank)
        .map(|axis| match (at(a, axis), at(b, axis)) {
            (1, n) | (n, 1) => Some(n),
            (n, m) if n == m => Some(n),
            _ => None,
        })
        .collect()
}

impl<'a, T: Float> Masks<'a, T> {
    /// Checks the masks against (B...), H, L, S and says what they mean for each element of the batch, in C order.
    ///
    /// # Errors
    /// `Shape` where one does not broadcast, `Value` for lengths outside 0 to S, `Memory`.
    pub fn elements(&self, batch: &[usize], heads: usize, l: usize, s: usize) -> Result<Vec<Element<'a, T>>> {
        let count = count_of("batch", batch)?;
        let with = |more: &[usize]| [batch, more].concat();
        let key_mask = self.key_mask.as_ref().map(|m| Ok((m, m.strides("key_mask", "(B, S)", &with(&[s]))?)));
        let key_mask = key_mask.transpose()?;
        let lengths = self.key_lengths.as_ref().map(|m| Ok((m, m.strides("key_lengths", "(B,)", batch)?)));
        let lengths = lengths.transpose()?;
        if let Some((m, _)) = &lengths
            && let Some(bad) = m.data.iter().find(|&&n| n < 0 || n > s as i64)
        {
            return Err(Error::Value(format!("key_lengths: expected numbers from 0 to S = {s}, got {bad}")));
        }
        let offsets = match &self.causal_offset {
            Offset::Each(m) => Some((m, m.strides("causal_offset", "(B,)", batch)?)),
            _ => None,
        };
        let full = with(&[heads, l, s]);
        let attn = match &self.attn_mask {
            Some(AttnMask::Allowed(m)) => Some(m.strides("attn_mask", "(B, H, L, S)", &full)?),
            Some(AttnMask::Added(m)) => Some(m.strides("attn_mask", "(B, H, L, S)", &full)?),
            None => None,
        };
        let rank = match &self.attn_mask {
            Some(AttnMask::Allowed(m)) => m.shape.len(),
            Some(AttnMask::Added(m)) => m.shape.len(),
            None => 0,
        };
        let element = |b: usize| -> Result<Element<'a, T>> {
            let length = lengths.as_ref().map(|(m, strides)| m.data[place(b, batch, strides)] as usize);
            let offset = match (&self.causal_offset, &offsets) {
                (Offset::All(n), _) => *n,
                (_, Some((m, strides))) => m.data[place(b, batch, strides)],
                _ => length.unwrap_or(s) as i64 - l as i64,
            };
            let mut keys = Keys { allowed: None, count: s };
            if let Some((m, strides)) = &key_mask {
                let (start, step) = (place(b, batch, strides), strides[batch.len()]);
                keys.retain(|j| m.data[start + j * step])?;
            }
            if let Some(n) = length.filter(|&n| n < s) {
                keys.retain(|j| j < n)?;
            }
            let mut pairs = Pairs::All;
            if let (Some(mask), Some(strides)) = (&self.attn_mask, &attn) {
                let start = place(b, batch, strides);
                let steps = [strides[batch.len()], strides[batch.len() + 1], strides[batch.len() + 2]];
                // Repeated over heads and queries: a mask of keys. A single query with a mask of its own row is none:
                // it has the bits that it has among others.
                let of_keys = steps[0] == 0 && steps[1] == 0 && (l != 1 || rank < 2);
                pairs = match mask {
                    AttnMask::Allowed(m) if of_keys && !m.data.is_empty() => {
                        keys.retain(|j| m.data[start + j * steps[2]])?;
                        Pairs::All
                    }
                    AttnMask::Allowed(m) => Pairs::Allowed(m.data.get(start..).unwrap_or(&[]), steps),
                    AttnMask::Added(m) => {
                        if of_keys && !m.data.is_empty() {
                            keys.retain(|j| m.data[start + j * steps[2]] != T::NEG_INFINITY)?;
                        }
                        Pairs::Added(m.data.get(start..).unwrap_or(&[]), steps)
                    }
                };
            }
            Ok(Element { offset, key_mask: keys.allowed, pairs })
        };
        let mut all = Vec::new();
        all.try_reserve_exact(count)
            .map_err(|_| Error::Memory(format!("cannot allocate the masks of {count} sequences")))?;
        for b in 0..count {
            all.push(element(b)?);
        }
        Ok(all)
    }

    /// Keys `first..end` that causality and window allow query `i`.
    pub fn range(&self, i: usize, offset: i64, s: usize) -> (usize, usize) {
        let at = i128::from(offset) + i as i128;
        let first = self.window.0.map_or(0, |left| at - left as i128);
        let mut end = self.window.1.map_or(i128::MAX, |right| at + right as i128 + 1);
        if self.is_causal {
            end = end.min(at + 1);
        }
        let clamp = |x: i128| x.clamp(0, s as i128) as usize;
        (clamp(first), clamp(end).max(clamp(first)))
    }
}

/// Keys of a sequence that may be attended at all.
struct Keys {
    allowed: Option<Vec<bool>>,
    count: usize,
}

impl Keys {
    fn retain(&mut self, f: impl Fn(usize) -> bool) -> Result<()> {
        let mut allowed = if let Some(allowed) = self.allowed.take() {
            allowed
        } else {
            let mut all = zeros(self.count)?;
            all.fill(true);
            all
        };
        for (j, a) in allowed.iter_mut().enumerate() {
            *a &= f(j);
        }
        self.allowed = Some(allowed);
        Ok(())
    }
}
