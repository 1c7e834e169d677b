//! Few sequences on several threads: each thread takes some of the rows through all layers.
//!
//! Rows need each other only as keys and values. So a thread takes its rows from one layer's projections through
//! attention, feed-forward part and norms to the projections of the next, and threads meet once a layer:
//!
//! ```text
//! meeting n:  rows of each thread:   attention of layer n - 1 over everybody's k, v;  the rest of it;  q, k, v of layer n
//! ```
//!
//! Keys and values of two layers take turns in two buffers, since a thread that is ahead writes the next ones while
//! others still read.

use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use super::{Encoder, Positions, StackCall};
use crate::error::Result;
use crate::kernels::gemm::OutRows;
use crate::nn::encoder_layer::{EncoderLayer, LayerBuffers};
use crate::nn::tokens::{Layout, buffer};
use crate::ops::try_parallel;
use crate::simd::Float;

/// Rows of a thread below which reading all weights costs it more than meeting after every step: there threads take
/// some of the columns of each product instead, and each reads its share of the weights.
const LEAST_ROWS: usize = 48;

/// Rows of a task at most: fine enough that threads end at about the same time.
const TASK_ROWS: usize = 128;

/// Whether a call can go this way: positions within attention count all rows, dropout counts the whole batch, and
/// pruned layers differ in their widths.
pub(super) fn fits<T: Float>(
    stack: &Encoder<T>,
    layout: &Layout,
    call: &StackCall<'_, T>,
    team: usize,
) -> bool {
    let widths =
        |layer: &EncoderLayer<T>| (layer.config.attention.query_width(), layer.config.attention.kv_width());
    layout.total() >= team * LEAST_ROWS
        && matches!(stack.positions, None | Some(Positions::Sinusoidal))
        && call.weights.is_empty()
        && !call.hidden_states
        && call.dropout.is_none()
        && stack.layers.windows(2).all(|pair| widths(&pair[0]) == widths(&pair[1]))
}

/// Some rows of a batch and what a thread needs for them.
struct Part<'x, T: Float> {
    rows: Range<usize>,
    /// The tokens among them of each sequence of the batch.
    queries: Layout,
    x: &'x mut [T],
    buffers: LayerBuffers<T>,
}

/// Takes rows x (T, D) through all layers, in place.
///
/// # Errors
/// `Memory`, `Interrupted`, `Internal`.
pub(super) fn in_rows<T: Float>(
    stack: &Encoder<T>,
    x: &mut [T],
    layout: &Layout,
    call: &StackCall<'_, T>,
    team: usize,
) -> Result<()> {
    let Some(first) = stack.layers.first() else { return Ok(()) };
    let (total, d, width) =
        (layout.total(), stack.config.attention.d_model, first.config.attention.kv_width());
    let count = team * total.div_ceil(team * TASK_ROWS);
    let (mut parts, mut rest) = (Vec::with_capacity(count), x);
    for i in 0..count {
        let rows = total * i / count..total * (i + 1) / count;
        let (x, after) = rest.split_at_mut(rows.len() * d);
        rest = after;
        let (queries, buffers) = (layout.rows(rows.clone()), first.buffers_of_rows(rows.len())?);
        parts.push(Mutex::new(Part { rows, queries, x, buffers }));
    }
    let room = || Ok([buffer::<T>(total, width)?, buffer::<T>(total, width)?]);
    let (mut there, mut coming): ([_; 2], [_; 2]) = (room()?, room()?);
    for n in 0..=stack.layers.len() {
        let [k, v] = &there;
        let next = coming.each_mut().map(|x| OutRows::new(&mut x[..]));
        try_parallel(count, |i| {
            let mut part = parts[i].lock().unwrap_or_else(PoisonError::into_inner);
            let Part { rows, queries, x, buffers } = &mut *part;
            if n > 0 {
                let of_layer = stack.call_of(n - 1, call, None);
                let following = stack.layers.get(n).map_or(&[][..], EncoderLayer::panels);
                let layer = &stack.layers[n - 1];
                layer.finish_rows(x, (queries, layout), &of_layer, (k, v), buffers, following)?;
            }
            if let Some(layer) = stack.layers.get(n) {
                // SAFETY: each part has rows of its own.
                let [k, v] = next.map(|x| unsafe { x.slice(rows.start * width, rows.len() * width) });
                layer.project_rows(x, rows.len(), (k, v), buffers)?;
            }
            Ok(())
        })?;
        std::mem::swap(&mut there, &mut coming);
    }
    Ok(())
}
