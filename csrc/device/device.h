/*
 * device.h - a device of OpenCL: its memory, its programs and the queue that runs them.
 *
 * A device is opened once for the process and is never closed. Handles of its memory are `void *`.
 * Every function that fails says which call failed and how. A device belongs to the process that
 * opened it: in a forked child each call fails, and nothing is released.
 */
#ifndef TL_DEVICE_H
#define TL_DEVICE_H

#include "base/base.h"

/* How much of the arithmetic a device does natively; the rest is done in integers. All give the
   same bits. */
enum tl_level {
    TL_LEVEL_NATIVE,   // float64 and float32
    TL_LEVEL_DIVISION, // the same, but for float32 division
    TL_LEVEL_FLOAT32,  // float32 without division
    TL_LEVEL_INTEGERS, // nothing
    TL_LEVELS,
};

/* "native", "division", "float32", "integers". */
extern const char *const tl_level_names[TL_LEVELS];

/* What OpenCL says about a device. */
struct tl_device_info {
    char name[160];
    char driver[96];
    char version[96];
    uint64_t memory;  // bytes
    uint64_t largest; // bytes of one buffer
    bool gpu;         // or an accelerator, but not a CPU
};

struct tl_device;

/* Lists the devices; at most `room` of them are written, *n is how many there are. */
int tl_device_list(struct tl_device_info *out, size_t room, size_t *n, struct tl_error *err);

/* Options of opening. */
struct tl_device_options {
    const char *cache;   // folder for compiled programs, which exists; NULL: none
    const char *options; // further options of the compiler: only tests have any; may be NULL
    int level;           // the highest level to try
    size_t group;        // work-items of a group; 0: the default. For tests
    size_t launch;       // most work of a launch; 0: about 50 ms of it. For tests
};

/*
 * Opens device number i of the list, without a test of its arithmetic: selftest.h has that. The
 * level is options->level.
 */
int tl_device_open(size_t i, const struct tl_device_options *options, struct tl_device **out,
                   struct tl_error *err);
void tl_device_close(struct tl_device *d);

const struct tl_device_info *tl_device_facts(const struct tl_device *d);
enum tl_level tl_device_level(const struct tl_device *d);
/* The highest level that the device says it can have: what it says is tested afterwards. */
enum tl_level tl_device_claims(const struct tl_device *d);
/* Drops all programs and takes another level. No program may be in use. */
void tl_device_set_level(struct tl_device *d, enum tl_level level);
/* Whether fast mode uses the device's own dot products of integers; at first it does not. */
bool tl_device_dots(const struct tl_device *d);
/* Whether the device says that it has them. */
bool tl_device_claims_dots(const struct tl_device *d);
/* Drops all programs, as above. */
void tl_device_set_dots(struct tl_device *d, bool dots);
/* Work-items of a group, at least 1. */
size_t tl_device_group(const struct tl_device *d);
/* TL_EDEVICE in a process that did not open it. */
int tl_device_check(const struct tl_device *d, struct tl_error *err);

/* Whether a small write to the device fails. False in a process that did not open it. */
bool tl_device_lost(struct tl_device *d);

/* ---- memory ---- */

/* Memory of a device that grows when it is asked for more. All zeros: empty. */
struct tl_room {
    void *buffer;
    size_t bytes;
};

/* `what` is for the message: "the weights", "the kv cache". */
int tl_device_alloc(struct tl_device *d, size_t bytes, const char *what, void **out,
                    struct tl_error *err);
void tl_device_free(struct tl_device *d, void *buffer);
/* Makes room for that many bytes; what was in it is lost if it has to grow. */
int tl_device_room(struct tl_device *d, struct tl_room *room, size_t bytes, const char *what,
                   struct tl_error *err);
/* Bytes that are allocated at present. */
size_t tl_device_used(const struct tl_device *d);

/* ---- queues: what is put in runs in order ---- */

struct tl_queue;

int tl_queue_new(struct tl_device *d, struct tl_queue **out, struct tl_error *err);
void tl_queue_free(struct tl_queue *q);
struct tl_device *tl_queue_device(const struct tl_queue *q);
/* Copies to the device; `from` may be changed afterwards. */
int tl_queue_write(struct tl_queue *q, void *to, size_t at, const void *from, size_t bytes,
                   struct tl_error *err);
/* Copies from the device. Without `wait`, `to` is complete after the next tl_queue_finish. */
int tl_queue_read(struct tl_queue *q, const void *from, size_t at, void *to, size_t bytes,
                  bool wait, struct tl_error *err);
int tl_queue_copy(struct tl_queue *q, const void *from, size_t at, void *to, size_t to_at,
                  size_t bytes, struct tl_error *err);
int tl_queue_finish(struct tl_queue *q, struct tl_error *err);
/* What is asked, about every 20 ms of launches, whether to go on; not 0: the launch fails with
   TL_ESTOP. NULL: nothing. */
void tl_queue_poll(struct tl_queue *q, int (*poll)(void *user), void *user);
/* The most work of a launch. */
double tl_queue_most(const struct tl_queue *q);

/* ---- programs ---- */

/*
 * A program: some of the source files, compiled with a definition. `files` is a mask of enum
 * tl_source; the definition is "-DNAME=VALUE ..." or "".
 */
struct tl_program {
    unsigned files;
    char definitions[64];
    const uint16_t *codes; // become an array `codes` before the files; it never changes; or NULL
    size_t n_codes;
};

enum tl_source {
    TL_SOURCE_ARITHMETIC = 1,
    TL_SOURCE_FUNCTIONS = 2,
    TL_SOURCE_TYPES = 4,
    TL_SOURCE_MATMUL = 8,
    TL_SOURCE_OPS = 16,
    TL_SOURCE_ATTENTION = 32,
    TL_SOURCE_SELFTEST = 64,
    TL_SOURCE_ROUTER = 128,
    TL_SOURCE_RECURRENT = 256,
    TL_SOURCE_FAST = 512,  // after those of matmuls
    TL_SOURCE_ROWS = 1024, // after that of types
};

/* An argument of a kernel; value NULL: that many bytes of local memory. */
struct tl_argument {
    size_t bytes;
    const void *value;
};

#define TL_ARGUMENT(x)                                                                             \
    { sizeof(x), &(x) }

/* A buffer as an argument; NULL is a null pointer for the kernel. */
struct tl_argument tl_buffer_argument(const void *buffer);

/* Work is counted in multiplications, about. This much is that of an item that gives a value. */
#define TL_WORK_OF_VALUE 64

/* A kernel with its arguments; local[i] divides global[i]. */
struct tl_launch {
    const struct tl_program *program;
    const char *kernel;
    const struct tl_argument *arguments;
    size_t n_arguments;
    size_t global[3], local[3];
    double work; // of an item
};

/* Compiles the program if that was not done before. */
int tl_device_compile(struct tl_device *d, const struct tl_program *p, struct tl_error *err);
/*
 * Runs a kernel. It is cut into launches of some work-groups each, so that none takes much longer
 * than 50 ms, and the host waits for the queue as often. So a display is not held up, and the poll
 * is asked in time. A kernel must not call get_group_id, nor a function that gives the size of the
 * whole. In an axis where groups have one item, get_global_id is the number of the group.
 */
int tl_queue_launch(struct tl_queue *q, const struct tl_launch *l, struct tl_error *err);

#endif
