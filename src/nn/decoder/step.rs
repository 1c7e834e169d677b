//! A stack step by step, with a cache of keys and values.

use super::{AttentionCall, Decoder, DecoderCall};
use crate::error::Result;
use crate::nn::attention::{Call, Memory, Past, Step, WantedHeads};
use crate::nn::decoder_layer::DecoderLayer;
use crate::nn::tokens::Tokens;
use crate::ops::buffer::zeros;
use crate::simd::Float;

/// A step: the new tokens, what earlier ones left in each layer, and what each layer knows of the memory.
pub struct StepCall<'a, 'c, T> {
    /// Where the new tokens stand.
    pub step: &'a Step,
    /// Of each layer.
    pub past: &'a mut [Past<'c, T>],
    /// Of each layer.
    pub memory: &'a [Memory<'c, T>],
    /// Whether the weights of attention to the memory are wanted.
    pub need_weights: bool,
}

impl<T: Float> Decoder<T> {
    /// Takes the rows (T, D) of new tokens through all layers, and adds their keys and values to what the layers keep. Each
    /// row has the bits that [`Decoder::forward`] over the whole sequences would give it. Also returns the wanted weights of
    /// each layer.
    ///
    /// # Errors
    /// `Memory`, `Interrupted`, `Internal`.
    pub fn step(&self, rows: Vec<T>, call: StepCall<'_, '_, T>) -> Result<(Vec<T>, Vec<Vec<T>>)> {
        let StepCall { step, past, memory, need_weights } = call;
        let mut x = rows;
        self.add_positions(&mut x, || step.places())?;
        let nothing = DecoderCall {
            own: AttentionCall::default(),
            cross: AttentionCall::default(),
            hidden_states: false,
            dropout: None,
        };
        let wanted = if need_weights { WantedHeads::All } else { WantedHeads::None };
        let mut weights = Vec::with_capacity(self.layers.len());
        for (n, layer) in self.layers.iter().enumerate() {
            let slopes = self.slopes(layer)?;
            let mut of_layer = self.call_of(n, &nothing, slopes.as_deref());
            of_layer.cross = Call { weights: wanted, ..of_layer.cross };
            let next = self.layers.get(n + 1).map_or(&[][..], DecoderLayer::panels);
            weights.push(layer.step(&mut x, step, &mut past[n], &memory[n], &of_layer, next)?);
        }
        if let Some(norm) = &self.norm {
            let mut normed = zeros(x.len())?;
            norm.forward(&x, &mut normed)?;
            x = normed;
        }
        Ok((x, weights))
    }

    /// The keys and values of a memory for every layer, (M, Hk, S, E) each; S is the extent with padding.
    ///
    /// # Errors
    /// `Memory`, `Interrupted`, `Internal`.
    pub fn memorize(&self, memory: Tokens<'_, T>, s: usize) -> Result<Vec<[Vec<T>; 2]>> {
        self.layers.iter().map(|layer| layer.memorize(memory, s)).collect()
    }
}
