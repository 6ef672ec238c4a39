/* selftest.c - operands for each operation, and the comparison with the CPU. */
#include "device/selftest.h"

#include "device/device_state.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define SPECIALS 16
#define CASES (SPECIALS * SPECIALS * SPECIALS + 12288)

/* The operations of selftest.cl. */
enum operation { FMA, ADD, MULTIPLY, DIVIDE, MULTIPLY_ADD, ROOT, NARROW, WIDEN };

static const char *const operation_names[] = {"fma",
                                              "addition",
                                              "multiplication",
                                              "division",
                                              "multiplication and addition",
                                              "square root",
                                              "conversion to float32",
                                              "conversion from integers and float32"};

static const uint32_t special_floats[SPECIALS] = {
    0x00000000, 0x80000000, 0x00000001, 0x807fffff, 0x00800000, 0x3f800000, 0xbf800000, 0x3f800001,
    0x3f7fffff, 0x4b800000, 0x33800001, 0x7f7fffff, 0xff7fffff, 0x7f800000, 0xff800000, 0x7fc00000};

static const uint64_t special_doubles[SPECIALS] = {
    0x0000000000000000, 0x8000000000000000, 0x0000000000000001, 0x800fffffffffffff,
    0x0010000000000000, 0x3ff0000000000000, 0xbff0000000000000, 0x3ff0000000000001,
    0x3fefffffffffffff, 0x4340000000000000, 0x3ca0000000000001, 0x7fefffffffffffff,
    0x380fffffe0000000, 0x7ff0000000000000, 0xfff0000000000000, 0x7ff8000000000000};

/* Numbers that are the same everywhere: splitmix64 (Steele et al. 2014). */
static uint64_t next(uint64_t *state) {
    uint64_t z = *state += 0x9e3779b97f4a7c15u;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return z ^ z >> 31;
}

/*
 * Three operands of each case: every triple of special values, then random bits, then values near
 * one, whose sums cancel, and products that nearly cancel with c.
 */
static void fill_cases(uint64_t *operands[3], const uint64_t *special, int digits) {
    const uint64_t ones = digits == 24 ? 0x7f : 0x3ff;
    const int top = digits - 1, width = digits == 24 ? 32 : 64;
    uint64_t state = 1;
    for (size_t i = 0; i < CASES; i++) {
        const size_t kind = i < SPECIALS * SPECIALS * SPECIALS ? 0 : 1 + i % 3;
        size_t part = i;
        for (int j = 0; j < 3; j++, part /= SPECIALS) {
            uint64_t bits = next(&state) >> (64 - width);
            if (kind == 0) bits = special[part % SPECIALS];
            if (kind >= 2) { // an exponent near that of one, or near that of the denormals
                const uint64_t near = kind == 2 ? ones - 3 + next(&state) % 6 : next(&state) % 40;
                const uint64_t mask = ((uint64_t)1 << top) - 1;
                bits = (bits & (mask | (uint64_t)1 << (width - 1))) | near << top;
            }
            operands[j][i] = bits;
        }
    }
}

static float float_of(uint64_t bits) {
    const uint32_t narrow = (uint32_t)bits;
    float x;
    memcpy(&x, &narrow, sizeof(x));
    return x;
}

static double double_of(uint64_t bits) {
    double x;
    memcpy(&x, &bits, sizeof(x));
    return x;
}

static uint64_t bits_of_float(float x) {
    uint32_t bits;
    memcpy(&bits, &x, sizeof(bits));
    return bits;
}

static uint64_t bits_of_double(double x) {
    uint64_t bits;
    memcpy(&bits, &x, sizeof(bits));
    return bits;
}

static bool same_float(uint64_t a, uint64_t b) {
    return a == b || (isnan(float_of(a)) && isnan(float_of(b)));
}

static bool same_double(uint64_t a, uint64_t b) {
    return a == b || (isnan(double_of(a)) && isnan(double_of(b)));
}

/* What the CPU gives. */
static uint64_t expected_float(enum operation op, float a, float b, float c) {
    switch (op) {
    case FMA:
        return bits_of_float(fmaf(a, b, c));
    case ADD:
        return bits_of_float(a + b);
    case MULTIPLY:
        return bits_of_float(a * b);
    case DIVIDE:
        return bits_of_float(a / b);
    default:
        return bits_of_float(a * b + c);
    }
}

