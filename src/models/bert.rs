//! A BERT checkpoint's tensors under the names that the layers know, and the embedding tables.
//!
//! ```text
//! e[t] = word[id_t] + token_type[type_t] + position[p_t]       (T, D), then layer norm over D
//! ```
//!
//! Hugging Face keeps query, key and value apart; torch's `nn.TransformerEncoder`, whose names the layers speak, stacks
//! them as rows of one matrix:
//!
//! ```text
//! encoder.layer.N.attention.self.{query, key, value}.weight   3 x (D, D)   layers.N.self_attn.in_proj_weight  (3D, D)
//! encoder.layer.N.attention.self.{query, key, value}.bias     3 x (D)      layers.N.self_attn.in_proj_bias    (3D)
//! encoder.layer.N.attention.output.dense.*                                 layers.N.self_attn.out_proj.*
//! encoder.layer.N.attention.output.LayerNorm.*                             layers.N.norm1.*
//! encoder.layer.N.intermediate.dense.*                        (F, D)       layers.N.linear1.*
//! encoder.layer.N.output.dense.*                              (D, F)       layers.N.linear2.*
//! encoder.layer.N.output.LayerNorm.*                                       layers.N.norm2.*
//! ```
//!
//! Tensors of the pooler, of heads and buffers such as `embeddings.position_ids` are not asked for.

use crate::account::at;
use crate::error::{Error, Result};
use crate::kernels::gemm::OutRows;
use crate::kernels::norm::LayerNorm;
use crate::models::config::BertConfig;
use crate::models::tensor_data::Table;
use crate::models::tokenizer::TokenIds;
use crate::models::weights::Weights;
use crate::nn::state::{State, Tensor};
use crate::ops::aligned::with_scratch;
use crate::ops::try_parallel;
use crate::simd::{Float, active};

/// The three projections that torch stacks.
const QKV: [&str; 3] = ["attention.self.query", "attention.self.key", "attention.self.value"];

/// The norms of a layer: their name and ours.
const NORMS: [(&str, &str); 2] = [("attention.output.LayerNorm", "norm1"), ("output.LayerNorm", "norm2")];

/// A BERT checkpoint's tensors, whatever prefix the file gives them.
#[derive(Debug, Clone, Copy)]
pub struct BertTensors<'a> {
    file: &'a Weights,
    config: &'a BertConfig,
    /// `bert.` where the file holds a model with a head on top, else empty.
    prefix: &'static str,
}

impl<'a> BertTensors<'a> {
    /// Finds the prefix of the names.
    pub fn new(file: &'a Weights, config: &'a BertConfig) -> Self {
        let prefix = if file.contains("bert.embeddings.word_embeddings.weight") { "bert." } else { "" };
        Self { file, config, prefix }
    }

    /// Compares every tensor that the config speaks of with the headers, before anything is read.
    ///
    /// # Errors
    /// `ModelFormat` where a tensor is absent, has another shape than the config says or holds no floats.
    pub fn check(&self) -> Result<()> {
        let d = self.config.hidden_size;
        let check = |name: String, shape: &[usize]| self.file.check(&format!("{}{name}", self.prefix), shape);
        for (part, rows) in self.tables() {
            check(format!("embeddings.{part}_embeddings.weight"), &[rows, d])?;
        }
        let norm = |name: String| self.norm_kinds(&name).map(|kind| format!("{name}.{kind}"));
        for name in norm("embeddings.LayerNorm".to_string()) {
            check(name, &[d])?;
        }
        // A config may tell of a billion layers: the first that is absent ends this.
        for n in 0..self.config.num_hidden_layers {
            let from = format!("encoder.layer.{n}");
            let qkv = QKV.map(|part| (part, [d, d]));
            let products = self.products().map(|(theirs, _, shape)| (theirs, shape));
            for (part, shape) in qkv.into_iter().chain(products) {
                check(format!("{from}.{part}.weight"), &shape)?;
                check(format!("{from}.{part}.bias"), &shape[..1])?;
            }
            for name in NORMS.map(|(theirs, _)| norm(format!("{from}.{theirs}"))).concat() {
                check(name, &[d])?;
            }
        }
        Ok(())
    }

