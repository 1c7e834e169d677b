//! A folder becomes everything that a text encoder needs, or an error that says what is wrong.
//!
//! ```text
//! modules.json               Transformer, Pooling, Normalize, each with its sub-folder   (absent: mean, no norm)
//! sentence_bert_config.json  max_seq_length, do_lower_case
//! 1_Pooling/config.json      which pooling
//! config.json                the architecture
//! tokenizer.json             the tokenizer; tokenizer_config.json its model_max_length and truncation_side
//! model.safetensors          the weights
//! ```
//!
//! The longest text is, as in sentence-transformers: `max_seq_length`, else `model_max_length`, and never more than the
//! position table has rows. What `tokenizer.json` says of padding and truncation does not count.

use std::path::Path;

use serde_json::Value;

use crate::error::{Error, Result};
use crate::models::config::BertConfig;
use crate::models::folder::Folder;
use crate::models::pooling::Pooling;
use crate::models::safetensors::TensorFile;
use crate::models::tokenizer::{Tokenizer, TokenizerOptions};

/// The contents of a model folder, checked; the weights still on disk.
#[derive(Debug)]
pub struct Checkpoint {
    /// The architecture.
    pub config: BertConfig,
    /// How token rows become one.
    pub pooling: Pooling,
    /// Whether the model itself brings embeddings to unit length.
    pub normalize: bool,
    /// Text to ids.
    pub tokenizer: Tokenizer,
    /// The weights, read on demand.
    pub tensors: TensorFile,
}

impl Checkpoint {
    /// Opens the model in the folder at `path`.
    ///
    /// # Errors
    /// `NotFound` for files that are not there, `ModelFormat` for damaged ones, `Tokenizer` for a damaged
    /// tokenizer.json, `Unsupported` for a sound model that is not computed here.
    pub fn open(path: &Path) -> Result<Self> {
        let folder = Folder::open(path)?;
        let modules = Modules::read(&folder)?;
        let pooling = match &modules.pooling {
            None => Pooling::Mean,
            Some(name) => read_pooling(&folder.sub(name)?)?,
        };
        let folder = folder.sub(&modules.transformer)?;

        let Some(json) = folder.json("config.json")? else {
            return Err(folder.missing("config.json", "is this the folder of a model?"));
        };
        let config = BertConfig::from_json(&json, &folder.path("config.json")?.display().to_string())?;
        let tensors = open_tensors(&folder)?;
        let tokenizer = open_tokenizer(&folder, &config)?;
        Ok(Self { config, pooling, normalize: modules.normalize, tokenizer, tensors })
    }
}

/// What `modules.json` lists.
struct Modules {
    /// The sub-folder of the transformer; empty is the folder itself.
    transformer: String,
    /// The sub-folder of the pooling.
    pooling: Option<String>,
    normalize: bool,
}

impl Modules {
    const FILE: &'static str = "modules.json";

    fn read(folder: &Folder) -> Result<Self> {
        let mut found = Self { transformer: String::new(), pooling: None, normalize: false };
        let Some(json) = folder.json(Self::FILE)? else { return Ok(found) };
        let broken = |what: &str| folder.broken(Self::FILE, what);
        let list = json.as_array().ok_or_else(|| broken("expected a list"))?;
        for (position, module) in list.iter().enumerate() {
            let text = |key| module.get(key).and_then(Value::as_str);
            let kind = text("type").ok_or_else(|| broken("a module without type"))?;
            let path = text("path").ok_or_else(|| broken("a module without path"))?;
            // The package moved its modules about over the years; the last part of the name stayed.
            let name = kind.strip_prefix("sentence_transformers.").and_then(|rest| rest.rsplit('.').next());
            match (position, name) {
                (0, Some("Transformer")) => found.transformer = path.to_string(),
                (1, Some("Pooling")) => found.pooling = Some(path.to_string()),
                (2, Some("Normalize")) => found.normalize = true,
                _ => {
                    return Err(Error::Unsupported(format!(
                        "{}: module {position} of type {kind} is not supported; supported are Transformer, Pooling and \
                         then Normalize",
                        folder.root().join(Self::FILE).display()
                    )));
                }
            }
        }
        if list.is_empty() {
            return Err(broken("no modules"));
        }
        Ok(found)
    }
}

