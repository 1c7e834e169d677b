//! A linear map that holds its weights once, packed for the product.
//!
//! Panels are the rows in another order, so nothing is lost: whoever wants the rows (a state, another type, pruning) has
//! them unpacked, bit for bit. Other parameters make another map; none changes, so threads share it without a lock.

use std::ops::Range;
use std::sync::Arc;

use ndarray::ArrayView2;

use super::state::{Loader, Module, State, Tensor};
use crate::error::Result;
use crate::ops::buffer::zeros;
use crate::ops::columns::column_sums;
use crate::ops::linear::{After, PackedLinear};
use crate::ops::linear_backward::weight_gradient;
use crate::simd::Float;

/// y = x · wᵀ + b, w (N, K). Clones share the parameters.
pub struct Linear<T>(Arc<PackedLinear<T>>);

impl<T: Float> Linear<T> {
    /// Packs a weight of shape (N, K), row-major, and copies a bias (N).
    ///
    /// # Errors
    /// `Shape` where the bias does not have N numbers, `Memory`, `Interrupted`, `Internal`.
    ///
    /// # Panics
    /// If the weight does not have N K numbers.
    pub fn new((n, k): (usize, usize), weight: &[T], bias: Option<&[T]>) -> Result<Self> {
        let weight = ArrayView2::from_shape((n, k), weight).expect("numbers of a weight");
        Ok(Self(Arc::new(PackedLinear::new(weight, bias)?)))
    }

    /// As [`PackedLinear::read`]: the rows of the weight are never in memory as a whole.
    ///
    /// # Errors
    /// As [`PackedLinear::read`].
    pub fn read(
        shape: (usize, usize),
        bias: Option<Vec<T>>,
        rows: impl Fn(Range<usize>, &mut [T]) -> Result<()> + Sync,
    ) -> Result<Self> {
        Ok(Self(Arc::new(PackedLinear::read(shape, bias, rows)?)))
    }

    /// Columns of the output.
    pub fn n(&self) -> usize {
        self.0.n()
    }

    /// Columns of the input.
    pub fn k(&self) -> usize {
        self.0.k()
    }

    /// The weight (N, K), row-major: a copy.
    ///
    /// # Errors
    /// `Memory`, `Interrupted`, `Internal`.
    pub fn weight(&self) -> Result<Tensor<T>> {
        Ok(Tensor::new(&[self.n(), self.k()], self.0.unpack()?))
    }

    /// The bias (N).
    pub fn bias(&self) -> Option<&[T]> {
        self.0.bias()
    }

    /// The same in another float type.
    ///
    /// # Errors
    /// As [`Self::weight`].
    pub fn cast<U: Float>(&self) -> Result<Linear<U>> {
        let (other, k) = (|x: T| U::from_f64(x.to_f64()), self.k());
        let weight = self.0.unpack()?;
        let bias = self.bias().map(|b| b.iter().map(|&x| other(x)).collect());
        Linear::read((self.n(), k), bias, |rows, out| {
            let from = &weight[rows.start * k..rows.end * k];
            out.iter_mut().zip(from).for_each(|(y, &x)| *y = other(x));
            Ok(())
        })
    }

    /// The map itself, for who takes it row by row.
    pub(super) fn packed(&self) -> &PackedLinear<T> {
        &self.0
    }

    /// The weights as products read them, for [`After::next`].
    pub fn panels(&self) -> &[T] {
        self.0.panels()
    }

    /// Maps `m` rows of `x` into `out`.
    ///
    /// # Errors
    /// `Interrupted`, `Internal`.
    pub fn forward(&self, x: &[T], m: usize, out: &mut [T], after: After<'_, T>) -> Result<()> {
        self.0.forward(x, m, out, after)
    }

    /// dx = dy · w + residual, dy (m, N), dx (m, K).
    ///
    /// # Errors
    /// `Memory`, `Interrupted`, `Internal`.
    pub fn backward_input(&self, dy: &[T], m: usize, dx: &mut [T], residual: Option<&[T]>) -> Result<()> {
        self.0.backward_input(dy, m, dx, residual)
    }