static uint64_t expected_double(enum operation op, uint64_t x, uint64_t y, uint64_t z) {
    const double a = double_of(x), b = double_of(y), c = double_of(z);
    switch (op) {
    case FMA:
        return bits_of_double(fma(a, b, c));
    case ADD:
        return bits_of_double(a + b);
    case MULTIPLY:
        return bits_of_double(a * b);
    case DIVIDE:
        return bits_of_double(a / b);
    case MULTIPLY_ADD:
        return bits_of_double(a * b + c);
    case ROOT:
        return bits_of_double(sqrt(a));
    case NARROW:
        return bits_of_float((float)a);
    default:
        return bits_of_double((double)(int64_t)x + (double)float_of(y));
    }
}

/* ---- a test: buffers on both sides ---- */

struct test {
    struct tl_device *d;
    struct tl_queue *q;
    struct tl_selftest *result;
    struct tl_room rooms[4]; // on the device: three operands, the result
    uint64_t *operands[3];   // (CASES)
    void *got;               // (CASES) of float or of double
    bool fast;               // of matmuls
};

static void note(struct tl_selftest *r, bool same, const char *format, ...) TL_PRINTF(3, 4);

#include <stdarg.h>

/* Counts a comparison; the first difference is described. */
static void note(struct tl_selftest *r, bool same, const char *format, ...) {
    va_list list;
    r->compared++;
    if (same) return;
    if (r->differ++ > 0) return;
    va_start(list, format);
    vsnprintf(r->first, sizeof(r->first), format, list);
    va_end(list);
}

static const struct tl_program test_program = {.files = TL_SOURCE_ARITHMETIC | TL_SOURCE_FUNCTIONS |
                                                        TL_SOURCE_SELFTEST};

/* Copies n bytes of operand i to the device. */
static int put(struct test *t, int i, const void *data, size_t bytes, struct tl_error *err) {
    int status = tl_device_room(t->d, &t->rooms[i], bytes, "a test", err);
    if (status == TL_OK) status = tl_queue_write(t->q, t->rooms[i].buffer, 0, data, bytes, err);
    return status;
}

static int launch(struct test *t, const char *kernel, const struct tl_argument *arguments,
                  size_t n_arguments, size_t n, struct tl_error *err) {
    const size_t group = tl_device_group(t->d);
    return tl_queue_launch(t->q,
                           &(struct tl_launch){.program = &test_program,
                                               .kernel = kernel,
                                               .arguments = arguments,
                                               .n_arguments = n_arguments,
                                               .global = {(n + group - 1) / group * group, 1, 1},
                                               .local = {group, 1, 1},
                                               .work = TL_WORK_OF_VALUE},
                           err);
}

static int run_operation(struct test *t, const char *kernel, enum operation op, size_t size,
                         struct tl_error *err) {
    const int32_t numbers[2] = {(int32_t)op, CASES};
    const struct tl_argument arguments[] = {
        TL_ARGUMENT(numbers[0]),
        TL_ARGUMENT(numbers[1]),
        tl_buffer_argument(t->rooms[0].buffer),
        tl_buffer_argument(t->rooms[1].buffer),
        tl_buffer_argument(t->rooms[2].buffer),
        tl_buffer_argument(t->rooms[3].buffer),
    };
    int status = launch(t, kernel, arguments, TL_ARRAY_LEN(arguments), CASES, err);
    if (status == TL_OK) {
        status = tl_queue_read(t->q, t->rooms[3].buffer, 0, t->got, CASES * size, true, err);
    }
    return status;
}

