//! The gradients of an encoder layer, from what its forward pass keeps.
//!
//! ```text
//! post-norm  m = x + drop(attention(x));          y = norm1(m);  f = y + drop(feed(y));         out = norm2(f)
//! pre-norm   m = x + drop(attention(norm1(x)));   y = norm2(m);  out = m + drop(feed(y))
//! ```
//!
//! Kept are x, m, and of post-norm f; normalized rows are computed again, and dropout drops the same numbers twice, since
//! its counter is keyed by the call.

use super::EncoderLayer;
use crate::error::Result;
use crate::nn::attention::{Call, SavedAttention, SourceGradients, Sources};
use crate::nn::dropout::{drop_out, site_key};
use crate::nn::feed_forward::SavedHidden;
use crate::nn::state::{State, prefixed};
use crate::nn::tokens::{Layout, Tokens, buffer};
use crate::ops::aligned::Reused;
use crate::ops::linear::After;
use crate::ops::rows::over_rows;
use crate::simd::Float;

/// What [`EncoderLayer::forward_saved`] keeps.
pub struct SavedLayer<T: Float> {
    /// The input.
    x: Reused<T>,
    attention: SavedAttention<T>,
    /// m
    middle: Reused<T>,
    hidden: SavedHidden<T>,
    /// f of post-norm, else empty.
    fed: Reused<T>,
}

/// Sites of dropout within a layer; the other two are those of weights and of hidden rows.
const AFTER_ATTENTION: u32 = 1;
const AFTER_FEED: u32 = 3;

impl<T: Float> EncoderLayer<T> {
    /// [`EncoderLayer::forward`] without weights, the same bits, that keeps what [`Self::backward`] reads.
    ///
    /// # Errors
    /// `Memory`, `Interrupted`, `Internal`.
    pub fn forward_saved(
        &self,
        x: &mut [T],
        layout: &Layout,
        call: &Call<'_, T>,
        next: &[T],
    ) -> Result<SavedLayer<T>> {
        let (rows, d) = (layout.total(), self.config.attention.d_model);
        let (norm_first, dropout) = (self.config.norm_first, self.dropout_of(call));
        let (mut kept, mut middle) = (buffer(rows, d)?, buffer(rows, d)?);
        kept.copy_from_slice(x);
        let mut normed = buffer(rows, d)?;
        if norm_first {
            self.norm1.forward(x, &mut normed)?;
        }
        let first: &[T] = if norm_first { &normed } else { x };
        let residual = dropout.is_none().then_some(&kept[..]);
        let after = After { residual, next: self.feed_forward.panels(), ..After::default() };
        let sources = Sources::own(Tokens { rows: first, layout });
        let attention = self.attention.forward_saved(sources, call, &mut middle, after)?;
        self.drop_then_add(&mut middle, &kept, dropout, AFTER_ATTENTION)?;

        let norm = if norm_first { &self.norm2 } else { &self.norm1 };
        norm.forward(&middle, &mut normed)?;
        let before: &[T] = if norm_first { &middle } else { &normed };
        let residual = dropout.is_none().then_some(before);
        let hidden = self.feed_forward.forward_saved(&normed, rows, x, (residual, next), dropout)?;
        self.drop_then_add(x, before, dropout, AFTER_FEED)?;
        let mut fed = buffer(if norm_first { 0 } else { rows }, d)?;
        if !norm_first {
            fed.copy_from_slice(x);
            self.norm2.forward(&fed, x)?;
        }
        Ok(SavedLayer { x: kept, attention, middle, hidden, fed })
    }

