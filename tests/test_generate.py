"""Greedy search, and what all searches share: lengths, prefixes, neighbours, alignments and the result."""

import numpy as np
import pytest
import reference_generation as naive
from compare import assert_same_bits
from generation_models import Toy, chain, chaotic

import headwise as hw

pytestmark = pytest.mark.once

END = 1
CALL = dict(start=0, end=END)
DTYPES = [np.float32, np.float64]


def assert_sequence(got, i, want):
    """Check sequence i of a result against (tokens, score, finished)."""
    tokens, score, finished = want
    assert got.tokens[i].tolist() == list(tokens)
    assert got.tokens[i].dtype == np.int64
    np.testing.assert_allclose(got.scores[i], score, rtol=1e-12, atol=1e-12)
    assert got.finished[i] == finished


def assert_same(got, want):
    """Check that two results have the same bits."""
    assert len(got.tokens) == len(want.tokens)
    for a, b in zip(got.tokens, want.tokens, strict=True):
        np.testing.assert_array_equal(a, b)
    assert_same_bits(got.scores, want.scores)
    np.testing.assert_array_equal(got.finished, want.finished)
    assert (got.alignments is None) == (want.alignments is None)
    for a, b in zip(got.alignments or [], want.alignments or [], strict=True):
        assert_same_bits(a, b)


def one(result, i):
    """Return sequence i of a result as a result."""
    alignments = None if result.alignments is None else result.alignments[i : i + 1]
    return hw.Generated(
        result.tokens[i : i + 1], result.scores[i : i + 1], result.finished[i : i + 1], alignments
    )


SEARCHES = {
    "greedy": {},
    "beams": dict(num_beams=3),
    "never": dict(num_beams=4, early_stopping="never", length_penalty=1.5),
    "early": dict(num_beams=2, early_stopping=True, length_penalty=0.0),
    "sample": dict(do_sample=True, rng=5),
    "nucleus": dict(do_sample=True, rng=5, top_k=5, top_p=0.8, temperature=1.3),
}
search = pytest.mark.parametrize("options", SEARCHES.values(), ids=SEARCHES)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("vocabulary", [2, 3, 17, 1000])
def test_greedy_takes_the_likeliest(vocabulary, dtype):
    model = chaotic(vocabulary, end=END, toward_end=1.0, dtype=dtype)
    sources = list(range(12))
    got = hw.generate(model, sources, **CALL, max_length=9)
    assert len(got.tokens) == 12
    for i in sources:
        logits = lambda source, history: model.logits(source, history).astype(dtype)  # noqa: E731
        assert_sequence(got, i, naive.greedy(logits, i, **CALL, max_length=9))
    assert got.alignments is None


def test_an_equal_token_has_the_smaller_id():
    table = [[0, 0, 3, 3, 3], [0] * 5, [1, 1, 0, 5, 5], [0, 2, 1, 2, 0], [0] * 5]
    got = hw.generate(chain(table), [None], **CALL)
    assert got.tokens[0].tolist() == [2, 3]
    assert got.finished[0]


def test_max_length_cuts():
    model = chaotic(5, end=END, toward_end=-100.0)
    got = hw.generate(model, [1, 2], **CALL, max_length=4)
    assert [len(t) for t in got.tokens] == [4, 4]
    assert not got.finished.any()
    assert model.rows_of_step == [2] * 4


def test_all_end_at_once():
    model = chaotic(5, end=END, toward_end=100.0)
    for options in SEARCHES.values():
        got = hw.generate(model, [1, 2, 3], **CALL, **options)
        assert [len(t) for t in got.tokens] == [0] * 3
        assert got.finished.all()
        assert np.isfinite(got.scores).all()
    got = hw.generate(model, [1, 2, 3], **CALL, return_alignments=True)
    assert [a.shape for a in got.alignments] == [(0, 2, 3, 5)] * 3


@search
def test_no_sequences(options):
    got = hw.generate(chaotic(5), [], **CALL, **options)
    assert got.tokens == []
    assert got.scores.shape == got.finished.shape == (0,)
    assert (got.scores.dtype, got.finished.dtype) == (np.float64, np.bool_)
    assert got.alignments is None
    assert hw.generate(chaotic(5), [], **CALL, return_alignments=True, **options).alignments == []


@search
@pytest.mark.parametrize("dtype", DTYPES)
def test_neighbours_change_nothing(options, dtype):
    model = chaotic(23, end=END, toward_end=4.5, dtype=dtype)
    sources = [3, 8, 4, 4, 9, 1]
    prefix = [[], [2, 3], [4], [], [5, 5, 5], [7]]
    both = dict(**CALL, max_length=12, return_alignments=True, **options)
    got = hw.generate(model, sources, prefix=prefix, **both)
    assert len({len(t) for t in got.tokens}) > 1
    for count in range(1, len(sources) + 1):
        few = hw.generate(model, sources[:count], prefix=prefix[:count], **both)
        for i in range(count):
            assert_same(one(few, i), one(got, i))
    if "do_sample" not in options:
        for i, source in enumerate(sources):
            assert_same(hw.generate(model, [source], prefix=[prefix[i]], **both), one(got, i))


@search
def test_alignments_follow_their_tokens(options):
    model = chaotic(11, end=END, toward_end=1.0)
    sources = [5, 6, 7, 8]
    got = hw.generate(model, sources, **CALL, max_length=8, return_alignments=True, **options)
    assert sum(map(len, got.tokens)) > 4
    for source, tokens, alignment in zip(sources, got.tokens, got.alignments, strict=True):
        assert alignment.shape == (len(tokens), 2, 3, 5)
        for t in range(len(tokens)):
            np.testing.assert_array_equal(alignment[t], model.weights(source, (0, *tokens[:t].tolist())))
    assert_same(hw.generate(model, sources, **CALL, max_length=8, **options), got._replace(alignments=None))