static int test_floats(struct test *t, struct tl_error *err) {
    uint64_t special[SPECIALS];
    float *narrow = t->got;
    int status = tl_device_room(t->d, &t->rooms[3], CASES * sizeof(double), "a test", err);
    for (int i = 0; i < SPECIALS; i++) special[i] = special_floats[i];
    fill_cases(t->operands, special, 24);
    for (int j = 0; j < 3 && status == TL_OK; j++) {
        for (size_t i = 0; i < CASES; i++) narrow[i] = float_of(t->operands[j][i]);
        status = put(t, j, narrow, CASES * sizeof(float), err);
    }
    for (int op = FMA; op <= MULTIPLY_ADD && status == TL_OK; op++) {
        status = run_operation(t, "try_float", (enum operation)op, sizeof(float), err);
        for (size_t i = 0; i < CASES && status == TL_OK; i++) {
            const uint64_t a = t->operands[0][i], b = t->operands[1][i], c = t->operands[2][i];
            const uint64_t got = bits_of_float(narrow[i]);
            const uint64_t want =
                expected_float((enum operation)op, float_of(a), float_of(b), float_of(c));
            note(t->result, same_float(got, want),
                 "float32 %s of %08" PRIx64 ", %08" PRIx64 " and %08" PRIx64 " gave %08" PRIx64
                 "; expected %08" PRIx64,
                 operation_names[op], a, b, c, got, want);
        }
    }
    return status;
}

static int test_doubles(struct test *t, struct tl_error *err) {
    uint64_t *wide = t->got;
    int status = tl_device_room(t->d, &t->rooms[3], CASES * sizeof(double), "a test", err);
    fill_cases(t->operands, special_doubles, 53);
    for (int j = 0; j < 3 && status == TL_OK; j++) {
        status = put(t, j, t->operands[j], CASES * sizeof(double), err);
    }
    for (int op = FMA; op <= WIDEN && status == TL_OK; op++) {
        status = run_operation(t, "try_real", (enum operation)op, sizeof(double), err);
        for (size_t i = 0; i < CASES && status == TL_OK; i++) {
            const uint64_t a = t->operands[0][i], b = t->operands[1][i], c = t->operands[2][i];
            const uint64_t want = expected_double((enum operation)op, a, b, c), got = wide[i];
            note(t->result, op == NARROW ? same_float(got, want) : same_double(got, want),
                 "float64 %s of %016" PRIx64 ", %016" PRIx64 " and %016" PRIx64 " gave %016" PRIx64
                 "; expected %016" PRIx64,
                 operation_names[op], a, b, c, got, want);
        }
    }
    return status;
}

/* The functions of functions.cl, on values of all sizes. */
static int test_functions(struct test *t, const struct tl_kernels *k, struct tl_error *err) {
    static const float parameters[TL_FN_OAI] = {
        [TL_FN_SOFT_CAP] = 30.0f, [TL_FN_CLAMP] = 7.5f, [TL_FN_SCALE] = 0.37f};
    float *x = (float *)(void *)t->operands[0], *want = (float *)(void *)t->operands[1];
    float *got = t->got;
    uint64_t state = 2;
    int status;
    for (size_t i = 0; i < CASES; i++) {
        const uint64_t bits = next(&state);
        // even ones in [-16, 16), odd ones any bits
        x[i] = i < SPECIALS ? float_of(special_floats[i])
               : i % 2 == 0 ? (float)(int32_t)bits * 0x1p-27f
                            : float_of((uint32_t)bits);
    }
    status = put(t, 0, x, CASES * sizeof(float), err);
    for (int f = 0; f < TL_FN_OAI && status == TL_OK; f++) {
        const float parameter = parameters[f], inverse = parameter > 0 ? 1.0f / parameter : 0.0f;
        const int32_t numbers[2] = {f, CASES};
        const struct tl_argument arguments[] = {
            TL_ARGUMENT(numbers[0]),
            TL_ARGUMENT(parameter),
            TL_ARGUMENT(inverse),
            TL_ARGUMENT(numbers[1]),
            tl_buffer_argument(t->rooms[0].buffer),
            tl_buffer_argument(t->rooms[3].buffer),
        };
        k->unary((enum tl_function)f, parameter, x, want, CASES);
        status = launch(t, "try_function", arguments, TL_ARRAY_LEN(arguments), CASES, err);
        if (status == TL_OK) {
            status =
                tl_queue_read(t->q, t->rooms[3].buffer, 0, got, CASES * sizeof(float), true, err);
        }
        for (size_t i = 0; i < CASES && status == TL_OK; i++) {
            note(t->result, same_float(bits_of_float(got[i]), bits_of_float(want[i])),
                 "function %d of %08" PRIx64 " gave %08" PRIx64 "; expected %08" PRIx64, f,
                 bits_of_float(x[i]), bits_of_float(got[i]), bits_of_float(want[i]));
        }
    }
    return status;
}

