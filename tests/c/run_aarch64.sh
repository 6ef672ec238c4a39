#!/bin/sh
# The NEON kernels on an emulated processor. Debian: gcc-aarch64-linux-gnu qemu-user-static.
set -eu
cd "$(dirname "$0")/../.."
build="${BUILD:-$(mktemp -d)}"
flags="-std=gnu11 -O2 -ffp-contract=off -fno-math-errno -fno-trapping-math -static -Icsrc"
aarch64-linux-gnu-gcc $flags tests/c/compare_sets.c csrc/kernels*.c csrc/quant.c csrc/base.c csrc/os.c \
    $(ls csrc/math64.c 2>/dev/null || true) -o "$build/compare_aarch64" -lm -lpthread
qemu-aarch64-static -cpu max "$build/compare_aarch64"
