//! What attention pooling does to rows and numbers on the way: lengths of 1 for cosines, and elementary functions.

use crate::error::Result;
use crate::kernels::pooling::map::{Function, Map};
use crate::kernels::unit::{UnitRows, UnitRowsBackward};
use crate::ops::buffer::zeros;
use crate::ops::rows::over_rows;
use crate::simd::{Float, active};

/// Numbers that a task of [`map`] takes at a time.
const RUN: usize = 1024;

/// `f(x)` of each number.
///
/// # Errors
/// `Memory`, `Interrupted`, `Internal`.
pub fn map<T: Float>(function: Function, x: &[T]) -> Result<Vec<T>> {
    let mut out = zeros(x.len())?;
    out.copy_from_slice(x);
    let isa = active()?;
    over_rows(&mut out, RUN, 4 * RUN, |_, x| T::dispatch(isa, Map { function, x }))?;
    Ok(out)
}

/// Rows of `width` numbers brought to length 1, and what each was divided by.
///
/// # Errors
/// `Memory`, `Internal`.
pub fn unit_rows<T: Float>(x: &[T], width: usize) -> Result<(Vec<T>, Vec<T>)> {
    let (mut unit, mut lengths) = (zeros(x.len())?, zeros(x.len() / width.max(1))?);
    unit.copy_from_slice(x);
    if width > 0 {
        T::dispatch(active()?, UnitRows { x: &mut unit, lengths: &mut lengths, width });
    }
    Ok((unit, lengths))
}

/// From gradients of unit rows to those of the rows that they were made of.
///
/// # Errors
/// `Memory`, `Interrupted`, `Internal`.
pub fn unit_rows_backward<T: Float>(unit: &[T], lengths: &[T], d: &[T], width: usize) -> Result<Vec<T>> {
    let mut out = zeros(d.len())?;
    out.copy_from_slice(d);
    let isa = active()?;
    over_rows(&mut out, width, width, |first, d| {
        let unit = &unit[first * width..][..d.len()];
        let lengths = &lengths[first..][..d.len() / width];
        T::dispatch(isa, UnitRowsBackward { unit, lengths, d, width });
    })?;
    Ok(out)
}
