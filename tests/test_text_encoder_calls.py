"""How TextEncoder works through texts: windows, streams, threads, progress, texts that are too long."""

import builtins
import copy
import logging
import pickle
import sys
import warnings

import numpy as np
import pytest
from minilm import minilm_folder

import headwise as hw
from headwise import _encode, _text_inputs

pytestmark = pytest.mark.once

LONG = "dog " * 1000
WORDS = ["a", "dog", "ate", "the", "food", "because", "it", "was", "hungry"]


@pytest.fixture(scope="module")
def model():
    return hw.TextEncoder.from_pretrained(minilm_folder(), max_length=16)


@pytest.fixture
def encoder(model):
    return copy.deepcopy(model)


@pytest.fixture(scope="module")
def texts():
    """Return 70 short texts of all lengths, in no order."""
    rng = np.random.default_rng(4)
    return [" ".join(rng.choice(WORDS, n % 12)) for n in rng.permutation(70)]


@pytest.fixture(scope="module")
def want(model, texts):
    return model.encode(texts)


# ---- The same bits -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 4, 32, 64])
def test_batch_sizes(encoder, texts, want, size):
    assert np.array_equal(encoder.encode(texts, batch_size=size), want)
    batches = [encoder.encode(texts[at : at + size]) for at in range(0, len(texts), size)]
    assert np.array_equal(np.concatenate(batches), want)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_threads(encoder, texts, want, threads, count):
    threads(count)
    assert np.array_equal(encoder.encode(texts), want)


def test_order(encoder, texts, want):
    assert np.array_equal(encoder.encode(texts[::-1]), want[::-1])


@pytest.mark.parametrize("window", [1, 16, 70])
def test_windows(encoder, texts, want, window, monkeypatch):
    monkeypatch.setattr(_encode, "WINDOW", window)
    assert np.array_equal(encoder.encode(texts), want)
    states = encoder.encode(texts, output_value="token_embeddings")
    assert [len(rows) for rows in states] == encoder.encode(texts, return_info=True)[1].used_counts.tolist()


def test_windows_end_where_texts_are_long(monkeypatch):
    monkeypatch.setattr(_text_inputs, "MOST_CHARACTERS", 10)
    cut = list(_text_inputs.windows(["1234", "56", ("78", "90"), "1", "", "23"], 4))
    assert cut == [["1234", "56", ("78", "90")], ["1", "", "23"]]
    assert list(_text_inputs.windows([], 4)) == []


# ---- Streams -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ahead", [1, 7, 256])
def test_a_stream_gives_the_rows_of_encode(encoder, texts, want, ahead):
    rows = list(encoder.encode_stream(iter(texts), ahead=ahead))
    assert all(row.base is None for row in rows)
    assert np.array_equal(np.stack(rows), want)
    assert list(encoder.encode_stream([])) == []


