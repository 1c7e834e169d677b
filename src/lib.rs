//! Transformer attention and encoders: SIMD kernels, layers and models.
//!
//! The crate is read from the bottom up, and imports point down only:
//!
//! ```text
//! python   PyO3 only: arrays, errors, one file per exposed class (feature "python")
//! models   checkpoints: config, safetensors, tokenizer, text encoder
//! nn       layers: parameters + ops
//! ops      one operation per file: check shapes, allocate, split over threads, call the kernel
//! kernels  loops over slices, generic over the instruction set
//! simd     the only intrinsics: a vector trait, a token per instruction set, dispatch
//! ```
//!
//! `error` and `threads` serve all of them, and so does `account`, which is empty but for the build that `make account`
//! measures. The law that every layer keeps: the bits of an output row depend
//! only on its own input and the parameters.
//!
//! Shape letters: B batch, H query heads, Hk key/value heads, L query length, S key length, E head width of
//! queries and keys, Ev head width of values, D model width, F feed-forward width, T tokens of a packed batch.

pub mod account;
pub mod error;
pub mod kernels;
pub mod models;
pub mod nn;
pub mod ops;
pub mod philox;
#[cfg(feature = "python")]
mod python;
pub mod simd;
pub mod threads;

pub use error::{Error, Result};
