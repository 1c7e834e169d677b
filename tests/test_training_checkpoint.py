"""Checkpoints of a training: what comes back, what hostile files do, and the bits of a resumed training."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from compare import assert_same_bits

import headwise as hw


def parts():
    """Return a small training in its middle: parameters, optimiser, generator."""
    rng = np.random.default_rng(3)
    parameters = {"w": rng.standard_normal((3, 4)).astype(np.float32), "b": np.zeros(2)}
    optimizer = hw.optim.AdamW(parameters, lr=0.1)
    for _ in range(3):
        optimizer.step({name: rng.standard_normal(value.shape) for name, value in parameters.items()})
    return parameters, optimizer, rng


@pytest.fixture
def path(tmp_path):
    return tmp_path / "last.safetensors"


def save(path, **extra):
    parameters, optimizer, rng = parts()
    hw.save_checkpoint(path, model=parameters, optimizer=optimizer, rng=rng, step=3, **extra)
    return parameters, optimizer, rng


EXTRA = {
    "numbers": [1, 2.5, -0.0, float("inf"), True, None, "text ü", 10**30],
    "nested": {"a": {"b": (1, (2, [3]))}, "empty": {}, "list": []},
    "arrays": [
        np.arange(6).reshape(2, 3),
        np.float32(0.1),
        np.array(7, np.int8),
        np.zeros((0, 3), np.float16),
    ],
    "flags": np.array([True, False]),
}


def same(a, b):
    """Tell whether two values are equal in kind, dtype and every bit."""
    if isinstance(a, (np.ndarray, np.generic)):
        return type(a) is type(b) and a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
    if isinstance(a, dict):
        return type(b) is dict and a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and repr(a) == repr(b)


def test_everything_comes_back(path):
    parameters, optimizer, rng = save(path, **EXTRA)
    found = hw.load_checkpoint(path)
    assert same(found.model, parameters)
    assert same(found.optimizer, optimizer.state_dict())
    assert found.rng.bit_generator.state == rng.bit_generator.state
    assert found.step == 3
    assert same(found.extra, EXTRA)
    assert os.listdir(path.parent) == [path.name]


def test_parts_are_put_back(path):
    parameters, optimizer, rng = save(path)
    want, state, draw = {k: v.copy() for k, v in parameters.items()}, optimizer.state_dict(), rng.random()
    optimizer.step({"w": np.ones((3, 4))})
    kept = parameters["w"]
    assert hw.load_checkpoint(path, model=parameters, optimizer=optimizer, rng=rng).step == 3
    assert same(parameters, want)
    assert parameters["w"] is kept
    assert same(optimizer.state_dict(), state)
    assert rng.random() == draw


def test_layers_and_dicts_of_them(path):
    layer, other = hw.EncoderLayer(8, 2, 16, rng=0), hw.EncoderLayer(8, 2, 16, rng=1)
    hw.save_checkpoint(path, model=layer)
    hw.load_checkpoint(path, model=other)
    assert same(other.state_dict(), layer.state_dict())
    hw.save_checkpoint(path, model={"encoder": layer, "scale": np.ones(3)})
    fresh, scale = hw.EncoderLayer(8, 2, 16, rng=2), np.zeros(3)
    hw.load_checkpoint(path, model={"encoder": fresh, "scale": scale})
    assert same(fresh.state_dict(), layer.state_dict())
    assert scale.tolist() == [1.0] * 3


@pytest.mark.parametrize("kind", ["PCG64", "PCG64DXSM", "MT19937", "Philox", "SFC64"])
def test_generators_go_on(path, kind):
    rng = np.random.Generator(getattr(np.random, kind)(5))
    rng.random(3, dtype=np.float32)  # half of a 64-bit word is left over
    hw.save_checkpoint(path, rng=rng)
    draws = rng.random(5, dtype=np.float32)
    np.testing.assert_array_equal(hw.load_checkpoint(path).rng.random(5, dtype=np.float32), draws)
    again = np.random.Generator(getattr(np.random, kind)(6))
    hw.load_checkpoint(path, rng=again)
    np.testing.assert_array_equal(again.random(5, dtype=np.float32), draws)


def test_other_readers_understand_the_file(path):
    parameters, _, _ = save(path)
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    info = header["model.w"]
    assert (info["dtype"], info["shape"]) == ("F32", [3, 4])
    start, end = (8 + length + at for at in info["data_offsets"])
    assert data[start:end] == parameters["w"].tobytes()
    assert (8 + length) % 8 == 0


def test_bfloat16_arrays(path):
    ml_dtypes = pytest.importorskip("ml_dtypes")
    x = np.arange(5).astype(ml_dtypes.bfloat16)
    hw.save_checkpoint(path, x=x)
    assert same(hw.load_checkpoint(path).extra["x"], x)


def test_an_interrupted_save_leaves_the_checkpoint_before(path, monkeypatch):
    save(path)
    before = path.read_bytes()

    def full(_):
        raise OSError("no space left")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="no space"):
        hw.save_checkpoint(path, model={"w": np.zeros(3)})
    assert path.read_bytes() == before
    assert os.listdir(path.parent) == [path.name]


def test_links_are_followed(path, tmp_path):
    link = tmp_path / "link.safetensors"
    link.symlink_to(path)
    hw.save_checkpoint(link, step=1)
    assert link.is_symlink()
    assert hw.load_checkpoint(path).step == 1


@pytest.mark.parametrize(
    ("extra", "text"),
    [
        ({"x": object()}, "extra.x.*object"),
        ({"x": {1: 2}}, "extra.x.*strings as keys.*1"),
        ({"x": [np.array(["a"])]}, "extra.x.0.*<U1"),
        ({"x": np.zeros(2, complex)}, "extra.x.*complex128"),
        ({"rng": 5}, "rng.*Generator.*int"),
        ({"model": [1]}, "model.*list"),
    ],
)
def test_what_cannot_be_saved_is_named(path, extra, text):
    with pytest.raises(TypeError, match=text):
        hw.save_checkpoint(path, **extra)
    assert not path.exists()


def test_what_does_not_fit_changes_nothing(path):
    save(path)
    for given, error, text in [
        ({"model": {"w": np.zeros((3, 4))}}, ValueError, r"model.*unknown \['b'\]"),
        (
            {"model": {"w": np.zeros((4, 3)), "b": np.zeros(2)}},
            hw.ShapeError,
            r"model.*\(4, 3\) of 'w'.*\(3, 4\)",
        ),
        ({"rng": np.random.Generator(np.random.MT19937(1))}, ValueError, "rng.*PCG64.*MT19937"),
        ({"optimizer": hw.optim.SGD({"w": np.zeros((3, 4))}, 0.1)}, ValueError, "SGD.*AdamW"),
    ]:
        parameters, optimizer, rng = parts()
        parameters["w"][:] = 7.0
        whole = {"model": parameters, "optimizer": optimizer, "rng": rng} | given
        state = rng.bit_generator.state
        with pytest.raises(error, match=text):
            hw.load_checkpoint(path, **whole)
        assert (parameters["w"] == 7.0).all()
        assert rng.bit_generator.state == state
    hw.save_checkpoint(path, step=1)
    for name, part in zip(("model", "optimizer", "rng"), parts(), strict=True):
        with pytest.raises(ValueError, match=f"{name}: .* holds none"):
            hw.load_checkpoint(path, **{name: part})


# --- files of a stranger ------------------------------------------------------------------------------------


def rewrite(path, change):
    """Write the file again with its tree changed."""
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    tree = json.loads(header["__metadata__"]["headwise.training"])
    text = change(tree)
    header["__metadata__"]["headwise.training"] = json.dumps(tree) if text is None else text
    new = json.dumps(header).encode()
    path.write_bytes(len(new).to_bytes(8, "little") + new + data[8 + length :])


def bit_generator(tree, **values):
    tree["rng"]["dict"] |= values


@pytest.mark.parametrize(
    "change",
    [
        lambda tree: "",
        lambda tree: "[]",
        lambda tree: "[" * 100_000,
        lambda tree: "{}",
        lambda tree: "1" * 10_000,
        lambda tree: tree.pop("step") and None,
        lambda tree: tree.update(step="three"),
        lambda tree: tree.update(model={"array": "nowhere"}),
        lambda tree: tree.update(model={"array": ["model.w"]}),
        lambda tree: tree.update(model={"dict": {"w": 1}}),
        lambda tree: tree.update(model={"dict": 5}),
        lambda tree: tree.update(extra={"a": 1, "b": 2}),
        lambda tree: tree.update(extra={"pickle": "x"}),
        lambda tree: tree.update(extra={}),
        lambda tree: tree.update(optimizer=[]),
        lambda tree: tree.update(rng=5),
        lambda tree: bit_generator(tree, bit_generator="Generator"),
        lambda tree: bit_generator(tree, bit_generator="default_rng"),
        lambda tree: bit_generator(tree, bit_generator=[]),
        lambda tree: bit_generator(tree, bit_generator="MT19937"),
        lambda tree: bit_generator(tree, state={"dict": {}}),
        lambda tree: bit_generator(tree, state={"dict": {"state": -1, "inc": 2**200}}),
        lambda tree: bit_generator(tree, uinteger="x"),
    ],
)
def test_trees_that_lie(path, change):
    save(path)
    rewrite(path, change)
    with pytest.raises(hw.ModelFormatError, match=str(path)):
        hw.load_checkpoint(path)


def test_damaged_files(path):
    save(path)
    whole = path.read_bytes()
    for length in [0, 1, 7, 8, 100, len(whole) // 2, len(whole) - 1]:
        path.write_bytes(whole[:length])
        with pytest.raises(hw.ModelFormatError):
            hw.load_checkpoint(path)
    for other in (whole + b"\0", b"PK\x03\x04 a zip file", b"\x80\x02 a pickle", b"\xff" * 64):
        path.write_bytes(other)
        with pytest.raises(hw.ModelFormatError):
            hw.load_checkpoint(path)
    for name, info in {
        "huge": {"dtype": "F32", "shape": [0, 2**62], "data_offsets": [0, 0]},
        "narrow": {"dtype": "F8_E4M3", "shape": [2], "data_offsets": [0, 2]},
        "lying": {"dtype": "F64", "shape": [2**61, 8], "data_offsets": [0, 0]},
    }.items():
        header = json.dumps({name: info}).encode()
        path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(info["data_offsets"][1]))
        with pytest.raises(hw.ModelFormatError):
            hw.load_checkpoint(path)


def test_files_that_are_none(path):
    with pytest.raises(FileNotFoundError, match="last"):
        hw.load_checkpoint(path)
    with pytest.raises(FileNotFoundError):
        hw.load_checkpoint(path / "below" / "x")
    with pytest.raises(hw.ModelFormatError, match="regular file"):
        hw.load_checkpoint(path.parent)
    os.mkfifo(path)
    with pytest.raises(hw.ModelFormatError, match="regular file"):
        hw.load_checkpoint(path)


def test_names_with_too_much_to_tell(path):
    with pytest.raises(ValueError, match="more than 4194304: use arrays"):
        hw.save_checkpoint(path, losses=[0.1234567] * 500_000)
    assert not path.exists()


# --- the same bits ------------------------------------------------------------------------------------------

TRAIN = """
import sys, hashlib
import numpy as np
import headwise as hw

