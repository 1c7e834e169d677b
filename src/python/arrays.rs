//! Arguments that are arrays: anything `np.asarray` or `__dlpack__` gives, seen by the crate as an ndarray view.
//!
//! Nothing is copied where the array is native, aligned, its last axis dense and its strides non-negative whole
//! numbers of items; else one converted copy is made. Views are taken from the raw pointer, past rust-numpy's
//! borrow flags: those refuse what NumPy allows (two threads reading, a read-only array as an argument) and
//! know nothing of writers in Python. As with NumPy itself, an array must not be written while a call reads it.

use std::marker::PhantomData;

use half::{bf16, f16};
use ndarray::{ArrayViewD, IxDyn, ShapeBuilder};
use numpy::npyffi::{
    NPY_ARRAY_ALIGNED, NPY_ARRAY_C_CONTIGUOUS, NPY_ARRAY_CARRAY_RO, NPY_ARRAY_ENSUREARRAY,
    NPY_ARRAY_FORCECAST, PY_ARRAY_API, PyArrayObject, PyArrayObject_fields,
};
use numpy::{Element, PyArrayDescr, PyArrayDescrMethods, PyUntypedArray, PyUntypedArrayMethods};
use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::PyType;

use super::boundary::compute;
use super::dtypes::{Kind, Source, unsupported};
use super::memory::{Owned, converted};
use crate::error::{Error, Result};
use crate::ops::buffer::zeros;
use crate::simd::Float;
use crate::threads::parallel;

/// Numbers that one task widens or rounds: half a cache of the first level.
pub(super) const CONVERT_CHUNK: usize = 1 << 13;

/// An argument that is an array of numbers, its dtype known and good.
pub struct Operand<'py> {
    array: Bound<'py, PyUntypedArray>,
    source: Source,
}

/// Numbers of type `T` that an [`Operand`] holds: borrowed from its array, or converted.
pub struct Input<'py, T: Send> {
    held: Held<'py, T>,
}

enum Held<'py, T: Send> {
    /// Dtype `T`, native, aligned, last axis dense, strides non-negative whole items.
    Numpy(Bound<'py, PyUntypedArray>, PhantomData<T>),
    /// Dense, with its shape.
    Owned(Owned<T>, Vec<usize>),
}

impl<'py> Operand<'py> {
    /// Takes an argument.
    ///
    /// # Errors
    /// `DTypeError` for complex, longdouble, object and other dtypes; what `np.asarray` raises.
    pub fn new(name: &'static str, object: &Bound<'py, PyAny>) -> PyResult<Self> {
        let array = as_array(name, object)?;
        let descr = array.dtype();
        let Some(source) = Source::of(&descr)? else { return Err(unsupported(name, &descr)) };
        Ok(Self { array, source })
    }

    /// The array itself.
    pub fn array(&self) -> &Bound<'py, PyUntypedArray> {
        &self.array
    }

    /// The argument's dtype.
    pub fn source(&self) -> Source {
        self.source
    }

    /// The argument's dtype as it counts in `np.result_type`.
    pub fn kind(&self) -> Kind {
        self.source.kind()
    }

    /// The argument's shape.
    pub fn shape(&self) -> &[usize] {
        self.array.shape()
    }

    /// The numbers as `T`. f16 and bf16 are widened exactly; everything else NumPy casts, where it must.
    ///
    /// # Errors
    /// `MemoryError`.
    pub fn read<T: Float + Element>(&self) -> PyResult<Input<'py, T>> {
        let py = self.array.py();
        let held = match self.source {
            Source::Float(Kind::F16) => self.widen(|bits| f16::from_bits(bits).to_f32())?,
            Source::Float(Kind::BF16) => self.widen(|bits| bf16::from_bits(bits).to_f32())?,
            source if source == Source::Float(kind_of::<T>()) && is_readable::<T>(&self.array) => {
                Held::Numpy(self.array.clone(), PhantomData)
            }
            _ => Held::converted(&self.array, PyArrayDescr::of::<T>(py))?,
        };
        Ok(Input { held })
    }

    /// As [`Self::read`], dense in C order: for masks, which the crate takes as slices.
    ///
    /// # Errors
    /// `MemoryError`.
    pub fn read_dense<T: Float + Element>(&self) -> PyResult<Input<'py, T>> {
        let input = self.read()?;
        Ok(match input.held {
            Held::Numpy(array, _) if !is_dense(&array) => {
                Input { held: Held::converted(&array, PyArrayDescr::of::<T>(array.py()))? }
            }
            held => Input { held },
        })
    }

    /// Widens sixteen-bit numbers, without the interpreter's lock where there are many.
    fn widen<T: Float>(&self, wide: impl Fn(u16) -> f32 + Sync) -> PyResult<Held<'py, T>> {
        let py = self.array.py();
        let copy;
        let bits: &[u16] = if is_dense(&self.array) {
            let data: *const u16 = fields(&self.array).data.cast();
            // SAFETY: the array is dense and aligned, its items are two bytes, and it outlives the slice. The pointer
            // is not null even where the array is empty.
            unsafe { std::slice::from_raw_parts(data, self.array.len()) }
        } else {
            // As integers NumPy copies them without the lock, which it does not for a foreign dtype.
            let order = if self.array.dtype().is_native_byteorder() == Some(false) { "S" } else { "=" };
            let integers = PyArrayDescr::of::<u16>(py).call_method1("newbyteorder", (order,))?;
            let view = self.array.call_method1("view", (integers,))?.cast_into::<PyUntypedArray>()?;
            copy = converted::<u16>(&view, PyArrayDescr::of::<u16>(py))?;
            &copy
        };
        let values = compute(py, bits.len(), || {
            let mut values = zeros(bits.len())?;
            convert(bits, &mut values, |x| T::from_f64(f64::from(wide(x))))?;
            Ok(values)
        })?;
        Ok(Held::Owned(Owned::new(values), self.shape().to_vec()))
    }
}

