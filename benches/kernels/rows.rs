//! Norms, softmax and elementary functions, over rows of a model's widths and over one that fills no vector.

use std::hint::black_box;

use headwise::kernels::activation::Activation;
use headwise::ops::activation::activate_array;
use headwise::ops::norm::{layer_norm, rms_norm};
use headwise::ops::softmax::softmax;
use headwise::simd::{Float, Kernel, Simd, active, math};

use crate::{Visit, flat, numbers};

/// Numbers that an elementary function is taken of.
const COUNT: usize = 1 << 15;

pub fn cases(visit: &mut Visit<'_>) {
    for (rows, width) in [(64, 384), (64, 101)] {
        let x = numbers::<f32>(&[rows, width], 1);
        let (weight, bias) = (numbers::<f32>(&[width], 2), numbers::<f32>(&[width], 3));
        visit(&format!("layer norm, {rows} x {width}"), 0, &mut || {
            black_box(
                layer_norm(&x.view(), Some(&weight.view()), Some(&bias.view()), 1e-5).expect("a layer norm"),
            );
        });
        visit(&format!("RMS norm, {rows} x {width}"), 0, &mut || {
            black_box(rms_norm(&x.view(), Some(&weight.view()), None).expect("an RMS norm"));
        });
        visit(&format!("softmax, {rows} x {width}"), 0, &mut || {
            black_box(softmax(&x.view(), -1).expect("a softmax"));
        });
    }
    for kind in [Activation::Relu, Activation::Gelu, Activation::GeluTanh, Activation::Silu] {
        let x = numbers::<f32>(&[COUNT], 1);
        visit(&format!("{kind}, {COUNT}"), 0, &mut || {
            black_box(activate_array(&x.view(), kind).expect("an activation"));
        });
    }
    let (isa, x, mut out) = (active().expect("HEADWISE_ISA"), flat(COUNT, 1), vec![0.0; COUNT]);
    visit(&format!("exp, {COUNT}"), 0, &mut || {
        f32::dispatch(isa, Exp { x: &x, out: &mut out });
        black_box(&out);
    });
}

/// `e^x` of numbers that fill whole vectors.
struct Exp<'a> {
    x: &'a [f32],
    out: &'a mut [f32],
}

impl Kernel<f32> for Exp<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd<f32>>(self, s: S) {
        for (x, out) in self.x.chunks_exact(S::LANES).zip(self.out.chunks_exact_mut(S::LANES)) {
            s.store(math::exp(s, s.load(x)), out);
        }
    }
}
