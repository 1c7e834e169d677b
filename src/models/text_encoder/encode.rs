//! Lists of texts to embeddings: tokenized on all threads, sorted by length, cut into batches.
//!
//! ```text
//! tokens   = tokenizer(text) for each text, on all threads
//! order    = longest first                    tasks of one batch are then even
//! batches  = texts of about equal length      run, pool, put the rows back in the texts' own order
//! ```
//!
//! Rows are packed, so nothing is computed for padding, and the law of bits makes the cutting into batches invisible:
//! an embedding is a function of its text. Tokenizing and computing take turns rather than overlap: both use every
//! thread that the caller grants, so neither leaves a core idle for the other, and one thread stays one thread.
//!
//! Of many texts each thread takes whole batches from their ids to their embeddings, and waits for no other in between;
//! few texts are one batch after the other, each on all threads.

use std::cmp::Reverse;
use std::ops::Range;
use std::sync::OnceLock;

use super::{Packed, TextEncoder};
use crate::error::{Error, Result};
use crate::models::pooling::normalize_rows;
use crate::models::tokenizer::TokenIds;
use crate::ops::buffer::zeros;
use crate::ops::try_parallel;
use crate::simd::{self, Float};
use crate::threads::{checkpoint, team_size};

/// Rows after which a batch on all threads is closed: the widest activation, (rows, F), stays in the caches' reach (12 MB
/// for `MiniLM`), and more rows make no matrix product faster.
const BATCH_ROWS: usize = 2048;

/// Rows of a batch on one thread of several, at most and at least: enough that weights are used often once they are read.
const THREAD_ROWS: (usize, usize) = (1024, 256);

/// Parts of what is left, for each thread, that one batch takes: batches shrink towards the end, so that threads end at
/// about the same time.
const SHARES: usize = 4;

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
        let embed = |packed: &Packed| self.pooled(packed, &self.hidden(packed)?, call.skip);
        in_batches(&tokens, embed, |batch, pooled| {
            for (row, &i) in pooled.chunks_exact(d).zip(batch) {
                rows[i * width..(i + 1) * width].copy_from_slice(&row[..width]);
            }
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
        let both = |packed: &Packed| {
            let hidden = self.hidden(packed)?;
            let pooled = self.pooled(packed, &hidden, call.skip)?;
            Ok((hidden, pooled))
        };
        in_batches(&tokens, both, |batch, (hidden, pooled)| {
            let mut rest = hidden.as_slice();
            for (embedding, &i) in pooled.chunks_exact(d).zip(batch) {
                let (states, after) = rest.split_at(tokens[i].ids.len() * wide);
                found[i] = Some((states.to_vec(), embedding.to_vec()));
                rest = after;
            }
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
        let tokens = on_all_threads(texts, TEXTS_PER_TASK, |text| {
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
        on_all_threads(texts, TEXTS_PER_TASK, |text| self.tokenizer().length(text.text, text.pair))
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
}

/// Runs texts batch by batch; `take` gets the places of a batch's texts and what `compute` made of them.
fn in_batches<R: Send + Sync>(
    tokens: &[TokenIds],
    compute: impl Fn(&Packed) -> Result<R> + Sync,
    mut take: impl FnMut(&[usize], R),
) -> Result<()> {
    let mut order: Vec<usize> = (0..tokens.len()).collect();
    order.sort_by_key(|&i| Reverse(tokens[i].ids.len()));
    let lengths: Vec<usize> = order.iter().map(|&i| tokens[i].ids.len()).collect();
    let run = |batch: &Range<usize>| {
        let mut packed = Packed::new();
        for &i in &order[batch.clone()] {
            packed.push(&tokens[i]);
        }
        compute(&packed)
    };
    let (batches, side_by_side) = cut(&lengths, team_size());
    if side_by_side {
        let made = on_all_threads(&batches, 1, run)?;
        for (batch, made) in batches.into_iter().zip(made) {
            take(&order[batch], made);
        }
    } else {
        for batch in batches {
            let made = run(&batch)?;
            take(&order[batch], made);
        }
    }
    Ok(())
}

/// Cuts texts of these lengths into batches, and says whether each batch shall have a thread of its own.
fn cut(lengths: &[usize], team: usize) -> (Vec<Range<usize>>, bool) {
    let mut left: usize = lengths.iter().sum();
    let side_by_side = team > 1 && left > team * BATCH_ROWS;
    let (most, least) = THREAD_ROWS;
    let (mut batches, mut start) = (Vec::new(), 0);
    while start < lengths.len() {
        let rows = if side_by_side { (left / (SHARES * team)).clamp(least, most) } else { BATCH_ROWS };
        let (mut end, mut taken) = (start + 1, lengths[start]);
        while end < lengths.len() && taken + lengths[end] <= rows {
            taken += lengths[end];
            end += 1;
        }
        batches.push(start..end);
        (start, left) = (end, left - taken);
    }
    (batches, side_by_side)
}

/// `f` of each item, in their order; a task takes `of_task` items.
fn on_all_threads<I: Sync, R: Send + Sync>(
    items: &[I],
    of_task: usize,
    f: impl Fn(&I) -> Result<R> + Sync,
) -> Result<Vec<R>> {
    let parts: Vec<_> = items.chunks(of_task).map(|part| (part, OnceLock::new())).collect();
    try_parallel(parts.len(), |i| {
        let (part, place) = &parts[i];
        let found = part
            .iter()
            .map(|item| {
                checkpoint()?;
                f(item)
            })
            .collect::<Result<Vec<_>>>()?;
        // Each place has one task.
        place.set(found).map_err(|_| Error::Internal("a task ran twice".into()))
    })?;
    Ok(parts.into_iter().filter_map(|(_, place)| place.into_inner()).flatten().collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn batches_hold_every_text_once_and_shrink_for_several_threads() {
        let many: Vec<usize> = (0..2000).map(|i| 60 - i / 40).collect();
        for (lengths, team, apart) in [
            (&many[..], 1, false),
            (&many[..], 2, true),
            (&many[..], 4, true),
            (&many[..90], 2, true),
            (&many[..60], 2, false),
            (&[9000, 1][..], 1, false),
            (&[9000, 1][..], 2, true),
            (&[][..], 2, false),
        ] {
            let (batches, side_by_side) = cut(lengths, team);
            assert_eq!(side_by_side, apart, "{} texts, {team} threads", lengths.len());
            let ends: Vec<usize> = std::iter::once(0).chain(batches.iter().map(|b| b.end)).collect();
            assert!(batches.iter().zip(&ends).all(|(batch, &end)| batch.start == end && !batch.is_empty()));
            assert_eq!(ends.last(), Some(&lengths.len()));
            let rows: Vec<usize> = batches.into_iter().map(|b| lengths[b].iter().sum()).collect();
            let most = if apart { THREAD_ROWS.0 } else { BATCH_ROWS };
            assert!(rows.iter().all(|&n| n <= most || lengths.contains(&n)), "{rows:?}");
            if apart && rows.len() > 4 * team {
                assert!(rows[rows.len() - team..].iter().all(|&n| n <= THREAD_ROWS.1), "{rows:?}");
            }
        }
    }
}
