/*
 * programs.c - compiles the kernels of a device, and keeps what was compiled on disk.
 *
 * A file of the cache holds the binary of one program for one device and driver. Its name is the
 * hash of everything that decides the binary. A file that is damaged, or that the driver refuses,
 * is compiled again.
 */
#include "base/hash.h"
#include "device/device_state.h"
#include "device/sources.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define OPTIONS_ROOM 1024
#define PATH_ROOM 1024

static const char magic[8] = "tlcl001";

/* The head of a file of the cache. */
struct head {
    char magic[8];
    uint64_t key[2]; // of the program, device and driver
    uint64_t bytes;  // of the binary after this
    uint64_t sum;    // its hash
};

/* Not a secret: a name that two processes agree on. */
static const struct tl_hash_key name_keys[2] = {
    {0x243f6a8885a308d3, 0x13198a2e03707344},
    {0xa4093822299f31d0, 0x082efa98ec4e6c89},
};

static void options_of(const struct tl_device *d, const struct tl_program *p, char *out) {
    static const char *const definitions[TL_LEVELS] = {
        [TL_LEVEL_NATIVE] = "-DTL_FLOAT64 -DTL_DIVIDE -cl-fp32-correctly-rounded-divide-sqrt",
        [TL_LEVEL_DIVISION] = "-DTL_FLOAT64",
        [TL_LEVEL_FLOAT32] = "",
        [TL_LEVEL_INTEGERS] = "-DTL_INTEGERS",
    };
    // compilers declare the dot products from OpenCL C 3.0 on
    const bool dots = d->dots && (p->files & TL_SOURCE_FAST) != 0;
    snprintf(out, OPTIONS_ROOM, "%s %s %s %s", dots ? "-cl-std=CL3.0 -DTL_DOTS" : "-cl-std=CL1.2",
             definitions[d->level], p->definitions, d->options);
}

#define MOST_TEXTS (TL_SOURCE_FILES + 1)

/* The array of a program's codes as text, which free() frees; NULL without memory. */
static char *array_of(const struct tl_program *p) {
    const size_t room = 64 + 8 * p->n_codes;
    char *text = malloc(room);
    size_t at = 0;
    if (text == NULL) return NULL;
    text[0] = 0;
    if (p->codes == NULL) return text;
    at += (size_t)snprintf(text, room, "__constant ushort codes[%zu] = {", p->n_codes);
    for (size_t i = 0; i < p->n_codes; i++) {
        at += (size_t)snprintf(text + at, room - at, "%u,", (unsigned)p->codes[i]);
    }
    snprintf(text + at, room - at, "};\n");
    return text;
}

/* Lists the texts of a program, the array first; returns how many. */
static uint32_t texts_of(const struct tl_program *p, const char *array, const char **texts,
                         size_t *sizes) {
    uint32_t n = 1;
    texts[0] = array;
    sizes[0] = strlen(array);
    for (int i = 0; i < TL_SOURCE_FILES; i++) {
        if ((p->files >> i & 1) == 0) continue;
        texts[n] = (const char *)tl_source_files[i].text;
        sizes[n++] = tl_source_files[i].bytes;
    }
    return n;
}

static void key_of(const struct tl_device *d, const struct tl_program *p, const char *array,
                   const char *options, uint64_t key[2]) {
    const char *texts[MOST_TEXTS];
    size_t sizes[MOST_TEXTS];
    const uint32_t n = texts_of(p, array, texts, sizes);
    for (int i = 0; i < 2; i++) {
        const struct tl_hash_key *k = &name_keys[i];
        key[i] = tl_hash_bytes(k, d->facts.name, strlen(d->facts.name));
        key[i] =
            tl_hash_word(k, key[i], tl_hash_bytes(k, d->facts.driver, strlen(d->facts.driver)));
        key[i] =
            tl_hash_word(k, key[i], tl_hash_bytes(k, d->facts.version, strlen(d->facts.version)));
        key[i] = tl_hash_word(k, key[i], tl_hash_bytes(k, options, strlen(options)));
        for (uint32_t j = 0; j < n; j++) {
            key[i] = tl_hash_word(k, key[i], tl_hash_bytes(k, texts[j], sizes[j]));
        }
    }
}

static bool path_of(const struct tl_device *d, const uint64_t key[2], const char *end, char *out) {
    const int n = snprintf(out, PATH_ROOM, "%s/%016llx%016llx%s", d->cache,
                           (unsigned long long)key[0], (unsigned long long)key[1], end);
    return n > 0 && n < PATH_ROOM;
}

