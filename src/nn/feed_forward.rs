//! The feed-forward part of a layer: down(act(up(x))), or gated: down(act(gate(x)) * up(x)) (Shazeer 2020).
//!
//! Rows go through in blocks of [`BLOCK_ROWS`]: the wide hidden rows of a block stay in the caches between the two
//! products, and no buffer grows with the batch.

use super::attention::parameters::{linear_state, load_linear};
use super::dropout::{drop_out, site_key};
use super::init::Init;
use super::linear::Linear;
use super::state::{Loader, Module, State, prefixed};
use super::tokens::buffer;
use crate::error::Result;
use crate::kernels::activation::Activation;
use crate::ops::aligned::Aligned;
use crate::ops::linear::After;
use crate::simd::Float;

/// Rows that pass at a time: 512 rows of 1,536 hidden numbers are 3 MB, enough work for a dozen threads.
const BLOCK_ROWS: usize = 512;

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

/// Hidden rows of a block.
pub struct HiddenRows<T> {
    hidden: Aligned<T>,
    gate: Aligned<T>,
}

impl<T: Float> FeedForward<T> {
    /// The same in another float type.
    pub fn cast<U: Float>(&self) -> FeedForward<U> {
        FeedForward {
            up: self.up.cast(),
            gate: self.gate.as_ref().map(Linear::cast),
            down: self.down.cast(),
            activation: self.activation,
            dropout: self.dropout,
        }
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
            let bias = if bias { Some(init.linear(&[n], k)?.data) } else { None };
            Ok(Linear::new(weight, bias))
        };
        Ok(Self {
            up: linear(d_ff, d_model)?,
            gate: if gated { Some(linear(d_ff, d_model)?) } else { None },
            down: linear(d_model, d_ff)?,
            activation,
            dropout,
        })
    }

    /// Room for the hidden rows of a call over `rows` rows; `training` takes them all at once.
    ///
    /// # Errors
    /// `Memory`.
    pub fn buffers(&self, rows: usize, training: bool) -> Result<HiddenRows<T>> {
        let rows = if training { rows } else { rows.min(BLOCK_ROWS) };
        let gate = if self.gate.is_some() { rows } else { 0 };
        Ok(HiddenRows { hidden: buffer(rows, self.up.n())?, gate: buffer(gate, self.up.n())? })
    }

    /// Maps `m` rows of `x` into `out`, `residual` added.
    ///
    /// # Errors
    /// `Memory`, `Interrupted`, `Internal`.
    pub fn forward(
        &self,
        x: &[T],
        m: usize,
        out: &mut [T],
        residual: Option<&[T]>,
        dropout: Option<u64>,
        buffers: &mut HiddenRows<T>,
    ) -> Result<()> {
        let d = self.down.n();
        let step = if dropout.is_some() { m } else { BLOCK_ROWS };
        let mut start = 0;
        while start < m {
            let rows = step.min(m - start);
            let x = &x[start * d..(start + rows) * d];
            let hidden = &mut buffers.hidden[..rows * self.up.n()];
            if let Some(gate) = &self.gate {
                gate.forward(x, rows, hidden, After { activation: self.activation, residual: None })?;
                let up = &mut buffers.gate[..rows * self.up.n()];
                self.up.forward(x, rows, up, After::default())?;
                hidden.iter_mut().zip(&*up).for_each(|(h, &u)| *h = *h * u);
            } else {
                self.up.forward(x, rows, hidden, After { activation: self.activation, residual: None })?;
            }
            if let Some(key) = dropout.filter(|_| self.dropout > 0.0) {
                drop_out(hidden, self.dropout, site_key(key, 0, 2))?;
            }
            let residual = residual.map(|r| &r[start * d..(start + rows) * d]);
            let after = After { activation: Activation::Identity, residual };
            self.down.forward(hidden, rows, &mut out[start * d..(start + rows) * d], after)?;
            start += rows;
        }
        Ok(())
    }
}

impl<T: Float> Module<T> for FeedForward<T> {
    fn state(&self) -> State<T> {
        let mut state: State<T> = prefixed("linear1.", linear_state(&self.up)).collect();
        if let Some(gate) = &self.gate {
            state.extend(prefixed("linear_gate.", linear_state(gate)));
        }
        state.extend(prefixed("linear2.", linear_state(&self.down)));
        state
    }

    fn load(&self, prefix: &str, loader: &mut Loader<T>) -> Result<Self> {
        Ok(Self {
            up: load_linear(&self.up, &format!("{prefix}linear1."), loader)?,
            gate: match &self.gate {
                Some(gate) => Some(load_linear(gate, &format!("{prefix}linear_gate."), loader)?),
                None => None,
            },
            down: load_linear(&self.down, &format!("{prefix}linear2."), loader)?,
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
        part.forward(x, m, &mut out, residual, dropout, &mut buffers).unwrap();
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
            let bias = linear.bias.as_deref().expect("a bias");
            let rows = linear.weight.data.chunks_exact(linear.k()).zip(bias);
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
