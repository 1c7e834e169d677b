//! Elementary functions on vectors, written once for every instruction set, with the same bits on each.
//!
//! Only operations that are exact or correctly rounded are used (fused multiply-adds, sums, quotients, compare
//! and select), in one written order; where a vector form does not pay, the `libm` crate computes lane by
//! lane. The platform's library is never called. Each function states its largest error in units in the last
//! place (ulp), which the tests hold it to.
//!
//! **exp** rests on `e^x = 2^n * e^r` with `n = round(x log2 e)` and `r = x - n ln 2`, |r| <= (ln 2)/2.
//! `ln 2` is split in two numbers, so that `r` is exact but for its last rounding (Cody and Waite), and `e^r` is
//! a polynomial. Softmax wants the two factors apart ([`exp_parts`]): it scales by powers of two only. So does attention,
//! which has its scores times log2 e at no cost and takes [`exp2_parts`].

use super::{Float, Simd};

mod bounded;

pub use bounded::{erf, normal_cdf, sigmoid, tanh};

/// Constants and polynomial coefficients of a float type, and the functions whose form depends on the type;
/// implemented for f32 and f64 only.
pub trait Coefficients: Sized + 'static {
    /// log2 e.
    const LOG2_E: Self;
    /// ln 2, rounded.
    const LN2_HI: Self;
    /// ln 2 - `LN2_HI`, rounded.
    const LN2_LO: Self;
    /// `e^r = 1 + r + r^2 q(r)`: the coefficients of q, the highest power first.
    const EXP: &'static [Self];
    /// `2^-r = 1 + r q(r)`: the coefficients of q, the highest power first.
    const EXP2_NEG: &'static [Self];
    /// 1.5 * 2^mantissa + bias: adding an integer k to it leaves the bits of 2^k's exponent at the lower end.
    const EXPONENT_MAGIC: Self;
    /// The exponent of the smallest normal number.
    const MIN_EXPONENT: Self;
    /// The exponent of the largest number.
    const MAX_EXPONENT: Self;
    /// The smallest normal number.
    const MIN_POSITIVE: Self;
    /// Below this `exp` is 0 and above the second it is infinite, with room to spare.
    const EXP_RANGE: (Self, Self);

    /// See [`tanh`].
    fn tanh<S: Simd<Self>>(s: S, x: S::V) -> S::V
    where
        Self: Float;
    /// See [`erf`].
    fn erf<S: Simd<Self>>(s: S, x: S::V) -> S::V
    where
        Self: Float;
    /// See [`normal_cdf`].
    fn normal_cdf<S: Simd<Self>>(s: S, x: S::V) -> S::V
    where
        Self: Float;
    /// Natural logarithm of one number.
    #[must_use]
    fn log(self) -> Self;
    /// Sine of one number.
    #[must_use]
    fn sin(self) -> Self;
    /// Cosine of one number.
    #[must_use]
    fn cos(self) -> Self;
}

// The polynomials were fitted with the Remez exchange in 60 digits (mpmath) to the least relative error,
// 1 and r kept exact, then rounded. f32: degree 6 over |r| <= 0.39 (n may be off by a sixteenth when it is as
// large as 2^20), largest relative error 9e-9. f64: degree 11 over |r| <= 0.3467, 1e-17. EXP2_NEG, over |r| <= 1/2: f32 2.1e-8,
// f64 2e-17.
impl Coefficients for f32 {
    const LOG2_E: f32 = std::f32::consts::LOG2_E;
    const LN2_HI: f32 = std::f32::consts::LN_2;
    const LN2_LO: f32 = -1.904_654_2e-9;
    const EXP: &'static [f32] = &[0.001_379_524_4, 0.008_378_097, 0.041_669_417, 0.166_664_33, 0.499_999_88];
    const EXP2_NEG: &'static [f32] =
        &[0.000_155_946_76, -0.001_340_664_3, 0.009_617_693, -0.055_503_104, 0.240_226_52, -0.693_147_24];
    const EXPONENT_MAGIC: f32 = 12_582_912.0 + 127.0;
    const MIN_EXPONENT: f32 = -126.0;
    const MAX_EXPONENT: f32 = 127.0;
    const MIN_POSITIVE: f32 = f32::MIN_POSITIVE;
    const EXP_RANGE: (f32, f32) = (-90.0, 90.0);

