#!/bin/sh
# Random plans for 25 seconds, or as many as are given, in the objects that `setup.py build_ext` has
# just compiled with TINYLLM_SANITIZE=address,undefined.
set -eu
cd "$(dirname "$0")/../.."
build="${BUILD:-$(mktemp -d)}"
objects=$(for folder in base types kernels model device forward; do
    ls build/temp.*/csrc/$folder/*.o
done) || {
    echo "run_fuzz.sh: nothing compiled; first: python setup.py build_ext --inplace" >&2
    exit 1
}
${CC:-gcc} -std=gnu11 -g -O1 -Wall -Wextra -Werror -fsanitize=address,undefined \
    -fno-sanitize-recover=undefined -DFUZZ_MAIN -Icsrc tests/fuzz/fuzz_plan.c $objects \
    -o "$build/fuzz_plan" -lm -lpthread
"$build/fuzz_plan" "${1:-25}" "${2:-1}"
