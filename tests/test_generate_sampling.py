"""Sampling: frequencies, the sets that top-k and top-p leave, and each sequence's own numbers."""

import numpy as np
import pytest
from generation_models import Toy, chain, chaotic, log_softmax
from reference_generation import allowed
from test_generate import CALL, END, assert_same, one

import headwise as hw
from headwise.generation._logits import largest, log_normalizer
from headwise.generation._options import SamplingOptions
from headwise.generation._sampling import BLOCK, sample

pytestmark = pytest.mark.once

SETTINGS = {
    "plain": {},
    "cold": dict(temperature=0.5),
    "hot": dict(temperature=3.0),
    "top_k": dict(top_k=4),
    "top_p": dict(top_p=0.7),
    "both": dict(top_k=6, top_p=0.6, temperature=1.5),
    "one": dict(top_k=1),
    "all": dict(top_k=99, top_p=1.0),
}
settings = pytest.mark.parametrize("options", SETTINGS.values(), ids=SETTINGS)

# Of chi-square with n degrees of freedom, the value that one run in a million exceeds, for n = 1, 2, ...
CHI_SQUARE = [23.9, 27.6, 30.7, 33.4, 35.9, 38.3, 40.5, 42.7, 44.8, 46.9]


@settings
def test_frequencies(options):
    row = np.random.default_rng(3).standard_normal(11) * 0.7
    row[END] = -np.inf
    want = allowed(row, **options)
    draws = 20_000
    got = hw.generate(
        Toy(lambda source, history: row),
        range(draws),
        **CALL,
        max_length=1,
        do_sample=True,
        rng=1,
        **options,
    )
    counts = np.bincount(np.concatenate(got.tokens), minlength=11)
    assert counts.sum() == draws
    assert not counts[want == 0].any()
    kept = want > 0
    assert (counts[kept] > 0).all()
    distance = ((counts[kept] - draws * want[kept]) ** 2 / (draws * want[kept])).sum()
    assert kept.sum() == 1 or distance < CHI_SQUARE[kept.sum() - 2]
    # The score is the model's probability, whatever the draw was restricted to.
    np.testing.assert_allclose(got.scores, log_softmax(row)[np.concatenate(got.tokens)], rtol=1e-12)


@settings
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("vocabulary", [1, 2, 63, 64, 65, 300, 4000])
def test_tokens_are_those_of_the_twin(vocabulary, dtype, options):
    rng = np.random.default_rng(vocabulary)
    logits = rng.standard_normal((20, vocabulary)).astype(dtype)
    logits[::3] = logits[::3].round(0)  # equal ones
    uniform = rng.random(20)
    chosen = SamplingOptions.of(options.get("temperature", 1.0), options.get("top_k"), options.get("top_p"))
    got = sample(logits, logits.max(axis=1), chosen, uniform)
    for row, token, u in zip(logits, got, uniform, strict=True):
        want = allowed(row, **options)
        # With a restriction tokens stand in the order of their logits, else in that of their ids.
        order = np.arange(vocabulary)
        if (chosen.top_k or vocabulary) < vocabulary or chosen.top_p < 1.0:
            order = np.argsort(-row, kind="stable")
        edges = np.cumsum(want[order])
        place = int(np.flatnonzero(order == token)[0])
        below = edges[place - 1] if place else 0.0
        assert want[token] > 0
        assert below - 1e-12 <= u <= edges[place] + 1e-12
        alone = sample(row[None], row.max(keepdims=True), chosen, np.array([u]))
        assert alone[0] == token


def test_a_wide_nucleus_is_the_same_beside_a_narrow_one():
    wide, narrow = np.zeros(5000), np.zeros(5000)
    narrow[7] = 50.0
    options = SamplingOptions(1.0, None, 0.9)
    logits, uniform = np.stack([wide, narrow]), np.array([0.999999, 0.999999])
    got = sample(logits, logits.max(axis=1), options, uniform)
    assert got.tolist() == [4499, 7]
    for i in range(2):
        assert (
            sample(logits[i : i + 1], logits[i : i + 1].max(axis=1), options, uniform[i : i + 1])[0] == got[i]
        )


def test_nearly_no_temperature_is_greedy():
    model = chaotic(20, end=END, toward_end=1.0)
    cold = hw.generate(model, range(5), **CALL, max_length=9, do_sample=True, temperature=1e-300)
    assert_same(cold, hw.generate(model, range(5), **CALL, max_length=9))
    one_left = hw.generate(model, range(5), **CALL, max_length=9, do_sample=True, top_k=1)
    assert_same(one_left, cold)
    tiny = hw.generate(model, range(5), **CALL, max_length=9, do_sample=True, top_p=1e-12)
    assert_same(tiny, cold)


