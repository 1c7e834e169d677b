"""The layering check finds what it is there to find, and only that."""

from pathlib import Path

import pytest
from check_layers import faults

pytestmark = pytest.mark.once

UPWARD = {
    "use": ("kernels/gemm.rs", "use crate::ops::linear;\n"),
    "use in a group": ("kernels/gemm.rs", "use crate::{\n    error::Error,\n    nn::Encoder,\n};\n"),
    "path in code": ("ops/linear.rs", "fn f() { crate::nn::Linear::new(); }\n"),
    "supers": ("simd/mod.rs", "use super::kernels::gemm;\n"),
    "supers from an inline module": ("simd/mod.rs", "mod tests { use super::super::ops::softmax; }\n"),
    "a servant": ("error.rs", "use crate::models::Config;\n"),
    "threads in a kernel": ("kernels/attend.rs", "use crate::threads::install;\n"),
    "intrinsics": ("kernels/attend.rs", "use std::arch::x86_64::_mm_add_ps;\n"),
    "intrinsics in threads": ("threads/fp.rs", "use std::arch::{asm, x86_64::*};\n"),
    "core intrinsics": ("ops/linear.rs", "fn f() { core::arch::x86_64::_mm_pause() }\n"),
    "detection": ("ops/linear.rs", 'fn f() -> bool { is_x86_feature_detected!("fma") }\n'),
    "full path of detection": ("ops/linear.rs", 'fn f() -> bool { std::is_x86_feature_detected!("fma") }\n'),
    "python below": ("nn/linear.rs", "use pyo3::prelude::*;\n"),
    "a stranger": ("helpers/mod.rs", "\n"),
}

FINE = {
    "down": ("python/layers.rs", "use crate::{models::Config, nn::{Encoder, ops}, threads};\n"),
    "itself": ("kernels/gemm.rs", "use crate::kernels::pack;\nuse super::pack::Panel;\n"),
    "supers that stay": ("kernels/gemm.rs", "mod tests { mod deep { use super::super::super::pack; } }\n"),
    "comments and strings": (
        "simd/mod.rs",
        '// crate::ops\n/* crate::nn */ const A: &str = "crate::models";\n',
    ),
    "servants": ("threads.rs", "use crate::{error::Error, simd};\n"),
    "the control word": ("threads/fp.rs", "use std::arch::asm;\n"),
    "a detected feature": ("simd/isa.rs", 'fn f() -> bool { is_x86_feature_detected!("fma") }\n'),
    "intrinsics": ("simd/x86/avx2.rs", "use std::arch::x86_64::*;\n"),
}


@pytest.mark.parametrize("name", UPWARD)
def test_fault_is_found(name):
    path, source = UPWARD[name]
    assert len(faults(Path(path), source)) == 1


@pytest.mark.parametrize("name", FINE)
def test_sound_source_passes(name):
    path, source = FINE[name]
    assert faults(Path(path), source) == []


def test_line_is_named():
    (fault,) = faults(Path("ops/linear.rs"), "/* two\nlines */\nuse crate::models::Config;\n")
    assert fault == "src/ops/linear.rs:3: ops may not use crate::models"
