//! The arguments that say which keys may be attended, read once for every function and class that has them.
//! Polarity and kinds: booleans mean "may be attended"; only `key_mask` takes 0/1 integers for them; floating
//! masks are added. Masks are borrowed where they are dense; axes that repeat one element are cut down to it.

use numpy::{Element, PyArrayDescr, PyUntypedArray, PyUntypedArrayMethods};
use pyo3::prelude::*;
use pyo3::types::{PyBool, PyInt, PyList, PySlice, PyString, PyTuple};

use super::arrays::{Input, Operand, as_array, convert, dense, fields, is_dense, type_name};
use super::boundary::compute;
use super::dtypes::{Kind, Source, unsupported};
use super::memory::{Owned, converted};
use crate::error::Error;
use crate::ops::buffer::zeros;
use crate::ops::masks::{AttnMask, Dense, Masks, Offset};
use crate::simd::Float;

/// The mask arguments as Python gave them.
#[derive(Default)]
pub struct MaskArguments<'a, 'py> {
    /// `attn_mask=`
    pub attn_mask: Option<&'a Bound<'py, PyAny>>,
    /// `key_mask=`
    pub key_mask: Option<&'a Bound<'py, PyAny>>,
    /// `key_lengths=`
    pub key_lengths: Option<&'a Bound<'py, PyAny>>,
    /// `is_causal=`
    pub is_causal: bool,
    /// `causal_offset=`; `None` is 0.
    pub causal_offset: Option<&'a Bound<'py, PyAny>>,
    /// `window=`
    pub window: Option<&'a Bound<'py, PyAny>>,
}

/// The same, read and held while a call computes with numbers of type `T`.
pub struct HeldMasks<'py, T: Send> {
    attn_mask: Option<Held<'py, T>>,
    key_mask: Option<(Vec<bool>, Vec<usize>)>,
    key_lengths: Option<Integers>,
    is_causal: bool,
    causal_offset: HeldOffset,
    window: (Option<usize>, Option<usize>),
    /// The arrays as they were given, for the check of `out=`.
    arrays: Vec<Bound<'py, PyUntypedArray>>,
}

/// Integers and their shape.
pub type Integers = (Vec<i64>, Vec<usize>);

enum Held<'py, T: Send> {
    /// A dense array whose bytes are 0 or 1, borrowed.
    Booleans(Bound<'py, PyUntypedArray>),
    OwnedBooleans(Owned<bool>, Vec<usize>),
    Numbers(Input<'py, T>),
    OwnedNumbers(Owned<T>, Vec<usize>),
}

enum HeldOffset {
    All(i64),
    Each(Integers),
    BottomRight,
}

impl<'py, T: Float + Element> HeldMasks<'py, T> {
    /// Reads the arguments.
    ///
    /// # Errors
    /// `TypeError` and `ValueError` as the contract has them; `MemoryError`.
    pub fn read(given: &MaskArguments<'_, 'py>) -> PyResult<Self> {
        let mut arrays = Vec::new();
        let attn_mask = given.attn_mask.map(|m| attn_mask(m, &mut arrays)).transpose()?;
        let key_mask = given.key_mask.map(|m| key_mask(m, &mut arrays)).transpose()?;
        Ok(Self {
            attn_mask,
            key_mask,
            key_lengths: given.key_lengths.map(|n| integers("key_lengths", n)).transpose()?,
            is_causal: given.is_causal,
            causal_offset: given.causal_offset.map_or(Ok(HeldOffset::All(0)), causal_offset)?,
            window: window(given.window)?,
            arrays,
        })
    }

    /// The masks as the crate takes them.
    pub fn masks(&self) -> Masks<'_, T> {
        Masks {
            attn_mask: self.attn_mask.as_ref().map(Held::mask),
            key_mask: self.key_mask.as_ref().map(|(data, shape)| Dense { data, shape: shape.clone() }),
            key_lengths: self.key_lengths.as_ref().map(|(data, shape)| Dense { data, shape: shape.clone() }),
            is_causal: self.is_causal,
            causal_offset: match &self.causal_offset {
                HeldOffset::All(n) => Offset::All(*n),
                HeldOffset::Each((data, shape)) => Offset::Each(Dense { data, shape: shape.clone() }),
                HeldOffset::BottomRight => Offset::BottomRight,
            },
            window: self.window,
        }
    }

    /// The mask arrays as they were given.
    pub fn arrays(&self) -> impl Iterator<Item = &Bound<'py, PyUntypedArray>> {
        self.arrays.iter()
    }
}

