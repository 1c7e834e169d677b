//! Packing weights into panels, once.
//!
//! A panel holds `NV * LANES` columns of the product (rows of the weight matrix) as `[K][width]`, so that each step
//! of k is one run of memory: no gaps, no transposition and no more address arithmetic in the hot loop. The last panel is
//! only as many vectors wide as it has columns for; the columns beyond are zeros.

use crate::simd::{Float, Kernel, Simd};

/// Packed weights of a product with `n` columns over `k` steps.
#[derive(Clone, Copy, Debug)]
pub struct Panels<'a, T> {
    /// The panels, back to back; each starts on a cache line if the slice does.
    pub data: &'a [T],
    /// Columns of the product.
    pub n: usize,
    /// Steps of the product.
    pub k: usize,
}

impl<'a, T> Panels<'a, T> {
    /// Panel `index`, to the end of the data; `width` is that of a whole panel.
    #[inline(always)]
    pub fn panel(&self, index: usize, width: usize) -> &'a [T] {
        &self.data[index * width * self.k..]
    }
}

/// Vectors in a row of a panel: `nv`, but for the last panel as few as hold its columns.
#[inline(always)]
pub fn panel_vectors(n: usize, panel: usize, lanes: usize, nv: usize) -> usize {
    (n - panel * nv * lanes).div_ceil(lanes).min(nv)
}

/// Length of the packed data: n rounded up to whole vectors, times k.
pub fn packed_len(n: usize, k: usize, lanes: usize) -> usize {
    n.div_ceil(lanes) * lanes * k
}

/// Packs rows of `w` (n, k), at stride `ldw`, as panels.
pub struct PackRows<'a, T> {
    /// The weight matrix, a row for each column of the product.
    pub w: &'a [T],
    /// Distance between its rows.
    pub ldw: usize,
    /// Its rows.
    pub n: usize,
    /// Its columns.
    pub k: usize,
    /// Where the panels go: [`packed_len`] numbers.
    pub out: &'a mut [T],
    /// Vectors in a row of a whole panel.
    pub nv: usize,
}

impl<T: Float> Kernel<T> for PackRows<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd<T>>(self, s: S) {
        let whole = self.nv * S::LANES;
        let mut at = 0;
        for first in (0..self.n).step_by(whole) {
            let columns = whole.min(self.n - first);
            let width = columns.div_ceil(S::LANES) * S::LANES;
            let panel = &mut self.out[at..at + width * self.k];
            pack_panel(s, &self.w[first * self.ldw..], self.ldw, columns, self.k, panel, width);
            at += width * self.k;
        }
    }
}

/// Packs `columns` rows of `w` as one panel `[k][width]`; what is beyond the columns becomes zero.
#[inline(always)]
pub fn pack_panel<T: Float, S: Simd<T>>(
    s: S,
    w: &[T],
    ldw: usize,
    columns: usize,
    k: usize,
    panel: &mut [T],
    width: usize,
) {
    let lanes = S::LANES;
    for c in (0..width).step_by(lanes) {
        let block_columns = lanes.min(columns.saturating_sub(c));
        let whole_k = if block_columns == lanes { k - k % lanes } else { 0 };
        for k0 in (0..whole_k).step_by(lanes) {
            s.transpose(&w[c * ldw + k0..], ldw, &mut panel[k0 * width + c..], width);
        }
        for k1 in whole_k..k {
            for j in 0..lanes {
                panel[k1 * width + c + j] = if j < block_columns { w[(c + j) * ldw + k1] } else { T::ZERO };
            }
        }
    }
}
