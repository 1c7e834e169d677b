//! Texts to embeddings: tokens, embedding tables, encoder, pooling, and unit length where the model wants it.
//!
//! ```text
//! ids     = tokenizer(text)                                     L numbers for each text, no padding
//! x       = layer_norm(word[ids] + token_type[types] + position[p])   (T, D), all texts of a batch back to back
//! y       = encoder(x)                                          (T, D), each text attends to itself only
//! out     = head(y), pooling and what modules.json puts behind it   (B, width)
//! ```
//!
//! `encode` cuts lists of texts into such batches; this file holds the model and what it does with one batch.

mod encode;
mod gradients;
mod load;
mod packed;
mod state;
#[cfg(test)]
mod tests;

use std::path::Path;
use std::sync::Arc;

use crate::error::{Error, Result};
use crate::models::checkpoint::Checkpoint;
use crate::models::config::BertConfig;
use crate::models::embeddings::Embeddings;
use crate::models::head::Head;
use crate::models::pooling::Pooling;
use crate::models::tensor_data::Access;
use crate::models::tokenizer::{Tokenizer, Tokens};
use crate::nn::attention::WantedHeads;
use crate::nn::encoder::{Encoder, StackCall, StackOutput};
use crate::nn::tokens::Layout;
use crate::ops::buffer::zeros;
use crate::simd::Float;
pub use encode::{EncodeCall, Encoded, Text, TextStates, TokenCount};
pub use gradients::{SavedTexts, TextGradients};
use load::load;
pub use packed::Packed;

/// What a caller may change of a model.
#[derive(Debug, Clone, Copy, Default)]
pub struct TextEncoderOptions {
    /// Tokens that a text may have; the model's own number where absent.
    pub max_length: Option<usize>,
    /// How token rows become one; the model's own way where absent.
    pub pooling: Option<Pooling>,
    /// Map the files of weights instead of reading them; nobody may cut them while the model lives.
    pub mmap: bool,
}

/// A sentence encoder in memory. It never changes; what differs in one setting shares the weights.
pub struct TextEncoder<T> {
    network: Arc<Network<T>>,
    tokenizer: Tokenizer,
}

/// What the texts' tokens go through.
struct Network<T> {
    config: BertConfig,
    head: Head<T>,
    embeddings: Embeddings<T>,
    encoder: Encoder<T>,
}

impl<T: Float> TextEncoder<T> {
    /// Loads the model in a folder.
    ///
    /// # Errors
    /// Those of [`Checkpoint::open`] and [`Checkpoint::tokenizer`]; `ModelFormat` for weights that cannot be read;
    /// `Value` for options that do not fit the model; `Memory`, `Interrupted`.
    pub fn open(folder: &Path, options: TextEncoderOptions) -> Result<Self> {
        let access = if options.mmap { Access::Mapped } else { Access::Read };
        let checkpoint = Checkpoint::open(folder, access)?;
        let (mut tokenizer, embeddings, encoder) = load(&checkpoint)?;
        let Checkpoint { config, modules, .. } = checkpoint;
        if let Some(max_length) = options.max_length {
            set_max_length(&mut tokenizer, max_length, &config)?;
        }
        let head = Head::load(&modules, options.pooling, config.hidden_size)?;
        Ok(Self { network: Arc::new(Network { config, head, embeddings, encoder }), tokenizer })
    }

    /// The same model for texts of up to `max_length` tokens. The weights are shared.
    ///
    /// # Errors
    /// `Value` for a length that does not fit the model.
    pub fn with_max_length(&self, max_length: usize) -> Result<Self> {
        let mut tokenizer = self.tokenizer.clone();
        set_max_length(&mut tokenizer, max_length, self.config())?;
        Ok(Self { network: Arc::clone(&self.network), tokenizer })
    }

    /// The architecture.
    pub fn config(&self) -> &BertConfig {
        &self.network.config
    }

    /// The width of an embedding.
    pub fn width(&self) -> usize {
        self.network.head.width()
    }

    /// Text to ids.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// Pooling and what follows it.
    pub fn head(&self) -> &Head<T> {
        &self.network.head
    }

    /// Whether the model itself brings embeddings to unit length.
    pub fn normalizes(&self) -> bool {
        self.network.head.normalizes()
    }

    /// The last hidden state (T, D) of packed texts.
    ///
    /// # Errors
    /// `Value` for ids, types or positions outside their tables, `Memory`, `Interrupted`.
    pub fn hidden(&self, texts: &Packed) -> Result<Vec<T>> {
        Ok(self.run(texts, &[])?.rows)
    }

    /// The embeddings (B, width) of packed texts whose last hidden states are `hidden` (T, D). The first `skip` tokens of
    /// each text are those of a prompt.
    fn pooled(&self, texts: &Packed, hidden: &[T], skip: usize) -> Result<Vec<T>> {
        self.network.head.embed(hidden, &texts.starts, skip)
    }

    /// The attention weights of every layer and head for one text or pair.
    ///
    /// # Errors
    /// As [`TextEncoder::encode`].
    pub fn attentions(&self, text: &str, pair: Option<&str>) -> Result<AttentionWeights<T>> {
        let tokens = self.tokenizer.encode(text, pair)?;
        let mut packed = Packed::new();
        packed.push(&tokens.ids);
        let all = vec![WantedHeads::All; self.config().num_hidden_layers];
        let weights = self.run(&packed, &all)?.weights.concat();
        Ok(AttentionWeights { tokens, weights })
    }

    fn run(&self, texts: &Packed, weights: &[WantedHeads<'_>]) -> Result<StackOutput<T>> {
        let mut x = zeros(texts.rows() * self.config().hidden_size)?;
        self.network.embeddings.rows(&texts.tokens, &texts.positions, &mut x)?;
        let layout = Layout::dense(texts.starts.windows(2).map(|w| w[1] - w[0]).collect());
        let call = StackCall {
            masks: &[],
            causal: false,
            window: (None, None),
            head_mask: None,
            weights,
            hidden_states: false,
            dropout: None,
        };
        self.network.encoder.forward(x, &layout, &call)
    }
}

/// Sets the length that texts are cut to, which the position table bounds.
fn set_max_length(tokenizer: &mut Tokenizer, max_length: usize, config: &BertConfig) -> Result<()> {
    if max_length > config.max_position_embeddings {
        return Err(Error::Value(format!(
            "max_length: expected at most {} (the model's positions), got {max_length}",
            config.max_position_embeddings
        )));
    }
    tokenizer.set_max_length(max_length)
}

/// Attention weights of one text or pair.
#[derive(Debug, Clone)]
pub struct AttentionWeights<T> {
    /// The tokens that the rows and columns belong to.
    pub tokens: Tokens,
    /// (layers, H, L, L).
    pub weights: Vec<T>,
}
