//! Fences around what `tokenizer.json` brings along: regular expressions, replacements, nesting.
//!
//! The crate gives up silently where a regular expression backtracks too often: the rest of the text then counts as one
//! piece and the ids are wrong. Here the same steps of the file run with a lower limit, and reaching it is an error. Only
//! `Split` and `Replace` carry expressions of the file; everything else is the crate's own. The crate drops the errors of
//! normalizers, too; they are kept here for the caller.

use std::cell::RefCell;

use fancy_regex::{Regex, RegexBuilder};
use serde::de::{Deserialize, Deserializer, Error as _};
use serde_json::Value;
use tokenizers::normalizers::Replace;
use tokenizers::pattern::Invert;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::{
    NormalizedString, NormalizerWrapper, PreTokenizedString, PreTokenizerWrapper, SplitDelimiterBehavior,
};

use crate::threads::checkpoint;

/// Steps back that one search may take: expressions of published tokenizers take a handful, and 100,000 are done in a
/// few milliseconds.
const MAX_BACKTRACKS: usize = 100_000;

/// Characters that replacements may make of one, over all steps of a file; published files keep below 10.
const MAX_GROWTH: usize = 256;

/// Brackets inside brackets: real files have six, and reading some parts takes the crate twice as long for each.
const MAX_DEPTH: usize = 16;

thread_local! {
    /// The last error of a normalizer on this thread.
    static DROPPED: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// The error of a normalizer since the last time this was asked: the crate goes on with the text as it was.
pub(super) fn dropped_error() -> Option<String> {
    DROPPED.take()
}

/// Whether the brackets of a JSON text are nested no deeper than [`MAX_DEPTH`].
pub(super) fn is_shallow(json: &[u8]) -> bool {
    let (mut depth, mut in_string, mut escaped) = (0usize, false, false);
    for &byte in json {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if in_string => escaped = true,
            b'"' => in_string = !in_string,
            b'[' | b'{' if !in_string => depth += 1,
            b']' | b'}' if !in_string => depth = depth.saturating_sub(1),
            _ => {}
        }
        if depth > MAX_DEPTH {
            return false;
        }
    }
    true
}

fn bounded(pattern: &str) -> Result<Regex, String> {
    RegexBuilder::new(pattern)
        .backtrack_limit(MAX_BACKTRACKS)
        .build()
        .map_err(|e| format!("regex {pattern:?}: {e}"))
}

/// The parts of a `Sequence`, if the value is one.
fn parts<'a>(value: &'a Value, key: &str) -> Option<&'a Vec<Value>> {
    if value["type"] == "Sequence" { value[key].as_array() } else { None }
}

/// The normalizer of a file.
#[derive(Clone, Debug)]
pub(super) enum Normalizer {
    Sequence(Vec<Normalizer>),
    Replace { regex: Regex, content: String },
    Other(NormalizerWrapper),
}

impl Normalizer {
    fn from_value(value: &Value) -> Result<Self, String> {
        if let Some(parts) = parts(value, "normalizers") {
            return parts.iter().map(Self::from_value).collect::<Result<_, _>>().map(Self::Sequence);
        }
        if let ("Replace", Some(pattern)) =
            (value["type"].as_str().unwrap_or_default(), value["pattern"]["Regex"].as_str())
        {
            let replace: Replace = serde_json::from_value(value.clone()).map_err(|e| e.to_string())?;
            return Ok(Self::Replace { regex: bounded(pattern)?, content: replace.content });
        }
        serde_json::from_value(value.clone()).map(Self::Other).map_err(|e| e.to_string())
    }
}

/// How many characters the steps of a normalizer may make of one.
fn growth(value: &Value) -> usize {
    if let Some(parts) = parts(value, "normalizers") {
        return parts.iter().map(growth).fold(1, usize::saturating_mul);
    }
    let added = ["content", "prepend"].map(|key| value[key].as_str().map_or(0, |text| text.chars().count()));
    added[0].max(added[1]).max(1)
}

impl<'de> Deserialize<'de> for Normalizer {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let value = Value::deserialize(deserializer)?;
        let growth = growth(&value);
        if growth > MAX_GROWTH {
            return Err(D::Error::custom(format!(
                "normalizer: replacements may make {growth} characters of one, more than {MAX_GROWTH}"
            )));
        }
        Self::from_value(&value).map_err(D::Error::custom)
    }
}

impl tokenizers::Normalizer for Normalizer {
    fn normalize(&self, text: &mut NormalizedString) -> tokenizers::Result<()> {
        let result = match self {
            Self::Sequence(parts) => parts.iter().try_for_each(|part| part.normalize(text)),
            Self::Replace { regex, content } => text.replace(regex, content),
            Self::Other(other) => other.normalize(text),
        };
        if let Err(error) = &result {
            DROPPED.set(Some(error.to_string()));
        }
        result
    }
}

/// The pre-tokenizer of a file.
#[derive(Clone, Debug)]
pub(super) enum PreTokenizer {
    Sequence(Vec<PreTokenizer>),
    Split { regex: Regex, behavior: SplitDelimiterBehavior, invert: bool },
    Other(PreTokenizerWrapper),
}

