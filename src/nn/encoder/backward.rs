//! The gradients of a stack: its layers backwards, each from what its forward pass keeps.
//!
//! The whole batch goes through a layer before the next, since the gradients of parameters are sums over all its rows.

use super::{Encoder, Positions, ROTARY_THETA, StackCall};
use crate::error::Result;
use crate::nn::attention::Call;
use crate::nn::dropout::site_key;
use crate::nn::encoder_layer::{EncoderLayer, SavedLayer};
use crate::nn::state::{State, prefixed};
use crate::nn::tokens::Layout;
use crate::ops::alibi::alibi_slopes;
use crate::ops::buffer::zeros;
use crate::simd::Float;

/// What [`Encoder::forward_saved`] keeps.
pub struct SavedStack<T: Float> {
    layers: Vec<SavedLayer<T>>,
    /// The input of the final norm, where there is one.
    before_norm: Option<Vec<T>>,
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
        rows: Vec<T>,
        layout: &Layout,
        call: &StackCall<'_, T>,
    ) -> Result<(Vec<T>, SavedStack<T>)> {
        let mut x = rows;
        if self.positions == Some(Positions::Sinusoidal) {
            self.add_positions(&mut x, layout)?;
        }
        let mut layers = Vec::with_capacity(self.layers.len());
        for (n, layer) in self.layers.iter().enumerate() {
            let slopes = self.slopes(layer)?;
            let of_layer = self.call_of(n, call, slopes.as_deref());
            let next = self.layers.get(n + 1).map_or(&[][..], EncoderLayer::panels);
            layers.push(layer.forward_saved(&mut x, layout, &of_layer, next)?);
        }
        let mut before_norm = None;
        if let Some(norm) = &self.norm {
            let mut normed = zeros(x.len())?;
            norm.forward(&x, &mut normed)?;
            before_norm = Some(std::mem::replace(&mut x, normed));
        }
        Ok((x, SavedStack { layers, before_norm }))
    }

    /// From the call, what its forward pass kept and the gradient `d` (T, D) of its result: all gradients.
    ///
    /// # Errors
    /// `Memory`, `Interrupted`, `Internal`.
    pub fn backward(
        &self,
        layout: &Layout,
        call: &StackCall<'_, T>,
        saved: &SavedStack<T>,
        d: Vec<T>,
    ) -> Result<StackGradients<T>> {
        let mut d = d;
        let mut last = Vec::new();
        if let (Some(norm), Some(x)) = (&self.norm, &saved.before_norm) {
            let mut dx = zeros(d.len())?;
            last = prefixed("norm.", norm.backward(x, &d, &mut dx)?).collect();
            d = dx;
        }
        let mut of_layers = Vec::with_capacity(self.layers.len());
        for (n, (layer, saved)) in self.layers.iter().zip(&saved.layers).enumerate().rev() {
            let slopes = self.slopes(layer)?;
            let of_layer = self.call_of(n, call, slopes.as_deref());
            let (grads, head_mask) = layer.backward(layout, &of_layer, saved, &mut d)?;
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
        Ok(StackGradients { x: d, parameters, head_mask })
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
