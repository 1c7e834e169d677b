//! `_tensor_file`: what the header of a safetensors file says, checked; Python reads the numbers themselves.

use std::path::PathBuf;

use pyo3::prelude::*;
use pyo3::types::{PyDict, PyTuple};

use crate::error::Error;
use crate::models::folder::Folder;
use crate::models::safetensors::TensorFile;
use crate::models::tensor_data::Access;
use crate::python::boundary::entry;

/// (metadata, {name: (dtype, shape, first byte, byte after the last)}) of a file.
#[pyfunction]
pub fn _tensor_file(py: Python<'_>, path: PathBuf) -> PyResult<(Bound<'_, PyDict>, Bound<'_, PyDict>)> {
    entry(|| {
        let absent = || Error::NotFound(format!("no file {}", path.display()));
        let name = path.file_name().and_then(|name| name.to_str()).ok_or_else(absent)?;
        let parent = path.parent().filter(|p| !p.as_os_str().is_empty());
        let folder = Folder::open(parent.unwrap_or_else(|| ".".as_ref()))?;
        let file = TensorFile::open(&folder, name, Access::Read)?;
        let (metadata, tensors) = (PyDict::new(py), PyDict::new(py));
        for (key, value) in file.metadata() {
            metadata.set_item(key, value)?;
        }
        for (name, dtype, shape, bytes) in file.entries() {
            tensors.set_item(name, (dtype, PyTuple::new(py, shape)?, bytes.start, bytes.end))?;
        }
        Ok((metadata, tensors))
    })
}
