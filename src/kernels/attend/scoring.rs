//! From products to scores, in the unit of products.
//!
//! Attention needs e^x = 2^(a u), where u is the product q · k and a = scale * log2 e. What is added to a score, or bounds
//! it, is brought to the same unit, u = x / scale: then one factor serves every call, and a bias of zero is no bias, to the
//! bit. Where the scale is zero, negative or next to nothing, the unit is the bit: u = x log2 e, a = 1.

use super::keys::Keys;
use super::{Mask, Row, Scoring};
use crate::simd::math::tanh;
use crate::simd::{Float, Simd};

#[inline(always)]
fn add_to<T: Float, S: Simd<T>>(s: S, x: &mut [T], y: &[T], used: usize) {
    for at in (0..used).step_by(S::LANES) {
        s.store(s.add(s.load(&x[at..]), s.load(&y[at..])), &mut x[at..]);
    }
}

/// The unit of a call's scores.
#[derive(Clone, Copy, Debug)]
pub struct Unit<T> {
    /// a: what turns a score in this unit into bits; positive.
    pub factor: T,
    /// What turns a score into this unit.
    of_score: T,
    /// Whether products are in this unit as they are.
    products: bool,
}

impl<T: Float> Unit<T> {
    /// The unit that `scale` asks for.
    #[inline(always)]
    pub fn new(scale: T) -> Self {
        // Less than that, and 1 / scale or M / a might overflow.
        let products = scale >= T::from_f64(SMALL_SCALE) && scale <= T::from_f64(1.0 / SMALL_SCALE);
        let exact = scale.to_f64();
        if products {
            let factor = T::from_f64(exact * std::f64::consts::LOG2_E);
            return Self { factor, of_score: T::from_f64(1.0 / exact), products };
        }
        Self { factor: T::ONE, of_score: T::LOG2_E, products }
    }
}

const SMALL_SCALE: f64 = 1e-30;

/// Whether a score is the product itself, but for its unit.
#[inline(always)]
pub fn is_plain<T: Float>(scoring: &Scoring<'_, T>, unit: &Unit<T>) -> bool {
    unit.products
        && scoring.softcap.is_none()
        && scoring.alibi.is_none()
        && !matches!(scoring.mask, Mask::Float(..))
}

/// x * y, finite where x is.
#[inline(always)]
pub fn times<T: Float>(x: T, y: T) -> T {
    let product = x * y;
    if x.is_finite() && !product.is_finite() {
        return if product > T::ZERO { T::MAX } else { -T::MAX };
    }
    product
}

/// x = cap * tanh(scale * x / cap), or scale * x without a cap.
#[inline(always)]
pub fn scale_and_cap<T: Float, S: Simd<T>>(s: S, x: &mut [T], scoring: &Scoring<'_, T>, used: usize) {
    let scale = s.splat(scoring.scale);
    for at in (0..used).step_by(S::LANES) {
        let mut v = s.mul(s.load(&x[at..]), scale);
        if let Some(cap) = scoring.softcap {
            let cap = s.splat(cap);
            v = s.mul(cap, tanh(s, s.div(v, cap)));
        }
        s.store(v, &mut x[at..]);
    }
}

/// The same in `unit`, finite where x is.
#[inline(always)]
fn scale_and_cap_in<T: Float, S: Simd<T>>(
    s: S,
    unit: &Unit<T>,
    x: &mut [T],
    scoring: &Scoring<'_, T>,
    used: usize,
) {
    let scale = s.splat(scoring.scale);
    if let Some(cap) = scoring.softcap {
        let (height, cap) = (s.splat(times(cap, unit.of_score)), s.splat(cap));
        for at in (0..used).step_by(S::LANES) {
            let v = s.div(s.mul(s.load(&x[at..]), scale), cap);
            s.store(s.mul(height, tanh(s, v)), &mut x[at..]);
        }
        return;
    }
    if unit.products {
        return;
    }
    let (bits, most, least) = (s.splat(unit.of_score), s.splat(T::MAX), s.splat(-T::MAX));
    for at in (0..used).step_by(S::LANES) {
        let v = s.mul(s.load(&x[at..]), scale);
        let y = s.mul(v, bits);
        let finite = s.le(s.abs(v), most);
        s.store(s.select(finite, s.min(most, s.max(least, y)), y), &mut x[at..]);
    }
}

/// Turns the products of a row into scores in `unit`, where they are more than that.
///
/// The row's first key is `first`, `count` of its numbers are keys and `used` are computed; `bias` is room for them.
#[inline(always)]
#[allow(clippy::too_many_arguments, reason = "the caller's buffers and the row's place")]
pub fn score_row<T: Float, S: Simd<T>>(
    s: S,
    unit: &Unit<T>,
    x: &mut [T],
    bias: &mut [T],
    row: &Row,
    keys: &Keys<'_, T>,
    scoring: &Scoring<'_, T>,
    (first, count, used): (usize, usize, usize),
) {
    if is_plain(scoring, unit) {
        return;
    }
    scale_and_cap_in(s, unit, x, scoring, used);
    if let Some(slopes) = scoring.alibi {
        for (c, b) in bias.iter_mut().take(count).enumerate() {
            let distance = row.rank.abs_diff(first + c);
            *b = times(-(slopes[row.head] * T::from_f64(distance as f64)), unit.of_score);
        }
        add_to(s, x, bias, used);
    }
    if let Mask::Float(data, [h, l, k]) = scoring.mask {
        let start = row.head * h + row.query * l;
        for (c, b) in bias.iter_mut().take(count).enumerate() {
            *b = times(data[start + keys.place(first + c) * k], unit.of_score);
        }
        add_to(s, x, bias, used);
    }
}

/// Adds the linear bias and the float mask to scores as somebody who looks at them wants them.
#[inline(always)]
pub fn add_biases<T: Float>(
    x: &mut [T],
    row: &Row,
    keys: &Keys<'_, T>,
    scoring: &Scoring<'_, T>,
    first: usize,
) {
    for (c, x) in x.iter_mut().enumerate() {
        if let Some(slopes) = scoring.alibi {
            *x += -(slopes[row.head] * T::from_f64(row.rank.abs_diff(first + c) as f64));
        }
        if let Mask::Float(data, [h, l, k]) = scoring.mask {
            *x += data[row.head * h + row.query * l + keys.place(first + c) * k];
        }
    }
}
