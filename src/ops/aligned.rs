//! Buffers that start on a cache line, asked for in a way that can be refused.

use std::sync::Mutex;

use bytemuck::{Pod, Zeroable};

use crate::error::{Error, Result};

/// A cache line; vectors of 512 bits that straddle two of them load at half the speed.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C, align(64))]
struct Line([u8; 64]);

/// Numbers that start on a cache line, zero at first.
pub struct Aligned<T> {
    lines: Vec<Line>,
    len: usize,
    numbers: std::marker::PhantomData<T>,
}

impl<T: Pod> Aligned<T> {
    /// `len` zeros.
    ///
    /// # Errors
    /// `Memory` where they cannot be had.
    pub fn zeros(len: usize) -> Result<Self> {
        let mut new = Self { lines: Vec::new(), len: 0, numbers: std::marker::PhantomData };
        new.grow(len)?;
        Ok(new)
    }

    /// Makes room for `len` numbers; what was there is kept.
    ///
    /// # Errors
    /// `Memory` where they cannot be had.
    pub fn grow(&mut self, len: usize) -> Result<()> {
        let refused = || Error::Memory(format!("cannot allocate {len} numbers of {} bytes", size_of::<T>()));
        let bytes = len.checked_mul(size_of::<T>()).ok_or_else(refused)?;
        let lines = bytes.div_ceil(64);
        if lines > self.lines.len() {
            self.lines.try_reserve_exact(lines - self.lines.len()).map_err(|_| refused())?;
            self.lines.resize(lines, Line::zeroed());
        }
        self.len = self.len.max(len);
        Ok(())
    }
}

impl<T: Pod> std::ops::Deref for Aligned<T> {
    type Target = [T];
    fn deref(&self) -> &[T] {
        &bytemuck::cast_slice(&self.lines)[..self.len]
    }
}

impl<T: Pod> std::ops::DerefMut for Aligned<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        &mut bytemuck::cast_slice_mut(&mut self.lines)[..self.len]
    }
}

/// A buffer of at least `len` numbers whose content is arbitrary; its memory comes from a buffer that was dropped, where one
/// fits, and goes to the next when it is dropped itself. Fresh memory costs a page fault and a cleared page for every 4 KB,
/// which took a thirtieth of a model's time.
pub struct Reused<T: Pod>(Aligned<T>);

/// What [`Reused`] buffers left behind; at most [`KEPT_BUFFERS`] bytes.
static LEFT: Mutex<Vec<Vec<Line>>> = Mutex::new(Vec::new());

/// Bytes that are kept for the next call: the buffers of a thousand rows of a small model.
const KEPT_BUFFERS: usize = 16 << 20;

/// Bytes below which memory comes from the allocator's own lists.
const SMALL_BUFFER: usize = 64 << 10;

impl<T: Pod> Reused<T> {
    /// Room for `len` numbers.
    ///
    /// # Errors
    /// `Memory` where it cannot be had.
    pub fn new(len: usize) -> Result<Self> {
        let mut buffer = Aligned { lines: Vec::new(), len: 0, numbers: std::marker::PhantomData };
        let lines = len.saturating_mul(size_of::<T>()).div_ceil(64);
        // Whoever cannot have the lock at once, a forked child for one whose parent held it, does without.
        if let Ok(mut left) = LEFT.try_lock() {
            // One that is much too large is left for who needs it.
            let fits = (0..left.len()).filter(|&i| (lines..=4 * lines).contains(&left[i].len()));
            if let Some(best) = fits.min_by_key(|&i| left[i].len()) {
                buffer.lines = left.swap_remove(best);
            }
        }
        buffer.grow(len)?;
        Ok(Self(buffer))
    }
}

impl<T: Pod> Drop for Reused<T> {
    fn drop(&mut self) {
        let lines = std::mem::take(&mut self.0.lines);
        let bytes = lines.len() * size_of::<Line>();
        if !(SMALL_BUFFER..=KEPT_BUFFERS).contains(&bytes) {
            return;
        }
        if let Ok(mut left) = LEFT.try_lock() {
            left.push(lines);
            left.sort_unstable_by_key(Vec::len);
            // The small ones go first: they are cheap to have again.
            while left.iter().map(Vec::len).sum::<usize>() * size_of::<Line>() > KEPT_BUFFERS {
                left.remove(0);
            }
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

/// Hands `f` a scratch of at least `len` numbers that this thread keeps from call to call; its content is arbitrary.
///
/// # Errors
/// `Memory` where it cannot be had, and the errors of `f`.
pub fn with_scratch<T: Pod, R>(len: usize, f: impl FnOnce(&mut [T]) -> Result<R>) -> Result<R> {
    thread_local! {
        static SCRATCH: std::cell::RefCell<Vec<Aligned<u8>>> = const { std::cell::RefCell::new(Vec::new()) };
    }
    // Taken out while in use: a nested call gets one of its own.
    let mut buffer = match SCRATCH.with_borrow_mut(Vec::pop) {
        Some(buffer) => buffer,
        None => Aligned::zeros(0)?,
    };
    let bytes = len.checked_mul(size_of::<T>()).ok_or_else(|| Error::Memory("scratch too large".into()))?;
    buffer.grow(bytes)?;
    let result = f(&mut bytemuck::cast_slice_mut(&mut buffer[..bytes])[..len]);
    // What a single long call needed is given back, not kept for ever.
    if buffer.len() <= KEPT_SCRATCH {
        SCRATCH.with_borrow_mut(|all| all.push(buffer));
    }
    result
}

/// Bytes of scratch that a thread keeps between calls: the tiles of every usual shape.
const KEPT_SCRATCH: usize = 4 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dropped_buffers_come_back_and_are_few() {
        let mut first = Reused::<f32>::new(1 << 20).unwrap();
        first.fill(7.0);
        let start = first.as_ptr();
        drop(first);
        let second = Reused::<f64>::new((1 << 19) - 3).unwrap();
        assert_eq!(second.len(), (1 << 19) - 3);
        assert_eq!(second.as_ptr().cast::<f32>(), start);
        drop(second);
        // Twenty of 2 MB at the same time: at most eight are kept.
        drop((0..20).map(|_| Reused::<f32>::new(1 << 19).unwrap()).collect::<Vec<_>>());
        assert!(LEFT.lock().unwrap().iter().map(Vec::len).sum::<usize>() * 64 <= KEPT_BUFFERS);
        assert!(matches!(Reused::<f64>::new(usize::MAX / 2), Err(Error::Memory(_))));
    }
}
