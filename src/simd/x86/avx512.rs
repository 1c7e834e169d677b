//! AVX-512 F, BW, DQ and VL: vectors of 512 bits in thirty-two registers.

#[allow(clippy::wildcard_imports, reason = "a hundred names that only this file uses")]
use std::arch::x86_64::*;

use super::{entry, methods};
use crate::simd::{Isa, Simd};

/// The token of AVX-512; only the entry makes one.
#[derive(Clone, Copy, Debug)]
pub struct Avx512(());

macro_rules! features {
    ($($methods:tt)*) => { methods! { "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c"; $($methods)* } };
}
entry!(
    Avx512,
    "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c",
    ["avx512f", "avx512bw", "avx512dq", "avx512vl", "avx2", "fma", "f16c"]
);

impl Simd<f32> for Avx512 {
    type V = __m512;
    type M = __mmask16;
    const LANES: usize = 16;
    // Twenty-four sums, three vectors of weights and broadcasts folded into the multiply-adds.
    const GEMM_MR: usize = 8;
    const GEMM_NV: usize = 3;
    const ATTEND_MR: usize = 8;
    const ATTEND_NV: usize = 2;
    const ISA: Isa = Isa::Avx512;

    features! {
        fn prefetch(x: &[f32], at: usize) {
            _mm_prefetch::<_MM_HINT_T0>(x.as_ptr().wrapping_add(at).cast());
        }
        fn splat(x: f32) -> __m512 { _mm512_set1_ps(x) }
        fn load(x: &[f32]) -> __m512 {
            let x = &x[..16];
            // SAFETY: sixteen numbers are there.
            unsafe { _mm512_loadu_ps(x.as_ptr()) }
        }
        fn load_partial(x: &[f32]) -> __m512 {
            let m = first(x.len(), 16) as __mmask16;
            // SAFETY: lanes beyond the slice are masked and not read.
            unsafe { _mm512_maskz_loadu_ps(m, x.as_ptr()) }
        }
        fn store(v: __m512, out: &mut [f32]) {
            let out = &mut out[..16];
            // SAFETY: sixteen numbers are there.
            unsafe { _mm512_storeu_ps(out.as_mut_ptr(), v) }
        }
        fn store_partial(v: __m512, out: &mut [f32]) {
            let m = first(out.len(), 16) as __mmask16;
            // SAFETY: lanes beyond the slice are masked and not written.
            unsafe { _mm512_mask_storeu_ps(out.as_mut_ptr(), m, v) }
        }
        fn add(a: __m512, b: __m512) -> __m512 { _mm512_add_ps(a, b) }
        fn sub(a: __m512, b: __m512) -> __m512 { _mm512_sub_ps(a, b) }
        fn mul(a: __m512, b: __m512) -> __m512 { _mm512_mul_ps(a, b) }
        fn div(a: __m512, b: __m512) -> __m512 { _mm512_div_ps(a, b) }
        fn fma(a: __m512, b: __m512, c: __m512) -> __m512 { _mm512_fmadd_ps(a, b, c) }
        fn sqrt(a: __m512) -> __m512 { _mm512_sqrt_ps(a) }
        fn max(a: __m512, b: __m512) -> __m512 { _mm512_max_ps(a, b) }
        fn min(a: __m512, b: __m512) -> __m512 { _mm512_min_ps(a, b) }
        fn round(a: __m512) -> __m512 { _mm512_roundscale_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(a) }
        fn abs(a: __m512) -> __m512 { _mm512_abs_ps(a) }
        fn neg(a: __m512) -> __m512 { _mm512_xor_ps(_mm512_set1_ps(-0.0), a) }
        fn copysign(a: __m512, b: __m512) -> __m512 {
            let sign = _mm512_set1_ps(-0.0);
            _mm512_or_ps(_mm512_and_ps(sign, b), _mm512_andnot_ps(sign, a))
        }
        fn shift_to_exponent(a: __m512) -> __m512 {
            _mm512_castsi512_ps(_mm512_slli_epi32::<23>(_mm512_castps_si512(a)))
        }
        fn lt(a: __m512, b: __m512) -> __mmask16 { _mm512_cmp_ps_mask::<_CMP_LT_OQ>(a, b) }
        fn le(a: __m512, b: __m512) -> __mmask16 { _mm512_cmp_ps_mask::<_CMP_LE_OQ>(a, b) }
        fn eq(a: __m512, b: __m512) -> __mmask16 { _mm512_cmp_ps_mask::<_CMP_EQ_OQ>(a, b) }
        fn mask_from_bits(bits: u64) -> __mmask16 { bits as __mmask16 }
        fn mask_to_bits(m: __mmask16) -> u64 { u64::from(m) }
        fn select(m: __mmask16, a: __m512, b: __m512) -> __m512 { _mm512_mask_blend_ps(m, b, a) }
        fn fold_add(parts: &[__m512]) -> f32 {
            let v = parts[0];
            let eight = _mm256_add_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps::<1>(v));
            let four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps::<1>(eight));
            let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)))
        }
        fn fold_max(parts: &[__m512]) -> f32 {
            // The compare-and-select of `max` keeps the second operand when the first is NaN.
            let none = _mm512_set1_ps(f32::NEG_INFINITY);
            let v = _mm512_max_ps(parts[0], none);
            let eight = _mm256_max_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps::<1>(v));
            let four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps::<1>(eight));
            let two = _mm_max_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)))
        }
        fn dot_rows(x: &[f32], stride: usize, q: &[f32], acc: __m512) -> __m512 {
            assert!(x.len() >= 16 && (x.len() - 16) / 15 >= stride, "a block of 16 x 16 to read");
            let q = &q[..16];
            let mut rows = [_mm512_setzero_ps(); 16];
            for (r, row) in rows.iter_mut().enumerate() {
                // SAFETY: row 15 ends at 15 * stride + 16, which the assertion has checked.
                *row = unsafe { _mm512_loadu_ps(x.as_ptr().add(r * stride)) };
            }
            let mut acc = acc;
            for (column, &q) in transpose16(rows).into_iter().zip(q) {
                acc = _mm512_fmadd_ps(_mm512_set1_ps(q), column, acc);
            }
            acc
        }
        fn transpose(x: &[f32], stride: usize, out: &mut [f32], out_stride: usize) {
            assert!(x.len() >= 16 && (x.len() - 16) / 15 >= stride, "a block of 16 x 16 to read");
            assert!(out.len() >= 16 && (out.len() - 16) / 15 >= out_stride, "a block of 16 x 16 to write");
            for c in (0..16).step_by(4) {
                // SAFETY: row 15 ends at 15 * stride + 16, which the first assertion has checked, and column 15 at
                // 15 * out_stride + 16, which the second has.
                unsafe {
                    for (i, column) in four_columns(x.as_ptr().add(c), stride).into_iter().enumerate() {
                        _mm512_storeu_ps(out.as_mut_ptr().add((c + i) * out_stride), column);
                    }
                }
            }
        }
    }
}

