//! The public functions, one family a file.

pub mod allowed_mask;
pub mod attention;
pub mod linear;
