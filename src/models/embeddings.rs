//! Ids to the rows that the encoder begins with.
//!
//! ```text
//! e[t] = word[id_t] + token_type[type_t] + position[p_t]       (T, D), then layer norm over D
//! ```

use crate::account::at;
use crate::error::{Error, Result};
use crate::kernels::gemm::OutRows;
use crate::kernels::norm::LayerNorm;
use crate::models::tensor_data::Table;
use crate::models::tokenizer::TokenIds;
use crate::ops::aligned::with_scratch;
use crate::ops::try_parallel;
use crate::simd::{Float, active};

/// Rows of a task: their sums stay in the first caches until they are normalized.
const BLOCK_ROWS: usize = 64;

/// The tables that turn ids into rows, and the parameters of the norm that follows.
#[derive(Debug, Clone)]
pub struct Embeddings<T> {
    /// (vocabulary, D).
    pub word: Table<T>,
    /// (longest sequence, D).
    pub position: Table<T>,
    /// (types, D).
    pub token_type: Table<T>,
    /// (D).
    pub norm_weight: Vec<T>,
    /// (D).
    pub norm_bias: Vec<T>,
    /// The norm's epsilon.
    pub eps: f64,
    /// D.
    pub d: usize,
}

impl<T: Float> Embeddings<T> {
    /// Rows of the position table: the longest sequence.
    pub fn max_positions(&self) -> usize {
        self.position.len() / self.d
    }

    /// Writes the rows that the encoder begins with to out (T, D): the normalized sums of [`Embeddings::sum_rows`].
    ///
    /// # Errors
    /// As [`Embeddings::sum_rows`]; `Memory`, `Interrupted`.
    pub fn rows(&self, tokens: &TokenIds, positions: &[u32], out: &mut [T]) -> Result<()> {
        let d = self.d;
        assert_eq!(out.len(), tokens.ids.len() * d, "out is (T, D)");
        let (isa, count) = (active()?, tokens.ids.len());
        let shared = OutRows::new(out);
        try_parallel(count.div_ceil(BLOCK_ROWS), |block| {
            let at = block * BLOCK_ROWS..count.min((block + 1) * BLOCK_ROWS);
            let tokens = TokenIds {
                ids: tokens.ids[at.clone()].to_vec(),
                type_ids: tokens.type_ids[at.clone()].to_vec(),
            };
            with_scratch(at.len() * d, |sums: &mut [T]| {
                self.sum_rows(&tokens, &positions[at.clone()], sums)?;
                // SAFETY: each block has rows of its own.
                let out = unsafe { shared.slice(at.start * d, at.len() * d) };
                let (weight, bias) = (Some(&self.norm_weight[..]), Some(&self.norm_bias[..]));
                T::dispatch(
                    isa,
                    LayerNorm { x: sums, out, width: d, weight, bias, eps: T::from_f64(self.eps) },
                );
                Ok(())
            })
        })
    }

    /// Writes word + token type + position of each token to out (T, D).
    ///
    /// # Errors
    /// `Value` where an id, a type or a position is outside its table.
    ///
    /// # Panics
    /// If the lengths of `tokens`, `positions` and `out` do not fit.
    pub fn sum_rows(&self, tokens: &TokenIds, positions: &[u32], out: &mut [T]) -> Result<()> {
        at!(Embedding);
        let d = self.d;
        assert_eq!(tokens.type_ids.len(), tokens.ids.len(), "one type for each id");
        assert_eq!(positions.len(), tokens.ids.len(), "one position for each id");
        assert_eq!(out.len(), tokens.ids.len() * d, "out is (T, D)");
        for (t, row) in out.chunks_exact_mut(d).enumerate() {
            let word = lookup(&self.word, d, tokens.ids[t], "input_ids")?;
            let kind = lookup(&self.token_type, d, tokens.type_ids[t], "token_type_ids")?;
            let position = lookup(&self.position, d, positions[t], "positions")?;
            for (i, v) in row.iter_mut().enumerate() {
                *v = word[i] + kind[i] + position[i];
            }
        }
        Ok(())
    }
}

/// Row `index` of a table (rows, D).
fn lookup<'a, T>(table: &'a [T], d: usize, index: u32, argument: &str) -> Result<&'a [T]> {
    let start = index as usize * d;
    table.get(start..start + d).ok_or_else(|| {
        Error::Value(format!("{argument}: expected numbers below {}, got {index}", table.len() / d))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::models::bert::BertTensors;
    use crate::models::bert::tests::{open, write_small_weights};

    #[test]
    fn sums_of_rows_and_indices_outside() {
        let dir = tempfile::tempdir().unwrap();
        write_small_weights(dir.path(), str::to_string);
        let (file, config) = open(dir.path());
        let tables = BertTensors::new(&file, &config).embeddings::<f64>().unwrap();
        assert_eq!(tables.max_positions(), 8);
        let mut out = vec![0.0; 8];
        let tokens = TokenIds { ids: vec![10, 0], type_ids: vec![1, 0] };
        tables.sum_rows(&tokens, &[7, 3], &mut out).unwrap();
        for i in 0..4 {
            assert!(
                (out[i] - (tables.word[40 + i] + tables.token_type[4 + i] + tables.position[28 + i])).abs()
                    < 1e-15
            );
            assert!(
                (out[4 + i] - (tables.word[i] + tables.token_type[i] + tables.position[12 + i])).abs()
                    < 1e-15
            );
        }
        for (id, kind, position, name) in [
            (11, 0, 0, "input_ids"),
            (0, 2, 0, "token_type_ids"),
            (0, 0, 8, "positions"),
            (u32::MAX, 0, 0, "input_ids"),
        ] {
            let tokens = TokenIds { ids: vec![id], type_ids: vec![kind] };
            let got = tables.sum_rows(&tokens, &[position], &mut out[..4]);
            assert!(matches!(got, Err(Error::Value(text)) if text.starts_with(name)), "{name}");
        }
    }
}
