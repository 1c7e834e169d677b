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

    /// A number by which a cache knows the parameters that its keys were made with: no proof, but what training or another
    /// model changes is seen, at no cost.
    pub fn mark(&self) -> u64 {
        let weights = self.layers.iter().flat_map(DecoderLayer::first_weights);
        // FNV-1a over words.
        weights.fold(0xcbf2_9ce4_8422_2325, |hash, w| {
            (hash ^ w.to_f64().to_bits()).wrapping_mul(0x100_0000_01b3)
        })
    }

    /// The keys and values of a memory for every layer, (M, Hk, S, E) each; S is the extent with padding.
    ///
    /// # Errors
    /// `Memory`, `Interrupted`, `Internal`.
    pub fn memorize(&self, memory: Tokens<'_, T>, s: usize) -> Result<Vec<[Vec<T>; 2]>> {
        self.layers.iter().map(|layer| layer.memorize(memory, s)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::activation::Activation;
    use crate::kernels::testing::{assert_same_bits, normals};
    use crate::nn::attention::AttentionConfig;
    use crate::nn::encoder::Positions;
    use crate::nn::encoder_layer::LayerConfig;
    use crate::nn::init::Init;
    use crate::nn::norm::NormKind;
    use crate::nn::tokens::Layout;

    const D: usize = 16;
    const LAYERS: usize = 2;

    fn stack(positions: Option<Positions>, norm_first: bool) -> Decoder<f32> {
        let attention = AttentionConfig::new(D, 4, Some(2), None, (None, None), true, 0.0).unwrap();
        let config = LayerConfig {
            attention,
            d_ff: 24,
            activation: Activation::Gelu,
            norm: NormKind::Layer,
            norm_first,
            layer_norm_eps: 1e-5,
            gated: false,
        };
        Decoder::new(LAYERS, config, norm_first, positions, &mut Init::new(1)).unwrap()
    }

    /// The rows of all steps, those of each sequence together; `sizes` are the steps' new tokens of each sequence.
    fn in_steps(
        stack: &Decoder<f32>,
        rows: [&[f32]; 2],
        sizes: &[[usize; 2]],
        memory: Tokens<'_, f32>,
    ) -> [Vec<f32>; 2] {
        let capacity = 150;
        let head = 2 * 2 * capacity * 4;
        let mut kept = vec![[vec![f32::NAN; head], vec![f32::NAN; head]]; LAYERS];
        let of_memory = stack.memorize(memory, 5).unwrap();
        let memories: Vec<_> = of_memory
            .iter()
            .map(|[keys, values]| Memory { keys, values, len: 5, rows: &[0, 1], key_mask: Some(&MASK) })
            .collect();
        let mut out = [Vec::new(), Vec::new()];
        let mut held = vec![0, 0];
        for size in sizes {
            let new: Vec<f32> =
                (0..2).flat_map(|b| &rows[b][held[b] * D..(held[b] + size[b]) * D]).copied().collect();
            let step =
                Step { layout: Layout::dense(size.to_vec()), held: held.clone(), gone: 0, window: None };
            let mut past: Vec<_> =
                kept.iter_mut().map(|[keys, values]| Past { keys, values, capacity }).collect();
            let call = StepCall { step: &step, past: &mut past, memory: &memories, need_weights: false };
            let (made, _) = stack.step(new, call).unwrap();
            out[0].extend_from_slice(&made[..size[0] * D]);
            out[1].extend_from_slice(&made[size[0] * D..]);
            held.iter_mut().zip(size).for_each(|(held, n)| *held += n);
        }
        out
    }

    /// The memory's second sequence has three tokens, of which the last two are no neighbours.
    const MASK: [bool; 10] = [true, true, true, true, true, true, false, true, false, true];

    #[test]
    fn steps_give_the_bits_of_the_whole() {
        let lengths = [140, 70];
        let rows = [normals(lengths[0] * D, 2, 1.0), normals(lengths[1] * D, 3, 1.0)];
        let layout = Layout::padded(2, 5, Some(&MASK));
        let memory_rows = normals(layout.total() * D, 4, 1.0);
        let memory = Tokens { rows: &memory_rows, layout: &layout };
        // One by one over the edge of a tile, then in pieces; the second sequence pauses and ends before the first.
        let mut sizes = vec![[1, 1]; 66];
        sizes.extend([[5, 0], [0, 3], [60, 1], [9, 0]]);
        for positions in [None, Some(Positions::Sinusoidal), Some(Positions::Rotary), Some(Positions::Alibi)]
        {
            for norm_first in [false, true] {
                let stack = stack(positions, norm_first);
                let own = AttentionCall { causal: true, ..AttentionCall::default() };
                let call =
                    DecoderCall { own, cross: AttentionCall::default(), hidden_states: false, dropout: None };
                let whole =
                    stack.forward(rows.concat(), &Layout::dense(lengths.to_vec()), memory, &call).unwrap();
                let steps = in_steps(&stack, [&rows[0], &rows[1]], &sizes, memory);
                assert_same_bits(&steps.concat(), &whole.rows);
            }
        }
    }
}