path, first, last, threads = sys.argv[1], *map(int, sys.argv[2:])
hw.set_num_threads(threads)
rng = np.random.default_rng(11)
x = rng.standard_normal((400, 24)).astype(np.float32)
y = (x[:, :3].argmax(-1) + (x[:, 3] > 1)).astype(int)
model = {
    "up.weight": hw.init.kaiming_uniform((900, 24), nonlinearity="relu", rng=1),
    "up.bias": hw.init.zeros(900),
    "down.weight": hw.init.xavier_uniform((4, 900), rng=2),
    "down.bias": hw.init.zeros(4),
}
optimizer = hw.optim.AdamW(model, lr=hw.optim.warmup_cosine(3e-3, warmup=5, total=30))
start = 0
if first:
    start = hw.load_checkpoint(path, model=model, optimizer=optimizer, rng=rng).step
for step in range(start, last):
    batch = rng.choice(400, 64, replace=False)
    hidden = hw.linear(x[batch], model["up.weight"], model["up.bias"])
    active = hw.relu(hidden)
    logits = hw.linear(active, model["down.weight"], model["down.bias"])
    loss, d = hw.losses.cross_entropy(logits, y[batch], label_smoothing=0.05)
    d_hidden = hw.linear(d, model["down.weight"].T) * (hidden > 0)
    ones = np.ones((1, 64), np.float32)
    grads = {
        "up.weight": hw.linear(d_hidden.T, x[batch].T), "up.bias": hw.linear(d_hidden.T, ones)[:, 0],
        "down.weight": hw.linear(d.T, active.T), "down.bias": hw.linear(d.T, ones)[:, 0],
    }
    grads, norm = hw.optim.clip_by_norm(grads, 0.5)
    optimizer.step(grads)
