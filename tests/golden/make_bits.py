"""Make bits.json: digests of outputs for a fixed table of cases, the law of bits in one file.

Run on any machine once the numbers are meant to be what they are:  python tests/golden/make_bits.py
Every instruction set, thread count and machine must then give the same. Whoever changes the order of a sum
changes the law: regenerate in a commit of its own, with the reason.

Inputs come from a counter (the finalizer of splitmix64 over stream and index), never from a library's
generator: 24 bits each, in [-1, 1), exact in float32 and float64 alike. Parameters are drawn by their name in
`state_dict()`. The texts of MiniLM need its folder (`headwise fetch minilm`); its path is looked up by
`minilm_folder`.
"""

import hashlib
import json
import platform
import sys
import zlib
from pathlib import Path

import numpy as np

import headwise as hw

HERE = Path(__file__).parent
FILE = HERE / "bits.json"
TEXTS = ["The cat sat on the mat.", "Ein Hund fraß das Futter, weil er hungrig war 🐕; 东京は晴れ."]


def numbers(stream, *shape):
    """Return float64 numbers in [-1, 1) with 24 bits, from the stream's name and the element's index."""
    with np.errstate(over="ignore"):
        start = np.uint64(zlib.crc32(stream.encode())) << np.uint64(32)
        z = (start + np.arange(int(np.prod(shape)), dtype=np.uint64)) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z = z ^ (z >> np.uint64(31))
    return ((z >> np.uint64(40)).astype(np.float64) * 2.0**-23 - 1.0).reshape(shape)


def bits(stream, *shape, one_in=3):
    """Return booleans, False about once in `one_in`."""
    return numbers(stream, *shape) > 2.0 / one_in - 1.0


def fill(layer):
    """Give a layer parameters drawn by name: matrices over about sqrt of their width, norms near 1."""
    state = {}
    for name, array in layer.state_dict().items():
        drawn = numbers(name, *array.shape)
        if array.ndim == 1 and "norm" in name and name.endswith("weight"):
            drawn = 1.0 + drawn * 0.25
        elif array.ndim == 2:
            drawn = drawn * 2.0 ** (1 - round(np.log2(array.shape[1]) / 2))
        state[name] = drawn.astype(array.dtype)
    layer.load_state_dict(state)
    return layer


def sdpa(dtype, L, S, E, B=2, H=2, Hk=None, Ev=None, spread=2.0, **options):
    """Return out, weights and lse of one call."""
    Hk = Hk or H
    shapes = {"query": (B, H, L, E), "key": (B, Hk, S, E), "value": (B, Hk, S, Ev or E)}
    arrays = [(numbers(name, *shape) * spread).astype(dtype) for name, shape in shapes.items()]
    answer = hw.scaled_dot_product_attention(*arrays, **options, return_weights=True, return_lse=True)
    return dict(zip(("out", "weights", "lse"), answer, strict=True))


def mha(dtype, D, H, L, B=2, S=None, call=None, **options):
    """Return out and weights of MultiHeadAttention, cross-attention if S is given."""
    layer = fill(hw.MultiHeadAttention(D, H, dtype=dtype, **options))
    inputs = [numbers("query", B, L, D)]
    if S is not None:
        inputs.append(numbers("key", B, S, options.get("key_dim", D)))
        inputs.append(numbers("value", B, S, options.get("value_dim", D)))
    inputs = [(x * 2).astype(dtype) for x in inputs]
    return dict(zip(("out", "weights"), layer(*inputs, need_weights=True, **(call or {})), strict=True))


def encoder(dtype, N, D, H, F, L, B=2, call=None, **options):
    """Return the output of an Encoder."""
    layer = fill(hw.Encoder(N, D, H, F, dtype=dtype, **options))
    return {"out": layer((numbers("x", B, L, D) * 2).astype(dtype), **(call or {}))}


def decoder(dtype, N, D, H, F, L, S, B=2, call=None, steps=None, **options):
    """Return the output of a Decoder, or of its steps with a cache, and the last weights over the memory."""
    layer = fill(hw.Decoder(N, D, H, F, dtype=dtype, **options))
    x, memory = ((numbers(name, B, n, D) * 2).astype(dtype) for name, n in (("x", L), ("memory", S)))
    if steps is None:
        answer = layer(x, memory, need_weights=True, **(call or {}))
        return {"out": answer.output, "cross weights": answer.cross_weights[-1]}
    cache, outs = layer.new_cache(memory, **(call or {})), []
    for start in range(0, L, steps):
        outs.append(layer.step(x[:, start : start + steps], cache, need_weights=True))
    cross = np.concatenate([weights[-1] for _, weights in outs], axis=2)
    return {"out": np.concatenate([out for out, _ in outs], axis=1), "cross weights": cross}


