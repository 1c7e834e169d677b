"""`generate`: read the source, search, and walk the paths that were found back."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from headwise._errors import ArgumentTypeError, ArgumentValueError
from headwise._steps import key_of
from headwise.generation._beam import beam_search
from headwise.generation._history import History
from headwise.generation._logits import Logits
from headwise.generation._model import Stepper
from headwise.generation._options import BeamOptions, Lengths, Prefix, SamplingOptions, integer
from headwise.generation._protocol import GenerativeModel
from headwise.generation._result import Generated
from headwise.generation._sampling import Streams, sample
from headwise.generation._single import Choose, likeliest, search


def generate(
    model: GenerativeModel[Any],
    source: Any,  # noqa: ANN401 - whatever the model takes
    *,
    start: int,
    end: int,
    max_length: int = 128,
    min_length: int = 0,
    num_beams: int = 1,
    length_penalty: float = 1.0,
    early_stopping: bool | Literal["never"] = False,
    num_return_sequences: int = 1,
    do_sample: bool = False,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    rng: int | np.random.Generator | None = None,
    return_alignments: bool = False,
    prefix: Any = None,  # noqa: ANN401 - one array or a list of them
    **begin_keywords: Any,  # noqa: ANN401 - whatever the model takes
) -> Generated:
    """Generate sequences token by token: greedy, by beam search, or by sampling.

    Each sequence starts with `start`; the model scores every token that may follow, one is chosen and fed
    back, until `end` is chosen. With ``num_beams=1`` that is the likeliest token, or with `do_sample` one
    that is drawn; with more, the `num_beams` likeliest sequences are followed side by side.

    Parameters
    ----------
    model : GenerativeModel
        Anything with the methods ``begin`` and ``next`` of `headwise.generation.GenerativeModel`.
    source : object
        What ``model.begin`` takes: B sources.
    start, end : int
        Ids of the tokens before the first and after the last one.
    max_length : int, default 128
        The most tokens of a sequence; the end counts as one, and so do those of `prefix`.
    min_length : int, default 0
        The fewest tokens before the end, which is blocked until then, unless the model allows nothing else.
    num_beams : int, default 1
        How many sequences of a source are followed, K.
    length_penalty : float, default 1.0
        Beams are compared by sum / length**length_penalty, with the sum of the log-probabilities and the
        end counted in the length. Above 0 it favours long sequences, below 0 short ones. Not used with
        one beam.
    early_stopping : bool or "never", default False
        When a source with K finished sequences is done: True at once; False when no beam is better than
        the worst of them at its present length; "never" when none can become better at any length. Not
        used with one beam.
    num_return_sequences : int, default 1
        How many sequences of each source are returned: the best of its beams, or as many samples.
    do_sample : bool, default False
        Draw each token from the model's distribution. With one beam only.
    temperature : float, default 1.0
        Logits are divided by it before a draw: below 1 likely tokens become likelier.
    top_k : int, optional
        Draw from the k likeliest tokens only.
    top_p : float, optional
        Draw from the fewest likeliest tokens only that have at least this probability together, after
        `top_k`.
    rng : int or numpy.random.Generator, optional
        Seed of the draws. A generator is advanced by one draw in each call that samples.
    return_alignments : bool, default False
        Whether to return the weights with which the model looked at the source for each token.
    prefix : array_like of int, or list of array_like, optional
        Tokens (P,) that every sequence begins with, after `start`, or a list of B arrays, of any lengths.
        They are a part of what is returned, of its score and of its length, as if the model had chosen
        them.
    **begin_keywords : object
        Passed on to ``model.begin``: masks or lengths of the source.

    Returns
    -------
    Generated
        Tokens, scores, whether each is finished, and alignments. See its fields.

    Raises
    ------
    ValueError
        If an argument is out of range, `start`, `end` or `prefix` are not in the vocabulary, or the
        model's logits are NaN or +inf, or of another shape (`ShapeError`).
    TypeError
        If an argument is of another kind, or the model lacks a method.

    Notes
    -----
    A sequence does not depend on its neighbours: those that ended leave the batch, and each sample has a
    Philox stream of its own, keyed by one draw from `rng` and its place in the batch. Where two tokens
    are equally likely the smaller id is taken. Log-probabilities are computed in float64, from the
    model's logits as they are: neither temperature nor a restriction of the draw changes a score.

    Beam search follows the rules of the transformers library, see the page on generation. If a source
    has fewer possible sequences than were asked for, what is missing is empty, with a score of -inf.

    References
    ----------
    .. [1] A. Vaswani et al., "Attention Is All You Need", 2017. https://arxiv.org/abs/1706.03762
    .. [2] Y. Wu et al., "Google's Neural Machine Translation System" (length penalty), 2016.
       https://arxiv.org/abs/1609.08144
    .. [3] A. Fan, M. Lewis, Y. Dauphin, "Hierarchical Neural Story Generation" (top-k), 2018.
       https://arxiv.org/abs/1805.04833
    .. [4] A. Holtzman et al., "The Curious Case of Neural Text Degeneration" (top-p), 2020.
       https://arxiv.org/abs/1904.09751

    Examples
    --------
    A model that knows which token follows which, and whose state is only how many sequences there are:

    >>> import numpy as np
    >>> import headwise as hw
    >>> class State:
    ...     def __init__(self, count):
    ...         self.count = count
    ...
    ...     def __len__(self):
    ...         return self.count
    ...
    ...     def reorder(self, indices):
    ...         self.count = len(indices)
    >>> class Chain:
    ...     table = np.array([[0, 0.6, 0.4, 0], [0, 0.4, 0, 0.6], [0, 0, 0, 1], [0, 0, 0, 1]])
    ...
    ...     def begin(self, source):
    ...         return State(len(source))
    ...
    ...     def next(self, tokens, state, *, need_weights=False):
    ...         with np.errstate(divide="ignore"):
    ...             return np.log(self.table[tokens]), None
    >>> hw.generate(Chain(), ["a source"], start=0, end=3)
    Generated(tokens=[array([1])], scores=array([-1.02165125]), finished=array([ True]), alignments=None)

    The likeliest first token is not that of the likeliest sequence, which two beams find:

    >>> beams = hw.generate(Chain(), ["a source"], start=0, end=3, num_beams=2, length_penalty=0.0)
    >>> beams.tokens, np.exp(beams.scores).round(3)
    ([array([2])], array([0.4]))
    """
    start, end = integer("start", start, at_least=0), integer("end", end, at_least=0)
    lengths = Lengths.of(max_length, min_length)
    beams = integer("num_beams", num_beams, at_least=1)
    returned = integer("num_return_sequences", num_return_sequences, at_least=1)
    beam_options = BeamOptions.of(beams, length_penalty, early_stopping, lengths.longest)
    sampling = SamplingOptions.of(temperature, top_k, top_p)
    _check_together(do_sample, sampling, beams, returned)

    ids = {"start": start, "end": end}
    stepper = Stepper(model, source, begin_keywords, ids=ids, need_weights=bool(return_alignments))
    count = len(stepper)
    forced = Prefix.of(prefix, count, end=end, longest=lengths.longest)
    ids["prefix"] = int(forced.tokens.max(initial=0))
    history = History(aligned=bool(return_alignments))
    if beams > 1:
        found = beam_search(
            stepper,
            history,
            beam_options,
            start=start,
            end=end,
            lengths=lengths,
            prefix=forced,
            num_return_sequences=returned,
        )
    else:
        choose: Choose = likeliest
        if do_sample:
            choose = _drawn(Streams(key_of(rng), count, returned), sampling)
            if returned > 1 and count:
                stepper.reorder(np.repeat(np.arange(count), returned))
            forced = forced.repeated(returned)
        found = search(stepper, history, choose, start=start, end=end, lengths=lengths, prefix=forced)
    tokens, alignments = history.paths(found.leaves)
    return Generated(tokens, found.scores, found.finished, alignments)


def _check_together(do_sample: object, sampling: SamplingOptions, beams: int, returned: int) -> None:
    """Refuse arguments that contradict one another, or would be passed over in silence."""
    if do_sample is not True and do_sample is not False:
        msg = f"do_sample: expected a bool, got {do_sample!r}"
        raise ArgumentTypeError(msg)
    if do_sample and beams > 1:
        msg = (
            f"do_sample: expected num_beams=1 with it, got num_beams={beams}; "
            "num_return_sequences draws several samples of a source"
        )
        raise ArgumentValueError(msg)
    if not do_sample and sampling != SamplingOptions(1.0, None, 1.0):
        msg = "temperature, top_k, top_p: expected do_sample=True with them, got do_sample=False"
        raise ArgumentValueError(msg)
    if not do_sample and returned > beams:
        msg = f"num_return_sequences: expected at most num_beams = {beams} without do_sample, got {returned}"
        raise ArgumentValueError(msg)


def _drawn(streams: Streams, options: SamplingOptions) -> Choose:
    def choose(
        step: int, sequences: NDArray[np.intp], logits: Logits, row_max: NDArray[Any]
    ) -> NDArray[np.int64]:
        return sample(logits, row_max, options, streams.draw(step, sequences))

    return choose
