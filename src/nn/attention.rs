//! Multi-head attention (Vaswani et al. 2017), with grouped key/value heads (Ainslie et al. 2023).
//!
//! ```text
//! q = x Wqᵀ + bq   k = y Wkᵀ + bk   v = z Wvᵀ + bv         heads are blocks of E columns
//! r_h = head_mask[h] * attention(q_h, k_g, v_g)            g = h // (H / Hk)
//! out = concat(r) Woᵀ + bo
//! ```

mod backward;
mod cached;
pub(crate) mod config;
pub(crate) mod parameters;

pub use backward::{LayerGradients, SavedAttention, SourceGradients};
pub use cached::{Memory, Past, Step};

pub use config::AttentionConfig;

use super::dropout::site_key;
use super::linear::Linear;
use super::tokens::{Layout, Tokens, buffer};
use crate::error::Result;
use crate::kernels::attend::{Mask, ScoreKind};
use crate::ops::attention::{Attention, Operand, Sequence, Strides, Wanted};
use crate::ops::linear::After;
use crate::ops::masks::{Element, Pairs};
use crate::ops::reused::Reused;
use crate::ops::rotary::rotate_rows;
use crate::simd::Float;

/// Multi-head attention with its parameters.
#[derive(Clone, Debug)]
pub struct MultiHeadAttention<T> {
    /// Widths and options.
    pub config: AttentionConfig,
    q: Linear<T>,
    k: Linear<T>,
    v: Linear<T>,
    out: Linear<T>,
}

/// Which heads' weights to return.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WantedHeads<'a> {
    /// None.
    None,
    /// All.
    All,
    /// These, in this order.
    Some(&'a [usize]),
}

impl WantedHeads<'_> {
    /// How many there are.
    pub fn count(self, heads: usize) -> usize {
        match self {
            WantedHeads::None => 0,
            WantedHeads::All => heads,
            WantedHeads::Some(some) => some.len(),
        }
    }
}

/// How a call attends.
#[derive(Clone, Copy, Debug)]
pub struct Call<'a, T> {
    /// What masks say of each sequence, by the places of its tokens; empty for nothing.
    pub masks: &'a [Element<'a, T>],
    /// Whether key j is allowed only for j <= i + offset.
    pub causal: bool,
    /// Keys to the left and right of i + offset.
    pub window: (Option<usize>, Option<usize>),
    /// Soft cap.
    pub softcap: Option<f64>,
    /// Factor of q · k; 1 / sqrt(E) if absent.
    pub scale: Option<f64>,
    /// Factor of each head's result.
    pub head_mask: Option<&'a [T]>,
    /// Slopes of a linear bias by distance, one for each head.
    pub alibi: Option<&'a [T]>,
    /// Base of rotary positions, which count tokens from 0.
    pub rotary: Option<f64>,
    /// Key of dropout in training.
    pub dropout: Option<u64>,
    /// Which weights are wanted.
    pub weights: WantedHeads<'a>,
}

impl<T> Default for Call<'_, T> {
    fn default() -> Self {
        Self {
            masks: &[],
            causal: false,
            window: (None, None),
            softcap: None,
            scale: None,
            head_mask: None,
            alibi: None,
            rotary: None,
            dropout: None,
            weights: WantedHeads::None,
        }
    }
}

/// What attends and what is attended to: rows before their projection.
#[derive(Clone, Copy)]
pub struct Sources<'a, T> {
    /// (T, D)
    pub queries: Tokens<'a, T>,
    /// (T, `key_dim`); the queries themselves in self-attention.
    pub keys: Tokens<'a, T>,
    /// (T, `value_dim`), laid out as the keys.
    pub values: &'a [T],
}

impl<'a, T> Sources<'a, T> {
    /// Tokens that attend to each other.
    pub fn own(tokens: Tokens<'a, T>) -> Self {
        let Tokens { rows, layout } = tokens;
        Self { queries: tokens, keys: Tokens { rows, layout }, values: rows }
    }
}

/// What a layer writes between its input and its output, kept from layer to layer.
pub struct AttentionBuffers<T: Float> {
    /// Projected queries.
    pub q: Reused<T>,
    k: Reused<T>,
    v: Reused<T>,
    /// Joined heads.
    pub result: Reused<T>,
}

