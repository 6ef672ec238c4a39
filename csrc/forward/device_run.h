/*
 * device_run.h - a call whose steps run on a device and on the CPU.
 *
 * A value is on the host, on the device or on both. Before a region of steps runs, the values that
 * it reads are copied to its side; after it ran, its values are on its side alone. Captured values
 * are copied to the caller's arrays at once, and edits happen there.
 */
#ifndef TL_DEVICE_RUN_H
#define TL_DEVICE_RUN_H

#include "forward/device_plan.h"
#include "forward/device_session.h"
#include "forward/pass.h"

/* Where the value of a step is. */
struct place {
    void *buffer; // on the device
    bool on_host, on_device;
};

struct device_run {
    const struct tl_plan_device *plan;
    struct session_device *work; // of the first piece: its queue and its memory
    struct tl_queue *q;
    struct place *places; // owns; (steps)
    bool reading;         // copies to the host are under way
};

/* Begins a call, if its plan has a device; r->device is NULL otherwise. */
int device_begin(struct run *r);
/* Ends it, after success or failure: nothing runs any more. Returns `status`, or why the end
   failed. */
int device_end(struct run *r, int status);

/* Begins a chunk: no value exists, and the tables of RoPE are on both sides. */
int device_chunk(struct run *r);
/* The value of a step was put on the host, by the caller of the core. */
void device_given(struct run *r, size_t step);
/* Runs the region that begins with s on its side. */
int device_region(struct run *r, const struct tl_step *s);
/* Makes sure that the value of a step is on the host, in r->values. */
int device_to_host(struct run *r, size_t step);
/* Copies the wanted rows of the value of a step, into the memory of gathered value number i. False
   if the value is on the host: then the caller copies them there. */
int device_gather(struct run *r, size_t step, size_t i, const size_t *rows, size_t count,
                  bool *done);

/* ---- for the functions that run an op ---- */

static inline const struct device_step *device_step_of(const struct run *r,
                                                       const struct tl_step *s) {
    return &r->device->plan->steps[pass_index(r, s)];
}

/* The value of a step's i-th read. */
static inline const void *device_in(const struct run *r, const struct tl_step *s, int i) {
    return r->device->places[s->in[i]].buffer;
}

/* Where a step writes its value. */
int device_out(struct run *r, const struct tl_step *s, void **out);
/* Called when the value of a step is complete: copies it to the host if it is captured, and runs
   its edit. */
int device_done(struct run *r, const struct tl_step *s);

/* Runs a kernel for n items, with n as its first argument. */
int device_each(struct run *r, enum tl_source source, const char *kernel, size_t n,
                const struct tl_argument *arguments, size_t n_arguments);
/* y = f(x), n values. */
int device_apply(struct run *r, enum tl_function f, float parameter, const void *x, const void *y,
                 size_t n);
/* Launches a kernel of the program of a source file; `work` is that of an item. */
int device_launch(struct run *r, enum tl_source source, const char *kernel,
                  const struct tl_argument *arguments, size_t n_arguments, const size_t global[3],
                  const size_t local[3], double work);

#endif
