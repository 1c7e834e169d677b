//! A part of a layer with its residual and its norm, forwards and backwards.
//!
//! ```text
//! post-norm  s = x + drop(part(x));          out = norm(s)         (Vaswani et al. 2017)
//! pre-norm   out = x + drop(part(norm(x)))                         (Xiong et al. 2020)
//! ```
//!
//! A part adds the residual itself, in the epilogue of its last product, unless dropout comes in between.

use super::dropout::drop_out;
use super::norm::Norm;
use super::state::State;
use super::tokens::buffer;
use crate::error::Result;
use crate::ops::reused::Reused;
use crate::ops::rows::over_rows;
use crate::simd::Float;

/// What surrounds a part.
#[derive(Clone, Copy)]
pub struct Residual<'a, T> {
    /// Before the part, or after the sum.
    pub norm: &'a Norm<T>,
    /// Whether the norm stands before the part.
    pub norm_first: bool,
    /// Probability with which a number of the part's result is dropped in training, and the key.
    pub dropout: Option<(f64, u64)>,
}

/// What [`Residual::forward_saved`] keeps.
pub struct SavedResidual<T: Float> {
    x: Reused<T>,
    /// s, of post-norm.
    sum: Option<Reused<T>>,
}

impl<T: Float> Residual<'_, T> {
    /// Takes the rows `x` through the part, in place. The part maps its first argument into the second, and adds the third
    /// where there is one. `normed` and `middle` are room for as many rows.
    ///
    /// # Errors
    /// Those of the part; `Interrupted`, `Internal`.
    pub fn forward<R>(
        &self,
        x: &mut [T],
        (normed, middle): (&mut [T], &mut [T]),
        part: impl FnOnce(&[T], &mut [T], Option<&[T]>) -> Result<R>,
    ) -> Result<R> {
        let first: &[T] = if self.norm_first {
            self.norm.forward(x, normed)?;
            normed
        } else {
            x
        };
        let made = part(first, middle, self.dropout.is_none().then_some(&*x))?;
        self.close(x, middle)?;
        Ok(made)
    }

    /// What follows the part, whose result is `middle`: the residual `x` is added where the part has not done it, and `x`
    /// becomes the result.
    ///
    /// # Errors
    /// `Interrupted`, `Internal`.
    pub fn close(&self, x: &mut [T], middle: &mut [T]) -> Result<()> {
        self.drop_then_add(middle, x)?;
        if self.norm_first {
            x.copy_from_slice(middle);
            return Ok(());
        }
        self.norm.forward(middle, x)
    }

    /// [`Self::forward`], the same bits, that keeps what [`Self::backward`] reads.
    ///
    /// # Errors
    /// As [`Self::forward`]; `Memory`.
    pub fn forward_saved<R>(
        &self,
        x: Reused<T>,
        part: impl FnOnce(&[T], &mut [T], Option<&[T]>) -> Result<R>,
    ) -> Result<(Reused<T>, SavedResidual<T>, R)> {
        let (mut normed, mut sum) = (buffer(x.len(), 1)?, buffer(x.len(), 1)?);
        if self.norm_first {
            self.norm.forward(&x, &mut normed)?;
        }
        let first: &[T] = if self.norm_first { &normed } else { &x };
        let made = part(first, &mut sum, self.dropout.is_none().then_some(&x[..]))?;
        self.drop_then_add(&mut sum, &x)?;
        if self.norm_first {
            return Ok((sum, SavedResidual { x, sum: None }, made));
        }
        self.norm.forward(&sum, &mut normed)?;
        Ok((normed, SavedResidual { x, sum: Some(sum) }, made))
    }

    /// From what the forward pass kept and the gradient `d` of the result: that of `x`, those of the norm's parameters, and
    /// what `part` returned. The part maps (its input, the gradient of its result) to the gradient of its input, which it
    /// writes into the third argument, with the fourth added where there is one.
    ///
    /// # Errors
    /// As [`Self::forward_saved`].
    pub fn backward<G>(
        &self,
        saved: &SavedResidual<T>,
        mut d: Reused<T>,
        part: impl FnOnce(&[T], &[T], &mut [T], Option<&[T]>) -> Result<G>,
    ) -> Result<(Reused<T>, State<T>, G)> {
        let mut dx = buffer(d.len(), 1)?;
        if let Some(sum) = &saved.sum {
            let mut d_sum = buffer(d.len(), 1)?;
            let of_norm = self.norm.backward(sum, &d, &mut d_sum)?;
            let made = match self.dropped(&d_sum)? {
                Some(dropped) => part(&saved.x, &dropped, &mut dx, Some(&d_sum))?,
                None => part(&saved.x, &d_sum, &mut dx, Some(&d_sum))?,
            };
            return Ok((dx, of_norm, made));
        }
        let mut normed = buffer(d.len(), 1)?;
        self.norm.forward(&saved.x, &mut normed)?;
        let made = match self.dropped(&d)? {
            Some(dropped) => part(&normed, &dropped, &mut dx, None)?,
            None => part(&normed, &d, &mut dx, None)?,
        };
        let of_norm = self.norm.backward(&saved.x, &dx, &mut normed)?;
        add(&mut d, &normed)?;
        Ok((d, of_norm, made))
    }

    /// With dropout, drops numbers of `y` and adds the residual; without, the part has added it.
    fn drop_then_add(&self, y: &mut [T], residual: &[T]) -> Result<()> {
        let Some((p, key)) = self.dropout else { return Ok(()) };
        drop_out(y, p, key)?;
        add(y, residual)
    }

    /// The gradient of what was dropped: its counter is keyed by the call, so the same numbers fall.
    fn dropped(&self, d: &[T]) -> Result<Option<Reused<T>>> {
        let Some((p, key)) = self.dropout else { return Ok(None) };
        let mut dropped = buffer(d.len(), 1)?;
        dropped.copy_from_slice(d);
        drop_out(&mut dropped, p, key)?;
        Ok(Some(dropped))
    }
}

/// `x[i] += y[i]`.
///
/// # Errors
/// `Interrupted`, `Internal`.
pub(crate) fn add<T: Float>(x: &mut [T], y: &[T]) -> Result<()> {
    over_rows(x, 1, 1, |first, x| x.iter_mut().zip(&y[first..]).for_each(|(x, &y)| *x += y))
}
