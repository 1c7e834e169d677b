//! The online softmax of a tile: running maximum, exponentials, and sums over virtual lanes.
//!
//! A score u is in the unit of `scoring`: a u are its bits. n = rint(a u) is an integer, and so is its running maximum M:
//! p = 2^(a u - n) 2^(n - M) is rescaled exactly when M grows. What is done for each key is a function over one row; what is done for each row is done
//! for all rows of a block at once, a lane each ([`Running::update`]), since it would cost as much as the keys themselves.

use super::keys::Keys;
use super::scoring::times;
use super::{Dropout, KEY_TILE, LARGE_SCORE, Row};
use crate::philox::keep;
use crate::simd::math::{exp2_parts, pow2};
use crate::simd::{Float, Simd, VIRTUAL_LANES};

/// A number for each row of a block.
pub type PerRow<T> = [T; VIRTUAL_LANES];

/// The greatest score of a tile. NaNs are passed over here; their exponentials are NaN.
#[inline(always)]
pub fn greatest<T: Float, S: Simd<T>>(s: S, x: &[T], bits: u64, used: usize) -> T {
    let none = s.splat(T::NEG_INFINITY);
    let mut greatest = [none; VIRTUAL_LANES];
    let whole = covers(bits, used);
    for (group, x) in x.chunks_exact(VIRTUAL_LANES).take(used.div_ceil(VIRTUAL_LANES)).enumerate() {
        for (part, greatest) in greatest.iter_mut().take(VIRTUAL_LANES / S::LANES).enumerate() {
            let at = part * S::LANES;
            let mut v = s.load(&x[at..]);
            if !whole {
                v = s.select(s.mask_from_bits(bits >> (group * VIRTUAL_LANES + at)), v, none);
            }
            *greatest = s.max(v, *greatest);
        }
    }
    s.fold_max(&greatest)
}

/// Whether the virtual lanes of the first `used` keys are all allowed, so that nothing has to be left out.
#[inline(always)]
pub fn covers(bits: u64, used: usize) -> bool {
    let full = u64::MAX >> (KEY_TILE - used.next_multiple_of(VIRTUAL_LANES));
    bits & full == full
}

/// The running maximum M of the rows of a block, and by what M has just shrunk their sums.
pub struct Running<T> {
    /// M of each row.
    pub max: PerRow<T>,
    /// 2^(old M - M).
    pub factor: PerRow<T>,
}

impl<T: Float> Running<T> {
    /// Takes in the greatest scores of a tile: M = max(M, rint(factor * score)).
    #[inline(always)]
    pub fn update<S: Simd<T>>(s: S, tops: &PerRow<T>, factor: T, old: &[T]) -> Self {
        let mut new = Self { max: [T::ZERO; VIRTUAL_LANES], factor: [T::ONE; VIRTUAL_LANES] };
        let limit = s.splat(T::from_f64(LARGE_SCORE));
        let mut ordinary = 0;
        for at in (0..old.len()).step_by(S::LANES) {
            let whole = at + S::LANES <= old.len();
            let before = if whole { s.load(&old[at..]) } else { s.load_partial(&old[at..]) };
            let n = s.round(s.mul(s.load(&tops[at..]), s.splat(factor)));
            let max = s.max(n, before);
            ordinary |= s.mask_to_bits(s.le(s.abs(max), limit)) << at;
            s.store(max, &mut new.max[at..]);
            s.store(pow2(s, s.sub(before, max)), &mut new.factor[at..]);
        }
        if (ordinary | u64::MAX << old.len()) != u64::MAX {
            new.update_large(tops, factor, old);
        }
        new
    }

    /// The same where a maximum is beyond [`LARGE_SCORE`] or there is none yet, a row at a time.
    #[cold]
    #[inline(never)]
    fn update_large(&mut self, tops: &PerRow<T>, factor: T, old: &[T]) {
        for (i, &old) in old.iter().enumerate() {
            let n = times(tops[i], factor).round();
            self.max[i] = if n > old { n } else { old };
            self.factor[i] = power_of_two(old, self.max[i]);
        }
    }
}