/* ---- the cache: a failure means that there is no file ---- */

/* The binary in the file, which free() frees; NULL if there is no valid one. */
static uint8_t *read_binary(const struct tl_device *d, const uint64_t key[2], size_t *bytes) {
    char path[PATH_ROOM];
    struct head h;
    uint8_t *binary = NULL;
    FILE *f = path_of(d, key, ".bin", path) ? fopen(path, "rb") : NULL;
    if (f == NULL) return NULL;
    if (fread(&h, sizeof(h), 1, f) == 1 && memcmp(h.magic, magic, sizeof(magic)) == 0 &&
        h.key[0] == key[0] && h.key[1] == key[1] && h.bytes > 0 && h.bytes < (1u << 28)) {
        binary = malloc((size_t)h.bytes);
        if (binary != NULL && (fread(binary, (size_t)h.bytes, 1, f) != 1 ||
                               tl_hash_bytes(&name_keys[0], binary, (size_t)h.bytes) != h.sum)) {
            free(binary);
            binary = NULL;
        }
        *bytes = (size_t)h.bytes;
    }
    fclose(f);
    return binary;
}

/* Another process may write the same file, so it is written under another name and renamed. */
static void write_binary(const struct tl_device *d, const uint64_t key[2], cl_handle program) {
    struct head h = {.key = {key[0], key[1]}};
    char path[PATH_ROOM], temporary[PATH_ROOM], end[64];
    size_t bytes = 0;
    uint8_t *binary;
    bool ok;
    FILE *f;
    memcpy(h.magic, magic, sizeof(magic));
    if (d->cl->clGetProgramInfo(program, CL_PROGRAM_BINARY_SIZES, sizeof(bytes), &bytes, NULL) != 0)
        return;
    binary = bytes > 0 ? malloc(bytes) : NULL;
    if (binary == NULL) return;
    snprintf(end, sizeof(end), ".%llu.%p.tmp", (unsigned long long)tl_process_id(),
             (const void *)d);
    ok =
        d->cl->clGetProgramInfo(program, CL_PROGRAM_BINARIES, sizeof(binary), &binary, NULL) == 0 &&
        path_of(d, key, ".bin", path) && path_of(d, key, end, temporary);
    h.bytes = bytes;
    h.sum = tl_hash_bytes(&name_keys[0], binary, bytes);
    f = ok ? fopen(temporary, "wb") : NULL;
    if (f != NULL) {
        ok = fwrite(&h, sizeof(h), 1, f) == 1 && fwrite(binary, bytes, 1, f) == 1;
        ok = fclose(f) == 0 && ok;
        if (!ok || rename(temporary, path) != 0) remove(temporary);
    }
    free(binary);
}

/* ---- compiling ---- */

/* The program from the cache, or NULL. */
static cl_handle load(const struct tl_device *d, const uint64_t key[2], const char *options) {
    size_t bytes;
    uint8_t *binary = read_binary(d, key, &bytes);
    const uint8_t *given = binary;
    cl_handle program;
    int32_t code = 0, loaded = 0;
    if (binary == NULL) return NULL;
    program =
        d->cl->clCreateProgramWithBinary(d->context, 1, &d->id, &bytes, &given, &loaded, &code);
    free(binary);
    if (program == NULL) return NULL;
    if (code == 0 && loaded == 0 &&
        d->cl->clBuildProgram(program, 1, &d->id, options, NULL, NULL) == 0) {
        return program;
    }
    d->cl->clReleaseProgram(program);
    return NULL;
}

/* Says what the compiler said. */
static int build_failed(const struct tl_device *d, cl_handle program, int code,
                        struct tl_error *err) {
    char log[400] = "";
    size_t bytes = 0;
    char *whole = NULL;
    if (d->cl->clGetProgramBuildInfo(program, d->id, CL_PROGRAM_BUILD_LOG, 0, NULL, &bytes) == 0 &&
        bytes > 0 && (whole = malloc(bytes + 1)) != NULL &&
        d->cl->clGetProgramBuildInfo(program, d->id, CL_PROGRAM_BUILD_LOG, bytes, whole, NULL) ==
            0) {
        whole[bytes] = 0;
        snprintf(log, sizeof(log), "%s", whole);
    }
    free(whole);
    return tl_fail(err, TL_EDEVICE, "device '%s' cannot compile the kernels (%d, %s): %s",
                   d->facts.name, code, tl_opencl_status(code), log);
}

