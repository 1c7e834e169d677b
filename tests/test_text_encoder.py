"""TextEncoder on MiniLM against golden ids, embeddings and attention maps made without headwise.

The golden file and the corpus are described in data/make_minilm_golden.py and data/make_corpus.py.
"""

import copy
import hashlib
import json
import pickle
from pathlib import Path

import numpy as np
import pytest
from minilm import minilm_folder

import headwise as hw

DATA = Path(__file__).parent / "data"
SENTENCE = "a dog ate the food because it was hungry"
TOKENS = ["[CLS]", "a", "dog", "ate", "the", "food", "because", "it", "was", "hungry", "[SEP]"]


@pytest.fixture(scope="module")
def encoder():
    return hw.TextEncoder.from_pretrained(minilm_folder())


@pytest.fixture(scope="module")
def encoder64():
    return hw.TextEncoder.from_pretrained(minilm_folder(), dtype="float64")


@pytest.fixture(scope="module")
def corpus():
    lines = (DATA / "corpus.jsonl").read_text(encoding="utf-8").split("\n")
    return [json.loads(line)["text"] for line in lines if line]


# Some texts of the corpus are longer than the model reads.
cuts_texts = pytest.mark.filterwarnings("ignore::headwise.TruncationWarning")


@pytest.fixture(scope="module")
def golden(corpus):
    with np.load(DATA / "minilm_golden.npz") as file:
        golden = dict(file)
    digest = hashlib.sha256((DATA / "corpus.jsonl").read_bytes()).hexdigest()
    assert golden["corpus_sha256"] == digest, "run make_minilm_golden.py: corpus.jsonl has changed"
    return golden


def digest(ids):
    return hashlib.sha256(np.asarray(ids, "<i4").tobytes()).hexdigest()


# ---- Tokens ------------------------------------------------------------------------------------------------


@pytest.mark.once
def test_token_ids_of_the_whole_corpus(encoder, corpus, golden):
    full = {}
    bounds = golden["full_starts"]
    for text, start, end in zip(golden["full_texts"], bounds[:-1], bounds[1:], strict=True):
        full[int(text)] = golden["full_ids"][start:end].tolist()
    for index, text in enumerate(corpus):
        ids = encoder.tokenize([text])["input_ids"][0].tolist()
        if index in full:
            assert ids == full[index], (index, text[:80])
        assert digest(ids) == golden["ids_sha256"][index], (index, text[:80])


@pytest.mark.once
def test_tokenize_gives_padded_arrays(encoder):
    features = encoder.tokenize(["a dog", SENTENCE, ""])
    assert set(features) == {"input_ids", "attention_mask", "token_type_ids"}
    assert all(x.shape == (3, len(TOKENS)) and x.dtype == np.int64 for x in features.values())
    assert features["attention_mask"].sum(axis=1).tolist() == [4, len(TOKENS), 2]
    assert features["input_ids"][0].tolist() == [101, 1037, 3899, 102] + [0] * 7
    assert np.array_equal(encoder.preprocess(["a dog"])["input_ids"], features["input_ids"][:1, :4])


# ---- Embeddings --------------------------------------------------------------------------------------------


@cuts_texts
def test_embeddings_against_float64(encoder, corpus, golden):
    texts = [corpus[i] for i in golden["embedded_texts"]]
    got = encoder.encode(texts)
    assert got.shape == (100, 384)
    assert got.dtype == np.float32
    error = got - golden["normalized"]
    assert np.abs(error).max() <= 2.5e-7
    assert np.sqrt((error**2).mean()) <= 5e-8


@pytest.mark.once
@cuts_texts
def test_float64_embeddings_are_exact(encoder64, corpus, golden):
    texts = [corpus[i] for i in golden["embedded_texts"]]
    got = encoder64.encode(texts)
    assert got.dtype == np.float64
    assert np.abs(got - golden["normalized"]).max() <= 1e-14


@pytest.mark.once
def test_shapes_of_encode(encoder):
    assert encoder.encode([]).shape == (0, 384)
    assert encoder.encode([]).dtype == np.float32
    one = encoder.encode("a dog")
    assert one.shape == (384,)
    assert np.array_equal(encoder.encode(["a dog"]), one[None])
    assert np.array_equal(encoder.encode(("a dog", "")), encoder.encode(["a dog", ""]))
    assert np.array_equal(encoder.encode(np.array(["a dog"])), one[None])
    assert np.array_equal(encoder.encode(sentences=["a dog"]), one[None])
    assert np.isfinite(encoder.encode("")).all()


