//! `RNN`.

use std::sync::Arc;

use pyo3::prelude::*;
use pyo3::types::{PyDict, PyTuple};

use super::class::recurrent_class;
use super::vjp::vjp;
use super::{Given, Made, arguments, call, nonlinearity, set_keywords};
use crate::kernels::recurrent::Cell;
use crate::nn::init::Init;
use crate::nn::recurrent::{Recurrent, RecurrentConfig};
use crate::python::boundary::{compute, entry};
use crate::python::keywords::no_more;
use crate::python::layers::arguments::choice;
use crate::python::layers::class::layer_class;
use crate::python::layers::held::{Either, Held, is_f64, with_layer};
use crate::python::layers::multi_head_attention::rebuilding;
use crate::python::rng::key as rng_key;

/// Plain recurrent layers: h' = tanh(W_ih x + b_ih + W_hh h + b_hh), or relu.
///
/// Parameters
/// ----------
/// input_size : int
///     D, numbers of a row of the input.
/// hidden_size : int
///     H, numbers of a state.
/// num_layers : int, default 1
///     Layers on top of each other: each reads the output of the one before.
/// nonlinearity : {"tanh", "relu"}, default "tanh"
///     The function of a step.
/// bias : bool, default True
///     Whether the maps add a bias.
/// dropout : float, default 0.0
///     Probability with which a number of a layer's output is dropped in training, but for the last layer's.
/// bidirectional : bool, default False
///     Whether a second direction reads every sequence from its end; both stand side by side in the output.
/// dtype : {"float32", "float64"}, default "float32"
///     What the layer computes and answers in.
/// rng : int or numpy.random.Generator, optional
///     From which the first parameters are drawn, as torch draws them: uniform between -1 and 1 over sqrt(H).
///
/// Raises
/// ------
/// ValueError
///     If a width or `num_layers` is 0, a name is not one of those above, or `dropout` is no probability.
/// DTypeError
///     For any other dtype.
///
/// Notes
/// -----
/// The state is h.
/// Names and order of the parameters are torch's: `weight_ih_l0`, `weight_hh_l0`, `bias_ih_l0`, `bias_hh_l0`, and
/// `weight_ih_l0_reverse`... of the second direction. The gradients of parameters are sums over all tokens, time by time.
///
/// References
/// ----------
/// Elman, "Finding Structure in Time", Cognitive Science 14, 1990; Schuster and Paliwal, 1997 (two directions).
///
/// Examples
/// --------
/// >>> import numpy as np
/// >>> import headwise as hw
/// >>> layer = hw.RNN(4, 8, bidirectional=True, rng=0)
/// >>> out, state = layer(np.zeros((2, 5, 4), dtype=np.float32), lengths=[5, 3])
/// >>> out.shape, state.shape
/// ((2, 5, 16), (2, 2, 8))
#[pyclass(name = "RNN", module = "headwise", frozen, weakref)]
pub struct PyRnn {
    held: Held<Recurrent<f32>, Recurrent<f64>>,
}

recurrent_class!(PyRnn, "RNN", {
    #[new]
    #[pyo3(signature = (input_size, hidden_size, num_layers = None, *, nonlinearity = "tanh", bias = true, dropout = 0.0,
        bidirectional = false, dtype = None, rng = None),
        text_signature = "(input_size, hidden_size, num_layers=1, *, nonlinearity='tanh', bias=True, dropout=0.0, bidirectional=False, dtype='float32', rng=None)")]
    #[allow(clippy::too_many_arguments, reason = "the arguments of the contract")]
    fn new(
        py: Python<'_>,
        input_size: &Bound<'_, PyAny>,
        hidden_size: &Bound<'_, PyAny>,
        num_layers: Option<&Bound<'_, PyAny>>,
        nonlinearity: &str,
        bias: bool,
        dropout: f64,
        bidirectional: bool,
        dtype: Option<&Bound<'_, PyAny>>,
        rng: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<Self> {
        entry(|| {
            let made = Made { input_size, hidden_size, num_layers, bias, dropout, bidirectional };
            let config = made.config(choice(
                "nonlinearity",
                nonlinearity,
                &[("tanh", Cell::Tanh), ("relu", Cell::Relu)],
            )?)?;
            let wide = dtype.map_or(Ok(false), is_f64)?;
            Self::drawn(config, wide, &mut Init::new(rng_key(py, rng)?))
        })
    }

    /// The function of a step.
    #[getter]
    fn nonlinearity(&self) -> &'static str {
        nonlinearity(self.config().cell)
    }
});
