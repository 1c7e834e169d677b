//! `config.json` of a BERT family model, checked before anything is believed.
//!
//! Keys that are absent mean what they mean to `transformers`; keys that change the mathematics in a way that is not
//! computed here (relative positions, a decoder, another activation, quantized weights) are refused by name rather
//! than passed over.

use serde_json::Value;

use crate::error::{Error, Result};
use crate::kernels::activation::Activation;

/// Bound of every size in a config: far above any model, and products of three fit in 128 bits.
const MAX_SIZE: u64 = 1 << 31;

/// The function between the two halves of the feed-forward network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HiddenAct {
    /// x * Phi(x), by erf.
    Gelu,
    /// The approximation of gelu by tanh.
    GeluTanh,
    /// max(x, 0).
    Relu,
    /// x * sigmoid(x).
    Silu,
}

impl HiddenAct {
    /// The layers' name of it.
    pub fn activation(self) -> Activation {
        match self {
            Self::Gelu => Activation::Gelu,
            Self::GeluTanh => Activation::GeluTanh,
            Self::Relu => Activation::Relu,
            Self::Silu => Activation::Silu,
        }
    }
}

/// What `config.json` says of a BERT family model.
#[derive(Debug, Clone, PartialEq)]
pub struct BertConfig {
    /// D, the model width.
    pub hidden_size: usize,
    /// Layers of the encoder.
    pub num_hidden_layers: usize,
    /// H, heads of each layer; divides D.
    pub num_attention_heads: usize,
    /// F, the feed-forward width.
    pub intermediate_size: usize,
    /// The activation of the feed-forward network.
    pub hidden_act: HiddenAct,
    /// The epsilon of every layer norm.
    pub layer_norm_eps: f64,
    /// Rows of the word table.
    pub vocab_size: usize,
    /// Rows of the position table: the longest sequence.
    pub max_position_embeddings: usize,
    /// Rows of the token type table.
    pub type_vocab_size: usize,
    /// The id that fills short rows where texts are shown as one rectangle; never computed with.
    pub pad_token_id: u32,
}

impl BertConfig {
    /// Reads a config; `file` is the name that errors give.
    ///
    /// # Errors
    /// `Unsupported` for a family or an option that is not computed, `ModelFormat` for values that make no sense.
    pub fn from_json(json: &Value, file: &str) -> Result<Self> {
        let fields = Fields { json, file };
        if !json.is_object() {
            return Err(Error::ModelFormat(format!("{file}: expected a JSON object")));
        }
        match json.get("model_type").and_then(Value::as_str) {
            Some("bert") => {}
            Some(other) => {
                return Err(Error::Unsupported(format!(
                    "{file}: model_type {other:?} is not supported; supported are: \"bert\""
                )));
            }
            None => return Err(Error::ModelFormat(format!("{file}: no model_type"))),
        }
        fields.refuse_what_is_not_computed()?;
        let config = Self {
            hidden_size: fields.size("hidden_size", 768)?,
            num_hidden_layers: fields.size("num_hidden_layers", 12)?,
            num_attention_heads: fields.size("num_attention_heads", 12)?,
            intermediate_size: fields.size("intermediate_size", 3072)?,
            hidden_act: fields.activation()?,
            layer_norm_eps: fields.epsilon()?,
            vocab_size: fields.size("vocab_size", 30522)?,
            max_position_embeddings: fields.size("max_position_embeddings", 512)?,
            type_vocab_size: fields.size("type_vocab_size", 2)?,
            pad_token_id: json["pad_token_id"].as_u64().and_then(|id| u32::try_from(id).ok()).unwrap_or(0),
        };
        if !config.hidden_size.is_multiple_of(config.num_attention_heads) {
            return Err(Error::ModelFormat(format!(
                "{file}: num_attention_heads {} does not divide hidden_size {}",
                config.num_attention_heads, config.hidden_size
            )));
        }
        Ok(config)
    }
}

/// The keys of one config, with errors that name file and key.
struct Fields<'a> {
    json: &'a Value,
    file: &'a str,
}

