/* gguf.c - the reader of GGUF files. */
#include "files/gguf.h"

#include "base/load.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define FIELD_BYTES 160
#define HEADER_BYTES 24
#define MIN_ENTRY_BYTES 13  // length of the key, type, and a value of one byte
#define MIN_TENSOR_BYTES 24 // length of the name, number of dimensions, type, offset

static const struct {
    const char *name;
    size_t size;
} kinds[TL_GGUF_KINDS] = {
    [TL_GGUF_UINT8] = {"UINT8", 1},     [TL_GGUF_INT8] = {"INT8", 1},
    [TL_GGUF_UINT16] = {"UINT16", 2},   [TL_GGUF_INT16] = {"INT16", 2},
    [TL_GGUF_UINT32] = {"UINT32", 4},   [TL_GGUF_INT32] = {"INT32", 4},
    [TL_GGUF_FLOAT32] = {"FLOAT32", 4}, [TL_GGUF_BOOL] = {"BOOL", 1},
    [TL_GGUF_STRING] = {"STRING", 0},   [TL_GGUF_ARRAY] = {"ARRAY", 0},
    [TL_GGUF_UINT64] = {"UINT64", 8},   [TL_GGUF_INT64] = {"INT64", 8},
    [TL_GGUF_FLOAT64] = {"FLOAT64", 8},
};

size_t tl_gguf_kind_size(enum tl_gguf_kind kind) {
    return kinds[kind].size;
}

const char *tl_gguf_kind_name(enum tl_gguf_kind kind) {
    return kinds[kind].name;
}

void tl_gguf_quote(struct tl_bytes bytes, char *out, size_t out_size) {
    size_t n = 0;
    if (out_size < 16) {
        if (out_size > 0) out[0] = 0;
        return;
    }
    out[n++] = '\'';
    for (size_t i = 0; i < bytes.size; i++) {
        unsigned char c = (unsigned char)bytes.data[i];
        if (n + 9 > out_size) { // room for one more character, the dots, the quote and the 0
            memcpy(out + n, "...", 3);
            n += 3;
            break;
        }
        if (c < 32 || c >= 127 || c == '\\' || c == '\'') {
            n += (size_t)snprintf(out + n, 5, "\\x%02x", c);
        } else {
            out[n++] = (char)c;
        }
    }
    out[n++] = '\'';
    out[n] = 0;
}

/* ---- reading with checks ---- */

/* A position in the file; `field` names what is being read, for messages. */
struct cursor {
    const uint8_t *data;
    size_t size;
    size_t at; // at <= size
    struct tl_error *err;
    char field[FIELD_BYTES];
};

static size_t bytes_left(const struct cursor *c) {
    return c->size - c->at;
}

static int fail_cut(const struct cursor *c, const char *what, uint64_t need) {
    char field[FIELD_BYTES];
    snprintf(field, sizeof(field), "%.120s%.38s", c->field, what);
    return tl_fail_format(c->err, field, c->at, "cut off",
                          "%llu bytes, but %zu are left in the file", (unsigned long long)need,
                          bytes_left(c));
}

static int fail_number(const struct cursor *c, const char *what, uint64_t offset, uint64_t value,
                       const char *expected) {
    char field[FIELD_BYTES], text[32];
    snprintf(field, sizeof(field), "%.120s%.38s", c->field, what);
    // a value just below 2^64 is a negative number that was stored as unsigned: show it as such
    if (value > INT64_MAX && value > UINT64_MAX - 65536) {
        snprintf(text, sizeof(text), "%lld", (long long)value);
    } else {
        snprintf(text, sizeof(text), "%llu", (unsigned long long)value);
    }
    return tl_fail_format(c->err, field, offset, text, "%s", expected);
}

static int read_u32(struct cursor *c, const char *what, uint32_t *out) {
    if (bytes_left(c) < 4) return fail_cut(c, what, 4);
    *out = tl_load_u32(c->data + c->at);
    c->at += 4;
    return TL_OK;
}

static int read_u64(struct cursor *c, const char *what, uint64_t *out) {
    if (bytes_left(c) < 8) return fail_cut(c, what, 8);
    *out = tl_load_u64(c->data + c->at);
    c->at += 8;
    return TL_OK;
}

