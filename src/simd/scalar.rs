//! One number at a time: the reference that every CPU can run, with the same bits as the vectors.

use super::{Float, Isa, Kernel, Simd};

/// The token of no vector instructions; it always exists.
#[derive(Clone, Copy, Debug)]
pub struct Scalar;

/// Runs a kernel one number at a time. Where the CPU has fused multiply-adds the code is compiled for them;
/// elsewhere `mul_add` is the library's correctly rounded `fma`.
pub(super) fn enter<T: Float, K: Kernel<T>>(kernel: K) -> K::Output
where
    Scalar: Simd<T>,
{
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("fma") {
        // SAFETY: the CPU has the instructions that `fused` is compiled for.
        return unsafe { fused(kernel) };
    }
    kernel.run(Scalar)
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx,fma")]
fn fused<T: Float, K: Kernel<T>>(kernel: K) -> K::Output
where
    Scalar: Simd<T>,
{
    kernel.run(Scalar)
}

macro_rules! scalar {
    ($t:ident, $bits:ident, $mantissa:literal) => {
        impl Simd<$t> for Scalar {
            type V = $t;
            type M = bool;
            const LANES: usize = 1;
            // Eight sums and a few operands fit the sixteen registers of every baseline.
            const GEMM_MR: usize = 4;
            const GEMM_NV: usize = 2;
            const ATTEND_MR: usize = 4;
            const ATTEND_NV: usize = 2;
            const ISA: Isa = Isa::Scalar;

            #[inline(always)]
            fn splat(self, x: $t) -> $t {
                x
            }
            #[inline(always)]
            fn load(self, x: &[$t]) -> $t {
                x[0]
            }
            #[inline(always)]
            fn load_partial(self, x: &[$t]) -> $t {
                x.first().copied().unwrap_or(0.0)
            }
            #[inline(always)]
            fn store(self, v: $t, out: &mut [$t]) {
                out[0] = v;
            }
            #[inline(always)]
            fn store_partial(self, v: $t, out: &mut [$t]) {
                if let Some(x) = out.first_mut() {
                    *x = v;
                }
            }
            #[inline(always)]
            fn add(self, a: $t, b: $t) -> $t {
                a + b
            }
            #[inline(always)]
            fn sub(self, a: $t, b: $t) -> $t {
                a - b
            }
            #[inline(always)]
            fn mul(self, a: $t, b: $t) -> $t {
                a * b
            }
            #[inline(always)]
            fn div(self, a: $t, b: $t) -> $t {
                a / b
            }
            #[inline(always)]
            #[allow(
                clippy::disallowed_methods,
                reason = "compiled with FMA, or correctly rounded by the library"
            )]
            fn fma(self, a: $t, b: $t, c: $t) -> $t {
                a.mul_add(b, c)
            }
            #[inline(always)]
            fn sqrt(self, a: $t) -> $t {
                a.sqrt()
            }
            #[inline(always)]
            fn max(self, a: $t, b: $t) -> $t {
                if a > b { a } else { b }
            }
            #[inline(always)]
            fn min(self, a: $t, b: $t) -> $t {
                if a < b { a } else { b }
            }
            #[inline(always)]
            fn round(self, a: $t) -> $t {
                a.round_ties_even()
            }
            #[inline(always)]
            fn abs(self, a: $t) -> $t {
                a.abs()
            }
            #[inline(always)]
            fn neg(self, a: $t) -> $t {
                -a
            }
            #[inline(always)]
            fn copysign(self, a: $t, b: $t) -> $t {
                a.copysign(b)
            }
            #[inline(always)]
            fn shift_to_exponent(self, a: $t) -> $t {
                $t::from_bits(a.to_bits() << $mantissa)
            }
            #[inline(always)]
            fn lt(self, a: $t, b: $t) -> bool {
                a < b
            }
            #[inline(always)]
            fn le(self, a: $t, b: $t) -> bool {
                a <= b
            }
            #[inline(always)]
            #[allow(clippy::float_cmp, reason = "equality is the operation")]
            fn eq(self, a: $t, b: $t) -> bool {
                a == b
            }
            #[inline(always)]
            fn mask_from_bits(self, bits: u64) -> bool {
                bits & 1 != 0
            }
            #[inline(always)]
            fn mask_to_bits(self, m: bool) -> u64 {
                u64::from(m)
            }
            #[inline(always)]
            fn select(self, m: bool, a: $t, b: $t) -> $t {
                if m { a } else { b }
            }
        }
    };
}
scalar!(f32, u32, 23);
scalar!(f64, u64, 52);
