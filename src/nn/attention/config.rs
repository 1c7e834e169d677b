//! Widths and options of multi-head attention.

use crate::error::{Error, Result};

/// Widths and options.
#[derive(Clone, Debug, PartialEq)]
pub struct AttentionConfig {
    /// D, width of queries and of the output.
    pub d_model: usize,
    /// H
    pub num_heads: usize,
    /// Hk, a divisor of H.
    pub num_kv_heads: usize,
    /// E, width of a head.
    pub head_dim: usize,
    /// Width of keys before their projection.
    pub key_dim: usize,
    /// Width of values before their projection.
    pub value_dim: usize,
    /// Whether projections add a bias.
    pub bias: bool,
    /// Probability that a weight is dropped in training.
    pub dropout: f64,
}

/// Refuses 0 where at least one is needed.
pub(crate) fn at_least_one(name: &str, value: usize) -> Result<()> {
    if value == 0 {
        return Err(Error::Value(format!("{name}: expected at least 1, got 0")));
    }
    Ok(())
}

/// Refuses what is no probability.
pub(crate) fn probability(name: &str, value: f64) -> Result<()> {
    if !(0.0..=1.0).contains(&value) {
        return Err(Error::Value(format!("{name}: expected a probability from 0 to 1, got {value}")));
    }
    Ok(())
}

impl AttentionConfig {
    /// Columns of q and of the joined result: H E.
    pub fn query_width(&self) -> usize {
        self.num_heads * self.head_dim
    }

    /// Columns of k and of v: Hk E.
    pub fn kv_width(&self) -> usize {
        self.num_kv_heads * self.head_dim
    }

    /// Whether torch's `nn.MultiheadAttention` could hold the parameters.
    pub fn fits_torch(&self) -> bool {
        self.num_kv_heads == self.num_heads && self.query_width() == self.d_model
    }

    /// Whether torch would hold q, k and v in one matrix.
    pub fn is_packed(&self) -> bool {
        self.fits_torch() && self.key_dim == self.d_model && self.value_dim == self.d_model
    }

    /// Fills in what was left open and checks the rest.
    ///
    /// # Errors
    /// `Value`, naming the argument.
    pub fn new(
        d_model: usize,
        num_heads: usize,
        num_kv_heads: Option<usize>,
        head_dim: Option<usize>,
        (key_dim, value_dim): (Option<usize>, Option<usize>),
        bias: bool,
        dropout: f64,
    ) -> Result<Self> {
        at_least_one("d_model", d_model)?;
        at_least_one("num_heads", num_heads)?;
        let num_kv_heads = num_kv_heads.unwrap_or(num_heads);
        at_least_one("num_kv_heads", num_kv_heads)?;
        if !num_heads.is_multiple_of(num_kv_heads) {
            return Err(Error::Value(format!(
                "num_kv_heads: expected a divisor of num_heads = {num_heads}, got {num_kv_heads}"
            )));
        }
        let head_dim = match head_dim {
            Some(e) => e,
            None if d_model.is_multiple_of(num_heads) => d_model / num_heads,
            None => {
                return Err(Error::Value(format!(
                    "num_heads: expected a divisor of d_model = {d_model} (or head_dim), got {num_heads}"
                )));
            }
        };
        at_least_one("head_dim", head_dim)?;
        let (key_dim, value_dim) = (key_dim.unwrap_or(d_model), value_dim.unwrap_or(d_model));
        at_least_one("key_dim", key_dim)?;
        at_least_one("value_dim", value_dim)?;
        probability("dropout", dropout)?;
        for (name, heads, width) in
            [("num_heads", num_heads, d_model.max(3)), ("num_kv_heads", num_kv_heads, key_dim.max(value_dim))]
        {
            crate::ops::buffer::elements(name, &[4, heads, head_dim, width])?;
        }
        Ok(Self { d_model, num_heads, num_kv_heads, head_dim, key_dim, value_dim, bias, dropout })
    }
}
