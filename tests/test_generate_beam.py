"""Beam search against its naive twin, against all sequences written out, and against greedy search."""

import itertools

import numpy as np
import pytest
import reference_generation as naive
from generation_models import Toy, chain, chaotic
from test_generate import CALL, END, assert_same, assert_sequence, one

import headwise as hw
from headwise.generation import _beam, _history, _model
from headwise.generation._options import BeamOptions, Lengths, Prefix

pytestmark = pytest.mark.once

EARLY = [False, True, "never"]
PENALTIES = [-0.7, 0.0, 0.6, 1.0, 2.0]


@pytest.mark.parametrize("early_stopping", EARLY)
@pytest.mark.parametrize("length_penalty", PENALTIES)
@pytest.mark.parametrize(("vocabulary", "num_beams"), [(2, 2), (3, 4), (7, 3), (40, 5)])
def test_beams_are_those_of_the_twin(vocabulary, num_beams, length_penalty, early_stopping):
    model = chaotic(vocabulary, end=END, toward_end=0.8 * np.log(vocabulary))
    options = dict(
        **CALL,
        max_length=9,
        num_beams=num_beams,
        length_penalty=length_penalty,
        early_stopping=early_stopping,
    )
    sources = range(8)
    got = hw.generate(model, sources, num_return_sequences=num_beams, **options)
    for source in sources:
        want = naive.beams(model.logits, source, **options)
        for i in range(num_beams):
            place = source * num_beams + i
            if i < len(want):
                assert_sequence(got, place, want[i])
            else:
                assert_sequence(got, place, ([], -np.inf, False))


@pytest.mark.parametrize("min_length", [0, 4])
@pytest.mark.parametrize("prefix", [(), (2,), (3, 0, 4)])
def test_beams_with_a_prefix_and_a_least_length(prefix, min_length):
    model = chaotic(6, end=END, toward_end=1.5)
    options = dict(**CALL, max_length=7, num_beams=3, min_length=min_length)
    prefixes = [prefix, (), (4,), prefix]
    got = hw.generate(model, range(4), prefix=prefixes, num_return_sequences=3, **options)
    for source in range(4):
        want = naive.beams(model.logits, source, prefix=prefixes[source], **options)
        for i in range(3):
            assert_sequence(got, 3 * source + i, want[i])


def test_beams_of_equal_prefixes_are_one_row_while_they_last():
    model = chaotic(6, end=END, toward_end=-9.0)
    hw.generate(model, [1, 2], **CALL, max_length=5, num_beams=3, prefix=[4, 4])
    assert model.rows_of_step == [2, 2, 2, 6, 6]
    hw.generate(model, [1, 2], **CALL, max_length=3, num_beams=3)
    assert model.rows_of_step == [2, 6, 6]


@pytest.mark.parametrize("length_penalty", PENALTIES)
@pytest.mark.parametrize("vocabulary", [2, 3, 4])
def test_beams_that_hold_everything_find_the_best(vocabulary, length_penalty):
    model, length = chaotic(vocabulary), 5
    many = sum((vocabulary - 1) ** n for n in range(length + 1))
    options = dict(**CALL, max_length=length, length_penalty=length_penalty)
    got = hw.generate(
        model, range(3), num_beams=many, num_return_sequences=many, early_stopping="never", **options
    )
    for source in range(3):
        want = naive.every_sequence(model.logits, source, **options)
        assert len(want) == many
        for i, sequence in enumerate(want):
            assert_sequence(got, source * many + i, sequence)


def beam_of_one(model, sources, lengths, prefix):
    """Run the beam search itself with one beam, whose score is not divided."""
    stepper = _model.Stepper(model, sources, {}, ids={}, need_weights=True)
    history = _history.History(aligned=True)
    prefix = Prefix.of(prefix, len(sources), end=END, longest=lengths.longest)
    found = _beam.beam_search(
        stepper,
        history,
        BeamOptions.of(1, 0.0, False, lengths.longest),
        **CALL,
        lengths=lengths,
        prefix=prefix,
        num_return_sequences=1,
    )
    tokens, alignments = history.paths(found.leaves)
    return hw.Generated(tokens, found.scores, found.finished, alignments)


@pytest.mark.parametrize("prefix", [None, [[], [2], [2, 3], [], [0], [3]]])
@pytest.mark.parametrize("min_length", [0, 3])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("decimals", [0, 1, 12])
def test_greedy_is_a_beam_of_one(decimals, dtype, min_length, prefix):
    wild = chaotic(12, end=END, toward_end=1.5)
    # Few decimals make many equal logits.
    model = Toy(lambda *row: np.round(wild.logits(*row), decimals), wild.weights, dtype)
    got = hw.generate(
        model, range(6), **CALL, max_length=15, min_length=min_length, prefix=prefix, return_alignments=True
    )
    assert_same(beam_of_one(model, range(6), Lengths(15, min_length), prefix), got)


