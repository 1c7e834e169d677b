//! `TextEncoder`: a sentence encoder from a folder.
//!
//! The calls are those of sentence-transformers 6.2. What it knows and this class does not do yet is refused by name,
//! never passed over: a result that silently lacks what was asked for is worse than an error.

use std::path::{Path, PathBuf};

use ndarray::{ArrayD, IxDyn};
use pyo3::exceptions::PyTypeError;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyBytes, PyDict, PySet, PyString, PyTuple, PyType};

use super::arrays::{Operand, type_name};
use super::boundary::{compute, entry};
use super::dtypes::Source;
use super::outputs::array;
use crate::error::{Error, Result};
use crate::models::pooling::Pooling;
use crate::models::text_encoder::{AttentionWeights, Packed, TextEncoder, TextEncoderOptions};
use crate::models::tokenizer::Tokenizer;
use crate::simd::Float;

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

/// A sentence encoder: texts to embeddings, hidden states and attention maps.
///
/// Made by `TextEncoder.from_pretrained`. Its calls are those of sentence-transformers; an argument that it does not
/// support yet is an error.
///
/// An embedding is a function of its text alone: the batch, its order and the number of threads change no bit of it.
///
/// Examples
/// --------
/// >>> import headwise as hw
/// >>> encoder = hw.TextEncoder.from_pretrained("minilm")  # doctest: +SKIP
/// >>> encoder.encode("a dog ate the food").shape  # doctest: +SKIP
/// (384,)
#[pyclass(frozen, module = "headwise", name = "TextEncoder")]
pub struct PyTextEncoder {
    model: Model,
    folder: PathBuf,
    options: TextEncoderOptions,
}

#[pymethods]
impl PyTextEncoder {
    /// Load a model from a folder.
    ///
    /// Nothing is fetched: ``headwise fetch minilm`` does that.
    ///
    /// Parameters
    /// ----------
    /// folder_or_name : str or path
    ///     A folder with config.json, model.safetensors and tokenizer.json, or the name of a model that has been
    ///     fetched, such as ``"minilm"``.
    /// dtype : {"float32", "float64"}
    ///     What is computed in.
    /// max_length : int, optional
    ///     Tokens that a text may have, special ones included; longer texts are cut. The model's own number by default.
    /// pooling : {"mean", "cls", "max", "lasttoken", "mean_sqrt_len_tokens", "weightedmean"}, optional
    ///     How the rows of a text's tokens become one. The model's own way by default.
    /// mmap : bool
    ///     Map the files of weights instead of reading them: tables in the model's dtype then share the memory of other
    ///     processes. Only for files that nobody changes: if one is cut while it is mapped, the process dies.
    ///
    /// Returns
    /// -------
    /// TextEncoder
    ///     The model.
    ///
    /// Raises
    /// ------
    /// FileNotFoundError
    ///     If the folder or one of its files is missing.
    /// ModelFormatError
    ///     If a file is damaged or does not fit the others.
    /// TokenizerError
    ///     If tokenizer.json is damaged.
    /// UnsupportedModelError
    ///     If the model is of a kind that headwise does not run.
    #[classmethod]
    #[pyo3(signature = (folder_or_name, *, dtype = "float32", max_length = None, pooling = None, mmap = false))]
    fn from_pretrained(
        cls: &Bound<'_, PyType>,
        folder_or_name: PathBuf,
        dtype: &str,
        max_length: Option<usize>,
        pooling: Option<&str>,
        mmap: bool,
    ) -> PyResult<Self> {
        entry(|| {
            let py = cls.py();
            let options =
                TextEncoderOptions { max_length, pooling: pooling.map(pooling_of).transpose()?, mmap };
            let folder = find(py, folder_or_name)?;
            let open = |folder: &Path| match dtype {
                "float32" => TextEncoder::open(folder, options).map(Model::F32),
                "float64" => TextEncoder::open(folder, options).map(Model::F64),
                "bfloat16" | "int8" => Err(Error::Value(format!("dtype: {dtype} is not supported yet"))),
                _ => Err(Error::Value(format!("dtype: expected \"float32\" or \"float64\", got {dtype:?}"))),
            };
            let model = compute(py, usize::MAX, || open(&folder))?;
            Ok(Self { model, folder, options })
        })
    }

