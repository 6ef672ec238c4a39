/*
 * scalar.h - the reference: sixteen lanes in plain C. There are no integer vectors, because
 * gemm_scalar_template.h uses plain integers.
 */
#ifndef TL_SIMD_SCALAR_H
#define TL_SIMD_SCALAR_H

#include "kernels/simd/simd.h"

#define LONG_INLINE static // lanes are loops, and inlining them all takes the compiler a minute
#define ATTN_QUERIES 2
#define ATTN_KEYS 1
#define FLOAT_TOKENS 6
#define PREFETCH_BYTES 1024
#define SCALED_WORDS 0

/* Four lanes, which gcc and clang take for one value: sixteen values each cost them seconds. For
   another compiler it is one lane. */
#ifdef __GNUC__
typedef float four __attribute__((vector_size(16)));
#else
typedef float four;
#endif
#define V16_PARTS (16 * sizeof(float) / sizeof(four))

typedef union {
    four part[V16_PARTS];
    float v[16];
} v16;

#define V16_EACH_PART(expression)                                                                  \
    v16 r;                                                                                         \
    for (size_t i = 0; i < V16_PARTS; i++) r.part[i] = (expression);                               \
    return r
#define V16_EACH(expression)                                                                       \
    v16 r;                                                                                         \
    for (int i = 0; i < 16; i++) r.v[i] = (expression);                                            \
    return r

TL_INLINE v16 v16_add(v16 x, v16 y) {
    V16_EACH_PART(x.part[i] + y.part[i]);
}
TL_INLINE v16 v16_sub(v16 x, v16 y) {
    V16_EACH_PART(x.part[i] - y.part[i]);
}
TL_INLINE v16 v16_mul(v16 x, v16 y) {
    V16_EACH_PART(x.part[i] * y.part[i]);
}
TL_INLINE v16 v16_div(v16 x, v16 y) {
    V16_EACH_PART(x.part[i] / y.part[i]);
}
TL_INLINE v16 v16_max(v16 x, v16 y) {
    V16_EACH(x.v[i] > y.v[i] ? x.v[i] : y.v[i]);
}
TL_INLINE v16 v16_load(const float *p) {
    V16_EACH(p[i]);
}
TL_INLINE void v16_store(float *p, v16 x) {
    memcpy(p, x.v, sizeof(x.v));
}
V16_PART_BY_COPY
TL_INLINE v16 v16_set1(float x) {
    V16_EACH(x);
}
TL_INLINE v16 v16_fma(v16 x, v16 y, v16 z) {
    V16_EACH(fmaf(x.v[i], y.v[i], z.v[i]));
}
/* x < limit ? then : otherwise (otherwise for NaN) */
TL_INLINE v16 v16_if_less(v16 x, v16 limit, v16 then, v16 otherwise) {
    V16_EACH(x.v[i] < limit.v[i] ? then.v[i] : otherwise.v[i]);
}
/* 2^n as float32, where x = n + 1.5 * 2^23 and -126 <= n <= 127 */
TL_INLINE v16 v16_pow2(v16 x) {
    v16 r;
    for (int i = 0; i < 16; i++) {
        uint32_t bits;
        memcpy(&bits, &x.v[i], 4);
        bits = (bits << 23) + 0x3f800000u;
        memcpy(&r.v[i], &bits, 4);
    }
    return r;
}

/* sixteen float64 lanes, for sums only */
typedef struct {
    double v[16];
} d16;
TL_INLINE d16 d16_zero(void) {
    return (d16){{0}};
}
TL_INLINE d16 d16_add(d16 sum, v16 x) {
    for (int i = 0; i < 16; i++) sum.v[i] += (double)x.v[i];
    return sum;
}
TL_INLINE void d16_store(double *p, d16 x) {
    memcpy(p, x.v, sizeof(x.v));
}

TL_INLINE v16 v16_load_f32(const void *p) {
    v16 r;
    memcpy(r.v, p, sizeof(r.v));
    return r;
}
TL_INLINE v16 v16_load_f16(const void *p) {
    const char *q = p;
    v16 r;
    for (int i = 0; i < 16; i++) {
        uint16_t h;
        uint32_t bits;
        memcpy(&h, q + 2 * i, 2);
        bits = (h & 0x7fffu) << 13;
        memcpy(&r.v[i], &bits, 4);
        r.v[i] *= 0x1p112f; // exact, also for subnormal numbers
        memcpy(&bits, &r.v[i], 4);
        bits |= (h & 0x8000u) << 16 | ((h & 0x7c00u) == 0x7c00u ? 0x7f800000u : 0u);
        memcpy(&r.v[i], &bits, 4);
    }
    return r;
}
TL_INLINE v16 v16_load_i8(const void *p) {
    const int8_t *q = p;
    V16_EACH((float)q[i]);
}
TL_INLINE v16 v16_load_bf16(const void *p) {
    const char *q = p;
    v16 r;
    for (int i = 0; i < 16; i++) {
        uint16_t h;
        uint32_t bits;
        memcpy(&h, q + 2 * i, 2);
        bits = (uint32_t)h << 16;
        memcpy(&r.v[i], &bits, 4);
    }
    return r;
}

#endif
