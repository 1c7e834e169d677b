//! The keys of a task, and which of them a row may attend to.

use super::{KEY_TILE, Mask, Row};
use crate::simd::Float;

/// Keys and values of one key/value head, as rows of larger arrays.
#[derive(Clone, Copy, Debug)]
pub struct Keys<'a, T> {
    /// Row j of K starts at `j * k_stride`.
    pub k: &'a [T],
    /// Distance between rows of K.
    pub k_stride: usize,
    /// Row j of V starts at `j * v_stride`.
    pub v: &'a [T],
    /// Distance between rows of V.
    pub v_stride: usize,
    /// Head width of values.
    pub ev: usize,
    /// The rows of K and V that count, ascending; `0..count` if absent.
    pub rows: Option<&'a [u32]>,
    /// The places of the keys within their sequence, ascending; `0..count` if absent.
    pub places: Option<&'a [u32]>,
    /// How many keys there are.
    pub count: usize,
    /// Keys that are blocked without having been removed.
    pub allowed: Option<&'a [bool]>,
}

impl<T> Keys<'_, T> {
    /// The row of K and V that holds key `j`.
    #[inline(always)]
    pub fn row(&self, j: usize) -> usize {
        self.rows.map_or(j, |rows| rows[j] as usize)
    }

    /// The place of key `j` within its sequence.
    #[inline(always)]
    pub fn place(&self, j: usize) -> usize {
        self.places.map_or(j, |places| places[j] as usize)
    }
}

/// The keys of a tile that a row may attend to, as bits.
#[inline(always)]
pub fn row_bits<T: Float>(
    row: &Row,
    keys: &Keys<'_, T>,
    mask: &Mask<'_, T>,
    first: usize,
    count: usize,
) -> u64 {
    let low = row.first.saturating_sub(first).min(count);
    let high = row.end.saturating_sub(first).min(count);
    if low >= high {
        return 0;
    }
    let mut bits = (u64::MAX >> (KEY_TILE - (high - low))) << low;
    if let Some(allowed) = keys.allowed {
        for c in low..high {
            bits &= !(u64::from(!allowed[first + c]) << c);
        }
    }
    match *mask {
        Mask::None => {}
        Mask::Bool(data, [h, l, k]) => {
            let start = row.head * h + row.query * l;
            for c in low..high {
                bits &= !(u64::from(!data[start + keys.place(first + c) * k]) << c);
            }
        }
        Mask::Float(data, [h, l, k]) => {
            let start = row.head * h + row.query * l;
            for c in low..high {
                let blocked = data[start + keys.place(first + c) * k] == T::NEG_INFINITY;
                bits &= !(u64::from(blocked) << c);
            }
        }
    }
    bits
}