/// x becomes p; the result is the sum over the tile.
#[inline(always)]
pub fn exponentials<T: Float, S: Simd<T>>(s: S, x: &mut [T], factor: T, bits: u64, used: usize, max: T) -> T {
    // A NaN, which no maximum is, would be large too.
    let ordinary = max >= -T::from_f64(LARGE_SCORE) && max <= T::from_f64(LARGE_SCORE);
    if !ordinary {
        return exponentials_of_large(x, factor, bits, used, max);
    }
    let zero = s.splat(T::ZERO);
    let powers = Powers::new(s, factor, max);
    let mut lanes = [zero; VIRTUAL_LANES];
    let whole = covers(bits, used);
    for (group, x) in x.chunks_exact_mut(VIRTUAL_LANES).take(used.div_ceil(VIRTUAL_LANES)).enumerate() {
        for (part, sum) in lanes.iter_mut().take(VIRTUAL_LANES / S::LANES).enumerate() {
            let at = part * S::LANES;
            let mut p = powers.of(s, s.load(&x[at..]));
            if !whole {
                p = s.select(s.mask_from_bits(bits >> (group * VIRTUAL_LANES + at)), p, zero);
            }
            s.store(p, &mut x[at..]);
            *sum = s.add(*sum, p);
        }
    }
    s.fold_add(&lanes)
}

/// 2^(a u - M) for one factor a and one M.
pub struct Powers<T: Float, S: Simd<T>> {
    factor: S::V,
    minus_factor: S::V,
    floor: S::V,
    offset: S::V,
}

impl<T: Float, S: Simd<T>> Powers<T, S> {
    /// For M, an integer of at most [`LARGE_SCORE`].
    #[inline(always)]
    pub fn new(s: S, factor: T, max: T) -> Self {
        Self {
            factor: s.splat(factor),
            minus_factor: s.splat(-factor),
            // Off by less than an eighth after multiplication: it is rounded to the very number.
            floor: s.splat((max + T::MIN_EXPONENT - T::ONE) / factor),
            offset: s.splat(T::EXPONENT_MAGIC - max),
        }
    }

    /// 2^(a u - M): +0 below the smallest normal exponent, NaN for NaN.
    ///
    /// At the floor the exponent's bits are 0, and so is the power. `max` keeps a NaN in its second place.
    #[inline(always)]
    pub fn of(&self, s: S, u: S::V) -> S::V {
        let (n, p) = exp2_parts(s, s.max(self.floor, u), self.factor, self.minus_factor);
        s.mul(p, s.shift_to_exponent(s.add(n, self.offset)))
    }
}

/// The same for rows whose maximum is beyond [`LARGE_SCORE`], and for rows in which every score so far is -inf or NaN.
/// Rare: one number at a time.
#[cold]
#[inline(never)]
fn exponentials_of_large<T: Float>(x: &mut [T], factor: T, bits: u64, used: usize, max: T) -> T {
    let mut lanes = [T::ZERO; VIRTUAL_LANES];
    for (c, x) in x[..used].iter_mut().enumerate() {
        *x = if bits >> c & 1 == 0 { T::ZERO } else { power_of_large(times(*x, factor), max) };
        lanes[c % VIRTUAL_LANES] += *x;
    }
    for half in [8, 4, 2, 1] {
        for i in 0..half {
            lanes[i] += lanes[i + half];
        }
    }
    lanes[0]
}

/// 2^(y - M) of one number.
pub fn power_of_large<T: Float>(y: T, max: T) -> T {
    if y.is_nan() || y == T::INFINITY {
        return T::NAN;
    }
    if y == T::NEG_INFINITY || max == T::NEG_INFINITY {
        return T::ZERO;
    }
    // The difference is exact where it matters: so near to each other are numbers of which p is no zero.
    let p = libm::exp2(y.to_f64() - max.to_f64());
    if p < libm::exp2(T::MIN_EXPONENT.to_f64()) { T::ZERO } else { T::from_f64(p) }
}

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
