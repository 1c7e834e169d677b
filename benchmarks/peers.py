"""Who is here to be compared with, where their files are, and how many threads they get."""

import importlib.metadata
import importlib.util
import os
from dataclasses import dataclass
from pathlib import Path

PACKAGES = {
    "numpy": "numpy",
    "torch": "torch",
    "onnxruntime": "onnxruntime",
    "openvino": "openvino",
    "ctranslate2": "ctranslate2",
    "sentence-transformers": "sentence_transformers",
}
"""The distributions, and the modules they are imported as. transformers and tokenizers come with the last."""

FORMS = {"onnxruntime": "fused.onnx", "openvino": "openvino.xml", "ctranslate2": "ctranslate2"}
"""What each peer reads, within the folder that `convert` fills."""

THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "RAYON_NUM_THREADS")
"""Read by the libraries when they are loaded: to be set before NumPy is imported."""

AVX2 = {
    "HEADWISE_ISA": "avx2",
    "ATEN_CPU_CAPABILITY": "avx2",
    "ONEDNN_MAX_CPU_ISA": "AVX2",
    "MKL_ENABLE_INSTRUCTIONS": "AVX2",
}
"""What holds headwise and torch to AVX2."""


@dataclass(frozen=True)
class Setup:
    """Where MiniLM and its forms are, who takes part, and with how many threads."""

    threads: int
    minilm: Path
    forms: Path
    peers: frozenset[str]


def installed() -> list[str]:
    """Return the peers that this interpreter has."""
    return [name for name, module in PACKAGES.items() if importlib.util.find_spec(module) is not None]


def version(distribution: str) -> str:
    """Return the version of an installed distribution."""
    return importlib.metadata.version(distribution)


def without_form(peers: list[str], forms: Path) -> list[str]:
    """Return those peers whose form of MiniLM is not in the folder."""
    return [name for name in peers if name in FORMS and not (forms / FORMS[name]).exists()]


def hold_threads(threads: int) -> None:
    """Tell the libraries that are yet to be loaded how many threads to use."""
    for variable in THREAD_VARIABLES:
        os.environ[variable] = str(threads)
