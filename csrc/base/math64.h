/*
 * math64.h - float64 exp, log, sin and cos with the same bits on every machine.
 *
 * The functions of the C library differ between systems and versions. These use only correctly
 * rounded operations (+, -, *, /, fma) in a fixed order; docs/numerics.md states their errors. They
 * are not fast, but RoPE tables and samplers call them rarely.
 */
#ifndef TL_MATH64_H
#define TL_MATH64_H

#include <stddef.h>

double tl_exp(double x);      // 0 below -745.2, inf above 709.79; subnormal results rounded twice
double tl_log(double x);      // -inf for 0, NaN below 0
double tl_softplus(double x); // log(1 + exp(x))
void tl_sincos(double x, double *sin, double *cos); // |x| <= 1e9, else NaN

/* The sum of n values, added one after another to +0. */
double tl_sum(const double *x, size_t n);

/* p = exp(x - max) / sum; NaN everywhere if x holds NaN or +inf, 0 everywhere if all are -inf. */
void tl_softmax(const double *x, size_t n, double *p);

#endif
