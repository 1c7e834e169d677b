//! One tile of keys: packed once, then attended by blocks of rows.

use super::{Dropout, KEY_TILE, LARGE_SCORE, Mask, Row, Scoring, padded};
use crate::kernels::gemm::{K_BLOCK, block, for_tile};
use crate::kernels::pack::pack_panel;
use crate::philox::keep;

use crate::simd::math::{exp_parts, mul_pow2, tanh};
use crate::simd::{Float, Simd, VIRTUAL_LANES};

/// Keys and values of one key/value head, as rows of larger arrays.
#[derive(Clone, Copy, Debug)]
pub struct Keys<'a, T> {
    /// Row j of K starts at `j * k_stride`.
    pub k: &'a [T],
    /// Distance between rows of K.
    pub k_stride: usize,
    /// Row j of V starts at `j * v_stride`.
    pub v: &'a [T],
    /// Distance between rows of V.
    pub v_stride: usize,
    /// Head width of values.
    pub ev: usize,
    /// The rows of K and V that count, ascending; `0..count` if absent.
    pub rows: Option<&'a [u32]>,
    /// The places of the keys within their sequence, ascending; `0..count` if absent.
    pub places: Option<&'a [u32]>,
    /// How many keys there are.
    pub count: usize,
    /// Keys that are blocked without having been removed.
    pub allowed: Option<&'a [bool]>,
}

impl<T> Keys<'_, T> {
    /// The row of K and V that holds key `j`.
    #[inline(always)]
    pub fn row(&self, j: usize) -> usize {
        self.rows.map_or(j, |rows| rows[j] as usize)
    }

    /// The place of key `j` within its sequence.
    #[inline(always)]
    pub fn place(&self, j: usize) -> usize {
        self.places.map_or(j, |places| places[j] as usize)
    }
}

/// The keys of a tile that a row may attend to, as bits.
#[inline(always)]
pub fn row_bits<T: Float>(
    row: &Row,
    keys: &Keys<'_, T>,
    mask: &Mask<'_, T>,
    first: usize,
    count: usize,
) -> u64 {
    let low = row.first.saturating_sub(first).min(count);
    let high = row.end.saturating_sub(first).min(count);
    if low >= high {
        return 0;
    }
    let mut bits = (u64::MAX >> (KEY_TILE - (high - low))) << low;
    if let Some(allowed) = keys.allowed {
        for c in low..high {
            bits &= !(u64::from(!allowed[first + c]) << c);
        }
    }
    match *mask {
        Mask::None => {}
        Mask::Bool(data, [h, l, k]) => {
            let start = row.head * h + row.query * l;
            for c in low..high {
                bits &= !(u64::from(!data[start + keys.place(first + c) * k]) << c);
            }
        }
        Mask::Float(data, [h, l, k]) => {
            let start = row.head * h + row.query * l;
            for c in low..high {
                let blocked = data[start + keys.place(first + c) * k] == T::NEG_INFINITY;
                bits &= !(u64::from(blocked) << c);
            }
        }
    }
    bits
}

/// A packed tile and the scores of the block of rows at work.
pub struct Tile<'a, T> {
    e: usize,
    first: usize,
    count: usize,
    /// Panels of `ATTEND_NV` vectors of keys, each `[E][width]`.
    k: &'a mut [T],
    gathered: &'a mut [T],
    /// [64][Ev padded]
    v: &'a mut [T],
    /// Whether the values are read where they are, not from `v`.
    v_in_place: bool,
    /// Whether all values of the tile are finite, once somebody asked: then a weight of zero leaves no trace of its value.
    v_finite: Option<bool>,
    scores: &'a mut [T],
    bias: &'a mut [T],
}

impl<'a, T: Float> Tile<'a, T> {
    /// Cuts the scratch.
    pub fn new(scratch: &'a mut [T], e: usize, ev: usize) -> Self {
        let e_padded = e.div_ceil(16) * 16;
        let (k, rest) = scratch.split_at_mut(KEY_TILE * e_padded);
        let (v, rest) = rest.split_at_mut(KEY_TILE * padded(ev));
        let (scores, rest) = rest.split_at_mut(8 * KEY_TILE);
        let (bias, rest) = rest.split_at_mut(KEY_TILE);
        let gathered = &mut rest[7 * KEY_TILE..];
        Self { e, first: 0, count: 0, k, gathered, v, v_in_place: false, v_finite: None, scores, bias }
    }

