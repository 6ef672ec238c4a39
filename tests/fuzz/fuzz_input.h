/* fuzz_input.h - the bytes of a fuzzer as numbers: zeros once they are used up. */
#ifndef FUZZ_INPUT_H
#define FUZZ_INPUT_H

#include <stddef.h>
#include <stdint.h>

static const uint8_t *input;
static size_t input_left;

static unsigned take(void) {
    if (input_left == 0) return 0;
    input_left--;
    return *input++;
}

static size_t below(size_t n) {
    const size_t x = take();
    return (n > 256 ? x << 8 | take() : x) % n;
}

#define PICK(items) ((items)[below(TL_ARRAY_LEN(items))])

static uint64_t next_random(uint64_t *state) {
    *state ^= *state << 13; // xorshift64
    *state ^= *state >> 7;
    return *state ^= *state << 17;
}

#endif
