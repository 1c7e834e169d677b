//! Texts to embeddings: tokens, embedding tables, encoder, pooling, and unit length where the model wants it.
//!
//! ```text
//! ids     = tokenizer(text)                                     L numbers for each text, no padding
//! x       = layer_norm(word[ids] + token_type[types] + position[p])   (T, D), all texts of a batch back to back
//! y       = encoder(x)                                          (T, D), each text attends to itself only
//! out     = pool(y), then x / max(|x|, 1e-12) if asked          (B, D)
//! ```
//!
//! Rows are packed, so nothing is computed for padding, and the law of bits makes the cutting into batches invisible:
//! texts are sorted by length (tasks of one batch are then even) and cut where a batch has enough rows to keep all
//! threads busy; an embedding is a function of its text.

use std::cmp::Reverse;
use std::path::Path;

use crate::error::{Error, Result};
use crate::models::bert::{BertTensors, Embeddings};
use crate::models::checkpoint::Checkpoint;
use crate::models::config::BertConfig;
use crate::models::head::Head;
use crate::models::pooling::{Pooling, normalize_rows};
use crate::models::tensor_data::Access;
use crate::models::tokenizer::{TokenIds, Tokenizer, Tokens};
use crate::nn::attention::{AttentionConfig, WantedHeads};
use crate::nn::encoder::{Encoder, StackCall, StackOutput};
use crate::nn::encoder_layer::LayerConfig;
use crate::nn::init::Init;
use crate::nn::norm::NormKind;
use crate::nn::state::{Loader, Module, State};
use crate::nn::tokens::Layout;
use crate::ops::buffer::zeros;
use crate::simd::{self, Float};
use crate::threads::checkpoint;

/// Rows after which a batch is closed: the widest activation, (rows, F), stays in the caches' reach (12 MB for
/// `MiniLM`), and more rows make no matrix product faster.
const BATCH_ROWS: usize = 2048;

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

/// A sentence encoder in memory.
pub struct TextEncoder<T> {
    config: BertConfig,
    tokenizer: Tokenizer,
    head: Head<T>,
    embeddings: Embeddings<T>,
    encoder: Encoder<T>,
}

impl<T: Float> TextEncoder<T> {
    /// Loads the model in a folder.
    ///
    /// # Errors
    /// Those of [`Checkpoint::open`]; `ModelFormat` for weights that do not fit the config; `Value` for options that
    /// do not fit the model.
    pub fn open(folder: &Path, options: TextEncoderOptions) -> Result<Self> {
        let access = if options.mmap { Access::Mapped } else { Access::Read };
        let Checkpoint { config, modules, mut tokenizer, tensors } = Checkpoint::open(folder, access)?;
        if let Some(max_length) = options.max_length {
            if max_length > config.max_position_embeddings {
                return Err(Error::Value(format!(
                    "max_length: expected at most {} (the model's positions), got {max_length}",
                    config.max_position_embeddings
                )));
            }
            tokenizer.set_max_length(max_length)?;
        }
        let head = Head::load(&modules, options.pooling, config.hidden_size)?;
        let tensors = BertTensors::new(&tensors, &config);
        let embeddings = tensors.embeddings()?;
        let encoder = build(&config, tensors.encoder_state()?)?;
        Ok(Self { config, tokenizer, head, embeddings, encoder })
    }

    /// The architecture.
    pub fn config(&self) -> &BertConfig {
        &self.config
    }

    /// Text to ids.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// Pooling and what follows it.
    pub fn head(&self) -> &Head<T> {
        &self.head
    }

