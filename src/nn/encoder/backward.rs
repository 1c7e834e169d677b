//! The gradients of a stack: its layers backwards, each from what its forward pass keeps.
//!
//! The whole batch goes through a layer before the next, since the gradients of parameters are sums over all its rows.

use super::{Encoder, Positions, ROTARY_THETA, StackCall};
use crate::error::Result;
use crate::nn::attention::Call;
use crate::nn::dropout::site_key;
use crate::nn::encoder_layer::{EncoderLayer, SavedLayer};
use crate::nn::state::{State, prefixed};
use crate::nn::tokens::{Layout, buffer, copied};
use crate::ops::alibi::alibi_slopes;
use crate::ops::buffer::zeros;
use crate::ops::reused::{InTraining, Reused};
use crate::simd::Float;

/// What [`Encoder::forward_saved`] keeps.
pub struct SavedStack<T: Float> {
    layers: Vec<SavedLayer<T>>,
    /// The input of the final norm, where there is one.
    before_norm: Option<Reused<T>>,
    /// Dropped last: what the layers leave is kept for the next step as long as another one goes on.
    _training: InTraining,
}

/// Gradients of a stack.
pub struct StackGradients<T> {
    /// Of the rows (T, D).
    pub x: Vec<T>,
    /// Of the parameters, named as in the state.
    pub parameters: State<T>,
    /// Of the factors of each layer's heads, where there were any.
    pub head_mask: Option<Vec<Vec<T>>>,
}

impl<T: Float> Encoder<T> {
    /// [`Encoder::forward`] without weights and hidden states, the same bits, that keeps what [`Self::backward`] reads.
    ///
    /// # Errors
    /// `Memory`, `Interrupted`, `Internal`.
    pub fn forward_saved(
        &self,
        rows: &[T],
        layout: &Layout,
        call: &StackCall<'_, T>,
    ) -> Result<(Vec<T>, SavedStack<T>)> {
        let training = InTraining::new();
        let mut x = copied(rows)?;
        if self.positions == Some(Positions::Sinusoidal) {
            self.add_positions(&mut x, layout)?;
        }
        let mut layers = Vec::with_capacity(self.layers.len());
        for (n, layer) in self.layers.iter().enumerate() {
            let slopes = self.slopes(layer)?;
            let of_layer = self.call_of(n, call, slopes.as_deref());
            let next = self.layers.get(n + 1).map_or(&[][..], EncoderLayer::panels);
            let (out, saved) = layer.forward_saved(x, layout, &of_layer, next)?;
            layers.push(saved);
            x = out;
        }
        let mut out = zeros(x.len())?;
        let mut before_norm = None;
        if let Some(norm) = &self.norm {
            norm.forward(&x, &mut out)?;
            before_norm = Some(x);
        } else {
            out.copy_from_slice(&x);
        }
        Ok((out, SavedStack { layers, before_norm, _training: training }))
    }

    /// From the call, what its forward pass kept and the gradient `d_out` (T, D) of its result: all gradients.
    ///
    /// # Errors
    /// `Memory`, `Interrupted`, `Internal`.
    pub fn backward(
        &self,
        layout: &Layout,
        call: &StackCall<'_, T>,
        saved: &SavedStack<T>,
        d_out: &[T],
    ) -> Result<StackGradients<T>> {
        let mut last = Vec::new();
        let mut d;
        if let (Some(norm), Some(x)) = (&self.norm, &saved.before_norm) {
            d = buffer(d_out.len(), 1)?;
            last = prefixed("norm.", norm.backward(x, d_out, &mut d)?).collect();
        } else {
            d = copied(d_out)?;
        }
        let mut of_layers = Vec::with_capacity(self.layers.len());
        for (n, (layer, saved)) in self.layers.iter().zip(&saved.layers).enumerate().rev() {
            let slopes = self.slopes(layer)?;
            let of_layer = self.call_of(n, call, slopes.as_deref());
            let (dx, (grads, head_mask)) = layer.backward(layout, &of_layer, saved, d)?;
            d = dx;
            let grads: State<T> = prefixed(&format!("layers.{n}."), grads).collect();
            of_layers.push((grads, head_mask));
        }
        let (mut parameters, mut head_mask) = (State::new(), call.head_mask.map(|_| Vec::new()));
        for (grads, of_layer) in of_layers.into_iter().rev() {
            parameters.extend(grads);
            if let Some(all) = &mut head_mask {
                all.extend(of_layer);
            }
        }
        parameters.extend(last);
        Ok(StackGradients { x: d.to_vec(), parameters, head_mask })
    }

    /// The slopes of a layer's heads, where places are told by them.
    pub(super) fn slopes(&self, layer: &EncoderLayer<T>) -> Result<Option<Vec<T>>> {
        let heads = layer.config.attention.num_heads;
        (self.positions == Some(Positions::Alibi)).then(|| alibi_slopes::<T>(heads)).transpose()
    }

    /// How layer `n` is called, weights apart.
    pub(super) fn call_of<'a>(
        &self,
        n: usize,
        call: &StackCall<'a, T>,
        slopes: Option<&'a [T]>,
    ) -> Call<'a, T> {
        Call {
            masks: call.masks,
            causal: call.causal,
            window: call.window,
            head_mask: call.head_mask.map(|m| &m[n][..]),
            alibi: slopes,
            rotary: (self.positions == Some(Positions::Rotary)).then_some(ROTARY_THETA),
            dropout: call.dropout.map(|key| site_key(key, n, 9)),
            ..Call::default()
        }
    }
}
