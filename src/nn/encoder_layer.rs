//! One layer of a transformer encoder: self-attention and a feed-forward part, each with its residual and norm
//! ([`Residual`]).

mod backward;

pub use backward::SavedLayer;

use super::attention::{AttentionBuffers, AttentionConfig, Call, MultiHeadAttention, Sources};
use super::dropout::site_key;
use super::feed_forward::{FeedForward, HiddenRows};
use super::init::Init;
use super::norm::{Norm, NormKind};
use super::residual::Residual;
use super::state::{Loader, Module, State, prefixed};
use super::tokens::{Layout, Tokens, buffer};
use crate::error::{Error, Result};
use crate::kernels::activation::Activation;
use crate::ops::linear::After;
use crate::ops::reused::Reused;
use crate::simd::Float;

/// Widths and options of a layer.
#[derive(Clone, Debug, PartialEq)]
pub struct LayerConfig {
    /// Of its attention; its dropout is the layer's.
    pub attention: AttentionConfig,
    /// F
    pub d_ff: usize,
    /// Of the feed-forward part.
    pub activation: Activation,
    /// Which norm.
    pub norm: NormKind,
    /// Whether norms stand before the parts.
    pub norm_first: bool,
    /// Added to the variance.
    pub layer_norm_eps: f64,
    /// Whether the feed-forward part is gated.
    pub gated: bool,
}

impl LayerConfig {
    /// Checks what [`AttentionConfig::new`] has not.
    ///
    /// # Errors
    /// `Value`, naming the argument.
    pub fn check(self) -> Result<Self> {
        super::attention::config::at_least_one("d_ff", self.d_ff)?;
        crate::ops::buffer::elements("d_ff", &[self.d_ff, self.attention.d_model])?;
        if !(self.layer_norm_eps >= 0.0 && self.layer_norm_eps.is_finite()) {
            return Err(Error::Value(format!(
                "layer_norm_eps: expected 0 or more, got {}",
                self.layer_norm_eps
            )));
        }
        Ok(self)
    }
}

/// A layer with its parameters.
#[derive(Clone, Debug)]
pub struct EncoderLayer<T> {
    /// Widths and options.
    pub config: LayerConfig,
    attention: MultiHeadAttention<T>,
    feed_forward: FeedForward<T>,
    norm1: Norm<T>,
    norm2: Norm<T>,
}

/// Sites of dropout within a layer; those of weights and of hidden rows are keyed by the parts themselves.
const AFTER_ATTENTION: u32 = 1;
const AFTER_FEED: u32 = 3;

/// What a layer writes between its input and its output.
pub struct LayerBuffers<T: Float> {
    attention: AttentionBuffers<T>,
    hidden: HiddenRows<T>,
    normed: Reused<T>,
    middle: Reused<T>,
}

impl<T: Float> EncoderLayer<T> {
    /// The same in another float type.
    ///
    /// # Errors
    /// As [`Linear::cast`](super::linear::Linear::cast).
    pub fn cast<U: Float>(&self) -> Result<EncoderLayer<U>> {
        Ok(EncoderLayer {
            config: self.config.clone(),
            attention: self.attention.cast()?,
            feed_forward: self.feed_forward.cast()?,
            norm1: self.norm1.cast(),
            norm2: self.norm2.cast(),
        })
    }

    /// A layer with given parameters.
    pub fn from_parts(
        config: LayerConfig,
        attention: MultiHeadAttention<T>,
        feed_forward: FeedForward<T>,
        [norm1, norm2]: [Norm<T>; 2],
    ) -> Self {
        Self { config, attention, feed_forward, norm1, norm2 }
    }

    /// Parameters as torch begins with them.
    ///
    /// # Errors
    /// `Shape` for too many numbers, `Memory`.
    pub fn new(config: LayerConfig, init: &mut Init) -> Result<Self> {
        let attention = MultiHeadAttention::new(config.attention.clone(), init)?;
        let AttentionConfig { d_model, bias, dropout, .. } = config.attention;
        let widths = (d_model, config.d_ff);
        let feed_forward = FeedForward::new(widths, config.gated, config.activation, bias, dropout, init)?;
        let norm = || Norm::new(config.norm, d_model, config.layer_norm_eps, bias);
        Ok(Self { attention, feed_forward, norm1: norm(), norm2: norm(), config })
    }

    /// Room for a call over the tokens of a layout.
    ///
    /// # Errors
    /// `Memory`.
    pub fn buffers(&self, layout: &Layout, training: bool) -> Result<LayerBuffers<T>> {
        let (rows, d) = (layout.total(), self.config.attention.d_model);
        Ok(LayerBuffers {
            attention: AttentionBuffers::new(&self.config.attention, rows, rows)?,
            hidden: self.feed_forward.buffers(rows, training)?,
            normed: buffer(rows, d)?,
            middle: buffer(rows, d)?,
        })
    }

    /// The weights that are read first, for [`After::next`].
    pub fn panels(&self) -> &[T] {
        self.attention.panels()
    }