    /// Embeds texts: (B, D), row-major. With `normalize` rows have unit length even if the model does not ask for it.
    ///
    /// # Errors
    /// `Tokenizer` for a text that cannot be tokenized, `Memory`, `Interrupted`.
    pub fn encode<S: AsRef<str>>(&self, texts: &[S], normalize: bool) -> Result<Vec<T>> {
        let d = self.head.width();
        let mut tokens = Vec::new();
        for text in texts {
            checkpoint()?;
            tokens.push(self.tokenizer.ids(text.as_ref())?);
        }
        let mut order: Vec<usize> = (0..texts.len()).collect();
        order.sort_by_key(|&i| Reverse(tokens[i].ids.len()));

        let mut out = zeros(texts.len() * d)?;
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
            let pooled = self.head.embed(&hidden, &packed.starts, 0)?;
            for (row, &i) in pooled.chunks_exact(d).zip(rest) {
                out[i * d..(i + 1) * d].copy_from_slice(row);
            }
            rest = &rest[count..];
        }
        if normalize && !self.head.normalizes() {
            normalize_rows(simd::active()?, &mut out, d);
        }
        Ok(out)
    }

    /// The last hidden state (T, D) of packed texts.
    ///
    /// # Errors
    /// `Value` for ids, types or positions outside their tables, `Memory`, `Interrupted`.
    pub fn hidden(&self, texts: &Packed) -> Result<Vec<T>> {
        Ok(self.run(texts, &[])?.rows)
    }

    /// The attention weights of every layer and head for one text or pair.
    ///
    /// # Errors
    /// As [`TextEncoder::encode`].
    pub fn attentions(&self, text: &str, pair: Option<&str>) -> Result<AttentionWeights<T>> {
        let tokens = self.tokenizer.encode(text, pair)?;
        let mut packed = Packed::new();
        packed.push(&tokens.ids);
        let all = vec![WantedHeads::All; self.config.num_hidden_layers];
        let weights = self.run(&packed, &all)?.weights.concat();
        Ok(AttentionWeights { tokens, weights })
    }

    fn run(&self, texts: &Packed, weights: &[WantedHeads<'_>]) -> Result<StackOutput<T>> {
        let mut x = zeros(texts.rows() * self.config.hidden_size)?;
        self.embeddings.rows(&texts.tokens, &texts.positions, &mut x)?;
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
        self.encoder.forward(x, &layout, &call)
    }
}

/// The encoder of a BERT: norms behind the parts, none at the end.
fn build<T: Float>(c: &BertConfig, state: State<T>) -> Result<Encoder<T>> {
    let layer = LayerConfig {
        attention: AttentionConfig::new(
            c.hidden_size,
            c.num_attention_heads,
            None,
            None,
            (None, None),
            true,
            0.0,
        )?,
        d_ff: c.intermediate_size,
        activation: c.hidden_act.activation(),
        norm: NormKind::Layer,
        norm_first: false,
        layer_norm_eps: c.layer_norm_eps,
        gated: false,
    };
    let mut loader = Loader::new(state)?;
    let encoder =
        Encoder::new(c.num_hidden_layers, layer, false, None, &mut Init::zeros())?.load("", &mut loader)?;
    loader.finish(true)?;
    Ok(encoder)
}

/// Attention weights of one text or pair.
#[derive(Debug, Clone)]
pub struct AttentionWeights<T> {
    /// The tokens that the rows and columns belong to.
    pub tokens: Tokens,
    /// (layers, H, L, L).
    pub weights: Vec<T>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::models::bert::tests::{small_config, write_small_weights};
    use crate::models::folder::Folder;
    use crate::models::safetensors::TensorFile;
    use crate::models::tokenizer::tests::small_file;
    use serde_json::Value;

    /// BERT in plain steps, in f64, from the file's own names: rows of one text (L, D) and the maps (layers, H, L, L).
    struct Naive {
        file: TensorFile,
        d: usize,
        heads: usize,
    }

    impl Naive {
        fn tensor(&self, name: &str) -> Vec<f64> {
            let shape = self.file.shape(name).unwrap().to_vec();
            self.file.read(name, &shape).unwrap()
        }

        fn linear(&self, x: &[Vec<f64>], name: &str) -> Vec<Vec<f64>> {
            let (weight, bias) =
                (self.tensor(&format!("{name}.weight")), self.tensor(&format!("{name}.bias")));
            let dot = |row: &[f64], w: &[f64]| row.iter().zip(w).map(|(a, b)| a * b).sum::<f64>();
            x.iter()
                .map(|row| weight.chunks(row.len()).zip(&bias).map(|(w, b)| dot(row, w) + b).collect())
                .collect()
        }