@pytest.mark.once
def test_the_models_own_normalisation_and_the_asked_one(encoder):
    texts = [SENTENCE, "x", ""]
    got = encoder.encode(texts)
    assert np.allclose(np.linalg.norm(got.astype(np.float64), axis=1), 1, atol=1e-6)
    again = encoder.encode(texts, normalize_embeddings=True)
    assert np.abs(got - again).max() < 1e-7


@cuts_texts
def test_an_embedding_is_a_function_of_its_text(encoder, corpus, threads):
    texts = corpus[::23] + corpus[:3]
    want = encoder.encode(texts)
    order = np.random.default_rng(5).permutation(len(texts))
    assert np.array_equal(encoder.encode([texts[i] for i in order]), want[order])
    for size in (1, 4, 64):
        assert np.array_equal(encoder.encode(texts[:12], batch_size=size), want[:12])
    assert np.array_equal(np.stack([encoder.encode(text) for text in texts[:8]]), want[:8])
    threads(1)
    assert np.array_equal(encoder.encode(texts), want)


@pytest.mark.once
def test_long_texts_are_cut_at_256_tokens(encoder):
    assert encoder.max_seq_length == 256
    words = "dog " * 1000
    assert encoder.tokenize([words])["input_ids"].shape == (1, 256)
    with pytest.warns(hw.TruncationWarning, match="1 of 1 texts is longer than 256 tokens and was cut"):
        got = encoder.encode(words)
    assert np.array_equal(got, encoder.encode("dog " * 254))
    short = hw.TextEncoder.from_pretrained(minilm_folder(), max_length=8)
    assert short.max_seq_length == 8
    with pytest.warns(hw.TruncationWarning, match="8 tokens"):
        got = short.encode(words)
    assert np.array_equal(got, encoder.encode("dog " * 6))


@pytest.mark.once
@pytest.mark.parametrize("pooling", ["mean", "cls", "max", "lasttoken"])
def test_poolings(encoder, pooling):
    other = hw.TextEncoder.from_pretrained(minilm_folder(), pooling=pooling)
    features = encoder.tokenize([SENTENCE])
    hidden = encoder.forward(**features)[0].astype(np.float64)
    pooled = {
        "mean": hidden.mean(axis=0),
        "cls": hidden[0],
        "max": hidden.max(axis=0),
        "lasttoken": hidden[-1],
    }
    want = pooled[pooling] / np.linalg.norm(pooled[pooling])
    assert np.abs(other.encode(SENTENCE) - want).max() < 2e-7


# ---- forward -----------------------------------------------------------------------------------------------


@pytest.mark.once
def test_forward_gives_the_last_hidden_state(encoder64, golden, corpus):
    texts = [corpus[i] for i in golden["embedded_texts"][:6]]
    features = encoder64.tokenize(texts)
    hidden = encoder64.forward(features["input_ids"], features["attention_mask"], features["token_type_ids"])
    mask = features["attention_mask"]
    assert hidden.shape == (*mask.shape, 384)
    assert not hidden[mask == 0].any()
    pooled = hidden.sum(axis=1) / mask.sum(axis=1, keepdims=True)
    assert np.abs(pooled - golden["embeddings"][:6]).max() < 1e-13


def test_padding_changes_no_bit(encoder):
    ids = encoder.tokenize([SENTENCE])["input_ids"]
    want = encoder.forward(ids)
    padded = np.concatenate([ids, np.full((1, 5), 7)], axis=1)
    mask = np.arange(padded.shape[1])[None] < ids.shape[1]
    got = encoder.forward(padded, attention_mask=mask)
    assert np.array_equal(got[:, : ids.shape[1]], want)
    assert not got[:, ids.shape[1] :].any()


