#!/bin/sh
# Compares the AVX2, AVX-512 and NEON kernels with every intrinsic translated to plain C by SIMDe
# (Debian: libsimde-dev), so that the result does not depend on the host's instruction sets. Needs a
# C compiler: CC or gcc.
set -eu
cd "$(dirname "$0")/../.."
cc="${CC:-gcc}"
echo '#include <simde/x86/avx512.h>' | $cc -E -x c - >/dev/null 2>&1 || {
    echo "run_simde.sh: $cc does not find simde/x86/avx512.h; Debian has it in libsimde-dev" >&2
    exit 1
}
build="${BUILD:-$(mktemp -d)}"
# TL_NO_INLINE: inlining everything would take many minutes. -march: only for fma and fmaf.
flags="-std=gnu11 -O1 -march=native -ffp-contract=off -fno-math-errno -fno-trapping-math -Wno-psabi"
flags="$flags -D_GNU_SOURCE -Icsrc -DTL_SIMDE -DTL_NO_INLINE -DTINYLLM_NO_ASM"
# Only the kernels: csrc/base uses intrinsics of the host.
simde="-DSIMDE_NO_NATIVE -DSIMDE_ENABLE_NATIVE_ALIASES -include tests/c/simde_missing.h"
compile() { # flags, files ...
    flags_here=$1
    shift
    printf '%s\n' "$@" |
        xargs -P "$(nproc)" -I '{}' sh -c "$cc $flags_here -c {} -o $build/\$(basename {} .c).o"
}
compile "$flags" csrc/base/*.c csrc/types/*.c tests/c/compare_sets.c
compile "$flags $simde" csrc/kernels/*.c
$cc "$build"/*.o -o "$build/compare_simde" -lm -lpthread
"$build/compare_simde" plain scalar avx2 avx512 avx512vnni avx512bf16 amx neon
