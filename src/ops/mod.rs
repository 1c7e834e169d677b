//! One operation per file: check the shapes, allocate, split over threads, call the kernel.

pub mod allowed_mask;
pub mod buffer;
pub mod masks;
