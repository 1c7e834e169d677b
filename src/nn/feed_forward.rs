//! The feed-forward part of a layer: down(act(up(x))), or gated: down(act(gate(x)) * up(x)) (Shazeer 2020).
//!
//! A batch with enough rows for all threads goes through in blocks of [`BLOCK_ROWS`], each a task of its own: the wide hidden
//! rows of a block stay in the second-level cache of the core that made them, and no buffer grows with the batch.

mod backward;

pub use backward::SavedHidden;

use super::dropout::{drop_out, site_key};
use super::init::Init;
use super::linear::Linear;
use super::state::{Loader, Module, State, prefixed};
use super::tokens::buffer;
use crate::error::Result;
use crate::kernels::activation::Activation;
use crate::kernels::gemm::OutRows;
use crate::ops::aligned::with_scratch;
use crate::ops::linear::After;
use crate::ops::reused::Reused;
use crate::ops::try_parallel;
use crate::simd::Float;
use crate::threads::team_size;

/// Rows of a block: a whole number of register tiles on every instruction set; 72 rows of 2,048 hidden numbers are
/// 590 kB, and the weights that stream by are used 72 times.
const BLOCK_ROWS: usize = 72;

/// A feed-forward part with its parameters.
#[derive(Clone, Debug)]
pub struct FeedForward<T> {
    /// (F, D)
    up: Linear<T>,
    /// (F, D), where gated.
    gate: Option<Linear<T>>,
    /// (D, F)
    down: Linear<T>,
    activation: Activation,
    dropout: f64,
}

/// Widths and options of a part.
#[derive(Clone, Debug, PartialEq)]
pub struct FeedForwardConfig {
    /// D
    pub d_model: usize,
    /// F
    pub d_ff: usize,
    /// Whether there is a gate.
    pub gated: bool,
    /// Of the hidden rows.
    pub activation: Activation,
    /// Whether the maps add a bias.
    pub bias: bool,
    /// Probability with which a hidden number is dropped in training.
    pub dropout: f64,
}

/// Hidden rows of a call that goes through in one; empty if it goes in blocks.
pub struct HiddenRows<T: Float> {
    hidden: Reused<T>,
    gate: Reused<T>,
    in_blocks: bool,
}

impl<T: Float> FeedForward<T> {
    /// The same in another float type.
    ///
    /// # Errors
    /// As [`Linear::cast`].
    pub fn cast<U: Float>(&self) -> Result<FeedForward<U>> {
        Ok(FeedForward {
            up: self.up.cast()?,
            gate: self.gate.as_ref().map(Linear::cast).transpose()?,
            down: self.down.cast()?,
            activation: self.activation,
            dropout: self.dropout,
        })
    }

    /// A part without a gate and without dropout, with given parameters: up (F, D), down (D, F).
    pub fn from_parts(up: Linear<T>, down: Linear<T>, activation: Activation) -> Self {
        Self { up, gate: None, down, activation, dropout: 0.0 }
    }

    /// Parameters as torch begins with them.
    ///
    /// # Errors
    /// `Shape` for too many numbers, `Memory`.
    pub fn new(
        (d_model, d_ff): (usize, usize),
        gated: bool,
        activation: Activation,
        bias: bool,
        dropout: f64,
        init: &mut Init,
    ) -> Result<Self> {
        let mut linear = |n: usize, k: usize| -> Result<Linear<T>> {
            let weight = init.linear(&[n, k], k)?;
            let bias = if bias { Some(init.linear(&[n], k)?.vector()?) } else { None };
            weight.map((n, k), bias)
        };
        Ok(Self {
            up: linear(d_ff, d_model)?,
            gate: if gated { Some(linear(d_ff, d_model)?) } else { None },
            down: linear(d_model, d_ff)?,
            activation,
            dropout,
        })
    }

    /// Widths and options.
    pub fn config(&self) -> FeedForwardConfig {
        FeedForwardConfig {
            d_model: self.up.k(),
            d_ff: self.up.n(),
            gated: self.gate.is_some(),
            activation: self.activation,
            bias: self.up.bias().is_some(),
            dropout: self.dropout,
        }
    }

    /// Room for the hidden rows of a call over `rows` rows. In training they go through in one: dropout counts their
    /// numbers over the whole batch.
    ///
    /// # Errors
    /// `Memory`.
    pub fn buffers(&self, rows: usize, training: bool) -> Result<HiddenRows<T>> {
        let in_blocks = !training && rows >= BLOCK_ROWS * team_size();
        let rows = if in_blocks { 0 } else { rows };
        let gate = if self.gate.is_some() { rows } else { 0 };
        let (hidden, gate) = (buffer(rows, self.up.n())?, buffer(gate, self.up.n())?);
        Ok(HiddenRows { hidden, gate, in_blocks })
    }

    /// The weights that are read first, for [`After::next`].
    pub fn panels(&self) -> &[T] {
        self.gate.as_ref().unwrap_or(&self.up).panels()
    }

