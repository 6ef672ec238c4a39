/* device.c - devices of OpenCL: their list, their memory and their queues. programs.c compiles. */
#include "device/device.h"

#include "base/os.h"
#include "device/device_state.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MAX_PLATFORMS 16
#define MAX_DEVICES 64

const char *const tl_level_names[TL_LEVELS] = {"native", "division", "float32", "integers"};

int tl_device_fail(const struct tl_device *d, const char *call, int status, struct tl_error *err) {
    return tl_fail(err, TL_EDEVICE, "device '%s': %s failed with %d (%s)", d->facts.name, call,
                   status, tl_opencl_status(status));
}

/* ---- the list ---- */

static void text_of(const struct tl_opencl *cl, cl_handle id, uint32_t what, char *out,
                    size_t room) {
    char text[4096] = "";
    if (cl->clGetDeviceInfo(id, what, sizeof(text) - 1, text, NULL) != 0) text[0] = 0;
    snprintf(out, room, "%s", text);
}

static uint64_t number_of(const struct tl_opencl *cl, cl_handle id, uint32_t what, size_t bytes) {
    uint64_t wide = 0;
    uint32_t narrow = 0;
    if (bytes == 4) {
        if (cl->clGetDeviceInfo(id, what, 4, &narrow, NULL) != 0) narrow = 0;
        return narrow;
    }
    if (cl->clGetDeviceInfo(id, what, 8, &wide, NULL) != 0) wide = 0;
    return wide;
}

static void describe(const struct tl_opencl *cl, cl_handle id, struct tl_device_info *out) {
    text_of(cl, id, CL_DEVICE_NAME, out->name, sizeof(out->name));
    text_of(cl, id, CL_DRIVER_VERSION, out->driver, sizeof(out->driver));
    text_of(cl, id, CL_DEVICE_VERSION, out->version, sizeof(out->version));
    out->memory = number_of(cl, id, CL_DEVICE_GLOBAL_MEM_SIZE, 8);
    out->largest = number_of(cl, id, CL_DEVICE_MAX_MEM_ALLOC_SIZE, 8);
    out->gpu = (number_of(cl, id, CL_DEVICE_TYPE, 8) &
                (CL_DEVICE_TYPE_GPU | CL_DEVICE_TYPE_ACCELERATOR)) != 0;
}

/* Finds the devices of all platforms; *n is at most MAX_DEVICES. */
static int find_devices(const struct tl_opencl *cl, cl_handle *ids, uint32_t *n,
                        struct tl_error *err) {
    cl_handle platforms[MAX_PLATFORMS];
    uint32_t n_platforms = 0;
    const int status = cl->clGetPlatformIDs(MAX_PLATFORMS, platforms, &n_platforms);
    *n = 0;
    if (status == CL_PLATFORM_NOT_FOUND_KHR) return TL_OK; // the loader is there, and no driver
    if (status != 0) {
        return tl_fail(err, TL_EDEVICE, "clGetPlatformIDs failed with %d (%s)", status,
                       tl_opencl_status(status));
    }
    for (uint32_t i = 0; i < TL_MIN(n_platforms, (uint32_t)MAX_PLATFORMS); i++) {
        uint32_t found = 0, room = MAX_DEVICES - *n;
        if (room == 0) break;
        // a platform without devices answers with an error
        if (cl->clGetDeviceIDs(platforms[i], 0xffffffffu, room, ids + *n, &found) != 0) continue;
        *n += TL_MIN(found, room);
    }
    return TL_OK;
}

int tl_device_list(struct tl_device_info *out, size_t room, size_t *n, struct tl_error *err) {
    cl_handle ids[MAX_DEVICES];
    const struct tl_opencl *cl;
    uint32_t found;
    int status = tl_opencl_open(&cl, err);
    if (status == TL_OK) status = find_devices(cl, ids, &found, err);
    if (status != TL_OK) return status;
    for (uint32_t i = 0; i < found && i < room; i++) describe(cl, ids[i], &out[i]);
    *n = found;
    return TL_OK;
}

/* ---- a device ---- */

