//! From the gradient d of a row's weights p to that of its scores:
//!
//! ```text
//! softmax, top-k  p_j (d_j - sum d p)          sigmoid  d_j p_j (1 - p_j)
//! sparsemax       d_j - mean of d over the support, on the support; 0 beside it
//! hard            0: the place of the greatest score does not move
//! ```
//!
//! As forward the keys concerned are gathered and the gradients scattered; all others are exactly 0. Of top-k and
//! sparsemax those are the keys with a weight. The mean is summed in f64, ascending.

use super::normalize::Normalize;
use crate::kernels::softmax::SoftmaxBackward;
use crate::simd::{Float, Kernel, Simd};

/// The gradient of one row of scores.
pub struct NormalizeRowBackward<'a, T> {
    /// The kind of weights.
    pub normalize: Normalize,
    /// The weights.
    pub weights: &'a [T],
    /// Keys that may be attended.
    pub keep: &'a [bool],
    /// The gradient of the weights, and then of the scores.
    pub d: &'a mut [T],
    /// Room for two numbers a key.
    pub room: &'a mut [T],
}

impl<T: Float> Kernel<T> for NormalizeRowBackward<'_, T> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd<T>>(self, s: S) {
        let width = self.d.len();
        assert!(self.weights.len() == width && self.keep.len() == width, "weights: a gradient for each");
        let sparse = matches!(self.normalize, Normalize::Sparsemax | Normalize::TopK(_));
        let counts = |j: usize| self.keep[j] && !(sparse && self.weights[j] == T::ZERO);
        let (p, d) = self.room[..2 * width].split_at_mut(width);
        let mut n = 0;
        for j in 0..width {
            if counts(j) {
                (p[n], d[n]) = (self.weights[j], self.d[j]);
                n += 1;
            }
        }
        let (p, d) = (&p[..n], &mut d[..n]);
        match self.normalize {
            Normalize::Hard => d.fill(T::ZERO),
            Normalize::Softmax | Normalize::TopK(_) => {
                if n > 0 {
                    SoftmaxBackward { p, d: &mut *d, width: n }.run(s);
                }
            }
            Normalize::Sigmoid => {
                for (d, &p) in d.iter_mut().zip(p) {
                    *d = *d * (p * (T::ONE - p));
                }
            }
            Normalize::Sparsemax => {
                let sum: f64 = d.iter().map(|d| d.to_f64()).sum();
                let mean = sum / n as f64;
                for d in d.iter_mut() {
                    *d = T::from_f64(d.to_f64() - mean);
                }
            }
        }
        let mut from = d.iter();
        for j in 0..width {
            self.d[j] = if counts(j) { *from.next().unwrap_or(&T::ZERO) } else { T::ZERO };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::normalize::tests::{ALL, weights};
    use super::*;
    use crate::kernels::testing::{assert_same_bits, for_each_isa, lengths, normals};
    use crate::simd::Isa;

    fn back<T: Float>(isa: Isa, normalize: Normalize, weights: &[T], keep: &[bool], d: &[T]) -> Vec<T> {
        let (mut d, mut room) = (d.to_vec(), vec![T::NAN; 2 * d.len()]);
        T::dispatch(isa, NormalizeRowBackward { normalize, weights, keep, d: &mut d, room: &mut room });
        d
    }

    /// The Jacobian's own entries, number by number.
    fn naive(normalize: Normalize, p: &[f64], d: &[f64]) -> Vec<f64> {
        let support = p.iter().filter(|p| **p > 0.0).count() as f64;
        let entry = |i: usize, j: usize| {
            let same = if i == j { 1.0 } else { 0.0 };
            match normalize {
                Normalize::Softmax | Normalize::TopK(_) => p[i] * (same - p[j]),
                Normalize::Sigmoid => same * p[i] * (1.0 - p[i]),
                Normalize::Sparsemax if p[i] > 0.0 && p[j] > 0.0 => same - 1.0 / support,
                Normalize::Hard | Normalize::Sparsemax => 0.0,
            }
        };
        (0..p.len()).map(|j| (0..p.len()).map(|i| d[i] * entry(i, j)).sum()).collect()
    }

    fn agrees<T: Float>(isa: Isa, bound: f64) {
        for n in lengths().into_iter().filter(|&n| n > 0) {
            let d = normals::<T>(n, 7, 1.0);
            let keep = vec![true; n];
            for normalize in ALL {
                let p = weights(isa, normalize, &normals::<T>(n, 1, 2.0), &keep);
                let out = back(isa, normalize, &p, &keep, &d);
                let wide = |x: &[T]| -> Vec<f64> { x.iter().map(|x| x.to_f64()).collect() };
                for (out, exact) in out.iter().zip(naive(normalize, &wide(&p), &wide(&d))) {
                    assert!((out.to_f64() - exact).abs() <= bound, "{normalize:?}, {n}: {out}, {exact}");
                }
                assert_same_bits(&out, &back(Isa::Scalar, normalize, &p, &keep, &d));
            }
        }
    }

    fn blocked_keys_leave_no_trace<T: Float>(isa: Isa, _: f64) {
        let keep: Vec<bool> = (0..50).map(|j| j % 4 != 2).collect();
        for normalize in ALL {
            let p = weights(isa, normalize, &normals::<T>(50, 2, 2.0), &keep);
            let mut d = normals::<T>(50, 3, 1.0);
            let clean = back(isa, normalize, &p, &keep, &d);
            d.iter_mut().zip(&keep).filter(|(_, keep)| !**keep).for_each(|(x, _)| *x = T::NAN);
            assert_same_bits(&back(isa, normalize, &p, &keep, &d), &clean);
            assert!(clean.iter().zip(&keep).all(|(d, keep)| *keep || *d == T::ZERO));
        }
    }

    for_each_isa! {
        gradients_agree_with_the_jacobian: agrees, 2e-6, 4e-15;
        blocked_keys_are_as_if_they_were_cut_out: blocked_keys_leave_no_trace, 0.0, 0.0;
    }
}
