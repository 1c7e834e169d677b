//! The gradients of multi-head attention, from what its forward pass keeps: projections, results and the log-sum-exp.
//!
//! ```text
//! out = concat(m_h r_h) Woᵀ + bo            d(m r) = dout Wo,   dr_h = m_h d(m r)_h,   dm_h = sum r_h d(m r)_h
//! r = attention(q, k, v)                    dq, dk, dv          tile by tile, weights computed again
//! q = rotate(x Wqᵀ + bq), k, v alike        dx = dq' Wq + residual (+ dk' Wk + dv' Wv),   q' turned back
//! ```

use super::{Call, MultiHeadAttention, Sources};
use crate::error::Result;
use crate::nn::state::State;
use crate::nn::tokens::{Layout, buffer};
use crate::ops::attention::{Gradients, Saved, Strides, Wanted};
use crate::ops::buffer::zeros;
use crate::ops::linear::After;
use crate::ops::reused::Reused;
use crate::ops::rotary::{rotate_rows, rotate_rows_back};
use crate::simd::Float;

/// Rows of a block whose chain of sums begins at zero: the gradients of head factors.
const BLOCK_ROWS: usize = 256;

/// What [`MultiHeadAttention::forward_saved`] keeps.
pub struct SavedAttention<T: Float> {
    q: Reused<T>,
    k: Reused<T>,
    v: Reused<T>,
    /// Before the factors of heads.
    result: Reused<T>,
    /// (T, H)
    lse: Vec<T>,
}

/// Where the gradients of the sources go. What is absent was the source before it, and is added to that one's.
pub struct SourceGradients<'a, T> {
    /// (T, D)
    pub queries: &'a mut [T],
    /// (T, `key_dim`), where keys are not the queries.
    pub keys: Option<&'a mut [T]>,
    /// (T, `value_dim`), where values are not the keys; then there are keys.
    pub values: Option<&'a mut [T]>,
}

/// Gradients of the parameters, named as in the state, and of the factors of heads, where there were any.
pub type LayerGradients<T> = (State<T>, Option<Vec<T>>);

impl<T: Float> MultiHeadAttention<T> {
    /// [`MultiHeadAttention::forward`] without weights, the same bits, that keeps what [`Self::backward`] reads.
    ///
    /// # Errors
    /// `Memory`, `Interrupted`, `Internal`.
    pub fn forward_saved(
        &self,
        Sources { queries, keys, values }: Sources<'_, T>,
        call: &Call<'_, T>,
        out: &mut [T],
        after: After<'_, T>,
    ) -> Result<SavedAttention<T>> {
        let (m, s) = (queries.layout.total(), keys.layout.total());
        let (wide, narrow) = (self.config.query_width(), self.config.kv_width());
        let mut saved = SavedAttention {
            q: buffer(m, wide)?,
            k: buffer(s, narrow)?,
            v: buffer(s, narrow)?,
            result: buffer(m, wide)?,
            lse: zeros(m * self.config.num_heads)?,
        };
        let SavedAttention { q, k, v, result, lse } = &mut saved;
        self.q.forward(queries.rows, m, q, After { next: self.k.panels(), ..After::default() })?;
        self.k.forward(keys.rows, s, k, After { next: self.v.panels(), ..After::default() })?;
        self.v.forward(values, s, v, After { next: self.out.panels(), ..After::default() })?;
        self.rotate(call, (q, queries.layout), (k, keys.layout), false)?;
        let wanted = Wanted { lse: Some((&mut lse[..], self.lse_strides())), scores: None };
        self.operation(queries.layout, keys.layout, call, (q, k, v)).run(result, wanted)?;
        match self.scaled(result, call)? {
            Some(scaled) => self.out.forward(&scaled, m, out, after)?,
            None => self.out.forward(result, m, out, after)?,
        }
        Ok(saved)
    }

