"""`TextEncoder.save_pretrained`: the folder that the model came from, with what was changed since.

The tokenizer never changes, so its files are copied, and those of the weights where they were not trained;
settings are written into the JSON files that both headwise and sentence-transformers read them from::

    config_sentence_transformers.json  prompts, default_prompt_name, similarity_fn_name, truncate_dim
    sentence_bert_config.json          max_seq_length
    1_Pooling/config.json              pooling_mode, include_prompt
    modules.json                       written where the folder has none: Transformer, Pooling
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from numpy.typing import NDArray

# What belongs to a model beside the folders that modules.json names. Other files (other forms of the
# weights, training states) stay where they are.
_FILES = (
    "config.json",
    "config_sentence_transformers.json",
    "merges.txt",
    "model.safetensors",
    "modules.json",
    "sentence_bert_config.json",
    "sentencepiece.bpe.model",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.txt",
)
_INDEX = "model.safetensors.index.json"
# The names that sentence-transformers has had for its modules from the start; every version knows them.
_MODULES = [
    {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
    {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
]

# The flags by which every version of sentence-transformers knows the ways of pooling.
_POOLINGS = {
    "cls": "pooling_mode_cls_token",
    "max": "pooling_mode_max_tokens",
    "mean": "pooling_mode_mean_tokens",
    "mean_sqrt_len_tokens": "pooling_mode_mean_sqrt_len_tokens",
    "weightedmean": "pooling_mode_weightedmean_tokens",
    "lasttoken": "pooling_mode_lasttoken",
}


class Settings(NamedTuple):
    """What may have been changed since the model was loaded."""

    max_seq_length: int
    # Several ways are joined by "+".
    pooling: str
    include_prompt: bool
    width: int
    # The keys of config_sentence_transformers.json.
    model: dict[str, Any]


def save(
    source: Path,
    target: Path,
    settings: Settings,
    weights: dict[str, NDArray[Any]] | None = None,
    *,
    model_card: bool,
) -> None:
    """Write the model in the folder `source` to the folder `target`, which may be the same.

    `weights` are the parameters, named as in `TextEncoder.state_dict`, if they are not those of the source.
    """
    modules = _read(source / "modules.json")
    transformer = _inside(modules[0]["path"]) if modules else Path()
    if not (source / transformer / "config.json").is_file():
        msg = f"no model in {source} any more; save_pretrained copies the weights from there"
        raise FileNotFoundError(msg)
    target.mkdir(parents=True, exist_ok=True)
    _copy_files(source, target, model_card=model_card)
    for module in modules or ():
        folder = _inside(module["path"])
        if folder != Path() and (source / folder).is_dir():
            _copy_files(source / folder, target / folder, model_card=False)
    if not modules:
        modules = _MODULES
        _write(target / "modules.json", modules)

    if weights is not None:
        dense = [m for m in modules if m["type"].rpartition(".")[2] == "Dense"]
        parts = {"": target / transformer}
        parts |= {f"dense.{n}.": target / _inside(m["path"]) for n, m in enumerate(dense)}
        for prefix, folder in parts.items():
            own = {name.removeprefix(prefix): w for name, w in weights.items() if name.startswith(prefix)}
            if not prefix:
                own = {name: w for name, w in own.items() if not name.startswith("dense.")}
            _write_weights(folder, own)
    _update(target / "config_sentence_transformers.json", settings.model)
    _update(target / transformer / "sentence_bert_config.json", {"max_seq_length": settings.max_seq_length})
    pooling = next((m for m in modules if m["type"].rpartition(".")[2] == "Pooling"), None)
    if pooling is not None:
        _write_pooling(target / _inside(pooling["path"]) / "config.json", settings)


def _write_weights(folder: Path, weights: dict[str, NDArray[Any]]) -> None:
    """Write weights as one file, in the place of whatever files of weights are there."""
    from headwise import _tensor_file

    index = _read(folder / _INDEX)
    for name in {_INDEX, *(index["weight_map"].values() if index else ())}:
        (folder / _inside(name)).unlink(missing_ok=True)
    _tensor_file.write(folder / "model.safetensors", weights, {"format": "pt"})


def _write_pooling(file: Path, settings: Settings) -> None:
    """Write how rows are pooled, unless the file says so already."""
    known = _read(file) or {"word_embedding_dimension": settings.width}
    modes = known.get("pooling_mode") or [name for name, flag in _POOLINGS.items() if known.get(flag)]
    if "+".join([modes] if isinstance(modes, str) else modes) != settings.pooling:
        known = {key: value for key, value in known.items() if not key.startswith("pooling_mode")}
        known |= {flag: name in settings.pooling.split("+") for name, flag in _POOLINGS.items()}
    elif known.get("include_prompt", True) == settings.include_prompt:
        return
    _write(file, known | {"include_prompt": settings.include_prompt})


def _copy_files(source: Path, target: Path, *, model_card: bool) -> None:
    """Copy what a model's folder holds of the model itself."""
    names = [*_FILES, _INDEX, *(["README.md"] if model_card else [])]
    index = _read(source / _INDEX)
    if index:
        names += sorted({str(_inside(shard)) for shard in index["weight_map"].values()})
    for name in names:
        if (source / name).is_file() and not _same(source / name, target / name):
            target.mkdir(parents=True, exist_ok=True)
            # A link that stands there is replaced, not written through.
            (target / name).unlink(missing_ok=True)
            shutil.copyfile(source / name, target / name)


def _same(a: Path, b: Path) -> bool:
    return b.exists() and a.samefile(b)


def _inside(name: str) -> Path:
    """Give a name of the folder's own files as a path, unless it leads out of the folder."""
    path = Path(name)
    if path.is_absolute() or ".." in path.parts:
        msg = f"the name {name!r} leads out of the folder"
        raise ValueError(msg)
    return path


def _read(file: Path) -> Any:  # noqa: ANN401 - JSON
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None


def _write(file: Path, value: object) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.unlink(missing_ok=True)
    file.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _update(file: Path, values: dict[str, Any]) -> None:
    known = _read(file) or {}
    if any(key not in known or known[key] != value for key, value in values.items()):
        _write(file, known | values)
