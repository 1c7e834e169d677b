//! What was built and what runs: the version, the instruction set, the threads.

use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList};

use super::boundary::entry;
use crate::error::Error;
use crate::{simd, threads};

/// Return the name of the instruction set in use.
///
/// It is the widest that this CPU and build have, or the one that the environment variable ``HEADWISE_ISA`` named
/// when headwise was imported. An unknown or absent one makes the import fail with `ImportError`.
///
/// Returns
/// -------
/// str
///     One of ``"scalar"``, ``"avx2"``, ``"avx512"``, ``"neon"``.
///
/// Examples
/// --------
/// >>> import headwise as hw
/// >>> hw.isa() in ("scalar", "avx2", "avx512", "neon")
/// True
#[pyfunction]
pub fn isa() -> PyResult<String> {
    entry(|| Ok(simd::active()?.to_string()))
}

/// Show how headwise was built and what it runs on.
///
/// Parameters
/// ----------
/// mode : {"stdout", "dicts"}, default "stdout"
///     Whether to print a text or to return a dictionary.
///
/// Returns
/// -------
/// dict or None
///     The configuration, with ``mode="dicts"``.
///
/// Raises
/// ------
/// ValueError
///     If `mode` is another.
///
/// Examples
/// --------
/// >>> import headwise as hw
/// >>> hw.show_config(mode="dicts")["version"] == hw.__version__
/// True
#[pyfunction]
#[pyo3(signature = (mode = "stdout"))]
pub fn show_config<'py>(py: Python<'py>, mode: &str) -> PyResult<Option<Bound<'py, PyDict>>> {
    entry(|| {
        if !matches!(mode, "stdout" | "dicts") {
            let text = format!("mode: expected \"stdout\" or \"dicts\", got {mode:?}");
            return Err(Error::Value(text).into());
        }
        let available: Vec<String> = simd::available().iter().map(ToString::to_string).collect();
        let config = PyDict::new(py);
        config.set_item("version", env!("CARGO_PKG_VERSION"))?;
        config.set_item("isa", simd::active()?.to_string())?;
        config.set_item("available_isas", available)?;
        config.set_item("num_threads", threads::num_threads()?)?;
        config.set_item("build", if cfg!(debug_assertions) { "debug" } else { "release" })?;
        config.set_item("target", format!("{}-{}", std::env::consts::ARCH, std::env::consts::OS))?;
        config.set_item("numpy", py.import("numpy")?.getattr("__version__")?)?;
        config.set_item("python", py.import("platform")?.call_method0("python_version")?)?;
        if mode == "dicts" {
            return Ok(Some(config));
        }
        let print = py.import("builtins")?.getattr("print")?;
        for (name, value) in config {
            let value = match value.cast::<PyList>() {
                Ok(names) => names.extract::<Vec<String>>()?.join(", "),
                Err(_) => value.to_string(),
            };
            print.call1((format!("{:<16}{value}", format!("{name}:")),))?;
        }
        Ok(None)
    })
}
