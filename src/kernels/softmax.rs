//! softmax of rows: `y_i = e^(x_i) / sum_j e^(x_j)`.
//!
//! In steps: take each `e^x` apart into `p * 2^n`, n = rint(x log2 e); let M be the greatest n; then `y = p * 2^(n - M)`,
//! their sum over the 16 virtual lanes, and one true division each. M is an integer, so that scaling is exact and the
//! result is the one that attention computes tile by tile with a running M.
//!
//! `exp_parts` wants |x| <= 2^20. Numbers far below the maximum do not matter; a row whose *maximum* lies beyond has it
//! subtracted first, which loses nothing there: neighbouring floats are already e^0.1 apart or more (f32).
//!
//! By IEEE, and as in torch: a row with NaN or +inf is all NaN, and so is a row of -inf alone.

use super::rows::{for_each_vector, keep_first, load_up_to, store_up_to, zero_lanes};
use crate::simd::math::{exp_parts, mul_pow2};
use crate::simd::{Float, Kernel, Simd, VIRTUAL_LANES};

/// Beyond this a row's maximum is subtracted before the exponential is taken apart.
const LARGE: f64 = 1_048_576.0;

/// Softmax of each row of `width` numbers.
pub struct Softmax<'a, T> {
    /// Rows, one after the other.
    pub x: &'a [T],
    /// Output, as long as the input.
    pub out: &'a mut [T],
    /// Numbers in a row; more than 0.
    pub width: usize,
}

impl<T: Float> Kernel<T> for Softmax<'_, T> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd<T>>(self, s: S) {
        assert_eq!(self.x.len(), self.out.len(), "softmax: input and output");
        for (x, out) in self.x.chunks_exact(self.width).zip(self.out.chunks_exact_mut(self.width)) {
            softmax_row(s, x, out);
        }
    }
}

/// What a row's softmax knows of the row: `log(sum e^(x_j)) = max + log(sum / largest)`, and the logarithm is not negative.
pub(super) struct Exponentials<T> {
    /// The greatest number of the row.
    pub max: T,
    /// Its exponential, as it stands in the sum.
    pub largest: T,
    /// All exponentials, on the same scale.
    pub sum: T,
}

#[inline(always)]
pub(super) fn softmax_row<T: Float, S: Simd<T>>(s: S, x: &[T], out: &mut [T]) -> Exponentials<T> {
    let max = row_max(s, x);
    let large = max.is_finite() && max.to_f64().abs() > LARGE;
    let shift = s.splat(if large { max } else { T::ZERO });
    // n grows with x, so the n of the maximum is the maximum of the n.
    let (top, largest) = exp_parts(s, s.sub(s.splat(max), shift));

    let mut sums = zero_lanes(s);
    for_each_vector!(S, x.len(), |lane, from, n| {
        let (exponent, p) = exp_parts(s, s.sub(load_up_to(s, x, from, n), shift));
        let y = mul_pow2(s, p, s.sub(exponent, top));
        sums[lane] = s.add(sums[lane], keep_first(s, y, n));
        store_up_to(s, y, out, from, n);
    });
    let total = s.fold_add(&sums[..VIRTUAL_LANES / S::LANES]);
    let sum = s.splat(total);
    for_each_vector!(S, x.len(), |_lane, from, n| {
        let y = load_up_to(s, out, from, n);
        store_up_to(s, s.div(y, sum), out, from, n);
    });
    let mut first = [T::ZERO; VIRTUAL_LANES];
    s.store(largest, &mut first);
    Exponentials { max, largest: first[0], sum: total }
}

/// Gradient of a softmax: `dx_i = p_i (d_i - sum_j d_j p_j)`, p its result; the sum over the 16 virtual lanes.
pub struct SoftmaxBackward<'a, T> {
    /// Rows of the result, one after the other.
    pub p: &'a [T],
    /// The gradients of the result, and then of the input.
    pub d: &'a mut [T],
    /// Numbers in a row; more than 0.
    pub width: usize,
}

impl<T: Float> Kernel<T> for SoftmaxBackward<'_, T> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd<T>>(self, s: S) {
        assert_eq!(self.p.len(), self.d.len(), "softmax: result and gradient");
        for (p, d) in self.p.chunks_exact(self.width).zip(self.d.chunks_exact_mut(self.width)) {
            let mut sums = zero_lanes(s);
            for_each_vector!(S, p.len(), |lane, from, n| {
                sums[lane] = s.fma(load_up_to(s, d, from, n), load_up_to(s, p, from, n), sums[lane]);
            });
            let along = s.splat(s.fold_add(&sums[..VIRTUAL_LANES / S::LANES]));
            for_each_vector!(S, p.len(), |_lane, from, n| {
                let dx = s.mul(load_up_to(s, p, from, n), s.sub(load_up_to(s, d, from, n), along));
                store_up_to(s, dx, d, from, n);
            });
        }
    }
}

