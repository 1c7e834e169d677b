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
use crate::nn::attention::{Call, LayerGradients, SavedAttention, SourceGradients, Sources};
use crate::nn::dropout::{drop_out, site_key};
use crate::nn::feed_forward::SavedHidden;
use crate::nn::residual::add;
use crate::nn::state::{State, prefixed};
use crate::nn::tokens::{Layout, Tokens, buffer};
use crate::ops::linear::After;
use crate::ops::reused::Reused;
use crate::simd::Float;

/// What [`EncoderLayer::forward_saved`] keeps.
pub struct SavedLayer<T: Float> {
    /// The input.
    x: Reused<T>,
    attention: SavedAttention<T>,
    /// m
    middle: Reused<T>,
    hidden: SavedHidden<T>,
    /// f, of post-norm.
    fed: Option<Reused<T>>,
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
        x: Reused<T>,
        layout: &Layout,
        call: &Call<'_, T>,
        next: &[T],
    ) -> Result<(Reused<T>, SavedLayer<T>)> {
        let (rows, d) = (layout.total(), self.config.attention.d_model);
        let (norm_first, dropout) = (self.config.norm_first, self.dropout_of(call));
        let (mut middle, mut normed, mut out) = (buffer(rows, d)?, buffer(rows, d)?, buffer(rows, d)?);
        if norm_first {
            self.norm1.forward(&x, &mut normed)?;
        }
        let first: &[T] = if norm_first { &normed } else { &x };
        let residual = dropout.is_none().then_some(&x[..]);
        let after = After { residual, next: self.feed_forward.panels(), ..After::default() };
        let sources = Sources::own(Tokens { rows: first, layout });
        let attention = self.attention.forward_saved(sources, call, &mut middle, after)?;
        self.drop_then_add(&mut middle, &x, dropout, AFTER_ATTENTION)?;

        let norm = if norm_first { &self.norm2 } else { &self.norm1 };
        norm.forward(&middle, &mut normed)?;
        let before: &[T] = if norm_first { &middle } else { &normed };
        let residual = dropout.is_none().then_some(before);
        let hidden = self.feed_forward.forward_saved(&normed, rows, &mut out, (residual, next), dropout)?;
        self.drop_then_add(&mut out, before, dropout, AFTER_FEED)?;
        let mut fed = None;
        if !norm_first {
            self.norm2.forward(&out, &mut normed)?;
            fed = Some(std::mem::replace(&mut out, normed));
        }
        Ok((out, SavedLayer { x, attention, middle, hidden, fed }))
    }

    /// From the call, what its forward pass kept and the gradient `d` (T, D) of its result: that of the input, and those of
    /// the parameters, named as in the state, and of the factors of heads.
    ///
    /// # Errors
    /// `Memory`, `Interrupted`, `Internal`.
    pub fn backward(
        &self,
        layout: &Layout,
        call: &Call<'_, T>,
        saved: &SavedLayer<T>,
        d: Reused<T>,
    ) -> Result<(Reused<T>, LayerGradients<T>)> {
        let (rows, width) = (layout.total(), self.config.attention.d_model);
        let dropout = self.dropout_of(call);
        let SavedLayer { x, attention, middle, hidden, fed } = saved;
        let (mut d, mut other) = (d, buffer(rows, width)?);
        let (mut normed, mut dropped) =
            (buffer(rows, width)?, buffer(if dropout.is_some() { rows } else { 0 }, width)?);

        // Back through the feed-forward part: d becomes dm.
        let (norm1, norm2, feed);
        if let Some(fed) = fed {
            self.norm1.forward(middle, &mut normed)?;
            norm2 = self.norm2.backward(fed, &d, &mut other)?;
            let d_fed = self.dropped(&other, &mut dropped, dropout, AFTER_FEED)?;
            let rows = (&normed[..], rows);
            feed = self.feed_forward.backward(rows, hidden, d_fed, dropout, &mut d, Some(&other))?;
            norm1 = Some(self.norm1.backward(middle, &d, &mut other)?);
            std::mem::swap(&mut d, &mut other);
        } else {
            self.norm2.forward(middle, &mut normed)?;
            let d_fed = self.dropped(&d, &mut dropped, dropout, AFTER_FEED)?;
            let rows = (&normed[..], rows);
            feed = self.feed_forward.backward(rows, hidden, d_fed, dropout, &mut other, None)?;
            norm2 = self.norm2.backward(middle, &other, &mut normed)?;
            add(&mut d, &normed)?;
            self.norm1.forward(x, &mut normed)?;
            norm1 = None;
        }

        // Back through attention: dm becomes dx.
        let d_attended = self.dropped(&d, &mut dropped, dropout, AFTER_ATTENTION)?;
        let is_post = norm1.is_some();
        let sources = Sources::own(Tokens { rows: if is_post { x } else { &normed }, layout });
        let into = SourceGradients { queries: &mut other, keys: None, values: None };
        let residual = is_post.then_some(&d[..]);
        let (of_attention, d_head_mask) =
            self.attention.backward(sources, call, attention, d_attended, into, residual)?;
        let norm1 = if let Some(norm1) = norm1 {
            std::mem::swap(&mut d, &mut other);
            norm1
        } else {
            let norm1 = self.norm1.backward(x, &other, &mut normed)?;
            add(&mut d, &normed)?;
            norm1
        };
        let mut grads: State<T> = prefixed("self_attn.", of_attention).collect();
        grads.extend(feed);
        grads.extend(prefixed("norm1.", norm1));
        grads.extend(prefixed("norm2.", norm2));
        Ok((d, (grads, d_head_mask)))
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
