//! The argument `rng=`: from it comes the one 64-bit key that dropout's counter-based generator takes for a call.

use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyBool, PyInt};

use super::arrays::type_name;
use crate::error::Error;

/// The key: `None` draws it from the system, an int is the key, a `numpy.random.Generator` is advanced by one
/// draw of 64 bits, whatever the call then does with it. The global generator of NumPy is never touched.
pub fn key(py: Python<'_>, rng: Option<&Bound<'_, PyAny>>) -> PyResult<u64> {
    static URANDOM: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
    static GENERATOR: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
    let Some(rng) = rng else {
        let bytes: Vec<u8> = URANDOM.import(py, "os", "urandom")?.call1((8,))?.extract()?;
        return Ok(bytes.iter().fold(0, |key, &b| key << 8 | u64::from(b)));
    };
    if rng.is_instance(GENERATOR.import(py, "numpy.random", "Generator")?)? {
        // The full range: one step of the bit generator, no rejection.
        let draw = rng.call_method1("integers", (0, u64::MAX, py.None(), "uint64", true))?;
        return draw.extract();
    }
    if is_index(rng)? {
        return rng.call_method0("__index__")?.extract().map_err(|_| {
            Error::Value(format!("rng: expected a seed from 0 to 2**64 - 1, got {rng}")).into()
        });
    }
    Err(Error::Type(format!(
        "rng: expected None, an int or a numpy.random.Generator, got {}",
        type_name(rng)
    ))
    .into())
}

/// Whether the object is an integer (NumPy's too), and no bool.
pub(super) fn is_index(object: &Bound<'_, PyAny>) -> PyResult<bool> {
    if object.is_instance_of::<PyInt>() {
        return Ok(!object.is_instance_of::<PyBool>());
    }
    object.hasattr(pyo3::intern!(object.py(), "__index__"))
}
