//! Token ids of several texts, back to back: what the model computes in one go, without padding.

use crate::models::tokenizer::TokenIds;

/// Token ids of several texts, back to back.
#[derive(Debug, Clone, Default)]
pub struct Packed {
    /// Ids and types of all tokens, T each.
    pub tokens: TokenIds,
    /// The place of each token in its text, T.
    pub positions: Vec<u32>,
    /// Where each text begins, and the end of the last: B + 1 numbers.
    pub starts: Vec<usize>,
}

impl Packed {
    /// No text yet.
    pub fn new() -> Self {
        Self { starts: vec![0], ..Self::default() }
    }

    /// Adds a text whose tokens stand at 0, 1, 2, ...
    pub fn push(&mut self, text: &TokenIds) {
        self.tokens.ids.extend_from_slice(&text.ids);
        self.tokens.type_ids.extend_from_slice(&text.type_ids);
        self.positions.extend(0..text.ids.len() as u32);
        self.close();
    }

    /// Adds a token to a text that [`Packed::close`] will end.
    pub fn push_token(&mut self, id: u32, type_id: u32, position: u32) {
        self.tokens.ids.push(id);
        self.tokens.type_ids.push(type_id);
        self.positions.push(position);
    }

    /// Ends the text.
    pub fn close(&mut self) {
        self.starts.push(self.tokens.ids.len());
    }

    /// T, the rows of the batch.
    pub fn rows(&self) -> usize {
        self.tokens.ids.len()
    }
}
