"""MiniLM in the hands of the peers: ids to hidden states, and texts to embeddings.

Everybody computes in float32 (OpenVINO's default would be bfloat16 where the CPU has it) with the same number
of threads; all other settings are the peers' defaults.
"""

import importlib.util
from collections.abc import Callable, Sequence
from functools import cached_property, partial
from typing import Any, TypeAlias

import numpy as np

from benchmarks.peers import FORMS, Setup

Array: TypeAlias = np.ndarray[Any, np.dtype[np.float32]]
Ids: TypeAlias = np.ndarray[Any, np.dtype[np.int64]]
Forward: TypeAlias = Callable[[Ids, Ids], Array]
"""Ids and mask, both (B, L), to the last hidden state (B, L, D)."""
Embed: TypeAlias = Callable[[Sequence[str]], Array]

MAX_TOKENS = 256
"""What sentence-transformers cuts texts to for this model."""


class Models:
    """The peers' models, each loaded once, when it is first asked for."""

    def __init__(self, setup: Setup) -> None:
        self.setup = setup
        if "torch" in setup.peers:
            import torch

            torch.set_num_threads(setup.threads)

    def forwards(self) -> dict[str, Forward]:
        """Return each peer's forward pass."""
        return self._engines

    def embedders(self, max_tokens: int = MAX_TOKENS) -> dict[str, Embed]:
        """Return each peer's way from texts to embeddings, texts cut to a number of tokens.

        The engines that know only ids get what a careful user would write: Hugging Face's tokenizer, batches
        sorted by length, mean and norm in NumPy.
        """
        found: dict[str, Embed] = {}
        if "sentence-transformers" in self.setup.peers:
            found["sentence-transformers"] = partial(self._embed_as_it_is, max_tokens)
            tokenizer = load_tokenizer(self.setup, max_tokens)
            for name in FORMS:
                if name in self.setup.peers:
                    found[name] = partial(embed_sorted, self._engines[name], tokenizer)
        return found

    @cached_property
    def _engines(self) -> dict[str, Forward]:
        load: dict[str, Callable[[Setup], Forward]] = {
            "onnxruntime": onnxruntime_forward,
            "openvino": openvino_forward,
            "ctranslate2": ctranslate2_forward,
        }
        if importlib.util.find_spec("transformers") is not None:  # PyTorch alone knows no BERT
            load = {"torch": torch_forward, **load}
        return {name: make(self.setup) for name, make in load.items() if name in self.setup.peers}

    @cached_property
    def _sentence_transformer(self) -> Any:  # noqa: ANN401 - an optional package
        from sentence_transformers import SentenceTransformer

        return SentenceTransformer(str(self.setup.minilm), device="cpu")

    def _embed_as_it_is(self, max_tokens: int, texts: Sequence[str]) -> Array:
        self._sentence_transformer.max_seq_length = max_tokens
        embeddings = self._sentence_transformer.encode(texts, batch_size=32, show_progress_bar=False)
        return np.asarray(embeddings)


def load_tokenizer(setup: Setup, max_tokens: int) -> Any:  # noqa: ANN401 - tokenizers has no types
    """Return Hugging Face's tokenizer, which cuts texts but does not pad them."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(setup.minilm / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(max_tokens)
    return tokenizer


def torch_forward(setup: Setup) -> Forward:
    """Return transformers' BertModel, which attends by PyTorch's scaled_dot_product_attention."""
    import torch
    from transformers import AutoModel

    model = AutoModel.from_pretrained(setup.minilm).eval()

    def forward(ids: Ids, mask: Ids) -> Array:
        # Without a mask, PyTorch need not look for what is masked.
        masked = None if mask.all() else torch.from_numpy(mask)
        with torch.inference_mode():
            output = model(input_ids=torch.from_numpy(ids), attention_mask=masked)
        return np.asarray(output.last_hidden_state)

    return forward


def onnxruntime_forward(setup: Setup) -> Forward:
    """Return a session over the graph that ONNX Runtime's transformer optimizer has fused."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = setup.threads
    options.inter_op_num_threads = 1
    file = setup.forms / FORMS["onnxruntime"]
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])

    def forward(ids: Ids, mask: Ids) -> Array:
        inputs = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
        return np.asarray(session.run(None, inputs)[0])

    return forward


def openvino_forward(setup: Setup) -> Forward:
    """Return a compiled model that is told to compute in float32 and to answer one request at a time."""
    import openvino

    config = {
        "INFERENCE_PRECISION_HINT": "f32",
        "INFERENCE_NUM_THREADS": setup.threads,
        "PERFORMANCE_HINT": "LATENCY",
    }
    model = openvino.Core().compile_model(str(setup.forms / FORMS["openvino"]), "CPU", config)
    request = model.create_infer_request()

    def forward(ids: Ids, mask: Ids) -> Array:
        inputs = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
        # The arrays stay where they are, on both ways: nobody else copies either.
        return np.asarray(request.infer(inputs, share_inputs=True, share_outputs=True)[0])

    return forward


def ctranslate2_forward(setup: Setup) -> Forward:
    """Return an encoder of CTranslate2, which takes lengths for a mask."""
    import ctranslate2

    folder = str(setup.forms / FORMS["ctranslate2"])
    encoder = ctranslate2.Encoder(folder, compute_type="float32", intra_threads=setup.threads)
    view = ctranslate2.StorageView.from_array

    def forward(ids: Ids, mask: Ids) -> Array:
        lengths = mask.sum(axis=1, dtype=np.int32)
        output = encoder.forward_batch(view(ids.astype(np.int32)), view(lengths))
        return np.asarray(output.last_hidden_state)

    return forward


def embed_sorted(forward: Forward, tokenizer: Any, texts: Sequence[str], batch: int = 32) -> Array:  # noqa: ANN401
    """Return the embeddings of texts in their order, computed in batches of similar length."""
    tokens = [np.array(encoding.ids) for encoding in tokenizer.encode_batch(texts)]
    order = np.argsort([-len(ids) for ids in tokens], kind="stable")
    rows: list[Array] = []
    for start in range(0, len(texts), batch):
        chosen = [tokens[i] for i in order[start : start + batch]]
        ids = np.zeros((len(chosen), len(chosen[0])), np.int64)
        mask = np.zeros_like(ids)
        for i, one in enumerate(chosen):
            ids[i, : len(one)] = one
            mask[i, : len(one)] = 1
        hidden = forward(ids, mask)
        weights = mask.astype(np.float32)
        mean = np.einsum("bld,bl->bd", hidden, weights) / weights.sum(axis=1, keepdims=True)
        rows.append(mean / np.linalg.norm(mean, axis=1, keepdims=True))
    embeddings = np.empty((len(texts), rows[0].shape[1]), np.float32)
    embeddings[order] = np.concatenate(rows)
    return embeddings
