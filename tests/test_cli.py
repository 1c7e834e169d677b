"""The command ``headwise``: what each command prints and writes, exit codes, nothing left behind.

Most tests call ``main`` in this process; those of signals, pipes and imports start one.
"""

import io
import json
import os
import shlex
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
from minilm import minilm_folder

import headwise as hw
from headwise._cli import _progress, embed, main

pytestmark = pytest.mark.once

COMMAND = [sys.executable, "-m", "headwise"]
DOG = "a dog ate the food because it was hungry"
LINES = ["The cat is sleeping on the sofa.", "A kitten naps on the couch.", "", "The stock market fell."]


@pytest.fixture(scope="module")
def encoder():
    return hw.TextEncoder.from_pretrained(minilm_folder())


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Return an empty working folder with the lines as plain text and as JSON lines."""
    monkeypatch.chdir(tmp_path)
    Path("lines.txt").write_text("\n".join(LINES) + "\n", encoding="utf-8")
    records = [json.dumps({"id": at, "text": line}) for at, line in enumerate(LINES)]
    Path("lines.jsonl").write_text("\n".join(records), encoding="utf-8")
    return tmp_path


def run(capsys, *arguments):
    """Run a command that succeeds; return what it printed."""
    assert main(arguments) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    return captured.out


def explained(capsys, *arguments):
    """Run a command that fails with exit code 1; return its one line of explanation."""
    assert main(arguments) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("headwise: ")
    assert captured.err.count("\n") == 1
    return captured.err


def refused(capsys, *arguments):
    """Run a wrong call; return what it says."""
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    return capsys.readouterr().err


# ---- embed -------------------------------------------------------------------------------------------------


def test_embed_writes_a_row_for_each_line(folder, encoder, capsys):
    assert run(capsys, "embed", "lines.txt", "-o", "out.npy") == "out.npy: 4 texts, 384 dimensions\n"
    got = np.load("out.npy")
    assert got.dtype == np.float32
    np.testing.assert_array_equal(got, encoder.encode(LINES))


def test_embed_in_many_portions_and_from_several_files(folder, encoder, capsys):
    Path("more.txt").write_bytes(b"\xef\xbb\xbfA dog.\r\nno end of line")
    files = ["lines.txt", *["more.txt"] * 20]
    said = run(capsys, "embed", *files, "-o", "out.npy", "--batch-size", "1", "--threads", "1", "--json")
    assert json.loads(said) == {"output": "out.npy", "format": "npy", "texts": 44, "dimensions": 384}
    got = np.load("out.npy")
    np.testing.assert_array_equal(got[:6], encoder.encode([*LINES, "A dog.", "no end of line"]))
    np.testing.assert_array_equal(got[4:], np.tile(got[4:6], (20, 1)))


def test_embed_json_lines_keeps_the_fields_and_the_bits(folder, encoder, capsysbinary):
    assert main(["embed", "--field", "text", "lines.jsonl"]) == 0
    records = [json.loads(line) for line in capsysbinary.readouterr().out.splitlines()]
    assert [(r["id"], r["text"]) for r in records] == list(enumerate(LINES))
    got = np.array([r["embedding"] for r in records], dtype=np.float32)
    np.testing.assert_array_equal(got, encoder.encode(LINES))


def test_embed_reads_stdin_and_writes_stdout(folder, encoder, capsysbinary, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("naïve\n你好".encode())))
    assert main(["embed", "--format", "npy", "--normalize"]) == 0
    got = np.load(io.BytesIO(capsysbinary.readouterr().out))
    np.testing.assert_array_equal(got, encoder.encode(["naïve", "你好"], normalize_embeddings=True))


def test_embed_nothing(folder, capsys):
    Path("empty.txt").touch()
    run(capsys, "embed", "empty.txt", "-o", "out.npy")
    assert np.load("out.npy").shape == (0, 384)
    assert run(capsys, "embed", "empty.txt") == ""


def test_embed_parquet(folder, encoder, capsys):
    parquet = pytest.importorskip("pyarrow.parquet")
    run(capsys, "embed", "lines.txt", "-o", "out.parquet", "--batch-size", "1")
    table = parquet.read_table("out.parquet")
    assert table["text"].to_pylist() == LINES
    np.testing.assert_array_equal(np.stack(table["embedding"].to_numpy()), encoder.encode(LINES))


def test_embed_parquet_without_pyarrow(folder, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    assert "pip install pyarrow" in explained(capsys, "embed", "lines.txt", "-o", "out.parquet")
    assert not list(folder.glob("*out*"))


@pytest.mark.parametrize(
    ("content", "arguments", "match"),
    [
        (b"good\n\xff\xfe\n", [], "in.txt:2: expected UTF-8, byte 1"),
        (b'{"t": "a"}\nnot json\n', ["--field", "t"], "in.txt:2: expected a JSON object, got 'not json'"),
        (b'{"t": "a"}\n{"t": 1}\n', ["--field", "t"], "in.txt:2: expected a JSON object with a text"),
        (b'["t"]\n', ["--field", "t"], "with a text in field 't'"),
        (b'{"t": "\\ud800"}\n', ["--field", "t"], "in.txt:1: expected UTF-8"),
        (b"[" * 100_000, ["--field", "t"], "in.txt:1: expected a JSON object"),
    ],
)
def test_a_bad_line_is_named_and_no_file_is_left(folder, capsys, content, arguments, match):
    Path("in.txt").write_bytes(content)
    Path("out.npy").write_text("what was there before")
    before = sorted(folder.iterdir())
    said = explained(capsys, "embed", "in.txt", "-o", "out.npy", "--batch-size", "1", *arguments)
    assert match in said
    assert sorted(folder.iterdir()) == before
    assert Path("out.npy").read_text() == "what was there before"


def test_links_and_devices_are_written_through(folder, capsys):
    Path("real.npy").touch()
    Path("link.npy").symlink_to("real.npy")
    run(capsys, "embed", "lines.txt", "-o", "link.npy")
    assert Path("link.npy").is_symlink()
    assert np.load("real.npy").shape == (4, 384)
    Path("null.npy").symlink_to(os.devnull)
    run(capsys, "embed", "lines.txt", "-o", "null.npy")
    assert not Path(os.devnull).is_file()


def test_places_that_cannot_be_written(folder, capsys):
    assert "nodir does not exist" in explained(capsys, "embed", "lines.txt", "-o", "nodir/out.npy")
    Path("d.npy").mkdir()
    assert "d.npy: expected a file" in explained(capsys, "embed", "lines.txt", "-o", "d.npy")
    assert "nofile: No such file" in explained(capsys, "embed", "nofile", "-o", "out.npy")


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ([], "COMMAND"),
        (["embed", "lines.txt", "-o", "out.xyz"], ".npy, .jsonl"),
        (["embed", "lines.jsonl"], "--field"),
        (["embed", "lines.txt", "-o", "./lines.txt", "--format", "npy"], "would be replaced"),
        (["embed", "-", "-"], "stdin"),
        (["embed", "lines.txt", "--json"], "--json"),
        (["embed", "lines.txt", "--threads", "0"], "at least 1, got '0'"),
        (["embed", "lines.txt", "--batch-size", "x"], "at least 1, got 'x'"),
        (["similar"], "query"),
        (["attend", DOG, "--itself"], "--word"),
        (["fetch", "gpt-9"], "minilm"),
        (["info", "--jso"], "--jso"),
    ],
)
def test_wrong_calls(folder, capsys, arguments, match):
    assert match in refused(capsys, *arguments)


# ---- similar, attend, info ---------------------------------------------------------------------------------


def test_similar_ranks_by_cosine(folder, encoder, capsys):
    got = [json.loads(line) for line in run(capsys, "similar", "kittens", "lines.txt", "--json").splitlines()]
    texts = [line for line in LINES if line]
    cosines = encoder.encode(texts, normalize_embeddings=True) @ encoder.encode(
        "kittens", normalize_embeddings=True
    )
    order = np.argsort(-cosines)
    assert [found["text"] for found in got] == [texts[at] for at in order]
    np.testing.assert_allclose([found["score"] for found in got], cosines[order], atol=1e-6)
    assert [LINES[found["line"] - 1] for found in got] == [found["text"] for found in got]
    assert {found["file"] for found in got} == {"lines.txt"}


def test_similar_keeps_k_and_the_earlier_of_equals(folder, capsys):
    Path("equal.txt").write_text("b\na\nb\na\nb\n")
    said = run(capsys, "similar", "a", "equal.txt", "-k", "3", "--batch-size", "1").splitlines()
    assert [line.split()[1:] for line in said] == [
        ["equal.txt:2", "a"], ["equal.txt:4", "a"], ["equal.txt:1", "b"],
    ]  # fmt: skip
    assert said[0].split()[0] == "1.0000"
    assert run(capsys, "similar", "kittens", "lines.jsonl", "--field", "text", "-k", "1").endswith("couch.\n")


def test_attend_prints_the_links_of_a_word(encoder, capsys):
    maps = encoder.attentions(DOG)
    said = run(capsys, "attend", DOG, "--word", "it")
    assert said == f"{maps.links('it')}\n"
    assert said.splitlines()[-1].split()[-2:] == ["dog", "0.60"]
    assert run(capsys, "attend", DOG) == f"{maps!r}\n"
    told = json.loads(run(capsys, "attend", DOG, "--word", "it", "--json"))
    assert (told["word"], told["position"], len(told["links"])) == ("it", 7, 72)
    last = told["links"][-1]
    assert (last["layer"], last["head"], last["word"], round(last["weight"], 2)) == (5, 11, "dog", 0.6)


def test_attend_options(encoder, capsys):
    maps = encoder.attentions("the dog saw the cat", "it ran")
    asked = ["attend", "the dog saw the cat", "--pair", "it ran", "--word", "the"]
    want = maps.links("the", occurrence=1, special=True, itself=True)
    assert run(capsys, *asked, "--occurrence", "1", "--special", "--itself") == f"{want}\n"
    everything = json.loads(run(capsys, *asked[:-2], "--json"))
    assert everything["words"] == list(maps.words)
    np.testing.assert_allclose(everything["weights"], maps.to_words(), atol=1e-6)
    assert "--occurrence takes one of 0 (word 1), 1 (word 4)" in explained(capsys, *asked)
    assert "got 'bird'" in explained(capsys, "attend", DOG, "--word", "bird")
    assert "expected UTF-8" in explained(capsys, "attend", "\udcff")


def test_info(capsys):
    facts = json.loads(run(capsys, "info", "--json"))
    assert facts["headwise"] == hw.__version__
    assert facts["isa"] == hw.isa()
    assert facts["threads"] == hw.get_num_threads()
    assert facts["fetched_models"] == ["minilm"]
    assert f"isa             {hw.isa()}\n" in run(capsys, "info")
    model = json.loads(run(capsys, "info", "--model", str(minilm_folder()), "--json"))
    assert model["num_hidden_layers"] == 6
    assert (model["embedding_dimension"], model["max_seq_length"]) == (384, 256)


def test_a_model_that_was_not_fetched(folder, capsys, monkeypatch):
    monkeypatch.setenv("HEADWISE_CACHE", str(folder))
    for command in (["embed", "lines.txt"], ["similar", "x", "lines.txt"], ["attend", DOG]):
        assert "run: headwise fetch minilm" in explained(capsys, *command)
    (folder / "config.json").write_text("{}")
    explained(capsys, "info", "--model", str(folder))
    assert json.loads(run(capsys, "info", "--json"))["fetched_models"] == []


# ---- progress ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tqdm", [True, False])
def test_progress_is_shown_on_a_terminal_only(folder, capsys, monkeypatch, tqdm):
    if tqdm:
        pytest.importorskip("tqdm")
    else:
        monkeypatch.setitem(sys.modules, "tqdm", None)
    monkeypatch.setattr(_progress, "_SECONDS", 0.0)
    run(capsys, "embed", "lines.txt", "-o", "out.npy")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    assert main(["embed", "lines.txt", "-o", "out.npy"]) == 0
    said = capsys.readouterr().err
    assert ("4 of 4 texts" in said) != tqdm
    assert "\r" in said


def test_lines_are_counted_as_they_are_read(folder, monkeypatch):
    assert _progress.count_lines(["lines.txt"]) is None
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    assert _progress.count_lines(["lines.txt", "lines.jsonl"]) == 8
    assert _progress.count_lines(["lines.txt", "-"]) is None


# ---- processes ---------------------------------------------------------------------------------------------


def test_help_and_version_do_not_load_numpy():
    code = "import sys, atexit; from headwise._cli import main\n"
    code += "atexit.register(lambda: print('numpy' in sys.modules)); main(sys.argv[1:])"
    for argument in ("--help", "--version"):
        shown = subprocess.run(
            [sys.executable, "-c", code, argument], capture_output=True, text=True, check=True
        ).stdout.splitlines()
        assert shown[-1] == "False"
        assert len(shown) > 1


def test_a_reader_that_goes_away(folder):
    Path("many.txt").write_text("a dog\n" * 40)
    process = subprocess.Popen(
        [*COMMAND, "embed", "many.txt", "--batch-size", "1"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout.readline().startswith(b'{"text": "a dog", "embedding": [')
    process.stdout.close()
    assert process.stderr.read() == b""
    process.stderr.close()
    assert process.wait() == 141


@pytest.mark.parametrize(
    ("number", "code", "said"),
    [(signal.SIGINT, 130, "headwise: interrupted\n"), (signal.SIGTERM, 143, ""), (signal.SIGHUP, 129, "")],
)
def test_signals_end_it_in_order(folder, number, code, said):
    def with_default_signals():
        # A test run in the background has some of these ignored, and a child inherits that.
        for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(each, signal.SIG_DFL)

    process = subprocess.Popen(
        [*COMMAND, "embed", "-", "-o", "out.npy", "--batch-size", "1"],
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=with_default_signals,
    )
    process.stdin.write("a dog\n" * 40)
    process.stdin.flush()
    deadline = time.monotonic() + 60
    while not list(folder.glob(".out.npy.*.partial")) and time.monotonic() < deadline:
        assert process.poll() is None
        time.sleep(0.01)
    os.kill(process.pid, number)
    _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (code, said)
    assert sorted(path.name for path in folder.iterdir()) == ["lines.jsonl", "lines.txt"]


def test_warnings_are_one_line_each(folder, capsys, monkeypatch):
    class Warns:
        def get_embedding_dimension(self):
            return 2

        def encode(self, texts, **_):
            warnings.warn(f"{len(texts)} texts were cut", stacklevel=2)
            return np.zeros((len(texts), 2), dtype=np.float32)

    monkeypatch.setattr(embed, "load", lambda _: Warns())
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        assert main(["embed", "lines.txt", "-o", "out.npy"]) == 0
    assert capsys.readouterr().err == "headwise: warning: 4 texts were cut\n"


def test_streams_that_are_closed_or_full(folder):
    def shell(line):
        return subprocess.run(["sh", "-c", f"{shlex.join(COMMAND)} {line}"], capture_output=True, text=True)

    assert (shell("embed lines.txt -o out.npy >&- 2>&-").returncode, np.load("out.npy").shape) == (
        0,
        (4, 384),
    )
    closed = shell("embed <&-")
    assert (closed.returncode, closed.stderr) == (1, "headwise: stdin is closed; name a file\n")
    full = shell("info --json >/dev/full")
    assert (full.returncode, full.stderr) == (1, "headwise: No space left on device\n")


def test_output_that_the_terminal_cannot_show():
    shown = subprocess.run(
        [*COMMAND, "attend", "日本 語"], capture_output=True, env={**os.environ, "PYTHONIOENCODING": "ascii"}
    )
    assert (shown.returncode, shown.stderr) == (0, b"")
    assert rb"\u65e5" in shown.stdout
