#!/bin/bash
# Collects into .whl what a bare machine lacks and measure.sh can use, for CPython 3.12 on x86-64:
#
#     benchmarks/gpu/collect_wheels.sh
#
# torchao is for --quantize on a card, the others are for training. The whole stays far below 64 MiB.
set -eu
root="$(cd "$(dirname "$0")/../.." && pwd)"
python="${PYTHON:-python3}"
mkdir -p "$root/.whl"
"$python" -m pip download --quiet --no-deps --only-binary=:all: --python-version 3.12 --implementation cp \
    --platform manylinux_2_28_x86_64 --platform manylinux2014_x86_64 --dest "$root/.whl" \
    $(grep -E '^(torchao|accelerate|ffmpeg-python|future)==' "$root/constraints.txt")
du -sh "$root/.whl"
