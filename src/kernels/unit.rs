//! Rows brought to length 1, and the gradient of that.
//!
//! ```text
//! u   = x / l,  l = max(|x|, 1e-12)
//! d x = (d - u (u . d)) / l          d / l where |x| < 1e-12: there l does not move with x
//! ```
//!
//! Sums go over the 16 virtual lanes by fused multiply-adds; quotients are true divisions.

use super::rows::{for_each_vector, load_up_to, store_up_to, zero_lanes};
use crate::simd::{Float, Kernel, Simd, VIRTUAL_LANES};

/// The least length that is divided by, as in `torch.nn.functional.normalize`.
const MIN_LENGTH: f64 = 1e-12;

/// Rows of `width` numbers brought to length 1, in place.
pub struct UnitRows<'a, T> {
    /// Rows, one after the other.
    pub x: &'a mut [T],
    /// What each row was divided by.
    pub lengths: &'a mut [T],
    /// Numbers in a row; more than 0.
    pub width: usize,
}

impl<T: Float> Kernel<T> for UnitRows<'_, T> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd<T>>(self, s: S) {
        assert_eq!(self.x.len(), self.lengths.len() * self.width, "unit rows: a length for each");
        let least = T::from_f64(MIN_LENGTH);
        for (row, length) in self.x.chunks_exact_mut(self.width).zip(self.lengths) {
            let norm = dot(s, row, row).sqrt();
            // Written so that a NaN stays a NaN.
            *length = if norm < least { least } else { norm };
            let divisor = s.splat(*length);
            for_each_vector!(S, row.len(), |_lane, from, n| {
                let u = s.div(load_up_to(s, row, from, n), divisor);
                store_up_to(s, u, row, from, n);
            });
        }
    }
}

/// From gradients of unit rows to those of the rows that they were made of, in place.
pub struct UnitRowsBackward<'a, T> {
    /// The rows of length 1.
    pub unit: &'a [T],
    /// What each row was divided by.
    pub lengths: &'a [T],
    /// Gradients, row after row.
    pub d: &'a mut [T],
    /// Numbers in a row; more than 0.
    pub width: usize,
}

impl<T: Float> Kernel<T> for UnitRowsBackward<'_, T> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd<T>>(self, s: S) {
        assert_eq!(self.unit.len(), self.d.len(), "unit rows: gradients");
        assert_eq!(self.d.len(), self.lengths.len() * self.width, "unit rows: a length for each");
        let least = T::from_f64(MIN_LENGTH);
        let rows = self.unit.chunks_exact(self.width).zip(self.d.chunks_exact_mut(self.width));
        for ((unit, d), &length) in rows.zip(self.lengths) {
            let along = if length == least { T::ZERO } else { -dot(s, unit, d) };
            let (along, length) = (s.splat(along), s.splat(length));
            for_each_vector!(S, unit.len(), |_lane, from, n| {
                let across = s.fma(along, load_up_to(s, unit, from, n), load_up_to(s, d, from, n));
                store_up_to(s, s.div(across, length), d, from, n);
            });
        }
    }
}

#[inline(always)]
fn dot<T: Float, S: Simd<T>>(s: S, a: &[T], b: &[T]) -> T {
    let mut sums = zero_lanes(s);
    // Absent lanes load as 0 and add 0 to sums that are never -0.
    for_each_vector!(S, a.len(), |lane, from, n| {
        sums[lane] = s.fma(load_up_to(s, a, from, n), load_up_to(s, b, from, n), sums[lane]);
    });
    s.fold_add(&sums[..VIRTUAL_LANES / S::LANES])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::testing::{assert_same_bits, for_each_isa, lengths, normals, rms_relative};
    use crate::simd::Isa;

    fn run<T: Float>(isa: Isa, x: &[T], d: &[T]) -> (Vec<T>, Vec<T>) {
        let (mut unit, mut back, mut length) = (x.to_vec(), d.to_vec(), [T::ZERO]);
        T::dispatch(isa, UnitRows { x: &mut unit, lengths: &mut length, width: x.len() });
        let kernel = UnitRowsBackward { unit: &unit, lengths: &length, d: &mut back, width: x.len() };
        T::dispatch(isa, kernel);
        (unit, back)
    }

    fn agrees<T: Float>(isa: Isa, bound: f64) {
        for n in lengths().into_iter().filter(|&n| n > 1) {
            let (x, d) = (normals::<T>(n, 1, 3.0), normals::<T>(n, 2, 1.0));
            let (unit, back) = run(isa, &x, &d);
            let length = x.iter().map(|x| x.to_f64() * x.to_f64()).sum::<f64>().sqrt();
            let u: Vec<f64> = x.iter().map(|x| x.to_f64() / length).collect();
            let along: f64 = u.iter().zip(&d).map(|(u, d)| u * d.to_f64()).sum();
            let exact: Vec<f64> = u.iter().zip(&d).map(|(u, d)| (d.to_f64() - u * along) / length).collect();
            assert!(rms_relative(&unit, &u) <= bound, "{n} numbers, unit");
            // Few numbers are nearly along x, and cancel.
            let bound = if n < 4 { 10.0 * bound } else { bound };
            assert!(
                rms_relative(&back, &exact) <= bound,
                "{n} numbers, back: {}",
                rms_relative(&back, &exact)
            );
            let (a, b) = run(Isa::Scalar, &x, &d);
            assert_same_bits(&unit, &a);
            assert_same_bits(&back, &b);
        }
    }

    fn zeros_stay<T: Float>(isa: Isa, _: f64) {
        let (unit, back) = run(isa, &[T::ZERO; 3], &[T::ONE; 3]);
        assert_same_bits(&unit, &[T::ZERO; 3]);
        assert_same_bits(&back, &[T::ONE / T::from_f64(MIN_LENGTH); 3]);
    }

    for_each_isa! {
        unit_rows_agree_with_the_formula: agrees, 4e-7, 1e-15;
        zero_rows_stay_zero: zeros_stay, 0.0, 0.0;
    }
}