/// Transposes 16 x 16 numbers in registers: pairs, quads, then the 128-bit lanes twice. It reads each cache line once, which
/// is what a product that waits for memory wants; [`four_columns`] has fewer shuffles and reads each line four times.
#[inline]
#[target_feature(enable = "avx512f,avx512dq")]
#[allow(clippy::large_types_passed_by_value, reason = "sixteen registers once inlined")]
fn transpose16(r: [__m512; 16]) -> [__m512; 16] {
    let zero = _mm512_setzero_ps();
    let mut pairs = [zero; 16];
    for i in 0..8 {
        pairs[2 * i] = _mm512_unpacklo_ps(r[2 * i], r[2 * i + 1]);
        pairs[2 * i + 1] = _mm512_unpackhi_ps(r[2 * i], r[2 * i + 1]);
    }
    // quads[4 * g + c] holds column 4 * lane + c of rows 4g .. 4g+3 in each 128-bit lane.
    let mut quads = [zero; 16];
    for g in 0..4 {
        for h in 0..2 {
            let a = _mm512_castps_pd(pairs[4 * g + h]);
            let b = _mm512_castps_pd(pairs[4 * g + 2 + h]);
            quads[4 * g + 2 * h] = _mm512_castpd_ps(_mm512_unpacklo_pd(a, b));
            quads[4 * g + 2 * h + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(a, b));
        }
    }
    let mut out = [zero; 16];
    for c in 0..4 {
        let (q0, q1, q2, q3) = (quads[c], quads[4 + c], quads[8 + c], quads[12 + c]);
        let even01 = _mm512_shuffle_f32x4::<0b10_00_10_00>(q0, q1);
        let even23 = _mm512_shuffle_f32x4::<0b10_00_10_00>(q2, q3);
        let odd01 = _mm512_shuffle_f32x4::<0b11_01_11_01>(q0, q1);
        let odd23 = _mm512_shuffle_f32x4::<0b11_01_11_01>(q2, q3);
        out[c] = _mm512_shuffle_f32x4::<0b10_00_10_00>(even01, even23);
        out[8 + c] = _mm512_shuffle_f32x4::<0b11_01_11_01>(even01, even23);
        out[4 + c] = _mm512_shuffle_f32x4::<0b10_00_10_00>(odd01, odd23);
        out[12 + c] = _mm512_shuffle_f32x4::<0b11_01_11_01>(odd01, odd23);
    }
    out
}

