//! Vectors of f32 and f64 on every instruction set, behind one small trait.
//!
//! A kernel is written once, generic over `S: Simd<T>`; a *token* (`Scalar`, `Avx2`, `Avx512`) that exists only
//! where the CPU has the features chooses the instructions. [`Float::dispatch`] enters a function compiled with
//! those features and hands the token to the kernel, inside the thread that computes.
//!
//! Every operation means the same on every instruction set, to the last bit: fused multiply-adds are fused,
//! [`Simd::max`] is a compare and a select, nothing is approximated. That is half of the law of bits; the other
//! half, the order of sums, is the kernels' affair.

mod isa;
pub mod math;
mod scalar;
#[cfg(feature = "account")]
mod ticks;
#[cfg(target_arch = "x86_64")]
mod x86;

pub use isa::{Isa, active, available};
pub use scalar::Scalar;
#[cfg(feature = "account")]
pub use ticks::ticks;
#[cfg(target_arch = "x86_64")]
pub use x86::{Avx2, Avx512};

/// Lanes of the virtual vector in which rows are summed, on every instruction set and for both float types.
pub const VIRTUAL_LANES: usize = 16;

/// A float type that kernels compute in: f32 or f64.
pub trait Float:
    Copy
    + Send
    + Sync
    + Default
    + PartialEq
    + PartialOrd
    + std::fmt::Debug
    + std::fmt::Display
    + std::ops::Add<Output = Self>
    + std::ops::Sub<Output = Self>
    + std::ops::Mul<Output = Self>
    + std::ops::Div<Output = Self>
    + std::ops::Neg<Output = Self>
    + std::ops::AddAssign
    + bytemuck::Pod
    + math::Coefficients
    + 'static
{
    /// 0.
    const ZERO: Self;
    /// 1.
    const ONE: Self;
    /// Positive infinity.
    const INFINITY: Self;
    /// Negative infinity.
    const NEG_INFINITY: Self;
    /// A quiet NaN.
    const NAN: Self;
    /// The largest finite number.
    const MAX: Self;
    /// Distance from 1 to the next number.
    const EPSILON: Self;
    /// NumPy's name of the type.
    const NAME: &'static str;

    /// Rounds an f64 to this type, to nearest even.
    fn from_f64(x: f64) -> Self;
    /// Widens to f64, exactly.
    fn to_f64(self) -> f64;
    /// Correctly rounded square root.
    fn sqrt(self) -> Self;
    /// Nearest integer, ties to even.
    fn round(self) -> Self;
    /// Whether the number is a NaN.
    fn is_nan(self) -> bool;
    /// Whether the number is neither infinite nor NaN.
    fn is_finite(self) -> bool;
    /// Runs `kernel` with the instructions of `isa`.
    ///
    /// # Panics
    /// If the CPU does not have `isa`; [`active`] and [`available`] only give those it has.
    fn dispatch<K: Kernel<Self>>(isa: Isa, kernel: K) -> K::Output;
}

/// A computation generic over the instruction set. `run` must be `#[inline(always)]`, as must every generic
/// helper that it calls: what is not inlined into the entry is compiled for the baseline CPU.
pub trait Kernel<T: Float> {
    /// What the kernel returns.
    type Output;
    /// Computes with the instructions that `s` stands for.
    fn run<S: Simd<T>>(self, s: S) -> Self::Output;
}

