//! `modules.json`: what sentence-transformers puts behind the transformer, each module with its sub-folder.
//!
//! ```text
//! 0  Transformer   config.json, tokenizer.json, weights
//! 1  Pooling       token rows to one row for each text: (T, D) to (B, kinds * D)
//! 2  Dense, Normalize, any number, in the order of the file: (B, K) to (B, N); rows to length 1
//! ```
//!
//! A folder without the file is a plain one of transformers: mean pooling and nothing behind it.

use serde_json::Value;

use crate::error::{Error, Result};
use crate::models::dense::DenseFiles;
use crate::models::folder::Folder;
use crate::models::pooling::Pooling;
use crate::models::tensor_data::Access;

const FILE: &str = "modules.json";

/// Modules of the longest chain; real ones have three or four, and each may hold weights.
const MAX_MODULES: usize = 16;

/// What `modules.json` lists: the name and the sub-folder of each module.
#[derive(Debug)]
pub struct ModuleList {
    /// The sub-folder of the transformer; empty is the folder itself.
    pub transformer: String,
    /// The modules behind it, with their full type for errors.
    rest: Vec<(Kind, String)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Pooling,
    Dense,
    Normalize,
}

impl ModuleList {
    /// Reads the list; names are checked to stay inside the folder.
    ///
    /// # Errors
    /// `ModelFormat` where it is damaged, `Unsupported` for modules or orders that are not computed.
    pub fn read(folder: &Folder) -> Result<Self> {
        let Some(json) = folder.json(FILE)? else {
            return Ok(Self { transformer: String::new(), rest: Vec::new() });
        };
        let broken = |what: &str| folder.broken(FILE, what);
        let list = json.as_array().ok_or_else(|| broken("expected a list"))?;
        if list.is_empty() || list.len() > MAX_MODULES {
            return Err(broken(&format!("expected 1 to {MAX_MODULES} modules, got {}", list.len())));
        }
        let mut found = Self { transformer: String::new(), rest: Vec::new() };
        for (position, module) in list.iter().enumerate() {
            let text = |key| module.get(key).and_then(Value::as_str);
            let kind = text("type").ok_or_else(|| broken("a module without type"))?;
            let path = text("path").ok_or_else(|| broken("a module without path"))?;
            folder.path(path).map_err(|_| broken(&format!("the path {path:?} leads out of the folder")))?;
            // The package moved its modules about over the years; the last part of the name stayed.
            let name = kind.strip_prefix("sentence_transformers.").and_then(|rest| rest.rsplit('.').next());
            let known = match (position, name) {
                (0, Some("Transformer")) => {
                    found.transformer = path.to_string();
                    continue;
                }
                (1, Some("Pooling")) => Kind::Pooling,
                (2.., Some("Dense")) => Kind::Dense,
                (2.., Some("Normalize")) => Kind::Normalize,
                _ => {
                    return Err(Error::Unsupported(format!(
                        "{}: module {position} of type {kind} is not supported; supported are Transformer, Pooling and \
                         then any of Dense and Normalize",
                        folder.root().join(FILE).display()
                    )));
                }
            };
            found.rest.push((known, path.to_string()));
        }
        Ok(found)
    }
}

/// How token rows become embeddings, checked; weights still on disk.
#[derive(Debug)]
pub struct Modules {
    /// The kinds of pooling, side by side.
    pub poolings: Vec<Pooling>,
    /// Whether a prompt's tokens count in the pooling.
    pub include_prompt: bool,
    /// What follows, in order.
    pub steps: Vec<Step>,
}

/// A module behind the pooling.
#[derive(Debug)]
pub enum Step {
    /// A product and its activation.
    Dense(Box<DenseFiles>),
    /// Rows to length 1.
    Normalize,
}

impl Modules {
    /// Opens the folders of the listed modules behind a transformer of width `d`.
    ///
    /// # Errors
    /// `NotFound` for files that are not there, `ModelFormat` for damaged ones or widths that do not fit, `Unsupported` for
    /// what is not computed.
    pub fn open(folder: &Folder, list: &ModuleList, d: usize, access: Access) -> Result<Self> {
        let mut modules = Self { poolings: vec![Pooling::Mean], include_prompt: true, steps: Vec::new() };
        for (kind, path) in &list.rest {
            match kind {
                Kind::Pooling => {
                    (modules.poolings, modules.include_prompt) = read_pooling(&folder.sub(path)?, d)?;
                }
                Kind::Dense => {
                    let folder = folder.sub(path)?;
                    let dense = DenseFiles::open(&folder, access)?;
                    let width = modules.width(d);
                    if dense.in_features != width {
                        return Err(folder.broken(
                            "config.json",
                            format!(
                                "in_features should be {width}, the width before it, got {}",
                                dense.in_features
                            ),
                        ));
                    }
                    modules.steps.push(Step::Dense(Box::new(dense)));
                }
                Kind::Normalize => {
                    check_normalize(folder, path)?;
                    modules.steps.push(Step::Normalize);
                }
            }
        }
        Ok(modules)
    }

