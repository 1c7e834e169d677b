"""Folders from strangers: whatever they hold, loading ends at once in an error that names the file.

Each case spoils one thing in a small valid model.
"""

import ctypes
import json
import os
import random
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
from checkpoints import (
    CONFIG,
    TEXTS,
    D,
    header_and_data,
    small_tensors,
    tokenizer_file,
    write_dense,
    write_file,
    write_index,
    write_json,
    write_model,
    write_modules,
    write_shards,
)
from minilm import minilm_folder

import headwise as hw

pytestmark = pytest.mark.once

FORMAT, TOKENIZER, UNSUPPORTED = hw.ModelFormatError, hw.TokenizerError, hw.UnsupportedModelError
WORDS = "embeddings.word_embeddings.weight"
SECONDS = 0.1  # of processor time, for a refusal

CASES = {}


def case(error, match, file="model.safetensors"):
    """Register a function that spoils a folder, the error it must lead to, and what its text holds."""

    def register(spoil):
        CASES[spoil.__name__] = (spoil, error, match, file)
        return spoil

    return register


# ---- model.safetensors -------------------------------------------------------------------------------------


def weights(folder):
    return folder / "model.safetensors"


def rewrite(folder, change):
    """Write the weights anew with a header that ``change`` spoils."""
    header, data = header_and_data(small_tensors())
    changed = change(header)
    write_file(weights(folder), header if changed is None else changed, data)


@case(FORMAT, "shorter than")
def empty_file(folder):
    weights(folder).write_bytes(b"")


@case(FORMAT, "bytes of tensors")
def cut_data(folder):
    os.truncate(weights(folder), weights(folder).stat().st_size - 1)


@case(FORMAT, "header of")
def cut_header(folder):
    os.truncate(weights(folder), 100)


@case(FORMAT, "bytes of tensors")
def bytes_behind_the_data(folder):
    with weights(folder).open("ab") as file:
        file.write(b"\0")


@case(FORMAT, str(2**60))
def header_length_of_2_to_60(folder):
    write_file(weights(folder), b"{}", length=2**60)


@case(FORMAT, str(2**64 - 1))
def header_length_of_all_ones(folder):
    write_file(weights(folder), b"{}", length=2**64 - 1)


@case(FORMAT, "header")
def sparse_file_with_a_long_header(folder):
    write_file(weights(folder), b"{}", length=2**40)
    os.truncate(weights(folder), 2**40 + 8)


@case(FORMAT, "header")
def deep_header(folder):
    write_file(weights(folder), b'{"a":' + b"[" * 1_000_000)


@case(FORMAT, "header")
def header_that_is_no_json(folder):
    write_file(weights(folder), b"\xff" * 64)


@case(FORMAT, "header")
def header_that_is_a_list(folder):
    write_file(weights(folder), b"[]")


@case(FORMAT, "told of twice")
def names_told_of_twice(folder):
    def change(header):
        text = json.dumps(header)
        one = json.dumps({WORDS: header[WORDS]})
        return f"{text[:-1]}, {one[1:]}".encode()

    rewrite(folder, change)


@case(FORMAT, "header")
def overlapping_offsets(folder):
    def change(header):
        header["embeddings.LayerNorm.bias"]["data_offsets"] = header["embeddings.LayerNorm.weight"][
            "data_offsets"
        ]

    rewrite(folder, change)


@case(FORMAT, "header")
def a_hole_between_tensors(folder):
    rewrite(folder, lambda header: header.pop("embeddings.LayerNorm.weight") and None)


@case(FORMAT, "header")
def offsets_backwards(folder):
    rewrite(folder, lambda header: header[WORDS]["data_offsets"].reverse())


@case(FORMAT, "header")
def offsets_that_are_negative(folder):
    rewrite(folder, lambda header: header[WORDS].update(data_offsets=[-8, 0]))


@case(FORMAT, "header")
def a_shape_that_overflows(folder):
    rewrite(folder, lambda header: header[WORDS].update(shape=[2**33, 2**33]))


@case(FORMAT, "header")
def a_shape_of_a_terabyte(folder):
    rewrite(folder, lambda header: header[WORDS].update(shape=[2**35, 8]))


@case(FORMAT, "header")
def an_unknown_dtype(folder):
    rewrite(folder, lambda header: header[WORDS].update(dtype="F31"))


@case(FORMAT, "I32")
def whole_numbers_for_weights(folder):
    rewrite(folder, lambda header: header[WORDS].update(dtype="I32"))


@case(FORMAT, "expected shape")
def a_turned_matrix(folder):
    rewrite(folder, lambda header: header[WORDS]["shape"].reverse())


@case(FORMAT, "output.dense.bias: missing")
def a_tensor_that_is_missing(folder):
    rewrite(folder, lambda header: header.update(x=header.pop("encoder.layer.1.output.dense.bias")))


@case(FORMAT, "git lfs pull")
def a_pointer_of_git_lfs(folder):
    weights(folder).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 90868376\n")