def test_greedy_is_a_beam_of_one_where_sums_round_logits_together():
    # 1 + 2**-52 and 1 differ, and their sums with what came before do not.
    table = np.full((6, 6), -9.0)
    table[0, 2] = table[2, 3] = 0.0
    table[3, 4], table[3, 5] = 1.0, 1.0 + 2.0**-52
    table[4:, END] = 50.0
    model = Toy(lambda source, history: table[history[-1]], lambda source, history: np.ones((1, 1, 1)))
    got = hw.generate(model, [0], **CALL, return_alignments=True)
    assert got.tokens[0].tolist() == [2, 3, 5]
    assert_same(beam_of_one(model, [0], Lengths(128, 0), None), got)


def test_equal_beams_keep_their_order():
    """Of equal sums the better beam's comes first, then the smaller id."""
    got = hw.generate(
        Toy(lambda source, history: np.zeros(4)),
        [0],
        start=0,
        end=3,
        max_length=2,
        num_beams=4,
        num_return_sequences=4,
        length_penalty=0.0,
    )
    assert [t.tolist() for t in got.tokens] == [[], [0, 0], [0, 1], [0, 2]]


def test_the_best_sequence_begins_with_a_worse_token():
    table = np.log(np.array([[1e-9, 1e-9, 0.6, 0.4], [1.0] * 4, [0.25] * 4, [1e-9, 1.0, 1e-9, 1e-9]]))
    assert hw.generate(chain(table), [0], **CALL).tokens[0][0] == 2
    got = hw.generate(chain(table), [0], **CALL, num_beams=2, length_penalty=0.0)
    assert got.tokens[0].tolist() == [3]
    np.testing.assert_allclose(np.exp(got.scores), 0.4, rtol=1e-8)


def test_early_stopping_spares_steps():
    model = chaotic(9, end=END, toward_end=2.0)
    steps, scores = [], []
    for early_stopping in (True, False, "never"):
        got = hw.generate(model, range(6), **CALL, max_length=40, num_beams=4, early_stopping=early_stopping)
        steps.append(sum(model.rows_of_step))
        scores.append(got.scores)
    assert steps[0] < steps[1] < steps[2]
    assert (scores[0] <= scores[1]).all()
    assert (scores[1] <= scores[2]).all()


def test_best_come_first_and_agree_with_fewer():
    model = chaotic(9, end=END, toward_end=1.0)
    call = dict(**CALL, max_length=10, num_beams=5, return_alignments=True)
    every = hw.generate(model, range(4), num_return_sequences=5, **call)
    assert (np.diff(every.scores.reshape(4, 5), axis=1) <= 0).all()
    assert len({tuple(t.tolist()) for t in every.tokens[:5]}) == 5
    for count in (1, 3):
        few = hw.generate(model, range(4), num_return_sequences=count, **call)
        for source, i in itertools.product(range(4), range(count)):
            assert_same(one(few, source * count + i), one(every, source * 5 + i))
    # Each alignment is that of its own tokens, also where beams of a source part late.
    for place, (tokens, alignment) in enumerate(zip(every.tokens, every.alignments, strict=True)):
        for t in range(len(tokens)):
            np.testing.assert_array_equal(alignment[t], model.weights(place // 5, (0, *tokens[:t].tolist())))


def test_sources_that_are_done_leave():
    def logits(source, history):
        row = np.zeros(8)
        row[END] = 30.0 if len(history) > source else -30.0
        return row

    model = Toy(logits)
    got = hw.generate(model, [4, 1, 2], **CALL, max_length=20, num_beams=2, early_stopping=True)
    assert [len(t) for t in got.tokens] == [4, 1, 2]
    assert model.rows_of_step[-1] == 2
    assert len(model.rows_of_step) < 8


def test_what_cannot_follow_is_never_fed():
    """Fewer continuations than beams: empty places run along with a beam that is possible."""
    fed = set()

    def logits(source, history):
        fed.add(history)
        row = np.full(6, -np.inf)
        row[[2, 3] if len(history) < 3 else [END]] = [0.0, 1.0] if len(history) < 3 else 0.0
        assert set(history[1:]) <= {2, 3}
        return row

    got = hw.generate(Toy(logits), [0], **CALL, num_beams=6, num_return_sequences=6)
    assert [t.tolist() for t in got.tokens] == [[3, 3], [3, 2], [2, 3], [2, 2], [], []]
    assert got.finished.tolist() == [True] * 4 + [False] * 2
    assert np.isneginf(got.scores[4:]).all()
    assert len(fed) == 7
