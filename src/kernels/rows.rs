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

/// Loads the `n` numbers of x at `from`, a vector or less.
#[inline(always)]
pub fn load_up_to<T: Float, S: Simd<T>>(s: S, x: &[T], from: usize, n: usize) -> S::V {
    let x = &x[from..from + n];
    if n >= S::LANES { s.load(x) } else { s.load_partial(x) }
}

/// Stores `n` numbers to `out` at `from`, a vector or less.
#[inline(always)]
pub fn store_up_to<T: Float, S: Simd<T>>(s: S, v: S::V, out: &mut [T], from: usize, n: usize) {
    let out = &mut out[from..from + n];
    if n >= S::LANES {
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

/// A row cut into vectors: runs the body with the index of the virtual-lane vector, its place in the row and how many
/// numbers it has; whole groups of sixteen first, so that there the number is a constant. A macro, since a closure
/// would lose the instructions it is compiled for.
macro_rules! for_each_vector {
    ($S:ident, $len:expr, |$lane:ident, $from:ident, $n:ident| $body:block) => {{
        let lanes = <$S as $crate::simd::Simd<_>>::LANES;
        let len: usize = $len;
        let whole = len / $crate::simd::VIRTUAL_LANES * $crate::simd::VIRTUAL_LANES;
        let mut start = 0;
        while start < whole {
            for $lane in 0..$crate::simd::VIRTUAL_LANES / lanes {
                let ($from, $n) = (start + $lane * lanes, lanes);
                $body
            }
            start += $crate::simd::VIRTUAL_LANES;
        }
        // Counted as above, so that the compiler unrolls it and keeps the lanes in registers.
        for $lane in 0..$crate::simd::VIRTUAL_LANES / lanes {
            let $from = start + $lane * lanes;
            if $from < len {
                let $n = lanes.min(len - $from);
                $body
            }
        }
    }};
}
pub(crate) use for_each_vector;