/* ---- matmuls ---- */

#define ROWS 72
#define TOKENS 6

/* The product of the CPU; false without memory. */
static bool multiply(const struct tl_kernels *k, const struct tl_matrix *m, const float *x,
                     size_t tokens, float *y) {
    const int format = k->format(m->type, tokens);
    void *packed = tl_alloc(k->pack_bytes(format, m->cols, tokens));
    void *scratch = tl_alloc(k->scratch(m, format, tokens));
    const bool ok = packed != NULL && scratch != NULL;
    if (ok) {
        k->pack(format, x, m->cols, tokens, 0, tokens, packed);
        k->matmul(m, format, 0, m->rows, packed, tokens, y, m->rows, scratch);
    }
    tl_free(packed);
    tl_free(scratch);
    return ok;
}

/* Values of about one; the last tokens are denormal, huge, sparse with outliers, or not finite. */
static void fill_activations(float *x, size_t cols) {
    uint64_t state = 3;
    for (size_t i = 0; i < TOKENS * cols; i++) {
        float value = (float)(int32_t)next(&state) * 0x1p-31f;
        if (i / cols == 2) value *= 0x1p-140f;
        if (i / cols == 3) value *= 0x1p120f;
        if (i / cols == 4) value = next(&state) % 64 == 0 ? value * 500 : 0;
        if (i == TOKENS * cols - 7) value = NAN;
        x[i] = value;
    }
}

static int compare_products(struct test *t, const struct tl_kernels *k, const struct tl_matrix *m,
                            const float *x, size_t tokens, struct tl_error *err) {
    struct tl_device_matrix matrix = {0};
    struct tl_packed packed = {.fast = t->fast};
    float *want = malloc(2 * tokens * m->rows * sizeof(float)), *got = want;
    int status = TL_OK;
    if (want == NULL || !multiply(k, m, x, tokens, want)) {
        free(want);
        return tl_fail(err, TL_ENOMEM, "no memory for the test of a device");
    }
    got = want + tokens * m->rows;
    status = tl_device_matrix_new(t->q, m, &matrix, err);
    if (status == TL_OK) status = put(t, 0, x, tokens * m->cols * sizeof(float), err);
    if (status == TL_OK) {
        status =
            tl_device_room(t->d, &t->rooms[3], tokens * m->rows * sizeof(float), "a test", err);
    }
    if (status == TL_OK && m->type->kind != TL_KIND_FLOAT) {
        status = tl_device_pack(t->q, t->rooms[0].buffer, m->cols, tokens, &packed, err);
    }
    if (status == TL_OK) {
        status = tl_device_matmul(t->q, &matrix, t->rooms[0].buffer, &packed, tokens,
                                  t->rooms[3].buffer, err);
    }
    if (status == TL_OK) {
        status = tl_queue_read(t->q, t->rooms[3].buffer, 0, got, tokens * m->rows * sizeof(float),
                               true, err);
    }
    for (size_t i = 0; i < tokens * m->rows && status == TL_OK; i++) {
        const uint64_t a = bits_of_float(got[i]), b = bits_of_float(want[i]);
        note(t->result, same_float(a, b),
             "the %s matmul of %s gave %08" PRIx64 " in row %zu of token %zu; expected %08" PRIx64,
             t->fast ? "fast" : "exact", m->type->name, a, i % m->rows, i / m->rows, b);
    }
    tl_device_matrix_free(t->d, &matrix);
    tl_packed_free(t->d, &packed);
    free(want);
    return status;
}