/// The operations of one instruction set on vectors of `T`.
///
/// `V` is a vector of `LANES` numbers and `M` a truth value for each lane.
pub trait Simd<T: Float>: Copy + Send + Sync + 'static {
    /// A vector of `LANES` numbers.
    type V: Copy;
    /// A truth value for each lane.
    type M: Copy;
    /// Numbers in a vector; a divisor of [`VIRTUAL_LANES`].
    const LANES: usize;
    /// Rows of the register tile of the matrix product.
    const GEMM_MR: usize;
    /// Vectors in a row of the register tile of the matrix product.
    const GEMM_NV: usize;
    /// Rows of the register tile of attention.
    const ATTEND_MR: usize;
    /// Vectors in a row of the register tile of attention; `ATTEND_NV * LANES` divides the 64 keys of a tile.
    const ATTEND_NV: usize;
    /// The instruction set.
    const ISA: Isa;

    /// All lanes `x`.
    fn splat(self, x: T) -> Self::V;
    /// The first `LANES` numbers of `x`, which has at least as many.
    fn load(self, x: &[T]) -> Self::V;
    /// Numbers of a shorter slice; absent lanes are 0. Never reads beyond it.
    fn load_partial(self, x: &[T]) -> Self::V;
    /// Writes all lanes to the front of `out`, which has at least `LANES` numbers.
    fn store(self, v: Self::V, out: &mut [T]);
    /// Writes the first `out.len()` lanes (at most `LANES`).
    fn store_partial(self, v: Self::V, out: &mut [T]);

    /// `a + b`.
    fn add(self, a: Self::V, b: Self::V) -> Self::V;
    /// `a - b`.
    fn sub(self, a: Self::V, b: Self::V) -> Self::V;
    /// `a * b`.
    fn mul(self, a: Self::V, b: Self::V) -> Self::V;
    /// `a / b`, correctly rounded.
    fn div(self, a: Self::V, b: Self::V) -> Self::V;
    /// `a * b + c`, rounded once.
    fn fma(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    /// Correctly rounded square root.
    fn sqrt(self, a: Self::V) -> Self::V;
    /// `a > b ? a : b`, hence `b` where either is NaN or both are zero.
    fn max(self, a: Self::V, b: Self::V) -> Self::V;
    /// `a < b ? a : b`, hence `b` where either is NaN or both are zero.
    fn min(self, a: Self::V, b: Self::V) -> Self::V;
    /// Nearest integer, ties to even.
    fn round(self, a: Self::V) -> Self::V;
    /// Absolute value.
    fn abs(self, a: Self::V) -> Self::V;
    /// The sign bit flipped.
    fn neg(self, a: Self::V) -> Self::V;
    /// The magnitude of `a` with the sign of `b`.
    fn copysign(self, a: Self::V, b: Self::V) -> Self::V;
    /// The bits of each lane moved up by the width of the mantissa (23 or 52): the last step of building a power of two.
    fn shift_to_exponent(self, a: Self::V) -> Self::V;

    /// `a < b`, false for NaN.
    fn lt(self, a: Self::V, b: Self::V) -> Self::M;
    /// `a <= b`, false for NaN.
    fn le(self, a: Self::V, b: Self::V) -> Self::M;
    /// `a == b`, false for NaN.
    fn eq(self, a: Self::V, b: Self::V) -> Self::M;
    /// Lane `i` is bit `i`.
    fn mask_from_bits(self, bits: u64) -> Self::M;
    /// Bit `i` is lane `i`.
    fn mask_to_bits(self, m: Self::M) -> u64;
    /// `m ? a : b`.
    fn select(self, m: Self::M, a: Self::V, b: Self::V) -> Self::V;

    /// Folds `VIRTUAL_LANES` numbers, `VIRTUAL_LANES / LANES` vectors in order, by the one tree that all
    /// instruction sets share: lane i + lane i+8, then i+4, i+2, i+1.
    #[inline(always)]
    fn fold_add(self, parts: &[Self::V]) -> T {
        let mut x = [T::ZERO; VIRTUAL_LANES];
        self.spill(parts, &mut x);
        for half in [8, 4, 2, 1] {
            for i in 0..half {
                x[i] += x[i + half];
            }
        }
        x[0]
    }

    /// The greatest of `VIRTUAL_LANES` numbers; NaNs are passed over, and all-NaN gives -inf.
    #[inline(always)]
    fn fold_max(self, parts: &[Self::V]) -> T {
        let mut x = [T::ZERO; VIRTUAL_LANES];
        self.spill(parts, &mut x);
        let mut best = T::NEG_INFINITY;
        for v in x {
            if v > best {
                best = v;
            }
        }
        best
    }

    /// Writes `VIRTUAL_LANES / LANES` vectors to an array.
    #[inline(always)]
    fn spill(self, parts: &[Self::V], x: &mut [T; VIRTUAL_LANES]) {
        for (i, &v) in parts.iter().enumerate().take(VIRTUAL_LANES / Self::LANES) {
            self.store(v, &mut x[i * Self::LANES..]);
        }
    }

    /// Applies a scalar function to each lane: for the elementary functions that are not worth vectors.
    #[inline(always)]
    fn map(self, v: Self::V, f: impl Fn(T) -> T) -> Self::V {
        let mut x = [T::ZERO; VIRTUAL_LANES];
        self.store(v, &mut x);
        for y in &mut x[..Self::LANES] {
            *y = f(*y);
        }
        self.load(&x)
    }

    /// Asks for the cache line of number `at` of `x`, or of memory behind it, into the first-level cache: a hint that changes nothing, and needs no
    /// check where `at` is beyond the end.
    #[inline(always)]
    fn prefetch(self, x: &[T], at: usize) {
        let _ = (x, at);
    }

    /// Goes on with `LANES` chains of products: lane r becomes `fma(q[c], x[r * stride + c], lane r)` for c = 0, 1, ...
    /// `LANES` - 1.
    #[inline(always)]
    fn dot_rows(self, x: &[T], stride: usize, q: &[T], mut acc: Self::V) -> Self::V {
        let mut turned = [T::ZERO; VIRTUAL_LANES * VIRTUAL_LANES];
        self.transpose(x, stride, &mut turned, Self::LANES);
        for c in 0..Self::LANES {
            acc = self.fma(self.splat(q[c]), self.load(&turned[c * Self::LANES..]), acc);
        }
        acc
    }

    /// Transposes a `LANES x LANES` block: `out[c * out_stride + r] = x[r * stride + c]`.
    #[inline(always)]
    fn transpose(self, x: &[T], stride: usize, out: &mut [T], out_stride: usize) {
        for r in 0..Self::LANES {
            for c in 0..Self::LANES {
                out[c * out_stride + r] = x[r * stride + c];
            }
        }
    }
}

