//! Layer norm and RMS norm of rows.
//!
//! ```text
//! layer: y = (x - mean) / sqrt(var + eps) * weight + bias,  var = mean of (x - mean)^2
//! rms:   y = x / sqrt(mean of x^2 + eps) * weight
//! ```
//!
//! Means are sums over the 16 virtual lanes in the row's own type, squares by fused multiply-adds; the variance takes
//! a pass of its own, since the difference of two means of squares loses everything far from zero. There the mean's sum
//! loses digits too: the mean of what remains is added to it, in one more pass over a row that the cache holds. The
//! quotient is a true division, and the weight and bias one fused multiply-add.

use super::rows::{Lanes, for_each_vector, keep_first, load_up_to, store_up_to, zero_lanes};
use crate::account::at;
use crate::simd::{Float, Kernel, Simd, VIRTUAL_LANES};

/// Layer norm of each row of `width` numbers.
pub struct LayerNorm<'a, T> {
    /// Rows, one after the other.
    pub x: &'a [T],
    /// Output, as long as the input.
    pub out: &'a mut [T],
    /// Numbers in a row; more than 0.
    pub width: usize,
    /// Multiplies the normalised numbers; `width` of them.
    pub weight: Option<&'a [T]>,
    /// Added last; `width` of them.
    pub bias: Option<&'a [T]>,
    /// Added to the variance.
    pub eps: T,
}

impl<T: Float> Kernel<T> for LayerNorm<'_, T> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd<T>>(self, s: S) {
        at!(Norm);
        check(self.x, self.out, self.width, [self.weight, self.bias]);
        for (x, out) in self.x.chunks_exact(self.width).zip(self.out.chunks_exact_mut(self.width)) {
            let (mean, deviation) = layer_moments(s, x, self.eps);
            scale_row(s, x, out, mean, deviation, self.weight, self.bias);
        }
    }
}

/// RMS norm of each row of `width` numbers.
pub struct RmsNorm<'a, T> {
    /// Rows, one after the other.
    pub x: &'a [T],
    /// Output, as long as the input.
    pub out: &'a mut [T],
    /// Numbers in a row; more than 0.
    pub width: usize,
    /// Multiplies the normalised numbers; `width` of them.
    pub weight: Option<&'a [T]>,
    /// Added to the mean of squares.
    pub eps: T,
}

impl<T: Float> Kernel<T> for RmsNorm<'_, T> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd<T>>(self, s: S) {
        at!(Norm);
        check(self.x, self.out, self.width, [self.weight, None]);
        for (x, out) in self.x.chunks_exact(self.width).zip(self.out.chunks_exact_mut(self.width)) {
            let root = rms_root(s, x, self.eps);
            scale_row(s, x, out, T::ZERO, root, self.weight, None);
        }
    }
}

/// Mean and standard deviation of a row, as layer norm has them.
#[inline(always)]
pub(super) fn layer_moments<T: Float, S: Simd<T>>(s: S, x: &[T], eps: T) -> (T, T) {
    let n = T::from_f64(x.len() as f64);
    let first = row_sum(s, x, T::ZERO) / n;
    let mean = first + row_sum(s, x, first) / n;
    let var = row_squares(s, x, mean) / n;
    (mean, (var + eps).sqrt())
}

/// Root mean square of a row, as RMS norm has it.
#[inline(always)]
pub(super) fn rms_root<T: Float, S: Simd<T>>(s: S, x: &[T], eps: T) -> T {
    let n = T::from_f64(x.len() as f64);
    (row_squares(s, x, T::ZERO) / n + eps).sqrt()
}

#[inline(always)]
fn check<T>(x: &[T], out: &[T], width: usize, parameters: [Option<&[T]>; 2]) {
    assert_eq!(x.len(), out.len(), "norm: input and output");
    assert!(parameters.into_iter().flatten().all(|p| p.len() == width), "norm: weight and bias");
}

/// Sum of x - mean.
#[inline(always)]
fn row_sum<T: Float, S: Simd<T>>(s: S, x: &[T], mean: T) -> T {
    let mut sums: Lanes<T, S> = zero_lanes(s);
    let mean = s.splat(mean);
    for_each_vector!(S, x.len(), |lane, from, n| {
        sums[lane] = s.add(sums[lane], keep_first(s, s.sub(load_up_to(s, x, from, n), mean), n));
    });
    s.fold_add(&sums[..VIRTUAL_LANES / S::LANES])
}

/// Sum of (x - mean)^2.
#[inline(always)]
fn row_squares<T: Float, S: Simd<T>>(s: S, x: &[T], mean: T) -> T {
    let mut sums: Lanes<T, S> = zero_lanes(s);
    let mean = s.splat(mean);
    for_each_vector!(S, x.len(), |lane, from, n| {
        let d = keep_first(s, s.sub(load_up_to(s, x, from, n), mean), n);
        sums[lane] = s.fma(d, d, sums[lane]);
    });
    s.fold_add(&sums[..VIRTUAL_LANES / S::LANES])
}