hw.save_checkpoint(path, model=model, optimizer=optimizer, rng=rng, step=last, loss=loss)
print(hashlib.sha256(open(path, "rb").read()).hexdigest(), loss)
"""


def train(path, first, last, *, threads, isa):
    """Train from step `first` to `last` in another process; return the checkpoint's digest and the loss."""
    env = {**os.environ, "HEADWISE_ISA": isa, "PYTHONPATH": str(Path(hw.__file__).parent.parent)}
    command = [sys.executable, "-c", TRAIN, str(path), str(first), str(last), str(threads)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
    digest, loss = done.stdout.split()
    return digest, float(loss)


@pytest.mark.once
def test_resumed_training_ends_with_the_same_bits(tmp_path):
    isas = hw.show_config(mode="dicts")["available_isas"]
    whole = train(tmp_path / "whole.safetensors", 0, 30, threads=1, isa=isas[0])
    assert whole[1] < 1.0
    for isa in isas:
        for threads in (1, 2):
            path = tmp_path / f"{isa}-{threads}.safetensors"
            train(path, 0, 13, threads=threads, isa=isa)
            assert train(path, 13, 30, threads=threads, isa=isa) == whole
    # Begun on one, ended on another.
    path = tmp_path / "moved.safetensors"
    train(path, 0, 17, threads=2, isa=isas[-1])
    assert train(path, 17, 30, threads=1, isa=isas[0]) == whole


def test_the_checkpoint_is_the_truth_not_the_object(path, rng):
    parameters = {"w": rng.standard_normal(5)}
    optimizer = hw.optim.SGD(parameters, 0.1, momentum=0.9)
    optimizer.step({"w": np.ones(5)})
    hw.save_checkpoint(path, model=parameters, optimizer=optimizer)
    optimizer.step({"w": np.ones(5)})
    want = parameters["w"].copy()
    hw.load_checkpoint(path, model=parameters, optimizer=optimizer)
    optimizer.step({"w": np.ones(5)})
    assert_same_bits(parameters["w"], want)
