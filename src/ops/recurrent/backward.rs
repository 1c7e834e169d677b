//! Back through time: the steps in the reverse order, each its cell and then one product with the recurrent weights.
//!
//! Gradients of the weights are no part of this. They are sums over rows, taken afterwards over all of them at once, in the
//! order in which they stand: time by time, whatever the direction.

use std::ops::Range;

use super::{Direction, SavedSteps, Steps, over_sequences};
use crate::error::Result;
use crate::kernels::gemm::OutRows;
use crate::kernels::recurrent::{Cell, FromOutput, GruBack, LstmBack, RnnBack};
use crate::ops::linear::PackedLinear;
use crate::simd::Float;
use crate::threads::checkpoint;

/// What a direction reads and writes on its way back.
pub struct BackRoom<'a, T: Float> {
    /// What the way forward left (T, gates H).
    pub gates: &'a [T],
    /// What it kept.
    pub saved: &'a SavedSteps<T>,
    /// The recurrent weights, [turned](PackedLinear::turned).
    pub turned: PackedLinear<T>,
    /// (B, H): the gradient of the last h, then of the first.
    pub d_h: &'a mut [T],
    /// c likewise; empty but for LSTM.
    pub d_c: &'a mut [T],
    /// (T, gates H), written: of the products with the input.
    pub d_gates: &'a mut [T],
    /// Of those with h, where they differ (GRU); else empty.
    pub d_hidden: &'a mut [T],
}

/// A room whose parts several tasks take.
struct SharedBack<'a, T: Float> {
    gates: &'a [T],
    saved: &'a SavedSteps<T>,
    turned: &'a PackedLinear<T>,
    d_h: OutRows<'a, T>,
    d_c: OutRows<'a, T>,
    d_gates: OutRows<'a, T>,
    d_hidden: OutRows<'a, T>,
}

/// Takes the gradient of all directions' h, `d_out` (T, directions H), dense, back through time.
///
/// # Errors
/// `Memory`, `Interrupted`, `Internal`.
pub fn run_back<T: Float>(
    directions: &[Direction<'_, T>],
    steps: &Steps,
    rooms: &mut [BackRoom<'_, T>],
    d_out: &[T],
) -> Result<()> {
    let shared: Vec<SharedBack<'_, T>> = rooms
        .iter_mut()
        .map(|room| SharedBack {
            gates: room.gates,
            saved: room.saved,
            turned: &room.turned,
            d_h: OutRows::new(room.d_h),
            d_c: OutRows::new(room.d_c),
            d_gates: OutRows::new(room.d_gates),
            d_hidden: OutRows::new(room.d_hidden),
        })
        .collect();
    over_sequences(directions, steps, |d, sequences| {
        let (direction, width) = (&directions[d], directions[d].hidden.k());
        let d_out =
            FromOutput { rows: d_out.get(d * width..).unwrap_or(&[]), stride: directions.len() * width };
        back(direction, steps, sequences, &shared[d], d_out)
    })
}

/// Takes some sequences back.
fn back<T: Float>(
    direction: &Direction<'_, T>,
    steps: &Steps,
    sequences: Range<usize>,
    room: &SharedBack<'_, T>,
    d_out: FromOutput<'_, T>,
) -> Result<()> {
    let Direction { cell, hidden, reverse } = *direction;
    let (width, wide) = (hidden.k(), hidden.n());
    let isa = hidden.isa;
    for step in (0..steps.times()).rev() {
        let rows = steps.running(steps.time(step, reverse), &sequences);
        if rows.is_empty() {
            continue;
        }
        checkpoint()?;
        let (m, first) = (rows.len(), sequences.start * width);
        let (here, all) = (rows.start * width..rows.end * width, rows.start * wide..rows.end * wide);
        let gates = &room.gates[all.clone()];
        let d_out = FromOutput { rows: &d_out.rows[rows.start * d_out.stride..], ..d_out };
        // SAFETY: these are rows of sequences that no other task has, of its own direction.
        let (d_h, d_gates) =
            unsafe { (room.d_h.slice(first, m * width), room.d_gates.slice(all.start, m * wide)) };
        match cell {
            Cell::Tanh | Cell::Relu => {
                T::dispatch(isa, RnnBack { cell, width, gates, d_out, d_h, d_gates });
                room.turned.rows_here(d_gates, m, d_h, false);
            }
            Cell::Lstm => {
                let (c, tanh_c) = (&room.saved.cell[here.clone()], &room.saved.inner[here]);
                // SAFETY: as above.
                let d_c = unsafe { room.d_c.slice(first, m * width) };
                T::dispatch(isa, LstmBack { width, gates, c, tanh_c, d_out, d_h, d_c, d_gates });
                room.turned.rows_here(d_gates, m, d_h, false);
            }
            Cell::Gru => {
                let (h, inner) = (&room.saved.before[here.clone()], &room.saved.inner[here]);
                // SAFETY: as above.
                let d_hidden = unsafe { room.d_hidden.slice(all.start, m * wide) };
                T::dispatch(isa, GruBack { width, gates, inner, h, d_out, d_h, d_gates, d_hidden });
                room.turned.rows_here(d_hidden, m, d_h, true);
            }
        }
    }
    Ok(())
}
