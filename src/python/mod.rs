//! The extension module `headwise._core`: what Python sees of the crate, registered name by name.
//!
//! An exposed function is boring: read the arguments, release the interpreter's lock, call the crate, hand over
//! the result. `boundary` guards it, `arrays` and `outputs` are its arguments and results, `errors` its faults.

#![allow(
    clippy::doc_markdown,
    clippy::doc_link_with_quotes,
    rustdoc::bare_urls,
    rustdoc::broken_intra_doc_links,
    reason = "comments on exposed items are numpydoc docstrings, not Markdown"
)]

#[cfg(feature = "account")]
mod account;
mod arrays;
mod boundary;
mod config;
mod dtypes;
mod errors;
mod functions;
mod keywords;
mod layers;
mod masks;
mod memory;
mod outputs;
mod packed;
mod peak;
mod pullback;
mod rng;
mod text_encoder;
mod threads;
mod training;

use pyo3::prelude::*;

/// The compiled part of headwise; users import its names from `headwise`.
#[pymodule]
mod _core {
    use pyo3::exceptions::PyImportError;
    use pyo3::prelude::*;
    use pyo3::types::PyDict;

    #[cfg(feature = "account")]
    #[pymodule_export]
    use super::account::_account;
    #[pymodule_export]
    use super::config::{isa, show_config};
    #[pymodule_export]
    use super::functions::activation::{gelu, relu, silu};
    #[pymodule_export]
    use super::functions::allowed_mask::allowed_mask;
    #[pymodule_export]
    use super::functions::attention::{attention_varlen, scaled_dot_product_attention};
    #[pymodule_export]
    use super::functions::linear::linear;
    #[pymodule_export]
    use super::functions::pooling::{
        _pooling_draw, _pooling_map, _pooling_scores, _pooling_sums, _pooling_unit, _pooling_unit_backward,
        _pooling_weights, _pooling_weights_backward,
    };
    #[pymodule_export]
    use super::functions::positions::{
        alibi_slopes, relative_position_buckets, rotary_embedding, sinusoidal_positions,
    };
    #[pymodule_export]
    use super::functions::rows::{layer_norm, rms_norm, softmax};
    #[pymodule_export]
    use super::functions::vjp::attention::{vjp_attention_varlen, vjp_scaled_dot_product_attention};
    #[pymodule_export]
    use super::functions::vjp::linear::vjp_linear;
    #[pymodule_export]
    use super::functions::vjp::norms::{vjp_layer_norm, vjp_rms_norm};
    #[pymodule_export]
    use super::functions::vjp::points::{vjp_gelu, vjp_relu, vjp_silu};
    #[pymodule_export]
    use super::functions::vjp::rotary::vjp_rotary_embedding;
    #[pymodule_export]
    use super::functions::vjp::softmax::vjp_softmax;
    #[pymodule_export]
    use super::layers::decoder::PyDecoder;
    #[pymodule_export]
    use super::layers::decoder_layer::PyDecoderLayer;
    #[pymodule_export]
    use super::layers::embedding::PyEmbedding;
    #[pymodule_export]
    use super::layers::encoder::PyEncoder;
    #[pymodule_export]
    use super::layers::encoder_layer::PyEncoderLayer;
    #[pymodule_export]
    use super::layers::feed_forward::PyFeedForward;
    #[pymodule_export]
    use super::layers::layer_norm::PyLayerNorm;
    #[pymodule_export]
    use super::layers::linear::PyLinear;
    #[pymodule_export]
    use super::layers::multi_head_attention::PyMultiHeadAttention;
    #[pymodule_export]
    use super::layers::recurrent::{PyGru, PyLstm, PyRnn};
    #[pymodule_export]
    use super::layers::rms_norm::PyRMSNorm;
    #[pymodule_export]
    use super::packed::PyPackedLinear;
    #[pymodule_export]
    use super::panic_for_test;
    #[pymodule_export]
    use super::peak::_peak_gflops;
    #[pymodule_export]
    use super::pullback::PyPullback;
    #[pymodule_export]
    use super::text_encoder::{_unit_rows, PyTextEncoder};
    #[pymodule_export]
    use super::threads::{_after_fork, _override_num_threads, get_num_threads, set_num_threads};
    #[pymodule_export]
    use super::training::losses::{_contrastive, _cross_entropy, _squared_error};
    #[pymodule_export]
    use super::training::random::_draw;
    #[pymodule_export]
    use super::training::tensors::_tensor_file;
    #[pymodule_export]
    use super::training::update::{_adam_step, _cosine_decay, _sgd_step, _sum_of_squares};

    #[pymodule_init]
    fn init(module: &Bound<'_, PyModule>) -> PyResult<()> {
        crate::threads::quiet_caught_panics();
        crate::threads::watch_forks();
        // A wrong HEADWISE_ISA is told at once, not by the first call.
        crate::simd::active().map_err(|e| PyImportError::new_err(e.to_string()))?;
        module.add("__version__", env!("CARGO_PKG_VERSION"))?;
        let py = module.py();
        if let Ok(register) = py.import("os")?.getattr("register_at_fork") {
            let hooks = PyDict::new(py);
            hooks.set_item("after_in_child", module.getattr("_after_fork")?)?;
            register.call((), Some(&hooks))?;
        }
        // A slot like `__call__` has neither a signature nor a docstring; an ordinary method under that name has both.
        let small = ["Linear", "Embedding", "LayerNorm", "RMSNorm", "FeedForward"];
        let stacks = ["EncoderLayer", "Encoder", "DecoderLayer", "Decoder"];
        let recurrent = ["GRU", "LSTM", "RNN"];
        let others = ["MultiHeadAttention", "Pullback"];
        for layer in others.into_iter().chain(stacks).chain(recurrent).chain(small) {
            let layer = module.getattr(layer)?;
            layer.setattr("__call__", layer.getattr("_call")?)?;
            layer.delattr("_call")?;
        }
        // The public names are listed once, in headwise/__init__.py; PyO3's list would want a copy in the stub.
        module.delattr("__all__")
    }
}

/// Panics in a task of the pool and, with `here`, in the body of the function: for the test of both guards.
#[pyfunction]
#[pyo3(name = "_panic_for_test", signature = (here = false))]
fn panic_for_test(py: Python<'_>, here: bool) -> PyResult<()> {
    boundary::entry(|| {
        assert!(!here, "injected in the body");
        boundary::compute(py, boundary::WORTH_RELEASING, || {
            crate::threads::parallel(8, |i| assert!(i != 3, "injected in a task"))
        })
    })
}