    /// Embed texts.
    ///
    /// Parameters
    /// ----------
    /// inputs : str or sequence of str
    ///     The texts.
    /// prompt_name : None
    ///     Not supported yet.
    /// prompt : None
    ///     Not supported yet.
    /// batch_size : int
    ///     Taken for compatibility: texts are packed without padding into batches of a fixed number of tokens, and
    ///     neither results nor memory depend on this number.
    /// show_progress_bar : bool, optional
    ///     True is not supported yet.
    /// output_value : {"sentence_embedding"}
    ///     What to give.
    /// precision : {"float32"}
    ///     How embeddings are held.
    /// convert_to_numpy : bool
    ///     Always True.
    /// convert_to_tensor : bool
    ///     Always False.
    /// device : {None, "cpu"}
    ///     Where to compute.
    /// normalize_embeddings : bool
    ///     Bring each embedding to length 1. Some models, MiniLM for one, do so unasked.
    /// truncate_dim : None
    ///     Not supported yet.
    /// pool : None
    ///     There are no pools of processes: all threads are used anyway.
    /// chunk_size : None
    ///     Belongs to `pool`.
    /// sentences : str or sequence of str, optional
    ///     Another name of `inputs`.
    ///
    /// Returns
    /// -------
    /// ndarray of shape (B, D), or (D,) for one text
    ///     The embeddings, in the dtype of the model.
    ///
    /// Raises
    /// ------
    /// TypeError
    ///     If `inputs` holds anything but texts.
    /// ValueError
    ///     If an argument asks for what is not supported.
    /// TokenizerError
    ///     If a text cannot be tokenized.
    #[pyo3(signature = (inputs = None, prompt_name = None, prompt = None, batch_size = 32, show_progress_bar = None,
        output_value = Some("sentence_embedding"), precision = "float32", convert_to_numpy = true,
        convert_to_tensor = false, device = None, normalize_embeddings = false, truncate_dim = None, pool = None,
        chunk_size = None, *, sentences = None),
        text_signature = "($self, inputs=None, prompt_name=None, prompt=None, batch_size=32, show_progress_bar=None, \
        output_value='sentence_embedding', precision='float32', convert_to_numpy=True, convert_to_tensor=False, \
        device=None, normalize_embeddings=False, truncate_dim=None, pool=None, chunk_size=None, *, sentences=None)")]
    #[expect(clippy::too_many_arguments, reason = "the call is sentence-transformers'")]
    fn encode<'py>(
        &self,
        py: Python<'py>,
        inputs: Option<&Bound<'py, PyAny>>,
        prompt_name: Option<&Bound<'py, PyAny>>,
        prompt: Option<&Bound<'py, PyAny>>,
        batch_size: i64,
        show_progress_bar: Option<bool>,
        output_value: Option<&str>,
        precision: &str,
        convert_to_numpy: bool,
        convert_to_tensor: bool,
        device: Option<&Bound<'py, PyAny>>,
        normalize_embeddings: bool,
        truncate_dim: Option<&Bound<'py, PyAny>>,
        pool: Option<&Bound<'py, PyAny>>,
        chunk_size: Option<&Bound<'py, PyAny>>,
        sentences: Option<&Bound<'py, PyAny>>,
    ) -> PyResult<Bound<'py, PyAny>> {
        entry(|| {
            let cpu = match device {
                None => true,
                Some(name) => name.cast::<PyString>().is_ok_and(|s| s == "cpu"),
            };
            for (fits, refusal) in [
                (
                    prompt_name.is_none(),
                    "prompt_name: prompts are not supported yet; put them before the texts",
                ),
                (prompt.is_none(), "prompt: prompts are not supported yet; put it before the texts"),
                (batch_size >= 1, "batch_size: expected at least 1"),
                (show_progress_bar != Some(true), "show_progress_bar: not supported yet"),
                (
                    output_value == Some("sentence_embedding"),
                    "output_value: only \"sentence_embedding\" is supported yet; forward gives the rows of tokens",
                ),
                (precision == "float32", "precision: only \"float32\" is supported yet"),
                (convert_to_numpy, "convert_to_numpy: results are NumPy arrays, expected True"),
                (
                    !convert_to_tensor,
                    "convert_to_tensor: results are NumPy arrays; torch.from_numpy makes a tensor",
                ),
                (cpu, "device: expected None or \"cpu\""),
                (truncate_dim.is_none(), "truncate_dim: not supported yet; slice the result"),
                (pool.is_none(), "pool: there are no pools; one call uses all threads"),
                (chunk_size.is_none(), "chunk_size: belongs to pool, and there are no pools"),
            ] {
                if !fits {
                    return Err(Error::Value(refusal.to_string()).into());
                }
            }
            let inputs = match (inputs, sentences) {
                (Some(_), Some(_)) => {
                    Err(PyTypeError::new_err("sentences: another name of inputs, got both"))
                }
                (Some(texts), None) | (None, Some(texts)) => Ok(texts),
                (None, None) => {
                    Err(Error::Type("inputs: expected a text or a list of texts, got None".into()).into())
                }
            }?;
            let (texts, one) = texts(inputs)?;
            either!(&self.model, model => embed(py, model, &texts, one, normalize_embeddings))
        })
    }

    /// Compute the last hidden state of rows of token ids.
    ///
    /// Positions are counted along a row, padding included, as in ``transformers``. Padding is not computed.
    ///
    /// Parameters
    /// ----------
    /// input_ids : array_like of int, shape (B, L)
    ///     Token ids.
    /// attention_mask : array_like of bool or 0/1, shape (B, L), optional
    ///     True for tokens, False for padding. All are tokens by default.
    /// token_type_ids : array_like of int, shape (B, L), optional
    ///     0 for the first text of a pair, 1 for the second. All 0 by default.
    ///
    /// Returns
    /// -------
    /// ndarray of shape (B, L, D)
    ///     A row for each token; 0 for padding.
    ///
    /// Raises
    /// ------
    /// ValueError
    ///     If shapes do not fit or a number is outside its table.
    /// TypeError
    ///     If an array does not hold whole numbers.
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
            either!(&self.model, model => hidden(py, model, &rows))
        })
    }

    /// Compute the attention weights of every layer and head for a text.
    ///
    /// Parameters
    /// ----------
    /// text : str
    ///     The text; cut where it is longer than `max_seq_length`.
    /// text_pair : str, optional
    ///     A second text, put behind the first as the model was trained with pairs.
    ///
    /// Returns
    /// -------
    /// AttentionMaps
    ///     Weights, tokens and words; ``maps[layer, head]`` is an (L, L) array.
    #[pyo3(signature = (text, text_pair = None))]
    fn attentions<'py>(
        &self,
        py: Python<'py>,
        text: &Bound<'py, PyAny>,
        text_pair: Option<&Bound<'py, PyAny>>,
    ) -> PyResult<Bound<'py, PyAny>> {
        entry(|| {
            let text = text_of("text", text)?;
            let pair = text_pair.map(|t| text_of("text_pair", t)).transpose()?;
            either!(&self.model, model => maps(py, model, &text, pair.as_deref()))
        })
    }

    /// Turn texts into token ids.
    ///
    /// Parameters
    /// ----------
    /// texts : str or sequence of str
    ///     The texts; each is cut where it is longer than `max_seq_length`.
    ///
    /// Returns
    /// -------
    /// dict of str to ndarray of int64, shape (B, L)
    ///     ``input_ids``, ``attention_mask`` and ``token_type_ids``, padded on the right to the longest text: the
    ///     arguments of `forward`.
    fn tokenize<'py>(&self, py: Python<'py>, texts: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyDict>> {
        entry(|| {
            let (texts, _) = self::texts(texts)?;
            either!(&self.model, model => features(py, model.tokenizer(), model.config().pad_token_id, &texts))
        })
    }

    /// Turn texts into token ids: the present name of `tokenize` in sentence-transformers.
    ///
    /// Parameters
    /// ----------
    /// inputs : str or sequence of str
    ///     The texts.
    ///
    /// Returns
    /// -------
    /// dict of str to ndarray of int64, shape (B, L)
    ///     As `tokenize` gives.
    fn preprocess<'py>(&self, py: Python<'py>, inputs: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyDict>> {
        self.tokenize(py, inputs)
    }

    /// Give the width of the embeddings.
    ///
    /// Returns
    /// -------
    /// int
    ///     D.
    fn get_embedding_dimension(&self) -> usize {
        either!(&self.model, model => model.head().width())
    }

    /// Tokens that a text may have, special ones included; longer texts are cut.
    #[getter]
    fn max_seq_length(&self) -> usize {
        either!(&self.model, model => model.tokenizer().max_length())
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
                model.head().poolings().iter().map(|p| p.name()).collect::<Vec<_>>().join("+"),
                if model.head().normalizes() { "True" } else { "False" },
                self.dtype(),
            )
        })
    }

    /// A pickle names the folder, and opens it again.
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
        Ok((partial, PyTuple::new(py, [folder])?))
    }
}

