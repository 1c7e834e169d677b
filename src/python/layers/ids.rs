//! Integers that name rows of a table: an array of any shape, or a list of (L_i,).

use pyo3::prelude::*;
use pyo3::types::PyList;

use super::rows::Form;
use crate::error::{Error, Result};
use crate::python::masks::integers;

/// Ids, all of which have a row.
pub struct Ids {
    /// In the order of their places; those of a list back to back.
    pub numbers: Vec<usize>,
    /// How they were given.
    pub form: Form,
}

impl Ids {
    /// Reads ids below `n`.
    ///
    /// # Errors
    /// `TypeError` for what are no integers, `ValueError` for an id out of range, naming its place.
    pub fn read(object: &Bound<'_, PyAny>, n: usize) -> PyResult<Self> {
        if is_list_of_rows(object)? {
            let (mut numbers, mut lengths) = (Vec::new(), Vec::new());
            for (i, item) in object.cast_exact::<PyList>()?.iter().enumerate() {
                let (ids, shape) = integers("ids", &item)?;
                append(&mut numbers, &ids, n, |place| format!("ids[{i}][{place}]"))?;
                lengths.extend(shape);
            }
            return Ok(Self { numbers, form: Form::List(lengths) });
        }
        let (ids, shape) = integers("ids", object)?;
        let mut numbers = Vec::new();
        append(&mut numbers, &ids, n, |place| match shape.as_slice() {
            [] => "ids".to_owned(),
            shape => format!("ids{:?}", index(shape, place)),
        })?;
        Ok(Self { numbers, form: Form::Array(shape) })
    }
}

fn append(to: &mut Vec<usize>, ids: &[i64], n: usize, name: impl Fn(usize) -> String) -> Result<()> {
    let refused = || Error::Memory(format!("cannot allocate {} ids", ids.len()));
    to.try_reserve(ids.len()).map_err(|_| refused())?;
    for (place, &id) in ids.iter().enumerate() {
        let good = usize::try_from(id).ok().filter(|&id| id < n);
        let bad = || Error::Value(format!("{}: expected an id from 0 to {}, got {id}", name(place), n - 1));
        to.push(good.ok_or_else(bad)?);
    }
    Ok(())
}

/// The place of number `i` in C order.
fn index(shape: &[usize], i: usize) -> Vec<usize> {
    let mut rest = i;
    let mut index: Vec<usize> = shape
        .iter()
        .rev()
        .map(|&n| {
            let at = rest % n;
            rest /= n;
            at
        })
        .collect();
    index.reverse();
    index
}

/// Exactly a list whose items all have one axis is a ragged batch.
fn is_list_of_rows(object: &Bound<'_, PyAny>) -> PyResult<bool> {
    let Ok(list) = object.cast_exact::<PyList>() else { return Ok(false) };
    for item in list {
        let Ok(ndim) = item.getattr(pyo3::intern!(item.py(), "ndim")) else { return Ok(false) };
        if !ndim.eq(1)? {
            return Ok(false);
        }
    }
    Ok(true)
}
