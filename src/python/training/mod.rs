//! What training needs of the crate beside gradients: losses, steps of optimizers, random arrays, the headers of
//! checkpoints. All of it is private; `headwise.losses`, `headwise.optim` and `headwise.init` are written in Python over it.

pub mod in_place;
pub mod losses;
pub mod random;
pub mod tensors;
pub mod update;

use pyo3::prelude::*;

use super::arrays::type_name;
use super::rng::is_index;
use crate::error::Error;

/// An argument that is a shape: an int or a sequence of them.
fn shape(object: &Bound<'_, PyAny>) -> PyResult<Vec<usize>> {
    let refused = || Error::Value(format!("shape: expected lengths from 0 on, got {object}"));
    let length = |n: &Bound<'_, PyAny>| -> PyResult<usize> {
        if !is_index(n)? {
            return Err(Error::Type(format!("shape: expected ints, got {}", type_name(n))).into());
        }
        Ok(n.call_method0("__index__")?.extract().map_err(|_| refused())?)
    };
    if is_index(object)? {
        return Ok(vec![length(object)?]);
    }
    let Ok(items) = object.try_iter() else {
        let came = type_name(object);
        return Err(Error::Type(format!("shape: expected an int or a tuple of ints, got {came}")).into());
    };
    items.map(|n| length(&n?)).collect()
}
