#!/bin/sh
# AVX-512 and NEON kernels translated by SIMDe (Debian: libsimde-dev), on any x86-64 with AVX2.
set -eu
cd "$(dirname "$0")/../.."
build="${BUILD:-$(mktemp -d)}"
flags="-std=gnu11 -O2 -mavx2 -mfma -mf16c -ffp-contract=off -fno-math-errno -fno-trapping-math"
flags="$flags -D_GNU_SOURCE -Icsrc -DTL_SIMDE -DSIMDE_ENABLE_NATIVE_ALIASES -Wno-psabi"
flags="$flags -include tests/c/simde_missing.h"
${CC:-gcc} $flags tests/c/compare_sets.c csrc/kernels*.c csrc/quant.c csrc/base.c csrc/os.c \
    $(ls csrc/math64.c 2>/dev/null || true) -o "$build/compare_simde" -lm -lpthread
"$build/compare_simde"
