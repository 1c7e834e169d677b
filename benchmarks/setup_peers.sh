#!/usr/bin/env bash
# Set up what headwise is measured against: a virtual environment of its own with the packages of
# requirements/bench.txt, and MiniLM in the forms that they read. Run by `make bench-peers`, from anywhere:
#
#   benchmarks/setup_peers.sh [FOLDER] [PYTHON]      (default: target/bench-peers, python3)
#
# headwise must be importable (PYTHONPATH) and MiniLM fetched: `make bench-peers` sees to both. PyPI's torch brings the
# libraries of CUDA along, some gigabytes; PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu avoids them.
set -euo pipefail

cd "$(dirname "$0")/.."
folder=${1:-target/bench-peers}
python=${2:-python3}

if [ "$(realpath -m "$folder")" = "$(realpath -m .venv)" ]; then
  echo "$0: the peers need an environment of their own, not the project's .venv" >&2
  exit 1
fi

[ -x "$folder/bin/python" ] || "$python" -m venv "$folder"
"$folder/bin/python" -m pip install --quiet --disable-pip-version-check -r requirements/bench.txt
minilm=$("$folder/bin/python" -c 'from headwise._fetch import fetched; print(fetched("minilm") or "")')
if [ -z "$minilm" ]; then
  echo "$0: MiniLM is not here: run \`headwise fetch minilm\`" >&2
  exit 1
fi
TRANSFORMERS_VERBOSITY=error TQDM_DISABLE=1 "$folder/bin/python" -m benchmarks.convert "$minilm" "$folder/forms"