/* All rows as float32, the last one first. */
static int compare_rows(struct test *t, const struct tl_matrix *m, struct tl_error *err) {
    struct tl_device_matrix matrix = {0};
    const size_t bytes = m->cols * sizeof(float);
    int32_t chosen[ROWS];
    float *want = malloc(bytes), *got = malloc(ROWS * bytes);
    int status = want != NULL && got != NULL
                     ? TL_OK
                     : tl_fail(err, TL_ENOMEM, "no memory for the test of a device");
    for (int32_t i = 0; i < ROWS; i++) chosen[i] = ROWS - 1 - i;
    if (status == TL_OK) status = tl_device_matrix_new(t->q, m, &matrix, err);
    if (status == TL_OK) status = put(t, 0, chosen, sizeof(chosen), err);
    if (status == TL_OK) status = tl_device_room(t->d, &t->rooms[3], ROWS * bytes, "a test", err);
    if (status == TL_OK) {
        status = tl_device_rows(t->q, &matrix, t->rooms[0].buffer, ROWS, t->rooms[3].buffer, err);
    }
    if (status == TL_OK) {
        status = tl_queue_read(t->q, t->rooms[3].buffer, 0, got, ROWS * bytes, true, err);
    }
    for (size_t i = 0; i < ROWS && status == TL_OK; i++) {
        tl_type_to_f32(m->type, m->data + (size_t)chosen[i] * m->row_bytes, want, m->cols);
        for (size_t j = 0; j < m->cols; j++) {
            const uint64_t a = bits_of_float(got[i * m->cols + j]), b = bits_of_float(want[j]);
            note(t->result, same_float(a, b),
                 "value %zu in row %d of %s gave %08" PRIx64 "; expected %08" PRIx64, j, chosen[i],
                 m->type->name, a, b);
        }
    }
    tl_device_matrix_free(t->d, &matrix);
    free(want);
    free(got);
    return status;
}

static int test_type(struct test *t, const struct tl_kernels *k, const struct tl_type_info *type,
                     struct tl_error *err) {
    // more chunks than a work-group takes at a time; more than a superchunk; a part of a chunk
    const size_t cols = type->kind == TL_KIND_FLOAT ? 4133 : type->items == 32 ? 2400 : 2304;
    struct tl_matrix m = {.type = type, .rows = ROWS, .cols = cols};
    uint8_t *data;
    float *x;
    int status = TL_OK;
    uint64_t state = 4;
    if (!tl_type_row_bytes(type, cols, &m.row_bytes)) {
        return tl_fail(err, TL_EARG, "rows of %s cannot have %zu values", type->name, cols);
    }
    data = malloc(ROWS * m.row_bytes);
    x = malloc(TOKENS * cols * sizeof(float));
    if (data == NULL || x == NULL) {
        status = tl_fail(err, TL_ENOMEM, "no memory for the test of a device");
    } else {
        // any bits in the first rows; in the others no float of 16 bits is infinite or NaN
        for (size_t i = 0; i < ROWS * m.row_bytes; i++) {
            data[i] = (uint8_t)(next(&state) & (i < 8 * m.row_bytes ? 0xff : 0xbf));
        }
        fill_activations(x, cols);
        m.data = data;
        status = compare_rows(t, &m, err);
        if (status == TL_OK) status = compare_products(t, k, &m, x, TOKENS, err);
        if (status == TL_OK) status = compare_products(t, k, &m, x, 1, err);
    }
    free(data);
    free(x);
    return status;
}

/* ---- all of it ---- */

static int begin(struct test *t, struct tl_device *d, struct tl_selftest *out,
                 struct tl_error *err) {
    *t = (struct test){.d = d, .result = out};
    *out = (struct tl_selftest){0};
    for (int i = 0; i < 3; i++) t->operands[i] = malloc(CASES * sizeof(uint64_t));
    t->got = malloc(CASES * sizeof(uint64_t));
    if (!t->operands[0] || !t->operands[1] || !t->operands[2] || !t->got) {
        return tl_fail(err, TL_ENOMEM, "no memory for the test of a device");
    }
    return tl_queue_new(d, &t->q, err);
}

static void end(struct test *t) {
    tl_queue_free(t->q);
    for (int i = 0; i < 4; i++) tl_device_free(t->d, t->rooms[i].buffer);
    for (int i = 0; i < 3; i++) free(t->operands[i]);
    free(t->got);
}

