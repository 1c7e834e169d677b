//! From products to weights and gradients, a row of a block at a time.

use super::super::keys::Keys;
use super::super::scoring::{Unit, score_row, times};
use super::super::softmax::{Powers, covers, drop_weights, power_of_large};
use super::super::{KEY_TILE, LARGE_SCORE, Row};
use super::Backward;
use super::room::Room;
use crate::simd::math::tanh;
use crate::simd::{Float, Simd, VIRTUAL_LANES};

/// What all rows of a call share.
pub struct Factors<T> {
    /// The unit of scores.
    pub unit: Unit<T>,
    /// What the gradient of a score is multiplied by.
    pub scale: T,
    /// Whether it is multiplied by the derivative of the cap, too.
    pub cap: bool,
    /// Whether scores are the products themselves.
    pub plain: bool,
}

/// A row and what [`super::Prepare`] made of it.
pub struct RowState<'a, T> {
    /// The row.
    pub row: &'a Row,
    /// Its allowed keys.
    pub bits: u64,
    /// M
    pub max: T,
    /// What 2^(a u - M) is multiplied by.
    pub inverse: T,
    /// `d_out` · out
    pub delta: T,
}

/// Row `i` of the room: q · k becomes p (with dropout), and `d_out` · v the gradient of q · k. Both are exactly 0 at blocked
/// keys.
#[inline(always)]
pub fn weights_and_gradients<T: Float, S: Simd<T>>(
    s: S,
    room: &mut Room<'_, T>,
    i: usize,
    state: &RowState<'_, T>,
    factors: &Factors<T>,
    call: &Backward<'_, T>,
    (count, used): (usize, usize),
) {
    let Room { p, ds, bias, slope, kept, .. } = room;
    let p = &mut p[i * KEY_TILE..(i + 1) * KEY_TILE];
    let ds = &mut ds[i * KEY_TILE..(i + 1) * KEY_TILE];
    let (keys, scoring, first): (&Keys<'_, T>, _, _) = (&call.keys, &call.scoring, call.first);
    let cap = scoring.softcap.filter(|_| factors.cap);
    if let Some(cap) = cap {
        let (scale, cap, one) = (s.splat(scoring.scale), s.splat(cap), s.splat(T::ONE));
        for at in (0..used).step_by(S::LANES) {
            let t = tanh(s, s.div(s.mul(s.load(&p[at..]), scale), cap));
            s.store(s.mul(s.sub(one, t), s.add(one, t)), &mut slope[at..]);
        }
    }
    if !factors.plain {
        let place = (first, count.min(used), used);
        score_row(s, &factors.unit, p, bias, state.row, keys, scoring, place);
    }
    weights(s, p, factors.unit.factor, state, used);
    if cap.is_none() && call.dropout.is_none() {
        gradients::<T, S, false>(s, p, ds, (slope, kept), state, factors.scale, used);
        return;
    }
    if cap.is_none() {
        slope.fill(T::ONE);
    }
    kept.fill(T::ONE);
    if let Some(dropout) = &call.dropout {
        drop_weights(dropout, state.row, keys, first, &mut kept[..used]);
    }
    gradients::<T, S, true>(s, p, ds, (slope, kept), state, factors.scale, used);
}

/// Scores u become p = 2^(a u - M) times the row's number.
#[inline(always)]
fn weights<T: Float, S: Simd<T>>(s: S, x: &mut [T], factor: T, state: &RowState<'_, T>, used: usize) {
    let (max, bits) = (state.max, state.bits);
    // A NaN, which is no integer, would be large too.
    if !(max >= -T::from_f64(LARGE_SCORE) && max <= T::from_f64(LARGE_SCORE)) {
        return weights_of_large(&mut x[..used.next_multiple_of(VIRTUAL_LANES)], factor, bits, max);
    }
    let (inverse, zero) = (s.splat(state.inverse), s.splat(T::ZERO));
    let powers = Powers::new(s, factor, max);
    let whole = covers(bits, used);
    for at in (0..used.next_multiple_of(VIRTUAL_LANES)).step_by(S::LANES) {
        let mut p = s.mul(powers.of(s, s.load(&x[at..])), inverse);
        if !whole {
            p = s.select(s.mask_from_bits(bits >> at), p, zero);
        }
        s.store(p, &mut x[at..]);
    }
}

/// The same for rows whose log-sum-exp is large, infinite or NaN. Rare: one number at a time. So large a log-sum-exp is itself
/// rounded by more than the weights can bear; what is certain of them is that they are at most 1.
#[cold]
#[inline(never)]
fn weights_of_large<T: Float>(x: &mut [T], factor: T, bits: u64, max: T) {
    for (c, x) in x.iter_mut().enumerate() {
        if bits >> c & 1 == 0 {
            *x = T::ZERO;
        } else if max.is_nan() {
            *x = T::NAN;
        } else {
            let p = power_of_large(times(*x, factor), max);
            *x = if p > T::ONE { T::ONE } else { p };
        }
    }
}

/// p becomes p with dropout, and dp its gradient p (dp - delta), times the derivative of the cap, times the scale.
#[inline(always)]
fn gradients<T: Float, S: Simd<T>, const FACTORS: bool>(
    s: S,
    p: &mut [T],
    ds: &mut [T],
    (slope, kept): (&[T], &[T]),
    state: &RowState<'_, T>,
    scale: T,
    used: usize,
) {
    let (delta, scale, zero) = (s.splat(state.delta), s.splat(scale), s.splat(T::ZERO));
    let whole = covers(state.bits, used);
    for at in (0..used.next_multiple_of(VIRTUAL_LANES)).step_by(S::LANES) {
        let (weight, mut dp) = (s.load(&p[at..]), s.load(&ds[at..]));
        if FACTORS {
            let kept = s.load(&kept[at..]);
            dp = s.mul(dp, kept);
            s.store(s.mul(weight, kept), &mut p[at..]);
        }
        let mut g = s.mul(weight, s.sub(dp, delta));
        if FACTORS {
            g = s.mul(g, s.load(&slope[at..]));
        }
        g = s.mul(g, scale);
        if !whole {
            g = s.select(s.mask_from_bits(state.bits >> at), g, zero);
        }
        s.store(g, &mut ds[at..]);
    }
}