/// The pooling of `1_Pooling/config.json`: `pooling_mode`, or older files' `pooling_mode_*` flags.
fn read_pooling(folder: &Folder) -> Result<Pooling> {
    const FILE: &str = "config.json";
    const FLAGS: [(&str, &str); 6] = [
        ("pooling_mode_cls_token", "cls"),
        ("pooling_mode_max_tokens", "max"),
        ("pooling_mode_mean_tokens", "mean"),
        ("pooling_mode_mean_sqrt_len_tokens", "mean_sqrt_len_tokens"),
        ("pooling_mode_weightedmean_tokens", "weightedmean"),
        ("pooling_mode_lasttoken", "lasttoken"),
    ];
    let Some(json) = folder.json(FILE)? else { return Err(folder.missing(FILE, "modules.json names it")) };
    let modes: Vec<String> = match &json["pooling_mode"] {
        Value::String(name) => vec![name.clone()],
        Value::Array(names) => names.iter().map(|n| n.as_str().unwrap_or_default().to_string()).collect(),
        Value::Null => FLAGS
            .iter()
            .filter(|(flag, _)| json[flag] == Value::Bool(true))
            .map(|(_, name)| (*name).to_string())
            .collect(),
        other => return Err(folder.broken(FILE, format!("pooling_mode should be a name, got {other}"))),
    };
    let known = modes.first().filter(|_| modes.len() == 1).and_then(|name| Pooling::from_name(name));
    match known {
        _ if modes.is_empty() => Err(folder.broken(FILE, "no pooling mode is on")),
        Some(pooling) => Ok(pooling),
        None => Err(Error::Unsupported(format!(
            "{}: pooling {} is not supported; supported is one of {}",
            folder.root().join(FILE).display(),
            modes.join(" + "),
            Pooling::ALL.map(Pooling::name).join(", ")
        ))),
    }
}

fn open_tensors(folder: &Folder) -> Result<TensorFile> {
    const FILE: &str = "model.safetensors";
    if folder.file(FILE)?.is_some() {
        return TensorFile::open(folder, FILE);
    }
    if folder.file("model.safetensors.index.json")?.is_some() {
        return Err(Error::Unsupported(format!(
            "{}: weights in several files (model.safetensors.index.json) are not supported yet",
            folder.root().display()
        )));
    }
    Err(folder.missing(FILE, "pickled weights (pytorch_model.bin) are never read: they can run code"))
}

