//! The extension module `headwise._core`: what Python sees of the crate, registered name by name.

use pyo3::prelude::*;

/// The compiled part of headwise; users import its names from `headwise`.
#[pymodule]
mod _core {
    use pyo3::prelude::*;

    #[pymodule_init]
    fn init(module: &Bound<'_, PyModule>) -> PyResult<()> {
        module.add("__version__", env!("CARGO_PKG_VERSION"))
    }
}
