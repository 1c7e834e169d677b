//! x86-64: AVX2 and AVX-512.
//!
//! Each operation is an `#[inline(always)]` method around an inner function that carries the features: the
//! method dissolves into the entry, and the inner function, whose features the entry has too, dissolves after it.

mod avx2;
mod avx512;

pub use avx2::Avx2;
pub(super) use avx2::{enter as enter_avx2, has as has_avx2};
pub use avx512::Avx512;
pub(super) use avx512::{enter as enter_avx512, has as has_avx512};

/// Writes the methods of an instruction set. `$features` is the list of the set, typed once per file.
macro_rules! methods {
    ($features:literal; $(fn $name:ident($($arg:ident: $ty:ty),*) $(-> $ret:ty)? $body:block)*) => {
        $(
            #[inline(always)]
            fn $name(self, $($arg: $ty),*) $(-> $ret)? {
                #[inline]
                #[target_feature(enable = $features)]
                fn inner($($arg: $ty),*) $(-> $ret)? $body
                // SAFETY: `self` exists only inside `enter`, which has made sure of the features.
                unsafe { inner($($arg),*) }
            }
        )*
    };
}
pub(crate) use methods;

/// Writes the detection and the entry of an instruction set.
macro_rules! entry {
    ($token:ident, $features:literal, [$($feature:tt),*]) => {
        /// Whether the CPU and the operating system have the instructions.
        pub fn has() -> bool {
            $(std::arch::is_x86_feature_detected!($feature))&&*
        }

        /// Runs a kernel with these instructions.
        pub fn enter<T: $crate::simd::Float, K: $crate::simd::Kernel<T>>(kernel: K) -> K::Output
        where
            $token: $crate::simd::Simd<T>,
        {
            #[target_feature(enable = $features)]
            fn inside<T: $crate::simd::Float, K: $crate::simd::Kernel<T>>(kernel: K) -> K::Output
            where
                $token: $crate::simd::Simd<T>,
            {
                kernel.run($token(()))
            }
            assert!(has(), concat!("this CPU has no ", stringify!($token)));
            // SAFETY: the assertion above.
            unsafe { inside(kernel) }
        }
    };
}
pub(crate) use entry;