fn open_tokenizer(folder: &Folder, config: &BertConfig) -> Result<Tokenizer> {
    const FILE: &str = "tokenizer.json";
    let Some(bytes) = folder.bytes(FILE)? else { return Err(folder.missing(FILE, "")) };
    let sentence = folder.json("sentence_bert_config.json")?.unwrap_or(Value::Null);
    let tokenizer = folder.json("tokenizer_config.json")?.unwrap_or(Value::Null);
    // Absent lengths are written as 1e30 by transformers: larger than any table, hence cut by the next line.
    let length = [&sentence["max_seq_length"], &tokenizer["model_max_length"]]
        .into_iter()
        .find_map(|v| v.as_f64().filter(|x| *x >= 1.0))
        .unwrap_or(f64::INFINITY);
    let max_length = if length < config.max_position_embeddings as f64 {
        length as usize
    } else {
        config.max_position_embeddings
    };
    let options = TokenizerOptions {
        max_length,
        vocab_size: config.vocab_size,
        truncate_left: tokenizer["truncation_side"] == "left",
        lower_case: sentence["do_lower_case"] == Value::Bool(true),
    };
    Tokenizer::from_bytes(&bytes, &folder.path(FILE)?.display().to_string(), options)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::models::bert::tests::{small_config, write_small_weights};
    use crate::models::tokenizer::tests::small_file;
    use serde_json::json;

    /// A folder with a whole small model in sentence-transformers' layout, and more files on top.
    fn folder(more: &[(&str, Value)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("1_Pooling")).unwrap();
        write_small_weights(dir.path(), str::to_string);
        let module = |name: &str, path: &str| json!({"type": format!("sentence_transformers.models.{name}"), "path": path});
        let files = [
            ("config.json", small_config()),
            ("tokenizer.json", small_file()),
            (
                "modules.json",
                json!([
                    module("Transformer", ""),
                    module("Pooling", "1_Pooling"),
                    module("Normalize", "2_N")
                ]),
            ),
            (
                "1_Pooling/config.json",
                json!({"pooling_mode_cls_token": false, "pooling_mode_mean_tokens": true}),
            ),
            ("sentence_bert_config.json", json!({"max_seq_length": 5, "do_lower_case": false})),
            ("tokenizer_config.json", json!({"model_max_length": 7})),
        ];
        for (name, json) in files.iter().chain(more) {
            std::fs::write(dir.path().join(name), json.to_string()).unwrap();
        }
        dir
    }

    #[test]
    fn the_layout_of_sentence_transformers() {
        let dir = folder(&[]);
        let model = Checkpoint::open(dir.path()).unwrap();
        assert_eq!((model.pooling, model.normalize, model.tokenizer.max_length()), (Pooling::Mean, true, 5));
        assert_eq!(model.tokenizer.ids("a a a a a a").unwrap().ids.len(), 5);
    }

    #[test]
    fn a_plain_folder_of_transformers() {
        let dir = folder(&[("tokenizer_config.json", json!({"model_max_length": 1e30}))]);
        for name in ["modules.json", "sentence_bert_config.json"] {
            std::fs::remove_file(dir.path().join(name)).unwrap();
        }
        let model = Checkpoint::open(dir.path()).unwrap();
        assert_eq!((model.pooling, model.normalize, model.tokenizer.max_length()), (Pooling::Mean, false, 8));
    }

    #[test]
    fn poolings_by_both_spellings() {
        for (config, want) in [
            (json!({"pooling_mode": "cls"}), Pooling::Cls),
            (json!({"pooling_mode": ["max"]}), Pooling::Max),
            (json!({"pooling_mode_lasttoken": true}), Pooling::LastToken),
        ] {
            let dir = folder(&[("1_Pooling/config.json", config)]);
            assert_eq!(Checkpoint::open(dir.path()).unwrap().pooling, want);
        }
        for config in [
            json!({"pooling_mode": "weightedmean"}),
            json!({"pooling_mode_cls_token": true, "pooling_mode_mean_tokens": true}),
        ] {
            let dir = folder(&[("1_Pooling/config.json", config)]);
            assert!(matches!(Checkpoint::open(dir.path()), Err(Error::Unsupported(_))));
        }
        let dir = folder(&[("1_Pooling/config.json", json!({}))]);
        assert!(matches!(Checkpoint::open(dir.path()), Err(Error::ModelFormat(_))));
    }

    #[test]
    fn modules_that_are_not_known_or_lead_out() {
        let module = |kind: &str, path: &str| json!({"type": kind, "path": path});
        let transformer = || module("sentence_transformers.models.Transformer", "");
        let dense = module("sentence_transformers.models.Dense", "2_Dense");
        let foreign = module("evil.Pooling", "1_Pooling");
        for second in [dense, foreign] {
            let dir = folder(&[("modules.json", json!([transformer(), second]))]);
            assert!(matches!(Checkpoint::open(dir.path()), Err(Error::Unsupported(_))));
        }
        let outside = module("sentence_transformers.models.Pooling", "../1_Pooling");
        let dir = folder(&[("modules.json", json!([transformer(), outside]))]);
        assert!(matches!(Checkpoint::open(dir.path()), Err(Error::ModelFormat(_))));
        for wrong in [json!([]), json!({}), json!([{"type": 3}])] {
            let dir = folder(&[("modules.json", wrong)]);
            assert!(matches!(Checkpoint::open(dir.path()), Err(Error::ModelFormat(_))));
        }
    }

    #[test]
    fn files_that_are_not_there() {
        for name in ["config.json", "tokenizer.json", "model.safetensors", "1_Pooling/config.json"] {
            let dir = folder(&[]);
            std::fs::remove_file(dir.path().join(name)).unwrap();
            let Err(Error::NotFound(text)) = Checkpoint::open(dir.path()) else { panic!("{name}") };
            assert!(text.contains(name.rsplit('/').next().unwrap()), "{text}");
        }
    }
}
