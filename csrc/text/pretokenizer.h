/*
 * pretokenizer.h - cutting UTF-8 texts into words by regular expressions over classes of
 * characters.
 *
 * An expression is compiled by tinyllm/tokenizer/program.py to a program of the operations below
 * and runs here on a backtracking machine whose stack is on the heap: no text overflows it. The
 * first alternative that matches wins and quantifiers are greedy, as in Perl.
 */
#ifndef TL_PRETOKENIZER_H
#define TL_PRETOKENIZER_H

#include "base/base.h"

/* Operation, operands. Classes are numbers, targets are positions in the program. */
enum tl_pretokenizer_op {
    TL_PRETOKENIZER_CLASS,    // class            one character of it
    TL_PRETOKENIZER_REPEAT,   // class, min, max  min to max of it, greedily; max < 0: no limit
    TL_PRETOKENIZER_FORK,     // first, second    try the first, then the second
    TL_PRETOKENIZER_JUMP,     // target
    TL_PRETOKENIZER_LOOK,     // class            the next character is of it
    TL_PRETOKENIZER_NOT_LOOK, // class            the next character, if there is one, is not
    TL_PRETOKENIZER_MATCH,    //
    TL_PRETOKENIZER_N_OPS,
};

/* A growing list of the positions where pieces end; zero-initialize it. */
struct tl_ends {
    size_t *at; // owns
    size_t n, capacity;
};

int tl_ends_add(struct tl_ends *ends, size_t at, struct tl_error *err);
void tl_ends_free(struct tl_ends *ends);

/* One expression: what tinyllm/tokenizer/pretokenizers.py calls a splitter. Immutable. */
struct tl_pretokenizer;

/*
 * program: n_words operations and operands. ranges: pairs (first, last) of code points; those of
 * class c are class_ends[c - 1] to class_ends[c], rising. Copies everything.
 */
int tl_pretokenizer_new(const int32_t *program, size_t n_words, const int32_t *ranges,
                        const int32_t *class_ends, size_t n_classes, struct tl_pretokenizer **out,
                        struct tl_error *err);
void tl_pretokenizer_free(struct tl_pretokenizer *s);

/*
 * Cuts text[start..end), which is valid UTF-8, into matches and what lies between them, and adds
 * the end of each piece to *out. Reads nothing outside. *stack is the machine's memory, which can
 * be reused between calls: zero-initialize it, and free it with tl_pretokenizer_stack_free.
 */
struct tl_pretokenizer_stack {
    struct tl_pretokenizer_frame *frames; // owns
    size_t capacity;
};

int tl_pretokenizer_run(const struct tl_pretokenizer *s, const uint8_t *text, size_t start,
                        size_t end, struct tl_ends *out, struct tl_pretokenizer_stack *stack,
                        struct tl_error *err);
void tl_pretokenizer_stack_free(struct tl_pretokenizer_stack *stack);

#endif
