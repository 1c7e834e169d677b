//! What every class of a small layer has, written once: the state both ways, dtypes, copies, pickle and repr.

/// The methods of a class: its own, in braces, and those that all share.
///
/// The class holds its layer as `held`, is made by `of`, says the keywords that make it again (`keywords`) and what stands
/// in the parentheses of its repr (`arguments`). `cast` makes the layer in another type. Where heads can be pruned, `gone`
/// says, for its pickle, what `prune_heads` is to be called with.
macro_rules! layer_class {
    ($class:ident, $name:literal, |$layer:ident| $cast:expr, { $($own:tt)* }) => {
        layer_class!($class, $name, |$layer| $cast, |_this, py| Ok(py.None().into_bound(py)), { $($own)* });
    };
    ($class:ident, $name:literal, |$layer:ident| $cast:expr, |$this:ident, $py:ident| $gone:expr,
        { $($own:tt)* }) => {
        #[pymethods]
        impl $class {
            $($own)*

            /// Return copies of the parameters by torch's names.
            ///
            /// Returns
            /// -------
            /// dict of str to ndarray
            fn state_dict<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
                entry(|| self.held.state_dict(py))
            }

            /// Load parameters by name, with or without wrappers' prefixes.
            ///
            /// Parameters
            /// ----------
            /// state : mapping of str to array_like
            ///     The parameters.
            /// strict : bool, default True
            ///     Whether a missing or an unexpected name is an error.
            ///
            /// Raises
            /// ------
            /// ValueError
            ///     If a parameter has another shape, or names do not fit; then nothing changes.
            #[pyo3(signature = (state, strict = true))]
            fn load_state_dict(&self, state: &Bound<'_, PyAny>, strict: bool) -> PyResult<()> {
                entry(|| self.held.load(state, strict))
            }

            /// Return the same layer in another dtype.
            ///
            /// Parameters
            /// ----------
            /// dtype : {"float32", "float64"}
            ///     What the new layer computes in.
            ///
            /// Returns
            /// -------
            #[doc = $name]
            fn to(&self, dtype: &Bound<'_, PyAny>) -> PyResult<Self> {
                entry(|| {
                    let (py, work) = (dtype.py(), self.held.num_parameters());
                    let wide = is_f64(dtype)?;
                    Ok(Self::of(with_layer!(self.held.get(), |$layer| if wide {
                        Either::F64(Arc::new(compute(py, work, || $cast)?))
                    } else {
                        Either::F32(Arc::new(compute(py, work, || $cast)?))
                    })))
                })
            }

            /// How many numbers the parameters have.
            #[getter]
            fn num_parameters(&self) -> usize {
                self.held.num_parameters()
            }

            /// NumPy's name of the dtype.
            #[getter]
            fn dtype(&self) -> &'static str {
                self.held.dtype()
            }

            fn __repr__(&self) -> String {
                format!("{}({}, dtype={:?})", $name, self.arguments(), self.held.dtype())
            }

            fn __reduce__<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, PyTuple>> {
                let ($py, $this) = (slf.py(), slf.get());
                let keywords = PyDict::new($py);
                slf.get().keywords(&keywords)?;
                keywords.set_item("dtype", slf.get().held.dtype())?;
                let gone: PyResult<Bound<'py, PyAny>> = $gone;
                rebuilding(slf.as_any(), keywords, gone?, slf.get().held.state_dict($py)?)
            }
        }
    };
}
pub(crate) use layer_class;
