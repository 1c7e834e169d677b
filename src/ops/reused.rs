//! Buffers whose memory goes from call to call.
//!
//! Fresh memory costs a page fault and a cleared page for every 4 KB, which took a thirtieth of a model's time. So a buffer
//! that is dropped leaves its memory here: a little after inference, and during a training as much as its steps have ever
//! used at once, since each step keeps all its layers wrote. With the last pullback the training ends, and that goes too.

use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Mutex, MutexGuard};

use bytemuck::Pod;

use super::aligned::{Aligned, Lines};
use crate::error::Result;

/// A buffer of numbers whose content is arbitrary; its memory comes from a buffer that was dropped, where one fits, and goes
/// to the next when it is dropped itself.
pub struct Reused<T: Pod>(Aligned<T>);

/// What buffers left behind, the smallest first.
static LEFT: Mutex<Vec<Lines>> = Mutex::new(Vec::new());

/// Bytes of the buffers that are in use, and the most there ever were of this training.
static USED: AtomicUsize = AtomicUsize::new(0);
static MOST: AtomicUsize = AtomicUsize::new(0);

/// What forward passes have kept for gradients that may still be asked for.
static TRAININGS: AtomicUsize = AtomicUsize::new(0);

/// Bytes that are kept for the next call: the buffers of a thousand rows of a small model.
const KEPT_BUFFERS: usize = 16 << 20;

/// Bytes below which memory comes from the allocator's own lists.
const SMALL_BUFFER: usize = 64 << 10;

/// A place among what was left, unless another thread has it, or had it when this process was forked: then do without.
fn left() -> Option<MutexGuard<'static, Vec<Lines>>> {
    LEFT.try_lock().ok()
}

/// Frees what is more than `bytes`, the small ones first: they are cheap to have again.
fn trim(left: &mut Vec<Lines>, bytes: usize) {
    let mut all: usize = left.iter().map(Lines::bytes).sum();
    let gone = left.iter().take_while(|lines| {
        let too_many = all > bytes;
        all -= lines.bytes();
        too_many
    });
    let gone = gone.count();
    left.drain(..gone);
}

impl<T: Pod> Reused<T> {
    /// Room for `len` numbers.
    ///
    /// # Errors
    /// `Memory` where it cannot be had.
    pub fn new(len: usize) -> Result<Self> {
        let bytes = len.saturating_mul(size_of::<T>());
        let mut lines = Lines::default();
        if let Some(mut left) = left() {
            // One that is much too large is left for who needs it.
            let first = left.partition_point(|lines| lines.bytes() < bytes);
            if left.get(first).is_some_and(|lines| lines.bytes() <= bytes.saturating_mul(4)) {
                lines = left.remove(first);
            }
        }
        let mut buffer = Aligned::within(lines);
        buffer.grow(len)?;
        let used = USED.fetch_add(buffer.bytes(), Relaxed) + buffer.bytes();
        MOST.fetch_max(used, Relaxed);
        Ok(Self(buffer))
    }
}

impl<T: Pod> Drop for Reused<T> {
    fn drop(&mut self) {
        let lines = std::mem::replace(&mut self.0, Aligned::within(Lines::default())).into_lines();
        let used = USED.fetch_sub(lines.bytes(), Relaxed).saturating_sub(lines.bytes());
        let training = if TRAININGS.load(Relaxed) > 0 { MOST.load(Relaxed).saturating_sub(used) } else { 0 };
        let most = KEPT_BUFFERS.max(training);
        if !(SMALL_BUFFER..=most).contains(&lines.bytes()) {
            return;
        }
        if let Some(mut left) = left() {
            let place = left.partition_point(|other| other.bytes() < lines.bytes());
            left.insert(place, lines);
            trim(&mut left, most);
        }
    }
}

impl<T: Pod> std::ops::Deref for Reused<T> {
    type Target = [T];
    fn deref(&self) -> &[T] {
        &self.0
    }
}

impl<T: Pod> std::ops::DerefMut for Reused<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        &mut self.0
    }
}

/// A mark of what a forward pass keeps for its gradients: as long as there is one, memory is kept for the next step.
pub struct InTraining(());

impl InTraining {
    /// A training goes on, or begins.
    pub fn new() -> Self {
        if TRAININGS.fetch_add(1, Relaxed) == 0 {
            MOST.store(USED.load(Relaxed), Relaxed);
        }
        Self(())
    }
}

impl Default for InTraining {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for InTraining {
    fn drop(&mut self) {
        if TRAININGS.fetch_sub(1, Relaxed) == 1
            && let Some(mut left) = left()
        {
            trim(&mut left, KEPT_BUFFERS);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Error;

    fn kept() -> usize {
        LEFT.lock().unwrap().iter().map(Lines::bytes).sum()
    }

    /// One test, since what is left is shared by all.
    #[test]
    fn dropped_buffers_come_back_and_are_few() {
        let mut first = Reused::<f32>::new(1 << 20).unwrap();
        first.fill(7.0);
        assert_eq!(first.as_ptr().align_offset(64), 0);
        let start = first.as_ptr();
        drop(first);
        let second = Reused::<f64>::new((1 << 19) - 3).unwrap();
        assert_eq!(second.len(), (1 << 19) - 3);
        assert_eq!(second.as_ptr().cast::<f32>(), start);
        drop(second);
        // Twenty of 2 MB at the same time: at most eight are kept, in a training all.
        let twenty = || drop((0..20).map(|_| Reused::<f32>::new(1 << 19).unwrap()).collect::<Vec<_>>());
        twenty();
        assert!(kept() <= KEPT_BUFFERS);
        let (one, other) = (InTraining::new(), InTraining::new());
        twenty();
        drop(other);
        assert!((20 << 21..24 << 21).contains(&kept()), "{}", kept());
        drop(one);
        assert!(kept() <= KEPT_BUFFERS);
        assert!(matches!(Reused::<f64>::new(usize::MAX / 2), Err(Error::Memory(_))));
    }
}
