//! A linear map with its weights packed on first use.

use std::sync::OnceLock;

use ndarray::ArrayView2;

use super::state::Tensor;
use crate::error::Result;
use crate::ops::linear::{After, PackedLinear};
use crate::simd::Float;

/// y = x · wᵀ + b, w (N, K).
pub struct Linear<T> {
    /// (N, K), row-major.
    pub weight: Tensor<T>,
    /// (N,)
    pub bias: Option<Vec<T>>,
    packed: OnceLock<PackedLinear<T>>,
}

impl<T> Linear<T> {
    /// Takes the parameters.
    pub fn new(weight: Tensor<T>, bias: Option<Vec<T>>) -> Self {
        Self { weight, bias, packed: OnceLock::new() }
    }

    /// Columns of the output.
    pub fn n(&self) -> usize {
        self.weight.shape[0]
    }

    /// Columns of the input.
    pub fn k(&self) -> usize {
        self.weight.shape[1]
    }
}

impl<T: Float> Linear<T> {
    /// The same in another float type.
    pub fn cast<U: Float>(&self) -> Linear<U> {
        let bias = self.bias.as_ref().map(|b| b.iter().map(|&x| U::from_f64(x.to_f64())).collect());
        Linear::new(self.weight.cast(|x| U::from_f64(x.to_f64())), bias)
    }

    fn packed(&self) -> Result<&PackedLinear<T>> {
        if let Some(packed) = self.packed.get() {
            return Ok(packed);
        }
        let view =
            ArrayView2::from_shape((self.n(), self.k()), &self.weight.data).expect("the shape of the weight");
        let packed = PackedLinear::new(view, self.bias.as_deref())?;
        // Two threads may have packed at the same time: one of the two equal results is kept.
        Ok(self.packed.get_or_init(|| packed))
    }

    /// Maps `m` rows of `x` into `out`.
    ///
    /// # Errors
    /// `Memory`, `Interrupted`, `Internal`.
    pub fn forward(&self, x: &[T], m: usize, out: &mut [T], after: After<'_, T>) -> Result<()> {
        self.packed()?.forward(x, m, out, after)
    }
}

impl<T: Clone> Clone for Linear<T> {
    fn clone(&self) -> Self {
        Self::new(self.weight.clone(), self.bias.clone())
    }
}

impl<T> std::fmt::Debug for Linear<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Linear({} -> {})", self.k(), self.n())
    }
}
