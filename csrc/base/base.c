/* base.c - errors, checked arithmetic and aligned memory. */
#include "base/base.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void clear(struct tl_error *err, enum tl_status status) {
    memset(err, 0, sizeof(*err));
    err->status = status;
    err->offset = UINT64_MAX;
}

int tl_fail(struct tl_error *err, enum tl_status status, const char *format, ...) {
    va_list args;
    clear(err, status);
    va_start(args, format);
    vsnprintf(err->text, sizeof(err->text), format, args);
    va_end(args);
    return status;
}

int tl_fail_format(struct tl_error *err, const char *field, uint64_t offset, const char *value,
                   const char *expected, ...) {
    va_list args;
    char where[48] = "";
    clear(err, TL_EFORMAT);
    snprintf(err->field, sizeof(err->field), "%s", field);
    if (value != NULL) snprintf(err->value, sizeof(err->value), "%s", value);
    va_start(args, expected);
    vsnprintf(err->expected, sizeof(err->expected), expected, args);
    va_end(args);
    err->offset = offset;
    if (offset != UINT64_MAX) {
        snprintf(where, sizeof(where), " (at byte %llu)", (unsigned long long)offset);
    }
    snprintf(err->text, sizeof(err->text), "%s%s%s; expected %s%s", err->field,
             value != NULL ? " is " : " is wrong", err->value, err->expected, where);
    return TL_EFORMAT;
}

bool tl_mul_size(size_t a, size_t b, size_t *out) {
    if (b != 0 && a > SIZE_MAX / b) return false;
    *out = a * b;
    return true;
}

bool tl_add_size(size_t a, size_t b, size_t *out) {
    if (a > SIZE_MAX - b) return false;
    *out = a + b;
    return true;
}

void *tl_alloc(size_t bytes) {
    size_t padded;
    if (!tl_add_size(bytes, 63, &padded)) return NULL;
    padded &= ~(size_t)63;
    return aligned_alloc(64, padded ? padded : 64);
}

void tl_free(void *p) {
    free(p);
}

bool tl_reserve(void **items, size_t *capacity, size_t wanted, size_t item_size) {
    size_t count = *capacity < 32 ? 32 : *capacity, bytes;
    void *bigger;
    if (wanted <= *capacity) return true;
    while (count < wanted) {
        if (!tl_mul_size(count, 2, &count)) return false;
    }
    bigger = tl_mul_size(count, item_size, &bytes) ? tl_alloc(bytes) : NULL;
    if (bigger == NULL) return false;
    if (*capacity > 0) memcpy(bigger, *items, *capacity * item_size);
    tl_free(*items);
    *items = bigger;
    *capacity = count;
    return true;
}