    /// Maps `m` rows of `x` into `out`, `residual` added; `next` is [`After::next`].
    ///
    /// # Errors
    /// `Memory`, `Interrupted`, `Internal`.
    pub fn forward(
        &self,
        x: &[T],
        m: usize,
        out: &mut [T],
        (residual, next): (Option<&[T]>, &[T]),
        dropout: Option<u64>,
        buffers: &mut HiddenRows<T>,
    ) -> Result<()> {
        let (d, f) = (self.down.n(), self.up.n());
        if !buffers.in_blocks {
            let HiddenRows { hidden, gate, .. } = buffers;
            self.hide(x, m, &mut hidden[..m * f], gate)?;
            if let Some(key) = dropout.filter(|_| self.dropout > 0.0) {
                drop_out(&mut hidden[..m * f], self.dropout, site_key(key, 0, 2))?;
            }
            return self.down.forward(hidden, m, out, After { residual, next, ..After::default() });
        }
        let shared = OutRows::new(out);
        try_parallel(m.div_ceil(BLOCK_ROWS), |block| {
            let start = block * BLOCK_ROWS;
            let rows = BLOCK_ROWS.min(m - start);
            let gate_len = if self.gate.is_some() { rows * f } else { 0 };
            with_scratch(rows * f + gate_len, |scratch: &mut [T]| {
                let (hidden, gate) = scratch.split_at_mut(rows * f);
                self.hide(&x[start * d..], rows, hidden, gate)?;
                // SAFETY: each block has rows of its own.
                let out = unsafe { shared.slice(start * d, rows * d) };
                let residual = residual.map(|r| &r[start * d..(start + rows) * d]);
                let next = if start + rows < m { self.panels() } else { next };
                self.down.forward(hidden, rows, out, After { residual, next, ..After::default() })
            })
        })
    }

    /// The hidden rows of `rows` rows; `gate` is room for as many where there is a gate.
    fn hide(&self, x: &[T], rows: usize, hidden: &mut [T], gate: &mut [T]) -> Result<()> {
        let activated = After { activation: self.activation, next: self.down.panels(), ..After::default() };
        let Some(gate_weights) = &self.gate else {
            return self.up.forward(x, rows, hidden, activated);
        };
        gate_weights.forward(x, rows, hidden, activated)?;
        self.up.forward(x, rows, gate, After::default())?;
        for (h, &u) in hidden.iter_mut().zip(&*gate) {
            *h = *h * u;
        }
        Ok(())
    }
}

impl<T: Float> Module<T> for FeedForward<T> {
    fn state(&self) -> Result<State<T>> {
        let mut state: State<T> = prefixed("linear1.", self.up.state()?).collect();
        if let Some(gate) = &self.gate {
            state.extend(prefixed("linear_gate.", gate.state()?));
        }
        state.extend(prefixed("linear2.", self.down.state()?));
        Ok(state)
    }

    fn num_parameters(&self) -> usize {
        let maps = [Some(&self.up), self.gate.as_ref(), Some(&self.down)];
        maps.into_iter().flatten().map(Linear::num_parameters).sum()
    }

    fn load(&self, prefix: &str, loader: &mut Loader<T>) -> Result<Self> {
        Ok(Self {
            up: self.up.load(&format!("{prefix}linear1."), loader)?,
            gate: match &self.gate {
                Some(gate) => Some(gate.load(&format!("{prefix}linear_gate."), loader)?),
                None => None,
            },
            down: self.down.load(&format!("{prefix}linear2."), loader)?,
            activation: self.activation,
            dropout: self.dropout,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::naive;
    use crate::kernels::testing::{assert_same_bits, normals, rms_relative};

    const D: usize = 8;
    const F: usize = 12;

    fn part<T: Float>(gated: bool) -> FeedForward<T> {
        FeedForward::new((D, F), gated, Activation::Silu, true, 0.0, &mut Init::new(3)).unwrap()
    }

    fn run<T: Float>(part: &FeedForward<T>, x: &[T], residual: Option<&[T]>, in_one_go: bool) -> Vec<T> {
        let m = x.len() / D;
        let mut out = vec![T::ZERO; x.len()];
        // Training takes all rows in one go; nothing is dropped, as the probability is 0.
        let dropout = in_one_go.then_some(1);
        let mut buffers = part.buffers(m, in_one_go).unwrap();
        part.forward(x, m, &mut out, (residual, &[]), dropout, &mut buffers).unwrap();
        out
    }

    #[test]
    fn blocks_of_rows_give_the_bits_of_one_go() {
        for gated in [false, true] {
            let part = part::<f32>(gated);
            for m in [0, 1, BLOCK_ROWS - 1, BLOCK_ROWS, BLOCK_ROWS + 1, 2 * BLOCK_ROWS + 77] {
                let (x, residual) = (normals(m * D, 1, 1.0), normals(m * D, 2, 1.0));
                let blocks = run(&part, &x, Some(&residual), false);
                assert_same_bits(&blocks, &run(&part, &x, Some(&residual), true));
            }
        }
    }

    /// What the first lines of this file say, in plain loops.
    fn twin(part: &FeedForward<f64>, x: &[f64]) -> Vec<f64> {
        let map = |linear: &Linear<f64>, x: &[f64]| -> Vec<f64> {
            let (weight, bias) = (linear.weight().unwrap(), linear.bias().expect("a bias"));
            let rows = weight.data.chunks_exact(linear.k()).zip(bias);
            rows.map(|(w, b)| w.iter().zip(x).map(|(w, x)| w * x).sum::<f64>() + b).collect()
        };
        let act = |hidden: Vec<f64>| hidden.into_iter().map(|h| naive::activation(Activation::Silu, h));
        let row = |x: &[f64]| {
            let hidden: Vec<f64> = match &part.gate {
                Some(gate) => act(map(gate, x)).zip(map(&part.up, x)).map(|(g, u)| g * u).collect(),
                None => act(map(&part.up, x)).collect(),
            };
            map(&part.down, &hidden)
        };
        x.chunks_exact(D).flat_map(row).collect()
    }

    #[test]
    fn both_forms_equal_their_twin() {
        for gated in [false, true] {
            let part = part::<f64>(gated);
            let x = normals(20 * D, 4, 1.0);
            let error = rms_relative(&run(&part, &x, None, false), &twin(&part, &x));
            assert!(error < 1e-14, "gated {gated}: {error:e}");
        }
    }
}
