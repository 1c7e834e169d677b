//! Layers: parameters and the operations on them.
//!
//! A layer is immutable: loading a state makes a new layer, which the caller puts in the place of the old one, so that
//! a thread that computes keeps what it began with. Tokens of a batch are rows without padding ([`tokens::Tokens`]):
//! padding is taken out once, before the first layer, and put back after the last.

pub mod attention;
pub mod decoder;
pub mod decoder_layer;
pub mod dropout;
pub mod embedding;
pub mod encoder;
pub mod encoder_layer;
pub mod feed_forward;
pub mod init;
pub mod linear;
pub mod norm;
pub mod random;
pub mod recurrent;
pub mod residual;
pub mod state;
pub mod tokens;
