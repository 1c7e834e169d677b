//! The gradient of recurrent layers, through time and from the last layer to the first.
//!
//! A parameter's gradient is a sum over all tokens of the batch, taken at once after time has passed: time by time, within a
//! time the longest sequence first (the order of [`Steps`]). So it depends on the sequences of the batch and their order,
//! not on padding or threads.

use super::{Recurrent, Running, States};
use crate::error::Result;
use crate::kernels::recurrent::Cell;
use crate::nn::state::State;
use crate::nn::tokens::buffer;
use crate::ops::buffer::{elements, zeros};
use crate::ops::recurrent::{BackRoom, SavedSteps, Steps, run_back};
use crate::ops::reused::{InTraining, Reused};
use crate::simd::Float;

/// What [`Recurrent::forward`] keeps of its rows.
pub struct SavedRecurrent<T: Float> {
    layers: Vec<SavedLayer<T>>,
    rows: usize,
    _training: InTraining,
}

struct SavedLayer<T: Float> {
    /// (T, D) or (T, directions H)
    input: Reused<T>,
    /// Of each direction: what the cells left (T, gates H), and what they kept.
    directions: Vec<(Reused<T>, SavedSteps<T>)>,
}

impl<T: Float> SavedRecurrent<T> {
    pub(super) fn new(rows: usize) -> Self {
        Self { layers: Vec::new(), rows, _training: InTraining::new() }
    }

    pub(super) fn push(&mut self, input: Reused<T>, gates: Vec<Reused<T>>, kept: Vec<SavedSteps<T>>) {
        self.layers.push(SavedLayer { input, directions: gates.into_iter().zip(kept).collect() });
    }
}

/// Gradients of the input, of the first states and of the parameters.
pub struct RecurrentGradients<T> {
    /// (rows, D), 0 where the input is padding.
    pub x: Vec<T>,
    /// Of the first states.
    pub state: States<T>,
    /// Named as in the state.
    pub parameters: State<T>,
}

impl<T: Float> Recurrent<T> {
    /// From the gradients of the output (rows, directions H) and of the last states, 0 where they are not given.
    ///
    /// # Errors
    /// `Shape` for too many numbers, `Memory`, `Interrupted`, `Internal`.
    ///
    /// # Panics
    /// If there are too few numbers.
    pub fn backward(
        &self,
        steps: &Steps,
        saved: &SavedRecurrent<T>,
        d_out: Option<&[T]>,
        d_state: &States<T>,
        dropout: Option<u64>,
    ) -> Result<RecurrentGradients<T>> {
        let c = &self.config;
        let (rows, width, directions) = (saved.rows, c.hidden_size, c.directions());
        let state_len = steps.sequences() * width;
        let mut first = States::zeros(c, steps.sequences())?;
        let mut parameters: Vec<State<T>> = (0..c.states()).map(|_| Vec::new()).collect();
        let mut d_rows = buffer(rows, c.output_size())?;
        match d_out {
            Some(d_out) => steps.gather(d_out, c.output_size(), &mut d_rows)?,
            None => d_rows.fill(T::ZERO),
        }
        for layer in (0..c.num_layers).rev() {
            let here = layer * directions..(layer + 1) * directions;
            let (maps, SavedLayer { input, directions: kept }) =
                (&self.maps[here.clone()], &saved.layers[layer]);
            let gru = usize::from(c.cell == Cell::Gru);
            let mut d_gates = Vec::new();
            let mut running = Vec::new();
            for state in here.clone() {
                d_gates.push((buffer(rows, c.gates())?, buffer(gru * rows, c.gates())?));
                running.push(Running::new(d_state.of(state, state_len), steps, width)?);
            }
            let mut rooms = Vec::new();
            for (((maps, (gates, saved)), (d_gates, d_hidden)), Running { h, c }) in
                maps.iter().zip(kept).zip(&mut d_gates).zip(&mut running)
            {
                let turned = maps.hidden.packed().turned()?;
                rooms.push(BackRoom { gates, saved, turned, d_h: h, d_c: c, d_gates, d_hidden });
            }
            run_back(&self.directions(maps), steps, &mut rooms, &d_rows)?;
            drop(rooms);
            let mut d_input = buffer(rows, c.input_of(layer))?;
            for (d, state) in here.clone().enumerate() {
                running[d].give(steps, width, state, &mut first);
                let (of_input, of_hidden) = &d_gates[d];
                let of_hidden: &[T] = if gru == 1 { of_hidden } else { of_input };
                let grads = if d == 0 {
                    maps[d].input.backward(input, of_input, rows, Some(&mut d_input), None)?
                } else {
                    let other = std::mem::replace(&mut d_input, buffer(rows, c.input_of(layer))?);
                    maps[d].input.backward(input, of_input, rows, Some(&mut d_input), Some(&other))?
                };
                let of_state = maps[d].hidden.backward(&kept[d].1.before, of_hidden, rows, None, None)?;
                let suffix = c.suffix(state);
                // Weights, then biases: torch's order.
                for (of_input, of_state) in grads.into_iter().zip(of_state) {
                    for (name, (what, tensor)) in [("ih", of_input), ("hh", of_state)] {
                        parameters[state].push((format!("{what}_{name}{suffix}"), tensor));
                    }
                }
            }
            if layer > 0 {
                self.drop_between(&mut d_input, layer - 1, dropout)?;
            }
            d_rows = d_input;
        }
        let mut x = zeros(elements("x", &[steps.full(), c.input_size])?)?;
        steps.scatter(&d_rows, c.input_size, &mut x);
        Ok(RecurrentGradients { x, state: first, parameters: parameters.into_iter().flatten().collect() })
    }
}
