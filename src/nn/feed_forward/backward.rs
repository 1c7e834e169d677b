//! The gradients of the feed-forward part, from the rows that its forward pass keeps: those before the activation.
//!
//! ```text
//! plain:  h = drop(act(u)),      u = up(x)                  du = drop(dy W2) act'(u)
//! gated:  h = drop(act(g) u),    g = gate(x), u = up(x)     dg = drop(dy W2) u act'(g),  du = drop(dy W2) act(g)
//! y = down(h):                   dW2 = dyᵀ h,   dx = du W1 + residual (+ dg Wg)
//! ```
//!
//! The activated rows are computed again: that costs less than to write and read them, and half the memory. `drop` keeps
//! the same numbers both times, as its counter is keyed by the call.

use super::{BLOCK_ROWS, FeedForward};
use crate::error::Result;
use crate::kernels::gemm::OutRows;
use crate::nn::dropout::{drop_out_from, site_key};
use crate::nn::state::{State, prefixed};
use crate::nn::tokens::buffer;
use crate::ops::activation::{activate, activate_backward};
use crate::ops::aligned::with_scratch;
use crate::ops::linear::After;
use crate::ops::reused::Reused;
use crate::ops::rows::over_rows;
use crate::ops::try_parallel;
use crate::simd::Float;
use crate::threads::team_size;

/// What [`FeedForward::forward_saved`] keeps of its rows: (m, F) before the activation.
pub struct SavedHidden<T: Float> {
    up: Reused<T>,
    /// Empty where there is no gate.
    gate: Reused<T>,
}

impl<T: Float> FeedForward<T> {
    /// [`FeedForward::forward`], the same bits, that keeps what [`Self::backward`] reads.
    ///
    /// # Errors
    /// `Memory`, `Interrupted`, `Internal`.
    pub fn forward_saved(
        &self,
        x: &[T],
        m: usize,
        out: &mut [T],
        (residual, next): (Option<&[T]>, &[T]),
        dropout: Option<u64>,
    ) -> Result<SavedHidden<T>> {
        let (d, f) = (self.down.n(), self.up.n());
        let gated = usize::from(self.gate.is_some());
        let mut saved = SavedHidden { up: buffer(m, f)?, gate: buffer(gated * m, f)? };
        let (out, ups) = (OutRows::new(out), OutRows::new(&mut saved.up));
        let gates = OutRows::new(&mut saved.gate);
        let block = |start: usize, rows: usize| {
            with_scratch(rows * f, |hidden: &mut [T]| {
                // SAFETY: each block has rows of its own.
                let (out, up) = unsafe { (out.slice(start * d, rows * d), ups.slice(start * f, rows * f)) };
                // SAFETY: as above.
                let gate = unsafe { gates.slice(gated * start * f, gated * rows * f) };
                let x = &x[start * d..(start + rows) * d];
                let then = After { next: self.down.panels(), ..After::default() };
                if let Some(weights) = &self.gate {
                    weights.forward(x, rows, gate, After { next: self.up.panels(), ..After::default() })?;
                }
                self.up.forward(x, rows, up, then)?;
                self.activated((up, gate), hidden)?;
                self.drop(start * f, hidden, dropout)?;
                let residual = residual.map(|r| &r[start * d..(start + rows) * d]);
                let next = if start + rows < m { self.panels() } else { next };
                self.down.forward(hidden, rows, out, After { residual, next, ..After::default() })
            })
        };
        // As in the forward pass: many rows go in blocks, few are split by columns too.
        if m < BLOCK_ROWS * team_size() {
            block(0, m)?;
        } else {
            try_parallel(m.div_ceil(BLOCK_ROWS), |i| {
                block(i * BLOCK_ROWS, BLOCK_ROWS.min(m - i * BLOCK_ROWS))
            })?;
        }
        Ok(saved)
    }

    /// From the rows `x` (m, D), what their forward pass kept and the gradient `dy` (m, D) of its result: the gradient
    /// `dx` of the rows, `residual` added, and those of the parameters, named as in the state. `dropout` is the key that
    /// the forward pass had.
    ///
    /// # Errors
    /// `Memory`, `Interrupted`, `Internal`.
    pub fn backward(
        &self,
        (x, m): (&[T], usize),
        saved: &SavedHidden<T>,
        dy: &[T],
        dropout: Option<u64>,
        dx: &mut [T],
        residual: Option<&[T]>,
    ) -> Result<State<T>> {
        let (d, f) = (self.down.n(), self.up.n());
        let (mut hidden, mut d_hidden) = (buffer(m, f)?, buffer(m, f)?);
        let (hidden, d_hidden) = (&mut hidden[..m * f], &mut d_hidden[..m * f]);
        let up = &saved.up[..m * f];
        self.activated((up, &saved.gate), hidden)?;
        self.drop(0, hidden, dropout)?;
        let down = self.down.backward(hidden, dy, m, Some(d_hidden), None)?;
        self.drop(0, d_hidden, dropout)?;
        let Some(gate) = &self.gate else {
            activate_backward(self.activation, up, d_hidden)?;
            let up = self.up.backward(x, d_hidden, m, Some(dx), residual)?;
            return Ok(prefixed("linear1.", up).chain(prefixed("linear2.", down)).collect());
        };
        let before = &saved.gate[..m * f];
        let d_up = hidden;
        activate(self.activation, before, d_up)?;
        multiply(d_up, d_hidden)?;
        multiply(d_hidden, up)?;
        activate_backward(self.activation, before, d_hidden)?;
        let mut first = buffer(m, d)?;
        let first = &mut first[..m * d];
        let up = self.up.backward(x, d_up, m, Some(&mut *first), residual)?;
        let gate = gate.backward(x, d_hidden, m, Some(dx), Some(first))?;
        let grads = prefixed("linear1.", up).chain(prefixed("linear_gate.", gate));
        Ok(grads.chain(prefixed("linear2.", down)).collect())
    }

