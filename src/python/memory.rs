//! Memory of the crate's own for converted arguments. Giving back hundreds of megabytes takes milliseconds (pages are
//! unmapped one by one), so large vectors are freed without the interpreter's lock; memory that NumPy allocated
//! could not be, which is why NumPy copies into vectors of ours.

use bytemuck::Zeroable;
use numpy::npyffi::{NPY_ARRAY_CARRAY, NpyTypes, PY_ARRAY_API, get_type_object, npy_intp};
use numpy::{PyArrayDescr, PyArrayDescrMethods, PyUntypedArray, PyUntypedArrayMethods};
use pyo3::prelude::*;

use super::boundary::WORTH_RELEASING;
use crate::ops::buffer::zeros;

/// A vector that is freed without the interpreter's lock if it is large.
pub struct Owned<T: Send>(Vec<T>);

impl<T: Send> Owned<T> {
    /// Takes a vector.
    pub fn new(values: Vec<T>) -> Self {
        Self(values)
    }
}

impl<T: Send> std::ops::Deref for Owned<T> {
    type Target = [T];
    fn deref(&self) -> &[T] {
        &self.0
    }
}

impl<T: Send> Drop for Owned<T> {
    fn drop(&mut self) {
        if self.0.len() > WORTH_RELEASING {
            let values = std::mem::take(&mut self.0);
            Python::attach(|py| py.detach(|| drop(values)));
        }
    }
}

/// The array's items as dtype `descr`, dense in C order; NumPy casts what is of another dtype.
///
/// # Errors
/// `MemoryError`; what NumPy raises.
///
/// # Panics
/// If items of `descr` and of `T` differ in size.
pub fn converted<'py, T: Zeroable + Send>(
    array: &Bound<'py, PyUntypedArray>,
    descr: Bound<'py, PyArrayDescr>,
) -> PyResult<Owned<T>> {
    assert_eq!(descr.itemsize(), size_of::<T>(), "items of a conversion");
    let py = array.py();
    let mut values = zeros::<T>(array.len())?;
    if values.is_empty() {
        return Ok(Owned(values));
    }
    let mut shape: Vec<npy_intp> = array.shape().iter().map(|&n| n as npy_intp).collect();
    // SAFETY: the new array is dense, of as many items as `values`, whose memory it borrows; it has this scope's only
    // reference and is gone at its end. The dtype's reference is taken over. Results are checked. NumPy releases the
    // interpreter's lock while it copies numbers.
    unsafe {
        let target = PY_ARRAY_API.PyArray_NewFromDescr(
            py,
            get_type_object(py, NpyTypes::PyArray_Type),
            descr.into_dtype_ptr(),
            shape.len() as std::ffi::c_int,
            shape.as_mut_ptr(),
            std::ptr::null_mut(),
            values.as_mut_ptr().cast(),
            NPY_ARRAY_CARRAY,
            std::ptr::null_mut(),
        );
        let target = Bound::from_owned_ptr_or_err(py, target)?;
        if PY_ARRAY_API.PyArray_CopyInto(py, target.as_ptr().cast(), array.as_array_ptr()) < 0 {
            return Err(PyErr::fetch(py));
        }
    }
    Ok(Owned(values))
}
