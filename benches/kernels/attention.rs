//! Attention: head widths, masks, one query, many short sequences, and what else can be asked for.

use std::hint::black_box;

use headwise::kernels::attend::ScoreKind;
use headwise::ops::masks::{AttnMask, Dense, Masks};
use headwise::ops::scaled_dot_product::{Options, scaled_dot_product_attention};
use headwise::simd::Float;

use crate::{Visit, numbers};

/// Queries and keys of most cases: two tasks a head, four tiles of keys.
const L: usize = 256;

/// B, H, L, S, E
type Shape = [usize; 5];

pub fn cases(visit: &mut Visit<'_>) {
    for e in [32, 64, 128] {
        attend::<f32>(visit, &format!("attention, E {e}"), [1, 2, L, L, e], L * L, &Options::default());
    }
    attend::<f32>(visit, "attention, E 80", [1, 2, 100, 100, 80], 0, &Options::default());
    attend::<f32>(visit, "attention, 16 x 32, E 32", [16, 2, 32, 32, 32], 0, &Options::default());
    attend::<f32>(visit, "attention, 2 x 128, E 32", [2, 4, 128, 128, 32], 128 * 128, &Options::default());
    attend::<f64>(visit, "attention, float64, E 64", [1, 1, L, L, 64], 0, &Options::default());

    let causal = masked(Masks { is_causal: true, ..Masks::default() });
    attend(visit, "attention, causal, E 64", [1, 2, L, L, 64], L * (L + 1) / 2, &causal);
    let window = masked(Masks { window: (Some(64), Some(64)), ..Masks::default() });
    attend(visit, "attention, window, E 64", [1, 2, L, L, 64], 0, &window);

    let allowed: Vec<bool> = (0..L * L).map(|i| i % 7 != 3).collect();
    let mask = AttnMask::Allowed(Dense { data: &allowed, shape: vec![L, L] });
    let boolean = masked(Masks { attn_mask: Some(mask), ..Masks::default() });
    attend(visit, "attention, boolean mask, E 64", [1, 2, L, L, 64], 0, &boolean);
    let bias = numbers::<f32>(&[L, L], 5);
    let added = Dense { data: bias.as_slice().expect("dense"), shape: vec![L, L] };
    let float = masked(Masks { attn_mask: Some(AttnMask::Added(added)), ..Masks::default() });
    attend(visit, "attention, float mask, E 64", [1, 2, L, L, 64], 0, &float);
    let kept: Vec<bool> = (0..L).map(|j| j % 3 != 1).collect();
    let keys = masked(Masks { key_mask: Some(Dense { data: &kept, shape: vec![L] }), ..Masks::default() });
    attend(visit, "attention, key mask, E 64", [1, 2, L, L, 64], 0, &keys);

    let options = Options { softcap: Some(30.0), ..Options::default() };
    attend::<f32>(visit, "attention, soft cap, E 64", [1, 2, L, L, 64], 0, &options);
    let options = Options { scores: Some(ScoreKind::Weights), lse: true, ..Options::default() };
    attend::<f32>(visit, "attention, weights and lse, E 32", [1, 2, 128, 128, 32], 0, &options);
    for e in [64, 128] {
        let name = format!("decode, one query, E {e}");
        attend::<f32>(visit, &name, [1, 4, 1, 1024, e], 0, &Options::default());
    }
}

fn masked(masks: Masks<'_, f32>) -> Options<'_, f32> {
    Options { masks, ..Options::default() }
}

/// `pairs` is how many pairs of a query and a key a head computes, 0 where the share of the peak is not wanted.
fn attend<T: Float>(
    visit: &mut Visit<'_>,
    name: &str,
    [b, h, l, s, e]: Shape,
    pairs: usize,
    options: &Options<'_, T>,
) {
    let (q, k, v) =
        (numbers::<T>(&[b, h, l, e], 1), numbers::<T>(&[b, h, s, e], 2), numbers::<T>(&[b, h, s, e], 3));
    visit(name, 4 * b * h * pairs * e, &mut || {
        let done = scaled_dot_product_attention(&q.view(), &k.view(), &v.view(), options);
        black_box(done.expect("attention"));
    });
}