/* Reads a count of items of at least `least` bytes each; fails if the file is too small for them.
 */
static int read_count(struct cursor *c, const char *what, size_t least, uint64_t *out) {
    int status = read_u64(c, what, out);
    char expected[96];
    if (status != TL_OK || *out <= bytes_left(c) / least) return status;
    snprintf(expected, sizeof(expected), "at most %zu, as %zu bytes are left in the file",
             bytes_left(c) / least, bytes_left(c));
    return fail_number(c, what, c->at - 8, *out, expected);
}

static int read_string(struct cursor *c, const char *what, struct tl_bytes *out) {
    uint64_t size = 0;
    int status = read_count(c, what, 1, &size);
    if (status != TL_OK) return status;
    out->data = (const char *)c->data + c->at;
    out->size = (size_t)size;
    c->at += (size_t)size;
    return TL_OK;
}

/* Reads a key or a tensor's name: 1 to `most` bytes without a zero, where C programs would cut it.
 */
static int read_name(struct cursor *c, const char *what, size_t most, struct tl_bytes *out) {
    size_t start = c->at;
    char field[FIELD_BYTES], quoted[96], expected[64];
    int status = read_string(c, what, out);
    if (status != TL_OK) return status;
    if (out->size == 0 || out->size > most) {
        snprintf(expected, sizeof(expected), "1 to %zu bytes", most);
        snprintf(field, sizeof(field), "%.100s (length)", what);
        return fail_number(c, field, start, out->size, expected);
    }
    if (memchr(out->data, 0, out->size) != NULL) {
        snprintf(field, sizeof(field), "%.120s%.38s", c->field, what);
        tl_gguf_quote(*out, quoted, sizeof(quoted));
        return tl_fail_format(c->err, field, start, quoted, "a name without a zero byte");
    }
    return TL_OK;
}

/* ---- metadata ---- */

static int read_kind(struct cursor *c, const char *what, enum tl_gguf_kind *out) {
    uint32_t kind = 0;
    int status = read_u32(c, what, &kind);
    if (status != TL_OK) return status;
    if (kind >= TL_GGUF_KINDS) {
        return fail_number(c, what, c->at - 4, kind, "a value type from 0 to 12");
    }
    *out = (enum tl_gguf_kind)kind;
    return TL_OK;
}

static int check_bools(const struct cursor *c, size_t count) {
    const uint8_t *p = c->data + c->at;
    for (size_t i = 0; i < count; i++) {
        if (p[i] > 1) return fail_number(c, "", c->at + i, p[i], "a bool, 0 or 1");
    }
    return TL_OK;
}

static int read_array(struct cursor *c, int depth, struct tl_gguf_value *out) {
    size_t size, least;
    uint64_t count = 0;
    int status = read_kind(c, " (element type)", &out->element);
    if (status != TL_OK) return status;
    if (out->element == TL_GGUF_ARRAY && depth == TL_GGUF_MAX_DEPTH) {
        char expected[64];
        snprintf(expected, sizeof(expected), "at most %d nested arrays", TL_GGUF_MAX_DEPTH);
        return fail_number(c, " (depth)", c->at - 4, (uint64_t)depth + 1, expected);
    }
    size = kinds[out->element].size;
    least = size != 0 ? size : out->element == TL_GGUF_STRING ? 8 : 12;
    if ((status = read_count(c, " (array length)", least, &count)) != TL_OK) return status;
    out->count = (size_t)count;
    out->data = c->data + c->at;
    if (size != 0) {
        if (out->element == TL_GGUF_BOOL) status = check_bools(c, out->count);
        c->at += size * out->count; // at most the bytes that are left
        return status;
    }
    for (size_t i = 0; i < out->count && status == TL_OK; i++) {
        if (out->element == TL_GGUF_STRING) {
            struct tl_bytes string;
            status = read_string(c, " (string length)", &string);
        } else {
            struct tl_gguf_value inner;
            status = read_array(c, depth + 1, &inner);
        }
    }
    return status;
}

