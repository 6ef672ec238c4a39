#!/bin/sh
# Compares the kernel sets that this host can run, as `setup.py build_ext` has compiled them.
set -eu
cd "$(dirname "$0")/../.."
build="${BUILD:-$(mktemp -d)}"
objects=$(ls build/temp.*/csrc/base/*.o build/temp.*/csrc/types/*.o build/temp.*/csrc/kernels/*.o) || {
    echo "run_native.sh: nothing compiled; first: python setup.py build_ext --inplace" >&2
    exit 1
}
${CC:-gcc} -std=gnu11 -O2 -ffp-contract=off -Wall -Wextra -Werror -Icsrc \
    tests/c/compare_sets.c $objects -o "$build/compare_native" -lm -lpthread
"$build/compare_native"
