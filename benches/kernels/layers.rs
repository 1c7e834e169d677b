//! A small encoder layer: one long sequence, and a ragged batch.

use std::hint::black_box;

use headwise::kernels::activation::Activation;
use headwise::nn::attention::AttentionConfig;
use headwise::nn::encoder::{Encoder, StackCall};
use headwise::nn::encoder_layer::LayerConfig;
use headwise::nn::init::Init;
use headwise::nn::norm::NormKind;
use headwise::nn::tokens::Layout;

use crate::{Visit, flat};

/// D, heads and F.
const WIDTHS: (usize, usize, usize) = (128, 4, 512);

pub fn cases(visit: &mut Visit<'_>) {
    let (d, heads, d_ff) = WIDTHS;
    let config = LayerConfig {
        attention: AttentionConfig::new(d, heads, None, None, (None, None), true, 0.0).expect("widths"),
        d_ff,
        activation: Activation::Gelu,
        norm: NormKind::Layer,
        norm_first: false,
        layer_norm_eps: 1e-12,
        gated: false,
    };
    let encoder =
        Encoder::<f32>::new(1, config, false, None, &mut Init::new(1)).expect("an encoder of one layer");
    let call = StackCall {
        masks: &[],
        causal: false,
        window: (None, None),
        head_mask: None,
        weights: &[],
        hidden_states: false,
        dropout: None,
    };
    for (name, lengths) in [("1 x 128", vec![128]), ("ragged", vec![7, 33, 16, 50])] {
        let layout = Layout::dense(lengths);
        let x = flat(layout.total() * d, 2);
        let pairs: usize = layout.lengths.iter().map(|l| l * l).sum();
        let operations = 2 * layout.total() * (4 * d * d + 2 * d * d_ff) + 4 * pairs * d;
        visit(&format!("encoder layer, {name}"), operations, &mut || {
            black_box(encoder.forward(x.clone(), &layout, &call).expect("a layer").rows);
        });
    }
}
