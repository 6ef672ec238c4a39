/*
 * opencl_faults.c - an OpenCL library whose calls fail when a test says so.
 *
 * It is linked to the library of the system, which has the calls that are not here. calls_left
 * counts the calls that still succeed; then each returns `status`, until the test counts anew. A
 * test also sets how many bytes buffers may have in all, and reads how many buffers there are. It
 * reads how many launches there were and the work-groups of the largest, and can have the process
 * interrupted (Ctrl-C) at one of them.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <signal.h>
#include <stddef.h>
#include <stdint.h>

long calls_left = -1; // negative: all succeed
int status = -5;
long bytes_left = -1; // of buffers; negative: any number
long buffers;         // that are not released
long launches;
long most_groups;
long interrupted = -1; // at which launch

static void *real(const char *name) {
    return dlsym(dlopen("libOpenCL.so.1", RTLD_NOW | RTLD_LOCAL), name);
}

static int fails(void) {
    if (calls_left > 0) calls_left--;
    return calls_left == 0;
}

int clEnqueueNDRangeKernel(void *q, void *k, uint32_t n, const size_t *o, const size_t *g,
                           const size_t *l, uint32_t m, const void *w, void *e) {
    int (*call)(void *, void *, uint32_t, const size_t *, const size_t *, const size_t *, uint32_t,
                const void *, void *) = real("clEnqueueNDRangeKernel");
    long groups = 1;
    for (uint32_t i = 0; i < n; i++) groups *= (long)(g[i] / l[i]);
    if (groups > most_groups) most_groups = groups;
    if (++launches == interrupted) raise(SIGINT);
    return fails() ? status : call(q, k, n, o, g, l, m, w, e);
}

int clEnqueueReadBuffer(void *q, void *b, uint32_t wait, size_t o, size_t n, void *to, uint32_t m,
                        const void *w, void *e) {
    int (*call)(void *, void *, uint32_t, size_t, size_t, void *, uint32_t, const void *, void *) =
        real("clEnqueueReadBuffer");
    return fails() ? status : call(q, b, wait, o, n, to, m, w, e);
}

int clEnqueueWriteBuffer(void *q, void *b, uint32_t wait, size_t o, size_t n, const void *from,
                         uint32_t m, const void *w, void *e) {
    int (*call)(void *, void *, uint32_t, size_t, size_t, const void *, uint32_t, const void *,
                void *) = real("clEnqueueWriteBuffer");
    return fails() ? status : call(q, b, wait, o, n, from, m, w, e);
}

int clFinish(void *q) {
    int (*call)(void *) = real("clFinish");
    return fails() ? status : call(q);
}

void *newest, *lost; // contexts: with a lost one no queue can be made

void *clCreateContext(const void *p, uint32_t n, const void *ids, void *f, void *user, int *code) {
    void *(*call)(const void *, uint32_t, const void *, void *, void *, int *) =
        real("clCreateContext");
    return newest = call(p, n, ids, f, user, code);
}

void *clCreateCommandQueue(void *c, void *d, uint64_t properties, int *code) {
    void *(*call)(void *, void *, uint64_t, int *) = real("clCreateCommandQueue");
    *code = status;
    return c == lost ? NULL : call(c, d, properties, code);
}

void *clCreateBuffer(void *c, uint64_t flags, size_t n, void *host, int *code) {
    void *(*call)(void *, uint64_t, size_t, void *, int *) = real("clCreateBuffer");
    void *b = NULL;
    if (fails()) {
        *code = status;
        return NULL;
    }
    *code = -4; // CL_MEM_OBJECT_ALLOCATION_FAILURE
    if (bytes_left < 0 || (long)n <= bytes_left) b = call(c, flags, n, host, code);
    if (b != NULL && bytes_left >= 0) bytes_left -= (long)n;
    buffers += b != NULL;
    return b;
}

int clReleaseMemObject(void *b) {
    int (*call)(void *) = real("clReleaseMemObject");
    buffers--;
    return call(b);
}
