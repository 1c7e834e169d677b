//! A stack of decoder layers.

mod backward;
mod step;

pub use backward::{SavedDecoder, StackGradients};
pub use step::StepCall;

use super::attention::{Call, WantedHeads};
use super::decoder_layer::{DecoderLayer, LayerCall};
use super::dropout::site_key;
use super::encoder::{Positions, ROTARY_THETA, check_positions};
use super::encoder_layer::LayerConfig;
use super::init::Init;
use super::norm::Norm;
use super::residual::add;
use super::state::{Loader, Module, State, prefixed};
use super::tokens::{Layout, Tokens};
use crate::error::{Error, Result};
use crate::ops::alibi::alibi_slopes;
use crate::ops::buffer::zeros;
use crate::ops::masks::Element;
use crate::ops::positions::sinusoidal_rows;
use crate::simd::Float;

/// A stack with its parameters.
#[derive(Clone, Debug)]
pub struct Decoder<T> {
    /// The layers; pruning may have left them with different numbers of heads.
    pub layers: Vec<DecoderLayer<T>>,
    /// What each layer was made with.
    pub config: LayerConfig,
    /// How places are told, in self-attention.
    pub positions: Option<Positions>,
    norm: Option<Norm<T>>,
}

/// One of the two attentions of every layer, as a call has it.
#[derive(Clone, Copy, Debug)]
pub struct AttentionCall<'a, T> {
    /// What masks say of each sequence; empty for nothing.
    pub masks: &'a [Element<'a, T>],
    /// Whether a token sees only those before it.
    pub causal: bool,
    /// Tokens seen to the left and to the right.
    pub window: (Option<usize>, Option<usize>),
    /// Factor of each head, for each layer.
    pub head_mask: Option<&'a [Vec<T>]>,
    /// Which weights of each layer; empty for none.
    pub weights: &'a [WantedHeads<'a>],
}

impl<T> Default for AttentionCall<'_, T> {
    fn default() -> Self {
        Self { masks: &[], causal: false, window: (None, None), head_mask: None, weights: &[] }
    }
}

/// How a stack is called.
#[derive(Clone, Copy, Debug)]
pub struct DecoderCall<'a, T> {
    /// Self-attention.
    pub own: AttentionCall<'a, T>,
    /// Attention to the memory.
    pub cross: AttentionCall<'a, T>,
    /// Whether the states between layers are wanted.
    pub hidden_states: bool,
    /// Key of dropout in training.
    pub dropout: Option<u64>,
}

/// What a stack returns, all as rows without padding.
pub struct DecoderOutput<T> {
    /// (T, D)
    pub rows: Vec<T>,
    /// The input and the output of each layer, where wanted; the last with the final norm.
    pub hidden_states: Vec<Vec<T>>,
    /// Weights of each layer, of self-attention and of attention to the memory, (heads, L, S) of each sequence back to back.
    pub weights: [Vec<Vec<T>>; 2],
}

impl<T> AsRef<Decoder<T>> for Decoder<T> {
    fn as_ref(&self) -> &Self {
        self
    }
}

impl<T: Float> Decoder<T> {
    /// The same in another float type.
    ///
    /// # Errors
    /// As [`DecoderLayer::cast`].
    pub fn cast<U: Float>(&self) -> Result<Decoder<U>> {
        Ok(Decoder {
            layers: self.layers.iter().map(DecoderLayer::cast).collect::<Result<_>>()?,
            config: self.config.clone(),
            positions: self.positions,
            norm: self.norm.as_ref().map(Norm::cast),
        })
    }

    /// Parameters as torch begins with them.
    ///
    /// # Errors
    /// `Value` for rotary positions of an odd head width.
    pub fn new(
        num_layers: usize,
        config: LayerConfig,
        final_norm: bool,
        positions: Option<Positions>,
        init: &mut Init,
    ) -> Result<Self> {
        check_positions(positions, &config)?;
        let layers =
            (0..num_layers).map(|_| DecoderLayer::new(config.clone(), init)).collect::<Result<_>>()?;
        let norm = final_norm.then(|| {
            Norm::new(config.norm, config.attention.d_model, config.layer_norm_eps, config.attention.bias)
        });
        Ok(Self { layers, config, positions, norm })
    }

    /// Whether a norm follows the last layer.
    pub fn has_final_norm(&self) -> bool {
        self.norm.is_some()
    }

