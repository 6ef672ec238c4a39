/*
 * device_plan.h - which steps of a plan run on a device, and their weights there.
 *
 * A step runs there if its op has a function for devices and its weights are of types that have a
 * kernel. All others run on the CPU. Both sides give the same bits, so nobody can tell.
 */
#ifndef TL_DEVICE_PLAN_H
#define TL_DEVICE_PLAN_H

#include "device/selftest.h"
#include "forward/plan.h"

/* The device's side of a step. */
struct device_step {
    bool on;                               // it runs on the device
    const struct tl_device_matrix *matrix; // NULL where the step has none
    void *vectors[TL_STEP_WEIGHTS];        // owns; buffers, NULL where the step has none
};

struct tl_plan_device {
    struct tl_device *device; // borrows
    struct tl_queue *queue;   // that copied the weights
    bool fast;                // fast mode
    struct device_step *steps;
    size_t n_steps;
    struct tl_device_matrix *matrices; // owns; those that several steps read are there once
    size_t n_matrices;
    size_t weight_bytes;
};

/* Chooses the steps that run on options->device, and copies their weights. */
int device_plan_new(const struct tl_plan *p, const struct tl_plan_options *options,
                    struct tl_plan_device **out, struct tl_error *err);
/* Bytes of the device for the weights, and for what a session of `tokens` tokens keeps there. */
size_t device_plan_bytes(const struct tl_plan *p, size_t tokens);
void device_plan_free(struct tl_plan_device *d);

#endif
