//! Layer norm (Ba, Kiros, Hinton 2016) and RMS norm (Zhang and Sennrich 2019) with their parameters.

use super::state::{Loader, Module, State, Tensor};
use crate::error::Result;
use crate::ops::norm::{layer_norm_rows, rms_norm_rows};
use crate::simd::Float;

/// Which norm.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NormKind {
    /// Mean and variance.
    Layer,
    /// Root mean square.
    Rms,
}

/// A norm with its parameters.
#[derive(Clone, Debug)]
pub struct Norm<T> {
    kind: NormKind,
    eps: f64,
    weight: Vec<T>,
    bias: Option<Vec<T>>,
}

impl<T: Float> Norm<T> {
    /// The same in another float type.
    pub fn cast<U: Float>(&self) -> Norm<U> {
        let cast = |x: &Vec<T>| x.iter().map(|&x| U::from_f64(x.to_f64())).collect();
        Norm {
            kind: self.kind,
            eps: self.eps,
            weight: cast(&self.weight),
            bias: self.bias.as_ref().map(cast),
        }
    }

    /// Weights of one and, in a layer norm with `bias`, biases of zero.
    pub fn new(kind: NormKind, d_model: usize, eps: f64, bias: bool) -> Self {
        let bias = (bias && kind == NormKind::Layer).then(|| vec![T::ZERO; d_model]);
        Self { kind, eps, weight: vec![T::ONE; d_model], bias }
    }

    /// A norm with given parameters.
    pub fn from_parts(kind: NormKind, eps: f64, weight: Vec<T>, bias: Option<Vec<T>>) -> Self {
        Self { kind, eps, weight, bias }
    }

    /// Normalizes dense rows of `x` into `out`.
    ///
    /// # Errors
    /// `Interrupted`, `Internal`.
    pub fn forward(&self, x: &[T], out: &mut [T]) -> Result<()> {
        let width = self.weight.len();
        match self.kind {
            NormKind::Layer => layer_norm_rows(
                x,
                width,
                Some(&self.weight),
                self.bias.as_deref(),
                T::from_f64(self.eps),
                out,
            ),
            NormKind::Rms => rms_norm_rows(x, width, Some(&self.weight), T::from_f64(self.eps), out),
        }
    }
}

impl<T: Float> Module<T> for Norm<T> {
    fn state(&self) -> Result<State<T>> {
        let mut state = vec![("weight".to_owned(), Tensor::new(&[self.weight.len()], self.weight.clone()))];
        state.extend(self.bias.as_ref().map(|b| ("bias".to_owned(), Tensor::new(&[b.len()], b.clone()))));
        Ok(state)
    }

    fn num_parameters(&self) -> usize {
        self.weight.len() + self.bias.as_ref().map_or(0, Vec::len)
    }

    fn load(&self, prefix: &str, loader: &mut Loader<T>) -> Result<Self> {
        let weight = loader.take_vec(&format!("{prefix}weight"), Some(&self.weight))?.unwrap_or_default();
        let bias = loader.take_vec(&format!("{prefix}bias"), self.bias.as_deref())?;
        Ok(Self { kind: self.kind, eps: self.eps, weight, bias })
    }
}
