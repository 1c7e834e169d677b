//! Recurrent layers, one- and bidirectional, several on top of each other.
//!
//! Layer k of direction d maps its input with `weight_ih` (gates H, D or directions H), all steps in one product, and takes
//! the result through time ([`crate::ops::recurrent`]). The directions' outputs stand side by side and are what the next
//! layer reads, after dropout in training. Rows stand time by time from the first layer to the last ([`Steps`]); padding is
//! left out once and put back once.

mod backward;

pub use backward::{RecurrentGradients, SavedRecurrent};

use super::dropout::{drop_out, site_key};
use super::init::Init;
use super::linear::Linear;
use super::state::{Loader, Module, State, Tensor};
use super::tokens::buffer;
use crate::error::Result;
use crate::kernels::recurrent::Cell;
use crate::ops::buffer::{elements, zeros};
use crate::ops::linear::After;
use crate::ops::recurrent::{Direction, Room, SavedSteps, Steps, run};
use crate::ops::reused::Reused;
use crate::simd::Float;

/// Widths and options.
#[derive(Clone, Debug, PartialEq)]
pub struct RecurrentConfig {
    /// What a step computes.
    pub cell: Cell,
    /// D
    pub input_size: usize,
    /// H
    pub hidden_size: usize,
    /// Layers on top of each other.
    pub num_layers: usize,
    /// Whether the maps add a bias.
    pub bias: bool,
    /// Probability with which a number between two layers is dropped in training.
    pub dropout: f64,
    /// Whether a second direction reads from the end.
    pub bidirectional: bool,
}

impl RecurrentConfig {
    /// 1 or 2.
    pub fn directions(&self) -> usize {
        1 + usize::from(self.bidirectional)
    }

    /// Width of the output.
    pub fn output_size(&self) -> usize {
        self.directions() * self.hidden_size
    }

    /// States of a sequence: one for each layer and direction.
    pub fn states(&self) -> usize {
        self.num_layers * self.directions()
    }

    /// Numbers that a step computes for each of H.
    fn gates(&self) -> usize {
        self.cell.gates() * self.hidden_size
    }

    /// Width of the input of a layer.
    fn input_of(&self, layer: usize) -> usize {
        if layer == 0 { self.input_size } else { self.output_size() }
    }

    /// What torch puts behind the names of the parameters of a direction.
    fn suffix(&self, state: usize) -> String {
        let (layer, reverse) = (state / self.directions(), state % self.directions() == 1);
        format!("_l{layer}{}", if reverse { "_reverse" } else { "" })
    }
}

/// The maps of one direction of one layer.
#[derive(Clone, Debug)]
struct Maps<T> {
    /// (gates H, D)
    input: Linear<T>,
    /// (gates H, H)
    hidden: Linear<T>,
}

/// Recurrent layers with their parameters.
#[derive(Clone, Debug)]
pub struct Recurrent<T> {
    config: RecurrentConfig,
    /// Of each layer and direction.
    maps: Vec<Maps<T>>,
}

/// States of a batch, (layers directions, B, H).
#[derive(Clone, Debug, PartialEq)]
pub struct States<T> {
    /// h
    pub h: Vec<T>,
    /// c (LSTM), else empty.
    pub c: Vec<T>,
}

impl<T: Float> States<T> {
    /// All zero.
    ///
    /// # Errors
    /// `Shape` for too many numbers, `Memory`.
    pub fn zeros(config: &RecurrentConfig, sequences: usize) -> Result<Self> {
        let len = elements("state", &[config.states(), sequences, config.hidden_size])?;
        Ok(Self { h: zeros(len)?, c: zeros(if config.cell == Cell::Lstm { len } else { 0 })? })
    }

    /// Those of one layer and direction; c empty where there is none.
    fn of(&self, state: usize, len: usize) -> (&[T], &[T]) {
        let at = state * len..(state + 1) * len;
        (&self.h[at.clone()], self.c.get(at).unwrap_or(&[]))
    }
}

