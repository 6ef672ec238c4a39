/*
 * fuzz_gguf.c - gives any bytes to the GGUF reader, and reads everything that it points to.
 *
 * With libFuzzer (clang):
 *   clang -std=c11 -g -O1 -fsanitize=fuzzer,address,undefined -Icsrc -o /tmp/fuzz_gguf \
 *       tests/fuzz/fuzz_gguf.c csrc/files/gguf.c csrc/types/*.c csrc/base/base.c
 *   mkdir -p /tmp/corpus && /tmp/fuzz_gguf -max_len=4096 -max_total_time=600 /tmp/corpus DIRECTORY
 * DIRECTORY holds a few small GGUF files to start from.
 *
 * Without it, FUZZ_MAIN makes a program that changes the files it is given at random places:
 *   gcc -std=c11 -g -O1 -fsanitize=address,undefined -DFUZZ_MAIN -Icsrc -o /tmp/fuzz_gguf \
 *       tests/fuzz/fuzz_gguf.c csrc/files/gguf.c csrc/types/*.c csrc/base/base.c
 *   /tmp/fuzz_gguf 1000000 FILE.gguf ...
 */
#include "files/gguf.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static uint64_t sum; // so that reading is not optimized away

static void touch(const void *p, size_t n) {
    for (size_t i = 0; i < n; i++) sum += ((const uint8_t *)p)[i];
}

static void touch_array(const struct tl_gguf_value *value) {
    const uint8_t *p = value->data;
    size_t size = tl_gguf_kind_size(value->element);
    if (size != 0) {
        touch(p, size * value->count);
        return;
    }
    for (size_t i = 0; i < value->count; i++) {
        if (value->element == TL_GGUF_STRING) {
            struct tl_bytes string;
            p = tl_gguf_next_string(p, &string);
            touch(string.data, string.size);
        } else {
            struct tl_gguf_value inner;
            p = tl_gguf_next_array(p, &inner);
            touch_array(&inner);
        }
    }
}

static void touch_tensor(const struct tl_gguf_tensor *t) {
    float values[TL_CHUNK];
    double wide[TL_CHUNK];
    touch(t->name.data, t->name.size);
    touch(t->data, t->bytes);
    if (t->bytes == 0 || t->type->kind == TL_KIND_RAW) return;
    tl_type_to_f32(t->type, t->data, values, (size_t)t->type->items);
    tl_type_to_f64(t->type, t->data, wide, (size_t)t->type->items);
    touch(values, sizeof(values[0]) * (size_t)t->type->items);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    struct tl_gguf g;
    struct tl_error err;
    uint8_t *copy = malloc(size ? size : 1); // exact size: a sanitizer sees reads past it
    if (copy == NULL) return 0;
    if (size) memcpy(copy, data, size);
    if (tl_gguf_open(&g, copy, size, &err) == TL_OK) {
        for (size_t i = 0; i < g.n_entries; i++) {
            const struct tl_gguf_value *value = &g.entries[i].value;
            touch(g.entries[i].key.data, g.entries[i].key.size);
            touch(g.entries[i].stored.data, g.entries[i].stored.size);
            if (value->kind == TL_GGUF_ARRAY) touch_array(value);
        }
        for (size_t i = 0; i < g.n_tensors; i++) touch_tensor(&g.tensors[i]);
        tl_gguf_close(&g);
    } else if (err.text[0] == 0 || (err.status == TL_EFORMAT && err.offset > size)) {
        abort(); // an error without a message, or with an offset outside the file
    }
    free(copy);
    return 0;
}

#ifdef FUZZ_MAIN

static uint64_t next_random(void) {
    static uint64_t state = 88172645463325252u; // xorshift64
    state ^= state << 13;
    state ^= state >> 7;
    return state ^= state << 17;
}

/* Changes a few bytes to random or special values, or cuts the file off. */
static size_t change(uint8_t *data, size_t size) {
    static const uint8_t special[] = {0, 1, 8, 9, 0x7f, 0x80, 0xff};
    for (uint64_t n = 1 + next_random() % 4; n > 0 && size > 0; n--) {
        size_t at = next_random() % size;
        uint64_t r = next_random();
        if (r % 16 == 0) {
            size = at;
        } else if (r % 16 < 8) {
            data[at] = special[r / 16 % sizeof(special)];
        } else {
            data[at] = (uint8_t)(r >> 8);
        }
    }
    return size;
}

int main(int argc, char **argv) {
    long runs = argc > 1 ? strtol(argv[1], NULL, 10) : 0;
    for (int i = 2; i < argc; i++) {
        static uint8_t original[1 << 16], data[1 << 16];
        FILE *f = fopen(argv[i], "rb");
        size_t size = f != NULL ? fread(original, 1, sizeof(original), f) : 0;
        if (f != NULL) fclose(f);
        for (long run = 0; run < runs / (argc - 2); run++) {
            memcpy(data, original, size);
            LLVMFuzzerTestOneInput(data, run == 0 ? size : change(data, size));
        }
    }
    printf("done, %d\n", (int)(sum & 1));
    return 0;
}

#endif
