"""What `make bench` does apart from measuring: medians, checks, shares, tables, the page, the chart."""

import mmap
import os
import threading
import time
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest

import headwise as hw
from benchmarks import array_peers, bench, callers, chart, cpu, fresh, measure, model_peers, peers, report
from benchmarks.results import Result, contestants, load, save
from benchmarks.row import Row
from benchmarks.rows import GROUPS, MINILM, encoder_operations

pytestmark = pytest.mark.once


def result(name="work", **changes) -> Result:
    facts = {
        "operations": 2e9,
        "peak": 100.0,
        "seconds": {"headwise": 0.025, "torch": 0.05, "numpy": 0.04},
    }
    return Result(name=name, **(facts | changes))


class TestResult:
    def test_rates_share_and_ratio(self):
        row = result()
        assert row.rate("headwise") == pytest.approx(80)
        assert row.limit == pytest.approx(100)
        assert row.share("headwise") == pytest.approx(0.8)
        assert row.best_peer == "numpy"
        assert row.ratio == pytest.approx(1.6)

    def test_reading_is_the_limit_where_it_takes_longer(self):
        # 0.02 s of arithmetic; reading 1 GB takes 0.1 s.
        assert result(bytes_read=1e9, bandwidth=10.0).limit == pytest.approx(20)
        assert result(bytes_read=1e8, bandwidth=10.0).limit == pytest.approx(100)

    def test_items_have_a_rate_and_a_limit_of_their_own(self):
        row = result(items=1000.0, unit="texts/s")
        assert row.rate("headwise") == pytest.approx(40_000)
        assert row.limit == pytest.approx(50_000)
        assert row.share("headwise") == pytest.approx(0.8)

    def test_without_peers_there_is_no_ratio(self):
        row = result(seconds={"headwise": 1.0})
        assert row.best_peer is None
        assert row.ratio is None

    def test_headwise_must_be_there(self):
        with pytest.raises(ValueError, match="headwise was not measured"):
            result(seconds={"torch": 1.0})

    def test_json_there_and_back(self, tmp_path: Path):
        rows = [result(), result("other", items=3.0, unit="texts/s", bytes_read=8.0, bandwidth=1.5)]
        save(rows, tmp_path / "new" / "results.json")
        assert load(tmp_path / "new" / "results.json") == rows


class TestMeasure:
    def test_equal_results_pass_up_to_rounding(self):
        ours = np.ones((2, 3), np.float32)
        measure.check_equal("row", "torch", ours, ours + np.float32(5e-5))
        measure.check_equal("row", "torch", ours[:0], ours[:0])

    @pytest.mark.parametrize(
        ("theirs", "message"),
        [
            (np.full((2, 3), 1.001), r"row: torch differs from headwise by 1\.0e-03, more than 1e-04"),
            (np.full((2, 3), np.nan), "row: torch differs from headwise by nan"),
            (np.ones((3, 2)), r"row: headwise gives shape \(2, 3\), torch \(3, 2\)"),
        ],
    )
    def test_unequal_results_are_an_error(self, theirs, message):
        with pytest.raises(measure.UnequalError, match=message):
            measure.check_equal("row", "torch", np.ones((2, 3)), theirs)

    def test_a_burst_leaves_out_the_first_call(self):
        calls = []
        times = measure.burst(lambda: calls.append(0), 0.01)
        assert len(times) == len(calls) - 1 > 0

    def test_a_burst_of_one_long_call_counts_it(self):
        (taken,) = measure.burst(lambda: time.sleep(0.002), 0.0)
        assert taken >= 0.002

    def test_a_row_is_measured_by_medians_in_turns(self, monkeypatch):
        peaks, reads = iter([90.0, 120.0, 100.0]), iter([9.0, 11.0, 10.0])
        bursts = {"headwise": iter([[1.0], [9.0, 2.0], [2.0]]), "torch": iter([[4.0], [4.0], [5.0]])}
        order = []

        def burst(call, seconds):
            order.append(call.__name__)
            return next(bursts[call.__name__])

        def headwise():
            return np.zeros(3)

        def torch():
            return np.zeros(3)

        monkeypatch.setattr(measure, "_peak_gflops", lambda dtype, threads: next(peaks))
        monkeypatch.setattr(measure, "bandwidth", lambda threads: next(reads))
        monkeypatch.setattr(measure, "burst", burst)
        row = Row("row", 1e9, {"headwise": headwise, "torch": torch}, bytes_read=4.0)
        measured = measure.measure(row, measure.Plan(threads=1, seconds=0.0, turns=3))
        assert order == ["headwise", "torch"] * 3
        assert measured.seconds == {"headwise": 2.0, "torch": 4.0}
        assert (measured.peak, measured.bandwidth, measured.bytes_read) == (100.0, 10.0, 4.0)

    def test_an_unequal_peer_is_not_timed(self):
        row = Row("row", 1e9, {"headwise": lambda: np.zeros(3), "torch": lambda: np.ones(3)})
        with pytest.raises(measure.UnequalError, match="torch differs"):
            measure.measure(row, measure.Plan())

    def test_bandwidth_reads_with_every_thread(self, monkeypatch):
        monkeypatch.setattr(measure, "_long_array", lambda: np.ones(1 << 20, np.float32))
        assert measure.bandwidth(1) > 0
        assert measure.bandwidth(2) > 0


