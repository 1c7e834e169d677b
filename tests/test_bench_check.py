"""What `make bench-check` makes of its counts: the comparison, the table, the exit status."""

import json

import pytest

from benchmarks import check
from benchmarks.verdicts import RENEW, compare, conclusion, table

pytestmark = pytest.mark.once

RECORDED = {"product": 1000, "softmax": 1000, "gone": 1000}


def words(now, *, recorded=RECORDED, allowed=0.02, less_is_better=True):
    """Return the word of each kernel."""
    return {v.name: v.word for v in compare(recorded, now, allowed, less_is_better=less_is_better)}


def test_more_instructions_are_slower_and_fewer_faster():
    assert words({"product": 1021, "softmax": 979, "gone": 1000}) == {
        "product": "SLOWER",
        "softmax": "faster",
        "gone": "same",
    }


@pytest.mark.parametrize("count", [980, 1000, 1020])
def test_within_the_tolerance_it_is_the_same(count):
    assert words({"product": count}, recorded={"product": 1000}) == {"product": "same"}


def test_a_smaller_share_of_the_peak_is_slower():
    recorded = {"product": 0.9, "attention": 0.7, "layer": 0.8}
    now = {"product": 0.8, "attention": 0.78, "layer": 0.75}
    assert words(now, recorded=recorded, allowed=0.1, less_is_better=False) == {
        "product": "SLOWER",
        "attention": "faster",
        "layer": "same",
    }


def test_kernels_that_come_and_go():
    assert words({"product": 1000, "new": 5, "softmax": 1000}) == {
        "product": "same",
        "softmax": "same",
        "gone": "GONE",
        "new": "new",
    }


def test_the_exit_status_and_what_to_do():
    good = compare(RECORDED, RECORDED, 0.02, less_is_better=True)
    assert conclusion(good) == ("No kernel is slower than recorded.", 0)

    text, status = conclusion(compare(RECORDED, RECORDED | {"softmax": 1100}, 0.02, less_is_better=True))
    assert status == 1
    assert "Slower than recorded, or gone: softmax." in text
    assert RENEW in text

    text, status = conclusion(compare(RECORDED, {"product": 1000, "softmax": 1}, 0.02, less_is_better=True))
    assert status == 1
    assert "gone: gone." in text
    assert "Faster than recorded, or new: softmax." in text

    text, status = conclusion(compare(RECORDED, RECORDED | {"x": 9}, 0.02, less_is_better=True))
    assert status == 0
    assert "or new: x." in text
    assert RENEW in text


def test_the_table_is_aligned_and_marks_what_changed():
    verdicts = compare(RECORDED, {"product": 1_100_000, "softmax": 1000, "y": 7}, 0.02, less_is_better=True)
    head, product, softmax, gone, new = table("instructions", verdicts, ",.0f").splitlines()
    assert head.split() == ["instructions", "recorded", "now", "change"]
    assert product.split() == ["product", "1,000", "1,100,000", "+109900.0%", "SLOWER"]
    assert softmax.split() == ["softmax", "1,000", "1,000", "+0.0%"]
    assert gone.split() == ["gone", "1,000", "GONE"]
    assert new.split() == ["y", "7", "new"]
    assert product.index("1,100,000") + len("1,100,000") == softmax.rindex("1,000") + len("1,000")


def test_a_file_of_callgrind_is_read():
    assert check.total("events: Ir\nfn=measured\n16 3\ntotals: 12345\n") == 12345
    for nothing in ("events: Ir\n", "totals: 0\n"):
        with pytest.raises(check.CannotTellError, match="counted nothing"):
            check.total(nothing)


def test_without_valgrind_it_says_where_to_get_it(monkeypatch, capsys):
    monkeypatch.setattr(check.platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(check.shutil, "which", lambda name: None)
    monkeypatch.setattr("sys.argv", ["check"])
    assert check.main() == 2
    assert "apt install valgrind" in capsys.readouterr().err


def test_another_processor_is_told_that_counts_need_avx2(monkeypatch, capsys):
    monkeypatch.setattr(check.platform, "machine", lambda: "aarch64")
    monkeypatch.setattr("sys.argv", ["check"])
    assert check.main() == 2
    assert "aarch64" in capsys.readouterr().err


def test_shares_are_taken_until_all_reach_their_bar(monkeypatch):
    answers = ["a\t0.5\nb\t0.9\n", "a\t0.8\nb\t0.7\n", "a\t0.1\nb\t0.1\n"]
    runs = []
    monkeypatch.setattr(check, "run", lambda command: runs.append(command) or answers[len(runs) - 1])
    assert check.share("kernels", {"a": 0.8, "b": 0.9, "gone": 1.0}) == {"a": 0.8, "b": 0.9}
    assert len(runs) == 2
    runs.clear()
    assert check.share("kernels", {"a": 0.95}) == {"a": 0.8, "b": 0.9}
    assert len(runs) == check.TRIES


def test_the_record_is_whole():
    record = check.Record(**json.loads(check.RECORD.read_text()))
    assert record.made_by == RENEW
    assert record.isa == check.COUNTED_ISA
    assert min(record.instructions.values()) > 1000
    assert set(record.shares) < set(record.instructions)
    assert all(0 < share < 1.05 for share in record.shares.values())