/// What a batch has become.
pub struct Run<T: Float> {
    /// (rows, directions H), 0 where the input is padding.
    pub out: Vec<T>,
    /// After each sequence's last token.
    pub state: States<T>,
    /// What [`Recurrent::backward`] reads, if it is kept.
    pub saved: Option<SavedRecurrent<T>>,
}

/// The states of one layer and direction, in the order of [`Steps`], while time passes.
struct Running<T: Float> {
    h: Reused<T>,
    c: Reused<T>,
}

impl<T: Float> Running<T> {
    /// Takes states of a batch.
    fn new((h, c): (&[T], &[T]), steps: &Steps, width: usize) -> Result<Self> {
        let mut running = Self { h: buffer(h.len(), 1)?, c: buffer(c.len(), 1)? };
        steps.sort(h, width, &mut running.h, false);
        if !c.is_empty() {
            steps.sort(c, width, &mut running.c, false);
        }
        Ok(running)
    }

    /// Gives them back.
    fn give(&self, steps: &Steps, width: usize, state: usize, to: &mut States<T>) {
        let at = state * self.h.len()..(state + 1) * self.h.len();
        steps.sort(&self.h, width, &mut to.h[at.clone()], true);
        if !self.c.is_empty() {
            steps.sort(&self.c, width, &mut to.c[at], true);
        }
    }
}

impl<T: Float> Recurrent<T> {
    /// Parameters as torch begins with them: uniform between -1 and 1 over sqrt(H).
    ///
    /// # Errors
    /// `Shape` for too many numbers, `Memory`.
    pub fn new(config: RecurrentConfig, init: &mut Init) -> Result<Self> {
        let (gates, h) = (config.gates(), config.hidden_size);
        let maps = (0..config.states()).map(|state| {
            let mut map = |k: usize| -> Result<Linear<T>> {
                let weight = init.linear(&[gates, k], h)?;
                let bias = if config.bias { Some(init.linear(&[gates], h)?.vector()?) } else { None };
                weight.map((gates, k), bias)
            };
            let input = map(config.input_of(state / config.directions()))?;
            Ok(Maps { input, hidden: map(h)? })
        });
        let maps = maps.collect::<Result<_>>()?;
        Ok(Self { config, maps })
    }

    /// Widths and options.
    pub fn config(&self) -> &RecurrentConfig {
        &self.config
    }

    /// The same in another float type.
    ///
    /// # Errors
    /// As [`Linear::cast`].
    pub fn cast<U: Float>(&self) -> Result<Recurrent<U>> {
        let maps = self.maps.iter().map(|m| Ok(Maps { input: m.input.cast()?, hidden: m.hidden.cast()? }));
        Ok(Recurrent { config: self.config.clone(), maps: maps.collect::<Result<_>>()? })
    }

    /// Multiply-adds of a token, about.
    pub fn work(&self) -> usize {
        self.maps.iter().map(|m| m.input.n() * (m.input.k() + m.hidden.k())).sum()
    }

