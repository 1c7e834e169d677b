//! The model against BERT in plain steps, and its batches against each text alone.

use serde_json::Value;
use std::path::Path;

use super::*;
use crate::models::bert::tests::{small_config, write_small_weights};
use crate::models::folder::Folder;
use crate::models::safetensors::TensorFile;
use crate::models::tokenizer::TokenIds;
use crate::models::tokenizer::tests::small_file;

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
        let (weight, bias) = (self.tensor(&format!("{name}.weight")), self.tensor(&format!("{name}.bias")));
        let dot = |row: &[f64], w: &[f64]| row.iter().zip(w).map(|(a, b)| a * b).sum::<f64>();
        x.iter()
            .map(|row| weight.chunks(row.len()).zip(&bias).map(|(w, b)| dot(row, w) + b).collect())
            .collect()
    }

    fn norm(&self, x: &[Vec<f64>], name: &str) -> Vec<Vec<f64>> {
        let (weight, bias) = (self.tensor(&format!("{name}.weight")), self.tensor(&format!("{name}.bias")));
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
            let [q, k, v] =
                ["query", "key", "value"].map(|p| self.linear(&x, &format!("{layer}.attention.self.{p}")));
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

fn rows<T: Float>(model: &TextEncoder<T>, texts: &[&str], call: EncodeCall) -> Vec<T> {
    let texts: Vec<Text> = texts.iter().map(|&t| t.into()).collect();
    model.encode(&texts, call).unwrap().rows
}

#[test]
fn every_pooling_against_the_plain_steps() {
    let dir = folder();
    let naive = naive(dir.path(), &small_config());
    for pooling in Pooling::ALL {
        let options = TextEncoderOptions { pooling: Some(pooling), ..Default::default() };
        let model = TextEncoder::<f64>::open(dir.path(), options).unwrap();
        let single = TextEncoder::<f32>::open(dir.path(), options).unwrap();
        let got = rows(&model, &TEXTS, EncodeCall::default());
        let got32: Vec<f64> =
            rows(&single, &TEXTS, EncodeCall::default()).into_iter().map(f64::from).collect();
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
    let call = EncodeCall { normalize: true, ..EncodeCall::default() };
    let got = rows(&model, &many, call);
    for (text, row) in many.iter().zip(got.chunks(4)).take(10) {
        assert_eq!(rows(&model, &[text], call), row);
    }
    assert_eq!(got[..20], got[20 * 299..]);
    assert!(rows(&model, &[], call).is_empty());
}

#[test]
fn states_are_what_is_pooled() {
    let dir = folder();
    let model = TextEncoder::<f64>::open(dir.path(), TextEncoderOptions::default()).unwrap();
    let texts: Vec<Text> = TEXTS.into_iter().map(Text::from).collect();
    for skip in [0, 1, 2, 9] {
        let call = EncodeCall { skip, ..EncodeCall::default() };
        let whole = rows(&model, &TEXTS, call);
        for (state, row) in model.states(&texts, call).unwrap().iter().zip(whole.chunks(4)) {
            assert_eq!(state.embedding, row);
            assert_eq!(state.states.len(), 4 * state.tokens.ids.len());
            let left = state.states.get(skip * 4..).unwrap_or_default();
            let count = (left.len() / 4).max(1) as f64;
            for (c, got) in row.iter().enumerate() {
                let mean = left.iter().skip(c).step_by(4).sum::<f64>() / count;
                assert!((got - mean).abs() < 1e-14);
            }
        }
    }
}

#[test]
fn a_shorter_model_shares_the_weights() {
    let dir = folder();
    let model = TextEncoder::<f32>::open(dir.path(), TextEncoderOptions::default()).unwrap();
    let short = model.with_max_length(4).unwrap();
    let got = short.encode(&["a dog ate it".into()], EncodeCall::default()).unwrap();
    assert_eq!(got.counts, [TokenCount { used: 4, cut: true }]);
    assert_eq!(got.rows, rows(&model, &["a dog"], EncodeCall::default()));
    assert_eq!(short.lengths(&["a dog ate it".into(), "".into()]).unwrap(), [6, 2]);
    assert!(matches!(model.with_max_length(9), Err(Error::Value(_))));
    assert_eq!((model.tokenizer().max_length(), short.tokenizer().max_length()), (8, 4));
    assert_eq!((model.prompt_length("a dog").unwrap(), model.prompt_length("").unwrap()), (3, 1));
}

#[test]
fn columns_are_cut_before_rows_get_unit_length() {
    let dir = folder();
    let model = TextEncoder::<f64>::open(dir.path(), TextEncoderOptions::default()).unwrap();
    let whole = rows(&model, &TEXTS, EncodeCall::default());
    let cut = rows(&model, &TEXTS, EncodeCall { truncate_dim: Some(3), normalize: true, skip: 0 });
    for (row, source) in cut.chunks(3).zip(whole.chunks(4)) {
        let norm = source[..3].iter().map(|v| v * v).sum::<f64>().sqrt();
        let want: Vec<f64> = source[..3].iter().map(|v| v / norm).collect();
        close(row, &want, 1e-15);
    }
    let wide = EncodeCall { truncate_dim: Some(9), ..EncodeCall::default() };
    assert_eq!(rows(&model, &TEXTS, wide), whole);
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
