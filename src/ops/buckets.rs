//! Relative position buckets of T5: the index of the bias that a query adds to its score of a key.
//!
//! With d = key place - query place: buckets are exact for the smaller half of the distances and logarithmic up to
//! `max_distance`; all beyond share the last one. Bidirectional, one half of the buckets is for keys to the right;
//! otherwise keys to the right count as distance 0.

use ndarray::ArrayD;

use super::buffer::{elements, zeros};
use super::rows::{over_rows, shaped};
use crate::error::{Error, Result};

/// How distances become buckets; the default is T5's encoder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Buckets {
    /// Whether keys to the right have buckets of their own.
    pub bidirectional: bool,
    /// Number of buckets.
    pub num_buckets: usize,
    /// From this distance on all share one bucket.
    pub max_distance: usize,
}

impl Default for Buckets {
    fn default() -> Self {
        Self { bidirectional: true, num_buckets: 32, max_distance: 128 }
    }
}

impl Buckets {
    /// Buckets of one side, and how many of them are exact.
    fn side(self) -> (usize, usize) {
        let side = if self.bidirectional { self.num_buckets / 2 } else { self.num_buckets };
        (side, side / 2)
    }

    fn check(self) -> Result<()> {
        let (_, exact) = self.side();
        if exact == 0 || (self.bidirectional && self.num_buckets % 2 == 1) {
            let expected = if self.bidirectional { "an even number from 4 on" } else { "2 or more" };
            return Err(Error::Value(format!("num_buckets: expected {expected}, got {}", self.num_buckets)));
        }
        if self.max_distance <= exact {
            return Err(Error::Value(format!(
                "max_distance: expected more than {exact}, the distances with a bucket of their own, got {}",
                self.max_distance
            )));
        }
        Ok(())
    }

    /// The bucket of a key `distance` places to the right of its query.
    fn bucket(self, distance: i64) -> i64 {
        let (side, exact) = self.side();
        let right = if self.bidirectional && distance > 0 { side } else { 0 };
        let d = if self.bidirectional || distance < 0 { distance.unsigned_abs() as usize } else { 0 };
        if d < exact {
            return (right + d) as i64;
        }
        let (d, e) = (d as f64, exact as f64);
        let along = libm::log(d / e) / libm::log(self.max_distance as f64 / e) * (side - exact) as f64;
        // A quotient of logarithms that is a whole number may be computed a rounding below it.
        let bucket = (exact + (along + 1e-9) as usize).min(side - 1);
        (right + bucket) as i64
    }
}

/// Buckets (L, S).
///
/// # Errors
/// `Value` for counts that make no buckets, `Shape`, `Memory`, `Interrupted`.
pub fn relative_position_buckets(l: usize, s: usize, buckets: Buckets) -> Result<ArrayD<i64>> {
    buckets.check()?;
    let mut out = zeros(elements("relative_position_buckets", &[l, s])?)?;
    if !out.is_empty() {
        // Each distance once, from -(L - 1) to S - 1; row i reads S of them, from its own -i on.
        let mut of_distance = zeros::<i64>(l + s - 1)?;
        for (i, bucket) in of_distance.iter_mut().enumerate() {
            *bucket = buckets.bucket(i as i64 - (l as i64 - 1));
        }
        over_rows(&mut out, s, 1 + s / 4, |first, rows| {
            for (i, row) in rows.chunks_exact_mut(s).enumerate() {
                let start = l - 1 - (first + i);
                row.copy_from_slice(&of_distance[start..start + s]);
            }
        })?;
    }
    shaped(&[l, s], out)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bucket(distance: i64, bidirectional: bool) -> i64 {
        Buckets { bidirectional, ..Buckets::default() }.bucket(distance)
    }

    /// By hand from the paper's rule with 32 buckets up to 128; 8 and 16 are the logarithmic parts' beginnings.
    #[test]
    fn known_buckets() {
        let both = [0, 1, -1, 7, -7, 8, -8, 11, -12, 16, -16, 32, -64, 127, -128, 5000, -5000];
        let expected = [0, 17, 1, 23, 7, 24, 8, 24, 9, 26, 10, 28, 14, 31, 15, 31, 15];
        for (d, expected) in both.into_iter().zip(expected) {
            assert_eq!(bucket(d, true), expected, "distance {d}");
        }
        for (d, expected) in
            [(0, 0), (5, 0), (-1, 1), (-15, 15), (-16, 16), (-128, 31), (-127, 31), (-9999, 31)]
        {
            assert_eq!(bucket(d, false), expected, "distance {d}, one side");
        }
    }

    #[test]
    fn rows_are_shifts_of_one_table() {
        let (l, s) = (37, 150);
        for bidirectional in [false, true] {
            let buckets = Buckets { bidirectional, ..Buckets::default() };
            let table = relative_position_buckets(l, s, buckets).unwrap();
            for ((i, j), &b) in table.view().into_dimensionality::<ndarray::Ix2>().unwrap().indexed_iter() {
                assert_eq!(b, buckets.bucket(j as i64 - i as i64));
            }
        }
        assert_eq!(relative_position_buckets(0, 5, Buckets::default()).unwrap().shape(), [0, 5]);
    }

    #[test]
    fn what_makes_no_buckets_is_refused() {
        let check = |num_buckets, max_distance, bidirectional| {
            relative_position_buckets(2, 2, Buckets { bidirectional, num_buckets, max_distance })
        };
        for (n, bidirectional) in [(0, false), (1, false), (2, true), (5, true)] {
            assert!(
                matches!(check(n, 128, bidirectional), Err(Error::Value(t)) if t.contains("num_buckets"))
            );
        }
        assert!(matches!(check(32, 8, true), Err(Error::Value(t)) if t.contains("max_distance")));
        assert!(check(2, 2, false).is_ok());
    }
}
