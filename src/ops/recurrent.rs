//! Recurrent layers in time: the part of each step that waits for the step before.
//!
//! The products with the input are done for all steps at once, before; here each step multiplies the state of the sequences
//! that are running by the recurrent weights, one product, and runs its cell, one dispatch. Sequences are sorted by length,
//! so that those running are always the first: going forward in time they become fewer, backward (the second direction)
//! more. Rows stand time by time ([`Steps`]), in the order in which they are used.
//!
//! Threads take some sequences each through all steps, and directions: nobody waits for anybody between two steps. What a
//! sequence gives depends on its own rows alone, since every number of a product is a chain of its own.

mod backward;
mod steps;

pub use backward::{BackRoom, run_back};
pub use steps::Steps;

use std::ops::Range;

use super::aligned::with_scratch;
use super::linear::{PackedLinear, WORTH_A_THREAD};
use super::reused::Reused;
use super::try_parallel;
use crate::error::Result;
use crate::kernels::gemm::OutRows;
use crate::kernels::recurrent::{Cell, GruStep, LstmStep, RnnStep, StepRows};
use crate::simd::Float;
use crate::threads::{checkpoint, team_size};

/// One direction of one layer.
#[derive(Clone, Copy)]
pub struct Direction<'a, T> {
    /// What a step computes.
    pub cell: Cell,
    /// Weights (gates H, H) and their bias.
    pub hidden: &'a PackedLinear<T>,
    /// Whether time runs backward.
    pub reverse: bool,
}

/// What a direction keeps for its gradient, rows time by time: (T, H) each.
pub struct SavedSteps<T: Float> {
    /// h of the step before.
    pub before: Reused<T>,
    /// c of the step before (LSTM), else empty.
    pub cell: Reused<T>,
    /// tanh(c) of the step (LSTM), the new gate's hidden part (GRU), else empty.
    pub inner: Reused<T>,
}

impl<T: Float> SavedSteps<T> {
    /// Room for `rows` rows of `width` numbers.
    ///
    /// # Errors
    /// `Memory`.
    pub fn new(cell: Cell, rows: usize, width: usize) -> Result<Self> {
        let room = |wanted: bool| Reused::new(if wanted { rows * width } else { 0 });
        Ok(Self {
            before: room(true)?,
            cell: room(cell == Cell::Lstm)?,
            inner: room(matches!(cell, Cell::Lstm | Cell::Gru))?,
        })
    }
}

/// What a direction reads and writes.
pub struct Room<'a, T: Float> {
    /// (T, gates H): products of the input, with their bias; then what [`crate::kernels::recurrent`] leaves.
    pub gates: &'a mut [T],
    /// h (B, H), in the order of [`Steps`]: the first state, then the last.
    pub h: &'a mut [T],
    /// c (B, H) likewise; empty but for LSTM.
    pub c: &'a mut [T],
    /// What gradients need, if they are wanted.
    pub saved: Option<&'a mut SavedSteps<T>>,
}

/// A room whose parts several tasks take.
struct Shared<'a, T> {
    gates: OutRows<'a, T>,
    h: OutRows<'a, T>,
    c: OutRows<'a, T>,
    saved: Option<[OutRows<'a, T>; 3]>,
}

/// Takes all directions of a layer through time; `out` (T, directions H), dense, gets their h side by side.
///
/// # Errors
/// `Memory`, `Interrupted`, `Internal`.
pub fn run<T: Float>(
    directions: &[Direction<'_, T>],
    steps: &Steps,
    rooms: &mut [Room<'_, T>],
    out: &mut [T],
) -> Result<()> {
    let out = OutRows::new(out);
    let shared: Vec<Shared<'_, T>> = rooms
        .iter_mut()
        .map(|room| Shared {
            gates: OutRows::new(room.gates),
            h: OutRows::new(room.h),
            c: OutRows::new(room.c),
            saved: room
                .saved
                .as_deref_mut()
                .map(|s| [&mut s.before, &mut s.cell, &mut s.inner].map(|rows| OutRows::new(&mut rows[..]))),
        })
        .collect();
    over_sequences(directions, steps, |d, sequences| {
        let (direction, width) = (&directions[d], directions[d].hidden.k());
        let out = StepRows { all: out, first: d * width, stride: directions.len() * width };
        forward(direction, steps, sequences, &shared[d], out)
    })
}

/// Deals directions and runs of sequences to threads: `f(direction, sequences)`.
fn over_sequences<T: Float>(
    directions: &[Direction<'_, T>],
    steps: &Steps,
    f: impl Fn(usize, Range<usize>) -> Result<()> + Sync,
) -> Result<()> {
    let n = directions.len();
    let work = |d: &Direction<'_, T>| d.hidden.n() * d.hidden.k() * steps.rows();
    if directions.iter().map(work).sum::<usize>() < WORTH_A_THREAD {
        return try_parallel(1, |_| (0..n).try_for_each(|d| f(d, 0..steps.sequences())));
    }
    let groups = steps.groups(team_size().div_ceil(n));
    try_parallel(n * groups.len(), |task| f(task % n, groups[task / n].clone()))
}

/// Takes some sequences through time.
fn forward<'a, T: Float>(
    direction: &Direction<'_, T>,
    steps: &Steps,
    sequences: Range<usize>,
    room: &Shared<'a, T>,
    out: StepRows<'_, T>,
) -> Result<()> {
    let Direction { cell, hidden, reverse } = *direction;
    let (width, wide) = (hidden.k(), hidden.n());
    let isa = hidden.isa;
    let scratch = if cell == Cell::Gru { sequences.len() * wide } else { 0 };
    with_scratch(scratch, |products: &mut [T]| {
        for step in 0..steps.times() {
            let rows = steps.running(steps.time(step, reverse), &sequences);
            if rows.is_empty() {
                continue;
            }
            checkpoint()?;
            let (m, first) = (rows.len(), sequences.start * width);
            // SAFETY: these are rows of sequences that no other task has, of its own direction.
            let (gates, h) =
                unsafe { (room.gates.slice(rows.start * wide, m * wide), room.h.slice(first, m * width)) };
            if cell == Cell::Gru {
                hidden.rows_here(h, m, products, false);
            } else {
                hidden.rows_here(h, m, gates, true);
            }
            // SAFETY: as above.
            let keep = |rows_of: &OutRows<'a, T>| unsafe { rows_of.slice(rows.start * width, m * width) };
            let bias = hidden.bias();
            let out = StepRows { first: out.first + rows.start * out.stride, ..out };
            match cell {
                Cell::Tanh | Cell::Relu => {
                    let before = room.saved.as_ref().map(|[before, ..]| keep(before));
                    T::dispatch(isa, RnnStep { cell, width, gates, bias, h, out, before });
                }
                Cell::Lstm => {
                    let saved = room.saved.as_ref().map(|saved| saved.each_ref().map(keep));
                    // SAFETY: as above.
                    let c = unsafe { room.c.slice(first, m * width) };
                    T::dispatch(isa, LstmStep { width, gates, bias, h, c, out, saved });
                }
                Cell::Gru => {
                    let saved = room.saved.as_ref().map(|[before, _, inner]| [keep(before), keep(inner)]);
                    let hidden = &products[..m * wide];
                    T::dispatch(isa, GruStep { width, gates, hidden, bias, h, out, saved });
                }
            }
        }
        Ok(())
    })
}
