"""The account of `make account`: its arithmetic, its table, and that the ordinary build reads no clock."""

from dataclasses import replace
from pathlib import Path

import pytest

import headwise
from benchmarks import account, account_child, report
from benchmarks.account_child import WORKS, Work
from benchmarks.account_table import ITEMS, Measured, Spent, legend, middle, table
from benchmarks.rows import MINILM, encoder_operations
from headwise import _core

pytestmark = pytest.mark.once

STAGES = {
    # thread-seconds, and how often the clock was read
    "product": (0.70, 10),
    "activation": (0.06, 20),
    "residual": (0.02, 20),
    "norm": (0.05, 4),
    "embedding": (0.015, 1),
    "pooling": (0.005, 1),
    "packing": (0.04, 8),
    "attention product": (0.30, 16),
    "softmax": (0.20, 8),
    "attention": (0.05, 4),
    "threads": (0.10, 4),
    "other": (0.03, 4),
}
MARK = 0.0005


def measured(**changes) -> Measured:
    """Return a call of one second on two threads, 5 ms of it outside the crate."""
    seconds, spans = zip(*STAGES.values(), strict=True)
    facts = {
        "name": "work",
        "threads": 2,
        "product_operations": 60e9,
        "attention_operations": 20e9,
        "peak": 200.0,
        "ordinary": 1.0,
        "names": tuple(STAGES),
        "accounted": Spent(1.025, 1.020, seconds, spans),
        "mark": MARK,
        "alone": 0.65,
    }
    return Measured(**(facts | changes))


def exact() -> Measured:
    """Return a call that is explained to the end: marks add what they cost, and nothing else differs."""
    marks = MARK * sum(spans for _, spans in STAGES.values())
    seconds, spans = zip(*STAGES.values(), strict=True)
    inside = 1.0 - 0.005 + marks / 2
    return measured(accounted=Spent(inside + 0.005, inside, seconds, spans))


class TestItems:
    def test_each_is_a_part_of_the_threads_time(self):
        items = measured().items()
        assert items["product"] == pytest.approx((0.65 - 60 / 100) / 2)
        assert items["memory"] == pytest.approx((0.70 - 10 * MARK - 0.65) / 2)
        assert items["attention"] == pytest.approx((0.30 - 16 * MARK + 0.05 - 4 * MARK - 20 / 100) / 2)
        assert items["softmax"] == pytest.approx((0.20 - 8 * MARK) / 2)
        assert items["embedding"] == pytest.approx((0.02 - 2 * MARK) / 2)
        assert items["boundary"] == pytest.approx(0.005)
        assert list(items) == list(ITEMS)

    def test_threads_is_all_that_no_task_has(self):
        tasks = sum(seconds for name, (seconds, _) in STAGES.items() if name != "threads")
        assert measured().items()["threads"] == pytest.approx((2 * 1.020 - tasks - 4 * MARK) / 2)

    def test_with_the_peak_they_are_the_whole(self):
        for row in (measured(), exact(), measured(ordinary=0.9, threads=1)):
            assert row.reached + sum(row.items().values()) == pytest.approx(1.0)

    def test_nothing_is_left_where_only_the_clock_was_added(self):
        assert exact().items()["unaccounted"] == pytest.approx(0.0, abs=1e-12)
        slower = replace(exact(), ordinary=0.8)
        assert slower.items()["unaccounted"] == pytest.approx(1.0 - 1.0 / 0.8)

    def test_rates(self):
        row = measured()
        assert row.rate == pytest.approx(80)
        assert row.reached == pytest.approx(0.4)
        assert row.clock == pytest.approx(100 * MARK / 2)


