"""What `generate` refuses, and that its texts name the argument, what was expected and what came."""

import re

import numpy as np
import pytest
from generation_models import Rows, Toy, chaotic
from test_generate import CALL

import headwise as hw

pytestmark = pytest.mark.once

ARGUMENTS = [
    (dict(start=-1), ValueError, "start: expected an integer of at least 0, got -1"),
    (dict(start=9), ValueError, "start: expected ids from 0 to V - 1 = 8, got 9"),
    (dict(start=1.0), TypeError, "start: expected an integer, got 1.0"),
    (dict(end=-2), ValueError, "end: expected an integer of at least 0, got -2"),
    (dict(end=99), ValueError, "end: expected ids from 0 to V - 1 = 8, got 99"),
    (dict(end=True), TypeError, "end: expected an integer, got True"),
    (dict(max_length=0), ValueError, "max_length: expected an integer of at least 1, got 0"),
    (dict(max_length=None), TypeError, "max_length: expected an integer, got None"),
    (dict(min_length=-1), ValueError, "min_length: expected an integer of at least 0, got -1"),
    (dict(min_length=6), ValueError, "min_length: expected at most max_length = 5, got 6"),
    (dict(num_beams=0), ValueError, "num_beams: expected an integer of at least 1, got 0"),
    (dict(num_beams=2.0), TypeError, "num_beams: expected an integer, got 2.0"),
    (dict(length_penalty="x"), TypeError, "length_penalty: expected a number, got 'x'"),
    (dict(length_penalty=np.nan), ValueError, "length_penalty: expected a finite number, got nan"),
    (dict(length_penalty=1e3), ValueError, "length_penalty: expected 5**length_penalty"),
    (
        dict(early_stopping="always"),
        ValueError,
        "early_stopping: expected False, True or \"never\", got 'always'",
    ),
    (dict(early_stopping=1), ValueError, 'early_stopping: expected False, True or "never", got 1'),
    (dict(num_return_sequences=0), ValueError, "num_return_sequences: expected an integer of at least 1"),
    (dict(num_return_sequences=2), ValueError, "num_return_sequences: expected at most num_beams = 1"),
    (
        dict(num_return_sequences=4, num_beams=3),
        ValueError,
        "expected at most num_beams = 3 without do_sample, got 4",
    ),
    (dict(do_sample=1), TypeError, "do_sample: expected a bool, got 1"),
    (
        dict(do_sample=True, num_beams=2),
        ValueError,
        "do_sample: expected num_beams=1 with it, got num_beams=2",
    ),
    (dict(do_sample=True, temperature=0), ValueError, "temperature: expected a number above 0, got 0.0"),
    (dict(do_sample=True, temperature=-1.0), ValueError, "temperature: expected a number above 0, got -1.0"),
    (dict(do_sample=True, temperature=np.inf), ValueError, "temperature: expected a finite number, got inf"),
    (dict(do_sample=True, top_k=0), ValueError, "top_k: expected an integer of at least 1, got 0"),
    (dict(do_sample=True, top_k=2.5), TypeError, "top_k: expected an integer, got 2.5"),
    (
        dict(do_sample=True, top_p=0.0),
        ValueError,
        "top_p: expected a probability above 0 and at most 1, got 0.0",
    ),
    (
        dict(do_sample=True, top_p=1.1),
        ValueError,
        "top_p: expected a probability above 0 and at most 1, got 1.1",
    ),
    (dict(do_sample=True, top_p=np.nan), ValueError, "top_p: expected a finite number, got nan"),
    (
        dict(do_sample=True, rng="seed"),
        TypeError,
        "rng: expected None, an int or a numpy.random.Generator, got str",
    ),
    (dict(do_sample=True, rng=-1), ValueError, "rng: expected a seed from 0 to 2**64 - 1, got -1"),
    (dict(temperature=2.0), ValueError, "temperature, top_k, top_p: expected do_sample=True with them"),
    (dict(top_k=3), ValueError, "temperature, top_k, top_p: expected do_sample=True with them"),
    (dict(top_p=0.5), ValueError, "temperature, top_k, top_p: expected do_sample=True with them"),
    (
        dict(prefix=3),
        ValueError,
        "prefix: expected 1-D token ids, or a list of such for all sequences, got shape ()",
    ),
    (dict(prefix=np.zeros((1, 2, 2), int)), ValueError, "prefix: expected 1-D token ids"),
    (dict(prefix=[[2], [3], [4]]), ValueError, "prefix: expected one array for each of 2 sequences, got 3"),
    (dict(prefix=[[2], 3]), ValueError, "prefix[1]: expected 1-D token ids"),
    (dict(prefix=[0.5]), TypeError, "prefix: expected integers, got dtype float64"),
    (dict(prefix=[[2], [-1]]), ValueError, "prefix[1]: expected ids from 0 to V - 1, got -1"),
    (dict(prefix=[2, 9]), ValueError, "prefix: expected ids from 0 to V - 1 = 8, got 9"),
    (dict(prefix=[2, 1]), ValueError, "prefix: expected tokens before the end, got the end, 1, at place 1"),
    (dict(prefix=[2] * 6), ValueError, "prefix: expected at most max_length = 5 tokens, got 6"),
]


