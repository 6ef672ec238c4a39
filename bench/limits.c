/*
 * limits.c - loops that run at the limits of the machine, for bench/kernels.py, which compiles them
 * with cc -O2 -march=native -shared -fPIC.
 */
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <time.h>

typedef float vec_f32 __attribute__((vector_size(32)));
typedef int vec_i32 __attribute__((vector_size(32)));

/* Dependent additions: one cycle each. */
void limit_clock(size_t n) {
#if defined(__x86_64__) || defined(__aarch64__)
    size_t x = 1;
    for (size_t i = 0; i < n; i += 8) {
#define ADD __asm__ volatile("add %0, %0, #1" : "+r"(x));
#if defined(__x86_64__)
#undef ADD
#define ADD __asm__ volatile("add $1, %0" : "+r"(x));
#endif
        ADD ADD ADD ADD ADD ADD ADD ADD
    }
#else
    (void)n;
#endif
}

/* Reads memory; it returns the sum so that the compiler keeps the reads. */
int64_t limit_read(const char *p, size_t bytes) {
    vec_i32 sum[8];
    int64_t total = 0;
    memset(sum, 0, sizeof(sum));
    for (size_t i = 0; i + sizeof(sum) <= bytes; i += sizeof(sum)) {
        vec_i32 x[8];
        memcpy(x, p + i, sizeof(x));
        for (int j = 0; j < 8; j++) sum[j] += x[j];
    }
    for (int j = 0; j < 8; j++) total += sum[j][0];
    return total;
}

/* n rounds of 12 fused multiply-adds of 8 lanes. */
float limit_fma(size_t n, float a, float b) {
    vec_f32 sum[12], x = a - (vec_f32){0}, y = b - (vec_f32){0};
    float total = 0;
#pragma GCC unroll 12
    for (int j = 0; j < 12; j++) sum[j] = (vec_f32){0}; // memset would keep them in memory
    for (size_t i = 0; i < n; i++) {
#pragma GCC unroll 12
        for (int j = 0; j < 12; j++) {
            sum[j] = x * sum[j] + y;
            __asm__ volatile("" : "+x"(sum[j]));
        }
    }
#pragma GCC unroll 12
    for (int j = 0; j < 12; j++) total += sum[j][0];
    return total;
}

#if defined(__AVX512F__)
typedef float vec_wide __attribute__((vector_size(64)));
#define IN_VECTOR "+v"
#elif defined(__x86_64__)
typedef vec_f32 vec_wide;
#define IN_VECTOR "+x"
#else
typedef float vec_wide __attribute__((vector_size(16)));
#define IN_VECTOR "+w"
#endif

/* Returns GFLOP/s of fused multiply-adds of the widest vectors in a loop of a fifth of a
   millisecond. */
double limit_peak(void) {
    const size_t n = 20000, sums = 12;
    vec_wide sum[12], x = 0.5f - (vec_wide){0}, y = 1.0f - (vec_wide){0};
    struct timespec start, end;
#pragma GCC unroll 12
    for (int j = 0; j < 12; j++) sum[j] = (vec_wide){0};
    clock_gettime(CLOCK_MONOTONIC, &start);
    for (size_t i = 0; i < n; i++) {
#pragma GCC unroll 12
        for (int j = 0; j < 12; j++) {
            sum[j] = x * sum[j] + y;
            __asm__ volatile("" : IN_VECTOR(sum[j]));
        }
    }
    clock_gettime(CLOCK_MONOTONIC, &end);
    return (double)(n * sums * 2 * sizeof(vec_wide) / sizeof(float)) /
           ((double)(end.tv_sec - start.tv_sec) * 1e9 + (double)(end.tv_nsec - start.tv_nsec));
}

#if defined(__x86_64__) && defined(__AVX2__)
#include <immintrin.h>

/* n rounds of 12 dot products of 32 (AVX2) or 64 (VNNI) pairs of bytes; returns the pairs. */
size_t limit_bytes(size_t n) {
#if defined(__AVX512VNNI__)
    __m512i sum[12], x = _mm512_set1_epi8(1);
#pragma GCC unroll 12
    for (int j = 0; j < 12; j++) sum[j] = _mm512_setzero_si512();
    for (size_t i = 0; i < n; i++) {
#pragma GCC unroll 12
        for (int j = 0; j < 12; j++) {
            sum[j] = _mm512_dpbusd_epi32(sum[j], x, x);
            __asm__ volatile("" : "+v"(sum[j]));
        }
    }
    return n * 12 * 64;
#else
    __m256i sum[12], x = _mm256_set1_epi8(1);
#pragma GCC unroll 12
    for (int j = 0; j < 12; j++) sum[j] = _mm256_setzero_si256();
    for (size_t i = 0; i < n; i++) {
#pragma GCC unroll 12
        for (int j = 0; j < 12; j++) {
            __m256i product = _mm256_maddubs_epi16(x, x);
            __asm__ volatile("" : "+x"(product));
            sum[j] = _mm256_add_epi16(sum[j], product);
            __asm__ volatile("" : "+x"(sum[j]));
        }
    }
    return n * 12 * 32;
#endif
}
#else
size_t limit_bytes(size_t n) {
    (void)n;
    return 0;
}
#endif
