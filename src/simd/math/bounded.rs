//! Functions that rise from one bound to another: sigmoid, tanh, erf and the normal distribution.
//!
//! All of them are `1 - e^-g(|x|)` in some form: the exponential has a negative argument, so that nothing overflows
//! and the tails keep their relative accuracy, and the sign is put back at the end. Near 0, where the form cancels,
//! tanh and erf are odd polynomials. In f64 tanh, erf and the distribution go through `libm` lane by lane.
//!
//! The polynomials were fitted with the Remez exchange in 40 to 60 digits (mpmath) and rounded to f32.

use super::super::{Float, Simd};
use super::{Coefficients, exp_parts, exp2_of_fraction, horner, mul_pow2};

/// `e^x` for x <= 0 (and NaN): [`super::exp`] without the care for large results.
#[inline(always)]
fn exp_negative<T: Float, S: Simd<T>>(s: S, x: S::V) -> S::V {
    let (n, p) = exp_parts(s, x);
    mul_pow2(s, p, n)
}

/// `1 / (1 + e^-x)` within 2.5 ulp; 0 and 1 at the ends, a result below the smallest normal number may be 0.
#[inline(always)]
pub fn sigmoid<T: Float, S: Simd<T>>(s: S, x: S::V) -> S::V {
    let one = s.splat(T::ONE);
    let e = exp_negative(s, s.neg(s.abs(x)));
    // 1 / (1 + e) or e / (1 + e), e = e^-|x|: accurate on both sides.
    s.div(s.select(s.lt(x, s.splat(T::ZERO)), e, one), s.add(one, e))
}

/// Hyperbolic tangent within 2 ulp (f32) or `libm`'s 1 ulp (f64): ±1 at the ends, the sign of zero kept.
#[inline(always)]
pub fn tanh<T: Float, S: Simd<T>>(s: S, x: S::V) -> S::V {
    T::tanh(s, x)
}

/// Error function within 2 ulp (f32) or `libm`'s 1 ulp (f64): ±1 at the ends, the sign of zero kept.
#[inline(always)]
pub fn erf<T: Float, S: Simd<T>>(s: S, x: S::V) -> S::V {
    T::erf(s, x)
}

/// Standard normal distribution function `(1 + erf(x / sqrt 2)) / 2`, the factor of GELU.
///
/// In f32 the error is at most 1.3e-7 of the result for x >= 0 and 6e-8 for x < 0, where it falls with the result:
/// 4e-7 of it for x >= -1, 2e-4 for x >= -4, 3e-3 while it is above 1e-30. f64 goes through `libm`'s erfc.
#[inline(always)]
pub fn normal_cdf<T: Float, S: Simd<T>>(s: S, x: S::V) -> S::V {
    T::normal_cdf(s, x)
}

/// `tanh x = x + x^3 q(x^2)` for |x| < 0.625: the coefficients of q, relative error 5e-9 up to 0.63.
const TANH: &[f32] = &[-0.005_666_987, 0.020_606_184, -0.053_730_007, 0.133_313_31, -0.333_332_78];

#[inline(always)]
pub(super) fn tanh_f32<S: Simd<f32>>(s: S, x: S::V) -> S::V {
    let one = s.splat(1.0);
    let a = s.abs(x);
    let square = s.mul(a, a);
    let near = s.fma(s.mul(a, square), horner(s, square, TANH), a);
    // 1 - 2 e / (1 + e) with e = e^-2a; at infinity e = 0.
    let e = exp_negative(s, s.mul(s.splat(-2.0), a));
    let far = s.sub(one, s.div(s.add(e, e), s.add(one, e)));
    s.copysign(s.select(s.lt(a, s.splat(0.625)), near, far), x)
}

/// `erf x = x + x q(x^2)` for |x| < 0.9: the coefficients of q, relative error 3e-10. The x apart keeps one rounding away.
const ERF_NEAR: &[f32] = &[
    8.513_108e-05,
    -0.000_817_564_1,
    0.005_203_859_4,
    -0.026_860_509,
    0.112_837_15,
    -0.376_126_35,
    0.128_379_17,
];

/// `erfc a = e^(-a q(a))` for a in [0.9, 4]: the coefficients of q, error of erf 9e-10.
const ERF_FAR: &[f32] = &[
    1.043_401_7e-05,
    -0.000_314_866_45,
    0.003_610_373,
    -0.023_694_625,
    0.106_159_11,
    0.635_198,
    1.128_637_1,
];

#[inline(always)]
pub(super) fn erf_f32<S: Simd<f32>>(s: S, x: S::V) -> S::V {
    let a = s.abs(x);
    let near = s.fma(a, horner(s, s.mul(a, a), ERF_NEAR), a);
    // Beyond 4 the result rounds to 1; the clamp keeps the polynomial where it was fitted, and a NaN a NaN.
    let far = s.min(s.splat(4.0), a);
    let far = exp_negative(s, s.neg(s.mul(far, horner(s, far, ERF_FAR))));
    let far = s.sub(s.splat(1.0), far);
    s.copysign(s.select(s.lt(a, s.splat(0.9)), near, far), x)
}

/// `2 Phi(-a) = 2^(-a q(a))` for a in [0, 13]: the coefficients of q at even and at odd powers of a, the highest first. The
/// error of `2^-aq` was weighted by `y / (2 - y) + 0.001 / (1 + a q ln 2)`, y the value: 3.1e-8 where it meets 1, relaxed in
/// the far tail.
const NORMAL_EVEN: &[f32] =
    &[-3.084_583_1e-10, -4.657_787e-07, -4.934_978e-05, 0.000_163_918, 0.052_534_904, 1.151_106_1];
const NORMAL_ODD: &[f32] = &[1.850_786e-08, 6.342_547_3e-06, 0.000_191_406_1, -0.007_117_599, 0.459_197_28];

#[inline(always)]
pub(super) fn normal_cdf_f32<S: Simd<f32>>(s: S, x: S::V) -> S::V {
    // At 13 the exponent of the tail is -127, whose bits are 0: so is the tail from there on.
    let a = s.min(s.splat(13.0), s.abs(x));
    // Two short chains instead of a long one: the multiply-adds of a chain wait for each other.
    let square = s.mul(a, a);
    let q = s.fma(a, horner(s, square, NORMAL_ODD), horner(s, square, NORMAL_EVEN));
    // Phi(-a) = 2^(-aq - 1) = p 2^(-n - 1)
    let bits = s.mul(a, q);
    let n = s.round(bits);
    let p = exp2_of_fraction(s, s.sub(bits, n));
    let power = s.shift_to_exponent(s.sub(s.splat(f32::EXPONENT_MAGIC - 1.0), n));
    let tail = s.mul(p, power);
    s.select(s.lt(x, s.splat(0.0)), tail, s.sub(s.splat(1.0), tail))
}