    /// From the call, what its forward pass kept and the gradient `d` (T, D) of its result, which becomes that of the input,
    /// in place: the gradients of the parameters, named as in the state, and of the factors of heads.
    ///
    /// # Errors
    /// `Memory`, `Interrupted`, `Internal`.
    pub fn backward(
        &self,
        layout: &Layout,
        call: &Call<'_, T>,
        saved: &SavedLayer<T>,
        d: &mut [T],
    ) -> Result<(State<T>, Option<Vec<T>>)> {
        let (rows, width) = (layout.total(), self.config.attention.d_model);
        let (norm_first, dropout) = (self.config.norm_first, self.dropout_of(call));
        let SavedLayer { x, attention, middle, hidden, fed } = saved;
        let (mut normed, mut dropped) = (buffer(rows, width)?, buffer(rows, width)?);
        let mut d_normed = buffer(rows, width)?;

        // Back through the feed-forward part: d becomes dm.
        let norm = if norm_first { &self.norm2 } else { &self.norm1 };
        norm.forward(middle, &mut normed)?;
        let mut d_fed = buffer(if norm_first { 0 } else { rows }, width)?;
        let mut norm2 = Vec::new();
        if !norm_first {
            norm2 = self.norm2.backward(fed, d, &mut d_fed)?;
            d.copy_from_slice(&d_fed);
        }
        let d_out = self.dropped(d, &mut dropped, dropout, AFTER_FEED)?;
        let residual = (!norm_first).then_some(&*d);
        let feed =
            self.feed_forward.backward((&normed, rows), hidden, d_out, dropout, &mut d_normed, residual)?;
        let norm1 = if norm_first {
            let mut d_middle = buffer(rows, width)?;
            norm2 = self.norm2.backward(middle, &d_normed, &mut d_middle)?;
            add(d, &d_middle)?;
            self.norm1.forward(x, &mut normed)?;
            Vec::new()
        } else {
            self.norm1.backward(middle, &d_normed, d)?
        };

        // Back through attention: dm becomes dx.
        let d_out = self.dropped(d, &mut dropped, dropout, AFTER_ATTENTION)?;
        let residual = (!norm_first).then_some(&*d);
        let first: &[T] = if norm_first { &normed } else { x };
        let sources = Sources::own(Tokens { rows: first, layout });
        let into = SourceGradients { queries: &mut d_normed, keys: None, values: None };
        let (of_attention, d_head_mask) =
            self.attention.backward(sources, call, attention, d_out, into, residual)?;
        let norm1 = if norm_first {
            let mut d_x = buffer(rows, width)?;
            let norm1 = self.norm1.backward(x, &d_normed, &mut d_x)?;
            add(d, &d_x)?;
            norm1
        } else {
            d.copy_from_slice(&d_normed);
            norm1
        };
        let mut grads: State<T> = prefixed("self_attn.", of_attention).collect();
        grads.extend(feed);
        grads.extend(prefixed("norm1.", norm1));
        grads.extend(prefixed("norm2.", norm2));
        Ok((grads, d_head_mask))
    }

    fn dropout_of(&self, call: &Call<'_, T>) -> Option<u64> {
        call.dropout.filter(|_| self.config.attention.dropout > 0.0)
    }

    /// With dropout, drops numbers of `y` and adds the residual; without, the product has added it.
    fn drop_then_add(&self, y: &mut [T], residual: &[T], dropout: Option<u64>, site: u32) -> Result<()> {
        match dropout {
            Some(key) => self.drop_and_add(y, residual, site_key(key, 0, site)),
            None => Ok(()),
        }
    }

    /// The gradient of what was dropped: with dropout a copy in `room`.
    fn dropped<'a>(&self, d: &'a [T], room: &'a mut [T], dropout: Option<u64>, site: u32) -> Result<&'a [T]> {
        let Some(key) = dropout else { return Ok(d) };
        room.copy_from_slice(d);
        drop_out(room, self.config.attention.dropout, site_key(key, 0, site))?;
        Ok(room)
    }
}

/// `x[i] += y[i]`.
fn add<T: Float>(x: &mut [T], y: &[T]) -> Result<()> {
    over_rows(x, 1, 1, |first, x| x.iter_mut().zip(&y[first..]).for_each(|(x, &y)| *x += y))
}
