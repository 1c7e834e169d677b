//! Sums over pairs of rows: `out = sum_j a_j f(own, other_j)` over the pairs that are kept.
//!
//! | f                           | what it is for                                             |
//! |-----------------------------|------------------------------------------------------------|
//! | `other`                     | mixtures of values; gradients of products                  |
//! | `other - own`               | gradients of squared distances                             |
//! | `tanh(own + other)`         | gradient of v in `v . tanh(q + k)`                         |
//! | `v (1 - tanh^2(own + other))` | gradients of q and k there                               |
//!
//! All four are the same seen from the query and from the key, up to the sign of the second. Each column is a chain of
//! fused multiply-adds over the kept pairs, ascending, in blocks of 256 of them that start at zero and are added in order.

use crate::kernels::rows::{load_up_to, store_up_to};
use crate::simd::math::tanh;
use crate::simd::{Float, Kernel, Simd};

/// Pairs of a block of a sum.
const BLOCK: usize = 256;

/// The function of two rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pair {
    /// `other`
    Other,
    /// `other - own`
    Difference,
    /// `tanh(own + other)`
    Tanh,
    /// `v (1 - tanh^2(own + other))`
    Slope,
}

/// One row of a sum over pairs.
pub struct PairSum<'a, T> {
    /// The function.
    pub pair: Pair,
    /// Factors: that of pair j is number `j * step`.
    pub a: &'a [T],
    /// Whether a pair counts, as the factors lie.
    pub keep: &'a [bool],
    /// Distance of neighbouring pairs in `a` and `keep`.
    pub step: usize,
    /// The row on this side; not read for [`Pair::Other`].
    pub own: &'a [T],
    /// The rows on the other side, one after the other, as wide as `out`.
    pub others: &'a [T],
    /// v; read for [`Pair::Slope`] only.
    pub v: &'a [T],
    /// The sum.
    pub out: &'a mut [T],
}

impl<T: Float> Kernel<T> for PairSum<'_, T> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd<T>>(self, s: S) {
        let width = self.out.len();
        let count = self.others.len() / width.max(1);
        assert!(count == 0 || self.a.len() > (count - 1) * self.step, "pairs: a factor for each");
        assert!(self.keep.len() >= self.a.len(), "pairs: a flag for each factor");
        let (zero, one) = (s.splat(T::ZERO), s.splat(T::ONE));
        for from in (0..width).step_by(S::LANES) {
            let n = S::LANES.min(width - from);
            let own = if self.pair == Pair::Other { zero } else { load_up_to(s, self.own, from, n) };
            let v = if self.pair == Pair::Slope { load_up_to(s, self.v, from, n) } else { zero };
            let (mut total, mut acc, mut taken) = (zero, zero, 0);
            for j in 0..count {
                if !self.keep[j * self.step] {
                    continue;
                }
                let other = load_up_to(s, self.others, j * width + from, n);
                let f = match self.pair {
                    Pair::Other => other,
                    Pair::Difference => s.sub(other, own),
                    Pair::Tanh => tanh(s, s.add(own, other)),
                    Pair::Slope => {
                        let t = tanh(s, s.add(own, other));
                        s.mul(v, s.fma(s.neg(t), t, one))
                    }
                };
                acc = s.fma(s.splat(self.a[j * self.step]), f, acc);
                taken += 1;
                if taken == BLOCK {
                    (total, acc, taken) = (s.add(total, acc), zero, 0);
                }
            }
            store_up_to(s, s.add(total, acc), self.out, from, n);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::testing::{assert_same_bits, for_each_isa, lengths, normals, rms_relative};
    use crate::simd::Isa;

    const PAIRS: [Pair; 4] = [Pair::Other, Pair::Difference, Pair::Tanh, Pair::Slope];

    /// Operands of a sum of `count` pairs of rows of `width` numbers; every third pair is blocked.
    struct Case<T> {
        a: Vec<T>,
        keep: Vec<bool>,
        own: Vec<T>,
        others: Vec<T>,
        v: Vec<T>,
    }

    impl<T: Float> Case<T> {
        fn new(width: usize, count: usize) -> Self {
            Self {
                a: normals(count, 1, 1.0),
                keep: (0..count).map(|j| j % 3 != 1).collect(),
                own: normals(width, 2, 1.0),
                others: normals(width * count, 3, 1.0),
                v: normals(width, 4, 1.0),
            }
        }

        fn sum(&self, isa: Isa, pair: Pair) -> Vec<T> {
            let mut out = vec![T::NAN; self.own.len()];
            let Case { a, keep, own, others, v } = self;
            T::dispatch(isa, PairSum { pair, a, keep, step: 1, own, others, v, out: &mut out });
            out
        }

        fn naive(&self, pair: Pair) -> Vec<f64> {
            let wide = |x: &[T], i: usize| x[i].to_f64();
            let column = |c: usize| {
                let kept = (0..self.a.len()).filter(|&j| self.keep[j]);
                kept.map(|j| {
                    let (own, other) = (wide(&self.own, c), wide(&self.others, j * self.own.len() + c));
                    let t = libm::tanh(own + other);
                    let f = match pair {
                        Pair::Other => other,
                        Pair::Difference => other - own,
                        Pair::Tanh => t,
                        Pair::Slope => wide(&self.v, c) * (1.0 - t * t),
                    };
                    wide(&self.a, j) * f
                })
                .sum()
            };
            (0..self.own.len()).map(column).collect()
        }
    }

    fn agrees<T: Float>(isa: Isa, bound: f64) {
        for width in lengths().into_iter().filter(|&n| n > 0 && n < 200) {
            for count in [1, 7, 700] {
                let case = Case::<T>::new(width, count);
                for pair in PAIRS {
                    let out = case.sum(isa, pair);
                    // A few numbers may nearly cancel: the bound is for what is summed.
                    let error = rms_relative(&out, &case.naive(pair));
                    assert!(error <= 8.0 * bound, "{pair:?}, {width} wide, {count} pairs: {error}");
                    assert_same_bits(&out, &case.sum(Isa::Scalar, pair));
                }
            }
        }
    }

    fn blocked_pairs_leave_no_trace<T: Float>(isa: Isa, _: f64) {
        let (width, count) = (19, 1000);
        let mut case = Case::<T>::new(width, count);
        for j in (0..count).filter(|j| j % 3 == 1) {
            case.a[j] = T::NAN;
            case.others[j * width..(j + 1) * width].fill(T::NAN);
        }
        let kept: Vec<usize> = (0..count).filter(|j| j % 3 != 1).collect();
        let cut = Case {
            a: kept.iter().map(|&j| case.a[j]).collect(),
            keep: vec![true; kept.len()],
            own: case.own.clone(),
            others: kept.iter().flat_map(|&j| case.others[j * width..(j + 1) * width].to_vec()).collect(),
            v: case.v.clone(),
        };
        for pair in PAIRS {
            let out = case.sum(isa, pair);
            assert!(out.iter().all(|x| x.is_finite()));
            assert_same_bits(&out, &cut.sum(isa, pair));
        }
    }

    for_each_isa! {
        sums_over_pairs_agree_with_the_formula: agrees, 1e-6, 1e-15;
        blocked_pairs_are_as_if_they_were_cut_out: blocked_pairs_leave_no_trace, 0.0, 0.0;
    }
}