impl<T: Float> Held<'_, T> {
    fn mask(&self) -> AttnMask<'_, T> {
        match self {
            Held::Booleans(array) => {
                // SAFETY: `attn_mask` found the array dense and its bytes 0 or 1; it is alive as long as `self`.
                let data =
                    unsafe { std::slice::from_raw_parts(fields(array).data.cast::<bool>(), array.len()) };
                AttnMask::Allowed(Dense { data, shape: array.shape().to_vec() })
            }
            Held::OwnedBooleans(data, shape) => AttnMask::Allowed(Dense { data, shape: shape.clone() }),
            Held::Numbers(input) => {
                let (data, shape) = input.dense();
                AttnMask::Added(Dense { data, shape })
            }
            Held::OwnedNumbers(data, shape) => AttnMask::Added(Dense { data, shape: shape.clone() }),
        }
    }
}

fn attn_mask<'py, T: Float + Element>(
    object: &Bound<'py, PyAny>,
    arrays: &mut Vec<Bound<'py, PyUntypedArray>>,
) -> PyResult<Held<'py, T>> {
    let py = object.py();
    let given = as_array("attn_mask", object)?;
    arrays.push(given.clone());
    let array = without_repeats(given)?;
    match Source::of(&array.dtype())? {
        Some(Source::Bool) => {
            let copy;
            let bytes: &[u8] = if is_dense(&array) {
                // SAFETY: the array is dense and lives on; bytes may have any value.
                unsafe { std::slice::from_raw_parts(fields(&array).data.cast::<u8>(), array.len()) }
            } else {
                copy = converted(&array, PyArrayDescr::of::<bool>(py))?;
                &copy
            };
            // NumPy lets any byte but 0 stand for true; Rust only 1.
            let borrowed = is_dense(&array);
            let clean = compute(py, bytes.len(), || {
                if borrowed && bytes.iter().fold(0, |a, &b| a | b) <= 1 {
                    return Ok(None);
                }
                let mut clean = zeros(bytes.len())?;
                convert(bytes, &mut clean, |b| b != 0)?;
                Ok(Some(clean))
            })?;
            Ok(match clean {
                Some(clean) => Held::OwnedBooleans(Owned::new(clean), array.shape().to_vec()),
                None => Held::Booleans(array),
            })
        }
        Some(Source::Integer) => Err(Error::Type(format!(
            "attn_mask: expected booleans (True = may be attended) or floating numbers that are added to the scores, \
             got dtype {}; for a mask of 0 and 1 pass attn_mask.astype(bool)",
            array.dtype().str()?
        ))
        .into()),
        Some(Source::Float(Kind::F64)) => {
            let numbers = Operand::new("attn_mask", array.as_any())?.read_dense::<f64>()?;
            let shape = array.shape().to_vec();
            // NumPy's own cast would warn of what overflows; here -1e39 is just as good as -inf.
            let low = |x: f64| (x as f32) == f32::NEG_INFINITY && x.is_finite();
            let (data, _) = numbers.dense();
            let converted = compute(py, data.len(), || {
                if size_of::<T>() == 8 && !data.iter().any(|&x| low(x)) {
                    return Ok(None);
                }
                let mut out = zeros(data.len())?;
                convert(data, &mut out, |x| if low(x) { T::NEG_INFINITY } else { T::from_f64(x) })?;
                Ok(Some(out))
            })?;
            match converted {
                Some(out) => Ok(Held::OwnedNumbers(Owned::new(out), shape)),
                None => Ok(Held::Numbers(Operand::new("attn_mask", array.as_any())?.read_dense()?)),
            }
        }
        Some(Source::Float(_)) => {
            Ok(Held::Numbers(Operand::new("attn_mask", array.as_any())?.read_dense()?))
        }
        None => Err(unsupported("attn_mask", &array.dtype())),
    }
}

