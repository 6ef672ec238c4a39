/* device_state.h - what device.c and programs.c share of a device. */
#ifndef TL_DEVICE_STATE_H
#define TL_DEVICE_STATE_H

#include "base/os.h"
#include "device/device.h"
#include "device/opencl.h"
#include "types/types.h"

/* A compiled program, and the kernels of it that were used. */
struct tl_compiled {
    struct tl_program what;
    cl_handle handle;
    struct {
        char name[32];
        cl_handle handle;
    } kernels[48];
    size_t n_kernels;
};

/* A buffer. Its address is the handle that device.h gives out. */
struct tl_memory {
    cl_handle handle;
    size_t bytes;
};

struct tl_device {
    const struct tl_opencl *cl;
    struct tl_device_info facts;
    cl_handle id, context;
    uint64_t process; // that opened it
    enum tl_level level;
    bool dots; // fast mode uses dot products of cl_khr_integer_dot_product
    size_t group;
    double launch;     // most work of a launch; 0: it is learnt
    char *cache;       // owns; folder of compiled programs, or NULL
    char options[256]; // further options of the compiler
    struct tl_mutex lock;
    size_t used; // bytes of all buffers
    uint8_t types[2]
                 [TL_TYPE_COUNT]; // of exact and of fast mode. 0: not tested, 1: passed, 2: failed
    struct tl_compiled *programs;
    size_t n_programs, capacity;
};

static inline cl_handle tl_memory_of(const void *buffer) {
    return ((const struct tl_memory *)buffer)->handle;
}

/* Fails with TL_EDEVICE: names the device, the call and the status. */
int tl_device_fail(const struct tl_device *d, const char *call, int status, struct tl_error *err);

/* Finds or compiles a program, and a kernel of it. The caller holds the lock. */
int tl_program_kernel(struct tl_device *d, const struct tl_program *p, const char *name,
                      cl_handle *out, struct tl_error *err);

#endif