def test_a_stream_takes_texts_only_as_they_are_needed(encoder):
    taken = []
    source = (taken.append(n) or f"text {n}" for n in range(1000))
    stream = encoder.encode_stream(source, ahead=5)
    assert not taken
    for rows in range(1, 13):
        next(stream)
        assert len(taken) == -(-rows // 5) * 5
    stream.close()
    assert len(taken) == 15


def test_a_stream_checks_its_arguments_at_once(encoder):
    for arguments, error in [
        ({"inputs": "one text"}, TypeError),
        ({"inputs": [], "ahead": 0}, ValueError),
        ({"inputs": [], "prompt_name": "nobody"}, ValueError),
        ({"inputs": [], "precision": "int8"}, ValueError),
    ]:
        with pytest.raises(error):
            encoder.encode_stream(**arguments)
    rows = encoder.encode_stream(["a", 3], ahead=1)
    next(rows)
    with pytest.raises(TypeError, match="inputs"):
        next(rows)


# ---- Texts that are too long -------------------------------------------------------------------------------


def test_a_warning_counts_the_texts_that_were_cut(encoder):
    with pytest.warns(hw.TruncationWarning) as caught:
        encoder.encode(["a", LONG, "b", LONG], batch_size=1)
    assert [str(w.message) for w in caught] == ["2 of 4 texts are longer than 16 tokens and were cut"]
    assert caught[0].filename == __file__
    with pytest.warns(
        hw.TruncationWarning, match="1 of 1 texts is longer than 16 tokens and was cut"
    ) as caught:
        encoder.encode_query(LONG)
    assert caught[0].filename == __file__
    with pytest.warns(hw.TruncationWarning, match="1 of 3") as caught:
        assert len(list(encoder.encode_stream(["a", LONG, "b"], ahead=1))) == 3
    assert caught[0].filename == __file__


def test_a_text_that_just_fits_is_not_cut(encoder):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        encoder.encode("dog " * 14)
    with pytest.warns(hw.TruncationWarning):
        encoder.encode("dog " * 15)


def test_info_counts_tokens_instead_of_warning(encoder):
    texts = ["", "a dog", LONG, ("a dog", LONG), "dog " * 14]
    rows, info = encoder.encode(texts, return_info=True)
    assert info.token_counts.tolist() == [2, 4, 1002, 1005, 16]
    assert info.used_counts.tolist() == [2, 4, 16, 16, 16]
    assert info.cut.tolist() == [2, 3]
    with pytest.warns(hw.TruncationWarning):
        assert np.array_equal(rows, encoder.encode(texts))
    row, info = encoder.encode(LONG, prompt="it ", return_info=True)
    assert row.shape == (384,)
    assert (info.token_counts.tolist(), info.used_counts.tolist()) == ([1003], [16])
    assert encoder.encode([], return_info=True)[1].token_counts.tolist() == []


def test_another_length_leaves_calls_under_way_alone(encoder, model):
    stream = encoder.encode_stream([LONG, LONG], ahead=1)
    first = next(stream)
    encoder.max_seq_length = 8
    assert (encoder.max_seq_length, model.max_seq_length) == (8, 16)
    assert np.array_equal(next(stream), first)
    stream.close()
    row, info = encoder.encode(LONG, return_info=True)
    assert info.used_counts.tolist() == [8]
    assert np.array_equal(row, model.encode("dog " * 6))


# ---- Progress ----------------------------------------------------------------------------------------------


@pytest.fixture
def no_tqdm(monkeypatch):
    real = builtins.__import__

    def without(name, *arguments, **keywords):
        if name.startswith("tqdm"):
            raise ImportError(name)
        return real(name, *arguments, **keywords)

    monkeypatch.setattr(builtins, "__import__", without)


def test_progress_without_tqdm(encoder, texts, want, capsys, no_tqdm):
    assert np.array_equal(encoder.encode(texts, show_progress_bar=True), want)
    assert capsys.readouterr().err == "Texts: 70 of 70\n"
    assert len(list(encoder.encode_stream(texts, show_progress_bar=True))) == 70
    assert capsys.readouterr().err == "Texts: 70\n"


def test_progress_on_a_terminal(encoder, texts, capsys, no_tqdm, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(_encode, "WATCHED_WINDOW", 30)
    encoder.encode(texts, show_progress_bar=True)
    lines = capsys.readouterr().err.split("\r")
    assert lines == ["", "Texts: 30 of 70", "Texts: 60 of 70", "Texts: 70 of 70", "Texts: 70 of 70\n"]


def test_progress_is_shown_where_the_logger_says_so(encoder, texts, capsys, no_tqdm):
    encoder.encode(texts[:3])
    assert capsys.readouterr().err == ""
    logger = logging.getLogger("headwise")
    logger.setLevel(logging.INFO)
    try:
        encoder.encode(texts[:3])
        assert capsys.readouterr().err == "Texts: 3 of 3\n"
        encoder.encode(texts[:3], show_progress_bar=False)
        assert capsys.readouterr().err == ""
    finally:
        logger.setLevel(logging.NOTSET)


def test_tqdm_is_told_of_every_text(encoder, texts, monkeypatch):
    told = []

    class Bar:
        def __init__(self, total, desc, unit):
            told.append((total, desc, unit))

        def update(self, n):
            told.append(n)

        def close(self):
            told.append("closed")

    fake = type(sys)("tqdm.auto")
    fake.tqdm = Bar
    monkeypatch.setitem(sys.modules, "tqdm", type(sys)("tqdm"))
    monkeypatch.setitem(sys.modules, "tqdm.auto", fake)
    monkeypatch.setattr(_encode, "WATCHED_WINDOW", 40)
    encoder.encode(texts, show_progress_bar=True)
    assert told == [(70, "Texts", "text"), 40, 30, "closed"]


# ---- Prompts -----------------------------------------------------------------------------------------------


def test_a_prompt_beats_a_prompt_name(encoder, caplog):
    encoder.prompts["query"] = "query: "
    got = encoder.encode("a dog", prompt_name="query", prompt="it ")
    assert "prompt_name 'query' is ignored" in caplog.text
    assert np.array_equal(got, encoder.encode("it a dog"))


def test_a_prompt_stands_before_the_first_of_a_pair(encoder):
    got = encoder.encode([["a dog", "ate"], ("it", "was")], prompt="the ")
    assert np.array_equal(got, encoder.encode([("the a dog", "ate"), ("the it", "was")]))


def test_a_prompt_as_long_as_the_model_reads(encoder):
    encoder.set_pooling_include_prompt(False)
    with pytest.warns(hw.TruncationWarning):
        assert np.isfinite(encoder.encode(["a dog", ""], prompt=LONG)).all()


# ---- Copies ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("copied", [lambda x: pickle.loads(pickle.dumps(x)), copy.deepcopy])
def test_copies_have_the_settings_and_lives_of_their_own(encoder, copied):
    encoder.max_seq_length = 5
    encoder.prompts["query"] = "it "
    encoder.similarity_fn_name = "dot"
    encoder.truncate_dim = 9
    encoder.set_pooling_include_prompt(False)
    other = copied(encoder)
    assert type(other) is hw.TextEncoder
    assert (other.max_seq_length, other.similarity_fn_name, other.truncate_dim) == (5, "dot", 9)
    assert np.array_equal(other.encode_query("a dog"), encoder.encode_query("a dog"))
    other.prompts["query"] = ""
    assert encoder.prompts["query"] == "it "