@pytest.mark.once
def test_left_padded_ids_keep_their_positions(encoder):
    ids = encoder.tokenize(["a dog"])["input_ids"]
    left = np.concatenate([np.zeros((1, 3), np.int64), ids], axis=1)
    mask = np.array([[0, 0, 0, 1, 1, 1, 1]])
    got = encoder.forward(left, attention_mask=mask)
    assert not got[:, :3].any()
    assert not np.array_equal(got[:, 3:], encoder.forward(ids))


@pytest.mark.once
@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        ({"input_ids": [[101, 30522, 102]]}, ValueError, "input_ids"),
        ({"input_ids": [[-1, 5]]}, ValueError, "input_ids"),
        ({"input_ids": [[1.5]]}, TypeError, "input_ids"),
        ({"input_ids": np.zeros((1, 513), int)}, ValueError, "512"),
        ({"input_ids": np.zeros((1, 2, 3), int)}, ValueError, "input_ids"),
        ({"input_ids": [[1, 2]], "attention_mask": [[1]]}, ValueError, "attention_mask"),
        ({"input_ids": [[1, 2]], "attention_mask": [[0.0, 1.0]]}, TypeError, "attention_mask"),
        ({"input_ids": [[1, 2]], "attention_mask": [[1, 2]]}, ValueError, "attention_mask"),
        ({"input_ids": [[1, 2]], "token_type_ids": [[0, 2]]}, ValueError, "token_type_ids"),
    ],
)
def test_forward_refuses_what_makes_no_sense(encoder, arguments, error, match):
    with pytest.raises(error, match=match):
        encoder.forward(**arguments)


# ---- Attention maps ----------------------------------------------------------------------------------------


@pytest.mark.once
def test_it_is_linked_to_the_dog(encoder):
    maps = encoder.attentions(SENTENCE)
    assert list(maps.tokens) == TOKENS
    it, dog = TOKENS.index("it"), TOKENS.index("dog")
    assert abs(maps[5, 11][it, dog] - 0.60) < 0.005
    assert abs(maps[3, 1][it, dog] - 0.53) < 0.005


def test_attention_maps_against_float64(encoder, encoder64):
    with np.load(DATA / "minilm_golden.npz") as file:
        want = file["attention"]
    for model, bound in ((encoder, 5e-6), (encoder64, 1e-13)):
        maps = model.attentions(SENTENCE).to_numpy()
        assert maps.shape == (6, 12, 11, 11)
        assert np.abs(maps - want).max() < bound


@pytest.mark.once
def test_attention_maps_tell_of_words_and_pairs(encoder):
    maps = encoder.attentions("Dogs tokenizing", "it's")
    assert list(maps.tokens) == ["[CLS]", "dogs", "token", "##izing", "[SEP]", "it", "'", "s", "[SEP]"]
    assert list(maps.word_ids) == [None, 0, 1, 1, None, 0, 1, 2, None]
    assert (maps.num_layers, maps.num_heads) == (6, 12)
    assert np.array_equal(maps[2, 3], maps.to_numpy()[2, 3])
    assert "6 layers" in repr(maps)
    with pytest.raises(IndexError):
        maps[6, 0]


# ---- The object --------------------------------------------------------------------------------------------


@pytest.mark.once
def test_what_it_says_of_itself(encoder):
    assert encoder.get_embedding_dimension() == 384
    text = repr(encoder)
    assert "TextEncoder" in text
    assert all(part in text for part in ("384", "256", "mean", "float32"))


@pytest.mark.once
@pytest.mark.parametrize("copied", [lambda x: pickle.loads(pickle.dumps(x)), copy.deepcopy])
def test_pickle_and_deepcopy(encoder, copied):
    other = copied(encoder)
    assert np.array_equal(other.encode(SENTENCE), encoder.encode(SENTENCE))
    assert other.max_seq_length == encoder.max_seq_length


