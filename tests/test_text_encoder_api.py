"""TextEncoder's calls against sentence-transformers 6.2: its signatures, and its results in a golden file.

The golden file is described in data/make_sentence_transformers_golden.py. Where the package is installed, the
calls are compared with it directly too.
"""

import copy
import importlib.util
import inspect
import json
from pathlib import Path

import numpy as np
import pytest
from minilm import minilm_folder

import headwise as hw
from headwise._precision import quantize
from headwise._similarity import SIMILARITIES

pytestmark = pytest.mark.once

DATA = Path(__file__).parent / "data"
TEXTS = ["The cat is sleeping on the sofa.", "A kitten naps.", "", "Ünïcode — 日本語", "word " * 40]
PAIRS = [["Who is hungry?", "The dog."], ["a", "the food that the dog ate"]]
PROMPTS = {"query": "query: ", "passage": "Represent the passage: "}
PRECISIONS = ["int8", "uint8", "binary", "ubinary"]

# What embeddings in each dtype may differ by from sentence-transformers in float64; rows of tokens have a
# length of 6 to 8 where embeddings have 1.
BOUNDS = {"float32": 2.5e-7, "float64": 1e-14}
TOKEN_BOUNDS = {"float32": 5e-6, "float64": 1e-13}

needs_the_package = pytest.mark.skipif(
    importlib.util.find_spec("sentence_transformers") is None, reason="sentence-transformers is not installed"
)


@pytest.fixture(scope="module")
def golden():
    with np.load(DATA / "sentence_transformers_golden.npz") as file:
        return dict(file)


@pytest.fixture(scope="module")
def models():
    return {dtype: hw.TextEncoder.from_pretrained(minilm_folder(), dtype=dtype) for dtype in BOUNDS}


@pytest.fixture(params=list(BOUNDS))
def encoder(request, models):
    encoder = copy.deepcopy(models[request.param])
    encoder.prompts.update(PROMPTS)
    return encoder


def assert_near(got, want, bound):
    assert got.shape == want.shape
    assert np.abs(got - want).max() <= bound


# ---- Signatures --------------------------------------------------------------------------------------------

# Names and defaults in order, as sentence-transformers 6.2 has them.
ENCODE = {
    "prompt_name": None,
    "prompt": None,
    "batch_size": 32,
    "show_progress_bar": None,
    "output_value": "sentence_embedding",
    "precision": "float32",
    "convert_to_numpy": True,
    "convert_to_tensor": False,
    "device": None,
    "normalize_embeddings": False,
    "truncate_dim": None,
    "pool": None,
    "chunk_size": None,
}
SAVE = {"model_name": None, "create_model_card": True, "train_datasets": None, "safe_serialization": True}
required = inspect.Parameter.empty
SIGNATURES = {
    # `inputs` has a default here only because `sentences` may stand for it.
    "encode": {"inputs": None, **ENCODE},
    "encode_query": {"inputs": None, **ENCODE},
    "encode_document": {"inputs": None, **ENCODE},
    "similarity": {"embeddings1": required, "embeddings2": required},
    "similarity_pairwise": {"embeddings1": required, "embeddings2": required},
    "tokenize": {"texts": required},
    "preprocess": {"inputs": required, "prompt": None},
    "get_embedding_dimension": {},
    "get_sentence_embedding_dimension": {},
    "truncate_embeddings": {"truncate_dim": required},
    "set_pooling_include_prompt": {"include_prompt": required},
    "save_pretrained": {"path": required, **SAVE},
}


def positional(function):
    parameters = list(inspect.signature(function).parameters.values())[1:]
    return {p.name: p.default for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD}


@pytest.mark.parametrize("name", SIGNATURES)
def test_positional_arguments(name):
    got = positional(getattr(hw.TextEncoder, name))
    assert list(got.items()) == list(SIGNATURES[name].items())


@needs_the_package
@pytest.mark.parametrize("name", SIGNATURES)
def test_the_installed_package_has_these_signatures(name):
    from sentence_transformers import SentenceTransformer

    theirs = positional(getattr(SentenceTransformer, name))
    ours = dict(SIGNATURES[name])
    if "inputs" in ours:
        ours["inputs"] = required
    assert list(theirs.items()) == list(ours.items())


# ---- Results -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("plain", lambda e: e.encode(TEXTS)),
        ("plain", lambda e: e.encode(tuple(TEXTS))),
        ("plain", lambda e: e.encode(np.array(TEXTS))),
        ("plain", lambda e: e.encode(np.array(TEXTS, dtype=object))),
        ("plain", lambda e: e.encode(TEXTS, None, "", 1, False, "sentence_embedding", None)),
        ("one", lambda e: e.encode(TEXTS[0])),
        ("one", lambda e: e.encode(sentences=TEXTS[0])),
        ("by_name", lambda e: e.encode(TEXTS, "passage")),
        ("by_name", lambda e: e.encode(TEXTS, prompt_name="passage")),
        ("by_prompt", lambda e: e.encode(TEXTS, prompt="Say: ")),
        ("query", lambda e: e.encode_query(TEXTS)),
        ("by_name", lambda e: e.encode_query(TEXTS, "passage")),
        ("by_prompt", lambda e: e.encode_document(TEXTS, None, "Say: ")),
        ("document", lambda e: e.encode_document(TEXTS)),
        ("pairs", lambda e: e.encode(PAIRS)),
        ("pairs", lambda e: e.encode([tuple(pair) for pair in PAIRS])),
        ("pairs", lambda e: e.encode(np.array(PAIRS))),
        ("truncated", lambda e: e.encode(TEXTS, truncate_dim=64)),
        ("truncated", lambda e: np.stack(list(e.encode_stream(iter(TEXTS), truncate_dim=64, ahead=2)))),
    ],
)
def test_embeddings(encoder, golden, name, call):
    assert_near(call(encoder), golden[name], BOUNDS[encoder.dtype])