@case(FORMAT, "zip archive")
def a_pickle_under_this_name(folder):
    weights(folder).write_bytes(b"PK\x03\x04" + bytes(100))


@case(UNSUPPORTED, "pickled", "pytorch_model.bin")
def pickled_weights_alone(folder):
    weights(folder).rename(folder / "pytorch_model.bin")


@case(FORMAT, "regular file")
def a_pipe_for_weights(folder):
    weights(folder).unlink()
    os.mkfifo(weights(folder))


@case(FORMAT, "regular file")
def a_folder_for_weights(folder):
    weights(folder).unlink()
    weights(folder).mkdir()


# ---- Shards ------------------------------------------------------------------------------------------------

INDEX = "model.safetensors.index.json"


def shard(folder, change):
    """Turn the weights into shards under an index whose map ``change`` spoils."""
    weights(folder).unlink()
    weight_map = write_shards(folder, small_tensors())
    change(weight_map)
    write_index(folder, weight_map)


@case(FORMAT, WORDS, INDEX)
def a_shard_above_the_folder(folder):
    shutil.copy(weights(folder), folder.parent / "outside.safetensors")
    shard(folder, lambda names: names.update({WORDS: "../outside.safetensors"}))


@case(FORMAT, WORDS, INDEX)
def a_shard_with_an_absolute_name(folder):
    outside = shutil.copy(weights(folder), folder.parent / "outside.safetensors")
    shard(folder, lambda names: names.update({WORDS: str(outside)}))


@case(FORMAT, WORDS, INDEX)
def a_shard_in_a_folder(folder):
    shard(folder, lambda names: names.update({WORDS: "sub/../model-00001-of-00003.safetensors"}))


@case(FORMAT, "no file", INDEX)
def a_shard_that_is_missing(folder):
    shard(folder, lambda names: names.update({WORDS: "model-00004-of-00003.safetensors"}))


@case(FORMAT, f"{WORDS} is not in", INDEX)
def a_tensor_in_another_shard(folder):
    shard(folder, lambda names: names.update({WORDS: "model-00002-of-00003.safetensors"}))


@case(FORMAT, "missing", INDEX)
def a_tensor_that_the_index_forgets(folder):
    shard(folder, lambda names: names.pop(WORDS))


@case(FORMAT, "weight_map", INDEX)
def an_index_without_a_map(folder):
    weights(folder).unlink()
    write_index(folder, ["x"])


@case(FORMAT, "longer than", INDEX)
def an_index_of_gigabytes(folder):
    weights(folder).unlink()
    (folder / INDEX).touch()
    os.truncate(folder / INDEX, 2**33)


@case(FORMAT, "header", "model-00002-of-00003.safetensors")
def a_damaged_shard(folder):
    shard(folder, lambda names: None)
    write_file(folder / "model-00002-of-00003.safetensors", b"{", b"")


# ---- config.json -------------------------------------------------------------------------------------------


def config_case(name, error, match, /, **changes):
    def spoil(folder):
        write_json(folder / "config.json", {**CONFIG, **changes})

    CASES[name] = (
        spoil,
        error,
        match,
        "safetensors" if match in {WORDS, "encoder.layer.2"} else "config.json",
    )


config_case("a_vocabulary_of_10_to_12", FORMAT, "vocab_size", vocab_size=10**12)
config_case("a_vocabulary_of_two_billion", FORMAT, WORDS, vocab_size=2 * 10**9)
config_case("layers_without_end", FORMAT, "encoder.layer.2", num_hidden_layers=10**9)
config_case("heads_that_do_not_divide", FORMAT, "num_attention_heads", num_attention_heads=5)
config_case("a_negative_width", FORMAT, "hidden_size", hidden_size=-32)
config_case("no_heads", FORMAT, "num_attention_heads", num_attention_heads=0)
config_case("a_width_of_a_half", FORMAT, "hidden_size", hidden_size=32.5)
config_case("a_width_in_words", FORMAT, "hidden_size", hidden_size="32")
config_case("a_number_that_is_none", FORMAT, "line", layer_norm_eps=float("nan"))
config_case("an_infinite_number", FORMAT, "line", layer_norm_eps=float("inf"))
config_case("an_unknown_family", UNSUPPORTED, "mamba", model_type="mamba")
config_case("an_unknown_activation", UNSUPPORTED, "quick_gelu", hidden_act="quick_gelu")


@case(FORMAT, "recursion", "config.json")
def a_deep_config(folder):
    (folder / "config.json").write_text('{"a":' * 100_000)


@case(FORMAT, "expected a JSON object", "config.json")
def a_config_that_is_a_list(folder):
    write_json(folder / "config.json", [CONFIG])


# ---- modules.json ------------------------------------------------------------------------------------------


@case(FORMAT, "leads out", "modules.json")
def a_module_above_the_folder(folder):
    write_json(
        folder / "modules.json",
        [
            {"type": "sentence_transformers.models.Transformer", "path": ""},
            {"type": "sentence_transformers.models.Pooling", "path": "../1_Pooling"},
        ],
    )