/// The greatest number; NaNs are passed over.
#[inline(always)]
fn row_max<T: Float, S: Simd<T>>(s: S, x: &[T]) -> T {
    let none = s.splat(T::NEG_INFINITY);
    let mut best = [none; VIRTUAL_LANES];
    for_each_vector!(S, x.len(), |lane, from, n| {
        // Absent lanes are filled with -inf.
        let v = load_up_to(s, x, from, n);
        let v = if n < S::LANES { s.select(s.mask_from_bits((1 << n) - 1), v, none) } else { v };
        best[lane] = s.max(v, best[lane]);
    });
    s.fold_max(&best[..VIRTUAL_LANES / S::LANES])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::naive;
    use crate::kernels::testing::{assert_same_bits, for_each_isa, lengths, normals, rms_relative};
    use crate::simd::Isa;

    fn softmax<T: Float>(isa: Isa, x: &[T]) -> Vec<T> {
        let mut out = vec![T::NAN; x.len()];
        T::dispatch(isa, Softmax { x, out: &mut out, width: x.len().max(1) });
        out
    }

    fn agrees<T: Float>(isa: Isa, bound: f64) {
        for n in lengths() {
            for (scale, offset) in [(1.0, 0.0), (20.0, -300.0), (0.0, 5.0), (1000.0, 1e6)] {
                let x: Vec<T> = normals::<T>(n, 3, scale).iter().map(|&x| x + T::from_f64(offset)).collect();
                let exact = naive::softmax(&x.iter().map(|x| x.to_f64()).collect::<Vec<_>>());
                let out = softmax(isa, &x);
                let error = rms_relative(&out, &exact);
                // Equal numbers round the same way in many steps of the sum, which does not average out.
                let bound = if scale == 0.0 { 6.0 * bound } else { bound };
                assert!(error <= bound, "{n} numbers times {scale} plus {offset}: {error}");
                assert_same_bits(&out, &softmax(Isa::Scalar, &x));
            }
        }
    }

    fn meets_the_ends<T: Float>(isa: Isa, _: f64) {
        let t = T::from_f64;
        let (zero, half, one) = (t(0.0), t(0.5), T::ONE);
        let (inf, low, big) = (T::INFINITY, T::NEG_INFINITY, T::MAX);
        for (x, expected) in [
            ([low, zero, low], [zero, one, zero]),
            ([low; 3], [T::NAN; 3]),
            ([inf, zero, low], [T::NAN; 3]),
            ([T::NAN, zero, inf], [T::NAN; 3]),
            ([T::NAN, low, low], [T::NAN; 3]),
            ([big, -big, big], [half, zero, half]),
            ([-big, -big, low], [half, half, zero]),
            ([-big, zero, t(-1e30)], [zero, one, zero]),
            ([t(-1e9), t(-1e9), t(-1e9 - 128.0)], [half, half, t(0.5) * t(2.572_209_372_642_415e-56)]),
            ([t(2e6), t(3e6), t(2e6)], [zero, one, zero]),
            ([t(1e6), t(1e6), t(-1e7)], [half, half, zero]),
        ] {
            let out = softmax(isa, &x);
            for (got, expected) in out.iter().zip(expected) {
                let close = (got.to_f64() - expected.to_f64()).abs() <= 1e-13 * expected.to_f64();
                assert!(close || (got.is_nan() && expected.is_nan()), "{x:?}: {out:?}");
            }
        }
    }

    fn rows_do_not_know_each_other<T: Float>(isa: Isa, _: f64) {
        let x: Vec<T> = normals(5 * 37, 1, 4.0);
        let mut all = vec![T::ZERO; x.len()];
        T::dispatch(isa, Softmax { x: &x, out: &mut all, width: 37 });
        for (x, y) in x.chunks(37).zip(all.chunks(37)) {
            assert_same_bits(y, &softmax(isa, x));
        }
    }

    fn gradients_agree<T: Float>(isa: Isa, bound: f64) {
        for width in lengths().into_iter().filter(|&n| n > 1) {
            let p: Vec<T> = (0..3).flat_map(|seed| softmax(isa, &normals::<T>(width, seed, 2.0))).collect();
            let d = normals::<T>(p.len(), 9, 1.0);
            let back = |isa| {
                let mut out = d.clone();
                T::dispatch(isa, SoftmaxBackward { p: &p, d: &mut out, width });
                out
            };
            let wide = |x: &[T]| -> Vec<f64> { x.iter().map(|x| x.to_f64()).collect() };
            let out = back(isa);
            for ((p, d), out) in wide(&p).chunks(width).zip(wide(&d).chunks(width)).zip(out.chunks(width)) {
                let exact = naive::softmax_backward(p, d);
                // Relative to what is subtracted, which may nearly cancel.
                let along: f64 = p.iter().zip(d).map(|(p, d)| (p * d).abs()).sum();
                for (i, (out, exact)) in out.iter().zip(exact).enumerate() {
                    let error = (out.to_f64() - exact).abs();
                    assert!(error <= bound * p[i] * (d[i].abs() + along), "{width} numbers: {out}, {exact}");
                }
            }
            assert_same_bits(&back(isa), &back(Isa::Scalar));
        }
    }

    for_each_isa! {
        softmax_gradients_agree_with_the_formula: gradients_agree, 4e-7, 1e-15;
        softmax_agrees_with_the_formula: agrees, 1.5e-7, 4e-16;
        softmax_meets_the_ends: meets_the_ends, 0.0, 0.0;
        rows_are_alone: rows_do_not_know_each_other, 0.0, 0.0;
    }
}
