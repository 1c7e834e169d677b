//! Arguments that are changed: arrays of one dtype whose numbers lie one after the other and may be written.

use std::marker::PhantomData;

use numpy::npyffi::NPY_ARRAY_WRITEABLE;
use numpy::{PyArrayDescrMethods, PyUntypedArray, PyUntypedArrayMethods};
use pyo3::prelude::*;

use crate::error::Error;
use crate::python::arrays::{fields, is_dense, type_name};
use crate::python::dtypes::{Kind, Source};
use crate::python::outputs::share_memory;
use crate::simd::Float;

/// An array of `T` that takes results.
pub struct InPlace<'py, T> {
    array: Bound<'py, PyUntypedArray>,
    of: PhantomData<T>,
}

/// Whether the array that is to be changed holds float64 (or float32).
///
/// # Errors
/// `TypeError` for what is no array, `DTypeError` for another dtype.
pub fn is_f64(name: &str, object: &Bound<'_, PyAny>) -> PyResult<bool> {
    let Ok(array) = object.cast::<PyUntypedArray>() else {
        let came = type_name(object);
        return Err(Error::Type(format!("{name}: expected a NumPy array, got {came}")).into());
    };
    match Source::of(&array.dtype())? {
        Some(Source::Float(Kind::F32)) => Ok(false),
        Some(Source::Float(Kind::F64)) => Ok(true),
        _ => {
            let came = array.dtype().str()?;
            Err(Error::DType(format!("{name}: expected dtype float32 or float64, got {came}")).into())
        }
    }
}

impl<'py, T: Float> InPlace<'py, T> {
    /// Checks that `object` is an array of `len` numbers that can be changed, and shares no memory with `others`.
    ///
    /// # Errors
    /// `TypeError` for another dtype or order, `ValueError` for another length, a read-only array or shared memory.
    pub fn new(
        name: &str,
        object: &Bound<'py, PyAny>,
        len: usize,
        others: &[&Bound<'py, PyUntypedArray>],
    ) -> PyResult<Self> {
        if is_f64(name, object)? != (size_of::<T>() == 8) {
            return Err(Error::DType(format!("{name}: expected dtype {}, that of parameter", T::NAME)).into());
        }
        let array = object.cast::<PyUntypedArray>()?;
        if !is_dense(array) || array.dtype().is_native_byteorder() == Some(false) {
            return Err(Error::Type(format!("{name}: expected a C-contiguous, native array")).into());
        }
        if fields(array).flags & NPY_ARRAY_WRITEABLE == 0 {
            return Err(Error::Value(format!("{name}: expected an array that can be written")).into());
        }
        if array.len() != len {
            return Err(Error::Shape(format!("{name}: expected {len} numbers, got {}", array.len())).into());
        }
        for other in others {
            if share_memory(array, other)? {
                return Err(Error::Value(format!("{name}: shares memory with another argument")).into());
            }
        }
        Ok(Self { array: array.clone(), of: PhantomData })
    }

    /// The array.
    pub fn array(&self) -> &Bound<'py, PyUntypedArray> {
        &self.array
    }

    /// Its numbers.
    pub fn numbers(&mut self) -> &mut [T] {
        if self.array.is_empty() {
            return &mut [];
        }
        let data = fields(&self.array).data.cast::<T>();
        // SAFETY: `new` found dtype `T`, alignment, C order and leave to write, and no other argument of the call overlaps;
        // the array outlives the slice. As with NumPy itself, others must not touch an array while a call writes it.
        unsafe { std::slice::from_raw_parts_mut(data, self.array.len()) }
    }
}
