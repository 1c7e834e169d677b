//! Buffers that start on a cache line, asked for in a way that can be refused.

use bytemuck::Pod;

use super::buffer::zeros;
use crate::error::{Error, Result};

/// Bytes of a cache line; vectors of 512 bits that straddle two of them load at half the speed.
const LINE: usize = 64;

/// Memory that starts on a cache line: a vector somewhat longer, and where in it. An aligned type would do, but the
/// allocator clears aligned memory at once, on one thread, while plain memory is cleared when it is first written, by the
/// thread that writes there.
#[derive(Default)]
pub(super) struct Lines {
    words: Vec<u64>,
    start: usize,
}

impl Lines {
    /// Room for so many bytes, all zero.
    fn zeros(bytes: usize) -> Result<Self> {
        let words = zeros::<u64>((bytes / 8).saturating_add(LINE / 8))?;
        let start = words.as_ptr().align_offset(LINE);
        Ok(Self { words, start })
    }

    /// Whole cache lines that there is room for.
    pub(super) fn bytes(&self) -> usize {
        self.words.len().saturating_sub(LINE / 8) * 8
    }
}

/// Numbers that start on a cache line, zero at first.
pub struct Aligned<T> {
    lines: Lines,
    len: usize,
    numbers: std::marker::PhantomData<T>,
}

impl<T: Pod> Aligned<T> {
    /// No numbers yet, in memory that is there already.
    pub(super) fn within(lines: Lines) -> Self {
        Self { lines, len: 0, numbers: std::marker::PhantomData }
    }

    /// Bytes of the memory.
    pub(super) fn bytes(&self) -> usize {
        self.lines.bytes()
    }

    /// The memory.
    pub(super) fn into_lines(self) -> Lines {
        self.lines
    }

    /// `len` zeros.
    ///
    /// # Errors
    /// `Memory` where they cannot be had.
    pub fn zeros(len: usize) -> Result<Self> {
        let mut new = Self::within(Lines::default());
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
        if bytes > self.lines.bytes() {
            let mut larger = Self::within(Lines::zeros(bytes.next_multiple_of(LINE))?);
            larger.len = self.len;
            larger.copy_from_slice(self);
            *self = larger;
        }
        self.len = self.len.max(len);
        Ok(())
    }
}

impl<T: Pod> std::ops::Deref for Aligned<T> {
    type Target = [T];
    fn deref(&self) -> &[T] {
        let words = &self.lines.words[self.lines.start..];
        &bytemuck::cast_slice(&words[..(self.len * size_of::<T>()).div_ceil(8)])[..self.len]
    }
}

impl<T: Pod> std::ops::DerefMut for Aligned<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        let words = &mut self.lines.words[self.lines.start..];
        &mut bytemuck::cast_slice_mut(&mut words[..(self.len * size_of::<T>()).div_ceil(8)])[..self.len]
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
