//! The gradient of attention, again without the L x S matrix: weights are computed anew, tile by tile, from the saved
//! log-sum-exp (Dao et al. 2022).
//!
//! ```text
//! p_ij = exp(x_ij - lse_i)                                 the weights; 0 where a pair is blocked
//! delta_i = d_out_i · out_i                                = sum_j p_ij dp_ij
//! dp_ij = d_out_i · v_j                                    times the factor of dropout
//! ds_ij = p_ij (dp_ij - delta_i)                           the gradient of what is added to a score
//! g_ij = ds_ij (1 - tanh^2(scale q_i · k_j / cap)) scale   the gradient of q_i · k_j; without a cap ds_ij scale
//! dq_i = sum_j g_ij k_j,  dk_j = sum_i g_ij q_i,  dv_j = sum_i p_ij d_out_i    (p with dropout)
//! ```
//!
//! Pairs are taken in blocks of [`QUERY_BLOCK`] queries of one head and [`KEY_TILE`] keys. The sum for dq starts at zero in
//! each tile of keys and is added to the running one, tiles ascending; those for dk and dv start at zero in each block of
//! queries, heads ascending and in each the blocks ascending. A block without an allowed pair changes nothing at all, and so is
//! skipped. Since every sum has this one order, it does not matter whether one sweep gives all three gradients
//! (five products) or one sweep over queries gives dq and another over keys dk and dv (seven): the second way has more
//! tasks where there are few heads.
//!
//! Blocked pairs leave no trace: p and g are zeros there by selection, and where a zero would meet a NaN or an infinity
//! in the products, the products pass blocked pairs over.

mod pairs;
mod products;
mod room;
mod saved;

pub use room::backward_len;
pub use saved::Prepare;

use super::keys::{Keys, row_bits};
use super::scoring::{Unit, is_plain};
use super::{Dropout, KEY_TILE, Row, Scoring, padded as pad};
use crate::account::{at, turn};
use crate::kernels::gemm::OutRows;
use crate::simd::{Float, Kernel, Simd};
use pairs::{Factors, RowState, weights_and_gradients};
use products::{Target, add_columns, add_columns_selected, add_rows, add_rows_selected};
use room::{Room, rows_are_finite};

/// Queries whose sums for dk and dv are one chain; part of the law of bits.
pub const QUERY_BLOCK: usize = 64;

/// Where the rows of a gradient are: row i starts at `start + i * stride`.
#[derive(Clone, Copy)]
pub struct Place<'a, T> {
    /// All numbers of the gradient, shared with other tasks.
    pub out: OutRows<'a, T>,
    /// The first row.
    pub start: usize,
    /// Distance between rows.
    pub stride: usize,
}

/// What is wanted of a block of pairs.
#[derive(Clone, Copy)]
pub enum Wanted<'a, T> {
    /// Gradients of queries, by the rows given; of keys and of values, by the rows of K and V.
    Operands {
        /// dq, if wanted: added to what is there.
        dq: Option<Place<'a, T>>,
        /// dk and dv, if wanted: written when the tile ends.
        dkv: Option<[Place<'a, T>; 2]>,
    },
    /// The gradient of what is added to scores: ds is added to element `head * strides[0] + query * strides[1] +
    /// key * strides[2]` from the given start on, places of queries and of keys, in the order of rows and then of keys.
    Mask(OutRows<'a, T>, usize, [usize; 3]),
}

/// The gradients of some queries of one head over one tile of keys.
pub struct Backward<'a, T> {
    /// Queries (R, E), rows at stride `ldq`.
    pub q: &'a [T],
    /// Distance between queries.
    pub ldq: usize,
    /// Gradient of the output (R, Ev), rows at stride `ldo`.
    pub d_out: &'a [T],
    /// Distance between rows of it.
    pub ldo: usize,
    /// Head width of queries and keys.
    pub e: usize,
    /// Keys and values.
    pub keys: Keys<'a, T>,
    /// The first key of the tile.
    pub first: usize,
    /// The R rows, those of one head from the first of a block of [`QUERY_BLOCK`] on.
    pub rows: &'a [Row],
    /// What [`Prepare`] made of each row: maximum, inverse sum, delta.
    pub saved: [&'a [T]; 3],
    /// Scores.
    pub scoring: Scoring<'a, T>,
    /// Dropout of weights.
    pub dropout: Option<Dropout>,
    /// Room for a tile: [`backward_len`] numbers, kept from the call that begins a tile to the one that ends it.
    pub scratch: &'a mut [T],
    /// Whether these are the first rows that see the tile.
    pub begin: bool,
    /// Whether they are the last.
    pub end: bool,
    /// What to compute.
    pub wanted: Wanted<'a, T>,
}

impl<T: Float> Kernel<T> for Backward<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd<T>>(mut self, s: S) {
        at!(Attention);
        let scratch = std::mem::take(&mut self.scratch);
        let mut room = Room::new(scratch, self.e, self.keys.ev);
        let count = KEY_TILE.min(self.keys.count - self.first);
        if self.begin {
            at!(Packing);
            room.load_keys(s, &self.keys, self.first, count);
            room.dk.fill(T::ZERO);
            room.dv.fill(T::ZERO);
        }
        for at in (0..self.rows.len()).step_by(QUERY_BLOCK) {
            self.block(s, &mut room, at..self.rows.len().min(at + QUERY_BLOCK), count);
        }
        if self.end
            && let Wanted::Operands { dkv: Some(places), .. } = self.wanted
        {
            let sums = [(&*room.dk, room.ldq, self.e), (&*room.dv, room.ldv, self.keys.ev)];
            for (place, (sums, ld, width)) in places.into_iter().zip(sums) {
                for j in 0..count {
                    let start = place.start + self.keys.row(self.first + j) * place.stride;
                    // SAFETY: each row of keys has its own place, and is written by the one task that has its tile.
                    let out = unsafe { place.out.slice(start, width) };
                    out.copy_from_slice(&sums[j * ld..][..width]);
                }
            }
        }
    }
}