/* Whether the core can use a device at all; else says why not. */
static int check_usable(const struct tl_device *d, struct tl_error *err) {
    unsigned major = 0, minor = 0;
    if (number_of(d->cl, d->id, CL_DEVICE_AVAILABLE, 4) == 0) {
        return tl_fail(err, TL_ENOSUP, "device '%s' is not available", d->facts.name);
    }
    if (number_of(d->cl, d->id, CL_DEVICE_COMPILER_AVAILABLE, 4) == 0) {
        return tl_fail(err, TL_ENOSUP, "device '%s' has no compiler", d->facts.name);
    }
    if (number_of(d->cl, d->id, CL_DEVICE_ENDIAN_LITTLE, 4) == 0) {
        return tl_fail(err, TL_ENOSUP, "device '%s' is big-endian; expected little-endian",
                       d->facts.name);
    }
    // "OpenCL 1.2 ..."
    if (sscanf(d->facts.version, "OpenCL %u.%u", &major, &minor) != 2 || major * 10 + minor < 12) {
        return tl_fail(err, TL_ENOSUP, "device '%s' has '%s'; expected OpenCL 1.2 or later",
                       d->facts.name, d->facts.version);
    }
    return TL_OK;
}

/* Whether the device has an extension. Their list can be long. */
static bool has_extension(const struct tl_device *d, const char *name) {
    size_t bytes = 0;
    char *text = NULL;
    bool has = false;
    if (d->cl->clGetDeviceInfo(d->id, CL_DEVICE_EXTENSIONS, 0, NULL, &bytes) == 0) {
        text = calloc(1, bytes + 1);
    }
    if (text != NULL &&
        d->cl->clGetDeviceInfo(d->id, CL_DEVICE_EXTENSIONS, bytes, text, NULL) == 0) {
        has = strstr(text, name) != NULL;
    }
    free(text);
    return has;
}

enum tl_level tl_device_claims(const struct tl_device *d) {
    const uint64_t config = number_of(d->cl, d->id, CL_DEVICE_SINGLE_FP_CONFIG, 8);
    if ((config & CL_FP_DENORM) == 0 || (config & CL_FP_FMA) == 0) return TL_LEVEL_INTEGERS;
    if (!has_extension(d, "cl_khr_fp64")) return TL_LEVEL_FLOAT32;
    return config & CL_FP_CORRECTLY_ROUNDED_DIVIDE_SQRT ? TL_LEVEL_NATIVE : TL_LEVEL_DIVISION;
}

bool tl_device_claims_dots(const struct tl_device *d) {
    return has_extension(d, "cl_khr_integer_dot_product") &&
           (number_of(d->cl, d->id, CL_DEVICE_INTEGER_DOT_PRODUCT_CAPABILITIES_KHR, 8) &
            CL_DEVICE_INTEGER_DOT_PRODUCT_INPUT_4x8BIT_PACKED_KHR) != 0;
}

int tl_device_open(size_t i, const struct tl_device_options *options, struct tl_device **out,
                   struct tl_error *err) {
    cl_handle ids[MAX_DEVICES];
    struct tl_device *d = calloc(1, sizeof(*d));
    uint32_t n;
    uint64_t most;
    int32_t code = 0;
    int status;
    *out = NULL;
    if (d == NULL) return tl_fail(err, TL_ENOMEM, "no memory for a device");
    tl_mutex_init(&d->lock);
    d->process = tl_process_id();
    status = tl_opencl_open(&d->cl, err);
    if (status == TL_OK) status = find_devices(d->cl, ids, &n, err);
    if (status == TL_OK && i >= n) {
        status = tl_fail(err, TL_EARG, "device is %zu; OpenCL lists %u", i, (unsigned)n);
    }
    if (status == TL_OK) {
        d->id = ids[i];
        describe(d->cl, d->id, &d->facts);
        status = check_usable(d, err);
    }
    if (status == TL_OK) {
        d->context = d->cl->clCreateContext(NULL, 1, &d->id, NULL, NULL, &code);
        if (d->context == NULL) status = tl_device_fail(d, "clCreateContext", code, err);
    }
    if (status == TL_OK && options->cache != NULL) {
        d->cache = malloc(strlen(options->cache) + 1);
        if (d->cache == NULL)
            status = tl_fail(err, TL_ENOMEM, "no memory for a device");
        else
            strcpy(d->cache, options->cache);
    }
    if (status != TL_OK) {
        tl_device_close(d);
        return status;
    }
    d->level = (enum tl_level)options->level;
    most = number_of(d->cl, d->id, CL_DEVICE_MAX_WORK_GROUP_SIZE, sizeof(size_t));
    d->group = (size_t)TL_MAX(TL_MIN(options->group > 0 ? options->group : 64, most), 1);
    d->launch = (double)options->launch;
    snprintf(d->options, sizeof(d->options), "%s", options->options ? options->options : "");
    *out = d;
    return TL_OK;
}

