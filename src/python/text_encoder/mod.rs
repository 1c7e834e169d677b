//! `headwise._core.TextEncoder`: the model behind `headwise.TextEncoder`, which is a Python class.
//!
//! Here is what needs the crate: opening, tokenizing, computing. What only arranges calls and arrays (prompts,
//! precisions, progress, saving) is written in Python around it, and so are the docstrings that users read.

mod encode;
mod forward;
mod similarity;
mod texts;
mod vjp;

use std::path::{Path, PathBuf};

use ndarray::{ArrayD, IxDyn};
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyDict, PyList, PyTuple, PyType};

use super::boundary::{compute, entry};
use super::layers::held::{dict, read_state};
use super::outputs::array;
use crate::error::{Error, Result};
use crate::models::pooling::Pooling;
use crate::models::settings::Settings;
use crate::models::text_encoder::{AttentionWeights, EncodeCall, TextEncoder, TextEncoderOptions};
use crate::simd::Float;
use forward::{Rows, whole_numbers};
pub use similarity::_unit_rows;

/// The model in the dtype that it computes in.
enum Model {
    F32(TextEncoder<f32>),
    F64(TextEncoder<f64>),
}

/// Runs the same code on either.
macro_rules! either {
    ($model:expr, $m:ident => $body:expr) => {
        match $model {
            Model::F32($m) => $body,
            Model::F64($m) => $body,
        }
    };
}

/// A sentence encoder in memory. It never changes: another length makes another one, which shares the weights.
#[pyclass(frozen, module = "headwise._core", name = "TextEncoder")]
pub struct PyTextEncoder {
    model: Model,
    folder: PathBuf,
    options: TextEncoderOptions,
    settings: Settings,
    /// Whether the parameters are others than those of the folder.
    trained: bool,
}

#[pymethods]
impl PyTextEncoder {
    /// Load the model in a folder.
    #[classmethod]
    #[pyo3(signature = (folder, *, dtype = "float32", max_length = None, pooling = None, mmap = false))]
    fn from_pretrained(
        cls: &Bound<'_, PyType>,
        folder: PathBuf,
        dtype: &str,
        max_length: Option<usize>,
        pooling: Option<&str>,
        mmap: bool,
    ) -> PyResult<Self> {
        entry(|| {
            // The bindings look up NumPy's table of functions at its first use and panic where a signal that came meanwhile
            // interrupts that. So not by the first embeddings, after much work in which one may come, but now.
            cls.py().check_signals()?;
            numpy::dtype::<f32>(cls.py());
            let options =
                TextEncoderOptions { max_length, pooling: pooling.map(pooling_of).transpose()?, mmap };
            let open = |folder: &Path| match dtype {
                "float32" => TextEncoder::open(folder, options).map(Model::F32),
                "float64" => TextEncoder::open(folder, options).map(Model::F64),
                "bfloat16" | "int8" => Err(Error::Value(format!("dtype: {dtype} is not supported yet"))),
                _ => Err(Error::Value(format!("dtype: expected \"float32\" or \"float64\", got {dtype:?}"))),
            };
            let (model, settings) =
                compute(cls.py(), usize::MAX, || Ok((open(&folder)?, Settings::open(&folder)?)))?;
            Ok(Self { model, folder, options, settings, trained: false })
        })
    }

    /// The same model for texts of another length.
    fn with_max_length(&self, py: Python<'_>, max_length: usize) -> PyResult<Self> {
        entry(|| {
            let model = compute(py, usize::MAX, || {
                Ok(match &self.model {
                    Model::F32(model) => Model::F32(model.with_max_length(max_length)?),
                    Model::F64(model) => Model::F64(model.with_max_length(max_length)?),
                })
            })?;
            let options = TextEncoderOptions { max_length: Some(max_length), ..self.options };
            let (folder, settings) = (self.folder.clone(), self.settings.clone());
            Ok(Self { model, folder, options, settings, trained: self.trained })
        })
    }

