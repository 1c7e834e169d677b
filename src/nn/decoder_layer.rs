//! One layer of a transformer decoder: self-attention, attention to the memory that an encoder made, a feed-forward part,
//! each with its residual and norm ([`Residual`]).

mod backward;

pub use backward::{DecoderGradients, SavedDecoderLayer};

use super::attention::{
    AttentionBuffers, AttentionConfig, Call, Memory, MultiHeadAttention, Past, Sources, Step,
};
use super::dropout::site_key;
use super::encoder_layer::LayerConfig;
use super::feed_forward::FeedForward;
use super::init::Init;
use super::norm::Norm;
use super::residual::Residual;
use super::state::{Loader, Module, State, prefixed};
use super::tokens::{Layout, Tokens, buffer};
use crate::error::{Error, Result};
use crate::ops::linear::After;
use crate::ops::reused::Reused;
use crate::simd::Float;

/// A layer with its parameters.
#[derive(Clone, Debug)]
pub struct DecoderLayer<T> {
    /// Widths and options.
    pub config: LayerConfig,
    own: MultiHeadAttention<T>,
    cross: MultiHeadAttention<T>,
    feed_forward: FeedForward<T>,
    norms: [Norm<T>; 3],
}

/// How a layer is called.
#[derive(Clone, Copy, Debug)]
pub struct LayerCall<'a, T> {
    /// Self-attention; its key of dropout is unused.
    pub own: Call<'a, T>,
    /// Attention to the memory; likewise.
    pub cross: Call<'a, T>,
    /// Key of dropout in training.
    pub dropout: Option<u64>,
}

/// Sites of dropout within a layer; those of weights and of hidden rows are keyed by the parts themselves.
const AFTER: [u32; 3] = [1, 5, 3];
const OWN_WEIGHTS: u32 = 6;
const CROSS_WEIGHTS: u32 = 7;

impl<T: Float> DecoderLayer<T> {
    /// The same in another float type.
    ///
    /// # Errors
    /// As [`Linear::cast`](super::linear::Linear::cast).
    pub fn cast<U: Float>(&self) -> Result<DecoderLayer<U>> {
        Ok(DecoderLayer {
            config: self.config.clone(),
            own: self.own.cast()?,
            cross: self.cross.cast()?,
            feed_forward: self.feed_forward.cast()?,
            norms: [self.norms[0].cast(), self.norms[1].cast(), self.norms[2].cast()],
        })
    }

    /// Parameters as torch begins with them.
    ///
    /// # Errors
    /// `Shape` for too many numbers, `Memory`.
    pub fn new(config: LayerConfig, init: &mut Init) -> Result<Self> {
        let own = MultiHeadAttention::new(config.attention.clone(), init)?;
        let cross = MultiHeadAttention::new(config.attention.clone(), init)?;
        let AttentionConfig { d_model, bias, dropout, .. } = config.attention;
        let widths = (d_model, config.d_ff);
        let feed_forward = FeedForward::new(widths, config.gated, config.activation, bias, dropout, init)?;
        let norm = || Norm::new(config.norm, d_model, config.layer_norm_eps, bias);
        Ok(Self { own, cross, feed_forward, norms: [norm(), norm(), norm()], config })
    }

    /// The weights that are read first, for [`After::next`].
    pub fn panels(&self) -> &[T] {
        self.own.panels()
    }

    /// The first weight of each projection of both attentions.
    pub fn first_weights(&self) -> impl Iterator<Item = T> {
        self.own.first_weights().chain(self.cross.first_weights())
    }

    /// Heads of self-attention and of attention to the memory.
    pub fn heads(&self) -> [&AttentionConfig; 2] {
        [&self.own.config, &self.cross.config]
    }

