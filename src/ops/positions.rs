//! The sinusoidal position table of "Attention is all you need":
//!
//! ```text
//! sin(p / 10000^(2i/d)), cos(p / 10000^(2i/d))   for position p and pair i
//! ```

use std::str::FromStr;

use ndarray::ArrayD;

use super::buffer::{elements, zeros};
use super::rows::{over_rows, shaped};
use crate::error::{Error, Result};
use crate::simd::Float;

/// How the sines and cosines of a row lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// sin, cos, sin, cos...
    Interleaved,
    /// All sines, then all cosines.
    Concat,
}

impl FromStr for Layout {
    type Err = Error;
    fn from_str(name: &str) -> Result<Self> {
        match name {
            "interleaved" => Ok(Layout::Interleaved),
            "concat" => Ok(Layout::Concat),
            _ => Err(Error::Value(format!("layout: expected \"interleaved\" or \"concat\", got {name:?}"))),
        }
    }
}

/// Table (n, d), computed in f64 and rounded once. An odd d lacks the last cosine.
///
/// # Errors
/// `Shape` where n * d is too large, `Memory`, `Interrupted`.
pub fn sinusoidal_positions<T: Float>(n: usize, d: usize, layout: Layout) -> Result<ArrayD<T>> {
    shaped(&[n, d], waves(n, d, layout, |row| row)?)
}

/// The rows of the interleaved table that belong to the places given: (places, d).
///
/// # Errors
/// As [`sinusoidal_positions`].
pub fn sinusoidal_rows<T: Float>(places: &[usize], d: usize) -> Result<Vec<T>> {
    waves(places.len(), d, Layout::Interleaved, |row| places[row])
}

fn waves<T: Float>(
    n: usize,
    d: usize,
    layout: Layout,
    place: impl Fn(usize) -> usize + Sync,
) -> Result<Vec<T>> {
    let mut out = zeros(elements("sinusoidal_positions", &[n, d])?)?;
    if n == 0 {
        return Ok(out);
    }
    let sines = d.div_ceil(2);
    let mut divisors = zeros::<f64>(sines)?;
    for (i, x) in divisors.iter_mut().enumerate() {
        *x = libm::pow(10000.0, 2.0 * i as f64 / d as f64);
    }
    over_rows(&mut out, d, 1 + 20 * d, |first, rows| {
        for (i, row) in rows.chunks_exact_mut(d).enumerate() {
            let place = place(first + i) as f64;
            for (pair, divisor) in divisors.iter().enumerate() {
                let (sin, cos) = libm::sincos(place / divisor);
                let (a, b) = match layout {
                    Layout::Interleaved => (2 * pair, 2 * pair + 1),
                    Layout::Concat => (pair, sines + pair),
                };
                row[a] = T::from_f64(sin);
                if b < d {
                    row[b] = T::from_f64(cos);
                }
            }
        }
    })?;
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_by_hand() {
        let table = sinusoidal_positions::<f64>(4, 6, Layout::Interleaved).unwrap();
        let angle = 3.0 / 10000f64.powf(2.0 / 6.0);
        for (column, exact) in [(0, 3f64.sin()), (1, 3f64.cos()), (2, angle.sin()), (3, angle.cos())] {
            assert!((table[[3, column]] - exact).abs() < 1e-15);
        }
        assert_eq!(table.row_of(0), [0.0, 1.0, 0.0, 1.0, 0.0, 1.0]);
    }

    trait Row {
        fn row_of(&self, i: usize) -> Vec<f64>;
    }
    impl Row for ArrayD<f64> {
        fn row_of(&self, i: usize) -> Vec<f64> {
            self.outer_iter().nth(i).unwrap().iter().copied().collect()
        }
    }

    #[test]
    fn layouts_hold_the_same_numbers() {
        for d in [1, 2, 7, 8, 100] {
            let mixed = sinusoidal_positions::<f64>(300, d, Layout::Interleaved).unwrap();
            let apart = sinusoidal_positions::<f64>(300, d, Layout::Concat).unwrap();
            for p in 0..300 {
                let (mixed, apart) = (mixed.row_of(p), apart.row_of(p));
                for (i, x) in mixed.iter().enumerate() {
                    let j = if i % 2 == 0 { i / 2 } else { d.div_ceil(2) + i / 2 };
                    assert_eq!(x.to_bits(), apart[j].to_bits());
                }
            }
        }
    }

    #[test]
    fn ends_and_errors() {
        assert_eq!(sinusoidal_positions::<f32>(0, 8, Layout::Concat).unwrap().shape(), [0, 8]);
        assert_eq!(sinusoidal_positions::<f32>(3, 0, Layout::Concat).unwrap().shape(), [3, 0]);
        assert!(matches!(
            sinusoidal_positions::<f32>(1 << 40, 1 << 40, Layout::Concat),
            Err(Error::Shape(_))
        ));
        assert!(matches!(
            sinusoidal_positions::<f32>(1 << 40, 1 << 18, Layout::Concat),
            Err(Error::Memory(_))
        ));
        assert!("mixed".parse::<Layout>().unwrap_err().to_string().contains("layout"));
    }
}
