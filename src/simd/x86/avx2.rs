//! AVX2 with FMA and F16C: vectors of 256 bits in sixteen registers.

#[allow(clippy::wildcard_imports, reason = "a hundred names that only this file uses")]
use std::arch::x86_64::*;

use super::{entry, methods};
use crate::simd::{Isa, Simd};

/// The token of AVX2; only the entry makes one.
#[derive(Clone, Copy, Debug)]
pub struct Avx2(());

macro_rules! features {
    ($($methods:tt)*) => { methods! { "avx2,fma,f16c"; $($methods)* } };
}
entry!(Avx2, "avx2,fma,f16c", ["avx2", "fma", "f16c"]);

impl Simd<f32> for Avx2 {
    type V = __m256;
    type M = __m256;
    const LANES: usize = 8;
    // Twelve sums, two vectors of weights and one broadcast fill fifteen of the sixteen registers.
    const GEMM_MR: usize = 6;
    const GEMM_NV: usize = 2;
    const ATTEND_MR: usize = 6;
    const ATTEND_NV: usize = 2;
    const ISA: Isa = Isa::Avx2;

    features! {
        fn prefetch(x: &[f32], at: usize) {
            _mm_prefetch::<_MM_HINT_T0>(x.as_ptr().wrapping_add(at).cast());
        }
        fn splat(x: f32) -> __m256 { _mm256_set1_ps(x) }
        fn load(x: &[f32]) -> __m256 {
            let x = &x[..8];
            // SAFETY: eight numbers are there.
            unsafe { _mm256_loadu_ps(x.as_ptr()) }
        }
        fn load_partial(x: &[f32]) -> __m256 {
            let m = first(x.len());
            // SAFETY: lanes beyond the slice are masked and not read.
            unsafe { _mm256_maskload_ps(x.as_ptr(), m) }
        }
        fn store(v: __m256, out: &mut [f32]) {
            let out = &mut out[..8];
            // SAFETY: eight numbers are there.
            unsafe { _mm256_storeu_ps(out.as_mut_ptr(), v) }
        }
        fn store_partial(v: __m256, out: &mut [f32]) {
            let m = first(out.len());
            // SAFETY: lanes beyond the slice are masked and not written.
            unsafe { _mm256_maskstore_ps(out.as_mut_ptr(), m, v) }
        }
        fn add(a: __m256, b: __m256) -> __m256 { _mm256_add_ps(a, b) }
        fn sub(a: __m256, b: __m256) -> __m256 { _mm256_sub_ps(a, b) }
        fn mul(a: __m256, b: __m256) -> __m256 { _mm256_mul_ps(a, b) }
        fn div(a: __m256, b: __m256) -> __m256 { _mm256_div_ps(a, b) }
        fn fma(a: __m256, b: __m256, c: __m256) -> __m256 { _mm256_fmadd_ps(a, b, c) }
        fn sqrt(a: __m256) -> __m256 { _mm256_sqrt_ps(a) }
        fn max(a: __m256, b: __m256) -> __m256 { _mm256_max_ps(a, b) }
        fn min(a: __m256, b: __m256) -> __m256 { _mm256_min_ps(a, b) }
        fn round(a: __m256) -> __m256 { _mm256_round_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(a) }
        fn abs(a: __m256) -> __m256 { _mm256_andnot_ps(_mm256_set1_ps(-0.0), a) }
        fn neg(a: __m256) -> __m256 { _mm256_xor_ps(_mm256_set1_ps(-0.0), a) }
        fn copysign(a: __m256, b: __m256) -> __m256 {
            let sign = _mm256_set1_ps(-0.0);
            _mm256_or_ps(_mm256_and_ps(sign, b), _mm256_andnot_ps(sign, a))
        }
        fn shift_to_exponent(a: __m256) -> __m256 {
            _mm256_castsi256_ps(_mm256_slli_epi32::<23>(_mm256_castps_si256(a)))
        }
        fn lt(a: __m256, b: __m256) -> __m256 { _mm256_cmp_ps::<_CMP_LT_OQ>(a, b) }
        fn le(a: __m256, b: __m256) -> __m256 { _mm256_cmp_ps::<_CMP_LE_OQ>(a, b) }
        fn eq(a: __m256, b: __m256) -> __m256 { _mm256_cmp_ps::<_CMP_EQ_OQ>(a, b) }
        fn mask_from_bits(bits: u64) -> __m256 {
            let lane = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
            let set = _mm256_and_si256(_mm256_set1_epi32(bits as i32), lane);
            _mm256_castsi256_ps(_mm256_cmpeq_epi32(set, lane))
        }
        fn mask_to_bits(m: __m256) -> u64 { _mm256_movemask_ps(m) as u64 }
        fn select(m: __m256, a: __m256, b: __m256) -> __m256 { _mm256_blendv_ps(b, a, m) }
        fn fold_add(parts: &[__m256]) -> f32 {
            let eight = _mm256_add_ps(parts[0], parts[1]);
            let four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps::<1>(eight));
            let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)))
        }
        fn fold_max(parts: &[__m256]) -> f32 {
            // The compare-and-select of `max` keeps the second operand when the first is NaN.
            let none = _mm256_set1_ps(f32::NEG_INFINITY);
            let eight = _mm256_max_ps(parts[1], _mm256_max_ps(parts[0], none));
            let four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps::<1>(eight));
            let two = _mm_max_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)))
        }
        fn transpose(x: &[f32], stride: usize, out: &mut [f32], out_stride: usize) {
            let row = |r: usize| {
                let x = &x[r * stride..r * stride + 8];
                // SAFETY: eight numbers are there.
                unsafe { _mm256_loadu_ps(x.as_ptr()) }
            };
            // Pairs of rows interleaved, then pairs of pairs, then the 128-bit halves exchanged.
            let (a0, a1) = interleave(row(0), row(1));
            let (a2, a3) = interleave(row(2), row(3));
            let (a4, a5) = interleave(row(4), row(5));
            let (a6, a7) = interleave(row(6), row(7));
            let (b0, b1) = interleave_pairs(a0, a2);
            let (b2, b3) = interleave_pairs(a1, a3);
            let (b4, b5) = interleave_pairs(a4, a6);
            let (b6, b7) = interleave_pairs(a5, a7);
            for (c, (low, high)) in [(b0, b4), (b1, b5), (b2, b6), (b3, b7)].into_iter().enumerate() {
                let out_low = &mut out[c * out_stride..c * out_stride + 8];
                // SAFETY: eight numbers are there.
                unsafe { _mm256_storeu_ps(out_low.as_mut_ptr(), _mm256_permute2f128_ps::<0x20>(low, high)) };
                let out_high = &mut out[(c + 4) * out_stride..(c + 4) * out_stride + 8];
                // SAFETY: eight numbers are there.
                unsafe { _mm256_storeu_ps(out_high.as_mut_ptr(), _mm256_permute2f128_ps::<0x31>(low, high)) };
            }
        }
    }
}