/// Four columns of sixteen rows. Loads put quarters of rows where they belong (a masked load costs no shuffle), and two
/// rounds of shuffles turn the 4 x 4 numbers of each quarter: half of the shuffles that whole rows would need.
///
/// # Safety
/// Four numbers can be read at `x + r * stride` for each r below 16.
#[inline]
#[target_feature(enable = "avx512f,avx512dq")]
unsafe fn four_columns(x: *const f32, stride: usize) -> [__m512; 4] {
    // rows[i] holds numbers of the rows i, 4 + i, 8 + i and 12 + i.
    let mut rows = [_mm512_setzero_ps(); 4];
    for (i, row) in rows.iter_mut().enumerate() {
        // SAFETY: the caller's promise.
        unsafe {
            let x = x.add(i * stride);
            *row = _mm512_broadcast_f32x4(_mm_loadu_ps(x));
            *row = _mm512_mask_broadcast_f32x4(*row, 0x00F0, _mm_loadu_ps(x.add(4 * stride)));
            *row = _mm512_mask_broadcast_f32x4(*row, 0x0F00, _mm_loadu_ps(x.add(8 * stride)));
            *row = _mm512_mask_broadcast_f32x4(*row, 0xF000, _mm_loadu_ps(x.add(12 * stride)));
        }
    }
    let [a, b, c, d] = rows;
    let ab_low = _mm512_castps_pd(_mm512_unpacklo_ps(a, b));
    let ab_high = _mm512_castps_pd(_mm512_unpackhi_ps(a, b));
    let cd_low = _mm512_castps_pd(_mm512_unpacklo_ps(c, d));
    let cd_high = _mm512_castps_pd(_mm512_unpackhi_ps(c, d));
    [
        _mm512_castpd_ps(_mm512_unpacklo_pd(ab_low, cd_low)),
        _mm512_castpd_ps(_mm512_unpackhi_pd(ab_low, cd_low)),
        _mm512_castpd_ps(_mm512_unpacklo_pd(ab_high, cd_high)),
        _mm512_castpd_ps(_mm512_unpackhi_pd(ab_high, cd_high)),
    ]
}

/// Bits of the first `n` of `lanes` lanes.
#[inline(always)]
fn first(n: usize, lanes: usize) -> u32 {
    (1u32 << n.min(lanes)) - 1
}