    #[inline(always)]
    fn tanh<S: Simd<f32>>(s: S, x: S::V) -> S::V {
        bounded::tanh_f32(s, x)
    }
    #[inline(always)]
    fn erf<S: Simd<f32>>(s: S, x: S::V) -> S::V {
        bounded::erf_f32(s, x)
    }
    #[inline(always)]
    fn normal_cdf<S: Simd<f32>>(s: S, x: S::V) -> S::V {
        bounded::normal_cdf_f32(s, x)
    }
    fn log(self) -> f32 {
        libm::log(f64::from(self)) as f32
    }
    fn sin(self) -> f32 {
        libm::sin(f64::from(self)) as f32
    }
    fn cos(self) -> f32 {
        libm::cos(f64::from(self)) as f32
    }
}

impl Coefficients for f64 {
    const LOG2_E: f64 = std::f64::consts::LOG2_E;
    const LN2_HI: f64 = std::f64::consts::LN_2;
    const LN2_LO: f64 = 2.319_046_813_846_299_6e-17;
    const EXP: &'static [f64] = &[
        2.500_002_833_251_036e-8,
        2.763_028_628_876_055e-7,
        2.755_758_667_322_343e-6,
        2.480_149_300_129_810_2e-5,
        0.000_198_412_695_060_329_4,
        0.001_388_888_894_371_485_5,
        0.008_333_333_333_494_805,
        0.041_666_666_666_529_88,
        0.166_666_666_666_664_13,
        0.500_000_000_000_001_1,
    ];
    const EXP2_NEG: &'static [f64] = &[
        -4.078_071_786_092_870_5e-10,
        7.072_570_394_540_799e-9,
        -1.018_064_766_057_306_9e-7,
        1.321_544_267_545_285_4e-6,
        -1.525_272_738_518_977_5e-5,
        0.000_154_035_304_415_717_8,
        -0.001_333_355_815_343_997,
        0.009_618_129_107_607_003,
        -0.055_504_108_664_790_39,
        0.240_226_506_959_100_97,
        -core::f64::consts::LN_2,
    ];
    const EXPONENT_MAGIC: f64 = 6_755_399_441_055_744.0 + 1023.0;
    const MIN_EXPONENT: f64 = -1022.0;
    const MAX_EXPONENT: f64 = 1023.0;
    const MIN_POSITIVE: f64 = f64::MIN_POSITIVE;
    const EXP_RANGE: (f64, f64) = (-712.0, 712.0);

    #[inline(always)]
    fn tanh<S: Simd<f64>>(s: S, x: S::V) -> S::V {
        s.map(x, libm::tanh)
    }
    #[inline(always)]
    fn erf<S: Simd<f64>>(s: S, x: S::V) -> S::V {
        s.map(x, libm::erf)
    }
    #[inline(always)]
    fn normal_cdf<S: Simd<f64>>(s: S, x: S::V) -> S::V {
        s.map(x, |x| 0.5 * libm::erfc(-std::f64::consts::FRAC_1_SQRT_2 * x))
    }
    fn log(self) -> f64 {
        libm::log(self)
    }
    fn sin(self) -> f64 {
        libm::sin(self)
    }
    fn cos(self) -> f64 {
        libm::cos(self)
    }
}

/// A polynomial by Horner's rule, the highest power first.
#[inline(always)]
fn horner<T: Float, S: Simd<T>>(s: S, x: S::V, coefficients: &'static [T]) -> S::V {
    let mut sum = s.splat(coefficients[0]);
    for &c in &coefficients[1..] {
        sum = s.fma(sum, x, s.splat(c));
    }
    sum
}

/// `(n, p)` with `e^x = p * 2^n`, n = round(x log2 e) and p about `[0.70, 1.42]`.
///
/// p is within 1e-7 (f32) or 2.3e-16 (f64) of its value, relatively, for |n| <= 2^20. A NaN gives two NaNs. An
/// infinite x gives n = x and p NaN: [`mul_pow2`] makes 0 of -inf and NaN of +inf. A finite x beyond 2^20 gives no
/// useful p (n itself is rounded there): who may meet such numbers subtracts something from them first.
#[inline(always)]
pub fn exp_parts<T: Float, S: Simd<T>>(s: S, x: S::V) -> (S::V, S::V) {
    let n = s.round(s.mul(x, s.splat(T::LOG2_E)));
    let r = s.fma(n, s.splat(-T::LN2_HI), x);
    let r = s.fma(n, s.splat(-T::LN2_LO), r);
    let q = horner(s, r, T::EXP);
    let one = s.splat(T::ONE);
    (n, s.fma(s.fma(q, r, one), r, one))
}

