//! Layer norm (Ba, Kiros, Hinton 2016) and RMS norm (Zhang and Sennrich 2019) with their parameters.

use super::state::{Loader, Module, State, Tensor};
use crate::error::Result;
use crate::ops::buffer::zeros;
use crate::ops::norm::{layer_norm_rows, layer_norm_rows_backward, rms_norm_rows, rms_norm_rows_backward};
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
    eps: Option<f64>,
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
        Self { kind, eps: Some(eps), weight: vec![T::ONE; d_model], bias }
    }

    /// A norm with given parameters. Without an eps it is the distance from 1 to the next number of the type, as in torch's
    /// RMS norm.
    pub fn from_parts(
        kind: NormKind,
        eps: impl Into<Option<f64>>,
        weight: Vec<T>,
        bias: Option<Vec<T>>,
    ) -> Self {
        Self { kind, eps: eps.into(), weight, bias }
    }

    /// D
    pub fn width(&self) -> usize {
        self.weight.len()
    }

    /// What is added under the root, where it was said.
    pub fn eps(&self) -> Option<f64> {
        self.eps
    }

    /// Whether a bias is added.
    pub fn has_bias(&self) -> bool {
        self.bias.is_some()
    }

    fn added(&self) -> T {
        self.eps.map_or(T::EPSILON, T::from_f64)
    }

    /// Normalizes dense rows of `x` into `out`.
    ///
    /// # Errors
    /// `Interrupted`, `Internal`.
    pub fn forward(&self, x: &[T], out: &mut [T]) -> Result<()> {
        let (width, weight) = (self.width(), Some(&self.weight[..]));
        match self.kind {
            NormKind::Layer => layer_norm_rows(x, width, weight, self.bias.as_deref(), self.added(), out),
            NormKind::Rms => rms_norm_rows(x, width, weight, self.added(), out),
        }
    }

    /// From the rows `x` and the gradient `dy` of what became of them: the gradient `dx` of the rows, and those of the
    /// parameters, named as in the state.
    ///
    /// # Errors
    /// `Memory`, `Interrupted`, `Internal`.
    pub fn backward(&self, x: &[T], dy: &[T], dx: &mut [T]) -> Result<State<T>> {
        let (width, weight) = (self.width(), Some(&self.weight[..]));
        let mut dweight = zeros(width)?;
        let mut dbias = self.bias.as_ref().map(|b| zeros(b.len())).transpose()?;
        let into = Some(&mut dweight[..]);
        match self.kind {
            NormKind::Layer => {
                layer_norm_rows_backward(x, dy, width, weight, self.added(), dx, into, dbias.as_deref_mut())?;
            }
            NormKind::Rms => rms_norm_rows_backward(x, dy, width, weight, self.added(), dx, into)?,
        }
        let mut grads = vec![("weight".to_owned(), Tensor::new(&[width], dweight))];
        grads.extend(dbias.map(|b| ("bias".to_owned(), Tensor::new(&[width], b))));
        Ok(grads)
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