/// The array with axes of stride 0 (as `np.broadcast_to` makes them) cut down to one element.
fn without_repeats(array: Bound<'_, PyUntypedArray>) -> PyResult<Bound<'_, PyUntypedArray>> {
    let py = array.py();
    let repeats = |axis: usize| array.strides()[axis] == 0 && array.shape()[axis] > 1;
    if !(0..array.ndim()).any(repeats) {
        return Ok(array);
    }
    let index = (0..array.ndim())
        .map(|axis| if repeats(axis) { PySlice::new(py, 0, 1, 1) } else { PySlice::full(py) });
    let index = PyTuple::new(py, index.collect::<Vec<_>>())?;
    Ok(array.as_any().get_item(index)?.cast_into()?)
}

fn key_mask<'py>(
    object: &Bound<'py, PyAny>,
    arrays: &mut Vec<Bound<'py, PyUntypedArray>>,
) -> PyResult<(Vec<bool>, Vec<usize>)> {
    let py = object.py();
    let array = as_array("key_mask", object)?;
    arrays.push(array.clone());
    let shape = array.shape().to_vec();
    let source = Source::of(&array.dtype())?;
    if array.is_empty() && !object.is_instance_of::<PyUntypedArray>() {
        return Ok((Vec::new(), shape));
    }
    match source {
        Some(Source::Bool) => {
            let array = dense(&array, PyArrayDescr::of::<bool>(py))?;
            // SAFETY: the array is dense and lives on; bytes may have any value.
            let bytes = unsafe { std::slice::from_raw_parts(fields(&array).data.cast::<u8>(), array.len()) };
            Ok((bytes.iter().map(|&b| b != 0).collect(), shape))
        }
        Some(Source::Integer) => {
            let (numbers, shape) = integers("key_mask", object)?;
            if let Some(bad) = numbers.iter().find(|&&n| n != 0 && n != 1) {
                return Err(Error::Value(format!(
                    "key_mask: expected booleans, or 0 and 1, where true means that the key may be attended, got {bad}"
                ))
                .into());
            }
            Ok((numbers.iter().map(|&n| n == 1).collect(), shape))
        }
        Some(Source::Float(_)) => Err(Error::Type(format!(
            "key_mask: expected booleans or 0 and 1, got dtype {}; a mask that is added to the scores is attn_mask",
            array.dtype().str()?
        ))
        .into()),
        None => Err(unsupported("key_mask", &array.dtype())),
    }
}

/// An argument that is an array of integers.
///
/// # Errors
/// `TypeError` for booleans and floating numbers.
pub fn integers(name: &str, object: &Bound<'_, PyAny>) -> PyResult<Integers> {
    let array = as_array(name, object)?;
    let shape = array.shape().to_vec();
    if array.is_empty() && !object.is_instance_of::<PyUntypedArray>() {
        // An empty list, which NumPy takes for floating numbers.
        return Ok((Vec::new(), shape));
    }
    if Source::of(&array.dtype())? != Some(Source::Integer) {
        let came = array.dtype().str()?;
        return Err(Error::Type(format!("{name}: expected integers, got dtype {came}")).into());
    }
    let array = dense(&array, PyArrayDescr::of::<i64>(object.py()))?;
    let data: *const i64 = fields(&array).data.cast_const().cast::<std::ffi::c_void>().cast();
    // SAFETY: the array is dense, of 64-bit integers, aligned, and lives on.
    let data = unsafe { std::slice::from_raw_parts(data, array.len()) };
    Ok((data.to_vec(), shape))
}

fn causal_offset(object: &Bound<'_, PyAny>) -> PyResult<HeldOffset> {
    if let Ok(name) = object.cast::<PyString>() {
        if name == "bottom_right" {
            return Ok(HeldOffset::BottomRight);
        }
        let text = format!("causal_offset: expected an int, integers (B,) or \"bottom_right\", got {name:?}");
        return Err(Error::Value(text).into());
    }
    if object.is_instance_of::<PyInt>() && !object.is_instance_of::<PyBool>() {
        let offset =
            object.extract().map_err(|_| Error::Value(format!("causal_offset: {object} is too large")))?;
        return Ok(HeldOffset::All(offset));
    }
    Ok(HeldOffset::Each(integers("causal_offset", object)?))
}

fn window(object: Option<&Bound<'_, PyAny>>) -> PyResult<(Option<usize>, Option<usize>)> {
    let Some(object) = object else { return Ok((None, None)) };
    let refuse = |what: String| {
        Error::Type(format!("window: expected (left, right), each None or an int, got {what}"))
    };
    if !object.is_instance_of::<PyTuple>() && !object.is_instance_of::<PyList>() {
        return Err(refuse(type_name(object)).into());
    }
    let sides: Vec<Bound<'_, PyAny>> = object.extract()?;
    let [left, right] = sides.as_slice() else {
        return Err(Error::Value(format!("window: expected (left, right), got {object}")).into());
    };
    let side = |side: &Bound<'_, PyAny>| -> PyResult<Option<usize>> {
        if side.is_none() {
            return Ok(None);
        }
        if side.is_instance_of::<PyBool>() || !super::rng::is_index(side)? {
            return Err(refuse(type_name(side)).into());
        }
        let bad = || -> Error {
            Error::Value(format!("window: expected numbers from 0 on, or None for an open side, got {side}"))
        };
        Ok(Some(side.call_method0("__index__")?.extract().map_err(|_| bad())?))
    };
    Ok((side(left)?, side(right)?))
}