impl PyTextEncoder {
    fn dtype(&self) -> &'static str {
        match self.model {
            Model::F32(_) => f32::NAME,
            Model::F64(_) => f64::NAME,
        }
    }
}

/// The folder itself, or that of a fetched model.
fn find(py: Python<'_>, folder_or_name: PathBuf) -> PyResult<PathBuf> {
    if folder_or_name.is_dir() {
        return Ok(folder_or_name);
    }
    py.import("headwise._fetch")?.getattr("find")?.call1((folder_or_name.to_string_lossy(),))?.extract()
}

fn pooling_of(name: &str) -> Result<Pooling> {
    Pooling::from_name(name).ok_or_else(|| {
        Error::Value(format!(
            "pooling: expected one of {}, got {name:?}",
            Pooling::ALL.map(Pooling::name).join(", ")
        ))
    })
}

/// A text's characters; a lone surrogate has none.
fn text_of(name: &str, object: &Bound<'_, PyAny>) -> PyResult<String> {
    let Ok(text) = object.cast::<PyString>() else {
        return Err(Error::Type(format!("{name}: expected texts (str), got {}", type_name(object))).into());
    };
    match text.to_cow() {
        Ok(text) => Ok(text.into_owned()),
        Err(e) => Err(Error::Value(format!("{name}: a text that is no Unicode: {e}")).into()),
    }
}

