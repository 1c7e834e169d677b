//! Arguments that the layers share: widths and numbers.

use pyo3::prelude::*;

use crate::error::Error;
use crate::nn::attention::config::at_least_one;
use crate::python::arrays::type_name;
use crate::python::rng::is_index;

/// A width or a count.
///
/// # Errors
/// `TypeError` for what is no int, `ValueError` below 0.
pub fn width(name: &str, n: &Bound<'_, PyAny>) -> PyResult<usize> {
    if !is_index(n)? {
        return Err(Error::Type(format!("{name}: expected an int, got {}", type_name(n))).into());
    }
    let refused = || Error::Value(format!("{name}: expected a number from 0 on, got {n}"));
    Ok(n.call_method0("__index__")?.extract().map_err(|_| refused())?)
}

/// A width from 1 on.
///
/// # Errors
/// As [`width`], `ValueError` for 0.
pub fn positive_width(name: &str, n: &Bound<'_, PyAny>) -> PyResult<usize> {
    let n = width(name, n)?;
    at_least_one(name, n)?;
    Ok(n)
}

/// What is added under the root of a norm.
///
/// # Errors
/// `ValueError` below 0 and for what is not finite.
pub fn eps(eps: f64) -> PyResult<f64> {
    if eps >= 0.0 && eps.is_finite() {
        return Ok(eps);
    }
    Err(Error::Value(format!("eps: expected a number from 0 on, got {eps}")).into())
}

/// A width that may be left open.
///
/// # Errors
/// As [`width`].
pub fn optional_width(name: &str, n: Option<&Bound<'_, PyAny>>) -> PyResult<Option<usize>> {
    n.map(|n| width(name, n)).transpose()
}

/// One of several names.
///
/// # Errors
/// `ValueError` that lists them.
pub fn choice<T: Copy>(name: &str, given: &str, choices: &[(&str, T)]) -> PyResult<T> {
    if let Some((_, value)) = choices.iter().find(|(n, _)| *n == given) {
        return Ok(*value);
    }
    let names: Vec<String> = choices.iter().map(|(n, _)| format!("{n:?}")).collect();
    Err(Error::Value(format!("{name}: expected {}, got {given:?}", names.join(", "))).into())
}

/// Refuses a soft cap that is not above 0.
///
/// # Errors
/// `ValueError`.
pub fn softcap(cap: Option<f64>) -> PyResult<Option<f64>> {
    match cap {
        Some(c) if c.is_nan() || c <= 0.0 => {
            Err(Error::Value(format!("softcap: expected a number above 0, or None, got {c}")).into())
        }
        cap => Ok(cap),
    }
}
