//! The gradients of an encoder layer, from what its forward pass keeps.

use super::EncoderLayer;
use crate::error::Result;
use crate::nn::attention::{Call, LayerGradients, SavedAttention, SourceGradients, Sources};
use crate::nn::feed_forward::SavedHidden;
use crate::nn::residual::SavedResidual;
use crate::nn::state::{State, prefixed};
use crate::nn::tokens::{Layout, Tokens};
use crate::ops::linear::After;
use crate::ops::reused::Reused;
use crate::simd::Float;

/// What [`EncoderLayer::forward_saved`] keeps.
pub struct SavedLayer<T: Float> {
    attention: (SavedResidual<T>, SavedAttention<T>),
    feed: (SavedResidual<T>, SavedHidden<T>),
}

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
        let (x, first, attention) = self.residual(0, call).forward_saved(x, |x, out, residual| {
            let after = After { residual, next: self.feed_forward.panels(), ..After::default() };
            self.attention.forward_saved(Sources::own(Tokens { rows: x, layout }), call, out, after)
        })?;
        let (x, second, feed) = self.residual(1, call).forward_saved(x, |x, out, residual| {
            let dropout = self.dropout_of(call);
            self.feed_forward.forward_saved(x, layout.total(), out, (residual, next), dropout)
        })?;
        Ok((x, SavedLayer { attention: (first, attention), feed: (second, feed) }))
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
        let SavedLayer { attention, feed } = saved;
        let (d, norm2, of_feed) = self.residual(1, call).backward(&feed.0, d, |x, dy, dx, residual| {
            let rows = (x, layout.total());
            self.feed_forward.backward(rows, &feed.1, dy, self.dropout_of(call), dx, residual)
        })?;
        let (d, norm1, (of_attention, d_head_mask)) =
            self.residual(0, call).backward(&attention.0, d, |x, dy, dx, residual| {
                let into = SourceGradients { queries: dx, keys: None, values: None };
                let sources = Sources::own(Tokens { rows: x, layout });
                self.attention.backward(sources, call, &attention.1, dy, into, residual)
            })?;
        let mut grads: State<T> = prefixed("self_attn.", of_attention).collect();
        grads.extend(of_feed);
        grads.extend(prefixed("norm1.", norm1));
        grads.extend(prefixed("norm2.", norm2));
        Ok((d, (grads, d_head_mask)))
    }
}
