//! One operation per file: check the shapes, allocate, split over threads, call the kernel.

pub mod activation;
pub mod alibi;
pub mod aligned;
pub mod allowed_mask;
pub mod attention;
pub mod buckets;
pub mod buffer;
pub mod columns;
pub mod contrastive;
pub mod cross_entropy;
pub mod linear;
pub mod linear_backward;
pub mod masks;
pub mod norm;
pub mod pooling;
pub mod positions;
pub mod project;
pub mod project_backward;
pub mod recurrent;
pub mod reused;
pub mod rotary;
pub(crate) mod rows;
pub mod scaled_dot_product;
pub mod softmax;
pub mod squared_error;
pub mod update;
pub mod varlen;

use std::sync::Mutex;

use crate::error::Result;

/// [`crate::threads::parallel`] for tasks that can fail: the first error found is returned, later tasks do nothing.
///
/// # Errors
/// Those of the tasks, `Interrupted`, `Internal`.
pub(crate) fn try_parallel(tasks: usize, f: impl Fn(usize) -> Result<()> + Sync) -> Result<()> {
    let failed = Mutex::new(None);
    crate::threads::parallel(tasks, |i| {
        if failed.lock().is_ok_and(|e| e.is_some()) {
            return;
        }
        if let Err(e) = f(i)
            && let Ok(mut slot) = failed.lock()
        {
            slot.get_or_insert(e);
        }
    })?;
    failed.into_inner().ok().flatten().map_or(Ok(()), Err)
}
