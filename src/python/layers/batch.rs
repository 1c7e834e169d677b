//! A batch as Python gives it, (L, D), (B, L, D) or a list of (L_i, D), as rows, and back.

use std::borrow::Cow;

use numpy::Element;
use pyo3::prelude::*;
use pyo3::types::PyList;

use super::held::shaped;
use crate::error::{Error, Result};
use crate::nn::tokens::Layout;
use crate::ops::masks::{Element as OfElement, Masks};
use crate::python::arrays::{Input, Operand};
use crate::python::outputs::array;
use crate::simd::Float;

/// The axes of a batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Axes {
    /// (L, D)
    Single(usize),
    /// (B, L, D)
    Batch(usize, usize),
    /// A list of (L_i, D).
    List(Vec<usize>),
}

impl Axes {
    /// Without the width of rows, for texts of errors.
    fn extents(&self) -> String {
        match self {
            Axes::Single(l) => format!("({l}, D)"),
            Axes::Batch(b, l) => format!("({b}, {l}, D)"),
            Axes::List(lengths) => format!("a list of {lengths:?}"),
        }
    }

    /// With rows of `width` numbers, for texts of errors.
    pub fn describe(&self, width: usize) -> String {
        match self {
            Axes::Single(l) => format!("shape ({l}, {width})"),
            Axes::Batch(b, l) => format!("shape ({b}, {l}, {width})"),
            Axes::List(lengths) => format!("a list of (L, {width}) with L in {lengths:?}"),
        }
    }
}

/// An argument that is a batch.
pub struct Batch<'py, T: Send> {
    inputs: Vec<Input<'py, T>>,
    /// Its axes.
    pub axes: Axes,
    name: &'static str,
}

/// Exactly a list whose items all have two axes is a ragged batch.
pub fn is_ragged(object: &Bound<'_, PyAny>) -> PyResult<bool> {
    let Ok(list) = object.cast_exact::<PyList>() else { return Ok(false) };
    for item in list {
        let Ok(ndim) = item.getattr(pyo3::intern!(item.py(), "ndim")) else { return Ok(false) };
        if !ndim.eq(2)? {
            return Ok(false);
        }
    }
    Ok(true)
}

impl<'py, T: Float + Element> Batch<'py, T> {
    /// Reads an argument whose rows have `width` numbers.
    ///
    /// # Errors
    /// `ShapeError`, `DTypeError`.
    pub fn read(name: &'static str, object: &Bound<'py, PyAny>, width: usize) -> PyResult<Self> {
        let check = |shape: &[usize], axes: &str| -> Result<()> {
            if shape.last() == Some(&width) {
                return Ok(());
            }
            Err(Error::Shape(format!("{name}: expected {axes} with D = {width}, got shape {shape:?}")))
        };
        // Keys are counted by S.
        let l = if name == "memory" { "S" } else { "L" };
        if is_ragged(object)? {
            let list = object.cast_exact::<PyList>()?;
            let mut inputs = Vec::with_capacity(list.len());
            let mut lengths = Vec::with_capacity(list.len());
            for item in list {
                let operand = Operand::new(name, &item)?;
                check(operand.shape(), &format!("a list of ({l}, D)"))?;
                lengths.push(operand.shape()[0]);
                inputs.push(operand.read_dense()?);
            }
            return Ok(Self { inputs, axes: Axes::List(lengths), name });
        }
        let operand = Operand::new(name, object)?;
        let axes = match *operand.shape() {
            [l, _] => Axes::Single(l),
            [b, l, _] => Axes::Batch(b, l),
            _ => {
                let came = operand.shape();
                let text = format!(
                    "{name}: expected (B, {l}, D), ({l}, D) or a list of ({l}, D), got shape {came:?}"
                );
                return Err(Error::Shape(text).into());
            }
        };
        check(operand.shape(), &format!("(B, {l}, D) or ({l}, D)"))?;
        Ok(Self { inputs: vec![operand.read_dense()?], axes, name })
    }

