//! A step of a long short-term memory and its gradient (Hochreiter and Schmidhuber 1997; Gers et al. 2000).
//!
//! ```text
//! z = x W_ihᵀ + b_ih + h W_hhᵀ + b_hh, in four parts    i = s(z_i)  f = s(z_f)  g = tanh(z_g)  o = s(z_o)
//! c' = f c + i g                                         h' = o tanh(c')
//!
//! dc' += dh' o (1 - tanh(c')^2)                          dz_i = dc' g i (1 - i)    dz_f = dc' c f (1 - f)
//! dc = dc' f                                             dz_g = dc' i (1 - g^2)    dz_o = dh' tanh(c') o (1 - o)
//! ```

use super::super::rows::{load_up_to, store_up_to};
use super::{FromOutput, StepRows, plus, through_sigmoid, through_tanh};
use crate::account::at;
use crate::simd::math::{sigmoid, tanh};
use crate::simd::{Float, Kernel, Simd};

/// A step forward.
pub struct LstmStep<'a, T> {
    /// H
    pub width: usize,
    /// (n, 4 H): z without `bias`, then i, f, g, o.
    pub gates: &'a mut [T],
    /// `b_hh` (4 H).
    pub bias: Option<&'a [T]>,
    /// h (n, H), of the step before, then of this one.
    pub h: &'a mut [T],
    /// c (n, H), likewise.
    pub c: &'a mut [T],
    /// h of this step once more.
    pub out: StepRows<'a, T>,
    /// Where h and c of the step before and tanh(c) of this one are kept, for gradients: (n, H) each.
    pub saved: Option<[&'a mut [T]; 3]>,
}

impl<T: Float> Kernel<T> for LstmStep<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd<T>>(self, s: S) {
        at!(Activation);
        let (width, bias) = (self.width, self.bias);
        let mut tanh_rows = None;
        if let Some([h, c, tanh_c]) = self.saved {
            h.copy_from_slice(self.h);
            c.copy_from_slice(self.c);
            tanh_rows = Some(tanh_c);
        }
        for (i, row) in self.gates.chunks_exact_mut(4 * width).enumerate() {
            let here = i * width..(i + 1) * width;
            let (h_row, c_row) = (&mut self.h[here.clone()], &mut self.c[here.clone()]);
            // SAFETY: the step alone writes its rows of the output.
            let out = unsafe { self.out.row(i, width) };
            for from in (0..width).step_by(S::LANES) {
                let n = S::LANES.min(width - from);
                let (zi, zf, zg, zo) = (from, width + from, 2 * width + from, 3 * width + from);
                let input = sigmoid(s, plus(s, load_up_to(s, row, zi, n), bias, zi, n));
                let forget = sigmoid(s, plus(s, load_up_to(s, row, zf, n), bias, zf, n));
                let new = tanh(s, plus(s, load_up_to(s, row, zg, n), bias, zg, n));
                let output = sigmoid(s, plus(s, load_up_to(s, row, zo, n), bias, zo, n));
                let c = s.fma(forget, load_up_to(s, c_row, from, n), s.mul(input, new));
                let tanh_c = tanh(s, c);
                let h = s.mul(output, tanh_c);
                store_up_to(s, c, c_row, from, n);
                store_up_to(s, h, h_row, from, n);
                store_up_to(s, h, out, from, n);
                if let Some(rows) = &mut tanh_rows {
                    store_up_to(s, input, row, zi, n);
                    store_up_to(s, forget, row, zf, n);
                    store_up_to(s, new, row, zg, n);
                    store_up_to(s, output, row, zo, n);
                    store_up_to(s, tanh_c, rows, here.start + from, n);
                }
            }
        }
    }
}

/// A step back.
pub struct LstmBack<'a, T> {
    /// H
    pub width: usize,
    /// i, f, g, o of the step (n, 4 H).
    pub gates: &'a [T],
    /// c of the step before (n, H).
    pub c: &'a [T],
    /// tanh(c) of the step (n, H).
    pub tanh_c: &'a [T],
    /// Of the step's output.
    pub d_out: FromOutput<'a, T>,
    /// Of h, from the steps after (n, H).
    pub d_h: &'a [T],
    /// Of c (n, H), from the steps after, then of the step before.
    pub d_c: &'a mut [T],
    /// dz (n, 4 H), written.
    pub d_gates: &'a mut [T],
}

impl<T: Float> Kernel<T> for LstmBack<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd<T>>(self, s: S) {
        at!(Activation);
        let width = self.width;
        for (i, d_row) in self.d_gates.chunks_exact_mut(4 * width).enumerate() {
            let here = i * width..(i + 1) * width;
            let row = &self.gates[4 * here.start..4 * here.end];
            let (c_row, tanh_row) = (&self.c[here.clone()], &self.tanh_c[here.clone()]);
            let (d_h, d_c) = (&self.d_h[here.clone()], &mut self.d_c[here]);
            for from in (0..width).step_by(S::LANES) {
                let n = S::LANES.min(width - from);
                let (zi, zf, zg, zo) = (from, width + from, 2 * width + from, 3 * width + from);
                let input = load_up_to(s, row, zi, n);
                let forget = load_up_to(s, row, zf, n);
                let new = load_up_to(s, row, zg, n);
                let output = load_up_to(s, row, zo, n);
                let tanh_c = load_up_to(s, tanh_row, from, n);
                let dh = s.add(self.d_out.load(s, i, from, n), load_up_to(s, d_h, from, n));
                let through = through_tanh(s, s.mul(dh, output), tanh_c);
                let dc = s.add(load_up_to(s, d_c, from, n), through);
                let c = load_up_to(s, c_row, from, n);
                store_up_to(s, through_sigmoid(s, s.mul(dc, new), input), d_row, zi, n);
                store_up_to(s, through_sigmoid(s, s.mul(dc, c), forget), d_row, zf, n);
                store_up_to(s, through_tanh(s, s.mul(dc, input), new), d_row, zg, n);
                store_up_to(s, through_sigmoid(s, s.mul(dh, tanh_c), output), d_row, zo, n);
                store_up_to(s, s.mul(dc, forget), d_c, from, n);
            }
        }
    }
}