def test_rows_get_unit_length_after_they_are_truncated(encoder, golden):
    got = encoder.encode(TEXTS, normalize_embeddings=True, truncate_dim=64)
    # Dividing by the length of what is left magnifies the error that the truncated rows have.
    lengths = np.linalg.norm(golden["truncated"], axis=1, keepdims=True)
    assert_near(got * lengths, golden["truncated_normalized"] * lengths, BOUNDS[encoder.dtype])


def test_a_document_has_no_prompt_unless_it_is_called_document(encoder, golden):
    # "passage" would be the next candidate, but sentence-transformers always has a "document".
    assert golden["document_prompt"] == encoder.prompts["document"] == ""
    del encoder.prompts["document"]
    assert_near(encoder.encode_document(TEXTS), golden["by_name"], BOUNDS[encoder.dtype])


def test_token_embeddings(encoder, golden):
    states = encoder.encode(TEXTS[:3], output_value="token_embeddings")
    assert len(states) == 3
    for number, rows in enumerate(states):
        assert_near(rows, golden[f"tokens_{number}"], TOKEN_BOUNDS[encoder.dtype])
    one = encoder.encode(TEXTS[0], output_value="token_embeddings")
    assert np.array_equal(one, states[0])
    signs = encoder.encode(TEXTS[:3], output_value="token_embeddings", precision="ubinary")
    assert [rows.shape for rows in signs] == [(10, 48), (7, 48), (2, 48)]
    assert encoder.encode([], output_value="token_embeddings") == []


def test_everything_about_a_text(encoder, golden):
    got = encoder.encode(TEXTS[1], output_value=None, prompt_name="query", truncate_dim=8)
    assert list(got) == golden["everything_keys"].tolist()
    assert got["input_ids"].tolist() == golden["everything_ids"].tolist()
    assert got["attention_mask"].tolist() == [1] * 9
    assert got["prompt_length"] == golden["everything_prompt_length"]
    assert got["token_embeddings"].shape == (9, 384)
    assert_near(got["sentence_embedding"], golden["everything_embedding"], BOUNDS[encoder.dtype])
    several = encoder.encode(TEXTS, output_value=None)
    assert [len(text["input_ids"]) for text in several] == [
        len(ids) for ids in map(np.trim_zeros, encoder.tokenize(TEXTS)["input_ids"])
    ]
    assert np.array_equal(np.stack([t["sentence_embedding"] for t in several]), encoder.encode(TEXTS))


def test_prompts_left_out_of_the_pooling(encoder, golden):
    encoder.set_pooling_include_prompt(False)
    assert_near(encoder.encode(TEXTS, "passage"), golden["prompt_not_pooled"], BOUNDS[encoder.dtype])
    encoder.default_prompt_name = "query"
    assert_near(encoder.encode(TEXTS), golden["default_not_pooled"], BOUNDS[encoder.dtype])
    encoder.set_pooling_include_prompt(True)
    assert_near(encoder.encode(TEXTS), golden["query"], BOUNDS[encoder.dtype])
    # An empty prompt is a choice too, and keeps the default away.
    assert_near(encoder.encode(TEXTS, prompt=""), golden["plain"], BOUNDS[encoder.dtype])