    /// Takes a batch through all layers: `x` (rows, D) with padding, from the states `first`, or 0. With `keep`, what
    /// [`Self::backward`] reads is kept.
    ///
    /// # Errors
    /// `Shape` for too many numbers, `Memory`, `Interrupted`, `Internal`.
    ///
    /// # Panics
    /// If there are too few numbers.
    pub fn forward(
        &self,
        x: &[T],
        steps: &Steps,
        first: Option<&States<T>>,
        dropout: Option<u64>,
        keep: bool,
    ) -> Result<Run<T>> {
        let c = &self.config;
        let (rows, width, directions) = (steps.rows(), c.hidden_size, c.directions());
        let mut out = zeros(elements("x", &[steps.full(), c.output_size()])?)?;
        let mut last = States::zeros(c, steps.sequences())?;
        let zero;
        let first = if let Some(first) = first {
            first
        } else {
            zero = States::zeros(c, steps.sequences())?;
            &zero
        };
        assert_eq!(first.h.len(), last.h.len(), "numbers of a state");
        let state_len = steps.sequences() * width;
        let mut running = (0..c.states())
            .map(|state| Running::new(first.of(state, state_len), steps, width))
            .collect::<Result<Vec<_>>>()?;
        let mut saved = keep.then(|| SavedRecurrent::new(rows));
        let mut input = buffer(rows, c.input_size)?;
        steps.gather(x, c.input_size, &mut input)?;
        for layer in 0..c.num_layers {
            let here = layer * directions..(layer + 1) * directions;
            let maps = &self.maps[here.clone()];
            let (mut gates, mut kept) = (Vec::new(), Vec::new());
            for maps in maps {
                let mut products = buffer(rows, c.gates())?;
                let after = After { next: maps.hidden.panels(), ..After::default() };
                maps.input.forward(&input, rows, &mut products, after)?;
                gates.push(products);
                if keep {
                    kept.push(SavedSteps::new(c.cell, rows, width)?);
                }
            }
            let mut result = buffer(rows, c.output_size())?;
            let mut all_kept = kept.iter_mut();
            let mut rooms: Vec<_> = gates
                .iter_mut()
                .zip(&mut running[here])
                .map(|(gates, Running { h, c })| Room { gates, h, c, saved: all_kept.next() })
                .collect();
            run(&self.directions(maps), steps, &mut rooms, &mut result)?;
            if layer + 1 < c.num_layers {
                self.drop_between(&mut result, layer, dropout)?;
            }
            let before = std::mem::replace(&mut input, result);
            if let Some(saved) = &mut saved {
                saved.push(before, gates, kept);
            }
        }
        for (state, running) in running.iter().enumerate() {
            running.give(steps, width, state, &mut last);
        }
        steps.scatter(&input, c.output_size(), &mut out);
        Ok(Run { out, state: last, saved })
    }

    /// Drops numbers that one layer hands to the next, or of their gradient.
    fn drop_between(&self, rows: &mut [T], layer: usize, dropout: Option<u64>) -> Result<()> {
        match dropout.filter(|_| self.config.dropout > 0.0) {
            Some(key) => drop_out(rows, self.config.dropout, site_key(key, layer, 0)),
            None => Ok(()),
        }
    }

    fn directions<'a>(&self, maps: &'a [Maps<T>]) -> Vec<Direction<'a, T>> {
        let direction = |(d, maps): (usize, &'a Maps<T>)| Direction {
            cell: self.config.cell,
            hidden: maps.hidden.packed(),
            reverse: d == 1,
        };
        maps.iter().enumerate().map(direction).collect()
    }
}

impl<T: Float> Module<T> for Recurrent<T> {
    fn state(&self) -> Result<State<T>> {
        let mut state = Vec::new();
        for (i, maps) in self.maps.iter().enumerate() {
            let suffix = self.config.suffix(i);
            for (name, map) in [("ih", &maps.input), ("hh", &maps.hidden)] {
                state.push((format!("weight_{name}{suffix}"), map.weight()?));
            }
            for (name, map) in [("ih", &maps.input), ("hh", &maps.hidden)] {
                let bias = map.bias().map(|b| Tensor::new(&[b.len()], b.to_vec()));
                state.extend(bias.map(|bias| (format!("bias_{name}{suffix}"), bias)));
            }
        }
        Ok(state)
    }

    fn num_parameters(&self) -> usize {
        self.maps.iter().map(|m| m.input.num_parameters() + m.hidden.num_parameters()).sum()
    }

    fn load(&self, prefix: &str, loader: &mut Loader<T>) -> Result<Self> {
        let mut maps = Vec::with_capacity(self.maps.len());
        for (i, old) in self.maps.iter().enumerate() {
            let suffix = self.config.suffix(i);
            let mut map = |name: &str, old: &Linear<T>| -> Result<Linear<T>> {
                let shape = (old.n(), old.k());
                let weight = loader.take(&format!("{prefix}weight_{name}{suffix}"), &[shape.0, shape.1])?;
                let bias = loader.take_vec(&format!("{prefix}bias_{name}{suffix}"), old.bias())?;
                let weight = weight.map_or_else(|| old.weight(), Ok)?;
                Linear::new(shape, &weight.data, bias.as_deref())
            };
            maps.push(Maps { input: map("ih", &old.input)?, hidden: map("hh", &old.hidden)? });
        }
        Ok(Self { config: self.config.clone(), maps })
    }
}
