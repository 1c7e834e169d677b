//! Which NumPy dtypes are computed with, and what several of them together give.
//!
//! Four kinds of numbers come and go: float16, bfloat16 (of `ml_dtypes`, recognised by its name: the package is
//! never imported), float32, float64. Booleans and integers count as float64. Work is done in float32, or in
//! float64 where the result is; `np.result_type` of the four is a small table.

use numpy::npyffi::NPY_TYPES;
use numpy::{PyArrayDescr, PyArrayDescrMethods};
use pyo3::prelude::*;

use crate::error::Error;

/// The dtype of a result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// float16, computed in float32.
    F16,
    /// bfloat16, computed in float32.
    BF16,
    /// float32.
    F32,
    /// float64.
    F64,
}

impl Kind {
    /// `np.result_type` of the two.
    pub fn with(self, other: Kind) -> Kind {
        match (self, other) {
            (Kind::F64, _) | (_, Kind::F64) => Kind::F64,
            (a, b) if a == b => a,
            // float16 with bfloat16 as well: neither holds the other.
            _ => Kind::F32,
        }
    }

    /// NumPy's name.
    pub fn name(self) -> &'static str {
        match self {
            Kind::F16 => "float16",
            Kind::BF16 => "bfloat16",
            Kind::F32 => "float32",
            Kind::F64 => "float64",
        }
    }
}

/// The dtype of an argument.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// Boolean.
    Bool,
    /// Signed or unsigned integer.
    Integer,
    /// One of the four that results have.
    Float(Kind),
}

impl Source {
    /// Reads a dtype; `None` for those that are not computed with.
    pub fn of(descr: &Bound<'_, PyArrayDescr>) -> PyResult<Option<Source>> {
        let num = descr.num();
        let is = |t: NPY_TYPES| num == t as std::ffi::c_int;
        Ok(if is(NPY_TYPES::NPY_FLOAT) {
            Some(Source::Float(Kind::F32))
        } else if is(NPY_TYPES::NPY_DOUBLE) {
            Some(Source::Float(Kind::F64))
        } else if is(NPY_TYPES::NPY_HALF) {
            Some(Source::Float(Kind::F16))
        } else if is(NPY_TYPES::NPY_BOOL) {
            Some(Source::Bool)
        } else if num > NPY_TYPES::NPY_BOOL as i32 && num < NPY_TYPES::NPY_FLOAT as i32 {
            Some(Source::Integer)
        } else if num >= NPY_TYPES::NPY_USERDEF as i32
            && descr.itemsize() == 2
            && descr.typeobj().name()?.to_cow()? == "bfloat16"
        {
            Some(Source::Float(Kind::BF16))
        } else {
            None
        })
    }

    /// As a dtype that takes part in `np.result_type`.
    pub fn kind(self) -> Kind {
        match self {
            Source::Bool | Source::Integer => Kind::F64,
            Source::Float(kind) => kind,
        }
    }
}

/// The error for an argument of a dtype that is not computed with.
pub fn unsupported(name: &str, descr: &Bound<'_, PyArrayDescr>) -> PyErr {
    let came = descr.str().map_or_else(|_| "?".to_owned(), |s| s.to_string());
    Error::DType(format!(
        "{name}: expected booleans, integers, float16, bfloat16, float32 or float64, got dtype {came}"
    ))
    .into()
}
