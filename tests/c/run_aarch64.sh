#!/bin/sh
# Compares the NEON kernels on an emulated processor, and then the sets for a processor without dot
# products of bytes.
# Debian: gcc-aarch64-linux-gnu libc6-dev-arm64-cross qemu-user-static.
set -eu
cd "$(dirname "$0")/../.."
cc="${CC:-aarch64-linux-gnu-gcc}"
for tool in "$cc" qemu-aarch64-static; do
    command -v "$tool" >/dev/null || {
        echo "run_aarch64.sh: $tool is missing; Debian: gcc-aarch64-linux-gnu" \
            "libc6-dev-arm64-cross qemu-user-static" >&2
        exit 1
    }
done
build="${BUILD:-$(mktemp -d)}"
# -O1: at -O2 gcc 12 takes minutes for the NEON file
flags="-std=gnu11 -O1 -ffp-contract=off -fno-math-errno -fno-trapping-math -Icsrc"
ls csrc/base/*.c csrc/types/*.c csrc/kernels/*.c tests/c/compare_sets.c |
    xargs -P "$(nproc)" -I '{}' sh -c "$cc $flags -c {} -o $build/\$(basename {} .c).o"
$cc -static "$build"/*.o -o "$build/compare_aarch64" -lm -lpthread
qemu-aarch64-static -cpu max "$build/compare_aarch64" plain scalar neon
qemu-aarch64-static -cpu cortex-a53 "$build/compare_aarch64" plain scalar
