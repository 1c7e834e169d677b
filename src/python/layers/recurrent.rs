//! What `RNN`, `LSTM` and `GRU` share: arguments read, the crate called, results handed over, and their classes' methods.

mod class;
mod gru;
mod lstm;
mod rnn;
mod vjp;

pub use gru::PyGru;
pub use lstm::PyLstm;
pub use rnn::PyRnn;

use numpy::Element;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyTuple};

use super::arguments::positive_width;
use super::batch::{Axes, Batch, give};
use super::held::shaped;
use crate::error::{Error, Result};
use crate::kernels::recurrent::Cell;
use crate::nn::attention::config::probability;
use crate::nn::recurrent::{Recurrent, RecurrentConfig, States};
use crate::ops::recurrent::Steps;
use crate::python::arrays::Operand;
use crate::python::boundary::compute;
use crate::python::masks::integers;
use crate::python::outputs::array;
use crate::simd::Float;

/// The arguments that make a layer.
struct Made<'a, 'py> {
    input_size: &'a Bound<'py, PyAny>,
    hidden_size: &'a Bound<'py, PyAny>,
    num_layers: Option<&'a Bound<'py, PyAny>>,
    bias: bool,
    dropout: f64,
    bidirectional: bool,
}

impl Made<'_, '_> {
    fn config(&self, cell: Cell) -> PyResult<RecurrentConfig> {
        let layers = self.num_layers.map_or(Ok(1), |n| positive_width("num_layers", n))?;
        let (d, h) = (
            positive_width("input_size", self.input_size)?,
            positive_width("hidden_size", self.hidden_size)?,
        );
        crate::ops::buffer::elements("input_size", &[4, h, d])?;
        crate::ops::buffer::elements("hidden_size", &[layers, 8, h, 2, h])?;
        probability("dropout", self.dropout)?;
        Ok(RecurrentConfig {
            cell,
            input_size: d,
            hidden_size: h,
            num_layers: layers,
            bias: self.bias,
            dropout: self.dropout,
            bidirectional: self.bidirectional,
        })
    }
}

/// Keywords that make the layer again.
fn set_keywords(keywords: &Bound<'_, PyDict>, c: &RecurrentConfig) -> PyResult<()> {
    keywords.set_item("input_size", c.input_size)?;
    keywords.set_item("hidden_size", c.hidden_size)?;
    keywords.set_item("num_layers", c.num_layers)?;
    if matches!(c.cell, Cell::Tanh | Cell::Relu) {
        keywords.set_item("nonlinearity", nonlinearity(c.cell))?;
    }
    keywords.set_item("bias", c.bias)?;
    keywords.set_item("dropout", c.dropout)?;
    keywords.set_item("bidirectional", c.bidirectional)?;
    keywords.set_item("rng", 0)
}

/// What stands in the parentheses of a repr, options where they are not what is assumed.
fn arguments(c: &RecurrentConfig) -> String {
    let mut text = format!("{}, {}", c.input_size, c.hidden_size);
    if c.num_layers != 1 {
        text += &format!(", {}", c.num_layers);
    }
    if c.cell == Cell::Relu {
        text += ", nonlinearity=\"relu\"";
    }
    if !c.bias {
        text += ", bias=False";
    }
    if c.dropout != 0.0 {
        text += &format!(", dropout={}", c.dropout);
    }
    if c.bidirectional {
        text += ", bidirectional=True";
    }
    text
}

/// torch's name of the function of a plain cell.
fn nonlinearity(cell: Cell) -> &'static str {
    if cell == Cell::Relu { "relu" } else { "tanh" }
}

/// The arguments of a call.
#[derive(Clone, Copy)]
struct Given<'a, 'py> {
    x: &'a Bound<'py, PyAny>,
    state: Option<&'a Bound<'py, PyAny>>,
    lengths: Option<&'a Bound<'py, PyAny>>,
    dropout: Option<u64>,
}

/// A batch and what is known of it before a number is computed.
struct Read<'py, T: Float> {
    batch: Batch<'py, T>,
    steps: Steps,
    state: Option<States<T>>,
}

/// Reads the arguments of a call.
fn read<'py, T: Float + Element>(c: &RecurrentConfig, given: &Given<'_, 'py>) -> PyResult<Read<'py, T>> {
    let batch = Batch::<T>::read("x", given.x, c.input_size)?;
    let full = match &batch.axes {
        Axes::Single(l) => vec![*l],
        Axes::Batch(b, l) => vec![*l; *b],
        Axes::List(lengths) => lengths.clone(),
    };
    let lengths = match given.lengths {
        Some(lengths) => read_lengths(lengths, &batch.axes)?,
        None => full.clone(),
    };
    let steps = Steps::new(&lengths, &full);
    let state = given.state.map(|state| read_states("state", state, c, &batch.axes)).transpose()?;
    Ok(Read { batch, steps, state })
}

