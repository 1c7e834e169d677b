"""One build of headwise in a process of its own, which runs what `benchmarks.account` asks it to.

Two builds cannot be imported into one process, and to compare them they must take turns. So each has a
process that waits for a line of JSON, computes, and answers with another line.
"""

import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, TypeAlias

import numpy as np

import headwise as hw
from benchmarks.row import numbers
from benchmarks.rows import MINILM, encoder_operations
from headwise import _core
from headwise._core import _PackedLinear, _peak_gflops
from headwise._fetch import fetched

MODELS = {"MiniLM": MINILM, "Encoder": {"layers": 6, "width": 512, "inner": 2048}}
ENCODER_HEADS = 8
SHAPES = ((1, 16), (1, 128), (32, 32), (32, 128), (8, 512))

Answer: TypeAlias = dict[str, Any]


@dataclass(frozen=True)
class Work:
    """A batch of full sequences, taken through a model."""

    model: str
    batch: int
    length: int

    @property
    def name(self) -> str:
        """What the account calls it."""
        return f"{self.model} {self.batch} x {self.length}"

    @property
    def layers(self) -> int:
        """Layers of the model."""
        return MODELS[self.model]["layers"]

    @property
    def tokens(self) -> int:
        """Rows of all sequences."""
        return self.batch * self.length

    @property
    def product_operations(self) -> float:
        """Operations of the products with weights."""
        return encoder_operations(self.tokens, 0, **MODELS[self.model])

    @property
    def attention_operations(self) -> float:
        """Operations of attention."""
        return encoder_operations(self.tokens, self.length, **MODELS[self.model]) - self.product_operations

    @property
    def products(self) -> list[tuple[int, int]]:
        """Inputs and outputs of a layer's products."""
        width, inner = MODELS[self.model]["width"], MODELS[self.model]["inner"]
        return [(width, 3 * width), (width, width), (width, inner), (inner, width)]


WORKS = [Work(model, *shape) for model in MODELS for shape in SHAPES]


@cache
def call_of(work: Work) -> Callable[[], object]:
    """Return what does the work once."""
    if work.model == "MiniLM":
        ids = np.random.default_rng(0).integers(1000, 20000, (work.batch, work.length))
        return partial(_minilm().forward, ids)
    return partial(_encoder(), numbers(work.batch, work.length, MODELS["Encoder"]["width"]))


@cache
def _minilm() -> hw.TextEncoder:
    folder = fetched("minilm")
    if folder is None:
        sys.exit("MiniLM is not here: run `headwise fetch minilm`")
    return hw.TextEncoder.from_pretrained(folder)


@cache
def _encoder() -> hw.Encoder:
    sizes = MODELS["Encoder"]
    return hw.Encoder(sizes["layers"], sizes["width"], ENCODER_HEADS, sizes["inner"], rng=0)


@cache
def product_alone(rows: int, inputs: int, outputs: int) -> Callable[[], object]:
    """Return one product, as layers do it."""
    packed = _PackedLinear(numbers(outputs, inputs) / np.float32(np.sqrt(inputs)), numbers(outputs))
    return partial(packed.multiply, numbers(rows, inputs))


def burst(call: Callable[[], object], seconds: float) -> Answer:
    """Call again and again for some time; return the mean time, and the account where this build has one."""
    call()  # wakes the workers, fills the caches
    account = vars(_core).get("_account", dict)
    account()
    count, start = 0, time.perf_counter()
    while count == 0 or time.perf_counter() - start < seconds:
        call()
        count += 1
    taken = time.perf_counter() - start
    return {"seconds": taken / count, "count": count, "account": account()}


def answer(ask: Answer) -> Answer:
    """Do what one line asks for: a burst of a work or of a product, and the peak loop before it."""
    hw.set_num_threads(ask["threads"])
    peak = _peak_gflops("float32", ask["threads"])
    call = call_of(Work(*ask["work"])) if "work" in ask else product_alone(*ask["product"])
    return {"peak": peak, **burst(call, ask["seconds"])}


def main() -> None:
    """Say what this build is, then answer line by line."""
    print(json.dumps({"accounts": "_account" in vars(_core)}), flush=True)
    for line in sys.stdin:
        print(json.dumps(answer(json.loads(line))), flush=True)


if __name__ == "__main__":
    main()
