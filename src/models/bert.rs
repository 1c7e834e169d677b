//! A BERT checkpoint's tensors: what they are called, what shapes they must have, and the layers made of them.
//!
//! ```text
//! embeddings.{word, position, token_type}_embeddings.weight   (rows, D)
//! embeddings.LayerNorm.*                                      (D)
//! encoder.layer.N.attention.self.{query, key, value}.*        (D, D)   q, k, v
//! encoder.layer.N.attention.output.dense.*                    (D, D)   out
//! encoder.layer.N.attention.output.LayerNorm.*                (D)      norm1
//! encoder.layer.N.intermediate.dense.*                        (F, D)   up
//! encoder.layer.N.output.dense.*                              (D, F)   down
//! encoder.layer.N.output.LayerNorm.*                          (D)      norm2
//! ```
//!
//! Tensors of the pooler, of heads and buffers such as `embeddings.position_ids` are not asked for.

use crate::error::Result;
use crate::models::config::BertConfig;
use crate::models::embeddings::Embeddings;
use crate::models::weights::Weights;
use crate::nn::attention::{AttentionConfig, MultiHeadAttention};
use crate::nn::encoder::Encoder;
use crate::nn::encoder_layer::{EncoderLayer, LayerConfig};
use crate::nn::feed_forward::FeedForward;
use crate::nn::linear::Linear;
use crate::nn::norm::{Norm, NormKind};
use crate::simd::Float;

/// The norms of a layer, behind attention and behind the feed-forward part.
const NORMS: [&str; 2] = ["attention.output.LayerNorm", "output.LayerNorm"];

/// A linear map of a checkpoint: what its `weight` (N, K) and `bias` (N) are called without the file's prefix, and (N, K).
#[derive(Debug)]
pub struct BertMap {
    name: String,
    shape: (usize, usize),
}

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
            for (part, (rows, columns)) in self.parts() {
                check(format!("{from}.{part}.weight"), &[rows, columns])?;
                check(format!("{from}.{part}.bias"), &[rows])?;
            }
            for name in NORMS.map(|part| norm(format!("{from}.{part}"))).concat() {
                check(name, &[d])?;
            }
        }
        Ok(())
    }

    /// The linear maps of all layers, in the order in which [`BertTensors::encoder`] takes them.
    pub fn maps(&self) -> Vec<BertMap> {
        let layer = |n: usize| {
            let of_layer = move |(part, shape)| BertMap { name: format!("encoder.layer.{n}.{part}"), shape };
            self.parts().map(of_layer)
        };
        (0..self.config.num_hidden_layers).flat_map(layer).collect()
    }

    /// Reads and packs a linear map.
    ///
    /// # Errors
    /// As [`BertTensors::check`]; `ModelFormat` where a tensor cannot be read, `Memory`.
    pub fn map<T: Float>(&self, map: &BertMap) -> Result<Linear<T>> {
        let [weight, bias] = ["weight", "bias"].map(|kind| format!("{}{}.{kind}", self.prefix, map.name));
        self.file.linear(&weight, Some(&bias), map.shape)
    }

    /// The encoder, its norms behind the parts and none at the end, from the linear maps of [`BertTensors::maps`].
    ///
    /// # Errors
    /// As [`BertTensors::map`].
    ///
    /// # Panics
    /// If there is another number of maps.
    pub fn encoder<T: Float>(&self, maps: Vec<Linear<T>>) -> Result<Encoder<T>> {
        let c = self.config;
        let (d, h) = (c.hidden_size, c.num_attention_heads);
        let config = LayerConfig {
            attention: AttentionConfig::new(d, h, None, None, (None, None), true, 0.0)?,
            d_ff: c.intermediate_size,
            activation: c.hidden_act.activation(),
            norm: NormKind::Layer,
            norm_first: false,
            layer_norm_eps: c.layer_norm_eps,
            gated: false,
        };
        let mut maps = maps.into_iter();
        let mut next = || maps.next().expect("a map for each part");
        let mut layers = Vec::with_capacity(c.num_hidden_layers);
        for n in 0..c.num_hidden_layers {
            let attention =
                MultiHeadAttention::from_parts(config.attention.clone(), [next(), next(), next(), next()]);
            let feed_forward = FeedForward::from_parts(next(), next(), config.activation);
            let [norm1, norm2] = NORMS.map(|part| self.norm(&format!("encoder.layer.{n}.{part}")));
            let norms = [norm1?, norm2?].map(|(weight, bias)| {
                Norm::from_parts(config.norm, config.layer_norm_eps, weight, Some(bias))
            });
            layers.push(EncoderLayer::from_parts(config.clone(), attention, feed_forward, norms));
        }
        assert!(maps.next().is_none(), "a part for each map");
        Ok(Encoder::from_layers(config, layers))
    }

    /// The embedding tables and their norm.
    ///
    /// # Errors
    /// As [`BertTensors::map`].
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

    /// The linear maps of a layer and their shapes: q, k, v and out of attention, up and down behind it.
    fn parts(&self) -> [(&'static str, (usize, usize)); 6] {
        let (d, f) = (self.config.hidden_size, self.config.intermediate_size);
        [
            ("attention.self.query", (d, d)),
            ("attention.self.key", (d, d)),
            ("attention.self.value", (d, d)),
            ("attention.output.dense", (d, d)),
            ("intermediate.dense", (f, d)),
            ("output.dense", (d, f)),
        ]
    }

    fn read<T: Float>(&self, name: &str, shape: &[usize]) -> Result<Vec<T>> {
        self.file.read(&format!("{}{name}", self.prefix), shape)
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

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::error::Error;
    use crate::models::folder::Folder;
    use crate::models::tensor_data::Access;
    use crate::nn::state::{Module, State};
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

    /// The small model in a folder, its weights not read yet.
    pub(crate) fn open(dir: &Path) -> (Weights, BertConfig) {
        let folder = Folder::open(dir).unwrap();
        (
            Weights::open(&folder, Access::Read).unwrap(),
            BertConfig::from_json(&small_config(), "config.json").unwrap(),
        )
    }

    /// The parameters of the encoder in the layers' own names.
    fn state(file: &Weights, config: &BertConfig) -> Result<State<f32>> {
        let tensors = BertTensors::new(file, config);
        let maps = tensors.maps().iter().map(|map| tensors.map(map)).collect::<Result<_>>()?;
        tensors.encoder(maps)?.state()
    }

    #[test]
    fn names_of_torch_with_and_without_prefix() {
        let plain = tempfile::tempdir().unwrap();
        write_small_weights(plain.path(), str::to_string);
        let (file, config) = open(plain.path());
        let want = state(&file, &config).unwrap();
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
        assert_eq!(state(&file, &config).unwrap(), want);
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
        assert!(state(&file, &config).is_err());
        config.intermediate_size = 6;
        config.num_hidden_layers = 1_000_000_000;
        let Err(Error::ModelFormat(text)) = BertTensors::new(&file, &config).check() else { panic!() };
        assert!(text.contains("encoder.layer.2."), "{text}");
    }
}