        fn norm(&self, x: &[Vec<f64>], name: &str) -> Vec<Vec<f64>> {
            let (weight, bias) =
                (self.tensor(&format!("{name}.weight")), self.tensor(&format!("{name}.bias")));
            x.iter()
                .map(|row| {
                    let n = row.len() as f64;
                    let mean = row.iter().sum::<f64>() / n;
                    let variance = row.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / n;
                    let scale = 1.0 / (variance + 1e-12).sqrt();
                    row.iter()
                        .zip(weight.iter().zip(&bias))
                        .map(|(v, (w, b))| (v - mean) * scale * w + b)
                        .collect()
                })
                .collect()
        }

        fn add(a: &[Vec<f64>], b: &[Vec<f64>]) -> Vec<Vec<f64>> {
            a.iter().zip(b).map(|(a, b)| a.iter().zip(b).map(|(x, y)| x + y).collect()).collect()
        }

        /// One head: the weights (L, L) and what they mix, as columns `at..at + e` of the result.
        fn attend(qkv: [&[Vec<f64>]; 3], at: usize, e: usize, mixed: &mut [Vec<f64>]) -> Vec<f64> {
            let [q, k, v] = qkv;
            let mut map = Vec::new();
            for (i, query) in q.iter().enumerate() {
                let score =
                    |key: &Vec<f64>| (at..at + e).map(|c| query[c] * key[c]).sum::<f64>() / (e as f64).sqrt();
                let powers: Vec<f64> = k.iter().map(|key| score(key).exp()).collect();
                let total: f64 = powers.iter().sum();
                for (p, value) in powers.iter().zip(v) {
                    for c in at..at + e {
                        mixed[i][c] += p / total * value[c];
                    }
                }
                map.extend(powers.iter().map(|p| p / total));
            }
            map
        }

        fn run(&self, tokens: &TokenIds) -> (Vec<Vec<f64>>, Vec<f64>) {
            let tables = ["word", "position", "token_type"]
                .map(|t| self.tensor(&format!("embeddings.{t}_embeddings.weight")));
            let mut x: Vec<Vec<f64>> = (0..tokens.ids.len())
                .map(|t| {
                    let rows = [tokens.ids[t] as usize, t, tokens.type_ids[t] as usize];
                    (0..self.d).map(|c| (0..3).map(|k| tables[k][rows[k] * self.d + c]).sum()).collect()
                })
                .collect();
            x = self.norm(&x, "embeddings.LayerNorm");
            let mut maps = Vec::new();
            for n in 0..2 {
                let layer = format!("encoder.layer.{n}");
                let [q, k, v] = ["query", "key", "value"]
                    .map(|p| self.linear(&x, &format!("{layer}.attention.self.{p}")));
                let mut mixed = vec![vec![0.0; self.d]; x.len()];
                let e = self.d / self.heads;
                for head in 0..self.heads {
                    maps.extend(Self::attend([&q, &k, &v], head * e, e, &mut mixed));
                }
                let attended = self.linear(&mixed, &format!("{layer}.attention.output.dense"));
                x = self.norm(&Self::add(&x, &attended), &format!("{layer}.attention.output.LayerNorm"));
                let mut inner = self.linear(&x, &format!("{layer}.intermediate.dense"));
                for v in inner.iter_mut().flatten() {
                    *v *= 0.5 * (1.0 + libm::erf(*v / std::f64::consts::SQRT_2));
                }
                let outer = self.linear(&inner, &format!("{layer}.output.dense"));
                x = self.norm(&Self::add(&x, &outer), &format!("{layer}.output.LayerNorm"));
            }
            (x, maps)
        }
    }

