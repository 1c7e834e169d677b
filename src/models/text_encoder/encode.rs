//! Lists of texts to embeddings: tokenized on all threads, sorted by length, cut into batches.
//!
//! ```text
//! tokens   = tokenizer(text) for each text, on all threads
//! order    = longest first                    tasks of one batch are then even
//! batch    = texts until their tokens are 2048 rows; run, pool, put the rows back in the texts' own order
//! ```
//!
//! Rows are packed, so nothing is computed for padding, and the law of bits makes the cutting into batches invisible:
//! an embedding is a function of its text. Tokenizing and computing take turns rather than overlap: both use every
//! thread that the caller grants, so neither leaves a core idle for the other, and one thread stays one thread.

use std::cmp::Reverse;
use std::sync::OnceLock;

use super::{Packed, TextEncoder};
use crate::error::{Error, Result};
use crate::models::pooling::normalize_rows;
use crate::models::tokenizer::TokenIds;
use crate::ops::buffer::zeros;
use crate::ops::try_parallel;
use crate::simd::{self, Float};
use crate::threads::checkpoint;

/// Rows after which a batch is closed: the widest activation, (rows, F), stays in the caches' reach (12 MB for
/// `MiniLM`), and more rows make no matrix product faster.
const BATCH_ROWS: usize = 2048;

/// Texts that one task tokenizes, some 300 microseconds of work: far more than it costs to wake a thread.
const TEXTS_PER_TASK: usize = 16;

/// A text, or a pair of texts that the model reads as one.
#[derive(Debug, Clone, Copy)]
pub struct Text<'a> {
    /// The text, or the first of two.
    pub text: &'a str,
    /// The second text.
    pub pair: Option<&'a str>,
}

impl<'a> From<&'a str> for Text<'a> {
    fn from(text: &'a str) -> Self {
        Self { text, pair: None }
    }
}

/// What is wanted of embeddings.
#[derive(Debug, Clone, Copy, Default)]
pub struct EncodeCall {
    /// Tokens at the start of each text that the pooling leaves out: those of a prompt.
    pub skip: usize,
    /// Columns to keep; all where absent or too many.
    pub truncate_dim: Option<usize>,
    /// Bring rows to unit length after that, even if the model does not.
    pub normalize: bool,
}

/// Tokens of one text, special ones included.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TokenCount {
    /// What was computed with.
    pub used: usize,
    /// Whether the text has more; [`TextEncoder::lengths`] says how many.
    pub cut: bool,
}

/// Embeddings of a list of texts.
#[derive(Debug, Clone)]
pub struct Encoded<T> {
    /// (B, `width`), in the order of the texts.
    pub rows: Vec<T>,
    /// Columns that were kept.
    pub width: usize,
    /// One for each text.
    pub counts: Vec<TokenCount>,
}

/// Everything about one text.
#[derive(Debug, Clone)]
pub struct TextStates<T> {
    /// Ids and types, L each.
    pub tokens: TokenIds,
    /// The last hidden state (L, D).
    pub states: Vec<T>,
    /// The embedding: pooled, of unit length if the model makes it so.
    pub embedding: Vec<T>,
    /// How many tokens that is.
    pub count: TokenCount,
}

