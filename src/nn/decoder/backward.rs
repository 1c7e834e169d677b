//! The gradients of a stack: its layers backwards, each from what its forward pass keeps.

use super::{Decoder, DecoderCall};
use crate::error::Result;
use crate::nn::decoder_layer::{DecoderGradients, DecoderLayer, SavedDecoderLayer};
use crate::nn::residual::add;
use crate::nn::state::{State, prefixed};
use crate::nn::tokens::{Layout, Tokens, buffer, copied};
use crate::ops::buffer::zeros;
use crate::ops::reused::{InTraining, Reused};
use crate::simd::Float;

/// What [`Decoder::forward_saved`] keeps.
pub struct SavedDecoder<T: Float> {
    layers: Vec<SavedDecoderLayer<T>>,
    /// The input of the final norm, where there is one.
    before_norm: Option<Reused<T>>,
    /// Dropped last: what the layers leave is kept for the next step as long as another one goes on.
    _training: InTraining,
}

/// Gradients of a stack.
pub struct StackGradients<T> {
    /// Of the rows (T, D).
    pub x: Vec<T>,
    /// Of the memory's rows: the sum over layers, the last first.
    pub memory: Vec<T>,
    /// Of the parameters, named as in the state.
    pub parameters: State<T>,
    /// Of the factors of each layer's heads, of self-attention and of attention to the memory, where there were any.
    pub head_masks: [Option<Vec<Vec<T>>>; 2],
}

impl<T: Float> Decoder<T> {
    /// [`Decoder::forward`] without weights and hidden states, the same bits, that keeps what [`Self::backward`] reads.
    ///
    /// # Errors
    /// `Memory`, `Interrupted`, `Internal`.
    pub fn forward_saved(
        &self,
        rows: &[T],
        layout: &Layout,
        memory: Tokens<'_, T>,
        call: &DecoderCall<'_, T>,
    ) -> Result<(Vec<T>, SavedDecoder<T>)> {
        let training = InTraining::new();
        let mut x = copied(rows)?;
        self.add_positions(&mut x, || layout.lengths.iter().flat_map(|&n| 0..n).collect())?;
        let mut layers = Vec::with_capacity(self.layers.len());
        for (n, layer) in self.layers.iter().enumerate() {
            let slopes = self.slopes(layer)?;
            let of_layer = self.call_of(n, call, slopes.as_deref());
            let next = self.layers.get(n + 1).map_or(&[][..], DecoderLayer::panels);
            let (out, saved) = layer.forward_saved(x, layout, memory, &of_layer, next)?;
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
        Ok((out, SavedDecoder { layers, before_norm, _training: training }))
    }

    /// From the call, what its forward pass kept and the gradient `d_out` (T, D) of its result: all gradients.
    ///
    /// # Errors
    /// `Memory`, `Interrupted`, `Internal`.
    pub fn backward(
        &self,
        layout: &Layout,
        memory: Tokens<'_, T>,
        call: &DecoderCall<'_, T>,
        saved: &SavedDecoder<T>,
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
        let mut d_memory = zeros(memory.rows.len())?;
        let mut of_layer = buffer(memory.rows.len(), 1)?;
        let mut of_layers = Vec::with_capacity(self.layers.len());
        for (n, (layer, saved)) in self.layers.iter().zip(&saved.layers).enumerate().rev() {
            let slopes = self.slopes(layer)?;
            let call = self.call_of(n, call, slopes.as_deref());
            let DecoderGradients { x, parameters, head_masks } =
                layer.backward(layout, memory, &call, saved, d, &mut of_layer)?;
            d = x;
            add(&mut d_memory, &of_layer)?;
            let parameters: State<T> = prefixed(&format!("layers.{n}."), parameters).collect();
            of_layers.push((parameters, head_masks));
        }
        let mut parameters = State::new();
        let mut head_masks = [call.own, call.cross].map(|of| of.head_mask.map(|_| Vec::new()));
        for (of_layer, masks) in of_layers.into_iter().rev() {
            parameters.extend(of_layer);
            for (all, of_layer) in head_masks.iter_mut().zip(masks) {
                if let Some(all) = all {
                    all.extend(of_layer);
                }
            }
        }
        parameters.extend(last);
        Ok(StackGradients { x: d.to_vec(), memory: d_memory, parameters, head_masks })
    }
}