@pytest.mark.parametrize("name", SIMILARITIES)
def test_similarities(encoder, golden, name):
    encoder.similarity_fn_name = name
    x = golden["plain"] if encoder.dtype == "float64" else golden["plain"].astype(np.float32)
    bound = BOUNDS[encoder.dtype] * (20 if name == "manhattan" else 1)  # a sum of 384, near 20
    for got, want in [
        (encoder.similarity(x[:2], x[2:]), golden[f"similarity_{name}"]),
        (encoder.similarity(list(x[:2]), x[2:]), golden[f"similarity_{name}"]),
        (encoder.similarity(x[0], x[2]), golden[f"similarity_{name}"][:1, :1]),
        (encoder.similarity_pairwise(x[:2], x[2:4]), golden[f"pairwise_{name}"]),
        (encoder.similarity_pairwise(x[1], x[3]), golden[f"pairwise_{name}"][1]),
    ]:
        assert got.dtype == encoder.dtype
        assert_near(got, want, bound)
    assert encoder.similarity(x[:0], x).shape == (0, 5)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_quantised_numbers_are_exactly_theirs(golden, precision):
    want = golden[f"numbers_{precision}"]
    ranges = golden["ranges"] if "int8" in precision else None
    got = quantize(golden["numbers"], precision, ranges)
    assert got.dtype == want.dtype
    assert np.array_equal(got, want)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_precisions_of_encode(encoder, precision):
    x = encoder.encode(TEXTS, truncate_dim=60)
    ranges = np.stack([x.min(axis=0), x.max(axis=0)]) if "int8" in precision else None
    got = encoder.encode(TEXTS, precision=precision, truncate_dim=60, ranges=ranges)
    assert got.shape == (5, 60 if "int8" in precision else 8)
    assert np.array_equal(got, quantize(x, precision, ranges))
    one = encoder.encode(TEXTS[1], precision=precision, truncate_dim=60, ranges=ranges)
    assert np.array_equal(one, got[1])
    empty = encoder.encode([], precision=precision, truncate_dim=60, ranges=ranges)
    assert (empty.shape, empty.dtype) == ((0, *got.shape[1:]), got.dtype)
    stream = encoder.encode_stream(TEXTS, precision=precision, truncate_dim=60, ranges=ranges)
    assert np.array_equal(np.stack(list(stream)), got)


def test_similarity_of_quantised_embeddings_does_not_overflow(encoder):
    levels = np.array([[127, -128, 100], [1, 2, 3]], np.int8)
    encoder.similarity_fn_name = "dot"
    assert encoder.similarity(levels, levels).tolist() == [[42513, 171], [171, 14]]


@needs_the_package
def test_side_by_side_with_the_package(encoder):
    from sentence_transformers import SentenceTransformer

    theirs = SentenceTransformer(str(minilm_folder()), device="cpu", prompts=PROMPTS).double()
    for arguments in ({}, {"prompt_name": "query"}, {"truncate_dim": 100}):
        assert_near(
            encoder.encode(TEXTS, **arguments), theirs.encode(TEXTS, **arguments), BOUNDS[encoder.dtype]
        )
    assert theirs.get_embedding_dimension() == encoder.get_embedding_dimension()
    assert theirs.max_seq_length == encoder.max_seq_length
    want = theirs.preprocess(TEXTS, prompt="query: ")
    got = encoder.preprocess(TEXTS, prompt="query: ")
    assert all(np.array_equal(values, want[name]) for name, values in got.items())


# ---- Settings ----------------------------------------------------------------------------------------------


def test_settings_of_a_folder(tmp_path):
    for file in minilm_folder().iterdir():
        (tmp_path / file.name).symlink_to(file)
    config = {
        "prompts": PROMPTS,
        "default_prompt_name": "query",
        "similarity_fn_name": "dot",
        "truncate_dim": 100,
    }
    settings = tmp_path / "config_sentence_transformers.json"
    settings.unlink()
    settings.write_text(json.dumps(config))
    encoder = hw.TextEncoder.from_pretrained(tmp_path)
    assert encoder.prompts == {"query": "query: ", "document": "", "passage": "Represent the passage: "}
    assert (encoder.default_prompt_name, encoder.similarity_fn_name) == ("query", "dot")
    assert encoder.get_embedding_dimension() == encoder.get_sentence_embedding_dimension() == 100
    assert encoder.encode("a").shape == (100,)
    assert encoder.encode("a", truncate_dim=500).shape == (384,)
    with encoder.truncate_embeddings(3):
        assert encoder.encode(["a"]).shape == (1, 3)
    assert encoder.truncate_dim == 100
    settings.write_text(json.dumps(config | {"truncate_dim": -1}))
    with pytest.raises(hw.ModelFormatError, match=r"config_sentence_transformers\.json.*truncate_dim"):
        hw.TextEncoder.from_pretrained(tmp_path)


def test_defaults_of_a_folder_that_says_nothing():
    encoder = hw.TextEncoder.from_pretrained(minilm_folder())
    assert encoder.prompts == {"query": "", "document": ""}
    assert (encoder.default_prompt_name, encoder.truncate_dim) == (None, None)
    assert encoder.similarity_fn_name == "cosine"


def test_settings_that_make_no_sense():
    encoder = hw.TextEncoder.from_pretrained(minilm_folder())
    with pytest.raises(ValueError, match=r"similarity_fn_name.*maxsim"):
        encoder.similarity_fn_name = "maxsim"
    for value, error in [(0, ValueError), (1, ValueError), (513, ValueError), ("8", TypeError)]:
        with pytest.raises(error, match="max_seq_length"):
            encoder.max_seq_length = value
    with pytest.raises(TypeError, match="from_pretrained"):
        hw.TextEncoder()
    for wrong in (np.zeros((2, 3)), np.zeros((2, 2, 384)), ["a"], np.zeros(2, complex)):
        with pytest.raises((TypeError, ValueError), match="embeddings2"):
            encoder.similarity(np.zeros((1, 384)), wrong)
    with pytest.raises(ValueError, match="embeddings2"):
        encoder.similarity_pairwise(np.zeros((2, 384)), np.zeros((3, 384)))