    /// From the sources, the call and what their forward pass kept, and the gradient `dy` (T, D) of its result: the
    /// gradients of the sources, `residual` added to that of the queries, and those of the parameters.
    ///
    /// # Errors
    /// `Memory`, `Interrupted`, `Internal`.
    pub fn backward(
        &self,
        Sources { queries, keys, values }: Sources<'_, T>,
        call: &Call<'_, T>,
        saved: &SavedAttention<T>,
        dy: &[T],
        sources: SourceGradients<'_, T>,
        residual: Option<&[T]>,
    ) -> Result<LayerGradients<T>> {
        let (m, s) = (queries.layout.total(), keys.layout.total());
        let (wide, narrow) = (self.config.query_width(), self.config.kv_width());
        let SavedAttention { q, k, v, result, lse } = saved;
        let mut d_result = buffer(m, wide)?;
        let out = match self.scaled(result, call)? {
            Some(scaled) => self.out.backward(&scaled, dy, m, Some(&mut d_result), None)?,
            None => self.out.backward(result, dy, m, Some(&mut d_result), None)?,
        };
        let d_head_mask = call.head_mask.map(|factors| {
            let sums = self.sums_of_heads(result, &d_result);
            self.scale_heads(&mut d_result, factors);
            sums
        });
        let (mut dq, mut dk, mut dv) = (buffer(m, wide)?, buffer(s, narrow)?, buffer(s, narrow)?);
        let e = self.config.head_dim;
        let strides = |row| Strides { head: e, row };
        let gradients = Gradients {
            dq: (&mut dq[..], strides(wide)),
            dk: (&mut dk[..], strides(narrow)),
            dv: (&mut dv[..], strides(narrow)),
            mask: None,
            starts: None,
        };
        let of_forward = Saved { out: result, lse: (lse, self.lse_strides()) };
        self.operation(queries.layout, keys.layout, call, (q, k, v))
            .backward(of_forward, &d_result, gradients)?;
        drop(d_result);
        self.rotate(call, (&mut dq, queries.layout), (&mut dk, keys.layout), true)?;

        let SourceGradients { queries: dx, keys: dx_keys, values: dx_values } = sources;
        let own = dx_keys.is_none();
        let of_q = self.q.backward(queries.rows, &dq, m, Some(&mut *dx), residual)?;
        let of_k = self.k.backward(keys.rows, &dk, s, None, None)?;
        let of_v = self.v.backward(values, &dv, s, None, None)?;
        let into = dx_keys.unwrap_or(dx);
        if let Some(dx_values) = dx_values {
            self.k.backward_input(&dk, s, into, None)?;
            self.v.backward_input(&dv, s, dx_values, None)?;
        } else {
            // Keys and values are the same rows, and in self-attention so are the queries: their gradients are added.
            let mut sum = buffer(s, self.k.k())?;
            self.k.backward_input(&dk, s, &mut sum, own.then_some(&*into))?;
            self.v.backward_input(&dv, s, into, Some(&sum))?;
        }
        Ok((self.named([of_q, of_k, of_v, out]), d_head_mask))
    }

    fn lse_strides(&self) -> Strides {
        Strides { head: 1, row: self.config.num_heads }
    }

    /// Turns queries and keys by their places, or their gradients back, where places are told so.
    fn rotate(
        &self,
        call: &Call<'_, T>,
        (q, queries): (&mut [T], &Layout),
        (k, keys): (&mut [T], &Layout),
        back: bool,
    ) -> Result<()> {
        let Some(theta) = call.rotary else { return Ok(()) };
        let turn = if back { rotate_rows_back } else { rotate_rows };
        let e = self.config.head_dim;
        turn(q, self.config.num_heads, e, &queries.lengths, theta)?;
        turn(k, self.config.num_kv_heads, e, &keys.lengths, theta)
    }

    /// The results times the factors of their heads, where there are factors.
    fn scaled(&self, result: &[T], call: &Call<'_, T>) -> Result<Option<Reused<T>>> {
        let Some(factors) = call.head_mask else { return Ok(None) };
        let mut scaled = buffer(result.len(), 1)?;
        scaled[..result.len()].copy_from_slice(result);
        self.scale_heads(&mut scaled, factors);
        Ok(Some(scaled))
    }

    /// Sum of x * y over the columns of each head: a chain in each row, rows added in order in blocks, blocks in order.
    fn sums_of_heads(&self, x: &[T], y: &[T]) -> Vec<T> {
        let (wide, e) = (self.config.query_width(), self.config.head_dim);
        let mut sums = vec![T::ZERO; self.config.num_heads];
        let mut block = sums.clone();
        for (x, y) in x.chunks(BLOCK_ROWS * wide).zip(y.chunks(BLOCK_ROWS * wide)) {
            block.fill(T::ZERO);
            for (x, y) in x.chunks_exact(wide).zip(y.chunks_exact(wide)) {
                for ((x, y), sum) in x.chunks_exact(e).zip(y.chunks_exact(e)).zip(&mut block) {
                    *sum += x.iter().zip(y).fold(T::ZERO, |sum, (&x, &y)| sum + x * y);
                }
            }
            sums.iter_mut().zip(&block).for_each(|(sum, &block)| *sum += block);
        }
        sums
    }
}
