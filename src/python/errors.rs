//! From the crate's one error enum to Python's exceptions. The classes stand in `headwise/_errors.py`, since
//! each has a builtin base beside `HeadwiseError`; they are looked up when the first of them is raised.

use pyo3::exceptions::{PyFileNotFoundError, PyKeyboardInterrupt, PyMemoryError};
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::PyType;

use crate::error::Error;

/// A class of `headwise._errors`, with `text`.
macro_rules! raise {
    ($py:expr, $class:literal, $text:expr) => {{
        static CLASS: PyOnceLock<Py<PyType>> = PyOnceLock::new();
        match CLASS.import($py, "headwise._errors", $class) {
            Ok(class) => PyErr::from_type(class.clone(), ($text,)),
            Err(error) => error,
        }
    }};
}

impl From<Error> for PyErr {
    fn from(error: Error) -> PyErr {
        let text = error.to_string();
        Python::attach(|py| match error {
            Error::Shape(_) => raise!(py, "ShapeError", text),
            Error::Value(_) => raise!(py, "ArgumentValueError", text),
            Error::Type(_) => raise!(py, "ArgumentTypeError", text),
            Error::DType(_) => raise!(py, "DTypeError", text),
            Error::ModelFormat(_) => raise!(py, "ModelFormatError", text),
            Error::Tokenizer(_) => raise!(py, "TokenizerError", text),
            Error::Unsupported(_) => raise!(py, "UnsupportedModelError", text),
            Error::NotFound(_) => PyFileNotFoundError::new_err(text),
            Error::Memory(_) => PyMemoryError::new_err(text),
            Error::Interrupted => PyKeyboardInterrupt::new_err(()),
            Error::Internal(_) => raise!(py, "InternalError", text),
        })
    }
}
