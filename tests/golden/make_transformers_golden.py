"""Make the golden file of generation by Hugging Face's transformers: beams, length penalties, early stopping.

Run once with transformers 5.23 and torch 2.15 (never a dependency of the tests), without a network:
python tests/golden/make_transformers_golden.py

The model is a table of logits (V, V, V): what follows token b after token a is row (a, b), at the first
step row (b, b). Writes transformers_generation.npz beside itself: `tables` (2, V, V, V), which differ in how
likely the end is; for each case its `tokens` (N, T), the end included and filled up with -1, and its
`scores` (N,) in float32, where N counts the sequences of prompt 0, then of prompt 1, ... The array `about`
holds JSON: versions, the id of the end, the prompts and the options of each case.
"""

import itertools
import json
import os
import platform
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

import numpy as np
import torch
import transformers
from transformers import GenerationMixin, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput

HERE = Path(__file__).parent
VOCABULARY, END, LONGEST = 17, 1, 12
PROMPTS = list(range(2, 17))


class TableConfig(PreTrainedConfig):
    """A configuration without anything to configure."""

    model_type = "table"


class Table(PreTrainedModel, GenerationMixin):
    """A causal model that looks up the last two tokens."""

    config_class = TableConfig

    def __init__(self, table):
        super().__init__(TableConfig(vocab_size=VOCABULARY, use_cache=False))
        self.table = torch.nn.Parameter(torch.from_numpy(table))

    def forward(self, input_ids, attention_mask=None, **_):
        """Return the logits of every place."""
        before = torch.cat([input_ids[:, :1], input_ids[:, :-1]], dim=1)
        return CausalLMOutput(logits=self.table[before, input_ids])

    def prepare_inputs_for_generation(self, input_ids, attention_mask=None, **_):
        """Give the whole sequence, every time."""
        return {"input_ids": input_ids}


def run(model, options):
    """Return the tokens and scores of one case."""
    prompts = torch.tensor(PROMPTS)[:, None]
    out = model.generate(
        prompts,
        attention_mask=torch.ones_like(prompts),
        max_new_tokens=LONGEST,
        do_sample=False,
        eos_token_id=END,
        pad_token_id=END,
        use_cache=False,
        return_dict_in_generate=True,
        output_scores=True,
        num_return_sequences=options["num_beams"],
        **options,
    )
    tokens = out.sequences[:, 1:].numpy().astype(np.int8)
    after_end = (np.cumsum(tokens == END, axis=1) - (tokens == END)) > 0
    tokens[after_end] = -1
    if options["num_beams"] > 1:
        return tokens, out.sequences_scores.numpy()
    steps = torch.stack(out.scores).log_softmax(-1).numpy()  # (T, N, V)
    chosen = np.take_along_axis(steps, np.maximum(tokens.T, 0)[..., None].astype(int), axis=2)[..., 0]
    return tokens, np.where(tokens.T >= 0, chosen, 0).sum(axis=0)


def main():
    """Run all cases and write the file."""
    rng = np.random.default_rng(6)
    tables = rng.standard_normal((2, VOCABULARY, VOCABULARY, VOCABULARY)).astype(np.float32) * 2
    tables[1, ..., END] += 2.5
    arrays, cases = {"tables": tables}, {}
    for number, table in enumerate(tables):
        model = Table(table).eval()
        every = [dict(num_beams=1)]
        every += [
            dict(num_beams=beams, length_penalty=penalty, early_stopping=early)
            for beams, penalty, early in itertools.product(
                [2, 4, 8], [-1.0, 0.0, 0.6, 1.0, 2.0], [False, True, "never"]
            )
        ]
        every += [dict(num_beams=4, min_new_tokens=5), dict(num_beams=3, min_new_tokens=12)]
        for options in every:
            case = f"{number}-" + "-".join(f"{name}={value}" for name, value in options.items())
            arrays[f"{case}/tokens"], arrays[f"{case}/scores"] = run(model, options)
            cases[case] = {"table": number, "options": options}
    about = dict(
        made_by="tests/golden/make_transformers_golden.py",
        transformers=transformers.__version__,
        torch=torch.__version__,
        numpy=np.__version__,
        python=platform.python_version(),
        machine=platform.machine(),
        end=END,
        longest=LONGEST,
        prompts=PROMPTS,
        cases=cases,
    )
    path = HERE / "transformers_generation.npz"
    np.savez_compressed(path, about=np.array(json.dumps(about)), **arrays)
    print(path.name, f"{path.stat().st_size / 1e6:.2f} MB,", len(cases), "cases")


if __name__ == "__main__":
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    with torch.no_grad():
        main()
