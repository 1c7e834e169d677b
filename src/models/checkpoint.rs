//! A folder becomes everything that a text encoder needs, or an error that says what is wrong.
//!
//! ```text
//! modules.json               Transformer, Pooling, Dense, Normalize, each with its sub-folder   (absent: mean pooling)
//! sentence_bert_config.json  max_seq_length, do_lower_case
//! config.json                the architecture
//! tokenizer.json             the tokenizer; tokenizer_config.json its model_max_length and truncation_side
//! model.safetensors          the weights, or shards and their index
//! ```
//!
//! The small files are read first, and the headers of the weights compared with them, so that a folder that lies is
//! refused before anything large is read. The tokenizer, whose vocabulary takes as long as the weights, is read with them.
//!
//! The longest text is, as in sentence-transformers: `max_seq_length`, else `model_max_length`, and never more than the
//! position table has rows. What `tokenizer.json` says of padding and truncation does not count.

use std::path::Path;

use serde_json::Value;

use crate::error::Result;
use crate::models::bert::BertTensors;
use crate::models::config::BertConfig;
use crate::models::folder::Folder;
use crate::models::modules::{ModuleList, Modules};
use crate::models::tensor_data::Access;
use crate::models::tokenizer::{Tokenizer, TokenizerOptions};
use crate::models::weights::Weights;

const TOKENIZER: &str = "tokenizer.json";

/// The contents of a model folder, checked; what is large is still on disk.
#[derive(Debug)]
pub struct Checkpoint {
    /// The architecture.
    pub config: BertConfig,
    /// What follows the transformer.
    pub modules: Modules,
    /// The weights, read on demand.
    pub tensors: Weights,
    folder: Folder,
}

impl Checkpoint {
    /// Opens the model in the folder at `path`.
    ///
    /// # Errors
    /// `NotFound` for files that are not there, `ModelFormat` for damaged ones or ones that do not fit each other,
    /// `Unsupported` for a sound model that is not computed here.
    pub fn open(path: &Path, access: Access) -> Result<Self> {
        let root = Folder::open(path)?;
        let list = ModuleList::read(&root)?;
        let folder = root.sub(&list.transformer)?;
        let Some(json) = folder.json("config.json")? else {
            return Err(folder.missing("config.json", "is this the folder of a model?"));
        };
        let config = BertConfig::from_json(&json, &folder.path("config.json")?.display().to_string())?;
        let modules = Modules::open(&root, &list, config.hidden_size, access)?;
        let tensors = Weights::open(&folder, access)?;
        BertTensors::new(&tensors, &config).check()?;
        if folder.file(TOKENIZER)?.is_none() {
            return Err(folder.missing(TOKENIZER, ""));
        }
        Ok(Self { config, modules, tensors, folder })
    }

    /// Reads the tokenizer.
    ///
    /// # Errors
    /// `Tokenizer` where tokenizer.json is damaged or does not fit the model, `ModelFormat` for the files beside it.
    pub fn tokenizer(&self) -> Result<Tokenizer> {
        open_tokenizer(&self.folder, &self.config)
    }
}

fn open_tokenizer(folder: &Folder, config: &BertConfig) -> Result<Tokenizer> {
    let Some(bytes) = folder.bytes(TOKENIZER)? else { return Err(folder.missing(TOKENIZER, "")) };
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
        type_vocab_size: config.type_vocab_size,
        truncate_left: tokenizer["truncation_side"] == "left",
        lower_case: sentence["do_lower_case"] == Value::Bool(true),
    };
    Tokenizer::from_bytes(&bytes, &folder.path(TOKENIZER)?.display().to_string(), options)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Error;
    use crate::models::bert::tests::{small_config, write_small_weights};
    use crate::models::modules::Step;
    use crate::models::pooling::Pooling;
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

    fn open(dir: &tempfile::TempDir) -> Result<Checkpoint> {
        Checkpoint::open(dir.path(), Access::Read)
    }

    #[test]
    fn the_layout_of_sentence_transformers() {
        let dir = folder(&[]);
        let model = open(&dir).unwrap();
        let tokenizer = model.tokenizer().unwrap();
        assert_eq!((&model.modules.poolings[..], tokenizer.max_length()), (&[Pooling::Mean][..], 5));
        assert!(matches!(model.modules.steps[..], [Step::Normalize]));
        assert_eq!(tokenizer.ids("a a a a a a").unwrap().ids.len(), 5);
    }

    #[test]
    fn a_plain_folder_of_transformers() {
        let dir = folder(&[("tokenizer_config.json", json!({"model_max_length": 1e30}))]);
        for name in ["modules.json", "sentence_bert_config.json"] {
            std::fs::remove_file(dir.path().join(name)).unwrap();
        }
        let model = open(&dir).unwrap();
        let tokenizer = model.tokenizer().unwrap();
        assert_eq!((&model.modules.poolings[..], tokenizer.max_length()), (&[Pooling::Mean][..], 8));
        assert!(model.modules.steps.is_empty());
    }

    #[test]
    fn modules_that_are_not_known_or_lead_out() {
        let module = |kind: &str, path: &str| json!({"type": kind, "path": path});
        let transformer = || module("sentence_transformers.models.Transformer", "");
        for kind in ["sentence_transformers.models.CNN", "evil.Pooling"] {
            let dir = folder(&[("modules.json", json!([transformer(), module(kind, "1_Pooling")]))]);
            let Err(Error::Unsupported(text)) = open(&dir) else { panic!("{kind}") };
            assert!(text.contains(kind), "{text}");
        }
        for (kind, path) in [("Pooling", "../1_Pooling"), ("Pooling", "/etc"), ("Normalize", "..")] {
            let outside = module(&format!("sentence_transformers.models.{kind}"), path);
            let dir = folder(&[("modules.json", json!([transformer(), outside]))]);
            assert!(matches!(open(&dir), Err(Error::ModelFormat(text)) if text.contains("modules.json")));
        }
        for wrong in [json!([]), json!({}), json!([{"type": 3}])] {
            let dir = folder(&[("modules.json", wrong)]);
            assert!(matches!(open(&dir), Err(Error::ModelFormat(_))));
        }
    }

    #[test]
    fn weights_are_compared_with_the_config() {
        let mut config = small_config();
        config["vocab_size"] = json!(2_000_000_000);
        let dir = folder(&[("config.json", config)]);
        let Err(Error::ModelFormat(text)) = open(&dir) else { panic!() };
        assert!(text.contains("word_embeddings") && text.contains("2000000000"), "{text}");
    }

    #[test]
    fn files_that_are_not_there() {
        for name in ["config.json", "tokenizer.json", "model.safetensors", "1_Pooling/config.json"] {
            let dir = folder(&[]);
            std::fs::remove_file(dir.path().join(name)).unwrap();
            let Err(Error::NotFound(text)) = open(&dir) else { panic!("{name}") };
            assert!(text.contains(name.rsplit('/').next().unwrap()), "{text}");
        }
    }
}