@search
@pytest.mark.parametrize("asked", [1, 2, 5])
def test_forcing_what_would_be_chosen_changes_nothing(options, asked):
    if "num_beams" in options:
        options = {**options, "num_beams": 1}
    model = chaotic(11, end=END, toward_end=0.5)
    got = hw.generate(model, range(6), **CALL, max_length=8, return_alignments=True, **options)
    prefix = [tokens[:asked] for tokens in got.tokens]
    again = hw.generate(
        model, range(6), **CALL, max_length=8, return_alignments=True, prefix=prefix, **options
    )
    assert_same(again, got)


def test_prefix_of_all_and_of_each():
    model = chaotic(7, end=END, toward_end=0.5)
    got = hw.generate(model, [1, 2], **CALL, max_length=6, prefix=[4, 5])
    each = hw.generate(model, [1, 2], **CALL, max_length=6, prefix=[np.array([4, 5]), [4, 5]])
    assert_same(got, each)
    assert all(t[:2].tolist() == [4, 5] for t in got.tokens)
    for i, source in enumerate([1, 2]):
        assert_sequence(got, i, naive.greedy(model.logits, source, **CALL, max_length=6, prefix=(4, 5)))
    none = hw.generate(model, [1, 2], **CALL, max_length=6, prefix=[])
    assert_same(none, hw.generate(model, [1, 2], **CALL, max_length=6))
    whole = hw.generate(model, [1, 2], **CALL, max_length=2, prefix=[4, 5])
    assert [t.tolist() for t in whole.tokens] == [[4, 5]] * 2
    assert not whole.finished.any()


@pytest.mark.parametrize("options", [{}, dict(num_beams=2)])
def test_a_prefix_that_the_model_excludes(options):
    def logits(source, history):
        return [-np.inf, 0.0, 1.0, -np.inf]

    got = hw.generate(Toy(logits), [0, 0], **CALL, max_length=3, prefix=[[3, 2], [2, 2]], **options)
    assert [t.tolist()[:2] for t in got.tokens] == [[3, 2], [2, 2]]
    assert got.scores[0] == -np.inf
    assert np.isfinite(got.scores[1])


@search
def test_min_length(options):
    model = chaotic(6, end=END, toward_end=4.0)
    got = hw.generate(model, range(5), **CALL, max_length=9, min_length=3, **options)
    assert min(map(len, got.tokens)) == 3
    assert got.finished.all()
    for i, tokens in enumerate(got.tokens):
        total = sum(
            naive.log_softmax(model.logits(i, (0, *tokens[:t])))[c] for t, c in enumerate([*tokens, END])
        )
        power = options.get("length_penalty", 1.0) if "num_beams" in options else 0.0
        np.testing.assert_allclose(got.scores[i], total / (len(tokens) + 1) ** power, rtol=1e-12)
    got = hw.generate(model, range(5), **CALL, max_length=3, min_length=3, **options)
    assert [len(t) for t in got.tokens] == [3] * 5
    assert not got.finished.any()


@search
def test_min_length_gives_way_where_only_the_end_is_allowed(options):
    def logits(source, history):
        return [-np.inf, 0.0, -np.inf] if len(history) > 2 else [0.0, 1.0, 2.0]

    got = hw.generate(Toy(logits), [0], **CALL, max_length=9, min_length=5, **options)
    assert len(got.tokens[0]) == 2
    assert got.finished[0]


def test_those_that_ended_leave():
    def logits(source, history):
        return [0.0, 50.0 if len(history) > source else -50.0, 1.0]

    model = Toy(logits)
    got = hw.generate(model, [3, 0, 2, 5], **CALL, max_length=5)
    assert [len(t) for t in got.tokens] == [3, 0, 2, 5]
    assert got.finished.tolist() == [True, True, True, False]
    assert model.rows_of_step == [4, 3, 3, 2, 1]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", ">f4", "int64"])
def test_dtypes_of_logits(dtype):
    import ml_dtypes

    dtype = np.dtype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)
    table = np.random.default_rng(1).integers(-8, 8, (9, 9))
    got = hw.generate(chain(table, dtype), [0, 1], **CALL, max_length=7, num_beams=2)
    assert_same(got, hw.generate(chain(table), [0, 1], **CALL, max_length=7, num_beams=2))


def test_strided_logits_and_reused_arrays():
    model = chaotic(9, end=END, toward_end=0.5)
    want = hw.generate(model, range(3), **CALL, max_length=6, return_alignments=True, num_beams=2)
    buffers = np.zeros((8, 18)), np.zeros((8, 2, 3, 5))

    class Reusing(Toy):
        def next(self, tokens, state, *, need_weights=False):
            logits, weights = super().next(tokens, state, need_weights=need_weights)
            out = buffers[0][: len(logits), ::2], buffers[1][: len(logits)]
            out[0][...], out[1][...] = logits, weights
            return out

    model = Reusing(model.logits, model.weights)
    assert_same(hw.generate(model, range(3), **CALL, max_length=6, return_alignments=True, num_beams=2), want)


def test_begin_keywords_arrive():
    class Masked(Toy):
        def begin(self, source, *, source_lengths):
            assert source_lengths == [1, 2]
            return super().begin(source)

    hw.generate(Masked(lambda s, h: [0.0, 9.0]), [0, 0], **CALL, source_lengths=[1, 2])


def test_protocols():
    model = chaotic(3)
    assert isinstance(model, hw.generation.GenerativeModel)
    assert isinstance(model.begin([0]), hw.generation.GenerationState)
    assert not isinstance(object(), hw.generation.GenerativeModel)
