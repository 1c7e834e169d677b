//! What kernels over rows share: the 16 virtual lanes in which rows are summed.
//!
//! Lane j takes the numbers j, j + 16, j + 32... in ascending order; [`Simd::fold_add`] folds the lanes. The sums are
//! the same on every instruction set; numbers that are not there add +0, which changes no sum that began at +0.

use crate::simd::{Float, Simd, VIRTUAL_LANES};

/// Sixteen lanes, in as many vectors as they need; only the first `VIRTUAL_LANES / LANES` are used.
pub type Lanes<T, S> = [<S as Simd<T>>::V; VIRTUAL_LANES];

/// Sixteen zeros.
#[inline(always)]
pub fn zero_lanes<T: Float, S: Simd<T>>(s: S) -> Lanes<T, S> {
    [s.splat(T::ZERO); VIRTUAL_LANES]
}

/// Loads a vector, or what there is of it.
#[inline(always)]
pub fn load_up_to<T: Float, S: Simd<T>>(s: S, x: &[T]) -> S::V {
    if x.len() >= S::LANES { s.load(x) } else { s.load_partial(x) }
}

/// Stores a vector, or what there is room for.
#[inline(always)]
pub fn store_up_to<T: Float, S: Simd<T>>(s: S, v: S::V, out: &mut [T]) {
    if out.len() >= S::LANES {
        s.store(v, out);
    } else {
        s.store_partial(v, out);
    }
}

/// `v` in the first `n` lanes, +0 in the others.
#[inline(always)]
pub fn keep_first<T: Float, S: Simd<T>>(s: S, v: S::V, n: usize) -> S::V {
    if n >= S::LANES { v } else { s.select(s.mask_from_bits((1 << n) - 1), v, s.splat(T::ZERO)) }
}

/// A row cut into vectors: calls the body with the index of the virtual-lane vector and the place in the row, whole
/// groups of sixteen first, so that the body is compiled once for full vectors and once for the rest. A macro, since
/// a closure would lose the instructions it is compiled for.
macro_rules! for_each_vector {
    ($S:ident, $len:expr, |$lane:ident, $range:ident| $body:block) => {{
        let lanes = <$S as $crate::simd::Simd<_>>::LANES;
        let len: usize = $len;
        let whole = len / $crate::simd::VIRTUAL_LANES * $crate::simd::VIRTUAL_LANES;
        let mut start = 0;
        while start < whole {
            for $lane in 0..$crate::simd::VIRTUAL_LANES / lanes {
                let $range = start + $lane * lanes..start + ($lane + 1) * lanes;
                $body
            }
            start += $crate::simd::VIRTUAL_LANES;
        }
        let mut $lane = 0;
        while start < len {
            let $range = start..len.min(start + lanes);
            $body
            start += lanes;
            $lane += 1;
        }
    }};
}
pub(crate) use for_each_vector;
