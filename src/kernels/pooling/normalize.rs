//! From a row of scores to weights, over the keys that are kept:
//!
//! ```text
//! softmax    e^s_j / sum e^s                 sigmoid    1 / (1 + e^-s_j), each key by itself
//! hard       1 at the greatest score         sparsemax  the nearest point of the simplex
//! top-k      softmax over the k greatest scores
//! ```
//!
//! The scores of the kept keys are gathered, so that a row knows of nothing else, and scattered back; the other weights
//! are exactly 0. A NaN among the scores of hard, sparsemax or top-k makes the row NaN.

use super::sparse::{argmax, sparsemax, top_k};
use crate::kernels::rows::{for_each_vector, load_up_to, store_up_to};
use crate::kernels::softmax::softmax_row;
use crate::simd::math::sigmoid;
use crate::simd::{Float, Kernel, Simd};

/// The kind of weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Normalize {
    /// Exponentials divided by their sum.
    Softmax,
    /// 1 at the greatest score, 0 elsewhere.
    Hard,
    /// Euclidean projection onto the simplex.
    Sparsemax,
    /// Each key by itself.
    Sigmoid,
    /// Softmax over so many of the greatest scores.
    TopK(usize),
}

/// The weights of one row.
pub struct NormalizeRow<'a, T> {
    /// The kind.
    pub normalize: Normalize,
    /// Scores.
    pub scores: &'a [T],
    /// Keys that may be attended.
    pub keep: &'a [bool],
    /// Weights.
    pub out: &'a mut [T],
    /// Room for two numbers and one place a key.
    pub room: (&'a mut [T], &'a mut [u32]),
}

impl<T: Float> Kernel<T> for NormalizeRow<'_, T> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd<T>>(self, s: S) {
        let (width, (room, order)) = (self.out.len(), self.room);
        assert!(self.scores.len() == width && self.keep.len() == width, "weights: a score for each");
        assert!(room.len() >= 2 * width && order.len() >= width, "weights: room");
        let (kept, other) = room.split_at_mut(width);
        let mut n = 0;
        for (&score, &keep) in self.scores.iter().zip(self.keep) {
            if keep {
                kept[n] = score;
                n += 1;
            }
        }
        if n > 0 {
            weigh(s, self.normalize, &mut kept[..n], &mut other[..n], &mut order[..n]);
        }
        let mut from = kept.iter();
        for (out, &keep) in self.out.iter_mut().zip(self.keep) {
            *out = if keep { *from.next().unwrap_or(&T::ZERO) } else { T::ZERO };
        }
    }
}