    /// All rows, padding included; those of a list back to back.
    pub fn rows(&self) -> Cow<'_, [T]> {
        match self.inputs.as_slice() {
            [one] => Cow::Borrowed(one.dense().0),
            many => Cow::Owned(many.iter().flat_map(|i| i.dense().0.iter().copied()).collect()),
        }
    }

    /// The layout, of which `keep` names the tokens.
    pub fn layout(&self, keep: Option<&[bool]>) -> Layout {
        match &self.axes {
            Axes::Single(l) => Layout::padded(1, *l, keep),
            Axes::Batch(b, l) => Layout::padded(*b, *l, keep),
            Axes::List(lengths) => Layout::dense(lengths.clone()),
        }
    }

    /// Checks that keys (or values) go with these queries.
    ///
    /// # Errors
    /// `TypeError` for a list with an array, `ShapeError` for another number of sequences.
    pub fn goes_with(&self, other: &Self, same_length: bool) -> Result<()> {
        let (name, with) = (self.name, other.name);
        match (&self.axes, &other.axes) {
            (Axes::List(a), Axes::List(b)) if a.len() != b.len() || (same_length && a != b) => {
                Err(Error::Shape(format!(
                    "{name}: expected as many sequences as {with} has, {b:?}, got lengths {a:?}"
                )))
            }
            (Axes::List(_), Axes::List(_)) => Ok(()),
            (Axes::List(_), _) | (_, Axes::List(_)) => Err(Error::Type(format!(
                "{name}: a list of arrays goes only with a list; got {} with {with} as {}",
                self.kind(),
                other.kind()
            ))),
            (Axes::Single(a), Axes::Single(b)) if !same_length || a == b => Ok(()),
            (Axes::Batch(a, l), Axes::Batch(b, m)) if a == b && (!same_length || l == m) => Ok(()),
            (a, b) => Err(Error::Shape(format!(
                "{name}: expected the batch{} of {with}, {}, got {}",
                if same_length { " and the length" } else { "" },
                b.extents(),
                a.extents()
            ))),
        }
    }

    fn kind(&self) -> &'static str {
        if matches!(self.axes, Axes::List(_)) { "a list" } else { "an array" }
    }
}

/// What masks say of each sequence, and which tokens of a padded batch they keep.
pub struct Said<'a, T> {
    /// For each sequence.
    pub elements: Vec<OfElement<'a, T>>,
    /// Tokens that `key_mask` and lengths keep, (B, S); `None` for all.
    pub keep: Option<Vec<bool>>,
}

/// Reads the masks against the axes of queries and keys.
///
/// # Errors
/// Those of [`Masks::elements`]; `Value` for masks of padded arrays with a list.
pub fn said<'a, T: Float>(
    masks: &Masks<'a, T>,
    heads: usize,
    queries: &Axes,
    keys: &Axes,
) -> Result<Said<'a, T>> {
    if let (Axes::List(l), Axes::List(s)) = (queries, keys) {
        let given = [
            ("attn_mask", masks.attn_mask.is_some()),
            ("key_mask", masks.key_mask.is_some()),
            ("lengths", masks.key_lengths.is_some()),
        ];
        if let Some((name, _)) = given.iter().find(|(_, given)| *given) {
            return Err(Error::Value(format!(
                "{name}: a list of arrays has no padding to mask; leave it out, or pass a padded (B, L, D)"
            )));
        }
        // Each sequence is a batch of one: only its offset can be its own.
        let elements = l.iter().zip(s).enumerate().map(|(b, (&l, &s))| {
            let mut one = masks.clone();
            if let crate::ops::masks::Offset::Each(each) = &masks.causal_offset {
                let offset = each.data.get(b).or(each.data.first().filter(|_| each.data.len() == 1));
                let wrong = || {
                    Error::Shape(format!(
                        "causal_offset: expected one number for each of the {} sequences",
                        b + 1
                    ))
                };
                one.causal_offset = crate::ops::masks::Offset::All(*offset.ok_or_else(wrong)?);
            }
            Ok(one.elements(&[], heads, l, s)?.remove(0))
        });
        return Ok(Said { elements: elements.collect::<Result<_>>()?, keep: None });
    }
    let (batch, l) = extents(queries);
    let (_, s) = extents(keys);
    let elements = masks.elements(&batch, heads, l, s)?;
    if masks.key_mask.is_none() && masks.key_lengths.is_none() {
        return Ok(Said { elements, keep: None });
    }
    let padding = Masks {
        key_mask: masks.key_mask.clone(),
        key_lengths: masks.key_lengths.clone(),
        ..Masks::default()
    };
    let keep = padding.elements(&batch, heads, l, s)?;
    let keep = keep.into_iter().flat_map(|e: OfElement<'_, T>| e.key_mask.unwrap_or_else(|| vec![true; s]));
    Ok(Said { elements, keep: Some(keep.collect()) })
}