def pullback(dtype, name, *shapes, **options):
    """Return the result of a function of `headwise.vjp` and the gradients of its arrays."""
    given = [(numbers(f"{name} {i}", *shape) * 2).astype(dtype) for i, shape in enumerate(shapes)]
    out, back = getattr(hw.vjp, name)(*given, **options)
    gradients = back(numbers("d_out", *out.shape).astype(dtype))
    return {"out": out} | {f"gradient {i}": gradient for i, gradient in enumerate(gradients)}


def pooling(dtype, L, S, E, score="l2", normalize="softmax", local=None, **options):
    """Return out, weights and all gradients of `headwise.attention`, by the name of a score."""
    given = [
        (numbers(f"pooling {i}", *shape) * 2).astype(dtype)
        for i, shape in enumerate(((2, 4, L, E), (2, 2, S, E), (2, 2, S, 7)))
    ]
    if score == "bilinear":
        score = fill(hw.Bilinear(E, E, dtype=dtype))
    elif score == "additive":
        score = fill(hw.Additive(E, E, 20, dtype=dtype))
    options |= {"score": score, "normalize": normalize}
    if local is not None:
        options["local"] = fill(hw.PredictiveWindow(E, 9, width=local, dtype=dtype))
    out, back = hw.vjp.attention(*given, **options)
    gradients = back(numbers("d_out", *out.shape).astype(dtype))
    gradients, named = gradients if len(gradients) == 2 else (gradients, {})
    weights = hw.attention(*given, **options, return_weights=True)[1]
    gradients = {f"gradient {i}": gradient for i, gradient in enumerate(gradients)}
    return {"out": out, "weights": weights} | gradients | named


def recurrent(dtype, name, D, H, L, *layers, B=3, lengths=None, **options):
    """Return out and the last states of a recurrent layer, the gradients of its input and its parameters."""
    layer = fill(getattr(hw, name)(D, H, *layers, dtype=dtype, **options))
    x = (numbers("x", B, L, D) * 2).astype(dtype)
    (out, last), back = layer.vjp(x, lengths=lengths)
    (d_x, _), grads = back((numbers("d_out", *out.shape).astype(dtype), last))
    states = np.stack(last) if name == "LSTM" else last
    grads = np.concatenate([grads[k].ravel() for k in sorted(grads)])
    return {"out": out, "state": states, "gradient": d_x, "gradients": grads}


def minilm(dtype):
    """Return the embeddings of two texts by all-MiniLM-L6-v2."""
    sys.path.insert(0, str(HERE.parent))
    from minilm import minilm_folder

    return {"out": hw.TextEncoder.from_pretrained(minilm_folder(), dtype=dtype).encode(TEXTS)}


def short(B, S):
    """Return lengths from S down."""
    return np.array([max(1, S - 13 * b) for b in range(B)])