/// Weights in the place of scores.
#[inline(always)]
fn weigh<T: Float, S: Simd<T>>(s: S, normalize: Normalize, x: &mut [T], other: &mut [T], order: &mut [u32]) {
    match normalize {
        Normalize::Softmax => {
            softmax_row(s, x, other);
            x.copy_from_slice(other);
        }
        Normalize::Sigmoid => {
            for_each_vector!(S, x.len(), |_lane, from, n| {
                let p = sigmoid(s, load_up_to(s, x, from, n));
                store_up_to(s, p, x, from, n);
            });
        }
        _ if x.iter().any(|x| x.is_nan()) => x.fill(T::NAN),
        Normalize::Hard => {
            let best = argmax(x);
            x.fill(T::ZERO);
            x[best] = T::ONE;
        }
        Normalize::Sparsemax => sparsemax(x, order),
        Normalize::TopK(k) => {
            let k = k.min(x.len());
            top_k(x, k, order);
            let (chosen, p) = (&order[..k], other);
            for (score, &j) in p.iter_mut().zip(chosen) {
                *score = x[j as usize];
            }
            let weights = &mut x[..k];
            softmax_row(s, &p[..k], weights);
            p[..k].copy_from_slice(weights);
            x.fill(T::ZERO);
            for (&j, &weight) in chosen.iter().zip(p.iter()) {
                x[j as usize] = weight;
            }
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::kernels::naive;
    use crate::kernels::testing::{assert_same_bits, for_each_isa, lengths, normals};
    use crate::simd::Isa;

    pub(in super::super) const ALL: [Normalize; 6] = [
        Normalize::Softmax,
        Normalize::Hard,
        Normalize::Sparsemax,
        Normalize::Sigmoid,
        Normalize::TopK(1),
        Normalize::TopK(3),
    ];

    pub(in super::super) fn weights<T: Float>(
        isa: Isa,
        normalize: Normalize,
        scores: &[T],
        keep: &[bool],
    ) -> Vec<T> {
        let n = scores.len();
        let mut out = vec![T::NAN; n];
        let room = (&mut vec![T::NAN; 2 * n][..], &mut vec![0; n][..]);
        T::dispatch(isa, NormalizeRow { normalize, scores, keep, out: &mut out, room });
        out
    }

    /// From the definitions, one number at a time; sparsemax by bisection of the sum of `max(z - tau, 0)`.
    fn naive(normalize: Normalize, x: &[f64]) -> Vec<f64> {
        let greater = |j: usize| (0..x.len()).filter(|&i| x[i] > x[j] || (x[i] == x[j] && i < j)).count();
        let among = |k: usize| -> Vec<f64> {
            let masked: Vec<f64> =
                (0..x.len()).map(|j| if greater(j) < k { x[j] } else { f64::NEG_INFINITY }).collect();
            naive::softmax(&masked)
        };
        match normalize {
            Normalize::Softmax => naive::softmax(x),
            Normalize::Sigmoid => x.iter().map(|x| 1.0 / (1.0 + libm::exp(-x))).collect(),
            Normalize::Hard => among(1),
            Normalize::TopK(k) => among(k),
            Normalize::Sparsemax => {
                let top = x.iter().fold(f64::NEG_INFINITY, |a, &b| a.max(b));
                let (mut low, mut high) = (top - 1.0, top);
                for _ in 0..200 {
                    let tau = 0.5 * (low + high);
                    let sum: f64 = x.iter().map(|x| (x - tau).max(0.0)).sum();
                    if sum > 1.0 { low = tau } else { high = tau }
                }
                x.iter().map(|x| (x - low).max(0.0)).collect()
            }
        }
    }

    fn agrees<T: Float>(isa: Isa, bound: f64) {
        for n in lengths().into_iter().filter(|&n| n > 0) {
            let scores = normals::<T>(n, 1, 2.0);
            for normalize in ALL {
                let out = weights(isa, normalize, &scores, &vec![true; n]);
                let exact = naive(normalize, &scores.iter().map(|x| x.to_f64()).collect::<Vec<_>>());
                for (out, exact) in out.iter().zip(&exact) {
                    assert!((out.to_f64() - exact).abs() <= bound, "{normalize:?}, {n}: {out}, {exact}");
                }
                assert_same_bits(&out, &weights(Isa::Scalar, normalize, &scores, &vec![true; n]));
            }
        }
    }

    fn blocked_keys_leave_no_trace<T: Float>(isa: Isa, _: f64) {
        let keep: Vec<bool> = (0..100).map(|j| j % 4 != 2).collect();
        let mut scores = normals::<T>(100, 2, 2.0);
        let cut: Vec<T> = (0..100).filter(|&j| keep[j]).map(|j| scores[j]).collect();
        scores.iter_mut().zip(&keep).filter(|(_, keep)| !**keep).for_each(|(x, _)| *x = T::NAN);
        for normalize in ALL {
            let out = weights(isa, normalize, &scores, &keep);
            assert!(out.iter().zip(&keep).all(|(p, keep)| *keep || *p == T::ZERO));
            let kept: Vec<T> = out.iter().zip(&keep).filter(|(_, keep)| **keep).map(|(p, _)| *p).collect();
            assert_same_bits(&kept, &weights(isa, normalize, &cut, &vec![true; cut.len()]));
            assert_same_bits(&weights(isa, normalize, &scores, &[false; 100]), &[T::ZERO; 100]);
        }
    }

    fn nan_and_infinity<T: Float>(isa: Isa, _: f64) {
        let (zero, one, inf) = (T::ZERO, T::ONE, T::INFINITY);
        for normalize in ALL.into_iter().filter(|n| *n != Normalize::Sigmoid) {
            assert_same_bits(&weights(isa, normalize, &[zero, T::NAN], &[true; 2]), &[T::NAN; 2]);
        }
        assert_same_bits(&weights(isa, Normalize::Hard, &[zero, inf, inf], &[true; 3]), &[zero, one, zero]);
        assert_same_bits(&weights(isa, Normalize::Sparsemax, &[zero, inf], &[true; 2]), &[T::NAN; 2]);
        assert_same_bits(
            &weights(isa, Normalize::Sigmoid, &[-inf, inf, T::NAN], &[true; 3]),
            &[zero, one, T::NAN],
        );
    }

    for_each_isa! {
        weights_agree_with_their_definitions: agrees, 3e-7, 1e-15;
        blocked_keys_are_as_if_they_were_cut_out: blocked_keys_leave_no_trace, 0.0, 0.0;
        odd_scores: nan_and_infinity, 0.0, 0.0;
    }
}
