//! What a folder says of how its model is meant to be used: the prompts that it was trained with, and how its
//! embeddings are compared and cut.
//!
//! ```text
//! config_sentence_transformers.json  prompts, default_prompt_name, similarity_fn_name, truncate_dim
//! 1_Pooling/config.json              include_prompt
//! ```

use std::path::Path;

use serde_json::Value;

use crate::error::Result;
use crate::models::folder::Folder;

const FILE: &str = "config_sentence_transformers.json";

/// The settings of a folder; each has a default that stands for an absent one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// Texts to put before queries, documents, ..., by name. Absent texts are empty.
    pub prompts: Vec<(String, String)>,
    /// The prompt of calls that name none; one of `prompts`.
    pub default_prompt_name: Option<String>,
    /// How embeddings are compared; names that are not known count as absent.
    pub similarity_fn_name: Option<String>,
    /// Columns of an embedding to keep.
    pub truncate_dim: Option<usize>,
    /// Whether the tokens of a prompt are pooled.
    pub include_prompt: bool,
}

impl Settings {
    /// Ways to compare embeddings.
    pub const SIMILARITIES: [&'static str; 4] = ["cosine", "dot", "euclidean", "manhattan"];

    /// Reads the settings of the folder at `path`.
    ///
    /// # Errors
    /// `NotFound` where there is no folder, `ModelFormat` for files that make no sense.
    pub fn open(path: &Path) -> Result<Self> {
        let folder = Folder::open(path)?;
        let json = folder.json(FILE)?.unwrap_or(Value::Null);
        let broken = |what: &str| folder.broken(FILE, what);
        if !(json.is_object() || json.is_null()) {
            return Err(broken("expected a JSON object"));
        }
        let name = |key: &str| match &json[key] {
            Value::Null => Ok(None),
            Value::String(name) => Ok(Some(name.clone())),
            other => Err(broken(&format!("{key} should be a name, got {other}"))),
        };
        let settings = Self {
            prompts: read_prompts(&json["prompts"]).map_err(|what| broken(&what))?,
            default_prompt_name: name("default_prompt_name")?,
            similarity_fn_name: name("similarity_fn_name")?
                .filter(|n| Self::SIMILARITIES.contains(&n.as_str())),
            truncate_dim: match &json["truncate_dim"] {
                Value::Null => None,
                number => match number.as_u64().and_then(|n| usize::try_from(n).ok()) {
                    Some(n) if n > 0 => Some(n),
                    _ => {
                        return Err(broken(&format!(
                            "truncate_dim should be a whole number of at least 1, got {number}"
                        )));
                    }
                },
            },
            include_prompt: include_prompt(&folder)?,
        };
        if let Some(name) = &settings.default_prompt_name
            && !settings.prompts.iter().any(|(known, _)| known == name)
        {
            return Err(broken(&format!("default_prompt_name {name:?} is not among the prompts")));
        }
        Ok(settings)
    }
}

/// The prompts of a file. As in sentence-transformers there are always a query's and a document's.
fn read_prompts(json: &Value) -> std::result::Result<Vec<(String, String)>, String> {
    let mut prompts: Vec<(String, String)> =
        ["query", "document"].map(|name| (name.to_string(), String::new())).into();
    let found = match json {
        Value::Null => return Ok(prompts),
        Value::Object(found) => found,
        other => return Err(format!("prompts should be an object, got {other}")),
    };
    for (name, prompt) in found {
        let text = match prompt {
            Value::Null => "",
            Value::String(text) => text,
            other => return Err(format!("the prompt {name:?} should be a text, got {other}")),
        };
        match prompts.iter_mut().find(|(known, _)| known == name) {
            Some(entry) => entry.1 = text.to_string(),
            None => prompts.push((name.clone(), text.to_string())),
        }
    }
    Ok(prompts)
}

/// What the pooling says of prompts; `modules.json` knows where it is.
fn include_prompt(folder: &Folder) -> Result<bool> {
    let modules = folder.json("modules.json")?.unwrap_or(Value::Null);
    let pooling =
        modules.as_array().into_iter().flatten().find(|module| {
            module["type"].as_str().and_then(|kind| kind.rsplit('.').next()) == Some("Pooling")
        });
    let Some(path) = pooling.and_then(|module| module["path"].as_str()) else { return Ok(true) };
    let json = folder.sub(path)?.json("config.json")?.unwrap_or(Value::Null);
    Ok(json["include_prompt"] != Value::Bool(false))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Error;
    use serde_json::json;

    fn settings(files: &[(&str, Value)]) -> Result<Settings> {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("1_Pooling")).unwrap();
        for (name, json) in files {
            std::fs::write(dir.path().join(name), json.to_string()).unwrap();
        }
        Settings::open(dir.path())
    }

    #[test]
    fn defaults_of_a_folder_that_says_nothing() {
        let found = settings(&[]).unwrap();
        let names: Vec<_> = found.prompts.iter().map(|(name, text)| (name.as_str(), text.as_str())).collect();
        assert_eq!(names, [("query", ""), ("document", "")]);
        assert_eq!((found.default_prompt_name, found.similarity_fn_name), (None, None));
        assert_eq!((found.truncate_dim, found.include_prompt), (None, true));
    }

    #[test]
    fn everything_said() {
        let config = json!({"prompts": {"query": "q: ", "passage": "p: ", "none": null},
            "default_prompt_name": "passage", "similarity_fn_name": "dot", "truncate_dim": 64});
        let modules = json!([{"type": "sentence_transformers.models.Transformer", "path": ""},
            {"type": "sentence_transformers.models.Pooling", "path": "1_Pooling"}]);
        let found = settings(&[
            (FILE, config),
            ("modules.json", modules),
            ("1_Pooling/config.json", json!({"include_prompt": false})),
        ])
        .unwrap();
        let pair = |a: &str, b: &str| (a.to_string(), b.to_string());
        let want = [pair("query", "q: "), pair("document", ""), pair("none", ""), pair("passage", "p: ")];
        assert_eq!(found.prompts.len(), want.len());
        assert!(want.iter().all(|w| found.prompts.contains(w)));
        assert_eq!(found.default_prompt_name.as_deref(), Some("passage"));
        assert_eq!(found.similarity_fn_name.as_deref(), Some("dot"));
        assert_eq!((found.truncate_dim, found.include_prompt), (Some(64), false));
    }

    #[test]
    fn what_makes_no_sense() {
        for config in [
            json!([]),
            json!({"prompts": []}),
            json!({"prompts": {"query": 3}}),
            json!({"default_prompt_name": "nobody"}),
            json!({"default_prompt_name": 1}),
            json!({"truncate_dim": 0}),
            json!({"truncate_dim": "64"}),
        ] {
            let found = settings(&[(FILE, config.clone())]);
            assert!(matches!(found, Err(Error::ModelFormat(_))), "{config}");
        }
        let modules = json!([{"type": "Pooling", "path": "../1_Pooling"}]);
        assert!(matches!(settings(&[("modules.json", modules)]), Err(Error::ModelFormat(_))));
        assert_eq!(
            settings(&[(FILE, json!({"similarity_fn_name": "maxsim"}))]).unwrap().similarity_fn_name,
            None
        );
    }
}