    /// Takes rows (T, D) through all layers, which attend to the rows of `memory`.
    ///
    /// # Errors
    /// `Memory`, `Interrupted`, `Internal`.
    pub fn forward(
        &self,
        rows: Vec<T>,
        layout: &Layout,
        memory: Tokens<'_, T>,
        call: &DecoderCall<'_, T>,
    ) -> Result<DecoderOutput<T>> {
        let mut x = rows;
        self.add_positions(&mut x, || layout.lengths.iter().flat_map(|&n| 0..n).collect())?;
        let mut output =
            DecoderOutput { rows: Vec::new(), hidden_states: Vec::new(), weights: [Vec::new(), Vec::new()] };
        for (n, layer) in self.layers.iter().enumerate() {
            if call.hidden_states {
                output.hidden_states.push(x.clone());
            }
            let slopes = self.slopes(layer)?;
            let of_layer = self.call_of(n, call, slopes.as_deref());
            let next = self.layers.get(n + 1).map_or(&[][..], DecoderLayer::panels);
            let weights = layer.forward(&mut x, layout, memory, &of_layer, next)?;
            output.weights.iter_mut().zip(weights).for_each(|(all, weights)| all.push(weights));
        }
        if let Some(norm) = &self.norm {
            let mut normed = zeros(x.len())?;
            norm.forward(&x, &mut normed)?;
            x = normed;
        }
        if call.hidden_states {
            output.hidden_states.push(x.clone());
        }
        output.rows = x;
        Ok(output)
    }

    /// Adds sines and cosines of the rows' places, where places are told so.
    fn add_positions(&self, x: &mut [T], places: impl FnOnce() -> Vec<usize>) -> Result<()> {
        if self.positions != Some(Positions::Sinusoidal) {
            return Ok(());
        }
        let waves = sinusoidal_rows(&places(), self.config.attention.d_model)?;
        add(x, &waves)
    }

    /// The slopes of a layer's heads, where places are told by them.
    fn slopes(&self, layer: &DecoderLayer<T>) -> Result<Option<Vec<T>>> {
        let [own, _] = layer.heads();
        (self.positions == Some(Positions::Alibi)).then(|| alibi_slopes::<T>(own.num_heads)).transpose()
    }

    /// How layer `n` is called.
    fn call_of<'a>(&self, n: usize, call: &DecoderCall<'a, T>, slopes: Option<&'a [T]>) -> LayerCall<'a, T> {
        let attention = |of: &AttentionCall<'a, T>| Call {
            masks: of.masks,
            causal: of.causal,
            window: of.window,
            head_mask: of.head_mask.map(|m| &m[n][..]),
            weights: of.weights.get(n).copied().unwrap_or(WantedHeads::None),
            ..Call::default()
        };
        let rotary = (self.positions == Some(Positions::Rotary)).then_some(ROTARY_THETA);
        LayerCall {
            own: Call { alibi: slopes, rotary, ..attention(&call.own) },
            cross: attention(&call.cross),
            dropout: call.dropout.map(|key| site_key(key, n, 9)),
        }
    }

    /// A stack without some heads of some layers: (layer, heads of self-attention, heads of attention to the memory).
    ///
    /// # Errors
    /// `Value` for a layer that is not there, and those of [`DecoderLayer::prune`].
    pub fn prune(&self, heads: &[(usize, Vec<usize>, Vec<usize>)]) -> Result<Self> {
        let mut pruned = self.clone();
        for (n, own, cross) in heads {
            let layer = pruned.layers.get(*n).ok_or_else(|| {
                Error::Value(format!("heads: expected layers below {}, got {n}", self.layers.len()))
            })?;
            pruned.layers[*n] = layer.prune(own, cross)?;
        }
        Ok(pruned)
    }
}

impl<T: Float> Module<T> for Decoder<T> {
    fn state(&self) -> Result<State<T>> {
        let mut state = Vec::new();
        for (n, layer) in self.layers.iter().enumerate() {
            state.extend(prefixed(&format!("layers.{n}."), layer.state()?));
        }
        if let Some(norm) = &self.norm {
            state.extend(prefixed("norm.", norm.state()?));
        }
        Ok(state)
    }

    fn num_parameters(&self) -> usize {
        let norm = self.norm.as_ref().map_or(0, Module::num_parameters);
        self.layers.iter().map(Module::num_parameters).sum::<usize>() + norm
    }

    fn load(&self, prefix: &str, loader: &mut Loader<T>) -> Result<Self> {
        let layers = self.layers.iter().enumerate();
        let layers =
            layers.map(|(n, l)| l.load(&format!("{prefix}layers.{n}."), loader)).collect::<Result<_>>()?;
        let norm = match &self.norm {
            Some(norm) => Some(norm.load(&format!("{prefix}norm."), loader)?),
            None => None,
        };
        Ok(Self { layers, norm, config: self.config.clone(), positions: self.positions })
    }
}