/// The texts of `inputs`, and whether it was one alone.
fn texts(inputs: &Bound<'_, PyAny>) -> PyResult<(Vec<String>, bool)> {
    if inputs.is_instance_of::<PyString>() {
        return Ok((vec![text_of("inputs", inputs)?], true));
    }
    // A dict or set would be iterated too, but in an order that nobody meant.
    let odd = inputs.is_instance_of::<PyDict>()
        || inputs.is_instance_of::<PySet>()
        || inputs.is_instance_of::<PyBytes>();
    let items = if odd { None } else { inputs.try_iter().ok() };
    let Some(items) = items else {
        let came = type_name(inputs);
        return Err(Error::Type(format!("inputs: expected a text or a list of texts, got {came}")).into());
    };
    let texts = items.map(|item| text_of("inputs", &item?)).collect::<PyResult<_>>()?;
    Ok((texts, false))
}

fn embed<'py, T: Float + numpy::Element>(
    py: Python<'py>,
    model: &TextEncoder<T>,
    texts: &[String],
    one: bool,
    normalize: bool,
) -> PyResult<Bound<'py, PyAny>> {
    let rows = compute(py, usize::MAX, || model.encode(texts, normalize))?;
    let d = model.head().width();
    if one { shaped(py, rows, &[d]) } else { shaped(py, rows, &[texts.len(), d]) }
}

/// Rows of token ids as `forward` takes them.
struct Rows {
    ids: Vec<u32>,
    mask: Option<Vec<u32>>,
    types: Option<Vec<u32>>,
    /// (B, L).
    shape: [usize; 2],
}

