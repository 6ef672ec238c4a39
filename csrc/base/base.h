/*
 * base.h - errors, checked arithmetic and aligned memory: what every file of the core builds on.
 *
 * The core knows nothing about Python. Every function that can fail returns TL_OK (0) or a
 * negative TL_E* code and then has written one sentence for the user into *err. Nothing in the
 * core aborts, exits or prints.
 */
#ifndef TL_BASE_H
#define TL_BASE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum tl_status {
    TL_OK = 0,
    TL_ENOMEM = -1,  // out of memory
    TL_EIO = -2,     // the operating system refused; err->sys_errno is set
    TL_EFORMAT = -3, // the file is not what it claims to be; field, value, expected are set
    TL_EARG = -4,    // the caller passed something out of range
    TL_ENOSUP = -5,  // valid, but not supported here
    TL_ESTOP = -6,   // a callback asked to stop; it has said why itself
};

struct tl_error {
    enum tl_status status;
    int sys_errno;
    char text[512];     // always terminated; names the culprit and the limit
    char field[160];    // TL_EFORMAT: the field, its value, what was expected ...
    char value[96];     //
    char expected[160]; //
    uint64_t offset;    // ... and where it starts in the file, UINT64_MAX if that has no meaning
};

#if defined(__GNUC__)
#define TL_PRINTF(at, first) __attribute__((format(printf, at, first)))
#else
#define TL_PRINTF(at, first)
#endif

/* Fills *err and returns `status`, so that a check is one line: return tl_fail(...). */
int tl_fail(struct tl_error *err, enum tl_status status, const char *format, ...) TL_PRINTF(3, 4);

/*
 * A malformed file. The sentence becomes "<field> is <value>; expected <expected> (at byte N)".
 * `value` may be NULL when there is none to show.
 */
int tl_fail_format(struct tl_error *err, const char *field, uint64_t offset, const char *value,
                   const char *expected, ...) TL_PRINTF(5, 6);

/* *out = a * b or a + b; false, and *out untouched, when that does not fit. */
bool tl_mul_size(size_t a, size_t b, size_t *out);
bool tl_add_size(size_t a, size_t b, size_t *out);

/* 64-byte aligned memory, not cleared; NULL when there is none. Free it with tl_free. */
void *tl_alloc(size_t bytes);
void tl_free(void *p);

/* Makes room for `wanted` items by doubling; false, and nothing changed, without memory. */
bool tl_reserve(void **items, size_t *capacity, size_t wanted, size_t item_size);

#define TL_ARRAY_LEN(a) (sizeof(a) / sizeof((a)[0]))
#define TL_MIN(a, b) ((a) < (b) ? (a) : (b))
#define TL_MAX(a, b) ((a) > (b) ? (a) : (b))

#endif
