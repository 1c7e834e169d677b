//! The online softmax of a tile: running maximum, exponentials, and sums over virtual lanes.
//!
//! n = rint(x log2 e) is an integer, and so is its running maximum M: p = (e^x 2^-n) 2^(n - M) is rescaled exactly when M
//! grows. Each step is a function over one row, so that the caller can take all rows of a block through a step before the
//! next.

use super::keys::Keys;
use super::{Dropout, KEY_TILE, LARGE_SCORE, Row};
use crate::philox::keep;
use crate::simd::math::{exp_parts, mul_pow2};
use crate::simd::{Float, Simd, VIRTUAL_LANES};

/// The running maximum of n = rint(x log2 e) after a tile. Rounding is monotone: the greatest x has the greatest n.
/// NaNs are passed over here; their exponentials are NaN.
#[inline(always)]
pub fn tile_max<T: Float, S: Simd<T>>(s: S, x: &[T], scale: T, bits: u64, used: usize, old: T) -> T {
    let (scale, none) = (s.splat(scale), s.splat(T::NEG_INFINITY));
    let mut greatest = [none; VIRTUAL_LANES];
    let whole = covers(bits, used);
    for (group, x) in x.chunks_exact(VIRTUAL_LANES).take(used.div_ceil(VIRTUAL_LANES)).enumerate() {
        for (part, greatest) in greatest.iter_mut().take(VIRTUAL_LANES / S::LANES).enumerate() {
            let at = part * S::LANES;
            let mut v = s.mul(s.load(&x[at..]), scale);
            if !whole {
                v = s.select(s.mask_from_bits(bits >> (group * VIRTUAL_LANES + at)), v, none);
            }
            *greatest = s.max(v, *greatest);
        }
    }
    let n = rounded_log2(s.fold_max(&greatest));
    if n > old { n } else { old }
}

/// Whether the virtual lanes of the first `used` keys are all allowed, so that nothing has to be left out.
#[inline(always)]
fn covers(bits: u64, used: usize) -> bool {
    let full = u64::MAX >> (KEY_TILE - used.next_multiple_of(VIRTUAL_LANES));
    bits & full == full
}

/// rint(x log2 e), kept finite where x is.
#[inline(always)]
fn rounded_log2<T: Float>(x: T) -> T {
    let n = (x * T::LOG2_E).round();
    if n > T::MAX {
        T::MAX
    } else if n < -T::MAX && x != T::NEG_INFINITY {
        -T::MAX
    } else {
        n
    }
}

/// x becomes p; `sums` becomes the sum of each virtual lane over the tile.
#[inline(always)]
pub fn exponentials<T: Float, S: Simd<T>>(
    s: S,
    x: &mut [T],
    scale: T,
    bits: u64,
    used: usize,
    max: T,
    sums: &mut [T; VIRTUAL_LANES],
) {
    if max == T::NEG_INFINITY || max.to_f64().abs() > LARGE_SCORE {
        return exponentials_of_large(x, scale, bits, used, max, sums);
    }
    let (scale, max, zero) = (s.splat(scale), s.splat(max), s.splat(T::ZERO));
    let mut lanes = [zero; VIRTUAL_LANES];
    let whole = covers(bits, used);
    for (group, x) in x.chunks_exact_mut(VIRTUAL_LANES).take(used.div_ceil(VIRTUAL_LANES)).enumerate() {
        for (part, sum) in lanes.iter_mut().take(VIRTUAL_LANES / S::LANES).enumerate() {
            let at = part * S::LANES;
            let mut p = exponential(s, s.mul(s.load(&x[at..]), scale), max);
            if !whole {
                p = s.select(s.mask_from_bits(bits >> (group * VIRTUAL_LANES + at)), p, zero);
            }
            s.store(p, &mut x[at..]);
            *sum = s.add(*sum, p);
        }
    }
    s.spill(&lanes, sums);
}

/// The sum of the virtual lanes.
#[inline(always)]
pub fn fold<T: Float, S: Simd<T>>(s: S, sums: &[T; VIRTUAL_LANES]) -> T {
    let mut lanes = [s.splat(T::ZERO); VIRTUAL_LANES];
    for (part, lane) in lanes.iter_mut().take(VIRTUAL_LANES / S::LANES).enumerate() {
        *lane = s.load(&sums[part * S::LANES..]);
    }
    s.fold_add(&lanes)
}

/// e^x 2^-max: +0 below the smallest normal number, NaN for NaN and +inf.
#[inline(always)]
pub fn exponential<T: Float, S: Simd<T>>(s: S, x: S::V, max: S::V) -> S::V {
    let (n, p) = exp_parts(s, x);
    mul_pow2(s, p, s.sub(n, max))
}

/// The same for rows whose maximum is beyond [`LARGE_SCORE`], where x has no bits for the fraction of x log2 e, and
/// for rows in which every score so far is -inf or NaN. Rare: one number at a time.
#[cold]
#[inline(never)]
fn exponentials_of_large<T: Float>(
    x: &mut [T],
    scale: T,
    bits: u64,
    used: usize,
    max: T,
    sums: &mut [T; VIRTUAL_LANES],
) {
    for (c, x) in x[..used].iter_mut().enumerate() {
        *x = if bits >> c & 1 == 0 { T::ZERO } else { exponential_of_large(*x * scale, max) };
        sums[c % VIRTUAL_LANES] += *x;
    }
}

/// One number of [`exponentials_of_large`].
pub fn exponential_of_large<T: Float>(x: T, max: T) -> T {
    if x.is_nan() || x == T::INFINITY {
        return T::NAN;
    }
    if x == T::NEG_INFINITY || max == T::NEG_INFINITY {
        return T::ZERO;
    }
    let p = if max.to_f64().abs() <= 32.0 / T::EPSILON.to_f64() {
        // e^(x - max ln 2) with ln 2 in two parts: max ln 2 has more bits than a number holds.
        let (x, max) = (x.to_f64(), max.to_f64());
        libm::exp(libm::fma(-max, std::f64::consts::LN_2, x) - max * LN_2_REST)
    } else {
        // Neighbouring scores are at least 16 apart: only whole powers of two are left.
        libm::exp2((rounded_log2(x) - max).to_f64())
    };
    if p < libm::exp2(T::MIN_EXPONENT.to_f64()) { T::ZERO } else { T::from_f64(p) }
}

/// ln 2 less the f64 nearest to it.
const LN_2_REST: f64 = 2.319_046_813_846_299_6e-17;

/// Two to the power of `old - new`, by which running sums shrink; 1 while there is no maximum yet.
#[inline(always)]
pub fn power_of_two<T: Float>(old: T, new: T) -> T {
    if old == new {
        return T::ONE;
    }
    let k = old - new;
    if k < T::MIN_EXPONENT {
        T::ZERO
    } else {
        T::from_f64(f64::from_bits(((k.to_f64() as i64 + 1023) as u64) << 52))
    }
}

/// Drops weights by a counter: element (head, query, key) of this batch element, whatever thread computes it.
#[cold]
#[inline(never)]
pub fn drop_weights<T: Float>(d: &Dropout, row: &Row, keys: &Keys<'_, T>, first: usize, p: &mut [T]) {
    let grow = T::from_f64(if d.p < 1.0 { 1.0 / (1.0 - d.p) } else { 0.0 });
    let start = d.base + ((row.head * d.shape.0 + row.query) * d.shape.1) as u64;
    for (c, p) in p.iter_mut().enumerate() {
        let element = start + keys.place((first + c).min(keys.count - 1)) as u64;
        *p = if keep(d.key, element, d.p) { *p * grow } else { T::ZERO };
    }
}
