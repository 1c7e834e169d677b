//! Cells of recurrent layers: one time step of many sequences, after its products and before those of its gradient.
//!
//! A step takes the rows of the sequences that are still running. Row i of each is computed from row i of the others
//! alone, number by number, so that a sequence has the same bits in any batch. `gates` holds `x W_ihᵀ + b_ih` for each
//! gate side by side; a cell leaves there what its gates have become, which the way back reads.
//!
//! | cell | gates | beside the rows of h |
//! |---|---|---|
//! | [`RnnStep`] | 1 | |
//! | [`LstmStep`] | 4: input, forget, cell, output | c |
//! | [`GruStep`] | 3: reset, update, new | |

mod gru;
mod lstm;
mod rnn;

pub use gru::{GruBack, GruStep};
pub use lstm::{LstmBack, LstmStep};
pub use rnn::{RnnBack, RnnStep};

use super::gemm::OutRows;
use super::rows::load_up_to;
use crate::simd::{Float, Simd};

/// What a recurrent layer computes at each step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cell {
    /// h = tanh(z), Elman 1990.
    Tanh,
    /// h = relu(z).
    Relu,
    /// Hochreiter and Schmidhuber 1997, with the forget gate of Gers et al. 2000.
    Lstm,
    /// Cho et al. 2014, the reset gate after the product (as cuDNN and torch have it).
    Gru,
}

impl Cell {
    /// Gates, each as wide as h.
    pub fn gates(self) -> usize {
        match self {
            Cell::Tanh | Cell::Relu => 1,
            Cell::Lstm => 4,
            Cell::Gru => 3,
        }
    }
}

/// Rows of a shared output that a step writes.
#[derive(Clone, Copy)]
pub struct StepRows<'a, T> {
    /// The whole output.
    pub all: OutRows<'a, T>,
    /// Where the first row begins.
    pub first: usize,
    /// Distance between rows.
    pub stride: usize,
}

impl<'a, T> StepRows<'a, T> {
    /// Row `i`.
    ///
    /// # Safety
    /// Nobody else uses these numbers while the slice is alive.
    #[inline(always)]
    unsafe fn row(&self, i: usize, width: usize) -> &'a mut [T] {
        // SAFETY: the caller's promise.
        unsafe { self.all.slice(self.first + i * self.stride, width) }
    }
}

/// The gradient that comes from the output of a step: rows from the first on, at a stride.
#[derive(Clone, Copy)]
pub struct FromOutput<'a, T> {
    /// The rows.
    pub rows: &'a [T],
    /// Distance between them.
    pub stride: usize,
}

impl<T: Float> FromOutput<'_, T> {
    #[inline(always)]
    fn load<S: Simd<T>>(&self, s: S, row: usize, from: usize, n: usize) -> S::V {
        load_up_to(s, self.rows, row * self.stride + from, n)
    }
}

/// `v` and `n` numbers of the bias, if there is one.
#[inline(always)]
fn plus<T: Float, S: Simd<T>>(s: S, v: S::V, bias: Option<&[T]>, from: usize, n: usize) -> S::V {
    match bias {
        Some(bias) => s.add(v, load_up_to(s, bias, from, n)),
        None => v,
    }
}

/// `d y (1 - y)`: back through y = sigmoid(z).
#[inline(always)]
fn through_sigmoid<T: Float, S: Simd<T>>(s: S, d: S::V, y: S::V) -> S::V {
    s.mul(d, s.mul(y, s.sub(s.splat(T::ONE), y)))
}

/// `d (1 - y^2)`: back through y = tanh(z).
#[inline(always)]
fn through_tanh<T: Float, S: Simd<T>>(s: S, d: S::V, y: S::V) -> S::V {
    s.mul(d, s.fma(s.neg(y), y, s.splat(T::ONE)))
}

#[cfg(test)]
mod tests;
