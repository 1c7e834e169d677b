//! Dropout of activations in training, by a counter: element i is dropped or kept whatever thread computes it.

use crate::error::Result;
use crate::kernels::gemm::OutRows;
use crate::philox::{keep, philox4x32};
use crate::simd::Float;
use crate::threads::parallel;

/// A key for one place of one layer, from the key of the call.
pub fn site_key(key: u64, layer: usize, site: u32) -> u64 {
    let [a, b, ..] = philox4x32([layer as u32, site, 0, 2], [key as u32, (key >> 32) as u32]);
    u64::from(a) | u64::from(b) << 32
}

/// Drops each number with probability `p`; those kept grow by 1 / (1 - p).
///
/// # Errors
/// `Interrupted`, `Internal`.
pub fn drop_out<T: Float>(x: &mut [T], p: f64, key: u64) -> Result<()> {
    drop_out_from(0, x, p, key)
}

/// The same for numbers of which `first` stand before these.
///
/// # Errors
/// As [`drop_out`].
pub fn drop_out_from<T: Float>(first: usize, x: &mut [T], p: f64, key: u64) -> Result<()> {
    const TASK: usize = 1 << 14;
    let grow = T::from_f64(if p < 1.0 { 1.0 / (1.0 - p) } else { 0.0 });
    let len = x.len();
    let shared = OutRows::new(x);
    parallel(len.div_ceil(TASK), |task| {
        let start = task * TASK;
        // SAFETY: tasks have disjoint parts.
        let part = unsafe { shared.slice(start, TASK.min(len - start)) };
        for (i, x) in part.iter_mut().enumerate() {
            *x = if keep(key, (first + start + i) as u64, p) { *x * grow } else { T::ZERO };
        }
    })
}