/// (x - mean) / deviation * weight + bias.
#[inline(always)]
fn scale_row<T: Float, S: Simd<T>>(
    s: S,
    x: &[T],
    out: &mut [T],
    mean: T,
    deviation: T,
    weight: Option<&[T]>,
    bias: Option<&[T]>,
) {
    let (mean, deviation) = (s.splat(mean), s.splat(deviation));
    for_each_vector!(S, x.len(), |_lane, from, n| {
        let y = s.div(s.sub(load_up_to(s, x, from, n), mean), deviation);
        let y = match (weight, bias) {
            (Some(w), Some(b)) => s.fma(y, load_up_to(s, w, from, n), load_up_to(s, b, from, n)),
            (Some(w), None) => s.mul(y, load_up_to(s, w, from, n)),
            (None, Some(b)) => s.add(y, load_up_to(s, b, from, n)),
            (None, None) => y,
        };
        store_up_to(s, y, out, from, n);
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::naive;
    use crate::kernels::testing::{assert_same_bits, for_each_isa, lengths, normals, rms_relative};
    use crate::simd::Isa;

    fn layer<T: Float>(isa: Isa, x: &[T], weight: Option<&[T]>, bias: Option<&[T]>, eps: f64) -> Vec<T> {
        let mut out = vec![T::NAN; x.len()];
        let width = x.len().max(1);
        let (weight, bias) = (weight.filter(|w| w.len() == width), bias.filter(|b| b.len() == width));
        T::dispatch(isa, LayerNorm { x, out: &mut out, width, weight, bias, eps: T::from_f64(eps) });
        out
    }

    fn rms<T: Float>(isa: Isa, x: &[T], weight: Option<&[T]>, eps: f64) -> Vec<T> {
        let mut out = vec![T::NAN; x.len()];
        let width = x.len().max(1);
        let weight = weight.filter(|w| w.len() == width);
        T::dispatch(isa, RmsNorm { x, out: &mut out, width, weight, eps: T::from_f64(eps) });
        out
    }

    fn wide<T: Float>(x: &[T]) -> Vec<f64> {
        x.iter().map(|x| x.to_f64()).collect()
    }

    fn agree<T: Float>(isa: Isa, bound: f64) {
        for n in lengths() {
            let (x, w, b) = (normals::<T>(n, 1, 2.0), normals::<T>(n, 2, 1.0), normals::<T>(n, 3, 1.0));
            let (xd, wd, bd) = (wide(&x), wide(&w), wide(&b));
            for eps in [1e-5, 1e-12, 0.1] {
                // The eps that the kernel sees is rounded to its type.
                let e = T::from_f64(eps).to_f64();
                for (w, b, exact) in [
                    (None, None, naive::layer_norm(&xd, None, None, e)),
                    (Some(&w[..]), None, naive::layer_norm(&xd, Some(&wd), None, e)),
                    (None, Some(&b[..]), naive::layer_norm(&xd, None, Some(&bd), e)),
                    (Some(&w[..]), Some(&b[..]), naive::layer_norm(&xd, Some(&wd), Some(&bd), e)),
                ] {
                    let out = layer(isa, &x, w, b, eps);
                    let error = rms_relative(&out, &exact);
                    // Two numbers alone may nearly cancel; three or more are as good as the bound.
                    assert!(n == 2 || error <= bound, "layer, {n} numbers, eps {eps}: {error}");
                    assert_same_bits(&out, &layer(Isa::Scalar, &x, w, b, eps));
                }
                for (w, exact) in [
                    (None, naive::rms_norm(&xd, None, e)),
                    (Some(&w[..]), naive::rms_norm(&xd, Some(&wd), e)),
                ] {
                    let out = rms(isa, &x, w, eps);
                    let error = rms_relative(&out, &exact);
                    assert!(error <= bound, "rms, {n} numbers, eps {eps}: {error}");
                    assert_same_bits(&out, &rms(Isa::Scalar, &x, w, eps));
                }
            }
        }
    }

    fn far_from_zero<T: Float>(isa: Isa, bound: f64) {
        let x: Vec<T> = normals::<T>(1000, 5, 1.0).iter().map(|&x| x + T::from_f64(1000.0)).collect();
        // The mean itself is rounded, by up to 3e-5; in f64 so is the mean of the reference.
        let error =
            rms_relative(&layer(isa, &x, None, None, 1e-5), &naive::layer_norm(&wide(&x), None, None, 1e-5));
        assert!(error <= bound, "{error}");
        let flat = vec![T::from_f64(7.0); 100];
        assert_same_bits(&layer(isa, &flat, None, None, 1e-5), &[T::ZERO; 100]);
    }

    fn poison_stays_in_its_row<T: Float>(isa: Isa, _: f64) {
        for poison in [T::NAN, T::INFINITY, T::NEG_INFINITY] {
            let mut x = normals::<T>(60, 9, 1.0);
            x[25] = poison;
            let mut out = vec![T::ZERO; 60];
            let (weight, bias, eps) = (None, None, T::from_f64(1e-5));
            T::dispatch(isa, LayerNorm { x: &x, out: &mut out, width: 20, weight, bias, eps });
            assert!(out[20..40].iter().all(|y| y.is_nan()));
            assert_same_bits(&out[..20], &layer(isa, &x[..20], None, None, 1e-5));
            assert_same_bits(&out[40..], &layer(isa, &x[40..], None, None, 1e-5));
        }
    }

    for_each_isa! {
        norms_agree_with_the_formula: agree, 2.5e-7, 5e-16;
        layer_norm_survives_far_from_zero: far_from_zero, 5e-5, 1.2e-13;
        a_nan_stays_in_its_row: poison_stays_in_its_row, 0.0, 0.0;
    }
}
