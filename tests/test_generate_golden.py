"""Beam search against that of transformers 5.23 (golden/make_transformers_golden.py).

Their sums are float32, ours float64: tokens and their order must be equal, scores to within the rounding of
float32.
"""

import json
from pathlib import Path

import numpy as np
import pytest
from generation_models import Toy

import headwise as hw

pytestmark = pytest.mark.once

with np.load(Path(__file__).parent / "golden" / "transformers_generation.npz", allow_pickle=False) as file:
    ABOUT = json.loads(str(file["about"]))
    ARRAYS = {name: file[name] for name in file.files}


@pytest.mark.parametrize("case", ABOUT["cases"])
def test_sequences_and_scores_are_those_of_transformers(case):
    table = ARRAYS["tables"][ABOUT["cases"][case]["table"]]
    options = dict(ABOUT["cases"][case]["options"])
    options["min_length"] = options.pop("min_new_tokens", 0)

    def logits(prompt, history):
        seen = (prompt, prompt, *history[1:])
        return table[seen[-2], seen[-1]]

    got = hw.generate(
        Toy(logits, dtype=np.float32),
        ABOUT["prompts"],
        start=0,
        end=ABOUT["end"],
        max_length=ABOUT["longest"],
        num_return_sequences=options["num_beams"],
        **options,
    )
    tokens, scores = ARRAYS[f"{case}/tokens"], ARRAYS[f"{case}/scores"]
    assert len(got.tokens) == len(tokens)
    for mine, finished, theirs in zip(got.tokens, got.finished, tokens, strict=True):
        theirs = theirs[theirs >= 0].tolist()
        assert [*mine.tolist(), *([ABOUT["end"]] if finished else [])] == theirs
    np.testing.assert_allclose(got.scores, scores, rtol=2e-6)
