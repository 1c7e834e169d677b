//! What the gradient needs of each row of the forward pass.

use crate::account::at;
use crate::kernels::attend::LARGE_SCORE;
use crate::kernels::rows::{Lanes, for_each_vector, keep_first, load_up_to, store_up_to, zero_lanes};
use crate::simd::math::exp2_parts;
use crate::simd::{Float, Kernel, Simd, VIRTUAL_LANES};

/// Turns the log-sum-exp of rows into an integer M and 2^(M - lse log2 e), with which weights are made as the forward pass makes
/// them, p = 2^(a u - M) times a number of the row; and computes `delta = d_out · out`.
pub struct Prepare<'a, T> {
    /// Log-sum-exp of the R rows; becomes M. Beyond 2^20, where the forward pass has its slow way, it is `lse log2 e` itself, and -inf
    /// where no key is allowed.
    pub max: &'a mut [T],
    /// The number of each row; 1 where M is no integer.
    pub inverse: &'a mut [T],
    /// delta of each row.
    pub delta: &'a mut [T],
    /// (R, Ev), rows at stride `ld`.
    pub out: &'a [T],
    /// The same of its gradient.
    pub d_out: &'a [T],
    /// Distance between rows.
    pub ld: usize,
    /// Ev
    pub ev: usize,
}

impl<T: Float> Kernel<T> for Prepare<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd<T>>(self, s: S) {
        at!(Softmax);
        let Self { max, inverse, delta, out, d_out, ld, ev } = self;
        let (a, limit, one) = (s.splat(T::LOG2_E), s.splat(T::from_f64(LARGE_SCORE)), s.splat(T::ONE));
        for_each_vector!(S, max.len(), |_lane, from, n| {
            let lse = load_up_to(s, max, from, n);
            let (whole, p) = exp2_parts(s, lse, a, s.neg(a));
            let ordinary = s.le(s.abs(whole), limit);
            store_up_to(s, s.select(ordinary, s.div(one, p), one), inverse, from, n);
            store_up_to(s, s.select(ordinary, whole, s.mul(lse, a)), max, from, n);
        });
        for (i, delta) in delta.iter_mut().enumerate() {
            *delta = dot(s, &d_out[i * ld..][..ev], &out[i * ld..][..ev]);
        }
    }
}

/// x · y, over the virtual lanes.
#[inline(always)]
fn dot<T: Float, S: Simd<T>>(s: S, x: &[T], y: &[T]) -> T {
    let mut sums: Lanes<T, S> = zero_lanes(s);
    for_each_vector!(S, x.len(), |lane, from, n| {
        let (x, y) = (load_up_to(s, x, from, n), load_up_to(s, y, from, n));
        sums[lane] = s.fma(keep_first(s, x, n), keep_first(s, y, n), sums[lane]);
    });
    s.fold_add(&sums[..VIRTUAL_LANES / S::LANES])
}