macro_rules! float {
    ($t:ident, $sqrt:path) => {
        impl Float for $t {
            const ZERO: Self = 0.0;
            const ONE: Self = 1.0;
            const INFINITY: Self = $t::INFINITY;
            const NEG_INFINITY: Self = $t::NEG_INFINITY;
            const NAN: Self = $t::NAN;
            const MAX: Self = $t::MAX;
            const EPSILON: Self = $t::EPSILON;
            const NAME: &'static str = if size_of::<$t>() == 4 { "float32" } else { "float64" };

            #[inline(always)]
            fn from_f64(x: f64) -> Self {
                x as $t
            }
            #[inline(always)]
            fn to_f64(self) -> f64 {
                f64::from(self)
            }
            #[inline(always)]
            fn sqrt(self) -> Self {
                $sqrt(self)
            }
            #[inline(always)]
            fn round(self) -> Self {
                self.round_ties_even()
            }
            #[inline(always)]
            fn is_nan(self) -> bool {
                $t::is_nan(self)
            }
            #[inline(always)]
            fn is_finite(self) -> bool {
                $t::is_finite(self)
            }
            fn dispatch<K: Kernel<Self>>(isa: Isa, kernel: K) -> K::Output {
                match isa {
                    Isa::Scalar => scalar::enter(kernel),
                    #[cfg(target_arch = "x86_64")]
                    Isa::Avx2 => x86::enter_avx2(kernel),
                    #[cfg(target_arch = "x86_64")]
                    Isa::Avx512 => x86::enter_avx512(kernel),
                    #[allow(
                        unreachable_patterns,
                        reason = "reachable where an instruction set is compiled out"
                    )]
                    other => panic!("{other} is not compiled for this processor"),
                }
            }
        }
    };
}
float!(f32, f32::sqrt);
float!(f64, f64::sqrt);

#[cfg(test)]
mod tests;
