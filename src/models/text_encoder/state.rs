//! The parameters of a text encoder by the names that BERT's checkpoints give them, out and back in.
//!
//! ```text
//! encoder.layer.N.attention.self.query.weight      layers.N.self_attn: its part of in_proj_weight
//! encoder.layer.N.attention.output.dense.weight    layers.N.self_attn.out_proj.weight
//! encoder.layer.N.intermediate.dense.weight        layers.N.linear1.weight        ... and so on
//! ```

use std::sync::Arc;

use super::{Network, TextEncoder};
use crate::error::{Error, Result};
use crate::models::embeddings::Embeddings;
use crate::models::tensor_data::Table;
use crate::nn::state::{Loader, Module, State, Tensor, short_name};
use crate::simd::Float;

/// Parts of a layer: BERT's name, and that of [`EncoderLayer`](crate::nn::encoder_layer::EncoderLayer).
const PARTS: [(&str, &str); 5] = [
    ("attention.output.dense", "self_attn.out_proj"),
    ("attention.output.LayerNorm", "norm1"),
    ("intermediate.dense", "linear1"),
    ("output.dense", "linear2"),
    ("output.LayerNorm", "norm2"),
];

/// The three projections that torch's layers stack: BERT's name, and that of the loader's separate form.
const PROJECTIONS: [(&str, &str); 3] = [
    ("attention.self.query", "self_attn.q_proj"),
    ("attention.self.key", "self_attn.k_proj"),
    ("attention.self.value", "self_attn.v_proj"),
];

/// Parameters, or gradients, of an encoder whose first layer is layer `first` of the model, under BERT's names.
pub(super) fn bert_names<T: Copy>(state: State<T>, first: usize) -> State<T> {
    let mut named = Vec::with_capacity(state.len());
    for (name, tensor) in state {
        let (n, rest) = layer_of(&name);
        let prefix = format!("encoder.layer.{}.", first + n);
        if let Some(kind) = rest.strip_prefix("self_attn.in_proj_") {
            let mut shape = tensor.shape.clone();
            shape[0] /= PROJECTIONS.len();
            let parts = tensor.data.chunks_exact(tensor.data.len() / PROJECTIONS.len());
            for ((bert, _), part) in PROJECTIONS.iter().zip(parts) {
                named.push((format!("{prefix}{bert}.{kind}"), Tensor::new(&shape, part.to_vec())));
            }
        } else {
            let found = PARTS.iter().find_map(|(bert, own)| Some((bert, rest.strip_prefix(own)?)));
            let (bert, kind) = found.expect("every part of a layer has a name");
            named.push((format!("{prefix}{bert}{kind}"), tensor));
        }
    }
    named
}

/// The number of the layer and what follows it, of a name like `layers.3.norm1.weight`.
fn layer_of(name: &str) -> (usize, &str) {
    let parts = name.strip_prefix("layers.").and_then(|rest| rest.split_once('.'));
    let (n, rest) = parts.expect("a parameter of a layer");
    (n.parse().expect("the number of a layer"), rest)
}

/// The name by which an encoder loads a parameter that BERT names so; itself where it is of no layer.
fn own_name(name: &str) -> String {
    let Some((n, rest)) = name.strip_prefix("encoder.layer.").and_then(|rest| rest.split_once('.')) else {
        return name.to_owned();
    };
    let mut parts = PROJECTIONS.iter().chain(&PARTS);
    let found = parts.find_map(|(bert, own)| Some((own, rest.strip_prefix(bert)?)));
    found.map_or_else(|| name.to_owned(), |(own, kind)| format!("layers.{n}.{own}{kind}"))
}

impl<T: Float> TextEncoder<T> {
    /// Copies of all parameters.
    ///
    /// # Errors
    /// `Memory`, `Interrupted`, `Internal`.
    pub fn state(&self) -> Result<State<T>> {
        let Network { embeddings: e, encoder, head, .. } = &*self.network;
        let mut state = Vec::new();
        for (name, table) in tables(e) {
            state.push((name.to_owned(), Tensor::new(&[table.len() / e.d, e.d], table.to_vec())));
        }
        for (name, numbers) in [(NORM[0], &e.norm_weight), (NORM[1], &e.norm_bias)] {
            state.push((name.to_owned(), Tensor::new(&[e.d], numbers.clone())));
        }
        state.extend(bert_names(encoder.state()?, 0));
        state.extend(head.state()?);
        Ok(state)
    }

    /// The same model with the parameters of a state; those missing stay, and share their memory with this one's.
    ///
    /// # Errors
    /// `Shape` where one has another shape; `Value` where `strict` and names are missing or unknown; `Memory`.
    pub fn with_state(&self, given: State<T>, strict: bool) -> Result<Self> {
        let Network { config, embeddings, encoder, head } = &*self.network;
        let given: State<T> =
            given.into_iter().map(|(name, tensor)| (own_name(short_name(&name)), tensor)).collect();
        let mut loader = Loader::new(given)?;
        let mut new = embeddings.clone();
        let d = embeddings.d;
        for (name, table) in tables_mut(&mut new) {
            if let Some(tensor) = loader.take(name, &[table.len() / d, d])? {
                *table = Table::Owned(tensor.data);
            }
        }
        for (name, numbers) in [(NORM[0], &mut new.norm_weight), (NORM[1], &mut new.norm_bias)] {
            if let Some(tensor) = loader.take(name, &[d])? {
                *numbers = tensor.data;
            }
        }
        let encoder = encoder.load("", &mut loader)?;
        let head = head.with_state(&mut loader)?;
        loader.finish(strict)?;
        let network = Network { config: config.clone(), head, embeddings: new, encoder };
        Ok(Self { network: Arc::new(network), tokenizer: self.tokenizer.clone() })
    }

    /// Checks that a layer is there from which gradients are wanted.
    ///
    /// # Errors
    /// `Value`.
    pub fn check_first_layer(&self, first: usize) -> Result<()> {
        let layers = self.network.encoder.layers.len();
        if first > layers {
            return Err(Error::Value(format!(
                "first_layer: expected at most {layers}, the number of layers, got {first}"
            )));
        }
        Ok(())
    }
}

/// Names of the parameters of the norm behind the tables.
pub(super) const NORM: [&str; 2] = ["embeddings.LayerNorm.weight", "embeddings.LayerNorm.bias"];

/// Names of the tables: of words, positions and token types.
pub(super) const TABLES: [&str; 3] = [
    "embeddings.word_embeddings.weight",
    "embeddings.position_embeddings.weight",
    "embeddings.token_type_embeddings.weight",
];

/// The tables by name.
pub(super) fn tables<T>(e: &Embeddings<T>) -> [(&'static str, &Table<T>); 3] {
    [(TABLES[0], &e.word), (TABLES[1], &e.position), (TABLES[2], &e.token_type)]
}

fn tables_mut<T>(e: &mut Embeddings<T>) -> [(&'static str, &mut Table<T>); 3] {
    [(TABLES[0], &mut e.word), (TABLES[1], &mut e.position), (TABLES[2], &mut e.token_type)]
}