impl<T: Float> TextEncoder<T> {
    /// Embeds texts, in their order.
    ///
    /// # Errors
    /// `Tokenizer` for a text that cannot be tokenized, `Memory`, `Interrupted`.
    pub fn encode(&self, texts: &[Text<'_>], call: EncodeCall) -> Result<Encoded<T>> {
        let (tokens, counts) = self.tokenize(texts)?;
        let d = self.width();
        let width = call.truncate_dim.map_or(d, |n| n.min(d));
        let mut rows = zeros(texts.len() * width)?;
        self.in_batches(&tokens, |batch, packed, hidden| {
            let pooled = self.pooled(packed, &hidden, call.skip)?;
            for (row, &i) in pooled.chunks_exact(d).zip(batch) {
                rows[i * width..(i + 1) * width].copy_from_slice(&row[..width]);
            }
            Ok(())
        })?;
        // Rows that have unit length already keep their bits.
        if call.normalize && (width < d || !self.normalizes()) {
            normalize_rows(simd::active()?, &mut rows, width);
        }
        Ok(Encoded { rows, width, counts })
    }

    /// Tokens, last hidden states and embeddings of texts, in their order. Of `call` only `skip` counts.
    ///
    /// # Errors
    /// As [`TextEncoder::encode`].
    pub fn states(&self, texts: &[Text<'_>], call: EncodeCall) -> Result<Vec<TextStates<T>>> {
        let (tokens, counts) = self.tokenize(texts)?;
        let d = self.width();
        let wide = self.config().hidden_size;
        let mut found: Vec<Option<(Vec<T>, Vec<T>)>> = vec![None; texts.len()];
        self.in_batches(&tokens, |batch, packed, hidden| {
            let pooled = self.pooled(packed, &hidden, call.skip)?;
            for ((embedding, bounds), &i) in pooled.chunks_exact(d).zip(packed.starts.windows(2)).zip(batch) {
                found[i] = Some((hidden[bounds[0] * wide..bounds[1] * wide].to_vec(), embedding.to_vec()));
            }
            Ok(())
        })?;
        let whole = tokens.into_iter().zip(counts).zip(found);
        whole
            .map(|((tokens, count), found)| {
                let (states, embedding) =
                    found.ok_or_else(|| Error::Internal("a text in no batch".into()))?;
                Ok(TextStates { tokens, states, embedding, count })
            })
            .collect()
    }

    /// Token ids of texts, and how many each has.
    ///
    /// # Errors
    /// `Tokenizer`, `Value` for a pair that does not fit the length, `Interrupted`.
    pub fn tokenize(&self, texts: &[Text<'_>]) -> Result<(Vec<TokenIds>, Vec<TokenCount>)> {
        let tokens = on_all_threads(texts, |text| {
            let (tokens, cut) = self.tokenizer().ids_and_cut(text.text, text.pair)?;
            let used = tokens.ids.len();
            Ok((tokens, TokenCount { used, cut }))
        })?;
        Ok(tokens.into_iter().unzip())
    }

    /// How many tokens texts have before they are cut, special ones included.
    ///
    /// # Errors
    /// `Tokenizer`, `Interrupted`.
    pub fn lengths(&self, texts: &[Text<'_>]) -> Result<Vec<usize>> {
        on_all_threads(texts, |text| self.tokenizer().length(text.text, text.pair))
    }

    /// How many tokens a prompt puts before a text's own, a leading special token included.
    ///
    /// # Errors
    /// `Tokenizer` for a prompt that cannot be tokenized.
    pub fn prompt_length(&self, prompt: &str) -> Result<usize> {
        let tokens = self.tokenizer().encode(prompt, None)?;
        // The token that closes a text stands behind the text's own tokens.
        let closing = tokens.texts.last().is_some_and(Option::is_none);
        Ok(tokens.texts.len() - usize::from(closing))
    }

    /// Runs the texts batch by batch; `take` gets the places of a batch's texts, their tokens, and hidden states.
    fn in_batches(
        &self,
        tokens: &[TokenIds],
        mut take: impl FnMut(&[usize], &Packed, Vec<T>) -> Result<()>,
    ) -> Result<()> {
        let mut order: Vec<usize> = (0..tokens.len()).collect();
        order.sort_by_key(|&i| Reverse(tokens[i].ids.len()));
        let mut rest = order.as_slice();
        while !rest.is_empty() {
            let mut packed = Packed::new();
            let mut count = 0;
            for &i in rest {
                if count > 0 && packed.rows() + tokens[i].ids.len() > BATCH_ROWS {
                    break;
                }
                packed.push(&tokens[i]);
                count += 1;
            }
            let hidden = self.hidden(&packed)?;
            take(&rest[..count], &packed, hidden)?;
            rest = &rest[count..];
        }
        Ok(())
    }
}

/// `f` of each text, in their order.
fn on_all_threads<R: Send + Sync>(
    texts: &[Text<'_>],
    f: impl Fn(&Text<'_>) -> Result<R> + Sync,
) -> Result<Vec<R>> {
    let parts: Vec<_> = texts.chunks(TEXTS_PER_TASK).map(|part| (part, OnceLock::new())).collect();
    try_parallel(parts.len(), |i| {
        let (part, place) = &parts[i];
        let found = part
            .iter()
            .map(|text| {
                checkpoint()?;
                f(text)
            })
            .collect::<Result<Vec<_>>>()?;
        // Each place has one task.
        place.set(found).map_err(|_| Error::Internal("a task ran twice".into()))
    })?;
    Ok(parts.into_iter().filter_map(|(_, place)| place.into_inner()).flatten().collect())
}