/// `2^k` for an integer-valued k up to 127 (1023); +0 below the smallest normal exponent, -126 (-1022), also for
/// k = -inf. NaN gives NaN. A larger k has no meaning.
#[inline(always)]
pub fn pow2<T: Float, S: Simd<T>>(s: S, k: S::V) -> S::V {
    // Clamped to -127 (-1023) the exponent's bits are 0, and so is the number. `max` keeps a NaN in its second
    // place, whose bits the shift would lose: k - k brings it back.
    let k = s.max(s.splat(T::MIN_EXPONENT - T::ONE), k);
    let power = s.shift_to_exponent(s.add(k, s.splat(T::EXPONENT_MAGIC)));
    s.add(power, s.sub(k, k))
}

/// `p * 2^k` as [`pow2`] has it, for p from [`exp_parts`]: exactly +0 where k is below the smallest normal
/// exponent, whatever p is (x = -inf leaves a NaN there), and NaN where p is NaN otherwise; at that exponent itself
/// a p below 1 makes a subnormal product. A k that is NaN needs a
/// p that is NaN; `n - max n` of one row always has.
#[inline(always)]
pub fn mul_pow2<T: Float, S: Simd<T>>(s: S, p: S::V, k: S::V) -> S::V {
    let power = s.shift_to_exponent(s.add(k, s.splat(T::EXPONENT_MAGIC)));
    s.select(s.lt(k, s.splat(T::MIN_EXPONENT)), s.splat(T::ZERO), s.mul(p, power))
}

/// `(n, p)` with `2^(a x) = p * 2^n`, n = round(a x) and p about `[0.70, 1.42]`, for |a x| <= 2^20. p is within 1.2e-7
/// (f32) or 2.3e-16 (f64) of its value, relatively: the product is not rounded on its way to the fraction. A NaN gives two
/// NaNs, an infinity no useful p.
#[inline(always)]
pub fn exp2_parts<T: Float, S: Simd<T>>(s: S, x: S::V, a: S::V, minus_a: S::V) -> (S::V, S::V) {
    let n = s.round(s.mul(x, a));
    // n - a x, the fraction with its sign turned: a multiply-add gives that one without a negation.
    let r = s.fma(x, minus_a, n);
    (n, exp2_of_fraction(s, r))
}

/// `2^-r` for |r| <= 1/2, within 1.2e-7 (f32) or 2.3e-16 (f64) of its value, relatively.
#[inline(always)]
fn exp2_of_fraction<T: Float, S: Simd<T>>(s: S, r: S::V) -> S::V {
    s.fma(horner(s, r, T::EXP2_NEG), r, s.splat(T::ONE))
}

/// `e^x` within 1 ulp: +0 where the result would be subnormal, +inf on overflow, NaN for NaN.
#[inline(always)]
pub fn exp<T: Float, S: Simd<T>>(s: S, x: S::V) -> S::V {
    let (low, high) = T::EXP_RANGE;
    // Clamped so that a NaN in the second place stays.
    let x = s.min(s.splat(high), s.max(s.splat(low), x));
    let (n, p) = exp_parts(s, x);
    // Two steps: 2^128 is no f32, but p * 2^128 may be.
    let first = s.min(s.splat(T::MAX_EXPONENT), n);
    let y = s.mul(s.mul(p, pow2(s, first)), pow2(s, s.sub(n, first)));
    s.select(s.lt(y, s.splat(T::MIN_POSITIVE)), s.splat(T::ZERO), y)
}

/// Natural logarithm, within 0.51 ulp (f32) or 1 ulp (f64): lane by lane through `libm` in f64.
#[inline(always)]
pub fn log<T: Float, S: Simd<T>>(s: S, x: S::V) -> S::V {
    s.map(x, T::log)
}

/// Sine, within 0.51 ulp (f32) or 1 ulp (f64): lane by lane through `libm` in f64.
#[inline(always)]
pub fn sin<T: Float, S: Simd<T>>(s: S, x: S::V) -> S::V {
    s.map(x, T::sin)
}

/// Cosine, within 0.51 ulp (f32) or 1 ulp (f64): lane by lane through `libm` in f64.
#[inline(always)]
pub fn cos<T: Float, S: Simd<T>>(s: S, x: S::V) -> S::V {
    s.map(x, T::cos)
}

#[cfg(test)]
mod reference;
#[cfg(test)]
mod tests;
