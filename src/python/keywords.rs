//! Keywords that a call does not have.

use pyo3::prelude::*;
use pyo3::types::PyDict;

use crate::error::Error;

/// Refuses unknown keywords; for torch's masks of the opposite polarity it says what to pass instead.
///
/// # Errors
/// `TypeError`.
pub fn no_more(function: &str, unknown: Option<&Bound<'_, PyDict>>) -> PyResult<()> {
    let Some(name) = unknown.and_then(|u| u.keys().iter().next()) else { return Ok(()) };
    let mut text = format!("{function}() got an unexpected keyword argument '{name}'");
    // torch's encoder says src_key_padding_mask, its decoder tgt_... and memory_key_padding_mask.
    if name.to_string().ends_with("key_padding_mask") {
        let ours = if name.to_string().starts_with("memory") { "memory_key_mask" } else { "key_mask" };
        text += &format!(
            "; it is True where torch ignores a key: pass {ours}=~{name}, True where a key may be attended"
        );
    }
    Err(Error::Type(text).into())
}