impl PreTokenizer {
    fn from_value(value: &Value) -> Result<Self, String> {
        if let Some(parts) = parts(value, "pretokenizers") {
            return parts.iter().map(Self::from_value).collect::<Result<_, _>>().map(Self::Sequence);
        }
        if value["type"] == "Split" {
            let split: Split = serde_json::from_value(value.clone()).map_err(|e| e.to_string())?;
            if let SplitPattern::Regex(pattern) = &split.pattern {
                let regex = bounded(pattern)?;
                return Ok(Self::Split { regex, behavior: split.behavior, invert: split.invert });
            }
        }
        serde_json::from_value(value.clone()).map(Self::Other).map_err(|e| e.to_string())
    }
}

impl<'de> Deserialize<'de> for PreTokenizer {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::from_value(&Value::deserialize(deserializer)?).map_err(D::Error::custom)
    }
}

impl tokenizers::PreTokenizer for PreTokenizer {
    fn pre_tokenize(&self, text: &mut PreTokenizedString) -> tokenizers::Result<()> {
        match self {
            Self::Sequence(parts) => parts.iter().try_for_each(|part| part.pre_tokenize(text)),
            Self::Split { regex, behavior, invert } => text.split(|_, piece| {
                // Many pieces that each stay below the limit take their time: Ctrl-C ends them.
                checkpoint()?;
                if *invert { piece.split(Invert(regex), *behavior) } else { piece.split(regex, *behavior) }
            }),
            Self::Other(other) => other.pre_tokenize(text),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use tokenizers::{Normalizer as _, OffsetReferential, OffsetType, PreTokenizer as _};

    fn pieces<P: tokenizers::PreTokenizer>(step: &P, text: &str) -> Vec<String> {
        let mut split = PreTokenizedString::from(text);
        step.pre_tokenize(&mut split).unwrap();
        let pieces = split.get_splits(OffsetReferential::Original, OffsetType::Byte);
        pieces.into_iter().map(|(piece, _, _)| piece.to_string()).collect()
    }

    #[test]
    fn the_same_steps_as_the_crates() {
        let text = "It's  a dog,   isn't it?  Yes 123 ";
        for invert in [false, true] {
            for behavior in ["Removed", "Isolated", "MergedWithPrevious", "Contiguous"] {
                // GPT-2's expression, with its look-ahead.
                let split = json!({"type": "Split", "behavior": behavior, "invert": invert, "pattern":
                    {"Regex": r"'s|'t| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"}});
                let file = json!({"type": "Sequence", "pretokenizers": [{"type": "WhitespaceSplit"}, split]});
                for file in [split, file] {
                    let ours: PreTokenizer = serde_json::from_value(file.clone()).unwrap();
                    let theirs: PreTokenizerWrapper = serde_json::from_value(file).unwrap();
                    assert_eq!(pieces(&ours, text), pieces(&theirs, text));
                }
            }
        }
        let replace = json!({"type": "Replace", "pattern": {"Regex": r"\s+(?!\S)|,"}, "content": "_"});
        let plain = json!({"type": "Replace", "pattern": {"String": "dog"}, "content": "cat"});
        let file = json!({"type": "Sequence", "normalizers": [replace, plain, {"type": "Lowercase"}]});
        let mut got = NormalizedString::from(text);
        let mut want = got.clone();
        serde_json::from_value::<Normalizer>(file.clone()).unwrap().normalize(&mut got).unwrap();
        serde_json::from_value::<NormalizerWrapper>(file).unwrap().normalize(&mut want).unwrap();
        assert_eq!(got, want);
        assert!(got.get().contains("cat_"), "{}", got.get());
    }

    #[test]
    fn bombs_are_errors() {
        let bomb = json!({"Regex": "(a|a)*(?=b)c"});
        let split = json!({"type": "Split", "pattern": bomb, "behavior": "Isolated", "invert": false});
        let split: PreTokenizer = serde_json::from_value(split).unwrap();
        assert!(split.pre_tokenize(&mut PreTokenizedString::from("a".repeat(40))).is_err());
        let replace = json!({"type": "Replace", "pattern": bomb, "content": "x"});
        let replace: Normalizer = serde_json::from_value(replace).unwrap();
        assert!(dropped_error().is_none());
        assert!(replace.normalize(&mut NormalizedString::from("a".repeat(40))).is_err());
        assert!(dropped_error().is_some() && dropped_error().is_none());
    }

    #[test]
    fn replacements_may_not_explode() {
        let double = json!({"type": "Replace", "pattern": {"String": "a"}, "content": "aa"});
        let steps = |n| json!({"type": "Sequence", "normalizers": vec![double.clone(); n]});
        assert!(serde_json::from_value::<Normalizer>(steps(8)).is_ok());
        let text = serde_json::from_value::<Normalizer>(steps(9)).unwrap_err().to_string();
        assert!(text.contains("512 characters"), "{text}");
        let long = json!({"type": "Prepend", "prepend": "x".repeat(1000)});
        assert!(serde_json::from_value::<Normalizer>(long).is_err());
    }

    #[test]
    fn depth_is_counted_outside_of_strings() {
        assert!(is_shallow(br#"{"a": ["[[[[[[[[[[[[[[[[[[[[[[[[", "\"[[[[[[[[[[[[[[[[[[[[["]}"#));
        assert!(is_shallow("[]".repeat(100).as_bytes()));
        assert!(is_shallow("[".repeat(MAX_DEPTH).as_bytes()));
        assert!(!is_shallow("[".repeat(MAX_DEPTH + 1).as_bytes()));
    }
}
