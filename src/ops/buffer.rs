//! Vectors for outputs, asked for in a way that can be refused: too large is an error, never an abort.

use bytemuck::Zeroable;

use crate::error::{Error, Result};

/// `len` zeros. Pages are touched when they are first written, not here.
///
/// # Errors
/// `Memory` where they cannot be had.
pub fn zeros<T: Zeroable>(len: usize) -> Result<Vec<T>> {
    bytemuck::allocation::try_zeroed_vec(len)
        .map_err(|()| Error::Memory(format!("cannot allocate {len} numbers of {} bytes", size_of::<T>())))
}

/// The number of elements of an array of this shape.
///
/// # Errors
/// `Shape` where no array can have so many.
pub fn elements(name: &str, shape: &[usize]) -> Result<usize> {
    shape
        .iter()
        .try_fold(1_usize, |n, &d| n.checked_mul(d))
        // A zero among them makes an empty array whatever the others are, but only if the others multiply.
        .filter(|&n| isize::try_from(n).is_ok())
        .ok_or_else(|| Error::Shape(format!("{name}: an array of shape {shape:?} has too many elements")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zeros_or_an_error() {
        assert_eq!(zeros::<f32>(3).unwrap(), [0.0; 3]);
        assert!(zeros::<f64>(0).unwrap().is_empty());
        assert!(matches!(zeros::<f64>(usize::MAX / 2), Err(Error::Memory(_))));
        assert!(matches!(zeros::<f64>(1 << 57), Err(Error::Memory(_))));
    }

    #[test]
    fn shapes_that_overflow_are_errors() {
        assert_eq!(elements("x", &[2, 3, 0]).unwrap(), 0);
        assert_eq!(elements("x", &[]).unwrap(), 1);
        assert!(matches!(elements("x", &[1 << 40, 1 << 40]), Err(Error::Shape(_))));
    }
}
