//! The second half of a `vjp`: what turns the gradient of a result into the gradients of the inputs.

use pyo3::prelude::*;

use super::boundary::entry;

/// From the gradient of the result to whatever the pullback returns. What it needs of the forward pass it holds.
type Back = dyn Fn(&Bound<'_, PyAny>) -> PyResult<Py<PyAny>> + Send + Sync;

/// Turn the gradient of a result into the gradients of the inputs.
///
/// Made by the functions of `headwise.vjp` and by the `vjp` of layers, together with the result itself. It may be called
/// any number of times; the inputs are held, not copied, and must not be changed meanwhile.
#[pyclass(name = "Pullback", module = "headwise", frozen, weakref)]
pub struct PyPullback {
    of: &'static str,
    back: Box<Back>,
}

impl PyPullback {
    /// The pullback of the function or layer named `of`.
    pub fn new(
        of: &'static str,
        back: impl Fn(&Bound<'_, PyAny>) -> PyResult<Py<PyAny>> + Send + Sync + 'static,
    ) -> Self {
        Self { of, back: Box::new(back) }
    }
}

#[pymethods]
impl PyPullback {
    /// Return the gradients of the inputs.
    ///
    /// Parameters
    /// ----------
    /// d_out : array_like or list of array_like
    ///     Gradient of a number with respect to the result, of the result's shape.
    ///
    /// Returns
    /// -------
    /// tuple
    ///     Of a function: a gradient for each array that was given. Of a layer: those of its inputs, and a dict of those of
    ///     its parameters, named as in its `state_dict`.
    ///
    /// Raises
    /// ------
    /// ValueError
    ///     If `d_out` has another shape than the result.
    #[pyo3(name = "_call", signature = (d_out), text_signature = "($self, d_out)")]
    fn call(&self, d_out: &Bound<'_, PyAny>) -> PyResult<Py<PyAny>> {
        entry(|| (self.back)(d_out))
    }

    fn __repr__(&self) -> String {
        format!("<pullback of {}>", self.of)
    }
}
