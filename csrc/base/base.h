/*
 * base.h - errors, checked arithmetic and aligned memory: what every file of the core builds on.
 *
 * The core knows nothing about Python. A function that can fail returns TL_OK (0), or a negative
 * TL_E* code after it has written one sentence for the user into *err. Nothing in the core aborts,
 * exits or prints.
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
    TL_ESTOP = -6,   // a callback asked to stop; the callback has reported why
    TL_EDEVICE = -7, // a device has failed
};

/* Why a function failed. Undefined after success. */
struct tl_error {
    enum tl_status status;
    int sys_errno;
    char text[512];     // always terminated; names the culprit and the limit
    char field[160];    // TL_EFORMAT: the field that is wrong
    char value[96];     // TL_EFORMAT: its value; empty if there is none to show
    char expected[160]; // TL_EFORMAT: what was expected instead
    uint64_t offset;    // TL_EFORMAT: where the field starts in the file; UINT64_MAX: unknown
};

#if defined(__GNUC__)
#define TL_PRINTF(at, first) __attribute__((format(printf, at, first)))
#else
#define TL_PRINTF(at, first)
#endif

/* Fills *err and returns `status`, so that a check is one line: return tl_fail(...). */
int tl_fail(struct tl_error *err, enum tl_status status, const char *format, ...) TL_PRINTF(3, 4);

/*
 * Reports a malformed file and returns TL_EFORMAT. The sentence becomes
 * "<field> is <value>; expected <expected> (at byte N)". `value` is NULL if there is none to show.
 */
int tl_fail_format(struct tl_error *err, const char *field, uint64_t offset, const char *value,
                   const char *expected, ...) TL_PRINTF(5, 6);

/* *out = a * b or a + b; false, with *out unchanged, if the result does not fit. */
bool tl_mul_size(size_t a, size_t b, size_t *out);
bool tl_add_size(size_t a, size_t b, size_t *out);

/* Memory aligned to 64 bytes, not cleared; NULL if there is none. tl_free frees it. */
void *tl_alloc(size_t bytes);
void tl_free(void *p);

/* Doubles the capacity until `wanted` items fit; false, with nothing changed, without memory. */
bool tl_reserve(void **items, size_t *capacity, size_t wanted, size_t item_size);

#define TL_ARRAY_LEN(a) (sizeof(a) / sizeof((a)[0]))
#define TL_MIN(a, b) ((a) < (b) ? (a) : (b))
#define TL_MAX(a, b) ((a) > (b) ? (a) : (b))

#endif
