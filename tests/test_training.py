"""A training of layers that is interrupted ends in the bits of one that is not, wherever it goes on."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

import headwise as hw

PROGRAM = """
import hashlib, json, sys
import numpy as np
import headwise as hw

path, first, last, threads = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
hw.set_num_threads(threads)
data = np.random.default_rng(1)
ids, kinds = data.integers(0, 30, (64, 12)), data.integers(0, 5, 64)
lengths = data.integers(3, 13, 64)
rng = np.random.default_rng(2)
body = hw.Sequential(
    hw.Embedding(30, 32, rng=3),
    hw.Encoder(2, 32, 4, 64, dropout=0.2, norm_first=True, final_norm=True, activation="gelu", rng=4),
)
head = hw.Linear(32, 5, rng=5)
parts = {"body": body, "head": head}
optimizer = hw.optim.AdamW(parts, lr=hw.optim.warmup_cosine(1e-2, warmup=3, total=12))
if first:
    hw.load_checkpoint(path, model=parts, optimizer=optimizer, rng=rng)
losses = []
for step in range(first, last):
    batch = rng.choice(64, 16, replace=False)
    tokens, through_body = body.vjp(ids[batch], lengths=lengths[batch], training=True, rng=rng)
    scores, through_head = head.vjp(tokens[:, 0])
    loss, d_scores = hw.losses.cross_entropy(scores, kinds[batch], label_smoothing=0.1)
    d_first, of_head = through_head(d_scores)
    d_tokens = np.zeros_like(tokens)
    d_tokens[:, 0] = d_first
    _, of_body = through_body(d_tokens)
    grads, _ = hw.optim.clip_by_norm({"body": of_body, "head": of_head}, 0.5)
    optimizer.step(grads)
    losses.append(loss)
hw.save_checkpoint(path, model=parts, optimizer=optimizer, rng=rng)
print(json.dumps([hashlib.sha256(open(path, "rb").read()).hexdigest(), losses]))
"""


def run(path, first, last, *, isa, threads):
    """Train in a process of its own; return the digest of its checkpoint and the losses."""
    arguments = [sys.executable, "-c", PROGRAM, str(path), *map(str, (first, last, threads))]
    env = os.environ | {"HEADWISE_ISA": isa}
    done = subprocess.run(arguments, env=env, check=True, capture_output=True, text=True)
    return json.loads(done.stdout)


@pytest.mark.once
def test_interrupted_training_goes_on_to_the_same_bits(tmp_path):
    isas = hw.show_config(mode="dicts")["available_isas"]
    path = tmp_path / "last.safetensors"
    want, losses = run(path, 0, 12, isa=isas[-1], threads=1)
    assert losses[-1] < losses[0]
    for n, isa in enumerate(isas):
        for threads in (1, 2):
            # The first half on one instruction set, the second on another.
            _, before = run(path, 0, 7, isa=isas[n - 1], threads=3 - threads)
            digest, after = run(path, 7, 12, isa=isa, threads=threads)
            assert digest == want, (isa, threads)
            assert before + after == losses


def test_a_small_model_learns():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((256, 6, 4), dtype=np.float32)
    y = (x[:, 0, 0] > x[:, 5, 0]).astype(np.int64)
    body = hw.Sequential(hw.Linear(4, 16, rng=1), hw.Encoder(1, 16, 2, 32, positions="sinusoidal", rng=2))
    head = hw.Linear(16, 2, rng=3)
    optimizer = hw.optim.Adam({"body": body, "head": head}, lr=5e-3)
    for _ in range(150):
        batch = rng.choice(256, 64, replace=False)
        tokens, through_body = body.vjp(x[batch])
        scores, through_head = head.vjp(tokens.mean(axis=1))
        _, d_scores = hw.losses.cross_entropy(scores, y[batch])
        d_mean, of_head = through_head(d_scores)
        _, of_body = through_body(np.repeat(d_mean[:, None] / 6, 6, axis=1))
        optimizer.step({"body": of_body, "head": of_head})
    assert (head(body(x).mean(axis=1)).argmax(axis=1) == y).mean() > 0.95
