//! `Decoder.new_cache` and `Decoder.step`: the cache is a Python object whose arrays the crate reads and extends.

use numpy::{Element, PyArray1, PyArray4, PyArrayMethods, PyUntypedArrayMethods};
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::PyList;

use super::batch::{Axes, Batch, give, give_weights, is_empty_list, said};
use super::decoder_call::{OWN_NAMES, heads, memory_masks, memory_said, renamed};
use super::held::shaped;
use crate::error::{Error, Result};
use crate::nn::attention::{Memory, Past, Step};
use crate::nn::decoder::{Decoder, StepCall};
use crate::nn::tokens::{Layout, Tokens};
use crate::python::boundary::compute;
use crate::python::masks::{HeldMasks, MaskArguments};
use crate::python::outputs::array;
use crate::simd::Float;

/// The class of a cache.
static CACHE: PyOnceLock<Py<PyAny>> = PyOnceLock::new();

/// Makes the cache of a stack over a memory.
///
/// # Errors
/// As the contract has them.
pub fn new_cache<'py, T: Float + Element>(
    py: Python<'py>,
    stack: &Decoder<T>,
    memory: &Bound<'py, PyAny>,
    masks: &MaskArguments<'_, 'py>,
) -> PyResult<Bound<'py, PyAny>> {
    let c = &stack.config.attention;
    let batch =
        if is_empty_list(memory) { None } else { Some(Batch::<T>::read("memory", memory, c.d_model)?) };
    let axes = batch.as_ref().map_or(Axes::List(Vec::new()), |b| b.axes.clone());
    let held = memory_masks::<T>(py, masks)?;
    let keep = memory_said(py, &held, c.num_heads, &axes, &axes)?.keep;
    let layout = batch.as_ref().map_or_else(|| Layout::dense(Vec::new()), |b| b.layout(keep.as_deref()));
    let count = layout.full.len();
    let s = layout.full.iter().copied().max().unwrap_or(0);
    // Sequences of a list are as long as the longest here; what they lack is masked.
    let key_mask: Option<Vec<bool>> = match (&axes, keep) {
        (Axes::List(lengths), _) if lengths.iter().any(|&n| n < s) => {
            Some(lengths.iter().flat_map(|&n| (0..s).map(move |i| i < n)).collect())
        }
        (_, keep) => keep,
    };
    let rows = batch.as_ref().map(Batch::rows).unwrap_or_default();
    let rows = &*rows;
    let work = layout.total().saturating_mul(c.d_model * c.kv_width() * 2);
    let made = compute(py, work.saturating_mul(stack.layers.len()), || {
        let rows = layout.gather(rows, c.d_model);
        stack.memorize(Tokens { rows: &rows, layout: &layout }, s)
    })?;
    let (memories, groups) = (PyList::empty(py), PyList::empty(py));
    for (layer, kept) in stack.layers.iter().zip(made) {
        let [own, cross] = layer.heads();
        let [keys, values] = kept
            .map(|x| Ok::<_, Error>(array(py, shaped(&[count, cross.num_kv_heads, s, cross.head_dim], x)?)));
        memories.append((keys?, values?))?;
        groups.append(own.num_kv_heads)?;
    }
    let key_mask = key_mask.map(|m| Ok::<_, Error>(array(py, shaped(&[count, s], m)?))).transpose()?;
    let (window, _) = held.masks().window;
    let arguments = (stack.mark(), count, groups, c.head_dim, T::NAME, memories, key_mask, window);
    CACHE.import(py, "headwise._cache", "DecoderCache")?.call_method1("_new", arguments)
}

/// Takes new tokens through a stack, and adds them to the cache, which nobody else may change meanwhile.
///
/// # Errors
/// As the contract has them.
pub fn step<'py, T: Float + Element>(
    py: Python<'py>,
    stack: &Decoder<T>,
    x: &Bound<'py, PyAny>,
    cache: &Bound<'py, PyAny>,
    lengths: Option<&Bound<'py, PyAny>>,
    need_weights: bool,
) -> PyResult<Bound<'py, PyAny>> {
    if !cache.is_instance(CACHE.import(py, "headwise._cache", "DecoderCache")?)? {
        let came = cache.get_type();
        return Err(Error::Type(format!(
            "cache: expected a DecoderCache, which new_cache makes, got {came}"
        ))
        .into());
    }
    if cache.getattr(intern!(py, "_mark"))?.extract::<u64>()? != stack.mark() {
        let text = "cache: expected one that new_cache made for the parameters that this decoder has now, got another";
        return Err(Error::Value(text.into()).into());
    }
    cache.call_method0(intern!(py, "_enter"))?;
    let made = step_alone(py, stack, x, cache, lengths, need_weights);
    cache.call_method0(intern!(py, "_leave"))?;
    made
}