@pytest.mark.once
@pytest.mark.parametrize(
    ("keywords", "error", "match"),
    [
        ({"device": "cuda"}, ValueError, "device"),
        ({"convert_to_tensor": True}, ValueError, "convert_to_tensor"),
        ({"convert_to_numpy": False}, ValueError, "convert_to_numpy"),
        ({"pool": object()}, ValueError, "pool"),
        ({"output_value": "input_ids"}, ValueError, "output_value"),
        ({"output_value": None, "precision": "binary"}, ValueError, "precision"),
        ({"chunk_size": 4}, ValueError, "chunk_size"),
        ({"precision": "int8"}, ValueError, "needs ranges="),
        ({"precision": "uint8", "ranges": [[0.0], [1.0]]}, ValueError, r"ranges: expected shape \(2, 384\)"),
        ({"precision": "int8", "ranges": np.full((2, 384), np.nan)}, ValueError, "ranges"),
        ({"precision": "binary", "ranges": np.zeros((2, 384))}, ValueError, "ranges"),
        ({"precision": "int4"}, ValueError, "precision"),
        ({"truncate_dim": 0}, ValueError, "truncate_dim"),
        ({"truncate_dim": 2.5}, TypeError, "truncate_dim"),
        ({"prompt_name": "clustering"}, ValueError, "prompt_name.*query"),
        ({"prompt": 3}, TypeError, "prompt"),
        ({"batch_size": 0}, ValueError, "batch_size"),
        ({"sentences": ["a"]}, TypeError, "sentences"),
        ({"no_such_thing": 1}, TypeError, "no_such_thing"),
    ],
)
def test_what_cannot_be_done_is_refused_not_ignored(encoder, keywords, error, match):
    with pytest.raises(error, match=match):
        encoder.encode(["a dog"], **keywords)


@pytest.mark.once
def test_harmless_arguments_of_sentence_transformers_are_taken(encoder):
    want = encoder.encode(["a dog"])
    got = encoder.encode(
        ["a dog"],
        None,
        None,
        32,
        False,
        "sentence_embedding",
        "float32",
        convert_to_numpy=True,
        device="cpu",
        normalize_embeddings=False,
        truncate_dim=None,
    )
    assert np.array_equal(got, want)


@pytest.mark.once
@pytest.mark.parametrize(
    "inputs", [3, None, ["a", 3], [["a", "b", "c"]], [["a"]], [["a", 3]], b"bytes", {"a": 1}, {"a"}]
)
def test_inputs_that_are_no_texts(encoder, inputs):
    with pytest.raises(TypeError, match="inputs"):
        encoder.encode(inputs)


@pytest.mark.once
def test_lone_surrogates_are_an_error_not_a_crash(encoder):
    with pytest.raises(ValueError, match="inputs"):
        encoder.encode(["\ud800"])


@pytest.mark.once
def test_folders_that_hold_no_model(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        hw.TextEncoder.from_pretrained(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"config\.json"):
        hw.TextEncoder.from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    with pytest.raises(hw.UnsupportedModelError, match="gpt2"):
        hw.TextEncoder.from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(hw.ModelFormatError, match=r"config\.json"):
        hw.TextEncoder.from_pretrained(tmp_path)


@pytest.mark.once
def test_a_cut_file_is_an_error(tmp_path):
    source = minilm_folder()
    for name in ("config.json", "tokenizer.json"):
        (tmp_path / name).symlink_to(source / name)
    whole = (source / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(whole[:-4])
    with pytest.raises(hw.ModelFormatError, match=r"model\.safetensors"):
        hw.TextEncoder.from_pretrained(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(whole)
    (tmp_path / "tokenizer.json").unlink()
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(hw.TokenizerError, match=r"tokenizer\.json"):
        hw.TextEncoder.from_pretrained(tmp_path)


@pytest.mark.once
def test_by_name_from_the_cache(encoder, monkeypatch, tmp_path):
    by_name = hw.TextEncoder.from_pretrained("sentence-transformers/all-MiniLM-L6-v2")
    assert np.array_equal(by_name.encode("a dog"), encoder.encode("a dog"))
    monkeypatch.setenv("HEADWISE_CACHE", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="headwise fetch minilm"):
        hw.TextEncoder.from_pretrained("minilm")


@pytest.mark.once
@pytest.mark.parametrize(
    ("keywords", "match"),
    [
        ({"dtype": "float16"}, "dtype"),
        ({"dtype": "int8"}, "dtype"),
        ({"pooling": "median"}, "pooling"),
        ({"max_length": 0}, "max_length"),
        ({"max_length": 513}, "max_length"),
    ],
)
def test_from_pretrained_refuses(keywords, match):
    with pytest.raises((ValueError, TypeError), match=match):
        hw.TextEncoder.from_pretrained(minilm_folder(), **keywords)
