//! First values of parameters: torch's distributions, drawn by a counter, so that a seed means the same everywhere.

use super::state::Tensor;
use crate::error::Result;
use crate::ops::buffer::{elements, zeros};
use crate::philox::philox4x32;
use crate::simd::Float;

/// Draws numbers in order from a key.
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
    /// `Shape` for too many numbers, `Memory`.
    pub fn uniform<T: Float>(&mut self, shape: &[usize], bound: f64) -> Result<Tensor<T>> {
        let mut data = zeros(elements("parameters", shape)?)?;
        let key = [self.key as u32, (self.key >> 32) as u32];
        for x in &mut data {
            let [low, high, ..] = philox4x32([self.next as u32, (self.next >> 32) as u32, 1, 0], key);
            self.next += 1;
            let bits = u64::from(low) | u64::from(high) << 32;
            // The middle of one of 2^53 equal parts of (0, 1): neither end is ever drawn.
            let unit = ((bits >> 11) as f64 + 0.5) / (1u64 << 53) as f64;
            *x = T::from_f64((2.0 * unit - 1.0) * bound);
        }
        Ok(Tensor::new(shape, data))
    }

    /// Glorot and Bengio 2010: uniform with bound sqrt(6 / (fan in + fan out)).
    ///
    /// # Errors
    /// As [`Self::uniform`].
    pub fn xavier<T: Float>(&mut self, shape: &[usize], fans: usize) -> Result<Tensor<T>> {
        self.uniform(shape, (6.0 / fans.max(1) as f64).sqrt())
    }

    /// torch's default for linear layers: uniform with bound 1 / sqrt(fan in).
    ///
    /// # Errors
    /// As [`Self::uniform`].
    pub fn linear<T: Float>(&mut self, shape: &[usize], fan_in: usize) -> Result<Tensor<T>> {
        self.uniform(shape, 1.0 / (fan_in.max(1) as f64).sqrt())
    }
}