impl<'py, T: Float + Element> Held<'py, T> {
    fn converted(array: &Bound<'py, PyUntypedArray>, descr: Bound<'py, PyArrayDescr>) -> PyResult<Self> {
        Ok(Held::Owned(converted(array, descr)?, array.shape().to_vec()))
    }
}

/// `out[i] = f(x[i])`, over threads.
pub(super) fn convert<A: Copy + Sync, B: Send>(
    x: &[A],
    out: &mut [B],
    f: impl Fn(A) -> B + Sync,
) -> Result<()> {
    let chunks: Vec<_> = x
        .chunks(CONVERT_CHUNK)
        .zip(out.chunks_mut(CONVERT_CHUNK))
        .map(|(x, out)| std::sync::Mutex::new((x, out)))
        .collect();
    parallel(chunks.len(), |i| {
        if let Ok(mut chunk) = chunks[i].lock() {
            let (x, out) = &mut *chunk;
            for (y, &x) in out.iter_mut().zip(x.iter()) {
                *y = f(x);
            }
        }
    })
}

/// The dtype that is computed in as `T`.
fn kind_of<T: Float>() -> Kind {
    if size_of::<T>() == 4 { Kind::F32 } else { Kind::F64 }
}

impl<T: Float> Input<'_, T> {
    /// The numbers. The array stays alive as long as this value does.
    pub fn view(&self) -> ArrayViewD<'_, T> {
        match &self.held {
            Held::Owned(values, shape) => {
                ArrayViewD::from_shape(IxDyn(shape), values).expect("as many numbers as the shape says")
            }
            // SAFETY: `read` checked dtype, alignment and strides.
            Held::Numpy(array, _) => unsafe { view_of(array) },
        }
    }

    /// The numbers in C order and their shape, of what `read_dense` gave.
    pub fn dense(&self) -> (&[T], Vec<usize>) {
        match &self.held {
            Held::Owned(values, shape) => (values, shape.clone()),
            Held::Numpy(array, _) => {
                assert!(is_dense(array), "an input read with read_dense");
                // SAFETY: dense, of dtype `T`, and alive as long as `self`.
                let data = unsafe { std::slice::from_raw_parts(fields(array).data.cast::<T>(), array.len()) };
                (data, array.shape().to_vec())
            }
        }
    }
}

/// The array that `np.asarray` gives, or `np.from_dlpack` for an object that speaks nothing else.
pub fn as_array<'py>(name: &str, object: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyUntypedArray>> {
    let py = object.py();
    if let Ok(array) = object.cast_exact::<PyUntypedArray>() {
        return Ok(array.clone());
    }
    if speaks_dlpack_only(object)? {
        static FROM_DLPACK: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
        let array = FROM_DLPACK.import(py, "numpy", "from_dlpack")?.call1((object,));
        return Ok(array.map_err(|e| explain(py, name, e))?.cast_into::<PyUntypedArray>()?);
    }
    // SAFETY: the call takes any object, a null dtype means "whichever it has"; the result is checked for null.
    let made = unsafe {
        let made = PY_ARRAY_API.PyArray_FromAny(
            py,
            object.as_ptr(),
            std::ptr::null_mut(),
            0,
            0,
            NPY_ARRAY_ENSUREARRAY,
            std::ptr::null_mut(),
        );
        Bound::from_owned_ptr_or_err(py, made)
    };
    Ok(made.map_err(|e| explain(py, name, e))?.cast_into::<PyUntypedArray>()?)
}

