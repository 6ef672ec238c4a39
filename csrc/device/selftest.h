/*
 * selftest.h - whether a device gives the bits of docs/numerics.md.
 *
 * Nothing that a driver says about itself is believed. Each operation of the arithmetic, the
 * functions of functions.cl, and the rows and a small matmul of each class run on the device, and
 * every result is compared with the CPU's, bit for bit. Any two NaNs are equal.
 */
#ifndef TL_SELFTEST_H
#define TL_SELFTEST_H

#include "device/matmul.h"

/* What was compared, and the first difference. */
struct tl_selftest {
    size_t compared, differ;
    char first[256]; // names the operation, its operands and both results; empty: none
};

/* Tests the device at its level. An error means that it could not be tested. */
int tl_selftest_run(struct tl_device *d, struct tl_selftest *out, struct tl_error *err);

/* Tests the rows and the matmul of one type that tl_device_knows_type, in exact mode or in fast
 * mode. */
int tl_selftest_type(struct tl_device *d, const struct tl_type_info *type, bool fast,
                     struct tl_selftest *out, struct tl_error *err);

/* Whether the device can use matrices of a type: there is a kernel, and it passed its test,
   which runs when a type is asked for first. */
int tl_device_runs_type(struct tl_device *d, const struct tl_type_info *type, bool fast, bool *runs,
                        struct tl_error *err);

/*
 * Opens a device at the highest level that passes the test, of those from options->level down, and
 * with its own dot products for fast mode if they are right.
 * TL_ENOSUP, with what failed at the last level, if there is none.
 */
int tl_selftest_open(size_t i, const struct tl_device_options *options, struct tl_device **out,
                     struct tl_selftest *result, struct tl_error *err);

#endif