static int read_value(struct cursor *c, struct tl_gguf_value *out) {
    struct tl_bytes string;
    size_t size;
    int status = read_kind(c, " (type)", &out->kind);
    if (status != TL_OK) return status;
    out->data = c->data + c->at;
    if (out->kind == TL_GGUF_STRING) return read_string(c, " (string length)", &string);
    if (out->kind == TL_GGUF_ARRAY) return read_array(c, 1, out);
    size = kinds[out->kind].size;
    if (bytes_left(c) < size) return fail_cut(c, "", size);
    if (out->kind == TL_GGUF_BOOL) status = check_bools(c, 1);
    c->at += size;
    return status;
}

static bool is_key(struct tl_bytes key, const char *text) {
    return key.size == strlen(text) && memcmp(key.data, text, key.size) == 0;
}

static int read_alignment(const struct cursor *c, const struct tl_gguf_value *value,
                          uint32_t *out) {
    uint64_t at = (uint64_t)(value->data - c->data);
    uint32_t alignment;
    if (value->kind != TL_GGUF_UINT32) {
        return tl_fail_format(c->err, "general.alignment (type)", at - 4, kinds[value->kind].name,
                              "UINT32");
    }
    alignment = tl_load_u32(value->data);
    if (alignment == 0 || (alignment & (alignment - 1)) != 0) {
        return fail_number(c, "", at, alignment, "a power of two");
    }
    *out = alignment;
    return TL_OK;
}

static int read_entry(struct cursor *c, size_t i, struct tl_gguf *g) {
    struct tl_gguf_entry *entry = &g->entries[i];
    char quoted[100];
    size_t start;
    int status;
    snprintf(c->field, sizeof(c->field), "metadata key %zu", i);
    if ((status = read_name(c, "", TL_GGUF_MAX_KEY, &entry->key)) != TL_OK) return status;
    tl_gguf_quote(entry->key, quoted, sizeof(quoted));
    snprintf(c->field, sizeof(c->field), "metadata %s", quoted);
    start = c->at;
    if ((status = read_value(c, &entry->value)) != TL_OK) return status;
    entry->stored = (struct tl_bytes){(const char *)c->data + start, c->at - start};
    if (!is_key(entry->key, "general.alignment")) return TL_OK;
    return read_alignment(c, &entry->value, &g->alignment);
}

/* ---- tensors ---- */

int tl_gguf_tensor_size(struct tl_gguf_tensor *t, uint64_t offset, struct tl_error *err) {
    char quoted[96], field[FIELD_BYTES], value[96];
    size_t length = 0;
    uint64_t extent = 1,
             rows = 1; // extent: the product of all dimensions except zeros, as in NumPy
    bool fits = true;
    tl_gguf_quote(t->name, quoted, sizeof(quoted));
    for (int d = t->n_dims; d < TL_GGUF_MAX_DIMS; d++) t->dims[d] = 1;
    for (int d = 0; d < TL_GGUF_MAX_DIMS; d++) {
        if (t->dims[d] > INT64_MAX) {
            snprintf(field, sizeof(field), "tensor %s dimension %d", quoted, d);
            snprintf(value, sizeof(value), "%lld", (long long)t->dims[d]);
            return tl_fail_format(err, field, offset + 8 * (uint64_t)d, value,
                                  "a number from 0 to 2^63 - 1");
        }
        if (t->dims[d] != 0) {
            // 8 bytes: an element of a float64 array made from the tensor
            fits = fits && t->dims[d] <= INT64_MAX / 8 / extent;
            if (fits) extent *= t->dims[d];
        }
        if (d > 0 && fits) rows *= t->dims[d];
    }
    for (int d = 0; d < t->n_dims && length < sizeof(value); d++) {
        length += (size_t)snprintf(value + length, sizeof(value) - length, "%s%llu",
                                   d > 0 ? " x " : "", (unsigned long long)t->dims[d]);
    }
    snprintf(field, sizeof(field), "tensor %s dimensions", quoted);
    if (t->dims[0] % (uint64_t)t->type->items != 0) {
        return tl_fail_format(err, field, offset, value,
                              "a first one that is a multiple of %d for %s", t->type->items,
                              t->type->name);
    }
    if (!fits || rows > SIZE_MAX || !tl_type_row_bytes(t->type, t->dims[0], &t->row_bytes) ||
        !tl_mul_size(t->row_bytes, (size_t)rows, &t->bytes) || t->bytes > SIZE_MAX / 2) {
        return tl_fail_format(err, field, offset, value, "a size that fits in memory");
    }
    return TL_OK;
}

