//! The gradients of a decoder layer, from what its forward pass keeps.

use super::{DecoderLayer, LayerCall, NORMS};
use crate::error::Result;
use crate::nn::attention::{SavedAttention, SourceGradients, Sources};
use crate::nn::feed_forward::SavedHidden;
use crate::nn::residual::SavedResidual;
use crate::nn::state::{State, prefixed};
use crate::nn::tokens::{Layout, Tokens};
use crate::ops::linear::After;
use crate::ops::reused::Reused;
use crate::simd::Float;

/// What [`DecoderLayer::forward_saved`] keeps.
pub struct SavedDecoderLayer<T: Float> {
    own: (SavedResidual<T>, SavedAttention<T>),
    cross: (SavedResidual<T>, SavedAttention<T>),
    feed: (SavedResidual<T>, SavedHidden<T>),
}

/// Gradients of a layer.
pub struct DecoderGradients<T: Float> {
    /// Of the input (T, D).
    pub x: Reused<T>,
    /// Of the parameters, named as in the state.
    pub parameters: State<T>,
    /// Of the factors of heads, of self-attention and of attention to the memory, where there were any.
    pub head_masks: [Option<Vec<T>>; 2],
}

impl<T: Float> DecoderLayer<T> {
    /// [`DecoderLayer::forward`] without weights, the same bits, that keeps what [`Self::backward`] reads.
    ///
    /// # Errors
    /// `Memory`, `Interrupted`, `Internal`.
    pub fn forward_saved(
        &self,
        x: Reused<T>,
        layout: &Layout,
        memory: Tokens<'_, T>,
        call: &LayerCall<'_, T>,
        next: &[T],
    ) -> Result<(Reused<T>, SavedDecoderLayer<T>)> {
        let [own_call, cross_call] = call.of_parts();
        let (x, own_part, own) = self.residual(0, call.dropout).forward_saved(x, |x, out, residual| {
            let after = After { residual, next: self.cross.panels(), ..After::default() };
            self.own.forward_saved(Sources::own(Tokens { rows: x, layout }), &own_call, out, after)
        })?;
        let (x, cross_part, cross) =
            self.residual(1, call.dropout).forward_saved(x, |x, out, residual| {
                let after = After { residual, next: self.feed_forward.panels(), ..After::default() };
                self.cross.forward_saved(across(x, layout, memory), &cross_call, out, after)
            })?;
        let (x, feed_part, feed) = self.residual(2, call.dropout).forward_saved(x, |x, out, residual| {
            self.feed_forward.forward_saved(x, layout.total(), out, (residual, next), call.dropout)
        })?;
        let saved =
            SavedDecoderLayer { own: (own_part, own), cross: (cross_part, cross), feed: (feed_part, feed) };
        Ok((x, saved))
    }

    /// From the call, what its forward pass kept and the gradient `d` (T, D) of its result: all gradients; that of the
    /// memory's rows goes into `d_memory`.
    ///
    /// # Errors
    /// `Memory`, `Interrupted`, `Internal`.
    pub fn backward(
        &self,
        layout: &Layout,
        memory: Tokens<'_, T>,
        call: &LayerCall<'_, T>,
        saved: &SavedDecoderLayer<T>,
        d: Reused<T>,
        d_memory: &mut [T],
    ) -> Result<DecoderGradients<T>> {
        let [own_call, cross_call] = call.of_parts();
        let SavedDecoderLayer { own, cross, feed } = saved;
        let (d, norm3, of_feed) =
            self.residual(2, call.dropout).backward(&feed.0, d, |x, dy, dx, residual| {
                let rows = (x, layout.total());
                self.feed_forward.backward(rows, &feed.1, dy, call.dropout, dx, residual)
            })?;
        let (d, norm2, (of_cross, cross_heads)) =
            self.residual(1, call.dropout).backward(&cross.0, d, |x, dy, dx, residual| {
                let into = SourceGradients { queries: dx, keys: Some(d_memory), values: None };
                let sources = across(x, layout, memory);
                self.cross.backward(sources, &cross_call, &cross.1, dy, into, residual)
            })?;
        let (x, norm1, (of_own, own_heads)) =
            self.residual(0, call.dropout).backward(&own.0, d, |x, dy, dx, residual| {
                let into = SourceGradients { queries: dx, keys: None, values: None };
                let sources = Sources::own(Tokens { rows: x, layout });
                self.own.backward(sources, &own_call, &own.1, dy, into, residual)
            })?;
        let mut parameters: State<T> = prefixed("self_attn.", of_own).collect();
        parameters.extend(prefixed("multihead_attn.", of_cross));
        parameters.extend(of_feed);
        for (norm, name) in [norm1, norm2, norm3].into_iter().zip(NORMS) {
            parameters.extend(prefixed(name, norm));
        }
        Ok(DecoderGradients { x, parameters, head_masks: [own_heads, cross_heads] })
    }
}

/// Tokens that attend to a memory.
fn across<'a, T>(x: &'a [T], layout: &'a Layout, memory: Tokens<'a, T>) -> Sources<'a, T> {
    let Tokens { rows, layout: of_memory } = memory;
    Sources { queries: Tokens { rows: x, layout }, keys: Tokens { rows, layout: of_memory }, values: rows }
}