fn step_alone<'py, T: Float + Element>(
    py: Python<'py>,
    stack: &Decoder<T>,
    x: &Bound<'py, PyAny>,
    cache: &Bound<'py, PyAny>,
    lengths: Option<&Bound<'py, PyAny>>,
    need_weights: bool,
) -> PyResult<Bound<'py, PyAny>> {
    let c = &stack.config.attention;
    let held: Vec<usize> = numbers(cache, intern!(py, "_held"))?;
    let x = Batch::<T>::read("x", x, c.d_model)?;
    let (b, n) = match &x.axes {
        Axes::Batch(b, n) => (*b, *n),
        Axes::Single(n) => (1, *n),
        Axes::List(_) => {
            let text =
                "x: expected an array (B, n, D), got a list; sequences of a step may differ by lengths=";
            return Err(Error::Type(text.into()).into());
        }
    };
    if b != held.len() {
        let came = x.axes.describe(c.d_model);
        let text = format!("x: expected the {} sequences of the cache, got {came}", held.len());
        return Err(Error::Shape(text).into());
    }
    let masks = MaskArguments { key_lengths: lengths, ..MaskArguments::default() };
    let masks = HeldMasks::<T>::read(&masks).map_err(|e| renamed(py, e, &OWN_NAMES))?;
    let said =
        said(&masks.masks(), c.num_heads, &x.axes, &x.axes).map_err(|e| renamed(py, e.into(), &OWN_NAMES))?;
    let layout = x.layout(said.keep.as_deref());
    cache.call_method1(intern!(py, "_make_room"), (n,))?;
    // The rows that are held, counted anew: room may have been made by letting go of some.
    let step = Step {
        layout,
        held: numbers(cache, intern!(py, "_held"))?,
        gone: cache.getattr(intern!(py, "_gone"))?.extract()?,
        window: cache.getattr(intern!(py, "window"))?.extract()?,
    };
    let mut own = pairs::<T, _>(cache, intern!(py, "_own"), stack.layers.len(), |a| {
        a.try_readwrite().map_err(|_| Error::Value("cache: another call is using it".into()).into())
    })?;
    let memory = pairs::<T, _>(cache, intern!(py, "_memory"), stack.layers.len(), |a| {
        a.try_readonly().map_err(|_| Error::Value("cache: another call is using it".into()).into())
    })?;
    let memory_rows: Vec<usize> = numbers(cache, intern!(py, "_memory_rows"))?;
    let key_mask: Option<Vec<bool>> = match cache.getattr(intern!(py, "_memory_key_mask"))? {
        mask if mask.is_none() => None,
        mask => Some(mask.cast::<numpy::PyArray2<bool>>()?.to_vec()?),
    };
    let s = memory.first().map_or(0, |(keys, _)| keys.shape()[2]);
    let mut past = Vec::with_capacity(own.len());
    for ((keys, values), layer) in own.iter_mut().zip(&stack.layers) {
        let capacity = keys.shape()[2];
        check_shapes(
            [keys.shape(), values.shape()],
            &[b, layer.heads()[0].num_kv_heads, capacity, c.head_dim],
        )?;
        if step.held.iter().any(|&held| held + n > capacity) {
            let text = format!("cache: expected room for {n} more tokens, got {capacity} rows");
            return Err(Error::Value(text).into());
        }
        let keys = keys.as_slice_mut().map_err(|_| not_dense())?;
        past.push(Past { keys, values: values.as_slice_mut().map_err(|_| not_dense())?, capacity });
    }
    let mut memories = Vec::with_capacity(memory.len());
    for ((keys, values), layer) in memory.iter().zip(&stack.layers) {
        let count = keys.shape()[0];
        if memory_rows.len() != b || memory_rows.iter().any(|&row| row >= count) {
            let bad = format!("{memory_rows:?}");
            return Err(Error::Value(format!("cache: expected {b} memories below {count}, got {bad}")).into());
        }
        check_shapes([keys.shape(), values.shape()], &[count, layer.heads()[1].num_kv_heads, s, c.head_dim])?;
        memories.push(Memory {
            keys: keys.as_slice().map_err(|_| not_dense())?,
            values: values.as_slice().map_err(|_| not_dense())?,
            len: s,
            rows: &memory_rows,
            key_mask: key_mask.as_deref(),
        });
    }
    let rows = x.rows();
    let rows = &*rows;
    let keys = Layout::dense(vec![s; b]);
    let heads = heads(stack, 1);
    let work = step.layout.total().saturating_mul(stack.config.d_ff * c.d_model);
    let (out, weights) = compute(py, work.saturating_mul(stack.layers.len()), || {
        let layout = &step.layout;
        let rows = layout.gather(rows, c.d_model).into_owned();
        let call = StepCall { step: &step, past: &mut past, memory: &memories, need_weights };
        let (out, weights) = stack.step(rows, call)?;
        let weights: Vec<Vec<T>> = if need_weights {
            let back = weights.into_iter().zip(&heads).map(|(w, &h)| layout.scatter_weights(&keys, w, h));
            back.collect()
        } else {
            Vec::new()
        };
        Ok((layout.scatter(out, c.d_model), weights))
    })?;
    let new: Vec<i64> = step.layout.lengths.iter().map(|&n| n as i64).collect();
    cache.call_method1(intern!(py, "_advance"), (PyArray1::from_vec(py, new),))?;
    let out = give(py, &x.axes, out, c.d_model)?;
    if !need_weights {
        return Ok(out);
    }
    let weights = of_layers(py, &x.axes, weights, &heads, s)?;
    Ok((out, weights).into_pyobject(py)?.into_any())
}