static int read_type(const struct cursor *c, uint32_t id, const struct tl_type_info **out) {
    char field[FIELD_BYTES], value[48];
    const char *removed = tl_type_removed_name(id);
    *out = tl_type_find(id);
    if (*out != NULL) return TL_OK;
    snprintf(field, sizeof(field), "%.150s type", c->field);
    if (removed != NULL) {
        snprintf(value, sizeof(value), "%u (%s)", (unsigned)id, removed);
        return tl_fail_format(c->err, field, c->at - 4, value,
                              "another type: ggml has removed this one");
    }
    snprintf(value, sizeof(value), "%u", (unsigned)id);
    return tl_fail_format(c->err, field, c->at - 4, value, "a ggml type from 0 to %d",
                          TL_TYPE_COUNT - 1);
}

static int read_tensor(struct cursor *c, size_t i, struct tl_gguf *g) {
    struct tl_gguf_tensor *t = &g->tensors[i];
    char quoted[96];
    uint32_t n_dims = 0, type = 0;
    uint64_t dims_at;
    int status;
    snprintf(c->field, sizeof(c->field), "tensor %zu", i);
    if ((status = read_name(c, " name", TL_GGUF_MAX_NAME, &t->name)) != TL_OK) return status;
    tl_gguf_quote(t->name, quoted, sizeof(quoted));
    snprintf(c->field, sizeof(c->field), "tensor %s", quoted);
    if ((status = read_u32(c, " n_dims", &n_dims)) != TL_OK) return status;
    if (n_dims > TL_GGUF_MAX_DIMS) return fail_number(c, " n_dims", c->at - 4, n_dims, "0 to 4");
    t->n_dims = (int)n_dims;
    dims_at = c->at;
    for (uint32_t d = 0; d < n_dims; d++) {
        if ((status = read_u64(c, " dimensions", &t->dims[d])) != TL_OK) return status;
    }
    if ((status = read_u32(c, " type", &type)) != TL_OK) return status;
    if ((status = read_type(c, type, &t->type)) != TL_OK) return status;
    if ((status = tl_gguf_tensor_size(t, dims_at, c->err)) != TL_OK) return status;
    if ((status = read_u64(c, " offset", &t->offset)) != TL_OK) return status;
    if (t->offset % g->alignment != 0) {
        char expected[64];
        snprintf(expected, sizeof(expected), "a multiple of the alignment, %u",
                 (unsigned)g->alignment);
        return fail_number(c, " offset", c->at - 8, t->offset, expected);
    }
    t->data = c->data + c->at - 8; // for messages, until the data section is known
    return TL_OK;
}

/* Gives every tensor its bytes; the data section starts at the next multiple of the alignment. */
static int place_tensors(struct cursor *c, struct tl_gguf *g) {
    uint64_t mask = (uint64_t)g->alignment - 1;
    uint64_t start = ((uint64_t)c->at + mask) & ~mask;
    uint64_t available = start < c->size ? c->size - start : 0;
    for (size_t i = 0; i < g->n_tensors; i++) {
        struct tl_gguf_tensor *t = &g->tensors[i];
        uint64_t field_at = (uint64_t)(t->data - c->data);
        // the padding after the last tensor may be missing; an empty tensor may start after it
        uint64_t last = t->bytes == 0 ? (available + mask) & ~mask : available;
        char quoted[96], field[FIELD_BYTES], value[96];
        if (t->offset > last || (t->bytes > 0 && t->bytes > available - t->offset)) {
            tl_gguf_quote(t->name, quoted, sizeof(quoted));
            snprintf(field, sizeof(field), "tensor %s offset", quoted);
            snprintf(value, sizeof(value), "%llu, its size %zu", (unsigned long long)t->offset,
                     t->bytes);
            return tl_fail_format(c->err, field, field_at, value,
                                  "a range inside the data section of %llu bytes",
                                  (unsigned long long)available);
        }
        t->data = c->data + TL_MIN(start + TL_MIN(t->offset, available), c->size);
    }
    return TL_OK;
}

