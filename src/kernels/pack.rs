//! Packing weights into panels, once.
//!
//! A panel holds `NV * LANES` columns of the product (rows of the weight matrix) as `[K][width]`, so that each step
//! of k is one run of memory: no gaps, no transposition and no more address arithmetic in the hot loop. The last panel is
//! only as many vectors wide as it has columns for; the columns beyond are zeros.
//!
//! Nothing is computed, so panels are the weights themselves in another order: [`UnpackRows`] has them back bit for bit.

use super::gemm::K_BLOCK;
use crate::simd::{Float, Kernel, Simd, VIRTUAL_LANES};

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

    /// The numbers of a block that begin `offset` into panel `index`, or into those after it; fewer at the end.
    #[inline(always)]
    pub fn block(&self, index: usize, width: usize, offset: usize) -> &'a [T] {
        let start = self.data.len().min(index * width * self.k + offset);
        &self.data[start..self.data.len().min(start + K_BLOCK * width)]
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

/// Packs `columns` rows of `w` as one panel `[k][width]`. What is beyond the columns becomes zero up to whole vectors; further
/// vectors are left as they are.
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
    let whole_k = k - k % lanes;
    for c in (0..columns).step_by(lanes) {
        let rows = &w[c * ldw..];
        let n = lanes.min(columns - c);
        if n == lanes {
            for k0 in (0..whole_k).step_by(lanes) {
                s.transpose(&rows[k0..], ldw, &mut panel[k0 * width + c..], width);
            }
        } else {
            // Turned as a square of which some rows are zero.
            let mut square = [T::ZERO; VIRTUAL_LANES * VIRTUAL_LANES];
            for k0 in (0..whole_k).step_by(lanes) {
                for j in 0..n {
                    s.store(s.load(&rows[j * ldw + k0..]), &mut square[j * lanes..]);
                }
                s.transpose(&square, lanes, &mut panel[k0 * width + c..], width);
            }
        }
        for k1 in whole_k..k {
            for j in 0..lanes {
                panel[k1 * width + c + j] = if j < n { rows[j * ldw + k1] } else { T::ZERO };
            }
        }
    }
}

/// The reverse of [`PackRows`]: panels back to rows (n, k), dense.
pub struct UnpackRows<'a, T> {
    /// The panels, as [`PackRows`] wrote them.
    pub panels: &'a [T],
    /// Rows.
    pub n: usize,
    /// Columns.
    pub k: usize,
    /// Where the rows go: n k numbers.
    pub out: &'a mut [T],
    /// Vectors in a row of a whole panel.
    pub nv: usize,
}

impl<T: Float> Kernel<T> for UnpackRows<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd<T>>(self, s: S) {
        let whole = self.nv * S::LANES;
        let mut at = 0;
        for first in (0..self.n).step_by(whole) {
            let columns = whole.min(self.n - first);
            let width = columns.div_ceil(S::LANES) * S::LANES;
            let panel = &self.panels[at..at + width * self.k];
            unpack_panel(s, panel, width, columns, self.k, &mut self.out[first * self.k..]);
            at += width * self.k;
        }
    }
}

/// Writes the `columns` columns of a panel `[k][width]` as dense rows.
#[inline(always)]
fn unpack_panel<T: Float, S: Simd<T>>(
    s: S,
    panel: &[T],
    width: usize,
    columns: usize,
    k: usize,
    rows: &mut [T],
) {
    let lanes = S::LANES;
    for c in (0..columns).step_by(lanes) {
        let block_columns = lanes.min(columns - c);
        let whole_k = if block_columns == lanes { k - k % lanes } else { 0 };
        for k0 in (0..whole_k).step_by(lanes) {
            s.transpose(&panel[k0 * width + c..], width, &mut rows[c * k + k0..], k);
        }
        for k1 in whole_k..k {
            for j in 0..block_columns {
                rows[(c + j) * k + k1] = panel[k1 * width + c + j];
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simd::available;

    /// Numbers that a computation would change: NaNs of several payloads, infinities, zeros of both signs, subnormals.
    fn bits(i: usize) -> u32 {
        let odd = [0x7fc0_0001, 0xffc1_2345, 0x7f80_0001, 0x7f80_0000, 0xff80_0000, 0x8000_0000, 0, 1];
        odd.get(i % 11).copied().unwrap_or((i as u32).wrapping_mul(0x9e37_79b9))
    }

    /// What a kernel says of the instruction set that it runs on.
    struct Lanes;
    impl Kernel<f32> for Lanes {
        type Output = (usize, usize);
        #[inline(always)]
        fn run<S: Simd<f32>>(self, _: S) -> (usize, usize) {
            (S::LANES, S::GEMM_NV)
        }
    }

    #[test]
    fn panels_go_back_to_the_bits_they_came_from() {
        for isa in available() {
            let (lanes, nv) = f32::dispatch(isa, Lanes);
            let whole = lanes * nv;
            for n in [0, 1, lanes, lanes + 1, whole - 1, whole, whole + 1, 2 * whole + lanes + 3] {
                for k in [0, 1, lanes - 1, lanes, lanes + 1, 2 * lanes + 3] {
                    let w: Vec<f32> = (0..n * k).map(|i| f32::from_bits(bits(i))).collect();
                    let mut panels = vec![7.0; packed_len(n, k, lanes)];
                    f32::dispatch(isa, PackRows { w: &w, ldw: k, n, k, out: &mut panels, nv });
                    let mut rows = vec![7.0; n * k];
                    f32::dispatch(isa, UnpackRows { panels: &panels, n, k, out: &mut rows, nv });
                    let same = w.iter().zip(&rows).all(|(a, b)| a.to_bits() == b.to_bits());
                    assert!(same, "{isa}: ({n}, {k})");
                }
            }
        }
    }
}
