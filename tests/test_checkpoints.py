"""Checkpoints in their forms: shards, mapped files, half precision, sentence-transformers' modules."""

import json
import os
import pickle

import numpy as np
import pytest
from checkpoints import (
    TEXTS,
    D,
    bfloat16_bits,
    small_tensors,
    write_dense,
    write_json,
    write_model,
    write_modules,
    write_shards,
    write_tensors,
)
from compare import assert_same_bits

import headwise as hw

pytestmark = pytest.mark.once

load = hw.TextEncoder.from_pretrained
MEAN = {"pooling_mode": "mean"}


@pytest.fixture
def folder(tmp_path):
    return write_model(tmp_path / "model")


# ---- The forms of weights ----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_shards_and_mapped_files_give_the_same_bits(folder, dtype):
    want = load(folder, dtype=dtype).encode(TEXTS)
    assert np.isfinite(want).all()
    assert_same_bits(load(folder, dtype=dtype, mmap=True).encode(TEXTS), want)
    (folder / "model.safetensors").unlink()
    write_shards(folder, small_tensors())
    assert_same_bits(load(folder, dtype=dtype).encode(TEXTS), want)
    assert_same_bits(load(folder, dtype=dtype, mmap=True).encode(TEXTS), want)


@pytest.mark.parametrize("mmap", [False, True])
@pytest.mark.parametrize("stored", ["BF16", "F16", "F64"])
def test_other_float_types_are_widened_exactly(folder, stored, mmap):
    tensors = small_tensors()
    write_tensors(folder / "model.safetensors", tensors, stored)
    got = {dtype: load(folder, dtype=dtype, mmap=mmap).encode(TEXTS) for dtype in ("float32", "float64")}
    if stored == "BF16":
        widened = {
            name: (bfloat16_bits(x).astype("<u4") << 16).view("<f4").reshape(x.shape)
            for name, x in tensors.items()
        }
    else:
        widened = {
            name: x.astype("<f2" if stored == "F16" else "<f8").astype("<f4") for name, x in tensors.items()
        }
    write_tensors(folder / "model.safetensors", widened)
    for dtype, rows in got.items():
        assert_same_bits(load(folder, dtype=dtype).encode(TEXTS), rows)


def test_mapped_tables_that_are_not_aligned_are_copied(folder):
    want = load(folder).encode(TEXTS)
    path = folder / "model.safetensors"
    raw = path.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    for pad in range(1, 5):
        path.write_bytes(
            (length + pad).to_bytes(8, "little") + raw[8 : 8 + length] + b" " * pad + raw[8 + length :]
        )
        assert_same_bits(load(folder, mmap=True).encode(TEXTS), want)


def test_a_file_that_is_read_may_vanish_afterwards(folder):
    encoder = load(folder)
    os.truncate(folder / "model.safetensors", 0)
    assert np.isfinite(encoder.encode(TEXTS)).all()
    with pytest.raises(hw.ModelFormatError, match=r"model\.safetensors"):
        load(folder)


def test_links_of_the_owner_are_followed(folder, tmp_path):
    # The cache of huggingface_hub: snapshots/<revision>/<file> -> ../../blobs/<hash>.
    snapshot = tmp_path / "hub" / "snapshots" / "main"
    blobs = tmp_path / "hub" / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for i, file in enumerate(sorted(folder.iterdir())):
        file.copy(blobs / str(i)) if hasattr(file, "copy") else (blobs / str(i)).write_bytes(
            file.read_bytes()
        )
        (snapshot / file.name).symlink_to(f"../../blobs/{i}")
    assert_same_bits(load(snapshot).encode(TEXTS), load(folder).encode(TEXTS))


def test_a_pickle_remembers_that_the_file_was_mapped(folder):
    encoder = load(folder, mmap=True)
    again = pickle.loads(pickle.dumps(encoder))
    assert_same_bits(again.encode(TEXTS), encoder.encode(TEXTS))


# ---- Modules -----------------------------------------------------------------------------------------------


def pooled(hidden, kind):
    """Pool the rows of one text (L, D), in float64."""
    weights = np.arange(1, len(hidden) + 1)[:, None]
    return {
        "cls": hidden[0],
        "max": hidden.max(axis=0),
        "mean": hidden.mean(axis=0),
        "mean_sqrt_len_tokens": hidden.sum(axis=0) / np.sqrt(len(hidden)),
        "weightedmean": (hidden * weights).sum(axis=0) / weights.sum(),
        "lasttoken": hidden[-1],
    }[kind]