class TestBursts:
    def test_the_middle_leaves_a_quarter_out_at_both_ends(self):
        bursts = [Spent(s, 2 * s, (3 * s, s), (4.0, 5.0)) for s in (9.0, 2.0, 1.0, 4.0)]
        assert middle(bursts) == Spent(3.0, 6.0, (9.0, 3.0), (4.0, 5.0))
        assert middle(bursts[:1]) == bursts[0]

    def test_a_burst_becomes_one_call(self):
        burst = {
            "seconds": 0.5,
            "count": 4,
            "account": {
                "seconds": {"product": 2.0, "norm": 1.0},
                "spans": {"product": 8, "norm": 4},
                "calls": 1.6,
                "mark": 0.01,
            },
        }
        assert account.spent(burst) == Spent(0.5, 0.4, (0.5, 0.25), (2.0, 1.0))
        assert account.product_seconds(burst) == pytest.approx(0.5 - 2 * 0.01)

    def test_an_ordinary_build_has_a_time_and_no_account(self):
        taken = account_child.answer({"threads": 1, "seconds": 0.0, "product": [3, 8, 5]})
        assert taken["seconds"] > 0
        assert taken["peak"] > 0
        assert (taken["count"], taken["account"]) == (1, {})


class TestBuild:
    FOLDER = Path(headwise.__file__).parent.parent

    def test_a_process_answers_until_it_is_left(self):
        with account.Build(self.FOLDER, accounts=False) as build:
            for rows in (3, 5):
                taken = build.ask(1, 0.0, product=(rows, 8, 4))
                assert taken["seconds"] > 0
                assert taken["account"] == {}
        assert build._process.returncode == 0

    def test_the_wrong_build_is_refused(self):
        with pytest.raises(RuntimeError, match="expected a build with an account"):
            account.Build(self.FOLDER, accounts=True)


class TestWorks:
    def test_five_shapes_of_two_models(self):
        names = [work.name for work in WORKS]
        assert len(names) == len(set(names)) == 10
        assert names[3] == "MiniLM 32 x 128"

    @pytest.mark.parametrize("work", WORKS, ids=lambda work: work.name)
    def test_operations_are_those_of_the_products(self, work: Work):
        products = sum(2 * work.tokens * k * n for k, n in work.products)
        assert work.product_operations == work.layers * products
        sizes = account_child.MODELS[work.model]
        total = encoder_operations(work.tokens, work.length, **sizes)
        assert work.product_operations + work.attention_operations == total
        assert work.attention_operations == 4 * work.layers * work.tokens * work.length * sizes["width"]

    def test_minilm_is_that_of_the_other_tables(self):
        assert account_child.MODELS["MiniLM"] is MINILM


class TestPage:
    def test_a_row_of_percents(self):
        head, rule, row = table([measured()]).splitlines()
        titles = [title.strip() for title in head.strip("|").split("|")]
        cells = [cell.strip() for cell in row.strip("|").split("|")]
        assert titles == ["work", "GFLOP/s", "at peak", *ITEMS, "(clock)"]
        assert rule.count("---") == len(titles) == len(cells)
        assert cells[:4] == ["work", "80", "40.0", "2.5"]
        assert cells[-1] == "2.5"
        assert sum(map(float, cells[2:-1])) == pytest.approx(100, abs=1)

    def test_what_rounds_to_nothing_has_no_sign(self):
        row = measured(alone=0.70 - 10 * MARK + 1e-6)
        assert row.items()["memory"] < 0
        assert "-0.0" not in table([row])

    def test_a_block_names_who_wrote_it(self):
        page = report.replace_block("prose\n", "account", "one", "make account")
        assert "<!-- begin account: written by `make account` -->\n\none\n" in page
        assert report.replace_block(page, "account", "one", "make account") == page

    def test_the_section_explains_every_column(self):
        section = account.section({1: [measured(threads=1)], 2: [measured()]}, "make account")
        assert "### 1 thread, peak 200 GFLOP/s" in section
        assert "### 2 threads, peak 200 GFLOP/s" in section
        assert legend() in section
        assert all(f"- *{item}*: " in section for item in ITEMS)

    def test_the_command_has_no_places_of_files(self):
        argv = ["--write", "docs/page.md", "--turns", "3", "--accounted", "somewhere"]
        assert account.make_command(argv) == 'make account ACCOUNT_OPTIONS="--turns 3"'
        assert account.make_command(argv[:2]) == "make account"


def test_the_ordinary_build_reads_no_clock():
    assert not hasattr(_core, "_account")