/// Tokens of each sequence of a padded batch.
fn read_lengths(lengths: &Bound<'_, PyAny>, axes: &Axes) -> PyResult<Vec<usize>> {
    let (b, l, letters) = match axes {
        Axes::List(_) => {
            let text = "lengths: a list of arrays has no padding; leave it out, or pass a padded (B, L, D)";
            return Err(Error::Value(text.into()).into());
        }
        Axes::Single(l) => (1, *l, "()"),
        Axes::Batch(b, l) => (*b, *l, "(B,)"),
    };
    let (numbers, shape) = integers("lengths", lengths)?;
    let wanted: &[usize] = if matches!(axes, Axes::Single(_)) { &[] } else { &[b] };
    if shape != wanted {
        return Err(Error::Shape(format!("lengths: expected {letters} = {wanted:?}, got {shape:?}")).into());
    }
    let good = |n: &i64| usize::try_from(*n).ok().filter(|&n| n <= l);
    let bad = |n: &i64| Error::Value(format!("lengths: expected numbers from 0 to L = {l}, got {n}"));
    Ok(numbers.iter().map(|n| good(n).ok_or_else(|| bad(n))).collect::<Result<_>>()?)
}

/// Sequences of a batch.
fn sequences(axes: &Axes) -> usize {
    match axes {
        Axes::Single(_) => 1,
        Axes::Batch(b, _) => *b,
        Axes::List(lengths) => lengths.len(),
    }
}

/// The shape of a state: (layers directions, B, H), without B where `x` has none.
fn state_shape(c: &RecurrentConfig, axes: &Axes) -> Vec<usize> {
    match axes {
        Axes::Single(_) => vec![c.states(), c.hidden_size],
        axes => vec![c.states(), sequences(axes), c.hidden_size],
    }
}

/// Reads h, or the pair (h, c) of an LSTM; a part of a gradient that is None is 0.
fn read_states<T: Float + Element>(
    name: &'static str,
    object: &Bound<'_, PyAny>,
    c: &RecurrentConfig,
    axes: &Axes,
) -> PyResult<States<T>> {
    let shape = state_shape(c, axes);
    let letters =
        if shape.len() == 2 { "(num_layers * directions, H)" } else { "(num_layers * directions, B, H)" };
    let one = |part: &Bound<'_, PyAny>| -> PyResult<Vec<T>> {
        if part.is_none() && name == "d_state" {
            return Ok(crate::ops::buffer::zeros(shape.iter().product())?);
        }
        let operand = Operand::new(name, part)?;
        if operand.shape() != shape {
            let came = operand.shape();
            return Err(Error::Shape(format!("{name}: expected {letters} = {shape:?}, got {came:?}")).into());
        }
        Ok(operand.read_dense::<T>()?.dense().0.to_vec())
    };
    if c.cell != Cell::Lstm {
        if object.is_instance_of::<PyTuple>() {
            let text = format!("{name}: expected h, one array {letters}; a pair (h, c) is an LSTM's");
            return Err(Error::Type(text).into());
        }
        return Ok(States { h: one(object)?, c: Vec::new() });
    }
    let pair = object.cast::<PyTuple>().ok().filter(|pair| pair.len() == 2);
    let Some(pair) = pair else {
        let came = crate::python::arrays::type_name(object);
        let text = format!("{name}: expected a tuple (h, c), each {letters}, got {came}");
        return Err(Error::Type(text).into());
    };
    Ok(States { h: one(&pair.get_item(0)?)?, c: one(&pair.get_item(1)?)? })
}

/// Hands states over as they are taken.
fn give_states<'py, T: Float + Element>(
    py: Python<'py>,
    states: States<T>,
    c: &RecurrentConfig,
    axes: &Axes,
) -> PyResult<Bound<'py, PyAny>> {
    let shape = state_shape(c, axes);
    let h = array(py, shaped(&shape, states.h)?);
    if c.cell != Cell::Lstm {
        return Ok(h);
    }
    Ok((h, array(py, shaped(&shape, states.c)?)).into_pyobject(py)?.into_any())
}

/// Takes a batch through a layer: (out, state).
fn call<'py, T: Float + Element>(
    py: Python<'py>,
    layer: &Recurrent<T>,
    given: &Given<'_, 'py>,
) -> PyResult<Bound<'py, PyAny>> {
    let c = layer.config();
    let Read { batch, steps, state } = read::<T>(c, given)?;
    let rows = batch.rows();
    let work = steps.rows().saturating_mul(layer.work());
    let dropout = given.dropout;
    let run = compute(py, work, || layer.forward(&rows, &steps, state.as_ref(), dropout, false))?;
    let out = give(py, &batch.axes, run.out, c.output_size())?;
    let last = give_states(py, run.state, c, &batch.axes)?;
    Ok((out, last).into_pyobject(py)?.into_any())
}