    fn folder() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        write_small_weights(dir.path(), str::to_string);
        for (name, json) in [("config.json", small_config()), ("tokenizer.json", small_file())] {
            std::fs::write(dir.path().join(name), json.to_string()).unwrap();
        }
        dir
    }

    fn naive(dir: &Path, config: &Value) -> Naive {
        Naive {
            file: TensorFile::open(&Folder::open(dir).unwrap(), "model.safetensors", Access::Read).unwrap(),
            d: config["hidden_size"].as_u64().unwrap() as usize,
            heads: config["num_attention_heads"].as_u64().unwrap() as usize,
        }
    }

    const TEXTS: [&str; 5] = ["a dog ate it", "", "dogs", "playing dogs ate a dog it", "it"];

    fn close(got: &[f64], want: &[f64], bound: f64) {
        assert_eq!(got.len(), want.len());
        for (g, w) in got.iter().zip(want) {
            assert!((g - w).abs() <= bound, "{g} against {w}");
        }
    }

    #[test]
    fn every_pooling_against_the_plain_steps() {
        let dir = folder();
        let naive = naive(dir.path(), &small_config());
        for pooling in Pooling::ALL {
            let options = TextEncoderOptions { pooling: Some(pooling), ..Default::default() };
            let model = TextEncoder::<f64>::open(dir.path(), options).unwrap();
            let single = TextEncoder::<f32>::open(dir.path(), options).unwrap();
            let got = model.encode(&TEXTS, false).unwrap();
            let got32: Vec<f64> = single.encode(&TEXTS, false).unwrap().into_iter().map(f64::from).collect();
            for (b, text) in TEXTS.iter().enumerate() {
                let (rows, _) = naive.run(&model.tokenizer().ids(text).unwrap());
                let column = |c: usize| rows.iter().map(move |r| r[c]);
                let want: Vec<f64> = (0..4)
                    .map(|c| match pooling {
                        Pooling::Mean => column(c).sum::<f64>() / rows.len() as f64,
                        Pooling::Cls => rows[0][c],
                        Pooling::Max => column(c).fold(f64::NEG_INFINITY, f64::max),
                        Pooling::LastToken => rows[rows.len() - 1][c],
                        Pooling::MeanSqrtLen => column(c).sum::<f64>() / (rows.len() as f64).sqrt(),
                        Pooling::WeightedMean => {
                            let weights = (1..=rows.len()).map(|t| t as f64);
                            let total: f64 = weights.clone().sum();
                            column(c).zip(weights).map(|(v, w)| v * w).sum::<f64>() / total
                        }
                    })
                    .collect();
                close(&got[b * 4..b * 4 + 4], &want, 1e-12);
                close(&got32[b * 4..b * 4 + 4], &want, 1e-5);
            }
        }
    }

    #[test]
    fn an_embedding_is_a_function_of_its_text() {
        let dir = folder();
        let model = TextEncoder::<f32>::open(dir.path(), TextEncoderOptions::default()).unwrap();
        // More rows than one batch holds, so that the cutting shows if anything does.
        let many: Vec<&str> = TEXTS.into_iter().cycle().take(1500).collect();
        let got = model.encode(&many, true).unwrap();
        for (text, row) in many.iter().zip(got.chunks(4)).take(10) {
            assert_eq!(model.encode(&[text], true).unwrap(), row);
        }
        assert_eq!(got[..20], got[20 * 299..]);
        assert!(model.encode::<&str>(&[], true).unwrap().is_empty());
    }

    #[test]
    fn attention_weights_against_the_plain_steps() {
        let dir = folder();
        let naive = naive(dir.path(), &small_config());
        let model = TextEncoder::<f64>::open(dir.path(), TextEncoderOptions::default()).unwrap();
        for (text, pair) in [("dogs ate it", None), ("a dog", Some("it ate"))] {
            let got = model.attentions(text, pair).unwrap();
            let (_, want) = naive.run(&got.tokens.ids);
            assert_eq!(got.weights.len(), 2 * 2 * got.tokens.tokens.len().pow(2));
            close(&got.weights, &want, 1e-12);
        }
    }

    #[test]
    fn options_that_do_not_fit() {
        let dir = folder();
        for max_length in [0, 1, 9] {
            let options = TextEncoderOptions { max_length: Some(max_length), ..Default::default() };
            assert!(
                matches!(TextEncoder::<f32>::open(dir.path(), options), Err(Error::Value(_))),
                "{max_length}"
            );
        }
    }
}
