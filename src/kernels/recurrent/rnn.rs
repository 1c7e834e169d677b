//! A step of a plain recurrent layer and its gradient.
//!
//! ```text
//! z = x W_ihᵀ + b_ih + h W_hhᵀ + b_hh        h = tanh(z) or relu(z)
//! dz = dh (1 - h^2), or dh where h > 0        dh of the step before = dz W_hh
//! ```

use super::super::rows::{load_up_to, store_up_to};
use super::{Cell, FromOutput, StepRows, plus, through_tanh};
use crate::account::at;
use crate::simd::math::tanh;
use crate::simd::{Float, Kernel, Simd};

/// A step forward.
pub struct RnnStep<'a, T> {
    /// [`Cell::Relu`], or tanh.
    pub cell: Cell,
    /// H
    pub width: usize,
    /// (n, H): z without `bias`, then h.
    pub gates: &'a mut [T],
    /// `b_hh` (H).
    pub bias: Option<&'a [T]>,
    /// h (n, H), of the step before, then of this one.
    pub h: &'a mut [T],
    /// h once more.
    pub out: StepRows<'a, T>,
    /// Where h of the step before is kept (n, H), for gradients.
    pub before: Option<&'a mut [T]>,
}

impl<T: Float> Kernel<T> for RnnStep<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd<T>>(self, s: S) {
        at!(Activation);
        let width = self.width;
        if let Some(before) = self.before {
            before.copy_from_slice(self.h);
        }
        for (i, row) in self.gates.chunks_exact_mut(width).enumerate() {
            for from in (0..width).step_by(S::LANES) {
                let n = S::LANES.min(width - from);
                let z = plus(s, load_up_to(s, row, from, n), self.bias, from, n);
                // The second operand comes back where either is NaN: z itself.
                let h = if self.cell == Cell::Relu { s.max(s.splat(T::ZERO), z) } else { tanh(s, z) };
                store_up_to(s, h, row, from, n);
            }
            self.h[i * width..(i + 1) * width].copy_from_slice(row);
            // SAFETY: the step alone writes its rows of the output.
            unsafe { self.out.row(i, width) }.copy_from_slice(row);
        }
    }
}

/// A step back.
pub struct RnnBack<'a, T> {
    /// As in [`RnnStep`].
    pub cell: Cell,
    /// H
    pub width: usize,
    /// h of the step (n, H).
    pub gates: &'a [T],
    /// Of the step's output.
    pub d_out: FromOutput<'a, T>,
    /// From the steps after (n, H).
    pub d_h: &'a [T],
    /// dz (n, H), written.
    pub d_gates: &'a mut [T],
}

impl<T: Float> Kernel<T> for RnnBack<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd<T>>(self, s: S) {
        at!(Activation);
        let width = self.width;
        for (i, d_row) in self.d_gates.chunks_exact_mut(width).enumerate() {
            let (h_row, d_h) = (&self.gates[i * width..][..width], &self.d_h[i * width..][..width]);
            for from in (0..width).step_by(S::LANES) {
                let n = S::LANES.min(width - from);
                let h = load_up_to(s, h_row, from, n);
                let d = s.add(self.d_out.load(s, i, from, n), load_up_to(s, d_h, from, n));
                let d = if self.cell == Cell::Relu {
                    // A gradient where relu is flat is dropped whatever it is.
                    s.select(s.le(h, s.splat(T::ZERO)), s.splat(T::ZERO), d)
                } else {
                    through_tanh(s, d, h)
                };
                store_up_to(s, d, d_row, from, n);
            }
        }
    }
}