@settings
def test_a_seed_repeats(options):
    model = chaotic(30, end=END, toward_end=1.0)
    call = dict(**CALL, max_length=2 * BLOCK + 5, do_sample=True, return_alignments=True, **options)
    got = hw.generate(model, range(5), rng=9, **call)
    assert_same(hw.generate(model, range(5), rng=9, **call), got)
    generator = np.random.default_rng(4)
    first = hw.generate(model, range(5), rng=generator, **call)
    assert_same(hw.generate(model, range(5), rng=np.random.default_rng(4), **call), first)
    reference = np.random.default_rng(4)
    reference.integers(0, 2**64 - 1, dtype=np.uint64, endpoint=True)
    assert generator.random() == reference.random()  # one draw was taken
    if "top_k" not in options:
        other = hw.generate(model, range(5), rng=10, **call)
        assert any(a.tolist() != b.tolist() for a, b in zip(other.tokens, got.tokens, strict=True))


def test_equal_sources_are_sampled_apart():
    got = hw.generate(chain(np.zeros((50, 50))), [0] * 8, **CALL, max_length=10, do_sample=True, rng=0)
    assert len({tuple(t.tolist()) for t in got.tokens}) == 8


def test_samples_of_a_source_do_not_depend_on_their_number():
    model = chaotic(30, end=END, toward_end=1.0)
    call = dict(**CALL, max_length=9, do_sample=True, rng=3, return_alignments=True)
    prefix = [[2], [], [4, 5]]
    many = hw.generate(model, range(3), num_return_sequences=4, prefix=prefix, **call)
    assert len(many.tokens) == 12
    assert len({tuple(t.tolist()) for t in many.tokens[4:8]}) == 4
    for count in (1, 2):
        few = hw.generate(model, range(3), num_return_sequences=count, prefix=prefix, **call)
        for source in range(3):
            for r in range(count):
                assert_same(one(few, source * count + r), one(many, source * 4 + r))
    assert hw.generate(model, [], num_return_sequences=4, **call).tokens == []


def test_the_stream_goes_on_over_blocks():
    """Sequence i's numbers are those of its Philox stream, one for each step."""
    length = BLOCK + 10
    got = hw.generate(
        Toy(lambda source, history: [0.0, -np.inf] + [0.0] * 98),
        [0, 0, 0],
        **CALL,
        max_length=length,
        do_sample=True,
        rng=77,
    )
    for i in range(3):
        stream = np.random.Generator(np.random.Philox(key=np.array([77, i], np.uint64)))
        want = (stream.random(length) * 99).astype(int)
        np.testing.assert_array_equal(got.tokens[i], want + (want >= END))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("vocabulary", [1, 2, 15, 64, 1001, 9000])
def test_largest_of_rows(vocabulary, dtype):
    rng = np.random.default_rng(vocabulary)
    logits = rng.standard_normal((9, vocabulary)).astype(dtype)
    logits[3:6] = logits[3:6].round(0)
    logits[6] = 0.0
    logits[7, 1:] = -np.inf
    for count in {1, 2, 7, vocabulary // 2, vocabulary - 1, vocabulary} & set(range(1, vocabulary + 1)):
        ids, values = largest(logits, count)
        want = np.argsort(-logits, axis=1, kind="stable")[:, :count]
        np.testing.assert_array_equal(ids, want)
        np.testing.assert_array_equal(values, np.take_along_axis(logits, want, axis=1))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("vocabulary", [1, 2, 15, 64, 1001, 9000])
def test_normalizer_of_rows(vocabulary, dtype):
    logits = np.random.default_rng(vocabulary).standard_normal((9, vocabulary)).astype(dtype) * 20
    logits[5], logits[6] = logits[5] + 1e30, logits[6] - 1e30
    logits[7, 1:] = -np.inf
    got = log_normalizer(logits, logits.max(axis=1))
    want = np.logaddexp.reduce(logits.astype(np.float64), axis=1)
    np.testing.assert_allclose(got, want, rtol=1e-14, atol=1e-14)
    for i in range(9):
        assert log_normalizer(logits[i : i + 1], logits[i : i + 1].max(axis=1))[0] == got[i]