MODERN = {
    "activation": "silu",
    "ffn": "glu",
    "norm": "rms",
    "norm_first": True,
    "bias": False,
    "num_kv_heads": 2,
    "positions": "rotary",
    "final_norm": True,
}
BIAS = np.where(bits("holes", 65, 129, one_in=5), numbers("bias", 65, 129) * 3, -np.inf)
CASES = {
    "sdpa one": lambda t: sdpa(t, 1, 1, 1),
    "sdpa small": lambda t: sdpa(t, 3, 5, 3),
    "sdpa tile": lambda t: sdpa(t, 64, 64, 64),
    "sdpa odd": lambda t: sdpa(t, 17, 65, 80, Ev=33),
    "sdpa long": lambda t: sdpa(t, 65, 1000, 32, B=1),
    "sdpa wide": lambda t: sdpa(t, 33, 129, 300, B=1),
    "sdpa decode": lambda t: sdpa(t, 1, 1000, 64, H=8, Hk=2),
    "sdpa grouped": lambda t: sdpa(t, 15, 63, 32, H=6, Hk=2),
    "sdpa causal": lambda t: sdpa(t, 129, 129, 32, is_causal=True),
    "sdpa causal offset": lambda t: sdpa(t, 16, 129, 32, is_causal=True, causal_offset="bottom_right"),
    "sdpa window": lambda t: sdpa(t, 129, 200, 16, window=(30, 7), causal_offset=20),
    "sdpa softcap": lambda t: sdpa(t, 17, 129, 32, softcap=1.5, scale=0.25),
    "sdpa mask": lambda t: sdpa(t, 65, 129, 32, attn_mask=bits("mask", 65, 129)),
    "sdpa bias": lambda t: sdpa(t, 65, 129, 32, attn_mask=BIAS),
    "sdpa key_mask": lambda t: sdpa(t, 65, 200, 32, key_mask=bits("key_mask", 2, 200)),
    "sdpa key_lengths": lambda t: sdpa(t, 17, 129, 32, B=4, key_lengths=short(4, 129)),
    "sdpa peaked": lambda t: sdpa(t, 17, 129, 64, spread=20.0),
    "sdpa empty rows": lambda t: sdpa(t, 17, 65, 32, is_causal=True, causal_offset=-4),
    "pooling l2": lambda t: pooling(t, 17, 400, 33),
    "pooling cosine": lambda t: pooling(t, 33, 65, 20, score="cosine", normalize="sparsemax", scale=5.0),
    "pooling dot": lambda t: pooling(t, 16, 65, 17, score="dot", normalize=hw.TopK(5), softcap=3.0),
    "pooling bilinear": lambda t: pooling(
        t, 65, 129, 15, score="bilinear", normalize="sigmoid", attn_mask=BIAS, key_lengths=short(2, 129)
    ),
    "pooling additive": lambda t: pooling(
        t, 33, 33, 16, score="additive", is_causal=True, key_lengths=short(2, 33)
    ),
    "pooling drawn": lambda t: pooling(t, 65, 40, 9, normalize="hard", rng=5, key_mask=bits("drawn", 2, 40)),
    "pooling local": lambda t: pooling(t, 17, 65, 12, local=9.5, key_lengths=short(2, 65)),
    "mha": lambda t: mha(t, 96, 6, 65),
    "mha 100": lambda t: mha(t, 100, 5, 17),
    "mha one row": lambda t: mha(t, 64, 4, 1),
    "mha no bias": lambda t: mha(t, 64, 4, 16, bias=False),
    "mha grouped": lambda t: mha(t, 64, 8, 33, num_kv_heads=2),
    "mha head_dim": lambda t: mha(t, 64, 3, 33, head_dim=20),
    "mha cross": lambda t: mha(t, 64, 4, 15, S=130, key_dim=48, value_dim=20),
    "mha padded": lambda t: mha(t, 64, 4, 65, B=4, call={"key_lengths": short(4, 65)}),
    "mha causal": lambda t: mha(t, 64, 4, 65, call={"is_causal": True}),
    "mha wide": lambda t: mha(t, 768, 12, 9),
    "encoder relu": lambda t: encoder(t, 2, 64, 4, 128, 33),
    "encoder 100": lambda t: encoder(t, 2, 100, 5, 257, 17, activation="gelu"),
    "encoder pre": lambda t: encoder(
        t, 3, 64, 4, 96, 64, activation="gelu_tanh", norm_first=True, final_norm=True
    ),
    "encoder glu": lambda t: encoder(
        t,
        2,
        64,
        8,
        96,
        33,
        activation="silu",
        ffn="glu",
        norm="rms",
        norm_first=True,
        bias=False,
        num_kv_heads=2,
        positions="rotary",
        final_norm=True,
        call={"is_causal": True},
    ),
    "encoder sinusoidal": lambda t: encoder(t, 2, 64, 4, 128, 33, positions="sinusoidal"),
    "encoder alibi": lambda t: encoder(t, 2, 48, 6, 128, 65, positions="alibi"),
    "encoder padded": lambda t: encoder(
        t, 2, 64, 4, 128, 65, B=4, activation="gelu", call={"lengths": short(4, 65)}
    ),
    "encoder key_mask": lambda t: encoder(t, 2, 64, 4, 128, 65, call={"key_mask": bits("key_mask", 2, 65)}),
    "encoder wide": lambda t: encoder(t, 1, 384, 12, 1536, 32, activation="gelu"),
    "decoder relu": lambda t: decoder(t, 2, 64, 4, 128, 65, 33),
    "decoder 100": lambda t: decoder(t, 2, 100, 5, 257, 17, 129, activation="gelu", positions="sinusoidal"),
    "decoder glu": lambda t: decoder(t, 2, 64, 8, 96, 65, 17, **MODERN),
    "decoder alibi": lambda t: decoder(
        t, 2, 48, 6, 128, 65, 130, positions="alibi", norm_first=True, call={"window": (20, 0)}
    ),
    "decoder padded": lambda t: decoder(
        t, 2, 64, 4, 128, 65, 40, B=4, call={"lengths": short(4, 65), "memory_lengths": short(4, 40) - 1}
    ),
    "decoder masks": lambda t: decoder(
        t,
        2,
        64,
        4,
        128,
        65,
        129,
        call={
            "key_mask": bits("key_mask", 2, 65),
            "memory_mask": BIAS,
            "memory_key_mask": bits("memory", 2, 129),
        },
    ),
    "decoder steps": lambda t: decoder(
        t, 2, 64, 8, 96, 130, 17, steps=1, call={"memory_key_mask": bits("memory", 2, 17)}, **MODERN
    ),
    "rnn": lambda t: recurrent(t, "RNN", 20, 65, 33, B=17),
    "rnn relu": lambda t: recurrent(t, "RNN", 20, 40, 9, nonlinearity="relu", bidirectional=True),
    "lstm": lambda t: recurrent(t, "LSTM", 100, 200, 17, B=20),
    "lstm stack": lambda t: recurrent(
        t, "LSTM", 7, 33, 130, 2, B=4, bidirectional=True, lengths=short(4, 130) - 1
    ),
    "gru": lambda t: recurrent(t, "GRU", 100, 200, 17, B=20),
    "gru stack": lambda t: recurrent(
        t, "GRU", 7, 33, 65, 2, bidirectional=True, lengths=short(3, 65), bias=False
    ),
    "vjp gelu": lambda t: pullback(t, "gelu", (777,)),
    "vjp gelu tanh": lambda t: pullback(t, "gelu", (777,), approximate="tanh"),
    "vjp layer_norm": lambda t: pullback(t, "layer_norm", (600, 100), (100,), (100,)),
    "vjp linear": lambda t: pullback(t, "linear", (800, 65), (50, 65), (50,), activation="silu"),
    "vjp linear wide": lambda t: pullback(t, "linear", (17, 400), (300, 400)),
    "vjp relu": lambda t: pullback(t, "relu", (777,)),
    "vjp rms_norm": lambda t: pullback(t, "rms_norm", (600, 65), (65,)),
    "vjp rotary_embedding": lambda t: pullback(t, "rotary_embedding", (3, 50, 34)),
    "vjp silu": lambda t: pullback(t, "silu", (777,)),
    "vjp softmax": lambda t: pullback(t, "softmax", (30, 129)),
    "minilm": minilm,
}
DTYPES = ("float32", "float64")


def entry(array):
    """Return what the file says of one array: dtype, shape, digest of its bytes, some values."""
    array = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))
    assert not np.isnan(array).any(), "the bits of a NaN are no part of any promise"
    flat = array.reshape(-1).view(f"<u{array.itemsize}")
    places = sorted({0, flat.size // 3, 2 * flat.size // 3, flat.size - 1})
    return {
        "dtype": str(array.dtype),
        "shape": list(array.shape),
        "sha256": hashlib.sha256(array.tobytes()).hexdigest(),
        "hex": {str(i): f"{flat[i]:0{2 * array.itemsize}x}" for i in places},
    }


def compute(case, dtype):
    """Return the entries of one case: {array's name: entry}."""
    return {name: entry(array) for name, array in CASES[case](dtype).items()}


if __name__ == "__main__":
    about = {"made_by": "tests/golden/make_bits.py", "isa": hw.isa(), "machine": platform.machine()}
    cases = {f"{case} {dtype}": compute(case, dtype) for case in CASES for dtype in DTYPES}
    FILE.write_text(json.dumps({"about": about, "cases": cases}, indent=1) + "\n", encoding="utf-8")
    print(FILE.name, f"{FILE.stat().st_size / 1e3:.0f} kB,", len(cases), "cases")