/* ---- uniqueness and overlap, checked by sorting: no input makes that slow ---- */

static int compare_bytes(struct tl_bytes a, struct tl_bytes b) {
    int order = memcmp(a.data, b.data, TL_MIN(a.size, b.size));
    if (order != 0) return order;
    return (a.size > b.size) - (a.size < b.size);
}

static int by_text(const void *a, const void *b) {
    const struct tl_bytes *x = a, *y = b;
    int order = compare_bytes(*x, *y);
    return order != 0 ? order : (x->data > y->data) - (x->data < y->data);
}

/* Sorts the names. */
static int check_unique(const struct cursor *c, struct tl_bytes *names, size_t n,
                        const char *what) {
    qsort(names, n, sizeof(*names), by_text);
    for (size_t i = 1; i < n; i++) {
        char quoted[96];
        uint64_t at;
        if (compare_bytes(names[i - 1], names[i]) != 0) continue;
        at = (uint64_t)((const uint8_t *)names[i].data - c->data) - 8;
        tl_gguf_quote(names[i], quoted, sizeof(quoted));
        return tl_fail_format(c->err, what, at, quoted, "a name that is not used twice");
    }
    return TL_OK;
}

static int by_place(const void *a, const void *b) {
    const struct tl_gguf_tensor *x = *(const struct tl_gguf_tensor *const *)a;
    const struct tl_gguf_tensor *y = *(const struct tl_gguf_tensor *const *)b;
    if (x->data != y->data) return x->data < y->data ? -1 : 1;
    return (x->bytes > y->bytes) - (x->bytes < y->bytes); // empty ones first
}

static int check_overlap(const struct cursor *c, struct tl_gguf_tensor **order, size_t n) {
    qsort(order, n, sizeof(struct tl_gguf_tensor *), by_place);
    for (size_t i = 1; i < n; i++) {
        const struct tl_gguf_tensor *a = order[i - 1], *b = order[i];
        char first[96], second[96], field[FIELD_BYTES], value[32];
        if (a->bytes <= (size_t)(b->data - a->data)) continue;
        tl_gguf_quote(a->name, first, sizeof(first));
        tl_gguf_quote(b->name, second, sizeof(second));
        snprintf(field, sizeof(field), "tensor %s offset", second);
        snprintf(value, sizeof(value), "%llu", (unsigned long long)b->offset);
        // the offset comes after the name, n_dims (4 bytes), the dimensions and the type (4 bytes)
        return tl_fail_format(c->err, field,
                              (uint64_t)((const uint8_t *)b->name.data - c->data) + b->name.size +
                                  8 + 8 * (uint64_t)b->n_dims,
                              value, "a position after the end of tensor %s", first);
    }
    return TL_OK;
}

/* Checks that no two tensors share a name or a byte, and no two entries a key. */
static int check_apart(const struct cursor *c, struct tl_gguf *g) {
    size_t n = TL_MAX(g->n_entries, g->n_tensors), bytes;
    struct tl_bytes *names;
    int status;
    if (n == 0) return TL_OK;
    if (!tl_mul_size(n, sizeof(*names), &bytes) || (names = tl_alloc(bytes)) == NULL) {
        return tl_fail(c->err, TL_ENOMEM, "no memory to index %zu names", n);
    }
    for (size_t i = 0; i < g->n_entries; i++) names[i] = g->entries[i].key;
    status = check_unique(c, names, g->n_entries, "metadata key");
    if (status == TL_OK) {
        for (size_t i = 0; i < g->n_tensors; i++) names[i] = g->tensors[i].name;
        status = check_unique(c, names, g->n_tensors, "tensor name");
    }
    if (status == TL_OK) {
        struct tl_gguf_tensor **order = (struct tl_gguf_tensor **)(void *)names;
        for (size_t i = 0; i < g->n_tensors; i++) order[i] = &g->tensors[i];
        status = check_overlap(c, order, g->n_tensors);
    }
    tl_free(names);
    return status;
}

/* ---- the file ---- */