void tl_device_close(struct tl_device *d) {
    if (d == NULL) return;
    if (d->process == tl_process_id()) {
        tl_device_set_level(d, d->level);
        if (d->context != NULL) d->cl->clReleaseContext(d->context);
    }
    tl_mutex_destroy(&d->lock);
    free(d->programs);
    free(d->cache);
    free(d);
}

const struct tl_device_info *tl_device_facts(const struct tl_device *d) {
    return &d->facts;
}

enum tl_level tl_device_level(const struct tl_device *d) {
    return d->level;
}

bool tl_device_dots(const struct tl_device *d) {
    return d->dots;
}

size_t tl_device_group(const struct tl_device *d) {
    return d->group;
}

int tl_device_check(const struct tl_device *d, struct tl_error *err) {
    if (d->process == tl_process_id()) return TL_OK;
    return tl_fail(err, TL_EDEVICE,
                   "device '%s' was opened before this process was forked; load the model in the "
                   "child, which must not have used the device before, or start processes with "
                   "'spawn'",
                   d->facts.name);
}

/* ---- memory ---- */

static bool out_of_memory(int status) {
    return status == CL_MEM_OBJECT_ALLOCATION_FAILURE || status == CL_OUT_OF_RESOURCES ||
           status == CL_OUT_OF_HOST_MEMORY || status == CL_INVALID_BUFFER_SIZE;
}

/* `what` NULL: for what is in use already. */
static int no_memory(const struct tl_device *d, size_t bytes, const char *what,
                     struct tl_error *err) {
    char wanted[96] = "what is in use";
    if (what != NULL) snprintf(wanted, sizeof(wanted), "%zu bytes of %s", bytes, what);
    return tl_fail(err, TL_ENOMEM,
                   "device '%s' has no memory for %s: it has %llu in all, at most %llu in one "
                   "buffer, and %zu are in use; load with fewer layers on the device "
                   "(device_layers=)",
                   d->facts.name, wanted, (unsigned long long)d->facts.memory,
                   (unsigned long long)d->facts.largest, d->used);
}

int tl_device_alloc(struct tl_device *d, size_t bytes, const char *what, void **out,
                    struct tl_error *err) {
    int32_t status = 0;
    int checked = tl_device_check(d, err);
    struct tl_memory *m;
    *out = NULL;
    if (checked != TL_OK) return checked;
    bytes = TL_MAX(bytes, (size_t)64);
    // OpenCL may grant more than there is and fail when the memory is used first
    if (bytes > d->facts.largest) return no_memory(d, bytes, what, err);
    tl_mutex_lock(&d->lock);
    if (d->used > d->facts.memory || bytes > d->facts.memory - d->used) {
        tl_mutex_unlock(&d->lock);
        return no_memory(d, bytes, what, err);
    }
    d->used += bytes;
    tl_mutex_unlock(&d->lock);
    m = malloc(sizeof(*m));
    if (m != NULL) {
        m->bytes = bytes;
        m->handle = d->cl->clCreateBuffer(d->context, CL_MEM_READ_WRITE, bytes, NULL, &status);
        if (m->handle != NULL) {
            *out = m;
            return TL_OK;
        }
    }
    free(m);
    tl_mutex_lock(&d->lock);
    d->used -= bytes;
    tl_mutex_unlock(&d->lock);
    if (status != 0 && !out_of_memory(status)) {
        return tl_device_fail(d, "clCreateBuffer", status, err);
    }
    return no_memory(d, bytes, what, err);
}

void tl_device_free(struct tl_device *d, void *buffer) {
    struct tl_memory *m = buffer;
    if (m == NULL) return;
    if (d->process == tl_process_id()) {
        d->cl->clReleaseMemObject(m->handle);
        tl_mutex_lock(&d->lock);
        d->used -= m->bytes;
        tl_mutex_unlock(&d->lock);
    }
    free(m);
}

int tl_device_room(struct tl_device *d, struct tl_room *room, size_t bytes, const char *what,
                   struct tl_error *err) {
    if (room->buffer != NULL && room->bytes >= bytes) return TL_OK;
    tl_device_free(d, room->buffer);
    room->buffer = NULL;
    room->bytes = bytes;
    return tl_device_alloc(d, bytes, what, &room->buffer, err);
}