    /// The gradients of the parameters, named as in the state: dw = dyᵀ · x and db, the sums of dy's columns. With `dx`,
    /// that of the input is written there, as by [`Self::backward_input`].
    ///
    /// # Errors
    /// `Memory`, `Interrupted`, `Internal`.
    pub fn backward(
        &self,
        x: &[T],
        dy: &[T],
        m: usize,
        dx: Option<&mut [T]>,
        residual: Option<&[T]>,
    ) -> Result<State<T>> {
        let (n, k) = (self.n(), self.k());
        if let Some(dx) = dx {
            self.backward_input(dy, m, dx, residual)?;
        }
        let mut weight = zeros(n * k)?;
        weight_gradient(x, dy, m, (n, k), &mut weight)?;
        let mut grads = vec![("weight".to_owned(), Tensor::new(&[n, k], weight))];
        if self.bias().is_some() {
            let mut bias = zeros(n)?;
            column_sums(dy, m, n, &mut bias)?;
            grads.push(("bias".to_owned(), Tensor::new(&[n], bias)));
        }
        Ok(grads)
    }
}

impl<T: Float> Module<T> for Linear<T> {
    fn state(&self) -> Result<State<T>> {
        let mut state = vec![("weight".to_owned(), self.weight()?)];
        state.extend(self.bias().map(|b| ("bias".to_owned(), Tensor::new(&[b.len()], b.to_vec()))));
        Ok(state)
    }

    fn num_parameters(&self) -> usize {
        self.n() * self.k() + self.bias().map_or(0, <[T]>::len)
    }

    fn load(&self, prefix: &str, loader: &mut Loader<T>) -> Result<Self> {
        let shape = (self.n(), self.k());
        let weight = match loader.take(&format!("{prefix}weight"), &[shape.0, shape.1])? {
            Some(given) => given,
            None => self.weight()?,
        };
        let bias = loader.take_vec(&format!("{prefix}bias"), self.bias())?;
        Self::new(shape, &weight.data, bias.as_deref())
    }
}

impl<T> Clone for Linear<T> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<T> std::fmt::Debug for Linear<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Linear").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Error;
    use crate::kernels::testing::{assert_same_bits, normals};

    /// Shapes of one task and of many, of whole panels and of parts.
    const SHAPES: [(usize, usize); 6] = [(0, 3), (1, 1), (5, 70), (48, 16), (700, 900), (1000, 513)];

    #[test]
    fn the_rows_come_back_before_and_after_a_call() {
        for (n, k) in SHAPES {
            let (weight, bias) = (normals::<f32>(n * k, 1, 1.0), normals(n, 2, 1.0));
            let linear = Linear::new((n, k), &weight, Some(&bias)).unwrap();
            assert_same_bits(&linear.weight().unwrap().data, &weight);
            linear.forward(&normals(3 * k, 3, 1.0), 3, &mut vec![0.0; 3 * n], After::default()).unwrap();
            assert_same_bits(&linear.weight().unwrap().data, &weight);
            assert_same_bits(
                &linear.cast::<f64>().unwrap().cast::<f32>().unwrap().weight().unwrap().data,
                &weight,
            );
            assert_eq!((linear.bias(), linear.num_parameters()), (Some(&bias[..]), n * k + n));
        }
    }

    #[test]
    fn rows_that_are_read_make_the_same_map() {
        for (n, k) in SHAPES {
            let weight = normals::<f64>(n * k, 4, 1.0);
            let read = |rows: Range<usize>, out: &mut [f64]| {
                out.copy_from_slice(&weight[rows.start * k..rows.end * k]);
                Ok(())
            };
            let linear = Linear::read((n, k), None, read).unwrap();
            assert_same_bits(&linear.weight().unwrap().data, &weight);
            let (x, mut got, mut want) = (normals(2 * k, 5, 1.0), vec![0.0; 2 * n], vec![0.0; 2 * n]);
            linear.forward(&x, 2, &mut got, After::default()).unwrap();
            Linear::new((n, k), &weight, None).unwrap().forward(&x, 2, &mut want, After::default()).unwrap();
            assert_same_bits(&got, &want);
        }
    }

    #[test]
    fn an_error_of_the_reader_comes_out() {
        let cut = |rows: Range<usize>, _: &mut [f32]| {
            if rows.contains(&600) { Err(Error::ModelFormat("cut".into())) } else { Ok(()) }
        };
        assert!(
            matches!(Linear::read((700, 900), None, cut), Err(Error::ModelFormat(text)) if text == "cut")
        );
    }
}
