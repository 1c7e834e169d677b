//! Scores of a query against keys that are no plain product.
//!
//! ```text
//! distance  s_j = -|q - k_j|^2              the exponent of a Gaussian kernel (Nadaraya 1964, Watson 1964)
//! additive  s_j = v . tanh(q + k_j)         q and k projected (Bahdanau, Cho, Bengio 2015)
//! ```
//!
//! Sums go over the 16 virtual lanes by fused multiply-adds. The squared distance is summed from differences: taken as
//! |q|^2 - 2 q . k + |k|^2 it would lose all digits where q and k are near each other, which is where it matters.

use crate::kernels::rows::{for_each_vector, load_up_to, zero_lanes};
use crate::simd::math::tanh;
use crate::simd::{Float, Kernel, Simd, VIRTUAL_LANES};

/// The score of a query and a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Score {
    /// `-|q - k|^2`
    Distance,
    /// `v . tanh(q + k)`
    Additive,
}

/// The scores of one query against all keys.
pub struct ScoreRow<'a, T> {
    /// Which.
    pub score: Score,
    /// The query.
    pub q: &'a [T],
    /// Keys, one after the other, as wide as the query.
    pub k: &'a [T],
    /// v; read for [`Score::Additive`] only.
    pub v: &'a [T],
    /// A score for each key.
    pub out: &'a mut [T],
}

impl<T: Float> Kernel<T> for ScoreRow<'_, T> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd<T>>(self, s: S) {
        let width = self.q.len();
        assert_eq!(self.k.len(), width * self.out.len(), "scores: a key for each");
        for (j, out) in self.out.iter_mut().enumerate() {
            let mut sums = zero_lanes(s);
            // Absent lanes load as 0 and add 0.
            for_each_vector!(S, width, |lane, from, n| {
                let q = load_up_to(s, self.q, from, n);
                let k = load_up_to(s, self.k, j * width + from, n);
                sums[lane] = match self.score {
                    Score::Distance => {
                        let d = s.sub(q, k);
                        s.fma(d, d, sums[lane])
                    }
                    Score::Additive => {
                        s.fma(load_up_to(s, self.v, from, n), tanh(s, s.add(q, k)), sums[lane])
                    }
                };
            });
            let sum = s.fold_add(&sums[..VIRTUAL_LANES / S::LANES]);
            *out = if self.score == Score::Distance { -sum } else { sum };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::naive;
    use crate::kernels::testing::{assert_same_bits, for_each_isa, lengths, normals};
    use crate::simd::Isa;

    fn agrees<T: Float>(isa: Isa, bound: f64) {
        for width in lengths().into_iter().filter(|&n| n > 0) {
            let (q, v) = (normals::<T>(width, 1, 1.0), normals::<T>(width, 2, 1.0));
            let k = normals::<T>(5 * width, 3, 1.0);
            for score in [Score::Distance, Score::Additive] {
                let run = |isa| {
                    let mut out = vec![T::NAN; 5];
                    T::dispatch(isa, ScoreRow { score, q: &q, k: &k, v: &v, out: &mut out });
                    out
                };
                let out = run(isa);
                for (j, out) in out.iter().enumerate() {
                    let terms = (0..width).map(|c| {
                        let (q, k, v) = (q[c].to_f64(), k[j * width + c].to_f64(), v[c].to_f64());
                        match score {
                            Score::Distance => -(q - k) * (q - k),
                            Score::Additive => v * libm::tanh(q + k),
                        }
                    });
                    let terms: Vec<f64> = terms.collect();
                    let size = naive::sum(terms.iter().map(|x| x.abs()));
                    let error = (out.to_f64() - naive::sum(terms.iter().copied())).abs();
                    assert!(error <= bound * size, "{score:?}, {width} wide: {error}");
                }
                assert_same_bits(&out, &run(Isa::Scalar));
            }
        }
    }

    fn near_points<T: Float>(isa: Isa, bound: f64) {
        let at = |x: f64| [T::from_f64(1000.0 + x)];
        let (q, k) = (at(0.0), at(0.125));
        let mut out = [T::NAN];
        T::dispatch(isa, ScoreRow { score: Score::Distance, q: &q, k: &k, v: &[], out: &mut out });
        assert!((out[0].to_f64() + 0.015_625).abs() <= bound);
    }

    for_each_isa! {
        scores_agree_with_the_formula: agrees, 3e-7, 1e-15;
        distances_of_near_points_keep_their_digits: near_points, 0.0, 0.0;
    }
}
