/*
 * gguf.h - the reader of GGUF files: an index over bytes that the caller owns.
 *
 * Opening checks every length, count, type and range of the file once. After that, everything the
 * index points to lies inside the bytes and can be read without further checks. The format is
 * docs/gguf.md of ggml; where this reader accepts more or less than that is docs/gguf.md here.
 */
#ifndef TL_GGUF_H
#define TL_GGUF_H

#include "base/base.h"
#include "types/types.h"

#define TL_GGUF_DEFAULT_ALIGNMENT 32
#define TL_GGUF_MAX_KEY 65535 // bytes
#define TL_GGUF_MAX_NAME 63   // bytes of a tensor's name
#define TL_GGUF_MAX_DIMS 4
#define TL_GGUF_MAX_DEPTH 8 // of arrays in arrays

enum tl_gguf_kind {
    TL_GGUF_UINT8,
    TL_GGUF_INT8,
    TL_GGUF_UINT16,
    TL_GGUF_INT16,
    TL_GGUF_UINT32,
    TL_GGUF_INT32,
    TL_GGUF_FLOAT32,
    TL_GGUF_BOOL,
    TL_GGUF_STRING,
    TL_GGUF_ARRAY,
    TL_GGUF_UINT64,
    TL_GGUF_INT64,
    TL_GGUF_FLOAT64,
    TL_GGUF_KINDS,
};

/* Bytes of a value of this kind; 0 for strings and arrays. */
size_t tl_gguf_kind_size(enum tl_gguf_kind kind);

/* "UINT32", "ARRAY" ... */
const char *tl_gguf_kind_name(enum tl_gguf_kind kind);

/* Any bytes, with their length; not terminated by a zero. */
struct tl_bytes {
    const char *data;
    size_t size;
};

/* A value as the file stores it. */
struct tl_gguf_value {
    enum tl_gguf_kind kind;
    enum tl_gguf_kind element; // of an array; for an array of arrays TL_GGUF_ARRAY
    size_t count;              // of an array
    const uint8_t *data;       // points to the number, the string's length or the first element
};

struct tl_gguf_entry {
    struct tl_bytes key;
    struct tl_gguf_value value;
    struct tl_bytes stored; // the type and the value, byte for byte
};

struct tl_gguf_tensor {
    struct tl_bytes name;
    const struct tl_type_info *type;
    int n_dims;
    uint64_t dims[TL_GGUF_MAX_DIMS]; // dims[0] is the row; 1 beyond n_dims
    size_t row_bytes;
    size_t bytes;
    uint64_t offset; // from the start of the data section
    const uint8_t *data;
};

struct tl_gguf {
    uint32_t version;
    uint32_t alignment;
    size_t n_entries;
    struct tl_gguf_entry *entries; // in the file's order
    size_t n_tensors;
    struct tl_gguf_tensor *tensors; // in the file's order
};

/* Indexes `size` bytes at `data`, which must stay valid until tl_gguf_close. */
int tl_gguf_open(struct tl_gguf *g, const uint8_t *data, size_t size, struct tl_error *err);
void tl_gguf_close(struct tl_gguf *g);

/* Reads the string or the inner array that starts at p, and returns where the next one starts. */
const uint8_t *tl_gguf_next_string(const uint8_t *p, struct tl_bytes *out);
const uint8_t *tl_gguf_next_array(const uint8_t *p, struct tl_gguf_value *out);

/*
 * Checks a tensor's dimensions against its type, and fills in row_bytes and bytes. Needs the fields
 * name, type, n_dims and dims. `offset` is where the dimensions are in the file.
 */
int tl_gguf_tensor_size(struct tl_gguf_tensor *t, uint64_t offset, struct tl_error *err);

/* Writes a printable form of bytes from a file, shortened if it is long: 'blk.0.attn_q\x00' */
void tl_gguf_quote(struct tl_bytes bytes, char *out, size_t out_size);

#endif