    /// What surrounds part `i`.
    fn residual(&self, i: usize, dropout: Option<u64>) -> Residual<'_, T> {
        let p = self.config.attention.dropout;
        Residual {
            norm: &self.norms[i],
            norm_first: self.config.norm_first,
            dropout: dropout.filter(|_| p > 0.0).map(|key| (p, site_key(key, 0, AFTER[i]))),
        }
    }

    /// Takes the rows `x` (T, D) through the layer, in place; `next` is [`After::next`]. Returns the wanted weights of
    /// self-attention and of attention to the memory.
    ///
    /// # Errors
    /// `Memory`, `Interrupted`, `Internal`.
    pub fn forward(
        &self,
        x: &mut [T],
        layout: &Layout,
        memory: Tokens<'_, T>,
        call: &LayerCall<'_, T>,
        next: &[T],
    ) -> Result<[Vec<T>; 2]> {
        let (rows, keys) = (layout.total(), memory.layout.total());
        let [own_call, cross_call] = call.of_parts();
        let own = |x: &[T], out: &mut [T], residual: Option<&[T]>| {
            let mut buffers = AttentionBuffers::new(&self.own.config, rows, rows)?;
            let after = After { residual, next: self.cross.panels(), ..After::default() };
            self.own.forward(Sources::own(Tokens { rows: x, layout }), &own_call, &mut buffers, out, after)
        };
        let cross = |x: &[T], out: &mut [T], residual: Option<&[T]>| {
            let mut buffers = AttentionBuffers::new(&self.cross.config, rows, keys)?;
            let after = After { residual, next: self.feed_forward.panels(), ..After::default() };
            let sources = Sources { queries: Tokens { rows: x, layout }, keys: memory, values: memory.rows };
            self.cross.forward(sources, &cross_call, &mut buffers, out, after)
        };
        self.through(x, rows, own, cross, (call.dropout, next))
    }

    /// Takes the new tokens' rows `x` (T, D) through the layer, in place; their keys and values are added to `past`. Returns
    /// the weights of attention to the memory, where `call` wants them.
    ///
    /// # Errors
    /// `Memory`, `Interrupted`, `Internal`.
    pub fn step(
        &self,
        x: &mut [T],
        step: &Step,
        past: &mut Past<'_, T>,
        memory: &Memory<'_, T>,
        call: &LayerCall<'_, T>,
        next: &[T],
    ) -> Result<Vec<T>> {
        let own = |x: &[T], out: &mut [T], residual: Option<&[T]>| {
            let after = After { residual, next: self.cross.panels(), ..After::default() };
            self.own.step(x, step, past, &call.own, out, after).map(|()| Vec::new())
        };
        let cross = |x: &[T], out: &mut [T], residual: Option<&[T]>| {
            let after = After { residual, next: self.feed_forward.panels(), ..After::default() };
            self.cross.step_over(x, &step.layout, memory, &call.cross, out, after)
        };
        let [_, weights] = self.through(x, step.layout.total(), own, cross, (None, next))?;
        Ok(weights)
    }

    /// The keys and values of a memory, for [`Self::step`]: see [`MultiHeadAttention::memorize`].
    ///
    /// # Errors
    /// `Memory`, `Interrupted`, `Internal`.
    pub fn memorize(&self, memory: Tokens<'_, T>, s: usize) -> Result<[Vec<T>; 2]> {
        self.cross.memorize(memory.rows, memory.layout, s)
    }

    /// The three parts, attention as given.
    fn through<R>(
        &self,
        x: &mut [T],
        rows: usize,
        own: impl FnOnce(&[T], &mut [T], Option<&[T]>) -> Result<R>,
        cross: impl FnOnce(&[T], &mut [T], Option<&[T]>) -> Result<R>,
        (dropout, next): (Option<u64>, &[T]),
    ) -> Result<[R; 2]> {
        let (mut normed, mut middle): (Reused<T>, Reused<T>) = (buffer(x.len(), 1)?, buffer(x.len(), 1)?);
        let own = self.residual(0, dropout).forward(x, (&mut normed, &mut middle), own)?;
        let cross = self.residual(1, dropout).forward(x, (&mut normed, &mut middle), cross)?;
        let mut hidden = self.feed_forward.buffers(rows, dropout.is_some())?;
        self.residual(2, dropout).forward(x, (&mut normed, &mut middle), |x, out, residual| {
            self.feed_forward.forward(x, rows, out, (residual, next), dropout, &mut hidden)
        })?;
        Ok([own, cross])
    }

    /// A layer without some heads of self-attention and of attention to the memory.
    ///
    /// # Errors
    /// Those of [`MultiHeadAttention::prune`].
    pub fn prune(&self, own: &[usize], cross: &[usize]) -> Result<Self> {
        let mut pruned = self.clone();
        if !own.is_empty() {
            pruned.own = self.own.prune(own)?;
        }
        if !cross.is_empty() {
            pruned.cross = self.cross.prune(cross).map_err(|error| match error {
                Error::Value(text) => Error::Value(text.replacen("heads:", "cross_heads:", 1)),
                other => other,
            })?;
        }
        Ok(pruned)
    }
}

impl<'a, T: Copy> LayerCall<'a, T> {
    /// The calls of both attentions, with keys of their own for dropout.
    fn of_parts(&self) -> [Call<'a, T>; 2] {
        let key = |site| self.dropout.map(|key| site_key(key, 0, site));
        [Call { dropout: key(OWN_WEIGHTS), ..self.own }, Call { dropout: key(CROSS_WEIGHTS), ..self.cross }]
    }
}

impl<T: Float> Module<T> for DecoderLayer<T> {
    fn state(&self) -> Result<State<T>> {
        let mut state: State<T> = prefixed("self_attn.", self.own.state()?).collect();
        state.extend(prefixed("multihead_attn.", self.cross.state()?));
        state.extend(self.feed_forward.state()?);
        for (norm, name) in self.norms.iter().zip(NORMS) {
            state.extend(prefixed(name, norm.state()?));
        }
        Ok(state)
    }

    fn num_parameters(&self) -> usize {
        let norms: usize = self.norms.iter().map(Module::num_parameters).sum();
        let attention = self.own.num_parameters() + self.cross.num_parameters();
        attention + self.feed_forward.num_parameters() + norms
    }

    fn load(&self, prefix: &str, loader: &mut Loader<T>) -> Result<Self> {
        let mut norm = |i: usize| self.norms[i].load(&format!("{prefix}{}", NORMS[i]), loader);
        let norms = [norm(0)?, norm(1)?, norm(2)?];
        Ok(Self {
            config: self.config.clone(),
            own: self.own.load(&format!("{prefix}self_attn."), loader)?,
            cross: self.cross.load(&format!("{prefix}multihead_attn."), loader)?,
            feed_forward: self.feed_forward.load(prefix, loader)?,
            norms,
        })
    }
}

/// Names of the norms, in the order of their parts.
const NORMS: [&str; 3] = ["norm1.", "norm2.", "norm3."];