fn hidden<'py, T: Float + numpy::Element>(
    py: Python<'py>,
    model: &TextEncoder<T>,
    rows: &Rows,
) -> PyResult<Bound<'py, PyAny>> {
    let [b, l] = rows.shape;
    let d = model.config().hidden_size;
    let longest = model.config().max_position_embeddings;
    if l > longest {
        return Err(
            Error::Shape(format!("input_ids: expected at most {longest} tokens in a row, got {l}")).into()
        );
    }
    let out = compute(py, usize::MAX, || {
        let mut packed = Packed::new();
        let mut places = Vec::new();
        for row in 0..b {
            for column in 0..l {
                let at = row * l + column;
                if rows.mask.as_ref().is_none_or(|m| m[at] == 1) {
                    packed.push_token(rows.ids[at], rows.types.as_ref().map_or(0, |t| t[at]), column as u32);
                    places.push(at);
                }
            }
            packed.close();
        }
        let states = model.hidden(&packed)?;
        let mut out = crate::ops::buffer::zeros(b * l * d)?;
        for (state, at) in states.chunks_exact(d).zip(places) {
            out[at * d..(at + 1) * d].copy_from_slice(state);
        }
        Ok(out)
    })?;
    shaped(py, out, &[b, l, d])
}

/// An array (B, L) of whole numbers that are not negative.
fn whole_numbers(
    name: &'static str,
    object: &Bound<'_, PyAny>,
    expected: Option<[usize; 2]>,
) -> PyResult<(Vec<u32>, [usize; 2])> {
    let operand = Operand::new(name, object)?;
    let shape = operand.shape();
    let &[b, l] = shape else {
        return Err(Error::Shape(format!("{name}: expected shape (B, L), got {shape:?}")).into());
    };
    if let Some([want_b, want_l]) = expected.filter(|&e| e != [b, l]) {
        return Err(
            Error::Shape(format!("{name}: expected shape ({want_b}, {want_l}), got ({b}, {l})")).into()
        );
    }
    // An empty list counts as float64, and holds no number that could be none.
    if !matches!(operand.source(), Source::Bool | Source::Integer) && b * l > 0 {
        return Err(
            Error::Type(format!("{name}: expected whole numbers, got {}", operand.kind().name())).into()
        );
    }
    // Integers beyond 2^53 are not exact in f64, but they are out of range all the same.
    let numbers = operand.read::<f64>()?;
    let whole = |&v: &f64| {
        if v >= 0.0 && v <= f64::from(u32::MAX) {
            Ok(v as u32)
        } else {
            Err(Error::Value(format!("{name}: expected whole numbers of at least 0, got {v}")))
        }
    };
    let numbers = numbers.view().iter().map(whole).collect::<Result<_>>()?;
    Ok((numbers, [b, l]))
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
    class.call1((weights, tokens.tokens, tokens.words, tokens.texts, tokens.offsets))
}

fn features<'py>(
    py: Python<'py>,
    tokenizer: &Tokenizer,
    pad: u32,
    texts: &[String],
) -> PyResult<Bound<'py, PyDict>> {
    let tokens = compute(py, usize::MAX, || {
        texts
            .iter()
            .map(|text| {
                crate::threads::checkpoint()?;
                tokenizer.ids(text)
            })
            .collect::<Result<Vec<_>>>()
    })?;
    let longest = tokens.iter().map(|t| t.ids.len()).max().unwrap_or(0);
    let padded = |part: &dyn Fn(usize) -> (Vec<i64>, i64)| {
        let mut rows = Vec::with_capacity(tokens.len() * longest);
        for text in 0..tokens.len() {
            let (mut row, fill) = part(text);
            row.resize(longest, fill);
            rows.extend(row);
        }
        shaped(py, rows, &[tokens.len(), longest])
    };
    let wide = |numbers: &[u32]| numbers.iter().map(|&n| i64::from(n)).collect::<Vec<_>>();
    let features = PyDict::new(py);
    features.set_item("input_ids", padded(&|t| (wide(&tokens[t].ids), i64::from(pad)))?)?;
    features.set_item("attention_mask", padded(&|t| (vec![1; tokens[t].ids.len()], 0))?)?;
    features.set_item("token_type_ids", padded(&|t| (wide(&tokens[t].type_ids), 0))?)?;
    Ok(features)
}

fn shaped<'py, T: numpy::Element>(
    py: Python<'py>,
    values: Vec<T>,
    shape: &[usize],
) -> PyResult<Bound<'py, PyAny>> {
    let values = ArrayD::from_shape_vec(IxDyn(shape), values).map_err(|e| Error::Internal(e.to_string()))?;
    Ok(array(py, values))
}
