//! Arrays of random numbers, drawn by a counter: a number depends on the key and its place alone, on no platform's
//! library, no thread and no instruction set. They are drawn in f64 and rounded once.
//!
//! ```text
//! uniform            (high + low) / 2 + (2 u - 1) (high - low) / 2,  u in (0, 1)
//! normal             mean + std sqrt(-2 log u) cos(2 pi v)           (Box and Muller)
//! truncated normal   the same, drawn again until it lies within the bounds
//! ```

use super::init::unit_pair;
use crate::error::{Error, Result};
use crate::ops::buffer::{elements, zeros};
use crate::ops::rows::over_rows;
use crate::simd::Float;

/// Streams of a key, so that uniform and normal numbers have nothing in common; layers draw theirs from the first too.
const UNIFORM: u32 = 1;
const NORMAL: u32 = 2;

/// The least part of a normal distribution that bounds must leave: draws end after some thousand attempts.
const LEAST_MASS: f64 = 1e-3;

/// A distribution.
#[derive(Clone, Copy, Debug)]
pub enum Distribution {
    /// Uniform between two numbers.
    Uniform {
        /// The lower bound.
        low: f64,
        /// The upper bound.
        high: f64,
    },
    /// Normal, with bounds or without.
    Normal {
        /// The mean, without bounds.
        mean: f64,
        /// The standard deviation, without bounds.
        std: f64,
        /// What no number lies outside of.
        bounds: Option<(f64, f64)>,
    },
}

/// `shape` numbers of a distribution.
///
/// # Errors
/// `Value` for a distribution that is none, `Shape` for too many numbers; `Memory`, `Interrupted`.
pub fn draw<T: Float>(shape: &[usize], distribution: Distribution, key: u64) -> Result<Vec<T>> {
    check(distribution)?;
    let mut out = zeros(elements("shape", shape)?)?;
    over_rows(&mut out, 1, 20, |first, out| {
        for (counter, x) in (first as u64..).zip(out) {
            *x = T::from_f64(number(distribution, key, counter));
        }
    })?;
    Ok(out)
}

fn number(distribution: Distribution, key: u64, counter: u64) -> f64 {
    match distribution {
        Distribution::Uniform { low, high } => {
            let (unit, _) = unit_pair(key, counter, UNIFORM, 0);
            // Halves first: their difference may be more than a number can hold.
            (0.5 * high + 0.5 * low) + (2.0 * unit - 1.0) * (0.5 * high - 0.5 * low)
        }
        Distribution::Normal { mean, std, bounds } => {
            let mut attempt = 0;
            loop {
                let x = mean + std * normal(key, counter, attempt);
                match bounds {
                    Some((low, high)) if !(low..=high).contains(&x) => attempt += 1,
                    _ => return x,
                }
            }
        }
    }
}

fn normal(key: u64, counter: u64, attempt: u32) -> f64 {
    let (u, v) = unit_pair(key, counter, NORMAL, attempt);
    (-2.0 * libm::log(u)).sqrt() * libm::cos(std::f64::consts::TAU * v)
}

fn check(distribution: Distribution) -> Result<()> {
    let refused = |text: String| Err(Error::Value(text));
    match distribution {
        Distribution::Uniform { low, high } if !(low.is_finite() && high.is_finite() && low <= high) => {
            refused(format!("low, high: expected finite numbers, low not above high, got {low} and {high}"))
        }
        Distribution::Normal { mean, std, .. } if !(mean.is_finite() && std.is_finite() && std >= 0.0) => {
            refused(format!("mean, std: expected finite numbers, std from 0 on, got {mean} and {std}"))
        }
        Distribution::Normal { mean, std, bounds: Some((low, high)) } => {
            let below = |x: f64| 0.5 * libm::erfc((mean - x) / (std * std::f64::consts::SQRT_2));
            let inside = if std == 0.0 {
                f64::from(u8::from((low..=high).contains(&mean)))
            } else {
                below(high) - below(low)
            };
            if inside >= LEAST_MASS {
                return Ok(());
            }
            refused(format!(
                "low, high: expected bounds that leave a thousandth of the normal distribution with mean {mean} and std \
                 {std}, got {low} and {high}"
            ))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::testing::assert_same_bits;
    use crate::nn::init::Init;

    fn moments(x: &[f64]) -> (f64, f64) {
        let mean = x.iter().sum::<f64>() / x.len() as f64;
        (mean, x.iter().map(|x| (x - mean) * (x - mean)).sum::<f64>() / x.len() as f64)
    }

    #[test]
    fn moments_are_those_of_the_distributions() {
        let n = 200_000;
        let x: Vec<f64> = draw(&[n], Distribution::Uniform { low: -1.0, high: 3.0 }, 7).unwrap();
        assert!(x.iter().all(|x| (-1.0..3.0).contains(x)));
        let (mean, var) = moments(&x);
        // Five deviations of the mean, and of the variance.
        assert!(
            (mean - 1.0).abs() < 5.0 * (16.0 / 12.0 / n as f64).sqrt() && (var - 16.0 / 12.0).abs() < 0.02
        );
        let wide = Distribution::Normal { mean: 2.0, std: 3.0, bounds: None };
        let x: Vec<f64> = draw(&[n], wide, 7).unwrap();
        let (mean, var) = moments(&x);
        assert!((mean - 2.0).abs() < 5.0 * 3.0 / (n as f64).sqrt());
        assert!((var - 9.0).abs() < 5.0 * 9.0 * (2.0 / n as f64).sqrt());
        let cut = Distribution::Normal { mean: 0.0, std: 1.0, bounds: Some((-2.0, 2.0)) };
        let x: Vec<f64> = draw(&[n], cut, 7).unwrap();
        assert!(x.iter().all(|x| (-2.0..=2.0).contains(x)));
        let (mean, var) = moments(&x);
        assert!(mean.abs() < 0.01 && (var - 0.773_741).abs() < 0.01, "{mean} {var}");
    }

    #[test]
    fn layers_draw_the_same_uniform_numbers() {
        let layer: Vec<f32> = Init::new(9).uniform(&[40, 7], 0.5).unwrap().vector().unwrap();
        let own = draw::<f32>(&[40, 7], Distribution::Uniform { low: -0.5, high: 0.5 }, 9).unwrap();
        assert_same_bits(&layer, &own);
    }

    #[test]
    fn distributions_that_are_none() {
        let normal = |mean, std, bounds| Distribution::Normal { mean, std, bounds };
        for wrong in [
            Distribution::Uniform { low: 1.0, high: 0.0 },
            Distribution::Uniform { low: f64::NAN, high: 0.0 },
            normal(0.0, -1.0, None),
            normal(f64::INFINITY, 1.0, None),
            normal(0.0, 1.0, Some((8.0, 9.0))),
            normal(0.0, 1.0, Some((2.0, -2.0))),
            normal(0.0, 1.0, Some((f64::NAN, 1.0))),
            normal(5.0, 0.0, Some((-2.0, 2.0))),
        ] {
            assert!(matches!(draw::<f32>(&[2], wrong, 1), Err(Error::Value(_))), "{wrong:?}");
        }
        assert_eq!(draw::<f32>(&[2], normal(1.0, 0.0, Some((-2.0, 2.0))), 1).unwrap(), [1.0; 2]);
    }
}
