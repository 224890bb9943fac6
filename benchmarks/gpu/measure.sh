#!/bin/bash
# Everything that a card can tell about llava-mini, in one command of at most 8 minutes:
#
#     benchmarks/gpu/measure.sh [OUTPUT.jsonl] [--size full|small] [--device cuda] [--minutes 8] [--only PART ...]
#
# Prints one JSON line a figure as it is found, the most important first, and writes the same to OUTPUT. A part that
# fails is a line, too, and the next one begins. Needs torch, transformers, numpy, safetensors, tokenizers and Pillow;
# wheels that collect_wheels.sh put into .whl are used where they are there.
set -u
here="$(cd "$(dirname "$0")" && pwd)"
root="$(cd "$here/../.." && pwd)"
output="measured.jsonl"
if [ $# -gt 0 ] && [ "${1#--}" = "$1" ]; then output="$1"; shift; fi
python="${PYTHON:-python3}"
path="$root:$root/benchmarks:$root/tests:$here${PYTHONPATH:+:$PYTHONPATH}"
if compgen -G "$root/.whl/*.whl" > /dev/null; then
    site="$(mktemp -d)"
    trap 'rm -rf "$site"' EXIT
    "$python" -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --target "$site" "$root"/.whl/*.whl \
        && path="$path:$site"
fi
export PYTHONPATH="$path" PYTHONUNBUFFERED=1 TOKENIZERS_PARALLELISM=false HF_HUB_OFFLINE=1
"$python" "$here/measure.py" --output "$output" "$@"