static int compile(const struct tl_device *d, const struct tl_program *p, const char *array,
                   const char *options, cl_handle *out, struct tl_error *err) {
    const char *texts[MOST_TEXTS];
    size_t sizes[MOST_TEXTS];
    const uint32_t n = texts_of(p, array, texts, sizes);
    int32_t code = 0;
    cl_handle program = d->cl->clCreateProgramWithSource(d->context, n, texts, sizes, &code);
    if (program == NULL) return tl_device_fail(d, "clCreateProgramWithSource", code, err);
    code = d->cl->clBuildProgram(program, 1, &d->id, options, NULL, NULL);
    if (code != 0) {
        const int status = build_failed(d, program, code, err);
        d->cl->clReleaseProgram(program);
        return status;
    }
    *out = program;
    return TL_OK;
}

/* Loads or compiles a program. */
static int make_program(const struct tl_device *d, const struct tl_program *p, cl_handle *out,
                        struct tl_error *err) {
    char options[OPTIONS_ROOM];
    char *array = array_of(p);
    uint64_t key[2];
    int status = TL_OK;
    if (array == NULL) return tl_fail(err, TL_ENOMEM, "no memory for a program");
    options_of(d, p, options);
    key_of(d, p, array, options, key);
    *out = d->cache != NULL ? load(d, key, options) : NULL;
    if (*out == NULL) {
        status = compile(d, p, array, options, out, err);
        if (status == TL_OK && d->cache != NULL) write_binary(d, key, *out);
    }
    free(array);
    return status;
}

/* Finds or makes the program; the caller holds the lock. */
static int find_program(struct tl_device *d, const struct tl_program *p, struct tl_compiled **out,
                        struct tl_error *err) {
    cl_handle handle;
    void *programs = d->programs;
    int status;
    for (size_t i = 0; i < d->n_programs; i++) {
        *out = &d->programs[i];
        if ((*out)->what.files == p->files &&
            strcmp((*out)->what.definitions, p->definitions) == 0) {
            return TL_OK;
        }
    }
    if (!tl_reserve(&programs, &d->capacity, d->n_programs + 1, sizeof(*d->programs))) {
        return tl_fail(err, TL_ENOMEM, "no memory for a program");
    }
    d->programs = programs;
    status = make_program(d, p, &handle, err);
    if (status != TL_OK) return status;
    *out = &d->programs[d->n_programs++];
    memset(*out, 0, sizeof(**out));
    (*out)->what = *p;
    (*out)->handle = handle;
    return TL_OK;
}

int tl_program_kernel(struct tl_device *d, const struct tl_program *p, const char *name,
                      cl_handle *out, struct tl_error *err) {
    struct tl_compiled *c;
    int32_t code = 0;
    const int status = find_program(d, p, &c, err);
    if (status != TL_OK) return status;
    for (size_t i = 0; i < c->n_kernels; i++) {
        *out = c->kernels[i].handle;
        if (strcmp(c->kernels[i].name, name) == 0) return TL_OK;
    }
    if (c->n_kernels == TL_ARRAY_LEN(c->kernels)) {
        return tl_fail(err, TL_EDEVICE, "a program has more kernels than its table holds");
    }
    *out = d->cl->clCreateKernel(c->handle, name, &code);
    if (*out == NULL) {
        char call[64];
        snprintf(call, sizeof(call), "clCreateKernel of '%s'", name);
        return tl_device_fail(d, call, code, err);
    }
    c->kernels[c->n_kernels].handle = *out;
    snprintf(c->kernels[c->n_kernels++].name, sizeof(c->kernels->name), "%s", name);
    return TL_OK;
}

int tl_device_compile(struct tl_device *d, const struct tl_program *p, struct tl_error *err) {
    struct tl_compiled *c;
    int status = tl_device_check(d, err);
    if (status != TL_OK) return status;
    tl_mutex_lock(&d->lock);
    status = find_program(d, p, &c, err);
    tl_mutex_unlock(&d->lock);
    return status;
}

void tl_device_set_level(struct tl_device *d, enum tl_level level) {
    for (size_t i = 0; i < d->n_programs; i++) {
        struct tl_compiled *c = &d->programs[i];
        for (size_t j = 0; j < c->n_kernels; j++) d->cl->clReleaseKernel(c->kernels[j].handle);
        d->cl->clReleaseProgram(c->handle);
    }
    d->n_programs = 0;
    d->level = level;
}

void tl_device_set_dots(struct tl_device *d, bool dots) {
    tl_device_set_level(d, d->level);
    d->dots = dots;
}