/* One of each class: a type with a minimum and one without. */
static const enum tl_type classes[] = {TL_TYPE_F16,  TL_TYPE_Q8_0, TL_TYPE_Q4_1,
                                       TL_TYPE_Q4_K, TL_TYPE_Q6_K, TL_TYPE_MXFP4};

int tl_selftest_run(struct tl_device *d, struct tl_selftest *out, struct tl_error *err) {
    const struct tl_kernels *k = tl_kernels_best(err);
    struct test t;
    int status;
    if (k == NULL) return err->status;
    status = begin(&t, d, out, err);
    if (status == TL_OK) status = test_floats(&t, err);
    if (status == TL_OK && out->differ == 0) status = test_doubles(&t, err);
    if (status == TL_OK && out->differ == 0) status = test_functions(&t, k, err);
    for (size_t i = 0; i < TL_ARRAY_LEN(classes) && status == TL_OK && out->differ == 0; i++) {
        status = test_type(&t, k, tl_type_find(classes[i]), err);
    }
    end(&t);
    return status;
}

int tl_selftest_type(struct tl_device *d, const struct tl_type_info *type, bool fast,
                     struct tl_selftest *out, struct tl_error *err) {
    const struct tl_kernels *k = tl_kernels_best(err);
    struct test t;
    int status;
    if (k == NULL) return err->status;
    // some sets have other bits of Q8_0 in fast mode, but never this one
    if (fast) k = tl_kernels_find("plain")->fast;
    status = begin(&t, d, out, err);
    t.fast = fast;
    if (status == TL_OK) status = test_type(&t, k, type, err);
    end(&t);
    return status;
}

int tl_device_runs_type(struct tl_device *d, const struct tl_type_info *type, bool fast, bool *runs,
                        struct tl_error *err) {
    struct tl_selftest result;
    uint32_t id = 0;
    int status = TL_OK;
    uint8_t known;
    *runs = false;
    if (!tl_device_knows_type(type)) return TL_OK;
    while (tl_type_find(id) != type) id++;
    tl_mutex_lock(&d->lock);
    known = d->types[fast][id];
    tl_mutex_unlock(&d->lock);
    if (known == 0) {
        status = tl_selftest_type(d, type, fast, &result, err);
        if (status != TL_OK) return status;
        known = result.differ == 0 ? 1 : 2;
        tl_mutex_lock(&d->lock);
        d->types[fast][id] = known;
        tl_mutex_unlock(&d->lock);
    }
    *runs = known == 1;
    return TL_OK;
}

/* Lets fast mode use the device's dot products, if it has them and they are right. Some drivers
   list the extension without having it, and then the kernels cannot be compiled. */
static void try_dots(struct tl_device *d) {
    static const enum tl_type tried[] = {TL_TYPE_Q8_0, TL_TYPE_Q4_K};
    struct tl_selftest result;
    struct tl_error ignored;
    if (!tl_device_claims_dots(d)) return;
    tl_device_set_dots(d, true);
    for (size_t i = 0; i < TL_ARRAY_LEN(tried); i++) {
        if (tl_selftest_type(d, tl_type_find(tried[i]), true, &result, &ignored) == TL_OK &&
            result.differ == 0) {
            continue;
        }
        tl_device_set_dots(d, false);
        return;
    }
}

int tl_selftest_open(size_t i, const struct tl_device_options *options, struct tl_device **out,
                     struct tl_selftest *result, struct tl_error *err) {
    struct tl_device *d;
    int status = tl_device_open(i, options, &d, err);
    *out = NULL;
    if (status != TL_OK) return status;
    for (int level = TL_MAX(options->level, (int)tl_device_claims(d)); level < TL_LEVELS; level++) {
        tl_device_set_level(d, (enum tl_level)level);
        status = tl_selftest_run(d, result, err);
        if (status == TL_OK && result->differ == 0) {
            try_dots(d);
            *out = d;
            return TL_OK;
        }
    }
    if (status == TL_OK) {
        status = tl_fail(err, TL_ENOSUP,
                         "device '%s' does not give the bits of the CPU: %zu of %zu results "
                         "differ, first: %s",
                         tl_device_facts(d)->name, result->differ, result->compared, result->first);
    }
    tl_device_close(d);
    return status;
}