    /// The width of the embeddings of a transformer of width `d`.
    pub fn width(&self, d: usize) -> usize {
        let dense = self.steps.iter().rev().find_map(|step| match step {
            Step::Dense(dense) => Some(dense.out_features),
            Step::Normalize => None,
        });
        dense.unwrap_or(self.poolings.len() * d)
    }
}

/// The pooling of `1_Pooling/config.json`: `pooling_mode`, one name or several, or older files' `pooling_mode_*` flags.
fn read_pooling(folder: &Folder, d: usize) -> Result<(Vec<Pooling>, bool)> {
    const FILE: &str = "config.json";
    // In the order in which several stand side by side.
    const FLAGS: [(&str, Pooling); 6] = [
        ("pooling_mode_cls_token", Pooling::Cls),
        ("pooling_mode_max_tokens", Pooling::Max),
        ("pooling_mode_mean_tokens", Pooling::Mean),
        ("pooling_mode_mean_sqrt_len_tokens", Pooling::MeanSqrtLen),
        ("pooling_mode_weightedmean_tokens", Pooling::WeightedMean),
        ("pooling_mode_lasttoken", Pooling::LastToken),
    ];
    let Some(json) = folder.json(FILE)? else { return Err(folder.missing(FILE, "modules.json names it")) };
    let broken = |what: String| folder.broken(FILE, what);
    let known = |name: &Value| {
        let text =
            name.as_str().ok_or_else(|| broken(format!("pooling_mode should be a name, got {name}")))?;
        Pooling::from_name(text).ok_or_else(|| {
            Error::Unsupported(format!(
                "{}: pooling_mode {text:?} is not supported; supported are {}",
                folder.root().join(FILE).display(),
                Pooling::ALL.map(Pooling::name).join(", ")
            ))
        })
    };
    let poolings = match &json["pooling_mode"] {
        Value::Array(names) if names.len() <= FLAGS.len() => {
            names.iter().map(known).collect::<Result<_>>()?
        }
        Value::Array(names) => return Err(broken(format!("pooling_mode names {} kinds", names.len()))),
        Value::Null => {
            let on = |(flag, _): &&(&str, Pooling)| json[*flag] == Value::Bool(true);
            FLAGS.iter().filter(on).map(|&(_, pooling)| pooling).collect()
        }
        name => vec![known(name)?],
    };
    if poolings.is_empty() {
        return Err(broken("no pooling mode is on".to_string()));
    }
    for key in ["embedding_dimension", "word_embedding_dimension"] {
        if !json[key].is_null() && json[key].as_u64() != Some(d as u64) {
            return Err(broken(format!("{key} should be {d}, the model's hidden_size, got {}", json[key])));
        }
    }
    match &json["include_prompt"] {
        Value::Null => Ok((poolings, true)),
        Value::Bool(include) => Ok((poolings, *include)),
        other => Err(broken(format!("include_prompt should be true or false, got {other}"))),
    }
}

