//! A layer held by a Python object: in float32 or in float64, swapped whole when a state is loaded.
//!
//! A call takes a snapshot and computes with it; loading puts another layer in its place. Neither can fail because of
//! the other, and no result is a mixture of two states.

use std::sync::{Arc, PoisonError, RwLock};

use ndarray::{ArrayD, IxDyn};
use numpy::{Element, PyArrayDescr, PyArrayDescrMethods};
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyString};

use crate::error::{Error, Result};
use crate::nn::state::{Loader, Module, State, Tensor};
use crate::python::arrays::Operand;
use crate::python::boundary::compute;
use crate::python::dtypes::{Kind, Source};
use crate::python::outputs::array;
use crate::simd::Float;

/// A layer in either type.
pub enum Either<A, B> {
    /// float32
    F32(Arc<A>),
    /// float64
    F64(Arc<B>),
}

impl<A, B> Clone for Either<A, B> {
    fn clone(&self) -> Self {
        match self {
            Either::F32(a) => Either::F32(a.clone()),
            Either::F64(b) => Either::F64(b.clone()),
        }
    }
}

/// Runs the same code on the layer of whichever type.
macro_rules! with_layer {
    ($either:expr, |$layer:ident| $body:expr) => {
        match $either {
            $crate::python::layers::held::Either::F32($layer) => $body,
            $crate::python::layers::held::Either::F64($layer) => $body,
        }
    };
}
pub(crate) use with_layer;

/// The layer of a Python object.
pub struct Held<A, B>(RwLock<Either<A, B>>);

impl<A: Module<f32> + Send + Sync, B: Module<f64> + Send + Sync> Held<A, B> {
    /// Holds a layer.
    pub fn new(layer: Either<A, B>) -> Self {
        Self(RwLock::new(layer))
    }

    /// The layer as it is now.
    pub fn get(&self) -> Either<A, B> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Loads a state; nothing changes if it does not fit.
    ///
    /// # Errors
    /// As the contract has them.
    pub fn load(&self, state: &Bound<'_, PyAny>, strict: bool) -> PyResult<()> {
        let new = match self.get() {
            Either::F32(layer) => Either::F32(Arc::new(load(&*layer, state, strict)?)),
            Either::F64(layer) => Either::F64(Arc::new(load(&*layer, state, strict)?)),
        };
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = new;
        Ok(())
    }

    /// The parameters as fresh arrays.
    ///
    /// # Errors
    /// `MemoryError`.
    pub fn state_dict<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        with_layer!(self.get(), |layer| dict(py, compute(py, layer.num_parameters(), || layer.state())?))
    }

    /// How many numbers the parameters have.
    pub fn num_parameters(&self) -> usize {
        with_layer!(self.get(), |layer| layer.num_parameters())
    }

    /// NumPy's name of the dtype.
    pub fn dtype(&self) -> &'static str {
        match self.get() {
            Either::F32(_) => f32::NAME,
            Either::F64(_) => f64::NAME,
        }
    }
}

fn load<T, L>(layer: &L, state: &Bound<'_, PyAny>, strict: bool) -> PyResult<L>
where
    T: Float + Element,
    L: Module<T> + Send + Sync,
{
    let given = read_state(state)?;
    let mut loader = Loader::new(given)?;
    compute(state.py(), layer.num_parameters(), || {
        let new = layer.load("", &mut loader)?;
        loader.finish(strict)?;
        Ok(new)
    })
}

/// Reads a mapping of names to arrays.
///
/// # Errors
/// `TypeError` for anything else, `DTypeError`.
pub fn read_state<T: Float + Element>(state: &Bound<'_, PyAny>) -> PyResult<State<T>> {
    let mut given = Vec::new();
    let wrong = || Error::Type("state: expected a mapping of names to arrays".into());
    let items = state.call_method0("items").map_err(|_| wrong())?;
    for item in items.try_iter()? {
        let (name, value): (String, Bound<'_, PyAny>) = item?.extract().map_err(|_| wrong())?;
        let tensor = read_tensor(&value).map_err(|error| {
            let py = value.py();
            let named: PyErr = Error::Type(format!("state: {name}: {}", error.value(py))).into();
            named.set_cause(py, Some(error));
            named
        })?;
        given.push((name, tensor));
    }
    Ok(given)
}

fn read_tensor<T: Float + Element>(value: &Bound<'_, PyAny>) -> PyResult<Tensor<T>> {
    let input = Operand::new("state", value)?.read_dense::<T>()?;
    let (data, shape) = input.dense();
    Ok(Tensor::new(&shape, data.to_vec()))
}

/// A state, or gradients, as a dict of fresh arrays.
///
/// # Errors
/// `Internal`.
pub fn dict<T: Float + Element>(py: Python<'_>, state: State<T>) -> PyResult<Bound<'_, PyDict>> {
    let dict = PyDict::new(py);
    for (name, tensor) in state {
        dict.set_item(name, array(py, shaped(&tensor.shape, tensor.data)?))?;
    }
    Ok(dict)
}

/// An array of a shape that its numbers fill.
///
/// # Errors
/// `Internal` if they do not.
pub fn shaped<T>(shape: &[usize], data: Vec<T>) -> Result<ArrayD<T>> {
    ArrayD::from_shape_vec(IxDyn(shape), data).map_err(|e| Error::Internal(e.to_string()))
}

/// The argument `dtype=` of a layer: whether it is float64.
///
/// # Errors
/// `DTypeError` for any other than float32 and float64.
pub fn is_f64(dtype: &Bound<'_, PyAny>) -> PyResult<bool> {
    let refused = || -> PyErr {
        let came = dtype.repr().map_or_else(|_| "?".to_owned(), |r| r.to_string());
        Error::DType(format!("dtype: expected \"float32\" or \"float64\", got {came}")).into()
    };
    // bfloat16 is no dtype of NumPy's own: a name that it does not know is refused as well.
    let descr = PyArrayDescr::new(dtype.py(), dtype.clone()).map_err(|_| refused())?;
    if dtype.is_none() || (dtype.is_instance_of::<PyString>() && descr.itemsize() < 4) {
        return Err(refused());
    }
    match Source::of(&descr)? {
        Some(Source::Float(Kind::F32)) => Ok(false),
        Some(Source::Float(Kind::F64)) => Ok(true),
        _ => Err(refused()),
    }
}