class TestReport:
    def test_columns_are_the_peers_in_the_order_of_appearance(self):
        rows = [result(seconds={"headwise": 1.0, peer: 2.0}) for peer in ("torch", "numpy")]
        assert contestants(rows) == ["headwise", "torch", "numpy"]
        assert report.header(contestants(rows)[1:])[-3:] == ["torch", "numpy", "ratio to the best"]

    def test_a_row_of_cells(self):
        assert report.cells(result(), ["torch", "openvino", "numpy"]) == [
            "work", "100", "80.0", "80%", "40.0", "", "50.0", "1.60",
        ]  # fmt: skip

    def test_text_lines_are_aligned(self):
        lines = report.text_table([result(), result("a much longer name")]).splitlines()
        assert len(lines) == 3
        assert len({len(line) for line in lines}) == 1
        assert lines[1].split()[0] == "work"

    def test_markdown_marks_the_fastest(self):
        slower = result("slower", seconds={"headwise": 0.05, "torch": 0.04})
        head, rule, first, second = report.markdown_table([result(), slower]).splitlines()
        assert head == "| work | limit | headwise | % of limit | torch | numpy | ratio to the best |"
        assert rule == "| --- | ---: | ---: | ---: | ---: | ---: | ---: |"
        assert first == "| work | 100 | **80.0** | 80% | 40.0 | 50.0 | 1.60 |"
        assert second == "| slower | 100 | 40.0 | 40% | **50.0** |  | 0.80 |"

    def test_a_block_is_replaced_and_the_rest_kept(self):
        page = report.replace_block("# Title\n\nprose\n", "speed-1", "old table")
        assert page.startswith("# Title\n\nprose\n\n<!-- begin speed-1")
        page = report.replace_block(page + "\nmore prose\n", "speed-1", r"new \1 table")
        assert "old table" not in page
        assert r"new \1 table" in page
        assert page.endswith("<!-- end speed-1 -->\n\nmore prose\n")
        assert page == report.replace_block(page, "speed-1", r"new \1 table")

    def test_blocks_of_other_names_are_left_alone(self):
        page = report.replace_block("prose\n", "speed-1", "one")
        page = report.replace_block(page, "speed-12", "twelve")
        page = report.replace_block(page, "speed-1", "first")
        assert "\ntwelve\n" in page
        assert "\nfirst\n" in page
        assert "\none\n" not in page

    def test_a_block_that_stands_twice_is_an_error(self):
        page = report.replace_block("prose\n", "speed-1", "one")
        with pytest.raises(ValueError, match="2 blocks named 'speed-1'"):
            report.replace_block(page + page, "speed-1", "two")

    def test_a_section_has_facts_chart_and_table(self):
        facts = {"CPU": "some", "threads": "2"}
        section = report.speed_section([result()], facts, "chart.svg")
        assert section.startswith("## Speed, 2 threads\n\n- CPU: some\n- threads: 2\n\n![")
        assert "](chart.svg)" in section
        assert section.endswith(report.markdown_table([result()]))

    def test_a_limit_that_somebody_passes_is_named(self):
        assert report.disturbed([result()]) == ""
        warning = report.disturbed([result(), result("fast", peak=70.0)])
        assert warning == "The machine was busy: somebody is faster than the measured limit in fast."

    def test_progress_is_one_line(self):
        line = report.progress(result())
        assert line == "work: headwise 80.0, torch 40.0, numpy 50.0 GFLOP/s; 80% of 100"


class TestChart:
    NAMESPACE = "{http://www.w3.org/2000/svg}"

    def marks(self, drawing: str) -> list[ET.Element]:
        return [e for e in ET.fromstring(drawing).iter(f"{self.NAMESPACE}path") if e.get("class") == "mark"]

    def test_one_mark_for_each_contestant_and_one_in_the_legend(self):
        rows = [result(), result("<other> & more", seconds={"headwise": 0.1, "torch": 0.2})]
        marks = self.marks(chart.svg(rows, 1))
        assert len(marks) == 3 + 3 + 2
        tips = [tip.text for mark in marks for tip in mark]
        assert "<other> & more: torch 10.0 GFLOP/s, 10% of the limit" in tips

    def test_headwise_is_drawn_last_so_that_nothing_covers_it(self):
        tips = [tip.text or "" for mark in self.marks(chart.svg([result()], 1)) for tip in mark]
        assert "headwise" in tips[-1]

    def test_everybody_has_a_shape_of_their_own(self):
        many = {"headwise": 1.0} | {f"peer {i}": 2.0 for i in range(6)}
        marks = self.marks(chart.svg([result(seconds=many)], 1))
        assert len({mark.get("d") for mark in marks}) == 7

    def test_positions_lie_within_the_axes(self):
        assert chart.position(0) == chart.LABELS
        assert chart.position(0.5) < chart.position(1) < chart.position(1.7) == chart.WIDTH - chart.RIGHT

    def test_light_and_dark(self):
        assert "prefers-color-scheme: dark" in chart.svg([result()], 2)


