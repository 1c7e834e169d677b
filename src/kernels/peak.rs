//! The machine's own arithmetic limit: independent fused multiply-adds in registers, nothing else.
//!
//! Every speed that headwise states is a share of what this loop reaches on the same core in the same run.

use crate::simd::{Float, Kernel, Simd};

/// Runs `rounds` rounds of [`PEAK_CHAINS`] independent multiply-adds on vectors; returns multiply-adds done and a
/// number that depends on all of them, so that none can be left out.
pub struct Peak {
    /// Rounds of the loop.
    pub rounds: usize,
}

/// Chains that run side by side: more than the latency (4 or 5 cycles) times the two units of every known core,
/// few enough for sixteen registers.
pub const PEAK_CHAINS: usize = 12;

impl<T: Float> Kernel<T> for Peak {
    type Output = (usize, T);

    #[inline(always)]
    fn run<S: Simd<T>>(self, s: S) -> (usize, T) {
        // Hidden from the optimiser, which would otherwise compute equal chains once, or none at all.
        let hidden = std::hint::black_box;
        let factor = s.splat(hidden(T::from_f64(0.999_9)));
        let term = s.splat(hidden(T::from_f64(0.000_1)));
        let mut acc = [s.splat(T::ONE); PEAK_CHAINS];
        for (i, a) in acc.iter_mut().enumerate() {
            *a = s.splat(hidden(T::from_f64(i as f64)));
        }
        for _ in 0..self.rounds {
            for a in &mut acc {
                *a = s.fma(*a, factor, term);
            }
        }
        let mut sum = acc[0];
        for &a in &acc[1..] {
            sum = s.add(sum, a);
        }
        let mut lanes = [T::ZERO; crate::simd::VIRTUAL_LANES];
        s.store(sum, &mut lanes);
        (self.rounds * PEAK_CHAINS * S::LANES, lanes[0])
    }
}
