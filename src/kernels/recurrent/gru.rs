//! A step of a gated recurrent unit and its gradient (Cho et al. 2014), the reset gate after the product and its bias, as
//! cuDNN and torch have it: one product serves all three gates.
//!
//! ```text
//! x = x W_ihᵀ + b_ih and k = h W_hhᵀ + b_hh, in three parts    r = s(x_r + k_r)   u = s(x_u + k_u)
//! n = tanh(x_n + r k_n)                                         h' = (1 - u) n + u h = n + u (h - n)
//!
//! dx_n = dh' (1 - u) (1 - n^2)    dx_r = dk_r = dx_n k_n r (1 - r)    dx_u = dk_u = dh' (h - n) u (1 - u)
//! dk_n = dx_n r                   dh = dh' u + dk W_hh
//! ```

use super::super::rows::{load_up_to, store_up_to};
use super::{FromOutput, StepRows, plus, through_sigmoid, through_tanh};
use crate::account::at;
use crate::simd::math::{sigmoid, tanh};
use crate::simd::{Float, Kernel, Simd};

/// A step forward.
pub struct GruStep<'a, T> {
    /// H
    pub width: usize,
    /// (n, 3 H): x, then r, u, n.
    pub gates: &'a mut [T],
    /// (n, 3 H): k without `bias`.
    pub hidden: &'a [T],
    /// `b_hh` (3 H).
    pub bias: Option<&'a [T]>,
    /// h (n, H), of the step before, then of this one.
    pub h: &'a mut [T],
    /// h of this step once more.
    pub out: StepRows<'a, T>,
    /// Where h of the step before and `k_n` are kept, for gradients: (n, H) each.
    pub saved: Option<[&'a mut [T]; 2]>,
}

impl<T: Float> Kernel<T> for GruStep<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd<T>>(self, s: S) {
        at!(Activation);
        let (width, bias) = (self.width, self.bias);
        let mut inner_rows = None;
        if let Some([h, inner]) = self.saved {
            h.copy_from_slice(self.h);
            inner_rows = Some(inner);
        }
        for (i, row) in self.gates.chunks_exact_mut(3 * width).enumerate() {
            let here = i * width..(i + 1) * width;
            let (hidden, h_row) = (&self.hidden[3 * here.start..3 * here.end], &mut self.h[here.clone()]);
            // SAFETY: the step alone writes its rows of the output.
            let out = unsafe { self.out.row(i, width) };
            for from in (0..width).step_by(S::LANES) {
                let n = S::LANES.min(width - from);
                let (zr, zu, zn) = (from, width + from, 2 * width + from);
                let reset = plus(s, load_up_to(s, hidden, zr, n), bias, zr, n);
                let reset = sigmoid(s, s.add(load_up_to(s, row, zr, n), reset));
                let update = plus(s, load_up_to(s, hidden, zu, n), bias, zu, n);
                let update = sigmoid(s, s.add(load_up_to(s, row, zu, n), update));
                let inner = plus(s, load_up_to(s, hidden, zn, n), bias, zn, n);
                let new = tanh(s, s.fma(reset, inner, load_up_to(s, row, zn, n)));
                let h = s.fma(update, s.sub(load_up_to(s, h_row, from, n), new), new);
                store_up_to(s, h, h_row, from, n);
                store_up_to(s, h, out, from, n);
                if let Some(rows) = &mut inner_rows {
                    store_up_to(s, reset, row, zr, n);
                    store_up_to(s, update, row, zu, n);
                    store_up_to(s, new, row, zn, n);
                    store_up_to(s, inner, rows, here.start + from, n);
                }
            }
        }
    }
}

/// A step back.
pub struct GruBack<'a, T> {
    /// H
    pub width: usize,
    /// r, u, n of the step (n, 3 H).
    pub gates: &'a [T],
    /// `k_n` of the step (n, H).
    pub inner: &'a [T],
    /// h of the step before (n, H).
    pub h: &'a [T],
    /// Of the step's output.
    pub d_out: FromOutput<'a, T>,
    /// Of h (n, H), from the steps after; then that part of the step before's that goes past the product.
    pub d_h: &'a mut [T],
    /// dx (n, 3 H), written.
    pub d_gates: &'a mut [T],
    /// dk (n, 3 H), written.
    pub d_hidden: &'a mut [T],
}

impl<T: Float> Kernel<T> for GruBack<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd<T>>(self, s: S) {
        at!(Activation);
        let (width, one) = (self.width, s.splat(T::ONE));
        let rows = self.d_gates.chunks_exact_mut(3 * width).zip(self.d_hidden.chunks_exact_mut(3 * width));
        for (i, (d_row, d_hidden)) in rows.enumerate() {
            let here = i * width..(i + 1) * width;
            let row = &self.gates[3 * here.start..3 * here.end];
            let (inner_row, h_row) = (&self.inner[here.clone()], &self.h[here.clone()]);
            let d_h = &mut self.d_h[here];
            for from in (0..width).step_by(S::LANES) {
                let n = S::LANES.min(width - from);
                let (zr, zu, zn) = (from, width + from, 2 * width + from);
                let reset = load_up_to(s, row, zr, n);
                let update = load_up_to(s, row, zu, n);
                let new = load_up_to(s, row, zn, n);
                let dh = s.add(self.d_out.load(s, i, from, n), load_up_to(s, d_h, from, n));
                let d_new = through_tanh(s, s.mul(dh, s.sub(one, update)), new);
                let d_update = s.mul(dh, s.sub(load_up_to(s, h_row, from, n), new));
                let d_update = through_sigmoid(s, d_update, update);
                let d_reset = through_sigmoid(s, s.mul(d_new, load_up_to(s, inner_row, from, n)), reset);
                for (out, d_inner) in [(&mut *d_row, d_new), (&mut *d_hidden, s.mul(d_new, reset))] {
                    store_up_to(s, d_reset, out, zr, n);
                    store_up_to(s, d_update, out, zu, n);
                    store_up_to(s, d_inner, out, zn, n);
                }
                store_up_to(s, s.mul(dh, update), d_h, from, n);
            }
        }
    }
}