impl Fields<'_> {
    fn get(&self, key: &str) -> Option<&Value> {
        self.json.get(key).filter(|v| !v.is_null())
    }

    fn size(&self, key: &str, default: u64) -> Result<usize> {
        let value = match self.get(key) {
            None => Some(default),
            Some(v) => v.as_u64(),
        };
        match value {
            Some(n @ 1..=MAX_SIZE) => Ok(n as usize),
            _ => Err(Error::ModelFormat(format!(
                "{}: {key} should be a whole number from 1 to {MAX_SIZE}, got {}",
                self.file, self.json[key]
            ))),
        }
    }

    fn epsilon(&self) -> Result<f64> {
        match self.get("layer_norm_eps").map_or(Some(1e-12), Value::as_f64) {
            Some(eps) if eps.is_finite() && eps >= 0.0 => Ok(eps),
            _ => Err(Error::ModelFormat(format!(
                "{}: layer_norm_eps should be a number of at least 0, got {}",
                self.file, self.json["layer_norm_eps"]
            ))),
        }
    }

    fn activation(&self) -> Result<HiddenAct> {
        match self.get("hidden_act") {
            None => Ok(HiddenAct::Gelu),
            Some(v) => match v.as_str() {
                Some("gelu") => Ok(HiddenAct::Gelu),
                Some("gelu_new" | "gelu_pytorch_tanh") => Ok(HiddenAct::GeluTanh),
                Some("relu") => Ok(HiddenAct::Relu),
                Some("silu" | "swish") => Ok(HiddenAct::Silu),
                _ => Err(Error::Unsupported(format!(
                    "{}: hidden_act {v} is not supported; supported are: gelu, gelu_new, gelu_pytorch_tanh, relu, silu, swish",
                    self.file
                ))),
            },
        }
    }

    fn refuse_what_is_not_computed(&self) -> Result<()> {
        let refuse =
            |what: String| Err(Error::Unsupported(format!("{}: {what} is not supported", self.file)));
        if let Some(kind) = self.get("position_embedding_type")
            && kind.as_str() != Some("absolute")
        {
            return refuse(format!("position_embedding_type {kind}"));
        }
        for flag in ["is_decoder", "add_cross_attention", "is_encoder_decoder"] {
            if self.get(flag).is_some_and(|v| v != &Value::Bool(false)) {
                return refuse(flag.to_string());
            }
        }
        if self.get("quantization_config").is_some() {
            return refuse("quantization_config".to_string());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn parse(json: &Value) -> Result<BertConfig> {
        BertConfig::from_json(json, "config.json")
    }

    #[test]
    fn absent_keys_mean_what_they_mean_to_transformers() {
        let config = parse(&json!({"model_type": "bert"})).unwrap();
        assert_eq!((config.hidden_size, config.num_hidden_layers, config.num_attention_heads), (768, 12, 12));
        assert_eq!((config.intermediate_size, config.hidden_act), (3072, HiddenAct::Gelu));
        assert!((config.layer_norm_eps - 1e-12).abs() < 1e-20);
    }

    #[test]
    fn activations_by_their_names() {
        for (name, act) in [
            ("gelu", HiddenAct::Gelu),
            ("gelu_new", HiddenAct::GeluTanh),
            ("relu", HiddenAct::Relu),
            ("silu", HiddenAct::Silu),
        ] {
            assert_eq!(parse(&json!({"model_type": "bert", "hidden_act": name})).unwrap().hidden_act, act);
        }
    }

    #[test]
    fn what_is_not_computed_is_named() {
        for (key, value) in [
            ("model_type", json!("gpt2")),
            ("hidden_act", json!("quick_gelu")),
            ("position_embedding_type", json!("relative_key")),
            ("is_decoder", json!(true)),
            ("quantization_config", json!({"bits": 4})),
        ] {
            let mut config = json!({"model_type": "bert"});
            config[key] = value;
            match parse(&config) {
                Err(Error::Unsupported(text)) => assert!(text.contains(key), "{text}"),
                other => panic!("{key}: {other:?}"),
            }
        }
    }

    #[test]
    fn senseless_values_are_refused() {
        for (key, value) in [
            ("hidden_size", json!(0)),
            ("hidden_size", json!(-4)),
            ("hidden_size", json!("384")),
            ("vocab_size", json!(1u64 << 40)),
            ("num_hidden_layers", json!(1.5)),
            ("num_attention_heads", json!(7)),
            ("layer_norm_eps", json!(-1.0)),
            ("layer_norm_eps", json!("x")),
        ] {
            let mut config = json!({"model_type": "bert"});
            config[key] = value;
            match parse(&config) {
                Err(Error::ModelFormat(text)) => assert!(text.contains(key), "{text}"),
                other => panic!("{key}: {other:?}"),
            }
        }
        assert!(matches!(parse(&json!([])), Err(Error::ModelFormat(_))));
        assert!(matches!(parse(&json!({})), Err(Error::ModelFormat(_))));
    }
}