    /// Packs the keys and the values of a tile.
    #[inline(always)]
    pub fn load<S: Simd<T>>(&mut self, s: S, keys: &Keys<'_, T>, first: usize, count: usize) {
        self.load_keys(s, keys, first, count);
        self.v_finite = None;
        // Whole vectors that follow one another need no copy: a single query would spend its time on it.
        self.v_in_place = keys.rows.is_none() && keys.ev.is_multiple_of(S::LANES);
        if !self.v_in_place {
            let ld = padded(keys.ev);
            for (c, to) in self.v.chunks_exact_mut(ld).take(count).enumerate() {
                copy_row(s, &keys.v[keys.row(first + c) * keys.v_stride..][..keys.ev], to);
            }
        }
    }

    /// The values of the tile and the distance of their rows.
    #[inline(always)]
    fn values<'b>(&'b self, keys: &Keys<'b, T>) -> (&'b [T], usize) {
        if self.v_in_place {
            (&keys.v[self.first * keys.v_stride..], keys.v_stride)
        } else {
            (self.v, padded(keys.ev))
        }
    }

    /// Whether all values of the tile are finite.
    #[inline(always)]
    fn is_finite<S: Simd<T>>(&mut self, s: S, keys: &Keys<'_, T>) -> bool {
        if let Some(finite) = self.v_finite {
            return finite;
        }
        let (v, ld) = self.values(keys);
        let finite = (0..self.count).all(|c| row_is_finite(s, &v[c * ld..][..keys.ev]));
        self.v_finite = Some(finite);
        finite
    }

    /// Packs the keys of a tile.
    #[inline(always)]
    pub fn load_keys<S: Simd<T>>(&mut self, s: S, keys: &Keys<'_, T>, first: usize, count: usize) {
        (self.first, self.count) = (first, count);
        let e = self.e;
        let (rows, stride) = if keys.rows.is_some() {
            for (c, to) in self.gathered.chunks_exact_mut(e).take(count).enumerate() {
                to.copy_from_slice(&keys.k[keys.row(first + c) * keys.k_stride..][..e]);
            }
            (&*self.gathered, e)
        } else {
            (&keys.k[first * keys.k_stride..], keys.k_stride)
        };
        let width = S::ATTEND_NV * S::LANES;
        for (p, panel) in self.k.chunks_exact_mut(width * e).take(count.div_ceil(width)).enumerate() {
            let columns = width.min(count - p * width);
            pack_panel(s, &rows[p * width * stride..], stride, columns, e, panel, width);
        }
    }

    /// Scores, softmax and P·V of a block of rows.
    #[inline(always)]
    #[allow(clippy::too_many_arguments, reason = "slices of the caller's buffers, cut for this block")]
    pub fn attend<S: Simd<T>>(
        &mut self,
        s: S,
        q: &[T],
        keys: &Keys<'_, T>,
        rows: &[Row],
        scoring: &Scoring<'_, T>,
        dropout: Option<&Dropout>,
        acc: &mut [T],
        row_max: &mut [T],
        row_sum: &mut [T],
    ) {
        let mut bits = [0u64; 8];
        let mut any = 0;
        let mut every = u64::MAX;
        for (bits, row) in bits.iter_mut().zip(rows) {
            *bits = row_bits(row, keys, &scoring.mask, self.first, self.count);
            any |= *bits;
            every &= *bits;
        }
        if any == 0 {
            return;
        }
        // Keys beyond the last allowed one add exact zeros: they are left out.
        let used = KEY_TILE - any.leading_zeros() as usize;
        self.products(s, q, rows.len(), used);
        // Three loops instead of one: each step of a row waits for the one before (maximum, exponentials, sum), and rows
        // that do the same step side by side fill the waits.
        let scale = if is_plain(scoring) { scoring.scale } else { T::ONE };
        let mut factor = [T::ONE; 8];
        let mut new_max = [T::ZERO; 8];
        for (i, row) in rows.iter().enumerate() {
            if bits[i] != 0 {
                self.score_row(s, i, row, keys, scoring, used);
            }
            new_max[i] = tile_max(s, self.row(i), scale, bits[i], used, row_max[i]);
        }
        let mut sums = [[T::ZERO; VIRTUAL_LANES]; 8];
        for i in 0..rows.len() {
            exponentials(s, self.row(i), scale, bits[i], used, new_max[i], &mut sums[i]);
        }
        for i in 0..rows.len() {
            factor[i] = power_of_two(row_max[i], new_max[i]);
            row_sum[i] = row_sum[i] * factor[i] + fold(s, &sums[i]);
            row_max[i] = new_max[i];
        }
        if let Some(dropout) = dropout {
            for (i, row) in rows.iter().enumerate() {
                let first = self.first;
                drop_weights(dropout, row, keys, first, &mut self.row(i)[..used]);
            }
        }
        let whole = every == u64::MAX >> (KEY_TILE - used);
        if whole || self.is_finite(s, keys) {
            self.weigh(s, keys, rows.len(), used, &factor, acc);
        } else {
            self.weigh_selected(s, keys, &bits[..rows.len()], used, &factor, acc);
        }
    }

    /// Products q · k of a block of rows with the first `used` keys, unscaled.
    #[inline(always)]
    pub fn products<S: Simd<T>>(&mut self, s: S, q: &[T], rows: usize, used: usize) {
        let (e, width) = (self.e, S::ATTEND_NV * S::LANES);
        for p in 0..used.div_ceil(width) {
            let panel = &self.k[p * width * e..(p + 1) * width * e];
            let out = &mut self.scores[p * width..];
            for_tile!(S, T, rows, S::ATTEND_MR, S::ATTEND_NV, product_tile(s, q, e, panel, out));
        }
    }

    /// Turns the products of a row into scores where that is more than a factor: cap and bias.
    #[inline(always)]
    pub fn score_row<S: Simd<T>>(
        &mut self,
        s: S,
        i: usize,
        row: &Row,
        keys: &Keys<'_, T>,
        scoring: &Scoring<'_, T>,
        used: usize,
    ) {
        if is_plain(scoring) {
            return;
        }
        let x = &mut self.scores[i * KEY_TILE..(i + 1) * KEY_TILE];
        scale_and_cap(s, x, scoring, used);
        let count = self.count.min(used);
        if let Some(slopes) = scoring.alibi {
            for (c, b) in self.bias.iter_mut().take(count).enumerate() {
                let distance = row.index.abs_diff(self.first + c);
                *b = -(slopes[row.head] * T::from_f64(distance as f64));
            }
            add_to(s, x, self.bias, used);
        }
        if let Mask::Float(data, [h, l, k]) = scoring.mask {
            let start = row.head * h + row.query * l;
            for (c, b) in self.bias.iter_mut().take(count).enumerate() {
                *b = data[start + keys.place(self.first + c) * k];
            }
            add_to(s, x, self.bias, used);
        }
    }

    /// The scores of row `i` of the block.
    #[inline(always)]
    pub fn row(&mut self, i: usize) -> &mut [T] {
        &mut self.scores[i * KEY_TILE..(i + 1) * KEY_TILE]
    }

    /// acc = acc * factor + P·V.
    #[inline(always)]
    fn weigh<S: Simd<T>>(
        &self,
        s: S,
        keys: &Keys<'_, T>,
        rows: usize,
        used: usize,
        factor: &[T; 8],
        acc: &mut [T],
    ) {
        let (v, ldv) = self.values(keys);
        let lda = padded(keys.ev);
        let vectors = if self.v_in_place { keys.ev } else { lda } / S::LANES;
        let mut at = 0;
        while at < vectors {
            let nv = S::ATTEND_NV.min(vectors - at);
            let columns = (&v[at * S::LANES..], ldv, &mut acc[at * S::LANES..], lda);
            for_tile!(S, T, rows, S::ATTEND_MR, nv, weigh_tile(s, self.scores, columns, used, factor));
            at += nv;
        }
    }

    /// The same where values that are blocked for some rows hold NaN or inf: they are passed over.
    #[inline(always)]
    fn weigh_selected<S: Simd<T>>(
        &self,
        s: S,
        keys: &Keys<'_, T>,
        bits: &[u64],
        used: usize,
        factor: &[T; 8],
        acc: &mut [T],
    ) {
        let (v, ldv) = self.values(keys);
        let lda = padded(keys.ev);
        let width = if self.v_in_place { keys.ev } else { lda };
        for (i, &bits) in bits.iter().enumerate() {
            let p = &self.scores[i * KEY_TILE..(i + 1) * KEY_TILE];
            for at in (0..width).step_by(S::LANES) {
                let mut sum = s.splat(T::ZERO);
                for c in (0..used).filter(|c| bits >> c & 1 != 0) {
                    sum = s.fma(s.splat(p[c]), s.load(&v[c * ldv + at..]), sum);
                }
                let out = &mut acc[i * lda + at..];
                s.store(s.add(s.mul(s.load(out), s.splat(factor[i])), sum), out);
            }
        }
    }
}

