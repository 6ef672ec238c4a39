/* dispatch.c - finds the kernel sets that this CPU can run, and chooses one. */
#include "kernels/kernels.h"

#include "base/os.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static bool always(void) {
    return true;
}

#ifdef TL_SIMDE // a test build: every set runs anywhere

#define has_fma always
#define has_no_fma never
#define has_avx2 always
#define has_avx512 always
#define has_avx512vnni always
#define has_avx512bf16 always
#define has_amx always
#define has_neon always
static bool never(void) {
    return false;
}

#elif TL_X86

#include <cpuid.h>

// true if the CPU has the feature and the operating system saves its registers
#define TL_HAS(feature) (__builtin_cpu_supports(feature) != 0)

static bool has_fma(void) {
    return TL_HAS("fma");
}

static bool has_no_fma(void) {
    return !TL_HAS("fma");
}

/* clang 14's __builtin_cpu_supports does not know F16C. Its registers are those of AVX, so no other
   check is needed. */
static bool has_f16c(void) {
    unsigned a, b, c = 0, d;
    return __get_cpuid(1, &a, &b, &c, &d) != 0 && (c & bit_F16C) != 0;
}

static bool has_avx2(void) {
    return TL_HAS("avx2") && TL_HAS("fma") && has_f16c();
}

static bool has_avx512(void) {
    return has_avx2() && TL_HAS("avx512f") && TL_HAS("avx512bw") && TL_HAS("avx512dq") &&
           TL_HAS("avx512vl");
}

static bool has_avx512vnni(void) {
    return has_avx512() && TL_HAS("avx512vnni");
}

static bool has_avx512bf16(void) {
    return has_avx512vnni() && TL_HAS("avx512bf16");
}

static bool has_amx(void) {
    const unsigned tiles = 1u << 24, bytes = 1u << 25; // AMX-TILE and AMX-INT8
    unsigned a, b, c, d = 0;
    return has_avx512bf16() && __get_cpuid_count(7, 0, &a, &b, &c, &d) != 0 && (d & tiles) != 0 &&
           (d & bytes) != 0 && tl_cpu_allow_tiles();
}

#endif

#if TL_ARM && !defined(TL_SIMDE)

static bool has_neon(void) {
    return tl_cpu_has_dot_product();
}

#endif

/*
 * All sets, worst first. "scalar" is one source compiled twice: with the FMA instruction, and,
 * for CPUs without it, as "plain".
 */
static const struct set {
    const char *name;
    bool (*available)(void);
    void (*init)(struct tl_kernels *k, bool fast);
} sets[] = {
    {"plain", always, tl_kernels_init_plain},
#if TL_X86
    {"scalar", has_no_fma, tl_kernels_init_plain},
    {"scalar", has_fma, tl_kernels_init_scalar},
    {"avx2", has_avx2, tl_kernels_init_avx2},
    {"avx512", has_avx512, tl_kernels_init_avx512},
    {"avx512vnni", has_avx512vnni, tl_kernels_init_avx512vnni},
    {"avx512bf16", has_avx512bf16, tl_kernels_init_avx512bf16},
    {"amx", has_amx, tl_kernels_init_amx},
#else
    {"scalar", always, tl_kernels_init_scalar},
#endif
#if TL_ARM || defined(TL_SIMDE)
    {"neon", has_neon, tl_kernels_init_neon},
#endif
};

static struct tl_kernels tables[TL_ARRAY_LEN(sets)]; // those that this CPU can run
static struct tl_kernels fast_tables[TL_ARRAY_LEN(sets)];
static size_t table_count;

static void fill_tables(void) {
    for (size_t i = 0; i < TL_ARRAY_LEN(sets); i++) {
        if (!sets[i].available()) continue;
        struct tl_kernels *exact = &tables[table_count], *fast = &fast_tables[table_count];
        sets[i].init(exact, false);
        sets[i].init(fast, true);
        exact->name = fast->name = sets[i].name;
        exact->fast = fast->fast = fast;
        table_count++;
    }
}

static void fill_tables_once(void) {
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, fill_tables);
}

const struct tl_kernels *tl_kernels_at(size_t i) {
    fill_tables_once();
    return i < table_count ? &tables[i] : NULL;
}

const struct tl_kernels *tl_kernels_find(const char *name) {
    const struct tl_kernels *k;
    for (size_t i = 0; (k = tl_kernels_at(i)) != NULL; i++) {
        if (strcmp(k->name, name) == 0) return k;
    }
    return NULL;
}

const struct tl_kernels *tl_kernels_best(struct tl_error *err) {
    const char *wanted = getenv("TINYLLM_ISA");
    const struct tl_kernels *k;
    char names[128] = "";
    if (wanted == NULL || wanted[0] == 0) {
        fill_tables_once();
        return &tables[table_count - 1];
    }
    k = tl_kernels_find(wanted);
    if (k != NULL) return k;
    for (size_t i = 0; (k = tl_kernels_at(i)) != NULL; i++) {
        size_t used = strlen(names);
        snprintf(names + used, sizeof(names) - used, "%s%s", used > 0 ? ", " : "", k->name);
    }
    tl_fail(err, TL_ENOSUP,
            "TINYLLM_ISA is '%.32s', which is unknown or not available on this CPU; expected one "
            "of %s",
            wanted, names);
    return NULL;
}