size_t tl_device_used(const struct tl_device *d) {
    return d->used;
}

/* ---- queues ---- */

/* How long the queue works, about, before the host waits for it: then Ctrl-C is noticed soon, and
   no memory of a captured value waits for long. How much work that is, each queue learns anew. */
#define WAIT_NS 50000000
#define LEAST_WORK 1e7
#define MOST_WORK 2e10
/* How often the caller is asked whether to go on, if the queue has less work. */
#define POLL_NS 20000000

struct tl_queue {
    struct tl_device *device;
    cl_handle handle;
    double pace;     // work between two waits
    double queued;   // work since it was last waited for
    uint64_t waited; // when that was
    uint64_t polled; // when the caller was last asked
    int (*poll)(void *user);
    void *poll_user;
};

int tl_queue_new(struct tl_device *d, struct tl_queue **out, struct tl_error *err) {
    struct tl_queue *q;
    int32_t code = 0;
    const int status = tl_device_check(d, err);
    *out = NULL;
    if (status != TL_OK) return status;
    q = calloc(1, sizeof(*q));
    if (q == NULL) return tl_fail(err, TL_ENOMEM, "no memory for a queue");
    q->device = d;
    q->pace = LEAST_WORK;
    q->waited = tl_clock_ns();
    q->handle = d->cl->clCreateCommandQueue(d->context, d->id, 0, &code);
    if (q->handle == NULL) {
        free(q);
        return tl_device_fail(d, "clCreateCommandQueue", code, err);
    }
    *out = q;
    return TL_OK;
}

void tl_queue_free(struct tl_queue *q) {
    if (q == NULL) return;
    if (q->device->process == tl_process_id()) {
        q->device->cl->clFinish(q->handle);
        q->device->cl->clReleaseCommandQueue(q->handle);
    }
    free(q);
}

struct tl_device *tl_queue_device(const struct tl_queue *q) {
    return q->device;
}

/* What a call on a queue returned, as a status of the core. A driver may notice only here that
   there is no memory for a buffer that it granted. */
static int result_of(const struct tl_queue *q, const char *call, int status, struct tl_error *err) {
    if (status == 0) return TL_OK;
    if (status == CL_MEM_OBJECT_ALLOCATION_FAILURE) return no_memory(q->device, 0, NULL, err);
    return tl_device_fail(q->device, call, status, err);
}

int tl_queue_write(struct tl_queue *q, void *to, size_t at, const void *from, size_t bytes,
                   struct tl_error *err) {
    if (bytes == 0) return TL_OK;
    return result_of(q, "clEnqueueWriteBuffer",
                     q->device->cl->clEnqueueWriteBuffer(q->handle, tl_memory_of(to), 1, at, bytes,
                                                         from, 0, NULL, NULL),
                     err);
}

int tl_queue_read(struct tl_queue *q, const void *from, size_t at, void *to, size_t bytes,
                  bool wait, struct tl_error *err) {
    if (bytes == 0) return TL_OK;
    return result_of(q, "clEnqueueReadBuffer",
                     q->device->cl->clEnqueueReadBuffer(q->handle, tl_memory_of(from), wait, at,
                                                        bytes, to, 0, NULL, NULL),
                     err);
}

int tl_queue_copy(struct tl_queue *q, const void *from, size_t at, void *to, size_t to_at,
                  size_t bytes, struct tl_error *err) {
    if (bytes == 0) return TL_OK;
    return result_of(q, "clEnqueueCopyBuffer",
                     q->device->cl->clEnqueueCopyBuffer(q->handle, tl_memory_of(from),
                                                        tl_memory_of(to), at, to_at, bytes, 0, NULL,
                                                        NULL),
                     err);
}

int tl_queue_finish(struct tl_queue *q, struct tl_error *err) {
    const int status = q->device->cl->clFinish(q->handle);
    q->queued = 0;
    q->waited = tl_clock_ns();
    return result_of(q, "clFinish", status, err);
}

void tl_queue_poll(struct tl_queue *q, int (*poll)(void *user), void *user) {
    q->poll = poll;
    q->poll_user = user;
    q->waited = q->polled = tl_clock_ns();
}

double tl_queue_most(const struct tl_queue *q) {
    return q->device->launch > 0 ? q->device->launch : q->pace;
}