impl<T: Float> Backward<'_, T> {
    /// One block of queries.
    #[inline(always)]
    fn block<S: Simd<T>>(&self, s: S, room: &mut Room<'_, T>, at: std::ops::Range<usize>, count: usize) {
        let Self { e, keys, first, scoring, .. } = self;
        let (rows, n, ev) = (&self.rows[at.clone()], at.len(), keys.ev);
        if rows.iter().all(|r| r.end <= *first || r.first >= first + count) {
            return;
        }
        let mut bits = [0; QUERY_BLOCK];
        let (mut any, mut every) = (0, u64::MAX);
        for (bits, row) in bits.iter_mut().zip(rows) {
            *bits = row_bits(row, keys, &scoring.mask, *first, count);
            any |= *bits;
            every &= *bits;
        }
        if any == 0 {
            return;
        }
        at!(AttentionProduct);
        // Keys beyond the last allowed one add exact zeros: they are left out.
        let used = KEY_TILE - any.leading_zeros() as usize;
        room.load_queries(s, &self.q[at.start * self.ldq..], self.ldq, n);
        room.load_d_out(s, &self.d_out[at.start * self.ldo..], self.ldo, n);
        room.products(s, n, used);
        turn!(Softmax);
        let for_mask = matches!(self.wanted, Wanted::Mask(..));
        let unit = Unit::new(scoring.scale);
        let factors = Factors {
            unit,
            // ds itself is the gradient of a mask.
            scale: if for_mask { T::ONE } else { scoring.scale },
            cap: !for_mask && scoring.softcap.is_some(),
            plain: is_plain(scoring, &unit),
        };
        for (i, row) in rows.iter().enumerate() {
            let r = at.start + i;
            let state = RowState {
                row,
                bits: bits[i],
                max: self.saved[0][r],
                inverse: self.saved[1][r],
                delta: self.saved[2][r],
            };
            weights_and_gradients(s, room, i, &state, &factors, self, (count, used));
        }
        turn!(AttentionProduct);
        let whole = every == u64::MAX >> (KEY_TILE - used);
        match self.wanted {
            Wanted::Mask(out, start, strides) => {
                self.add_to_mask(room, rows, &bits, used, (out, start, strides));
            }
            Wanted::Operands { dq, dkv } => {
                // The padding of rows is zeros.
                let clean = whole
                    || rows_are_finite(s, &room.q[..n * room.ldq])
                        && rows_are_finite(s, &room.d_out[..n * room.ldv])
                        && rows_are_finite(s, &room.k[..used * room.ldq]);
                let bits = &bits[..n];
                if let Some(place) = dq {
                    let to = Target {
                        out: place.out,
                        start: place.start + at.start * place.stride,
                        stride: place.stride,
                        width: *e,
                    };
                    if clean {
                        add_rows(s, &room.ds, (n, used), (&*room.k, room.ldq), &to);
                    } else {
                        add_rows_selected(s, &room.ds, bits, used, (&*room.k, room.ldq), &to);
                    }
                }
                if dkv.is_some() {
                    let (ldq, ldv) = (room.ldq, room.ldv);
                    let dk =
                        Target { out: OutRows::new(&mut *room.dk), start: 0, stride: ldq, width: pad(*e) };
                    let dv =
                        Target { out: OutRows::new(&mut *room.dv), start: 0, stride: ldv, width: pad(ev) };
                    if clean {
                        add_columns(s, &room.p, (n, used), (&*room.d_out, ldv), &dv);
                        add_columns(s, &room.ds, (n, used), (&*room.q, ldq), &dk);
                    } else {
                        add_columns_selected(s, &room.p, bits, used, (&*room.d_out, ldv), &dv);
                        add_columns_selected(s, &room.ds, bits, used, (&*room.q, ldq), &dk);
                    }
                }
            }
        }
    }

    /// Adds ds to the gradient of a mask, a number at a time.
    #[inline(always)]
    fn add_to_mask(
        &self,
        room: &Room<'_, T>,
        rows: &[Row],
        bits: &[u64],
        used: usize,
        (out, begin, [h, l, k]): (OutRows<'_, T>, usize, [usize; 3]),
    ) {
        for ((row, ds), bits) in rows.iter().zip(room.ds.chunks_exact(KEY_TILE)).zip(bits) {
            let start = begin + row.head * h + row.query * l;
            for (c, &ds) in ds[..used].iter().enumerate().filter(|(c, _)| bits >> c & 1 != 0) {
                // SAFETY: elements of different tasks, and of the steps of this one, are different or in turn.
                let out = unsafe { out.slice(start + self.keys.place(self.first + c) * k, 1) };
                out[0] += ds;
            }
        }
    }
}