class TestPeers:
    def test_threads_are_told_to_libraries(self, monkeypatch):
        for variable in peers.THREAD_VARIABLES:
            monkeypatch.setenv(variable, "7")
        peers.hold_threads(2)
        assert [os.environ[variable] for variable in peers.THREAD_VARIABLES] == ["2"] * 4

    def test_who_has_no_form_is_named(self, tmp_path: Path):
        (tmp_path / "fused.onnx").touch()
        assert peers.without_form(["numpy", "onnxruntime", "openvino"], tmp_path) == ["openvino"]

    def test_numpy_is_a_peer_of_linear_and_of_decoding(self):
        rng = np.random.default_rng(0)
        setup = peers.Setup(1, Path(), Path(), frozenset({"numpy"}))
        x, weight, bias = (rng.standard_normal(s, np.float32) for s in [(5, 8), (3, 8), (3,)])
        calls = array_peers.linear(setup, x, weight, bias)
        measure.check_equal("linear", "numpy", hw.linear(x, weight, bias), np.asarray(calls["numpy"]()))

        query = rng.standard_normal((1, 2, 1, 16), np.float32)
        key, value = rng.standard_normal((2, 1, 2, 40, 16), np.float32)
        calls = array_peers.attention(setup, query, key, value, causal=False)
        ours = hw.scaled_dot_product_attention(query, key, value)
        measure.check_equal("decode", "numpy", ours, np.asarray(calls["numpy"]()))
        assert array_peers.attention(setup, key, key, value, causal=False) == {}

    def test_sorted_batches_come_back_in_order(self):
        class Words:
            """A tokenizer that numbers words by their length."""

            def encode_batch(self, texts):
                return [type("Encoding", (), {"ids": [len(w) for w in text.split()]}) for text in texts]

        batches = []

        def forward(ids, mask):
            batches.append(ids.shape)
            hidden = np.stack([ids, np.ones_like(ids)], axis=-1).astype(np.float32)
            hidden[mask == 0] = 99  # padding must not count
            return hidden

        texts = ["a", "bb bb bb", "ccc c", "dd", "e e e e"]
        embeddings = model_peers.embed_sorted(forward, Words(), texts, batch=2)
        means = np.array([[1, 1], [2, 1], [2, 1], [2, 1], [1, 1]], np.float64)
        np.testing.assert_allclose(
            embeddings, means / np.linalg.norm(means, axis=1, keepdims=True), rtol=1e-6
        )
        assert batches == [(2, 4), (2, 2), (1, 1)]


class TestWhole:
    def test_operations_of_minilm(self):
        # 12 * D^2 multiply-adds a token and layer in the projections (F = 4 D), 2 * L * D in attention.
        assert encoder_operations(1, 0, **MINILM) == 6 * 2 * 12 * 384**2
        assert encoder_operations(3, 10, **MINILM) == 3 * 6 * 2 * (12 * 384**2 + 2 * 10 * 384)

    def test_every_group_of_rows_can_be_asked_for(self):
        assert set(bench.GROUPS) == {*GROUPS, "avx2"}

    def test_the_command_names_no_places(self):
        given = ["--forms", "x/forms", "--write", "docs/performance.md", "--json", "/tmp/x.json"]
        assert bench.make_command(given) == "make bench"
        assert bench.make_command([*given, "--threads", "2"]) == 'make bench BENCH_OPTIONS="--threads 2"'

    def test_the_cpu_has_a_name(self):
        assert cpu.cpu_name().strip()

    def test_throughput_of_callers(self):
        # One caller and four make sixteen calls in each of three turns; another sixteen start the threads.
        threads: list[int] = []
        ratio = callers.throughput_ratio(
            lambda: threads.append(threading.get_ident()), callers=4, calls=16, turns=3
        )
        assert ratio > 0
        assert len(threads) == 16 + 3 * (16 + 16)
        assert threads.count(threading.get_ident()) == 3 * 16

    def test_a_fresh_process_embeds(self, monkeypatch):
        def embed(minilm, forms):
            # A model of 64 MB in pages of its own: the allocator's may have been there before.
            model = np.frombuffer(mmap.mmap(-1, 1 << 26), np.float32)
            model.fill(1)
            return model, [[1.0, 2.0]]

        monkeypatch.setitem(fresh.CONTESTANTS, "headwise", embed)
        done = fresh.here("headwise", Path(), Path())
        assert done["embedding"] == [1.0, 2.0]
        assert done["seconds"] >= 0
        assert done["bytes"] > 60 * fresh.MEGABYTE