bool tl_device_lost(struct tl_device *d) {
    const uint8_t bytes[64] = {0};
    struct tl_queue *q = NULL;
    void *buffer = NULL;
    struct tl_error err;
    int status;
    if (d->process != tl_process_id()) return false;
    status = tl_queue_new(d, &q, &err);
    if (status == TL_OK) status = tl_device_alloc(d, sizeof(bytes), "a test", &buffer, &err);
    if (status == TL_OK) status = tl_queue_write(q, buffer, 0, bytes, sizeof(bytes), &err);
    if (status == TL_OK) status = tl_queue_finish(q, &err);
    tl_queue_free(q);
    tl_device_free(d, buffer);
    return status == TL_EDEVICE; // no memory for 64 bytes is not the end of it
}

struct tl_argument tl_buffer_argument(const void *buffer) {
    static const cl_handle none = NULL;
    const struct tl_memory *m = buffer;
    return (struct tl_argument){sizeof(cl_handle), m != NULL ? &m->handle : &none};
}

/* Waits for the queue if it has much to do, and asks the caller now and then whether to go on. */
static int keep_pace(struct tl_queue *q, struct tl_error *err) {
    const double work = q->queued;
    const uint64_t began = q->waited;
    uint64_t now = tl_clock_ns();
    if (work >= q->pace) {
        const int status = tl_queue_finish(q, err);
        double spent;
        if (status != TL_OK) return status;
        now = q->waited;
        spent = TL_MAX((double)(now - began), 1.0);
        q->pace = TL_MIN(work * TL_MIN(WAIT_NS / spent, 4.0), MOST_WORK);
        q->pace = TL_MAX(q->pace, LEAST_WORK);
    } else if (now - q->polled < POLL_NS) {
        return TL_OK;
    }
    q->polled = now;
    if (q->poll == NULL || q->poll(q->poll_user) == 0) return TL_OK;
    return tl_fail(err, TL_ESTOP, "interrupted");
}

/* Puts `size` items from `from` on into the queue. */
static int launch_some(struct tl_queue *q, const struct tl_launch *l, const size_t from[3],
                       const size_t size[3], struct tl_error *err) {
    struct tl_device *d = q->device;
    cl_handle kernel;
    int32_t code = 0;
    int status;
    // arguments belong to the kernel, so no other thread may set them before it is in the queue
    tl_mutex_lock(&d->lock);
    status = tl_program_kernel(d, l->program, l->kernel, &kernel, err);
    for (size_t i = 0; status == TL_OK && i < l->n_arguments; i++) {
        const struct tl_argument *a = &l->arguments[i];
        code = d->cl->clSetKernelArg(kernel, (uint32_t)i, a->bytes, a->value);
        if (code != 0) status = tl_device_fail(d, "clSetKernelArg", code, err);
    }
    if (status == TL_OK) {
        code = d->cl->clEnqueueNDRangeKernel(q->handle, kernel, 3, from, size, l->local, 0, NULL,
                                             NULL);
        status = result_of(q, "clEnqueueNDRangeKernel", code, err);
    }
    tl_mutex_unlock(&d->lock);
    if (status != TL_OK) return status;
    q->queued += (double)size[0] * (double)size[1] * (double)size[2] * l->work;
    return keep_pace(q, err);
}

int tl_queue_launch(struct tl_queue *q, const struct tl_launch *l, struct tl_error *err) {
    const double items = (double)l->local[0] * (double)l->local[1] * (double)l->local[2];
    const double fit = tl_queue_most(q) / TL_MAX(items * l->work, 1.0); // groups of a launch
    size_t from[3], size[3], all[3], groups = fit < 1e9 ? (size_t)TL_MAX(fit, 1.0) : 1000000000;
    for (int i = 0; i < 3; i++) {
        const size_t n = TL_MAX(TL_MIN(l->global[i] / l->local[i], groups), (size_t)1);
        all[i] = n * l->local[i];
        groups /= n;
    }
    for (from[2] = 0; from[2] < l->global[2]; from[2] += all[2]) {
        for (from[1] = 0; from[1] < l->global[1]; from[1] += all[1]) {
            for (from[0] = 0; from[0] < l->global[0]; from[0] += all[0]) {
                int status;
                for (int i = 0; i < 3; i++) size[i] = TL_MIN(all[i], l->global[i] - from[i]);
                status = launch_some(q, l, from, size, err);
                if (status != TL_OK) return status;
            }
        }
    }
    return TL_OK;
}
