//! First values of parameters: torch's distributions, drawn by a counter, so that a seed means the same everywhere.
//!
//! The counter makes each number a function of its place, so weights are drawn in any order and by several threads,
//! straight into their panels.

use std::ops::Range;

use super::linear::Linear;
use crate::error::Result;
use crate::ops::buffer::{elements, zeros};
use crate::philox::philox4x32;
use crate::simd::Float;

/// Gives each parameter its numbers, in order, from a key.
#[derive(Clone, Debug)]
pub struct Init {
    key: u64,
    next: u64,
}

impl Init {
    /// Begins at the first number of a key.
    pub fn new(key: u64) -> Self {
        Self { key, next: 0 }
    }

    /// Uniform in (-bound, bound).
    ///
    /// # Errors
    /// `Shape` for too many numbers.
    pub fn uniform(&mut self, shape: &[usize], bound: f64) -> Result<Draws> {
        self.draw(shape, Distribution::Uniform(bound))
    }

    /// Standard normal.
    ///
    /// # Errors
    /// As [`Self::uniform`].
    pub fn normal(&mut self, shape: &[usize]) -> Result<Draws> {
        self.draw(shape, Distribution::Normal)
    }

    fn draw(&mut self, shape: &[usize], from: Distribution) -> Result<Draws> {
        let draws = Draws { key: self.key, first: self.next, len: elements("parameters", shape)?, from };
        self.next += draws.len as u64;
        Ok(draws)
    }

    /// Glorot and Bengio 2010: uniform with bound sqrt(6 / (fan in + fan out)).
    ///
    /// # Errors
    /// As [`Self::uniform`].
    pub fn xavier(&mut self, shape: &[usize], fans: usize) -> Result<Draws> {
        self.uniform(shape, (6.0 / fans.max(1) as f64).sqrt())
    }

    /// torch's default for linear layers: uniform with bound 1 / sqrt(fan in).
    ///
    /// # Errors
    /// As [`Self::uniform`].
    pub fn linear(&mut self, shape: &[usize], fan_in: usize) -> Result<Draws> {
        self.uniform(shape, 1.0 / (fan_in.max(1) as f64).sqrt())
    }
}

/// Two numbers, uniform in (0, 1), of place `counter` in a stream of a key; `attempt` tells repeated draws apart.
pub(super) fn unit_pair(key: u64, counter: u64, stream: u32, attempt: u32) -> (f64, f64) {
    let key = [key as u32, (key >> 32) as u32];
    let [a, b, c, d] = philox4x32([counter as u32, (counter >> 32) as u32, stream, attempt], key);
    // The middle of one of 2^53 equal parts of (0, 1): neither end is ever drawn.
    let unit = |low: u32, high: u32| {
        let bits = u64::from(low) | u64::from(high) << 32;
        ((bits >> 11) as f64 + 0.5) / (1u64 << 53) as f64
    };
    (unit(a, b), unit(c, d))
}

/// The numbers of one parameter, drawn when they are asked for.
#[derive(Clone, Debug)]
pub struct Draws {
    key: u64,
    first: u64,
    len: usize,
    from: Distribution,
}

/// A distribution.
#[derive(Clone, Copy, Debug)]
enum Distribution {
    /// In (-bound, bound).
    Uniform(f64),
    /// Of mean 0 and variance 1.
    Normal,
}

impl Draws {
    /// Writes the numbers from place `start` on.
    fn fill<T: Float>(&self, start: usize, out: &mut [T]) {
        for (counter, x) in (self.first + start as u64..).zip(out) {
            let (first, second) = unit_pair(self.key, counter, 1, 0);
            *x = T::from_f64(match self.from {
                Distribution::Uniform(bound) => (2.0 * first - 1.0) * bound,
                // Box and Muller 1958.
                Distribution::Normal => {
                    (-2.0 * libm::log(first)).sqrt() * libm::cos(std::f64::consts::TAU * second)
                }
            });
        }
    }

    /// All of them.
    ///
    /// # Errors
    /// `Memory`.
    pub fn vector<T: Float>(&self) -> Result<Vec<T>> {
        let mut numbers = zeros(self.len)?;
        self.fill(0, &mut numbers);
        Ok(numbers)
    }

    /// A linear map with them as its weight (N, K), and a bias (N).
    ///
    /// # Errors
    /// `Memory`, `Interrupted`, `Internal`.
    ///
    /// # Panics
    /// If they are not N K numbers, or the bias not N.
    pub fn map<T: Float>(&self, (n, k): (usize, usize), bias: Option<Vec<T>>) -> Result<Linear<T>> {
        assert_eq!(self.len, n * k, "numbers of a weight");
        Linear::read((n, k), bias, |rows: Range<usize>, out: &mut [T]| {
            self.fill(rows.start * k, out);
            Ok(())
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::testing::assert_same_bits;

    #[test]
    fn normals_have_their_moments() {
        let n = 100_000;
        let x: Vec<f64> = Init::new(3).normal(&[n]).unwrap().vector().unwrap();
        let moment = |p| x.iter().map(|x| x.powi(p)).sum::<f64>() / n as f64;
        // Five standard deviations of the mean of n powers.
        for (p, want, variance) in [(1, 0.0, 1.0), (2, 1.0, 2.0), (3, 0.0, 15.0), (4, 3.0, 96.0)] {
            let bound = 5.0 * f64::sqrt(variance / n as f64);
            assert!((moment(p) - want).abs() <= bound, "moment {p}: {}", moment(p));
        }
    }

    #[test]
    fn maps_hold_the_numbers_of_their_places() {
        let mut init = Init::new(7);
        let (a, b) = (init.linear(&[700, 300], 300).unwrap(), init.linear(&[700], 300).unwrap());
        let all: Vec<f32> = Init::new(7).linear(&[700, 301], 300).unwrap().vector().unwrap();
        let map = a.map((700, 300), Some(b.vector().unwrap())).unwrap();
        assert_same_bits(&map.weight().unwrap().data, &all[..700 * 300]);
        assert_same_bits(map.bias().unwrap(), &all[700 * 300..]);
        assert!(init.uniform(&[usize::MAX, 2], 1.0).is_err());
    }
}
