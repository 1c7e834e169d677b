//! tmp
use crate::simd::{Float, Simd};
/// tmp
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Activation {
    /// a
    #[default]
    Identity,
    /// b
    Relu,
}
impl Activation {
    /// tmp
    #[inline(always)]
    pub fn apply<T: Float, S: Simd<T>>(self, s: S, v: S::V) -> S::V {
        match self {
            Self::Identity => v,
            Self::Relu => s.max(v, s.splat(T::ZERO)),
        }
    }
}
