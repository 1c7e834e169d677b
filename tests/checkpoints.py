"""Small BERT checkpoints, written by hand: folders that tests load, vary and spoil.

A safetensors file is 8 bytes of length n, n bytes of JSON (name -> dtype, shape, byte range) and the data,
so NumPy and json are all that is needed to write one, sound or not.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

D, LAYERS, HEADS, F, POSITIONS = 32, 2, 4, 48, 64
WORDS = [
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "a",
    "dog",
    "##s",
    "ate",
    "it",
    "play",
    "##ing",
    "the",
    "food",
    "was",
]
TEXTS = ["a dog ate it", "", "dogs", "playing dogs ate the food it was a dog", "it", "the food " * 20]

CONFIG = {
    "model_type": "bert",
    "hidden_size": D,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "intermediate_size": F,
    "vocab_size": len(WORDS),
    "max_position_embeddings": POSITIONS,
    "type_vocab_size": 2,
}

DTYPES = {"F32": "<f4", "F64": "<f8", "F16": "<f2", "I64": "<i8"}


def tokenizer_file() -> dict[str, Any]:
    """Return a tokenizer.json in BERT's manner."""

    def special(token: str) -> dict[str, Any]:
        return {"SpecialToken": {"id": token, "type_id": 0}}

    text = {"Sequence": {"id": "A", "type_id": 0}}
    other = {"Sequence": {"id": "B", "type_id": 1}}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [],
        "normalizer": {
            "type": "BertNormalizer",
            "clean_text": True,
            "handle_chinese_chars": True,
            "strip_accents": None,
            "lowercase": True,
        },
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [special("[CLS]"), text, special("[SEP]")],
            "pair": [special("[CLS]"), text, special("[SEP]"), other, special("[SEP]")],
            "special_tokens": {
                name: {"id": name, "ids": [WORDS.index(name)], "tokens": [name]}
                for name in ("[CLS]", "[SEP]")
            },
        },
        "decoder": None,
        "model": {
            "type": "WordPiece",
            "unk_token": "[UNK]",
            "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100,
            "vocab": {word: i for i, word in enumerate(WORDS)},
        },
    }


def small_tensors(seed: int = 7) -> dict[str, np.ndarray]:
    """Return the tensors of the small model, float32, by Hugging Face's names."""
    rng = np.random.default_rng(seed)
    shapes = {
        "embeddings.word_embeddings.weight": (len(WORDS), D),
        "embeddings.position_embeddings.weight": (POSITIONS, D),
        "embeddings.token_type_embeddings.weight": (2, D),
        "embeddings.LayerNorm.weight": (D,),
        "embeddings.LayerNorm.bias": (D,),
    }
    for n in range(LAYERS):
        for part, shape in {
            "attention.self.query": (D, D),
            "attention.self.key": (D, D),
            "attention.self.value": (D, D),
            "attention.output.dense": (D, D),
            "attention.output.LayerNorm": (D,),
            "intermediate.dense": (F, D),
            "output.dense": (D, F),
            "output.LayerNorm": (D,),
        }.items():
            shapes[f"encoder.layer.{n}.{part}.weight"] = shape
            shapes[f"encoder.layer.{n}.{part}.bias"] = shape[:1]
    return {name: rng.normal(0, 0.3, shape).astype(np.float32) for name, shape in shapes.items()}


def bfloat16_bits(x: np.ndarray) -> np.ndarray:
    """Return the upper halves of float32 numbers: bfloat16, rounded towards zero."""
    return (x.astype("<f4").view("<u4") >> 16).astype("<u2")


def write_file(
    path: Path, header: bytes | Mapping[str, Any], data: bytes = b"", length: int | None = None
) -> None:
    """Write a safetensors file; ``length`` is what it says of its header, by default the truth."""
    if not isinstance(header, bytes):
        header = json.dumps(header).encode()
    said = len(header) if length is None else length
    path.write_bytes(said.to_bytes(8, "little") + header + data)


def header_and_data(tensors: Mapping[str, np.ndarray], dtype: str = "F32") -> tuple[dict[str, Any], bytes]:
    """Return the header of a sound file and its data."""
    header, data = {}, b""
    for name, tensor in tensors.items():
        raw = (bfloat16_bits(tensor) if dtype == "BF16" else tensor.astype(DTYPES[dtype])).tobytes()
        header[name] = {
            "dtype": dtype,
            "shape": list(tensor.shape),
            "data_offsets": [len(data), len(data) + len(raw)],
        }
        data += raw
    return header, data


def write_tensors(path: Path, tensors: Mapping[str, np.ndarray], dtype: str = "F32") -> None:
    """Write a sound safetensors file."""
    write_file(path, *header_and_data(tensors, dtype))


def write_json(path: Path, content: object) -> None:
    """Write a JSON file, and the folder that it is in."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def write_index(folder: Path, weight_map: object) -> None:
    """Write the index of shards."""
    write_json(folder / "model.safetensors.index.json", {"metadata": {}, "weight_map": weight_map})


def write_shards(folder: Path, tensors: Mapping[str, np.ndarray], count: int = 3) -> dict[str, str]:
    """Write shards and their index; return its map."""
    weight_map = {}
    for shard in range(count):
        name = f"model-{shard + 1:05}-of-{count:05}.safetensors"
        part = dict(list(tensors.items())[shard::count])
        write_tensors(folder / name, part)
        weight_map |= dict.fromkeys(part, name)
    write_index(folder, weight_map)
    return weight_map


def write_modules(folder: Path, *kinds: str) -> None:
    """Write a modules.json: the transformer in the folder itself, module i in the folder i."""
    write_json(
        folder / "modules.json",
        [
            {
                "idx": i,
                "name": str(i),
                "path": str(i) if i else "",
                "type": f"sentence_transformers.models.{kind}",
            }
            for i, kind in enumerate(("Transformer", *kinds))
        ],
    )


def write_dense(folder: Path, out: int, into: int, activation: str, seed: int = 3) -> dict[str, np.ndarray]:
    """Write the folder of a Dense module; return its tensors."""
    rng = np.random.default_rng(seed)
    tensors = {"linear.weight": rng.normal(0, 0.3, (out, into)), "linear.bias": rng.normal(0, 0.3, out)}
    tensors = {name: x.astype(np.float32) for name, x in tensors.items()}
    write_json(
        folder / "config.json",
        {"in_features": into, "out_features": out, "bias": True, "activation_function": activation},
    )
    write_tensors(folder / "model.safetensors", tensors)
    return tensors


def write_model(folder: Path, tensors: Mapping[str, np.ndarray] | None = None) -> Path:
    """Write the whole small model; return its folder."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "config.json", CONFIG)
    write_json(folder / "tokenizer.json", tokenizer_file())
    write_tensors(folder / "model.safetensors", small_tensors() if tensors is None else tensors)
    return folder
