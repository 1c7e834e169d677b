//! Results: a fresh C-contiguous array made from a vector without a copy, or the caller's `out=`.

use half::{bf16, f16};
use ndarray::{ArrayD, IxDyn};
use numpy::npyffi::NPY_ARRAY_WRITEABLE;
use numpy::{Element, PyArray, PyArrayDescr, PyArrayDescrMethods, PyUntypedArray, PyUntypedArrayMethods};
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;

use super::arrays::{Operand, convert, fields, is_dense, type_name};
use super::boundary::compute;
use super::dtypes::{Kind, Source};
use crate::error::{Error, Result};
use crate::ops::buffer::zeros;
use crate::simd::Float;

/// The dtype of a call's results.
pub struct Target<'py> {
    kind: Kind,
    /// The dtype object, where the result is bfloat16: it belongs to a package that may not be imported.
    bfloat16: Option<Bound<'py, PyArrayDescr>>,
}

impl<'py> Target<'py> {
    /// `np.result_type` of the operands, bool and integers counted as float64.
    pub fn of(operands: &[&Operand<'py>]) -> Self {
        let kind = operands.iter().map(|o| o.kind()).reduce(Kind::with).unwrap_or(Kind::F64);
        let bfloat16 = (kind == Kind::BF16).then(|| operands[0].array().dtype());
        Self { kind, bfloat16 }
    }

    /// Whether the work is done in float64.
    pub fn is_f64(&self) -> bool {
        self.kind == Kind::F64
    }

    /// Hands a result over, rounded to the dtype (once, to nearest even).
    ///
    /// # Errors
    /// `MemoryError`; `ShapeError` if `out` has another shape.
    pub fn give<T: Float + Element>(
        &self,
        py: Python<'py>,
        values: ArrayD<T>,
        out: Option<&Out<'py>>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let values =
            if values.is_standard_layout() { values } else { values.as_standard_layout().into_owned() };
        if let Some(out) = out {
            out.check_shape(values.shape())?;
            self.fill(py, values, out)?;
            return Ok(out.array.clone().into_any());
        }
        if matches!(self.kind, Kind::F32 | Kind::F64) {
            return Ok(array(py, values));
        }
        let shape = IxDyn(values.shape());
        let (flat, _) = values.into_raw_vec_and_offset();
        let len = flat.len();
        // The numbers are moved in, so that they are freed without the interpreter's lock.
        if self.kind == Kind::F16 {
            let half = compute(py, len, move || {
                let (flat, mut half) = (flat, zeros::<f16>(len)?);
                convert(&flat, &mut half, round_f16)?;
                Ok(half)
            })?;
            return shaped(py, half, shape);
        }
        let bits = compute(py, len, move || {
            let (flat, mut bits) = (flat, zeros::<u16>(len)?);
            convert(&flat, &mut bits, |x| round_bf16(x).to_bits())?;
            Ok(bits)
        })?;
        shaped(py, bits, shape)?.call_method1("view", (self.bfloat16.as_ref(),))
    }

    /// Writes `values`, in standard layout, into `out`, which has been checked.
    fn fill<T: Float + Element>(&self, py: Python<'py>, values: ArrayD<T>, out: &Out<'py>) -> PyResult<()> {
        let len = values.len();
        let (from, _) = values.into_raw_vec_and_offset();
        let data = Place(fields(&out.array).data.cast());
        let kind = self.kind;
        compute(py, len, move || {
            let data = data;
            // Moved in, so that it is freed without the interpreter's lock.
            let from = from;
            match kind {
                Kind::F32 | Kind::F64 => {
                    // SAFETY: `Out::new` found dtype `T` (the caller computes in the target's type), alignment and C
                    // order, `give` the same shape, and no input overlaps; the array outlives this call.
                    let to = unsafe { std::slice::from_raw_parts_mut(data.0.cast::<T>(), len) };
                    convert(&from, to, |x| x)
                }
                Kind::F16 => {
                    // SAFETY: as above, with two-byte items.
                    let to = unsafe { std::slice::from_raw_parts_mut(data.0.cast::<f16>(), len) };
                    convert(&from, to, round_f16)
                }
                Kind::BF16 => {
                    // SAFETY: as above, with two-byte items.
                    let to = unsafe { std::slice::from_raw_parts_mut(data.0.cast::<bf16>(), len) };
                    convert(&from, to, round_bf16)
                }
            }
        })
    }
}

/// A pointer that may go to the thread that writes there.
#[derive(Clone, Copy)]
struct Place(*mut std::ffi::c_void);
// SAFETY: it is used while the array behind it is alive and nobody else writes to it.
unsafe impl Send for Place {}

fn round_f16<T: Float>(x: T) -> f16 {
    // Only float32 is ever rounded to half: the conversion to f64 and back is exact.
    f16::from_f32(x.to_f64() as f32)
}

fn round_bf16<T: Float>(x: T) -> bf16 {
    bf16::from_f32(x.to_f64() as f32)
}

/// A fresh array of `values`, which are not copied.
pub fn array<T: Element>(py: Python<'_>, values: ArrayD<T>) -> Bound<'_, PyAny> {
    PyArray::from_owned_array(py, values).into_any()
}

fn shaped<T: Element>(py: Python<'_>, values: Vec<T>, shape: IxDyn) -> PyResult<Bound<'_, PyAny>> {
    Ok(array(py, ArrayD::from_shape_vec(shape, values).map_err(|e| Error::Internal(e.to_string()))?))
}

/// The argument `out=`: an array that takes the result.
pub struct Out<'py> {
    array: Bound<'py, PyUntypedArray>,
}

impl<'py> Out<'py> {
    /// Checks that `object` can take a result of dtype `target`, computed from `inputs`.
    ///
    /// # Errors
    /// `TypeError` for what is no array, another dtype or order; `ValueError` if it is read-only or shares memory
    /// with an input.
    pub fn new(
        object: &Bound<'py, PyAny>,
        target: &Target<'py>,
        inputs: &[&Bound<'py, PyUntypedArray>],
    ) -> PyResult<Self> {
        let Ok(array) = object.cast::<PyUntypedArray>() else {
            let came = type_name(object);
            return Err(Error::Type(format!("out: expected a NumPy array, got {came}")).into());
        };
        let descr = array.dtype();
        if Source::of(&descr)? != Some(Source::Float(target.kind))
            || descr.is_native_byteorder() == Some(false)
        {
            let came = descr.str()?;
            return Err(Error::DType(format!(
                "out: expected dtype {}, that of the result, got {came} (byte order counts)",
                target.kind.name()
            ))
            .into());
        }
        if !is_dense(array) {
            return Err(Error::Type(format!(
                "out: expected a C-contiguous array, got strides {:?} for shape {:?}",
                array.strides(),
                array.shape()
            ))
            .into());
        }
        if fields(array).flags & NPY_ARRAY_WRITEABLE == 0 {
            return Err(Error::Value(
                "out: expected an array that can be written, got a read-only one".into(),
            )
            .into());
        }
        for input in inputs {
            if share_memory(array, input)? {
                return Err(Error::Value("out: shares memory with an input".into()).into());
            }
        }
        Ok(Self { array: array.clone() })
    }

    /// Checks the shape.
    ///
    /// # Errors
    /// `Shape`.
    pub fn check_shape(&self, expected: &[usize]) -> Result<()> {
        if self.array.shape() == expected {
            return Ok(());
        }
        Err(Error::Shape(format!(
            "out: expected shape {expected:?}, that of the result, got {:?}",
            self.array.shape()
        )))
    }
}

/// Whether two arrays have a byte in common.
pub(super) fn share_memory(a: &Bound<'_, PyUntypedArray>, b: &Bound<'_, PyUntypedArray>) -> PyResult<bool> {
    static SHARES: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
    if a.is_empty() || b.is_empty() {
        return Ok(false);
    }
    let ((a0, a1), (b0, b1)) = (bounds(a), bounds(b));
    if a1 <= b0 || b1 <= a0 {
        return Ok(false);
    }
    // Their bounds overlap: strided arrays may still interleave, which NumPy can tell. Where that would take it
    // too long it raises an error, and the answer is the safe one.
    let exact = SHARES.import(a.py(), "numpy", "shares_memory")?.call1((a, b, 100_000));
    Ok(exact.and_then(|yes| yes.extract()).unwrap_or(true))
}

/// Addresses of the first byte and of the one after the last.
fn bounds(array: &Bound<'_, PyUntypedArray>) -> (usize, usize) {
    let mut first = fields(array).data as usize;
    let mut end = first + array.dtype().itemsize();
    for (&n, &stride) in array.shape().iter().zip(array.strides()) {
        let reach = (n as isize - 1) * stride;
        if reach < 0 {
            first = first.wrapping_add_signed(reach);
        } else {
            end = end.wrapping_add_signed(reach);
        }
    }
    (first, end)
}