def hidden_rows(encoder, text):
    return encoder.forward(**encoder.tokenize([text]))[0].astype(np.float64)


FLAGS = {
    "cls": "pooling_mode_cls_token",
    "max": "pooling_mode_max_tokens",
    "mean": "pooling_mode_mean_tokens",
    "mean_sqrt_len_tokens": "pooling_mode_mean_sqrt_len_tokens",
    "weightedmean": "pooling_mode_weightedmean_tokens",
    "lasttoken": "pooling_mode_lasttoken",
}


@pytest.mark.parametrize("kind", FLAGS)
def test_each_pooling_by_name_flag_and_argument(folder, kind):
    encoder = load(folder, pooling=kind)
    got = encoder.encode(TEXTS)
    want = np.stack([pooled(hidden_rows(encoder, text), kind) for text in TEXTS])
    np.testing.assert_allclose(got, want, rtol=0, atol=2e-6)
    write_modules(folder, "Pooling")
    flags = {flag: name == kind for name, flag in FLAGS.items()}
    for config in ({"pooling_mode": kind}, {"word_embedding_dimension": D, **flags}):
        write_json(folder / "1" / "config.json", config)
        assert_same_bits(load(folder).encode(TEXTS), got)


def test_several_poolings_stand_side_by_side(folder):
    write_modules(folder, "Pooling")
    single = {}
    for kind in FLAGS:
        write_json(folder / "1" / "config.json", {"pooling_mode": kind})
        single[kind] = load(folder).encode(TEXTS)
    for config, kinds in (
        ({"pooling_mode": ["max", "cls"]}, ["max", "cls"]),
        (dict.fromkeys(FLAGS.values(), True), list(FLAGS)),
    ):
        write_json(folder / "1" / "config.json", config)
        encoder = load(folder)
        assert encoder.get_embedding_dimension() == len(kinds) * D
        assert_same_bits(encoder.encode(TEXTS), np.concatenate([single[kind] for kind in kinds], axis=1))
        assert "+".join(kinds) in repr(encoder)


ACTIVATIONS = {
    "torch.nn.modules.linear.Identity": lambda x: x,
    "torch.nn.modules.activation.Tanh": np.tanh,
    "torch.nn.modules.activation.ReLU": lambda x: np.maximum(x, 0),
    "torch.nn.modules.activation.Sigmoid": lambda x: 1 / (1 + np.exp(-x)),
    "torch.nn.modules.activation.SiLU": lambda x: x / (1 + np.exp(-x)),
}


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_dense_modules_follow_in_the_order_of_the_file(folder, activation):
    plain = load(folder).encode(TEXTS).astype(np.float64)
    write_modules(folder, "Pooling", "Dense", "Normalize", "Dense")
    write_json(folder / "1" / "config.json", MEAN)
    first = write_dense(folder / "2", 20, D, activation)
    last = write_dense(folder / "4", 7, 20, "torch.nn.modules.linear.Identity", seed=4)
    encoder = load(folder)
    assert encoder.get_embedding_dimension() == 7
    want = ACTIVATIONS[activation](plain @ first["linear.weight"].T + first["linear.bias"])
    want /= np.linalg.norm(want, axis=1, keepdims=True)
    want = want @ last["linear.weight"].T + last["linear.bias"]
    got = encoder.encode(TEXTS)
    np.testing.assert_allclose(got, want, rtol=0, atol=2e-6)
    assert_same_bits(np.stack([encoder.encode(text) for text in TEXTS]), got)
    assert encoder.encode([]).shape == (0, 7)
    unit = encoder.encode(TEXTS, normalize_embeddings=True)
    np.testing.assert_allclose(np.linalg.norm(unit, axis=1), 1, atol=1e-6)


def test_a_dense_module_in_half_precision_and_without_bias(folder):
    write_modules(folder, "Pooling", "Dense")
    write_json(folder / "1" / "config.json", MEAN)
    tensors = write_dense(folder / "2", 6, D, "torch.nn.modules.linear.Identity")
    config = json.loads((folder / "2" / "config.json").read_text())
    write_json(folder / "2" / "config.json", {**config, "bias": False})
    weight = tensors["linear.weight"].astype("<f2").astype("<f4")
    write_tensors(folder / "2" / "model.safetensors", {"linear.weight": weight}, "F16")
    want = load(folder, pooling="mean").encode(TEXTS)
    write_tensors(folder / "2" / "model.safetensors", {"linear.weight": weight})
    assert_same_bits(load(folder).encode(TEXTS), want)