@case(UNSUPPORTED, "WeightedLayerPooling", "modules.json")
def an_unknown_module(folder):
    write_modules(folder, "WeightedLayerPooling")


@case(UNSUPPORTED, "os.system", "modules.json")
def a_module_of_another_package(folder):
    write_json(folder / "modules.json", [{"type": "os.system", "path": ""}])


@case(FORMAT, "1 to 16 modules", "modules.json")
def modules_without_end(folder):
    write_modules(folder, "Pooling", *["Dense"] * 10_000)


def with_dense(folder):
    write_modules(folder, "Pooling", "Dense")
    write_json(folder / "1" / "config.json", {"pooling_mode": "mean"})
    write_dense(folder / "2", 8, D, "torch.nn.modules.activation.Tanh")


@case(FORMAT, "linear.weight", "2/model.safetensors")
def a_dense_module_that_lies(folder):
    with_dense(folder)
    write_json(folder / "2" / "config.json", {"in_features": D, "out_features": 2**31, "bias": True})


@case(FORMAT, "in_features should be 64", "2/config.json")
def a_dense_module_that_does_not_fit(folder):
    with_dense(folder)
    write_json(folder / "1" / "config.json", {"pooling_mode": ["mean", "max"]})


@case(UNSUPPORTED, "os.system", "2/config.json")
def a_dense_module_with_a_foreign_activation(folder):
    with_dense(folder)
    write_dense(folder / "2", 8, D, "os.system")


@case(FORMAT, "embedding_dimension", "1/config.json")
def a_pooling_of_another_width(folder):
    with_dense(folder)
    write_json(folder / "1" / "config.json", {"pooling_mode": "mean", "word_embedding_dimension": 10**18})


# ---- tokenizer.json ----------------------------------------------------------------------------------------


def tokenizer_case(name, match, /, *path, value):
    def spoil(folder):
        file = tokenizer_file()
        at = file
        for key in path[:-1]:
            at = at[key]
        at[path[-1]] = value
        write_json(folder / "tokenizer.json", file)

    CASES[name] = (spoil, TOKENIZER, match, "tokenizer.json")


def nested(kind, key, inner, depth):
    for _ in range(depth):
        inner = {"type": kind, key: [inner]}
    return inner


BERT_STEP = {"type": "BertPreTokenizer"}
DOUBLE = {"type": "Replace", "pattern": {"String": "a"}, "content": "aa"}
tokenizer_case("ids_beyond_the_vocabulary", "id 99", "model", "vocab", "dog", value=99)
tokenizer_case(
    "special_ids_beyond",
    "id 4000000000",
    "post_processor",
    "special_tokens",
    "[CLS]",
    "ids",
    value=[4 * 10**9],
)
tokenizer_case("types_beyond", "type id 2", "post_processor", "single", 1, "Sequence", "type_id", value=2)
tokenizer_case(
    "special_tokens_without_end",
    "max_length",
    "post_processor",
    "special_tokens",
    "[CLS]",
    "ids",
    value=[2] * 50,
)
tokenizer_case("words_without_end", "max_input_chars", "model", "max_input_chars_per_word", value=10**12)
tokenizer_case(
    "steps_in_steps", "nested", "pre_tokenizer", value=nested("Sequence", "pretokenizers", BERT_STEP, 40)
)
tokenizer_case(
    "templates_in_templates", "nested", "post_processor", value=nested("Sequence", "processors", None, 40)
)
tokenizer_case(
    "text_that_explodes", "normalizer", "normalizer", value={"type": "Sequence", "normalizers": [DOUBLE] * 60}
)
tokenizer_case("an_unknown_model", "tokenizer.json", "model", "type", value="Mystery")
tokenizer_case("a_version_to_come", "version", "version", value="9.0")
tokenizer_case(
    "a_charsmap_of_garbage",
    "tokenizer.json",
    "normalizer",
    value={"type": "Precompiled", "precompiled_charsmap": "/////w=="},
)


@case(TOKENIZER, "tokenizer.json", "tokenizer.json")
def a_tokenizer_of_garbage(folder):
    (folder / "tokenizer.json").write_bytes(b"\xff\xfe" * 1000)


@case(TOKENIZER, "nested", "tokenizer.json")
def a_deep_tokenizer(folder):
    (folder / "tokenizer.json").write_text("[" * 1_000_000)


# ---- The tests ---------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path):
    return write_model(tmp_path / "model")


@pytest.mark.parametrize("mmap", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_hostile_folders_are_refused_at_once(folder, name, mmap):
    spoil, error, match, file = CASES[name]
    spoil(folder)
    start = time.process_time()
    with pytest.raises(hw.HeadwiseError) as caught:
        hw.TextEncoder.from_pretrained(folder, mmap=mmap)
    seconds = time.process_time() - start
    assert caught.type is error
    assert match in str(caught.value)
    assert file in str(caught.value)
    assert seconds < SECONDS


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
    weights(folder).unlink()
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
