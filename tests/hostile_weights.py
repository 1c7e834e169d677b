"""Hostile weights: files and shards that are cut, lie or lead out of the folder."""

import json
import os
import shutil

from checkpoints import header_and_data, small_tensors, write_file, write_index, write_shards
from hostile import FORMAT, UNSUPPORTED, WORDS, case

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
