//! The layers as Python classes: arguments in, a snapshot of the layer taken, the crate called, arrays out.

pub mod arguments;
pub mod batch;

pub mod held;
pub mod multi_head_attention;

pub mod encoder;
pub mod encoder_layer;
pub mod stack;