fn extents(axes: &Axes) -> (Vec<usize>, usize) {
    match axes {
        Axes::Single(l) => (vec![], *l),
        Axes::Batch(b, l) => (vec![*b], *l),
        Axes::List(lengths) => (vec![lengths.len()], 0),
    }
}

/// Hands rows (all tokens and padding, `width` numbers each) back in the axes they came in.
///
/// # Errors
/// `MemoryError`.
pub fn give<'py, T: Float + Element>(
    py: Python<'py>,
    axes: &Axes,
    rows: Vec<T>,
    width: usize,
) -> PyResult<Bound<'py, PyAny>> {
    match axes {
        Axes::Single(l) => Ok(array(py, shaped(&[*l, width], rows)?)),
        Axes::Batch(b, l) => Ok(array(py, shaped(&[*b, *l, width], rows)?)),
        Axes::List(lengths) => {
            let list = PyList::empty(py);
            let mut at = 0;
            for &n in lengths {
                list.append(array(py, shaped(&[n, width], rows[at..at + n * width].to_vec())?))?;
                at += n * width;
            }
            Ok(list.into_any())
        }
    }
}

/// Hands weights back, (heads, L, S) of each sequence back to back; without the axis of heads if `heads` is `None`.
///
/// # Errors
/// `MemoryError`.
pub fn give_weights<'py, T: Float + Element>(
    py: Python<'py>,
    queries: &Axes,
    keys: &Axes,
    weights: Vec<T>,
    heads: Option<usize>,
) -> PyResult<Bound<'py, PyAny>> {
    let shape = |batch: &[usize], l: usize, s: usize| [batch, heads.as_slice(), &[l, s]].concat();
    match (queries, keys) {
        (Axes::Single(l), Axes::Single(s)) => Ok(array(py, shaped(&shape(&[], *l, *s), weights)?)),
        (Axes::Batch(b, l), Axes::Batch(_, s)) => Ok(array(py, shaped(&shape(&[*b], *l, *s), weights)?)),
        (Axes::List(l), Axes::List(s)) => {
            let list = PyList::empty(py);
            let mut at = 0;
            for (&l, &s) in l.iter().zip(s) {
                let n = heads.unwrap_or(1) * l * s;
                list.append(array(py, shaped(&shape(&[], l, s), weights[at..at + n].to_vec())?))?;
                at += n;
            }
            Ok(list.into_any())
        }
        _ => Err(Error::Internal("queries and keys of different axes".into()).into()),
    }
}

/// A factor for each head, or for each head of each layer.
///
/// # Errors
/// `ShapeError`, `DTypeError`.
pub fn head_mask<T: Float + Element>(
    object: Option<&Bound<'_, PyAny>>,
    expected: &[usize],
    letters: &str,
) -> PyResult<Option<Vec<T>>> {
    let Some(object) = object else { return Ok(None) };
    let operand = Operand::new("head_mask", object)?;
    if operand.shape() != expected {
        let came = operand.shape();
        return Err(
            Error::Shape(format!("head_mask: expected {letters} = {expected:?}, got {came:?}")).into()
        );
    }
    Ok(Some(operand.read_dense::<T>()?.dense().0.to_vec()))
}

/// `what` if it is a list of two-axed arrays with nothing in it.
pub fn is_empty_list(object: &Bound<'_, PyAny>) -> bool {
    object.cast_exact::<PyList>().is_ok_and(PyListMethods::is_empty)
}