/// A Normalize module needs no folder; newer ones say in theirs what they normalize.
fn check_normalize(folder: &Folder, path: &str) -> Result<()> {
    let folder = match folder.sub(path) {
        Err(Error::NotFound(_)) => return Ok(()),
        other => other?,
    };
    // A path that is empty names the transformer's folder; its config.json has no such keys.
    let json = folder.json("config.json")?.unwrap_or(Value::Null);
    for key in ["module_input_name", "module_output_name"] {
        if !matches!(json[key].as_str(), None | Some("sentence_embedding")) {
            return Err(Error::Unsupported(format!(
                "{}: {key} {} is not supported",
                folder.root().join("config.json").display(),
                json[key]
            )));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::models::dense::tests::write_dense;
    use serde_json::json;

    const D: usize = 4;

    /// Opens a folder whose modules.json lists `kinds`, module i in the sub-folder "i", with this pooling config.
    fn open(kinds: &[&str], pooling: &Value) -> Result<Modules> {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("1")).unwrap();
        let list: Vec<_> = kinds
            .iter()
            .enumerate()
            .map(|(i, kind)| json!({"type": format!("sentence_transformers.models.{kind}"), "path": i.to_string()}))
            .collect();
        std::fs::write(dir.path().join(FILE), json!(list).to_string()).unwrap();
        std::fs::write(dir.path().join("1/config.json"), pooling.to_string()).unwrap();
        for (i, _) in kinds.iter().enumerate().filter(|(_, kind)| **kind == "Dense") {
            write_dense(&dir.path().join(i.to_string()), (6, 4), "torch.nn.modules.linear.Identity");
        }
        let folder = Folder::open(dir.path()).unwrap();
        Modules::open(&folder, &ModuleList::read(&folder)?, D, Access::Read)
    }

    fn pooled(config: &Value) -> Result<Modules> {
        open(&["Transformer", "Pooling"], config)
    }

    #[test]
    fn poolings_by_both_spellings() {
        use Pooling::{Cls, LastToken, Max, Mean, MeanSqrtLen, WeightedMean};
        for (config, want) in [
            (json!({"pooling_mode": "cls"}), vec![Cls]),
            (json!({"pooling_mode": ["max", "mean_sqrt_len_tokens"]}), vec![Max, MeanSqrtLen]),
            (json!({"pooling_mode_lasttoken": true, "pooling_mode_cls_token": false}), vec![LastToken]),
            (json!({"pooling_mode": "weightedmean", "pooling_mode_mean_tokens": true}), vec![WeightedMean]),
            (
                json!({"word_embedding_dimension": 4, "pooling_mode_mean_tokens": true, "pooling_mode_cls_token": true}),
                vec![Cls, Mean],
            ),
        ] {
            let modules = pooled(&config).unwrap();
            assert_eq!(modules.poolings, want);
            assert_eq!((modules.width(D), modules.include_prompt), (D * want.len(), true));
        }
        assert!(!pooled(&json!({"pooling_mode": "mean", "include_prompt": false})).unwrap().include_prompt);
    }

    #[test]
    fn poolings_that_make_no_sense() {
        let unknown = pooled(&json!({"pooling_mode": "median"}));
        assert!(matches!(unknown, Err(Error::Unsupported(text)) if text.contains("median")));
        for (config, part) in [
            (json!({}), "no pooling mode"),
            (json!([]), "no pooling mode"),
            (json!({"pooling_mode": []}), "no pooling mode"),
            (json!({"pooling_mode": 3}), "pooling_mode"),
            (json!({"pooling_mode": vec!["mean"; 1000]}), "1000"),
            (json!({"pooling_mode": "mean", "include_prompt": 0}), "include_prompt"),
            (json!({"pooling_mode": "mean", "word_embedding_dimension": 5}), "word_embedding_dimension"),
            (json!({"pooling_mode": "mean", "embedding_dimension": -4}), "embedding_dimension"),
        ] {
            let Err(Error::ModelFormat(text)) = pooled(&config) else { panic!("{config}") };
            assert!(text.contains(part) && text.contains("1/config.json"), "{text}");
        }
    }

    #[test]
    fn chains_keep_the_order_of_the_file() {
        let mean = json!({"pooling_mode": "mean"});
        let got = open(&["Transformer", "Pooling", "Normalize", "Dense", "Normalize"], &mean).unwrap();
        assert!(matches!(got.steps[..], [Step::Normalize, Step::Dense(_), Step::Normalize]));
        assert_eq!(got.width(D), 6);
        let twice = open(&["Transformer", "Pooling", "Dense", "Dense"], &mean);
        let Err(Error::ModelFormat(text)) = twice else { panic!() };
        assert!(text.contains("in_features should be 6") && text.contains("3/config.json"), "{text}");
        for kinds in [
            &["Transformer", "Normalize"][..],
            &["Pooling"],
            &["Transformer", "Pooling", "Pooling"],
            &["Transformer", "Pooling", "WeightedLayerPooling"],
        ] {
            let Err(Error::Unsupported(text)) = open(kinds, &mean) else { panic!("{kinds:?}") };
            assert!(text.contains(kinds[kinds.len() - 1]), "{text}");
        }
        assert!(matches!(open(&vec!["Transformer"; 100], &mean), Err(Error::ModelFormat(_))));
    }
}