    /// Embed texts and pairs: (embeddings (B, width), tokens used (B,), cut (B,)).
    #[pyo3(signature = (inputs, skip = 0, truncate_dim = None, normalize = false))]
    fn encode<'py>(
        &self,
        py: Python<'py>,
        inputs: &Bound<'py, PyList>,
        skip: usize,
        truncate_dim: Option<usize>,
        normalize: bool,
    ) -> PyResult<Bound<'py, PyTuple>> {
        entry(|| {
            let texts = texts::texts_of("inputs", inputs)?;
            let call = EncodeCall { skip, truncate_dim, normalize };
            either!(&self.model, model => encode::embed(py, model, &texts, call))
        })
    }

    /// Everything about texts and pairs: ([(ids, types, states (L, D), embedding (D,)), ...], tokens used, cut).
    #[pyo3(signature = (inputs, skip = 0))]
    fn states<'py>(
        &self,
        py: Python<'py>,
        inputs: &Bound<'py, PyList>,
        skip: usize,
    ) -> PyResult<Bound<'py, PyTuple>> {
        entry(|| {
            let texts = texts::texts_of("inputs", inputs)?;
            let call = EncodeCall { skip, ..EncodeCall::default() };
            either!(&self.model, model => encode::states(py, model, &texts, call))
        })
    }

    /// Embed texts and pairs in one batch: (embeddings (B, width), pullback).
    #[pyo3(signature = (inputs, skip = 0, first_layer = 0))]
    fn vjp<'py>(
        &self,
        py: Python<'py>,
        inputs: &Bound<'py, PyList>,
        skip: usize,
        first_layer: usize,
    ) -> PyResult<Bound<'py, PyAny>> {
        entry(|| {
            let texts = texts::texts_of("inputs", inputs)?;
            either!(&self.model, model => vjp::vjp(py, model, &texts, skip, first_layer))
        })
    }

    /// Return copies of the parameters.
    fn state_dict<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        entry(|| either!(&self.model, model => dict(py, compute(py, usize::MAX, || model.state())?)))
    }

    /// The same model with other parameters.
    #[pyo3(signature = (state, strict = true))]
    fn with_state(&self, state: &Bound<'_, PyAny>, strict: bool) -> PyResult<Self> {
        entry(|| {
            let py = state.py();
            let model = match &self.model {
                Model::F32(model) => {
                    let given = read_state(state)?;
                    Model::F32(compute(py, usize::MAX, || model.with_state(given, strict))?)
                }
                Model::F64(model) => {
                    let given = read_state(state)?;
                    Model::F64(compute(py, usize::MAX, || model.with_state(given, strict))?)
                }
            };
            let (folder, settings) = (self.folder.clone(), self.settings.clone());
            Ok(Self { model, folder, options: self.options, settings, trained: true })
        })
    }

    /// Count the tokens of texts and pairs before they are cut: (B,).
    fn lengths<'py>(&self, py: Python<'py>, inputs: &Bound<'py, PyList>) -> PyResult<Bound<'py, PyAny>> {
        entry(|| {
            let texts = texts::texts_of("inputs", inputs)?;
            either!(&self.model, model => encode::lengths(py, model, &texts))
        })
    }

    /// Turn texts and pairs into padded arrays of token ids.
    fn features<'py>(&self, py: Python<'py>, inputs: &Bound<'py, PyList>) -> PyResult<Bound<'py, PyDict>> {
        entry(|| {
            let texts = texts::texts_of("inputs", inputs)?;
            either!(&self.model, model => encode::features(py, model, &texts))
        })
    }

    /// Count the tokens that a prompt puts before a text's own.
    fn prompt_length(&self, prompt: &Bound<'_, PyAny>) -> PyResult<usize> {
        entry(|| {
            let prompt = texts::text_of("prompt", prompt)?;
            Ok(either!(&self.model, model => model.prompt_length(&prompt))?)
        })
    }

    /// Compute the last hidden states (B, L, D) of rows of token ids.
    #[pyo3(signature = (input_ids, attention_mask = None, token_type_ids = None))]
    fn forward<'py>(
        &self,
        py: Python<'py>,
        input_ids: &Bound<'py, PyAny>,
        attention_mask: Option<&Bound<'py, PyAny>>,
        token_type_ids: Option<&Bound<'py, PyAny>>,
    ) -> PyResult<Bound<'py, PyAny>> {
        entry(|| {
            let (ids, shape) = whole_numbers("input_ids", input_ids, None)?;
            let other = |name, object| Ok::<_, PyErr>(whole_numbers(name, object, Some(shape))?.0);
            let mask = attention_mask.map(|o| other("attention_mask", o)).transpose()?;
            let types = token_type_ids.map(|o| other("token_type_ids", o)).transpose()?;
            if mask.as_ref().is_some_and(|m| m.iter().any(|&v| v > 1)) {
                return Err(Error::Value("attention_mask: expected 0 and 1".into()).into());
            }
            let rows = Rows { ids, mask, types, shape };
            either!(&self.model, model => forward::hidden(py, model, &rows))
        })
    }

    /// Compute the attention weights of every layer and head for a text or pair.
    #[pyo3(signature = (text, text_pair = None))]
    fn attentions<'py>(
        &self,
        py: Python<'py>,
        text: &Bound<'py, PyAny>,
        text_pair: Option<&Bound<'py, PyAny>>,
    ) -> PyResult<Bound<'py, PyAny>> {
        entry(|| {
            let text = texts::text_of("text", text)?;
            let pair = text_pair.map(|t| texts::text_of("text_pair", t)).transpose()?;
            either!(&self.model, model => maps(py, model, &text, pair.as_deref()))
        })
    }

    /// The folder that the model was read from.
    #[getter]
    fn folder(&self) -> &Path {
        &self.folder
    }

    /// Whether the parameters are others than those of the folder.
    #[getter]
    fn trained(&self) -> bool {
        self.trained
    }

    /// What is computed in.
    #[getter]
    fn dtype(&self) -> &'static str {
        match self.model {
            Model::F32(_) => f32::NAME,
            Model::F64(_) => f64::NAME,
        }
    }

    /// The width of an embedding.
    #[getter]
    fn width(&self) -> usize {
        either!(&self.model, model => model.width())
    }

    /// Tokens that a text may have.
    #[getter]
    fn max_length(&self) -> usize {
        either!(&self.model, model => model.tokenizer().max_length())
    }

    /// How token rows become one; several ways are joined by "+".
    #[getter]
    fn pooling(&self) -> String {
        either!(&self.model, model => model.head().poolings())
            .iter()
            .map(|p| p.name())
            .collect::<Vec<_>>()
            .join("+")
    }

    /// What the folder says of prompts, similarity and the width of embeddings.
    #[getter]
    fn settings<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let prompts = PyDict::new(py);
        for (name, text) in &self.settings.prompts {
            prompts.set_item(name, text)?;
        }
        let settings = PyDict::new(py);
        settings.set_item("prompts", prompts)?;
        settings.set_item("default_prompt_name", &self.settings.default_prompt_name)?;
        settings.set_item("similarity_fn_name", &self.settings.similarity_fn_name)?;
        settings.set_item("truncate_dim", self.settings.truncate_dim)?;
        settings.set_item("include_prompt", self.settings.include_prompt)?;
        Ok(settings)
    }

    fn __repr__(&self) -> String {
        either!(&self.model, model => {
            let c = model.config();
            format!(
                "TextEncoder({} layers, D={}, heads={}, max_seq_length={}, pooling={:?}, normalize={}, dtype={:?})",
                c.num_hidden_layers,
                c.hidden_size,
                c.num_attention_heads,
                model.tokenizer().max_length(),
                self.pooling(),
                if model.normalizes() { "True" } else { "False" },
                self.dtype(),
            )
        })
    }

    /// The model never changes, so a copy of it is the model itself.
    fn __deepcopy__<'py>(slf: Bound<'py, Self>, _memo: &Bound<'py, PyAny>) -> Bound<'py, Self> {
        slf
    }

    /// A pickle names the folder, and opens it again; trained parameters it holds itself.
    fn __reduce__<'py>(slf: &Bound<'py, Self>) -> PyResult<(Bound<'py, PyAny>, Bound<'py, PyTuple>)> {
        let py = slf.py();
        let this = slf.get();
        let keywords = PyDict::new(py);
        keywords.set_item("dtype", this.dtype())?;
        keywords.set_item("max_length", this.options.max_length)?;
        keywords.set_item("pooling", this.options.pooling.map(Pooling::name))?;
        keywords.set_item("mmap", this.options.mmap)?;
        let open = slf.get_type().getattr("from_pretrained")?;
        let partial = py.import("functools")?.getattr("partial")?.call((open,), Some(&keywords))?;
        let folder = std::path::absolute(&this.folder)?;
        if this.trained {
            let again = py.import("headwise._text_model")?.getattr("reopened")?;
            return Ok((again, (partial, folder, slf.get().state_dict(py)?).into_pyobject(py)?));
        }
        Ok((partial, PyTuple::new(py, [folder])?))
    }
}

