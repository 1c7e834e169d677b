"""Folders from strangers: whatever they hold, loading ends at once in an error that names the file."""

import ctypes
import os
import random
import shutil
import time
from pathlib import Path

import hostile_configs
import hostile_weights
import numpy as np
import pytest
from checkpoints import (
    TEXTS,
    D,
    small_tensors,
    tokenizer_file,
    write_index,
    write_json,
    write_model,
    write_shards,
)
from hostile import CASES, FORMAT, TOKENIZER, WORDS
from minilm import minilm_folder

import headwise as hw

pytestmark = pytest.mark.once

SECONDS = 0.1  # of processor time, for a refusal


@pytest.fixture
def folder(tmp_path):
    return write_model(tmp_path / "model")


@pytest.mark.parametrize("mmap", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_hostile_folders_are_refused_at_once(folder, name, mmap):
    case = CASES[name]
    case.spoil(folder)
    start = time.process_time()
    with pytest.raises(hw.HeadwiseError) as caught:
        hw.TextEncoder.from_pretrained(folder, mmap=mmap)
    seconds = time.process_time() - start
    assert caught.type is case.error
    assert case.match in str(caught.value)
    assert case.file in str(caught.value)
    assert seconds < SECONDS


def test_there_are_dozens_of_hostile_folders():
    assert {case.spoil.__module__ for case in CASES.values()} == {
        hostile_weights.__name__,
        hostile_configs.__name__,
    }
    assert len(CASES) >= 60


class Watch:
    """What is opened in a folder, as the kernel tells by inotify."""

    IN_OPEN = 0x20

    def __init__(self, folder: Path) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        self.descriptor = libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        if (
            self.descriptor < 0
            or libc.inotify_add_watch(self.descriptor, os.fsencode(folder), self.IN_OPEN) < 0
        ):
            raise OSError(ctypes.get_errno(), "inotify")

    def opened(self) -> bool:
        try:
            return bool(os.read(self.descriptor, 4096))
        except BlockingIOError:
            return False

    def close(self) -> None:
        os.close(self.descriptor)


def test_nothing_outside_the_folder_is_opened(folder, tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    shutil.copytree(folder, outside / "model")
    names = ["outside.safetensors", "config.json", "model.safetensors", "tokenizer.json"]
    for name in names:
        shutil.copy(folder / "model.safetensors", outside / name)
    watch = Watch(outside)
    (outside / names[0]).read_bytes()
    assert watch.opened()  # it does see what is opened

    weight_map = write_shards(folder, small_tensors())
    (folder / "model.safetensors").unlink()
    for name in (f"../outside/{names[0]}", str(outside / names[0]), f"x/../../outside/{names[0]}"):
        write_index(folder, {**weight_map, WORDS: name})
        with pytest.raises(FORMAT):
            hw.TextEncoder.from_pretrained(folder)
    write_index(folder, weight_map)
    for kinds in (["Transformer"], ["Transformer", "Pooling"], ["Transformer", "Pooling", "Dense"]):
        for path in ("../outside", str(outside), "x/../../outside", "../outside/model"):
            modules = [{"type": f"sentence_transformers.models.{kind}", "path": ""} for kind in kinds]
            modules[-1]["path"] = path
            write_json(folder / "modules.json", modules)
            with pytest.raises(FORMAT, match=r"modules\.json"):
                hw.TextEncoder.from_pretrained(folder)
    assert not watch.opened()
    watch.close()


def mutated(raw, rng, stretch):
    """Change a few bytes of the first ``stretch``: other bits, other bytes, bytes doubled and taken away."""
    raw = bytearray(raw)
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(min(stretch, len(raw)))
        kind = rng.randrange(4)
        if kind == 0:
            raw[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            raw[at] = rng.choice(b'0123456789-[]{}",:eE. \x00\xff')
        elif kind == 2:
            raw[at:at] = raw[at : at + rng.randint(1, 9)]
        else:
            del raw[at : at + rng.randint(1, 9)]
    return bytes(raw)


@pytest.mark.parametrize("file", ["model.safetensors", "config.json", "tokenizer.json"])
def test_random_changes_never_crash(folder, file):
    path = folder / file
    raw = path.read_bytes()
    stretch = 8 + int.from_bytes(raw[:8], "little") if file == "model.safetensors" else len(raw)
    rng = random.Random(20260101)
    refused = 0
    for _ in range(300):
        path.write_bytes(mutated(raw, rng, stretch))
        try:
            hw.TextEncoder.from_pretrained(folder).encode(TEXTS[:3])
        except hw.HeadwiseError:
            refused += 1
    assert refused > 50
    path.write_bytes(raw)
    assert hw.TextEncoder.from_pretrained(folder).encode(TEXTS).shape == (len(TEXTS), D)


@pytest.mark.parametrize("step", ["pre_tokenizer", "normalizer"])
def test_a_regex_bomb_ends_in_an_error(folder, step):
    bomb = {"Regex": "(a|a)*(?=b)c"}
    file = tokenizer_file()
    file[step] = {
        "pre_tokenizer": {"type": "Split", "pattern": bomb, "behavior": "Isolated", "invert": False},
        "normalizer": {"type": "Replace", "pattern": bomb, "content": "x"},
    }[step]
    write_json(folder / "tokenizer.json", file)
    encoder = hw.TextEncoder.from_pretrained(folder)
    assert np.isfinite(encoder.encode("dog")).all()
    for call in (encoder.encode, encoder.attentions):
        with pytest.raises(TOKENIZER, match=r"tokenizer\.json"):
            call("a" * 100)


@pytest.mark.parametrize("unit", ["the dog was here, ", "x", "\u4e2d", "\u0301", " ", "[CLS]"])
def test_a_line_of_a_megabyte(unit):
    encoder = hw.TextEncoder.from_pretrained(minilm_folder())
    few, half, whole = (
        encoder.tokenize([unit * (size // len(unit.encode()))])["input_ids"] for size in (2**14, 2**19, 2**20)
    )
    # All are cut at 256 tokens, or are one unknown word, or nothing: the same whatever the length.
    assert np.array_equal(few, whole)
    assert np.array_equal(half, whole)
    assert whole.shape[1] == {"x": 3, "\u0301": 2, " ": 2}.get(unit, 256)