    /// Takes the rows `x` (T, D) through the layer, in place; returns the wanted weights. `next` is [`After::next`].
    ///
    /// # Errors
    /// `Memory`, `Interrupted`, `Internal`.
    pub fn forward(
        &self,
        x: &mut [T],
        layout: &Layout,
        call: &Call<'_, T>,
        buffers: &mut LayerBuffers<T>,
        next: &[T],
    ) -> Result<Vec<T>> {
        let rows = layout.total();
        let LayerBuffers { attention, hidden, normed, middle } = buffers;
        // The buffers have room for the largest group of a call.
        let (normed, middle) = (&mut normed[..x.len()], &mut middle[..x.len()]);
        let weights = self.residual(0, call).forward(x, (normed, middle), |x, out, residual| {
            let after = After { residual, next: self.feed_forward.panels(), ..After::default() };
            self.attention.forward(Sources::own(Tokens { rows: x, layout }), call, attention, out, after)
        })?;
        self.feed(x, rows, (normed, middle), hidden, call, next)?;
        Ok(weights)
    }

    /// Room for `rows` of the tokens that [`Self::project_rows`] and [`Self::finish_rows`] take through the layer.
    ///
    /// # Errors
    /// `Memory`.
    pub fn buffers_of_rows(&self, rows: usize) -> Result<LayerBuffers<T>> {
        let d = self.config.attention.d_model;
        Ok(LayerBuffers {
            attention: AttentionBuffers::new(&self.config.attention, rows, 0)?,
            hidden: self.feed_forward.buffers(rows, false)?,
            normed: buffer(rows, d)?,
            middle: buffer(rows, d)?,
        })
    }

    /// The first half of the layer for some rows of `x`: their queries, which the buffers keep, and their keys and values.
    /// Without dropout, positions and weights.
    ///
    /// # Errors
    /// `Interrupted`, `Internal`.
    pub fn project_rows(
        &self,
        x: &[T],
        rows: usize,
        (k, v): (&mut [T], &mut [T]),
        buffers: &mut LayerBuffers<T>,
    ) -> Result<()> {
        let LayerBuffers { attention, normed, .. } = buffers;
        let first: &[T] = if self.config.norm_first {
            self.norm1.forward(x, normed)?;
            normed
        } else {
            x
        };
        self.attention.project_rows(first, rows, [&mut attention.q, k, v])
    }

    /// The second half: takes these rows, the tokens of `queries`, to the layer's output, in place, once the keys and values
    /// of all tokens are there.
    ///
    /// # Errors
    /// `Memory`, `Interrupted`, `Internal`.
    pub fn finish_rows(
        &self,
        x: &mut [T],
        (queries, keys): (&Layout, &Layout),
        call: &Call<'_, T>,
        (k, v): (&[T], &[T]),
        buffers: &mut LayerBuffers<T>,
        next: &[T],
    ) -> Result<()> {
        let LayerBuffers { attention, hidden, normed, middle } = buffers;
        let AttentionBuffers { q, result, .. } = attention;
        let after = After { residual: Some(&*x), next: self.feed_forward.panels(), ..After::default() };
        self.attention.attend_rows((queries, keys), call, (q, k, v), result, middle, after)?;
        self.residual(0, call).close(x, middle)?;
        self.feed(x, queries.total(), (normed, middle), hidden, call, next)
    }

    /// What follows attention.
    fn feed(
        &self,
        x: &mut [T],
        rows: usize,
        room: (&mut [T], &mut [T]),
        hidden: &mut HiddenRows<T>,
        call: &Call<'_, T>,
        next: &[T],
    ) -> Result<()> {
        self.residual(1, call).forward(x, room, |x, out, residual| {
            self.feed_forward.forward(x, rows, out, (residual, next), self.dropout_of(call), hidden)
        })
    }

    /// What surrounds attention (0) and the feed-forward part (1).
    fn residual(&self, part: usize, call: &Call<'_, T>) -> Residual<'_, T> {
        let (norm, site) = [(&self.norm1, AFTER_ATTENTION), (&self.norm2, AFTER_FEED)][part];
        let p = self.config.attention.dropout;
        Residual {
            norm,
            norm_first: self.config.norm_first,
            dropout: self.dropout_of(call).map(|key| (p, site_key(key, 0, site))),
        }
    }

    fn dropout_of(&self, call: &Call<'_, T>) -> Option<u64> {
        call.dropout.filter(|_| self.config.attention.dropout > 0.0)
    }

    /// A layer without some heads.
    ///
    /// # Errors
    /// Those of [`MultiHeadAttention::prune`].
    pub fn prune(&self, heads: &[usize]) -> Result<Self> {
        let attention = self.attention.prune(heads)?;
        let config = LayerConfig { attention: attention.config.clone(), ..self.config.clone() };
        Ok(Self { config, attention, ..self.clone() })
    }
}

impl<T: Float> Module<T> for EncoderLayer<T> {
    fn state(&self) -> Result<State<T>> {
        let mut state: State<T> = prefixed("self_attn.", self.attention.state()?).collect();
        state.extend(self.feed_forward.state()?);
        state.extend(prefixed("norm1.", self.norm1.state()?));
        state.extend(prefixed("norm2.", self.norm2.state()?));
        Ok(state)
    }

    fn num_parameters(&self) -> usize {
        let norms = self.norm1.num_parameters() + self.norm2.num_parameters();
        self.attention.num_parameters() + self.feed_forward.num_parameters() + norms
    }

    fn load(&self, prefix: &str, loader: &mut Loader<T>) -> Result<Self> {
        Ok(Self {
            config: self.config.clone(),
            attention: self.attention.load(&format!("{prefix}self_attn."), loader)?,
            feed_forward: self.feed_forward.load(prefix, loader)?,
            norm1: self.norm1.load(&format!("{prefix}norm1."), loader)?,
            norm2: self.norm2.load(&format!("{prefix}norm2."), loader)?,
        })
    }
}