    /// The encoder's parameters in torch's names, as `state_dict` would give them.
    ///
    /// # Errors
    /// As [`BertTensors::check`]; `ModelFormat` where a tensor cannot be read, `Memory`.
    pub fn encoder_state<T: Float>(&self) -> Result<State<T>> {
        let d = self.config.hidden_size;
        let mut state = State::new();
        for n in 0..self.config.num_hidden_layers {
            let from = format!("encoder.layer.{n}");
            let mut keep = |name: &str, tensor| state.push((format!("layers.{n}.{name}"), tensor));
            let qkv = QKV.map(|part| format!("{from}.{part}"));
            keep("self_attn.in_proj_weight", self.stacked(&qkv, "weight", &[d, d])?);
            keep("self_attn.in_proj_bias", self.stacked(&qkv, "bias", &[d])?);
            for (theirs, ours, shape) in self.products() {
                let name = [format!("{from}.{theirs}")];
                keep(&format!("{ours}.weight"), self.stacked(&name, "weight", &shape)?);
                keep(&format!("{ours}.bias"), self.stacked(&name, "bias", &shape[..1])?);
            }
            for (theirs, ours) in NORMS {
                let (weight, bias) = self.norm(&format!("{from}.{theirs}"))?;
                keep(&format!("{ours}.weight"), Tensor::new(&[d], weight));
                keep(&format!("{ours}.bias"), Tensor::new(&[d], bias));
            }
        }
        Ok(state)
    }

    /// The embedding tables and their norm.
    ///
    /// # Errors
    /// As [`BertTensors::encoder_state`].
    pub fn embeddings<T: Float>(&self) -> Result<Embeddings<T>> {
        let d = self.config.hidden_size;
        let table = |(part, rows)| {
            self.file.table(&format!("{}embeddings.{part}_embeddings.weight", self.prefix), &[rows, d])
        };
        let [word, position, token_type] = self.tables().map(table);
        let (norm_weight, norm_bias) = self.norm("embeddings.LayerNorm")?;
        Ok(Embeddings {
            word: word?,
            position: position?,
            token_type: token_type?,
            norm_weight,
            norm_bias,
            eps: self.config.layer_norm_eps,
            d,
        })
    }

    /// The embedding tables and their rows.
    fn tables(&self) -> [(&'static str, usize); 3] {
        let c = self.config;
        [("word", c.vocab_size), ("position", c.max_position_embeddings), ("token_type", c.type_vocab_size)]
    }

    /// The products of a layer beside query, key and value: their name, ours, and the shape of the weight.
    fn products(&self) -> [(&'static str, &'static str, [usize; 2]); 3] {
        let (d, f) = (self.config.hidden_size, self.config.intermediate_size);
        [
            ("attention.output.dense", "self_attn.out_proj", [d, d]),
            ("intermediate.dense", "linear1", [f, d]),
            ("output.dense", "linear2", [d, f]),
        ]
    }

    fn read<T: Float>(&self, name: &str, shape: &[usize]) -> Result<Vec<T>> {
        self.file.read(&format!("{}{name}", self.prefix), shape)
    }

    /// Tensors `{name}.{kind}` of one shape, stacked along their first axis.
    fn stacked<T: Float>(&self, names: &[String], kind: &str, shape: &[usize]) -> Result<Tensor<T>> {
        let mut data = Vec::new();
        for name in names {
            self.file.append(&format!("{}{name}.{kind}", self.prefix), shape, &mut data)?;
        }
        let mut stacked = shape.to_vec();
        stacked[0] *= names.len();
        Ok(Tensor::new(&stacked, data))
    }

    /// What the parameters of a norm are called; checkpoints converted from TensorFlow have gamma and beta.
    fn norm_kinds(&self, name: &str) -> [&'static str; 2] {
        let old = self.file.contains(&format!("{}{name}.gamma", self.prefix));
        if old { ["gamma", "beta"] } else { ["weight", "bias"] }
    }

    /// Weight and bias of a norm.
    fn norm<T: Float>(&self, name: &str) -> Result<(Vec<T>, Vec<T>)> {
        let [weight, bias] = self.norm_kinds(name);
        let shape = [self.config.hidden_size];
        Ok((self.read(&format!("{name}.{weight}"), &shape)?, self.read(&format!("{name}.{bias}"), &shape)?))
    }
}

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
pub(crate) mod tests {
    use super::*;
    use crate::models::folder::Folder;
    use crate::models::tensor_data::Access;
    use safetensors::Dtype;
    use safetensors::tensor::TensorView;
    use serde_json::{Value, json};
    use std::path::Path;

    /// The config of a BERT small enough to write into a test's folder; the vocabulary is the small tokenizer's.
    pub(crate) fn small_config() -> Value {
        json!({"model_type": "bert", "hidden_size": 4, "num_hidden_layers": 2, "num_attention_heads": 2,
               "intermediate_size": 6, "vocab_size": 11, "max_position_embeddings": 8, "type_vocab_size": 2})
    }

