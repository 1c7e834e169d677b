//! The class of a recurrent layer: its own constructor, in braces, and the methods that all of them share.

/// As [`layer_class`](super::super::class::layer_class), for a class that holds a [`Recurrent`](crate::nn::recurrent::Recurrent).
macro_rules! recurrent_class {
    ($class:ident, $name:literal, { $($own:tt)* }) => {
        impl $class {
            fn of(layer: Either<Recurrent<f32>, Recurrent<f64>>) -> Self {
                Self { held: Held::new(layer) }
            }

            /// A layer with drawn parameters.
            fn drawn(config: RecurrentConfig, wide: bool, init: &mut Init) -> PyResult<Self> {
                Ok(Self::of(if wide {
                    Either::F64(Arc::new(Recurrent::new(config, init)?))
                } else {
                    Either::F32(Arc::new(Recurrent::new(config, init)?))
                }))
            }

            fn config(&self) -> RecurrentConfig {
                with_layer!(self.held.get(), |layer| layer.config().clone())
            }

            fn keywords(&self, keywords: &Bound<'_, PyDict>) -> PyResult<()> {
                set_keywords(keywords, &self.config())
            }

            fn arguments(&self) -> String {
                arguments(&self.config())
            }
        }

        layer_class!($class, $name, |layer| layer.cast(), {
            $($own)*

            /// Take sequences through all layers.
            ///
            /// Parameters
            /// ----------
            /// x : array_like or list of array_like
            ///     (B, L, D) or (L, D); exactly a list of (L_i, D) arrays is a ragged batch, computed without padding.
            /// state : array_like or tuple of array_like, optional
            ///     What each layer and direction begins with, (num_layers * directions, B, H), without B where `x` has none:
            ///     h, and of `LSTM` the pair (h, c). None is 0.
            /// lengths : array_like of int, optional
            ///     (B,): tokens of each sequence; what follows is padding, which has no influence.
            /// training : bool, default False
            ///     Whether dropout is at work.
            /// rng : int or numpy.random.Generator, optional
            ///     Seed of dropout; a generator is advanced by one draw.
            ///
            /// Returns
            /// -------
            /// out : ndarray or list of ndarray
            ///     (B, L, directions * H), h of the last layer after each token, the directions side by side; 0 where `x` is
            ///     padding. Without B, or a list, as `x` is.
            /// state : ndarray or tuple of ndarray
            ///     The state after each sequence's own last token (of the second direction: its first), as it is taken.
            ///
            /// Raises
            /// ------
            /// ValueError
            ///     If shapes do not fit, or a length is out of range.
            /// TypeError
            ///     If `state` is of the wrong kind, or `lengths` are no integers.
            #[pyo3(name = "_call", signature = (x, state = None, *, lengths = None, training = false, rng = None, **unknown),
                text_signature = "($self, x, state=None, *, lengths=None, training=False, rng=None)")]
            #[allow(clippy::too_many_arguments, reason = "the arguments of the contract")]
            fn call_with<'py>(
                &self,
                py: Python<'py>,
                x: &Bound<'py, PyAny>,
                state: Option<&Bound<'py, PyAny>>,
                lengths: Option<&Bound<'py, PyAny>>,
                training: bool,
                rng: Option<&Bound<'py, PyAny>>,
                unknown: Option<&Bound<'py, PyDict>>,
            ) -> PyResult<Bound<'py, PyAny>> {
                entry(|| {
                    no_more($name, unknown)?;
                    let dropout = training.then(|| rng_key(py, rng)).transpose()?;
                    let given = Given { x, state, lengths, dropout };
                    with_layer!(self.held.get(), |layer| call(py, &layer, &given))
                })
            }

            /// Take sequences through all layers, and return what turns the gradient of the result into gradients.
            ///
            /// Parameters
            /// ----------
            /// x : array_like or list of array_like
            ///     As in a call.
            /// state, lengths : optional
            ///     As in a call.
            /// training : bool, default False
            ///     Whether dropout is at work.
            /// rng : int or numpy.random.Generator, optional
            ///     Seed of dropout; a generator is advanced by one draw. The pullback drops the same numbers.
            ///
            /// Returns
            /// -------
            /// result : tuple of (out, state)
            ///     As of a call, the same bits.
            /// pullback : Pullback
            ///     `pullback(d_out)` or `pullback((d_out, d_state))`, either of which may be None for 0, gives
            ///     `((d_x, d_state), grads)`: the gradients of `x`, 0 where it is padding, and of the first state, and a dict
            ///     of those of the parameters, named as in `state_dict`.
            ///
            /// Raises
            /// ------
            /// ValueError
            ///     If shapes do not fit, or a length is out of range.
            /// TypeError
            ///     If `state` is of the wrong kind, or `lengths` are no integers.
            #[pyo3(signature = (x, state = None, *, lengths = None, training = false, rng = None, **unknown),
                text_signature = "($self, x, state=None, *, lengths=None, training=False, rng=None)")]
            #[allow(clippy::too_many_arguments, reason = "the arguments of the contract")]
            fn vjp<'py>(
                &self,
                py: Python<'py>,
                x: &Bound<'py, PyAny>,
                state: Option<&Bound<'py, PyAny>>,
                lengths: Option<&Bound<'py, PyAny>>,
                training: bool,
                rng: Option<&Bound<'py, PyAny>>,
                unknown: Option<&Bound<'py, PyDict>>,
            ) -> PyResult<Bound<'py, PyAny>> {
                entry(|| {
                    no_more(concat!($name, ".vjp"), unknown)?;
                    let dropout = training.then(|| rng_key(py, rng)).transpose()?;
                    let given = Given { x, state, lengths, dropout };
                    with_layer!(self.held.get(), |layer| vjp(py, $name, layer, &given))
                })
            }

            /// D.
            #[getter]
            fn input_size(&self) -> usize {
                self.config().input_size
            }

            /// H.
            #[getter]
            fn hidden_size(&self) -> usize {
                self.config().hidden_size
            }

            /// How many layers.
            #[getter]
            fn num_layers(&self) -> usize {
                self.config().num_layers
            }

            /// Whether a second direction reads from the end.
            #[getter]
            fn bidirectional(&self) -> bool {
                self.config().bidirectional
            }
        });
    };
}
pub(super) use recurrent_class;
