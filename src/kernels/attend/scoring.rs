//! From products to scores: scale, soft cap, linear bias, mask.

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

/// Whether a score is no more than the scaled product.
#[inline(always)]
pub fn is_plain<T>(scoring: &Scoring<'_, T>) -> bool {
    scoring.softcap.is_none() && scoring.alibi.is_none() && !matches!(scoring.mask, Mask::Float(..))
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

/// Turns the products of a row into scores where that is more than a factor: cap, linear bias, float mask.
///
/// The row's first key is `first`, `count` of its numbers are keys and `used` are computed; `bias` is room for them.
#[inline(always)]
pub fn score_row<T: Float, S: Simd<T>>(
    s: S,
    x: &mut [T],
    bias: &mut [T],
    row: &Row,
    keys: &Keys<'_, T>,
    scoring: &Scoring<'_, T>,
    (first, count, used): (usize, usize, usize),
) {
    if is_plain(scoring) {
        return;
    }
    scale_and_cap(s, x, scoring, used);
    if let Some(slopes) = scoring.alibi {
        for (c, b) in bias.iter_mut().take(count).enumerate() {
            let distance = row.index.abs_diff(first + c);
            *b = -(slopes[row.head] * T::from_f64(distance as f64));
        }
        add_to(s, x, bias, used);
    }
    if let Mask::Float(data, [h, l, k]) = scoring.mask {
        let start = row.head * h + row.query * l;
        for (c, b) in bias.iter_mut().take(count).enumerate() {
            *b = data[start + keys.place(first + c) * k];
        }
        add_to(s, x, bias, used);
    }
}