impl Simd<f64> for Avx512 {
    type V = __m512d;
    type M = __mmask8;
    const LANES: usize = 8;
    const GEMM_MR: usize = 8;
    const GEMM_NV: usize = 3;
    const ATTEND_MR: usize = 8;
    const ATTEND_NV: usize = 2;
    const ISA: Isa = Isa::Avx512;

    features! {
        fn prefetch(x: &[f64], at: usize) {
            _mm_prefetch::<_MM_HINT_T0>(x.as_ptr().wrapping_add(at).cast());
        }
        fn splat(x: f64) -> __m512d { _mm512_set1_pd(x) }
        fn load(x: &[f64]) -> __m512d {
            let x = &x[..8];
            // SAFETY: eight numbers are there.
            unsafe { _mm512_loadu_pd(x.as_ptr()) }
        }
        fn load_partial(x: &[f64]) -> __m512d {
            let m = first(x.len(), 8) as __mmask8;
            // SAFETY: lanes beyond the slice are masked and not read.
            unsafe { _mm512_maskz_loadu_pd(m, x.as_ptr()) }
        }
        fn store(v: __m512d, out: &mut [f64]) {
            let out = &mut out[..8];
            // SAFETY: eight numbers are there.
            unsafe { _mm512_storeu_pd(out.as_mut_ptr(), v) }
        }
        fn store_partial(v: __m512d, out: &mut [f64]) {
            let m = first(out.len(), 8) as __mmask8;
            // SAFETY: lanes beyond the slice are masked and not written.
            unsafe { _mm512_mask_storeu_pd(out.as_mut_ptr(), m, v) }
        }
        fn add(a: __m512d, b: __m512d) -> __m512d { _mm512_add_pd(a, b) }
        fn sub(a: __m512d, b: __m512d) -> __m512d { _mm512_sub_pd(a, b) }
        fn mul(a: __m512d, b: __m512d) -> __m512d { _mm512_mul_pd(a, b) }
        fn div(a: __m512d, b: __m512d) -> __m512d { _mm512_div_pd(a, b) }
        fn fma(a: __m512d, b: __m512d, c: __m512d) -> __m512d { _mm512_fmadd_pd(a, b, c) }
        fn sqrt(a: __m512d) -> __m512d { _mm512_sqrt_pd(a) }
        fn max(a: __m512d, b: __m512d) -> __m512d { _mm512_max_pd(a, b) }
        fn min(a: __m512d, b: __m512d) -> __m512d { _mm512_min_pd(a, b) }
        fn round(a: __m512d) -> __m512d { _mm512_roundscale_pd::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(a) }
        fn abs(a: __m512d) -> __m512d { _mm512_abs_pd(a) }
        fn neg(a: __m512d) -> __m512d { _mm512_xor_pd(_mm512_set1_pd(-0.0), a) }
        fn copysign(a: __m512d, b: __m512d) -> __m512d {
            let sign = _mm512_set1_pd(-0.0);
            _mm512_or_pd(_mm512_and_pd(sign, b), _mm512_andnot_pd(sign, a))
        }
        fn shift_to_exponent(a: __m512d) -> __m512d {
            _mm512_castsi512_pd(_mm512_slli_epi64::<52>(_mm512_castpd_si512(a)))
        }
        fn lt(a: __m512d, b: __m512d) -> __mmask8 { _mm512_cmp_pd_mask::<_CMP_LT_OQ>(a, b) }
        fn le(a: __m512d, b: __m512d) -> __mmask8 { _mm512_cmp_pd_mask::<_CMP_LE_OQ>(a, b) }
        fn eq(a: __m512d, b: __m512d) -> __mmask8 { _mm512_cmp_pd_mask::<_CMP_EQ_OQ>(a, b) }
        fn mask_from_bits(bits: u64) -> __mmask8 { bits as __mmask8 }
        fn mask_to_bits(m: __mmask8) -> u64 { u64::from(m) }
        fn select(m: __mmask8, a: __m512d, b: __m512d) -> __m512d { _mm512_mask_blend_pd(m, b, a) }
    }
}
