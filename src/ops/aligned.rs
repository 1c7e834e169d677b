//! Buffers that start on a cache line, asked for in a way that can be refused.

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