#[inline]
#[target_feature(enable = "avx2")]
fn interleave(a: __m256, b: __m256) -> (__m256, __m256) {
    (_mm256_unpacklo_ps(a, b), _mm256_unpackhi_ps(a, b))
}

#[inline]
#[target_feature(enable = "avx2")]
fn interleave_pairs(a: __m256, b: __m256) -> (__m256, __m256) {
    let (a, b) = (_mm256_castps_pd(a), _mm256_castps_pd(b));
    (_mm256_castpd_ps(_mm256_unpacklo_pd(a, b)), _mm256_castpd_ps(_mm256_unpackhi_pd(a, b)))
}

/// The mask of the first `n` of eight lanes.
#[inline]
#[target_feature(enable = "avx2")]
fn first(n: usize) -> __m256i {
    _mm256_cmpgt_epi32(_mm256_set1_epi32(n.min(8) as i32), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7))
}

/// The mask of the first `n` of four lanes.
#[inline]
#[target_feature(enable = "avx2")]
fn first_f64(n: usize) -> __m256i {
    _mm256_cmpgt_epi64(_mm256_set1_epi64x(n.min(4) as i64), _mm256_setr_epi64x(0, 1, 2, 3))
}

impl Simd<f64> for Avx2 {
    type V = __m256d;
    type M = __m256d;
    const LANES: usize = 4;
    const GEMM_MR: usize = 6;
    const GEMM_NV: usize = 2;
    const ATTEND_MR: usize = 6;
    const ATTEND_NV: usize = 2;
    const ISA: Isa = Isa::Avx2;