/// Copies a row of values, zeros after it.
#[inline(always)]
fn copy_row<T: Float, S: Simd<T>>(s: S, from: &[T], to: &mut [T]) {
    for at in (0..to.len()).step_by(S::LANES) {
        let v = if at + S::LANES <= from.len() {
            s.load(&from[at..])
        } else {
            s.load_partial(&from[at.min(from.len())..])
        };
        s.store(v, &mut to[at..]);
    }
}

/// Whether all numbers of a row are finite.
#[inline(always)]
fn row_is_finite<T: Float, S: Simd<T>>(s: S, x: &[T]) -> bool {
    let limit = s.splat(T::MAX);
    let all = u64::MAX >> (64 - S::LANES);
    (0..x.len()).step_by(S::LANES).all(|at| {
        let v = if at + S::LANES <= x.len() { s.load(&x[at..]) } else { s.load_partial(&x[at..]) };
        s.mask_to_bits(s.le(s.abs(v), limit)) == all
    })
}

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

#[inline(always)]
fn product_tile<T: Float, S: Simd<T>, const MR: usize, const NV: usize>(
    s: S,
    q: &[T],
    e: usize,
    panel: &[T],
    out: &mut [T],
) {
    let width = NV * S::LANES;
    let mut start = 0;
    loop {
        let kc = K_BLOCK.min(e - start);
        let sums = block::<T, S, MR, NV>(s, &q[start..], e, &panel[start * width..], width, kc);
        for i in 0..MR {
            for j in 0..NV {
                let out = &mut out[i * KEY_TILE + j * S::LANES..];
                let v = if start > 0 { s.add(s.load(out), sums[i][j]) } else { sums[i][j] };
                s.store(v, out);
            }
        }
        start += kc;
        if start == e {
            break;
        }
    }
}

