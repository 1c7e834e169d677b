//! The gradients of a text encoder: from embeddings back to every weight and to the rows that the first layer began with.
//!
//! All texts go through as one batch, since the gradients of parameters are sums over all its rows. Whoever trains only
//! the last layers says so: the layers before them run as in inference, and keep nothing.

use std::sync::Arc;

use super::state::{NORM, bert_names, tables};
use super::{Network, Packed, Text, TextEncoder};
use crate::error::Result;
use crate::models::head::SavedHead;
use crate::nn::embedding::table_gradient;
use crate::nn::encoder::{Encoder, SavedStack, StackCall};
use crate::nn::state::{State, Tensor};
use crate::nn::tokens::Layout;
use crate::ops::buffer::zeros;
use crate::ops::norm::layer_norm_rows_backward;
use crate::simd::Float;

/// What [`TextEncoder::vjp`] keeps.
pub struct SavedTexts<T: Float> {
    network: Arc<Network<T>>,
    texts: Packed,
    layout: Layout,
    /// The layers whose gradients are wanted.
    upper: Encoder<T>,
    first_layer: usize,
    stack: SavedStack<T>,
    /// The last hidden states.
    hidden: Vec<T>,
    head: SavedHead<T>,
}

/// Gradients of a text encoder.
pub struct TextGradients<T> {
    /// Of the rows that the first trained layer began with, (T, D).
    pub inputs: Vec<T>,
    /// Of the parameters, under the names of the state.
    pub parameters: State<T>,
}

impl<T: Float> TextEncoder<T> {
    /// The embeddings (B, width) of texts, in one batch, and what their gradients need. Layers below `first_layer` get none;
    /// neither do the tables then.
    ///
    /// # Errors
    /// As [`TextEncoder::encode`]; `Value` for a layer that is not there.
    pub fn vjp(
        &self,
        texts: &[Text<'_>],
        skip: usize,
        first_layer: usize,
    ) -> Result<(Vec<T>, SavedTexts<T>)> {
        self.check_first_layer(first_layer)?;
        let (tokens, _) = self.tokenize(texts)?;
        let mut packed = Packed::new();
        for text in &tokens {
            packed.push(text);
        }
        let Network { embeddings, encoder, head, .. } = &*self.network;
        let mut x = zeros(packed.rows() * embeddings.d)?;
        embeddings.rows(&packed.tokens, &packed.positions, &mut x)?;
        let layout = Layout::dense(packed.starts.windows(2).map(|w| w[1] - w[0]).collect());
        let (lower, upper) = encoder.layers.split_at(first_layer);
        let part = |layers: &[_]| Encoder::from_layers(encoder.config.clone(), layers.to_vec());
        let (lower, upper) = (part(lower), part(upper));
        if first_layer > 0 {
            x = lower.forward(x, &layout, &plain())?.rows;
        }
        let (hidden, stack) = upper.forward_saved(&x, &layout, &plain())?;
        let (embedded, head) = head.embed_saved(&hidden, &packed.starts, skip)?;
        let network = Arc::clone(&self.network);
        Ok((embedded, SavedTexts { network, texts: packed, layout, upper, first_layer, stack, hidden, head }))
    }
}

impl<T: Float> SavedTexts<T> {
    /// Tokens of each text.
    pub fn lengths(&self) -> &[usize] {
        &self.layout.lengths
    }

    /// From the gradient `d` (B, width) of the embeddings: all others.
    ///
    /// # Errors
    /// `Memory`, `Interrupted`, `Internal`.
    pub fn backward(&self, d: &[T]) -> Result<TextGradients<T>> {
        let (d_hidden, of_head) = self.network.head.backward(&self.hidden, &self.head, d)?;
        let of_stack = self.upper.backward(&self.layout, &plain(), &self.stack, &d_hidden)?;
        let (mut inputs, mut parameters) = (of_stack.x, State::new());
        if self.first_layer == 0 {
            (inputs, parameters) = self.of_tables(&inputs)?;
        }
        parameters.extend(bert_names(of_stack.parameters, self.first_layer));
        parameters.extend(of_head);
        Ok(TextGradients { inputs, parameters })
    }

    /// Back through the norm to the sums of the tables' rows, which are the input embeddings: their gradient, and those of the
    /// tables and the norm.
    fn of_tables(&self, d: &[T]) -> Result<(Vec<T>, State<T>)> {
        let e = &self.network.embeddings;
        let (mut sums, mut d_sums) = (zeros(d.len())?, zeros(d.len())?);
        e.sum_rows(&self.texts.tokens, &self.texts.positions, &mut sums)?;
        let (mut d_weight, mut d_bias) = (zeros(e.d)?, zeros(e.d)?);
        let (weight, eps) = (Some(&e.norm_weight[..]), T::from_f64(e.eps));
        let into = (Some(&mut d_weight[..]), Some(&mut d_bias[..]));
        layer_norm_rows_backward(&sums, d, e.d, weight, eps, &mut d_sums, into.0, into.1)?;
        let tokens = &self.texts.tokens;
        let ids = [&tokens.ids, &self.texts.positions, &tokens.type_ids];
        let mut parameters = State::new();
        for (ids, (name, table)) in ids.into_iter().zip(tables(e)) {
            let ids: Vec<usize> = ids.iter().map(|&id| id as usize).collect();
            let n = table.len() / e.d;
            let gradient = table_gradient(&ids, &d_sums, (n, e.d), None)?;
            parameters.push((name.to_owned(), Tensor::new(&[n, e.d], gradient)));
        }
        for (name, gradient) in NORM.into_iter().zip([d_weight, d_bias]) {
            parameters.push((name.to_owned(), Tensor::new(&[e.d], gradient)));
        }
        Ok((d_sums, parameters))
    }
}

/// The call of every text: each token sees all of its text.
fn plain<T>() -> StackCall<'static, T> {
    StackCall {
        masks: &[],
        causal: false,
        window: (None, None),
        head_mask: None,
        weights: &[],
        hidden_states: false,
        dropout: None,
    }
}