fn pooling_of(name: &str) -> Result<Pooling> {
    Pooling::from_name(name).ok_or_else(|| {
        Error::Value(format!(
            "pooling: expected one of {}, got {name:?}",
            Pooling::ALL.map(Pooling::name).join(", ")
        ))
    })
}

fn maps<'py, T: Float + numpy::Element>(
    py: Python<'py>,
    model: &TextEncoder<T>,
    text: &str,
    pair: Option<&str>,
) -> PyResult<Bound<'py, PyAny>> {
    static CLASS: PyOnceLock<Py<PyType>> = PyOnceLock::new();
    let AttentionWeights { tokens, weights } = compute(py, usize::MAX, || model.attentions(text, pair))?;
    let (c, l) = (model.config(), tokens.tokens.len());
    let weights = shaped(py, weights, &[c.num_hidden_layers, c.num_attention_heads, l, l])?;
    let class = CLASS.import(py, "headwise._attention_maps", "AttentionMaps")?;
    let sources: Vec<&str> = std::iter::once(text).chain(pair).collect();
    class.call1((weights, tokens.tokens, tokens.words, tokens.texts, tokens.offsets, sources))
}

fn shaped<'py, T: numpy::Element>(
    py: Python<'py>,
    values: Vec<T>,
    shape: &[usize],
) -> PyResult<Bound<'py, PyAny>> {
    let values = ArrayD::from_shape_vec(IxDyn(shape), values).map_err(|e| Error::Internal(e.to_string()))?;
    Ok(array(py, values))
}