/// Weights (H, n, S) of each sequence back to back, of each layer, as a list of arrays.
fn of_layers<'py, T: Float + Element>(
    py: Python<'py>,
    axes: &Axes,
    weights: Vec<Vec<T>>,
    heads: &[usize],
    s: usize,
) -> PyResult<Bound<'py, PyList>> {
    let of_memory = match axes {
        Axes::Batch(b, _) => Axes::Batch(*b, s),
        _ => Axes::Single(s),
    };
    let list = PyList::empty(py);
    for (weights, &heads) in weights.into_iter().zip(heads) {
        list.append(give_weights(py, axes, &of_memory, weights, Some(heads))?)?;
    }
    Ok(list)
}

/// An attribute of the cache that is an array of counts.
fn numbers(cache: &Bound<'_, PyAny>, name: &Bound<'_, pyo3::types::PyString>) -> PyResult<Vec<usize>> {
    let array = cache.getattr(name)?;
    let array = array.cast::<PyArray1<i64>>()?.to_vec()?;
    let count = |n: i64| usize::try_from(n).map_err(|_| Error::Value(format!("cache: {name} has {n}")));
    Ok(array.into_iter().map(count).collect::<Result<_>>()?)
}

/// An attribute of the cache that is a list of (keys, values), one for each layer.
fn pairs<'py, T: Float + Element, R>(
    cache: &Bound<'py, PyAny>,
    name: &Bound<'py, pyo3::types::PyString>,
    layers: usize,
    borrow: impl Fn(&Bound<'py, PyArray4<T>>) -> PyResult<R>,
) -> PyResult<Vec<(R, R)>> {
    let list = cache.getattr(name)?;
    let list = list.cast::<PyList>()?;
    if list.len() != layers {
        let text = format!("cache: expected that of a decoder of {layers} layers, got one of {}", list.len());
        return Err(Error::Value(text).into());
    }
    let one = |array: &Bound<'py, PyAny>| {
        let array = array.cast::<PyArray4<T>>().map_err(|_| {
            let came =
                array.getattr("dtype").map_or_else(|_| "no array".to_owned(), |dtype| dtype.to_string());
            Error::DType(format!("cache: expected that of a decoder in {}, got arrays of {came}", T::NAME))
        })?;
        borrow(array)
    };
    list.iter().map(|pair| Ok((one(&pair.get_item(0)?)?, one(&pair.get_item(1)?)?))).collect()
}

/// Refuses keys and values of another shape than the layer's.
fn check_shapes(came: [&[usize]; 2], expected: &[usize]) -> Result<()> {
    match came.iter().find(|came| **came != expected) {
        None => Ok(()),
        Some(came) => Err(Error::Shape(format!(
            "cache: expected keys and values of shape {expected:?}, got {came:?}; it belongs to another decoder"
        ))),
    }
}

fn not_dense() -> Error {
    Error::Value("cache: its arrays were replaced by others that are not dense".into())
}