@pytest.mark.parametrize(
    ("wrong", "kind", "text"), ARGUMENTS, ids=lambda x: str(x)[:40] if isinstance(x, dict) else ""
)
def test_arguments(wrong, kind, text):
    with pytest.raises(kind, match=re.escape(text)) as caught:
        hw.generate(chaotic(9), [0, 1], **{**CALL, "max_length": 5, **wrong})
    assert isinstance(caught.value, hw.HeadwiseError)


def answers(answer, weights=None):
    class Answering(Toy):
        def next(self, tokens, state, *, need_weights=False):
            return answer if weights is None else (answer, weights)

    return Answering(None)


NEXT = [
    (
        np.zeros((2, 9)),
        TypeError,
        "model: expected next to return (logits, weights), got ndarray of shape (2, 9)",
    ),
    (None, TypeError, "model: expected next to return (logits, weights), got NoneType"),
    (
        (np.zeros((3, 9)), None),
        ValueError,
        "model: expected logits (N, V) = (2, V) from next, got shape (3, 9)",
    ),
    (
        (np.zeros((2, 1, 9)), None),
        ValueError,
        "model: expected logits (N, V) = (2, V) from next, got shape (2, 1, 9)",
    ),
    (
        (np.zeros((2, 0)), None),
        ValueError,
        "model: expected logits (N, V) = (2, V) from next, got shape (2, 0)",
    ),
    ((np.zeros((2, 9), complex), None), TypeError, "model: expected logits of a floating dtype"),
    ((np.full((2, 9), "x"), None), TypeError, "model: expected logits of a floating dtype"),
]


@pytest.mark.parametrize("options", [{}, dict(num_beams=2), dict(do_sample=True)], ids=str)
@pytest.mark.parametrize(("answer", "kind", "text"), NEXT)
def test_what_next_returns(answer, kind, text, options):
    with pytest.raises(kind, match=re.escape(text)):
        hw.generate(answers(answer), [0, 1], **CALL, **options)


@pytest.mark.parametrize("options", [{}, dict(num_beams=2), dict(do_sample=True)], ids=str)
@pytest.mark.parametrize(
    ("value", "text"), [(np.nan, "NaN"), (np.inf, "+inf"), (None, "-inf for every token")]
)
def test_logits_that_cannot_be_normalised(value, text, options):
    def logits(source, history):
        row = np.zeros(9)
        if source == 1 and len(history) == 3:
            row[:] = -np.inf if value is None else row
            row[4] = -np.inf if value is None else value
        row[1] = -np.inf
        return row

    first = 1 if "num_beams" not in options else 2
    want = f"got {text} in row {first} of step 2"
    with pytest.raises(ValueError, match=re.escape(want)):
        hw.generate(Toy(logits), [0, 1], **CALL, max_length=9, **options)


def test_a_vocabulary_that_changes():
    model = Toy(lambda source, history: np.zeros(4 + len(history)))
    with pytest.raises(hw.ShapeError, match=re.escape("logits (N, V) = (1, 5) from next, got shape (1, 6)")):
        hw.generate(model, [0], **CALL)


def test_weights_that_do_not_fit():
    call = dict(**CALL, return_alignments=True)
    logits = np.zeros((2, 9))
    with pytest.raises(TypeError, match=re.escape("expected weights (N, layers, H, S) from next")):
        hw.generate(answers((logits, None)), [0, 1], **call)
    with pytest.raises(
        hw.ShapeError, match=re.escape("expected weights (2, layers, H, S) from next, got shape (2, 3)")
    ):
        hw.generate(answers(logits, np.zeros((2, 3))), [0, 1], **call)
    with pytest.raises(
        hw.ShapeError, match=re.escape("weights (2, layers, H, S) from next, got shape (1, 1, 1, 1)")
    ):
        hw.generate(answers(logits, np.zeros((1, 1, 1, 1))), [0, 1], **call)
    growing = Toy(lambda s, h: np.zeros(9), lambda s, h: np.zeros((1, 2, len(h))))
    with pytest.raises(
        hw.ShapeError, match=re.escape("weights (2, 1, 2, 1) from next, got shape (2, 1, 2, 2)")
    ):
        hw.generate(growing, [0, 1], **call)


def test_models_and_states_that_lack_a_method():
    with pytest.raises(
        TypeError, match=r"model: expected an object with the methods begin and next.*without begin"
    ):
        hw.generate(object(), [0], **CALL)

    class Half:
        def begin(self, source):
            return Rows(source)

    with pytest.raises(TypeError, match="got Half without next"):
        hw.generate(Half(), [0], **CALL)

    class Stateless(Toy):
        def begin(self, source):
            return list(source)

    with pytest.raises(
        TypeError, match=r"expected begin to return a state with reorder and __len__.*got list"
    ):
        hw.generate(Stateless(None), [0], **CALL)


def test_arguments_are_checked_before_the_model_is_called():
    with pytest.raises(ValueError, match="temperature"):
        hw.generate(object(), [0], **CALL, do_sample=True, temperature=0)
    with pytest.raises(TypeError, match="unexpected keyword argument 'lenghts'"):
        hw.generate(chaotic(3), [0], **CALL, lenghts=[1])


def test_errors_of_the_model_come_through():
    def logits(source, history):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        hw.generate(Toy(logits), [0], **CALL)