impl<T: Float> AttentionBuffers<T> {
    /// Room for `rows` queries and `keys` keys.
    ///
    /// # Errors
    /// `Memory`.
    pub fn new(config: &AttentionConfig, rows: usize, keys: usize) -> Result<Self> {
        Ok(Self {
            q: buffer(rows, config.query_width())?,
            k: buffer(keys, config.kv_width())?,
            v: buffer(keys, config.kv_width())?,
            result: buffer(rows, config.query_width())?,
        })
    }
}

impl<T: Float> MultiHeadAttention<T> {
    /// The weights that are read first, for [`After::next`].
    pub fn panels(&self) -> &[T] {
        self.q.panels()
    }

    /// The first weight of each projection, whatever the panels' form.
    pub fn first_weights(&self) -> impl Iterator<Item = T> {
        [&self.q, &self.k, &self.v, &self.out].into_iter().filter_map(|part| part.panels().first().copied())
    }

    /// Attends: each query to the keys of its sequence.
    ///
    /// Writes (T, D) into `out`, with `after.residual` added; returns the wanted weights, (heads, L, S) of each
    /// sequence back to back.
    ///
    /// # Errors
    /// `Memory`, `Interrupted`, `Internal`.
    pub fn forward(
        &self,
        Sources { queries: x, keys, values }: Sources<'_, T>,
        call: &Call<'_, T>,
        buffers: &mut AttentionBuffers<T>,
        out: &mut [T],
        after: After<'_, T>,
    ) -> Result<Vec<T>> {
        let (rows, key_rows) = (x.layout.total(), keys.layout.total());
        let AttentionBuffers { q, k, v, result } = buffers;
        let (wide, narrow) = (self.config.query_width(), self.config.kv_width());
        let (q, result) = (&mut q[..rows * wide], &mut result[..rows * wide]);
        let (k, v) = (&mut k[..key_rows * narrow], &mut v[..key_rows * narrow]);
        self.q.forward(x.rows, rows, q, After { next: self.k.panels(), ..After::default() })?;
        self.k.forward(keys.rows, key_rows, k, After { next: self.v.panels(), ..After::default() })?;
        self.v.forward(values, key_rows, v, After { next: self.out.panels(), ..After::default() })?;
        let e = self.config.head_dim;
        if let Some(theta) = call.rotary {
            rotate_rows(q, self.config.num_heads, e, &x.layout.lengths, theta)?;
            rotate_rows(k, self.config.num_kv_heads, e, &keys.layout.lengths, theta)?;
        }
        self.attend_rows((x.layout, keys.layout), call, (q, k, v), result, out, after)
    }

    /// The projections of `rows` tokens that attend to themselves and others, without positions.
    ///
    /// # Errors
    /// `Interrupted`, `Internal`.
    pub fn project_rows(&self, x: &[T], rows: usize, [q, k, v]: [&mut [T]; 3]) -> Result<()> {
        self.q.forward(x, rows, q, After { next: self.k.panels(), ..After::default() })?;
        self.k.forward(x, rows, k, After { next: self.v.panels(), ..After::default() })?;
        self.v.forward(x, rows, v, After::default())
    }

    /// What follows the projections: attends from the tokens of `queries` to those of `keys`, joins the heads in `result`
    /// and projects them into `out`. Returns the wanted weights.
    ///
    /// # Errors
    /// `Memory`, `Interrupted`, `Internal`.
    pub fn attend_rows(
        &self,
        (queries, keys): (&Layout, &Layout),
        call: &Call<'_, T>,
        (q, k, v): (&[T], &[T], &[T]),
        result: &mut [T],
        out: &mut [T],
        after: After<'_, T>,
    ) -> Result<Vec<T>> {
        let weights = self.attend(queries, keys, call, (q, k, v), result)?;
        if let Some(head_mask) = call.head_mask {
            self.scale_heads(result, head_mask);
        }
        self.out.forward(result, queries.total(), out, after)?;
        Ok(weights)
    }

    /// Multiplies the columns of each head by its factor.
    fn scale_heads(&self, rows: &mut [T], head_mask: &[T]) {
        for row in rows.chunks_exact_mut(self.config.query_width()) {
            for (head, &factor) in row.chunks_exact_mut(self.config.head_dim).zip(head_mask) {
                for x in head {
                    *x = *x * factor;
                }
            }
        }
    }