    features! {
        fn prefetch(x: &[f64], at: usize) {
            _mm_prefetch::<_MM_HINT_T0>(x.as_ptr().wrapping_add(at).cast());
        }
        fn splat(x: f64) -> __m256d { _mm256_set1_pd(x) }
        fn load(x: &[f64]) -> __m256d {
            let x = &x[..4];
            // SAFETY: four numbers are there.
            unsafe { _mm256_loadu_pd(x.as_ptr()) }
        }
        fn load_partial(x: &[f64]) -> __m256d {
            let m = first_f64(x.len());
            // SAFETY: lanes beyond the slice are masked and not read.
            unsafe { _mm256_maskload_pd(x.as_ptr(), m) }
        }
        fn store(v: __m256d, out: &mut [f64]) {
            let out = &mut out[..4];
            // SAFETY: four numbers are there.
            unsafe { _mm256_storeu_pd(out.as_mut_ptr(), v) }
        }
        fn store_partial(v: __m256d, out: &mut [f64]) {
            let m = first_f64(out.len());
            // SAFETY: lanes beyond the slice are masked and not written.
            unsafe { _mm256_maskstore_pd(out.as_mut_ptr(), m, v) }
        }
        fn add(a: __m256d, b: __m256d) -> __m256d { _mm256_add_pd(a, b) }
        fn sub(a: __m256d, b: __m256d) -> __m256d { _mm256_sub_pd(a, b) }
        fn mul(a: __m256d, b: __m256d) -> __m256d { _mm256_mul_pd(a, b) }
        fn div(a: __m256d, b: __m256d) -> __m256d { _mm256_div_pd(a, b) }
        fn fma(a: __m256d, b: __m256d, c: __m256d) -> __m256d { _mm256_fmadd_pd(a, b, c) }
        fn sqrt(a: __m256d) -> __m256d { _mm256_sqrt_pd(a) }
        fn max(a: __m256d, b: __m256d) -> __m256d { _mm256_max_pd(a, b) }
        fn min(a: __m256d, b: __m256d) -> __m256d { _mm256_min_pd(a, b) }
        fn round(a: __m256d) -> __m256d { _mm256_round_pd::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(a) }
        fn abs(a: __m256d) -> __m256d { _mm256_andnot_pd(_mm256_set1_pd(-0.0), a) }
        fn neg(a: __m256d) -> __m256d { _mm256_xor_pd(_mm256_set1_pd(-0.0), a) }
        fn copysign(a: __m256d, b: __m256d) -> __m256d {
            let sign = _mm256_set1_pd(-0.0);
            _mm256_or_pd(_mm256_and_pd(sign, b), _mm256_andnot_pd(sign, a))
        }
        fn shift_to_exponent(a: __m256d) -> __m256d {
            _mm256_castsi256_pd(_mm256_slli_epi64::<52>(_mm256_castpd_si256(a)))
        }
        fn lt(a: __m256d, b: __m256d) -> __m256d { _mm256_cmp_pd::<_CMP_LT_OQ>(a, b) }
        fn le(a: __m256d, b: __m256d) -> __m256d { _mm256_cmp_pd::<_CMP_LE_OQ>(a, b) }
        fn eq(a: __m256d, b: __m256d) -> __m256d { _mm256_cmp_pd::<_CMP_EQ_OQ>(a, b) }
        fn mask_from_bits(bits: u64) -> __m256d {
            let lane = _mm256_setr_epi64x(1, 2, 4, 8);
            let set = _mm256_and_si256(_mm256_set1_epi64x(bits as i64), lane);
            _mm256_castsi256_pd(_mm256_cmpeq_epi64(set, lane))
        }
        fn mask_to_bits(m: __m256d) -> u64 { _mm256_movemask_pd(m) as u64 }
        fn select(m: __m256d, a: __m256d, b: __m256d) -> __m256d { _mm256_blendv_pd(b, a, m) }
    }
}