#[inline(always)]
fn weigh_tile<T: Float, S: Simd<T>, const MR: usize, const NV: usize>(
    s: S,
    p: &[T],
    (v, ldv, acc, lda): (&[T], usize, &mut [T], usize),
    used: usize,
    factor: &[T; 8],
) {
    let sums = block::<T, S, MR, NV>(s, p, KEY_TILE, v, ldv, used);
    for i in 0..MR {
        let factor = s.splat(factor[i]);
        for j in 0..NV {
            let out = &mut acc[i * lda + j * S::LANES..];
            s.store(s.add(s.mul(s.load(out), factor), sums[i][j]), out);
        }
    }
}

/// The running maximum of n = rint(x log2 e) after a tile. Rounding is monotone: the greatest x has the greatest n.
/// NaNs are passed over here; their exponentials are NaN.
#[inline(always)]
fn tile_max<T: Float, S: Simd<T>>(s: S, x: &[T], scale: T, bits: u64, used: usize, old: T) -> T {
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
fn exponentials<T: Float, S: Simd<T>>(
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
fn fold<T: Float, S: Simd<T>>(s: S, sums: &[T; VIRTUAL_LANES]) -> T {
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
fn power_of_two<T: Float>(old: T, new: T) -> T {
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
fn drop_weights<T: Float>(d: &Dropout, row: &Row, keys: &Keys<'_, T>, first: usize, p: &mut [T]) {
    let grow = T::from_f64(if d.p < 1.0 { 1.0 / (1.0 - d.p) } else { 0.0 });
    let start = d.base + ((row.head * d.shape.0 + row.query) * d.shape.1) as u64;
    for (c, p) in p.iter_mut().enumerate() {
        let element = start + keys.place((first + c).min(keys.count - 1)) as u64;
        *p = if keep(d.key, element, d.p) { *p * grow } else { T::ZERO };
    }
}