    fn attend(
        &self,
        queries: &Layout,
        keys: &Layout,
        call: &Call<'_, T>,
        qkv: (&[T], &[T], &[T]),
        result: &mut [T],
    ) -> Result<Vec<T>> {
        let heads = self.config.num_heads;
        let wanted = call.weights.count(heads);
        let pairs = queries.lengths.iter().zip(&keys.lengths).map(|(l, s)| l * s);
        let mut weights = crate::ops::buffer::zeros(wanted * pairs.sum::<usize>())?;
        let slots: Option<Vec<Option<usize>>> = match call.weights {
            WantedHeads::Some(some) => Some((0..heads).map(|h| some.iter().position(|&x| x == h)).collect()),
            _ => None,
        };
        let scores = (wanted > 0).then_some((ScoreKind::Weights, &mut weights[..], slots.as_deref()));
        self.operation(queries, keys, call, qkv).run(result, Wanted { lse: None, scores })?;
        Ok(weights)
    }

    /// Attention as the operation below knows it. The log-sum-exp of row t of head h is at `t * heads + h`.
    fn operation<'a>(
        &self,
        queries: &Layout,
        keys: &Layout,
        call: &Call<'a, T>,
        (q, k, v): (&'a [T], &'a [T], &'a [T]),
    ) -> Attention<'a, T> {
        let config = &self.config;
        let (heads, e) = (config.num_heads, config.head_dim);
        let (wide, narrow) =
            (Strides { head: e, row: config.query_width() }, Strides { head: e, row: config.kv_width() });
        let wanted = call.weights.count(heads);
        let mut sequences = Vec::with_capacity(queries.lengths.len());
        let (mut at, mut key_at, mut weights_len, mut elements) = (0, 0, 0, 0);
        for (b, (&q_len, &k_len)) in queries.lengths.iter().zip(&keys.lengths).enumerate() {
            let masks = call.masks.get(b);
            sequences.push(Sequence {
                starts: [at * wide.row, key_at * narrow.row, key_at * narrow.row, at * wide.row],
                q_len,
                k_len,
                past: 0,
                offset: masks.map_or(0, |m| m.offset),
                key_mask: masks.and_then(|m| m.key_mask.as_ref()).map(|allowed| match keys.places_of(b) {
                    Some(places) => places.iter().map(|&p| allowed[p as usize]).collect(),
                    None => allowed.clone(),
                }),
                query_places: queries.places_of(b).cloned(),
                key_places: keys.places_of(b).cloned(),
                mask: match masks.map(|m| m.pairs) {
                    Some(Pairs::Allowed(data, strides)) => Mask::Bool(data, strides),
                    Some(Pairs::Added(data, strides)) => Mask::Float(data, strides),
                    Some(Pairs::All) | None => Mask::None,
                },
                lse_start: at * heads,
                scores_start: weights_len,
                score_strides: Strides { head: q_len * k_len, row: k_len },
                dropout_base: elements,
                dropout_shape: (queries.full[b], keys.full[b]),
            });
            at += q_len;
            key_at += k_len;
            weights_len += wanted * q_len * k_len;
            elements += (heads * queries.full[b] * keys.full[b]) as u64;
        }
        let operands = [
            Operand { data: q, strides: wide },
            Operand { data: k, strides: narrow },
            Operand { data: v, strides: narrow },
        ];
        self.over(operands, call, sequences)
    }

    /// Attention of a call over queries, keys and values, as far as the layer decides it. The output lies as (T, H E).
    fn over<'a>(
        &self,
        [q, k, v]: [Operand<'a, T>; 3],
        call: &Call<'a, T>,
        sequences: Vec<Sequence<'a, T>>,
    ) -> Attention<'a, T> {
        let config = &self.config;
        let e = config.head_dim;
        Attention {
            q,
            k,
            v,
            out: Strides { head: e, row: config.query_width() },
            heads: config.num_heads,
            kv_heads: config.num_kv_heads,
            e,
            ev: e,
            scale: T::from_f64(call.scale.unwrap_or_else(|| 1.0 / (e as f64).sqrt())),
            softcap: call.softcap.map(T::from_f64),
            alibi: call.alibi,
            causal: call.causal,
            window: call.window,
            dropout: call
                .dropout
                .filter(|_| config.dropout > 0.0)
                .map(|key| (config.dropout, site_key(key, 0, 0))),
            sequences,
        }
    }
}
