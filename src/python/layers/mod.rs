//! The layers as Python classes: arguments in, a snapshot of the layer taken, the crate called, arrays out.

pub mod arguments;
pub mod batch;
pub mod class;
pub mod held;
pub mod ids;
pub mod rows;

pub mod embedding;
pub mod feed_forward;
pub mod layer_norm;
pub mod linear;
pub mod recurrent;
pub mod rms_norm;

pub mod attention_call;
pub mod attention_vjp;
pub mod multi_head_attention;

pub mod wanted;

pub mod decoder;
pub mod decoder_call;
pub mod decoder_layer;
pub mod decoder_step;
pub mod decoder_vjp;

pub mod encoder;
pub mod encoder_layer;
pub mod stack;
pub mod stack_vjp;
