//! Loops over slices, generic over the instruction set.
//!
//! A kernel neither allocates nor spawns: its caller in `ops` hands it slices, runs it inside the thread that
//! computes, and has checked the shapes. Each file begins with the formula and with the order of its sums, which
//! is part of the law of bits.

pub mod activation;
pub mod activation_backward;
pub mod attend;
pub mod columns;
pub mod cross_entropy;
pub mod gemm;
#[cfg(test)]
pub mod naive;
pub mod norm;
pub mod norm_backward;
pub mod pack;
pub mod pack_columns;
pub mod peak;
pub mod pooling;
pub mod recurrent;
pub mod rope;
pub(crate) mod rows;
pub mod softmax;
pub mod squares;
#[cfg(test)]
pub(crate) mod testing;
pub mod unit;
pub mod update;
