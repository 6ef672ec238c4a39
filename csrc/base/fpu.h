/*
 * fpu.h - the floating-point control word.
 *
 * Another library may have switched flush-to-zero on; one that was linked with -ffast-math does so
 * when it loads. So every call into the core sets the default state with tl_fpu_enter, and restores
 * the caller's state with tl_fpu_leave. Pool threads set the default state when they start.
 */
#ifndef TL_FPU_H
#define TL_FPU_H

#include <stdint.h>

#if defined(__x86_64__) || defined(_M_X64)
#include <xmmintrin.h>

static inline uint64_t tl_fpu_enter(void) {
    unsigned saved = _mm_getcsr();
    _mm_setcsr(0x1f80); // round to nearest even, no FTZ, no DAZ, exceptions masked
    return saved;
}

static inline void tl_fpu_leave(uint64_t saved) {
    _mm_setcsr((unsigned)saved);
}

#elif defined(__aarch64__)

static inline uint64_t tl_fpu_enter(void) {
    uint64_t saved;
    __asm__ volatile("mrs %0, fpcr" : "=r"(saved));
    __asm__ volatile("msr fpcr, %0" : : "r"((uint64_t)0));
    return saved;
}

static inline void tl_fpu_leave(uint64_t saved) {
    __asm__ volatile("msr fpcr, %0" : : "r"(saved));
}

#else

static inline uint64_t tl_fpu_enter(void) {
    return 0;
}

static inline void tl_fpu_leave(uint64_t saved) {
    (void)saved;
}

#endif
#endif