    /// The hidden rows of rows before the activation: act(up), or act(gate) up.
    fn activated(&self, (up, gate): (&[T], &[T]), hidden: &mut [T]) -> Result<()> {
        if self.gate.is_none() {
            return activate(self.activation, up, hidden);
        }
        activate(self.activation, &gate[..hidden.len()], hidden)?;
        multiply(hidden, up)
    }

    /// Drops hidden numbers, of which `first` stand before these.
    fn drop(&self, first: usize, hidden: &mut [T], dropout: Option<u64>) -> Result<()> {
        match dropout.filter(|_| self.dropout > 0.0) {
            Some(key) => drop_out_from(first, hidden, self.dropout, site_key(key, 0, 2)),
            None => Ok(()),
        }
    }
}

/// `x[i] *= y[i]`.
fn multiply<T: Float>(x: &mut [T], y: &[T]) -> Result<()> {
    over_rows(x, 1, 1, |first, x| x.iter_mut().zip(&y[first..]).for_each(|(x, &y)| *x = *x * y))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::activation::Activation;
    use crate::kernels::testing::{assert_same_bits, normals, rms_relative};
    use crate::nn::init::Init;
    use crate::nn::state::{Loader, Module};

    const D: usize = 8;
    const F: usize = 12;

    fn part<T: Float>(gated: bool, dropout: f64) -> FeedForward<T> {
        FeedForward::new((D, F), gated, Activation::Gelu, true, dropout, &mut Init::new(3)).unwrap()
    }

    fn saved<T: Float>(part: &FeedForward<T>, x: &[T], residual: &[T]) -> (Vec<T>, SavedHidden<T>) {
        let mut out = vec![T::ZERO; x.len()];
        let hidden =
            part.forward_saved(x, x.len() / D, &mut out, (Some(residual), &[]), Some(5)).expect("rows");
        (out, hidden)
    }

    #[test]
    fn what_keeps_gives_the_bits_of_what_does_not() {
        for (gated, dropout) in [(false, 0.0), (true, 0.0), (false, 0.3), (true, 0.3)] {
            let part = part::<f32>(gated, dropout);
            for m in [0, 1, BLOCK_ROWS - 1, 3 * BLOCK_ROWS + 7, 8 * BLOCK_ROWS] {
                let (x, residual) = (normals(m * D, 1, 1.0), normals(m * D, 2, 1.0));
                let mut want = vec![0.0; m * D];
                let mut buffers = part.buffers(m, true).unwrap();
                part.forward(&x, m, &mut want, (Some(&residual), &[]), Some(5), &mut buffers).unwrap();
                assert_same_bits(&saved(&part, &x, &residual).0, &want);
            }
        }
    }

    /// Differences along one direction for each of the input and the parameters.
    #[test]
    fn gradients_equal_central_differences() {
        const STEP: f64 = 1e-5;
        let m = 20;
        for (gated, dropout) in [(false, 0.0), (true, 0.0), (false, 0.3), (true, 0.3)] {
            let part = part::<f64>(gated, dropout);
            let (x, residual, dy) = (normals(m * D, 1, 1.0), normals(m * D, 2, 1.0), normals(m * D, 3, 1.0));
            let (_, kept) = saved(&part, &x, &residual);
            let mut dx = vec![0.0; m * D];
            let grads = part.backward((&x, m), &kept, &dy, Some(5), &mut dx, Some(&residual)).unwrap();
            let loss = |part: &FeedForward<f64>, x: &[f64]| -> f64 {
                saved(part, x, &residual).0.iter().zip(&dy).map(|(y, d)| y * d).sum()
            };
            let along = |grad: &[f64], way: &[f64]| grad.iter().zip(way).map(|(g, w)| g * w).sum::<f64>();
            let moved = |x: &[f64], way: &[f64], by: f64| -> Vec<f64> {
                x.iter().zip(way).map(|(x, w)| x + by * w).collect()
            };
            let way = normals(m * D, 4, 1.0);
            let slope = |part: &dyn Fn(f64) -> f64| (part(STEP) - part(-STEP)) / (2.0 * STEP);
            let own: Vec<f64> = dx.iter().zip(&residual).map(|(dx, r)| dx - r).collect();
            let want = slope(&|by| loss(&part, &moved(&x, &way, by)));
            assert!(rms_relative(&[along(&own, &way)], &[want]) < 1e-8, "dx, gated {gated}");
            let state = part.state().unwrap();
            let names = |state: &State<f64>| state.iter().map(|(name, _)| name.clone()).collect::<Vec<_>>();
            assert_eq!(names(&grads), names(&state));
            for (i, (name, grad)) in grads.iter().enumerate() {
                assert_eq!(grad.shape, state[i].1.shape);
                let way = normals(grad.data.len(), 5, 1.0);
                let want = slope(&|by| {
                    let mut state = state.clone();
                    state[i].1.data = moved(&state[i].1.data, &way, by);
                    loss(&part.load("", &mut Loader::new(state).unwrap()).unwrap(), &x)
                });
                assert!(rms_relative(&[along(&grad.data, &way)], &[want]) < 1e-8, "{name}, gated {gated}");
            }
        }
    }
}