/// Whether `np.asarray` would make an array of one object out of it.
fn speaks_dlpack_only(object: &Bound<'_, PyAny>) -> PyResult<bool> {
    let py = object.py();
    if !object.hasattr(pyo3::intern!(py, "__dlpack__"))? {
        return Ok(false);
    }
    for other in ["__array__", "__array_interface__", "__array_struct__", "__buffer__"] {
        if object.hasattr(other)? {
            return Ok(false);
        }
    }
    // An array scalar or a subclass of ndarray has `__array__`; what is left may still offer a buffer in C.
    Ok(pyo3::buffer::PyUntypedBuffer::get(object).is_err())
}

/// Names the argument in an error of NumPy's about shape or kind; other errors stay what they are.
fn explain(py: Python<'_>, name: &str, error: PyErr) -> PyErr {
    let text = format!("{name}: expected an array, or what np.asarray makes one of: {}", error.value(py));
    let named: PyErr = if error.is_instance_of::<PyValueError>(py) {
        Error::Shape(text).into()
    } else if error.is_instance_of::<PyTypeError>(py) {
        Error::DType(text).into()
    } else {
        return error;
    };
    named.set_cause(py, Some(error));
    named
}

/// A dense, aligned, native copy of dtype `descr`; the array itself where it is that already.
pub(super) fn dense<'py>(
    array: &Bound<'py, PyUntypedArray>,
    descr: Bound<'py, PyArrayDescr>,
) -> PyResult<Bound<'py, PyUntypedArray>> {
    let py = array.py();
    // SAFETY: the array is live, the call takes over the reference to the dtype, the result is checked for null.
    // NumPy releases the interpreter's lock while it copies numbers.
    let made = unsafe {
        let flags = NPY_ARRAY_CARRAY_RO | NPY_ARRAY_FORCECAST;
        let made = PY_ARRAY_API.PyArray_FromArray(py, array.as_array_ptr(), descr.into_dtype_ptr(), flags);
        Bound::from_owned_ptr_or_err(py, made)?
    };
    Ok(made.cast_into::<PyUntypedArray>()?)
}

/// The fields of the array's C struct.
pub(super) fn fields<'a>(array: &'a Bound<'_, PyUntypedArray>) -> &'a PyArrayObject_fields {
    let object: *const PyArrayObject = array.as_array_ptr();
    // SAFETY: the array is alive as long as the reference to it.
    unsafe { &(*object).fields }
}

/// Whether the items lie one after the other in C order, aligned, in the machine's byte order.
pub(super) fn is_dense(array: &Bound<'_, PyUntypedArray>) -> bool {
    let wanted = NPY_ARRAY_C_CONTIGUOUS | NPY_ARRAY_ALIGNED;
    fields(array).flags & wanted == wanted && array.dtype().is_native_byteorder() != Some(false)
}

/// Whether an array whose dtype is that of `T`, but for the byte order, can be viewed as it is.
pub(super) fn is_readable<T>(array: &Bound<'_, PyUntypedArray>) -> bool {
    let item = size_of::<T>() as isize;
    let (shape, strides) = (array.shape(), array.strides());
    let regular = |(&n, &stride): (&usize, &isize)| n <= 1 || (stride >= 0 && stride % item == 0);
    let last_is_dense = match (shape.last(), strides.last()) {
        (Some(&n), Some(&stride)) => n <= 1 || stride == item,
        _ => true,
    };
    array.is_empty()
        || (fields(array).flags & NPY_ARRAY_ALIGNED != 0
            && array.dtype().is_native_byteorder() != Some(false)
            && last_is_dense
            && shape.iter().zip(strides).all(regular))
}

/// A view of the array's items.
///
/// # Safety
/// The items are `T`s, and [`is_readable`] holds; the array outlives the view.
pub(super) unsafe fn view_of<'a, T>(array: &'a Bound<'_, PyUntypedArray>) -> ArrayViewD<'a, T> {
    let shape = array.shape();
    let mut strides = vec![0; shape.len()];
    // Axes of one item or none may have any stride in NumPy; here they get the one of a dense array.
    let mut step = 1;
    for (axis, stride) in strides.iter_mut().enumerate().rev() {
        *stride = if shape[axis] <= 1 || array.is_empty() {
            step
        } else {
            array.strides()[axis] as usize / size_of::<T>()
        };
        step = *stride * shape[axis].max(1);
    }
    let data: *const T = fields(array).data.cast();
    // SAFETY: shape and strides are those of the array, in items.
    unsafe { ArrayViewD::from_shape_ptr(IxDyn(shape).strides(IxDyn(&strides)), data) }
}

/// `numpy.ndarray`, for texts of errors.
pub(super) fn type_name(object: &Bound<'_, PyAny>) -> String {
    let class: Bound<'_, PyType> = object.get_type();
    class.qualname().map_or_else(|_| "an object".to_owned(), |n| n.to_string())
}