    /// Names and shapes of that model's tensors.
    fn small_shapes() -> Vec<(String, Vec<usize>)> {
        let (d, f) = (4, 6);
        let mut shapes = vec![
            ("embeddings.word_embeddings.weight".to_string(), vec![11, d]),
            ("embeddings.position_embeddings.weight".to_string(), vec![8, d]),
            ("embeddings.token_type_embeddings.weight".to_string(), vec![2, d]),
            ("embeddings.LayerNorm.weight".to_string(), vec![d]),
            ("embeddings.LayerNorm.bias".to_string(), vec![d]),
        ];
        for n in 0..2 {
            for (part, shape) in [
                ("attention.self.query", vec![d, d]),
                ("attention.self.key", vec![d, d]),
                ("attention.self.value", vec![d, d]),
                ("attention.output.dense", vec![d, d]),
                ("attention.output.LayerNorm", vec![d]),
                ("intermediate.dense", vec![f, d]),
                ("output.dense", vec![d, f]),
                ("output.LayerNorm", vec![d]),
            ] {
                shapes.push((format!("encoder.layer.{n}.{part}.weight"), shape.clone()));
                shapes.push((format!("encoder.layer.{n}.{part}.bias"), shape[..1].to_vec()));
            }
        }
        shapes
    }

    /// Writes the small model's tensors, numbers without a pattern in -0.5..0.5. `rename` may change names.
    pub(crate) fn write_small_weights(dir: &Path, rename: impl Fn(&str) -> String) {
        let tensors: Vec<(String, Vec<usize>, Vec<u8>)> = small_shapes()
            .into_iter()
            .enumerate()
            .map(|(k, (name, shape))| {
                let count: usize = shape.iter().product();
                let number = |i| ((k * 7919 + i * 104_729 + 37) % 1009) as f32 / 1009.0 - 0.5;
                let data = (0..count).flat_map(|i| number(i).to_le_bytes()).collect();
                (rename(&name), shape, data)
            })
            .chain([("embeddings.position_ids".to_string(), vec![1, 8], vec![0; 32])])
            .collect();
        let views = tensors.iter().map(|(name, shape, data)| {
            (name.as_str(), TensorView::new(Dtype::F32, shape.clone(), data).unwrap())
        });
        safetensors::serialize_to_file(views, None, &dir.join("model.safetensors")).unwrap();
    }

    fn open(dir: &Path) -> (Weights, BertConfig) {
        let folder = Folder::open(dir).unwrap();
        (
            Weights::open(&folder, Access::Read).unwrap(),
            BertConfig::from_json(&small_config(), "config.json").unwrap(),
        )
    }

    #[test]
    fn names_of_torch_with_and_without_prefix() {
        let plain = tempfile::tempdir().unwrap();
        write_small_weights(plain.path(), str::to_string);
        let (file, config) = open(plain.path());
        let want = BertTensors::new(&file, &config).encoder_state::<f32>().unwrap();
        assert_eq!(want.len(), 2 * 12);
        let named = |name: &str| &want.iter().find(|(n, _)| n == name).unwrap().1;
        assert_eq!(named("layers.1.self_attn.in_proj_weight").shape, [12, 4]);
        assert_eq!(named("layers.1.self_attn.in_proj_bias").shape, [12]);
        assert_eq!(named("layers.0.linear1.weight").shape, [6, 4]);
        let stack = &named("layers.0.self_attn.in_proj_weight").data;
        let [query, key, value] = ["query", "key", "value"].map(|p| {
            file.read::<f32>(&format!("encoder.layer.0.attention.self.{p}.weight"), &[4, 4]).unwrap()
        });
        assert_eq!([&stack[..16], &stack[16..32], &stack[32..]], [&query[..], &key[..], &value[..]]);
        let norm1: Vec<f32> = file.read("encoder.layer.1.attention.output.LayerNorm.weight", &[4]).unwrap();
        assert_eq!(named("layers.1.norm1.weight").data, norm1);

        let other = tempfile::tempdir().unwrap();
        write_small_weights(other.path(), |name| {
            let name = if name.contains("LayerNorm") {
                name.replace("weight", "gamma").replace("bias", "beta")
            } else {
                name.to_string()
            };
            format!("bert.{name}")
        });
        let (file, config) = open(other.path());
        assert_eq!(BertTensors::new(&file, &config).encoder_state::<f32>().unwrap(), want);
    }

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

    #[test]
    fn a_config_that_lies() {
        let dir = tempfile::tempdir().unwrap();
        write_small_weights(dir.path(), str::to_string);
        let (file, mut config) = open(dir.path());
        BertTensors::new(&file, &config).check().unwrap();
        config.intermediate_size = 7;
        let Err(Error::ModelFormat(text)) = BertTensors::new(&file, &config).check() else { panic!() };
        assert!(text.contains("encoder.layer.0.intermediate.dense.weight"), "{text}");
        assert!(text.contains("[7, 4]") && text.contains("[6, 4]"), "{text}");
        assert!(BertTensors::new(&file, &config).encoder_state::<f32>().is_err());
        config.intermediate_size = 6;
        config.num_hidden_layers = 1_000_000_000;
        let Err(Error::ModelFormat(text)) = BertTensors::new(&file, &config).check() else { panic!() };
        assert!(text.contains("encoder.layer.2."), "{text}");
    }
}
