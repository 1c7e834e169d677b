"""Naive twins of `generate`: one source, lists and loops, every beam and token written out."""

import itertools

import numpy as np
from generation_models import log_softmax


def greedy(logits, source, *, start, end, max_length, min_length=0, prefix=()):
    """Return (tokens, score, finished) of the likeliest token at every step."""
    tokens, score = [], 0.0
    for step in range(max_length):
        raw = np.asarray(logits(source, (start, *tokens)), np.float64)
        allowed = raw.copy()
        if step < min_length and np.isfinite(np.delete(raw, end)).any():
            allowed[end] = -np.inf
        token = prefix[step] if step < len(prefix) else int(np.argmax(allowed))
        score += log_softmax(raw)[token]
        if token == end:
            return tokens, score, True
        tokens.append(token)
    return tokens, score, False


def beams(
    logits,
    source,
    *,
    start,
    end,
    max_length,
    num_beams,
    length_penalty=1.0,
    early_stopping=False,
    min_length=0,
    prefix=(),
):
    """Return a list of (tokens, score, finished), the best first."""
    running, pool = [((), 0.0)], []
    for length in range(1, max_length + 1):
        offers = []
        for tokens, total in running:
            raw = logits(source, (start, *tokens))
            log_p = log_softmax(raw)
            if length <= min_length and np.isfinite(np.delete(log_p, end)).any():
                log_p[end] = -np.inf
            choice = [prefix[length - 1]] if length <= len(prefix) else range(len(log_p))
            offers += [((*tokens, c), total + log_p[c]) for c in choice if log_p[c] > -np.inf]
        offers = sorted(offers, key=lambda offer: -offer[1])[: 2 * num_beams]
        for place, (tokens, total) in enumerate(offers):
            if place < num_beams and (tokens[-1] == end or length == max_length):
                pool.append((tokens, total / length**length_penalty))
        pool = sorted(pool, key=lambda finished: -finished[1])[:num_beams]
        running = [offer for offer in offers if offer[0][-1] != end][:num_beams]
        if length == max_length or not running:
            break
        if len(pool) == num_beams:
            if early_stopping is True:
                break
            far = max_length if early_stopping == "never" and length_penalty > 0 else length
            if running[0][1] / far**length_penalty <= pool[-1][1]:
                break
    return [([c for c in tokens if c != end], score, tokens[-1] == end) for tokens, score in pool]


def every_sequence(logits, source, *, start, end, max_length, length_penalty=1.0):
    """Return (tokens, score, finished) of all sequences up to a length, the best first."""
    found = []
    vocabulary = len(logits(source, (start,)))
    others = [c for c in range(vocabulary) if c != end]
    for length in range(max_length + 1):
        for tokens in itertools.product(others, repeat=length):
            total = sum(log_softmax(logits(source, (start, *tokens[:t])))[c] for t, c in enumerate(tokens))
            if length == max_length:
                found.append((list(tokens), total / length**length_penalty, False))
            else:
                total += log_softmax(logits(source, (start, *tokens)))[end]
                found.append((list(tokens), total / (length + 1) ** length_penalty, True))
    return sorted(found, key=lambda sequence: -sequence[1])


def allowed(row, *, temperature=1.0, top_k=None, top_p=1.0):
    """Return the probabilities that a token is drawn with; 0 for those that are left out."""
    row = np.asarray(row, np.float64)
    order = sorted(range(len(row)), key=lambda c: (-row[c], c))[: top_k or len(row)]
    highest = max(row)
    weights = {c: np.exp((row[c] - highest) / temperature) for c in order}
    total = sum(weights.values())
    left, mass = [], 0.0
    for c in order:
        if mass >= top_p:
            break
        left.append(c)
        mass += weights[c] / total
    probabilities, total = np.zeros(len(row)), sum(weights[c] for c in left)
    for c in left:
        probabilities[c] = weights[c] / total
    return probabilities