static int read_version(struct cursor *c, uint32_t *out) {
    struct tl_bytes magic = {(const char *)c->data, 4};
    char quoted[32];
    uint32_t version = 0, swapped;
    int status;
    if (c->size < 4) return fail_cut(c, "magic", 4);
    if (memcmp(c->data, "GGUF", 4) != 0) {
        tl_gguf_quote(magic, quoted, sizeof(quoted));
        return tl_fail_format(c->err, "magic", 0, quoted, "'GGUF', the start of a GGUF file");
    }
    c->at = 4;
    if ((status = read_u32(c, "version", &version)) != TL_OK) return status;
    swapped = version >> 24 | (version >> 8 & 0xff00u) | (version << 8 & 0xff0000u) | version << 24;
    if (swapped >= 1 && swapped <= 255) {
        return fail_number(c, "version", 4, version,
                           "a little-endian file: this one is big-endian; convert it first");
    }
    if (version == 1) {
        return fail_number(c, "version", 4, 1, "2 or 3: version 1 is no longer in use; convert it");
    }
    if (version != 2 && version != 3) return fail_number(c, "version", 4, version, "2 or 3");
    *out = version;
    return TL_OK;
}

static int alloc_index(const struct cursor *c, size_t n, size_t item, void *out) {
    size_t bytes;
    void *p = NULL;
    if (n > 0 && tl_mul_size(n, item, &bytes)) p = tl_alloc(bytes);
    if (n > 0 && p == NULL) return tl_fail(c->err, TL_ENOMEM, "no memory to index %zu names", n);
    memcpy(out, &p, sizeof(p));
    return TL_OK;
}

static int read_file(struct cursor *c, struct tl_gguf *g) {
    uint64_t n_tensors = 0, n_entries = 0;
    int status;
    if ((status = read_version(c, &g->version)) != TL_OK) return status;
    if ((status = read_count(c, "n_tensors", MIN_TENSOR_BYTES, &n_tensors)) != TL_OK) return status;
    if ((status = read_count(c, "n_kv", MIN_ENTRY_BYTES, &n_entries)) != TL_OK) return status;

    status = alloc_index(c, (size_t)n_entries, sizeof(*g->entries), &g->entries);
    if (status != TL_OK) return status;
    for (; g->n_entries < n_entries; g->n_entries++) {
        if ((status = read_entry(c, g->n_entries, g)) != TL_OK) return status;
    }
    status = alloc_index(c, (size_t)n_tensors, sizeof(*g->tensors), &g->tensors);
    if (status != TL_OK) return status;
    for (; g->n_tensors < n_tensors; g->n_tensors++) {
        if ((status = read_tensor(c, g->n_tensors, g)) != TL_OK) return status;
    }
    if ((status = place_tensors(c, g)) != TL_OK) return status;
    return check_apart(c, g);
}

int tl_gguf_open(struct tl_gguf *g, const uint8_t *data, size_t size, struct tl_error *err) {
    struct cursor c = {.data = data, .size = size, .err = err};
    int status;
    *g = (struct tl_gguf){.alignment = TL_GGUF_DEFAULT_ALIGNMENT};
    status = read_file(&c, g);
    if (status != TL_OK) tl_gguf_close(g);
    return status;
}

void tl_gguf_close(struct tl_gguf *g) {
    tl_free(g->entries);
    tl_free(g->tensors);
    *g = (struct tl_gguf){0};
}

const uint8_t *tl_gguf_next_string(const uint8_t *p, struct tl_bytes *out) {
    out->size = (size_t)tl_load_u64(p);
    out->data = (const char *)p + 8;
    return p + 8 + out->size;
}

const uint8_t *tl_gguf_next_array(const uint8_t *p, struct tl_gguf_value *out) {
    size_t size;
    *out = (struct tl_gguf_value){
        .kind = TL_GGUF_ARRAY,
        .element = (enum tl_gguf_kind)tl_load_u32(p),
        .count = (size_t)tl_load_u64(p + 4),
        .data = p + 12,
    };
    size = kinds[out->element].size;
    p = out->data;
    if (size != 0) return p + size * out->count;
    for (size_t i = 0; i < out->count; i++) {
        struct tl_bytes string;
        struct tl_gguf_value inner;
        p = out->element == TL_GGUF_STRING ? tl_gguf_next_string(p, &string)
                                           : tl_gguf_next_array(p, &inner);
    }
    return p;
}
